//! Kafka to Kafka, under both guarantees.

use crate::broker::wait::wait_until;
use crate::broker::{Broker, Consumed, unique};
use crate::process::Home;
use crate::{COMMIT, COUNT, SOON, kill_again_and_again, orders, seeded};

/// The records that came out after all the kills.
fn survive(guarantee: &str) -> Vec<Consumed> {
    let broker = Broker::shared();
    let mut random = seeded(guarantee);
    let (source, sink, name) = (broker.topic("orders", 4), broker.topic("totals", 4), unique("crash"));
    let mut home = Home::new();
    home.set("KAFKA_BROKERS", broker.address()).set("WEIR_INSTANCE", &unique("instance"));
    home.write("crash.yaml", orders::pipeline(&name, guarantee, &source, &sink, COMMIT));

    let writer = broker.writer(&source);
    let supply = |from, to| (from..to).for_each(|n| writer.send(&orders::order(n)));
    let mut weir = kill_again_and_again(&home, &name, &mut random, supply);

    writer.flush();
    wait_until("all to be committed", SOON, || {
        weir.must_run();
        broker.is_all_committed(&name, &source)
    });
    assert_eq!(weir.stop(SOON), 0);
    broker.consume_all_committed(&sink)
}

#[test]
fn exactly_once_no_record_is_lost_or_repeated_or_out_of_order() {
    orders::assert_exactly(&survive("exactly_once"), COUNT);
}

#[test]
fn at_least_once_no_record_is_lost_and_repeats_are_replays() {
    let repeats = orders::assert_at_least(&survive("at_least_once"), COUNT);
    eprintln!("at_least_once: {repeats} records came more than once");
}
