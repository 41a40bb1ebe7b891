//! Formats: from the bytes of a body to a record that programs can read, and from a record to the bytes of a line or a
//! message.
//!
//! A codec is one file, one variant here and one arm in each of the two functions.

mod json;
mod raw;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::record::{Batch, Record, Rejected};

/// The name of a format in a pipeline file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Codec {
    /// Each body is one JSON value. Anything else is rejected where it is read.
    #[default]
    Json,
    /// Each body is a string of bytes, and nothing is known about it.
    Raw,
}

impl Codec {
    /// Decodes the raw bodies of a batch. What is malformed is taken out and added to `rejected`.
    #[must_use]
    pub fn decode(self, batch: Batch, rejected: &mut Vec<Rejected>) -> Batch {
        match self {
            Self::Json => json::decode(batch, rejected),
            Self::Raw => raw::decode(batch),
        }
    }

    /// Appends the encoded body of a record.
    ///
    /// # Errors
    /// If the body has no form in this format.
    pub fn encode(self, batch: &Batch, record: &Record, out: &mut Vec<u8>) -> Result<(), String> {
        match self {
            Self::Json => json::encode(batch, record, out),
            Self::Raw => raw::encode(batch, record, out),
        }
    }
}
