//! The simulation: the real topology under seeded schedules and seeded faults. A failure prints its seed, the shape of what
//! was simulated, its trace, and the command that runs just that seed.

#![expect(clippy::disallowed_methods, reason = "the test itself runs in real time")]

use std::time::{Duration, Instant};

use weir::testing::simulation::{Report, Scenario, run, run_beside_a_failing_one};

/// Names the one seed to run.
const SEED: &str = "SIMULATION_SEED";

/// Fixed seeds, and a few that nobody has seen before.
fn seeds(fixed: u64, fresh: u64) -> Vec<u64> {
    if let Ok(seed) = std::env::var(SEED) {
        return vec![seed.parse().unwrap_or_else(|_| panic!("{SEED} is a number"))];
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |now| now.as_secs());
    (0..fixed).chain((0..fresh).map(|n| now * 1_000 + n)).collect()
}

/// Runs what follows from each seed, and tells how many schedules and which fresh seeds it was.
fn all_of(fixed: u64, fresh: u64, scenario: impl Fn(u64) -> Scenario) -> Vec<Report> {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or_default();
    let started = Instant::now();
    let seeds = seeds(fixed, fresh);
    let reports: Vec<_> = seeds
        .iter()
        .map(|&seed| {
            run(seed, &scenario(seed)).unwrap_or_else(|error| {
                panic!("{error}\nrun it again: {SEED}={seed} cargo test --test simulation {test} -- --exact --nocapture")
            })
        })
        .collect();
    let fresh = seeds.get(usize::try_from(fixed).unwrap_or(0)..).unwrap_or_default();
    println!(
        "{test}: {} schedules in {:?}; fresh seeds from {:?}, {} of them",
        seeds.len(),
        started.elapsed(),
        fresh.first(),
        fresh.len()
    );
    reports
}

fn all(scenario: &Scenario) -> Vec<Report> {
    all_of(3_000, 20, |_| scenario.clone())
}

#[test]
fn at_least_once_loses_nothing_under_any_fault() {
    let reports = all(&Scenario::small(false));
    assert!(reports.len() == 1 || reports.iter().any(|report| report.lives > 1), "some schedules crash or stop");
}

#[test]
fn exactly_once_neither_loses_nor_repeats_under_any_fault() {
    let reports = all(&Scenario::small(true));
    assert!(reports.len() == 1 || reports.iter().any(|report| report.lives > 1), "some schedules crash or stop");
}

#[test]
fn shared_at_least_once() {
    all(&Scenario::shared(false, 2));
}

#[test]
fn shared_exactly_once() {
    all(&Scenario::shared(true, 2));
}

#[test]
fn generated() {
    all_of(10_000, 50, Scenario::generated);
}

#[test]
fn a_pipeline_never_notices_the_failure_of_another() {
    let restarts: Vec<_> =
        (0..50).map(|seed| run_beside_a_failing_one(seed).unwrap_or_else(|error| panic!("{error}"))).collect();
    assert!(restarts.iter().any(|&(failing, _)| failing > 0), "some schedules fail the first pipeline");
    assert!(restarts.iter().all(|&(_, sound)| sound == 0), "the other was restarted: {restarts:?}");
}

#[test]
fn a_seed_replays_exactly() {
    for seed in 0..30 {
        let traces = [(); 2]
            .map(|()| run(seed, &Scenario::generated(seed)).map_or_else(|error| error, |report| report.trace));
        assert_eq!(traces[0], traces[1], "seed {seed}");
    }
}
