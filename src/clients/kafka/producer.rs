//! A producer that the sinks of a pipeline share, and the account of what it has under way.
//!
//! The unit of accounting is the batch: one slot, one answer. librdkafka carries the number of the slot with each record,
//! and gives it back with the record's fate. One thread polls these fates.

mod account;
mod opening;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::RDKafkaErrorCode as Code;
use tokio::sync::{Notify, oneshot};

pub(crate) use account::failed;
use account::{Account, Fate, is_consequence};
pub(crate) use opening::Opening;

use super::config::Connection;
use super::embedded;
use super::errors::{Verdict, verdict};
use super::limits::{self, Limits, TopicLimits};
use super::log::Seldom;
use super::raw::{self, Delivery, Outgoing, ProducerEvent};
use crate::clock::Instant;
use crate::component::{Settled, SinkError};
use crate::runtime::Runtime;

/// How often the polling thread looks up.
const POLL: Duration = Duration::from_millis(100);
/// How long one request to the broker may take before it is tried again.
const REQUEST: Duration = Duration::from_secs(5);
/// How long they may take to tell our rights. The one that tests run against never does.
const RIGHTS: Duration = if cfg!(test) { Duration::from_millis(100) } else { REQUEST };

/// librdkafka's name for the size of its queue.
const QUEUE_KBYTES: &str = "queue.buffering.max.kbytes";
/// The largest queue that librdkafka makes is 2 TiB; a record has at most 1 GB.
const MOST_QUEUE_BYTES: u64 = 1 << 30;

/// What a producer is made with.
#[derive(Debug, Clone)]
pub(crate) struct ProducerSettings {
    pub(crate) connection: Connection,
    pub(crate) pipeline: Arc<str>,
    pub(crate) transactional: bool,
    pub(crate) memory: u64,
    pub(crate) runtime: Runtime,
}

/// A producer of a pipeline. The client inside is replaced when it has failed for good.
pub(crate) struct SharedProducer {
    settings: ProducerSettings,
    seldom: Arc<Seldom>,
    topics: Arc<Mutex<TopicLimits>>,
    /// The broker has refused a write for want of a right. From then on it is asked before a run begins to write.
    denied: Arc<AtomicBool>,
    asked: Mutex<Option<Instant>>,
    asking: tokio::sync::Mutex<()>,
    live: Mutex<Option<Arc<Live>>>,
}

