//! The positions of an epoch, and where they are committed.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use futures::future::BoxFuture;

use super::transaction::FenceError;
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

    /// Positions of this source have become durable, wherever they are kept: what stands before them is not asked for
    /// any more.
    fn committed(&self, positions: &Positions) -> BoxFuture<'_, ()> {
        let _ = positions;
        Box::pin(async {})
    }

    /// Makes all positions durable together with the mark, or none of them: with it a local transaction stands or falls.
    /// It resolves when the outcome is known. A source that says it can be part of a local transaction provides it.
    fn decide(&self, mark: Mark, positions: Positions) -> BoxFuture<'_, Decision> {
        let _ = (mark, positions);
        Box::pin(async { Decision::No("the source cannot commit its positions in a local transaction".to_owned()) })
    }

    /// Whether an earlier run, or an earlier process, has made these positions durable under this mark. The answer is
    /// final: what was still under way is refused from here on.
    ///
    /// # Errors
    /// Why it cannot be told, and whether it is to be asked again.
    fn is_decided(&self, mark: Mark, positions: Positions) -> BoxFuture<'_, Result<bool, FenceError>> {
        let _ = (mark, positions);
        let why = "the source cannot commit its positions in a local transaction";
        Box::pin(async move { Err(FenceError::Fatal(why.to_owned())) })
    }
}

/// Tells one commit of one store from all others. It goes with positions where the source keeps them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// Whose commit it is: drawn once for each pipeline in each store.
    pub store: Arc<str>,
    /// Which one: no number is used twice in a store.
    pub number: u64,
}

/// What became of positions with which a local transaction stands or falls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// They are durable.
    Yes,
    /// They were refused, and never will be durable under this mark.
    No(String),
    /// It is not known, because we are stopping; the next process asks.
    Unknown(String),
}
