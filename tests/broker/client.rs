//! What tests do with a broker: topics, records in, records out.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Duration;

use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::bindings::rd_kafka_brokers_add;
use rdkafka::client::{Client, DefaultClientContext};
use rdkafka::config::{FromClientConfig, FromClientConfigAndContext};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, DeliveryResult, Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, NoCustomPartitioner, Producer, ProducerContext, ThreadedProducer};
use rdkafka::{ClientConfig, ClientContext, Offset, TopicPartitionList};

use super::Broker;
use super::wait::{Deadline, wait_until};

const CALL_LIMIT: Duration = Duration::from_secs(30);
/// How long a writer waits before it reminds its client of the broker.
const REMINDER: Duration = Duration::from_secs(2);

/// A record's headers, in their order.
pub(crate) type HeaderList = Vec<(String, Option<Vec<u8>>)>;

/// A record to be produced.
#[derive(Debug, Clone, Default)]
pub(crate) struct Record {
    /// The partition; by the key, as Java's clients choose it, if there is none.
    pub(crate) partition: Option<i32>,
    /// The key.
    pub(crate) key: Option<Vec<u8>>,
    /// The value.
    pub(crate) value: Vec<u8>,
    /// The headers.
    pub(crate) headers: HeaderList,
    /// Milliseconds since the Unix epoch; now, if there is none.
    pub(crate) timestamp: Option<i64>,
}

impl Record {
    /// A record of just a value.
    pub(crate) fn new(value: impl Into<Vec<u8>>) -> Self {
        Self { value: value.into(), ..Self::default() }
    }

    /// With a key.
    pub(crate) fn key(mut self, key: impl Into<Vec<u8>>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// To a partition.
    pub(crate) fn to(mut self, partition: i32) -> Self {
        self.partition = Some(partition);
        self
    }

    /// With one more header.
    pub(crate) fn header(mut self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        self.headers.push((name.to_owned(), Some(value.into())));
        self
    }

    /// With a timestamp, in milliseconds since the Unix epoch.
    pub(crate) fn at(mut self, timestamp: i64) -> Self {
        self.timestamp = Some(timestamp);
        self
    }
}

/// A record that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Consumed {
    /// Its partition.
    pub(crate) partition: i32,
    /// Its offset there.
    pub(crate) offset: i64,
    /// Its key.
    pub(crate) key: Option<Vec<u8>>,
    /// Its value; empty for a tombstone.
    pub(crate) value: Vec<u8>,
    /// Its headers.
    pub(crate) headers: HeaderList,
    /// Milliseconds since the Unix epoch.
    pub(crate) timestamp: Option<i64>,
}

impl Consumed {
    fn of(record: &BorrowedMessage<'_>) -> Self {
        let header = |header: Header<'_, &[u8]>| (header.key.to_owned(), header.value.map(<[u8]>::to_vec));
        Self {
            partition: record.partition(),
            offset: record.offset(),
            key: record.key().map(<[u8]>::to_vec),
            value: record.payload().unwrap_or_default().to_vec(),
            headers: record.headers().map(|headers| headers.iter().map(header).collect()).unwrap_or_default(),
            timestamp: record.timestamp().to_millis(),
        }
    }

    /// Its value as text.
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.value).expect("the test wrote text")
    }

    /// Its value as JSON.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.value).expect("the test wrote JSON")
    }

    /// The value of its first header of that name, as text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let value = self.headers.iter().find(|(header, _)| header == name)?.1.as_deref()?;
        Some(std::str::from_utf8(value).expect("the test wrote text"))
    }
}

