//! How a process ends.

use std::time::Duration;

use crate::broker::wait::{Deadline, wait_until};
use crate::broker::{Broker, unique};
use crate::{GUARANTEES, SOON, home, orders};

#[test]
fn sigterm_commits_what_was_read_and_the_next_process_goes_on_from_there() {
    const COUNT: u64 = 100_000;
    let broker = Broker::shared();
    for guarantee in GUARANTEES {
        let (source, sink, name) = (broker.topic("orders", 4), broker.topic("totals", 4), unique("etl"));
        broker.produce(&source, (0..COUNT).map(orders::order));
        let home = home(broker);
        home.write("etl.yaml", orders::pipeline(&name, guarantee, &source, &sink, ""));

        // Stopped in full flight: nothing may come twice, for what was written was committed.
        let mut reader = broker.reader(&sink);
        for share in 1..=3 {
            let mut weir = home.start("etl.yaml");
            reader.read_until(orders::kept(COUNT) * share / 4, SOON);
            assert_eq!(weir.stop(SOON), 0);
        }
        let mut weir = home.start("etl.yaml");
        reader.read_until(orders::kept(COUNT), SOON);
        wait_until("all to be committed", SOON, || broker.is_all_committed(&name, &source));
        assert_eq!(weir.stop(SOON), 0);
        orders::assert_exactly(&broker.consume_all_committed(&sink), COUNT);
    }
}

#[test]
fn sigterm_with_a_dead_broker_ends_within_the_grace_and_says_that_it_failed() {
    const GRACE: Duration = Duration::from_secs(5);
    const COUNT: u64 = 200_000;
    for guarantee in GUARANTEES {
        let broker = Broker::start_new();
        let (source, sink, name) = (broker.topic("orders", 4), broker.topic("totals", 4), unique("etl"));
        broker.produce(&source, (0..COUNT).map(orders::order));
        let mut home = home(&broker);
        home.set("WEIR_GRACE", "5s");
        // An epoch that closes before the broker dies would commit all that was read.
        let seldom = "commit: { interval: 4s }";
        home.write("etl.yaml", orders::pipeline(&name, guarantee, &source, &sink, seldom));
        let mut weir = home.start("etl.yaml");
        wait_until("records to be read", SOON, || {
            weir.must_run();
            weir.metric("weir_component_received_records_total", &[("component", "orders")]).is_some_and(|n| n > 0.0)
        });
        broker.kill();

        let limit = Deadline::within(GRACE + Duration::from_secs(3));
        weir.terminate();
        assert_eq!(weir.wait(SOON), 1, "{guarantee}: what was read is not committed");
        assert!(!limit.passed(), "{guarantee}: it took longer than its grace");
    }
}

#[test]
fn a_finite_source_ends_the_process_when_all_is_committed() {
    const COUNT: u64 = 5_000;
    let broker = Broker::shared();
    let (sink, name) = (broker.topic("totals", 2), unique("load"));
    let home = home(broker);
    let lines: Vec<_> = (0..COUNT).map(|n| orders::order(n).value).collect();
    home.write("orders.ndjson", lines.join(&b"\n"[..]));
    home.write(
        "load.yaml",
        format!(
            r#"
name: {name}
sources:
  orders:
    file: {{ path: orders.ndjson, follow: false }}
transforms:
  - filter: .level != "debug"
  - map: |
      .total = to_int!(.price) * to_int!(.qty)
      del(.qty)
sinks:
  totals:
    kafka: {{ brokers: "${{KAFKA_BROKERS}}", topic: {sink}, key: .key }}
"#
        ),
    );

    let mut weir = home.start("load.yaml");
    assert_eq!(weir.wait(SOON), 0);
    orders::assert_exactly(&broker.consume_all_committed(&sink), COUNT);

    // What was read and committed is not read again.
    let mut weir = home.start("load.yaml");
    assert_eq!(weir.wait(SOON), 0);
    assert_eq!(broker.consume_all_committed(&sink).len(), orders::kept(COUNT));
}

#[test]
fn a_pipeline_that_fails_does_not_take_the_others_with_it() {
    const COUNT: u64 = 2_000;
    let broker = Broker::shared();
    let (source, sink, good) = (broker.topic("orders", 1), broker.topic("totals", 1), unique("good"));
    let (poison, bad) = (broker.topic("poison", 1), unique("bad"));
    broker.produce(&poison, [crate::broker::Record::new("not json")]);
    let home = home(broker);
    let both = format!(
        "{}\n---\n{}",
        orders::pipeline(&good, "at_least_once", &source, &sink, ""),
        orders::pipeline(&bad, "at_least_once", &poison, &sink, "")
    );
    home.write("both.yaml", both);
    let mut weir = home.start("both.yaml");
    wait_until("the bad one to stop", SOON, || {
        weir.must_run();
        weir.get(&format!("/ready/{bad}")).is_some_and(|(status, body)| status == 503 && body.contains("failed"))
    });

    broker.produce(&source, (0..COUNT).map(orders::order));
    broker.reader(&sink).read_until(orders::kept(COUNT), SOON);
    assert_eq!(weir.get(&format!("/ready/{good}")).map(|(status, _)| status), Some(200));
    assert_eq!(weir.stop(SOON), 1, "one pipeline failed");
    orders::assert_exactly(&broker.consume_all_committed(&sink), COUNT);
}
