//! `json`: a body is one JSON value.

use crate::record::{Batch, Record, Rejected};

pub(super) fn decode(batch: Batch, _rejected: &mut Vec<Rejected>) -> Batch {
    batch
}

pub(super) fn encode(batch: &Batch, record: &Record, out: &mut Vec<u8>) -> Result<(), String> {
    out.extend_from_slice(batch.body(record));
    Ok(())
}
