//! A membership in a consumer group, and the thread that keeps it.
//!
//! The thread polls the consumer's main queue: rebalances, errors, statistics. Records never pass there: each partition
//! has a queue of its own, split off before the partition is assigned, which the source's stream drains on the worker
//! that needs the records. The membership outlives runs: a rewind repositions the partitions that moved, in place.
//!
//! On revoke the thread closes the partitions, asks for the epoch to be closed, and gives them up. No lock is held while
//! it waits, because the commit that it waits for takes the same lock on another thread.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use futures::future::BoxFuture;
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode as Code};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaRespErr;
use serde::Deserialize;
use tokio::sync::Notify;

use super::assignment::{Assignment, BEGINNING, Held, Rewind};
use super::config::{Connection, Protocol, StartAt};
use super::embedded;
use super::log::Seldom;
use super::raw::{GroupMetadata, Messages, PartitionQueue};
use crate::component::{EpochRequests, Pulled, SourceError};
use crate::delivery::{CommitPositions, Positions};
use crate::observe::StageMetrics;
use crate::record::{BatchBuilder, BodyFormat, ByteRange, HeadersBuilder, Partition, Position, Record, Timestamp};
use crate::runtime::Runtime;

/// How long a revoke waits for the epoch to close.
const REVOKE_LIMIT: Duration = Duration::from_secs(5);
/// How often the polling thread looks up.
const POLL: Duration = Duration::from_millis(100);
/// How long one request to the broker may take before it is tried again.
const REQUEST: Duration = Duration::from_secs(5);
/// How long a commit is tried again while the group is rebalancing.
const COMMIT_LIMIT: Duration = Duration::from_secs(10);
/// Between two tries of a commit.
const PAUSE: Duration = Duration::from_millis(50);
/// A batch has about this many bytes at most,
const BATCH_BYTES: usize = 1 << 20;
/// and this many records.
const BATCH_RECORDS: usize = 1000;

/// What a membership is made with.
#[derive(Debug, Clone)]
pub(crate) struct GroupSettings {
    pub(crate) connection: Connection,
    pub(crate) source: Arc<str>,
    pub(crate) group: String,
    pub(crate) topics: Vec<String>,
    pub(crate) start_at: StartAt,
    pub(crate) protocol: Protocol,
    /// Who this member is, over its restarts.
    pub(crate) instance: String,
    pub(crate) transactional: bool,
    pub(crate) memory: u64,
    pub(crate) metrics: StageMetrics,
    pub(crate) runtime: Runtime,
}

type Queue = PartitionQueue<Context>;
type Client = BaseConsumer<Context>;

/// A membership in a group.
pub(crate) struct GroupConsumer {
    settings: GroupSettings,
    seldom: Seldom,
    wake: Arc<Notify>,
    state: Mutex<State>,
    running: Mutex<Option<Running>>,
    runs: AtomicU64,
    starting: Mutex<()>,
}

#[derive(Default)]
struct State {
    assignment: Assignment<Queue>,
    epochs: Option<EpochRequests>,
    /// Why the run cannot go on.
    fault: Option<SourceError>,
    /// The client met an error that it does not survive.
    dead: bool,
}

struct Running {
    client: Arc<Client>,
    thread: JoinHandle<()>,
}

impl fmt::Debug for GroupConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupConsumer").field("group", &self.settings.group).finish_non_exhaustive()
    }
}

/// What the client calls back, always on the polling thread.
pub(crate) struct Context {
    group: Arc<GroupConsumer>,
    client: OnceLock<Weak<Client>>,
    closing: AtomicBool,
}

impl Context {
    fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, _: &str, text: &str) {
        self.group.seldom.line(&self.group.settings.source, level as i32, text);
    }

    fn stats_raw(&self, statistics: &[u8]) {
        self.group.publish_lag(statistics);
    }

    fn error(&self, _: KafkaError, _: &str) {
        // The same error comes back from the poll, where it is handled.
    }
}

impl ConsumerContext for Context {
    fn rebalance(&self, client: &Client, kind: RDKafkaRespErr, list: &mut TopicPartitionList) {
        if kind == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            self.group.assigned(self, client, list);
        } else {
            self.group.revoked(self, client, list);
        }
    }
}

/// Where a newly assigned partition starts.
struct Start {
    at: i64,
    committed: Option<i64>,
}

