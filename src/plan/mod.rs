//! What a pipeline file means: a checked graph of compiled components. Pure: no I/O, no clock; all mistakes at once.
//!
//! [`compile`] goes through the file in the order of its modules: `draft` (what is declared), `resolve`
//! (which name means which stage), `graph` (the order of the stages), `check` (each component compiled with
//! what is known of its input, and who reads whom), `guarantee` (what each path promises), `parallelism`.

mod check;
mod declared;
mod domains;
mod draft;
mod explain;
mod graph;
mod guarantee;
mod loops;
mod parallelism;
mod paths;
mod replay;
mod resolve;
#[cfg(test)]
mod testing;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use crate::clients::buffer::WhenFull;
use crate::component::{CompiledSink, CompiledSource, CompiledTransform, Port, SinkSpec, SourceSpec, TransformSpec};

pub use check::{compile, declared_name};
pub use declared::Declared;
pub use domains::Domain;
pub use draft::DEAD_LETTER;
pub use explain::explain;
pub use guarantee::PathGuarantee;
pub use parallelism::MOST_LANES;
pub use replay::letters_of;

/// What a path, or a whole pipeline, promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Guarantee {
    /// A crash may lose records.
    AtMostOnce,
    /// A crash may repeat records, and loses none.
    AtLeastOnce,
    /// A crash neither loses nor repeats a record.
    ExactlyOnce,
}

impl Guarantee {
    /// As a pipeline file says it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::AtMostOnce => "at_most_once",
            Self::AtLeastOnce => "at_least_once",
            Self::ExactlyOnce => "exactly_once",
        }
    }
}

impl fmt::Display for Guarantee {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AtMostOnce => "at most once",
            Self::AtLeastOnce => "at least once",
            Self::ExactlyOnce => "exactly once",
        })
    }
}

/// What becomes of a record that a stage refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnError {
    /// It goes to the dead letter.
    DeadLetter,
    /// It is dropped, and counted.
    Drop,
    /// The pipeline stops, loudly.
    Stop,
    /// It holds its place and is tried again until it is taken. Only for a sink: whatever stands before it gives the same
    /// each time.
    Retry,
}

/// The kinds of components that a file may name.
#[derive(Debug, Clone, Copy)]
pub struct Tables {
    /// The sources.
    pub sources: &'static [SourceSpec],
    /// The transforms.
    pub transforms: &'static [TransformSpec],
    /// The sinks.
    pub sinks: &'static [SinkSpec],
}

impl Tables {
    /// All kinds of this build.
    #[must_use]
    pub fn all() -> Self {
        Self { sources: crate::sources::SOURCES, transforms: crate::transforms::TRANSFORMS, sinks: crate::sinks::SINKS }
    }
}

/// What a plan depends on besides the file.
#[derive(Debug, Clone, Copy)]
pub struct CompileOptions {
    /// The processors of the machine that will run it. Only the default number of lanes depends on them.
    pub cores: usize,
    /// The kinds of components.
    pub tables: Tables,
}

impl CompileOptions {
    /// For a machine, with all kinds of this build.
    #[must_use]
    pub fn new(cores: usize) -> Self {
        Self { cores, tables: Tables::all() }
    }
}

/// Where a stage reads: an output of a stage that stands before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Upstream {
    /// A source, by its index in the plan.
    Source(usize),
    /// An output of a transform, by the transform's index in the plan.
    Transform(usize, Port),
}

/// A pipeline, found right.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Its name.
    pub name: Arc<str>,
    /// The domain of the pipeline that this is, if it is one of several and not the first; see [`Plan::domains`].
    pub domain: Option<Arc<str>>,
    /// The file that declares it.
    pub file: PathBuf,
    /// What is kept of the file's text.
    pub declared: Declared,
    /// What it promises as a whole: the least of its paths.
    pub guarantee: Guarantee,
    /// What each path from a source to a sink promises, and why.
    pub paths: Vec<PathGuarantee>,
    /// Whether outputs and positions are committed in one transaction, which the sinks declare when they are built.
    pub transactional: bool,
    /// How often an epoch is committed while records move.
    pub commit_interval: Duration,
    /// How many parallel copies of the chain of transforms run.
    pub lanes: usize,
    /// The memory budget in bytes; `None` for the daemon's default.
    pub memory: Option<u64>,
    /// Its sources.
    pub sources: Vec<SourceStage>,
    /// Its transforms, each behind all that it reads.
    pub transforms: Vec<TransformStage>,
    /// Its sinks.
    pub sinks: Vec<SinkStage>,
    /// Where rejected records go.
    pub dead_letter: Option<SinkStage>,
}

/// A disk buffer before a stage: it ends an epoch domain and begins another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// The bytes that it may take on the disk.
    pub disk: u64,
    /// What happens when it is full.
    pub when_full: WhenFull,
}

/// The kind of the sources that read a dead letter again. No pipeline file can name it.
pub const LETTERS: &str = "dead letter";

impl Plan {
    /// Whether its records are dead letters that are tried again.
    #[must_use]
    pub fn is_replay(&self) -> bool {
        self.sources.iter().any(|source| source.kind == LETTERS)
    }
}

/// A source of a plan.
#[derive(Debug, Clone)]
pub struct SourceStage {
    /// Its name.
    pub name: Arc<str>,
    /// Its kind, as the pipeline file names it.
    pub kind: &'static str,
    /// What it does.
    pub compiled: CompiledSource,
    /// What becomes of a record that does not decode.
    pub on_error: OnError,
}

/// A transform of a plan.
#[derive(Debug, Clone)]
pub struct TransformStage {
    /// Its name.
    pub name: Arc<str>,
    /// Its kind, as the pipeline file names it.
    pub kind: &'static str,
    /// What it reads.
    pub from: Vec<Upstream>,
    /// What it does.
    pub compiled: CompiledTransform,
    /// What becomes of a record that it refuses.
    pub on_error: OnError,
    /// The disk buffer before it.
    pub buffer: Option<Buffer>,
}

/// A sink of a plan.
#[derive(Debug, Clone)]
pub struct SinkStage {
    /// Its name.
    pub name: Arc<str>,
    /// Its kind, as the pipeline file names it.
    pub kind: &'static str,
    /// What it reads. Empty for the dead letter, which every stage feeds.
    pub from: Vec<Upstream>,
    /// What it does.
    pub compiled: CompiledSink,
    /// What becomes of a record that it refuses.
    pub on_error: OnError,
    /// The disk buffer before it.
    pub buffer: Option<Buffer>,
}
