//! `brokers: embedded`: a Kafka cluster inside this process, for a first try and for tests.
//!
//! It is librdkafka's mock cluster: one broker on a port of the loopback interface, all in memory. It knows groups and
//! offsets; it has no topic configuration, and its transactions hide nothing from readers, so no guarantee is built on it.

use std::sync::{Mutex, PoisonError};

use super::raw::MockBroker;

/// The number of partitions of each topic.
const PARTITIONS: i32 = 4;

/// Started by the first who asks. It is never stopped: pipelines come and go, and what they wrote stays until the
/// process ends.
static BROKER: Mutex<Option<MockBroker>> = Mutex::new(None);

fn with<T>(work: impl FnOnce(&MockBroker) -> T) -> Result<T, String> {
    let mut broker = BROKER.lock().unwrap_or_else(PoisonError::into_inner);
    if broker.is_none() {
        let started = MockBroker::start().map_err(|error| format!("the embedded Kafka does not start: {error}"))?;
        tracing::warn!(
            address = started.address(),
            "the embedded Kafka is in memory: nothing in it survives this process"
        );
        *broker = Some(started);
    }
    Ok(work(broker.as_ref().expect("started above")))
}

/// Where the embedded broker listens. Starts it if need be.
pub(crate) fn address() -> Result<String, String> {
    with(MockBroker::address)
}

/// Creates a topic, unless it is there.
pub(crate) fn create_topic(name: &str) -> Result<(), String> {
    with(|broker| broker.create_topic(name, PARTITIONS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_has_one_embedded_cluster() {
        let first = address().unwrap();
        assert!(first.starts_with("127.0.0.1:") || first.starts_with("localhost:"), "{first}");
        create_topic("embedded-twice").unwrap();
        create_topic("embedded-twice").unwrap();
        assert_eq!(address().unwrap(), first);
    }
}
