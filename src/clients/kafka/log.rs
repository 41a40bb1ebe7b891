//! librdkafka's log lines and repeated complaints, without the flood.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::clock::{Clock, Instant};

/// Of this setting librdkafka says each time that it is experimental. It is meant, and tested: nobody has to act.
const MEANT: &str = "enable.gapless.guarantee";

/// How long the same complaint stays unsaid after it was said.
const QUIET: Duration = Duration::from_secs(30);
/// More different complaints than this, and all may be said again.
const REMEMBERED: usize = 100;

/// Lets each complaint through once in a while.
#[derive(Debug)]
pub(super) struct Seldom {
    clock: Clock,
    said: Mutex<HashMap<String, Instant>>,
}

impl Seldom {
    pub(super) fn new(clock: Clock) -> Self {
        Self { clock, said: Mutex::default() }
    }

    /// Whether it is time to say this (again).
    pub(super) fn now(&self, what: &str) -> bool {
        let now = self.clock.now();
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.get(what).is_some_and(|at| now.duration_since(*at) < QUIET) {
            return false;
        }
        if said.len() >= REMEMBERED {
            said.clear();
        }
        said.insert(what.to_owned(), now);
        true
    }

    /// Passes a line of librdkafka's log on, by its syslog level.
    pub(super) fn line(&self, component: &str, level: i32, text: &str) {
        // The text begins with the client's name; what follows the first colons is the complaint, with varying times.
        let kind: String = text.chars().filter(|c| !c.is_ascii_digit()).take(120).collect();
        if level > 6 || text.contains(MEANT) || !self.now(&kind) {
            return;
        }
        match level {
            ..=3 => tracing::error!(component, "librdkafka: {text}"),
            4 => tracing::warn!(component, "librdkafka: {text}"),
            _ => tracing::info!(component, "librdkafka: {text}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complaint_is_said_once_in_a_while() {
        let seldom = Seldom::new(Clock::system());
        assert!(seldom.now("a"));
        assert!(!seldom.now("a"));
        assert!(seldom.now("b"));
    }
}
