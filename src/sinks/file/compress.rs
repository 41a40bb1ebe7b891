//! Compressed frames. Each is whole by itself: a file may be cut behind any of them, and readers go on from one to the next.

use std::io::{self, Write};

use flate2::write::GzEncoder;
use schemars::JsonSchema;
use serde::Deserialize;

/// How a file is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Compression {
    /// As `gzip` does; the path should end with `.gz`.
    Gzip,
    /// As `zstd` does, which is smaller and faster; the path should end with `.zst`.
    Zstd,
}

impl Compression {
    /// Lines as one frame.
    pub(super) fn frame(self, lines: &[u8]) -> io::Result<Vec<u8>> {
        match self {
            Self::Gzip => {
                let mut encoder = GzEncoder::new(Vec::with_capacity(lines.len() / 4), flate2::Compression::default());
                encoder.write_all(lines)?;
                encoder.finish()
            }
            Self::Zstd => {
                let mut encoder = zstd::bulk::Compressor::new(zstd::DEFAULT_COMPRESSION_LEVEL)?;
                encoder.include_checksum(true)?;
                encoder.compress(lines)
            }
        }
    }
}
