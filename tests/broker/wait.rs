//! Waiting for a condition, with a deadline that says what was waited for.

use std::time::Duration;

use weir::clock::{Clock, Instant};

/// A moment by which something must have happened.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline {
    clock: Clock,
    end: Instant,
}

impl Deadline {
    /// This long from now.
    pub(crate) fn within(limit: Duration) -> Self {
        let clock = Clock::system();
        Self { clock, end: clock.now() + limit }
    }

    /// What is left of it; nothing once it has passed.
    pub(crate) fn left(&self) -> Duration {
        self.end.saturating_duration_since(self.clock.now())
    }

    /// Whether it has passed.
    pub(crate) fn passed(&self) -> bool {
        self.left().is_zero()
    }
}

/// Looks again and again until there is an answer.
///
/// # Panics
/// If there is none within `limit`.
pub(crate) fn wait_for<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Deadline::within(limit);
    loop {
        // One more look after the deadline: a slow machine may have kept this thread from its last one.
        let is_last = deadline.passed();
        if let Some(found) = look() {
            return found;
        }
        assert!(!is_last, "waited {limit:?} in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Looks again and again until it is so.
///
/// # Panics
/// If it is not so within `limit`.
pub(crate) fn wait_until(what: &str, limit: Duration, mut is_so: impl FnMut() -> bool) {
    wait_for(what, limit, || is_so().then_some(()));
}
