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
