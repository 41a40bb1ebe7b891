//! A local transaction: what participants wrote, and the positions of sources, become durable together in the store.
//!
//! Where all positions are kept in the store, one commit of the store is the transaction. A source that keeps its
//! positions itself, as a Kafka group does, is the judge: the store **prepares** the epoch under a name of its own, the
//! source's commit, which carries the epoch's mark, **decides**, and the store **confirms**. After a crash in between,
//! the source is asked whether it has the mark. One such source can be in a pipeline, for two could disagree.
//!
//! A commit that is abandoned half-way leaves the transaction unfit for use; the next run fences it first, which reads
//! again what is stored and lets all participants go back to it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::Mutex;

use super::checkpoint;
use super::participant::{Changes, Participants};
use super::positions::{CommitPositions, Decision, Mark, Positions};
use super::prepared::Prepared;
use super::transaction::{Committed, FenceError, SourceOffsets, Transaction};
use crate::runtime::Runtime;
use crate::state::{Entries, Store};

/// Who the store is to a judge: drawn at random when it is first needed.
const IDENTITY: &str = "identity";
/// The number of the last mark.
const NUMBER: &str = "number";
/// The epoch that is prepared, and waits for its judge.
const PREPARED: &str = "prepared";

/// The local transaction of a pipeline.
pub struct LocalTransaction {
    scope: String,
    /// What its own entries go by: the domains of a pipeline share a scope. Empty for the first.
    domain: Arc<str>,
    store: Arc<dyn Store>,
    participants: Arc<Participants>,
    /// The source that keeps its positions itself.
    judge: Option<Judge>,
    runtime: Runtime,
    /// Whose turn it is; `None` inside unless it was fenced and nothing went wrong since.
    turn: Mutex<Option<Marks>>,
}

/// A source that keeps its positions itself, and how it commits them.
#[derive(Debug)]
struct Judge {
    source: Arc<str>,
    positions: Arc<dyn CommitPositions>,
}

/// The marks of a store.
#[derive(Debug, Clone)]
struct Marks {
    store: Arc<str>,
    last: u64,
}

impl fmt::Debug for LocalTransaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalTransaction").field("scope", &self.scope).finish_non_exhaustive()
    }
}

impl LocalTransaction {
    /// The transaction of a pipeline whose positions are all kept in the store.
    #[must_use]
    pub fn new(pipeline: &str, store: Arc<dyn Store>, participants: Arc<Participants>, runtime: Runtime) -> Self {
        let scope = checkpoint::scope(pipeline);
        Self { scope, domain: "".into(), store, participants, judge: None, runtime, turn: Mutex::new(None) }
    }

    /// For a domain of the pipeline that is not its first.
    #[must_use]
    pub fn of_domain(mut self, domain: Arc<str>) -> Self {
        self.domain = domain;
        self
    }

    /// Adds the source that keeps its positions itself.
    #[must_use]
    pub fn judged_by(mut self, source: Arc<str>, positions: Arc<dyn CommitPositions>) -> Self {
        self.judge = Some(Judge { source, positions });
        self
    }

    async fn write(&self, changes: Changes) -> Result<(), String> {
        self.store.commit(&self.scope, changes).await.map_err(|error| format!("cannot store the epoch: {error}"))
    }

    /// The key of an entry of the transaction itself: that of a participant without a name.
    fn own(&self, key: &str) -> String {
        let domain = &*self.domain;
        checkpoint::participant_key("", &if domain.is_empty() { key.to_owned() } else { format!("{domain}/{key}") })
    }

