//! One pipeline: runs it, and after a failure goes back to the last commit and runs it again.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::backoff::Backoff;
use super::bottleneck::Bottleneck;
use super::commits::Commits;
use super::epoch::{Coordinator, RunEnd};
use super::failure::{AtWork, Failure, caught, panic_text};
use super::host::Host;
use super::pace::Pace;
use super::parts::{Parts, SinkPart};
use super::progress::Progress;
use super::quarantine::Quarantine;
use super::report::{Dated, Reports};
use super::stage::{self, StageContext};
use super::suspicion::Finding;
use super::trouble::Troubles;
use super::wiring::{Shared, Wired, wire};
use crate::component::{BuildError, EpochRequest, EpochRequests, KeepsPositions};
use crate::delivery::FenceError;
use crate::observe::{PipelineState, PipelineStatus};
use crate::plan::{OnError, Plan, SinkStage, SourceStage};
use crate::record::budget::Budget;

/// How a pipeline ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PipelineEnd {
    /// All sources were read to their ends, and all of it is committed.
    Finished,
    /// It was asked to stop, and all that was read is committed.
    Stopped,
    /// A person must act.
    Failed(String),
}

/// The first wait after a failure, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));
/// After so many failures without a commit in between, the pipeline is reported as failing, and waits longest each time.
const BUDGET: u32 = 8;
/// How often the pipeline's health is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// A pipeline over all of its runs.
struct Supervised {
    plan: Plan,
    host: Host,
    parts: Parts,
    budget: Budget,
    reports: Reports,
    mailbox: mpsc::Receiver<Dated>,
    requests: EpochRequests,
    request_box: mpsc::Receiver<EpochRequest>,
    troubles: Troubles,
    progress: Arc<Progress>,
    quarantine: Quarantine,
    run: u64,
    next_epoch: u64,
    /// At most so many records were under way when a run failed, and their source cannot read them again.
    lost: u64,
    /// The stage that was to blame when the pipeline failed for good.
    failed_at: Option<Arc<str>>,
    stop: CancellationToken,
}

/// Runs a pipeline until its sources end, it is asked to stop, or a person must act. If that itself breaks, the heart
/// of the pipeline stands still, and `/live` tells: only a new process helps.
pub(super) async fn supervise(plan: Plan, host: Host, stop: CancellationToken) -> PipelineEnd {
    let pipeline = Arc::clone(&plan.name);
    // Each of its domains has one of its own.
    let heart = match &plan.domain {
        None => format!("pipeline {pipeline}"),
        Some(domain) => format!("pipeline {pipeline}, from the buffer of {domain} on"),
    };
    host.status.beat(&heart, host.runtime.clock().now());
    let supervised = caught(supervise_to_its_end(plan, host.clone(), stop));
    let end = tokio::select! {
        biased;
        end = supervised => end,
        () = beat(&host, &heart) => Err("its heart has ended".to_owned()),
    };
    match end {
        Ok(end) => {
            host.status.rest(&heart);
            end
        }
        Err(error) => {
            let reason = format!("the supervisor died: {error}");
            tracing::error!(%pipeline, "{reason}; only a new process helps");
            publish_failed(&pipeline, &host, &reason);
            PipelineEnd::Failed(reason)
        }
    }
}

/// Shows every second that the supervisor takes its turns, for ever.
async fn beat(host: &Host, heart: &str) {
    loop {
        host.status.beat(heart, host.runtime.clock().now());
        host.runtime.sleep(LOOK).await;
    }
}

