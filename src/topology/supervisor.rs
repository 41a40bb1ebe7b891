//! One pipeline: runs it, and after a failure goes back to the last commit and runs it again.

use std::panic::AssertUnwindSafe;
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
use super::failure::Failure;
use super::host::Host;
use super::pace::Pace;
use super::parts::Parts;
use super::progress::Progress;
use super::report::{Dated, Reports};
use super::stage::{self, StageContext};
use super::trouble::Troubles;
use super::wiring::{Shared, Wired, wire};
use crate::component::{EpochRequest, EpochRequests};
use crate::delivery::FenceError;
use crate::observe::{PipelineState, PipelineStatus};
use crate::plan::Plan;
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
    progress: Progress,
    run: u64,
    next_epoch: u64,
    stop: CancellationToken,
}

/// Runs a pipeline until its sources end, it is asked to stop, or a person must act.
pub(super) async fn supervise(plan: Plan, host: Host, stop: CancellationToken) -> PipelineEnd {
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
        progress,
        run: 0,
        next_epoch: 1,
        stop,
    };
    let end = pipeline.run_for_ever().await;
    let (state, reason) = match &end {
        PipelineEnd::Finished => (PipelineState::Finished, None),
        PipelineEnd::Stopped => (PipelineState::Stopped, None),
        PipelineEnd::Failed(reason) => (PipelineState::Failed, Some(reason.clone())),
    };
    pipeline.progress.enter(state, None, reason);
    pipeline.progress.look(pipeline.budget.used());
    end
}

/// A pipeline whose components cannot be built never gets as far as a run.
fn cannot_start(plan: &Plan, host: &Host, reason: String) -> PipelineEnd {
    tracing::error!(pipeline = %plan.name, "{reason}; the pipeline has not started and a person must act");
    host.status.publish(PipelineStatus {
        pipeline: Arc::clone(&plan.name),
        state: PipelineState::Failed,
        since: host.runtime.clock().wall().as_secs_f64(),
        stage: None,
        reason: Some(reason.clone()),
        last_commit: None,
        epoch: 0,
        restarts: 0,
    });
    PipelineEnd::Failed(reason)
}

impl Supervised {
    async fn run_for_ever(&mut self) -> PipelineEnd {
        let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
        loop {
            self.run += 1;
            let epoch_before = self.progress.epoch();
            let (stage, failure) = match self.run_once().await {
                Ok(RunEnd::Finished) => return self.finish().await,
                Ok(RunEnd::Stopped) => return PipelineEnd::Stopped,
                Err(failed) => failed,
            };
            self.abort_transaction().await;
            let place = stage.as_ref().map_or_else(String::new, |stage| format!("`{stage}`: "));
            let reason = format!("{place}{}", failure.text());
            self.progress.restarted(failure.reason());
            if let Failure::Fatal(_) = failure {
                tracing::error!(pipeline = %self.plan.name, "{reason}; the pipeline has stopped and a person must act");
                return PipelineEnd::Failed(reason);
            }
            if let Failure::Panicked(_) = failure
                && let Err(error) = self.parts.rebuild(&self.plan, &self.host)
            {
                return PipelineEnd::Failed(error.to_string());
            }
            if self.progress.epoch() > epoch_before {
                backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
            }
            let wait = self.host.runtime.jittered(backoff.next());
            tracing::warn!(
                pipeline = %self.plan.name,
                run = self.run,
                "{reason}; going back to the last commit and trying again in {wait:?}"
            );
            self.progress.enter(PipelineState::BackingOff, stage.map(|stage| stage.to_string()), Some(reason.clone()));
            let runtime = self.host.runtime.clone();
            tokio::select! {
                biased;
                // Nothing is under way: the last commit is all there is.
                () = self.stop.cancelled() => return PipelineEnd::Stopped,
                () = runtime.sleep(wait) => {}
            }
        }
    }

    /// All is committed. What waited for the end, as a growing file does for its final name, is done now.
    async fn finish(&self) -> PipelineEnd {
        match self.parts.ledger.participants.finish().await {
            Ok(()) => PipelineEnd::Finished,
            Err(error) => PipelineEnd::Failed(error),
        }
    }

