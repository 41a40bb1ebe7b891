//! A rebalance whose second half was lost with the member that owed it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::topic_partition_list::TopicPartitionList;
use rdkafka::types::RDKafkaRespErr;

use crate::broker::wait::wait_until;
use crate::broker::{Broker, unique};
use crate::{SOON, home, orders};

/// A member that takes partitions on, and dies while it gives some up.
#[derive(Default)]
struct DiesInItsRevoke(AtomicBool);

impl ClientContext for DiesInItsRevoke {}

impl ConsumerContext for DiesInItsRevoke {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, kind: RDKafkaRespErr, list: &mut TopicPartitionList) {
        if kind == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            consumer.incremental_assign(list).expect("the partitions exist");
        } else {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

fn member<C: ConsumerContext>(broker: &Broker, group: &str, topic: &str, context: C) -> BaseConsumer<C> {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", broker.address())
        .set("group.id", group)
        .set("group.instance.id", "dies")
        .set("partition.assignment.strategy", "cooperative-sticky")
        // Nobody is to be helped by a session that runs out.
        .set("session.timeout.ms", "120000")
        .set("enable.auto.commit", "false")
        .set("log_level", "0");
    let consumer = BaseConsumer::from_config_and_context(&config, context).expect("the settings are valid");
    consumer.subscribe(&[topic]).expect("the name is valid");
    consumer
}

#[test]
fn partitions_that_nobody_holds_are_claimed() {
    let broker = Broker::shared();
    let (source, sink, name) = (broker.topic("orders", 4), broker.topic("totals", 4), unique("etl"));
    let home = home(broker);
    home.write("etl.yaml", orders::pipeline(&name, "at_least_once", &source, &sink, ""));

    let first = member(broker, &name, &source, DiesInItsRevoke::default());
    wait_until("the first member to hold all", SOON, || {
        drop(first.poll(Duration::from_millis(20)));
        first.assignment().is_ok_and(|held| held.count() == 4)
    });
    let mut weir = home.start("etl.yaml");
    wait_until("the first member to be asked for some", SOON, || {
        drop(first.poll(Duration::from_millis(20)));
        first.context().0.load(Ordering::Relaxed)
    });
    // It never says that it has given them up. A client that is closed would.
    std::mem::forget(first);

    // The same member again: the group is at rest, and the broker gives it what it would have kept.
    let again = member(broker, &name, &source, rdkafka::consumer::DefaultConsumerContext);
    wait_until("the member to be there again", SOON, || {
        drop(again.poll(Duration::from_millis(20)));
        again.assignment().is_ok_and(|held| held.count() > 0)
    });
    let says = |weir: &crate::process::Weir, words: &str| weir.log().contains(words);
    assert!(!says(&weir, "partitions assigned"), "{}", weir.log());

    wait_until("the partitions to be claimed and shared out", 2 * SOON, || {
        drop(again.poll(Duration::from_millis(20)));
        weir.must_run();
        says(&weir, "no member of the group holds these partitions") && says(&weir, "partitions assigned")
    });
    drop(again);
    assert_eq!(weir.stop(SOON), 0);
}