async fn supervise_to_its_end(plan: Plan, host: Host, stop: CancellationToken) -> PipelineEnd {
    let parts = match Parts::build(&plan, &host) {
        Ok(parts) => parts,
        Err(error) => return cannot_start(&plan, &host, error.to_string()),
    };
    let memory = plan.memory.unwrap_or(host.memory);
    let metrics = host.metrics.pipeline(&plan.name);
    metrics.memory_limit.set(i64::try_from(memory).unwrap_or(i64::MAX));
    let troubles = Troubles::default();
    let sink_names = parts
        .all_sinks(&plan)
        .flat_map(|(stage, part)| std::iter::repeat_n(Arc::clone(&stage.name), part.instances.len()))
        .collect();
    let progress = Progress::new(
        Arc::clone(&plan.name),
        host.runtime.clock(),
        host.status.clone(),
        metrics,
        troubles.clone(),
        plan.commit_interval,
        sink_names,
    );
    let patient = plan.sinks.iter().filter(|stage| stage.on_error == OnError::Retry);
    let quarantine = Quarantine::new(patient.map(|stage| Arc::clone(&stage.name)).collect());
    let (reports, mailbox) = Reports::mailbox();
    let (requests, request_box) = EpochRequests::channel();
    let budget = Budget::new(memory);
    let mut pipeline = Supervised {
        plan,
        host,
        parts,
        budget,
        reports,
        mailbox,
        requests,
        request_box,
        troubles,
        progress: Arc::new(progress),
        quarantine,
        run: 0,
        next_epoch: 1,
        lost: 0,
        failed_at: None,
        stop,
    };
    let bottleneck = Bottleneck::of(&pipeline.plan, &pipeline.parts);
    let look =
        look_every_second(pipeline.host.clone(), Arc::clone(&pipeline.progress), pipeline.budget.clone(), bottleneck);
    let end = tokio::select! {
        biased;
        end = pipeline.run_for_ever() => end,
        never = look => match never {},
    };
    let (state, reason) = match &end {
        PipelineEnd::Finished => (PipelineState::Finished, None),
        PipelineEnd::Stopped => (PipelineState::Stopped, None),
        PipelineEnd::Failed(reason) => (PipelineState::Failed, Some(reason.clone())),
    };
    let stage = pipeline.failed_at.take().filter(|_| state == PipelineState::Failed);
    pipeline.progress.enter(state, stage.map(|stage| stage.to_string()), reason);
    pipeline.progress.look(pipeline.budget.used());
    let Supervised { host, parts, .. } = pipeline;
    let_go(&host, parts).await;
    end
}

/// Lets components go where it may block: a client waits for its threads, and they may wait for a broker.
async fn let_go(host: &Host, parts: Parts) {
    host.runtime.blocking(move || drop(parts)).await;
}

/// A pipeline whose components cannot be built never gets as far as a run.
fn cannot_start(plan: &Plan, host: &Host, reason: String) -> PipelineEnd {
    tracing::error!(pipeline = %plan.name, "{reason}; the pipeline has not started and a person must act");
    publish_failed(&plan.name, host, &reason);
    PipelineEnd::Failed(reason)
}

/// Publishes the end of a pipeline that has no progress of its own to publish it, on top of what is known of it.
fn publish_failed(pipeline: &Arc<str>, host: &Host, reason: &str) {
    host.metrics.pipeline(pipeline).stuck_at("", "failed");
    let known = host.status.get(pipeline);
    host.status.publish(PipelineStatus {
        pipeline: Arc::clone(pipeline),
        state: PipelineState::Failed,
        since: host.runtime.clock().wall().as_secs_f64(),
        stage: None,
        reason: Some(reason.to_owned()),
        last_commit: known.as_ref().and_then(|known| known.last_commit),
        epoch: known.as_ref().map_or(0, |known| known.epoch),
        restarts: known.map_or(0, |known| known.restarts),
    });
}

