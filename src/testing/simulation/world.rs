//! What is outside the simulated processes, and survives them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::cluster::{Group, Identity, MemberId, Membership, Offsets, View};
use super::components::{PIPELINE, length};
use super::disk::{Disk, Folder};
use super::faults::Faults;
use super::mutation::Mutation;
use super::outcome::{Arrival, Delivered};
use super::scenario::{Destination, Scenario};
use crate::clients::buffer;
use crate::clock::{Clock, Instant};
use crate::delivery::{Mark, checkpoint};

/// Entries of a store: by scope, by key.
type Stored = BTreeMap<String, BTreeMap<String, Vec<u8>>>;

/// An instance of a sink outside transactions: of a process, by the number of its building.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Writer {
    pub(super) instance: usize,
    /// The sink that it is an instance of, as its plan counts.
    pub(super) sink: (bool, usize),
    pub(super) built: u64,
}

/// What a sink outside transactions was given.
#[derive(Debug, Default)]
struct Taken {
    /// How much of it is durable.
    durable: u64,
    /// What is behind that.
    waiting: Vec<Arrival>,
}

impl Taken {
    fn until(&self) -> u64 {
        self.durable + self.waiting.len() as u64
    }
}

/// What survives the processes, and what goes wrong.
#[derive(Debug)]
pub(super) struct World {
    pub(super) scenario: Scenario,
    pub(super) disk: Disk,
    started: Instant,
    clock: Clock,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) faults: Faults,
    pub(super) trace: String,
    /// Durable, in order of arrival.
    delivered: Delivered,
    /// Taken over by a sink and not made durable yet.
    taken: BTreeMap<Writer, Taken>,
    built: u64,
    /// By instance.
    stores: BTreeMap<usize, Stored>,
    /// By source; the one behind the others is that of the second pipeline.
    groups: Vec<Group>,
    identities: BTreeMap<String, Identity<Arrival>>,
    /// Sinks that have flushed for a transaction that is not committed yet.
    silent: BTreeSet<Writer>,
    pub(super) outage_until: Duration,
    pub(super) held_until: BTreeMap<usize, Duration>,
    pub(super) cut_off_until: BTreeMap<usize, Duration>,
    /// When a stop was asked of a process, once it was.
    pub(super) stopped: BTreeMap<usize, Duration>,
    /// Until when a sink works on what it was given.
    busy_until: BTreeMap<Writer, Duration>,
    /// Which instances were ever held: what a time-out did to them was to be.
    pub(super) ever_held: BTreeSet<usize>,
    joins: BTreeMap<usize, u32>,
    pub(super) has_failed_on_purpose: bool,
    breaches: Vec<String>,
    pub(super) faulted: bool,
}

impl World {
    /// An empty world under a seed. It must be made inside the tokio runtime whose clock it lives by.
    pub(super) fn new(seed: u64, scenario: &Scenario, folder: &Folder) -> Arc<Self> {
        let clock = Clock::starting_at(Duration::ZERO);
        let mut groups: Vec<_> = scenario.sources.iter().map(|source| Group::new(source.partitions)).collect();
        groups.push(Group::new(1));
        let inner = Inner {
            faults: Faults::new(seed, scenario),
            trace: String::new(),
            delivered: Delivered::default(),
            taken: BTreeMap::new(),
            built: 0,
            stores: BTreeMap::new(),
            groups,
            identities: BTreeMap::new(),
            silent: BTreeSet::new(),
            outage_until: Duration::ZERO,
            held_until: BTreeMap::new(),
            cut_off_until: BTreeMap::new(),
            stopped: BTreeMap::new(),
            busy_until: BTreeMap::new(),
            ever_held: BTreeSet::new(),
            joins: BTreeMap::new(),
            has_failed_on_purpose: false,
            breaches: Vec::new(),
            faulted: false,
        };
        let (scenario, disk) = (scenario.clone(), Disk::new(folder.path()));
        Arc::new(Self { scenario, disk, started: clock.now(), clock, inner: Mutex::new(inner) })
    }

