//! `raw`: a body is a string of bytes.

use crate::record::{Batch, BodyFormat, Record};

pub(super) fn decode(batch: Batch) -> Batch {
    batch
}

/// A JSON string is written as the text that it stands for, any other JSON value as its JSON text.
#[expect(clippy::unnecessary_wraps, reason = "all formats have one signature")]
pub(super) fn encode(batch: &Batch, record: &Record, out: &mut Vec<u8>) -> Result<(), String> {
    let body = batch.body(record);
    if record.format == BodyFormat::Json
        && body.first() == Some(&b'"')
        && let Ok(text) = serde_json::from_slice::<String>(body)
    {
        out.extend_from_slice(text.as_bytes());
    } else {
        out.extend_from_slice(body);
    }
    Ok(())
}
