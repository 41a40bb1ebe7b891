//! The broker goes away and comes back while records pass.

use std::time::Duration;

use crate::broker::wait::wait_until;
use crate::broker::{Broker, unique};
use crate::{GUARANTEES, SOON, home, orders};

#[test]
fn nothing_is_lost_when_the_broker_restarts() {
    const COUNT: u64 = 60_000;
    let broker = Broker::start_new();
    for guarantee in GUARANTEES {
        let (source, sink, name) = (broker.topic("orders", 4), broker.topic("totals", 4), unique("etl"));
        broker.produce(&source, (0..COUNT / 2).map(orders::order));
        let home = home(&broker);
        home.write("etl.yaml", orders::pipeline(&name, guarantee, &source, &sink, ""));
        let mut weir = home.start("etl.yaml");
        let mut reader = broker.reader(&sink);
        reader.read_until(1, SOON);

        broker.kill();
        weir.must_run();
        broker.start();
        broker.produce(&source, (COUNT / 2..COUNT).map(orders::order));

        reader.read_until(orders::kept(COUNT), Duration::from_mins(2));
        wait_until("all to be committed", SOON, || broker.is_all_committed(&name, &source));
        assert_eq!(weir.stop(SOON), 0);
        let records = broker.consume_all_committed(&sink);
        if guarantee == "exactly_once" {
            orders::assert_exactly(&records, COUNT);
        } else {
            orders::assert_at_least(&records, COUNT);
        }
    }
}

#[test]
fn a_broker_that_stands_still_holds_the_pipeline_up_and_costs_nothing() {
    const COUNT: u64 = 60_000;
    let broker = Broker::start_new();
    let (source, sink, name) = (broker.topic("orders", 2), broker.topic("totals", 2), unique("etl"));
    broker.produce(&source, (0..COUNT).map(orders::order));
    let home = home(&broker);
    home.write("etl.yaml", orders::pipeline(&name, "at_least_once", &source, &sink, ""));
    let mut weir = home.start("etl.yaml");
    let mut reader = broker.reader(&sink);
    reader.read_until(1, SOON);

    broker.pause();
    wait_until("it to say that the pipeline is stuck", SOON, || {
        weir.must_run();
        // The process itself is well: a restart would not help.
        assert_eq!(weir.get("/live").map(|(status, _)| status), Some(200));
        weir.get(&format!("/ready/{name}")).is_some_and(|(status, _)| status == 503)
    });
    broker.resume();

    reader.read_until(orders::kept(COUNT), Duration::from_mins(2));
    wait_until("all to be committed", SOON, || broker.is_all_committed(&name, &source));
    wait_until("the pipeline to be ready again", SOON, || {
        weir.get(&format!("/ready/{name}")).is_some_and(|(status, _)| status == 200)
    });
    assert_eq!(weir.stop(SOON), 0);
    orders::assert_at_least(&broker.consume_all_committed(&sink), COUNT);
}