impl GroupConsumer {
    pub(crate) fn new(settings: GroupSettings) -> Self {
        Self {
            seldom: Seldom::new(settings.runtime.clock()),
            settings,
            wake: Arc::new(Notify::new()),
            state: Mutex::default(),
            running: Mutex::default(),
            runs: AtomicU64::new(0),
            starting: Mutex::default(),
        }
    }

    /// The name of the group.
    pub(crate) fn name(&self) -> &str {
        &self.settings.group
    }

    /// The number of the next run. Whatever an earlier run still does in the background ends there.
    pub(crate) fn next_run(&self) -> u64 {
        self.runs.fetch_add(1, Ordering::AcqRel) + 1
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn client(&self) -> Option<Arc<Client>> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.as_ref().map(|running| Arc::clone(&running.client))
    }

    fn fault(&self, fault: SourceError) {
        self.state().fault.get_or_insert(fault);
        self.wake.notify_one();
    }

    fn partition(&self, topic: &str, number: i32) -> Partition {
        Partition { source: Arc::clone(&self.settings.source), topic: topic.into(), number }
    }

    fn partitions(&self, list: &TopicPartitionList) -> Vec<Partition> {
        list.elements().iter().map(|element| self.partition(element.topic(), element.partition())).collect()
    }

    // The life of the client.

    /// Starts a run: joins the group if this is the first one, else goes back to what was committed. Blocks.
    pub(crate) fn begin_run(self: &Arc<Self>, run: u64, epochs: EpochRequests) -> Result<(), SourceError> {
        let _one_at_a_time = self.starting.lock().unwrap_or_else(PoisonError::into_inner);
        if self.runs.load(Ordering::Acquire) != run {
            return Err(SourceError::Retry("a later run has begun".to_owned()));
        }
        if std::mem::take(&mut self.state().dead) {
            self.close();
        }
        let rewinds = {
            let mut state = self.state();
            state.epochs = Some(epochs);
            state.fault = None;
            state.assignment.rewind()
        };
        match self.client() {
            None => self.join().map_err(SourceError::Retry),
            Some(client) if rewinds.is_empty() => {
                drop(client);
                Ok(())
            }
            Some(client) => self
                .reposition(&client, &rewinds)
                .map_err(|error| SourceError::Retry(format!("cannot go back to the committed offsets: {error}"))),
        }
    }

    fn join(self: &Arc<Self>) -> Result<(), String> {
        let settings = &self.settings;
        if settings.connection.is_embedded() {
            settings.topics.iter().try_for_each(|topic| embedded::create_topic(topic))?;
        }
        let config = settings.client_config()?;
        let context = Context { group: Arc::clone(self), client: OnceLock::new(), closing: AtomicBool::new(false) };
        let client: Arc<Client> = Arc::new(config.create_with_context(context).map_err(|error| error.to_string())?);
        // It is set once, here.
        let _ = client.context().client.set(Arc::downgrade(&client));
        let topics: Vec<&str> = settings.topics.iter().map(String::as_str).collect();
        client.subscribe(&topics).map_err(|error| error.to_string())?;
        let polled = Arc::clone(&client);
        let thread = std::thread::Builder::new()
            .name("kafka-consumer".to_owned())
            .spawn(move || keep_polling(&polled))
            .map_err(|error| format!("cannot start a thread: {error}"))?;
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = Some(Running { client, thread });
        Ok(())
    }

