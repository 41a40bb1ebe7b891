//! The floor: consume and produce with librdkafka, and nothing in between.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, ThreadedProducer};

/// What the driver starts itself with to become this loop.
pub(crate) const ARGUMENT: &str = "--bare-loop";

/// Copies records from topic to topic until it is killed. The clients are set as Weir sets its own under the default
/// memory budget, for four partitions and topics that take as much as they do by default: `GroupSettings` and
/// `SharedProducer` in `src/clients/kafka` have these figures.
pub(crate) fn run(brokers: &str, source: &str, sink: &str, group: &str) -> ! {
    let consumer: BaseConsumer = settings(
        brokers,
        &[
            ("group.id", group),
            ("partition.assignment.strategy", "cooperative-sticky"),
            ("auto.offset.reset", "earliest"),
            ("auto.commit.interval.ms", "1000"),
            ("queued.max.messages.kbytes", "1024"),
            ("queued.min.messages", "4096"),
            ("fetch.max.bytes", "2097152"),
            ("fetch.queue.backoff.ms", "5"),
            ("fetch.wait.max.ms", "20"),
        ],
    )
    .create()
    .expect("the settings are valid");
    let producer: ThreadedProducer<DefaultProducerContext> = settings(
        brokers,
        &[
            ("enable.idempotence", "true"),
            ("acks", "all"),
            ("partitioner", "murmur2_random"),
            ("linger.ms", "5"),
            ("queue.buffering.max.kbytes", "8192"),
            ("queue.buffering.max.messages", "8192"),
            ("batch.size", "1048588"),
            ("message.max.bytes", "1000000000"),
            ("message.timeout.ms", "0"),
        ],
    )
    .create()
    .expect("the settings are valid");
    consumer.subscribe(&[source]).expect("the topic's name is valid");
    let full = KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull);
    loop {
        let Some(Ok(record)) = consumer.poll(Duration::from_millis(100)) else { continue };
        let mut outgoing: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(sink);
        outgoing.key = record.key();
        outgoing.payload = record.payload();
        outgoing.timestamp = record.timestamp().to_millis();
        while let Err((error, refused)) = producer.send(outgoing) {
            assert_eq!(error, full, "the client takes the record");
            std::thread::sleep(Duration::from_millis(1));
            outgoing = refused;
        }
    }
}

fn settings(brokers: &str, more: &[(&str, &str)]) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("reconnect.backoff.max.ms", "2000");
    for (name, value) in more {
        config.set(*name, *value);
    }
    config
}
