//! The inputs of a stage, aligned by barriers.
//!
//! A stage with several inputs reads them in turn. Once one has delivered its barrier it is left alone
//! until all have, so that nothing of the next epoch is worked on before this one is complete.

use std::future::poll_fn;
use std::task::Poll;

use super::channel::{Closed, Item, Reader};

/// All inputs of one stage.
#[derive(Debug)]
pub(super) struct Inputs {
    readers: Vec<Input>,
    turn: usize,
}

#[derive(Debug)]
struct Input {
    reader: Reader,
    /// The barrier that it has delivered and the others have not.
    barrier: Option<u64>,
}

impl Inputs {
    pub(super) fn new(readers: Vec<Reader>) -> Self {
        let readers = readers.into_iter().map(|reader| Input { reader, barrier: None }).collect();
        Self { readers, turn: 0 }
    }

    /// The next batch of any input, or the barrier that all of them have delivered. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Result<Item, Closed> {
        poll_fn(|cx| {
            loop {
                if let Some(epoch) = self.aligned() {
                    return Poll::Ready(Ok(Item::Barrier(epoch)));
                }
                let Some(polled) = self.poll_in_turn(cx) else {
                    return Poll::Pending;
                };
                match polled {
                    (at, Ok(Item::Barrier(epoch))) => self.readers[at].barrier = Some(epoch),
                    (_, other) => return Poll::Ready(other),
                }
            }
        })
        .await
    }

    /// Takes the barrier that all inputs have delivered, and opens them again.
    fn aligned(&mut self) -> Option<u64> {
        let epoch = self.readers.first()?.barrier?;
        if !self.readers.iter().all(|input| input.barrier == Some(epoch)) {
            return None;
        }
        for input in &mut self.readers {
            input.barrier = None;
        }
        Some(epoch)
    }

    /// The first ready input, beginning behind the one that was read last; `None` if all are pending.
    fn poll_in_turn(&mut self, cx: &mut std::task::Context<'_>) -> Option<(usize, Result<Item, Closed>)> {
        let count = self.readers.len();
        for step in 0..count {
            let at = (self.turn + step) % count;
            let input = &mut self.readers[at];
            if input.barrier.is_none()
                && let Poll::Ready(item) = input.reader.poll(cx)
            {
                self.turn = at + 1;
                return Some((at, item));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::super::channel::{Writer, channel};
    use super::*;
    use crate::observe::Metrics;
    use crate::record::{Batch, BatchBuilder, Draft, Partition};

    fn batch(offset: i64) -> Batch {
        let origin = Partition { source: "s".into(), topic: "t".into(), number: 0 };
        let mut batch = BatchBuilder::new(std::sync::Arc::new(origin), 1, 1);
        batch.push_copy(Draft { body: b"x", offset, ..Draft::default() });
        batch.finish()
    }

    fn two_inputs() -> (Writer, Writer, Inputs) {
        let metrics = Metrics::new().stage("p", "c", "sink", "test");
        let ((one, first), (other, second)) = (channel(1, &metrics), channel(1, &metrics));
        (one, other, Inputs::new(vec![first, second]))
    }

    fn offset(item: Item) -> Result<i64, u64> {
        match item {
            Item::Batch(batch) => Ok(batch.records()[0].offset),
            Item::Barrier(epoch) => Err(epoch),
        }
    }

    #[tokio::test]
    async fn an_input_that_has_delivered_its_barrier_waits_for_the_others() {
        let (one, other, mut inputs) = two_inputs();
        one.write(Item::Barrier(1)).await.unwrap();
        one.write(Item::Batch(batch(10))).await.unwrap();
        other.write(Item::Batch(batch(2))).await.unwrap();
        other.write(Item::Barrier(1)).await.unwrap();
        let mut seen = Vec::new();
        for _ in 0..3 {
            seen.push(offset(inputs.next().await.unwrap()));
        }
        assert_eq!(seen, [Ok(2), Err(1), Ok(10)]);
    }

    #[tokio::test]
    async fn inputs_are_read_in_turn() {
        let (one, other, mut inputs) = two_inputs();
        for offset in 0..3 {
            one.write(Item::Batch(batch(offset))).await.unwrap();
            other.write(Item::Batch(batch(10 + offset))).await.unwrap();
        }
        let mut seen = Vec::new();
        for _ in 0..4 {
            seen.push(offset(inputs.next().await.unwrap()).unwrap());
        }
        assert_eq!(seen, [0, 10, 1, 11]);
    }

    #[tokio::test]
    async fn rule_2_what_belongs_to_another_run_is_dropped() {
        let metrics = Metrics::new().stage("p", "c", "sink", "test");
        let (mut old, reader) = channel(2, &metrics);
        let mut inputs = Inputs::new(vec![reader]);
        old.pretend_run(1);
        old.write(Item::Batch(batch(1))).await.unwrap();
        old.write(Item::Barrier(7)).await.unwrap();
        old.pretend_run(2);
        old.write(Item::Batch(batch(2))).await.unwrap();
        assert_eq!(offset(inputs.next().await.unwrap()), Ok(2));
        assert_eq!(metrics.channel_records.get(), 0, "what was dropped waits no more");
    }

    #[tokio::test]
    async fn a_reader_that_goes_leaves_no_count_behind() {
        let metrics = Metrics::new().stage("p", "c", "sink", "test");
        let (writer, reader) = channel(1, &metrics);
        writer.write(Item::Batch(batch(1))).await.unwrap();
        assert_eq!(metrics.channel_records.get(), 1);
        drop(reader);
        assert_eq!((metrics.channel_records.get(), metrics.channel_bytes.get()), (0, 0));
        assert!(writer.write(Item::Batch(batch(2))).await.is_err());
    }
}
