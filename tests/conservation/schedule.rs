//! Which faults strike, when, on which process, and for how long: drawn from a seed, so that a seed replays them.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// How many processes a pipeline that shares its work may have.
pub(crate) const PROCESSES: usize = 3;

/// Longer than any session time-out of the pipelines here (10 s by default).
const BEYOND_SESSION: Duration = Duration::from_millis(10_500);

/// What is done to a pipeline or to its broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Action {
    /// A process starts.
    Start(usize),
    /// SIGKILL.
    Kill(usize),
    /// SIGSTOP.
    Freeze(usize),
    /// SIGCONT.
    Thaw(usize),
    /// SIGTERM.
    Leave(usize),
    /// A second process on the same data folder. It must be turned away, and harm nothing.
    Intrude(usize),
    /// The disk has no room left.
    Fill(Disk),
    /// It has room again.
    Free(Disk),
    /// The topic of the sink takes less than before.
    LowerLimit,
    /// It takes as much as before again.
    RestoreLimit,
    /// SIGKILL for the broker.
    KillBroker,
    /// The broker starts again.
    StartBroker,
    /// SIGSTOP for the broker.
    FreezeBroker,
    /// SIGCONT for the broker.
    ThawBroker,
}

/// A disk that can be full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Disk {
    /// What file sinks write to.
    Sinks,
    /// The data folders.
    Data,
}

impl Disk {
    pub(crate) const ALL: [Self; 2] = [Self::Sinks, Self::Data];

    /// What it counts as in the figures that it is full.
    pub(crate) fn fault(self) -> &'static str {
        match self {
            Self::Sinks => "sinks' disk full",
            Self::Data => "data disk full",
        }
    }
}

impl Action {
    /// What it counts as in the figures; nothing if it only ends a fault.
    pub(crate) fn fault(self) -> Option<&'static str> {
        match self {
            Self::Kill(_) => Some("SIGKILL"),
            Self::Freeze(_) => Some("SIGSTOP"),
            Self::Leave(_) => Some("SIGTERM"),
            Self::Start(0)
            | Self::Thaw(_)
            | Self::Free(_)
            | Self::RestoreLimit
            | Self::StartBroker
            | Self::ThawBroker => None,
            Self::Start(_) => Some("join"),
            Self::Intrude(_) => Some("intruder"),
            Self::Fill(disk) => Some(disk.fault()),
            Self::LowerLimit => Some("topic limit lowered"),
            Self::KillBroker => Some("broker SIGKILL"),
            Self::FreezeBroker => Some("broker SIGSTOP"),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start(process) => write!(f, "process {process} starts"),
            Self::Kill(process) => write!(f, "SIGKILL for process {process}"),
            Self::Freeze(process) => write!(f, "SIGSTOP for process {process}"),
            Self::Thaw(process) => write!(f, "SIGCONT for process {process}"),
            Self::Leave(process) => write!(f, "SIGTERM for process {process}"),
            Self::Intrude(process) => write!(f, "a second process on the data folder of process {process}"),
            Self::Fill(Disk::Sinks) => f.write_str("the sinks' disk is full"),
            Self::Fill(Disk::Data) => f.write_str("the data folders' disk is full"),
            Self::Free(Disk::Sinks) => f.write_str("the sinks' disk has room again"),
            Self::Free(Disk::Data) => f.write_str("the data folders' disk has room again"),
            Self::LowerLimit => f.write_str("the topic's limit is lowered"),
            Self::RestoreLimit => f.write_str("the topic's limit is as it was"),
            Self::KillBroker => f.write_str("SIGKILL for the broker"),
            Self::StartBroker => f.write_str("the broker starts"),
            Self::FreezeBroker => f.write_str("SIGSTOP for the broker"),
            Self::ThawBroker => f.write_str("SIGCONT for the broker"),
        }
    }
}

/// One action at its time from the start of the round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Step {
    pub(crate) at: Duration,
    pub(crate) action: Action,
}

/// Actions in the order of their times.
#[derive(Debug, Clone, Default)]
pub(crate) struct Schedule {
    pub(crate) steps: Vec<Step>,
}

/// What may strike a pipeline.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Exposure {
    /// Whether several processes share the work.
    pub(crate) shares: bool,
    /// The disks that can be filled.
    pub(crate) disks: &'static [Disk],
    /// Whether the sink's topic has a limit.
    pub(crate) limit: bool,
}

impl Schedule {
    /// Every kind of fault that may strike a pipeline.
    pub(crate) const FAULTS: [&str; 8] = [
        "SIGKILL",
        "SIGSTOP",
        "SIGTERM",
        "join",
        "intruder",
        "sinks' disk full",
        "data disk full",
        "topic limit lowered",
    ];

