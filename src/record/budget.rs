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
    entered: AtomicU64,
    freed: Notify,
}

impl Budget {
    /// A budget of `limit` bytes.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        Self(Arc::new(Account { limit, used: AtomicU64::new(0), entered: AtomicU64::new(0), freed: Notify::new() }))
    }

    /// Charges bytes at once, over the limit if need be. They are given back when the reservation is dropped. A source
    /// names itself as the owner, so that it knows when none of its batches is left.
    #[must_use]
    pub fn charge(&self, bytes: u64, owner: Option<Owner>) -> Reservation {
        self.0.used.fetch_add(bytes, Ordering::AcqRel);
        if owner.is_some() {
            self.0.entered.fetch_add(bytes, Ordering::AcqRel);
        }
        Reservation { account: Arc::clone(&self.0), bytes, owner }
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

    /// Bytes that sources brought in since the start and that are in use no more: how much has left. What a stage writes
    /// in the place of what it read has not.
    #[must_use]
    pub fn left(&self) -> u64 {
        self.0.entered.load(Ordering::Acquire).saturating_sub(self.used())
    }

    /// Waits until `enough` holds; it is asked again whenever bytes are given back.
    pub async fn wait_until(&self, mut enough: impl FnMut(&Self) -> bool) {
        loop {
            let freed = self.0.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            if enough(self) {
                return;
            }
            freed.await;
        }
    }
}

/// Whose batches are out: cloned into each reservation of one source.
#[derive(Debug, Clone, Default)]
pub struct Owner(Arc<()>);

impl Owner {
    /// Whether none of the owner's batches is left in the pipeline. The owner itself keeps one handle.
    #[must_use]
    pub fn has_none_out(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }
}

/// Bytes charged to a budget.
#[derive(Debug)]
pub struct Reservation {
    account: Arc<Account>,
    bytes: u64,
    owner: Option<Owner>,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // The owner's handle must be gone before anyone is woken to look at it.
        self.owner = None;
        self.account.used.fetch_sub(self.bytes, Ordering::AcqRel);
        self.account.freed.notify_waiters();
    }
}
