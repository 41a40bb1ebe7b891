//! Commits of positions on their own, or as a part of a transaction. On any thread that may block.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::BoxFuture;
use rdkafka::consumer::{CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::topic_partition_list::TopicPartitionList;

use super::{COMMIT_LIMIT, GroupConsumer, PAUSE, committed_offsets, offset_list};
use crate::clients::kafka::raw::GroupMetadata;
use crate::delivery::{CommitPositions, Decision, FenceError, Mark, Positions};
use crate::record::Partition;

impl GroupConsumer {
    /// Commits what may be committed on its own.
    fn commit(&self, positions: &Positions) -> Result<(), String> {
        let clock = self.settings.runtime.clock();
        let started = clock.now();
        loop {
            let still = self.moves();
            let offsets = self.state().assignment.committable(positions);
            if offsets.is_empty() {
                return Ok(());
            }
            let client = self.client().ok_or("the consumer is closed")?;
            let list = offset_list(&offsets).map_err(|error| error.to_string())?;
            let committed = if GroupMetadata::of(&client).is_some() {
                client.commit(&list, CommitMode::Sync)
            } else {
                // An offset of nobody would be taken by a group that has become empty, whoever had read it.
                Err(KafkaError::ConsumerCommit(Code::RebalanceInProgress))
            };
            match committed {
                // Noted while nothing moves: a partition that is taken away next is known to be committed.
                Ok(()) => {
                    self.note_committed(&offsets);
                    return Ok(());
                }
                // Either the rebalance ends and we still hold them, or we do not, and nothing is left to commit.
                Err(error) if passes(&error) && clock.now().duration_since(started) < COMMIT_LIMIT => {
                    drop(still);
                    std::thread::sleep(PAUSE);
                }
                Err(error) => return Err(format!("group `{}` did not take the offsets: {error}", self.settings.group)),
            }
        }
    }

    /// The offsets of an epoch, and the membership that makes them legal, taken together under the lock that a rebalance
    /// takes too: offsets go out only for partitions still held, under the assignment they were read in.
    ///
    /// # Errors
    /// Why they must not go out.
    pub(crate) fn for_transaction(&self, positions: &Positions) -> Result<Option<GroupOffsets>, String> {
        let client = self.client().ok_or("the consumer is closed")?;
        let state = self.state();
        let offsets = state.assignment.committable_together(positions)?;
        if offsets.is_empty() {
            return Ok(None);
        }
        let metadata = GroupMetadata::of(&client)
            .ok_or_else(|| format!("this process is not a member of group `{}` right now", self.settings.group))?;
        drop(state);
        let list = offset_list(&offsets).map_err(|error| error.to_string())?;
        Ok(Some(GroupOffsets { offsets, list, metadata }))
    }

    /// Notes what was committed, here or in a transaction.
    pub(crate) fn note_committed(&self, offsets: &[(Arc<Partition>, i64)]) {
        self.state().assignment.committed(offsets.iter().map(|(partition, offset)| (&**partition, *offset)));
    }

    /// Asks the broker what the group has committed, and takes it over. Blocks until transactions in flight are settled.
    pub(crate) fn reload_committed(
        &self,
        partitions: &[Arc<Partition>],
    ) -> Result<BTreeMap<Arc<Partition>, i64>, String> {
        let client = self.client().ok_or("the consumer is closed")?;
        let names = partitions.iter().map(|partition| (&*partition.topic, partition.number));
        let committed = committed_offsets(&client, names).map_err(|error| error.to_string())?;
        let offsets: Vec<_> = partitions
            .iter()
            .filter_map(|partition| {
                let offset = committed.get(&(partition.topic.to_string(), partition.number))?;
                Some((Arc::clone(partition), *offset))
            })
            .collect();
        self.note_committed(&offsets);
        Ok(offsets.into_iter().collect())
    }
}

/// The offsets of an epoch, and who sends them.
pub(crate) struct GroupOffsets {
    pub(crate) offsets: Vec<(Arc<Partition>, i64)>,
    pub(crate) list: TopicPartitionList,
    pub(crate) metadata: GroupMetadata,
}

/// Whether a commit that failed so may succeed when the rebalance is over.
fn passes(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            Code::RebalanceInProgress
                | Code::IllegalGeneration
                | Code::UnknownMemberId
                | Code::StaleMemberEpoch
                | Code::CoordinatorLoadInProgress
                | Code::CoordinatorNotAvailable
                | Code::NotCoordinator
                | Code::WaitingForCoordinator
                | Code::RequestTimedOut
                | Code::OperationTimedOut
                | Code::BrokerTransportFailure
                | Code::InProgress
        )
    )
}

/// Commits the positions of a source to its group.
#[derive(Debug)]
pub(crate) struct GroupPositions(pub(crate) Arc<GroupConsumer>);

impl CommitPositions for GroupPositions {
    fn commit(&self, _: u64, positions: Positions) -> BoxFuture<'_, Result<(), String>> {
        let group = Arc::clone(&self.0);
        Box::pin(async move {
            let runtime = group.settings.runtime.clone();
            runtime.blocking(move || group.commit(&positions)).await
        })
    }

    fn decide(&self, mark: Mark, positions: Positions) -> BoxFuture<'_, Decision> {
        let group = Arc::clone(&self.0);
        Box::pin(async move {
            let (runtime, ticket) = (group.settings.runtime.clone(), group.decision_ticket());
            runtime.blocking(move || group.decide(ticket, &mark, &positions)).await
        })
    }

    fn is_decided(&self, mark: Mark, positions: Positions) -> BoxFuture<'_, Result<bool, FenceError>> {
        let group = Arc::clone(&self.0);
        Box::pin(async move {
            let runtime = group.settings.runtime.clone();
            runtime.blocking(move || group.is_decided(&mark, &positions)).await
        })
    }
}