    /// What strikes one pipeline within `length`.
    pub(crate) fn of_pipeline(random: &mut fastrand::Rng, length: Duration, exposure: Exposure) -> Self {
        let mut draw = Draw { random, length, steps: Vec::new() };
        draw.first_process();
        if exposure.shares {
            for process in 1..PROCESSES {
                draw.guest(process);
            }
        }
        for disk in exposure.disks {
            draw.full_disk(*disk);
        }
        if exposure.limit {
            draw.lowered_limit();
        }
        draw.done()
    }

    /// What strikes the broker within `length`.
    pub(crate) fn of_broker(random: &mut fastrand::Rng, length: Duration) -> Self {
        let mut draw = Draw { random, length, steps: Vec::new() };
        // Later than this it could not show what it does to records that pass.
        let last = length.saturating_sub(Duration::from_secs(8));
        let mut at = draw.between(length / 8, length / 4);
        let mut kills = draw.random.bool();
        for strike in 0.. {
            // Both kinds in turn: each round has both.
            if strike >= 2 && at > last {
                break;
            }
            at = at.min(last);
            if kills {
                let down = draw.between(Duration::ZERO, Duration::from_secs(3));
                draw.pair(at, down, Action::KillBroker, Action::StartBroker);
            } else {
                // A moment, or longer than sessions and transactions last.
                let longest = if draw.random.bool() { 6 } else { 15 };
                let still = draw.between(Duration::from_secs(1), Duration::from_secs(longest));
                draw.pair(at, still, Action::FreezeBroker, Action::ThawBroker);
            }
            kills = !kills;
            at += draw.between(Duration::from_secs(18), Duration::from_secs(35));
        }
        draw.done()
    }

    /// How often each kind of fault strikes.
    pub(crate) fn faults(&self) -> BTreeMap<&'static str, usize> {
        let mut faults = BTreeMap::new();
        for fault in self.steps.iter().filter_map(|step| step.action.fault()) {
            *faults.entry(fault).or_default() += 1;
        }
        faults
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.steps {
            writeln!(f, "  {:7.2} s  {}", step.at.as_secs_f64(), step.action)?;
        }
        Ok(())
    }
}

/// What may happen to a process while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Blow {
    Kill,
    /// Killed, and killed again while it starts.
    KillTwice,
    /// Frozen for a moment.
    Blink,
    /// Frozen for longer than its session lasts.
    Zombie,
    Restart,
    Intruder,
}

const BLOWS: [Blow; 6] = [Blow::Kill, Blow::KillTwice, Blow::Blink, Blow::Zombie, Blow::Restart, Blow::Intruder];

struct Draw<'a> {
    random: &'a mut fastrand::Rng,
    length: Duration,
    steps: Vec<Step>,
}