    /// Leaves. Waits for the thread, which gives the partitions back without asking for a commit: whoever closes has
    /// committed what there was.
    pub(crate) fn close(&self) {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Running { client, thread }) = running {
            client.context().closing.store(true, Ordering::Release);
            drop(client);
            // A panic of that thread has been reported by the panic hook.
            let _ = thread.join();
        }
    }

    fn reposition(&self, client: &Client, rewinds: &[Rewind<Queue>]) -> KafkaResult<()> {
        let mut seeks = TopicPartitionList::new();
        let mut stalled = TopicPartitionList::new();
        for Rewind { held, to, stalled: is_stalled } in rewinds {
            let list = if *is_stalled { &mut stalled } else { &mut seeks };
            list.add_partition_offset(&held.origin.topic, held.origin.number, Offset::from_raw(*to))?;
        }
        if seeks.count() > 0 {
            for element in client.seek_partitions(seeks, REQUEST)?.elements() {
                if element.error().is_err() {
                    let to = rewinds
                        .iter()
                        .find(|rewind| is_named(&rewind.held.origin, element.topic(), element.partition()))
                        .map_or(BEGINNING, |rewind| rewind.to);
                    let partition = self.partition(element.topic(), element.partition());
                    if self.state().assignment.get(&partition).is_some() {
                        stalled.add_partition_offset(element.topic(), element.partition(), Offset::from_raw(to))?;
                    }
                }
            }
        }
        if stalled.count() > 0 {
            // Only a new assignment makes librdkafka fetch again.
            client.incremental_unassign(&stalled)?;
            client.incremental_assign(&stalled)?;
        }
        let mut state = self.state();
        for Rewind { held, .. } in rewinds {
            state.assignment.repositioned(&held.origin);
            held.queue.set_ready();
        }
        Ok(())
    }

    // Rebalances, on the polling thread.

    fn assigned(&self, context: &Context, client: &Client, list: &TopicPartitionList) {
        let partitions = self.partitions(list);
        let mut offsets = TopicPartitionList::new();
        if let Some(starts) = self.starts(context, client, &partitions)
            && let Some(client) = context.client.get().and_then(Weak::upgrade)
        {
            for (partition, start) in partitions.iter().zip(starts) {
                let queue = Queue::split(&client, &partition.topic, partition.number, &self.wake);
                let added =
                    offsets.add_partition_offset(&partition.topic, partition.number, Offset::from_raw(start.at));
                match (queue, added) {
                    (Some(queue), Ok(())) => {
                        let origin = Arc::new(partition.clone());
                        self.state().assignment.grant(origin, queue, start.at, start.committed);
                    }
                    _ => self.fault(SourceError::Retry(format!("cannot read partition {partition}"))),
                }
            }
        } else {
            // The consumer is closing, or has lost these partitions already: they are taken back next, and read by none.
            offsets = list.clone();
        }
        if let Err(error) = client.incremental_assign(&offsets) {
            self.fault(SourceError::Retry(format!("cannot take on partitions: {error}")));
        }
        if !partitions.is_empty() {
            tracing::info!(component = %self.settings.source, partitions = %names(&partitions), "partitions assigned");
        }
        self.wake.notify_one();
    }

    fn revoked(&self, context: &Context, client: &Client, list: &TopicPartitionList) {
        let partitions = self.partitions(list);
        let lost = client.assignment_lost();
        let epochs = {
            let mut state = self.state();
            state.assignment.close(&partitions);
            state.epochs.clone()
        };
        if let Some(epochs) = epochs.filter(|_| !context.is_closing() && !partitions.is_empty()) {
            if lost {
                epochs.lost(partitions.clone(), REVOKE_LIMIT);
            } else {
                // The answer is not needed: what is committed by now shows below.
                let _ = epochs.close_within(REVOKE_LIMIT);
            }
        }
        let unfinished = {
            let mut state = self.state();
            for held in partitions.iter().filter_map(|partition| state.assignment.get(partition)) {
                // A reader may hold on to it for a while, and must not silence the partition's next queue when it lets go.
                held.queue.disable();
            }
            state.assignment.remove(&partitions)
        };
        if unfinished > 0 && !context.is_closing() {
            let reason = if lost { "partitions_lost" } else { "revoked_uncommitted" };
            self.settings.metrics.error(reason);
            tracing::warn!(
                component = %self.settings.source,
                partitions = unfinished,
                "partitions went before their records were committed: the next holder repeats the work"
            );
            if self.settings.transactional {
                self.fault(SourceError::Retry("partitions went before their records were committed".to_owned()));
            }
        }
        if let Err(error) = client.incremental_unassign(list) {
            self.fault(SourceError::Retry(format!("cannot give up partitions: {error}")));
        }
        for partition in &partitions {
            self.settings.metrics.forget_lag(&partition.topic, partition.number);
        }
        if !partitions.is_empty() {
            tracing::info!(component = %self.settings.source, partitions = %names(&partitions), lost, "partitions given up");
        }
        self.wake.notify_one();
    }

    /// Where to start newly assigned partitions, asked until it is known. `None` if they are not wanted any more.
    fn starts(&self, context: &Context, client: &Client, partitions: &[Partition]) -> Option<Vec<Start>> {
        loop {
            match self.try_starts(client, partitions) {
                Ok(starts) => return Some(starts),
                Err(error) => {
                    let text = format!("cannot read the group's offsets yet: {error}");
                    if self.seldom.now(&text) {
                        tracing::warn!(component = %self.settings.source, "{text}");
                    }
                }
            }
            if context.is_closing() || client.assignment_lost() {
                return None;
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn try_starts(&self, client: &Client, partitions: &[Partition]) -> KafkaResult<Vec<Start>> {
        if partitions.is_empty() {
            return Ok(Vec::new());
        }
        let names = || partitions.iter().map(|partition| (&*partition.topic, partition.number));
        let committed = committed_offsets(client, names())?;
        let without: BTreeSet<&str> = names()
            .filter(|&(topic, number)| !committed.contains_key(&(topic.to_owned(), number)))
            .map(|(t, _)| t)
            .collect();
        let mut firsts = BTreeMap::new();
        for topic in without {
            if let Some(first) = self.first_start(client, topic)? {
                firsts.extend(first);
            }
        }
        let start = |(topic, number): (&str, i32)| {
            let name = (topic.to_owned(), number);
            if let Some(&offset) = committed.get(&name) {
                return Start { at: offset, committed: Some(offset) };
            }
            firsts
                .get(&name)
                .map_or(Start { at: BEGINNING, committed: None }, |&first| Start { at: first, committed: None })
        };
        Ok(names().map(start).collect())
    }

    /// Where the whole group begins in a topic of which it has no offset; `None` for its beginning.
    ///
    /// `start_at` counts only at the very first start. Its meaning is fixed there for all partitions at once, also for
    /// those that another process holds: to whoever comes later, each of them has an offset.
    fn first_start(&self, client: &Client, topic: &str) -> KafkaResult<Option<BTreeMap<(String, i32), i64>>> {
        if self.settings.start_at == StartAt::Earliest {
            return Ok(None);
        }
        let metadata = client.fetch_metadata(Some(topic), REQUEST)?;
        let numbers: Vec<i32> = metadata
            .topics()
            .iter()
            .filter(|described| described.name() == topic)
            .flat_map(|described| described.partitions().iter().map(rdkafka::metadata::MetadataPartition::id))
            .collect();
        if !committed_offsets(client, numbers.iter().map(|&number| (topic, number)))?.is_empty() {
            return Ok(None);
        }
        let mut starts = BTreeMap::new();
        let mut list = TopicPartitionList::new();
        for number in numbers {
            let (_, newest) = client.fetch_watermarks(topic, number, REQUEST)?;
            list.add_partition_offset(topic, number, Offset::Offset(newest))?;
            starts.insert((topic.to_owned(), number), newest);
        }
        if let Err(error) = client.commit(&list, CommitMode::Sync) {
            // The start stands in memory, so nothing is skipped while this process lives.
            tracing::warn!(component = %self.settings.source, "cannot commit where the group starts: {error}");
        }
        Ok(Some(starts))
    }

    // Errors and statistics, on the polling thread.

    /// Judges an error of the main queue. Returns whether the client survives it.
    fn judge(&self, error: &KafkaError) -> bool {
        let settings = &self.settings;
        if let KafkaError::MessageConsumptionFatal(code) = error {
            let fault = if *code == Code::FencedInstanceId {
                let (group, instance) = (&settings.group, &settings.instance);
                SourceError::Fatal(format!(
                    "another process has joined group `{group}` as `{instance}`: each needs an identity of its own"
                ))
            } else {
                SourceError::Retry(format!("the consumer of group `{}` failed: {error}", settings.group))
            };
            self.state().dead = true;
            self.fault(fault);
            return false;
        }
        let code = error.rdkafka_error_code().unwrap_or(Code::Unknown);
        match code {
            Code::TopicAuthorizationFailed | Code::GroupAuthorizationFailed | Code::ClusterAuthorizationFailed => {
                settings.metrics.error("authorization");
                self.fault(SourceError::Fatal(format!("not allowed to read: {error}")));
            }
            Code::UnknownTopicOrPartition | Code::UnknownTopic => {
                settings.metrics.error("topic_missing");
                if self.seldom.now("topic missing") {
                    let topics = settings.topics.join("`, `");
                    tracing::warn!(component = %settings.source, "waiting for a topic that does not exist yet (of `{topics}`)");
                }
            }
            _ => {
                settings.metrics.error("client");
                let text = error.to_string();
                if self.seldom.now(&text) {
                    tracing::warn!(component = %settings.source, "{text}");
                }
            }
        }
        true
    }

    fn publish_lag(&self, statistics: &[u8]) {
        let Ok(statistics) = serde_json::from_slice::<Statistics>(statistics) else { return };
        let state = self.state();
        for held in state.assignment.held() {
            let Partition { topic, number, .. } = &*held.origin;
            let Some(seen) =
                statistics.topics.get(&**topic).and_then(|topic| topic.partitions.get(&number.to_string()))
            else {
                continue;
            };
            let floor = match state.assignment.floor(&held.origin) {
                Some(BEGINNING) | None => seen.lo_offset,
                Some(offset) => offset,
            };
            if seen.hi_offset >= 0 && floor >= 0 {
                self.settings.metrics.lag(topic, *number, (seen.hi_offset - floor).max(0));
            }
        }
    }

    // Commits, on any thread that may block.

    /// Commits what may be committed on its own.
    fn commit(&self, positions: &Positions) -> Result<(), String> {
        let clock = self.settings.runtime.clock();
        let started = clock.now();
        loop {
            let offsets = self.state().assignment.committable(positions);
            if offsets.is_empty() {
                return Ok(());
            }
            let client = self.client().ok_or("the consumer is closed")?;
            let list = offset_list(&offsets).map_err(|error| error.to_string())?;
            match client.commit(&list, CommitMode::Sync) {
                Ok(()) => {
                    self.note_committed(&offsets);
                    return Ok(());
                }
                // Either the rebalance ends and we still hold them, or we do not, and nothing is left to commit.
                Err(error) if passes(&error) && clock.now().duration_since(started) < COMMIT_LIMIT => {
                    std::thread::sleep(PAUSE);
                }
                Err(error) => return Err(format!("group `{}` did not take the offsets: {error}", self.settings.group)),
            }
        }
    }

    /// The offsets of an epoch, and the membership that makes them legal, taken together under the lock that a rebalance
    /// takes too: offsets go out only for partitions still held, under the assignment they were read in.
    ///
    /// # Errors
    /// Why they must not go out.
    pub(crate) fn for_transaction(&self, positions: &Positions) -> Result<Option<GroupOffsets>, String> {
        let client = self.client().ok_or("the consumer is closed")?;
        let state = self.state();
        let offsets = state.assignment.committable_together(positions)?;
        if offsets.is_empty() {
            return Ok(None);
        }
        let metadata = GroupMetadata::of(&client)
            .ok_or_else(|| format!("this process is not a member of group `{}` right now", self.settings.group))?;
        drop(state);
        let list = offset_list(&offsets).map_err(|error| error.to_string())?;
        Ok(Some(GroupOffsets { offsets, list, metadata }))
    }

    /// Notes what was committed, here or in a transaction.
    pub(crate) fn note_committed(&self, offsets: &[(Arc<Partition>, i64)]) {
        self.state().assignment.committed(offsets.iter().map(|(partition, offset)| (&**partition, *offset)));
    }

    /// Asks the broker what the group has committed, and takes it over. Blocks until transactions in flight are settled.
    pub(crate) fn reload_committed(
        &self,
        partitions: &[Arc<Partition>],
    ) -> Result<BTreeMap<Arc<Partition>, i64>, String> {
        let client = self.client().ok_or("the consumer is closed")?;
        let names = partitions.iter().map(|partition| (&*partition.topic, partition.number));
        let committed = committed_offsets(&client, names).map_err(|error| error.to_string())?;
        let offsets: Vec<_> = partitions
            .iter()
            .filter_map(|partition| {
                let offset = committed.get(&(partition.topic.to_string(), partition.number))?;
                Some((Arc::clone(partition), *offset))
            })
            .collect();
        self.note_committed(&offsets);
        Ok(offsets.into_iter().collect())
    }

    /// The identity of the cluster; `None` if it has none, or does not answer in time.
    pub(crate) fn cluster_id(&self) -> Option<String> {
        self.client()?.client().fetch_cluster_id(REQUEST)
    }

    /// Says in words which records are gone. Blocks.
    pub(crate) fn describe_gap(&self, partition: &Partition, offset: i64) -> SourceError {
        let bounds =
            self.client().and_then(|client| client.fetch_watermarks(&partition.topic, partition.number, REQUEST).ok());
        let gap = match bounds {
            Some((oldest, _)) if offset >= 0 && offset < oldest => format!(
                "the oldest record now has offset {oldest}, so the {} records from {offset} on were deleted unread",
                oldest - offset
            ),
            Some((_, newest)) if offset > newest => {
                format!("the partition ends at {newest}: the topic was deleted and created again, or has lost records")
            }
            _ => "the broker does not have it".to_owned(),
        };
        SourceError::Fatal(format!(
            "partition {partition} cannot be read from offset {offset}: {gap}; decide where group `{}` goes on, and set \
             its offset there",
            self.settings.group
        ))
    }
}

/// The offsets of an epoch, and who sends them.
pub(crate) struct GroupOffsets {
    pub(crate) offsets: Vec<(Arc<Partition>, i64)>,
    pub(crate) list: TopicPartitionList,
    pub(crate) metadata: GroupMetadata,
}

impl GroupSettings {
    fn client_config(&self) -> Result<rdkafka::ClientConfig, String> {
        // Queues are per partition; a message in one costs a few hundred bytes beside its content.
        let queue_kib = (self.memory / 32 / 1024).clamp(256, 2048);
        let defaults = [
            ("queued.max.messages.kbytes", queue_kib.to_string()),
            // The next request is under way while the records of the last one are worked on.
            ("queued.min.messages", (queue_kib * 4).to_string()),
            ("fetch.max.bytes", (self.memory / 16).clamp(1 << 20, 8 << 20).to_string()),
            // A full queue is looked at again after this time; the default of a second would stall a fast reader.
            ("fetch.queue.backoff.ms", "5".to_owned()),
            // One request at a time is under way to a broker, and a partition whose queue is full is not in it. Where the
            // others have nothing new, the full one waits for that request; the default of 500 ms would let a single busy
            // partition stand still for most of the time.
            ("fetch.wait.max.ms", "20".to_owned()),
            // A topic that does not exist yet is found within this time.
            ("topic.metadata.refresh.interval.ms", "5000".to_owned()),
            ("statistics.interval.ms", "5000".to_owned()),
        ];
        let mut fixed = vec![
            ("group.id", self.group.clone()),
            ("group.instance.id", self.instance.clone()),
            ("enable.auto.commit", "false".to_owned()),
            ("enable.auto.offset.store", "false".to_owned()),
            ("auto.offset.reset", "error".to_owned()),
            ("isolation.level", "read_committed".to_owned()),
            ("enable.partition.eof", "false".to_owned()),
            ("allow.auto.create.topics", "false".to_owned()),
        ];
        let mut defaults = defaults.to_vec();
        match self.protocol {
            Protocol::Classic => {
                fixed.push(("partition.assignment.strategy", "cooperative-sticky".to_owned()));
                defaults.push(("session.timeout.ms", "10000".to_owned()));
            }
            Protocol::Consumer => fixed.push(("group.protocol", "consumer".to_owned())),
        }
        self.connection.client_config(&defaults, &fixed)
    }
}

fn keep_polling(client: &Client) {
    let group = &client.context().group;
    while !client.context().is_closing() {
        match client.poll(POLL) {
            None => {}
            Some(Ok(_)) => {
                // All partitions are split off before they are assigned. Better to go back than to lose a record.
                group.fault(SourceError::Retry("a record came on the consumer's main queue".to_owned()));
            }
            Some(Err(error)) if group.judge(&error) => {}
            Some(Err(_)) => break,
        }
    }
    client.context().closing.store(true, Ordering::Release);
    if client.close_queue().is_ok() {
        while !client.closed() {
            client.poll(POLL);
        }
    }
    // The queues must go before the client does.
    let held = std::mem::take(&mut group.state().assignment);
    drop(held);
}

/// Whether a commit that failed so may succeed when the rebalance is over.
fn passes(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            Code::RebalanceInProgress
                | Code::IllegalGeneration
                | Code::UnknownMemberId
                | Code::StaleMemberEpoch
                | Code::CoordinatorLoadInProgress
                | Code::CoordinatorNotAvailable
                | Code::NotCoordinator
                | Code::WaitingForCoordinator
                | Code::RequestTimedOut
                | Code::OperationTimedOut
                | Code::BrokerTransportFailure
                | Code::InProgress
        )
    )
}

