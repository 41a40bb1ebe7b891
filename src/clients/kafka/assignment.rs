//! The partitions that this process holds, and how far each was read and committed.
//!
//! One lock covers the answer to "may this offset be committed?" and the rebalance that changes it. Each partition has a
//! gate of its own, so that reading takes no lock that the others share: once a partition is closed, nothing is read
//! through it any more, even if the same partition comes back under a new assignment.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::delivery::Positions;
use crate::record::{Partition, Position};

/// Where librdkafka is told to start at the oldest record.
pub(crate) const BEGINNING: i64 = -2;

/// A partition under one assignment. `Q` is its queue.
#[derive(Debug)]
pub(crate) struct Held<Q> {
    /// The partition, shared by all its batches.
    pub(crate) origin: Arc<Partition>,
    /// Where its records wait.
    pub(crate) queue: Q,
    /// Where this process first started it: an offset, or [`BEGINNING`].
    start: i64,
    progress: Mutex<Progress>,
}

#[derive(Debug, Default)]
struct Progress {
    /// It is being taken away: nothing more is read.
    closed: bool,
    /// Records were taken out of the queue since it last stood at a committed position.
    moved: bool,
    /// librdkafka has stopped fetching it after an error.
    stalled: bool,
    /// Behind the last record yielded in this run.
    pulled: Option<i64>,
    /// What the group has committed.
    committed: Option<i64>,
    /// How often its lag was looked at since it was positioned. At the first look what librdkafka tells may be older.
    looks: u32,
}

impl<Q> Held<Q> {
    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads, unless the partition is being taken away. No reader is inside once [`Assignment::close`] has returned.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&Q) -> T) -> Option<T> {
        let mut progress = self.progress();
        if progress.closed {
            return None;
        }
        progress.moved = true;
        Some(read(&self.queue))
    }

    /// Notes that records up to a position are yielded. `false` if the partition was taken away meanwhile: they must
    /// be dropped.
    pub(crate) fn yielded(&self, position: i64) -> bool {
        let mut progress = self.progress();
        if !progress.closed {
            progress.pulled = Some(position);
        }
        !progress.closed
    }

    /// Whether it is being taken away.
    pub(crate) fn is_closed(&self) -> bool {
        self.progress().closed
    }

    /// Notes that librdkafka has stopped fetching it.
    pub(crate) fn stalled(&self) {
        self.progress().stalled = true;
    }

    /// Whether all that was yielded is committed, and was not just positioned anew. Asked once for each look at the lag.
    pub(crate) fn is_at_rest(&self) -> bool {
        let mut progress = self.progress();
        progress.looks = progress.looks.saturating_add(1);
        progress.looks > 1 && progress.pulled.is_none_or(|pulled| progress.committed == Some(pulled))
    }

    /// Where reading goes on after a rewind.
    pub(crate) fn resume(&self) -> i64 {
        self.progress().committed.unwrap_or(self.start)
    }
}

/// A partition that must be repositioned, and how.
#[derive(Debug)]
pub(crate) struct Rewind<Q> {
    pub(crate) held: Arc<Held<Q>>,
    pub(crate) to: i64,
    /// It does not fetch any more, and must be assigned anew.
    pub(crate) stalled: bool,
}

/// What became of a partition that was taken away in this run.
#[derive(Debug, Clone, Copy)]
struct Left {
    committed: Option<i64>,
    /// Records were yielded that nothing committed.
    unfinished: bool,
}

/// All partitions held.
#[derive(Debug)]
pub(crate) struct Assignment<Q> {
    held: BTreeMap<Arc<Partition>, Arc<Held<Q>>>,
    left: BTreeMap<Arc<Partition>, Left>,
    changes: u64,
}

impl<Q> Default for Assignment<Q> {
    fn default() -> Self {
        Self { held: BTreeMap::new(), left: BTreeMap::new(), changes: 0 }
    }
}

impl<Q> Assignment<Q> {
    /// Grows with each change of what is held.
    pub(crate) fn changes(&self) -> u64 {
        self.changes
    }

    /// All that is held.
    pub(crate) fn held(&self) -> impl Iterator<Item = &Arc<Held<Q>>> {
        self.held.values()
    }

    /// A partition that is held.
    pub(crate) fn get(&self, partition: &Partition) -> Option<&Arc<Held<Q>>> {
        self.held.get(partition)
    }

    /// Takes a partition on. `committed` is what the group has for it.
    pub(crate) fn grant(&mut self, origin: Arc<Partition>, queue: Q, start: i64, committed: Option<i64>) {
        let progress = Mutex::new(Progress { committed, ..Progress::default() });
        let held = Held { origin: Arc::clone(&origin), queue, start, progress };
        self.held.insert(origin, Arc::new(held));
        self.changes += 1;
    }

