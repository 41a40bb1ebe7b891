//! The stage around a sink: writes in order, keeps several batches in flight, settles them in order, and answers for a
//! barrier when everything before it is durable.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesOrdered;
use tokio::sync::Mutex;

use super::super::backoff::Backoff;
use super::super::channel::Item;
use super::super::failure::{AtWork, Failure, caught, waits_at_work};
use super::super::inputs::Inputs;
use super::super::outputs::Rejects;
use super::super::report::Report;
use super::super::suspicion::Suspect;
use super::{Spent, StageContext, Stopwatch, one_by_one};
use crate::clock::Instant;
use crate::component::{BoxSink, Refusal, Settled, SinkError};
use crate::delivery::DeadLetterForm;
use crate::plan::OnError;
use crate::record::{Batch, Rejected};
use crate::runtime::Runtime;

/// How many batches a sink may have in flight,
const IN_FLIGHT: usize = 32;
/// and how many it may have however slow it is.
const LEAST_IN_FLIGHT: usize = 2;
/// What it settled in so much of the past it may have in flight: what it has must be settled before an epoch can close.
const WINDOW: Duration = Duration::from_secs(2);

/// One instance of a sink, with all that it reads.
pub(in crate::topology) struct SinkTask {
    pub(in crate::topology) cx: StageContext,
    /// The number under which it answers for barriers.
    pub(in crate::topology) index: usize,
    /// The sink outlives the run: a client keeps its connections.
    pub(in crate::topology) sink: Arc<Mutex<BoxSink>>,
    pub(in crate::topology) inputs: Inputs,
    pub(in crate::topology) rejects: Rejects,
    /// Whether it is the dead letter: what it refuses is cut, and written again.
    pub(in crate::topology) is_dead_letter: bool,
    /// Whether it writes nothing between its barrier and the commit.
    pub(in crate::topology) transactional: bool,
    /// Whether each record waits for the answer for the one before it, so that one that is refused can hold its place.
    pub(in crate::topology) one_by_one: bool,
    /// The record written since the last barrier, if it is under way alone.
    pub(in crate::topology) alone: Option<Suspect>,
    /// When the last batches were settled.
    pub(in crate::topology) settled: VecDeque<Instant>,
}

/// How many bytes of a letter's body are kept if the dead letter refuses it whole: first half of what Kafka takes by default,
/// then less and less, down to a letter that says no more than where the record is and what was wrong.
const CUTS: [usize; 4] = [512 << 10, 16 << 10, 1 << 10, 0];

/// How long the cause of a failure is waited for.
pub(in crate::topology) const CAUSE_WITHIN: Duration = Duration::from_secs(1);

/// How often the log repeats why a sink waits.
const SAY_AGAIN: Duration = Duration::from_secs(10);

/// What became of a batch: the sink's answer, or the text of a panic.
type Outcome = Result<Result<Settled, SinkError>, String>;

/// What is in flight, in order.
enum InFlight {
    /// A batch, and what became of it.
    Batch(Arc<Batch>, Outcome),
    /// Everything written before this barrier has its answer once this is at the front.
    Barrier(u64),
}

/// What a sink stage wakes up for.
enum Wake {
    Settled(InFlight),
    Item(Item),
    /// The sink wants a barrier.
    Wanted,
}

impl SinkTask {
    /// Writes until the run is torn down, or something fails.
    pub(in crate::topology) async fn run(mut self) -> Result<(), Failure> {
        let sink = Arc::clone(&self.sink);
        let mut sink = sink.lock().await;
        let mut in_flight = FuturesOrdered::new();
        match self.work(&mut sink, &mut in_flight).await {
            Ok(never) => match never {},
            Err(failure) => Err(self.cause_of(failure, in_flight).await),
        }
    }

