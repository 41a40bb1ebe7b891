//! Progress: health comes from epochs that commit, not from tasks that are alive.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
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
    /// Since when records wait for a commit, or since the last commit while they do.
    waiting_since: Option<Instant>,
    /// The last epoch that each sink has settled.
    settled: BTreeMap<usize, u64>,
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
        let inner = Mutex::new(Inner { status, waiting_since: None, settled: BTreeMap::new() });
        Self { clock, board, metrics, troubles, patience, sink_names, inner }
    }

    fn change(&self, change: impl FnOnce(&mut Inner)) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let before = inner.status.clone();
        change(&mut inner);
        if inner.status.state != before.state {
            inner.status.since = self.clock.wall().as_secs_f64();
        }
        if inner.status != before {
            self.board.publish(inner.status.clone());
        }
    }

    /// The pipeline has come to a new state.
    pub(super) fn enter(&self, state: PipelineState, stage: Option<String>, reason: Option<String>) {
        self.change(|inner| {
            inner.status.state = state;
            inner.status.stage = stage;
            inner.status.reason = reason;
        });
    }

    /// The pipeline went back to the last commit.
    pub(super) fn restarted(&self, reason: &str) {
        self.metrics.restart(reason);
        self.change(|inner| {
            inner.status.restarts += 1;
            inner.settled.clear();
        });
    }

    /// Records were pulled that are not committed.
    pub(super) fn records_wait(&self, now: Instant) {
        self.change(|inner| {
            inner.waiting_since.get_or_insert(now);
        });
    }

    /// All that was pulled is committed.
    pub(super) fn nothing_waits(&self) {
        self.change(|inner| inner.waiting_since = None);
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
            if inner.status.state == PipelineState::Stuck {
                inner.status.state = PipelineState::Running;
                inner.status.stage = None;
                inner.status.reason = None;
            }
        });
    }

    /// The pipeline's name.
    pub(super) fn pipeline(&self) -> Arc<str> {
        Arc::clone(&self.inner.lock().unwrap_or_else(PoisonError::into_inner).status.pipeline)
    }

    /// The last committed epoch.
    pub(super) fn epoch(&self) -> u64 {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).status.epoch
    }

    /// Looks whether records wait for too long, and if so at which stage. Called every second.
    pub(super) fn look(&self, memory_used: u64) {
        self.metrics.memory_used.set(i64::try_from(memory_used).unwrap_or(i64::MAX));
        let now = self.clock.now();
        self.change(|inner| {
            let state = inner.status.state;
            let waits = inner.waiting_since.is_some_and(|since| now.duration_since(since) >= self.patience);
            let trouble = self.troubles.first();
            match state {
                PipelineState::Running | PipelineState::Stuck if waits => {
                    inner.status.state = PipelineState::Stuck;
                    let (stage, reason) = trouble.unwrap_or_else(|| {
                        let behind = inner.settled.iter().min_by_key(|(_, epoch)| **epoch).map(|(&sink, _)| sink);
                        let stage = behind.and_then(|sink| self.sink_names.get(sink)).or(self.sink_names.first());
                        let name = stage.map_or_else(|| Arc::from(""), Arc::clone);
                        (name, "records wait and the stage has not settled them".to_owned())
                    });
                    inner.status.stage = Some(stage.to_string());
                    inner.status.reason = Some(reason);
                }
                PipelineState::Starting | PipelineState::Running => {
                    let (stage, reason) = trouble.unzip();
                    inner.status.stage = stage.map(|stage| stage.to_string());
                    inner.status.reason = reason;
                }
                _ => {}
            }
        });
    }
}