impl Supervised {
    async fn run_for_ever(&mut self) -> PipelineEnd {
        let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
        let mut failures = 0;
        self.progress.enter(PipelineState::Starting, None, None);
        loop {
            self.run += 1;
            let epoch_before = self.progress.epoch();
            let (stage, failure) = match self.run_once().await {
                Ok(RunEnd::Finished) => return self.finish().await,
                Ok(RunEnd::Stopped) => return PipelineEnd::Stopped,
                Err(failed) => failed,
            };
            let stage = match failure {
                Failure::Stalled(_) => self.progress.take_stalled_at(),
                _ => stage,
            };
            let place = stage.as_ref().map_or_else(String::new, |stage| format!("`{stage}`: "));
            let reason = format!("{place}{}", failure.text());
            self.tell_what_is_lost();
            let was_calm = self.progress.is_calm();
            self.progress.restarted(failure.reason());
            if let Failure::Fatal(_) = failure {
                self.abort_transaction().await;
                self.failed_at = stage;
                return self.give_up(reason);
            }
            let name = stage.as_ref().map(ToString::to_string);
            self.progress.enter(PipelineState::BackingOff, name.clone(), Some(reason.clone()));
            self.abort_transaction().await;
            if let Err(error) = self.rebuild_after(&failure, stage.as_deref()).await {
                return self.give_up(error.to_string());
            }
            // Asked in any case: what commits meanwhile may be of other partitions than the record that is looked for.
            let comes_closer = self.narrows(&failure, &reason);
            if comes_closer || was_calm || self.progress.epoch() > epoch_before {
                // Nothing is gained by waiting longer.
                backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
                failures = 0;
            }
            failures += 1;
            let mut wait = backoff.next();
            if failures >= BUDGET {
                wait = BACKOFF.1;
                self.progress.is_failing(name, &reason);
            }
            let wait = self.host.runtime.jittered(wait);
            tracing::warn!(
                pipeline = %self.plan.name,
                run = self.run,
                "{reason}; going back to the last commit and trying again in {wait:?}"
            );
            let runtime = self.host.runtime.clone();
            tokio::select! {
                biased;
                // Nothing is under way: the last commit is all there is.
                () = self.stop.cancelled() => return PipelineEnd::Stopped,
                () = runtime.sleep(wait) => {}
            }
            self.progress.start_again();
        }
    }

    /// All is committed. What waited for the end, as a growing file does for its final name, is done now.
    async fn finish(&self) -> PipelineEnd {
        match self.parts.ledger.participants.finish().await {
            Ok(()) if self.lost > 0 => self.give_up(format!(
                "its sources are read to their ends, and up to {} records of them were lost on the way",
                self.lost
            )),
            Ok(()) => PipelineEnd::Finished,
            Err(error) => self.give_up(error),
        }
    }

    /// What was under way is read again, unless its source cannot do that.
    fn tell_what_is_lost(&mut self) {
        let cannot_replay = |stage: &&SourceStage| stage.compiled.traits.keeps_positions == KeepsPositions::Nowhere;
        let Some(source) = self.plan.sources.iter().find(cannot_replay) else { return };
        let records = self.quarantine.under_way();
        if records == 0 {
            return;
        }
        self.lost += records;
        self.host.metrics.stage(&self.plan.name, &source.name, "source", source.kind).discarded("lost", records);
        tracing::error!(
            pipeline = %self.plan.name,
            component = %source.name,
            records,
            "up to so many records that were under way are lost: the source cannot read them again"
        );
    }

    /// A person must act, outside of any run.
    fn give_up(&self, reason: String) -> PipelineEnd {
        tracing::error!(pipeline = %self.plan.name, "{reason}; the pipeline has stopped and a person must act");
        PipelineEnd::Failed(reason)
    }

    /// Draws what follows for the records that were under way. Whether the search for the cause comes closer.
    fn narrows(&self, failure: &Failure, reason: &str) -> bool {
        let pipeline = &self.plan.name;
        match self.quarantine.failed(failure) {
            Finding::Nothing => false,
            Finding::Narrowed(limit) => {
                tracing::warn!(%pipeline, "it failed again on the same records; now at most {limit} of them travel together");
                true
            }
            Finding::Struck => true,
            Finding::Condemned(suspect) => {
                tracing::error!(
                    %pipeline,
                    component = %suspect.stage,
                    "the record at offset {} of {} is refused: it alone makes the stage fail each time ({reason})",
                    suspect.offset,
                    suspect.partition
                );
                true
            }
        }
    }

