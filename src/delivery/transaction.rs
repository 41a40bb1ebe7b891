//! A transaction: the outputs and the positions of one epoch, durable together.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;

use super::positions::Positions;

/// What became of a commit. A commit whose outcome is not known yet has none: the implementation asks until it knows,
/// and nothing moves meanwhile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Committed {
    /// Outputs and positions are durable.
    Yes,
    /// Nothing of the epoch is visible to a reader of committed data; the pipeline rewinds.
    Aborted(String),
    /// A person must act: another process has taken this one's place.
    Fenced(String),
}

/// Why a run cannot begin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FenceError {
    /// It is tried again after a back-off.
    #[error("{0}")]
    Retry(String),
    /// A person must act: trying again would give the same.
    #[error("{0}")]
    Fatal(String),
}

impl From<String> for FenceError {
    fn from(why: String) -> Self {
        Self::Retry(why)
    }
}

/// The positions of one source in an epoch.
#[derive(Debug, Clone)]
pub struct SourceOffsets {
    /// The source's name.
    pub source: Arc<str>,
    /// Behind the last record of each partition.
    pub positions: Positions,
}

/// What a transactional sink shares with the coordinator of epochs. Sinks open it with their first write of an epoch,
/// and write nothing between their barrier and the commit.
pub trait Transaction: Send + Sync + fmt::Debug {
    /// Fences every earlier process of the same identity and aborts what it left open. Called at the start of each run,
    /// before a source is read, so that positions read afterwards are final.
    ///
    /// # Errors
    /// What went wrong, and whether it may go right the next time.
    fn fence(&self) -> BoxFuture<'_, Result<(), FenceError>>;

    /// How long it may stay open: half of the time after which the other side aborts it by itself, which would be fatal to
    /// the client and would hold up readers of committed data until then. `None` if there is no other side.
    fn longest_open(&self) -> Option<Duration>;

    /// Commits what was written since the last commit, together with the positions.
    fn commit(&self, epoch: u64, offsets: Vec<SourceOffsets>) -> BoxFuture<'_, Committed>;

    /// Drops what was written since the last commit.
    ///
    /// # Errors
    /// What went wrong, for a person; [`Self::fence`] follows before anything else is written.
    fn abort(&self) -> BoxFuture<'_, Result<(), String>>;
}