    async fn abort_transaction(&self) {
        if let Some(transaction) = &self.parts.ledger.transaction
            && let Err(error) =
                caught(transaction.abort()).await.unwrap_or_else(|panicked| Err(panicked.text().to_owned()))
        {
            tracing::warn!(pipeline = %self.plan.name, "cannot abort the open transaction: {error}");
        }
    }

    /// One run, from the last commit to its end.
    async fn run_once(&mut self) -> Result<RunEnd, (Option<Arc<str>>, Failure)> {
        self.progress.enter(PipelineState::Starting, None, None);
        self.troubles.clear_all();
        let shared = Shared {
            run: self.run,
            runtime: self.host.runtime.clone(),
            budget: self.budget.clone(),
            reports: self.reports.clone(),
            requests: self.requests.clone(),
            troubles: self.troubles.clone(),
            commits: Commits::default(),
            pace: Pace::new(self.budget.clone(), self.plan.lanes, self.host.runtime.clock()),
        };
        let look = look_every_second(&self.host, &self.progress, &self.budget, Bottleneck::of(&self.plan, &self.parts));
        tokio::pin!(look);

        // A request that was made of an earlier run is answered by dropping it.
        while self.request_box.try_recv().is_ok() {}
        tokio::select! {
            biased;
            prepared = caught(prepare(&self.plan, &self.parts, &shared)) => {
                prepared.unwrap_or_else(|panicked| Err((None, panicked)))?;
            }
            () = self.stop.cancelled() => return Ok(RunEnd::Stopped),
            () = &mut look => {}
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
            stop: self.stop.clone(),
        };
        let ended = tokio::select! {
            biased;
            failed = tasks.first_failure() => Err((Some(failed.0), failed.1)),
            ended = caught(coordinator.run()) => ended.and_then(|ended| ended).map_err(|failure| (None, failure)),
            () = &mut look => Err((None, Failure::Closed)),
        };
        let root = tasks.tear_down().await;
        // A coordinator or a stage that lost its neighbour has nothing to tell: the neighbour has.
        match (ended, root) {
            (Err((_, Failure::Closed)), Some((stage, failure))) => Err((Some(stage), failure)),
            (ended, _) => ended,
        }
    }
}

/// Before anything is read: fence earlier processes, open the sinks, know the positions.
async fn prepare(plan: &Plan, parts: &Parts, shared: &Shared) -> Result<(), (Option<Arc<str>>, Failure)> {
    let rewind = |error: String| (None, Failure::Rewind(error));
    parts.ledger.fence().await.map_err(|error| match error {
        FenceError::Retry(why) => (None, Failure::Rewind(why)),
        FenceError::Fatal(why) => (None, Failure::Fatal(why)),
    })?;
    for (stage, part) in parts.all_sinks(plan) {
        let cx = StageContext {
            name: Arc::clone(&stage.name),
            run: shared.run,
            runtime: shared.runtime.clone(),
            metrics: part.metrics.clone(),
            budget: shared.budget.clone(),
            reports: shared.reports.clone(),
            troubles: shared.troubles.clone(),
            commits: shared.commits.clone(),
        };
        for instance in &part.instances {
            let mut sink = instance.lock().await;
            stage::open(&cx, &mut sink).await.map_err(|failure| (Some(Arc::clone(&stage.name)), failure))?;
        }
    }
    parts.ledger.load().await.map_err(rewind)
}

/// Publishes the pipeline's health, for ever.
async fn look_every_second(host: &Host, progress: &Progress, budget: &Budget, mut bottleneck: Bottleneck) {
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

/// A panic outside the stages, in a commit for one, fails the run like a panic within a stage.
async fn caught<T>(work: impl Future<Output = T>) -> Result<T, Failure> {
    AssertUnwindSafe(work).catch_unwind().await.map_err(|panic| Failure::Panicked(panic_text(&*panic)))
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    // The text of a panic may quote a record, and this reason goes to the log and to `/ready`.
    tracing::debug!("a panic was caught: {}", text.unwrap_or("without a word"));
    "it panicked; the log names the place".to_owned()
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
