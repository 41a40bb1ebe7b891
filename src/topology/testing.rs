//! Pipelines of components whose every deed a test decides, on the real topology and a paused clock.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_stream::try_stream;
use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use tokio_util::sync::CancellationToken;

use super::{Host, PipelineEnd};
use crate::codecs::Codec;
use crate::component::{
    Acknowledges, Answer, BuiltSource, CompiledSink, CompiledSource, CompiledTransform, KeepsPositions, Output, Port,
    Pulled, Refusal, Settled, Sink, SinkError, SinkTraits, Source, SourceContext, SourceError, SourceTraits, Touched,
    Transform,
};
use crate::delivery::{Committed, FenceError, Positions, SourceOffsets, Transaction};
use crate::expr::Schema;
use crate::observe::{Metrics, PipelineStatus, StatusBoard};
use crate::plan::{Guarantee, OnError, Plan, SinkStage, SourceStage, TransformStage, Upstream};
use crate::record::{Batch, BatchBuilder, Draft, Partition, Position};
use crate::runtime::Runtime;
use crate::state::MemoryStore;

/// The kind of all components here.
const KIND: &str = "test";

/// A record's name: its partition and its offset there.
pub(super) type Id = (i32, i64);

/// What a stage does with a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deed {
    Pass,
    Drop,
    Refuse,
    Panic,
    /// A sink only.
    Rewind,
    /// A sink only.
    Retry,
    /// A sink only.
    Outage,
    /// A sink only: taking it over takes so long.
    Slow(Duration),
}

/// A record that came out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Came {
    pub(super) sink: Arc<str>,
    pub(super) id: Id,
    /// Of a dead letter: the stage and the reason.
    pub(super) refused: Option<(String, String)>,
}

pub(super) type Deeds = Arc<dyn Fn(&str, Id) -> Deed + Send + Sync>;

/// A pipeline of a source `in`, a transform `work`, sinks and a dead letter, and what is outside of it.
#[expect(clippy::struct_excessive_bools, reason = "each is one thing that a test decides")]
pub(super) struct Kit {
    pub(super) transactional: bool,
    pub(super) lanes: usize,
    pub(super) partitions: i32,
    pub(super) records: i64,
    /// How many records the source yields at once.
    pub(super) batch: i64,
    pub(super) sinks: Vec<&'static str>,
    pub(super) dead_letter: bool,
    pub(super) on_error: Option<OnError>,
    /// How long the transaction may stay open.
    pub(super) longest_open: Duration,
    pub(super) finite: bool,
    pub(super) panics_when_built: bool,
    /// What the source adds to an offset to make a position.
    pub(super) base: i64,
    /// How long the source takes for a batch.
    pub(super) pause: Duration,
    /// How long a commit takes.
    pub(super) commit_takes: Duration,
    pub(super) world: Arc<World>,
    pub(super) store: MemoryStore,
    pub(super) deeds: Deeds,
}

/// What is outside of the pipeline, and what was counted there.
#[derive(Debug, Default)]
pub(super) struct World {
    durable: Mutex<Vec<Came>>,
    pending: Mutex<Vec<Came>>,
    offsets: Mutex<Positions>,
    /// How often a source was built, and how often it began to read.
    pub(super) built: AtomicUsize,
    pub(super) streams: AtomicUsize,
    pub(super) commits: AtomicUsize,
    pub(super) fences: AtomicUsize,
    /// How often a sink wrote between its barrier and the commit.
    pub(super) broken_silences: AtomicUsize,
    /// Whether the other side of the sinks is away: nothing is answered, and nothing can be opened.
    pub(super) away: AtomicBool,
    /// Whether a record that makes a sink go back makes it fail of something else first, and tells a moment later.
    pub(super) hides_causes: AtomicBool,
    spoilt: AtomicBool,
    /// How often making durable what was written fails from now on.
    pub(super) flushes_fail: AtomicUsize,
    /// How often the sink `out` was asked to make durable what was written.
    pub(super) flushes: AtomicUsize,
    /// Whether a transaction is open.
    pub(super) open: AtomicBool,
}