fn is_named(partition: &Partition, topic: &str, number: i32) -> bool {
    &*partition.topic == topic && partition.number == number
}

fn names(partitions: &[Partition]) -> String {
    partitions.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

fn offset_list(offsets: &[(Arc<Partition>, i64)]) -> KafkaResult<TopicPartitionList> {
    let mut list = TopicPartitionList::with_capacity(offsets.len());
    for (partition, offset) in offsets {
        list.add_partition_offset(&partition.topic, partition.number, Offset::Offset(*offset))?;
    }
    Ok(list)
}

/// What the group has committed, of the partitions that have an offset at all. Waits until transactions in flight are
/// settled, because the consumer reads committed data only.
fn committed_offsets<'a>(
    client: &Client,
    partitions: impl Iterator<Item = (&'a str, i32)>,
) -> KafkaResult<BTreeMap<(String, i32), i64>> {
    let mut list = TopicPartitionList::new();
    for (topic, number) in partitions {
        list.add_partition(topic, number);
    }
    let mut offsets = BTreeMap::new();
    for element in client.committed_offsets(list, REQUEST)?.elements() {
        element.error()?;
        if let Offset::Offset(offset) = element.offset() {
            offsets.insert((element.topic().to_owned(), element.partition()), offset);
        }
    }
    Ok(offsets)
}

/// The part of librdkafka's statistics that we read.
#[derive(Deserialize)]
struct Statistics {
    topics: BTreeMap<String, TopicStatistics>,
}

#[derive(Deserialize)]
struct TopicStatistics {
    partitions: BTreeMap<String, PartitionStatistics>,
}

#[derive(Deserialize)]
struct PartitionStatistics {
    lo_offset: i64,
    hi_offset: i64,
}

/// Commits the positions of a source to its group.
#[derive(Debug)]
pub(crate) struct GroupPositions(pub(crate) Arc<GroupConsumer>);

impl CommitPositions for GroupPositions {
    fn commit(&self, _: u64, positions: Positions) -> BoxFuture<'_, Result<(), String>> {
        let group = Arc::clone(&self.0);
        Box::pin(async move {
            let runtime = group.settings.runtime.clone();
            runtime.blocking(move || group.commit(&positions)).await
        })
    }
}

