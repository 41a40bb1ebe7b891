//! What a membership is made with.

use std::sync::{Arc, Weak};

use crate::clients::kafka::PipelineClients;
use crate::clients::kafka::config::{Connection, Protocol, RECEIVE_BYTES, StartAt};
use crate::clients::kafka::topics::Topics;
use crate::observe::StageMetrics;
use crate::runtime::Runtime;

/// The smallest queue of a partition.
const SMALLEST_QUEUE_KIB: u64 = 16;

/// What a membership is made with.
#[derive(Debug, Clone)]
pub(crate) struct GroupSettings {
    pub(crate) connection: Connection,
    pub(crate) source: Arc<str>,
    pub(crate) group: String,
    pub(crate) topics: Topics,
    /// What the pipeline itself writes. Not kept alive from here: it keeps this alive.
    pub(crate) outputs: Weak<PipelineClients>,
    pub(crate) start_at: StartAt,
    pub(crate) protocol: Protocol,
    /// Who this member is, over its restarts.
    pub(crate) instance: String,
    pub(crate) transactional: bool,
    pub(crate) memory: u64,
    pub(crate) metrics: StageMetrics,
    pub(crate) runtime: Runtime,
}

impl GroupSettings {
    /// Whether partitions come and go one by one.
    pub(super) fn is_incremental(&self) -> bool {
        self.protocol != Protocol::ClassicEager
    }

    /// How many KiB wait in the queue of a partition, if the topics have so many in all. A message in a queue costs a few
    /// hundred bytes beside its content. All queues together take no more than a quarter of the memory, unless there are so
    /// many that none could work.
    pub(super) fn queue_kib(&self, partitions: usize) -> u64 {
        let one = (self.memory / 32 / 1024).clamp(256, 2048);
        let share = self.memory / 4 / 1024 / partitions.max(1) as u64;
        one.min(share).max(SMALLEST_QUEUE_KIB)
    }

    /// librdkafka's settings for a member whose queues have so many KiB.
    pub(super) fn client_config(&self, queue_kib: u64) -> Result<rdkafka::ClientConfig, String> {
        let defaults = [
            ("queued.max.messages.kbytes", queue_kib.to_string()),
            // The next request is under way while the records of the last one are worked on.
            ("queued.min.messages", (queue_kib * 4).to_string()),
            // What one request brings of a partition comes on top of what is in its queue.
            ("fetch.message.max.bytes", (queue_kib * 1024).min(1 << 20).to_string()),
            // A broker sends a record that it has taken, however large. A client that does not receive it stands still.
            ("receive.message.max.bytes", RECEIVE_BYTES.to_string()),
            ("fetch.max.bytes", (self.memory / 16).clamp(1 << 20, 8 << 20).to_string()),
            // A full queue is looked at again after this time; the default of a second would stall a fast reader.
            ("fetch.queue.backoff.ms", "5".to_owned()),
            // One request at a time is under way to a broker, and a partition whose queue is full is not in it. Where the
            // others have nothing new, the full one waits for that request; the default of 500 ms would let a single busy
            // partition stand still for most of the time.
            ("fetch.wait.max.ms", "20".to_owned()),
            // A topic that does not exist yet is found within this time.
            ("topic.metadata.refresh.interval.ms", "5000".to_owned()),
            ("statistics.interval.ms", "5000".to_owned()),
        ];
        let mut fixed = vec![
            ("group.id", self.group.clone()),
            ("group.instance.id", self.instance.clone()),
            ("enable.auto.commit", "false".to_owned()),
            ("enable.auto.offset.store", "false".to_owned()),
            ("auto.offset.reset", "error".to_owned()),
            ("isolation.level", "read_committed".to_owned()),
            ("enable.partition.eof", "false".to_owned()),
            ("allow.auto.create.topics", "false".to_owned()),
        ];
        let mut defaults = defaults.to_vec();
        match self.protocol {
            Protocol::Classic | Protocol::ClassicEager => {
                let strategy = if self.is_incremental() { "cooperative-sticky" } else { "range,roundrobin" };
                fixed.push(("partition.assignment.strategy", strategy.to_owned()));
                defaults.push(("session.timeout.ms", "10000".to_owned()));
            }
            Protocol::Consumer => fixed.push(("group.protocol", "consumer".to_owned())),
        }
        self.connection.client_config(&defaults, &fixed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clients::kafka::config::{Options, Role};
    use crate::clients::kafka::fixture::{check, here};
    use crate::observe::Metrics;

    fn settings(memory: u64, protocol: Protocol) -> GroupSettings {
        let brokers = here("a:1".to_owned());
        let topics = here(vec![here("orders".to_owned())]);
        GroupSettings {
            connection: Connection::check(Role::Consumer, &brokers, None, None, &Options::new(), &mut check()).unwrap(),
            source: "in".into(),
            group: "etl".to_owned(),
            topics: Topics::check(&topics, "a:1", &mut check()).unwrap(),
            outputs: Weak::new(),
            start_at: StartAt::Earliest,
            protocol,
            instance: "one.etl.in".to_owned(),
            transactional: false,
            memory,
            metrics: Metrics::new().stage("test", "in", "source", "kafka"),
            runtime: Runtime::system(),
        }
    }

    fn client_config(memory: u64, protocol: Protocol) -> rdkafka::ClientConfig {
        let settings = settings(memory, protocol);
        settings.client_config(settings.queue_kib(1)).unwrap()
    }

    #[test]
    fn rule_12_each_protocol_has_a_static_member() {
        for protocol in [Protocol::Classic, Protocol::ClassicEager, Protocol::Consumer] {
            let config = client_config(32 << 20, protocol);
            assert_eq!(config.get("group.instance.id"), Some("one.etl.in"));
            let strategy = config.get("partition.assignment.strategy");
            let session = config.get("session.timeout.ms");
            match protocol {
                Protocol::Classic => assert_eq!((strategy, session), (Some("cooperative-sticky"), Some("10000"))),
                Protocol::ClassicEager => assert_eq!((strategy, session), (Some("range,roundrobin"), Some("10000"))),
                Protocol::Consumer => {
                    assert_eq!((strategy, session, config.get("group.protocol")), (None, None, Some("consumer")));
                }
            }
        }
    }

    #[test]
    fn rule_13_an_offset_that_is_gone_is_never_reset() {
        assert_eq!(client_config(32 << 20, Protocol::Classic).get("auto.offset.reset"), Some("error"));
    }

    #[test]
    fn rule_16_the_queue_of_a_partition_is_sized_from_the_budget() {
        let kib = |memory| {
            let config = client_config(memory, Protocol::Classic);
            config.get("queued.max.messages.kbytes").unwrap().parse::<u64>().unwrap()
        };
        assert_eq!(kib(32 << 20) * 1024, 1 << 20);
        assert!(kib(64 << 30) * 1024 <= 2 << 20, "the default of 64 MB would be for each partition");
    }

    #[test]
    fn rule_16_all_queues_together_stay_within_the_budget() {
        let settings = settings(32 << 20, Protocol::Classic);
        for partitions in [1, 8, 9, 100, 500] {
            let all = settings.queue_kib(partitions) * 1024 * partitions as u64;
            assert!(all <= 8 << 20, "{partitions} partitions have {all} bytes");
        }
        let config = settings.client_config(settings.queue_kib(100)).unwrap();
        assert_eq!(config.get("queued.max.messages.kbytes"), Some("81"));
        assert_eq!(config.get("fetch.message.max.bytes"), Some("82944"));
    }
}
