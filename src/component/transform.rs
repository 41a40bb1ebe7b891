//! A transform computes.

use super::output::Output;
use crate::record::Batch;

/// Turns a batch into batches. No I/O, no clock, no `await`: every transform is property-testable.
pub trait Transform: Send + 'static {
    /// Each record of `batch` is emitted, discarded or rejected; `out` counts that none is forgotten.
    fn apply(&mut self, batch: Batch, out: &mut Output);
}

/// Any transform.
pub type BoxTransform = Box<dyn Transform>;
