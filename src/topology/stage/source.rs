//! The stage around a source: pulls batches, decodes them, deals them out to the lanes, and puts barriers behind them.

use std::collections::HashMap;
use std::sync::Arc;

use futures::StreamExt;
use tokio::sync::{Mutex, mpsc};

use super::super::failure::{Failure, at_work};
use super::super::outputs::{Ports, Rejects};
use super::super::pace::Pace;
use super::super::quarantine::take_front;
use super::super::report::Report;
use super::{Spent, StageContext, Stopwatch};
use crate::clock::Instant;
use crate::codecs::Codec;
use crate::component::{BoxSource, Port, Pulled, Rejected, SourceContext, SourceError};
use crate::delivery::Positions;
use crate::record::budget::Owner;
use crate::record::{Batch, Partition};

/// What the coordinator tells a source stage.
#[derive(Debug)]
pub(in crate::topology) enum Command {
    /// Put the barrier of this epoch behind the last batch that was pulled.
    Barrier(u64),
    /// Pull nothing more; barriers still come.
    Stop,
    /// These partitions were lost: their positions must not be committed.
    Forget(Vec<Partition>),
}

/// A source, and all that it feeds.
pub(in crate::topology) struct SourceTask {
    pub(in crate::topology) cx: StageContext,
    /// The number of the source in the plan.
    pub(in crate::topology) index: usize,
    /// The source outlives the run: a client keeps its connections and its place in a group.
    pub(in crate::topology) source: Arc<Mutex<BoxSource>>,
    pub(in crate::topology) source_cx: SourceContext,
    pub(in crate::topology) codec: Codec,
    /// By lane.
    pub(in crate::topology) lanes: Vec<Ports>,
    pub(in crate::topology) rejects: Rejects,
    pub(in crate::topology) pace: Pace,
    pub(in crate::topology) commands: mpsc::Receiver<Command>,
}

/// What happened since the last barrier.
#[derive(Debug, Default)]
struct OpenEpoch {
    positions: Positions,
    arrivals: Vec<(Instant, usize)>,
}

/// What a source stage wakes up for.
enum Wake {
    Command(Command),
    /// So many records of what is held may go on.
    Admitted(usize),
    Pulled(Option<Result<Pulled, SourceError>>),
}

impl SourceTask {
    /// Pulls until the run is torn down, or something fails.
    pub(in crate::topology) async fn run(self) -> Result<(), Failure> {
        let Self { cx, index, source, source_cx, codec, lanes, rejects, pace, mut commands } = self;
        let mut source = source.lock().await;
        let mut stream = source.stream(source_cx);
        let dealer = Dealer { cx: &cx, codec, lanes, rejects, lane_of: HashMap::new(), next_lane: 0 };
        let owner = Owner::default();
        let watch = Stopwatch::start(cx.runtime.clock());
        let mut feed = Feed { cx: &cx, index, dealer, owner, open: OpenEpoch::default(), held: None, watch };
        let mut pulling = true;
        loop {
            // Dropping the pull at a command loses nothing: what a stream has read stays in it.
            let wake = tokio::select! {
                biased;
                command = commands.recv() => Wake::Command(command.ok_or(Failure::Closed)?),
                records = async { cx.quarantine.admit(feed.held.as_ref().expect("guarded")).await },
                    if feed.held.is_some() => Wake::Admitted(records),
                pulled = async {
                    cx.quarantine.may_pull().await;
                    pace.may_pull(&feed.owner).await;
                    stream.next().await
                }, if pulling && feed.held.is_none() => Wake::Pulled(pulled),
            };
            feed.watch.lap(&cx.metrics, Spent::Idle);
            match wake {
                Wake::Command(Command::Barrier(epoch)) => feed.barrier(epoch).await?,
                Wake::Command(Command::Stop) => {
                    pulling = false;
                    feed.let_go();
                }
                Wake::Command(Command::Forget(partitions)) => feed.forget(&partitions),
                Wake::Admitted(records) => feed.pass(records).await?,
                Wake::Pulled(None) => {
                    pulling = false;
                    cx.report(Report::Ended { source: index }).await?;
                }
                Wake::Pulled(Some(Err(SourceError::Retry(error)))) => return Err(Failure::Rewind(error)),
                Wake::Pulled(Some(Err(SourceError::Fatal(error)))) => return Err(Failure::Fatal(error)),
                Wake::Pulled(Some(Ok(pulled))) => {
                    let admitted = cx.quarantine.admit_now(&pulled);
                    feed.held = Some(pulled);
                    match admitted {
                        Some(records) => feed.pass(records).await?,
                        None => cx.report(Report::Hurry).await?,
                    }
                }
            }
            feed.watch.lap(&cx.metrics, Spent::Blocked);
        }
    }
}

