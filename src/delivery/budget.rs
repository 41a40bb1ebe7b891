//! The memory budget of a pipeline.
//!
//! Every batch is charged from its birth until its last clone is dropped. Only sources wait for
//! room: a stage may overdraw, and sources then stay shut until it is repaid, so nothing inside the
//! pipeline can wait for memory that its own input holds.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

/// Counts the bytes of all batches of a pipeline.
#[derive(Debug, Clone)]
pub struct Budget(Arc<Account>);

#[derive(Debug)]
struct Account {
    limit: u64,
    used: AtomicU64,
    released: AtomicU64,
    freed: Notify,
}

impl Budget {
    /// A budget of `limit` bytes.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        Self(Arc::new(Account { limit, used: AtomicU64::new(0), released: AtomicU64::new(0), freed: Notify::new() }))
    }

    /// Charges bytes at once, over the limit if need be. They are given back when the reservation is dropped.
    #[must_use]
    pub fn overdraw(&self, bytes: u64) -> Reservation {
        self.0.used.fetch_add(bytes, Ordering::AcqRel);
        Reservation { account: Arc::clone(&self.0), bytes }
    }

    /// Bytes in use.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.0.used.load(Ordering::Acquire)
    }

    /// The limit in bytes.
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.0.limit
    }

    /// Bytes given back since the start: how much the sinks have moved.
    #[must_use]
    pub fn released(&self) -> u64 {
        self.0.released.load(Ordering::Acquire)
    }

    /// Waits until fewer than `limit` bytes are in use.
    pub async fn below(&self, limit: u64) {
        loop {
            let freed = self.0.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            if self.used() < limit {
                return;
            }
            freed.await;
        }
    }
}

/// Bytes charged to a budget.
#[derive(Debug)]
pub struct Reservation {
    account: Arc<Account>,
    bytes: u64,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.account.used.fetch_sub(self.bytes, Ordering::AcqRel);
        self.account.released.fetch_add(self.bytes, Ordering::AcqRel);
        self.account.freed.notify_waiters();
    }
}
