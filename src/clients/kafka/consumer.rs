//! A membership in a consumer group, and the thread that keeps it.
//!
//! The thread polls the consumer's main queue: rebalances, errors, statistics. Records never pass there: each partition
//! has a queue of its own, split off before the partition is assigned, which the source's stream drains on the worker
//! that needs the records. The membership outlives runs: a rewind repositions the partitions that moved, in place.
//!
//! On revoke the thread closes the partitions, asks for the epoch to be closed, and gives them up. No lock is held while
//! it waits, because the commit that it waits for takes the same lock on another thread.

mod commit;
mod decide;
mod discovery;
mod judge;
mod offsets;
mod reader;
mod rebalance;
mod settings;
mod statistics;
mod unheld;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaRespErr;
use tokio::sync::Notify;

use super::assignment::{Assignment, BEGINNING, Rewind};
use super::config::Connection;
use super::embedded;
use super::lineage::Lineage;
use super::log::Seldom;
use super::raw::PartitionQueue;
pub(crate) use commit::{GroupOffsets, GroupPositions};
use discovery::Found;
use offsets::{Committed, committed, committed_offsets, offset_list};
pub(crate) use reader::{Reader, Stop};
pub(crate) use settings::GroupSettings;
use unheld::Unheld;

use crate::clock::Instant;
use crate::component::{EpochRequests, SourceError, Waiting};
use crate::delivery::FenceError;
use crate::record::Partition;

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
    /// Held while partitions change hands, and while offsets are on their way: the broker checks who sends an offset, and
    /// never whether the partition is still ours.
    moves: Mutex<()>,
    /// Held by a decision for as long as it takes.
    deciding: Mutex<()>,
    /// Grows when somebody asks what was decided.
    decisions: AtomicU64,
}

#[derive(Default)]
struct State {
    assignment: Assignment<Queue>,
    /// Who has moved the offsets of the partitions that are held.
    lineages: BTreeMap<Arc<Partition>, Lineage>,
    epochs: Option<EpochRequests>,
    /// Why the run cannot go on.
    fault: Option<SourceError>,
    /// The client met an error that it does not survive.
    dead: bool,
    /// Where it says what it waits for.
    waiting: Waiting,
    /// A topic is not there that is read.
    topic_missing: bool,
    /// How many partitions were held at once.
    most_partitions: usize,
    /// When the identity was last given to another member.
    fenced: Option<Instant>,
    found: Found,
    unheld: Unheld,
    /// Makes the polling thread panic.
    #[cfg(test)]
    panics: bool,
}

impl State {
    fn take_fatal(&mut self) -> Option<String> {
        match self.fault.take() {
            Some(SourceError::Fatal(why)) => Some(why),
            other => {
                self.fault = other;
                None
            }
        }
    }

