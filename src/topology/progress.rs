//! Progress: health comes from epochs that commit, not from tasks that are alive.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::trouble::Troubles;
use crate::clock::{Clock, Instant};
use crate::observe::{PipelineMetrics, PipelineState, PipelineStatus, StatusBoard};

/// What a pipeline has done lately, and the status that follows from it. It outlives runs.
#[derive(Debug)]
pub(super) struct Progress {
    clock: Clock,
    board: StatusBoard,
    metrics: PipelineMetrics,
    troubles: Troubles,
    /// After this long without a commit although records wait, the pipeline is stuck.
    patience: Duration,
    sink_names: Vec<Arc<str>>,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    status: PipelineStatus,
    /// What it would be if it were not failing.
    phase: PipelineState,
    /// Since when it is in that phase.
    in_phase_since: Instant,
    /// Whether records wait for a commit that this run has pulled.
    waits: bool,
    /// Since when records wait for a commit, or since the last commit while they do; over the runs that fail meanwhile.
    waiting_since: Option<Instant>,
    /// When the last run failed.
    last_failure: Option<Instant>,
    /// Since when a source waits for something that is not a record.
    source_waits_since: Option<Instant>,
    /// The first failure after the last commit.
    failed_since: Option<Instant>,
    /// Whether it failed too often without a commit in between.
    failing: bool,
    /// The last epoch that each sink has settled.
    settled: BTreeMap<usize, u64>,
    /// At which stage the run stalled that ended last.
    stalled_at: Option<Arc<str>>,
    /// What metrics name as stuck: the stage and the reason.
    named: Option<(String, &'static str)>,
}

impl Progress {
    pub(super) fn new(
        pipeline: Arc<str>,
        clock: Clock,
        board: StatusBoard,
        metrics: PipelineMetrics,
        troubles: Troubles,
        interval: Duration,
        sink_names: Vec<Arc<str>>,
    ) -> Self {
        let status = PipelineStatus {
            pipeline,
            state: PipelineState::Starting,
            since: clock.wall().as_secs_f64(),
            stage: None,
            reason: None,
            last_commit: None,
            epoch: 0,
            restarts: 0,
        };
        board.publish(status.clone());
        let patience = (interval * 5).max(Duration::from_secs(10));
        let inner = Mutex::new(Inner {
            status,
            phase: PipelineState::Starting,
            in_phase_since: clock.now(),
            waits: false,
            waiting_since: None,
            source_waits_since: None,
            last_failure: None,
            failed_since: None,
            failing: false,
            settled: BTreeMap::new(),
            stalled_at: None,
            named: None,
        });
        Self { clock, board, metrics, troubles, patience, sink_names, inner }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Inner)) {
        let mut inner = self.inner();
        let before = inner.status.clone();
        change(&mut inner);
        let state = inner.status.state;
        if state != before.state {
            // Between states without progress it counts on from the last progress.
            let halted = match state {
                PipelineState::Failing => inner.failed_since,
                PipelineState::Stuck => inner.waiting_since.or(inner.source_waits_since),
                _ => None,
            };
            let now = self.clock.wall().as_secs_f64();
            let since = halted.map_or(now, |at| now - self.clock.now().duration_since(at).as_secs_f64());
            let goes_on = !before.state.is_ready() && !state.is_ready();
            inner.status.since = if goes_on { before.since.min(since) } else { since };
        }
        if inner.status != before {
            self.board.publish(inner.status.clone());
        }
    }

    /// The pipeline has come to a new state.
    pub(super) fn enter(&self, state: PipelineState, stage: Option<String>, reason: Option<String>) {
        let now = self.clock.now();
        self.change(|inner| {
            if inner.phase != state {
                inner.phase = state;
                inner.in_phase_since = now;
            }
            let is_end = matches!(state, PipelineState::Finished | PipelineState::Stopped | PipelineState::Failed);
            if inner.failing && !is_end {
                // Only a commit ends it; until then the last reason stands.
                inner.status.stage = stage.or(inner.status.stage.take());
                inner.status.reason = reason.or(inner.status.reason.take());
                return;
            }
            inner.status.state = state;
            inner.status.stage = stage;
            inner.status.reason = reason;
        });
        self.name_the_stage();
    }