/// A name that no other topic, group or pipeline of this test run has.
pub(crate) fn unique(prefix: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("{prefix}-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

impl Broker {
    /// A topic of a unique name that begins with `prefix`.
    pub(crate) fn topic(&self, prefix: &str, partitions: i32) -> String {
        let name = unique(prefix);
        self.create_topic(&name, partitions, &[]);
        name
    }

    /// Makes a topic, and waits until every partition of it has a leader.
    pub(crate) fn create_topic(&self, name: &str, partitions: i32, config: &[(&str, &str)]) {
        let admin: AdminClient<DefaultClientContext> = self.client(&[]);
        let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
        for (key, value) in config {
            topic = topic.set(key, value);
        }
        let results = block_on(admin.create_topics([&topic], &AdminOptions::new().request_timeout(Some(CALL_LIMIT))));
        for result in results.expect("the broker answers") {
            result.unwrap_or_else(|(topic, error)| panic!("topic {topic} was refused: {error}"));
        }
        wait_until(&format!("a leader of each partition of {name}"), CALL_LIMIT, || {
            self.partitions(name) == usize::try_from(partitions).ok()
        });
    }

    /// Changes a setting of a topic. Tells whether the broker has done so.
    pub(crate) fn set_topic(&self, name: &str, key: &str, value: &str) -> bool {
        let admin: AdminClient<DefaultClientContext> = self.client(&[]);
        let topic = AlterConfig::new(ResourceSpecifier::Topic(name)).set(key, value);
        let options = AdminOptions::new().request_timeout(Some(Duration::from_secs(5)));
        let results = block_on(admin.alter_configs([&topic], &options));
        results.is_ok_and(|results| results.iter().all(Result::is_ok))
    }

    /// Deletes a topic, and waits until it is gone.
    pub(crate) fn delete_topic(&self, name: &str) {
        let admin: AdminClient<DefaultClientContext> = self.client(&[]);
        let options = AdminOptions::new().request_timeout(Some(CALL_LIMIT));
        for result in block_on(admin.delete_topics(&[name], &options)).expect("the broker answers") {
            result.unwrap_or_else(|(topic, error)| panic!("topic {topic} was not deleted: {error}"));
        }
        wait_until(&format!("the end of {name}"), CALL_LIMIT, || self.partitions(name).is_none());
    }

    /// Makes a topic grow to so many partitions.
    pub(crate) fn add_partitions(&self, name: &str, count: usize) {
        let admin: AdminClient<DefaultClientContext> = self.client(&[]);
        let options = AdminOptions::new().request_timeout(Some(CALL_LIMIT));
        let results = block_on(admin.create_partitions([&NewPartitions::new(name, count)], &options));
        for result in results.expect("the broker answers") {
            result.unwrap_or_else(|(topic, error)| panic!("topic {topic} did not grow: {error}"));
        }
        wait_until(&format!("a leader of each partition of {name}"), CALL_LIMIT, || {
            self.partitions(name) == Some(count)
        });
    }

    /// How many partitions of a topic have a leader; `None` if there is no such topic.
    fn partitions(&self, topic: &str) -> Option<usize> {
        let consumer: BaseConsumer = self.client(&[]);
        let metadata = consumer.fetch_metadata(Some(topic), CALL_LIMIT).expect("the broker answers");
        let topic = metadata.topics().first()?;
        if topic.error().is_some() {
            return None;
        }
        Some(topic.partitions().iter().filter(|partition| partition.leader() >= 0).count())
    }

    /// Writes records, each partition's in their order, and waits until the broker has them all.
    pub(crate) fn produce(&self, topic: &str, records: impl IntoIterator<Item = Record>) {
        let writer = self.writer(topic);
        for record in records {
            writer.send(&record);
        }
        writer.flush();
    }

    /// Writes to a topic again and again.
    pub(crate) fn writer(&self, topic: &str) -> Writer {
        let failures = Failures::default();
        let mut config = self.config();
        config
            .set("enable.idempotence", "true")
            .set("partitioner", "murmur2_random")
            .set("linger.ms", "5")
            .set("message.max.bytes", "1000000000")
            .set("queue.buffering.max.messages", "200000");
        let producer =
            ThreadedProducer::from_config_and_context(&config, failures.clone()).expect("the settings are valid");
        Writer { topic: topic.to_owned(), address: self.address().to_owned(), producer, failures }
    }

    /// All records of a topic that readers of committed data see now, partition by partition.
    pub(crate) fn consume_all_committed(&self, topic: &str) -> Vec<Consumed> {
        let mut reader = self.reader(topic);
        reader.read_to_end();
        let mut records = reader.records;
        records.sort_by_key(|record| (record.partition, record.offset));
        records
    }

    /// Reads a topic from its beginning as it grows; committed data only.
    pub(crate) fn reader(&self, topic: &str) -> Reader {
        let count = self.partitions(topic).expect("the topic exists");
        let consumer: BaseConsumer = self.client(&[
            ("group.id", "no-group"),
            ("enable.auto.commit", "false"),
            ("isolation.level", "read_committed"),
            ("enable.partition.eof", "true"),
            ("auto.offset.reset", "error"),
            ("fetch.wait.max.ms", "20"),
            ("fetch.queue.backoff.ms", "10"),
        ]);
        let mut assignment = TopicPartitionList::new();
        for partition in 0..i32::try_from(count).expect("topics of tests are small") {
            assignment.add_partition_offset(topic, partition, Offset::Beginning).expect("the offset is valid");
        }
        consumer.assign(&assignment).expect("the partitions exist");
        let address = self.address().to_owned();
        Reader { topic: topic.to_owned(), address, consumer, partitions: count, records: Vec::new() }
    }

    /// What a group has committed for a topic, by partition; partitions without a commit are left out.
    pub(crate) fn committed_offsets(&self, group: &str, topic: &str) -> BTreeMap<i32, i64> {
        let count = self.partitions(topic).expect("the topic exists");
        let consumer: BaseConsumer = self.client(&[("group.id", group), ("enable.auto.commit", "false")]);
        let mut wanted = TopicPartitionList::new();
        wanted.add_partition_range(topic, 0, i32::try_from(count).expect("topics of tests are small") - 1);
        let committed = consumer.committed_offsets(wanted, CALL_LIMIT).expect("the broker answers");
        let offsets = committed.elements().into_iter().filter_map(|element| match element.offset() {
            Offset::Offset(offset) => Some((element.partition(), offset)),
            _ => None,
        });
        offsets.collect()
    }

    /// The offset behind the last record of each partition. A transaction's marker takes an offset too.
    pub(crate) fn end_offsets(&self, topic: &str) -> BTreeMap<i32, i64> {
        let count = self.partitions(topic).expect("the topic exists");
        let consumer: BaseConsumer = self.client(&[]);
        let end = |partition| {
            let (_, high) = consumer.fetch_watermarks(topic, partition, CALL_LIMIT).expect("the broker answers");
            (partition, high)
        };
        (0..i32::try_from(count).expect("topics of tests are small")).map(end).collect()
    }

    /// Whether a group has committed everything that a topic holds.
    pub(crate) fn is_all_committed(&self, group: &str, topic: &str) -> bool {
        let committed = self.committed_offsets(group, topic);
        self.end_offsets(topic).iter().all(|(partition, end)| *end == 0 || committed.get(partition) == Some(end))
    }

    fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", self.address())
            .set("reconnect.backoff.ms", "20")
            .set("reconnect.backoff.max.ms", "200")
            .set("topic.metadata.refresh.interval.ms", "5000")
            .set("log_level", "0");
        config
    }

    fn client<C: FromClientConfig>(&self, settings: &[(&str, &str)]) -> C {
        let mut config = self.config();
        for (key, value) in settings {
            config.set(*key, *value);
        }
        config.create().expect("the settings are valid")
    }
}

/// Writes to a topic.
pub(crate) struct Writer {
    topic: String,
    address: String,
    producer: ThreadedProducer<Failures>,
    failures: Failures,
}

impl Writer {
    /// Hands a record to the client.
    pub(crate) fn send(&self, record: &Record) {
        let headers = record
            .headers
            .iter()
            .fold(OwnedHeaders::new(), |headers, (key, value)| headers.insert(Header { key, value: value.as_ref() }));
        let mut outgoing: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(&self.topic).payload(&record.value);
        outgoing.key = record.key.as_deref();
        outgoing.partition = record.partition;
        outgoing.timestamp = record.timestamp;
        outgoing.headers = (!record.headers.is_empty()).then_some(headers);
        let mut reminder = Deadline::within(REMINDER);
        while let Err((error, refused)) = self.producer.send(outgoing) {
            let full = KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull);
            assert_eq!(error, full, "the client takes the record");
            if reminder.passed() {
                remind(self.producer.client(), &self.address);
                reminder = Deadline::within(REMINDER);
            }
            std::thread::sleep(Duration::from_millis(5));
            outgoing = refused;
        }
    }

    /// Waits until the broker has all of them.
    pub(crate) fn flush(&self) {
        let deadline = Deadline::within(Duration::from_mins(2));
        while let Err(error) = self.producer.flush(REMINDER) {
            assert!(!deadline.passed(), "the broker takes the records: {error}");
            remind(self.producer.client(), &self.address);
        }
        let failed = self.failures.0.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(failed.is_empty(), "the broker refused records: {:?}", failed.first());
    }
}

