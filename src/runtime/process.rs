//! A simulated process: its tasks run only while it lives and is not held still.

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
    dies_at: Option<u64>,
    tasks: usize,
}

impl Process {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends it at once.
    pub fn kill(&self) {
        self.state().dead = true;
    }

    /// Ends it after so many more turns of its tasks: between any two steps of any of them.
    pub fn kill_after(&self, turns: u64) {
        let mut state = self.state();
        let at = state.turns + turns;
        state.dies_at = Some(state.dies_at.map_or(at, |before| before.min(at)));
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
        let mut state = self.state();
        if state.dead {
            return false;
        }
        if state.held {
            state.waiting.push(cx.waker().clone());
            return false;
        }
        state.turns += 1;
        state.dead = state.dies_at.is_some_and(|at| state.turns > at);
        !state.dead
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