    pub(super) fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Time since the world began.
    pub(super) fn now(&self) -> Duration {
        self.clock.now().duration_since(self.started)
    }

    /// Whether this breach is committed on purpose.
    pub(super) fn is_broken_by(&self, mutation: Mutation) -> bool {
        self.scenario.mutation == Some(mutation)
    }

    /// A number below `bound`.
    pub(super) fn below(&self, bound: u64) -> u64 {
        self.inner().faults.random().u64(0..bound)
    }

    /// Adds a line to the trace.
    pub(super) fn note(&self, who: &str, what: &str) {
        let now = self.now().as_millis();
        let _ = writeln!(self.inner().trace, "{now} {who} {what}");
    }

    /// Everything that happened, a line each.
    pub(super) fn trace(&self) -> String {
        self.inner().trace.clone()
    }

    /// Nothing goes wrong any more.
    pub(super) fn calm(&self) {
        let mut inner = self.inner();
        inner.faults.cease();
        inner.outage_until = Duration::ZERO;
        inner.cut_off_until.clear();
    }

    /// Whether anything has gone wrong.
    pub(super) fn has_faulted(&self) -> bool {
        self.inner().faulted
    }

    /// Notes what must not happen.
    pub(super) fn breach(&self, what: String) {
        self.note("!", &what);
        self.inner().breaches.push(what);
    }

    /// The first thing that happened and must not.
    pub(super) fn first_breach(&self) -> Option<String> {
        self.inner().breaches.first().cloned()
    }

    /// Whether a pipeline was told that another process has its place; once.
    pub(super) fn take_failure_on_purpose(&self) -> bool {
        std::mem::take(&mut self.inner().has_failed_on_purpose)
    }

    /// Which instances are to go on now.
    pub(super) fn released(&self) -> Vec<usize> {
        let now = self.now();
        let mut inner = self.inner();
        let due: Vec<usize> = inner.held_until.iter().filter(|(_, until)| now >= **until).map(|(&at, _)| at).collect();
        for instance in &due {
            inner.held_until.remove(instance);
        }
        due
    }

    /// Until when the sinks reach nothing.
    pub(super) fn outage_until(&self) -> Duration {
        self.inner().outage_until
    }

    // Sinks outside transactions.

    /// A sink is built: what its earlier self of a living process had taken over is written by now.
    pub(super) fn build_writer(&self, instance: usize, sink: (bool, usize)) -> Writer {
        let mut inner = self.inner();
        inner.built += 1;
        let built = inner.built;
        let old: Vec<Writer> =
            inner.taken.keys().filter(|w| (w.instance, w.sink) == (instance, sink)).copied().collect();
        for writer in old {
            // Instances for other lanes that were built just now have taken nothing.
            inner.make_durable(writer, u64::MAX);
        }
        Writer { instance, sink, built }
    }

    /// A sink takes records over.
    pub(super) fn take(&self, writer: Writer, arrivals: impl IntoIterator<Item = Arrival>) {
        self.inner().taken.entry(writer).or_default().waiting.extend(arrivals);
    }

    /// A sink makes durable the first so many of all that it has ever taken over.
    pub(super) fn make_durable(&self, writer: Writer, until: u64) {
        self.inner().make_durable(writer, until);
    }

    /// How much a sink has ever taken over.
    pub(super) fn taken(&self, writer: Writer) -> u64 {
        self.inner().taken.get(&writer).map_or(0, Taken::until)
    }

    /// A process is gone, and with it what was not durable: any beginning of it may have reached the disk.
    pub(super) fn crashed(&self, instance: usize) {
        self.note(name(instance), "is gone");
        let mut inner = self.inner();
        let writers: Vec<Writer> = inner.taken.keys().filter(|w| w.instance == instance).copied().collect();
        for writer in writers {
            let (durable, until) = inner.taken.get(&writer).map_or((0, 0), |taken| (taken.durable, taken.until()));
            let survives = inner.faults.random().u64(durable..=until);
            inner.make_durable(writer, survives);
            inner.taken.remove(&writer);
        }
        for (_, identity) in inner.identities.iter_mut().filter(|(id, _)| instance_of(id) == Some(instance)) {
            identity.abandon();
        }
        let torn = self.disk.crashed(instance, inner.faults.random());
        if let Err(error) = torn {
            inner.breaches.push(format!("the disk of the simulation: {error}"));
        }
        inner.silent.retain(|writer| writer.instance != instance);
        inner.held_until.remove(&instance);
        inner.cut_off_until.remove(&instance);
        inner.stopped.remove(&instance);
    }

