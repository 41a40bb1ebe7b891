//! What is outside the simulated processes, and survives them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::cluster::{Group, Identity, MemberId, Membership, Offsets, View};
use super::components::PIPELINE;
use super::faults::{Fault, Faults, Step};
use super::mutation::Mutation;
use super::outcome::{Arrival, Delivered};
use super::scenario::{Destination, Scenario};
use crate::clock::{Clock, Instant};
use crate::delivery::checkpoint;
use crate::runtime::{Process, Runtime};

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

/// What a step fails with when another process has taken this one's place.
pub(super) const FENCED: &str = "another process has taken this one's place";

/// What survives the processes, and what goes wrong.
#[derive(Debug)]
pub(super) struct World {
    pub(super) scenario: Scenario,
    started: Instant,
    clock: Clock,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    faults: Faults,
    trace: String,
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
    outage_until: Duration,
    held_until: BTreeMap<usize, Duration>,
    cut_off_until: BTreeMap<usize, Duration>,
    /// When a stop was asked of a process, once it was.
    stopped: BTreeMap<usize, Duration>,
    /// Until when a sink works on what it was given.
    busy_until: BTreeMap<Writer, Duration>,
    /// Which instances were ever held: what a time-out did to them was to be.
    ever_held: BTreeSet<usize>,
    joins: BTreeMap<usize, u32>,
    has_failed_on_purpose: bool,
    breaches: Vec<String>,
    faulted: bool,
}

