//! A record that goes no further.

use super::batch::Batch;

/// A record that a stage refuses, as it entered the stage.
#[derive(Debug, Clone)]
pub struct Rejected {
    /// A batch of just this record, sharing the bytes of the one it came in.
    pub batch: Batch,
    /// What was wrong, for a person.
    pub error: String,
}
