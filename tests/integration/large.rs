//! A record that is larger than what a client receives by default.

use crate::broker::wait::wait_until;
use crate::broker::{Broker, unique};
use crate::{SOON, home, orders};

/// By default a client receives 100 MB at most.
const SIZE: usize = 110_000_000;

#[test]
fn a_record_of_more_than_100_mb_is_refused_with_a_reason_and_those_behind_it_come() {
    const COUNT: u64 = 400;
    let broker =
        Broker::start_new_with(&[("message.max.bytes", "150000000"), ("socket.request.max.bytes", "200000000")]);
    let (source, sink, dead, name) = (unique("orders"), unique("totals"), unique("dead"), unique("etl"));
    broker.create_topic(&source, 1, &[]);
    broker.create_topic(&sink, 1, &[("max.message.bytes", "1000000")]);
    broker.create_topic(&dead, 1, &[("max.message.bytes", "1000000")]);
    let writer = broker.writer(&source);
    (0..COUNT / 2).for_each(|n| writer.send(&orders::order(n)));
    let mut large = orders::order(0);
    large.value = format!(r#"{{"level":"info","price":1,"qty":1,"note":"{}"}}"#, "x".repeat(SIZE)).into_bytes();
    writer.send(&large);
    writer.flush();
    (COUNT / 2..COUNT).for_each(|n| writer.send(&orders::order(n)));
    writer.flush();

    let home = home(&broker);
    let letters = format!("dead_letter:\n  kafka: {{ brokers: \"${{KAFKA_BROKERS}}\", topic: {dead} }}\n");
    home.write("etl.yaml", orders::pipeline(&name, "at_least_once", &source, &sink, &letters));
    let mut weir = home.start("etl.yaml");
    wait_until("all to be committed", 2 * SOON, || {
        weir.must_run();
        broker.is_all_committed(&name, &source)
    });
    assert_eq!(weir.stop(SOON), 0);

    orders::assert_at_least(&broker.consume_all_committed(&sink), COUNT);
    let letters = broker.consume_all_committed(&dead);
    assert_eq!(letters.len(), 1);
    let why = letters[0].header("weir-error").expect("a letter has a reason");
    assert!(why.contains("110000203 bytes") && why.contains("at most 1000000 bytes"), "{why}");
}
