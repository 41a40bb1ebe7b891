//! Nothing lost, nothing twice: the real binary and a real broker, while a seeded schedule of faults strikes both.
//!
//! Each round runs one pipeline of each kind at once, with up to three processes each, and a steady stream of numbered
//! records. Processes are killed, frozen for longer than their session lasts, stopped and started again, join and leave;
//! the broker is killed and frozen; disks are full; some records do not decode, some make the program fail, some are
//! larger than the topic takes. Then all is quiet, everything must finish, and every record is counted: it must have
//! been delivered, dropped on purpose or dead-lettered, under `exactly_once` once and in the order of its key.
//!
//! `cargo test` runs a round of a fixed seed. `CONSERVATION_SEED` replays a round, and `CONSERVATION_MINUTES` goes on with
//! further rounds, of fresh seeds if none is given, for that long:
//!
//! ```sh
//! CONSERVATION_SEED=7 CONSERVATION_MINUTES=60 cargo test --release --test conservation -- --nocapture
//! ```
//!
//! `CONSERVATION_ONLY=file` picks the pipelines whose name has that word, and `CONSERVATION_SECONDS` sets the length of
//! a round, which is a part of what a seed draws. Where a round fails, the logs, the schedule and what was found are
//! kept.
//!
//! Disks that can be full need a machine that mounts memory file systems. On one that does not, the test fails unless
//! `CONSERVATION_WITHOUT_DISKS=1` leaves them out.

#[path = "../broker/mod.rs"]
mod broker;
#[path = "../process/mod.rs"]
mod process;

mod account;
mod disk;
mod files;
mod pipeline;
mod records;
mod round;
mod schedule;
mod strike;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Duration;

use account::Figures;
use broker::wait::Deadline;
use pipeline::{Case, Pipeline};
use round::Round;
use schedule::{Disk, Schedule};
use strike::{Outcome, Place, Struck};

/// The seed of the round that is always run.
const FIXED_SEED: u64 = 1_696_742_271_660_100_374;
/// How long faults strike in a round, where `cargo test` runs it and where there is more time.
const SHORT: Duration = Duration::from_secs(45);
const LONG: Duration = Duration::from_mins(2);
/// How long the round that is always run may take in all, from the broker's start to the last record counted.
const SHORT_FORM: Duration = Duration::from_mins(5);
/// How many records each pipeline gets in a second.
const RATE: u64 = 400;

#[test]
fn nothing_is_lost_and_nothing_comes_twice_whatever_fails() {
    let variable = |name: &str| {
        let value = std::env::var(name).ok()?;
        Some(value.parse::<u64>().unwrap_or_else(|_| panic!("{name} is a number, not `{value}`")))
    };
    let only = std::env::var("CONSERVATION_ONLY").unwrap_or_default();
    let minutes = variable("CONSERVATION_MINUTES");
    let length = variable("CONSERVATION_SECONDS").map(Duration::from_secs);
    let length = length.unwrap_or(if minutes.is_some() { LONG } else { SHORT });
    let seed = variable("CONSERVATION_SEED");

    let mut figures = Totals::default();
    match (seed, minutes) {
        (Some(seed), None) => figures.add_round(seed, length, &only),
        (None, None) => {
            figures.add_round(FIXED_SEED, length, &only);
            figures.all_must_have_been_short();
            if only.is_empty() && length == SHORT {
                figures.every_fault_must_have_struck();
            }
        }
        (seed, Some(minutes)) => {
            let deadline = Deadline::within(Duration::from_mins(minutes));
            let mut seed = seed.unwrap_or_else(|| fastrand::u64(..));
            while !deadline.passed() {
                figures.add_round(seed, length, &only);
                seed = fastrand::Rng::with_seed(seed).u64(..);
            }
        }
    }
    tell(&figures.table());
    assert!(figures.failed.is_empty(), "\n{}", figures.failed);
}

/// What a seed draws for the broker and for each pipeline, with the randomness that is left for the rest of it.
fn draw(seed: u64, length: Duration) -> (Schedule, [(Case, Schedule, fastrand::Rng); 6]) {
    let mut random = fastrand::Rng::with_seed(seed);
    let broker = Schedule::of_broker(&mut random.fork(), length);
    let pipelines = Case::ALL.map(|case| {
        let mut random = random.fork();
        let schedule = Schedule::of_pipeline(&mut random, length, case.exposure());
        (case, schedule, random)
    });
    (broker, pipelines)
}