    /// Notes why the run cannot go on. What a person must mend is not hidden by what passes.
    fn set_fault(&mut self, fault: SourceError) {
        if self.fault.is_none() || matches!(fault, SourceError::Fatal(_)) {
            self.fault = Some(fault);
        }
    }
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
    /// How large each of its queues is.
    queue_kib: u64,
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
        self.group.look_at(statistics);
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
        let now = self.group.settings.runtime.clock().now();
        self.group.state().unheld.look_after(now);
    }
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
            moves: Mutex::default(),
            deciding: Mutex::default(),
            decisions: AtomicU64::new(0),
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

    /// A run is over: nothing more is read, and nobody closes its epoch.
    pub(crate) fn end_run(&self, run: u64) {
        let mut state = self.state();
        // Who is still about to begin it finds another number, and does not.
        if self.runs.compare_exchange(run, run + 1, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            state.epochs = None;
        }
    }

    fn moves(&self) -> MutexGuard<'_, ()> {
        self.moves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn client(&self) -> Option<Arc<Client>> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.as_ref().map(|running| Arc::clone(&running.client))
    }

    fn fault(&self, fault: SourceError) {
        self.state().set_fault(fault);
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
    pub(crate) fn begin_run(
        self: &Arc<Self>,
        run: u64,
        epochs: EpochRequests,
        waiting: Waiting,
    ) -> Result<(), SourceError> {
        let _one_at_a_time = self.starting.lock().unwrap_or_else(PoisonError::into_inner);
        if self.runs.load(Ordering::Acquire) != run {
            return Err(SourceError::Retry("a later run has begun".to_owned()));
        }
        let rewinds = loop {
            let mut state = self.state();
            // Found between two runs: joining again would push the other process out.
            if let Some(why) = state.take_fatal() {
                return Err(SourceError::Fatal(why));
            }
            if std::mem::take(&mut state.dead) {
                drop(state);
                self.close();
                continue;
            }
            // It may have ended while we waited.
            if self.runs.load(Ordering::Acquire) != run {
                return Err(SourceError::Retry("the run is over".to_owned()));
            }
            state.epochs = Some(epochs);
            // What an earlier run waited for is waited for until the next look.
            let former = std::mem::replace(&mut state.waiting, waiting).reason();
            if let Some(reason) = former {
                state.waiting.set(reason);
            }
            state.fault = None;
            break state.assignment.rewind();
        };
        match self.client() {
            None => self.join().map_err(SourceError::Retry),
            Some(client) if rewinds.is_empty() => {
                drop(client);
                Ok(())
            }
            Some(client) => self
                .reposition(&client, rewinds)
                .map_err(|error| SourceError::Retry(format!("cannot go back to the committed offsets: {error}"))),
        }
    }

    /// Joins the group, unless this process is about to or has. Blocks.
    fn join_if_needed(self: &Arc<Self>) -> Result<(), FenceError> {
        let _one_at_a_time = self.starting.lock().unwrap_or_else(PoisonError::into_inner);
        // Joining again would push the other process out.
        if let Some(why) = self.take_fatal() {
            return Err(FenceError::Fatal(why));
        }
        let is_dead = std::mem::take(&mut self.state().dead);
        if is_dead {
            self.close();
        }
        if self.client().is_some() { Ok(()) } else { Ok(self.join()?) }
    }

    fn join(self: &Arc<Self>) -> Result<(), String> {
        let settings = &self.settings;
        if settings.connection.is_embedded() {
            settings.topics.names().iter().try_for_each(|topic| embedded::create_topic(topic))?;
        }
        let queue_kib = settings.queue_kib(1);
        let mut client = self.new_client(queue_kib)?;
        // Where nobody says yet, it shows when they are assigned.
        let count = self.count_partitions(&client).unwrap_or(1).max(self.state().most_partitions);
        if settings.queue_kib(count) < queue_kib {
            client = self.new_client(settings.queue_kib(count))?;
        }
        // It is set once, here.
        let _ = client.context().client.set(Arc::downgrade(&client));
        // What a former client had subscribed to is subscribed to again; what started once does not start anew.
        self.state().found.forget_subscription();
        self.subscribe(&client)?;
        let polled = Arc::clone(&client);
        let thread = std::thread::Builder::new()
            .name("kafka-consumer".to_owned())
            .spawn(move || keep_polling(&polled))
            .map_err(|error| format!("cannot start a thread: {error}"))?;
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = Some(Running { client, thread });
        Ok(())
    }

    fn new_client(self: &Arc<Self>, queue_kib: u64) -> Result<Arc<Client>, String> {
        let config = self.settings.client_config(queue_kib)?;
        let context =
            Context { group: Arc::clone(self), client: OnceLock::new(), closing: AtomicBool::new(false), queue_kib };
        config.create_with_context(context).map(Arc::new).map_err(|error| error.to_string())
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

    fn reposition(&self, client: &Client, mut rewinds: Vec<Rewind<Queue>>) -> KafkaResult<()> {
        // A partition that was taken away since must not be taken on again.
        let _still = self.moves();
        rewinds.retain(|Rewind { held, .. }| {
            self.state().assignment.get(&held.origin).is_some_and(|current| Arc::ptr_eq(current, held))
        });
        let mut seeks = TopicPartitionList::new();
        let mut stalled = TopicPartitionList::new();
        for Rewind { held, to, stalled: is_stalled } in &rewinds {
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
            // They would be given up as if that were our wish, and the group would take us for one that has them still.
            if client.assignment_lost() {
                return Err(KafkaError::Seek("the group has taken the partitions away".to_owned()));
            }
            // Only a new assignment makes librdkafka fetch again.
            if self.settings.is_incremental() {
                client.incremental_unassign(&stalled)?;
                client.incremental_assign(&stalled)?;
            } else {
                client.assign(&self.whole_assignment()?)?;
            }
        }
        let mut state = self.state();
        for Rewind { held, .. } in rewinds {
            state.assignment.repositioned(&held.origin);
            held.queue.set_ready();
        }
        Ok(())
    }

    /// Everything that is held, from where it goes on after a rewind.
    fn whole_assignment(&self) -> KafkaResult<TopicPartitionList> {
        let state = self.state();
        let mut all = TopicPartitionList::new();
        for held in state.assignment.held() {
            all.add_partition_offset(&held.origin.topic, held.origin.number, Offset::from_raw(held.resume()))?;
        }
        Ok(all)
    }

    /// Whether its client is of no more use: the next run joins anew, and asks the broker for the offsets.
    pub(crate) fn is_given_up(&self) -> bool {
        self.state().dead
    }

    /// Why this process must not go on as the member that it was, if that was found and nobody was told.
    pub(crate) fn take_fatal(&self) -> Option<String> {
        self.state().take_fatal()
    }

    /// How to reach the cluster.
    pub(crate) fn connection(&self) -> &Connection {
        &self.settings.connection
    }

    /// The identity of the cluster, also before the group is joined; `None` if the cluster does not answer in time. Blocks.
    pub(crate) fn ask_cluster_id(&self) -> Option<String> {
        if let Some(client) = self.client() {
            return client.client().fetch_cluster_id(REQUEST);
        }
        let client: BaseConsumer = self.settings.connection.client_config(&[], &[]).ok()?.create().ok()?;
        client.client().fetch_cluster_id(REQUEST)
    }
}

/// Tells the run that reads if the polling thread panics: its records would stay away for ever.
struct Watched<'a>(&'a GroupConsumer);

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The queues must go before the client does.
            let held = std::mem::take(&mut self.0.state().assignment);
            drop(held);
            self.0.give_up(SourceError::Retry("the thread of the consumer has panicked".to_owned()));
        }
    }
}

