//! What a stage hands its component.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, mpsc as blocking};
use std::time::Duration;

use tokio::sync::mpsc;

use crate::delivery::{Positions, Transaction};
use crate::observe::StageMetrics;
use crate::record::{Partition, Position};
use crate::runtime::Runtime;
use crate::state::Store;

/// What a component is built with. Building does no I/O: a client connects when it is first used.
#[derive(Debug, Clone)]
pub struct BuildContext {
    /// The pipeline's name.
    pub pipeline: Arc<str>,
    /// The stage's name.
    pub component: Arc<str>,
    /// Who this process is among those that run the same pipeline: stable over its restarts.
    pub instance: Arc<str>,
    /// Where the process keeps what must survive it.
    pub data_dir: Arc<Path>,
    /// The store of the process.
    pub store: Arc<dyn Store>,
    /// The pipeline's memory budget in bytes, from which clients size their own queues.
    pub memory: u64,
    /// Whether outputs and positions are committed in one transaction.
    pub transactional: bool,
    /// Tasks, sleep and blocking work.
    pub runtime: Runtime,
    /// The stage's own metrics.
    pub metrics: StageMetrics,
    /// What the components of this pipeline share.
    pub clients: Clients,
}

/// Clients that the components of one pipeline share; never shared between pipelines. They outlive runs.
#[derive(Debug, Clone, Default)]
pub struct Clients(Arc<Mutex<Shared>>);

#[derive(Default)]
struct Shared {
    by_type: HashMap<TypeId, Arc<dyn Any + Send + Sync>>,
    transaction: Option<Arc<dyn Transaction>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} clients", self.by_type.len())
    }
}

impl Clients {
    /// The pipeline's one `T`, made by the first who asks.
    ///
    /// # Panics
    /// Never: the value under a type's id is of that type.
    pub fn shared<T: Any + Send + Sync>(&self, make: impl FnOnce() -> T) -> Arc<T> {
        let mut shared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let any = shared.by_type.entry(TypeId::of::<T>()).or_insert_with(|| Arc::new(make()));
        Arc::clone(any).downcast().expect("the key is the type's own id")
    }

    /// Declares the transaction in which this pipeline commits. A transactional sink calls it when it is built.
    pub fn set_transaction(&self, transaction: Arc<dyn Transaction>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).transaction = Some(transaction);
    }

    /// The transaction in which this pipeline commits, if there is one.
    #[must_use]
    pub fn transaction(&self) -> Option<Arc<dyn Transaction>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).transaction.clone()
    }
}

/// What a source is given for one run.
#[derive(Debug, Clone)]
pub struct SourceContext {
    /// The last committed position of each partition that this process has committed or loaded. A source that keeps its
    /// positions outside (`KeepsPositions::Source`) finds here only what this process committed.
    pub committed: Arc<Positions>,
    /// Requests to the coordinator of epochs.
    pub epochs: EpochRequests,
    /// Tasks, sleep and blocking work.
    pub runtime: Runtime,
    /// Where the source says what it waits for that is not a record.
    pub waiting: Waiting,
}

/// What a source waits for that is not a record, such as a cluster that is away. `/ready/PIPELINE` tells it, and calls the
/// pipeline stuck once it lasts. Usable from any thread.
#[derive(Debug, Clone, Default)]
pub struct Waiting(Arc<Mutex<Option<String>>>);

impl Waiting {
    /// The source waits for this.
    pub fn set(&self, reason: String) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
    }

    /// The source goes on.
    pub fn clear(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// What it waits for, if it does.
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl SourceContext {
    /// Where to go on reading a partition; `None` if nothing of it was ever committed here.
    #[must_use]
    pub fn resume_from(&self, partition: &Partition) -> Option<Position> {
        self.committed.get(partition).copied()
    }
}

/// A source's word to the coordinator. Usable from any thread, a client's callback thread too.
#[derive(Debug, Clone)]
pub struct EpochRequests {
    requests: mpsc::Sender<EpochRequest>,
}

/// What a source may ask for.
#[derive(Debug)]
pub enum EpochRequest {
    /// Close the open epoch at once and answer whether everything pulled so far was committed.
    Close {
        /// Answered when the epoch is committed; dropped if it never will be.
        done: blocking::SyncSender<bool>,
    },
    /// These partitions are gone, and with them the right to commit their positions. Answered when it is heeded.
    Lost {
        /// Which.
        partitions: Vec<Partition>,
        /// Answered when no later commit will hold one of their positions.
        done: blocking::SyncSender<bool>,
    },
}

impl EpochRequests {
    /// A handle, and the coordinator's end of it.
    #[must_use]
    pub fn channel() -> (Self, mpsc::Receiver<EpochRequest>) {
        let (requests, receiver) = mpsc::channel(16);
        (Self { requests }, receiver)
    }

    /// Asks for the open epoch to be closed, and blocks this thread until all that was pulled so far is committed, or
    /// the time is up. Returns whether it was. Must not be called from an async task.
    #[must_use]
    pub fn close_within(&self, limit: Duration) -> bool {
        let (done, answer) = blocking::sync_channel(1);
        self.requests.blocking_send(EpochRequest::Close { done }).is_ok() && answer.recv_timeout(limit) == Ok(true)
    }

    /// As [`Self::close_within`], for who looks for the answer now and then instead of blocking its thread. `None` if
    /// nobody heard.
    #[must_use]
    pub fn ask_to_close(&self) -> Option<blocking::Receiver<bool>> {
        let (done, answer) = blocking::sync_channel(1);
        self.requests.try_send(EpochRequest::Close { done }).ok().map(|()| answer)
    }

    /// Says that partitions were lost, and blocks this thread until no later commit will hold their positions. Must not
    /// be called from an async task.
    pub fn lost(&self, partitions: Vec<Partition>, limit: Duration) {
        let (done, answer) = blocking::sync_channel(1);
        if self.requests.blocking_send(EpochRequest::Lost { partitions, done }).is_ok() {
            let _ = answer.recv_timeout(limit);
        }
    }

    /// As [`Self::lost`], for who looks for the answer now and then instead of blocking its thread. `None` if nobody heard.
    #[must_use]
    pub fn say_lost(&self, partitions: Vec<Partition>) -> Option<blocking::Receiver<bool>> {
        let (done, answer) = blocking::sync_channel(1);
        self.requests.try_send(EpochRequest::Lost { partitions, done }).ok().map(|()| answer)
    }
}
