//! A transaction of the world. As the one of Kafka, it works on its own, one call after another, whether or not somebody
//! still waits for the answer; and it asks what became of a commit until it knows.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};

use super::super::cluster::TRANSACTION_TIMEOUT;
use super::super::faults::Step;
use super::super::member::{Committing, Member, Members};
use super::super::mutation::Mutation;
use super::super::outcome::Arrival;
use super::super::place::{FENCED, Place};
use super::super::world::Writer;
use crate::delivery::{Committed, FenceError, SourceOffsets, Transaction};

/// Between two tries of what must succeed.
const PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct SimulatedTransaction {
    place: Place,
    inner: Arc<Inner>,
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
}

type Answer<T> = oneshot::Sender<Result<T, Box<dyn Any + Send>>>;

enum Job {
    Fence(Answer<Result<(), String>>),
    Commit(Vec<SourceOffsets>, Answer<Committed>),
    Abort(Answer<Result<(), String>>),
}

#[derive(Debug)]
struct Inner {
    place: Place,
    /// By which the brokers know this producer's earlier lives.
    id: String,
    is_second: bool,
    members: Arc<Members>,
    epoch: AtomicU32,
    /// Why this run can write no more.
    over: Mutex<Option<String>>,
}

impl SimulatedTransaction {
    pub(super) fn new(place: &Place, pipeline: &str, members: Arc<Members>) -> Self {
        let inner = Inner {
            place: place.clone(),
            id: format!("{pipeline}/{}", place.instance),
            is_second: pipeline == super::SECOND,
            members,
            epoch: AtomicU32::new(0),
            over: Mutex::new(Some("the producer has not taken its identity yet".to_owned())),
        };
        Self { place: place.clone(), inner: Arc::new(inner), jobs: Mutex::new(None) }
    }

    /// Writes into the open transaction.
    pub(super) fn produce(&self, writer: Writer, arrivals: Vec<Arrival>) -> Result<(), String> {
        self.inner.may_write()?;
        let epoch = self.inner.epoch.load(Ordering::Relaxed);
        let produced = self.inner.place.world.produce(&self.inner.id, epoch, writer, arrivals);
        produced.inspect_err(|error| self.inner.set_over(Some(error.clone())))
    }

    async fn ask<T>(&self, job: impl FnOnce(Answer<T>) -> Job) -> T {
        let (done, answer) = oneshot::channel();
        let jobs = {
            let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
            jobs.get_or_insert_with(|| {
                let (jobs, work) = mpsc::channel(8);
                let inner = Arc::clone(&self.inner);
                drop(self.place.runtime.spawn(inner.run(work)));
                jobs
            })
            .clone()
        };
        let _ = jobs.send(job(done)).await;
        match answer.await {
            Ok(Ok(answer)) => answer,
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            // Only when the whole process goes.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Transaction for SimulatedTransaction {
    fn fence(&self) -> BoxFuture<'_, Result<(), FenceError>> {
        async { Ok(self.ask(Job::Fence).await?) }.boxed()
    }

    fn longest_open(&self) -> Option<Duration> {
        (!self.place.world.is_broken_by(Mutation::HidesItsTimeout)).then_some(TRANSACTION_TIMEOUT / 2)
    }

    fn commit(&self, _: u64, offsets: Vec<SourceOffsets>) -> BoxFuture<'_, Committed> {
        self.ask(|done| Job::Commit(offsets, done)).boxed()
    }

    fn abort(&self) -> BoxFuture<'_, Result<(), String>> {
        self.ask(Job::Abort).boxed()
    }
}

/// Offsets on their way, with the member that they belong to.
type Sent = Vec<(Arc<Member>, Committing)>;

impl Inner {
    async fn run(self: Arc<Self>, mut jobs: mpsc::Receiver<Job>) {
        while let Some(job) = jobs.recv().await {
            // Nobody waits for an answer any more if its pipeline was torn down.
            match job {
                Job::Fence(done) => drop(done.send(caught(self.fence()).await)),
                Job::Commit(offsets, done) => {
                    let outcome = caught(self.commit(offsets)).await;
                    if !matches!(outcome, Ok(Committed::Yes)) {
                        self.set_over(Some("the commit failed".to_owned()));
                    }
                    drop(done.send(outcome));
                }
                Job::Abort(done) => drop(done.send(caught(self.abort()).await)),
            }
        }
    }

