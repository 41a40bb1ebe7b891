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
use super::quarantine::Quarantine;
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
    pub(super) quarantine: Quarantine,
    pub(super) stop: CancellationToken,
}

/// An epoch whose barriers are under way.
struct Epoch {
    number: u64,
    opened: Instant,
    /// By source; `None` until its barrier is in the channels.
    positions: Vec<Option<Positions>>,
    /// Partitions that went after its barriers were asked for: a barrier under way may still have their positions.
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
            hurry: false,
            wanted: false,
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
                    self.progress.stalls();
                    let error = "the transaction was open for half of its time-out and a sink has not answered";
                    return Err(Failure::Stalled(error.to_owned()));
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
        let hurry = state.hurry && state.moved.0.is_some();
        // The last barrier is the last.
        let wanted = state.wanted && state.ending.is_none();
        if !(last || interval_over || hurry || wanted || !state.close_requests.is_empty()) {
            return Ok(());
        }
        let number = *self.next_epoch;
        *self.next_epoch += 1;
        for source in &self.sources {
            tell(source, Command::Barrier(number)).await?;
        }
        state.last_barrier_sent |= last;
        state.moved = Moved::default();
        state.hurry = false;
        state.wanted = false;
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
            Report::Hurry => state.hurry = true,
            Report::Wanted => state.wanted = true,
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
                    epoch.lost.extend(partitions.iter().cloned());
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
            let records = epoch.arrivals.iter().map(|(_, records)| *records as u64).sum();
            match self.ledger.commit(epoch.number, positions.clone()).await {
                Outcome::Committed => self.quarantine.committed(records, &positions),
                Outcome::Aborted(error) => return Err(Failure::Rewind(error)),
                Outcome::Fenced(error) => return Err(Failure::Fatal(error)),
            }
            let now = self.runtime.clock().now();
            self.progress.committed(epoch.number, epoch.opened, &epoch.arrivals, now);
            if state.moved.0.is_none() && state.epochs.is_empty() {
                self.progress.nothing_waits();
            }
            // The next one cannot be open any longer: sinks were silent until now.
            state.open_since = state.moved.0.map(|_| now);
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
    /// Somebody waits until all that moved is committed.
    hurry: bool,
    /// A sink waits for a barrier.
    wanted: bool,
}

