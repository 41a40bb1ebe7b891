//! The simulation: the real topology under seeded schedules and seeded faults. A failure prints its seed and its trace;
//! `WEIR_SEED=N cargo test --test simulation` runs just that seed.

#![expect(clippy::disallowed_methods, reason = "the test itself runs in real time")]

use std::time::{Duration, Instant};

use weir::testing::simulation::{Report, Scenario, run, run_beside_a_failing_one};

/// Fixed seeds, and a few that nobody has seen before.
fn seeds() -> Vec<u64> {
    if let Ok(seed) = std::env::var("WEIR_SEED") {
        return vec![seed.parse().expect("WEIR_SEED is a number")];
    }
    let fresh = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |now| now.as_secs());
    (0..400).chain((0..50).map(|n| fresh * 1_000 + n)).collect()
}

fn all(scenario: &Scenario) -> Vec<Report> {
    let reports = seeds().into_iter().map(|seed| match run(seed, scenario) {
        Ok(report) => report,
        Err(error) => panic!("{error}\nrerun with the seed in WEIR_SEED"),
    });
    reports.collect()
}

#[test]
fn at_least_once_loses_nothing_under_any_fault() {
    let reports = all(&Scenario::default());
    assert!(reports.iter().any(|report| report.lives > 1), "some schedules crash or stop");
}

#[test]
fn at_least_once_loses_nothing_where_lanes_merge_before_the_sink() {
    all(&Scenario { sink_per_lane: false, ..Scenario::default() });
}

#[test]
fn at_least_once_loses_nothing_where_a_sink_answers_late() {
    all(&Scenario { durable_by_answer: true, ..Scenario::default() });
}

#[test]
fn rule_1_and_2_exactly_once_neither_loses_nor_repeats_under_any_fault() {
    let reports = all(&Scenario { transactional: true, ..Scenario::default() });
    assert!(reports.iter().any(|report| report.lives > 1), "some schedules crash or stop");
}

#[test]
fn exactly_once_holds_with_one_sink_for_all_lanes_and_many_faults() {
    all(&Scenario { transactional: true, sink_per_lane: false, faults: 12, crashes: 6, ..Scenario::default() });
}

#[test]
fn without_faults_every_record_comes_once_even_at_least_once() {
    for seed in 0..50 {
        let scenario = Scenario { faults: 0, ..Scenario::default() };
        let report = run(seed, &scenario).unwrap_or_else(|error| panic!("{error}"));
        let total = report.delivered.sink.len() + report.delivered.dead_letter.len();
        let dropped = scenario.records / 5;
        assert_eq!(i64::try_from(total), Ok((scenario.records - dropped) * i64::from(scenario.partitions)));
    }
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
    for seed in 0..20 {
        for transactional in [false, true] {
            let scenario = Scenario { transactional, ..Scenario::default() };
            let traces = [(); 2].map(|()| run(seed, &scenario).map_or_else(|error| error, |report| report.trace));
            assert_eq!(traces[0], traces[1], "seed {seed}");
        }
    }
}

#[test]
fn a_schedule_is_cheap() {
    let started = Instant::now();
    let mut schedules = 0_u32;
    while started.elapsed() < Duration::from_secs(2) {
        run(u64::from(schedules), &Scenario::default()).unwrap_or_else(|error| panic!("{error}"));
        schedules += 1;
    }
    println!("{schedules} schedules in 2 s");
    assert!(schedules >= 34, "fewer than 1,000 schedules a minute: {schedules} in 2 s");
}
