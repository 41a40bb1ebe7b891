//! Topics that come and go, and patterns that match them.

use std::time::Duration;

use crate::broker::wait::wait_until;
use crate::broker::{Broker, unique};
use crate::{GUARANTEES, SOON, home, orders};

/// A pipeline that reads what matches.
fn pipeline(name: &str, guarantee: &str, pattern: &str, sink: &str, more: &str) -> String {
    let text = orders::pipeline(name, guarantee, "TOPICS", sink, more);
    text.replace("topics: [TOPICS]", &format!("topics: ['{pattern}']"))
}

#[test]
fn topics_and_partitions_that_come_later_are_read_from_their_beginning() {
    let broker = Broker::shared();
    for guarantee in GUARANTEES {
        let (prefix, sink, name) = (unique("found"), broker.topic("totals", 2), unique("etl"));
        let home = home(broker);
        home.write("etl.yaml", pipeline(&name, guarantee, &format!("^{prefix}-"), &sink, ""));
        let mut weir = home.start("etl.yaml");
        weir.wait_log(&["no topic matches", &prefix], SOON);

        let mut reader = broker.reader(&sink);
        let topics: Vec<_> = ["a", "b"].map(|end| format!("{prefix}-{end}")).into();
        // Each takes a part of the keys, so that the order of a key stays that of its topic.
        for (at, topic) in topics.iter().enumerate() {
            broker.create_topic(topic, 2, &[]);
            broker.produce(topic, (0..1_000).filter(|n| n % 2 == at as u64).map(orders::order));
            weir.must_run();
        }
        reader.read_until(orders::kept(1_000), SOON);
        wait_until("all to be committed", SOON, || topics.iter().all(|topic| broker.is_all_committed(&name, topic)));

        // One is deleted, and the other grows: the pipeline goes on.
        broker.delete_topic(&topics[1]);
        weir.wait_log(&["topic gone", &topics[1]], SOON);
        broker.add_partitions(&topics[0], 4);
        let more = (1_000..2_000).map(orders::order).map(|record| record.to(3));
        broker.produce(&topics[0], more);
        reader.read_until(orders::kept(2_000), SOON);
        wait_until("all to be committed", SOON, || broker.is_all_committed(&name, &topics[0]));
        assert_eq!(weir.stop(SOON), 0);
        orders::assert_exactly(&broker.consume_all_committed(&sink), 2_000);
    }
}

#[test]
fn a_named_topic_that_is_deleted_holds_nothing_up() {
    let broker = Broker::shared();
    for guarantee in GUARANTEES {
        let (kept, gone) = (broker.topic("kept", 2), broker.topic("gone", 2));
        let (sink, name) = (broker.topic("totals", 2), unique("etl"));
        let home = home(broker);
        home.write("etl.yaml", orders::pipeline(&name, guarantee, &format!("{kept}, {gone}"), &sink, ""));
        let mut weir = home.start("etl.yaml");
        let mut reader = broker.reader(&sink);
        broker.produce(&gone, (0..500).map(orders::order));
        reader.read_until(orders::kept(500), SOON);
        wait_until("all to be committed", SOON, || broker.is_all_committed(&name, &gone));

        broker.delete_topic(&gone);
        weir.wait_log(&["partitions given up", &gone], SOON);
        broker.produce(&kept, (500..1_000).map(orders::order));
        reader.read_until(orders::kept(1_000), SOON);
        wait_until("all to be committed", SOON, || broker.is_all_committed(&name, &kept));
        // It comes back, as a new topic.
        broker.create_topic(&gone, 2, &[]);
        broker.produce(&gone, (1_000..1_500).map(orders::order));
        reader.read_until(orders::kept(1_500), SOON);
        assert_eq!(weir.stop(SOON), 0);
        orders::assert_exactly(&broker.consume_all_committed(&sink), 1_500);
    }
}

#[test]
fn rule_18_an_output_that_a_pattern_matches_stops_the_pipeline() {
    let broker = Broker::shared();
    let (prefix, name) = (unique("loop"), unique("etl"));
    let sink = format!("{prefix}-totals");
    broker.create_topic(&sink, 1, &[]);
    let home = home(broker);
    // The same brokers by another name: only the cluster itself can tell.
    let port = broker.address().rsplit(':').next().expect("an address has a port");
    let text = pipeline(&name, "at_least_once", &format!("^{prefix}-"), &sink, "");
    let text = text.replacen("\"${KAFKA_BROKERS}\"", &format!("\"localhost:{port}\""), 1);
    home.write("etl.yaml", text);
    let mut weir = home.start("etl.yaml");
    assert_eq!(weir.wait(SOON), 1);
    weir.wait_log(&["ERROR", &sink, "narrow the pattern"], Duration::from_secs(1));
}