impl fmt::Debug for SharedProducer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedProducer").field("pipeline", &self.settings.pipeline).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SharedProducer {
    pub(crate) fn new(settings: ProducerSettings) -> Self {
        Self {
            seldom: Arc::new(Seldom::new(settings.runtime.clock())),
            settings,
            topics: Arc::default(),
            denied: Arc::default(),
            asked: Mutex::default(),
            asking: tokio::sync::Mutex::default(),
            live: Mutex::default(),
        }
    }

    pub(crate) fn settings(&self) -> &ProducerSettings {
        &self.settings
    }

    /// Announces a topic that will be written, so that its limits are known when the client is made.
    pub(crate) fn announce(&self, topic: &str) {
        lock(&self.topics).announce(topic);
    }

    /// Whether a topic was announced.
    pub(crate) fn writes(&self, topic: &str) -> bool {
        lock(&self.topics).has(topic)
    }

    /// What a topic takes, as far as it is known.
    pub(crate) fn limits(&self, topic: &str) -> Limits {
        lock(&self.topics).of(topic)
    }

    /// Whether it is time to say this (again).
    pub(crate) fn may_say(&self, what: &str) -> bool {
        self.seldom.now(what)
    }

    /// Asks for the limits of all topics, unless they were asked for within `max_age`.
    pub(crate) async fn refresh_limits(&self, max_age: Duration) {
        if self.settings.connection.is_embedded() {
            return;
        }
        let _one_at_a_time = self.asking.lock().await;
        let now = self.settings.runtime.clock().now();
        let topics: Vec<String> = {
            let fresh = lock(&self.asked).is_some_and(|asked| now.duration_since(asked) < max_age);
            if fresh {
                return;
            }
            lock(&self.topics).names()
        };
        // A broker that does not answer, or must not, is not asked more often than one that does.
        *lock(&self.asked) = Some(now);
        let described = match self.settings.connection.client_config(&[], &[]) {
            Ok(config) => limits::describe(&config, &topics, &self.settings.runtime).await,
            Err(error) => Err(error),
        };
        match described {
            Ok(described) => lock(&self.topics).told(described),
            Err(error) => {
                let pipeline = &self.settings.pipeline;
                if self.seldom.now("limits") {
                    tracing::warn!(%pipeline, "cannot ask what the topics take, so their refusals have to teach it: {error}");
                }
            }
        }
    }

    /// The client, if it has been made.
    pub(crate) fn current(&self) -> Option<Arc<Live>> {
        lock(&self.live).clone()
    }

    /// The client for a new run: a new one if there is none, if it has failed, or if it still holds records of the run
    /// before, which would then be written in between.
    pub(crate) fn fresh(&self, transactional_id: Option<&str>) -> Result<Arc<Live>, String> {
        let mut live = lock(&self.live);
        if let Some(old) = live.as_ref() {
            if !old.has_failed() && old.raw.outstanding() == 0 && self.suits(old) {
                return Ok(Arc::clone(old));
            }
            old.raw.purge();
        }
        Ok(Arc::clone(live.insert(Arc::new(self.create(transactional_id)?))))
    }

    /// Replaces the client, whatever became of it.
    pub(crate) fn replace(&self, transactional_id: Option<&str>) -> Result<Arc<Live>, String> {
        let mut live = lock(&self.live);
        *live = None;
        Ok(Arc::clone(live.insert(Arc::new(self.create(transactional_id)?))))
    }

    /// Whether a client is sized for what the topics take by now.
    pub(crate) fn suits(&self, live: &Live) -> bool {
        let wanted = self.size();
        live.size.batch <= wanted.batch && live.size.wanted_queue >= wanted.wanted_queue
    }

    fn size(&self) -> Size {
        let topics = lock(&self.topics);
        let queue = queue_bytes(self.settings.memory, topics.largest());
        Size { batch: topics.smallest(), queue, wanted_queue: queue }
    }

    fn create(&self, transactional_id: Option<&str>) -> Result<Live, String> {
        let mut size = self.size();
        let config = self.client_config(transactional_id, size)?;
        // The pipeline's file may say another.
        if let Some(kbytes) = config.get(QUEUE_KBYTES).and_then(|kbytes| kbytes.parse::<usize>().ok()) {
            size.queue = kbytes.saturating_mul(1024);
        }
        Live::start(&config, self, size)
    }

    /// How long a transaction may stay open.
    pub(crate) fn transaction_timeout(&self) -> Duration {
        self.settings.connection.transaction_timeout()
    }

    fn client_config(&self, transactional_id: Option<&str>, size: Size) -> Result<rdkafka::ClientConfig, String> {
        let memory = self.settings.memory;
        let mut defaults = vec![
            ("linger.ms", "5".to_owned()),
            // A record costs a few hundred bytes beside its content.
            ("queue.buffering.max.messages", (memory / 4096).clamp(4096, 32_768).to_string()),
            ("batch.size", size.batch.to_string()),
            (QUEUE_KBYTES, size.queue.div_ceil(1024).to_string()),
        ];
        let mut fixed = vec![
            ("enable.idempotence", "true".to_owned()),
            ("acks", "all".to_owned()),
            // Also for a topic that librdkafka makes by itself, when it is asked for its metadata.
            ("partitioner", "murmur2_random".to_owned()),
            // The most that there is: what a topic takes, and what the queue has room for, is checked before.
            ("message.max.bytes", "1000000000".to_owned()),
        ];
        if let Some(id) = transactional_id {
            fixed.push(("transactional.id", id.to_owned()));
            defaults.push(("transaction.timeout.ms", self.transaction_timeout().as_millis().to_string()));
            // The broker is still ending the last transaction when the next one adds its offsets; the default of 100 ms
            // would be a floor under each commit.
            defaults.push(("retry.backoff.ms", "10".to_owned()));
        } else {
            fixed.push(("message.timeout.ms", "0".to_owned()));
            // Where a request is refused, the client stops. Else it would send what stands behind it under a new epoch.
            fixed.push(("enable.gapless.guarantee", "true".to_owned()));
        }
        self.settings.connection.client_config(&defaults, &fixed)
    }

    /// Creates a topic of the embedded cluster.
    pub(crate) fn create_embedded_topic(&self, topic: &str) -> Result<(), String> {
        if self.settings.connection.is_embedded() { embedded::create_topic(topic) } else { Ok(()) }
    }

    /// Whether a topic may be written, if that was ever denied, or the denial would only show as a failed transaction. `None`
    /// if there is no client, or the broker does not tell. Blocks.
    pub(crate) fn may_write(&self, topic: &str) -> Option<bool> {
        if !self.settings.transactional && !self.denied.load(Ordering::Acquire) {
            return None;
        }
        // The embedded cluster knows no rights, and would let us wait in vain.
        if self.settings.connection.is_embedded() {
            return None;
        }
        self.current()?.raw.may_write(topic, RIGHTS)
    }

    /// The identity of the cluster; `None` if it has none, or does not answer in time. Blocks.
    pub(crate) fn cluster_id(&self) -> Option<String> {
        self.current()?.raw.client().fetch_cluster_id(REQUEST)
    }
}

