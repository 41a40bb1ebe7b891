//! The one seam to the world that schedules us: tasks, sleep, blocking work, randomness.
//!
//! The daemon runs on tokio's multi-threaded runtime. The simulation runs the same topology on one
//! thread with a paused clock, and decides by its seed which task goes first, so that a failing
//! seed replays exactly. Nothing else in the program spawns, sleeps or draws a random number.

mod process;

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::task::JoinHandle;

pub use process::Process;

use crate::clock::{Clock, Instant};

/// Schedules work. Cheap to clone; one per process, or one per simulated process.
#[derive(Debug, Clone)]
pub struct Runtime {
    clock: Clock,
    random: Arc<Mutex<fastrand::Rng>>,
    simulated: Option<Process>,
}

impl Runtime {
    /// The runtime of the daemon.
    #[must_use]
    pub fn system() -> Self {
        Self { clock: Clock::system(), random: Arc::new(Mutex::new(fastrand::Rng::new())), simulated: None }
    }

    /// A runtime whose order of tasks, and whose random numbers, follow from a seed. It must be used inside a
    /// single-threaded tokio runtime with a paused clock.
    #[must_use]
    pub fn simulated(seed: u64) -> Self {
        Self::of_process(seed, Process::default())
    }

    /// The same for one of several processes that share a tokio runtime.
    #[must_use]
    pub fn of_process(seed: u64, process: Process) -> Self {
        Self {
            clock: Clock::starting_at(Duration::from_secs(1_750_000_000)),
            random: Arc::new(Mutex::new(fastrand::Rng::with_seed(seed))),
            simulated: Some(process),
        }
    }

    /// The clock.
    #[must_use]
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// Spawns a task. Its owner keeps the handle: only `topology`, `cli` and `observe::admin` call this, and each
    /// waits for what it spawned.
    #[expect(clippy::disallowed_methods, reason = "this is the seam through which all tasks are spawned")]
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let Some(process) = &self.simulated else {
            return tokio::spawn(task);
        };
        let (process, counted, random) = (process.clone(), process.begin_task(), Arc::clone(&self.random));
        tokio::spawn(Shuffled { task: Box::pin(task), random, process, _counted: counted })
    }

    /// Waits.
    #[expect(clippy::disallowed_methods, reason = "this is the seam through which all tasks sleep")]
    pub async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }

    /// Waits until a moment.
    #[expect(clippy::disallowed_methods, reason = "this is the seam through which all tasks sleep")]
    pub async fn sleep_until(&self, deadline: Instant) {
        tokio::time::sleep_until(deadline).await;
    }

    /// Runs blocking work (files, fsync, a client's blocking call) off the workers. Under the simulation it runs at
    /// once, in its place.
    ///
    /// # Panics
    /// If the work panics, so that the stage that asked for it is the one that fails.
    #[expect(clippy::disallowed_methods, reason = "this is the seam through which blocking work goes")]
    pub async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        if self.simulated.is_some() {
            return work();
        }
        match tokio::task::spawn_blocking(work).await {
            Ok(value) => value,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    /// A random number below `bound`; 0 if `bound` is 0.
    #[must_use]
    pub fn random_below(&self, bound: u64) -> u64 {
        if bound == 0 {
            return 0;
        }
        self.random.lock().unwrap_or_else(PoisonError::into_inner).u64(0..bound)
    }

    /// `duration`, shortened by up to a half at random, so that many waiters do not wake together.
    #[must_use]
    pub fn jittered(&self, duration: Duration) -> Duration {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(nanos - self.random_below(nanos / 2 + 1))
    }
}

/// A task that now and then lets the others go first.
struct Shuffled<T> {
    task: Pin<Box<dyn Future<Output = T> + Send>>,
    random: Arc<Mutex<fastrand::Rng>>,
    process: Process,
    _counted: process::Task,
}

impl<T> Future for Shuffled<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let stand_back = self.random.lock().unwrap_or_else(PoisonError::into_inner).u8(0..3) == 0;
        if stand_back {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if !self.process.takes_turn(cx) {
            return Poll::Pending;
        }
        self.task.as_mut().poll(cx)
    }
}
