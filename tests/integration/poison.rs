//! A record that its topic refuses for what it is, among others that it takes.

use std::collections::{BTreeMap, BTreeSet};

use crate::broker::wait::wait_until;
use crate::broker::{Broker, unique};
use crate::{GUARANTEES, SOON, home, orders};

/// How far in the future a timestamp may lie: for ever. By default it is an hour.
const ANY_TIME: [(&str, &str); 1] = [("message.timestamp.after.max.ms", "9223372036854775807")];
/// The year 2099.
const TOO_LATE: i64 = 4_080_000_000_000;

#[test]
fn a_record_that_the_topic_refuses_takes_no_other_with_it() {
    const COUNT: u64 = 2_000;
    let broker = Broker::shared();
    for guarantee in GUARANTEES {
        let (source, dead, name) = (unique("orders"), unique("dead"), unique("etl"));
        broker.create_topic(&source, 2, &ANY_TIME);
        broker.create_topic(&dead, 1, &ANY_TIME);
        let sink = broker.topic("totals", 2);
        let late = |n: u64| if n % 700 == 100 { orders::order(n).at(TOO_LATE) } else { orders::order(n) };
        broker.produce(&source, (0..COUNT).map(late));
        let home = home(broker);
        let letters = format!("dead_letter:\n  kafka: {{ brokers: \"${{KAFKA_BROKERS}}\", topic: {dead} }}\n");
        home.write("etl.yaml", orders::pipeline(&name, guarantee, &source, &sink, &letters));
        let mut weir = home.start("etl.yaml");
        broker.reader(&sink).read_until(1, SOON);
        wait_until("all to be committed", 2 * SOON, || {
            weir.must_run();
            broker.is_all_committed(&name, &source)
        });
        assert_eq!(weir.stop(SOON), 0);

        let letters = broker.consume_all_committed(&dead);
        let mut numbers: Vec<_> =
            letters.iter().map(|letter| letter.json()["n"].as_u64().unwrap_or_default()).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let told = letters.first().map(|letter| letter.header("weir-error"));
        assert_eq!(numbers, [100, 800, 1500], "{guarantee}: {told:?}");
        let came = broker.consume_all_committed(&sink);
        let kept = orders::kept(COUNT) - numbers.len();
        if guarantee == "exactly_once" {
            assert_eq!((came.len(), letters.len()), (kept, 3));
        } else {
            assert!(came.len() >= kept, "{} of {kept}", came.len());
        }
    }
}

/// A broker that knows nothing of a client takes its requests in any order. What stands behind the refused one must not
/// come out in front of what stands beside it.
#[test]
fn order_is_kept_where_a_broker_refuses_the_first_request() {
    const COUNT: u64 = 1_000;
    let broker = Broker::shared();
    let (source, dead, name) = (unique("orders"), unique("dead"), unique("etl"));
    broker.create_topic(&source, 1, &ANY_TIME);
    broker.create_topic(&dead, 1, &ANY_TIME);
    let sink = broker.topic("totals", 2);
    let late = |n: u64| if [2, 37, 95].contains(&n) { orders::order(n).at(TOO_LATE) } else { orders::order(n) };
    broker.produce(&source, (0..COUNT).map(late));
    let home = home(broker);
    let letters = format!("dead_letter:\n  kafka: {{ brokers: \"${{KAFKA_BROKERS}}\", topic: {dead} }}\n");
    let pipeline = orders::pipeline(&name, "at_least_once", &source, &sink, &letters);
    // Many small requests, so that some stand behind the refused one.
    let pipeline = pipeline
        .replace(&format!("topic: {sink} }}"), &format!("topic: {sink}, options: {{ batch.num.messages: 20 }} }}"));
    home.write("etl.yaml", pipeline);
    let mut weir = home.start("etl.yaml");
    wait_until("all to be committed", 2 * SOON, || {
        weir.must_run();
        broker.is_all_committed(&name, &source)
    });
    assert_eq!(weir.stop(SOON), 0);

    let mut first = BTreeMap::<String, Vec<u64>>::new();
    for (key, came) in orders::by_key(&broker.consume_all_committed(&sink)) {
        let first = first.entry(key).or_default();
        for n in came {
            if !first.contains(&n) {
                first.push(n);
            }
        }
    }
    let is_late = |n: &u64| [2, 37, 95].contains(n);
    let mut expected = orders::expected(COUNT);
    for numbers in expected.values_mut() {
        numbers.retain(|n| !is_late(n));
    }
    assert_eq!(first, expected, "each comes, and for the first time in its order");
    let refused: BTreeSet<u64> = broker
        .consume_all_committed(&dead)
        .iter()
        .map(|letter| letter.json()["n"].as_u64().expect("it is what was refused"))
        .collect();
    assert_eq!(refused, BTreeSet::from([2, 37, 95]));
}
