//! Three processes share a group, under both guarantees and each protocol: they join, leave, are killed and are frozen.

use std::time::Duration;

use crate::fleet::{Fleet, freeze, thaw};
use crate::{GUARANTEES, SOON};

/// A restart of the same instance: from the start of the process to its first commit.
const RESTART: Duration = Duration::from_secs(5);
/// How long the session of a process is that nobody must wait for.
const LONG_SESSION: Duration = Duration::from_secs(30);
/// How long a session is by default, and a transaction may be open.
const SESSION: Duration = Duration::from_secs(10);
const TRANSACTION: Duration = Duration::from_secs(10);
/// How long the brokers of these tests let a session last that they decide on, and the shortest that they grant.
const SHORT_SESSION: Duration = Duration::from_secs(6);

/// A takeover by another, from the death of a process on: its session, its transaction, and 15 s.
fn takeover(session: Duration) -> Duration {
    session + TRANSACTION + Duration::from_secs(15)
}

/// Runs a scenario under both guarantees at once.
fn under_both_guarantees(scenario: impl Fn(&'static str) + Sync) {
    std::thread::scope(|threads| {
        for guarantee in GUARANTEES {
            let scenario = &scenario;
            threads.spawn(move || scenario(guarantee));
        }
    });
}

/// Three processes come one after the other; one leaves in peace and comes back; one is killed and comes back; one is
/// killed and stays away.
fn come_and_go(guarantee: &'static str, settings: &str, session: Duration) {
    let fleet = Fleet::new(guarantee, settings, 3);
    fleet.run(|| {
        let mut all: Vec<_> = (0..3).map(|number| fleet.start(number)).collect();
        for weir in &mut all {
            fleet.wait_busy(weir);
        }
        // In and out in peace, while the others go on.
        assert_eq!(all[2].stop(SOON), 0);
        all[2] = fleet.start(2);
        for weir in &mut all {
            fleet.wait_busy(weir);
        }
        // A crash, and the same instance again.
        all[1].kill();
        all[1] = fleet.start(1);
        for weir in &mut all {
            fleet.wait_busy(weir);
        }
        // A crash, and nobody comes back: the others take over.
        all[0].kill();
        all.remove(0);
        let took = fleet.wait_committed(takeover(session));
        eprintln!("{guarantee}, {settings}: taken over after {took:?} of {:?}", takeover(session));
        all
    });
}

#[test]
fn rule_8_and_12_nothing_is_lost_or_twice_while_processes_come_and_go() {
    under_both_guarantees(|guarantee| come_and_go(guarantee, "protocol: classic", SESSION));
}

#[test]
fn nothing_is_lost_or_twice_where_all_partitions_move_at_once() {
    under_both_guarantees(|guarantee| {
        let settings =
            format!("protocol: classic_eager, options: {{ session.timeout.ms: {} }}", SHORT_SESSION.as_millis());
        come_and_go(guarantee, &settings, SHORT_SESSION);
    });
}

#[test]
fn nothing_is_lost_or_twice_where_the_broker_assigns() {
    under_both_guarantees(|guarantee| come_and_go(guarantee, "protocol: consumer", SHORT_SESSION));
}

#[test]
fn rule_12_a_killed_instance_moves_again_within_5_s_and_waits_for_no_session() {
    under_both_guarantees(|guarantee| {
        let settings = format!("options: {{ session.timeout.ms: {} }}", LONG_SESSION.as_millis());
        let fleet = Fleet::new(guarantee, &settings, 2);
        fleet.run(|| {
            let (mut first, mut second) = (fleet.start(0), fleet.start(1));
            fleet.wait_busy(&mut first);
            fleet.wait_busy(&mut second);
            for _ in 0..3 {
                second.kill();
                let took;
                (second, took) = fleet.start_moving(1);
                eprintln!("{guarantee}: moving again after {took:?}");
                assert!(took < RESTART, "it took {took:?}");
                // All its partitions are: nothing waits for the session of the process that is gone.
                fleet.wait_committed(LONG_SESSION / 2);
            }
            vec![first, second]
        });
    });
}

/// One of two processes is frozen until the other has taken over, and goes on.
fn freeze_and_thaw(guarantee: &'static str, settings: &str, session: Duration, times: usize) {
    let fleet = Fleet::new(guarantee, settings, 2);
    fleet.run(|| {
        let (mut zombie, mut other) = (fleet.start(0), fleet.start(1));
        fleet.wait_busy(&mut zombie);
        fleet.wait_busy(&mut other);
        for _ in 0..times {
            freeze(&zombie);
            fleet.wait_committed(takeover(session));
            thaw(&zombie);
            fleet.wait_busy(&mut zombie);
            fleet.wait_busy(&mut other);
        }
        vec![zombie, other]
    });
}

#[test]
fn rule_8_a_zombie_repeats_nothing_and_loses_nothing() {
    // Twice within a minute: being fenced for a time-out does not mean that another process has our identity.
    under_both_guarantees(|guarantee| freeze_and_thaw(guarantee, "protocol: classic", SESSION, 2));
}

#[test]
fn a_zombie_repeats_nothing_and_loses_nothing_where_the_broker_assigns() {
    under_both_guarantees(|guarantee| freeze_and_thaw(guarantee, "protocol: consumer", SHORT_SESSION, 1));
}

#[test]
fn rule_12_of_two_processes_with_one_identity_the_older_stops_and_says_why() {
    under_both_guarantees(|guarantee| {
        let fleet = Fleet::new(guarantee, "protocol: classic", 2);
        fleet.run(|| {
            let mut older = fleet.start(0);
            fleet.wait_busy(&mut older);
            let mut newer = fleet.start_as(1, 0);
            assert_eq!(older.wait(SOON), 1);
            assert!(older.log().contains("each needs an identity of its own"), "{}", older.log());
            fleet.wait_busy(&mut newer);
            vec![newer]
        });
    });
}
