//! What a row of a table declares: how a config becomes a component, and what that component can do.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::DeserializeOwned;

use super::context::BuildContext;
use super::error::BuildError;
use super::node::Node;
use super::problem::{Problem, Span};
use super::sink::BoxSink;
use super::source::BoxSource;
use super::spanned::Spanned;
use super::transform::BoxTransform;
use crate::codecs::Codec;
use crate::delivery::CommitPositions;
use crate::expr::Schema as BodySchema;

/// Where the committed positions of a source are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeepsPositions {
    /// In Weir's embedded store.
    Store,
    /// At the source itself, as a Kafka consumer group does.
    Source,
    /// Nowhere: what was read cannot be read again.
    Nowhere,
}

/// The transactions of a Kafka cluster: outputs in its topics, and offsets of its groups.
pub const KAFKA_TRANSACTION: &str = "kafka";
/// The transactions of this process: what it writes to the disk, and positions.
pub const LOCAL_TRANSACTION: &str = "local";

/// What a configured source can do. The plan derives guarantees from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceTraits {
    /// Where its positions are kept; `Nowhere` means that it cannot replay.
    pub keeps_positions: KeepsPositions,
    /// Whether it ends by itself.
    pub finite: bool,
    /// Whether it has several partitions that can be worked on in parallel.
    pub partitioned: bool,
    /// The kinds of transactions in which its positions can be committed; where several would do, the first is taken.
    pub transactional_with: &'static [&'static str],
}

/// What a sink's answer means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acknowledges {
    /// The records are durable.
    Durable,
    /// The records were received; whether they are durable is not known.
    Received,
    /// The records are durable, but those for which there was no room: they are dropped, and counted.
    UnlessFull,
    /// Nothing: there is no answer.
    Nothing,
}

/// What a configured sink can do. The plan derives guarantees from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SinkTraits {
    /// What its answer means.
    pub acknowledges: Acknowledges,
    /// The kinds of transactions that its writes can be part of.
    pub transactional_with: &'static [&'static str],
    /// After how long the other side aborts such a transaction by itself, if it does.
    pub transaction_timeout: Option<Duration>,
    /// Whether writing a record twice leaves one, by its key.
    pub idempotent_by_key: bool,
    /// Whether each lane may have its own instance. Otherwise the lanes merge before it.
    pub per_lane: bool,
    /// Whether it carries a record's headers. Dead letters in one that does not are wrapped in JSON.
    pub carries_headers: bool,
}

/// The fields that a program may read and write, as paths; `.` stands for the whole body.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Touched {
    /// May be read.
    pub reads: BTreeSet<String>,
    /// May be written or removed.
    pub writes: BTreeSet<String>,
}

/// Makes a component for a pipeline.
pub type Build<T> = Arc<dyn Fn(&BuildContext) -> Result<T, BuildError> + Send + Sync>;

/// A source's config, found right.
#[derive(Clone)]
pub struct CompiledSource {
    /// What it can do.
    pub traits: SourceTraits,
    /// How its bodies are decoded.
    pub codec: Codec,
    /// What is known of the types of its bodies.
    pub schema: BodySchema,
    /// Makes the source, and the way to commit its positions if it keeps them itself.
    pub build: Build<BuiltSource>,
}

/// A source, and the way to commit its positions if it keeps them itself.
pub struct BuiltSource {
    /// The source.
    pub source: BoxSource,
    /// Commits its positions; `None` unless it [keeps them itself](KeepsPositions::Source), or wants to hear of commits.
    pub positions: Option<Arc<dyn CommitPositions>>,
}

/// A transform's config, found right.
#[derive(Clone)]
pub struct CompiledTransform {
    /// Its named outputs, as ports 1, 2, …; empty for most. Port 0 is the default output.
    pub outputs: Vec<String>,
    /// Whether it has the default output. `route` has named ones only.
    pub default_output: bool,
    /// What its programs touch.
    pub touched: Touched,
    /// What is known of the types of the bodies that leave it.
    pub schema: BodySchema,
    /// Makes one for a lane.
    pub build: Arc<dyn Fn() -> BoxTransform + Send + Sync>,
}

/// A sink's config, found right.
#[derive(Clone)]
pub struct CompiledSink {
    /// What it can do.
    pub traits: SinkTraits,
    /// What its programs touch.
    pub touched: Touched,
    /// Makes one for a lane, or the only one.
    pub build: Build<BoxSink>,
}