/// Drains the partitions of a group in turn, on the worker that needs the records.
pub(crate) struct Reader {
    group: Arc<GroupConsumer>,
    partitions: Vec<Reading>,
    changes: u64,
    turn: usize,
    stop: Option<Stop>,
    headers: HeadersBuilder,
}

struct Reading {
    held: Arc<Held<Queue>>,
    /// How many records make about one batch, by the size of those that came before.
    limit: usize,
}

/// Why a reader cannot go on.
pub(crate) enum Stop {
    /// As it says.
    Error(SourceError),
    /// The broker does not have this offset any more.
    Gap(Arc<Partition>, i64),
}

impl Reader {
    pub(crate) fn new(group: Arc<GroupConsumer>) -> Self {
        Self { group, partitions: Vec::new(), changes: 0, turn: 0, stop: None, headers: HeadersBuilder::default() }
    }

    /// Waits until there may be something to read.
    pub(crate) async fn woken(&self) {
        self.group.wake.notified().await;
    }

    /// The next batch, if there is one.
    pub(crate) fn next(&mut self) -> Result<Option<Pulled>, Stop> {
        if let Some(stop) = self.stop.take() {
            return Err(stop);
        }
        self.look()?;
        for _ in 0..self.partitions.len() {
            self.turn = (self.turn + 1) % self.partitions.len();
            if let Some(pulled) = self.read(self.turn)? {
                return Ok(Some(pulled));
            }
        }
        Ok(None)
    }

