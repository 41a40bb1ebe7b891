//! What the brokers refuse: credentials, rights, two clusters in one transaction. All of it blocks, loudly, and loses nothing.

use std::time::Duration;

use crate::broker::secured::{Right, SecuredBroker};
use crate::broker::wait::wait_until;
use crate::broker::{Broker, Record, unique};
use crate::process::{Home, Weir};
use crate::{GUARANTEES, SOON, home, orders};

/// Whether `/ready` says that the pipeline does not move, and why.
pub(crate) fn is_blocked(weir: &mut Weir, pipeline: &str, why: &str) -> bool {
    weir.must_run();
    weir.get(&format!("/ready/{pipeline}")).is_some_and(|(status, body)| status == 503 && body.contains(why))
}

/// A home whose pipelines come to the secured listener as a user.
fn secured_home(secured: &SecuredBroker, user: &str, pipeline: &str) -> Home {
    let mut home = Home::new();
    home.set("KAFKA_BROKERS", &secured.secure_address());
    let sasl = format!("sasl: {{ mechanism: SCRAM-SHA-256, username: {user}, password: secret }}");
    let brokers = "brokers: \"${KAFKA_BROKERS}\"";
    home.write("etl.yaml", pipeline.replace(brokers, &format!("{brokers}, {sasl}")));
    home
}

#[test]
fn credentials_and_rights_that_are_missing_block_loudly_and_lose_nothing() {
    let secured = SecuredBroker::start();
    std::thread::scope(|threads| {
        for guarantee in GUARANTEES {
            let secured = &secured;
            threads.spawn(move || {
                rights_come_and_go(secured, guarantee);
                a_limit_that_may_not_be_asked_for_is_learned(secured, guarantee);
                a_limit_that_may_not_be_asked_for_is_not_guessed(secured, guarantee);
            });
        }
    });
}

fn rights_come_and_go(secured: &SecuredBroker, guarantee: &'static str) {
    // Each scenario has a user of its own, by the name of its guarantee.
    let (broker, user) = (&secured.broker, guarantee);
    let (source, sink, dead) = (broker.topic("orders", 2), broker.topic("totals", 2), broker.topic("dead", 1));
    let name = unique("etl");
    let dead_letter = format!("dead_letter:\n  kafka: {{ brokers: \"${{KAFKA_BROKERS}}\", topic: {dead} }}\n");
    let home = secured_home(secured, user, &orders::pipeline(&name, guarantee, &source, &sink, &dead_letter));
    broker.produce(&source, (0..500).map(orders::order));

    // Nobody knows the user yet.
    let mut weir = home.start("etl.yaml");
    wait_until("the password to be asked for", SOON, || is_blocked(&mut weir, &name, "uthentication"));
    secured.set_password(user, "secret");
    let mut reader = broker.reader(&sink);
    reader.read_until(orders::kept(500), SOON);

    // It may not write any more. A right is gone some time after it was taken, so records come until that shows.
    let mut count = 500;
    let mut feed = |weir: &mut Weir, why: &str| {
        wait_until(&format!("/ready/{name} to say {why:?}"), SOON, || {
            broker.produce(&source, (count..count + 20).map(orders::order));
            count += 20;
            is_blocked(weir, &name, why)
        });
        count
    };
    for topic in [&source, &sink] {
        secured.grant(user, topic);
    }
    secured.deny(user, &sink, Right::Write);
    let so_far = feed(&mut weir, "not allowed to write");
    secured.allow_again(user, &sink, Right::Write);
    reader.read_until(orders::kept(so_far), SOON);

    // It may not read any more.
    secured.deny(user, &source, Right::Read);
    let count = feed(&mut weir, "TopicAuthorizationFailed");
    secured.allow_again(user, &source, Right::Read);
    reader.read_until(orders::kept(count), Duration::from_mins(2));

    wait_until("all to be committed", SOON, || broker.is_all_committed(&name, &source));
    assert_eq!(weir.stop(SOON), 0);
    let records = broker.consume_all_committed(&sink);
    if guarantee == "exactly_once" {
        orders::assert_exactly(&records, count);
    } else {
        orders::assert_at_least(&records, count);
    }
    assert_eq!(broker.consume_all_committed(&dead), [], "nothing was refused for want of a right");
}

