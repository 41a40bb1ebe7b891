//! The gate that keeps suspects apart: what the sources have under way, and what they may let in next.
//!
//! While nothing is suspected, everything passes, and costs a look per batch. A suspect waits until nothing else is under
//! way; then as many suspects enter as may travel together, and nothing follows them until they are committed. Records of
//! which nothing is suspected go on in between, in epochs of their own and at full speed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::failure::{AtWork, Failure};
use super::suspicion::{Cause, Finding, Ranges, Suspect, Suspicion, advance};
use crate::component::Pulled;
use crate::delivery::Positions;
use crate::record::{Batch, Position, Rejected};

/// What the sources of a pipeline have under way, and who of it is suspected. Its suspicion outlives runs.
#[derive(Debug, Clone, Default)]
pub(super) struct Quarantine(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    /// Woken when somebody may enter who could not.
    changed: Notify,
    /// Whether any record is condemned, and whether suspects are under way: looked at for each batch in each stage.
    has_verdicts: AtomicBool,
    isolated: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    suspicion: Suspicion,
    /// Records that entered and are not committed, in this run.
    records: u64,
    /// Where they stand.
    ranges: Ranges,
    /// They are suspects, and nothing else is under way.
    isolated: bool,
    /// A suspect waits until nothing is under way: nobody else enters.
    waits: bool,
}

