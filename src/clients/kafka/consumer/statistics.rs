//! The lag of each partition, and whether the cluster is there, out of librdkafka's statistics.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::GroupConsumer;
use crate::clients::kafka::assignment::BEGINNING;
use crate::record::Partition;

/// The part of librdkafka's statistics that we read.
#[derive(Deserialize)]
struct Statistics {
    #[serde(default)]
    brokers: BTreeMap<String, BrokerStatistics>,
    topics: BTreeMap<String, TopicStatistics>,
    cgrp: Option<GroupStatistics>,
}

#[derive(Deserialize)]
struct BrokerStatistics {
    state: String,
}

#[derive(Deserialize)]
struct GroupStatistics {
    join_state: String,
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

impl Statistics {
    /// Whether any broker answers.
    fn is_connected(&self) -> bool {
        self.brokers.values().any(|broker| matches!(broker.state.as_str(), "UP" | "UPDATE"))
    }

    /// Whether the member asks to be let into its group, and is not answered.
    fn is_joining(&self) -> bool {
        let asks = |state: &str| matches!(state, "wait-metadata" | "wait-join" | "wait-sync");
        self.cgrp.as_ref().is_some_and(|group| asks(&group.join_state))
    }
}

impl GroupConsumer {
    /// Looks at the statistics, which come every few seconds.
    pub(super) fn look_at(&self, statistics: &[u8]) {
        let Ok(statistics) = serde_json::from_slice::<Statistics>(statistics) else { return };
        match self.waits_for(&statistics) {
            Some(reason) => self.state().waiting.set(reason),
            None => self.state().waiting.clear(),
        }
        self.publish_lag(&statistics);
    }

    /// What it waits for that is not a record.
    fn waits_for(&self, statistics: &Statistics) -> Option<String> {
        let settings = &self.settings;
        if !statistics.is_connected() {
            let brokers = settings.connection.addresses().unwrap_or_default();
            return Some(format!("no broker of the source answers ({brokers})"));
        }
        let state = self.state();
        if state.assignment.held().next().is_some() {
            return None;
        }
        if state.topic_missing {
            return Some(format!("waiting for a topic that does not exist (of {})", settings.topics));
        }
        statistics.is_joining().then(|| format!("waiting to become a member of group `{}`", settings.group))
    }

    fn publish_lag(&self, statistics: &Statistics) {
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
    fn a_cluster_answers_if_one_of_its_brokers_does() {
        let read = |states: [&str; 2], joining: &str| {
            let [one, two] = states;
            let brokers = format!(r#""a/1": {{ "state": "{one}" }}, "b/2": {{ "state": "{two}" }}"#);
            let group = format!(r#""cgrp": {{ "state": "up", "join_state": "{joining}" }}"#);
            let text = format!(r#"{{ "brokers": {{ {brokers} }}, "topics": {{}}, {group} }}"#);
            let statistics: Statistics = serde_json::from_str(&text).unwrap();
            (statistics.is_connected(), statistics.is_joining())
        };
        assert_eq!(read(["DOWN", "UP"], "steady"), (true, false));
        assert_eq!(read(["DOWN", "TRY_CONNECT"], "init"), (false, false));
        assert_eq!(read(["UP", "INIT"], "wait-join"), (true, true));
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