    /// How long ago a stop was asked of a process, if one was; once.
    pub(super) fn take_stop(&self, instance: usize) -> Option<Duration> {
        let asked = self.inner().stopped.remove(&instance)?;
        Some(self.now().saturating_sub(asked))
    }

    /// A sink takes on one more batch: when it will be through.
    pub(super) fn work(&self, writer: Writer) -> Duration {
        let now = self.now();
        let mut inner = self.inner();
        let until = inner.busy_until.entry(writer).or_default();
        *until = (*until).max(now) + self.scenario.work;
        until.saturating_sub(now)
    }

    /// When a sink will be through with all that it has taken on.
    pub(super) fn work_left(&self, writer: Writer) -> Duration {
        let now = self.now();
        self.inner().busy_until.get(&writer).map_or(Duration::ZERO, |until| until.saturating_sub(now))
    }

    /// Whether the positions behind all records are committed.
    pub(super) fn is_done(&self) -> bool {
        let inner = self.inner();
        let sources = self.scenario.sources.iter().enumerate();
        let done = sources.filter(|(_, source)| source.grouped).all(|(at, source)| {
            let committed = inner.groups[at].committed();
            (0..source.partitions).all(|partition| committed.get(&partition) == Some(&source.records))
        });
        drop(inner);
        done && self.are_buffers_read()
            && self.scenario.sources.iter().enumerate().all(|(at, source)| source.grouped || self.is_stored(at))
            && (!self.scenario.chained
                || self.committed(self.scenario.sources.len()).get(&0).copied().unwrap_or(0)
                    == i64::try_from(self.log_len()).unwrap_or(0))
    }

    /// Whether the positions behind all that the buffers hold are committed.
    fn are_buffers_read(&self) -> bool {
        let entries = self.load(0, &checkpoint::scope(PIPELINE));
        // What a source has decided and the store has not confirmed is not shown to any reader yet.
        if checkpoint::participant_entries("", &entries).keys().any(|key| key.ends_with("prepared")) {
            return false;
        }
        self.disk.buffers(0).iter().all(|stage| {
            let written = buffer::committed(stage, &entries).ok().flatten().unwrap_or_default();
            let read = checkpoint::decode(&buffer::name(stage), &entries).unwrap_or_default();
            let read = read.values().next().and_then(|position| u64::try_from(position.0).ok());
            written.records == 0 || read == Some(written.position)
        })
    }

    /// Whether the store holds the positions behind all records of a source.
    fn is_stored(&self, source: usize) -> bool {
        let entries = self.load(0, &checkpoint::scope(PIPELINE));
        let positions = checkpoint::decode(&format!("in{source}"), &entries).unwrap_or_default();
        let shape = &self.scenario.sources[source];
        let done = positions.values().filter(|position| position.0 == shape.records).count();
        done == usize::try_from(shape.partitions).unwrap_or(0)
    }

    /// What a reader of committed data sees now.
    pub(super) fn delivered(&self) -> Delivered {
        let mut delivered = self.inner().delivered.clone();
        for ((instance, stage), arrivals) in self.disk.files() {
            let entries = self.load(instance, &checkpoint::scope(PIPELINE));
            let length = length(&checkpoint::participant_entries(&stage, &entries));
            arrivals.into_iter().take(length).for_each(|arrival| delivered.push(arrival));
        }
        delivered
    }

    /// How many records the log between the pipelines holds.
    pub(super) fn log_len(&self) -> usize {
        self.inner().delivered.at(Destination::Sink(0)).len()
    }

