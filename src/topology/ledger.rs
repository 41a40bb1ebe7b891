//! Where the positions of a pipeline are committed: the store, the sources themselves, or a transaction.

use std::sync::{Arc, Mutex, PoisonError};

use crate::component::KeepsPositions;
use crate::delivery::{
    CommitPositions, Committed, FenceError, LocalTransaction, Participants, Positions, SourceOffsets, Transaction,
    checkpoint,
};
use crate::record::Position;
use crate::state::Store;

/// What became of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    Committed,
    Aborted(String),
    Fenced(String),
}

/// One source's place in the ledger.
#[derive(Debug)]
pub(super) struct Account {
    pub(super) source: Arc<str>,
    pub(super) keeps: KeepsPositions,
    /// How it commits by itself; `None` unless it keeps its positions itself, or wants to hear of commits.
    pub(super) own: Option<Arc<dyn CommitPositions>>,
    /// What this process knows to be committed.
    pub(super) committed: Mutex<Arc<Positions>>,
}

impl Account {
    /// What this process knows to be committed.
    pub(super) fn committed(&self) -> Arc<Positions> {
        Arc::clone(&self.committed.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Adds what has been committed.
    fn add(&self, positions: Positions) {
        let mut committed = self.committed.lock().unwrap_or_else(PoisonError::into_inner);
        let committed = Arc::make_mut(&mut committed);
        for (partition, position) in positions {
            if position == Position::FORGOTTEN {
                committed.remove(&partition);
            } else {
                committed.insert(partition, position);
            }
        }
    }
}

/// The positions of all sources of a pipeline. It outlives runs.
#[derive(Debug)]
pub(super) struct Ledger {
    pub(super) scope: String,
    pub(super) accounts: Vec<Account>,
    pub(super) store: Arc<dyn Store>,
    /// Commits outputs and positions together, if the pipeline has that.
    pub(super) transaction: Option<Arc<dyn Transaction>>,
    /// What goes back to the last commit before a run, and commits with the positions that the store keeps.
    pub(super) participants: Arc<Participants>,
    /// Settles what they left, also where outputs and positions are not committed together: they may have been once.
    pub(super) local: Arc<LocalTransaction>,
}

impl Ledger {
    /// Before anything is written: settles and cuts off what earlier runs, and earlier processes, left.
    pub(super) async fn fence(&self) -> Result<(), FenceError> {
        match &self.transaction {
            Some(transaction) => transaction.fence().await,
            None if self.participants.is_empty() => Ok(()),
            None => self.local.fence().await,
        }
    }

    /// Reads what is committed in the store, for the sources that keep their positions there. It counts alone: a commit
    /// that was taken for failed may have removed what this process remembers.
    pub(super) async fn load(&self) -> Result<(), String> {
        if self.accounts.iter().all(|account| account.keeps != KeepsPositions::Store) {
            return Ok(());
        }
        let entries = self.store.load(&self.scope).await.map_err(|error| error.to_string())?;
        for account in self.accounts.iter().filter(|account| account.keeps == KeepsPositions::Store) {
            let committed = checkpoint::decode(&account.source, &entries)?;
            *account.committed.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(committed);
        }
        Ok(())
    }

    /// Makes the positions of an epoch durable: one list for each source, in the order of the plan.
    pub(super) async fn commit(&self, epoch: u64, positions: Vec<Positions>) -> Outcome {
        let outcome = match &self.transaction {
            Some(transaction) => self.commit_in(&**transaction, epoch, &positions).await,
            None => self.commit_apart(epoch, &positions).await,
        };
        if outcome == Outcome::Committed {
            for (account, positions) in self.accounts.iter().zip(positions) {
                if let Some(own) = account.own.as_ref().filter(|_| !positions.is_empty()) {
                    own.committed(&positions).await;
                }
                account.add(positions);
            }
        }
        outcome
    }

    async fn commit_in(&self, transaction: &dyn Transaction, epoch: u64, positions: &[Positions]) -> Outcome {
        let offsets = self.accounts.iter().zip(positions).filter(|(_, positions)| !positions.is_empty());
        let offsets = offsets
            .map(|(account, positions)| SourceOffsets {
                source: Arc::clone(&account.source),
                positions: positions.clone(),
            })
            .collect();
        match transaction.commit(epoch, offsets).await {
            Committed::Yes => Outcome::Committed,
            Committed::Aborted(error) => Outcome::Aborted(error),
            Committed::Fenced(error) => Outcome::Fenced(error),
        }
    }

    /// All sinks hold the records: positions may follow, each where it is kept. The store comes first: what participants
    /// have in it must never be behind the positions, or they would cut off what is not read again.
    async fn commit_apart(&self, epoch: u64, positions: &[Positions]) -> Outcome {
        let mut stored = self.participants.changes();
        for (account, positions) in self.accounts.iter().zip(positions) {
            if account.keeps == KeepsPositions::Store {
                stored.extend(checkpoint::encode(positions));
            }
        }
        if !stored.is_empty()
            && let Err(error) = self.store.commit(&self.scope, stored).await
        {
            return Outcome::Aborted(format!("cannot store positions: {error}"));
        }
        for (account, positions) in self.accounts.iter().zip(positions) {
            if positions.is_empty() {
                continue;
            }
            if let Some(own) = &account.own
                && let Err(error) = own.commit(epoch, positions.clone()).await
            {
                return Outcome::Aborted(format!("cannot commit the positions of `{}`: {error}", account.source));
            }
        }
        match self.participants.committed().await {
            Ok(()) => Outcome::Committed,
            Err(error) => Outcome::Aborted(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use futures::future::BoxFuture;

    use super::*;
    use crate::delivery::{Changes, Participant};
    use crate::record::Partition;
    use crate::runtime::Runtime;
    use crate::state::MemoryStore;

    /// Its files cannot be renamed: that is found out when the epoch is in the store.
    #[derive(Debug)]
    struct Stuck;

    impl Participant for Stuck {
        fn name(&self) -> &'static str {
            "out"
        }

        fn changes(&self) -> Changes {
            Changes::new()
        }

        fn committed(&self) -> BoxFuture<'_, Result<(), String>> {
            Box::pin(async { Err("the disk is full".to_owned()) })
        }

        fn recover(&self, _: BTreeMap<String, Vec<u8>>) -> BoxFuture<'_, Result<(), String>> {
            Box::pin(async { Ok(()) })
        }
    }

    fn positions(of: &[(&str, Position)]) -> Positions {
        let partition = |topic: &str| Partition { source: "in".into(), topic: topic.into(), number: 0 };
        of.iter().map(|(topic, position)| (partition(topic), *position)).collect()
    }

    #[tokio::test]
    async fn what_the_store_has_forgotten_is_forgotten_also_if_nobody_heard_of_the_commit() {
        let (store, participants): (Arc<dyn Store>, Arc<Participants>) = (Arc::new(MemoryStore::new()), Arc::default());
        let account =
            Account { source: "in".into(), keeps: KeepsPositions::Store, own: None, committed: Mutex::default() };
        let local = LocalTransaction::new("p", Arc::clone(&store), Arc::clone(&participants), Runtime::system());
        let ledger = Ledger {
            scope: checkpoint::scope("p"),
            accounts: vec![account],
            store,
            transaction: None,
            participants: Arc::clone(&participants),
            local: Arc::new(local),
        };
        let both = positions(&[("gone.log", Position(7)), ("here.log", Position(5))]);
        assert_eq!(ledger.commit(1, vec![both.clone()]).await, Outcome::Committed);
        assert_eq!(*ledger.accounts[0].committed(), both);
        participants.join(Arc::new(Stuck));
        let next = positions(&[("gone.log", Position::FORGOTTEN), ("here.log", Position(9))]);
        assert!(matches!(ledger.commit(2, vec![next]).await, Outcome::Aborted(_)));
        ledger.load().await.unwrap();
        assert_eq!(*ledger.accounts[0].committed(), positions(&[("here.log", Position(9))]));
    }
}