    async fn work(
        &mut self,
        sink: &mut BoxSink,
        in_flight: &mut FuturesOrdered<BoxFuture<'static, InFlight>>,
    ) -> Result<Infallible, Failure> {
        let mut watch = Stopwatch::start(self.cx.runtime.clock());
        // It is asked for once: the coordinator forgets no word, and opens an epoch when it has room.
        let mut has_asked = false;
        loop {
            let waits_for_answers = in_flight.len() >= self.may_have_in_flight();
            let wants_barrier_at = sink.wants_barrier_at().filter(|_| !has_asked);
            let wake = tokio::select! {
                biased;
                Some(settled) = in_flight.next(), if !in_flight.is_empty() => Wake::Settled(settled),
                item = self.inputs.next(), if !waits_for_answers => Wake::Item(item?),
                () = until(&self.cx.runtime, wants_barrier_at), if wants_barrier_at.is_some() => Wake::Wanted,
            };
            watch.lap(&self.cx.metrics, if waits_for_answers { Spent::Blocked } else { Spent::Idle });
            match wake {
                Wake::Settled(InFlight::Batch(batch, outcome)) => {
                    self.settle(sink, batch, outcome).await?;
                    self.note_settled();
                }
                Wake::Settled(InFlight::Barrier(epoch)) => self.answer(epoch).await?,
                Wake::Item(Item::Batch(batch)) => {
                    let metrics = &self.cx.metrics;
                    metrics.received_records.inc_by(batch.len() as u64);
                    metrics.received_bytes.inc_by(batch.payload_bytes());
                    for batch in self.cx.works_on(batch, &self.rejects).await? {
                        self.take(sink, batch, in_flight).await?;
                    }
                }
                Wake::Wanted => {
                    has_asked = true;
                    self.cx.report(Report::Wanted).await?;
                }
                Wake::Item(Item::Barrier(epoch)) => {
                    has_asked = false;
                    self.flush(sink).await?;
                    self.alone = None;
                    in_flight.push_back(Box::pin(async move { InFlight::Barrier(epoch) }));
                    if self.transactional {
                        self.fall_silent(sink, in_flight, epoch).await?;
                    }
                }
            }
            watch.lap(&self.cx.metrics, Spent::Busy);
        }
    }

    /// How many batches may be in flight: about what was settled lately. A sink that is slow by the batch would else have
    /// more before it than fits into the time in which an epoch must close; one that answers late and many at once soon may
    /// have all that a sink may have.
    fn may_have_in_flight(&self) -> usize {
        if self.settled.len() < LEAST_IN_FLIGHT {
            return LEAST_IN_FLIGHT;
        }
        let now = self.cx.runtime.clock().now();
        let lately = self.settled.iter().rev().take_while(|at| now.duration_since(**at) <= WINDOW).count();
        lately.clamp(LEAST_IN_FLIGHT, IN_FLIGHT)
    }

    fn note_settled(&mut self) {
        if self.settled.len() == IN_FLIGHT {
            self.settled.pop_front();
        }
        self.settled.push_back(self.cx.runtime.clock().now());
    }

    /// What fails first need not be the cause: the answer for another batch may name a record, and come a moment later.
    async fn cause_of(&self, failure: Failure, mut in_flight: FuturesOrdered<BoxFuture<'static, InFlight>>) -> Failure {
        let deadline = self.cx.runtime.clock().now() + CAUSE_WITHIN;
        while let Failure::Rewind(_) = failure {
            let answer = tokio::select! {
                biased;
                answer = in_flight.next() => answer,
                () = self.cx.runtime.sleep_until(deadline) => None,
            };
            match answer {
                Some(InFlight::Batch(_, Ok(Err(error @ SinkError::Rewind(_))))) => return self.failure(error),
                Some(_) => {}
                None => break,
            }
        }
        failure
    }