    fn value<'a>(&self, entries: &'a Entries, key: &str) -> Option<&'a [u8]> {
        let key = self.own(key);
        entries.iter().find(|(of, _)| *of == key).map(|(_, value)| value.as_slice())
    }

    async fn load(&self) -> Result<Entries, String> {
        self.store.load(&self.scope).await.map_err(|error| error.to_string())
    }

    async fn try_fence(&self) -> Result<Marks, String> {
        let mut entries = self.load().await?;
        let marks = self.marks(&entries).await?;
        if let Some(text) = self.value(&entries, PREPARED) {
            self.settle(Prepared::decode(text)?, &marks).await?;
            entries = self.load().await?;
        }
        self.participants.recover(&entries).await?;
        Ok(marks)
    }

    /// The marks so far. The identity is durable before it is first used.
    async fn marks(&self, entries: &Entries) -> Result<Marks, String> {
        let last = match self.value(entries, NUMBER) {
            None => 0,
            Some(bytes) => u64::from_be_bytes(bytes.try_into().map_err(|_| damaged(NUMBER))?),
        };
        let store = match self.value(entries, IDENTITY) {
            Some(bytes) => std::str::from_utf8(bytes).map_err(|_| damaged(IDENTITY))?.into(),
            None if self.judge.is_none() => Arc::from(""),
            None => {
                let identity = format!("{:016x}", self.runtime.random_below(u64::MAX));
                self.write(vec![(self.own(IDENTITY), Some(identity.clone().into_bytes()))]).await?;
                identity.into()
            }
        };
        Ok(Marks { store, last })
    }

    /// Finds out what became of an epoch that an earlier run, or an earlier process, prepared.
    async fn settle(&self, prepared: Prepared, marks: &Marks) -> Result<(), String> {
        let Some(judge) = self.judge.as_ref().filter(|judge| *judge.source == *prepared.source) else {
            return Err(format!(
                "an epoch waits for the word of the source `{0}`, whose commit decides whether it counts, and the \
                 pipeline has no such source any more: give it back its source `{0}` until it has started once",
                prepared.source
            ));
        };
        let mark = Mark { store: Arc::clone(&marks.store), number: prepared.number };
        let happened = judge.positions.is_decided(mark, prepared.positions).await?;
        tracing::info!(source = %judge.source, happened, "an epoch that a crash left prepared is settled");
        let mut changes = if happened { prepared.changes } else { Changes::new() };
        changes.push((self.own(PREPARED), None));
        self.write(changes).await
    }

    async fn try_commit(&self, marks: &mut Marks, offsets: Vec<SourceOffsets>) -> Committed {
        let mut changes = self.participants.changes();
        let mut judged = None;
        for SourceOffsets { source, positions } in offsets {
            match &self.judge {
                Some(judge) if judge.source == source => judged = Some((judge, positions)),
                _ => changes.extend(checkpoint::encode(&positions)),
            }
        }
        let committed = match judged {
            _ if changes.is_empty() && judged.is_none() => Ok(()),
            None => self.write(changes).await,
            Some((judge, positions)) => match self.commit_judged(judge, marks, positions, changes).await {
                Decision::Yes => Ok(()),
                Decision::No(why) | Decision::Unknown(why) => Err(why),
            },
        };
        match committed {
            Ok(()) => match self.participants.committed().await {
                Ok(()) => Committed::Yes,
                Err(error) => Committed::Aborted(error),
            },
            Err(why) => Committed::Aborted(why),
        }
    }

    /// Prepares, lets the source decide, and confirms.
    async fn commit_judged(
        &self,
        judge: &Judge,
        marks: &mut Marks,
        positions: Positions,
        mut changes: Changes,
    ) -> Decision {
        // A number is never used again, whatever becomes of it: an answer that comes late must not be taken for another.
        marks.last += 1;
        let mark = Mark { store: Arc::clone(&marks.store), number: marks.last };
        let prepared = Prepared {
            number: mark.number,
            source: Arc::clone(&judge.source),
            positions: positions.clone(),
            changes: changes.clone(),
        };
        let number = Some(mark.number.to_be_bytes().to_vec());
        if let Err(why) =
            self.write(vec![(self.own(PREPARED), Some(prepared.encode())), (self.own(NUMBER), number)]).await
        {
            return Decision::No(why);
        }
        match judge.positions.decide(mark, positions).await {
            Decision::Yes => {
                changes.push((self.own(PREPARED), None));
                // It is decided. If it cannot be confirmed now, the next run asks again.
                self.write(changes).await.map_or_else(Decision::Unknown, |()| Decision::Yes)
            }
            Decision::No(why) => {
                // Not needed for the outcome: it spares the next run the question.
                let _ = self.write(vec![(self.own(PREPARED), None)]).await;
                Decision::No(why)
            }
            Decision::Unknown(why) => Decision::Unknown(why),
        }
    }
}

impl Transaction for LocalTransaction {
    fn fence(&self) -> BoxFuture<'_, Result<(), FenceError>> {
        Box::pin(async {
            let mut turn = self.turn.lock().await;
            *turn = None;
            *turn = Some(self.try_fence().await?);
            Ok(())
        })
    }

    fn longest_open(&self) -> Option<Duration> {
        None
    }

    fn commit(&self, _: u64, offsets: Vec<SourceOffsets>) -> BoxFuture<'_, Committed> {
        Box::pin(async {
            let mut turn = self.turn.lock().await;
            // Taken out, so that whoever drops this future half-way leaves nothing behind that could be used.
            let Some(mut marks) = turn.take() else {
                return Committed::Aborted("the local transaction was not fenced".to_owned());
            };
            let outcome = self.try_commit(&mut marks, offsets).await;
            if outcome == Committed::Yes {
                *turn = Some(marks);
            }
            outcome
        })
    }

    fn abort(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async {
            // What was written is cut off when the next run, or the next process, fences it.
            *self.turn.lock().await = None;
            Ok(())
        })
    }
}

fn damaged(key: &str) -> String {
    format!("the stored entry `{key}` of the local transaction is damaged")
}
