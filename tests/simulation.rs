//! The simulation: the real topology under seeded schedules and seeded faults. A failure prints its seed, the shape of what
//! was simulated, its trace, and the command that runs just that seed.
//!
//! Which scenario proves which rule, beside `generated_shapes_keep_their_promise`, which touches all of them. A mutation is a
//! breach of the rule that simulated components commit, and that must be noticed:
//!
//! | rule | test | mutations |
//! |---|---|---|
//! | 1, silent between barrier and commit | `rule_1_…` | `WritesInSilence` |
//! | 2, nothing of an aborted run counts | `rule_2_…` | `KeepsAborted`, `ForgetsToFence` |
//! | 3, rewind in place | `rule_3_…` | `ForgetsToRewind` |
//! | 4, only sources wait for budget | `rule_4_…` | `HoldsMemory` |
//! | 5, a barrier goes to all before any later batch | `rule_5_…` | `OvertakenByBarrier`, `Reorders` |
//! | 6, in flight is limited by time | `rule_6_…` | `HidesItsPace` |
//! | 8, offsets only for what is held | `rule_8_…` | `CommitsLostPositions`, `CommitsAsNobody`, `ReadsUnstableOffsets` |
//! | 9, a commit is whole or was not | `rule_9_…` | `TakesDoubtForAbort`, `TakesDoubtForCommit`, `AnswersTooEarly` |
//! | 10, no transaction outlives its time-out | `rule_10_…` | `HidesItsTimeout` |
//! | 11, a partition that moves in order repeats nothing | `rule_11_…` | `LeavesUnclosed` |
//! | buffers: only what is committed counts | `a_buffer_…` | `ShowsUncommitted`, `ForgetsToCutBack`, `ReleasesTooEarly`, `SyncsTooLate` |

#![expect(clippy::disallowed_methods, reason = "the test itself runs in real time")]

use std::io::Write as _;
use std::time::{Duration, Instant};

use weir::plan::Upstream;
use weir::testing::simulation::{
    Destination, Fault, Mutation, Planned, Report, Scenario, SinkKind, SourceShape, Stage, Step, TransformKind, run,
    run_beside_a_failing_one,
};

/// Names the one seed to run.
const SEED: &str = "SIMULATION_SEED";

/// The seed that is asked for, if one is.
fn asked() -> Option<u64> {
    let seed = std::env::var(SEED).ok()?;
    Some(seed.parse().unwrap_or_else(|_| panic!("{SEED} is a number")))
}

/// Seeds that nobody has seen before.
fn fresh(count: u64) -> Vec<u64> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |now| now.as_secs());
    (0..count).map(|n| now * 1_000 + n).collect()
}

fn this_test() -> String {
    std::thread::current().name().unwrap_or_default().to_owned()
}

/// Says it past the test's captured output: what ran belongs into the log of every run.
fn tell(what: &str) {
    let _ = writeln!(std::io::stderr(), "simulation: {}: {what}", this_test());
}

/// Runs a scenario; if it fails, says how to run it again.
fn sound(seed: u64, scenario: &Scenario) -> Report {
    run(seed, scenario).unwrap_or_else(|error| {
        let test = this_test();
        panic!("{error}\nrun it again: {SEED}={seed} cargo test --test simulation -- --exact {test}")
    })
}

/// Runs what follows from each of some fixed seeds and some fresh ones, and tells which those were.
fn all_of(fixed: u64, unseen: u64, scenario: impl Fn(u64) -> Scenario) -> Vec<Report> {
    if let Some(seed) = asked() {
        return vec![sound(seed, &scenario(seed))];
    }
    let (started, fresh) = (Instant::now(), fresh(unseen));
    let reports: Vec<_> = (0..fixed).chain(fresh.iter().copied()).map(|seed| sound(seed, &scenario(seed))).collect();
    let first = fresh.first().map_or_else(String::new, |first| format!(", and from {first} on"));
    tell(&format!("{} schedules in {:.1?}, seeds 0 to {}{first}", reports.len(), started.elapsed(), fixed - 1));
    reports
}

fn all(scenario: &Scenario) -> Vec<Report> {
    all_of(100, 10, |_| scenario.clone())
}