    /// Records of the log between the pipelines.
    pub(super) fn log(&self, range: std::ops::Range<usize>) -> Vec<Arrival> {
        self.inner().delivered.at(Destination::Sink(0))[range].to_vec()
    }

    // Stores.

    pub(super) fn load(&self, instance: usize, scope: &str) -> Vec<(String, Vec<u8>)> {
        let inner = self.inner();
        let scope = inner.stores.get(&instance).and_then(|store| store.get(scope));
        scope.cloned().unwrap_or_default().into_iter().collect()
    }

    pub(super) fn store(&self, instance: usize, scope: &str, entries: Vec<(String, Option<Vec<u8>>)>) {
        let mut inner = self.inner();
        let scope = inner.stores.entry(instance).or_default().entry(scope.to_owned()).or_default();
        for (key, value) in entries {
            match value {
                Some(value) => scope.insert(key, value),
                None => scope.remove(&key),
            };
        }
    }

    // Groups.

    pub(super) fn join(&self, group: usize, instance: usize) -> MemberId {
        let now = self.now();
        let mut inner = self.inner();
        *inner.joins.entry(instance).or_default() += 1;
        inner.groups[group].join(instance, now)
    }

    /// How often a process has joined a group.
    pub(super) fn joins(&self, instance: usize) -> u32 {
        self.inner().joins.get(&instance).copied().unwrap_or_default()
    }

    pub(super) fn heartbeat(&self, group: usize, member: MemberId) -> Option<View> {
        let now = self.now();
        self.inner().groups[group].heartbeat(member, now)
    }

    pub(super) fn release(&self, group: usize, member: MemberId, partitions: &BTreeSet<i32>) {
        self.inner().groups[group].release(member, partitions);
    }

    /// Commits offsets outside a transaction.
    pub(super) fn commit_offsets(&self, group: usize, by: Membership, offsets: &Offsets) -> Result<(), String> {
        let now = self.now();
        self.admit(group, by, offsets, now)?;
        self.inner().groups[group].commit(offsets);
        Ok(())
    }

    /// Commits offsets with a mark beside them: those of a local transaction, which stands or falls with them.
    pub(super) fn commit_marked(
        &self,
        group: usize,
        by: Membership,
        offsets: &Offsets,
        mark: &Mark,
    ) -> Result<(), String> {
        self.commit_offsets(group, by, offsets)?;
        self.inner().groups[group].mark(offsets.keys().copied(), mark);
        Ok(())
    }

    /// Whether a commit with this mark has moved one of these partitions last.
    pub(super) fn is_marked(&self, group: usize, partitions: impl IntoIterator<Item = i32>, mark: &Mark) -> bool {
        let inner = self.inner();
        partitions.into_iter().any(|partition| inner.groups[group].has_mark(partition, mark))
    }

    /// Asks a group whether it takes offsets, and notes what it takes and should not.
    fn admit(&self, group: usize, by: Membership, offsets: &Offsets, now: Duration) -> Result<(), String> {
        let mut inner = self.inner();
        inner.groups[group].admits(by, now)?;
        let misplaced = inner.groups[group].misplaced(by, offsets);
        drop(inner);
        if let Some(misplaced) = misplaced {
            self.breach(misplaced);
        }
        Ok(())
    }

    /// What a group has committed; `None` while a transaction in flight moves it.
    pub(super) fn fetch_offsets(&self, group: usize) -> Option<Offsets> {
        self.expire();
        let may_move = !self.is_broken_by(Mutation::ReadsUnstableOffsets);
        let inner = self.inner();
        let moves = may_move && inner.identities.values().any(|identity| identity.is_moving(group));
        (!moves).then(|| inner.groups[group].committed().clone())
    }

    /// What a group has committed, as who looks from outside sees it.
    fn committed(&self, group: usize) -> Offsets {
        self.inner().groups[group].committed().clone()
    }

    // Transactions.

