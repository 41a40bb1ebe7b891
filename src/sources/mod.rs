//! The table of sources: one row and one file for each kind.

mod file;
mod generate;
pub(crate) mod kafka;
mod stdin;

use crate::component::SourceSpec;

/// All kinds of sources, by name.
pub const SOURCES: &[SourceSpec] = &[
    SourceSpec::of::<file::FileConfig>(),
    SourceSpec::of::<generate::GenerateConfig>(),
    SourceSpec::of::<kafka::KafkaConfig>(),
    SourceSpec::of::<stdin::StdinConfig>(),
];