async fn tell(source: &mpsc::Sender<Command>, command: Command) -> Result<(), Failure> {
    source.send(command).await.map_err(|_| Failure::Closed)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::{Arc, Mutex};

    use futures::future::BoxFuture;

    use super::super::ledger::Account;
    use super::super::report::Reports;
    use super::super::trouble::Troubles;
    use super::*;
    use crate::component::KeepsPositions;
    use crate::delivery::{CommitPositions, LocalTransaction};
    use crate::observe::{Metrics, StatusBoard};
    use crate::record::Position;
    use crate::state::MemoryStore;

    /// What was committed, in order.
    #[derive(Debug, Default)]
    struct Commits(Mutex<Vec<Positions>>);

    impl CommitPositions for Commits {
        fn commit(&self, _: u64, positions: Positions) -> BoxFuture<'_, Result<(), String>> {
            self.0.lock().unwrap().push(positions);
            Box::pin(async { Ok(()) })
        }
    }

    fn partition(number: i32) -> Partition {
        Partition { source: "in".into(), topic: "t".into(), number }
    }

    /// A coordinator of one source and one sink, both played by the test.
    struct Bench {
        run: u64,
        reports: Reports,
        mailbox: mpsc::Receiver<Dated>,
        requests: mpsc::Sender<EpochRequest>,
        request_box: mpsc::Receiver<EpochRequest>,
        told: mpsc::Receiver<Command>,
        source: mpsc::Sender<Command>,
        commits: Arc<Commits>,
        stop: CancellationToken,
        runtime: Runtime,
    }

    impl Bench {
        fn new() -> Self {
            let (reports, mailbox) = Reports::mailbox();
            let (requests, request_box) = mpsc::channel(16);
            let (source, told) = mpsc::channel(16);
            let (commits, stop, runtime) = (Arc::default(), CancellationToken::new(), Runtime::system());
            Self { run: 2, reports, mailbox, requests, request_box, told, source, commits, stop, runtime }
        }

        /// Runs the coordinator beside a script.
        async fn run(&mut self, script: impl AsyncFnOnce(&mut Played)) -> Result<RunEnd, Failure> {
            let account = Account {
                source: "in".into(),
                keeps: KeepsPositions::Source,
                own: Some(Arc::clone(&self.commits) as _),
                committed: Mutex::default(),
            };
            let store = Arc::new(MemoryStore::new());
            let local = LocalTransaction::new("p", Arc::clone(&store) as _, Arc::default(), self.runtime.clone());
            let ledger = Ledger {
                scope: "p".into(),
                accounts: vec![account],
                store,
                transaction: None,
                participants: Arc::default(),
                local: Arc::new(local),
            };
            let metrics = Metrics::new().pipeline("p");
            let board = StatusBoard::default();
            let interval = Duration::from_secs(1);
            let clock = self.runtime.clock();
            let progress =
                Progress::new("p".into(), clock, board, metrics, Troubles::default(), interval, vec!["out".into()]);
            let mut next_epoch = 1;
            let coordinator = Coordinator {
                run: self.run,
                next_epoch: &mut next_epoch,
                interval,
                sinks: 1,
                runtime: self.runtime.clone(),
                sources: vec![self.source.clone()],
                reports: &mut self.mailbox,
                requests: &mut self.request_box,
                ledger: &ledger,
                commits: super::Commits::default(),
                progress: &progress,
                quarantine: Quarantine::default(),
                stop: self.stop.clone(),
            };
            let mut played = Played {
                run: self.run,
                reports: self.reports.clone(),
                requests: self.requests.clone(),
                told: &mut self.told,
            };
            let script = async {
                script(&mut played).await;
                self.stop.cancel();
                loop {
                    if let Command::Barrier(epoch) = played.told().await {
                        played.closes(epoch, &[]).await;
                        return;
                    }
                }
            };
            let (end, ()) = tokio::join!(coordinator.run(), script);
            end
        }
    }

    /// The source and the sink.
    struct Played<'a> {
        run: u64,
        reports: Reports,
        requests: mpsc::Sender<EpochRequest>,
        told: &'a mut mpsc::Receiver<Command>,
    }

    impl Played<'_> {
        async fn told(&mut self) -> Command {
            self.told.recv().await.expect("the coordinator runs")
        }

        async fn barrier(&mut self) -> u64 {
            match self.told().await {
                Command::Barrier(epoch) => epoch,
                other => panic!("{other:?}"),
            }
        }

        async fn says(&self, report: Report) {
            self.reports.send(self.run, report).await.unwrap();
        }

        async fn puts_the_barrier(&self, epoch: u64, positions: &[(i32, i64)]) {
            let positions = positions.iter().map(|&(number, at)| (partition(number), Position(at))).collect();
            self.says(Report::Barrier { source: 0, epoch, positions, arrivals: Vec::new() }).await;
        }

        async fn closes(&self, epoch: u64, positions: &[(i32, i64)]) {
            self.puts_the_barrier(epoch, positions).await;
            self.says(Report::Settled { sink: 0, epoch }).await;
        }
    }

    fn committed(bench: &Bench) -> Vec<BTreeMap<i32, i64>> {
        let commits = bench.commits.0.lock().unwrap();
        let numbers = commits.iter().map(|positions| positions.iter().map(|(at, to)| (at.number, to.0)).collect());
        numbers.collect()
    }

    #[tokio::test(start_paused = true)]
    async fn rule_2_answers_of_an_earlier_run_do_not_count() {
        let mut bench = Bench::new();
        let (reports, commits) = (bench.reports.clone(), Arc::clone(&bench.commits));
        let ended = bench.run(async |played: &mut Played| {
            played.says(Report::Moved).await;
            let epoch = played.barrier().await;
            // A sink of the run before answers late, for an epoch of the same number.
            reports.send(1, Report::Settled { sink: 0, epoch }).await.unwrap();
            played.puts_the_barrier(epoch, &[(0, 7)]).await;
            let nothing = tokio::time::timeout(Duration::from_mins(1), played.told()).await;
            assert!(nothing.is_err() && commits.0.lock().unwrap().is_empty(), "it waits for the sink of this run");
            played.says(Report::Settled { sink: 0, epoch }).await;
        });
        assert_eq!(ended.await, Ok(RunEnd::Stopped));
        assert_eq!(committed(&bench), [BTreeMap::from([(0, 7)])]);
    }

    #[tokio::test(start_paused = true)]
    async fn rule_11_a_revoke_closes_the_epoch_at_once_and_is_told_when_it_is_committed() {
        let mut bench = Bench::new();
        let clock = bench.runtime.clock();
        let ended = bench.run(async |played: &mut Played| {
            played.says(Report::Moved).await;
            let started = clock.now();
            let (done, answer) = blocking::sync_channel(1);
            played.requests.send(EpochRequest::Close { done }).await.unwrap();
            let epoch = played.barrier().await;
            assert_eq!(clock.now(), started, "without waiting for the interval");
            assert!(answer.try_recv().is_err(), "it is not committed yet");
            played.closes(epoch, &[(0, 5), (1, 6)]).await;
            // The next epoch is asked for only after the last one is dealt with.
            played.says(Report::Moved).await;
            let next = played.barrier().await;
            assert_eq!(answer.try_recv(), Ok(true));
            played.closes(next, &[(1, 9)]).await;
        });
        assert_eq!(ended.await, Ok(RunEnd::Stopped));
        assert_eq!(committed(&bench), [BTreeMap::from([(0, 5), (1, 6)]), BTreeMap::from([(1, 9)])]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_sink_that_wants_a_barrier_gets_one_though_nothing_has_moved() {
        let mut bench = Bench::new();
        let clock = bench.runtime.clock();
        let ended = bench.run(async |played: &mut Played| {
            let started = clock.now();
            played.says(Report::Wanted).await;
            let soon = tokio::time::timeout(Duration::from_mins(1), played.barrier());
            let epoch = soon.await.expect("an epoch is opened");
            assert_eq!(clock.now(), started);
            played.closes(epoch, &[]).await;
            let nothing = tokio::time::timeout(Duration::from_mins(1), played.told()).await;
            assert!(nothing.is_err(), "one, and no more");
        });
        assert_eq!(ended.await, Ok(RunEnd::Stopped));
    }

    #[tokio::test(start_paused = true)]
    async fn rule_11_partitions_that_stay_go_on_while_those_that_were_lost_are_forgotten() {
        let mut bench = Bench::new();
        let ended = bench.run(async |played: &mut Played| {
            played.says(Report::Moved).await;
            let epoch = played.barrier().await;
            played.puts_the_barrier(epoch, &[(0, 5), (1, 6)]).await;
            let (done, answer) = blocking::sync_channel(1);
            played.requests.send(EpochRequest::Lost { partitions: vec![partition(0)], done }).await.unwrap();
            assert!(matches!(played.told().await, Command::Forget(lost) if lost == [partition(0)]));
            played.says(Report::Settled { sink: 0, epoch }).await;
            played.says(Report::Moved).await;
            let next = played.barrier().await;
            assert_eq!(answer.try_recv(), Ok(true));
            played.closes(next, &[(1, 9)]).await;
        });
        assert_eq!(ended.await, Ok(RunEnd::Stopped));
        assert_eq!(committed(&bench), [BTreeMap::from([(1, 6)]), BTreeMap::from([(1, 9)])]);
    }
}
