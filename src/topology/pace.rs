//! When a source may pull: the memory budget, and a limit by time.
//!
//! In flight is at most what the sinks moved in the last two seconds, so that an epoch can close within the bound of a
//! revoke or a SIGTERM: 64 MB before a sink that takes 1 MB/s would be a minute's work.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::clock::{Clock, Instant};
use crate::record::budget::{Budget, Owner};

/// How much of the past counts.
const WINDOW: Duration = Duration::from_secs(2);
/// How often the amount moved is noted.
const STEP: Duration = Duration::from_millis(100);
/// What each lane may hold however slow the sinks are: about one batch on its way in and one on its way out.
const PER_LANE: u64 = 1 << 20;

/// Shared by the sources of a pipeline.
#[derive(Debug, Clone)]
pub(super) struct Pace {
    budget: Budget,
    floor: u64,
    clock: Clock,
    moved: Arc<Mutex<VecDeque<(Instant, u64)>>>,
}

impl Pace {
    pub(super) fn new(budget: Budget, lanes: usize, clock: Clock) -> Self {
        Self { budget, floor: PER_LANE * lanes as u64, clock, moved: Arc::default() }
    }

    /// Waits until a source may pull one more batch. A source of which nothing is under way may always pull one, so that
    /// no source waits for what another holds.
    pub(super) async fn may_pull(&self, owner: &Owner) {
        self.budget.wait_until(|budget| owner.has_none_out() || budget.used() < self.allowed(budget)).await;
    }

    /// Bytes that may be in flight now.
    fn allowed(&self, budget: &Budget) -> u64 {
        let now = self.clock.now();
        let left = budget.left();
        let mut moved = self.moved.lock().unwrap_or_else(PoisonError::into_inner);
        if moved.back().is_none_or(|&(at, _)| now.duration_since(at) >= STEP) {
            moved.push_back((now, left));
        }
        // The oldest note within reach stays in front, so that what it counts from is at least a window ago.
        while moved.get(1).is_some_and(|&(at, _)| now.duration_since(at) >= WINDOW) {
            moved.pop_front();
        }
        let before = moved.front().map_or(0, |&(_, left)| left);
        left.saturating_sub(before).max(self.floor).min(budget.limit())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn rule_6_in_flight_is_what_the_sinks_moved_in_two_seconds() {
        let budget = Budget::new(64 << 20);
        let pace = Pace::new(budget.clone(), 1, Clock::starting_at(Duration::ZERO));
        assert_eq!(pace.allowed(&budget), PER_LANE, "with no history, one batch a lane");
        drop(budget.charge(10 << 20, Some(Owner::default())));
        assert_eq!(pace.allowed(&budget), 10 << 20, "what was moved just now");
        tokio::time::advance(Duration::from_secs(1)).await;
        let read = budget.charge(5 << 20, Some(Owner::default()));
        let written = budget.charge(5 << 20, None);
        drop(read);
        assert_eq!(pace.allowed(&budget), 10 << 20, "what a stage wrote in the place of what it read has not moved");
        drop(written);
        assert_eq!(pace.allowed(&budget), 15 << 20);
        for _ in 0..30 {
            tokio::time::advance(STEP).await;
            pace.allowed(&budget);
        }
        assert_eq!(pace.allowed(&budget), PER_LANE, "a sink that moves nothing lets in one batch a lane");
    }

    #[tokio::test(start_paused = true)]
    async fn rule_4_only_sources_wait_and_each_has_one_batch_reserved() {
        let budget = Budget::new(1 << 20);
        let pace = Pace::new(budget.clone(), 1, Clock::starting_at(Duration::ZERO));
        let (idle, busy) = (Owner::default(), Owner::default());
        // A stage overdraws at once; nothing in this call can wait.
        let held = budget.charge(3 << 20, Some(busy.clone()));
        assert!(budget.used() > budget.limit());
        pace.may_pull(&idle).await;
        let waiting = tokio::time::timeout(Duration::from_secs(60), pace.may_pull(&busy)).await;
        assert!(waiting.is_err(), "a source with a batch out stays shut until the overdraft is repaid");
        drop(held);
        pace.may_pull(&busy).await;
    }
}