impl Drop for SharedProducer {
    fn drop(&mut self) {
        if let Some(live) = lock(&self.live).take() {
            live.stop();
        }
    }
}

/// What the client logs; its errors come as events.
pub(crate) struct Context;

impl ClientContext for Context {
    fn log(&self, _: RDKafkaLogLevel, _: &str, _: &str) {}
}

/// What a client is sized by, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Size {
    /// The largest batch.
    batch: usize,
    /// All that is under way.
    queue: usize,
    /// The same, as it would be if the pipeline's file did not say another.
    wanted_queue: usize,
}

/// The room for what is under way: some batches, and at least one record as large as a topic takes, if that is no more than
/// half of the memory. A record that has more is never sent, as it would wait for ever.
fn queue_bytes(memory: u64, largest: usize) -> usize {
    let usual = (memory / 4).clamp(2 << 20, 16 << 20);
    let largest = (largest as u64 + 1024).min(memory / 2);
    usize::try_from(usual.max(largest).min(MOST_QUEUE_BYTES)).unwrap_or(usize::MAX)
}

/// A client that lives, with its polling thread and its account.
pub(crate) struct Live {
    raw: Arc<raw::Producer<Context>>,
    account: Arc<Account>,
    size: Size,
    /// By topic.
    openings: Mutex<HashMap<String, Arc<Opening>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Live").field("outstanding", &self.raw.outstanding()).finish_non_exhaustive()
    }
}

impl Live {
    fn start(config: &rdkafka::ClientConfig, shared: &SharedProducer, size: Size) -> Result<Self, String> {
        let settings = &shared.settings;
        let raw = Arc::new(raw::Producer::new(config, Context)?);
        let account = Arc::new(Account::default());
        let brokers = settings.connection.addresses()?;
        let polling = Polling {
            raw: Arc::clone(&raw),
            account: Arc::clone(&account),
            brokers,
            pipeline: Arc::clone(&settings.pipeline),
            seldom: Arc::clone(&shared.seldom),
            topics: Arc::clone(&shared.topics),
            denied: Arc::clone(&shared.denied),
            transactional: settings.transactional,
            batch_bytes: size.batch,
        };
        let thread = std::thread::Builder::new()
            .name("kafka-producer".to_owned())
            .spawn(move || polling.run())
            .map_err(|error| format!("cannot start a thread: {error}"))?;
        Ok(Self { raw, account, size, openings: Mutex::default(), thread: Mutex::new(Some(thread)) })
    }

    pub(crate) fn raw(&self) -> &Arc<raw::Producer<Context>> {
        &self.raw
    }

    /// Whether it is of no more use.
    pub(crate) fn has_failed(&self) -> bool {
        self.account.failed.load(Ordering::Acquire)
    }

    /// Makes the polling thread panic.
    #[cfg(test)]
    pub(crate) fn panic_soon(&self) {
        self.account.panics.store(true, Ordering::Release);
        self.raw.interrupt();
    }

    /// Marks it as of no more use.
    pub(crate) fn set_failed(&self) {
        self.account.failed.store(true, Ordering::Release);
    }

    /// The room for all records that are under way, and so the largest record that it sends.
    pub(crate) fn queue_bytes(&self) -> usize {
        self.size.queue
    }

    /// Which of a topic's partitions hold a record of this client. Where a topic has grown, all begin anew.
    pub(crate) fn opening(&self, topic: &str, partitions: usize) -> Arc<Opening> {
        let mut openings = lock(&self.openings);
        if let Some(opening) = openings.get(topic).filter(|opening| opening.partitions() == partitions) {
            return Arc::clone(opening);
        }
        let opening = Arc::new(Opening::new(partitions));
        openings.insert(topic.to_owned(), Arc::clone(&opening));
        opening
    }

    /// Why the brokers turn this client away, if they did and have not answered since.
    pub(crate) fn turned_away(&self) -> Option<String> {
        lock(&self.account.turned_away).clone()
    }

    /// The brokers have answered.
    pub(crate) fn is_let_in(&self) {
        *lock(&self.account.turned_away) = None;
    }

