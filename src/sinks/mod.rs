//! The table of sinks: one row and one file for each kind.

mod blackhole;
mod file;
pub(crate) mod kafka;
mod stdout;

use crate::component::SinkSpec;

/// All kinds of sinks, by name.
pub const SINKS: &[SinkSpec] = &[
    SinkSpec::of::<blackhole::BlackholeConfig>(),
    SinkSpec::of::<file::FileConfig>(),
    SinkSpec::of::<kafka::KafkaConfig>(),
    SinkSpec::of::<stdout::StdoutConfig>(),
];
