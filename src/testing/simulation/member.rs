//! A simulated member of a consumer group, as the client of the `kafka` source is one: the same record of what is held, and
//! the same order of steps when partitions come and go.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::Notify;

use super::cluster::{MemberId, Membership, Offsets, SESSION, View};
use super::faults::Step;
use super::mutation::Mutation;
use super::place::Place;
use crate::clients::kafka::assignment::{Assignment, BEGINNING, Held};
use crate::component::{EpochRequests, SourceError};
use crate::delivery::{CommitPositions, Decision, FenceError, Mark, Positions};
use crate::record::{Partition, Position};

/// How often a member is heard of.
const HEARTBEAT: Duration = Duration::from_millis(300);
/// How long a revoke waits for the epoch to close.
const REVOKE_LIMIT: Duration = Duration::from_secs(5);
/// Between two looks at an answer.
const LOOK: Duration = Duration::from_millis(20);
/// How long a commit waits for a rebalance to end.
const COMMIT_LIMIT: Duration = Duration::from_secs(5);

const CUT_OFF: &str = "the group cannot be reached";

/// Where the next record of a partition is read.
pub(super) type Queue = AtomicI64;

/// A member of the group of one source. It outlives runs.
#[derive(Debug)]
pub(super) struct Member {
    place: Place,
    pub(super) group: usize,
    source: Arc<str>,
    transactional: bool,
    state: Mutex<State>,
    pub(super) wake: Notify,
}

#[derive(Debug, Default)]
struct State {
    assignment: Assignment<Queue>,
    epochs: Option<EpochRequests>,
    fault: Option<SourceError>,
    id: Option<MemberId>,
    generation: u32,
    heard: Duration,
    is_polled: bool,
    is_closed: bool,
}

