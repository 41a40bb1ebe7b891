//! What a membership is made with.

use std::sync::{Arc, Weak};

use crate::clients::kafka::PipelineClients;
use crate::clients::kafka::config::{Connection, Protocol, StartAt};
use crate::clients::kafka::topics::Topics;
use crate::observe::StageMetrics;
use crate::runtime::Runtime;

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

    /// librdkafka's settings for the member.
    pub(super) fn client_config(&self) -> Result<rdkafka::ClientConfig, String> {
        // Queues are per partition; a message in one costs a few hundred bytes beside its content.
        let queue_kib = (self.memory / 32 / 1024).clamp(256, 2048);
        let defaults = [
            ("queued.max.messages.kbytes", queue_kib.to_string()),
            // The next request is under way while the records of the last one are worked on.
            ("queued.min.messages", (queue_kib * 4).to_string()),
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