    /// Builds anew what panicked: what it knew may be wrong. Transforms are new in each run.
    async fn rebuild_after(&mut self, failure: &Failure, stage: Option<&str>) -> Result<(), BuildError> {
        let panicked = match failure {
            Failure::Panicked(_) => true,
            Failure::AtWork(AtWork { panicked, .. }) => {
                *panicked && stage.is_some_and(|stage| self.parts.is_sink(&self.plan, stage))
            }
            _ => false,
        };
        if panicked {
            let old = self.parts.rebuild(&self.plan, &self.host)?;
            let_go(&self.host, old).await;
        }
        Ok(())
    }

    async fn abort_transaction(&self) {
        if let Some(transaction) = &self.parts.ledger.transaction
            && let Err(error) = caught(async { transaction.abort().await }).await.unwrap_or_else(Err)
        {
            tracing::warn!(pipeline = %self.plan.name, "cannot abort the open transaction: {error}");
        }
    }

    /// One run, from the last commit to its end.
    async fn run_once(&mut self) -> Result<RunEnd, (Option<Arc<str>>, Failure)> {
        self.troubles.clear_all();
        self.quarantine.begin_run();
        let shared = Shared {
            run: self.run,
            runtime: self.host.runtime.clone(),
            budget: self.budget.clone(),
            reports: self.reports.clone(),
            requests: self.requests.clone(),
            troubles: self.troubles.clone(),
            commits: Commits::default(),
            pace: Pace::new(self.budget.clone(), self.plan.lanes, self.host.runtime.clock()),
            quarantine: self.quarantine.clone(),
        };

        // A request that was made of an earlier run is answered by dropping it.
        while self.request_box.try_recv().is_ok() {}
        tokio::select! {
            biased;
            prepared = caught(prepare(&self.plan, &self.parts, &shared)) => {
                prepared.unwrap_or_else(|panicked| Err((None, Failure::Panicked(panicked))))?;
            }
            () = self.stop.cancelled() => return Ok(RunEnd::Stopped),
        }
        self.progress.enter(PipelineState::Running, None, None);

        let wired = wire(&self.plan, &self.parts, &shared);
        let commands = wired.commands.clone();
        let mut tasks = spawn(&self.host, wired);
        let coordinator = Coordinator {
            run: self.run,
            next_epoch: &mut self.next_epoch,
            interval: self.plan.commit_interval,
            sinks: self.parts.all_sinks(&self.plan).map(|(_, part)| part.instances.len()).sum(),
            runtime: self.host.runtime.clone(),
            sources: commands,
            reports: &mut self.mailbox,
            requests: &mut self.request_box,
            ledger: &self.parts.ledger,
            commits: shared.commits.clone(),
            progress: &self.progress,
            quarantine: self.quarantine.clone(),
            stop: self.stop.clone(),
        };
        let ended = tokio::select! {
            biased;
            failed = tasks.first_failure() => Err((Some(failed.0), failed.1)),
            ended = caught(coordinator.run()) => {
                ended.unwrap_or_else(|panicked| Err(Failure::Panicked(panicked))).map_err(|failure| (None, failure))
            }
        };
        let ended = match ended {
            Err((Some(stage), failure @ Failure::Rewind(_))) if self.parts.is_sink(&self.plan, &stage) => {
                // What fails first need not be the cause: another sink may know of a record.
                tokio::select! {
                    biased;
                    (stage, cause) = tasks.named_cause() => Err((Some(stage), cause)),
                    () = self.host.runtime.sleep(stage::CAUSE_WITHIN) => Err((Some(stage), failure)),
                }
            }
            ended => ended,
        };
        let root = tasks.tear_down().await;
        // A coordinator or a stage that lost its neighbour has nothing to tell: the neighbour has.
        match (ended, root) {
            (Err((_, Failure::Closed)), Some((stage, failure))) => Err((Some(stage), failure)),
            (ended, _) => ended,
        }
    }
}

