//! A sink delivers, or says what to do next.

use std::sync::Arc;

use futures::future::BoxFuture;

use super::error::SinkError;
use crate::clock::Instant;
use crate::record::Batch;

/// A record that the outside world will never take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Its index in the batch.
    pub record: usize,
    /// What was wrong, for a person.
    pub error: String,
}

/// The outcome of a batch: every record was taken, but these.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settled {
    /// Records for the dead letter, by rising index.
    pub refused: Vec<Refusal>,
    /// How many the sink dropped on purpose, and counted with the reason.
    pub dropped: usize,
}

impl Settled {
    /// Every record was taken.
    #[must_use]
    pub fn all() -> Self {
        Self::default()
    }
}

/// Resolves when the outside world has answered for a batch.
///
/// An error tells what to do with the whole batch: `Retry` sends it again, `Reject` refuses each of its
/// records, `Fatal` stops the pipeline.
pub type Answer = BoxFuture<'static, Result<Settled, SinkError>>;

/// Writes batches in the order of its calls. How many are in flight is the stage's business.
pub trait Sink: Send + 'static {
    /// Connects, and clears away what an aborted run left behind. Called once before the first write of each run;
    /// a sink that is not ready yet says `Retry`.
    fn open(&mut self) -> BoxFuture<'_, Result<(), SinkError>>;

    /// Takes a batch over, in order. The returned future resolves once it is accepted, which may wait for room; the
    /// answer within it resolves when the outside world has the batch.
    fn write(&mut self, batch: Arc<Batch>) -> BoxFuture<'_, Result<Answer, SinkError>>;

    /// Makes durable everything that was written. Called at each barrier, when all answers are in or being waited
    /// for: after it returns and they are in, a crash loses nothing written before.
    fn flush(&mut self) -> BoxFuture<'_, Result<(), SinkError>>;

    /// Learns anew what it knows of the other side. Called before a record that was refused is tried again.
    fn refresh(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }

    /// When a barrier is wanted even if nothing moves until then: a file that is old enough is finished at one. Asked
    /// after each call.
    fn wants_barrier_at(&self) -> Option<Instant> {
        None
    }
}

/// Any sink.
pub type BoxSink = Box<dyn Sink>;
