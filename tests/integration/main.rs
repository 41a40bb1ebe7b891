//! The real binary against a real Apache Kafka.

#[path = "../broker/mod.rs"]
mod broker;

mod broker_itself;
