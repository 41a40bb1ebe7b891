//! The simulated components: a source, a transform, sinks, a transaction, a store.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_stream::try_stream;
use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;

use super::Scenario;
use super::faults::Step;
use super::world::{
    DEAD_LETTER, Id, SINK, TRANSACTIONAL_DEAD_LETTER, TRANSACTIONAL_SINK, World, is_dropped, is_refused,
};
use crate::codecs::Codec;
use crate::component::{
    Acknowledges, Answer, BuiltSource, CompiledSink, CompiledSource, CompiledTransform, KeepsPositions, Output, Port,
    Pulled, Settled, Sink, SinkError, SinkTraits, Source, SourceContext, SourceError, SourceTraits, Touched, Transform,
};
use crate::delivery::{Committed, FenceError, Positions, SourceOffsets, Transaction};
use crate::expr::Schema;
use crate::plan::{Declared, Guarantee, OnError, Plan, SinkStage, SourceStage, TransformStage, Upstream};
use crate::record::{Batch, BatchBuilder, Draft, Partition, Position};
use crate::state::{Store, StoreError};

/// The kind that simulated components share a transaction by.
const SIMULATED: &str = "simulated";

/// A source, a transform in lanes, a sink and a dead letter.
pub(super) fn plan(name: &str, world: &Arc<World>, scenario: &Scenario) -> Plan {
    let transactional = scenario.transactional;
    let (sink, dead_letter) =
        if transactional { (TRANSACTIONAL_SINK, TRANSACTIONAL_DEAD_LETTER) } else { (SINK, DEAD_LETTER) };
    Plan {
        name: name.into(),
        file: PathBuf::new(),
        declared: Declared::default(),
        guarantee: if transactional { Guarantee::ExactlyOnce } else { Guarantee::AtLeastOnce },
        paths: Vec::new(),
        transactional,
        commit_interval: Duration::from_millis(500),
        lanes: scenario.lanes,
        memory: None,
        sources: vec![SourceStage {
            name: "in".into(),
            kind: SIMULATED,
            compiled: source(world, scenario),
            on_error: OnError::Stop,
        }],
        transforms: vec![TransformStage {
            name: "work".into(),
            kind: SIMULATED,
            from: vec![Upstream::Source(0)],
            compiled: transform(world),
            on_error: OnError::DeadLetter,
        }],
        sinks: vec![SinkStage {
            name: "out".into(),
            kind: SIMULATED,
            from: vec![Upstream::Transform(0, Port(0))],
            compiled: compiled_sink(world, sink, scenario, scenario.sink_per_lane),
            on_error: OnError::DeadLetter,
        }],
        dead_letter: Some(SinkStage {
            name: "dead_letter".into(),
            kind: SIMULATED,
            from: Vec::new(),
            compiled: compiled_sink(world, dead_letter, scenario, false),
            on_error: OnError::Stop,
        }),
    }
}

/// Yields each partition's records in batches of random sizes, in random turns.
struct SimulatedSource {
    world: Arc<World>,
    partitions: Vec<Arc<Partition>>,
    records: i64,
}

fn source(world: &Arc<World>, scenario: &Scenario) -> CompiledSource {
    let (world, count, records) = (Arc::clone(world), scenario.partitions, scenario.records);
    let keeps_positions = if scenario.transactional { KeepsPositions::Source } else { KeepsPositions::Store };
    CompiledSource {
        traits: SourceTraits { keeps_positions, finite: true, partitioned: true, transactional_with: &[SIMULATED] },
        codec: Codec::Raw,
        schema: Schema::default(),
        build: Arc::new(move |cx| {
            let partition = |number| Partition { source: Arc::clone(&cx.component), topic: "t".into(), number };
            let partitions = (0..count).map(|number| Arc::new(partition(number))).collect();
            let source = SimulatedSource { world: Arc::clone(&world), partitions, records };
            Ok(BuiltSource { source: Box::new(source), positions: None })
        }),
    }
}