    fn look(&mut self) -> Result<(), Stop> {
        let state = self.group.state();
        if let Some(fault) = &state.fault {
            return Err(Stop::Error(fault.clone()));
        }
        if state.assignment.changes() != self.changes {
            self.changes = state.assignment.changes();
            let reading = |held: &Arc<Held<Queue>>| Reading { held: Arc::clone(held), limit: 100 };
            self.partitions = state.assignment.held().map(reading).collect();
        }
        Ok(())
    }

    fn read(&mut self, at: usize) -> Result<Option<Pulled>, Stop> {
        let Reading { held, limit } = &mut self.partitions[at];
        if !held.queue.is_ready() {
            return Ok(None);
        }
        let Some(messages) = held.read(|queue| queue.drain(*limit)) else { return Ok(None) };
        if messages.is_empty() {
            return Ok(None);
        }
        let now = self.group.settings.runtime.clock().timestamp();
        let (pulled, stop) = copy(&messages, held, now, &mut self.headers);
        if let Some(Pulled { batch, .. }) = &pulled {
            let size = batch.bytes().len() / batch.len().max(1) + 1;
            *limit = (BATCH_BYTES / size).clamp(1, BATCH_RECORDS);
        }
        if stop.is_some() {
            held.stalled();
        }
        match pulled {
            Some(pulled) => {
                self.stop = stop;
                Ok(held.yielded(pulled.position.0).then_some(pulled))
            }
            None => stop.map_or(Ok(None), Err),
        }
    }
}