    /// Stops reading partitions that will be taken away. What was yielded of them may still be committed.
    pub(crate) fn close(&mut self, partitions: &[Partition]) {
        for partition in partitions {
            if let Some(held) = self.held.get(partition) {
                held.progress().closed = true;
            }
        }
        self.changes += 1;
    }

    /// Gives partitions up. From here on nothing of them is committed. Returns how many of them had records yielded that
    /// were not committed.
    pub(crate) fn remove(&mut self, partitions: &[Partition]) -> usize {
        self.close(partitions);
        let mut unfinished = 0;
        for partition in partitions {
            let Some((origin, held)) = self.held.remove_entry(partition) else { continue };
            let progress = held.progress();
            let left = Left {
                committed: progress.committed,
                unfinished: progress.pulled.is_some_and(|pulled| progress.committed.is_none_or(|done| done < pulled)),
            };
            unfinished += usize::from(left.unfinished);
            self.left.insert(origin, left);
        }
        unfinished
    }

    /// Starts a run: nothing was yielded in it. Returns what must be repositioned first.
    pub(crate) fn rewind(&mut self) -> Vec<Rewind<Q>> {
        self.left.clear();
        let mut rewinds = Vec::new();
        for held in self.held.values() {
            let to = held.resume();
            let mut progress = held.progress();
            progress.pulled = None;
            if progress.moved && !progress.closed {
                rewinds.push(Rewind { held: Arc::clone(held), to, stalled: progress.stalled });
            }
        }
        rewinds
    }

    /// Notes that a partition stands at its committed position again.
    pub(crate) fn repositioned(&mut self, partition: &Partition) {
        if let Some(held) = self.held.get(partition) {
            let mut progress = held.progress();
            progress.moved = false;
            progress.stalled = false;
            progress.looks = 0;
        }
    }

    /// The positions that may be committed on their own: of partitions still held, read under this assignment, and ahead of
    /// what is committed. A try of an earlier run may still be under way.
    pub(crate) fn committable(&self, positions: &Positions) -> Vec<(Arc<Partition>, i64)> {
        let mut offsets = Vec::new();
        for (partition, Position(position)) in positions {
            let Some((origin, held)) = self.held.get_key_value(partition) else { continue };
            let progress = held.progress();
            let read_here = progress.pulled.is_some_and(|pulled| *position <= pulled) && *position > held.start;
            if read_here && progress.committed < Some(*position) {
                offsets.push((Arc::clone(origin), *position));
            }
        }
        offsets
    }

    /// The positions to be committed in a transaction, all or none of them: each must be of a partition still held,
    /// and read under this assignment.
    ///
    /// # Errors
    /// Which partition was taken away with records that the transaction holds.
    pub(crate) fn committable_together(&self, positions: &Positions) -> Result<Vec<(Arc<Partition>, i64)>, String> {
        let mut offsets = Vec::new();
        for (partition, Position(position)) in positions {
            let left = self.left.get(partition);
            if left.is_some_and(|left| left.committed.is_some_and(|done| *position <= done)) {
                continue;
            }
            if left.is_some_and(|left| left.unfinished) {
                return Err(format!("partition {partition} was taken away before its records were committed"));
            }
            let Some((origin, held)) = self.held.get_key_value(partition) else {
                return Err(format!("partition {partition} is not held any more"));
            };
            let progress = held.progress();
            if progress.committed.is_some_and(|done| *position <= done) {
                continue;
            }
            if progress.pulled.is_none_or(|pulled| *position > pulled) {
                return Err(format!("partition {partition} was not read up to {position} under this assignment"));
            }
            offsets.push((Arc::clone(origin), *position));
        }
        Ok(offsets)
    }