    /// Hands a batch to the sink. Its answer is waited for where the next record must not overtake it.
    async fn take(
        &mut self,
        sink: &mut BoxSink,
        batch: Batch,
        in_flight: &mut FuturesOrdered<BoxFuture<'static, InFlight>>,
    ) -> Result<(), Failure> {
        if !self.one_by_one && !self.cx.quarantine.is_alone() {
            let batch = Arc::new(batch);
            let answer = self.write(sink, &batch).await?;
            in_flight.push_back(Box::pin(async move {
                let outcome = caught(answer).await;
                InFlight::Batch(batch, outcome)
            }));
            return Ok(());
        }
        for record in one_by_one(&batch) {
            self.alone = self.cx.quarantine.alone(&self.cx.name, &record);
            let record = Arc::new(record);
            let outcome = caught(self.write(sink, &record).await?).await;
            self.settle(sink, record, outcome).await?;
        }
        Ok(())
    }

    /// Settles what is in flight, answers for the epoch, and waits for its commit: what is written in between would be
    /// committed with it, and a crash would write it again.
    async fn fall_silent(
        &mut self,
        sink: &mut BoxSink,
        in_flight: &mut FuturesOrdered<BoxFuture<'static, InFlight>>,
        epoch: u64,
    ) -> Result<(), Failure> {
        while let Some(settled) = in_flight.next().await {
            match settled {
                InFlight::Batch(batch, outcome) => self.settle(sink, batch, outcome).await?,
                InFlight::Barrier(epoch) => self.answer(epoch).await?,
            }
        }
        self.cx.commits.wait_for(epoch).await;
        Ok(())
    }

