//! Sources: one whose positions the store keeps, and one that is read as a member of a group.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_stream::try_stream;
use futures::stream::BoxStream;

use super::super::faults::Step;
use super::super::member::{GroupPositions, Member, Members, Queue};
use super::super::mutation::Mutation;
use super::super::outcome::{Path, body};
use super::super::place::Place;
use super::super::scenario::{Id, SourceShape};
use super::SIMULATED;
use crate::clients::kafka::assignment::Held;
use crate::codecs::Codec;
use crate::component::{
    BuiltSource, CompiledSource, KeepsPositions, Pulled, Source, SourceContext, SourceError, SourceTraits,
};
use crate::expr::Schema;
use crate::record::{Batch, BatchBuilder, Draft, Partition, Position};

/// The longest wait before a batch is there.
const LONGEST_WAIT_MS: u64 = 200;
/// How many records a batch has at the most.
const MOST_RECORDS: u64 = 6;

/// What a source reads.
#[derive(Debug, Clone, Copy)]
pub(super) enum Log {
    /// So many records in each partition.
    Fixed { source: usize, records: i64 },
    /// What the first sink holds, as it grows.
    Between,
}

impl Log {
    /// Behind the last record of each partition.
    fn end(self, place: &Place) -> i64 {
        match self {
            Self::Fixed { records, .. } => records,
            Self::Between => i64::try_from(place.world.log_len()).unwrap_or(i64::MAX),
        }
    }

    fn read(self, place: &Place, origin: &Arc<Partition>, offsets: std::ops::Range<i64>) -> Batch {
        let padding = place.world.scenario.padding;
        let mut batch = BatchBuilder::new(Arc::clone(origin), 64, 8);
        match self {
            Self::Fixed { source, .. } => {
                for offset in offsets {
                    let body = body(Id { source, partition: origin.number, offset }, Path::default(), padding);
                    batch.push_copy(Draft { body: &body, offset, ..Draft::default() });
                }
            }
            Self::Between => {
                let index = |offset: i64| usize::try_from(offset).unwrap_or(0);
                let arrivals = place.world.log(index(offsets.start)..index(offsets.end));
                for (offset, arrival) in offsets.zip(arrivals) {
                    let body = body(arrival.id, arrival.path, padding);
                    batch.push_copy(Draft { body: &body, offset, ..Draft::default() });
                }
            }
        }
        batch.finish()
    }
}

pub(super) fn compiled(place: &Place, group: usize, shape: &SourceShape, log: Log) -> CompiledSource {
    let (place, count, grouped) = (place.clone(), shape.partitions, shape.grouped);
    CompiledSource {
        traits: SourceTraits {
            keeps_positions: if grouped { KeepsPositions::Source } else { KeepsPositions::Store },
            finite: !grouped,
            partitioned: true,
            transactional_with: &[SIMULATED],
        },
        codec: Codec::Raw,
        schema: Schema::default(),
        build: Arc::new(move |cx| {
            let place = place.clone();
            if grouped {
                let member = Member::new(place.clone(), group, Arc::clone(&cx.component), cx.transactional);
                let member = Arc::new(member);
                cx.clients.shared(Members::default).add(&member);
                let positions = Arc::new(GroupPositions(Arc::clone(&member)));
                return Ok(BuiltSource {
                    source: Box::new(Grouped { place, member, log }),
                    positions: Some(positions),
                });
            }
            let partition = |number| Partition { source: Arc::clone(&cx.component), topic: "t".into(), number };
            let partitions = (0..count).map(|number| Arc::new(partition(number))).collect();
            Ok(BuiltSource { source: Box::new(Stored { place, partitions, log, was_at: Vec::new() }), positions: None })
        }),
    }
}

/// Yields each partition's records in batches of random sizes, in random turns, and ends.
struct Stored {
    place: Place,
    partitions: Vec<Arc<Partition>>,
    log: Log,
    /// Where it stood, for a source that forgets to go back.
    was_at: Vec<i64>,
}

impl Source for Stored {
    fn stream(&mut self, cx: SourceContext) -> BoxStream<'_, Result<Pulled, SourceError>> {
        Box::pin(try_stream! {
            let Self { place, partitions, log, was_at } = self;
            if was_at.is_empty() || !place.world.is_broken_by(Mutation::ForgetsToRewind) {
                let start = |partition: &Arc<Partition>| cx.resume_from(partition).map_or(0, |Position(at)| at);
                *was_at = partitions.iter().map(start).collect();
            }
            let end = log.end(place);
            loop {
                let open: Vec<usize> = (0..was_at.len()).filter(|&number| was_at[number] < end).collect();
                let Some(turns) = std::num::NonZeroUsize::new(open.len()) else { break };
                cx.runtime.sleep(Duration::from_millis(place.world.below(LONGEST_WAIT_MS))).await;
                let chosen = open[chosen(place, turns.get())];
                let from = was_at[chosen];
                let to = (from + size(place)).min(end);
                pull(place, &partitions[chosen], from, to).await?;
                was_at[chosen] = to;
                yield Pulled::new(log.read(place, &partitions[chosen], from..to), Position(to));
            }
        })
    }
}

/// Yields what its member of the group holds, and never ends.
struct Grouped {
    place: Place,
    member: Arc<Member>,
    log: Log,
}

impl Source for Grouped {
    fn stream(&mut self, cx: SourceContext) -> BoxStream<'_, Result<Pulled, SourceError>> {
        let Self { place, member, log } = &*self;
        member.begin_run(cx.epochs.clone());
        Box::pin(try_stream! {
            loop {
                if let Some(fault) = member.take_fault() {
                    Err(fault)?;
                }
                let end = log.end(place);
                let has_more = |held: &Arc<Held<Queue>>| held.read(|queue| queue.load(Ordering::Relaxed) < end) == Some(true);
                let open: Vec<_> = member.held().into_iter().filter(has_more).collect();
                if open.is_empty() {
                    tokio::select! {
                        biased;
                        () = member.wake.notified() => {}
                        () = cx.runtime.sleep(Duration::from_millis(LONGEST_WAIT_MS)) => {}
                    }
                    continue;
                }
                cx.runtime.sleep(Duration::from_millis(place.world.below(LONGEST_WAIT_MS))).await;
                let held = &open[chosen(place, open.len())];
                let Some(from) = held.read(|queue| queue.load(Ordering::Relaxed)) else { continue };
                let to = (from + size(place)).min(end);
                pull(place, &held.origin, from, to).await?;
                // Between the look and the reading the partition may have gone, or gone back.
                let moved = held.read(|queue| {
                    queue.compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed).is_ok()
                });
                if moved == Some(true) && held.yielded(to) {
                    yield Pulled::new(log.read(place, &held.origin, from..to), Position(to));
                }
            }
        })
    }
}

impl Drop for Grouped {
    fn drop(&mut self) {
        self.member.close();
    }
}

async fn pull(place: &Place, partition: &Partition, from: i64, to: i64) -> Result<(), SourceError> {
    let what = format!("{}/{}: {from}..{to}", partition.source, partition.number);
    place.step(Step::Pull, &what).await.map_err(SourceError::Retry)
}

fn chosen(place: &Place, of: usize) -> usize {
    usize::try_from(place.world.below(of as u64)).unwrap_or(0)
}

fn size(place: &Place) -> i64 {
    1 + i64::try_from(place.world.below(MOST_RECORDS)).unwrap_or(0)
}
