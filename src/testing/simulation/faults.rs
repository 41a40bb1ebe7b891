//! What goes wrong, and where.

use std::time::Duration;

/// A place where something can go wrong: each step that a record or an epoch takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The source reads a batch.
    Pull,
    /// A transform works on a batch.
    Apply,
    /// A sink opens.
    Open,
    /// A sink takes a batch.
    Write,
    /// The outside world answers for a batch.
    Answer,
    /// A sink makes durable what it was given.
    Flush,
    /// The store begins to commit positions.
    StoreBefore,
    /// The store has committed and not said so yet.
    StoreAfter,
    /// A transaction fences earlier processes.
    Fence,
    /// A transaction begins to commit.
    CommitBefore,
    /// A transaction has committed and not said so yet.
    CommitAfter,
    /// A transaction aborts.
    Abort,
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// An error that is worth another try.
    Error,
    /// A panic.
    Panic,
    /// It takes long.
    Delay(Duration),
    /// The process is gone.
    Crash,
}

/// Draws faults, up to a number of them.
#[derive(Debug)]
pub struct Faults {
    random: fastrand::Rng,
    left: u32,
    crashes_left: u32,
}

impl Faults {
    /// Faults that follow from a seed.
    #[must_use]
    pub fn new(seed: u64, faults: u32, crashes: u32) -> Self {
        Self { random: fastrand::Rng::with_seed(seed), left: faults, crashes_left: crashes }
    }

    /// What goes wrong at this step, if anything does.
    pub fn draw(&mut self, step: Step) -> Option<Fault> {
        // Steps of which an epoch has one are as likely to fail as the steps of which it has many together.
        let one_in = match step {
            Step::Pull | Step::Apply | Step::Write | Step::Answer => 40,
            Step::Open | Step::Flush | Step::Fence | Step::Abort => 10,
            Step::StoreBefore | Step::StoreAfter | Step::CommitBefore | Step::CommitAfter => 6,
        };
        if self.left == 0 || self.random.u32(0..one_in) != 0 {
            return None;
        }
        let fault = match self.random.u8(0..4) {
            0 => Fault::Error,
            1 => Fault::Panic,
            2 => Fault::Delay(Duration::from_millis(self.random.u64(1..5_000))),
            _ if self.crashes_left > 0 => Fault::Crash,
            _ => Fault::Error,
        };
        self.left -= 1;
        if fault == Fault::Crash {
            self.crashes_left -= 1;
        }
        Some(fault)
    }

    /// The seeded generator itself, for what varies without being a fault.
    pub fn random(&mut self) -> &mut fastrand::Rng {
        &mut self.random
    }
}
