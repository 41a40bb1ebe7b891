//! The positions of an epoch, and where they are committed.

use std::collections::BTreeMap;
use std::fmt;

use futures::future::BoxFuture;

use crate::record::{Partition, Position};

/// The position behind the last record of each partition.
pub type Positions = BTreeMap<Partition, Position>;

/// Commits positions at the source itself, as a Kafka consumer group does.
pub trait CommitPositions: Send + Sync + fmt::Debug {
    /// Makes the positions durable. Partitions that are no longer held are left out, and that is no error: who holds
    /// them now commits for them.
    ///
    /// # Errors
    /// What went wrong, for a person; the pipeline rewinds.
    fn commit(&self, epoch: u64, positions: Positions) -> BoxFuture<'_, Result<(), String>>;
}