    /// The pipeline starts after a failure, whose stage and reason stand until it runs.
    pub(super) fn start_again(&self) {
        let (stage, reason) = {
            let inner = self.inner();
            (inner.status.stage.clone(), inner.status.reason.clone())
        };
        self.enter(PipelineState::Starting, stage, reason);
    }

    /// The pipeline went back to the last commit.
    pub(super) fn restarted(&self, reason: &str) {
        self.metrics.restart(reason);
        let now = self.clock.now();
        self.change(|inner| {
            inner.status.restarts += 1;
            inner.failed_since.get_or_insert(now);
            inner.last_failure = Some(now);
            // Whether the next run has anything to read is not known: another process may have taken it over.
            inner.waits = false;
            inner.settled.clear();
        });
    }

    /// The pipeline has failed too often without a commit in between.
    pub(super) fn is_failing(&self, stage: Option<String>, reason: &str) {
        self.change(|inner| {
            inner.failing = true;
            inner.status.state = PipelineState::Failing;
            inner.status.stage = stage;
            inner.status.reason = Some(reason.to_owned());
        });
        self.name_the_stage();
    }

    /// Records were pulled that are not committed.
    pub(super) fn records_wait(&self, now: Instant) {
        self.change(|inner| {
            let rested = |failed: Instant| now.duration_since(failed) >= self.patience;
            if !inner.waits && inner.last_failure.is_some_and(rested) {
                inner.waiting_since = None;
            }
            inner.waits = true;
            inner.waiting_since.get_or_insert(now);
        });
    }

    /// All that was pulled is committed.
    pub(super) fn nothing_waits(&self) {
        self.change(|inner| {
            inner.waits = false;
            inner.waiting_since = None;
        });
    }

    /// A sink has settled an epoch.
    pub(super) fn settled(&self, sink: usize, epoch: u64) {
        self.change(|inner| {
            inner.settled.insert(sink, epoch);
        });
    }

    /// An epoch is committed.
    pub(super) fn committed(&self, epoch: u64, opened: Instant, arrivals: &[(Instant, usize)], now: Instant) {
        let wall = self.clock.wall().as_secs_f64();
        self.metrics.epoch_duration.observe(now.duration_since(opened).as_secs_f64());
        self.metrics.epoch_last_committed.set(wall);
        for (arrived, _) in arrivals {
            self.metrics.record_latency.observe(now.duration_since(*arrived).as_secs_f64());
        }
        self.change(|inner| {
            inner.waiting_since = Some(now);
            inner.status.epoch = epoch;
            inner.status.last_commit = Some(wall);
            inner.recover();
        });
        self.name_the_stage();
    }

    /// The pipeline's name.
    pub(super) fn pipeline(&self) -> Arc<str> {
        Arc::clone(&self.inner().status.pipeline)
    }

    /// The last committed epoch.
    pub(super) fn epoch(&self) -> u64 {
        self.inner().status.epoch
    }

    /// Looks whether records wait for too long, and if so at which stage. Called every second.
    pub(super) fn look(&self, memory_used: u64) {
        self.metrics.memory_used.set(i64::try_from(memory_used).unwrap_or(i64::MAX));
        let now = self.clock.now();
        self.change(|inner| {
            let is_long = |since: Instant| now.duration_since(since) >= self.patience;
            let waits = inner.waits && inner.waiting_since.is_some_and(is_long);
            let trouble = self.troubles.first();
            let source = self.troubles.first_source();
            inner.source_waits_since = source.is_some().then(|| inner.source_waits_since.unwrap_or(now));
            let source = source.filter(|_| inner.source_waits_since.is_some_and(is_long));
            match inner.phase {
                PipelineState::Running if waits => {
                    let (stage, reason) = trouble.unwrap_or_else(|| self.last_to_settle(inner));
                    inner.halt(&stage, reason);
                }
                PipelineState::Running if source.is_some() => {
                    let (stage, reason) = source.expect("guarded");
                    inner.halt(&stage, reason);
                }
                PipelineState::Starting if is_long(inner.in_phase_since) && trouble.is_some() => {
                    let (stage, reason) = trouble.expect("guarded");
                    inner.halt(&stage, reason);
                }
                // It runs, and nothing waits that a commit could show: what it failed of is over.
                PipelineState::Running if !inner.waits && is_long(inner.in_phase_since) => {
                    inner.recover();
                    inner.mention(trouble);
                }
                PipelineState::Starting | PipelineState::Running if !inner.failing => inner.mention(trouble),
                _ => {}
            }
        });
        self.name_the_stage();
    }

