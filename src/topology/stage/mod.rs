//! A stage: one supervised task around a component. Pull, work, push, settle.

mod sink;
mod source;
mod transform;

use std::sync::Arc;

use tokio::sync::mpsc;

use super::commits::Commits;
use super::failure::Failure;
use super::report::{Report, Reports};
use super::trouble::Troubles;
use crate::clock::{Clock, Instant};
use crate::observe::StageMetrics;
use crate::record::budget::Budget;
use crate::runtime::Runtime;

pub(super) use sink::{SinkTask, open};
pub(super) use source::{Command, SourceTask};
pub(super) use transform::TransformTask;

/// What every stage of a run is given.
#[derive(Debug, Clone)]
pub(super) struct StageContext {
    /// The stage's name.
    pub(super) name: Arc<str>,
    /// The run it belongs to.
    pub(super) run: u64,
    pub(super) runtime: Runtime,
    pub(super) metrics: StageMetrics,
    pub(super) budget: Budget,
    pub(super) reports: Reports,
    pub(super) troubles: Troubles,
    pub(super) commits: Commits,
}

impl StageContext {
    /// Tells the coordinator. It is there as long as the run is.
    pub(super) async fn report(&self, report: Report) -> Result<(), Failure> {
        self.reports.send(self.run, report).await
    }
}

/// The commands to the source stages of a run.
pub(super) type Commands = Vec<mpsc::Sender<Command>>;

/// Splits a stage's time into busy, idle and blocked. One reading of the clock for each change.
#[derive(Debug)]
pub(super) struct Stopwatch {
    clock: Clock,
    last: Instant,
}

/// What a stage did since the last reading.
#[derive(Debug, Clone, Copy)]
pub(super) enum Spent {
    Busy,
    Idle,
    Blocked,
}

impl Stopwatch {
    pub(super) fn start(clock: Clock) -> Self {
        Self { clock, last: clock.now() }
    }

    /// Counts the time since the last call.
    pub(super) fn lap(&mut self, metrics: &StageMetrics, spent: Spent) {
        let now = self.clock.now();
        let seconds = now.duration_since(self.last).as_secs_f64();
        self.last = now;
        match spent {
            Spent::Busy => metrics.busy_seconds.inc_by(seconds),
            Spent::Idle => metrics.idle_seconds.inc_by(seconds),
            Spent::Blocked => metrics.blocked_seconds.inc_by(seconds),
        }
    }
}