impl Quarantine {
    /// Of a pipeline in which these stages try for ever what they cannot do.
    pub(super) fn new(patient: Vec<Arc<str>>) -> Self {
        let state = State { suspicion: Suspicion::new(patient), ..State::default() };
        Self(Arc::new(Inner { state: Mutex::new(state), ..Inner::default() }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A run begins: nothing is under way.
    pub(super) fn begin_run(&self) {
        let mut state = self.state();
        let suspicion = std::mem::take(&mut state.suspicion);
        *state = State { suspicion, ..State::default() };
        self.publish(&state);
    }

    fn publish(&self, state: &State) {
        self.0.has_verdicts.store(state.suspicion.has_verdicts(), Ordering::Release);
        self.0.isolated.store(state.isolated, Ordering::Release);
    }

    /// Waits until a source may pull.
    pub(super) async fn may_pull(&self) {
        self.until(|quarantine| {
            let state = quarantine.state();
            (!state.isolated && !state.waits).then_some(())
        })
        .await;
    }

    /// Lets records at the front of what was pulled enter, if any may, and says how many.
    pub(super) fn admit_now(&self, pulled: &Pulled) -> Option<usize> {
        let mut state = self.state();
        let admitted = state.admit(pulled);
        self.publish(&state);
        admitted
    }

    /// Waits until records at the front of what was pulled may enter, lets them, and says how many.
    pub(super) async fn admit(&self, pulled: &Pulled) -> usize {
        self.until(|_| self.admit_now(pulled)).await
    }

    /// A source no longer waits with what it has pulled.
    pub(super) fn withdraw(&self) {
        self.state().waits = false;
        self.0.changed.notify_waiters();
    }

    async fn until<T>(&self, mut ready: impl FnMut(&Self) -> Option<T>) -> T {
        loop {
            let changed = self.0.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(value) = ready(self) {
                return value;
            }
            changed.await;
        }
    }

    /// So many records are committed, up to these positions.
    pub(super) fn committed(&self, records: u64, positions: &[Positions]) {
        let mut state = self.state();
        state.records = state.records.saturating_sub(records);
        for (partition, &position) in positions.iter().flatten() {
            advance(&mut state.ranges, partition, position);
        }
        let isolated = state.isolated;
        state.suspicion.committed(records, isolated, positions);
        if state.records == 0 {
            state.isolated = false;
            self.0.changed.notify_waiters();
        }
        self.publish(&state);
    }

    /// Draws what follows from the failure of a run.
    pub(super) fn failed(&self, failure: &Failure) -> Finding {
        let cause = match failure {
            Failure::AtWork(AtWork { alone, .. }) => Cause::AtWork(alone.as_ref()),
            Failure::Stalled(_) => Cause::TooSlow,
            _ => return Finding::Nothing,
        };
        let state = &mut *self.state();
        state.suspicion.failed(cause, failure.text(), state.isolated, state.records, &state.ranges)
    }

    /// Whether suspects are under way and nothing else is.
    pub(super) fn is_isolated(&self) -> bool {
        self.0.isolated.load(Ordering::Acquire)
    }

    /// Whether a single suspect is under way, and nothing else: what fails now is it.
    pub(super) fn is_alone(&self) -> bool {
        self.is_isolated() && self.state().records == 1
    }

    /// The only record of a batch, if it is the only one under way.
    pub(super) fn alone(&self, stage: &Arc<str>, batch: &Batch) -> Option<Suspect> {
        match batch.records() {
            [record] if self.is_alone() => Some(Suspect::new(stage, batch, record)),
            _ => None,
        }
    }

    /// Takes out of a batch what its stage is to refuse.
    pub(super) fn sift(&self, stage: &str, batch: Batch) -> (Batch, Vec<Rejected>) {
        if !self.0.has_verdicts.load(Ordering::Acquire) {
            return (batch, Vec::new());
        }
        let state = self.state();
        let (mut kept, mut rejected) = (Vec::with_capacity(batch.len()), Vec::new());
        for record in batch.records() {
            match state.suspicion.verdict(stage, &batch, record) {
                None => kept.push(*record),
                Some(reason) => {
                    rejected.push(Rejected { batch: batch.with_records(vec![*record]), error: reason.to_owned() });
                }
            }
        }
        (batch.with_records(kept), rejected)
    }
}

impl State {
    fn admit(&mut self, pulled: &Pulled) -> Option<usize> {
        let (front, are_suspects) = self.suspicion.front(&pulled.batch, pulled.position);
        let admitted = if are_suspects {
            if self.isolated || self.records > 0 {
                self.waits = true;
                return None;
            }
            self.isolated = true;
            self.waits = false;
            front.min(usize::try_from(self.suspicion.limit()).unwrap_or(usize::MAX))
        } else if self.isolated || self.waits {
            return None;
        } else {
            front
        };
        let admitted = cut_at(&pulled.batch, admitted);
        self.note(pulled, admitted);
        Some(admitted)
    }

    /// Notes that records at the front of what was pulled are under way.
    fn note(&mut self, pulled: &Pulled, records: usize) {
        let batch = &pulled.batch;
        let Some(first) = batch.records().first().filter(|_| records > 0) else { return };
        self.records += records as u64;
        let behind = position_behind(pulled, records);
        match self.ranges.get_mut(&**batch.origin()) {
            Some(range) => range.end = range.end.max(behind),
            None => {
                let front = pulled.position.in_front_of(first.offset);
                self.ranges.insert((**batch.origin()).clone(), front..behind);
            }
        }
    }
}

/// The nearest place at or behind `at` where a batch can be cut: between offsets that rise.
fn cut_at(batch: &Batch, at: usize) -> usize {
    let records = batch.records();
    (at.max(1)..records.len()).find(|&at| records[at - 1].offset < records[at].offset).unwrap_or(records.len())
}

/// The position behind so many records of what was pulled.
fn position_behind(pulled: &Pulled, records: usize) -> Position {
    match pulled.batch.records().get(records) {
        Some(next) => pulled.position.in_front_of(next.offset),
        None => pulled.position,
    }
}

/// Takes so many records off the front of what was pulled; what is left, if there is any, stays.
pub(super) fn take_front(held: &mut Option<Pulled>, records: usize) -> Option<Pulled> {
    let whole = held.take()?;
    if records >= whole.batch.len() {
        return Some(whole);
    }
    let (front, rest) = whole.batch.records().split_at(records);
    let piece = Pulled { batch: whole.batch.with_records(front.to_vec()), position: position_behind(&whole, records) };
    let rest = whole.batch.with_records(rest.to_vec());
    *held = Some(Pulled { batch: rest, position: whole.position });
    Some(piece)
}