impl Source for SimulatedSource {
    fn stream(&mut self, cx: SourceContext) -> BoxStream<'_, Result<Pulled, SourceError>> {
        let world = Arc::clone(&self.world);
        let (partitions, records) = (&self.partitions, self.records);
        Box::pin(try_stream! {
            let start = |partition: &Partition| {
                let known = cx.resume_from(partition).max(world.offset(partition));
                known.map_or(0, |Position(at)| at)
            };
            let mut at: Vec<i64> = partitions.iter().map(|partition| start(partition)).collect();
            loop {
                let open: Vec<usize> = (0..at.len()).filter(|&number| at[number] < records).collect();
                if open.is_empty() {
                    break;
                }
                cx.runtime.sleep(Duration::from_millis(world.below(200))).await;
                let chosen = open[usize::try_from(world.below(open.len() as u64)).unwrap_or(0)];
                let end = (at[chosen] + 1 + i64::try_from(world.below(5)).unwrap_or(0)).min(records);
                let what = format!("{chosen}:{}..{end}", at[chosen]);
                world.step(Step::Pull, &what).await.map_err(SourceError::Retry)?;
                let mut batch = BatchBuilder::new(Arc::clone(&partitions[chosen]), 64, 8);
                for offset in at[chosen]..end {
                    batch.push_copy(Draft { body: b"x", offset, ..Draft::default() });
                }
                at[chosen] = end;
                yield Pulled { batch: batch.finish(), position: Position(end), read_from: None };
            }
        })
    }
}

/// Drops some records, refuses some, and passes the others on.
struct SimulatedTransform {
    world: Arc<World>,
}

fn transform(world: &Arc<World>) -> CompiledTransform {
    let world = Arc::clone(world);
    CompiledTransform {
        outputs: Vec::new(),
        default_output: true,
        touched: Touched::default(),
        schema: Schema::default(),
        build: Arc::new(move || Box::new(SimulatedTransform { world: Arc::clone(&world) })),
    }
}

impl Transform for SimulatedTransform {
    fn apply(&mut self, batch: Batch, out: &mut Output) {
        self.world.step_now(Step::Apply, &named(&batch));
        let mut kept = Vec::new();
        for record in batch.records() {
            let id = (batch.origin().number, record.offset);
            if is_dropped(id) {
                out.discard(1);
            } else if is_refused(id) {
                out.reject(&batch, *record, "refused");
            } else {
                kept.push(*record);
            }
        }
        out.emit(batch.with_records(kept));
    }
}

fn ids(batch: &Batch) -> Vec<Id> {
    batch.records().iter().map(|record| (batch.origin().number, record.offset)).collect()
}

fn named(batch: &Batch) -> String {
    format!("{}:{:?}", batch.origin().number, batch.records().iter().map(|r| r.offset).collect::<Vec<_>>())
}

/// Takes records into the world: plainly, or into the open transaction.
struct SimulatedSink {
    world: Arc<World>,
    name: &'static str,
    transactional: bool,
    durable_by_answer: bool,
}

fn compiled_sink(world: &Arc<World>, name: &'static str, scenario: &Scenario, per_lane: bool) -> CompiledSink {
    let world = Arc::clone(world);
    let (transactional, durable_by_answer) = (scenario.transactional, scenario.durable_by_answer);
    CompiledSink {
        traits: SinkTraits {
            acknowledges: Acknowledges::Durable,
            transactional_with: &[SIMULATED],
            transaction_timeout: None,
            idempotent_by_key: false,
            per_lane,
            carries_headers: true,
        },
        touched: Touched::default(),
        build: Arc::new(move |cx| {
            if transactional {
                let transaction = SimulatedTransaction { world: Arc::clone(&world) };
                cx.clients.set_transaction(cx.clients.shared(|| transaction));
            }
            Ok(Box::new(SimulatedSink { world: Arc::clone(&world), name, transactional, durable_by_answer }))
        }),
    }
}

