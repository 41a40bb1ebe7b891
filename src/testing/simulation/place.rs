//! A process's place in the world: where it takes its steps, and what befalls it.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::faults::{Fault, Step};
use super::world::{Inner, World, name};
use crate::runtime::{Process, Runtime};

/// What a step fails with when another process has taken this one's place.
pub(super) const FENCED: &str = "another process has taken this one's place";

/// A process's place in the world: what its components are made with.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) world: Arc<World>,
    pub(super) process: Process,
    pub(super) instance: usize,
    pub(super) runtime: Runtime,
    pub(super) stop: CancellationToken,
}

impl Place {
    /// Takes a step: it may take long, fail, panic, or be the last one of this life.
    ///
    /// # Errors
    /// If the step is to fail.
    ///
    /// # Panics
    /// If the step is to panic.
    pub(super) async fn step(&self, step: Step, what: &str) -> Result<(), String> {
        match self.draw(step, what) {
            None | Some(Fault::Outage(_) | Fault::CutOff(_) | Fault::Stop | Fault::Crash(_)) => {}
            Some(Fault::Error) => return Err(format!("injected at {step:?}")),
            Some(Fault::Fenced) => return Err(FENCED.to_owned()),
            Some(Fault::Panic) => panics(&format!("injected at {step:?}")),
            Some(Fault::Delay(duration)) => self.runtime.sleep(duration).await,
            Some(Fault::Hold(_)) => self.pause().await,
        }
        self.lives().await;
        Ok(())
    }

    /// Resolves as long as the process lives; else never, and nothing behind it happens.
    pub(super) async fn lives(&self) {
        if self.process.is_dead() {
            std::future::pending::<()>().await;
        }
    }

    /// Gives the turn away, so that a process that is held still stops here and nowhere behind.
    async fn pause(&self) {
        self.runtime.sleep(Duration::from_millis(1)).await;
    }

    /// Takes a step that cannot wait.
    ///
    /// # Panics
    /// If anything is to go wrong: computing has no other way to fail.
    pub(super) fn step_now(&self, step: Step, what: &str) {
        match self.draw(step, what) {
            Some(Fault::Error | Fault::Panic) => panics(&format!("injected at {step:?}")),
            _ if self.process.is_dead() => panics(&format!("gone at {step:?}")),
            _ => {}
        }
    }

    fn draw(&self, step: Step, what: &str) -> Option<Fault> {
        let now = self.world.now();
        let mut inner = self.world.inner();
        let fault = if self.process.is_dead() { None } else { inner.faults.draw(step) };
        let _ = write!(inner.trace, "{} {} {step:?} {what}", now.as_millis(), name(self.instance));
        if let Some(fault) = fault {
            let _ = write!(inner.trace, " {fault:?}");
        }
        inner.trace.push('\n');
        if let Some(fault) = fault {
            self.befall(&mut inner, fault);
        }
        fault
    }

    /// Something goes wrong with the process as a whole, or with the world around it.
    fn befall(&self, inner: &mut Inner, fault: Fault) {
        inner.faulted |= fault != Fault::Stop;
        let now = self.world.now();
        match fault {
            Fault::Outage(duration) => inner.outage_until = now + duration,
            Fault::Crash(0) => self.process.kill(),
            Fault::Crash(turns) => {
                let process = self.process.clone();
                self.process.after(turns, move || process.kill());
            }
            Fault::CutOff(duration) => drop(inner.cut_off_until.insert(self.instance, now + duration)),
            Fault::Stop => {
                inner.stopped.insert(self.instance, now);
                self.stop.cancel();
            }
            Fault::Hold(duration) => {
                inner.held_until.insert(self.instance, now + duration);
                inner.ever_held.insert(self.instance);
                self.process.hold();
            }
            Fault::Fenced => inner.has_failed_on_purpose = true,
            Fault::Error | Fault::Panic | Fault::Delay(_) => {}
        }
    }

    /// What is planned for a turn of the first process's first life is laid out for it.
    pub(super) fn plan_ahead(&self) {
        let planned = self.world.inner().faults.at_turn();
        if let Some((turn, fault)) = planned {
            let place = self.clone();
            self.process.after(turn, move || {
                place.note(&format!("turn {turn}: {fault:?}"));
                place.befall(&mut place.world.inner(), fault);
            });
        }
    }

    /// Adds a line to the trace.
    pub(super) fn note(&self, what: &str) {
        self.world.note(name(self.instance), what);
    }

    /// Waits until the sinks reach what they write to.
    pub(super) async fn until_reachable(&self) {
        while self.world.now() < self.world.outage_until() {
            let left = self.world.outage_until().saturating_sub(self.world.now());
            self.runtime.sleep(left).await;
        }
    }

    /// Whether the process reaches its groups.
    pub(super) fn is_cut_off(&self) -> bool {
        let now = self.world.now();
        self.world.inner().cut_off_until.get(&self.instance).is_some_and(|until| now < *until)
    }

    /// Whether the sinks reach what they write to.
    pub(super) fn is_reachable(&self) -> bool {
        self.world.now() >= self.world.outage_until()
    }
}

/// Panics without the noise of the panic hook.
pub(super) fn panics(what: &str) -> ! {
    std::panic::resume_unwind(Box::new(what.to_owned()))
}
