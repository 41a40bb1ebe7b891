//! A source turns the outside world into a stream of batches.

use std::sync::Arc;

use futures::stream::BoxStream;

use super::context::SourceContext;
use super::error::SourceError;
use crate::record::{Batch, Partition, Position};

/// A batch, and the position in its partition just behind its last record.
#[derive(Debug)]
pub struct Pulled {
    /// Records of one partition. Their bodies are raw: the stage decodes them by the source's codec.
    /// It may be empty, where what was read held no record but the position moved.
    pub batch: Batch,
    /// Everything before it has been read. It only grows within a run.
    pub position: Position,
}

/// Yields batches of one partition each, from where the last commit stands.
///
/// A source knows nothing of barriers and epochs. Nobody polls it while its channel or the memory
/// budget is full, so a source that reads only when polled is backpressured without a line of code.
pub trait Source: Send + 'static {
    /// The one partition in which its positions count, for a source that passes on what other sources read: a buffer.
    /// `None` for all others, whose positions count in the partition that each batch came from.
    fn partition(&self) -> Option<Arc<Partition>> {
        None
    }

    /// Reads from `cx.resume_from(partition)` on, or from where the config says if nothing was committed.
    ///
    /// The stream is dropped at any `await` and asked for anew when the pipeline rewinds; what must
    /// outlive that (a client, a membership in a group) is kept in `self`. It ends when a finite
    /// source is exhausted; one that follows never ends.
    fn stream(&mut self, cx: SourceContext) -> BoxStream<'_, Result<Pulled, SourceError>>;
}

/// Any source.
pub type BoxSource = Box<dyn Source>;
