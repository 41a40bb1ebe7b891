//! Processes that share a group come and go.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::broker::wait::{wait_for, wait_until};
use crate::broker::{Broker, unique};
use crate::fleet::{StopOnDrop, feed};
use crate::process::Weir;
use crate::{SOON, home, orders};

/// Waits until this process writes records.
fn wait_busy(weir: &mut Weir, pipeline: &str) {
    let sent = |weir: &Weir| {
        weir.metric("weir_component_received_records_total", &[("pipeline", pipeline), ("component", "totals")])
    };
    let before = wait_for("an answer of its metrics", SOON, || sent(weir));
    wait_until("it to take a part of the partitions", SOON, || {
        weir.must_run();
        sent(weir).is_some_and(|now| now > before)
    });
}

#[test]
fn nothing_is_lost_while_processes_join_and_leave() {
    let broker = Broker::shared();
    let (source, sink, name) = (broker.topic("orders", 4), broker.topic("totals", 4), unique("etl"));
    let homes = [home(broker), home(broker)];
    for home in &homes {
        home.write("etl.yaml", orders::pipeline(&name, "at_least_once", &source, &sink, ""));
    }
    let stop = AtomicBool::new(false);
    let count = std::thread::scope(|threads| {
        let feeder = threads.spawn(|| feed(broker, &source, &stop));
        // The feeder must end also when an assertion fails, or the scope would wait for it for ever.
        let _stop = StopOnDrop(&stop);
        let mut first = homes[0].start("etl.yaml");
        wait_busy(&mut first, &name);
        let mut second = homes[1].start("etl.yaml");
        wait_busy(&mut second, &name);
        wait_busy(&mut first, &name);

        assert_eq!(first.stop(SOON), 0);
        wait_busy(&mut second, &name);
        let mut first = homes[0].start("etl.yaml");
        wait_busy(&mut first, &name);

        // A crash: its partitions are taken over, or it comes back.
        second.kill();
        let mut second = homes[1].start("etl.yaml");
        wait_busy(&mut second, &name);
        wait_busy(&mut first, &name);

        stop.store(true, Ordering::Relaxed);
        let count = feeder.join().expect("the feeder does not fail");
        wait_until("all to be committed", SOON, || broker.is_all_committed(&name, &source));
        assert_eq!(first.stop(SOON), 0);
        assert_eq!(second.stop(SOON), 0);
        count
    });
    let records = broker.consume_all_committed(&sink);
    let repeats = orders::assert_at_least(&records, count);
    eprintln!("{count} records, {repeats} of them repeated by the crash");
}

#[test]
fn processes_that_join_and_leave_in_peace_repeat_nothing() {
    let broker = Broker::shared();
    let (source, sink, name) = (broker.topic("orders", 4), broker.topic("totals", 4), unique("etl"));
    let homes = [home(broker), home(broker)];
    for home in &homes {
        home.write("etl.yaml", orders::pipeline(&name, "at_least_once", &source, &sink, ""));
    }
    let stop = AtomicBool::new(false);
    let count = std::thread::scope(|threads| {
        let feeder = threads.spawn(|| feed(broker, &source, &stop));
        let _stop = StopOnDrop(&stop);
        let mut first = homes[0].start("etl.yaml");
        wait_busy(&mut first, &name);
        let mut second = homes[1].start("etl.yaml");
        wait_busy(&mut second, &name);
        assert_eq!(first.stop(SOON), 0);
        wait_busy(&mut second, &name);
        stop.store(true, Ordering::Relaxed);
        let count = feeder.join().expect("the feeder does not fail");
        // A static member keeps its partitions for a session (10 s) after it left.
        wait_until("all to be committed", SOON, || broker.is_all_committed(&name, &source));
        assert_eq!(second.stop(SOON), 0);
        count
    });
    let records = broker.consume_all_committed(&sink);
    assert_eq!(orders::assert_at_least(&records, count), 0);
}