impl World {
    fn durable(&self) -> MutexGuard<'_, Vec<Came>> {
        self.durable.lock().unwrap()
    }

    /// What a reader of committed data sees of a sink, in order.
    pub(super) fn of(&self, sink: &str) -> Vec<Id> {
        self.durable().iter().filter(|came| &*came.sink == sink).map(|came| came.id).collect()
    }

    /// Each dead letter: the record, the stage, the reason.
    pub(super) fn letters(&self) -> Vec<(Id, String, String)> {
        let letters = self.durable().clone().into_iter();
        letters.filter_map(|came| came.refused.map(|(stage, error)| (came.id, stage, error))).collect()
    }

    pub(super) fn is_away(&self) -> bool {
        self.away.load(Ordering::Relaxed)
    }
}

/// What became of a pipeline.
pub(super) struct Outcome {
    pub(super) end: PipelineEnd,
    pub(super) status: PipelineStatus,
    pub(super) metrics: Metrics,
}

/// A pipeline that runs.
pub(super) struct Run {
    pub(super) host: Host,
    pub(super) stop: CancellationToken,
    pipeline: tokio::task::JoinHandle<Vec<(Arc<str>, PipelineEnd)>>,
}

impl Run {
    pub(super) fn status(&self) -> PipelineStatus {
        self.host.status.get("p").expect("it is published")
    }

    /// Waits for its end.
    pub(super) async fn end(self) -> Outcome {
        let ends = tokio::time::timeout(Duration::from_secs(24 * 3600), self.pipeline).await;
        let status = self.host.status.get("p").expect("it is published");
        let Ok(ends) = ends else { panic!("it does not end within a day: {status:?}") };
        let mut ends = ends.expect("the topology does not panic");
        Outcome { end: ends.remove(0).1, status, metrics: self.host.metrics }
    }

    /// Waits until something holds.
    pub(super) async fn until(&self, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        for _ in 0..100_000 {
            self.host.runtime.sleep(Duration::from_millis(50)).await;
            if holds(self) {
                return;
            }
        }
        panic!("never: {what}; {:?}", self.status());
    }
}

impl Kit {
    pub(super) fn new(deeds: impl Fn(&str, Id) -> Deed + Send + Sync + 'static) -> Self {
        Self {
            transactional: false,
            lanes: 2,
            partitions: 3,
            records: 40,
            batch: 16,
            sinks: vec!["out"],
            dead_letter: true,
            on_error: None,
            longest_open: Duration::from_secs(5),
            finite: true,
            panics_when_built: false,
            base: 0,
            pause: Duration::ZERO,
            commit_takes: Duration::ZERO,
            world: Arc::default(),
            store: MemoryStore::new(),
            deeds: Arc::new(deeds),
        }
    }

    /// All records, but these.
    pub(super) fn all_but(&self, missing: &[Id]) -> Vec<Id> {
        let ids = (0..self.partitions).flat_map(|number| (0..self.records).map(move |offset| (number, offset)));
        ids.filter(|id| !missing.contains(id)).collect()
    }

    /// Starts the pipeline on a seed.
    pub(super) fn start(&self, seed: u64) -> Run {
        let runtime = Runtime::simulated(seed);
        let host = Host {
            runtime: runtime.clone(),
            metrics: Metrics::new(),
            status: StatusBoard::default(),
            store: Arc::new(self.store.clone()),
            instance: "test".into(),
            data_dir: Arc::from(std::path::Path::new("")),
            memory: 1 << 20,
        };
        let stop = CancellationToken::new();
        let pipeline = runtime.spawn(super::run(vec![self.plan()], host.clone(), stop.clone()));
        Run { host, stop, pipeline }
    }

    /// Runs the pipeline to its end.
    pub(super) async fn run(&self, seed: u64) -> Outcome {
        self.start(seed).end().await
    }