impl Sink for SimulatedSink {
    fn open(&mut self) -> BoxFuture<'_, Result<(), SinkError>> {
        async {
            self.world.step(Step::Open, self.name).await.map_err(SinkError::Retry)?;
            if !self.transactional {
                self.world.reopen(self.name);
            }
            Ok(())
        }
        .boxed()
    }

    fn write(&mut self, batch: Arc<Batch>) -> BoxFuture<'_, Result<Answer, SinkError>> {
        async move {
            let what = format!("{} {}", self.name, named(&batch));
            let retry = if self.transactional { SinkError::Rewind } else { SinkError::Retry };
            self.world.step(Step::Write, &what).await.map_err(retry)?;
            if !self.durable_by_answer {
                self.world.take(self.name, ids(&batch));
            }
            let (world, name, durable_by_answer) = (Arc::clone(&self.world), self.name, self.durable_by_answer);
            Ok(async move {
                world.step(Step::Answer, &what).await.map_err(retry)?;
                if durable_by_answer {
                    world.take(name, ids(&batch));
                    world.make_durable(name);
                }
                Ok(Settled::all())
            }
            .boxed())
        }
        .boxed()
    }

    fn flush(&mut self) -> BoxFuture<'_, Result<(), SinkError>> {
        async {
            self.world.step(Step::Flush, self.name).await.map_err(SinkError::Retry)?;
            if !self.transactional {
                self.world.make_durable(self.name);
            }
            Ok(())
        }
        .boxed()
    }
}

/// The transaction of the world.
#[derive(Debug)]
struct SimulatedTransaction {
    world: Arc<World>,
}

impl Transaction for SimulatedTransaction {
    fn fence(&self) -> BoxFuture<'_, Result<(), FenceError>> {
        async {
            self.world.step(Step::Fence, "").await?;
            self.world.abort();
            Ok(())
        }
        .boxed()
    }

    fn longest_open(&self) -> Option<Duration> {
        Some(Duration::from_secs(3))
    }

    fn commit(&self, epoch: u64, offsets: Vec<SourceOffsets>) -> BoxFuture<'_, Committed> {
        async move {
            let what = epoch.to_string();
            if let Err(error) = self.world.step(Step::CommitBefore, &what).await {
                return Committed::Aborted(error);
            }
            let offsets: Positions = offsets.into_iter().flat_map(|of_source| of_source.positions).collect();
            self.world.commit(offsets);
            // A commit whose answer is lost is asked for again until it is known, so an error here changes nothing.
            let _ = self.world.step(Step::CommitAfter, &what).await;
            Committed::Yes
        }
        .boxed()
    }

    fn abort(&self) -> BoxFuture<'_, Result<(), String>> {
        async {
            self.world.step(Step::Abort, "").await?;
            self.world.abort();
            Ok(())
        }
        .boxed()
    }
}

/// The store of the world.
#[derive(Debug)]
pub(super) struct SimulatedStore {
    world: Arc<World>,
}

impl SimulatedStore {
    pub(super) fn new(world: Arc<World>) -> Self {
        Self { world }
    }
}

impl Store for SimulatedStore {
    fn load(&self, scope: &str) -> BoxFuture<'_, Result<Vec<(String, Vec<u8>)>, StoreError>> {
        let entries = self.world.load(scope);
        async move { Ok(entries) }.boxed()
    }

    fn commit(&self, scope: &str, entries: Vec<(String, Option<Vec<u8>>)>) -> BoxFuture<'_, Result<(), StoreError>> {
        let scope = scope.to_owned();
        async move {
            self.world.step(Step::StoreBefore, "").await.map_err(StoreError)?;
            self.world.store(&scope, entries);
            self.world.step(Step::StoreAfter, "").await.map_err(StoreError)
        }
        .boxed()
    }
}
