//! A simulated process: its tasks run only while it lives and is not held still.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};

/// One process of a simulation. What it spawned stops when it is killed, as after SIGKILL: nothing of it runs again, not
/// even to clean up. Held still, as after SIGSTOP, it goes on later as if no time had passed.
#[derive(Debug, Clone, Default)]
pub struct Process(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    dead: bool,
    held: bool,
    /// Who wanted to run while it was held.
    waiting: Vec<Waker>,
    turns: u64,
    planned: Option<Planned>,
    tasks: usize,
}

/// What is to happen before a turn.
struct Planned {
    before: u64,
    deed: Box<dyn FnOnce() + Send>,
}

impl fmt::Debug for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "before turn {}", self.before)
    }
}

impl Process {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends it at once.
    pub fn kill(&self) {
        self.state().dead = true;
    }

    /// Does something to it after so many more turns of its tasks: between any two steps of any of them. A later call
    /// takes the place of an earlier one.
    pub fn after(&self, turns: u64, deed: impl FnOnce() + Send + 'static) {
        let mut state = self.state();
        let before = state.turns + turns;
        state.planned = Some(Planned { before, deed: Box::new(deed) });
    }

    /// Whether it is gone.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.state().dead
    }

    /// None of its tasks runs until it is released.
    pub fn hold(&self) {
        self.state().held = true;
    }

    /// Whether it is held.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.state().held
    }

    /// Lets it go on.
    pub fn release(&self) {
        let mut state = self.state();
        state.held = false;
        for waker in state.waiting.drain(..) {
            waker.wake();
        }
    }

    /// How often its tasks had their turn.
    #[must_use]
    pub fn turns(&self) -> u64 {
        self.state().turns
    }

    /// How many of its tasks have not ended.
    #[must_use]
    pub fn tasks(&self) -> usize {
        self.state().tasks
    }

    /// Counts a turn, and says whether a task may have it.
    pub(super) fn takes_turn(&self, cx: &Context<'_>) -> bool {
        if let Some(planned) = self.due() {
            (planned.deed)();
        }
        let mut state = self.state();
        if state.held && !state.dead {
            state.waiting.push(cx.waker().clone());
        }
        let runs = !state.dead && !state.held;
        state.turns += u64::from(runs);
        runs
    }

    fn due(&self) -> Option<Planned> {
        let mut state = self.state();
        let turns = state.turns;
        state.planned.take_if(|planned| planned.before <= turns)
    }

    pub(super) fn begin_task(&self) -> Task {
        self.state().tasks += 1;
        Task(self.clone())
    }
}

/// A task counts until it is dropped.
#[derive(Debug)]
pub(super) struct Task(Process);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.state().tasks -= 1;
    }
}
