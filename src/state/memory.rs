//! A store in memory, for tests and the simulation: it survives a simulated process, fails when told to, and counts.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::future::{self, BoxFuture};

use super::store::{Entries, Store, StoreError};

/// Keeps values as long as one of its clones lives.
#[derive(Debug, Clone, Default)]
pub struct MemoryStore(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    scopes: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    commits: u64,
    failures: u64,
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets the next `count` calls fail, loads and commits alike. They change nothing.
    pub fn fail_next(&self, count: u64) {
        self.inner().failures = count;
    }

    /// How many commits succeeded.
    #[must_use]
    pub fn commits(&self) -> u64 {
        self.inner().commits
    }

    /// One value.
    #[must_use]
    pub fn get(&self, scope: &str, key: &str) -> Option<Vec<u8>> {
        self.inner().scopes.get(scope)?.get(key).cloned()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn load_now(&self, scope: &str) -> Result<Entries, StoreError> {
        let mut inner = self.inner();
        inner.fail_if_told()?;
        let entries = inner.scopes.get(scope).into_iter().flatten();
        Ok(entries.map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    fn commit_now(&self, scope: &str, entries: Vec<(String, Option<Vec<u8>>)>) -> Result<(), StoreError> {
        let mut inner = self.inner();
        inner.fail_if_told()?;
        inner.commits += 1;
        let scope = inner.scopes.entry(scope.to_owned()).or_default();
        for (key, value) in entries {
            match value {
                Some(value) => scope.insert(key, value),
                None => scope.remove(&key),
            };
        }
        Ok(())
    }
}

impl Inner {
    fn fail_if_told(&mut self) -> Result<(), StoreError> {
        match self.failures.checked_sub(1) {
            Some(left) => {
                self.failures = left;
                Err(StoreError("the store in memory was told to fail".to_owned()))
            }
            None => Ok(()),
        }
    }
}

impl Store for MemoryStore {
    fn load(&self, scope: &str) -> BoxFuture<'_, Result<Entries, StoreError>> {
        Box::pin(future::ready(self.load_now(scope)))
    }

    fn commit(&self, scope: &str, entries: Vec<(String, Option<Vec<u8>>)>) -> BoxFuture<'_, Result<(), StoreError>> {
        // The future owns its arguments and does its work when polled: a commit that nobody waits for does not happen.
        let scope = scope.to_owned();
        Box::pin(async move { self.commit_now(&scope, entries) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn scopes_are_apart_and_a_removed_key_is_gone() {
        let store = MemoryStore::new();
        store.commit("a", vec![("x".into(), Some(vec![1])), ("y".into(), Some(vec![2]))]).await.unwrap();
        store.commit("b", vec![("x".into(), Some(vec![3]))]).await.unwrap();
        store.commit("a", vec![("x".into(), None)]).await.unwrap();
        assert_eq!(store.load("a").await.unwrap(), [("y".to_owned(), vec![2])]);
        assert_eq!(store.load("b").await.unwrap(), [("x".to_owned(), vec![3])]);
        assert_eq!(store.commits(), 3);
    }

    #[tokio::test]
    async fn a_failing_commit_changes_nothing_and_the_next_one_works() {
        let store = MemoryStore::new();
        store.fail_next(1);
        assert!(store.commit("a", vec![("x".into(), Some(vec![1]))]).await.is_err());
        assert_eq!(store.get("a", "x"), None);
        store.commit("a", vec![("x".into(), Some(vec![2]))]).await.unwrap();
        assert_eq!(store.get("a", "x"), Some(vec![2]));
    }
}
