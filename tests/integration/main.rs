//! The real binary against a real Apache Kafka.

#[path = "../broker/mod.rs"]
mod broker;
#[path = "../process/mod.rs"]
mod process;

mod orders;

mod broker_itself;
mod broker_restart;
mod command_line;
mod denied;
mod dlq;
mod encrypted;
mod fleet;
mod kafka_to_kafka;
mod large;
mod membership;
mod missing_topics;
mod parked;
mod poison;
mod rebalances;
mod rejected;
mod stalled;
mod stopping;
mod topics;
mod unheld;

use std::time::Duration;

use broker::Broker;
use process::Home;

/// For what takes a moment even on a machine that is busy with other tests.
pub(crate) const SOON: Duration = Duration::from_mins(1);

/// Both guarantees that Kafka to Kafka may have.
pub(crate) const GUARANTEES: [&str; 2] = ["at_least_once", "exactly_once"];

/// A home whose pipelines find the broker.
pub(crate) fn home(broker: &Broker) -> Home {
    let mut home = Home::new();
    home.set("KAFKA_BROKERS", broker.address());
    home
}