    /// Hands a batch to the sink, however long it takes.
    async fn write(
        &self,
        sink: &mut BoxSink,
        batch: &Arc<Batch>,
    ) -> Result<BoxFuture<'static, Result<Settled, SinkError>>, Failure> {
        let mut retry = Retry::new(&self.cx);
        loop {
            let writing = async { sink.write(Arc::clone(batch)).await };
            match waits_at_work(self.alone.as_ref(), writing).await? {
                Ok(answer) => return Ok(answer),
                Err(SinkError::Retry(error)) => retry.wait(&error).await,
                Err(SinkError::Reject(error)) => {
                    return Ok(Box::pin(async move { Err(SinkError::Reject(error)) }));
                }
                Err(error) => return Err(self.failure(error)),
            }
        }
    }

    /// Why the run ends.
    fn failure(&self, error: SinkError) -> Failure {
        match error {
            SinkError::Rewind(text) => Failure::AtWork(AtWork { text, panicked: false, alone: self.alone.clone() }),
            SinkError::Fatal(error) => Failure::Fatal(error),
            SinkError::Outage(error) | SinkError::Retry(error) | SinkError::Reject(error) => Failure::Rewind(error),
        }
    }

    /// Waits for the answer for a batch. One that is to be tried again holds up all behind it, so that order is kept.
    async fn answered(&self, sink: &mut BoxSink, batch: &Arc<Batch>, mut outcome: Outcome) -> Result<Settled, Failure> {
        let mut retry = Retry::new(&self.cx);
        loop {
            match outcome.map_err(|text| Failure::AtWork(AtWork { text, panicked: true, alone: self.alone.clone() }))? {
                Ok(settled) => return Ok(settled),
                Err(SinkError::Reject(error)) => {
                    let refused = (0..batch.len()).map(|record| Refusal { record, error: error.clone() }).collect();
                    return Ok(Settled { refused, dropped: 0 });
                }
                Err(SinkError::Retry(error)) => {
                    retry.wait(&error).await;
                    outcome = caught(self.write(sink, batch).await?).await;
                }
                Err(error) => return Err(self.failure(error)),
            }
        }
    }

    /// Deals with the outcome of a batch.
    async fn settle(&self, sink: &mut BoxSink, batch: Arc<Batch>, outcome: Outcome) -> Result<(), Failure> {
        let Settled { mut refused, dropped } = self.answered(sink, &batch, outcome).await?;
        if self.rejects.on_error == OnError::Retry {
            let mut retry = Retry::new(&self.cx);
            while let [first, ..] = refused.as_slice() {
                let error = format!("a record was refused, and is tried again until it is taken: {}", first.error);
                retry.wait(&error).await;
                waits_at_work(self.alone.as_ref(), async { sink.refresh().await }).await?;
                let outcome = caught(self.write(sink, &batch).await?).await;
                refused = self.answered(sink, &batch, outcome).await?.refused;
            }
        }
        if self.is_dead_letter && !refused.is_empty() {
            refused = self.write_cut(sink, &batch, refused).await?;
        }
        let rejected: Vec<Rejected> = refused
            .into_iter()
            .map(|Refusal { record, error }| {
                let record = batch.records()[record];
                Rejected { batch: batch.with_records(vec![record]), error }
            })
            .collect();
        let shed = if dropped == 0 { 0 } else { batch.payload_bytes() / batch.len() as u64 * dropped as u64 };
        let refused: u64 = rejected.iter().map(|rejected| rejected.batch.payload_bytes()).sum();
        self.cx.metrics.sent_records.inc_by((batch.len() - rejected.len() - dropped) as u64);
        self.cx.metrics.sent_bytes.inc_by(batch.payload_bytes().saturating_sub(refused + shed));
        self.rejects.handle(rejected).await
    }

    /// Writes letters that were refused again, cut. What is refused even then is returned.
    async fn write_cut(
        &self,
        sink: &mut BoxSink,
        batch: &Batch,
        mut refused: Vec<Refusal>,
    ) -> Result<Vec<Refusal>, Failure> {
        for most in CUTS {
            let records: Vec<_> = refused.iter().map(|refusal| batch.records()[refusal.record]).collect();
            let cut = Arc::new(DeadLetterForm::cut(batch, &records, most));
            tracing::warn!(component = %self.cx.name, records = records.len(), "{}; cut to {most} bytes", refused[0].error);
            let outcome = waits_at_work(self.alone.as_ref(), self.write(sink, &cut).await?).await?;
            match outcome {
                Ok(settled) if settled.refused.is_empty() => return Ok(Vec::new()),
                Ok(settled) => {
                    let again = settled
                        .refused
                        .into_iter()
                        .map(|Refusal { record, error }| Refusal { record: refused[record].record, error });
                    refused = again.collect();
                }
                Err(error) => return Err(self.failure(error)),
            }
        }
        Ok(refused)
    }

    async fn flush(&self, sink: &mut BoxSink) -> Result<(), Failure> {
        let mut retry = Retry::new(&self.cx);
        loop {
            let flushing = async { sink.flush().await };
            match waits_at_work(None, flushing).await? {
                Ok(()) => return Ok(()),
                Err(SinkError::Retry(error)) => retry.wait(&error).await,
                Err(SinkError::Fatal(error)) => return Err(Failure::Fatal(error)),
                // What is made durable was taken before: no record is to blame.
                Err(error) => return Err(Failure::Rewind(error.to_string())),
            }
        }
    }

    /// Everything before the barrier is durable. The dead letter hears of it first: what this sink refused is there.
    async fn answer(&self, epoch: u64) -> Result<(), Failure> {
        self.rejects.barrier(epoch).await?;
        self.cx.report(Report::Settled { sink: self.index, epoch }).await
    }
}

/// Until a moment, if there is one; else for ever.
async fn until(runtime: &Runtime, at: Option<Instant>) {
    match at {
        Some(at) => runtime.sleep_until(at).await,
        None => future::pending().await,
    }
}

/// Opens a sink at the start of a run, however long it takes.
pub(in crate::topology) async fn open(cx: &StageContext, sink: &mut BoxSink) -> Result<(), Failure> {
    let mut retry = Retry::new(cx);
    loop {
        match sink.open().await {
            Ok(()) => return Ok(()),
            Err(SinkError::Retry(error) | SinkError::Outage(error)) => retry.wait(&error).await,
            // What it goes back to has to be asked for anew.
            Err(SinkError::Rewind(error)) => return Err(Failure::Rewind(error)),
            Err(SinkError::Reject(error) | SinkError::Fatal(error)) => return Err(Failure::Fatal(error)),
        }
    }
}

