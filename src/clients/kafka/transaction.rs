//! Outputs and offsets of an epoch in one Kafka transaction.
//!
//! A commit has four outcomes. It is done; or in doubt, and asked for again until it is known; or to be aborted, and the
//! pipeline rewinds; or the producer is of no more use, because it failed or another process took its identity. Then a
//! new producer of the same identity is made, which settles what the old one left open, and the offsets that the group
//! has committed tell whether the epoch happened.
//!
//! All of it blocks, so it runs on a thread of its own, one call after another: a new run is fenced only after the last
//! commit of the old one is known.

mod outcome;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, TrySendError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use futures::future::BoxFuture;
use rdkafka::error::RDKafkaErrorCode as Code;
use tokio::sync::oneshot;

use super::PipelineGroups;
use super::consumer::{GroupConsumer, GroupOffsets};
use super::errors::{Verdict, verdict};
use super::producer::{Live, SharedProducer};
use crate::clock::Instant;
use crate::component::SinkError;
use crate::delivery::{Committed, FenceError, SourceOffsets, Transaction};

/// How long one call may block before it is made again.
const CALL: Duration = Duration::from_secs(5);
/// How often the thread looks whether a transaction has been open for too long.
const WATCH: Duration = Duration::from_millis(250);
/// Between two tries of what must succeed.
const PAUSE: Duration = Duration::from_millis(100);
/// Between two looks whether the last records were acknowledged.
const ACK_PAUSE: Duration = Duration::from_micros(200);
/// How long a producer that was fenced waits for its group to tell whether another process has taken its place: a little
/// longer than from one heartbeat to the next. Whoever fences back at once would stop the other too.
const HEARTBEAT: Duration = if cfg!(test) { Duration::from_millis(100) } else { Duration::from_secs(4) };
/// Limits of topics older than this are asked for anew at the start of a run.
const LIMITS_AGE: Duration = Duration::from_secs(5);

/// The transaction of a pipeline.
pub(crate) struct KafkaTransaction {
    inner: Arc<Inner>,
    worker: Mutex<Option<Worker>>,
}

struct Worker {
    jobs: mpsc::SyncSender<Job>,
    thread: JoinHandle<()>,
}

enum Job {
    Fence(oneshot::Sender<Result<(), FenceError>>),
    Commit(Vec<SourceOffsets>, oneshot::Sender<Committed>),
    Abort(oneshot::Sender<Result<(), String>>),
}

struct Inner {
    producer: Arc<SharedProducer>,
    groups: Arc<PipelineGroups>,
    instance: String,
    phase: Mutex<Phase>,
    closing: AtomicBool,
    same_cluster: AtomicBool,
    /// Since when the broker may hold a transaction of this producer open.
    opened: Mutex<Option<Instant>>,
    /// Makes the thread panic.
    #[cfg(test)]
    panics: AtomicBool,
    fenced: Mutex<Option<Instant>>,
}

/// Where the transaction stands.
#[derive(Debug, Clone)]
enum Phase {
    /// The producer has not taken its identity yet.
    New,
    /// Nothing is open. The first write opens it.
    Idle,
    /// Records were written.
    Open { since: Instant },
    /// It is being committed or aborted: nothing may be written.
    Ending,
    /// This run can write no more.
    Over(String),
}

impl fmt::Debug for KafkaTransaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaTransaction").field("phase", &*self.inner.phase()).finish_non_exhaustive()
    }
}

impl KafkaTransaction {
    /// A transaction of a producer with the offsets of a pipeline's groups. `instance` is who this process is.
    pub(crate) fn new(producer: Arc<SharedProducer>, groups: Arc<PipelineGroups>, instance: &str) -> Self {
        let inner = Inner {
            producer,
            groups,
            instance: instance.to_owned(),
            phase: Mutex::new(Phase::New),
            closing: AtomicBool::new(false),
            same_cluster: AtomicBool::new(false),
            opened: Mutex::new(None),
            #[cfg(test)]
            panics: AtomicBool::new(false),
            fenced: Mutex::new(None),
        };
        Self { inner: Arc::new(inner), worker: Mutex::new(None) }
    }

