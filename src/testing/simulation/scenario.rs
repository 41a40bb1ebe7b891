//! What is simulated: the shape of the pipeline, the processes that run it, and how much goes wrong.

use std::fmt;
use std::time::Duration;

use super::faults::{Fault, Planned};
use super::mutation::Mutation;
use crate::component::Port;
use crate::plan::{OnError, Upstream};

/// A record's name: its source, its partition and its offset there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Id {
    /// The number of the source.
    pub source: usize,
    /// The number of the partition.
    pub partition: i32,
    /// The offset in the partition.
    pub offset: i64,
}

/// What is simulated.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// Whether outputs and positions are committed in one transaction.
    pub exactly_once: bool,
    /// How many processes share the work. More than one needs sources that are read as a group.
    pub processes: usize,
    /// Parallel copies of the chain.
    pub lanes: usize,
    /// The memory budget of the pipeline in bytes.
    pub memory: u64,
    /// Bytes added to the body of each record.
    pub padding: usize,
    /// How long a sink works on a batch, one after another.
    pub work: Duration,
    /// The sources.
    pub sources: Vec<SourceShape>,
    /// The transforms, each behind all that it reads.
    pub transforms: Vec<TransformShape>,
    /// The sinks.
    pub sinks: Vec<SinkShape>,
    /// What holds the dead letters.
    pub dead_letter: SinkKind,
    /// Whether what the first sink holds is a topic that a second pipeline of the same processes reads.
    pub chained: bool,
    /// The stages that have a disk buffer before them. Only one process has any: a partition that moves to another leaves what
    /// is in the buffer of the first behind.
    pub buffers: Vec<Stage>,
    /// The bytes that a buffer may take on the disk. A full one makes what comes before it wait.
    pub disk: u64,
    /// How many faults are injected at the most.
    pub faults: u32,
    /// How many of them may be ends of a process: crashes, stops, and being held still.
    pub ends: u32,
    /// Which faults; any that make sense if it names none.
    pub menu: &'static [Fault],
    /// One that is sure to come, besides those.
    pub planned: Option<Planned>,
    /// A stage that cannot stand some records, whenever it meets them: a transform panics, a sink cannot go on.
    pub poisoned: Option<Stage>,
    /// Decides what becomes of each record.
    pub salt: u64,
    /// A breach of the protocol that the oracles must notice.
    pub mutation: Option<Mutation>,
}

/// A source.
#[derive(Debug, Clone)]
pub struct SourceShape {
    /// How many partitions it has.
    pub partitions: i32,
    /// How many records are in each of them.
    pub records: i64,
    /// Whether it is read as a member of a group, which keeps its positions. Else the store keeps them, and it ends.
    pub grouped: bool,
}

/// A transform.
#[derive(Debug, Clone)]
pub struct TransformShape {
    /// What it reads.
    pub from: Vec<Upstream>,
    /// What it does.
    pub kind: TransformKind,
    /// What becomes of what it refuses.
    pub on_error: OnError,
}

/// What a transform does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransformKind {
    /// Passes records on, and refuses some.
    Map,
    /// Passes records on, drops some on purpose, and refuses some.
    Filter,
    /// Passes each record to one of so many named outputs, and drops some.
    Route(u16),
}

/// A sink.
#[derive(Debug, Clone)]
pub struct SinkShape {
    /// What it reads.
    pub from: Vec<Upstream>,
    /// How it works outside a transaction.
    pub kind: SinkKind,
    /// Whether each lane has an instance of its own.
    pub per_lane: bool,
    /// Whether it refuses some records.
    pub refuses: bool,
    /// What becomes of what it refuses.
    pub on_error: OnError,
}

/// When a sink outside a transaction holds a batch for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SinkKind {
    /// Once it is flushed, as a file does.
    Flushed,
    /// Once it has answered, in the order of writing, as a topic does.
    Acknowledged,
    /// Once it has answered, in any order, as many endpoints do.
    Unordered,
}

/// Where a record may end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Destination {
    /// At a sink.
    Sink(usize),
    /// At the sink of the pipeline that reads the log of the first.
    Chained,
    /// In the dead letter, refused by a stage.
    Letter(Stage),
}