/// Before anything is read: fence earlier processes, open the sinks, know the positions. Here a pipeline is parked as
/// long as the other side of its sinks does not answer: nothing is open and nothing is read, and it moves on by itself.
async fn prepare(plan: &Plan, parts: &Parts, shared: &Shared) -> Result<(), (Option<Arc<str>>, Failure)> {
    let contexts = parts.all_sinks(plan).map(|(stage, part)| (sink_context(stage, part, shared), part));
    let contexts: Vec<_> = contexts.collect();
    if let Some((cx, _)) = contexts.first() {
        let mut retry = stage::Retry::new(cx);
        while let Err(error) = parts.ledger.fence().await {
            match error {
                FenceError::Retry(why) => retry.wait(&why).await,
                FenceError::Fatal(why) => return Err((None, Failure::Fatal(why))),
            }
        }
    }
    for (cx, part) in contexts {
        for instance in &part.instances {
            let mut sink = instance.lock().await;
            stage::open(&cx, &mut sink).await.map_err(|failure| (Some(Arc::clone(&cx.name)), failure))?;
        }
    }
    parts.ledger.load().await.map_err(|error| (None, Failure::Rewind(error)))
}

fn sink_context(stage: &SinkStage, part: &SinkPart, shared: &Shared) -> StageContext {
    StageContext {
        name: Arc::clone(&stage.name),
        run: shared.run,
        runtime: shared.runtime.clone(),
        metrics: part.metrics.clone(),
        budget: shared.budget.clone(),
        reports: shared.reports.clone(),
        troubles: shared.troubles.clone(),
        commits: shared.commits.clone(),
        quarantine: shared.quarantine.clone(),
    }
}

/// Publishes the pipeline's health, for ever.
async fn look_every_second(
    host: Host,
    progress: Arc<Progress>,
    budget: Budget,
    mut bottleneck: Bottleneck,
) -> Infallible {
    let metrics = host.metrics.pipeline(&progress.pipeline());
    loop {
        host.runtime.sleep(LOOK).await;
        progress.look(budget.used());
        bottleneck.look(&metrics);
    }
}

/// The spawned stages of a run.
struct Tasks {
    running: FuturesUnordered<Running>,
}

/// One spawned stage.
struct Running {
    stage: Arc<str>,
    handle: JoinHandle<Result<(), Failure>>,
}

impl Future for Running {
    type Output = (Arc<str>, Option<Failure>);

    fn poll(mut self: std::pin::Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<Self::Output> {
        let failure = std::task::ready!(self.handle.poll_unpin(cx)).map_or_else(
            |error| error.try_into_panic().ok().map(|panic| Failure::Panicked(panic_text(&*panic))),
            Result::err,
        );
        std::task::Poll::Ready((Arc::clone(&self.stage), failure))
    }
}

fn spawn(host: &Host, wired: Wired) -> Tasks {
    let running = FuturesUnordered::new();
    let spawn = |stage: Arc<str>, handle| running.push(Running { stage, handle });
    for task in wired.sinks {
        spawn(Arc::clone(&task.cx.name), host.runtime.spawn(task.run()));
    }
    for task in wired.transforms {
        spawn(Arc::clone(&task.cx.name), host.runtime.spawn(task.run()));
    }
    for task in wired.sources {
        spawn(Arc::clone(&task.cx.name), host.runtime.spawn(task.run()));
    }
    Tasks { running }
}

impl Tasks {
    /// The first stage that fails by itself. Those that only lost a neighbour are passed over; they are remembered by
    /// nobody, for the neighbour's own failure follows.
    async fn first_failure(&mut self) -> (Arc<str>, Failure) {
        let mut orphan = None;
        while let Some((stage, failure)) = self.running.next().await {
            match failure {
                Some(Failure::Closed) | None => orphan = Some(stage),
                Some(failure) => return (stage, failure),
            }
        }
        (orphan.unwrap_or_default(), Failure::Closed)
    }