    fn plan(&self) -> Plan {
        let on_error = self.on_error.unwrap_or(if self.dead_letter { OnError::DeadLetter } else { OnError::Stop });
        let sink = |name: &'static str, from, on_error| SinkStage {
            buffer: None,
            name: name.into(),
            kind: KIND,
            from,
            compiled: self.sink(name),
            on_error,
        };
        Plan {
            domain: None,
            name: "p".into(),
            file: PathBuf::new(),
            declared: crate::plan::Declared::default(),
            guarantee: if self.transactional { Guarantee::ExactlyOnce } else { Guarantee::AtLeastOnce },
            paths: Vec::new(),
            transactional: self.transactional,
            commit_interval: Duration::from_secs(1),
            lanes: self.lanes,
            memory: None,
            sources: vec![SourceStage { name: "in".into(), kind: KIND, compiled: self.source(), on_error }],
            transforms: vec![TransformStage {
                buffer: None,
                name: "work".into(),
                kind: KIND,
                from: vec![Upstream::Source(0)],
                compiled: self.transform(),
                // A transform cannot try again.
                on_error: if on_error == OnError::Retry { OnError::Stop } else { on_error },
            }],
            sinks: self.sinks.iter().map(|name| sink(name, vec![Upstream::Transform(0, Port(0))], on_error)).collect(),
            dead_letter: self.dead_letter.then(|| sink("dead_letter", Vec::new(), OnError::Stop)),
        }
    }

    fn source(&self) -> CompiledSource {
        let world = Arc::clone(&self.world);
        let (partitions, records, batch) = (self.partitions, self.records, self.batch);
        let (finite, pause, panics_when_built) = (self.finite, self.pause, self.panics_when_built);
        let base = self.base;
        let keeps_positions = if self.transactional { KeepsPositions::Source } else { KeepsPositions::Store };
        CompiledSource {
            traits: SourceTraits { keeps_positions, finite, partitioned: true, transactional_with: &[KIND] },
            codec: Codec::Raw,
            schema: Schema::default(),
            build: Arc::new(move |_| {
                world.built.fetch_add(1, Ordering::Relaxed);
                if panics_when_built {
                    panics();
                }
                let source = TestSource { world: Arc::clone(&world), partitions, records, batch, finite, pause, base };
                Ok(BuiltSource { source: Box::new(source), positions: None })
            }),
        }
    }

    fn transform(&self) -> CompiledTransform {
        let deeds = Arc::clone(&self.deeds);
        CompiledTransform {
            outputs: Vec::new(),
            default_output: true,
            touched: Touched::default(),
            schema: Schema::default(),
            build: Arc::new(move || Box::new(TestTransform { deeds: Arc::clone(&deeds) })),
        }
    }

    fn sink(&self, name: &'static str) -> CompiledSink {
        let (world, deeds) = (Arc::clone(&self.world), Arc::clone(&self.deeds));
        let (longest_open, commit_takes) = (self.longest_open, self.commit_takes);
        CompiledSink {
            traits: SinkTraits {
                acknowledges: Acknowledges::Durable,
                transactional_with: &[KIND],
                transaction_timeout: None,
                idempotent_by_key: false,
                per_lane: name != "dead_letter",
                carries_headers: true,
            },
            touched: Touched::default(),
            build: Arc::new(move |cx| {
                if cx.transactional {
                    let runtime = cx.runtime.clone();
                    let transaction =
                        TestTransaction { world: Arc::clone(&world), longest_open, commit_takes, runtime };
                    cx.clients.set_transaction(cx.clients.shared(|| transaction));
                }
                Ok(Box::new(TestSink {
                    world: Arc::clone(&world),
                    deeds: Arc::clone(&deeds),
                    name: name.into(),
                    transactional: cx.transactional,
                    silent_until: None,
                    runtime: cx.runtime.clone(),
                }))
            }),
        }
    }
}

/// Panics without the noise of the panic hook.
fn panics() -> ! {
    std::panic::resume_unwind(Box::new("on purpose"))
}

fn id(batch: &Batch, offset: i64) -> Id {
    (batch.origin().number, offset)
}

struct TestSource {
    world: Arc<World>,
    partitions: i32,
    records: i64,
    batch: i64,
    finite: bool,
    pause: Duration,
    base: i64,
}