    /// The open epoch takes too long: notes which stage holds it up, while the stages know what they wait for.
    pub(super) fn stalls(&self) {
        let mut inner = self.inner();
        let stage = self.troubles.first().unwrap_or_else(|| self.last_to_settle(&inner)).0;
        inner.stalled_at = Some(stage);
    }

    /// At which stage the last run stalled.
    pub(super) fn take_stalled_at(&self) -> Option<Arc<str>> {
        self.inner().stalled_at.take()
    }

    /// Whether nothing has failed since there was progress last, or nothing to progress with.
    pub(super) fn is_calm(&self) -> bool {
        self.inner().failed_since.is_none()
    }

    /// The sink that is furthest behind.
    fn last_to_settle(&self, inner: &Inner) -> (Arc<str>, String) {
        let settled = |(sink, _): &(usize, &Arc<str>)| inner.settled.get(sink).copied().unwrap_or_default();
        let behind = self.sink_names.iter().enumerate().min_by_key(settled);
        let name = behind.map_or_else(|| Arc::from(""), |(_, name)| Arc::clone(name));
        (name, "records wait and the stage has not settled them".to_owned())
    }

    /// Tells by metrics at which stage there is no progress, since when and why.
    fn name_the_stage(&self) {
        let mut inner = self.inner();
        let reason = match inner.status.state {
            PipelineState::Running | PipelineState::Finished | PipelineState::Stopped => None,
            PipelineState::Starting => Some("starting"),
            PipelineState::Stuck => Some("waits"),
            PipelineState::BackingOff => Some("backing_off"),
            PipelineState::Failing => Some("failing"),
            PipelineState::Failed => Some("failed"),
        };
        let named = reason.map(|reason| (inner.status.stage.clone().unwrap_or_default(), reason));
        let seconds = named.as_ref().map_or(0.0, |_| self.clock.wall().as_secs_f64() - inner.status.since);
        self.metrics.stuck_seconds.set(seconds.max(0.0));
        if named == inner.named {
            return;
        }
        if let Some((stage, reason)) = &inner.named {
            self.metrics.not_stuck_at(stage, reason);
        }
        if let Some((stage, reason)) = &named {
            self.metrics.stuck_at(stage, reason);
        }
        inner.named = named;
    }
}

impl Inner {
    /// No progress, for this reason.
    fn halt(&mut self, stage: &str, reason: String) {
        if !self.failing {
            self.status.state = PipelineState::Stuck;
        }
        self.status.stage = Some(stage.to_owned());
        self.status.reason = Some(reason);
    }

    /// There is progress.
    fn recover(&mut self) {
        self.failed_since = None;
        self.failing = false;
        if matches!(self.status.state, PipelineState::Stuck | PipelineState::Failing) {
            self.status.state = self.phase;
            self.status.stage = None;
            self.status.reason = None;
        }
    }

