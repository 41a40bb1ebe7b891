//! What goes wrong, and where.

use std::time::Duration;

use super::scenario::Scenario;

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
    /// A sink begins to make durable what it was given: its barrier has come.
    Flush,
    /// A sink has made it durable and not said so yet.
    Flushed,
    /// The store reads positions.
    Load,
    /// The store begins to commit positions.
    StoreBefore,
    /// The store has committed and not said so yet.
    StoreAfter,
    /// A group is about to commit positions.
    GroupBefore,
    /// A group has committed positions and not said so yet.
    GroupAfter,
    /// A transaction fences earlier processes.
    Fence,
    /// A transaction begins to commit.
    CommitBefore,
    /// A transaction holds the positions, and is not committed yet.
    OffsetsSent,
    /// A transaction has committed and not said so yet.
    CommitAfter,
    /// A transaction aborts.
    Abort,
    /// A member of a group gives partitions up.
    Revoke,
    /// A buffer is about to cut off what is not committed, at the beginning of a run.
    CutBack,
    /// What a buffer holds is committed, and about to be shown to its reader.
    Show,
}

impl Step {
    /// The steps that a record takes through a buffer, and all that decides what of the buffer counts.
    pub const OF_A_BUFFER: [Self; 13] = [
        Self::Open,
        Self::Pull,
        Self::Write,
        Self::Flush,
        Self::Flushed,
        Self::Load,
        Self::StoreBefore,
        Self::StoreAfter,
        Self::GroupBefore,
        Self::GroupAfter,
        Self::Show,
        Self::CutBack,
        Self::Answer,
    ];

    /// The steps of the commit of an epoch, from the first barrier at a sink to the last word.
    pub const OF_A_COMMIT: [Self; 9] = [
        Self::Flush,
        Self::Flushed,
        Self::StoreBefore,
        Self::StoreAfter,
        Self::GroupBefore,
        Self::GroupAfter,
        Self::CommitBefore,
        Self::OffsetsSent,
        Self::CommitAfter,
    ];
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
    /// What all sinks write to is gone for a while.
    Outage(Duration),
    /// The process reaches its groups no more for a while, and everything else: it goes on as if it held its partitions.
    CutOff(Duration),
    /// Another process has taken this one's place; a person must act.
    Fenced,
    /// The process is gone, so many turns of its tasks later.
    Crash(u64),
    /// The process is asked to stop.
    Stop,
    /// The process is held still for a while.
    Hold(Duration),
}

impl Fault {
    /// Whether the life of the process ends with it, or may as well have.
    fn is_end(self) -> bool {
        matches!(self, Self::Crash(_) | Self::Stop | Self::Hold(_) | Self::Fenced)
    }
}

/// A fault that is sure to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Planned {
    /// When a step is taken for the so-manieth time, counted from 0.
    AtStep(Step, u32, Fault),
    /// Before this turn of the tasks of the first process's first life: its end, or its being held still.
    AtTurn(u64, Fault),
}

/// Draws faults, up to a number of them.
#[derive(Debug)]
pub(super) struct Faults {
    random: fastrand::Rng,
    left: u32,
    ends_left: u32,
    planned: Option<Planned>,
    menu: &'static [Fault],
}

impl Faults {
    /// The faults of a scenario under a seed.
    #[must_use]
    pub(super) fn new(seed: u64, scenario: &Scenario) -> Self {
        Self {
            random: fastrand::Rng::with_seed(seed),
            left: scenario.faults,
            ends_left: scenario.ends,
            planned: scenario.planned,
            menu: scenario.menu,
        }
    }

    /// What goes wrong at this step, if anything does.
    pub(super) fn draw(&mut self, step: Step) -> Option<Fault> {
        match &mut self.planned {
            Some(Planned::AtStep(at, 0, fault)) if *at == step => {
                let fault = *fault;
                self.planned = None;
                return Some(fault);
            }
            Some(Planned::AtStep(at, left, _)) if *at == step => *left -= 1,
            _ => {}
        }
        // Steps of which an epoch has one are as likely to fail as the steps of which it has many together.
        let one_in = match step {
            Step::Pull | Step::Apply | Step::Write | Step::Answer => 60,
            Step::Open | Step::Flush | Step::Flushed | Step::Fence | Step::Abort | Step::Load => 16,
            Step::StoreBefore
            | Step::StoreAfter
            | Step::GroupBefore
            | Step::GroupAfter
            | Step::CommitBefore
            | Step::OffsetsSent
            | Step::CommitAfter
            | Step::Revoke
            | Step::CutBack
            | Step::Show => 8,
        };
        if self.left == 0 || self.random.u32(0..one_in) != 0 {
            return None;
        }
        let from_menu = (!self.menu.is_empty()).then(|| self.menu[self.random.usize(0..self.menu.len())]);
        let mut fault = from_menu.unwrap_or_else(|| self.any(step));
        if fault.is_end() && self.ends_left == 0 {
            fault = Fault::Error;
        }
        self.left -= 1;
        self.ends_left -= u32::from(fault.is_end());
        Some(fault)
    }

    /// Any fault that makes sense at a step.
    fn any(&mut self, step: Step) -> Fault {
        match self.random.u8(0..16) {
            0..4 => Fault::Error,
            4..6 => Fault::Panic,
            6..9 => Fault::Delay(Duration::from_millis(self.random.u64(1..5_000))),
            9 if matches!(step, Step::Open | Step::Write | Step::Answer | Step::Flush) => {
                Fault::Outage(Duration::from_millis(self.random.u64(2_000..40_000)))
            }
            10 if step == Step::CommitBefore => Fault::Fenced,
            10 => Fault::CutOff(Duration::from_millis(self.random.u64(1_000..25_000))),
            9..13 => Fault::Crash(if self.random.bool() { 0 } else { self.random.u64(0..40) }),
            13 => Fault::Stop,
            _ => Fault::Hold(Duration::from_millis(self.random.u64(1..25_000))),
        }
    }

    /// What is to go wrong before a turn, once.
    pub(super) fn at_turn(&mut self) -> Option<(u64, Fault)> {
        let Some(Planned::AtTurn(turn, fault)) = self.planned else { return None };
        self.planned = None;
        Some((turn, fault))
    }

    /// Nothing goes wrong any more.
    pub(super) fn cease(&mut self) {
        self.left = 0;
        self.planned = None;
    }

    /// The seeded generator itself, for what varies without being a fault.
    pub(super) fn random(&mut self) -> &mut fastrand::Rng {
        &mut self.random
    }
}