    /// Takes an identity.
    pub(super) fn init(&self, id: &str) -> u32 {
        let keeps = self.is_broken_by(Mutation::ForgetsToFence);
        let mut inner = self.inner();
        let identity = inner.identities.entry(id.to_owned()).or_default();
        if keeps && identity.epoch() > 0 { identity.epoch() } else { identity.init() }
    }

    /// Writes into a transaction.
    pub(super) fn produce(
        &self,
        id: &str,
        epoch: u32,
        writer: Writer,
        arrivals: impl IntoIterator<Item = Arrival>,
    ) -> Result<(), String> {
        self.expire();
        let now = self.now();
        let is_silent = self.inner().silent.contains(&writer);
        if is_silent {
            self.breach("a sink wrote between its barrier and the commit".to_owned());
        }
        let mut inner = self.inner();
        let open = inner.identities.entry(id.to_owned()).or_default().open(epoch, now).map_err(|_| fenced())?;
        open.written.extend(arrivals);
        Ok(())
    }

    /// Sends offsets into a transaction.
    pub(super) fn send_offsets(
        &self,
        id: &str,
        epoch: u32,
        group: usize,
        by: Membership,
        offsets: &Offsets,
    ) -> Result<(), String> {
        self.expire();
        let now = self.now();
        self.admit(group, by, offsets, now)?;
        let mut inner = self.inner();
        let open = inner.identities.entry(id.to_owned()).or_default().open(epoch, now).map_err(|_| fenced())?;
        open.may_expire = true;
        open.offsets.entry(group).or_default().extend(offsets);
        Ok(())
    }

    /// Commits or aborts a transaction.
    pub(super) fn end_transaction(&self, id: &str, epoch: u32, commits: bool) -> Result<(), String> {
        self.expire();
        let mut inner = self.inner();
        let open = inner.identities.entry(id.to_owned()).or_default().end(epoch).map_err(|_| fenced())?;
        if let Some(open) = open.filter(|_| commits) {
            for (group, offsets) in &open.offsets {
                inner.groups[*group].commit(offsets);
            }
            for arrival in open.written {
                inner.delivered.push(arrival);
            }
        }
        Ok(())
    }

    /// A transactional sink has come to its barrier.
    pub(super) fn fall_silent(&self, writer: Writer) {
        self.inner().silent.insert(writer);
    }

    /// The transaction of a pipeline has ended: its sinks may write again.
    pub(super) fn speak_again(&self, instance: usize, chained: bool) {
        self.inner().silent.retain(|writer| (writer.instance, writer.sink.0) != (instance, chained));
    }

    /// Aborts transactions that are open for too long. Only a process that was held still, or a commit under way, may come
    /// to that.
    pub(super) fn expire(&self) {
        let now = self.now();
        let mut breaches = Vec::new();
        let mut inner = self.inner();
        let Inner { identities, ever_held, .. } = &mut *inner;
        for (id, identity) in identities.iter_mut() {
            let Some(open) = identity.expire(now) else { continue };
            if !open.may_expire && !instance_of(id).is_some_and(|instance| ever_held.contains(&instance)) {
                breaches.push(format!(
                    "transaction {id} was open for {:?} and had to be aborted",
                    now.saturating_sub(open.since)
                ));
            }
        }
        drop(inner);
        for breach in breaches {
            self.breach(breach);
        }
    }
}

impl Inner {
    fn make_durable(&mut self, writer: Writer, until: u64) {
        let Some(taken) = self.taken.get_mut(&writer) else { return };
        let count = until.saturating_sub(taken.durable).min(taken.waiting.len() as u64);
        taken.durable += count;
        for arrival in taken.waiting.drain(..usize::try_from(count).unwrap_or(0)) {
            self.delivered.push(arrival);
        }
    }
}

/// Whose identity it is.
fn instance_of(id: &str) -> Option<usize> {
    id.rsplit('/').next().and_then(|instance| instance.parse().ok())
}

fn fenced() -> String {
    "another producer has taken the identity".to_owned()
}

/// What a process is called in the trace.
pub(super) fn name(instance: usize) -> &'static str {
    ["a", "b", "c", "d"].get(instance).copied().unwrap_or("z")
}