/// What a source stage does with what it pulled.
struct Feed<'a> {
    cx: &'a StageContext,
    index: usize,
    dealer: Dealer<'a>,
    owner: Owner,
    open: OpenEpoch,
    /// Pulled, and kept back as long as suspects travel apart.
    held: Option<Pulled>,
    watch: Stopwatch,
}

impl Feed<'_> {
    /// Deals out so many records of what is held. Their position is that of the record that follows them.
    async fn pass(&mut self, records: usize) -> Result<(), Failure> {
        let Some(pulled) = take_front(&mut self.held, records) else { return Ok(()) };
        if self.open.positions.is_empty() {
            self.cx.report(Report::Moved).await?;
        }
        note(&mut self.open.positions, pulled.partition(), pulled.position);
        for (partition, position) in &pulled.notes {
            note(&mut self.open.positions, partition, *position);
        }
        let Pulled { batch, refused, .. } = pulled;
        if !batch.is_empty() {
            self.open.arrivals.push((self.cx.runtime.clock().now(), batch.len()));
        }
        if !batch.is_empty() || !refused.is_empty() {
            self.dealer.deal(batch, refused, &self.owner, &mut self.watch).await?;
        }
        if self.held.is_some() || self.cx.quarantine.is_isolated() {
            self.cx.report(Report::Hurry).await?;
        }
        Ok(())
    }

    async fn barrier(&mut self, epoch: u64) -> Result<(), Failure> {
        self.dealer.barrier(epoch).await?;
        let OpenEpoch { positions, arrivals } = std::mem::take(&mut self.open);
        self.cx.report(Report::Barrier { source: self.index, epoch, positions, arrivals }).await
    }

    fn forget(&mut self, partitions: &[Partition]) {
        for partition in partitions {
            self.open.positions.remove(partition);
        }
        if self.held.as_ref().is_some_and(|held| partitions.contains(held.partition())) {
            self.let_go();
        }
    }

    /// Drops what is held: its position was not passed on, so it is read again.
    fn let_go(&mut self) {
        if self.held.take().is_some() {
            self.cx.quarantine.withdraw();
        }
    }
}

/// Moves a partition's position. The partition is cloned only when it is new to the epoch.
fn note(positions: &mut Positions, partition: &Arc<Partition>, position: crate::record::Position) {
    match positions.get_mut(&**partition) {
        Some(known) => *known = position,
        None => {
            positions.insert(Partition::clone(partition), position);
        }
    }
}

/// Decodes batches and deals them out. A partition stays with its lane, so that its order is kept.
struct Dealer<'a> {
    cx: &'a StageContext,
    codec: Codec,
    lanes: Vec<Ports>,
    rejects: Rejects,
    lane_of: HashMap<Arc<Partition>, usize>,
    next_lane: usize,
}

impl Dealer<'_> {
    /// What the codec refuses stands before what the source refused.
    async fn deal(
        &mut self,
        batch: Batch,
        refused: Vec<Rejected>,
        owner: &Owner,
        watch: &mut Stopwatch,
    ) -> Result<(), Failure> {
        let metrics = &self.cx.metrics;
        metrics.received_records.inc_by((batch.len() + refused.len()) as u64);
        metrics.received_bytes.inc_by(batch.payload_bytes());
        let (batch, condemned) = self.cx.quarantine.sift(&self.cx.name, batch);
        self.rejects.handle(condemned).await?;
        let alone = self.cx.quarantine.alone(&self.cx.name, &batch);
        let mut rejected = Vec::new();
        let batch = at_work(alone, || self.codec.decode(batch, &mut rejected))?;
        rejected.extend(refused);
        batch.charge(|bytes| self.cx.budget.charge(bytes, Some(owner.clone())));
        watch.lap(metrics, Spent::Busy);
        self.rejects.handle(rejected).await?;
        if batch.is_empty() {
            return Ok(());
        }
        metrics.sent_records.inc_by(batch.len() as u64);
        metrics.sent_bytes.inc_by(batch.payload_bytes());
        let lane = self.lane_of(batch.origin());
        Ok(self.lanes[lane].write(Port(0), batch).await?)
    }

    /// The lane of a partition: in turn, in the order in which partitions are met.
    fn lane_of(&mut self, partition: &Arc<Partition>) -> usize {
        if let Some(&lane) = self.lane_of.get(partition) {
            return lane;
        }
        let lane = self.next_lane % self.lanes.len();
        self.next_lane += 1;
        self.lane_of.insert(Arc::clone(partition), lane);
        lane
    }

    async fn barrier(&self, epoch: u64) -> Result<(), Failure> {
        for lane in &self.lanes {
            lane.barrier(epoch).await?;
        }
        Ok(self.rejects.barrier(epoch).await?)
    }
}