impl Member {
    pub(super) fn new(place: Place, group: usize, source: Arc<str>, transactional: bool) -> Self {
        Self { place, group, source, transactional, state: Mutex::default(), wake: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a run: goes back to what was committed, and joins the group if this is the first one.
    pub(super) fn begin_run(self: &Arc<Self>, epochs: EpochRequests) {
        let mut state = self.state();
        state.epochs = Some(epochs);
        state.fault = None;
        let rewinds = state.assignment.rewind();
        for rewind in rewinds {
            if !self.place.world.is_broken_by(Mutation::ForgetsToRewind) {
                rewind.held.read(|queue| queue.store(rewind.to.max(0), Ordering::Relaxed));
            }
            state.assignment.repositioned(&rewind.held.origin);
        }
        let is_first = !std::mem::replace(&mut state.is_polled, true);
        drop(state);
        if is_first {
            let polled = Arc::clone(self);
            drop(self.place.runtime.spawn(async move { polled.keep_polling().await }));
        }
    }

    /// Leaves without a word: the group waits for it to come back, until the session is over.
    pub(super) fn close(&self) {
        self.state().is_closed = true;
    }

    /// What went wrong, once.
    pub(super) fn take_fault(&self) -> Option<SourceError> {
        self.state().fault.take()
    }

    /// All that is held.
    pub(super) fn held(&self) -> Vec<Arc<Held<Queue>>> {
        self.state().assignment.held().cloned().collect()
    }

    async fn keep_polling(&self) {
        let world = &self.place.world;
        while !self.state().is_closed {
            let id = self.state().id;
            if self.place.is_cut_off() {
                // The client knows by itself when its session must be over.
                if id.is_some() && self.place.world.now() >= self.state().heard + SESSION {
                    self.lost().await;
                }
                self.place.runtime.sleep(HEARTBEAT).await;
                continue;
            }
            let id = id.unwrap_or_else(|| {
                let id = world.join(self.group, self.place.instance);
                self.state().id = Some(id);
                id
            });
            match self.hear(id) {
                None => self.lost().await,
                Some(view) => {
                    if !view.gives_up.is_empty() {
                        self.revoke(id, &view.gives_up).await;
                    }
                    self.take_on(&view);
                }
            }
            self.wake.notify_one();
            self.place.runtime.sleep(HEARTBEAT).await;
        }
    }

    /// Says that it lives, and notes the generation that it is in.
    fn hear(&self, id: MemberId) -> Option<View> {
        let view = self.place.world.heartbeat(self.group, id);
        if let Some(view) = &view {
            let mut state = self.state();
            state.generation = view.generation;
            state.heard = self.place.world.now();
        }
        view
    }

    fn partition(&self, number: i32) -> Partition {
        Partition { source: Arc::clone(&self.source), topic: "t".into(), number }
    }

    /// Takes on what is new. What a transaction in flight may still move is taken on later.
    fn take_on(&self, view: &View) {
        let new: Vec<Partition> = view
            .keeps
            .iter()
            .map(|&number| self.partition(number))
            .filter(|p| self.state().assignment.get(p).is_none())
            .collect();
        if new.is_empty() {
            return;
        }
        let Some(offsets) = self.place.world.fetch_offsets(self.group) else { return };
        let mut state = self.state();
        for partition in new {
            let committed = offsets.get(&partition.number).copied();
            self.place.note(&format!("takes on {partition} of {} at {committed:?}", self.source));
            let queue = AtomicI64::new(committed.unwrap_or(0));
            state.assignment.grant(Arc::new(partition), queue, committed.unwrap_or(BEGINNING), committed);
        }
    }

    /// The session was over before it came back: all is somebody else's by now.
    async fn lost(&self) {
        let (partitions, epochs) = {
            let mut state = self.state();
            state.id = None;
            let partitions: Vec<Partition> =
                state.assignment.held().map(|held| Partition::clone(&held.origin)).collect();
            state.assignment.close(&partitions);
            (partitions, state.epochs.clone())
        };
        if partitions.is_empty() {
            return;
        }
        self.place.note(&format!("has lost all of {}", self.source));
        if let Some(answer) = epochs.and_then(|epochs| epochs.say_lost(partitions.clone())) {
            self.wait_for(answer, None).await;
        }
        self.remove(&partitions);
    }

    /// Gives partitions up: first the epoch is closed, so that what was read of them is committed.
    async fn revoke(&self, id: MemberId, numbers: &BTreeSet<i32>) {
        let partitions: Vec<Partition> = numbers.iter().map(|&number| self.partition(number)).collect();
        self.place.note(&format!("gives up {numbers:?} of {}", self.source));
        let epochs = {
            let mut state = self.state();
            state.assignment.close(&partitions);
            state.epochs.clone()
        };
        let epochs = epochs.filter(|_| !self.place.world.is_broken_by(Mutation::LeavesUnclosed));
        // Whatever goes wrong here, the partitions go.
        let _ = self.place.step(Step::Revoke, "").await;
        if let Some(answer) = epochs.and_then(|epochs| epochs.ask_to_close()) {
            self.wait_for(answer, Some(id)).await;
        }
        self.remove(&partitions);
        if !self.place.is_cut_off() {
            self.place.world.release(self.group, id, numbers);
            self.hear(id);
        }
    }

    /// Waits for an answer while the heart beats; not for longer than a revoke may take.
    async fn wait_for(&self, answer: Receiver<bool>, beats: Option<MemberId>) {
        let clock = self.place.runtime.clock();
        let started = clock.now();
        while clock.now().duration_since(started) < REVOKE_LIMIT {
            match answer.try_recv() {
                Ok(_) | Err(TryRecvError::Disconnected) => return,
                Err(TryRecvError::Empty) => self.place.runtime.sleep(LOOK).await,
            }
            if let Some(id) = beats.filter(|_| !self.place.is_cut_off()) {
                self.place.world.heartbeat(self.group, id);
            }
        }
    }

    fn remove(&self, partitions: &[Partition]) {
        let mut state = self.state();
        let unfinished = state.assignment.remove(partitions);
        if unfinished > 0 && self.transactional {
            let why = "partitions went before their records were committed";
            state.fault = Some(SourceError::Retry(why.to_owned()));
        }
        drop(state);
        self.wake.notify_one();
    }

    fn membership(&self) -> Membership {
        let state = self.state();
        state.id.map(|id| (id, state.generation))
    }

    /// The offsets of an epoch and the membership that makes them legal, taken together; `None` if there is nothing to
    /// commit.
    ///
    /// # Errors
    /// Why they must not go out.
    pub(super) fn for_transaction(&self, positions: &Positions) -> Result<Option<(Membership, Committing)>, String> {
        if self.place.is_cut_off() {
            return Err(CUT_OFF.to_owned());
        }
        let state = self.state();
        let offsets = if self.place.world.is_broken_by(Mutation::CommitsLostPositions) {
            Committing::all(positions)
        } else {
            Committing(state.assignment.committable_together(positions)?)
        };
        if offsets.0.is_empty() {
            return Ok(None);
        }
        let membership = state.id.map(|id| (id, state.generation));
        if membership.is_none() && !self.place.world.is_broken_by(Mutation::CommitsAsNobody) {
            return Err("this process is no member of the group right now".to_owned());
        }
        Ok(Some((membership, offsets)))
    }

    /// Notes what was committed.
    pub(super) fn note_committed(&self, committed: &Committing) {
        let offsets = committed.0.iter().map(|(partition, offset)| (&**partition, *offset));
        self.state().assignment.committed(offsets);
    }

    /// Takes over what the group has committed. Returns whether all of these are.
    pub(super) fn reload_committed(&self, sent: &Committing, now: &Offsets) -> bool {
        let known = |(partition, _): &(Arc<Partition>, i64)| {
            now.get(&partition.number).map(|&offset| (Arc::clone(partition), offset))
        };
        self.note_committed(&Committing(sent.0.iter().filter_map(known).collect()));
        sent.0.iter().all(|(partition, offset)| now.get(&partition.number) == Some(offset))
    }

    async fn commit(&self, positions: &Positions) -> Result<(), String> {
        let clock = self.place.runtime.clock();
        let started = clock.now();
        loop {
            self.place.step(Step::GroupBefore, &self.source).await?;
            match self.try_commit(positions) {
                Ok(what) => return self.place.step(Step::GroupAfter, &what).await,
                Err(_) if clock.now().duration_since(started) < COMMIT_LIMIT => {
                    self.place.runtime.sleep(LOOK).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Commits all positions with a mark, or none.
    async fn decide(&self, mark: &Mark, positions: &Positions) -> Decision {
        if let Err(why) = self.place.step(Step::GroupBefore, &self.source).await {
            return Decision::No(why);
        }
        let committing = match self.for_transaction(positions) {
            Ok(committing) => committing,
            Err(why) => return Decision::No(why),
        };
        let Some((membership, offsets)) = committing else {
            return Decision::No("nothing of it is to be committed".to_owned());
        };
        let numbers = offsets.by_number();
        if let Err(why) = self.place.world.commit_marked(self.group, membership, &numbers, mark) {
            return Decision::No(why);
        }
        self.note_committed(&offsets);
        match self.place.step(Step::GroupAfter, &format!("{} {numbers:?}", self.source)).await {
            Ok(()) => Decision::Yes,
            // The answer was lost: who comes next asks the group.
            Err(why) => Decision::Unknown(why),
        }
    }

    /// Whether the group has the mark. Nothing is under way any more: a commit of a group takes no time here.
    async fn is_decided(&self, mark: &Mark, positions: &Positions) -> Result<bool, String> {
        self.place.step(Step::Load, &self.source).await?;
        if self.place.is_cut_off() {
            return Err(CUT_OFF.to_owned());
        }
        if self.place.world.is_broken_by(Mutation::TakesDoubtForAbort) {
            return Ok(false);
        }
        if self.place.world.is_broken_by(Mutation::TakesDoubtForCommit) {
            return Ok(true);
        }
        let partitions = positions.keys().map(|partition| partition.number);
        Ok(self.place.world.is_marked(self.group, partitions, mark))
    }

    /// Commits what may be committed: the look and the commit are one, so that no rebalance comes between them.
    fn try_commit(&self, positions: &Positions) -> Result<String, String> {
        if self.place.is_cut_off() {
            return Err(CUT_OFF.to_owned());
        }
        let offsets = if self.place.world.is_broken_by(Mutation::CommitsLostPositions) {
            Committing::all(positions)
        } else {
            Committing(self.state().assignment.committable(positions))
        };
        if offsets.0.is_empty() {
            return Ok("nothing".to_owned());
        }
        let membership = self.membership();
        if membership.is_none() && !self.place.world.is_broken_by(Mutation::CommitsAsNobody) {
            return Err("this process is no member of the group right now".to_owned());
        }
        let numbers = offsets.by_number();
        self.place.world.commit_offsets(self.group, membership, &numbers)?;
        self.note_committed(&offsets);
        Ok(format!("{} {numbers:?}", self.source))
    }
}

/// Offsets on their way.
#[derive(Debug)]
pub(super) struct Committing(Vec<(Arc<Partition>, i64)>);

impl Committing {
    /// Whether they may be committed is not asked.
    fn all(positions: &Positions) -> Self {
        Self(positions.iter().map(|(partition, Position(at))| (Arc::new(partition.clone()), *at)).collect())
    }

    pub(super) fn by_number(&self) -> Offsets {
        self.0.iter().map(|(partition, offset)| (partition.number, *offset)).collect()
    }
}

/// Commits the positions of a source to its group.
#[derive(Debug)]
pub(super) struct GroupPositions(pub(super) Arc<Member>);

impl CommitPositions for GroupPositions {
    fn commit(&self, _: u64, positions: Positions) -> BoxFuture<'_, Result<(), String>> {
        async move { self.0.commit(&positions).await }.boxed()
    }

    fn decide(&self, mark: Mark, positions: Positions) -> BoxFuture<'_, Decision> {
        async move { self.0.decide(&mark, &positions).await }.boxed()
    }

    fn is_decided(&self, mark: Mark, positions: Positions) -> BoxFuture<'_, Result<bool, FenceError>> {
        async move { Ok(self.0.is_decided(&mark, &positions).await?) }.boxed()
    }
}

/// The members of one pipeline, by the name of the source.
#[derive(Debug, Default)]
pub(super) struct Members(Mutex<BTreeMap<Arc<str>, Arc<Member>>>);

impl Members {
    pub(super) fn add(&self, member: &Arc<Member>) {
        let mut members = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        members.insert(Arc::clone(&member.source), Arc::clone(member));
    }

    pub(super) fn get(&self, source: &str) -> Option<Arc<Member>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(source).cloned()
    }
}
