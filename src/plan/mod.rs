//! What a pipeline file means: a checked graph of compiled components. Pure: no I/O, no clock; all mistakes at once.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::component::{CompiledSink, CompiledSource, CompiledTransform, Port};

/// What a path, or a whole pipeline, promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Guarantee {
    /// A crash may lose records.
    AtMostOnce,
    /// A crash may repeat records, and loses none.
    AtLeastOnce,
    /// A crash neither loses nor repeats a record.
    ExactlyOnce,
}

/// What becomes of a record that a stage refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnError {
    /// It goes to the dead letter.
    DeadLetter,
    /// It is dropped, and counted.
    Drop,
    /// The pipeline stops, loudly.
    Stop,
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
    /// The file that declares it.
    pub file: PathBuf,
    /// What it promises as a whole: the least of its paths.
    pub guarantee: Guarantee,
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
}