    /// The first stage that fails at work on records.
    async fn named_cause(&mut self) -> (Arc<str>, Failure) {
        while let Some((stage, failure)) = self.running.next().await {
            if let Some(failure @ Failure::AtWork(_)) = failure {
                return (stage, failure);
            }
        }
        std::future::pending().await
    }

    /// Ends all stages, waits until they are gone, and returns what one of them failed of, if any did.
    async fn tear_down(mut self) -> Option<(Arc<str>, Failure)> {
        for task in &self.running {
            task.handle.abort();
        }
        let mut root = None;
        while let Some((stage, failure)) = self.running.next().await {
            if let Some(failure) = failure.filter(|failure| *failure != Failure::Closed) {
                root.get_or_insert((stage, failure));
            }
        }
        root
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::super::testing::{Deed, Id, Kit, Run};
    use super::*;
    use crate::codecs::Codec;
    use crate::record::{BatchBuilder, Draft, Partition};

    fn pass(_: &str, _: Id) -> Deed {
        Deed::Pass
    }

    /// A pipeline of many records, whose sinks' other side can go away.
    fn long(transactional: bool) -> Kit {
        Kit { transactional, records: 2_000, pause: Duration::from_millis(10), ..Kit::new(pass) }
    }

    fn seconds_stuck(run: &Run) -> f64 {
        let text = run.host.metrics.text();
        let line = text.lines().find(|line| line.starts_with("weir_pipeline_stuck_seconds{pipeline=\"p\"}"));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).expect("the series is there")
    }

    async fn rests(run: &Run, time: Duration) {
        run.host.runtime.sleep(time).await;
    }

    #[tokio::test(start_paused = true)]
    async fn rule_10_a_transaction_whose_sink_is_away_is_aborted_in_time_parked_and_moves_on_by_itself() {
        let kit = long(true);
        let run = kit.start(1);
        run.until("it commits", |_| kit.world.commits.load(Ordering::Relaxed) > 1).await;
        kit.world.away.store(true, Ordering::Relaxed);
        rests(&run, kit.longest_open + Duration::from_secs(2)).await;
        for _ in 0..600 {
            rests(&run, Duration::from_secs(1)).await;
            assert!(!kit.world.open.load(Ordering::Relaxed), "nothing is open while it is parked");
        }
        let (fences, status) = (kit.world.fences.load(Ordering::Relaxed), run.status());
        assert!(fences < 150, "it asks {fences} times in ten minutes");
        assert_eq!((status.state, status.stage.as_deref()), (PipelineState::Stuck, Some("out")));
        assert_eq!(status.reason.as_deref(), Some("the broker is away"));
        assert!(status.restarts <= 2, "it is parked, and not restarted: {}", status.restarts);
        assert!(seconds_stuck(&run) > 590.0, "{}", seconds_stuck(&run));
        let named = "weir_pipeline_stuck{component=\"out\",pipeline=\"p\",reason=\"waits\"} 1";
        assert!(run.host.metrics.text().contains(named), "{}", run.host.metrics.text());
        assert_eq!(run.host.status.stopped_heart(run.host.runtime.clock().now()), None, "the process is live");

        kit.world.away.store(false, Ordering::Relaxed);
        run.until("it is ready again", |run| run.status().state.is_ready()).await;
        let metrics = run.host.metrics.clone();
        assert_eq!(run.end().await.end, PipelineEnd::Finished);
        assert!(!metrics.text().contains("weir_pipeline_stuck{"), "{}", metrics.text());
        let came = kit.world.of("out");
        assert_eq!(came.len(), kit.all_but(&[]).len(), "each once");
        for number in 0..kit.partitions {
            let offsets = came.iter().filter(|id| id.0 == number).map(|id| id.1);
            assert!(offsets.is_sorted(), "in order");
        }
        assert_eq!(kit.world.built.load(Ordering::Relaxed), 1, "the source never left its group");
    }

