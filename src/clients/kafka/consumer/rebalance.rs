//! Partitions come and go: where a new one starts, and how the epoch closes before one leaves.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};

use rdkafka::consumer::{CommitMode, Consumer};
use rdkafka::error::KafkaResult;
use rdkafka::metadata::MetadataPartition;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::{
    Client, Committed, Context, GroupConsumer, PAUSE, Queue, REQUEST, REVOKE_LIMIT, committed, committed_offsets, names,
};
use crate::clients::kafka::assignment::BEGINNING;
use crate::clients::kafka::config::StartAt;
use crate::clients::kafka::lineage::Lineage;
use crate::component::SourceError;
use crate::record::Partition;

/// Where a newly assigned partition starts.
struct Start {
    at: i64,
    committed: Option<i64>,
    lineage: Lineage,
}

impl GroupConsumer {
    pub(super) fn assigned(&self, context: &Context, client: &Client, list: &TopicPartitionList) {
        let partitions = self.partitions(list);
        let mut offsets = TopicPartitionList::new();
        let starts = self.starts(context, client, &partitions);
        let still = self.moves();
        if let Some(starts) = starts
            && let Some(client) = context.client.get().and_then(Weak::upgrade)
        {
            for (partition, start) in partitions.iter().zip(starts) {
                let queue = Queue::split(&client, &partition.topic, partition.number, &self.wake);
                let added =
                    offsets.add_partition_offset(&partition.topic, partition.number, Offset::from_raw(start.at));
                match (queue, added) {
                    (Some(queue), Ok(())) => {
                        let origin = Arc::new(partition.clone());
                        let mut state = self.state();
                        state.lineages.insert(Arc::clone(&origin), start.lineage);
                        state.assignment.grant(origin, queue, start.at, start.committed);
                    }
                    _ => self.fault(SourceError::Retry(format!("cannot read partition {partition}"))),
                }
            }
        } else {
            // The consumer is closing, or has lost these partitions already: they are taken back next, and read by none.
            offsets = list.clone();
        }
        let taken =
            if self.settings.is_incremental() { client.incremental_assign(&offsets) } else { client.assign(&offsets) };
        drop(still);
        if let Err(error) = taken {
            // They are held, and nobody would read them: only a new client takes them on.
            self.give_up(SourceError::Retry(format!("cannot take on partitions: {error}")));
        }
        self.mind_the_queues(context);
        if !partitions.is_empty() {
            self.state().topic_missing = false;
            tracing::info!(component = %self.settings.source, partitions = %names(&partitions), "partitions assigned");
        }
        self.wake.notify_one();
    }

    /// Queues are made for as many partitions as there were when the client was. Where more have come, they would take more
    /// than their share of the memory: a new client has smaller ones.
    fn mind_the_queues(&self, context: &Context) {
        let held = {
            let mut state = self.state();
            let held = state.assignment.held().count();
            state.most_partitions = state.most_partitions.max(held);
            held
        };
        if self.settings.queue_kib(held) < context.queue_kib {
            self.give_up(SourceError::Retry(format!("the queues are made anew for {held} partitions")));
        }
    }

    pub(super) fn revoked(&self, context: &Context, client: &Client, list: &TopicPartitionList) {
        let partitions = self.partitions(list);
        let lost = client.assignment_lost();
        let epochs = {
            let mut state = self.state();
            state.assignment.close(&partitions);
            state.epochs.clone()
        };
        // Between two runs nothing is under way: the next one begins with what is held then.
        let is_running = epochs.is_some() && !context.is_closing();
        if let Some(epochs) = epochs.filter(|_| is_running && !partitions.is_empty()) {
            if lost {
                epochs.lost(partitions.clone(), REVOKE_LIMIT);
            } else {
                // The answer is not needed: what is committed by now shows below.
                let _ = epochs.close_within(REVOKE_LIMIT);
            }
        }
        // An offset that is on its way arrives first; none is sent from here on.
        let still = self.moves();
        let unfinished = {
            let mut state = self.state();
            state.lineages.retain(|partition, _| !partitions.contains(partition));
            for held in partitions.iter().filter_map(|partition| state.assignment.get(partition)) {
                // A reader may hold on to it for a while, and must not silence the partition's next queue when it lets go.
                held.queue.disable();
            }
            state.assignment.remove(&partitions)
        };
        let given = if self.settings.is_incremental() { client.incremental_unassign(list) } else { client.unassign() };
        drop(still);
        if let Err(error) = given {
            self.fault(SourceError::Retry(format!("cannot give up partitions: {error}")));
        }
        if unfinished > 0 && is_running {
            let reason = if lost { "partitions_lost" } else { "revoked_uncommitted" };
            self.settings.metrics.error(reason);
            tracing::warn!(
                component = %self.settings.source,
                partitions = unfinished,
                "partitions went before their records were committed: the next holder repeats the work"
            );
            if self.settings.transactional {
                self.fault(SourceError::Retry("partitions went before their records were committed".to_owned()));
            }
        }
        for partition in &partitions {
            self.settings.metrics.forget_lag(&partition.topic, partition.number);
        }
        if !partitions.is_empty() {
            tracing::info!(component = %self.settings.source, partitions = %names(&partitions), lost, "partitions given up");
        }
        self.wake.notify_one();
    }