/// Reads a topic as it grows.
pub(crate) struct Reader {
    topic: String,
    address: String,
    consumer: BaseConsumer,
    partitions: usize,
    /// All that was read so far, each partition's in order.
    pub(crate) records: Vec<Consumed>,
}

impl Reader {
    /// Reads what readers of committed data see now.
    pub(crate) fn read_to_end(&mut self) {
        let ends = self.ends();
        let deadline = Deadline::within(CALL_LIMIT);
        while !self.has_reached(&ends) {
            self.poll(Duration::from_millis(50));
            assert!(!deadline.passed(), "cannot read {} to its end within {CALL_LIMIT:?}", self.topic);
        }
    }

    /// Shows what readers of committed data see now, body by body, and keeps none of it.
    pub(crate) fn for_each_to_end(&mut self, mut see: impl FnMut(&[u8])) {
        let ends = self.ends();
        let deadline = Deadline::within(Duration::from_mins(2));
        while !self.has_reached(&ends) {
            for _ in 0..1_000 {
                match self.consumer.poll(Duration::from_millis(5)) {
                    Some(Ok(record)) => see(record.payload().unwrap_or_default()),
                    Some(Err(error)) => {
                        self.look_at(&error);
                        break;
                    }
                    None => break,
                }
            }
            assert!(!deadline.passed(), "cannot read {} to its end", self.topic);
        }
    }