    /// Notes what the group has committed.
    pub(crate) fn committed<'a>(&mut self, offsets: impl IntoIterator<Item = (&'a Partition, i64)>) {
        for (partition, offset) in offsets {
            if let Some(held) = self.held.get(partition) {
                // Who asks for an old epoch tells of an offset that others may have moved since.
                let mut progress = held.progress();
                progress.committed = progress.committed.max(Some(offset));
            } else if let Some(left) = self.left.get_mut(partition) {
                left.committed = left.committed.max(Some(offset));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partition(number: i32) -> Partition {
        Partition { source: "in".into(), topic: "orders".into(), number }
    }

    fn positions(pairs: &[(i32, i64)]) -> Positions {
        pairs.iter().map(|&(number, at)| (partition(number), Position(at))).collect()
    }

    fn holding(pairs: &[(i32, i64)]) -> Assignment<()> {
        let mut assignment = Assignment::default();
        for &(number, start) in pairs {
            assignment.grant(Arc::new(partition(number)), (), start, (start >= 0).then_some(start));
        }
        assignment
    }

    fn read(assignment: &Assignment<()>, number: i32, to: i64) {
        let held = assignment.get(&partition(number)).unwrap();
        held.read(|()| ()).unwrap();
        assert!(held.yielded(to));
    }

    fn numbers(offsets: Vec<(Arc<Partition>, i64)>) -> Vec<(i32, i64)> {
        offsets.into_iter().map(|(partition, offset)| (partition.number, offset)).collect()
    }

    #[test]
    fn rule_8_offsets_go_out_only_for_partitions_still_held() {
        let mut assignment = holding(&[(0, 10), (1, 20)]);
        read(&assignment, 0, 15);
        read(&assignment, 1, 25);
        assert_eq!(assignment.remove(&[partition(1)]), 1);
        let epoch = positions(&[(0, 15), (1, 25)]);
        assert_eq!(numbers(assignment.committable(&epoch)), [(0, 15)]);
        assert!(assignment.committable_together(&epoch).unwrap_err().contains("orders/1"));
    }

    #[test]
    fn rule_8_a_partition_that_came_back_does_not_make_an_old_position_legal() {
        let mut assignment = holding(&[(0, 10)]);
        read(&assignment, 0, 15);
        assignment.remove(&[partition(0)]);
        assignment.grant(Arc::new(partition(0)), (), 12, Some(12));
        let epoch = positions(&[(0, 15)]);
        assert!(assignment.committable(&epoch).is_empty());
        assert!(assignment.committable_together(&epoch).is_err());
        read(&assignment, 0, 40);
        assert!(assignment.committable_together(&epoch).is_err(), "nor does reading past it again");
        assert_eq!(assignment.rewind().len(), 1);
        read(&assignment, 0, 14);
        assert_eq!(numbers(assignment.committable_together(&positions(&[(0, 14)])).unwrap()), [(0, 14)]);
    }

    #[test]
    fn a_try_of_an_earlier_run_does_not_put_an_offset_back() {
        let mut assignment = holding(&[(0, 10)]);
        read(&assignment, 0, 40);
        assignment.committed([(&partition(0), 30)]);
        assert!(assignment.committable(&positions(&[(0, 20)])).is_empty());
        assert_eq!(numbers(assignment.committable(&positions(&[(0, 35)]))), [(0, 35)]);
    }

    #[test]
    fn what_was_committed_before_it_left_holds_up_no_later_transaction() {
        let mut assignment = holding(&[(0, 10), (1, 10)]);
        read(&assignment, 0, 15);
        read(&assignment, 1, 15);
        assignment.close(&[partition(0)]);
        let epoch = positions(&[(0, 15), (1, 15)]);
        assert_eq!(numbers(assignment.committable_together(&epoch).unwrap()), [(0, 15), (1, 15)]);
        assignment.committed([(&partition(0), 15), (&partition(1), 15)]);
        assert_eq!(assignment.remove(&[partition(0)]), 0);
        read(&assignment, 1, 18);
        let epoch = positions(&[(0, 15), (1, 18)]);
        assert_eq!(numbers(assignment.committable_together(&epoch).unwrap()), [(1, 18)]);
    }

    #[test]
    fn nothing_is_read_through_a_closed_partition() {
        let mut assignment = holding(&[(0, 10)]);
        let old = Arc::clone(assignment.get(&partition(0)).unwrap());
        old.read(|()| ()).unwrap();
        assignment.close(&[partition(0)]);
        assert!(!old.yielded(12), "what was in hand is dropped");
        assignment.remove(&[partition(0)]);
        assignment.grant(Arc::new(partition(0)), (), 10, Some(10));
        assert!(old.read(|()| ()).is_none());
        assert!(assignment.get(&partition(0)).unwrap().read(|()| ()).is_some());
    }

    #[test]
    fn a_rewind_goes_back_to_what_was_committed_or_to_the_start() {
        let mut assignment = holding(&[(0, 10), (1, BEGINNING), (2, 5)]);
        read(&assignment, 0, 15);
        assignment.committed([(&partition(0), 15)]);
        read(&assignment, 0, 19);
        read(&assignment, 1, 7);
        let rewinds: Vec<_> =
            assignment.rewind().into_iter().map(|rewind| (rewind.held.origin.number, rewind.to)).collect();
        assert_eq!(rewinds, [(0, 15), (1, BEGINNING)], "a partition that did not move stays");
        for number in 0..2 {
            assignment.repositioned(&partition(number));
        }
        assert!(assignment.rewind().is_empty());
        assert!(assignment.committable(&positions(&[(0, 19)])).is_empty(), "nothing of the old run counts");
    }
}