/// Rule 14, where the broker tells the limit of a topic only by refusing what is larger.
fn a_limit_that_may_not_be_asked_for_is_learned(secured: &SecuredBroker, guarantee: &'static str) {
    const COUNT: u64 = 1_000;
    let (broker, user) = (&secured.broker, guarantee);
    let (source, dead, sink) = (broker.topic("orders", 2), broker.topic("dead", 1), unique("small"));
    let name = unique("etl");
    broker.create_topic(&sink, 2, &[("max.message.bytes", "20000")]);
    secured.grant(user, &sink);
    secured.deny(user, &sink, Right::DescribeConfigs);
    let dead_letter = format!("dead_letter:\n  kafka: {{ brokers: \"${{KAFKA_BROKERS}}\", topic: {dead} }}\n");
    let home = secured_home(secured, user, &orders::pipeline(&name, guarantee, &source, &sink, &dead_letter));
    let pad = "larger than the topic takes, ".repeat(4_000);
    let huge = format!(r#"{{"key":"huge","level":"info","price":1,"qty":1,"pad":"{pad}"}}"#);
    broker.produce(&source, (0..COUNT / 2).map(orders::order));
    broker.produce(&source, [Record::new(huge).key("huge").to(0)]);
    broker.produce(&source, (COUNT / 2..COUNT).map(orders::order));

    let mut weir = home.start("etl.yaml");
    broker.reader(&sink).read_until(orders::kept(COUNT), Duration::from_mins(2));
    wait_until("all to be committed", SOON, || broker.is_all_committed(&name, &source));
    assert_eq!(weir.stop(SOON), 0);
    let records = broker.consume_all_committed(&sink);
    if guarantee == "exactly_once" {
        orders::assert_exactly(&records, COUNT);
    } else {
        orders::assert_at_least(&records, COUNT);
    }
    let letters = broker.consume_all_committed(&dead);
    assert!(letters.iter().all(|letter| letter.key.as_deref() == Some(b"huge")), "only what is too large");
    assert!(!letters.is_empty());
}

/// A topic may take more than others do by default.
fn a_limit_that_may_not_be_asked_for_is_not_guessed(secured: &SecuredBroker, guarantee: &'static str) {
    let (broker, user) = (&secured.broker, guarantee);
    let (source, dead) = (unique("orders"), broker.topic("dead", 1));
    let (sink, name) = (unique("large"), unique("etl"));
    for topic in [&source, &sink] {
        broker.create_topic(topic, 1, &[("max.message.bytes", "5000000")]);
    }
    secured.grant(user, &sink);
    secured.deny(user, &sink, Right::DescribeConfigs);
    let dead_letter = format!("dead_letter:\n  kafka: {{ brokers: \"${{KAFKA_BROKERS}}\", topic: {dead} }}\n");
    let home = secured_home(secured, user, &orders::pipeline(&name, guarantee, &source, &sink, &dead_letter));
    let pad = "larger than the default, ".repeat(80_000);
    let large = format!(r#"{{"key":"large","level":"info","price":1,"qty":1,"pad":"{pad}"}}"#);
    broker.produce(&source, [Record::new(large).key("large").to(0)]);

    let mut weir = home.start("etl.yaml");
    let mut reader = broker.reader(&sink);
    let came = reader.read_until(1, SOON);
    assert_eq!(came[0].key.as_deref(), Some(&b"large"[..]));
    assert_eq!(weir.stop(SOON), 0);
    assert_eq!(broker.consume_all_committed(&dead), []);
}

#[test]
fn a_transaction_over_two_clusters_is_refused_at_the_start() {
    let (one, other) = (Broker::shared(), Broker::start_new());
    let (source, sink, name) = (one.topic("orders", 1), other.topic("totals", 1), unique("etl"));
    let mut home = home(one);
    home.set("OTHER_BROKERS", other.address());
    let text = orders::pipeline(&name, "exactly_once", &source, &sink, "");
    let (sources, sinks) = text.split_once("sinks:").expect("it has sinks");
    home.write("etl.yaml", format!("{sources}sinks:{}", sinks.replace("KAFKA_BROKERS", "OTHER_BROKERS")));
    let mut weir = home.start("etl.yaml");
    assert_eq!(weir.wait(SOON), 1);
    let log = weir.log();
    assert!(log.contains("a transaction cannot span both"), "{log}");
    assert!(!log.contains("partitions assigned"), "it was refused before anything was read:\n{log}");
}