impl World {
    /// An empty world under a seed. It must be made inside the tokio runtime whose clock it lives by.
    pub(super) fn new(seed: u64, scenario: &Scenario) -> Arc<Self> {
        let clock = Clock::starting_at(Duration::ZERO);
        let mut groups: Vec<_> = scenario.sources.iter().map(|source| Group::new(source.partitions)).collect();
        groups.push(Group::new(1));
        let inner = Inner {
            faults: Faults::new(seed, scenario.faults, scenario.ends, scenario.planned),
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
        Arc::new(Self { scenario: scenario.clone(), started: clock.now(), clock, inner: Mutex::new(inner) })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
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

    /// Whether the positions behind all records are committed.
    pub(super) fn is_done(&self) -> bool {
        let inner = self.inner();
        let sources = self.scenario.sources.iter().enumerate();
        let done = sources.filter(|(_, source)| source.grouped).all(|(at, source)| {
            let committed = inner.groups[at].committed();
            (0..source.partitions).all(|partition| committed.get(&partition) == Some(&source.records))
        });
        drop(inner);
        done && self.scenario.sources.iter().enumerate().all(|(at, source)| source.grouped || self.is_stored(at))
            && (!self.scenario.chained
                || self.committed(self.scenario.sources.len()).get(&0).copied().unwrap_or(0)
                    == i64::try_from(self.log_len()).unwrap_or(0))
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
        self.inner().delivered.clone()
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

/// A process's place in the world: what its components are made with.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) world: Arc<World>,
    pub(super) process: Process,
    pub(super) instance: usize,
    pub(super) runtime: Runtime,
    pub(super) stop: CancellationToken,
}

impl Place {
    /// Takes a step: it may take long, fail, panic, or be the last one of this life.
    ///
    /// # Errors
    /// If the step is to fail.
    ///
    /// # Panics
    /// If the step is to panic.
    pub(super) async fn step(&self, step: Step, what: &str) -> Result<(), String> {
        match self.draw(step, what) {
            None | Some(Fault::Outage(_) | Fault::CutOff(_) | Fault::Stop | Fault::Crash(_)) => {}
            Some(Fault::Error) => return Err(format!("injected at {step:?}")),
            Some(Fault::Fenced) => return Err(FENCED.to_owned()),
            Some(Fault::Panic) => panics(&format!("injected at {step:?}")),
            Some(Fault::Delay(duration)) => self.runtime.sleep(duration).await,
            Some(Fault::Hold(_)) => self.pause().await,
        }
        self.lives().await;
        Ok(())
    }

    /// Resolves as long as the process lives; else never, and nothing behind it happens.
    pub(super) async fn lives(&self) {
        if self.process.is_dead() {
            std::future::pending::<()>().await;
        }
    }

    /// Gives the turn away, so that a process that is held still stops here and nowhere behind.
    async fn pause(&self) {
        self.runtime.sleep(Duration::from_millis(1)).await;
    }

    /// Takes a step that cannot wait.
    ///
    /// # Panics
    /// If anything is to go wrong: computing has no other way to fail.
    pub(super) fn step_now(&self, step: Step, what: &str) {
        match self.draw(step, what) {
            Some(Fault::Error | Fault::Panic) => panics(&format!("injected at {step:?}")),
            _ if self.process.is_dead() => panics(&format!("gone at {step:?}")),
            _ => {}
        }
    }

    fn draw(&self, step: Step, what: &str) -> Option<Fault> {
        let now = self.world.now();
        let mut inner = self.world.inner();
        let fault = if self.process.is_dead() { None } else { inner.faults.draw(step) };
        let _ = write!(inner.trace, "{} {} {step:?} {what}", now.as_millis(), name(self.instance));
        if let Some(fault) = fault {
            let _ = write!(inner.trace, " {fault:?}");
        }
        inner.trace.push('\n');
        if let Some(fault) = fault {
            self.befall(&mut inner, fault);
        }
        fault
    }

    /// Something goes wrong with the process as a whole, or with the world around it.
    fn befall(&self, inner: &mut Inner, fault: Fault) {
        inner.faulted |= fault != Fault::Stop;
        let now = self.world.now();
        match fault {
            Fault::Outage(duration) => inner.outage_until = now + duration,
            Fault::Crash(0) => self.process.kill(),
            Fault::Crash(turns) => {
                let process = self.process.clone();
                self.process.after(turns, move || process.kill());
            }
            Fault::CutOff(duration) => drop(inner.cut_off_until.insert(self.instance, now + duration)),
            Fault::Stop => {
                inner.stopped.insert(self.instance, now);
                self.stop.cancel();
            }
            Fault::Hold(duration) => {
                inner.held_until.insert(self.instance, now + duration);
                inner.ever_held.insert(self.instance);
                self.process.hold();
            }
            Fault::Fenced => inner.has_failed_on_purpose = true,
            Fault::Error | Fault::Panic | Fault::Delay(_) => {}
        }
    }

    /// What is planned for a turn of the first process's first life is laid out for it.
    pub(super) fn plan_ahead(&self) {
        let planned = self.world.inner().faults.at_turn();
        if let Some((turn, fault)) = planned {
            let place = self.clone();
            self.process.after(turn, move || {
                place.note(&format!("turn {turn}: {fault:?}"));
                place.befall(&mut place.world.inner(), fault);
            });
        }
    }

    /// Adds a line to the trace.
    pub(super) fn note(&self, what: &str) {
        self.world.note(name(self.instance), what);
    }

    /// Waits until the sinks reach what they write to.
    pub(super) async fn until_reachable(&self) {
        while self.world.now() < self.world.outage_until() {
            let left = self.world.outage_until().saturating_sub(self.world.now());
            self.runtime.sleep(left).await;
        }
    }

    /// Whether the process reaches its groups.
    pub(super) fn is_cut_off(&self) -> bool {
        let now = self.world.now();
        self.world.inner().cut_off_until.get(&self.instance).is_some_and(|until| now < *until)
    }

    /// Whether the sinks reach what they write to.
    pub(super) fn is_reachable(&self) -> bool {
        self.world.now() >= self.world.outage_until()
    }
}

/// Panics without the noise of the panic hook.
pub(super) fn panics(what: &str) -> ! {
    std::panic::resume_unwind(Box::new(what.to_owned()))
}
