//! The coordinator of epochs: one for each run of a pipeline.
//!
//! It opens an epoch by asking every source stage for a barrier, hears from every sink when all before the barrier is
//! durable, and then commits the positions. Epochs commit in order. A pipeline that commits in a transaction has one
//! epoch in flight, and its sinks are silent between their barrier and the commit; any other goes on writing while
//! epochs settle.

use std::collections::VecDeque;
use std::sync::mpsc as blocking;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::commits::Commits;
use super::failure::Failure;
use super::ledger::{Ledger, Outcome};
use super::progress::Progress;
use super::report::{Dated, Report};
use super::stage::{Command, Commands};
use crate::clock::Instant;
use crate::component::EpochRequest;
use crate::delivery::Positions;
use crate::record::Partition;
use crate::runtime::Runtime;

/// How many epochs may be open or settling at once where there is no transaction. More would not help: an epoch that
/// takes this many intervals waits for a slow sink, and so would the next.
const IN_FLIGHT: usize = 4;

/// How a run ended without a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RunEnd {
    /// All sources were read to their ends, and all of it is committed.
    Finished,
    /// The pipeline was asked to stop, and all that was read is committed.
    Stopped,
}

/// What the coordinator of a run is made of.
pub(super) struct Coordinator<'a> {
    pub(super) run: u64,
    /// The number of the next epoch. Epochs are numbered through all runs of a process.
    pub(super) next_epoch: &'a mut u64,
    pub(super) interval: Duration,
    pub(super) sinks: usize,
    pub(super) runtime: Runtime,
    pub(super) sources: Commands,
    pub(super) reports: &'a mut mpsc::Receiver<Dated>,
    pub(super) requests: &'a mut mpsc::Receiver<EpochRequest>,
    pub(super) ledger: &'a Ledger,
    /// The last committed epoch, for stages that wait for it.
    pub(super) commits: Commits,
    pub(super) progress: &'a Progress,
    pub(super) stop: CancellationToken,
}

/// An epoch whose barriers are under way.
struct Epoch {
    number: u64,
    opened: Instant,
    /// By source; `None` until its barrier is in the channels.
    positions: Vec<Option<Positions>>,
    /// Partitions that were lost while its barriers were under way: what a source has noted of them is void.
    lost: Vec<Partition>,
    settled: usize,
    arrivals: Vec<(Instant, usize)>,
    /// Who waits for its commit.
    waiting: Vec<blocking::SyncSender<bool>>,
}

impl Epoch {
    fn is_settled(&self, sinks: usize) -> bool {
        self.settled == sinks && self.positions.iter().all(Option::is_some)
    }
}

/// Whether records were pulled since the last barrier, and since when.
#[derive(Debug, Clone, Copy, Default)]
struct Moved(Option<Instant>);

