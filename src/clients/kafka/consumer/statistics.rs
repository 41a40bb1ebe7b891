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

#[derive(Deserialize)]
struct PartitionStatistics {
    lo_offset: i64,
    hi_offset: i64,
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
            let floor = match state.assignment.floor(&held.origin) {
                Some(BEGINNING) | None => seen.lo_offset,
                Some(offset) => offset,
            };
            if seen.hi_offset >= 0 && floor >= 0 {
                self.settings.metrics.lag(topic, *number, (seen.hi_offset - floor).max(0));
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
            { "0": { "partition": 0, "lo_offset": 3, "hi_offset": 12, "consumer_lag": 4 } } } } }"#;
        let statistics: Statistics = serde_json::from_slice(text).unwrap();
        let partition = &statistics.topics["orders"].partitions["0"];
        assert_eq!((partition.lo_offset, partition.hi_offset), (3, 12));
    }
}
