//! The table of sources: one row and one file for each kind.

pub mod kafka;

use crate::component::SourceSpec;

/// All kinds of sources, by name.
pub const SOURCES: &[SourceSpec] = &[SourceSpec::of::<kafka::KafkaConfig>()];
