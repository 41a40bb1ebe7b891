//! One line of the log for each place and interval, however often the place is passed.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::clock::Instant;

/// Lets one warning pass in each interval, and counts the others.
///
/// ```
/// use std::time::Duration;
/// use weir::{clock::Clock, observe::Throttle};
///
/// static REFUSED: Throttle = Throttle::every(Duration::from_secs(10));
/// let clock = Clock::system();
/// if let Some(unsaid) = REFUSED.permit(clock.now()) {
///     tracing::warn!(unsaid, "the broker refuses connections");
/// }
/// assert_eq!(REFUSED.permit(clock.now()), None);
/// ```
#[derive(Debug)]
pub struct Throttle {
    interval: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    last: Option<Instant>,
    unsaid: u64,
}

impl Throttle {
    /// One line in each `interval`.
    #[must_use]
    pub const fn every(interval: Duration) -> Self {
        Self { interval, state: Mutex::new(State { last: None, unsaid: 0 }) }
    }

    /// `Some` if the line may be written now: how many were not since the last one. `None` if it is one too many.
    pub fn permit(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.last.is_some_and(|last| now.saturating_duration_since(last) < self.interval) {
            state.unsaid += 1;
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    #[test]
    fn one_line_passes_in_each_interval_and_tells_how_many_did_not() {
        let throttle = Throttle::every(Duration::from_secs(10));
        let start = Clock::system().now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let permits: Vec<_> = [0, 1, 9, 10, 11, 30].map(|seconds| throttle.permit(at(seconds))).into();
        assert_eq!(permits, [Some(0), None, None, Some(2), None, Some(1)]);
    }
}
