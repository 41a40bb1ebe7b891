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

    async fn try_fence(&self) -> Result<Marks, FenceError> {
        let mut entries = self.load().await?;
        let marks = self.marks(&entries).await?;
        if let Some(text) = self.value(&entries, PREPARED) {
            self.settle(Prepared::decode(text).map_err(FenceError::Fatal)?, &marks).await?;
            entries = self.load().await?;
        }
        self.participants.recover(&entries).await?;
        Ok(marks)
    }

    /// The marks so far. The identity is durable before it is first used.
    async fn marks(&self, entries: &Entries) -> Result<Marks, FenceError> {
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
    async fn settle(&self, prepared: Prepared, marks: &Marks) -> Result<(), FenceError> {
        let Some(judge) = self.judge.as_ref().filter(|judge| *judge.source == *prepared.source) else {
            return Err(FenceError::Fatal(format!(
                "an epoch waits for the word of the source `{0}`, whose commit decides whether it counts, and the \
                 pipeline has no such source any more: give it back its source `{0}` until it has started once",
                prepared.source
            )));
        };
        let mark = Mark { store: Arc::clone(&marks.store), number: prepared.number };
        let happened = judge.positions.is_decided(mark, prepared.positions).await?;
        tracing::info!(source = %judge.source, happened, "an epoch that a crash left prepared is settled");
        let mut changes = if happened { prepared.changes } else { Changes::new() };
        changes.push((self.own(PREPARED), None));
        Ok(self.write(changes).await?)
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

fn damaged(key: &str) -> FenceError {
    FenceError::Fatal(format!(
        "the stored entry `{key}` of the local transaction is damaged: restore the data folder from a backup"
    ))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex as Lock;

    use futures::FutureExt;

    use super::*;
    use crate::delivery::Participant;
    use crate::record::{Partition, Position};
    use crate::state::MemoryStore;

    /// Remembers what it is told; its only entry is how often it was asked.
    #[derive(Debug, Default)]
    struct Remembers {
        asked: Lock<u8>,
        recovered: Lock<Vec<Option<u8>>>,
    }

    impl Participant for Remembers {
        fn name(&self) -> &'static str {
            "out"
        }

        fn changes(&self) -> Changes {
            *self.asked.lock().unwrap() += 1;
            vec![("asked".to_owned(), Some(vec![*self.asked.lock().unwrap()]))]
        }

        fn committed(&self) -> BoxFuture<'_, Result<(), String>> {
            futures::future::ready(Ok(())).boxed()
        }

        fn recover(&self, entries: std::collections::BTreeMap<String, Vec<u8>>) -> BoxFuture<'_, Result<(), String>> {
            self.recovered.lock().unwrap().push(entries.get("asked").map(|value| value[0]));
            futures::future::ready(Ok(())).boxed()
        }
    }

    /// Answers as it is told, and remembers the marks.
    #[derive(Debug)]
    struct Says {
        answer: Lock<Decision>,
        was_decided: bool,
        marks: Lock<Vec<Mark>>,
    }

    impl CommitPositions for Says {
        fn commit(&self, _: u64, _: Positions) -> BoxFuture<'_, Result<(), String>> {
            unreachable!("it is asked to decide")
        }

        fn decide(&self, mark: Mark, _: Positions) -> BoxFuture<'_, Decision> {
            self.marks.lock().unwrap().push(mark);
            futures::future::ready(self.answer.lock().unwrap().clone()).boxed()
        }

        fn is_decided(&self, mark: Mark, _: Positions) -> BoxFuture<'_, Result<bool, FenceError>> {
            self.marks.lock().unwrap().push(mark);
            futures::future::ready(Ok(self.was_decided)).boxed()
        }
    }

    fn says(answer: Decision, was_decided: bool) -> Arc<Says> {
        Arc::new(Says { answer: Lock::new(answer), was_decided, marks: Lock::default() })
    }

    fn transaction(store: &MemoryStore) -> (LocalTransaction, Arc<Remembers>) {
        let (participants, out) = (Arc::new(Participants::default()), Arc::<Remembers>::default());
        participants.join(Arc::clone(&out) as Arc<dyn Participant>);
        let store = Arc::new(store.clone());
        (LocalTransaction::new("test", store, participants, Runtime::simulated(1)), out)
    }

    fn offsets(source: &str, at: i64) -> SourceOffsets {
        let partition = Partition { source: source.into(), topic: "t".into(), number: 0 };
        SourceOffsets { source: source.into(), positions: Positions::from([(partition, Position(at))]) }
    }

    async fn stored(store: &MemoryStore, source: &str) -> Option<i64> {
        let entries = store.load(&checkpoint::scope("test")).await.unwrap();
        checkpoint::decode(source, &entries).unwrap().into_values().next().map(|position| position.0)
    }

    #[tokio::test]
    async fn rule_32_positions_and_what_sinks_hold_are_one_commit_of_the_store() {
        let store = MemoryStore::new();
        let (local, _) = transaction(&store);
        local.fence().await.unwrap();
        let before = store.commits();
        assert_eq!(local.commit(1, vec![offsets("in", 7), offsets("other", 8)]).await, Committed::Yes);
        assert_eq!(store.commits(), before + 1);
        assert_eq!((stored(&store, "in").await, stored(&store, "other").await), (Some(7), Some(8)));
        let (next, out) = transaction(&store);
        next.fence().await.unwrap();
        assert_eq!(*out.recovered.lock().unwrap(), [Some(1)]);
    }

    #[tokio::test]
    async fn nothing_is_committed_after_a_failure_until_it_is_fenced() {
        let store = MemoryStore::new();
        let (local, _) = transaction(&store);
        let not_fenced = Committed::Aborted("the local transaction was not fenced".to_owned());
        assert_eq!(local.commit(1, vec![offsets("in", 1)]).await, not_fenced);
        local.fence().await.unwrap();
        store.fail_next(1);
        assert!(matches!(local.commit(1, vec![offsets("in", 1)]).await, Committed::Aborted(_)));
        assert_eq!(local.commit(2, vec![offsets("in", 2)]).await, not_fenced);
        local.fence().await.unwrap();
        // Whoever drops a commit half-way leaves nothing that could be used either.
        drop(local.commit(3, vec![offsets("in", 3)]));
        let turn = local.turn.lock().await;
        let mut commit = local.commit(3, vec![offsets("in", 3)]);
        assert!((&mut commit).now_or_never().is_none());
        drop((commit, turn));
        assert_eq!(local.commit(3, vec![offsets("in", 3)]).await, Committed::Yes);
        local.abort().await.unwrap();
        assert_eq!(local.commit(4, vec![offsets("in", 4)]).await, not_fenced);
        assert_eq!(stored(&store, "in").await, Some(3));
    }

    #[tokio::test]
    async fn what_the_judge_refuses_is_not_stored_and_its_number_is_not_used_again() {
        let store = MemoryStore::new();
        let judge = says(Decision::No("the generation is over".to_owned()), false);
        for _ in 0..2 {
            let (local, out) = transaction(&store);
            let local = local.judged_by("group".into(), Arc::clone(&judge) as Arc<dyn CommitPositions>);
            for _ in 0..2 {
                local.fence().await.unwrap();
                let outcome = local.commit(1, vec![offsets("group", 1), offsets("in", 1)]).await;
                assert_eq!(outcome, Committed::Aborted("the generation is over".to_owned()));
            }
            assert_eq!(*out.recovered.lock().unwrap(), [None, None]);
        }
        assert_eq!(stored(&store, "in").await, None);
        let marks = judge.marks.lock().unwrap().clone();
        assert_eq!(marks.iter().map(|mark| mark.number).collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert!(marks.iter().all(|mark| mark.store == marks[0].store && mark.store.len() == 16));
    }

    #[tokio::test]
    async fn an_epoch_whose_outcome_is_not_known_is_asked_for_by_the_next_run() {
        for was_decided in [true, false] {
            let store = MemoryStore::new();
            let judge = says(Decision::Unknown("stopping".to_owned()), was_decided);
            let (local, _) = transaction(&store);
            let local = local.judged_by("group".into(), Arc::clone(&judge) as Arc<dyn CommitPositions>);
            local.fence().await.unwrap();
            let outcome = local.commit(1, vec![offsets("group", 1), offsets("in", 1)]).await;
            assert_eq!(outcome, Committed::Aborted("stopping".to_owned()));
            assert_eq!(stored(&store, "in").await, None);

            let (next, out) = transaction(&store);
            let next = next.judged_by("group".into(), Arc::clone(&judge) as Arc<dyn CommitPositions>);
            next.fence().await.unwrap();
            next.fence().await.unwrap();
            let marks = judge.marks.lock().unwrap().clone();
            assert_eq!(marks, [marks[0].clone(), marks[0].clone()], "decided once, asked once");
            assert_eq!(stored(&store, "in").await, was_decided.then_some(1));
            let recovered = was_decided.then_some(1);
            assert_eq!(*out.recovered.lock().unwrap(), [recovered, recovered]);
        }
    }

    #[tokio::test]
    async fn an_epoch_whose_judge_has_left_the_pipeline_names_it() {
        let store = MemoryStore::new();
        let (local, _) = transaction(&store);
        let local = local.judged_by("group".into(), says(Decision::Unknown("stopping".to_owned()), true) as _);
        local.fence().await.unwrap();
        local.commit(1, vec![offsets("group", 1)]).await;
        for local in [transaction(&store).0, transaction(&store).0.judged_by("other".into(), says(Decision::Yes, true))]
        {
            let Err(FenceError::Fatal(error)) = local.fence().await else { panic!("nobody knows what became of it") };
            assert!(error.contains("`group`") && error.contains("give it back"), "{error}");
        }
    }
}