/// Says something that is seen also where the test passes.
fn tell(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// The figures of all rounds.
#[derive(Default)]
struct Totals {
    rounds: u32,
    seconds: f64,
    broker_faults: BTreeMap<&'static str, usize>,
    cases: BTreeMap<String, CaseTotals>,
    failed: String,
}

#[derive(Default)]
struct CaseTotals {
    figures: Figures,
    scheduled: BTreeMap<&'static str, usize>,
    faults: BTreeMap<&'static str, usize>,
}

impl Totals {
    fn add_round(&mut self, seed: u64, length: Duration, only: &str) {
        let replay = format!("CONSERVATION_SEED={seed} CONSERVATION_SECONDS={}", length.as_secs());
        tell(&format!("conservation: {replay}"));
        let (broker_schedule, drawn) = draw(seed, length);
        eprintln!("the broker:\n{broker_schedule}");
        let drawn: Vec<_> = drawn.into_iter().filter(|(case, ..)| case.name().contains(only)).collect();
        assert!(!drawn.is_empty(), "CONSERVATION_ONLY={only} picks none");

        // Room for all records, and as much again.
        let disk_size = (32 << 20) + RATE * length.as_secs() * 1_000;
        let places: Vec<_> = drawn.iter().map(|_| Place::new(disk_size)).collect();
        let round = Round::begin(length, RATE);
        let outcomes: Vec<_> = std::thread::scope(|threads| {
            let strikes = drawn.iter().zip(places).map(|((case, schedule, random), place)| {
                eprintln!("{}:\n{schedule}", case.name());
                let folder = place.homes[0].path("");
                let round = &round;
                threads.spawn(move || {
                    let mut random = random.clone();
                    let pipeline = Pipeline::new(*case, &round.broker, folder, &mut random);
                    Struck::new(round, pipeline, place).run(schedule)
                })
            });
            let strikes: Vec<_> = strikes.collect();
            let broker = threads.spawn(|| round.strike_broker(&broker_schedule));
            let outcomes = strikes.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
            broker.join().expect("the broker starts again");
            outcomes
        });
        if disk::are_left_out() {
            tell("conservation: full disks are left out");
        }
        self.rounds += 1;
        self.seconds += round.elapsed().as_secs_f64();
        add_faults(&mut self.broker_faults, broker_schedule.faults());
        for ((case, schedule, _), outcome) in drawn.iter().zip(outcomes) {
            let totals = self.cases.entry(case.name()).or_default();
            add_faults(&mut totals.scheduled, schedule.faults());
            match outcome {
                Ok(Outcome { figures, faults, told }) => {
                    add_faults(&mut totals.faults, faults);
                    totals.figures.add(figures);
                    if !told.is_empty() {
                        let _ = write!(self.failed, "{replay}: {told}");
                    }
                }
                Err(_) => {
                    let _ = writeln!(self.failed, "{replay}: {}: the test itself failed; see above", case.name());
                }
            }
        }
    }

    /// Each wait of a round has a limit of its own, generous for its cause; all of them together must not last either.
    fn all_must_have_been_short(&mut self) {
        if self.seconds > SHORT_FORM.as_secs_f64() {
            let _ = writeln!(
                self.failed,
                "the round took {:.0} s, and may take {SHORT_FORM:?}: see above which pipeline `finished` late, and why; on \
                 a machine that is busy with other work, run it alone",
                self.seconds
            );
        }
    }

    /// A round that struck nobody proves nothing. One strike may be impossible at its moment, such as one at a process
    /// that is just gone, so each kind counts over all pipelines.
    fn every_fault_must_have_struck(&mut self) {
        let struck = |fault: &&str| self.cases.values().any(|totals| totals.faults.contains_key(*fault));
        let scheduled: BTreeSet<&str> =
            self.cases.values().flat_map(|totals| totals.scheduled.keys().copied()).collect();
        let left_out: Vec<&str> = if disk::are_left_out() { Disk::ALL.map(Disk::fault).to_vec() } else { Vec::new() };
        let missed: Vec<&str> =
            scheduled.into_iter().filter(|fault| !(left_out.contains(fault) || struck(fault))).collect();
        if !missed.is_empty() {
            let missed = missed.join(", ");
            let _ = writeln!(self.failed, "scheduled, but never done to any pipeline: {missed}");
        }
    }

    /// The figures, for people.
    fn table(&self) -> String {
        let list = |faults: &BTreeMap<&'static str, usize>| {
            let faults: Vec<_> = faults.iter().map(|(fault, count)| format!("{count} {fault}")).collect();
            faults.join(", ")
        };
        let mut text =
            format!("conservation: {} rounds, {:.0} s; {}\n", self.rounds, self.seconds, list(&self.broker_faults));
        for (name, CaseTotals { figures, faults, scheduled: _ }) in &self.cases {
            let Figures { records, delivered, filtered, dead_lettered, repeats } = figures;
            let _ = writeln!(
                text,
                "  {name}: {records} records: {delivered} delivered, {filtered} filtered, {dead_lettered} dead-lettered, \
                 {repeats} repeated; {}",
                list(faults)
            );
        }
        text
    }
}

fn add_faults(totals: &mut BTreeMap<&'static str, usize>, faults: BTreeMap<&'static str, usize>) {
    for (fault, count) in faults {
        *totals.entry(fault).or_default() += count;
    }
}

#[test]
fn the_fixed_round_schedules_every_kind_of_fault_more_than_once() {
    let (broker, pipelines) = draw(FIXED_SEED, SHORT);
    let mut faults = BTreeMap::new();
    for (_, schedule, _) in pipelines {
        add_faults(&mut faults, schedule.faults());
    }
    // Each may be impossible at its moment.
    for fault in Schedule::FAULTS {
        assert!(faults.get(fault).is_some_and(|count| *count > 1), "{fault}: {faults:?}");
    }
    assert!(["broker SIGKILL", "broker SIGSTOP"].iter().all(|fault| broker.faults().contains_key(fault)), "{broker}");
}

#[test]
fn a_fault_that_struck_nobody_and_a_round_that_lasts_fail_the_test() {
    let mut totals = Totals { seconds: 300.5, ..Totals::default() };
    for (case, faults) in [("one", &["SIGKILL"][..]), ("other", &["SIGKILL", "intruder"])] {
        let case = totals.cases.entry(case.to_owned()).or_default();
        case.scheduled = faults.iter().map(|fault| (*fault, 2)).collect();
    }
    totals.cases.entry("other".to_owned()).or_default().faults.insert("SIGKILL", 1);
    totals.every_fault_must_have_struck();
    assert_eq!(totals.failed, "scheduled, but never done to any pipeline: intruder\n");
    totals.failed.clear();
    totals.all_must_have_been_short();
    assert!(totals.failed.starts_with("the round took 300 s, and may take 300s: "), "{}", totals.failed);
}
