//! The only source of time in the program.
//!
//! Under the simulation tokio's clock is paused and moves only when every task waits, so a whole
//! day of back-off takes no time, and the same seed sees the same times.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use tokio::time::Instant;

use crate::record::Timestamp;

/// Monotonic and wall-clock time.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    started: Instant,
    wall_at_start: Duration,
}

impl Clock {
    /// The time of this machine.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the clock is the one place that reads the time")]
    pub fn system() -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { started: Instant::now(), wall_at_start: wall }
    }

    /// A clock whose wall time starts at `wall`, counted from the Unix epoch.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the clock is the one place that reads the time")]
    pub fn starting_at(wall: Duration) -> Self {
        Self { started: Instant::now(), wall_at_start: wall }
    }

    /// Monotonic time, for durations and deadlines.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the clock is the one place that reads the time")]
    pub fn now(&self) -> Instant {
        Instant::now()
    }

    /// Wall-clock time since the Unix epoch. It never jumps back while the process lives.
    #[must_use]
    pub fn wall(&self) -> Duration {
        self.wall_at_start + self.now().duration_since(self.started)
    }

    /// Wall-clock time as records carry it.
    #[must_use]
    pub fn timestamp(&self) -> Timestamp {
        Timestamp(i64::try_from(self.wall().as_millis()).unwrap_or(i64::MAX))
    }
}
