//! A source turns the outside world into a stream of batches.

use std::sync::Arc;

use futures::stream::BoxStream;

use super::context::SourceContext;
use super::error::SourceError;
use crate::record::{Batch, Partition, Position, Rejected};

/// A batch, and the position in its partition just behind its last record.
#[derive(Debug)]
pub struct Pulled {
    /// Records of one partition. Their bodies are raw: the stage decodes them by the source's codec.
    /// It may be empty, where what was read held no record but the position moved.
    pub batch: Batch,
    /// Everything before it has been read. It only grows within a run.
    pub position: Position,
    /// The partition that the position is of, if it is not the one that the records came from first: a dead letter is read
    /// from where it was put, and holds a record of the partition that it came from; so is a batch in a disk buffer. The
    /// places of records then do not follow from their offsets: `n` places in front of the position, `n` of them are left.
    pub read_from: Option<Arc<Partition>>,
    /// Records that the source itself refuses: they stand behind those of the batch, and before the position. One that
    /// is too large to be held is cut to its beginning.
    pub refused: Vec<Rejected>,
    /// Entries of the source's own that are committed together with the position: what it must know to find its place
    /// again. No record comes from their partitions.
    pub notes: Vec<(Arc<Partition>, Position)>,
}

impl Pulled {
    /// Nothing but a batch and its position.
    #[must_use]
    pub fn new(batch: Batch, position: Position) -> Self {
        Self { batch, position, read_from: None, refused: Vec::new(), notes: Vec::new() }
    }

    /// The partition that the position is of.
    #[must_use]
    pub fn partition(&self) -> &Arc<Partition> {
        self.read_from.as_ref().unwrap_or_else(|| self.batch.origin())
    }

    /// The place in front of one of its records, by its index; of one behind the last, the position.
    #[must_use]
    pub fn in_front_of(&self, record: usize) -> Position {
        let rest = self.batch.records().get(record..).unwrap_or_default();
        match (&self.read_from, rest) {
            (None, [record, ..]) => self.position.in_front_of(record.offset),
            (_, rest) => Position(self.position.0 - i64::try_from(rest.len()).unwrap_or(0)),
        }
    }
}

/// Yields batches of one partition each, from where the last commit stands.
///
/// A source knows nothing of barriers and epochs. Nobody polls it while its channel or the memory
/// budget is full, so a source that reads only when polled is backpressured without a line of code.
pub trait Source: Send + 'static {
    /// Reads from `cx.resume_from(partition)` on, or from where the config says if nothing was committed.
    ///
    /// The stream is dropped at any `await` and asked for anew when the pipeline rewinds; what must
    /// outlive that (a client, a membership in a group) is kept in `self`. It ends when a finite
    /// source is exhausted; one that follows never ends.
    fn stream(&mut self, cx: SourceContext) -> BoxStream<'_, Result<Pulled, SourceError>>;
}

/// Any source.
pub type BoxSource = Box<dyn Source>;
