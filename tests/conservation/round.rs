//! What the pipelines of a round share: its clock, its log, its broker.

use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use weir::clock::{Clock, Instant};

use crate::broker::Broker;
use crate::schedule::{Action, Schedule};

/// This long after a fault of the broker or a disk its consequences are still on their way.
const AFTERMATH: Duration = Duration::from_secs(30);

/// A round of faults.
pub(crate) struct Round {
    clock: Clock,
    started: Instant,
    /// How long faults strike and records are produced.
    pub(crate) length: Duration,
    /// How many records each pipeline gets in a second.
    pub(crate) rate: u64,
    pub(crate) broker: Broker,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    lines: Vec<String>,
    broker: Trouble,
    broker_is_done: bool,
}

/// Whether something is in trouble, or has been lately.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Trouble {
    since: Option<Instant>,
    until: Option<Instant>,
}

impl Trouble {
    pub(crate) fn begin(&mut self, now: Instant) {
        self.since = Some(now);
    }

    pub(crate) fn end(&mut self, now: Instant) {
        (self.since, self.until) = (None, Some(now));
    }

    /// Since when it is in trouble now.
    pub(crate) fn since(&self) -> Option<Instant> {
        self.since
    }

    /// Whether it may explain what happens now.
    pub(crate) fn is_felt(&self, now: Instant) -> bool {
        self.since.is_some() || self.until.is_some_and(|until| now.saturating_duration_since(until) < AFTERMATH)
    }
}

impl Round {
    /// A round with a broker of its own, which begins now.
    pub(crate) fn begin(length: Duration, rate: u64) -> Self {
        let broker = Broker::start_new();
        let clock = Clock::system();
        Self { clock, started: clock.now(), length, rate, broker, state: Mutex::default() }
    }

    /// The time.
    pub(crate) fn now(&self) -> Instant {
        self.clock.now()
    }

    /// Since the beginning.
    pub(crate) fn elapsed(&self) -> Duration {
        self.now().saturating_duration_since(self.started)
    }

    /// One line of what happens.
    pub(crate) fn log(&self, who: &str, what: &str) {
        let line = format!("[{:7.2} s] {who}: {what}", self.elapsed().as_secs_f64());
        eprintln!("{line}");
        self.state().lines.push(line);
    }

    /// Keeps what happened beside the logs of a pipeline that failed.
    pub(crate) fn write_log(&self, path: &Path) {
        let _ = fs::write(path, self.state().lines.join("\n"));
    }

    /// Strikes the broker by a schedule, and leaves it running.
    pub(crate) fn strike_broker(&self, schedule: &Schedule) {
        for step in &schedule.steps {
            while self.elapsed() < step.at {
                std::thread::sleep(Duration::from_millis(20).min(step.at.saturating_sub(self.elapsed())));
            }
            self.log("broker", &step.action.to_string());
            match step.action {
                Action::KillBroker => {
                    self.state().broker.begin(self.now());
                    self.broker.kill();
                }
                Action::FreezeBroker => {
                    self.state().broker.begin(self.now());
                    self.broker.pause();
                }
                Action::StartBroker => {
                    self.broker.start();
                    self.state().broker.end(self.now());
                    self.log("broker", "answers again");
                }
                Action::ThawBroker => {
                    self.broker.resume();
                    self.state().broker.end(self.now());
                }
                other => unreachable!("no fault of the broker: {other}"),
            }
        }
        self.state().broker_is_done = true;
    }

    /// Whether no more fault strikes the broker.
    pub(crate) fn broker_is_done(&self) -> bool {
        self.state().broker_is_done
    }

    /// Whether a fault of the broker may explain what happens now.
    pub(crate) fn broker_is_felt(&self) -> bool {
        self.state().broker.is_felt(self.now())
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
