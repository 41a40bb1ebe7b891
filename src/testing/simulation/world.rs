//! What is outside the simulated process, and survives it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::Scenario;
use super::faults::{Fault, Faults, Step};
use crate::record::{Partition, Position};
use crate::runtime::Runtime;

/// A record's name: its partition and its offset there.
pub(super) type Id = (i32, i64);

/// Whether the simulated transform drops this record on purpose.
#[must_use]
pub(super) fn is_dropped((_, offset): Id) -> bool {
    offset % 5 == 4
}

/// Whether the simulated transform refuses this record.
#[must_use]
pub(super) fn is_refused(id: Id) -> bool {
    !is_dropped(id) && id.1 % 7 == 3
}

/// What survives the process, and what goes wrong.
#[derive(Debug)]
pub struct World {
    inner: Mutex<Inner>,
    crashed: Notify,
}

#[derive(Debug)]
struct Inner {
    faults: Faults,
    /// Steps taken, for the trace.
    trace: String,
    runtime: Option<Runtime>,
    has_crashed: bool,
    /// By sink: durable, in order of arrival.
    durable: BTreeMap<&'static str, Vec<Id>>,
    /// By sink: taken over and not made durable yet, or in the open transaction.
    pending: BTreeMap<&'static str, Vec<Id>>,
    /// Offsets committed in transactions.
    offsets: BTreeMap<Partition, Position>,
    store: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
}

impl World {
    /// An empty world under a seed.
    #[must_use]
    pub fn new(seed: u64, scenario: &Scenario) -> Arc<Self> {
        let inner = Inner {
            faults: Faults::new(seed, scenario.faults, scenario.crashes),
            trace: String::new(),
            runtime: None,
            has_crashed: false,
            durable: BTreeMap::new(),
            pending: BTreeMap::new(),
            offsets: BTreeMap::new(),
            store: BTreeMap::new(),
        };
        Arc::new(Self { inner: Mutex::new(inner), crashed: Notify::new() })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new life begins.
    pub fn begin_life(&self, runtime: Runtime) {
        let mut inner = self.inner();
        inner.runtime = Some(runtime);
        inner.has_crashed = false;
        inner.trace.push_str("life\n");
    }

    /// A life ends in order, and its clock with it.
    pub fn end_life(&self, how: &str) {
        let mut inner = self.inner();
        inner.runtime = None;
        let _ = writeln!(inner.trace, "{how}");
    }

    /// After how long this life is asked to stop, if it is.
    pub fn stop_after(&self) -> Option<std::time::Duration> {
        let mut inner = self.inner();
        let random = inner.faults.random();
        (random.u8(0..4) == 0).then(|| std::time::Duration::from_millis(random.u64(0..4_000)))
    }

    /// Adds a line to the trace.
    pub fn note(&self, what: &str) {
        let mut inner = self.inner();
        let at = inner.runtime.as_ref().map_or(0, |runtime| runtime.clock().wall().as_millis());
        let _ = writeln!(inner.trace, "{at} {what}");
    }

    /// Everything that happened, a line each.
    #[must_use]
    pub fn trace(&self) -> String {
        self.inner().trace.clone()
    }

    /// A number below `bound`.
    #[must_use]
    pub fn below(&self, bound: u64) -> u64 {
        self.inner().faults.random().u64(0..bound)
    }

    /// Takes a step: it may take long, fail, panic, or be the last one of this life.
    ///
    /// # Errors
    /// If the step is to fail.
    ///
    /// # Panics
    /// If the step is to panic.
    pub async fn step(&self, step: Step, what: &str) -> Result<(), String> {
        match self.draw(step, what) {
            None => Ok(()),
            Some(Fault::Error) => Err(format!("injected at {step:?}")),
            Some(Fault::Panic) => panics(&format!("injected at {step:?}")),
            Some(Fault::Delay(duration)) => {
                let runtime = self.inner().runtime.clone();
                if let Some(runtime) = runtime {
                    runtime.sleep(duration).await;
                }
                Ok(())
            }
            Some(Fault::Crash) => {
                self.die();
                std::future::pending().await
            }
        }
    }

    /// Takes a step that cannot wait.
    ///
    /// # Panics
    /// If anything is to go wrong: computing has no other way to fail.
    pub fn step_now(&self, step: Step, what: &str) {
        match self.draw(step, what) {
            None | Some(Fault::Delay(_)) => {}
            Some(Fault::Error | Fault::Panic) => panics(&format!("injected at {step:?}")),
            Some(Fault::Crash) => {
                self.die();
                panics(&format!("crashed at {step:?}"));
            }
        }
    }

    fn draw(&self, step: Step, what: &str) -> Option<Fault> {
        let fault = self.inner().faults.draw(step);
        match fault {
            Some(fault) => self.note(&format!("{step:?} {what} {fault:?}")),
            None => self.note(&format!("{step:?} {what}")),
        }
        fault
    }

    fn die(&self) {
        self.inner().has_crashed = true;
        self.crashed.notify_waiters();
    }

    /// Resolves when the process is gone.
    pub async fn crashed(&self) {
        loop {
            let crashed = self.crashed.notified();
            tokio::pin!(crashed);
            crashed.as_mut().enable();
            if self.inner().has_crashed {
                return;
            }
            crashed.await;
        }
    }

    /// The process is gone, and with it what was not durable: of what a plain sink had taken over, any beginning may have
    /// reached the disk.
    pub fn crash(&self) {
        let mut inner = self.inner();
        inner.runtime = None;
        inner.trace.push_str("crashed\n");
        let Inner { faults, durable, pending, .. } = &mut *inner;
        for (sink, taken) in std::mem::take(pending) {
            if !sink.starts_with(TRANSACTIONAL) {
                let survive = faults.random().usize(0..=taken.len());
                durable.entry(sink).or_default().extend(&taken[..survive]);
            }
        }
    }

    /// A sink takes records over.
    pub fn take(&self, sink: &'static str, ids: impl IntoIterator<Item = Id>) {
        self.inner().pending.entry(sink).or_default().extend(ids);
    }

    /// A plain sink makes durable all that it has taken over.
    pub fn make_durable(&self, sink: &'static str) {
        let mut inner = self.inner();
        let taken = inner.pending.remove(sink).unwrap_or_default();
        inner.durable.entry(sink).or_default().extend(taken);
    }

    /// A plain sink opens again in the same life: what it had taken over is written, and some day durable.
    pub fn reopen(&self, sink: &'static str) {
        self.make_durable(sink);
    }

    /// Commits what the transactional sinks have taken over, with offsets.
    pub fn commit(&self, offsets: impl IntoIterator<Item = (Partition, Position)>) {
        let mut inner = self.inner();
        for (sink, taken) in std::mem::take(&mut inner.pending) {
            inner.durable.entry(sink).or_default().extend(taken);
        }
        inner.offsets.extend(offsets);
    }

    /// Drops what the transactional sinks have taken over.
    pub fn abort(&self) {
        self.inner().pending.clear();
    }

    /// The offset committed for a partition.
    #[must_use]
    pub fn offset(&self, partition: &Partition) -> Option<Position> {
        self.inner().offsets.get(partition).copied()
    }

    /// The entries of a scope of the store.
    #[must_use]
    pub fn load(&self, scope: &str) -> Vec<(String, Vec<u8>)> {
        self.inner().store.get(scope).cloned().unwrap_or_default().into_iter().collect()
    }

    /// Writes entries of a scope of the store.
    pub fn store(&self, scope: &str, entries: Vec<(String, Option<Vec<u8>>)>) {
        let mut inner = self.inner();
        let scope = inner.store.entry(scope.to_owned()).or_default();
        for (key, value) in entries {
            match value {
                Some(value) => scope.insert(key, value),
                None => scope.remove(&key),
            };
        }
    }

    /// What a reader of committed data sees now.
    #[must_use]
    pub fn delivered(&self) -> Delivered {
        let inner = self.inner();
        let of = |sinks: [&str; 2]| {
            sinks.iter().flat_map(|sink| inner.durable.get(sink).cloned().unwrap_or_default()).collect()
        };
        Delivered { sink: of([SINK, TRANSACTIONAL_SINK]), dead_letter: of([DEAD_LETTER, TRANSACTIONAL_DEAD_LETTER]) }
    }
}

/// Panics without the noise of the panic hook.
fn panics(what: &str) -> ! {
    std::panic::resume_unwind(Box::new(what.to_owned()))
}

const TRANSACTIONAL: &str = "transactional";
pub(super) const SINK: &str = "sink";
pub(super) const DEAD_LETTER: &str = "dead_letter";
pub(super) const TRANSACTIONAL_SINK: &str = "transactional_sink";
pub(super) const TRANSACTIONAL_DEAD_LETTER: &str = "transactional_dead_letter";

/// What came out, in order of arrival.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivered {
    /// At the sink.
    pub sink: Vec<Id>,
    /// At the dead letter.
    pub dead_letter: Vec<Id>,
}

