//! The store: small keyed values that survive the process.
//!
//! One per process, shared by all pipelines, because an fsync takes 10 ms and more: commits that
//! arrive together share one.

use std::fmt;

use futures::future::BoxFuture;

/// What went wrong with the store, for a person.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct StoreError(pub String);

/// Values of a scope, by key.
pub type Entries = Vec<(String, Vec<u8>)>;

/// Keeps values by scope (one for each pipeline and purpose) and key.
pub trait Store: Send + Sync + fmt::Debug {
    /// All entries of a scope, by key.
    fn load(&self, scope: &str) -> BoxFuture<'_, Result<Entries, StoreError>>;

    /// Writes entries of a scope, all or none; durable when it resolves. `None` removes a key.
    ///
    /// After an error it is not known which: an fsync that fails tells nothing of what is on the disk.
    fn commit(&self, scope: &str, entries: Vec<(String, Option<Vec<u8>>)>) -> BoxFuture<'_, Result<(), StoreError>>;
}
