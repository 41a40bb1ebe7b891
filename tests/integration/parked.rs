//! A sink whose broker stands still for longer than any time-out: the pipeline waits with nothing open, keeps its place
//! in the source's group, and moves on by itself.

use std::time::Duration;

use crate::broker::wait::{Deadline, wait_until};
use crate::broker::{Broker, unique};
use crate::process::Weir;
use crate::{SOON, home, orders};

/// Longer than the time-outs of sessions and of transactions, which are ten seconds.
const AWAY: Duration = Duration::from_secs(30);

/// Watches the process while a broker is away: it stays live, says what it waits for, and keeps to its memory.
fn watch_for(time: Duration, weir: &mut Weir, name: &str) {
    let deadline = Deadline::within(time);
    let mut told = false;
    while !deadline.passed() {
        weir.must_run();
        assert_eq!(weir.get("/live").map(|(status, _)| status), Some(200), "a new process would not help");
        let ready = weir.get(&format!("/ready/{name}"));
        told |= ready.is_some_and(|(status, body)| status == 503 && body.contains("\"stage\":\"totals\""));
        let used = weir.metric("weir_memory_budget_bytes", &[("pipeline", name), ("state", "used")]).unwrap_or(0.0);
        let limit = weir.metric("weir_memory_budget_bytes", &[("pipeline", name), ("state", "limit")]).unwrap_or(0.0);
        assert!(used <= limit * 1.25, "{used} of {limit} bytes are in use");
        std::thread::sleep(Duration::from_millis(250));
    }
    assert!(told, "it never said at which stage it waits: {:?}", weir.get(&format!("/ready/{name}")));
    let stuck = weir.metric("weir_pipeline_stuck_seconds", &[("pipeline", name)]);
    assert!(stuck.is_some_and(|seconds| seconds > 5.0), "{stuck:?}");
    let restarts = weir.metric("weir_pipeline_restarts_total", &[("pipeline", name)]).unwrap_or(0.0);
    assert!(restarts < 8.0, "it was restarted {restarts} times instead of waiting");
}

fn is_ready_again(weir: &mut Weir, name: &str) {
    wait_until("the pipeline to be ready again", SOON, || {
        weir.must_run();
        weir.get(&format!("/ready/{name}")).is_some_and(|(status, _)| status == 200)
    });
}

#[test]
fn rule_10_a_sink_in_another_cluster_stands_still_and_the_source_keeps_its_place_in_its_group() {
    const COUNT: u64 = 100_000;
    let (from, to) = (Broker::shared(), Broker::start_new());
    let (source, sink, name) = (from.topic("orders", 4), to.topic("totals", 4), unique("etl"));
    from.produce(&source, (0..COUNT / 2).map(orders::order));
    let mut home = home(from);
    home.set("OTHER_BROKERS", to.address());
    let pipeline = orders::pipeline(&name, "at_least_once", &source, &sink, "memory: 8MiB\n");
    let (sources, sinks) = pipeline.split_once("sinks:").expect("it has sinks");
    home.write("etl.yaml", format!("{sources}sinks:{}", sinks.replace("KAFKA_BROKERS", "OTHER_BROKERS")));
    let mut weir = home.start("etl.yaml");
    let mut reader = to.reader(&sink);
    reader.read_until(1, SOON);

    to.pause();
    from.produce(&source, (COUNT / 2..COUNT).map(orders::order));
    watch_for(AWAY, &mut weir, &name);
    to.resume();

    reader.read_until(orders::kept(COUNT), Duration::from_mins(2));
    wait_until("all to be committed", Duration::from_mins(2), || from.is_all_committed(&name, &source));
    is_ready_again(&mut weir, &name);
    let log = weir.log();
    assert!(!log.contains("partitions given up"), "it lost its place in the group:\n{log}");
    assert_eq!(weir.stop(SOON), 0);
    assert_eq!(orders::assert_at_least(&to.consume_all_committed(&sink), COUNT), 0, "nothing came twice");
}

#[test]
fn rule_10_a_transaction_whose_broker_stands_still_or_dies_is_parked_and_moves_on_by_itself() {
    const COUNT: u64 = 100_000;
    let broker = Broker::start_new();
    let (source, sink, name) = (broker.topic("orders", 4), broker.topic("totals", 4), unique("etl"));
    broker.produce(&source, (0..COUNT / 2).map(orders::order));
    let home = home(&broker);
    home.write("etl.yaml", orders::pipeline(&name, "exactly_once", &source, &sink, "memory: 8MiB\n"));
    let mut weir = home.start("etl.yaml");
    let mut reader = broker.reader(&sink);
    reader.read_until(1, SOON);

    broker.pause();
    watch_for(AWAY, &mut weir, &name);
    broker.resume();
    broker.produce(&source, (COUNT / 2..COUNT * 3 / 4).map(orders::order));
    reader.read_until(orders::kept(COUNT * 3 / 4), Duration::from_mins(2));
    is_ready_again(&mut weir, &name);

    broker.produce(&source, (COUNT * 3 / 4..COUNT).map(orders::order));
    broker.kill();
    let gone = Deadline::within(AWAY / 2);
    while !gone.passed() {
        weir.must_run();
        assert_eq!(weir.get("/live").map(|(status, _)| status), Some(200));
        std::thread::sleep(Duration::from_millis(250));
    }
    broker.start();

    reader.read_until(orders::kept(COUNT), Duration::from_mins(2));
    wait_until("all to be committed", Duration::from_mins(2), || broker.is_all_committed(&name, &source));
    is_ready_again(&mut weir, &name);
    assert_eq!(weir.stop(SOON), 0);
    orders::assert_exactly(&broker.consume_all_committed(&sink), COUNT);
}

/// Whether `/ready` says that the pipeline does not move, at this stage and for this reason.
fn tells(weir: &Weir, name: &str, why: &str) -> bool {
    weir.get(&format!("/ready/{name}")).is_some_and(|(status, body)| {
        status == 503 && body.contains("\"stage\":\"orders\"") && body.contains(why) && body.contains("\"since\"")
    })
}

#[test]
fn a_source_whose_cluster_is_away_is_named_until_it_is_back() {
    const COUNT: u64 = 10_000;
    let (from, to) = (Broker::start_new(), Broker::shared());
    let (source, sink, name) = (from.topic("orders", 4), to.topic("totals", 4), unique("etl"));
    from.produce(&source, (0..COUNT).map(orders::order));
    from.kill();
    let mut home = home(&from);
    home.set("OTHER_BROKERS", to.address());
    let pipeline = orders::pipeline(&name, "at_least_once", &source, &sink, "");
    let (sources, sinks) = pipeline.split_once("sinks:").expect("it has sinks");
    home.write("etl.yaml", format!("{sources}sinks:{}", sinks.replace("KAFKA_BROKERS", "OTHER_BROKERS")));
    let mut weir = home.start("etl.yaml");
    let why = "no broker of the source answers";
    wait_until("it to say that the source's cluster is away", SOON, || tells(&weir, &name, why));
    from.start();
    to.reader(&sink).read_until(orders::kept(COUNT), SOON);
    is_ready_again(&mut weir, &name);

    // And while it runs, with nothing to read.
    from.kill();
    wait_until("it to say it again", SOON, || tells(&weir, &name, why));
    let stuck = weir.metric("weir_pipeline_stuck", &[("pipeline", &name), ("component", "orders")]);
    assert_eq!(stuck, Some(1.0));
    from.start();
    is_ready_again(&mut weir, &name);
    assert_eq!(weir.get("/live").map(|(status, _)| status), Some(200));
    assert_eq!(weir.stop(SOON), 0);
}
