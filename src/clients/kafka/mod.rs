//! Kafka: the clients that the `kafka` source and the `kafka` sink stand on.
//!
//! A pipeline has one group membership per source ([`consumer`]), one producer per cluster ([`producer`]), and, if it is
//! transactional, one [`transaction`]. They outlive runs: a rewind repositions them in place.

pub(crate) mod assignment;
pub mod config;
pub(crate) mod consumer;
pub(crate) mod embedded;
mod errors;
#[cfg(test)]
pub(crate) mod fixture;
pub(crate) mod letters;
pub(crate) mod limits;
pub(crate) mod lineage;
mod log;
pub(crate) mod producer;
pub(crate) mod raw;
pub(crate) mod topics;
pub(crate) mod transaction;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use config::ConnectionId;
use consumer::GroupConsumer;
use producer::SharedProducer;
use transaction::KafkaTransaction;

/// The Kafka clients of one pipeline, kept in its [`crate::component::Clients`].
#[derive(Debug, Default)]
pub(crate) struct PipelineClients {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    producers: BTreeMap<ConnectionId, Arc<SharedProducer>>,
    transaction: Option<Arc<KafkaTransaction>>,
}

impl PipelineClients {
    /// The producer for a connection, made by the first who asks.
    pub(crate) fn producer(&self, id: ConnectionId, make: impl FnOnce() -> SharedProducer) -> Arc<SharedProducer> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(inner.producers.entry(id).or_insert_with(|| Arc::new(make())))
    }

    /// The producers that write a topic of this name, each in its own cluster.
    pub(crate) fn writers_of(&self, topic: &str) -> Vec<Arc<SharedProducer>> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.producers.values().filter(|producer| producer.writes(topic)).map(Arc::clone).collect()
    }

    /// The transaction, if there is one.
    #[cfg(test)]
    pub(crate) fn current_transaction(&self) -> Option<Arc<KafkaTransaction>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).transaction.clone()
    }

    /// The pipeline's transaction over a producer.
    ///
    /// # Errors
    /// If the pipeline has one over another producer: a transaction spans one cluster.
    pub(crate) fn transaction(
        &self,
        producer: &Arc<SharedProducer>,
        make: impl FnOnce() -> KafkaTransaction,
    ) -> Result<Arc<KafkaTransaction>, String> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let transaction = inner.transaction.get_or_insert_with(|| Arc::new(make()));
        if Arc::ptr_eq(transaction.producer(), producer) {
            Ok(Arc::clone(transaction))
        } else {
            Err("all `kafka` sinks of an exactly-once pipeline must have the same `brokers`, `tls`, `sasl` and `options`"
                .to_owned())
        }
    }
}

/// The consumers of one pipeline, by the name of the source; a transaction commits their offsets. Kept apart from the
/// producers, because it is asked for them while it is being built.
#[derive(Debug, Default)]
pub(crate) struct PipelineGroups {
    groups: Mutex<BTreeMap<Arc<str>, Arc<GroupConsumer>>>,
}

impl PipelineGroups {
    pub(crate) fn add(&self, source: Arc<str>, group: Arc<GroupConsumer>) {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner).insert(source, group);
    }

    pub(crate) fn get(&self, source: &str) -> Option<Arc<GroupConsumer>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner).get(source).cloned()
    }

    /// All of them.
    pub(crate) fn all(&self) -> Vec<Arc<GroupConsumer>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// The first source's group: part of the identity of the pipeline's transactions.
    pub(crate) fn first(&self) -> Option<Arc<GroupConsumer>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner).values().next().cloned()
    }
}
