//! Which partitions of a topic hold a record of a client.
//!
//! A broker refuses what stands behind a refused request, because the sequence numbers of the client have a gap. Only where
//! it knows nothing of a client it takes any number as the first. So until a partition holds a record of the client, nothing
//! may follow another on the way there: a request that was refused would be overtaken, and with it the order of a key be
//! broken (`docs/decisions/the-first-record-goes-alone.md`).

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// The partitions of a topic, each open once it holds a record of the client.
#[derive(Debug)]
pub(crate) struct Opening {
    partitions: Vec<AtomicBool>,
    closed: AtomicUsize,
}

impl Opening {
    /// Of so many partitions, all closed.
    pub(super) fn new(partitions: usize) -> Self {
        Self {
            partitions: (0..partitions).map(|_| AtomicBool::new(false)).collect(),
            closed: AtomicUsize::new(partitions),
        }
    }

    /// How many partitions there are.
    pub(crate) fn partitions(&self) -> usize {
        self.partitions.len()
    }

    /// Whether all partitions are open.
    pub(crate) fn is_over(&self) -> bool {
        self.closed.load(Ordering::Acquire) == 0
    }

    /// A partition holds a record.
    pub(crate) fn open(&self, partition: usize) {
        if self.partitions.get(partition).is_some_and(|open| !open.swap(true, Ordering::AcqRel)) {
            self.closed.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Whether a partition holds a record. One that nobody told of counts as one that does.
    pub(crate) fn is_open(&self, partition: usize) -> bool {
        self.partitions.get(partition).is_none_or(|open| open.load(Ordering::Acquire))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_over_when_each_partition_is_open() {
        let opening = Opening::new(3);
        opening.open(2);
        opening.open(2);
        opening.open(7);
        assert_eq!([0, 1, 2, 3].map(|partition| opening.is_open(partition)), [false, false, true, true]);
        opening.open(0);
        assert!(!opening.is_over());
        opening.open(1);
        assert!(opening.is_over());
    }
}