/// Whether some schedule was as it should be; not asked of a single seed.
fn some(reports: &[Report], holds: impl Fn(&Report) -> bool) -> bool {
    asked().is_some() || reports.iter().any(holds)
}

/// Holds that each of these breaches is noticed under some seed.
fn noticed(scenario: &Scenario, mutations: &[Mutation]) {
    /// Far more than it takes: what is rare is a matter of hundreds.
    const MOST: u64 = 3_000;
    for &mutation in mutations {
        let broken = Scenario { mutation: Some(mutation), ..scenario.clone() };
        let caught = (0..MOST).find_map(|seed| run(seed, &broken).err());
        let caught = caught.unwrap_or_else(|| panic!("{mutation:?} went unnoticed under {MOST} seeds"));
        tell(&format!("{mutation:?} was noticed: {}", caught.lines().next().unwrap_or_default()));
    }
}

/// Two processes and many faults, for breaches that only show where much goes wrong.
fn rough(exactly_once: bool) -> Scenario {
    Scenario { faults: 6, ends: 3, ..Scenario::shared(exactly_once, 2) }
}

#[test]
fn generated_shapes_keep_their_promise() {
    let reports = all_of(800, 100, Scenario::generated);
    assert!(some(&reports, |report| report.lives > 4), "some schedules have many ends");
    assert!(some(&reports, |report| report.restarts > 2), "some schedules fail again and again");
    assert!(some(&reports, |report| report.buffers > 2), "some shapes have several buffers");
    let buffered = reports.iter().filter(|report| report.buffers > 0).count();
    tell(&format!("{buffered} of {} schedules had buffers", reports.len()));
}

#[test]
fn at_least_once_loses_nothing_under_any_fault() {
    let reports = all(&Scenario::small(false));
    assert!(some(&reports, |report| report.lives > 1), "some schedules crash or stop");
    for kind in [SinkKind::Acknowledged, SinkKind::Unordered] {
        let mut scenario = Scenario { dead_letter: kind, ..Scenario::small(false) };
        scenario.sinks[0].kind = kind;
        scenario.sinks[0].per_lane = kind == SinkKind::Unordered;
        all(&scenario);
    }
}

#[test]
fn exactly_once_neither_loses_nor_repeats_under_any_fault() {
    let reports = all(&Scenario::small(true));
    assert!(some(&reports, |report| report.lives > 1), "some schedules crash or stop");
}

#[test]
fn exactly_once_holds_with_one_sink_for_all_lanes_and_many_faults() {
    let mut scenario = Scenario { faults: 12, ends: 6, ..Scenario::small(true) };
    scenario.sinks[0].per_lane = false;
    all(&scenario);
}

#[test]
fn several_processes_share_the_work_and_each_may_go_at_any_time() {
    for exactly_once in [false, true] {
        for processes in [2, 3] {
            all(&Scenario { faults: 6, ends: 4, ..Scenario::shared(exactly_once, processes) });
        }
    }
}

#[test]
fn a_second_pipeline_that_reads_what_the_first_wrote_keeps_the_promise() {
    for exactly_once in [false, true] {
        let reports = all(&Scenario { chained: true, ..Scenario::small(exactly_once) });
        assert!(some(&reports, |report| report.lives > 1), "some schedules crash or stop");
    }
}

#[test]
fn a_buffer_loses_nothing_and_keeps_the_order_under_any_fault() {
    for exactly_once in [false, true] {
        all(&Scenario { faults: 8, ends: 4, ..Scenario::judged(exactly_once) });
        let reports = all(&Scenario { faults: 8, ends: 4, ..Scenario::buffered(exactly_once) });
        assert!(some(&reports, |report| report.lives > 1), "some schedules crash or stop");
        // Segments are full, and so is the disk.
        for disk in [1, 1 << 20] {
            all_of(40, 10, |_| Scenario { padding: 8_000, disk, ..Scenario::buffered(exactly_once) });
        }
    }
}

#[test]
fn a_buffer_keeps_its_promise_whatever_happens_at_any_step() {
    let mut schedules = 0_u64;
    for scenario in [Scenario::buffered(false), Scenario::buffered(true), Scenario::judged(true)] {
        for step in Step::OF_A_BUFFER {
            for fault in DEEDS {
                for nth in [0, 1, 2, 4, 7, 11] {
                    let planned = Some(Planned::AtStep(step, nth, fault));
                    sound(schedules, &Scenario { faults: 0, planned, ..scenario.clone() });
                    schedules += 1;
                }
            }
        }
    }
    tell(&format!("{schedules} schedules, a fault in each step of a buffer"));
}