    fn may_write(&self) -> Result<(), String> {
        self.over.lock().unwrap_or_else(PoisonError::into_inner).clone().map_or(Ok(()), Err)
    }

    fn set_over(&self, over: Option<String>) {
        *self.over.lock().unwrap_or_else(PoisonError::into_inner) = over;
    }

    fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::Relaxed)
    }

    /// Takes the identity anew.
    fn renew(&self) {
        self.epoch.store(self.place.world.init(&self.id), Ordering::Relaxed);
    }

    fn end(&self, commits: bool) -> Result<(), String> {
        self.place.world.speak_again(self.place.instance, self.is_second);
        self.place.world.end_transaction(&self.id, self.epoch(), commits)
    }

    async fn fence(&self) -> Result<(), String> {
        self.place.step(Step::Fence, &self.id).await?;
        if self.epoch() == 0 || !self.place.world.is_broken_by(Mutation::KeepsAborted) {
            self.renew();
        }
        self.place.world.speak_again(self.place.instance, self.is_second);
        self.set_over(None);
        Ok(())
    }

    async fn abort(&self) -> Result<(), String> {
        self.place.step(Step::Abort, &self.id).await?;
        if self.place.world.is_broken_by(Mutation::KeepsAborted) {
            return Ok(());
        }
        self.set_over(Some("the transaction was aborted".to_owned()));
        // A producer that cannot is replaced when the next run is fenced.
        let _ = self.end(false);
        Ok(())
    }

    async fn commit(&self, offsets: Vec<SourceOffsets>) -> Committed {
        if let Err(why) = self.may_write() {
            return Committed::Aborted(why);
        }
        let give_up = |why: String| {
            let _ = self.end(false);
            Committed::Aborted(why)
        };
        if let Err(error) = self.place.step(Step::CommitBefore, &self.id).await {
            if error == FENCED {
                let _ = self.end(false);
                return Committed::Fenced(error);
            }
            if self.place.world.is_broken_by(Mutation::TakesDoubtForCommit) {
                let _ = self.end(false);
                return Committed::Yes;
            }
            return give_up(error);
        }
        let mut sent = Sent::new();
        for SourceOffsets { source, positions } in offsets {
            let Some(member) = self.members.get(&source) else { return give_up("no such source".to_owned()) };
            match member.for_transaction(&positions) {
                Ok(None) => {}
                Ok(Some((membership, offsets))) => {
                    let (world, numbers) = (&self.place.world, offsets.by_number());
                    if let Err(why) = world.send_offsets(&self.id, self.epoch(), member.group, membership, &numbers) {
                        return give_up(why);
                    }
                    sent.push((member, offsets));
                }
                Err(why) => return give_up(why),
            }
        }
        let what = format!("{} {:?}", self.id, sent.iter().map(|(_, offsets)| offsets.by_number()).collect::<Vec<_>>());
        if self.place.step(Step::OffsetsSent, &what).await.is_err() {
            return self.settle(&sent).await;
        }
        if let Err(why) = self.end(true) {
            return Committed::Aborted(why);
        }
        if self.place.step(Step::CommitAfter, &self.id).await.is_err() {
            return self.settle(&sent).await;
        }
        for (member, offsets) in &sent {
            member.note_committed(offsets);
        }
        Committed::Yes
    }

    /// The answer was lost and the producer is of no more use: a new one takes the identity, and the offsets that the
    /// groups have committed tell whether it happened.
    async fn settle(&self, sent: &Sent) -> Committed {
        if self.place.world.is_broken_by(Mutation::TakesDoubtForAbort) {
            return Committed::Aborted("the answer was lost".to_owned());
        }
        self.place.note("asks what became of the commit");
        self.renew();
        let mut happened = !sent.is_empty();
        for (member, offsets) in sent {
            let now = loop {
                self.place.lives().await;
                match self.place.world.fetch_offsets(member.group) {
                    Some(now) => break now,
                    None => self.place.runtime.sleep(PAUSE).await,
                }
            };
            happened &= member.reload_committed(offsets, &now);
        }
        if happened { Committed::Yes } else { Committed::Aborted("the commit did not happen".to_owned()) }
    }
}

async fn caught<T>(work: impl Future<Output = T>) -> Result<T, Box<dyn Any + Send>> {
    AssertUnwindSafe(work).catch_unwind().await
}