    #[tokio::test(start_paused = true)]
    async fn rule_4_with_a_dead_sink_memory_stays_flat_and_it_moves_on_by_itself() {
        let kit = Kit { batch: 500, records: 20_000, ..long(false) };
        let run = kit.start(2);
        run.until("records come out", |_| !kit.world.of("out").is_empty()).await;
        kit.world.away.store(true, Ordering::Relaxed);
        rests(&run, Duration::from_secs(60)).await;
        let used = || run.host.metrics.pipeline("p").memory_used.get();
        let before = used();
        assert!(before <= run.host.metrics.pipeline("p").memory_limit.get() + (200 << 10), "{before}");
        rests(&run, Duration::from_mins(60)).await;
        assert_eq!(used(), before, "nothing more is read");
        let status = run.status();
        assert_eq!((status.state, status.restarts), (PipelineState::Stuck, 0));
        assert!(seconds_stuck(&run) > 3_500.0);
        kit.world.away.store(false, Ordering::Relaxed);
        assert_eq!(run.end().await.end, PipelineEnd::Finished);
        assert_eq!(kit.world.of("out").len(), kit.all_but(&[]).len(), "each once: nothing was restarted");
    }

    /// What the budget is charged for a batch of the source.
    fn batch_bytes(records: i64) -> u64 {
        let origin = Partition { source: "in".into(), topic: "t".into(), number: 0 };
        let mut built = BatchBuilder::new(Arc::new(origin), 64, 8);
        for offset in 0..records {
            built.push_copy(Draft { body: offset.to_string().as_bytes(), offset, ..Draft::default() });
        }
        let mut charged = 0;
        Codec::Raw.decode(built.finish(), &mut Vec::new()).charge(|bytes| {
            charged = bytes;
            Budget::new(0).charge(bytes, None)
        });
        charged
    }

    #[tokio::test(start_paused = true)]
    async fn rule_4_with_one_slow_lane_memory_holds_and_the_others_go_on() {
        let slow = |stage: &str, id: Id| match stage {
            "out" if id.0 == 0 => Deed::Slow(Duration::from_micros(1_300)),
            _ => Deed::Pass,
        };
        // So large that memory is full long before the channels are.
        let batch = 8_000;
        let kit = Kit { lanes: 3, batch, records: 10 * batch, ..Kit::new(slow) };
        let run = kit.start(8);
        let metrics = run.host.metrics.pipeline("p");
        let one = i64::try_from(batch_bytes(batch)).unwrap();
        let (mut most, mut furthest) = (0, 0);
        let limit = i64::try_from(run.host.memory).unwrap();
        run.until("records come out", |_| !kit.world.of("out").is_empty()).await;
        while !run.status().state.is_over() {
            // It is told every second.
            rests(&run, LOOK).await;
            let used = metrics.memory_used.get();
            assert!(used <= limit + 3 * one, "{used} bytes of {limit}, in batches of {one}");
            most = most.max(used);
            let all = kit.world.of("out");
            let came = |number| all.iter().filter(|id| id.0 == number).count();
            furthest = furthest.max(came(1).min(came(2)).saturating_sub(came(0)));
        }
        assert!(most >= limit, "memory was full: {most} of {limit}");
        assert!(furthest >= 8_000, "the others went on: they were ahead by {furthest} records");
        let outcome = run.end().await;
        assert_eq!((outcome.end, outcome.status.restarts), (PipelineEnd::Finished, 0));
        assert_eq!(kit.world.of("out").len(), kit.all_but(&[]).len(), "each once");
    }