macro_rules! opaque_debug {
    ($($name:ident),*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($name)).finish_non_exhaustive()
            }
        }
    )*};
}
opaque_debug!(CompiledSource, BuiltSource, CompiledTransform, CompiledSink, Pattern);

/// What a config is checked with, and where it reports its mistakes.
#[derive(Debug)]
pub struct CheckContext {
    /// The place of the key that names the kind, for mistakes that have no better one.
    pub span: Span,
    /// The component's name.
    pub component: Arc<str>,
    /// What is known of the types of the bodies that enter it.
    pub schema: BodySchema,
    /// All mistakes so far.
    pub problems: Vec<Problem>,
    /// What the component writes outside, as far as it is known.
    pub writes: Vec<Place>,
    /// What it reads outside, where it says so by a pattern.
    pub reads: Vec<Pattern>,
}

/// Something outside that a component writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Where: for Kafka, the brokers.
    pub system: String,
    /// Its name there.
    pub name: String,
}

/// All that a component reads whose name matches, also what comes into being while it runs.
#[derive(Clone)]
pub struct Pattern {
    /// Where: for Kafka, the brokers.
    pub system: String,
    /// As the file says it.
    pub text: Spanned<String>,
    /// Whether reading what the pipeline itself writes may be meant, as it may where records go another round.
    pub may_be_meant: bool,
    /// Whether a name matches.
    pub matches: Arc<dyn Fn(&str) -> bool + Send + Sync>,
}

impl CheckContext {
    /// For a component at a place, whose records have bodies of known types.
    #[must_use]
    pub fn new(component: impl Into<Arc<str>>, span: Span, schema: BodySchema) -> Self {
        Self { span, component: component.into(), schema, problems: Vec::new(), writes: Vec::new(), reads: Vec::new() }
    }

    /// Reports a mistake.
    pub fn report(&mut self, problem: Problem) {
        self.problems.push(problem);
    }
}

/// The config of a source: its name, its fields, its meaning. The doc comment on the type is its reference page and
/// must hold an example in a `yaml` code block, `NAME: …`.
pub trait SourceConfig: DeserializeOwned + JsonSchema {
    /// The name of the kind in a pipeline file.
    const NAME: &'static str;

    /// Checks what the types could not, without I/O. `None` if a mistake was reported that leaves nothing to run.
    fn compile(self, cx: &mut CheckContext) -> Option<CompiledSource>;
}

/// The config of a transform.
pub trait TransformConfig: DeserializeOwned + JsonSchema {
    /// The name of the kind in a pipeline file.
    const NAME: &'static str;

    /// Checks what the types could not, without I/O.
    fn compile(self, cx: &mut CheckContext) -> Option<CompiledTransform>;
}

/// The config of a sink.
pub trait SinkConfig: DeserializeOwned + JsonSchema {
    /// The name of the kind in a pipeline file.
    const NAME: &'static str;

    /// Checks what the types could not, without I/O.
    fn compile(self, cx: &mut CheckContext) -> Option<CompiledSink>;
}

macro_rules! spec {
    ($(#[$doc:meta])* $spec:ident, $config:ident, $compiled:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy)]
        pub struct $spec {
            /// The name of the kind in a pipeline file.
            pub name: &'static str,
            /// The JSON schema of its config; descriptions are the doc comments.
            pub schema: fn(&mut SchemaGenerator) -> Schema,
            /// Reads the config from the file's tree and compiles it; every mistake goes to the context.
            pub compile: fn(&Node, &mut CheckContext) -> Option<$compiled>,
        }

        impl $spec {
            /// The row of a config.
            #[must_use]
            pub const fn of<C: $config>() -> Self {
                Self {
                    name: C::NAME,
                    schema: |generator| C::json_schema(generator),
                    compile: |node, cx| match super::node::read_at::<C>(node, cx.span) {
                        Ok(config) => config.compile(cx),
                        Err(problems) => {
                            cx.problems.extend(problems);
                            None
                        }
                    },
                }
            }
        }
    };
}
spec!(
    /// A row of the table of sources.
    SourceSpec, SourceConfig, CompiledSource
);
spec!(
    /// A row of the table of transforms.
    TransformSpec, TransformConfig, CompiledTransform
);
spec!(
    /// A row of the table of sinks.
    SinkSpec, SinkConfig, CompiledSink
);
