//! Where a transform puts what it made of a batch.

use crate::record::{Batch, Record, Rejected};

/// The number of a transform's output, in the order in which it declares them; 0 is the default one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Port(pub u16);

/// Collects the outcome of one batch.
#[derive(Debug, Default)]
pub struct Output {
    /// Batches for the next stages.
    pub emitted: Vec<(Port, Batch)>,
    /// Records dropped on purpose.
    pub discarded: u64,
    /// Records refused.
    pub rejected: Vec<Rejected>,
}

impl Output {
    /// Passes a batch to the default output. An empty one is not sent.
    pub fn emit(&mut self, batch: Batch) {
        self.emit_to(Port(0), batch);
    }

    /// Passes a batch to a named output.
    pub fn emit_to(&mut self, port: Port, batch: Batch) {
        if !batch.is_empty() {
            self.emitted.push((port, batch));
        }
    }

    /// Counts records that were dropped on purpose.
    pub fn discard(&mut self, records: usize) {
        self.discarded += records as u64;
    }

    /// Refuses one record of `batch`; its neighbours go on.
    pub fn reject(&mut self, batch: &Batch, record: Record, error: impl Into<String>) {
        self.rejected.push(Rejected { batch: batch.with_records(vec![record]), error: error.into() });
    }
}