    pub(crate) fn producer(&self) -> &Arc<SharedProducer> {
        &self.inner.producer
    }

    /// Opens the transaction unless it is open. To be called before each write; it returns the client to write with.
    pub(crate) fn begin(&self) -> Result<Arc<Live>, SinkError> {
        let mut phase = self.inner.phase();
        let why = match &*phase {
            Phase::Open { .. } | Phase::Idle => None,
            Phase::New => Some("the producer has not taken its identity yet"),
            Phase::Ending => Some("the transaction is being ended"),
            Phase::Over(why) => Some(why.as_str()),
        };
        if let Some(why) = why {
            return Err(SinkError::Outage(why.to_owned()));
        }
        let live = self.inner.producer.current().ok_or_else(|| SinkError::Outage("there is no producer".to_owned()))?;
        if matches!(&*phase, Phase::Idle) {
            if let Err(error) = live.raw().begin_transaction() {
                if error.fatal {
                    live.set_failed();
                }
                return Err(SinkError::Outage(format!("cannot begin a transaction: {error}")));
            }
            live.begin();
            let since = self.inner.now();
            *phase = Phase::Open { since };
            self.inner.note_opened(Some(since));
        }
        Ok(live)
    }

    /// Hands work to the thread, which is started by the first that comes.
    fn submit(&self, job: Job) -> Result<(), String> {
        let mut worker = self.worker.lock().unwrap_or_else(PoisonError::into_inner);
        if worker.is_none() {
            let (jobs, work) = mpsc::sync_channel(JOBS);
            let inner = Arc::clone(&self.inner);
            let thread = std::thread::Builder::new()
                .name("kafka-transaction".to_owned())
                .spawn(move || inner.run(&work))
                .map_err(|error| format!("cannot start a thread: {error}"))?;
            *worker = Some(Worker { jobs, thread });
        }
        match worker.as_ref().expect("started above").jobs.try_send(job) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(_)) => Err("the thread of the transaction is busy".to_owned()),
            Err(TrySendError::Disconnected(_)) => {
                // It has panicked. Whoever comes next finds a new one.
                *worker = None;
                Err(GONE.to_owned())
            }
        }
    }
}

/// How many jobs may wait: a run has one under way, and its end adds two.
const JOBS: usize = 8;
const GONE: &str = "the thread of the transaction has failed";

impl Transaction for KafkaTransaction {
    fn fence(&self) -> BoxFuture<'_, Result<(), FenceError>> {
        Box::pin(async move {
            self.inner.producer.refresh_limits(LIMITS_AGE).await;
            let (done, answer) = oneshot::channel();
            self.submit(Job::Fence(done))?;
            answer.await.unwrap_or_else(|_| Err(GONE.to_owned().into()))
        })
    }

    fn longest_open(&self) -> Option<Duration> {
        Some(self.inner.producer.transaction_timeout() / 2)
    }

    fn commit(&self, _: u64, offsets: Vec<SourceOffsets>) -> BoxFuture<'_, Committed> {
        Box::pin(async move {
            let (done, answer) = oneshot::channel();
            if let Err(error) = self.submit(Job::Commit(offsets, done)) {
                return Committed::Aborted(error);
            }
            answer.await.unwrap_or_else(|_| Committed::Aborted(GONE.to_owned()))
        })
    }

    fn abort(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            let (done, answer) = oneshot::channel();
            self.submit(Job::Abort(done))?;
            answer.await.unwrap_or_else(|_| Err(GONE.to_owned()))
        })
    }
}