    /// Opens an account for a batch of so many records.
    pub(crate) fn open(self: &Arc<Self>, records: usize) -> Enqueuing {
        let mut slots = lock(&self.account.slots);
        let (slot, answer) = slots.open(records);
        // An empty batch is answered at once.
        slots.discharge(slot, 0);
        drop(slots);
        Enqueuing { live: Arc::clone(self), slot, left: records, answer: Some(answer) }
    }

    /// A transaction begins: what the last one failed of is past.
    pub(crate) fn begin(&self) {
        lock(&self.account.slots).cause = None;
    }

    /// Told when records were settled, so that there may be room in the queue.
    pub(crate) fn room(&self) -> &Notify {
        &self.account.room
    }

    /// Stops the thread and waits for it.
    fn stop(&self) {
        self.account.stop.store(true, Ordering::Release);
        self.raw.interrupt();
        if let Some(thread) = lock(&self.thread).take() {
            // A panic of that thread has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.account.stop.store(true, Ordering::Release);
        self.raw.interrupt();
    }
}

/// A batch on its way into the producer's queue. What is not enqueued when this is dropped is not waited for.
pub(crate) struct Enqueuing {
    live: Arc<Live>,
    slot: usize,
    left: usize,
    answer: Option<oneshot::Receiver<Result<Settled, SinkError>>>,
}

impl Enqueuing {
    /// Enqueues one record. `QueueFull` means: wait for [`Live::room`] and try again.
    pub(crate) fn enqueue(&mut self, topic: &raw::Topic<Context>, outgoing: Outgoing<'_>) -> Result<(), Code> {
        topic.produce(outgoing, self.slot)?;
        self.left -= 1;
        Ok(())
    }

    /// Refuses one record instead.
    pub(crate) fn refuse(&mut self, record: usize, error: String) {
        lock(&self.live.account.slots).refuse(self.slot, record, error);
        self.left -= 1;
    }

    /// Gives up all that is left: the transaction or the client has failed, for a reason that another record may know.
    pub(crate) fn fail(&mut self, code: Code) {
        let mut slots = lock(&self.live.account.slots);
        for _ in 0..self.left {
            slots.settle(self.slot, Fate::Failed(code));
        }
        self.left = 0;
    }

    /// Resolves when every record has its fate.
    pub(crate) fn answer(mut self) -> oneshot::Receiver<Result<Settled, SinkError>> {
        self.answer.take().expect("taken once, here")
    }
}

impl Drop for Enqueuing {
    fn drop(&mut self) {
        if self.left > 0 {
            lock(&self.live.account.slots).discharge(self.slot, self.left);
        }
    }
}

/// Answers all that wait if the polling thread panics: nobody else would.
struct Watched(Arc<Account>);

impl Drop for Watched {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.failed.store(true, Ordering::Release);
            lock(&self.0.slots).give_up("the thread of the producer has panicked");
            self.0.room.notify_waiters();
        }
    }
}

/// The polling thread.
struct Polling {
    raw: Arc<raw::Producer<Context>>,
    account: Arc<Account>,
    brokers: String,
    pipeline: Arc<str>,
    seldom: Arc<Seldom>,
    topics: Arc<Mutex<TopicLimits>>,
    denied: Arc<AtomicBool>,
    transactional: bool,
    batch_bytes: usize,
}

impl Polling {
    fn run(self) {
        let _watched = Watched(Arc::clone(&self.account));
        while !self.account.stop.load(Ordering::Acquire) {
            #[cfg(test)]
            assert!(!self.account.panics.swap(false, Ordering::AcqRel), "as a test has asked");
            self.raw.poll(POLL, |event| self.handle(event));
            self.stop_behind_a_gap();
            // Only now, because a record leaves the queue when the event that tells its fate is freed.
            self.account.room.notify_waiters();
        }
    }

    /// All that a failed client holds is done again from the last commit. What stands behind the gap must not be written
    /// before that, as it would be under a new epoch of this producer: the order of a key would be broken. A transaction
    /// is aborted instead.
    fn stop_behind_a_gap(&self) {
        if self.account.failed.load(Ordering::Acquire) && !self.transactional {
            self.raw.purge();
        }
    }

