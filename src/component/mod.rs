//! The contract between a component and the stage around it.
//!
//! A component holds only what is special about it. Batching, barriers, retries, budget, metrics,
//! spans and shutdown belong to the stage, which is written once, in `topology/`.

mod context;
mod error;
mod nearest;
pub mod node;
mod output;
mod problem;
mod read;
mod sink;
mod source;
pub mod spanned;
mod spec;
mod transform;
mod units;

pub use crate::record::Rejected;
pub use context::{BuildContext, Clients, EpochRequest, EpochRequests, SourceContext, Waiting};
pub use error::{BuildError, SinkError, SourceError};
pub use nearest::nearest;
pub use output::{Output, Port};
pub use problem::{Problem, Severity, Span};
pub use sink::{Answer, BoxSink, Refusal, Settled, Sink};
pub use source::{BoxSource, Pulled, Source};
pub use spanned::{Spanned, Text};
pub use spec::{
    Acknowledges, Build, BuiltSource, CheckContext, CompiledSink, CompiledSource, CompiledTransform, KAFKA_TRANSACTION,
    KeepsPositions, LOCAL_TRANSACTION, Pattern, Place, SinkConfig, SinkSpec, SinkTraits, SourceConfig, SourceSpec,
    SourceTraits, Touched, TransformConfig, TransformSpec,
};
pub use transform::{BoxTransform, Transform};
pub use units::{ByteSize, HumanDuration};