/// A stage that refuses records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// A transform.
    Transform(usize),
    /// A sink.
    Sink(usize),
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Transform(at) => write!(f, "t{at}"),
            Self::Sink(at) => write!(f, "out{at}"),
        }
    }
}

impl Stage {
    /// By its name in the plan.
    pub(super) fn named(name: &str) -> Option<Self> {
        let number = |rest: &str| rest.parse().ok();
        let transform = name.strip_prefix('t').and_then(number).map(Self::Transform);
        transform.or_else(|| name.strip_prefix("out").and_then(number).map(Self::Sink))
    }
}

/// What a transform makes of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Passed(Port),
    Dropped,
    Refused,
}

impl Scenario {
    /// One source in two lanes, a filter, one sink and a dead letter; a few faults.
    #[must_use]
    pub fn small(exactly_once: bool) -> Self {
        Self {
            exactly_once,
            processes: 1,
            lanes: 2,
            memory: 1 << 20,
            padding: 0,
            work: Duration::ZERO,
            sources: vec![SourceShape { partitions: 3, records: 24, grouped: exactly_once }],
            transforms: vec![TransformShape {
                from: vec![Upstream::Source(0)],
                kind: TransformKind::Filter,
                on_error: OnError::DeadLetter,
            }],
            sinks: vec![SinkShape {
                from: vec![Upstream::Transform(0, Port(0))],
                kind: SinkKind::Flushed,
                per_lane: true,
                refuses: true,
                on_error: OnError::DeadLetter,
            }],
            dead_letter: SinkKind::Flushed,
            chained: false,
            buffers: Vec::new(),
            disk: 1 << 20,
            faults: 4,
            ends: 2,
            menu: &[],
            planned: None,
            poisoned: None,
            salt: 1,
            mutation: None,
        }
    }

    /// The same, with a disk buffer before its transform and another before its sink, and a source that ends.
    #[must_use]
    pub fn buffered(exactly_once: bool) -> Self {
        let sources = vec![SourceShape { partitions: 3, records: 16, grouped: false }];
        Self { sources, buffers: vec![Stage::Transform(0), Stage::Sink(0)], ..Self::small(exactly_once) }
    }

    /// The same, with its source read as a group: under exactly once its commit decides whether an epoch counts.
    #[must_use]
    pub fn judged(exactly_once: bool) -> Self {
        let sources = vec![SourceShape { partitions: 3, records: 16, grouped: true }];
        Self { sources, ..Self::buffered(exactly_once) }
    }

    /// The same, with its source read as a group by several processes.
    #[must_use]
    pub fn shared(exactly_once: bool, processes: usize) -> Self {
        let sources = vec![SourceShape { partitions: 4, records: 30, grouped: true }];
        Self { processes, sources, ..Self::small(exactly_once) }
    }

    /// What a transform makes of a record.
    pub(super) fn fate(&self, transform: usize, id: Id) -> Fate {
        let luck = self.luck(transform as u64, id);
        match self.transforms[transform].kind {
            TransformKind::Map | TransformKind::Filter if luck.is_multiple_of(8) => Fate::Refused,
            TransformKind::Filter if luck % 8 == 1 => Fate::Dropped,
            TransformKind::Map | TransformKind::Filter => Fate::Passed(Port(0)),
            TransformKind::Route(_) if luck.is_multiple_of(8) => Fate::Dropped,
            TransformKind::Route(outputs) => {
                Fate::Passed(Port(1 + u16::try_from((luck >> 8) % u64::from(outputs)).unwrap_or(0)))
            }
        }
    }

    /// Whether a sink refuses a record.
    pub(super) fn is_refused(&self, sink: usize, id: Id) -> bool {
        self.sinks[sink].refuses && self.luck(1000 + sink as u64, id).is_multiple_of(10)
    }

    /// Whether a stage cannot stand a record.
    pub(super) fn is_poison(&self, stage: Stage, id: Id) -> bool {
        let number = match stage {
            Stage::Transform(at) => 2_000 + at,
            Stage::Sink(at) => 3_000 + at,
        };
        self.poisoned == Some(stage) && self.luck(number as u64, id).is_multiple_of(24)
    }