    /// Shows what readers of committed data see now, and keeps none of it.
    ///
    /// # Panics
    /// If the end is not reached within `limit`.
    pub(crate) fn see_to_end(&mut self, limit: Duration, mut see: impl FnMut(Consumed)) {
        let ends = self.ends();
        let deadline = Deadline::within(limit);
        while !self.has_reached(&ends) {
            for _ in 0..1_000 {
                match self.consumer.poll(Duration::from_millis(5)) {
                    Some(Ok(record)) => see(Consumed::of(&record)),
                    Some(Err(error)) => {
                        self.look_at(&error);
                        break;
                    }
                    None => break,
                }
            }
            assert!(!deadline.passed(), "cannot read {} to its end within {limit:?}", self.topic);
        }
    }

    /// Reads until there are at least so many records in all.
    ///
    /// # Panics
    /// If they do not come within `limit`.
    pub(crate) fn read_until(&mut self, count: usize, limit: Duration) -> &[Consumed] {
        let deadline = Deadline::within(limit);
        while self.records.len() < count {
            self.poll(Duration::from_millis(50));
            let read = self.records.len();
            assert!(read >= count || !deadline.passed(), "{read} of {count} records in {} after {limit:?}", self.topic);
        }
        &self.records
    }

    /// Reads one record, if one comes within `wait`.
    pub(crate) fn poll(&mut self, wait: Duration) {
        // A broker that restarts is no failure of the reader: whoever waits has a deadline.
        match self.consumer.poll(wait) {
            Some(Ok(record)) => self.records.push(Consumed::of(&record)),
            Some(Err(error)) => self.look_at(&error),
            None => {}
        }
    }

    fn look_at(&self, error: &KafkaError) {
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) {
            remind(self.consumer.client(), &self.address);
        }
    }

    /// The last stable offset of each partition.
    fn ends(&self) -> BTreeMap<i32, i64> {
        let end = |partition| {
            let (_, end) =
                self.consumer.fetch_watermarks(&self.topic, partition, CALL_LIMIT).expect("the broker answers");
            (partition, end)
        };
        (0..i32::try_from(self.partitions).expect("topics of tests are small")).map(end).collect()
    }

    fn has_reached(&self, ends: &BTreeMap<i32, i64>) -> bool {
        let positions = self.consumer.position().expect("the partitions are assigned");
        ends.iter().all(|(&partition, &end)| {
            let position = positions.find_partition(&self.topic, partition).map(|element| element.offset());
            end == 0 || matches!(position, Some(Offset::Offset(at)) if at >= end)
        })
    }
}

/// Reminds a client of the broker. It forgets it for good if one that has just started says that there is none (librdkafka
/// issue 5301).
#[expect(unsafe_code, reason = "the call has no safe form")]
fn remind<C: ClientContext>(client: &Client<C>, address: &str) {
    let address = CString::new(address).expect("an address has no null byte");
    // SAFETY: the client is alive, and the text is copied during the call.
    unsafe { rd_kafka_brokers_add(client.native_ptr(), address.as_ptr()) };
}

/// What the broker refused.
#[derive(Clone, Default)]
struct Failures(Arc<Mutex<Vec<KafkaError>>>);

impl ClientContext for Failures {}

impl ProducerContext<NoCustomPartitioner> for Failures {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(error.clone());
        }
    }
}

/// Runs a future to its end on this thread, inside a runtime or not.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut cx = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
            return output;
        }
        std::thread::park();
    }
}