impl Coordinator<'_> {
    /// Runs epochs until the sources end, the pipeline is asked to stop, or a commit fails.
    pub(super) async fn run(mut self) -> Result<RunEnd, Failure> {
        let mut state = State {
            epochs: VecDeque::new(),
            moved: Moved::default(),
            ended: vec![false; self.sources.len()],
            close_requests: Vec::new(),
            ending: None,
            last_barrier_sent: false,
            open_since: None,
        };
        let longest_open = self.ledger.transaction.as_ref().and_then(|transaction| transaction.longest_open());
        loop {
            self.open_if_due(&mut state).await?;
            if let Some(end) = state.ending
                && state.last_barrier_sent
                && state.epochs.is_empty()
            {
                return Ok(end);
            }
            let due = state.moved.0.map(|since| since + self.interval);
            let must_abort = longest_open.and_then(|longest| Some(state.open_since? + longest));
            let runtime = self.runtime.clone();
            tokio::select! {
                biased;
                () = self.stop.cancelled(), if state.ending.is_none() => {
                    state.ending = Some(RunEnd::Stopped);
                    for source in &self.sources {
                        tell(source, Command::Stop).await?;
                    }
                }
                request = self.requests.recv() => {
                    if let Some(request) = request {
                        self.heed(request, &mut state).await?;
                    }
                }
                report = self.reports.recv() => {
                    let Dated { run, report } = report.ok_or(Failure::Closed)?;
                    if run == self.run {
                        self.hear(report, &mut state);
                        self.commit_settled(&mut state).await?;
                    }
                }
                () = async { runtime.sleep_until(due.expect("guarded")).await },
                    if due.is_some() && self.has_room(&state) => {}
                // The sinks open again only when the other side answers; until then nothing is open and nothing is read.
                () = async { runtime.sleep_until(must_abort.expect("guarded")).await }, if must_abort.is_some() => {
                    let error = "the transaction was open for half of its time-out and a sink has not answered";
                    return Err(Failure::Rewind(error.to_owned()));
                }
            }
        }
    }

    /// Whether one more epoch may be opened.
    fn has_room(&self, state: &State) -> bool {
        let most = if self.ledger.transaction.is_some() { 1 } else { IN_FLIGHT };
        state.epochs.len() < most
    }

    /// Opens an epoch if records have moved for long enough, or somebody waits for it.
    async fn open_if_due(&mut self, state: &mut State) -> Result<(), Failure> {
        if !self.has_room(state) {
            return Ok(());
        }
        let now = self.runtime.clock().now();
        let last = state.ending.is_some() && !state.last_barrier_sent;
        let interval_over = state.moved.0.is_some_and(|since| now >= since + self.interval);
        if !(last || interval_over || !state.close_requests.is_empty()) {
            return Ok(());
        }
        let number = *self.next_epoch;
        *self.next_epoch += 1;
        for source in &self.sources {
            tell(source, Command::Barrier(number)).await?;
        }
        state.last_barrier_sent |= last;
        state.moved = Moved::default();
        state.epochs.push_back(Epoch {
            number,
            opened: now,
            positions: vec![None; self.sources.len()],
            lost: Vec::new(),
            settled: 0,
            arrivals: Vec::new(),
            waiting: std::mem::take(&mut state.close_requests),
        });
        Ok(())
    }

    fn hear(&self, report: Report, state: &mut State) {
        match report {
            Report::Moved => {
                let now = self.runtime.clock().now();
                state.moved.0.get_or_insert(now);
                state.open_since.get_or_insert(now);
                self.progress.records_wait(now);
            }
            Report::Ended { source } => {
                state.ended[source] = true;
                if state.ended.iter().all(|&ended| ended) {
                    state.ending.get_or_insert(RunEnd::Finished);
                }
            }
            Report::Barrier { source, epoch, mut positions, arrivals } => {
                if let Some(epoch) = state.epochs.iter_mut().find(|open| open.number == epoch) {
                    positions.retain(|partition, _| !epoch.lost.contains(partition));
                    epoch.positions[source] = Some(positions);
                    epoch.arrivals.extend(arrivals);
                }
            }
            Report::Settled { sink, epoch } => {
                self.progress.settled(sink, epoch);
                if let Some(epoch) = state.epochs.iter_mut().find(|open| open.number == epoch) {
                    epoch.settled += 1;
                }
            }
        }
    }

    async fn heed(&mut self, request: EpochRequest, state: &mut State) -> Result<(), Failure> {
        match request {
            // Always by a barrier: a batch may have been pulled of which no report has come yet.
            EpochRequest::Close { done } => state.close_requests.push(done),
            EpochRequest::Lost { partitions, done } => {
                if self.ledger.transaction.is_some() {
                    // What was read of them is in the open transaction, and somebody else reads it now.
                    return Err(Failure::Rewind("partitions were lost to another process".to_owned()));
                }
                for source in &self.sources {
                    tell(source, Command::Forget(partitions.clone())).await?;
                }
                for epoch in &mut state.epochs {
                    for positions in epoch.positions.iter_mut().flatten() {
                        positions.retain(|partition, _| !partitions.contains(partition));
                    }
                    epoch.lost.extend_from_slice(&partitions);
                }
                let _ = done.try_send(true);
            }
        }
        Ok(())
    }

    /// Commits every epoch that is settled, in order.
    async fn commit_settled(&mut self, state: &mut State) -> Result<(), Failure> {
        while state.epochs.front().is_some_and(|epoch| epoch.is_settled(self.sinks)) {
            let Some(epoch) = state.epochs.pop_front() else { break };
            let positions: Vec<Positions> = epoch.positions.into_iter().map(Option::unwrap_or_default).collect();
            match self.ledger.commit(epoch.number, positions).await {
                Outcome::Committed => {}
                Outcome::Aborted(error) => return Err(Failure::Rewind(error)),
                Outcome::Fenced(error) => return Err(Failure::Fatal(error)),
            }
            let now = self.runtime.clock().now();
            self.progress.committed(epoch.number, epoch.opened, &epoch.arrivals, now);
            if state.moved.0.is_none() && state.epochs.is_empty() {
                self.progress.nothing_waits();
            }
            state.open_since = state.moved.0;
            self.commits.set(epoch.number);
            for waiting in epoch.waiting {
                let _ = waiting.try_send(true);
            }
        }
        Ok(())
    }
}

/// What the coordinator of a run knows.
struct State {
    epochs: VecDeque<Epoch>,
    moved: Moved,
    ended: Vec<bool>,
    close_requests: Vec<blocking::SyncSender<bool>>,
    ending: Option<RunEnd>,
    last_barrier_sent: bool,
    /// Since when a transaction may be open.
    open_since: Option<Instant>,
}

async fn tell(source: &mpsc::Sender<Command>, command: Command) -> Result<(), Failure> {
    source.send(command).await.map_err(|_| Failure::Closed)
}