    /// A number that follows from the scenario, the stage and the record.
    fn luck(&self, stage: u64, Id { source, partition, offset }: Id) -> u64 {
        let words = [self.salt, stage, source as u64, u64::from(partition.unsigned_abs()), offset.unsigned_abs()];
        // The finaliser of SplitMix64, over each word.
        words.iter().fold(0x9e37_79b9_7f4a_7c15, |mut mixed: u64, word| {
            mixed = mixed.wrapping_add(*word).wrapping_add(0x9e37_79b9_7f4a_7c15);
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^ (mixed >> 31)
        })
    }

    /// Whether outputs and positions are committed in the store: with buffers there is no other transaction.
    pub(super) fn is_local(&self) -> bool {
        self.exactly_once && !self.buffers.is_empty()
    }

    /// Whether some source never ends by itself.
    pub(super) fn is_endless(&self) -> bool {
        self.chained || self.sources.iter().any(|source| source.grouped)
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = |from: &[Upstream]| {
            let name = |upstream: &Upstream| match upstream {
                Upstream::Source(at) => format!("in{at}"),
                Upstream::Transform(at, Port(0)) => format!("t{at}"),
                Upstream::Transform(at, Port(port)) => format!("t{at}.{port}"),
            };
            from.iter().map(name).collect::<Vec<_>>().join(", ")
        };
        writeln!(
            f,
            "{} once, {} processes, {} lanes, {} bytes of memory, at most {} faults of which {} ends, salt {}",
            if self.exactly_once { "exactly" } else { "at least" },
            self.processes,
            self.lanes,
            self.memory,
            self.faults,
            self.ends,
            self.salt
        )?;
        for (at, SourceShape { partitions, records, grouped }) in self.sources.iter().enumerate() {
            writeln!(
                f,
                "  in{at}: {partitions} partitions of {records} records{}",
                if *grouped { ", a group" } else { "" }
            )?;
        }
        for (at, TransformShape { from, kind, on_error }) in self.transforms.iter().enumerate() {
            writeln!(f, "  t{at}: {kind:?} of {}, on error {on_error:?}", names(from))?;
        }
        for (at, SinkShape { from, kind, per_lane, refuses, on_error }) in self.sinks.iter().enumerate() {
            let lanes = if *per_lane { "one for each lane" } else { "one for all lanes" };
            let refuses = if *refuses { "refuses some" } else { "refuses none" };
            writeln!(f, "  out{at}: {kind:?} of {}, {lanes}, {refuses}, on error {on_error:?}", names(from))?;
        }
        write!(f, "  dead letter: {:?}", self.dead_letter)?;
        if !self.menu.is_empty() {
            write!(f, "\n  faults out of {:?}", self.menu)?;
        }
        if let Some(planned) = self.planned {
            write!(f, "\n  sure to come: {planned:?}")?;
        }
        if let Some(stage) = self.poisoned {
            write!(f, "\n  {stage} cannot stand some records")?;
        }
        if self.chained {
            write!(f, "\n  a second pipeline reads out0")?;
        }
        if !self.buffers.is_empty() {
            let names: Vec<_> = self.buffers.iter().map(Stage::to_string).collect();
            write!(f, "\n  buffers of {} bytes before {}", self.disk, names.join(", "))?;
        }
        self.mutation.map_or(Ok(()), |mutation| write!(f, "\n  broken on purpose: {mutation:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_is_found_by_its_name() {
        for stage in [Stage::Transform(3), Stage::Sink(0)] {
            assert_eq!(Stage::named(&stage.to_string()), Some(stage));
        }
        assert_eq!(Stage::named("dead_letter"), None);
    }

    #[test]
    fn every_fate_is_met() {
        let scenario = Scenario::small(false);
        let fates: Vec<_> = (0..100).map(|offset| scenario.fate(0, Id { source: 0, partition: 0, offset })).collect();
        for fate in [Fate::Passed(Port(0)), Fate::Dropped, Fate::Refused] {
            assert!(fates.contains(&fate), "{fate:?}");
        }
    }
}