impl Drop for KafkaTransaction {
    fn drop(&mut self) {
        self.inner.closing.store(true, Ordering::Release);
        let worker = self.worker.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Worker { jobs, thread }) = worker {
            drop(jobs);
            // A panic of that thread has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}

/// Offsets on their way, with the group that they belong to.
type Sent = Vec<(Arc<GroupConsumer>, GroupOffsets)>;

impl Inner {
    fn phase(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, phase: Phase) {
        *self.phase() = phase;
    }

    fn now(&self) -> Instant {
        self.producer.settings().runtime.clock().now()
    }

    fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// The identity by which the broker tells this producer's earlier lives from it.
    fn id(&self) -> Result<String, String> {
        let group = self.groups.first().ok_or("a transaction needs a `kafka` source, whose offsets it commits")?;
        Ok(format!("{}/{}/{}", group.name(), self.producer.settings().pipeline, self.instance))
    }

    fn run(&self, jobs: &mpsc::Receiver<Job>) {
        loop {
            let job = jobs.recv_timeout(WATCH);
            #[cfg(test)]
            assert!(!self.panics.swap(false, Ordering::AcqRel), "as a test has asked");
            // Nobody waits for an answer any more if its pipeline was torn down.
            match job {
                Ok(Job::Fence(done)) => drop(done.send(self.fence())),
                Ok(Job::Commit(offsets, done)) => drop(done.send(self.commit(&offsets))),
                Ok(Job::Abort(done)) => drop(done.send(self.abort())),
                Err(RecvTimeoutError::Timeout) => self.watch(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Ends a transaction that nobody has ended in time: the broker would abort it soon, which the producer does not
    /// survive, and until then readers of committed data wait. The coordinator comes first, at half the time-out.
    fn watch(&self) {
        let limit = self.producer.transaction_timeout() * 3 / 4;
        let mut phase = self.phase();
        let Phase::Open { since } = *phase else { return };
        if self.now().duration_since(since) < limit {
            return;
        }
        *phase = Phase::Ending;
        drop(phase);
        let why = format!(
            "the epoch did not close within {limit:?}, while the broker ends a transaction at {:?}",
            self.producer.transaction_timeout()
        );
        tracing::warn!(pipeline = %self.producer.settings().pipeline, "transaction aborted: {why}");
        if let Some(live) = self.producer.current() {
            let _ = self.abort_open(&live);
        }
        self.set(Phase::Over(why));
    }

    fn fence(&self) -> Result<(), FenceError> {
        let before = self.take_phase();
        let result = self.try_fence(&before);
        if result.is_ok() {
            self.note_opened(None);
        }
        self.set(match &result {
            Ok(()) => Phase::Idle,
            // The identity may not have been taken: the next try takes it.
            Err(_) => Phase::New,
        });
        result.and_then(|()| self.check_clusters())
    }

    /// Takes the phase out, so that nothing is written meanwhile.
    fn take_phase(&self) -> Phase {
        std::mem::replace(&mut *self.phase(), Phase::Ending)
    }

    fn try_fence(&self, before: &Phase) -> Result<(), FenceError> {
        let id = self.id()?;
        let live = match self.producer.current() {
            Some(live) if !live.has_failed() => live,
            Some(live) => {
                if live.raw().client().fatal_error().is_some_and(|(code, _)| is_fencing(code))
                    && let Some(why) = self.is_replaced()
                {
                    return Err(FenceError::Fatal(why));
                }
                return Ok(self.renew(&id)?);
            }
            None => return Ok(self.renew(&id)?),
        };
        // A topic takes more or less than was known, and only a new client has such batches and such a queue.
        if !self.producer.suits(&live) {
            return Ok(self.renew(&id)?);
        }
        match before {
            Phase::New => Ok(init(&live)?),
            Phase::Idle => Ok(()),
            Phase::Open { .. } | Phase::Ending | Phase::Over(_) => match self.abort_open(&live) {
                Ok(()) => Ok(()),
                Err(_) => Ok(self.renew(&id)?),
            },
        }
    }

    /// Makes a new producer of the same identity.
    fn renew(&self, id: &str) -> Result<(), String> {
        let live = self.producer.replace(Some(id))?;
        init(&live)
    }

    fn abort(&self) -> Result<(), String> {
        let before = self.take_phase();
        let result = match (&before, self.producer.current()) {
            (Phase::Open { .. }, Some(live)) => self.abort_open(&live),
            _ => Ok(()),
        };
        self.set(match before {
            Phase::New => Phase::New,
            _ => Phase::Over("the transaction was aborted".to_owned()),
        });
        result
    }

    /// Drops what is open. A producer that cannot is of no more use.
    fn abort_open(&self, live: &Live) -> Result<(), String> {
        let started = self.now();
        loop {
            match live.raw().abort_transaction(CALL) {
                Ok(()) => break,
                // Nothing was open.
                Err(error) if error.code == Code::State && !error.fatal => break,
                Err(error)
                    if error.retriable && !self.is_closing() && self.now().duration_since(started) < 4 * CALL => {}
                Err(error) => {
                    live.set_failed();
                    return Err(format!("cannot abort the transaction: {error}"));
                }
            }
        }
        self.note_opened(None);
        Ok(())
    }

    fn commit(&self, offsets: &[SourceOffsets]) -> Committed {
        let before = self.take_phase();
        let opened = match &before {
            Phase::Open { since } => Some(*since),
            Phase::Idle => None,
            Phase::New | Phase::Ending => {
                self.set(before);
                return Committed::Aborted("the transaction was not fenced".to_owned());
            }
            Phase::Over(why) => {
                let why = why.clone();
                self.set(before);
                return Committed::Aborted(why);
            }
        };
        let Some(live) = self.producer.current() else {
            return self.over("there is no producer".to_owned());
        };
        let outcome = self.try_commit(&live, opened, offsets);
        match &outcome {
            Committed::Yes => {
                self.note_opened(None);
                self.set(Phase::Idle);
            }
            Committed::Aborted(why) | Committed::Fenced(why) => self.set(Phase::Over(why.clone())),
        }
        outcome
    }

    fn over(&self, why: String) -> Committed {
        self.set(Phase::Over(why.clone()));
        Committed::Aborted(why)
    }

    fn try_commit(&self, live: &Live, opened: Option<Instant>, offsets: &[SourceOffsets]) -> Committed {
        let deadline = opened.unwrap_or_else(|| self.now()) + self.producer.transaction_timeout() / 2;
        let give_up = |why: String| {
            // A producer that cannot abort is replaced when the next run is fenced.
            let _ = self.abort_open(live);
            Committed::Aborted(why)
        };
        // librdkafka looks for acknowledgements ten times a second only; the polling thread sees them at once.
        while live.raw().outstanding() > 0 {
            if live.has_failed() || self.now() > deadline || self.is_closing() {
                return give_up("records of the epoch were not acknowledged".to_owned());
            }
            std::thread::sleep(ACK_PAUSE);
        }
        let mut sent = Sent::new();
        for SourceOffsets { source, positions } in offsets {
            let Some(group) = self.groups.get(source) else {
                return give_up(format!("source `{source}` has no offsets that Kafka could commit"));
            };
            match group.for_transaction(positions) {
                Ok(None) => {}
                Ok(Some(offsets)) => sent.push((group, offsets)),
                Err(why) => return give_up(why),
            }
        }
        if opened.is_none() {
            if sent.is_empty() {
                return Committed::Yes;
            }
            if let Err(error) = live.raw().begin_transaction() {
                return self.settle(live, &error, &sent);
            }
            self.note_opened(Some(self.now()));
        }
        for (_, GroupOffsets { list, metadata, .. }) in &sent {
            loop {
                match live.raw().send_offsets(list, metadata, CALL) {
                    Ok(()) => break,
                    Err(error) if error.retriable && self.now() < deadline && !self.is_closing() => {}
                    Err(error) => return self.settle(live, &error, &sent),
                }
            }
        }
        loop {
            match live.raw().commit_transaction(CALL) {
                Ok(()) => break,
                Err(error) if error.retriable && !self.is_closing() => {
                    let pipeline = &self.producer.settings().pipeline;
                    tracing::warn!(%pipeline, "the commit is in doubt, and is asked for again: {error}");
                }
                Err(error) => return self.settle(live, &error, &sent),
            }
        }
        for (group, GroupOffsets { offsets, .. }) in &sent {
            group.note_committed(offsets);
        }
        Committed::Yes
    }

    /// A transaction cannot span two clusters. Asked once; the answer does not change.
    fn check_clusters(&self) -> Result<(), FenceError> {
        if self.same_cluster.load(Ordering::Acquire) {
            return Ok(());
        }
        for group in self.groups.all() {
            if group.connection().has_brokers_of(&self.producer.settings().connection) {
                continue;
            }
            let unknown =
                |side: &str| FenceError::Retry(format!("the {side}'s brokers do not say which cluster they are"));
            let from = group.ask_cluster_id().ok_or_else(|| unknown("source"))?;
            let to = self.producer.cluster_id().ok_or_else(|| unknown("sink"))?;
            if from != to {
                return Err(FenceError::Fatal(format!(
                    "the source is in cluster `{from}` and the sink in cluster `{to}`: a transaction cannot span both, so \
                     the pipeline must say `guarantee: at_least_once`"
                )));
            }
        }
        self.same_cluster.store(true, Ordering::Release);
        Ok(())
    }
}

/// Takes the identity: ends what an earlier life left open, and waits until it is ended.
fn init(live: &Live) -> Result<(), String> {
    live.raw().init_transactions(2 * CALL).map_err(|error| {
        if error.fatal {
            live.set_failed();
        }
        let why = live.turned_away().unwrap_or_else(|| error.to_string());
        format!("cannot take the identity of transactions: {why}")
    })
}

/// Whether an error says that a newer producer has the same identity.
fn is_fencing(code: Code) -> bool {
    verdict(code) == Verdict::Fenced
}

#[cfg(test)]
mod tests {
    use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr as Error};

    use super::*;
    use crate::clients::kafka::PipelineClients;
    use crate::clients::kafka::assignment::BEGINNING;
    use crate::clients::kafka::config::Options;
    use crate::clients::kafka::consumer::tests::{commit_unnoticed, noted, panic_soon};
    use crate::clients::kafka::fixture::{Process, SOON, bodies, draft, options, positions, pull, run, unique, write};
    use crate::clients::kafka::raw::MockBroker;
    use crate::component::{BoxSink, BoxSource, Pulled, SourceError};
    use crate::record::Partition;
    use crate::runtime::Runtime;
    use crate::sinks::kafka::tests as sinks;
    use crate::sources::kafka::tests as sources;

    /// A transactional pipeline from one topic of its own broker to another.
    struct Pipeline {
        broker: MockBroker,
        process: Process,
        source: BoxSource,
        sink: BoxSink,
        transaction: Arc<dyn Transaction>,
    }

    impl Pipeline {
        async fn start(records: usize) -> Self {
            Self::start_with(records, Options::new()).await
        }

        /// With settings of the sink's client.
        async fn start_with(records: usize, options: Options) -> Self {
            let broker = MockBroker::start().unwrap();
            broker.create_topic("in", 1);
            broker.create_topic("out", 1);
            let mut config = sinks::config("in");
            config.set_brokers(&broker.address());
            let mut feed = sinks::sink_to(&Process::new("feed", false), config).await;
            let texts: Vec<String> = (0..records).map(|n| format!("{n:04}")).collect();
            write(&mut feed, &texts.iter().map(|text| draft(text)).collect::<Vec<_>>()).await;

            let process = Process::new("one", true);
            let mut config = sources::config(&unique("group"), "in");
            config.set_brokers(&broker.address());
            let (source, _) = process.source(&sources::compiled(config));
            let mut config = sinks::config("out");
            config.set_brokers(&broker.address());
            config.set_options(options);
            let sink = process.sink(&sinks::compiled(config));
            let transaction = process.clients.transaction().unwrap();
            Self { broker, process, source, sink, transaction }
        }

        /// Starts a run, reads so many records and writes them.
        async fn run(&mut self, records: usize) -> Vec<Pulled> {
            self.transaction.fence().await.unwrap();
            self.sink.open().await.unwrap();
            let (cx, _requests) = run();
            let pulled = pull(&mut self.source, cx, records).await.unwrap();
            for Pulled { batch, .. } in &pulled {
                let answer = self.sink.write(Arc::new(batch.clone())).await.unwrap();
                assert_eq!(answer.await.unwrap().refused, []);
            }
            pulled
        }

        async fn commit(&self, pulled: &[Pulled]) -> Committed {
            self.transaction.commit(1, vec![SourceOffsets { source: "in".into(), positions: positions(pulled) }]).await
        }

        fn group(&self) -> Arc<GroupConsumer> {
            self.process.clients.shared(PipelineGroups::default).get("in").unwrap()
        }

        /// Where a new run would go on. The mock broker keeps no offsets of transactions.
        fn committed(&self) -> Option<i64> {
            noted(&self.group(), &Partition { source: "in".into(), topic: "in".into(), number: 0 })
        }

        fn fail_next(&self, request: RDKafkaApiKey, errors: &[Error]) {
            self.broker.fail_next(request as i16, errors);
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn outputs_and_offsets_are_committed_together() {
        let mut pipeline = Pipeline::start(10).await;
        let pulled = pipeline.run(10).await;
        assert_eq!(pipeline.commit(&pulled).await, Committed::Yes);
        assert_eq!(pipeline.committed(), Some(10));
        // Nothing moved since.
        assert_eq!(pipeline.commit(&pulled).await, Committed::Yes);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_epoch_without_outputs_commits_its_offsets() {
        let mut pipeline = Pipeline::start(10).await;
        pipeline.transaction.fence().await.unwrap();
        pipeline.sink.open().await.unwrap();
        let (cx, _requests) = run();
        let pulled = pull(&mut pipeline.source, cx, 10).await.unwrap();
        assert_eq!(pipeline.commit(&pulled).await, Committed::Yes);
        assert_eq!(pipeline.committed(), Some(10));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn rule_9_a_commit_in_doubt_is_asked_for_until_it_is_known() {
        let mut pipeline = Pipeline::start(10).await;
        let pulled = pipeline.run(10).await;
        let away = [Error::RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE; 5];
        pipeline.fail_next(RDKafkaApiKey::EndTxn, &away);
        assert_eq!(pipeline.commit(&pulled).await, Committed::Yes);
        assert_eq!(pipeline.committed(), Some(10));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn rule_9_offsets_that_the_group_refuses_abort_the_transaction() {
        let mut pipeline = Pipeline::start(10).await;
        let pulled = pipeline.run(10).await;
        pipeline.fail_next(RDKafkaApiKey::TxnOffsetCommit, &[Error::RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION]);
        assert!(matches!(pipeline.commit(&pulled).await, Committed::Aborted(_)));
        assert_eq!(pipeline.committed(), Some(BEGINNING));
        // Nothing more is written in the run that failed, and the next one repeats it.
        let stale = pipeline.sink.write(Arc::new(pulled[0].batch.clone())).await;
        assert!(matches!(stale.map(drop), Err(SinkError::Outage(_))));
        let again = pipeline.run(10).await;
        assert_eq!(bodies(&again), bodies(&pulled));
        assert_eq!(pipeline.commit(&again).await, Committed::Yes);
        assert_eq!(pipeline.committed(), Some(10));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn rule_9_an_epoch_whose_answer_was_lost_is_found_to_have_happened() {
        after_a_fencing_the_broker_tells(true).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn rule_9_an_epoch_that_did_not_happen_is_found_to_be_aborted() {
        after_a_fencing_the_broker_tells(false).await;
    }

    async fn after_a_fencing_the_broker_tells(happened: bool) {
        let mut pipeline = Pipeline::start(10).await;
        let pulled = pipeline.run(10).await;
        pipeline.fail_next(RDKafkaApiKey::EndTxn, &[Error::RD_KAFKA_RESP_ERR_PRODUCER_FENCED]);
        if happened {
            // As if the commit had been done, and only its answer lost.
            commit_unnoticed(&pipeline.group(), "in", 0, 10);
        }
        let outcome = pipeline.commit(&pulled).await;
        assert_eq!(outcome == Committed::Yes, happened, "{outcome:?}");
        assert_eq!(pipeline.committed(), Some(if happened { 10 } else { BEGINNING }));
        if happened {
            // The run goes on, with the new producer.
            let answer = pipeline.sink.write(Arc::new(pulled[0].batch.clone())).await.unwrap();
            assert_eq!(answer.await.unwrap().refused, []);
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn rule_9_a_process_that_is_fenced_twice_gives_up() {
        let mut pipeline = Pipeline::start(20).await;
        let pulled = pipeline.run(10).await;
        let fenced = [Error::RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH];
        pipeline.fail_next(RDKafkaApiKey::AddOffsetsToTxn, &fenced);
        assert!(matches!(pipeline.commit(&pulled).await, Committed::Aborted(_)));
        let pulled = pipeline.run(10).await;
        pipeline.fail_next(RDKafkaApiKey::AddOffsetsToTxn, &fenced);
        let outcome = pipeline.commit(&pulled).await;
        let Committed::Fenced(why) = outcome else { panic!("{outcome:?}") };
        assert!(why.contains("instance `one`"), "{why}");
        let fenced = pipeline.transaction.fence().await;
        assert!(matches!(fenced, Err(FenceError::Fatal(_))), "nor is the identity taken back at once: {fenced:?}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn rule_9_being_fenced_for_a_time_out_says_nothing_of_another_process() {
        let mut pipeline = Pipeline::start_with(20, options(&[("transaction.timeout.ms", 1000)])).await;
        // Cut off for longer than the broker lets a transaction be open: it ends it, and fences who comes back.
        let mut answers = vec![Error::RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS; 20];
        answers.push(Error::RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH);
        for _ in 0..2 {
            let pulled = pipeline.run(10).await;
            let opened = Runtime::system().clock().now();
            pipeline.fail_next(RDKafkaApiKey::EndTxn, &answers);
            let outcome = pipeline.commit(&pulled).await;
            let took = Runtime::system().clock().now().duration_since(opened);
            assert!(took > Duration::from_secs(1), "{took:?}");
            assert!(matches!(outcome, Committed::Aborted(_)), "{outcome:?}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn rule_17_a_thread_that_panics_is_noticed_and_replaced() {
        let mut pipeline = Pipeline::start(10).await;
        let pulled = pipeline.run(10).await;
        // That of the transaction.
        let transaction = pipeline.process.clients.shared(PipelineClients::default).current_transaction().unwrap();
        transaction.inner.panics.store(true, Ordering::Release);
        assert!(matches!(pipeline.commit(&pulled).await, Committed::Aborted(_)));
        while pipeline.transaction.fence().await.is_err() {}
        let pulled = pipeline.run(10).await;

        // That of the producer: what is under way is answered, and what comes later too.
        let live = transaction.producer().current().unwrap();
        live.panic_soon();
        let told = tokio::time::timeout(SOON, async {
            loop {
                let answer = match pipeline.sink.write(Arc::new(pulled[0].batch.clone())).await {
                    Ok(answer) => answer.await.map(|_| ()),
                    Err(error) => Err(error),
                };
                if let Err(error) = answer {
                    break error;
                }
            }
        });
        assert!(matches!(told.await.unwrap(), SinkError::Outage(_)));
        pipeline.run(10).await;

        // That of the consumer.
        panic_soon(&pipeline.group());
        let (cx, _requests) = run();
        let failed = tokio::time::timeout(SOON, pull(&mut pipeline.source, cx, usize::MAX)).await.unwrap();
        assert!(matches!(failed, Err(SourceError::Retry(_))), "{failed:?}");
        let pulled = pipeline.run(10).await;
        assert_eq!(pipeline.commit(&pulled).await, Committed::Yes);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn rule_10_a_transaction_that_nobody_ends_is_aborted_in_time() {
        let mut pipeline = Pipeline::start_with(10, options(&[("transaction.timeout.ms", 4000)])).await;
        let pulled = pipeline.run(10).await;
        let limit = pipeline.transaction.longest_open().unwrap() * 2;
        let why = tokio::time::timeout(limit, async {
            loop {
                match pipeline.sink.write(Arc::new(pulled[0].batch.clone())).await {
                    Ok(_) => tokio::task::yield_now().await,
                    Err(why) => break why,
                }
                Runtime::system().sleep(WATCH).await;
            }
        });
        assert!(matches!(why.await.unwrap(), SinkError::Outage(_)));
        assert!(matches!(pipeline.commit(&pulled).await, Committed::Aborted(_)));
        assert_eq!(pipeline.committed(), Some(BEGINNING));
    }
}