impl Source for TestSource {
    fn stream(&mut self, cx: SourceContext) -> BoxStream<'_, Result<Pulled, SourceError>> {
        self.world.streams.fetch_add(1, Ordering::Relaxed);
        let (world, partitions, records) = (Arc::clone(&self.world), self.partitions, self.records);
        let (batch, finite, pause, base) = (self.batch, self.finite, self.pause, self.base);
        Box::pin(try_stream! {
            let partition = |number| Partition { source: "in".into(), topic: "t".into(), number };
            let partitions: Vec<_> = (0..partitions).map(|number| Arc::new(partition(number))).collect();
            let start = |partition: &Partition| {
                let committed = world.offsets.lock().unwrap().get(partition).copied();
                cx.resume_from(partition).max(committed).map_or(0, |Position(at)| at - base)
            };
            let mut at: Vec<i64> = partitions.iter().map(|partition| start(partition)).collect();
            while at.iter().any(|&at| at < records) {
                for (at, partition) in at.iter_mut().zip(&partitions).filter(|(at, _)| **at < records) {
                    cx.runtime.sleep(pause).await;
                    let end = (*at + batch).min(records);
                    let mut built = BatchBuilder::new(Arc::clone(partition), 64, 8);
                    for offset in *at..end {
                        built.push_copy(Draft { body: offset.to_string().as_bytes(), offset, ..Draft::default() });
                    }
                    *at = end;
                    yield Pulled::new(built.finish(), Position(end + base));
                }
            }
            if !finite {
                std::future::pending::<()>().await;
            }
        })
    }
}

struct TestTransform {
    deeds: Deeds,
}

impl Transform for TestTransform {
    fn apply(&mut self, batch: Batch, out: &mut Output) {
        let mut kept = Vec::new();
        for record in batch.records() {
            match (self.deeds)("work", id(&batch, record.offset)) {
                Deed::Drop => out.discard(1),
                Deed::Refuse => out.reject(&batch, *record, "refused"),
                Deed::Panic => panics(),
                _ => kept.push(*record),
            }
        }
        out.emit(batch.with_records(kept));
    }
}

struct TestSink {
    world: Arc<World>,
    deeds: Deeds,
    name: Arc<str>,
    transactional: bool,
    /// It must write nothing before so many commits.
    silent_until: Option<usize>,
    runtime: Runtime,
}

impl TestSink {
    /// What comes of a batch, and how long it takes.
    fn judge(&self, batch: &Batch) -> (Duration, Result<Settled, SinkError>) {
        let (mut settled, mut slow) = (Settled::all(), Duration::ZERO);
        let error = |text: &str| format!("{} says {text}", self.name);
        for (at, record) in batch.records().iter().enumerate() {
            let outcome = match (self.deeds)(&self.name, id(batch, record.offset)) {
                Deed::Pass | Deed::Drop => continue,
                Deed::Slow(time) => {
                    slow += time;
                    continue;
                }
                Deed::Refuse => {
                    settled.refused.push(Refusal { record: at, error: error("no") });
                    continue;
                }
                Deed::Panic => panics(),
                Deed::Rewind => SinkError::Rewind(error("back")),
                Deed::Retry => SinkError::Retry(error("later")),
                Deed::Outage => SinkError::Outage(error("away")),
            };
            return (slow, Err(outcome));
        }
        (slow, Ok(settled))
    }

    fn came(&self, batch: &Batch, settled: &Settled) -> Vec<Came> {
        let taken = batch.records().iter().enumerate();
        let taken = taken.filter(|(at, _)| settled.refused.iter().all(|refusal| refusal.record != *at));
        taken
            .map(|(_, record)| {
                let header = |name: &str| {
                    let found = batch.headers(record).find(|header| header.name == name.as_bytes());
                    found.map(|header| String::from_utf8_lossy(header.value.unwrap_or_default()).into_owned())
                };
                let refused = header("weir-stage").zip(header("weir-error"));
                Came { sink: Arc::clone(&self.name), id: id(batch, record.offset), refused }
            })
            .collect()
    }
}