    #[tokio::test(start_paused = true)]
    async fn rule_1_a_transactional_sink_is_silent_between_its_barrier_and_the_commit() {
        let kit = Kit { commit_takes: Duration::from_millis(700), ..long(true) };
        let outcome = kit.run(3).await;
        assert_eq!(outcome.end, PipelineEnd::Finished);
        assert!(kit.world.commits.load(Ordering::Relaxed) > 3);
        assert_eq!(kit.world.broken_silences.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn rule_6_an_epoch_that_is_too_slow_for_its_transaction_is_made_smaller_until_it_fits() {
        // One lane takes 8 s for what is under way at once, and the transaction may be open for 5 s.
        let slow = |stage: &str, id: Id| match stage {
            "out" if id.0 == 0 => Deed::Slow(Duration::from_millis(200)),
            _ => Deed::Pass,
        };
        let kit = Kit { transactional: true, lanes: 3, ..Kit::new(slow) };
        let outcome = kit.run(4).await;
        assert_eq!(outcome.end, PipelineEnd::Finished);
        assert_eq!(kit.world.letters(), [], "no record is to blame");
        assert_eq!(kit.world.of("out").len(), kit.all_but(&[]).len());
        assert!(outcome.status.restarts < 12, "{}", outcome.status.restarts);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pipeline_that_fails_again_and_again_is_failing_until_it_commits() {
        let kit = Kit { finite: false, ..Kit::new(pass) };
        kit.store.fail_next(1_000_000);
        let run = kit.start(5);
        let began = run.host.runtime.clock().wall().as_secs_f64();
        run.until("it is failing", |run| run.status().state == PipelineState::Failing).await;
        assert_eq!(run.status().restarts, u64::from(BUDGET));
        assert!(run.status().since - began < 2.0, "since the first failure");
        let restarts = run.status().restarts;
        rests(&run, Duration::from_mins(60)).await;
        let tries = run.status().restarts - restarts;
        assert!((120..=241).contains(&tries), "it tries at the longest wait: {tries} in an hour");
        for _ in 0..600 {
            rests(&run, Duration::from_millis(100)).await;
            let status = run.status();
            assert_eq!(status.state, PipelineState::Failing, "also while it tries");
            assert!(status.reason.is_some_and(|reason| reason.contains("told to fail")));
        }
        let failing = "weir_pipeline_stuck{component=\"\",pipeline=\"p\",reason=\"failing\"} 1";
        assert!(run.host.metrics.text().contains(failing), "{}", run.host.metrics.text());
        assert_eq!(run.host.status.stopped_heart(run.host.runtime.clock().now()), None, "the process is live");
        kit.store.fail_next(0);
        run.until("it runs", |run| run.status().state == PipelineState::Running).await;
        run.until("all is there", |_| kit.store.commits() > 0).await;
        assert!(seconds_stuck(&run) < 0.1);
        run.stop.cancel();
        assert_eq!(run.end().await.end, PipelineEnd::Stopped);
    }

    #[tokio::test(start_paused = true)]
    async fn a_supervisor_that_dies_says_so_and_its_heart_stops() {
        let kit = Kit { panics_when_built: true, ..Kit::new(pass) };
        let run = kit.start(6);
        let (host, clock) = (run.host.clone(), run.host.runtime.clock());
        let outcome = run.end().await;
        assert!(matches!(&outcome.end, PipelineEnd::Failed(why) if why.contains("the supervisor died")));
        assert_eq!(outcome.status.state, PipelineState::Failed);
        host.runtime.sleep(Duration::from_secs(90)).await;
        let (heart, _) = host.status.stopped_heart(clock.now()).expect("only a new process helps");
        assert_eq!(&*heart, "pipeline p");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pipeline_that_ends_in_order_leaves_no_heart_behind() {
        let stopped = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stopped);
        let deeds = move |stage: &str, _: Id| {
            let refuses = stage == "work" && seen.load(Ordering::Relaxed);
            if refuses { Deed::Refuse } else { Deed::Pass }
        };
        for refuse in [false, true] {
            stopped.store(refuse, Ordering::Relaxed);
            let kit = Kit { dead_letter: false, ..Kit::new(deeds.clone()) };
            let run = kit.start(7);
            let host = run.host.clone();
            let end = run.end().await.end;
            assert_eq!(matches!(end, PipelineEnd::Failed(_)), refuse, "{end:?}");
            host.runtime.sleep(Duration::from_mins(10)).await;
            assert_eq!(host.status.stopped_heart(host.runtime.clock().now()), None);
        }
    }
}
