//! Offsets as the broker gets them, and as it has them.

use std::collections::BTreeMap;
use std::sync::Arc;

use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaResult;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::{Client, REQUEST};
use crate::clients::kafka::lineage::Lineage;
use crate::record::Partition;

pub(super) fn offset_list(offsets: &[(Arc<Partition>, i64)]) -> KafkaResult<TopicPartitionList> {
    let mut list = TopicPartitionList::with_capacity(offsets.len());
    for (partition, offset) in offsets {
        list.add_partition_offset(&partition.topic, partition.number, Offset::Offset(*offset))?;
    }
    Ok(list)
}

/// What the group has committed, of the partitions that have an offset at all. Waits until transactions in flight are
/// settled, because the consumer reads committed data only.
pub(super) fn committed_offsets<'a>(
    client: &Client,
    partitions: impl Iterator<Item = (&'a str, i32)>,
) -> KafkaResult<BTreeMap<(String, i32), i64>> {
    Ok(committed(client, partitions)?.into_iter().map(|(partition, committed)| (partition, committed.offset)).collect())
}

/// What a group has committed of a partition.
pub(super) struct Committed {
    pub(super) offset: i64,
    /// Who has moved it.
    pub(super) lineage: Lineage,
}

/// The same, with who has moved the offsets.
pub(super) fn committed<'a>(
    client: &Client,
    partitions: impl Iterator<Item = (&'a str, i32)>,
) -> KafkaResult<BTreeMap<(String, i32), Committed>> {
    let mut list = TopicPartitionList::new();
    for (topic, number) in partitions {
        list.add_partition(topic, number);
    }
    let mut offsets = BTreeMap::new();
    for element in client.committed_offsets(list, REQUEST)?.elements() {
        element.error()?;
        if let Offset::Offset(offset) = element.offset() {
            let committed = Committed { offset, lineage: Lineage::read(element.metadata()) };
            offsets.insert((element.topic().to_owned(), element.partition()), committed);
        }
    }
    Ok(offsets)
}