    /// Where to start newly assigned partitions, asked until it is known. `None` if they are not wanted any more.
    fn starts(&self, context: &Context, client: &Client, partitions: &[Partition]) -> Option<Vec<Start>> {
        loop {
            match self.try_starts(client, partitions) {
                Ok(starts) => return Some(starts),
                Err(error) => {
                    let text = format!("cannot read the group's offsets yet: {error}");
                    if self.seldom.now(&text) {
                        tracing::warn!(component = %self.settings.source, "{text}");
                    }
                }
            }
            if context.is_closing() || client.assignment_lost() {
                return None;
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn try_starts(&self, client: &Client, partitions: &[Partition]) -> KafkaResult<Vec<Start>> {
        if partitions.is_empty() {
            return Ok(Vec::new());
        }
        let names = || partitions.iter().map(|partition| (&*partition.topic, partition.number));
        let mut committed = committed(client, names())?;
        let without: BTreeSet<&str> = names()
            .filter(|&(topic, number)| !committed.contains_key(&(topic.to_owned(), number)))
            .map(|(t, _)| t)
            .collect();
        let mut firsts = BTreeMap::new();
        let mut is_fixed_by_others = false;
        for topic in without {
            match self.first_start(client, topic)? {
                Some(first) => firsts.extend(first),
                None => is_fixed_by_others |= self.settings.start_at != StartAt::Earliest,
            }
        }
        if is_fixed_by_others {
            // Another member has fixed the start since this one asked, for these partitions too.
            committed = self::committed(client, names())?;
        }
        let mut start = |(topic, number): (&str, i32)| {
            let name = (topic.to_owned(), number);
            if let Some(Committed { offset, lineage }) = committed.remove(&name) {
                return Start { at: offset, committed: Some(offset), lineage };
            }
            let at = firsts.get(&name).copied().unwrap_or(BEGINNING);
            Start { at, committed: None, lineage: Lineage::default() }
        };
        Ok(names().map(&mut start).collect())
    }

    /// Where the whole group begins in a topic of which it has no offset; `None` for its beginning.
    ///
    /// `start_at` counts only at the very first start. Its meaning is fixed there for all partitions at once, also for
    /// those that another process holds: to whoever comes later, each of them has an offset.
    fn first_start(&self, client: &Client, topic: &str) -> KafkaResult<Option<BTreeMap<(String, i32), i64>>> {
        if self.settings.start_at == StartAt::Earliest {
            return Ok(None);
        }
        let Some(topics) = self.starting_together(topic) else { return Ok(None) };
        let mut all = Vec::new();
        for topic in &topics {
            let metadata = client.fetch_metadata(Some(topic), REQUEST)?;
            let described = metadata.topics().iter().filter(|described| described.name() == topic);
            let numbers = described.flat_map(|described| described.partitions().iter().map(MetadataPartition::id));
            all.extend(numbers.map(|number| (topic.as_str(), number)));
        }
        if !committed_offsets(client, all.iter().copied())?.is_empty() {
            return Ok(None);
        }
        let mut starts = BTreeMap::new();
        let mut list = TopicPartitionList::new();
        for (topic, number) in all {
            let (_, newest) = client.fetch_watermarks(topic, number, REQUEST)?;
            list.add_partition_offset(topic, number, Offset::Offset(newest))?;
            if let Some(mut element) = list.find_partition(topic, number) {
                element.set_metadata(Lineage::default().to_string());
            }
            starts.insert((topic.to_owned(), number), newest);
        }
        // Asking took its time. What another member has committed meanwhile is not written over.
        if !committed_offsets(client, starts.keys().map(|(topic, number)| (topic.as_str(), *number)))?.is_empty() {
            return Ok(None);
        }
        if let Err(error) = client.commit(&list, CommitMode::Sync) {
            // The start stands in memory, so nothing is skipped while this process lives.
            tracing::warn!(component = %self.settings.source, "cannot commit where the group starts: {error}");
        }
        Ok(Some(starts))
    }
}