impl Delivered {
    /// Holds the promise against what came out: nothing is lost, nothing strange appears; and in a transaction nothing is
    /// repeated, and the order of each partition is kept.
    ///
    /// # Errors
    /// Which record breaks which promise.
    pub fn check(&self, scenario: &Scenario) -> Result<(), String> {
        let mut expected: [BTreeSet<Id>; 2] = Default::default();
        for partition in 0..scenario.partitions {
            for offset in 0..scenario.records {
                let id = (partition, offset);
                if !is_dropped(id) {
                    expected[usize::from(is_refused(id))].insert(id);
                }
            }
        }
        for (name, came, expected) in
            [("sink", &self.sink, &expected[0]), ("dead letter", &self.dead_letter, &expected[1])]
        {
            let seen: BTreeSet<Id> = came.iter().copied().collect();
            if let Some(lost) = expected.difference(&seen).next() {
                return Err(format!("{lost:?} was lost on its way to the {name}"));
            }
            if let Some(strange) = seen.difference(expected).next() {
                return Err(format!("{strange:?} does not belong into the {name}"));
            }
            if scenario.transactional {
                if came.len() != seen.len() {
                    return Err(format!("the {name} holds {} records more than once", came.len() - seen.len()));
                }
                let mut last = BTreeMap::new();
                for &(partition, offset) in came {
                    if last.insert(partition, offset).is_some_and(|before| before > offset) {
                        return Err(format!("({partition}, {offset}) came out of order to the {name}"));
                    }
                }
            }
        }
        Ok(())
    }
}