#[test]
fn a_buffer_that_is_broken_on_purpose_is_noticed() {
    let rough = |exactly_once| Scenario { faults: 8, ends: 4, ..Scenario::buffered(exactly_once) };
    noticed(&rough(true), &[Mutation::ShowsUncommitted, Mutation::ForgetsToCutBack]);
    let judged = Scenario { faults: 8, ends: 4, ..Scenario::judged(true) };
    noticed(&judged, &[Mutation::TakesDoubtForAbort, Mutation::TakesDoubtForCommit]);
    for exactly_once in [false, true] {
        noticed(&rough(exactly_once), &[Mutation::SyncsTooLate]);
        // Space is freed by segments, and it takes several of them.
        noticed(&Scenario { padding: 8_000, ..rough(exactly_once) }, &[Mutation::ReleasesTooEarly]);
    }
}

#[test]
fn without_faults_every_record_comes_once_even_at_least_once() {
    // That nothing repeats where nothing failed is part of what every run is checked for.
    let calm = |seed| Scenario { faults: 0, ..Scenario::generated(seed) };
    let reports = all_of(100, 10, calm);
    assert!(some(&reports, |report| report.delivered.len() > 100));
}

#[test]
fn a_record_that_a_stage_cannot_stand_ends_in_the_dead_letter_and_all_others_come_through() {
    for exactly_once in [false, true] {
        for stage in [Stage::Transform(0), Stage::Sink(0)] {
            let poisoned = Some(stage);
            let calm = all(&Scenario { poisoned, faults: 0, ..Scenario::small(exactly_once) });
            assert!(some(&calm, |report| !report.delivered.at(Destination::Letter(stage)).is_empty()));
            all(&Scenario { poisoned, faults: 2, ..Scenario::shared(exactly_once, 2) });
        }
    }
}

#[test]
fn rule_1_nothing_is_written_between_barrier_and_commit() {
    all(&Scenario { faults: 8, ..Scenario::small(true) });
    noticed(&rough(true), &[Mutation::WritesInSilence]);
}

#[test]
fn rule_2_nothing_of_an_aborted_run_counts() {
    let reports = all(&Scenario { faults: 10, ends: 0, ..Scenario::small(true) });
    assert!(some(&reports, |report| report.restarts > 2), "some schedules fail again and again");
    noticed(&rough(true), &[Mutation::KeepsAborted, Mutation::ForgetsToFence]);
}

#[test]
fn rule_3_a_rewind_does_not_leave_the_group() {
    let mut rewinds = 0;
    for (exactly_once, step) in [(true, Step::Write), (true, Step::CommitBefore), (false, Step::Pull)] {
        for nth in 0..8 {
            let planned = Some(Planned::AtStep(step, nth, Fault::Error));
            let report = sound(u64::from(nth), &Scenario { faults: 0, planned, ..Scenario::shared(exactly_once, 2) });
            assert_eq!(report.joins, [1, 1], "each process joins once, whatever happens");
            rewinds += report.restarts;
        }
    }
    assert!(rewinds >= 20, "{rewinds}");
    noticed(&rough(false), &[Mutation::ForgetsToRewind]);
}

#[test]
fn rule_4_nothing_waits_for_memory_that_its_own_input_holds() {
    // A pipeline that waits for itself hangs; what every run is checked for is also that all memory is given back.
    let tight = |seed| Scenario { memory: 64, lanes: 3, padding: 200, ..Scenario::generated(seed) };
    all_of(150, 20, tight);
    let small = Scenario { memory: 64, faults: 0, ..Scenario::small(false) };
    noticed(&small, &[Mutation::HoldsMemory]);
}

#[test]
fn rule_5_a_barrier_comes_behind_all_that_is_before_it_and_ahead_of_the_rest() {
    let wide = |seed| Scenario { lanes: 4, ..Scenario::generated(seed) };
    all_of(150, 20, wide);
    noticed(&rough(false), &[Mutation::OvertakenByBarrier, Mutation::Reorders]);
}