impl Sink for TestSink {
    fn open(&mut self) -> BoxFuture<'_, Result<(), SinkError>> {
        let away = self.world.is_away();
        self.silent_until = None;
        async move { if away { Err(SinkError::Retry("nobody is there".to_owned())) } else { Ok(()) } }.boxed()
    }

    fn write(&mut self, batch: Arc<Batch>) -> BoxFuture<'_, Result<Answer, SinkError>> {
        let (slow, outcome) = self.judge(&batch);
        let came = outcome.as_ref().map(|settled| self.came(&batch, settled)).unwrap_or_default();
        if self.silent_until.is_some_and(|commits| self.world.commits.load(Ordering::Relaxed) < commits) {
            self.world.broken_silences.fetch_add(1, Ordering::Relaxed);
        }
        if self.transactional {
            self.world.open.store(true, Ordering::Relaxed);
            self.world.pending.lock().unwrap().extend(came.clone());
        }
        let (world, transactional, runtime) = (Arc::clone(&self.world), self.transactional, self.runtime.clone());
        async move {
            runtime.sleep(slow).await;
            let answer: Answer = async move {
                while world.is_away() {
                    runtime.sleep(Duration::from_millis(100)).await;
                }
                if world.hides_causes.load(Ordering::Relaxed) {
                    if matches!(outcome, Err(SinkError::Rewind(_))) {
                        world.spoilt.store(true, Ordering::Relaxed);
                        runtime.sleep(Duration::from_millis(50)).await;
                        world.spoilt.store(false, Ordering::Relaxed);
                    } else {
                        runtime.sleep(Duration::from_millis(20)).await;
                        if world.spoilt.load(Ordering::Relaxed) {
                            return Err(SinkError::Outage("purged".to_owned()));
                        }
                    }
                }
                if !transactional {
                    world.durable().extend(came);
                }
                outcome
            }
            .boxed();
            Ok(answer)
        }
        .boxed()
    }

    fn flush(&mut self) -> BoxFuture<'_, Result<(), SinkError>> {
        if self.transactional {
            self.silent_until = Some(self.world.commits.load(Ordering::Relaxed) + 1);
        }
        self.world.flushes.fetch_add(usize::from(&*self.name == "out"), Ordering::Relaxed);
        let left = &self.world.flushes_fail;
        let fails = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
        async move { if fails { Err(SinkError::Rewind("the disk is full".to_owned())) } else { Ok(()) } }.boxed()
    }
}

#[derive(Debug)]
struct TestTransaction {
    world: Arc<World>,
    longest_open: Duration,
    commit_takes: Duration,
    runtime: Runtime,
}

impl Transaction for TestTransaction {
    fn fence(&self) -> BoxFuture<'_, Result<(), FenceError>> {
        self.world.fences.fetch_add(1, Ordering::Relaxed);
        if self.world.is_away() {
            return async { Err("the broker is away".to_owned().into()) }.boxed();
        }
        async { Ok(self.abort().await?) }.boxed()
    }

    fn longest_open(&self) -> Option<Duration> {
        Some(self.longest_open)
    }

    fn commit(&self, _: u64, offsets: Vec<SourceOffsets>) -> BoxFuture<'_, Committed> {
        async move {
            self.runtime.sleep(self.commit_takes).await;
            let pending = std::mem::take(&mut *self.world.pending.lock().unwrap());
            self.world.durable().extend(pending);
            self.world.open.store(false, Ordering::Relaxed);
            let offsets = offsets.into_iter().flat_map(|of_source| of_source.positions);
            self.world.offsets.lock().unwrap().extend(offsets);
            self.world.commits.fetch_add(1, Ordering::Relaxed);
            Committed::Yes
        }
        .boxed()
    }

    fn abort(&self) -> BoxFuture<'_, Result<(), String>> {
        self.world.pending.lock().unwrap().clear();
        self.world.open.store(false, Ordering::Relaxed);
        async { Ok(()) }.boxed()
    }
}
