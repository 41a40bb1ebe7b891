//! Three processes share a group, under both guarantees and each protocol: they join, leave, are killed and are frozen.

use std::time::Duration;

use crate::fleet::{Fleet, freeze, thaw};
use crate::{GUARANTEES, SOON};

/// Sessions are longer in some of these tests than what must not wait for one, however busy the machine is.
const WITHOUT_A_SESSION: Duration = Duration::from_secs(15);
/// A takeover by another: session and transaction time-out (10 s), and 15 s.
const TAKEOVER: Duration = Duration::from_secs(35);

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
fn come_and_go(guarantee: &'static str, settings: &str) {
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
        let took = fleet.wait_committed(TAKEOVER);
        eprintln!("{guarantee}, {settings}: taken over after {took:?}");
        all
    });
}

#[test]
fn rule_8_nothing_is_lost_or_twice_while_processes_come_and_go() {
    under_both_guarantees(|guarantee| come_and_go(guarantee, "protocol: classic"));
}

#[test]
fn nothing_is_lost_or_twice_where_all_partitions_move_at_once() {
    under_both_guarantees(|guarantee| {
        come_and_go(guarantee, "protocol: classic_eager, options: { session.timeout.ms: 6000 }");
    });
}

#[test]
fn nothing_is_lost_or_twice_where_the_broker_assigns() {
    under_both_guarantees(|guarantee| come_and_go(guarantee, "protocol: consumer"));
}

#[test]
fn rule_12_a_killed_instance_moves_again_without_waiting_for_its_session() {
    under_both_guarantees(|guarantee| {
        let fleet = Fleet::new(guarantee, "options: { session.timeout.ms: 30000 }", 2);
        fleet.run(|| {
            let (mut first, mut second) = (fleet.start(0), fleet.start(1));
            fleet.wait_busy(&mut first);
            fleet.wait_busy(&mut second);
            for _ in 0..2 {
                second.kill();
                second = fleet.start(1);
                let took = fleet.wait_busy(&mut second);
                eprintln!("{guarantee}: moving again after {took:?}");
                assert!(took < WITHOUT_A_SESSION, "it took {took:?}");
                fleet.wait_committed(WITHOUT_A_SESSION);
            }
            vec![first, second]
        });
    });
}

/// One of two processes is frozen until the other has taken over, and goes on.
fn freeze_and_thaw(guarantee: &'static str, settings: &str, times: usize) {
    let fleet = Fleet::new(guarantee, settings, 2);
    fleet.run(|| {
        let (mut zombie, mut other) = (fleet.start(0), fleet.start(1));
        fleet.wait_busy(&mut zombie);
        fleet.wait_busy(&mut other);
        for _ in 0..times {
            freeze(&zombie);
            fleet.wait_committed(TAKEOVER);
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
    under_both_guarantees(|guarantee| freeze_and_thaw(guarantee, "protocol: classic", 2));
}

#[test]
fn a_zombie_repeats_nothing_and_loses_nothing_where_the_broker_assigns() {
    under_both_guarantees(|guarantee| freeze_and_thaw(guarantee, "protocol: consumer", 1));
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