/// A sink that moves about half a megabyte a second, memory for two minutes of that, and a stop in the middle of it.
fn before_a_slow_sink(exactly_once: bool, sources: Vec<SourceShape>) -> Scenario {
    Scenario {
        sources,
        memory: 64 << 20,
        padding: 64 << 10,
        work: Duration::from_millis(400),
        lanes: 1,
        faults: 0,
        planned: Some(Planned::AtStep(Step::Pull, 40, Fault::Stop)),
        ..Scenario::small(exactly_once)
    }
}

#[test]
fn rule_6_an_epoch_can_close_in_time_before_a_slow_sink() {
    let mut hidden = Vec::new();
    let sources = vec![SourceShape { partitions: 3, records: 80, grouped: true }];
    for exactly_once in [false, true] {
        for seed in 0..3 {
            let mut scenario = before_a_slow_sink(exactly_once, sources.clone());
            // A stage that writes what it read anew moves nothing.
            scenario.transforms[0].kind = TransformKind::Map;
            let stop = sound(seed, &scenario).longest_stop;
            assert!(stop > Duration::ZERO && stop < Duration::from_secs(5), "it took {stop:?} to stop");
            // Of three sources an epoch holds more than such a sink moves in five seconds.
            let each = SourceShape { partitions: 1, records: 80, grouped: true };
            scenario.sources = vec![each.clone(), each.clone(), each];
            // What a stage drops or refuses goes another way: here all comes to the sink.
            scenario.transforms.clear();
            scenario.sinks[0].refuses = false;
            scenario.sinks[0].from = (0..3).map(Upstream::Source).collect();
            let honest = sound(seed, &scenario).longest_stop;
            scenario.mutation = Some(Mutation::HidesItsPace);
            let broken = sound(seed, &scenario).longest_stop;
            assert!(honest < Duration::from_secs(5), "it took {honest:?} to stop");
            if broken > Duration::from_secs(5) {
                hidden.push(broken);
            }
        }
    }
    tell(&format!("{:?} was noticed: it took {hidden:?} to stop", Mutation::HidesItsPace));
    // What a stage drops has left the pipeline and was no work of a sink's: it does not count as that.
    for seed in 0..3 {
        let each = SourceShape { partitions: 1, records: 80, grouped: true };
        let mut scenario = before_a_slow_sink(false, vec![each.clone(), each.clone(), each]);
        scenario.transforms[0].from = (0..3).map(Upstream::Source).collect();
        let stop = sound(seed, &scenario).longest_stop;
        assert!(stop > Duration::ZERO && stop < Duration::from_secs(5), "it took {stop:?} to stop");
    }
    assert!(!hidden.is_empty(), "{:?} went unnoticed", Mutation::HidesItsPace);
}

#[test]
fn rule_8_positions_are_committed_only_for_what_is_held() {
    /// Barriers are under way for long, and partitions go meanwhile.
    const SLOW: &[Fault] = &[
        Fault::Outage(Duration::from_secs(30)),
        Fault::CutOff(Duration::from_secs(11)),
        Fault::Hold(Duration::from_secs(11)),
        Fault::Delay(Duration::from_secs(4)),
    ];
    all(&Scenario { faults: 8, ends: 8, ..Scenario::shared(true, 3) });
    for exactly_once in [false, true] {
        all(&Scenario { menu: SLOW, faults: 6, ends: 3, ..Scenario::shared(exactly_once, 2) });
    }
    noticed(&rough(true), &[Mutation::CommitsLostPositions, Mutation::ReadsUnstableOffsets]);
    noticed(&rough(false), &[Mutation::CommitsLostPositions]);
    // Only a group without members takes a commit from nobody.
    noticed(&Scenario { processes: 1, ..rough(true) }, &[Mutation::CommitsAsNobody]);
}

/// All that can happen at one step.
const DEEDS: [Fault; 7] = [
    Fault::Error,
    Fault::Panic,
    Fault::Delay(Duration::from_secs(4)),
    Fault::Crash(0),
    Fault::Crash(3),
    Fault::Stop,
    Fault::Hold(Duration::from_secs(15)),
];