fn keep_polling(client: &Client) {
    let group = &client.context().group;
    let _watched = Watched(group);
    while !client.context().is_closing() && group.look_for_topics(client) {
        #[cfg(test)]
        assert!(!std::mem::take(&mut group.state().panics), "as a test has asked");
        group.claim_what_nobody_holds(client);
        match client.poll(POLL) {
            None => {}
            Some(Ok(_)) => {
                // All partitions are split off before they are assigned. Better to begin anew than to lose a record.
                group.give_up(SourceError::Retry("a record came on the consumer's main queue".to_owned()));
                break;
            }
            Some(Err(error)) if group.judge(client, &error) => {}
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

fn is_named(partition: &Partition, topic: &str, number: i32) -> bool {
    &*partition.topic == topic && partition.number == number
}

fn names(partitions: &[Partition]) -> String {
    partitions.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
pub(crate) mod tests {
    use rdkafka::consumer::CommitMode;

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
        group.subscribe(&client).unwrap();
        wait_for(held);
    }

    /// Commits an offset as a member of the group, which takes no notice of it.
    pub(crate) fn commit_unnoticed(group: &GroupConsumer, topic: &str, number: i32, offset: i64) {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, number, Offset::Offset(offset)).unwrap();
        group.client().unwrap().commit(&list, CommitMode::Sync).unwrap();
    }

    /// Makes the polling thread panic.
    pub(crate) fn panic_soon(group: &GroupConsumer) {
        group.state().panics = true;
    }

    /// Where a new run would go on.
    pub(crate) fn noted(group: &GroupConsumer, partition: &Partition) -> Option<i64> {
        group.state().assignment.get(partition).map(|held| held.resume())
    }
}
