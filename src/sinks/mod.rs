//! The table of sinks: one row and one file for each kind.

pub mod kafka;

use crate::component::SinkSpec;

/// All kinds of sinks, by name.
pub const SINKS: &[SinkSpec] = &[SinkSpec::of::<kafka::KafkaConfig>()];