#[test]
fn rule_9_whatever_happens_at_any_step_of_a_commit_it_is_whole_or_was_not() {
    let mut schedules = 0_u64;
    for scenario in
        [Scenario::small(true), Scenario::small(false), Scenario::shared(true, 2), Scenario::shared(false, 2)]
    {
        for step in Step::OF_A_COMMIT {
            for fault in DEEDS {
                for nth in 0..6 {
                    let planned = Some(Planned::AtStep(step, nth, fault));
                    sound(schedules, &Scenario { faults: 0, planned, ..scenario.clone() });
                    schedules += 1;
                }
            }
        }
    }
    tell(&format!("{schedules} schedules, a fault in each step of a commit"));
    noticed(&rough(true), &[Mutation::TakesDoubtForAbort, Mutation::TakesDoubtForCommit]);
    noticed(&rough(false), &[Mutation::AnswersTooEarly]);
}

#[test]
fn rule_9_a_process_may_end_before_any_turn_of_any_of_its_tasks() {
    let mut schedules = 0_u64;
    for processes in [1, 2] {
        for exactly_once in [false, true] {
            let sources = vec![SourceShape { partitions: 2, records: 8, grouped: exactly_once || processes > 1 }];
            let calm = Scenario { sources, processes, faults: 0, ..Scenario::small(exactly_once) };
            let turns = sound(0, &calm).turns;
            for turn in 0..turns {
                for fault in [Fault::Crash(0), Fault::Stop, Fault::Hold(Duration::from_secs(12))] {
                    let planned = Some(Planned::AtTurn(turn, fault));
                    sound(0, &Scenario { planned, ..calm.clone() });
                    schedules += 1;
                }
            }
        }
    }
    tell(&format!("{schedules} schedules, an end before each turn"));
}

#[test]
fn rule_10_no_transaction_outlives_its_time_out_however_long_a_sink_blocks() {
    const LONG: &[Fault] = &[Fault::Outage(Duration::from_secs(30))];
    // A transaction that the other side had to abort is a breach, unless its process was held still or gone.
    for seconds in [3, 8, 30, 120] {
        for step in [Step::Open, Step::Write, Step::Answer] {
            for nth in 0..5 {
                let planned = Some(Planned::AtStep(step, nth, Fault::Outage(Duration::from_secs(seconds))));
                sound(u64::from(nth), &Scenario { faults: 0, planned, ..Scenario::shared(true, 2) });
            }
        }
    }
    noticed(&Scenario { menu: LONG, ..Scenario::shared(true, 2) }, &[Mutation::HidesItsTimeout]);
}

#[test]
fn rule_11_a_partition_that_moves_in_order_repeats_nothing_and_stops_nobody() {
    for exactly_once in [false, true] {
        let reports = all(&Scenario { faults: 0, ..Scenario::shared(exactly_once, 3) });
        assert!(reports.iter().all(|report| report.restarts == 0), "a process that joins restarts nobody");
    }
    noticed(&Scenario { faults: 0, ..Scenario::shared(false, 3) }, &[Mutation::LeavesUnclosed]);
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
    let buffered = |seed: u64| Scenario { padding: 4_000, faults: 8, ..Scenario::buffered(seed.is_multiple_of(2)) };
    let all = (0..30).map(|seed| (seed, Scenario::generated(seed)));
    for (seed, scenario) in all.chain((0..20).map(|seed| (seed, buffered(seed)))) {
        let traces = [(); 2].map(|()| run(seed, &scenario).map_or_else(|error| error, |report| report.trace));
        assert_eq!(traces[0], traces[1], "seed {seed}");
    }
}

/// The time that this thread has had on a processor: other work on the machine does not count. In real time where the
/// system does not tell.
fn worked(since: Instant) -> Duration {
    let schedule = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let nanoseconds = schedule.and_then(|text| text.split(' ').next()?.parse().ok());
    nanoseconds.map_or_else(|| since.elapsed(), Duration::from_nanos)
}

#[test]
fn a_schedule_is_cheap() {
    const SCHEDULES: u64 = 200;
    let since = Instant::now();
    let before = worked(since);
    for seed in 0..SCHEDULES {
        sound(seed, &Scenario::generated(seed));
    }
    let each = worked(since).saturating_sub(before) / u32::try_from(SCHEDULES).expect("a few hundred");
    tell(&format!("a schedule takes {each:?} of one core"));
    assert!(each < Duration::from_millis(60), "fewer than 1,000 schedules a minute: one takes {each:?}");
}