    /// What a stage tries again, while there is no reason to worry yet.
    fn mention(&mut self, trouble: Option<(Arc<str>, String)>) {
        if trouble.is_none() && self.phase == PipelineState::Starting {
            // Whether the last failure is over is not known yet.
            return;
        }
        let (stage, reason) = trouble.unzip();
        self.status.stage = stage.map(|stage| stage.to_string());
        self.status.reason = reason;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::Metrics;

    /// Progress of a pipeline with a sink `out`, and its board.
    fn progress() -> (Progress, StatusBoard, Clock) {
        let (board, clock) = (StatusBoard::default(), Clock::system());
        let (metrics, interval) = (Metrics::new().pipeline("p"), Duration::from_secs(1));
        let progress =
            Progress::new("p".into(), clock, board.clone(), metrics, Troubles::default(), interval, vec!["out".into()]);
        (progress, board, clock)
    }

    #[test]
    fn a_source_that_waits_for_its_cluster_is_stuck_once_it_lasts() {
        let (mut progress, board, _) = progress();
        progress.patience = Duration::ZERO;
        progress.enter(PipelineState::Running, None, None);
        let waiting = progress.troubles.waiting(&"in".into());
        progress.look(0);
        assert_eq!(state(&board), PipelineState::Running);
        waiting.set("no broker answers".to_owned());
        progress.look(0);
        let status = board.get("p").unwrap();
        let told = (status.state, status.stage.as_deref(), status.reason.as_deref());
        assert_eq!(told, (PipelineState::Stuck, Some("in"), Some("no broker answers")));
        waiting.clear();
        progress.look(0);
        let status = board.get("p").unwrap();
        assert_eq!((status.state, status.reason), (PipelineState::Running, None));
        // It is told at once, and not called stuck before it lasts.
        progress.patience = Duration::from_hours(1);
        waiting.set("no broker answers".to_owned());
        progress.look(0);
        let status = board.get("p").unwrap();
        assert_eq!((status.state, status.stage.as_deref()), (PipelineState::Running, Some("in")));
    }

    fn state(board: &StatusBoard) -> PipelineState {
        board.get("p").unwrap().state
    }

    async fn seconds(progress: &Progress, seconds: u64) {
        for _ in 0..seconds {
            tokio::time::advance(Duration::from_secs(1)).await;
            progress.look(0);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn records_that_wait_for_too_long_are_said_to_be_stuck_until_a_commit() {
        let (progress, board, clock) = progress();
        progress.enter(PipelineState::Running, None, None);
        seconds(&progress, 60).await;
        assert_eq!(state(&board), PipelineState::Running, "nothing waits");
        let began = clock.now();
        progress.records_wait(began);
        seconds(&progress, 9).await;
        assert_eq!(state(&board), PipelineState::Running);
        seconds(&progress, 1).await;
        let status = board.get("p").unwrap();
        assert_eq!((status.state, status.stage.as_deref()), (PipelineState::Stuck, Some("out")));
        assert!(clock.wall().as_secs_f64() - status.since >= 10.0, "since the records wait");
        progress.committed(1, began, &[], clock.now());
        assert_eq!(state(&board), PipelineState::Running);
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_failure_a_run_that_has_nothing_to_read_is_not_stuck() {
        let (progress, board, clock) = progress();
        progress.enter(PipelineState::Running, None, None);
        progress.records_wait(clock.now());
        progress.restarted("error");
        progress.enter(PipelineState::BackingOff, None, None);
        progress.start_again();
        progress.enter(PipelineState::Running, None, None);
        // Another process has taken the partition over.
        seconds(&progress, 600).await;
        assert_eq!(state(&board), PipelineState::Running);
        progress.records_wait(clock.now());
        seconds(&progress, 5).await;
        assert_eq!(state(&board), PipelineState::Running, "what comes much later waits from then on");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pipeline_that_goes_back_again_and_again_is_stuck_since_the_first_time() {
        let (progress, board, clock) = progress();
        let mut seen = Vec::new();
        for _ in 0..8 {
            progress.enter(PipelineState::Running, None, None);
            progress.records_wait(clock.now());
            seconds(&progress, 3).await;
            seen.push(state(&board));
            progress.restarted("error");
            progress.enter(PipelineState::BackingOff, None, None);
            progress.start_again();
        }
        assert_eq!(seen.first(), Some(&PipelineState::Running));
        assert_eq!(seen.last(), Some(&PipelineState::Stuck));
    }
}