impl Draw<'_> {
    fn between(&mut self, from: Duration, to: Duration) -> Duration {
        let (from, to) = (from.as_millis(), to.as_millis().max(from.as_millis() + 1));
        let millis = self.random.u128(from..to);
        Duration::from_millis(u64::try_from(millis).expect("a round is short"))
    }

    fn at(&mut self, at: Duration, action: Action) {
        self.steps.push(Step { at, action });
    }

    fn pair(&mut self, at: Duration, lasts: Duration, begin: Action, end: Action) {
        self.at(at, begin);
        self.at(at + lasts, end);
    }

    /// The process that is always there, but for the blows that strike it. A kill and a freeze are always among them.
    fn first_process(&mut self) {
        self.at(Duration::ZERO, Action::Start(0));
        let mut first = vec![Blow::Kill, Blow::Zombie];
        if self.random.bool() {
            first.reverse();
        }
        let mut at = self.between(Duration::from_secs(2), Duration::from_secs(6));
        let mut first = first.into_iter();
        while at < self.length {
            let blow = first.next().unwrap_or_else(|| BLOWS[self.random.usize(..BLOWS.len())]);
            at = self.strike(at, 0, blow);
            at += self.between(Duration::from_secs(1), Duration::from_secs(6));
        }
    }

    /// A process that joins and leaves, again and again.
    fn guest(&mut self, process: usize) {
        let mut at = self.between(Duration::from_secs(2), (self.length / 3).max(Duration::from_secs(3)));
        while at < self.length {
            self.at(at, Action::Start(process));
            let stays = self.between(Duration::from_secs(4), Duration::from_secs(20));
            let leaves = (at + stays).min(self.length);
            at += self.between(Duration::from_secs(2), Duration::from_secs(8));
            while at < leaves {
                let blow = BLOWS[self.random.usize(..BLOWS.len())];
                at = self.strike(at, process, blow) + self.between(Duration::from_secs(2), Duration::from_secs(8));
            }
            let at_last = if self.random.bool() { Action::Kill(process) } else { Action::Leave(process) };
            self.at(at, at_last);
            at += self.between(Duration::from_secs(1), Duration::from_secs(12));
        }
    }

    /// One blow, and the time when it is over.
    fn strike(&mut self, at: Duration, process: usize, blow: Blow) -> Duration {
        let (begin, lasts, end) = match blow {
            Blow::Kill => {
                (Action::Kill(process), self.between(Duration::ZERO, Duration::from_secs(3)), Action::Start(process))
            }
            Blow::KillTwice => {
                let (wait, lives) = (Duration::from_millis(100), Duration::from_millis(600));
                let lives = self.between(Duration::ZERO, lives);
                self.pair(at, wait, Action::Kill(process), Action::Start(process));
                let again = at + wait + lives;
                self.pair(again, wait, Action::Kill(process), Action::Start(process));
                return again + wait;
            }
            Blow::Blink => {
                let lasts = self.between(Duration::from_millis(500), Duration::from_secs(4));
                (Action::Freeze(process), lasts, Action::Thaw(process))
            }
            Blow::Zombie => {
                let lasts = BEYOND_SESSION + self.between(Duration::ZERO, Duration::from_secs(4));
                (Action::Freeze(process), lasts, Action::Thaw(process))
            }
            Blow::Restart => {
                (Action::Leave(process), self.between(Duration::ZERO, Duration::from_secs(2)), Action::Start(process))
            }
            Blow::Intruder => (Action::Intrude(process), Duration::ZERO, Action::Intrude(process)),
        };
        self.at(at, begin);
        if end != begin {
            self.at(at + lasts, end);
        }
        at + lasts
    }

    fn full_disk(&mut self, disk: Disk) {
        let mut at = self.between(self.length / 8, self.length / 2);
        while at < self.length {
            // Long enough to be called stuck, or soon over.
            let longest = if self.random.bool() { 9 } else { 20 };
            let lasts = self.between(Duration::from_secs(2), Duration::from_secs(longest));
            self.pair(at, lasts, Action::Fill(disk), Action::Free(disk));
            at += lasts + self.between(Duration::from_secs(20), Duration::from_secs(60));
        }
    }

    fn lowered_limit(&mut self) {
        let mut at = self.between(self.length / 8, self.length / 2);
        while at < self.length {
            let lasts = self.between(Duration::from_secs(2), Duration::from_secs(10));
            self.pair(at, lasts, Action::LowerLimit, Action::RestoreLimit);
            at += lasts + self.between(Duration::from_secs(20), Duration::from_secs(60));
        }
    }

    fn done(mut self) -> Schedule {
        // The sort is stable: what was drawn first comes first where times are the same.
        self.steps.sort_by_key(|step| step.at);
        Schedule { steps: self.steps }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXPOSURE: Exposure = Exposure { shares: true, disks: &[Disk::Sinks, Disk::Data], limit: true };
    const LENGTH: Duration = Duration::from_secs(45);

    fn drawn(seed: u64) -> [Schedule; 2] {
        let mut random = fastrand::Rng::with_seed(seed);
        [Schedule::of_broker(&mut random, LENGTH), Schedule::of_pipeline(&mut random, LENGTH, EXPOSURE)]
    }

    #[test]
    fn a_seed_draws_its_schedule_again() {
        for seed in 0..20 {
            assert_eq!(drawn(seed).map(|schedule| schedule.to_string()), drawn(seed).map(|again| again.to_string()));
        }
        assert_ne!(drawn(1)[1].to_string(), drawn(2)[1].to_string());
    }

    #[test]
    fn every_round_has_the_faults_that_matter_most() {
        for seed in 0..200 {
            let [broker, pipeline] = drawn(seed);
            let faults = [broker.faults(), pipeline.faults()];
            for fault in ["broker SIGKILL", "broker SIGSTOP"] {
                assert!(faults[0].contains_key(fault), "{seed}: no {fault}:\n{broker}");
            }
            for fault in ["SIGKILL", "SIGSTOP", "join", "sinks' disk full", "data disk full", "topic limit lowered"] {
                assert!(faults[1].contains_key(fault), "{seed}: no {fault}:\n{pipeline}");
            }
            let at = |action| pipeline.steps.iter().find(|step| step.action == action).map(|step| step.at);
            let frozen = at(Action::Thaw(0)).zip(at(Action::Freeze(0)));
            assert!(frozen.is_some(), "{seed}: a process is frozen:\n{pipeline}");
        }
    }

    #[test]
    fn what_is_done_to_a_process_can_be_done() {
        for seed in 0..200 {
            let [_, pipeline] = drawn(seed);
            for process in 0..PROCESSES {
                let (mut runs, mut frozen) = (false, false);
                for step in &pipeline.steps {
                    match step.action {
                        Action::Start(number) if number == process => {
                            assert!(!runs, "{seed}: {} twice", step.action);
                            runs = true;
                        }
                        Action::Kill(number) | Action::Leave(number) if number == process => {
                            assert!(runs && !frozen, "{seed}: {}", step.action);
                            runs = false;
                        }
                        Action::Freeze(number) if number == process => {
                            assert!(runs && !frozen, "{seed}: {}", step.action);
                            frozen = true;
                        }
                        Action::Thaw(number) if number == process => {
                            assert!(frozen, "{seed}: {}", step.action);
                            frozen = false;
                        }
                        _ => {}
                    }
                }
            }
        }
    }
}