/// Copies messages into one batch, up to the first error.
fn copy(
    messages: &Messages,
    held: &Held<Queue>,
    now: Timestamp,
    headers: &mut HeadersBuilder,
) -> (Option<Pulled>, Option<Stop>) {
    let bytes = messages
        .iter()
        .filter(|message| message.error().is_none())
        .map(|message| message.payload().map_or(0, <[u8]>::len) + message.key().map_or(0, <[u8]>::len))
        .sum();
    let mut batch = BatchBuilder::new(Arc::clone(&held.origin), bytes, messages.len());
    let mut position = None;
    let mut stop = None;
    for message in messages.iter() {
        if let Some(code) = message.error() {
            match code {
                Code::PartitionEOF => continue,
                Code::AutoOffsetReset | Code::OffsetOutOfRange => {
                    stop = Some(Stop::Gap(Arc::clone(&held.origin), message.offset()));
                }
                Code::TopicAuthorizationFailed => {
                    let text = format!("not allowed to read topic `{}`", held.origin.topic);
                    stop = Some(Stop::Error(SourceError::Fatal(text)));
                }
                // librdkafka may go on behind what it could not read. We do not: the same range is read again.
                _ => {
                    let text = format!("cannot read partition {}: {}", held.origin, message.error_text());
                    stop = Some(Stop::Error(SourceError::Retry(text)));
                }
            }
            break;
        }
        headers.clear();
        message.headers(headers);
        let body = message.payload().map_or(ByteRange::default(), |payload| batch.append(payload));
        let key = message.key().map(|key| batch.append(key));
        let header_range =
            if headers.encoded().is_empty() { ByteRange::default() } else { batch.append(headers.encoded()) };
        batch.push(Record {
            body,
            format: if message.payload().is_none() { BodyFormat::Absent } else { BodyFormat::Raw },
            key,
            headers: header_range,
            timestamp: message.timestamp().map_or(now, Timestamp),
            offset: message.offset(),
            ..Record::default()
        });
        position = Some(Position(message.offset() + 1));
    }
    (position.map(|position| Pulled { batch: batch.finish(), position }), stop)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Commits an offset for a group that has no member.
    pub(crate) fn commit_anything(group: &str, topic: &str, number: i32, offset: i64) {
        let mut config = rdkafka::ClientConfig::new();
        config.set("bootstrap.servers", embedded::address().unwrap()).set("group.id", group);
        let consumer: BaseConsumer = config.create().unwrap();
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, number, Offset::Offset(offset)).unwrap();
        consumer.commit(&list, CommitMode::Sync).unwrap();
    }

    /// Gives all partitions up and takes them on again, within one run.
    pub(crate) fn rejoin(group: &GroupConsumer) {
        let client = group.client().unwrap();
        let wait_for = |count: usize| {
            while group.state().assignment.held().count() != count {
                std::thread::sleep(PAUSE);
            }
        };
        let held = group.state().assignment.held().count();
        client.unsubscribe();
        wait_for(0);
        let topics: Vec<&str> = group.settings.topics.iter().map(String::as_str).collect();
        client.subscribe(&topics).unwrap();
        wait_for(held);
    }

    /// Commits an offset as a member of the group, which takes no notice of it.
    pub(crate) fn commit_unnoticed(group: &GroupConsumer, topic: &str, number: i32, offset: i64) {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, number, Offset::Offset(offset)).unwrap();
        group.client().unwrap().commit(&list, CommitMode::Sync).unwrap();
    }

    /// Where a new run would go on.
    pub(crate) fn noted(group: &GroupConsumer, partition: &Partition) -> Option<i64> {
        group.state().assignment.floor(partition)
    }

    #[test]
    fn the_statistics_that_we_read_are_found_among_the_others() {
        let text = br#"{ "name": "x", "ts": 1, "topics": { "orders": { "topic": "orders", "partitions":
            { "0": { "partition": 0, "lo_offset": 3, "hi_offset": 12, "consumer_lag": 4 } } } } }"#;
        let statistics: Statistics = serde_json::from_slice(text).unwrap();
        let partition = &statistics.topics["orders"].partitions["0"];
        assert_eq!((partition.lo_offset, partition.hi_offset), (3, 12));
    }
}
