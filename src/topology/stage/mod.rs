//! A stage: one supervised task around a component. Pull, work, push, settle.

mod sink;
mod source;
mod transform;

use std::sync::Arc;

use tokio::sync::mpsc;

use super::commits::Commits;
use super::failure::Failure;
use super::outputs::Rejects;
use super::quarantine::Quarantine;
use super::report::{Report, Reports};
use super::trouble::Troubles;
use crate::clock::{Clock, Instant};
use crate::observe::StageMetrics;
use crate::record::Batch;
use crate::record::budget::Budget;
use crate::runtime::Runtime;

pub(super) use sink::{CAUSE_WITHIN, Retry, SinkTask, open};
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
    pub(super) quarantine: Quarantine,
}

impl StageContext {
    /// Tells the coordinator. It is there as long as the run is.
    pub(super) async fn report(&self, report: Report) -> Result<(), Failure> {
        self.reports.send(self.run, report).await
    }

    /// The batches that the component works on: what it is known to fail on is refused instead, and of a record under way
    /// alone each that was made of it is worked on by itself.
    pub(super) async fn works_on(&self, batch: Batch, rejects: &Rejects) -> Result<Vec<Batch>, Failure> {
        let (batch, condemned) = self.quarantine.sift(&self.name, batch);
        rejects.handle(condemned).await?;
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        Ok(if batch.len() > 1 && self.quarantine.is_alone() { one_by_one(&batch) } else { vec![batch] })
    }
}

/// Each record of a batch as a batch.
pub(super) fn one_by_one(batch: &Batch) -> Vec<Batch> {
    batch.records().iter().map(|record| batch.with_records(vec![*record])).collect()
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
