//! What takes part in the local commit of a pipeline: files, and whatever else this process writes by itself.
//!
//! A participant tells, at each barrier, what the store must hold so that everything it wrote later can be cut off
//! again. That is committed together with the positions. After a crash, or before a new run, it is handed what is
//! stored, and goes back to it.
//!
//! The calls come in turn: [`recover`](Participant::recover) before a run; then, for each epoch in order and after its
//! sink has flushed at the barrier, [`changes`](Participant::changes) and, once they are committed,
//! [`committed`](Participant::committed).

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use futures::future::BoxFuture;

use super::checkpoint;
use crate::state::{Entries, Store, StoreError};

/// Entries to be written to the store; `None` removes a key.
pub type Changes = Vec<(String, Option<Vec<u8>>)>;

/// Takes part in the local commit of a pipeline.
pub trait Participant: Send + Sync + fmt::Debug {
    /// Its name: its stage's, so that it is the same in every process.
    fn name(&self) -> &str;

    /// What has changed up to the oldest barrier that was not asked for yet. All of it is durable: the sink has flushed.
    fn changes(&self) -> Changes;

    /// What was asked for last is committed. What had to wait for that, as a rename has, is done now.
    ///
    /// # Errors
    /// What went wrong, for a person; the pipeline rewinds, and [`recover`](Self::recover) does it again.
    fn committed(&self) -> BoxFuture<'_, Result<(), String>>;

    /// Cuts off what is not in these entries, which hold all that was ever committed, and completes what is in them.
    /// What an earlier run still does in the background must find no way in afterwards.
    ///
    /// # Errors
    /// What went wrong, for a person; it is tried again.
    fn recover(&self, entries: BTreeMap<String, Vec<u8>>) -> BoxFuture<'_, Result<(), String>>;

    /// The sources have come to their ends, and all is committed: nothing will be written any more.
    ///
    /// # Errors
    /// What went wrong, for a person.
    fn finish(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }
}

/// All participants of a pipeline, kept in its [`crate::component::Clients`]. A sink joins when it is built.
#[derive(Debug, Default)]
pub struct Participants(Mutex<Vec<Arc<dyn Participant>>>);

impl Participants {
    /// Takes one in.
    pub fn join(&self, participant: Arc<dyn Participant>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(participant);
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    pub(crate) fn all(&self) -> Vec<Arc<dyn Participant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What an epoch changes, as entries of the pipeline's scope.
    #[must_use]
    pub fn changes(&self) -> Changes {
        let all = self.all();
        let of_one = |one: &Arc<dyn Participant>| {
            let name = one.name().to_owned();
            one.changes().into_iter().map(move |(key, value)| (checkpoint::participant_key(&name, &key), value))
        };
        all.iter().flat_map(of_one).collect()
    }

    /// The epoch whose changes were asked for last is committed.
    ///
    /// # Errors
    /// What went wrong, for a person; the pipeline rewinds.
    pub async fn committed(&self) -> Result<(), String> {
        for one in self.all() {
            one.committed().await?;
        }
        Ok(())
    }

    /// Goes back to what the entries of the pipeline's scope say.
    ///
    /// # Errors
    /// What went wrong, for a person; it is tried again.
    pub async fn recover(&self, entries: &Entries) -> Result<(), String> {
        for one in self.all() {
            one.recover(checkpoint::participant_entries(one.name(), entries)).await?;
        }
        Ok(())
    }

    /// Everything is committed, and nothing will be written any more.
    ///
    /// # Errors
    /// What went wrong, for a person.
    pub async fn finish(&self) -> Result<(), String> {
        for one in self.all() {
            one.finish().await?;
        }
        Ok(())
    }
}

/// A participant's way to its own entries between two barriers: for what must be durable before it is done, as the claim
/// to a new file is.
#[derive(Debug, Clone)]
pub struct OwnEntries {
    store: Arc<dyn Store>,
    scope: String,
    name: Arc<str>,
}

impl OwnEntries {
    /// Of a participant of a pipeline.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, pipeline: &str, participant: Arc<str>) -> Self {
        Self { store, scope: checkpoint::scope(pipeline), name: participant }
    }

    /// Writes entries at once, all or none. An epoch that is being committed does not know of them.
    pub async fn write(&self, changes: Changes) -> Result<(), StoreError> {
        let named = changes.into_iter().map(|(key, value)| (checkpoint::participant_key(&self.name, &key), value));
        self.store.commit(&self.scope, named.collect()).await
    }
}