/// The waits between tries: growing, with jitter, without end, and loud.
pub(in crate::topology) struct Retry<'a> {
    cx: &'a StageContext,
    backoff: Backoff,
    said: Option<Instant>,
}

impl<'a> Retry<'a> {
    pub(in crate::topology) fn new(cx: &'a StageContext) -> Self {
        Self { cx, backoff: Backoff::new(Duration::from_millis(100), Duration::from_secs(10)), said: None }
    }

    /// Says why, and waits.
    pub(in crate::topology) async fn wait(&mut self, error: &str) {
        self.cx.metrics.error("retry");
        self.cx.troubles.set(&self.cx.name, error);
        let now = self.cx.runtime.clock().now();
        if self.said.is_none_or(|said| now.duration_since(said) >= SAY_AGAIN) {
            self.said = Some(now);
            tracing::warn!(component = %self.cx.name, "{error}; trying again");
        }
        self.cx.runtime.sleep(self.cx.runtime.jittered(self.backoff.next())).await;
    }
}

impl Drop for Retry<'_> {
    fn drop(&mut self) {
        if self.said.is_some() {
            self.cx.troubles.clear(&self.cx.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::super::PipelineEnd;
    use super::super::super::testing::{Deed, Id, Kit};
    use super::*;
    use crate::observe::PipelineState;

    /// The sink does this with one record for so many times.
    fn for_a_while(deed: Deed, times: usize) -> impl Fn(&str, Id) -> Deed + Send + Sync {
        let left = AtomicUsize::new(times);
        move |stage, id| {
            let strikes = stage == "out"
                && id == (0, 5)
                && left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
            if strikes { deed } else { Deed::Pass }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_record_holds_its_place_where_the_stage_is_patient() {
        for transactional in [false, true] {
            let longest_open = Duration::from_secs(600);
            let deeds = for_a_while(Deed::Refuse, 12);
            let kit = Kit { transactional, longest_open, on_error: Some(OnError::Retry), ..Kit::new(deeds) };
            let run = kit.start(1);
            run.until("it is tried again", |run| run.status().state == PipelineState::Stuck).await;
            let status = run.status();
            assert_eq!(status.stage.as_deref(), Some("out"));
            assert!(status.reason.is_some_and(|reason| reason.contains("tried again until it is taken")));
            assert!(kit.world.of("out").iter().all(|id| id.0 != 0 || id.1 < 5), "nothing overtakes it");
            assert_eq!(run.end().await.end, PipelineEnd::Finished);
            let came = kit.world.of("out");
            assert_eq!(came.len(), kit.all_but(&[]).len(), "each once");
            // Each of its instances at the only barrier, and none for a record that is tried again.
            assert_eq!(kit.world.flushes.load(Ordering::Relaxed), kit.lanes);
            for number in 0..kit.partitions {
                assert!(came.iter().filter(|id| id.0 == number).is_sorted(), "in order");
            }
            assert_eq!(kit.world.letters(), []);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_to_be_tried_again_holds_up_all_behind_it_so_that_order_is_kept() {
        let kit = Kit { lanes: 1, ..Kit::new(for_a_while(Deed::Retry, 7)) };
        let outcome = kit.run(2).await;
        assert_eq!((outcome.end, outcome.status.restarts), (PipelineEnd::Finished, 0));
        let came = kit.world.of("out");
        assert_eq!(came.len(), kit.all_but(&[]).len());
        for number in 0..kit.partitions {
            assert!(came.iter().filter(|id| id.0 == number).is_sorted(), "{came:?}");
        }
    }
}
