//! The lag of each partition, out of librdkafka's statistics.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::GroupConsumer;
use crate::clients::kafka::assignment::BEGINNING;
use crate::record::Partition;

/// The part of librdkafka's statistics that we read.
#[derive(Deserialize)]
struct Statistics {
    topics: BTreeMap<String, TopicStatistics>,
}

#[derive(Deserialize)]
struct TopicStatistics {
    partitions: BTreeMap<String, PartitionStatistics>,
}

/// Offsets of a partition; what is not known is negative.
#[derive(Deserialize)]
struct PartitionStatistics {
    lo_offset: i64,
    /// Behind the last record of a transaction that is ended: what a reader of committed data can have.
    ls_offset: i64,
    /// Where fetching goes on. The marks that end transactions lie before it too, and no record ever stands there.
    next_offset: i64,
    /// Messages that were fetched and not taken.
    fetchq_cnt: i64,
}

impl PartitionStatistics {
    /// How many records there are behind the committed offset. `is_at_rest`: all that was taken is committed.
    fn lag(&self, committed: Option<i64>, is_at_rest: bool) -> Option<i64> {
        let committed = committed.unwrap_or(self.lo_offset);
        if self.ls_offset < 0 || committed < 0 {
            return None;
        }
        let is_read_to_the_end = is_at_rest && self.fetchq_cnt == 0 && self.next_offset >= self.ls_offset;
        Some(if is_read_to_the_end { 0 } else { (self.ls_offset - committed).max(0) })
    }
}

impl GroupConsumer {
    pub(super) fn publish_lag(&self, statistics: &[u8]) {
        let Ok(statistics) = serde_json::from_slice::<Statistics>(statistics) else { return };
        let state = self.state();
        for held in state.assignment.held() {
            let Partition { topic, number, .. } = &*held.origin;
            let Some(seen) =
                statistics.topics.get(&**topic).and_then(|topic| topic.partitions.get(&number.to_string()))
            else {
                continue;
            };
            let committed = Some(held.resume()).filter(|offset| *offset != BEGINNING);
            if let Some(lag) = seen.lag(committed, held.is_at_rest()) {
                self.settings.metrics.lag(topic, *number, lag);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_statistics_that_we_read_are_found_among_the_others() {
        let text = br#"{ "name": "x", "ts": 1, "topics": { "orders": { "topic": "orders", "partitions":
            { "0": { "partition": 0, "fetchq_cnt": 2, "next_offset": 11, "lo_offset": 3, "hi_offset": 12, "ls_offset": 12,
            "consumer_lag": 4 } } } } }"#;
        let statistics: Statistics = serde_json::from_slice(text).unwrap();
        let partition = &statistics.topics["orders"].partitions["0"];
        assert_eq!((partition.lo_offset, partition.ls_offset, partition.next_offset), (3, 12, 11));
        assert_eq!(partition.lag(Some(8), false), Some(4));
        assert_eq!(partition.lag(None, false), Some(9));
    }

    #[test]
    fn the_mark_at_the_end_of_a_transaction_is_no_lag() {
        let seen = PartitionStatistics { lo_offset: 0, ls_offset: 101, next_offset: 101, fetchq_cnt: 0 };
        assert_eq!(seen.lag(Some(100), true), Some(0));
        assert_eq!(seen.lag(Some(100), false), Some(1), "a record may stand there that is not committed");
        assert_eq!(PartitionStatistics { fetchq_cnt: 1, ..seen }.lag(Some(100), true), Some(1));
        let seen = PartitionStatistics { lo_offset: 0, ls_offset: -1, next_offset: 5, fetchq_cnt: 0 };
        assert_eq!(seen.lag(Some(5), true), None, "nothing is known yet");
    }
}
