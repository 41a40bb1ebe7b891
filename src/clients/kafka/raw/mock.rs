//! librdkafka's own broker, in memory.

use rdkafka::bindings as sys;
use rdkafka::client::{Client, DefaultClientContext};
use rdkafka::config::ClientConfig;
use rdkafka::types::RDKafkaType;

/// A cluster of one broker inside this process.
pub(crate) struct MockBroker {
    client: Client<DefaultClientContext>,
}

impl MockBroker {
    /// Starts the broker.
    pub(crate) fn start() -> Result<Self, String> {
        let mut config = ClientConfig::new();
        config.set("test.mock.num.brokers", "1").set_log_level(rdkafka::config::RDKafkaLogLevel::Error);
        let native = config.create_native_config().map_err(|error| error.to_string())?;
        let client = Client::new(&config, native, RDKafkaType::RD_KAFKA_PRODUCER, DefaultClientContext)
            .map_err(|error| error.to_string())?;
        // SAFETY: the client is alive, and the cluster lives as long as it does.
        unsafe {
            let cluster = sys::rd_kafka_handle_mock_cluster(client.native_ptr());
            if cluster.is_null() {
                return Err("librdkafka started no broker".to_owned());
            }
            // A first member need not wait for others to join: they would be threads of this process.
            sys::rd_kafka_mock_group_initial_rebalance_delay_ms(cluster, 0);
        }
        Ok(Self { client })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> String {
        self.client.mock_cluster().map_or_else(String::new, |cluster| cluster.bootstrap_servers())
    }

    /// Creates a topic, unless it is there.
    pub(crate) fn create_topic(&self, name: &str, partitions: i32) {
        if let Some(cluster) = self.client.mock_cluster() {
            // It fails only if the topic exists, which is what we want.
            let _ = cluster.create_topic(name, partitions, 1);
        }
    }

    /// Makes the broker answer the next requests of a kind with these errors.
    #[cfg(test)]
    pub(crate) fn fail_next(&self, request: i16, errors: &[sys::rd_kafka_resp_err_t]) {
        // SAFETY: the cluster is alive; the errors are copied during the call.
        unsafe {
            let cluster = sys::rd_kafka_handle_mock_cluster(self.client.native_ptr());
            sys::rd_kafka_mock_push_request_errors_array(cluster, request, errors.len(), errors.as_ptr());
        }
    }
}
