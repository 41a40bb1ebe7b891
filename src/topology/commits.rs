//! The last committed epoch of a run, for the stages that wait for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

/// The last committed epoch. A `tokio::sync::watch` would do, but it wakes its waiters in a random order, and the
/// simulation must replay exactly.
#[derive(Debug, Clone, Default)]
pub(super) struct Commits(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    last: AtomicU64,
    moved: Notify,
}

impl Commits {
    /// An epoch is committed.
    pub(super) fn set(&self, epoch: u64) {
        self.0.last.store(epoch, Ordering::Release);
        self.0.moved.notify_waiters();
    }

    /// Waits until an epoch is committed.
    pub(super) async fn wait_for(&self, epoch: u64) {
        loop {
            let moved = self.0.moved.notified();
            tokio::pin!(moved);
            moved.as_mut().enable();
            if self.0.last.load(Ordering::Acquire) >= epoch {
                return;
            }
            moved.await;
        }
    }
}