    fn handle(&self, event: ProducerEvent<'_>) {
        match event {
            ProducerEvent::Deliveries(deliveries) => {
                let mut gap = false;
                let mut slots = lock(&self.account.slots);
                for delivery in deliveries {
                    let fate = delivery.failure.map_or(Fate::Written, |code| self.fate(code, &delivery));
                    gap |= match fate {
                        Fate::Written => false,
                        Fate::Refused(_) => true,
                        Fate::Failed(code) => !is_consequence(code),
                    };
                    slots.settle(delivery.number, fate);
                }
                if gap && !self.transactional {
                    self.account.failed.store(true, Ordering::Release);
                }
            }
            ProducerEvent::Error(Code::Fatal, text) => {
                self.account.failed.store(true, Ordering::Release);
                tracing::warn!(pipeline = %self.pipeline, "the producer failed and will be replaced: {text}");
            }
            ProducerEvent::Error(code, text) => {
                if code == Code::AllBrokersDown {
                    raw::add_brokers(self.raw.client(), &self.brokers);
                }
                if verdict(code) == Verdict::Denied {
                    *lock(&self.account.turned_away) = Some(text.clone());
                }
                if self.seldom.now(&code.to_string()) {
                    tracing::warn!(pipeline = %self.pipeline, "{text}");
                }
            }
            ProducerEvent::Log(level, text) => self.seldom.line(&self.pipeline, level, &text),
        }
    }
}

impl Polling {
    /// What became of a record that was not written.
    fn fate(&self, code: Code, delivery: &Delivery<'_>) -> Fate {
        match verdict(code) {
            Verdict::Size => {
                let size = delivery.size();
                if lock(&self.topics).refused(&delivery.topic(), size, self.batch_bytes) {
                    return Fate::Refused(format!("the broker refused the record: {code}; it takes {size} bytes"));
                }
            }
            Verdict::Denied => self.denied.store(true, Ordering::Release),
            Verdict::DeniedForGood | Verdict::Broken => self.account.failed.store(true, Ordering::Release),
            _ => {}
        }
        Fate::Failed(code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clients::kafka::config::{Options, Role};
    use crate::clients::kafka::fixture::{check, here};

    fn client_config(memory: u64, transactional_id: Option<&str>) -> rdkafka::ClientConfig {
        let brokers = here("a:1".to_owned());
        let connection =
            Connection::check(Role::Producer, &brokers, None, None, &Options::new(), &mut check()).unwrap();
        let producer = SharedProducer::new(ProducerSettings {
            connection,
            pipeline: "test".into(),
            transactional: transactional_id.is_some(),
            memory,
            runtime: Runtime::system(),
        });
        producer.client_config(transactional_id, producer.size()).unwrap()
    }

    #[test]
    fn a_client_is_made_anew_where_a_topic_takes_more_or_less_than_before() {
        let brokers = here("127.0.0.1:1".to_owned());
        let connection =
            Connection::check(Role::Producer, &brokers, None, None, &Options::new(), &mut check()).unwrap();
        let producer = SharedProducer::new(ProducerSettings {
            connection,
            pipeline: "test".into(),
            transactional: false,
            memory: 256 << 20,
            runtime: Runtime::system(),
        });
        let takes = |bytes: usize| {
            let limits = Limits { batch_bytes: Some(bytes), ..Limits::default() };
            lock(&producer.topics).told([("out".to_owned(), limits)].into());
        };
        takes(1_000_000);
        let first = producer.fresh(None).unwrap();
        assert!(producer.suits(&first));
        takes(50_000_000);
        assert!(!producer.suits(&first), "it has no room for the largest record");
        let more = producer.fresh(None).unwrap();
        assert!(producer.suits(&more) && more.queue_bytes() > 50_000_000, "{}", more.queue_bytes());
        takes(10_000);
        assert!(!producer.suits(&more), "its batches are too large");
        assert_eq!(producer.fresh(None).unwrap().size.batch, 10_000);
    }

    #[test]
    fn rule_10_without_a_transaction_a_record_waits_as_long_as_it_must() {
        assert_eq!(client_config(32 << 20, None).get("message.timeout.ms"), Some("0"));
        let config = client_config(32 << 20, Some("id"));
        assert_eq!(config.get("message.timeout.ms"), None);
        assert_eq!(config.get("transaction.timeout.ms"), Some("10000"));
    }

    #[test]
    fn rule_16_the_queue_is_sized_from_the_budget() {
        let kib =
            |memory| client_config(memory, None).get("queue.buffering.max.kbytes").unwrap().parse::<u64>().unwrap();
        assert_eq!(kib(32 << 20) * 1024, 8 << 20);
        assert!(kib(1 << 20) * 1024 <= 2 << 20, "a small one is no smaller than a few batches");
        assert!(kib(64 << 30) * 1024 <= 16 << 20, "the default would be a gigabyte");
        assert!(queue_bytes(256 << 20, 50_000_000) > 50_000_000, "the largest record has room");
        assert_eq!(queue_bytes(64 << 20, 150_000_000), 32 << 20, "unless it is too large");
    }
}
