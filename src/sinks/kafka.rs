//! Records into a topic of a Kafka cluster.
//!
//! All Kafka sinks of a pipeline that have the same connection share one producer, and in a transactional pipeline one
//! transaction. Records are copied into the producer's queue in the order of the writes; a full queue is waited for
//! without holding a worker. The answer for a batch comes when all replicas have its records.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::mem::replace;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use rdkafka::error::RDKafkaErrorCode as Code;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::sync::oneshot;
use vrl::path::{OwnedSegment, OwnedValuePath, parse_value_path};

use crate::clients::kafka::config::{Connection, Options, Role, Sasl, Tls, is_topic_name, system};
use crate::clients::kafka::producer::{self, Enqueuing, Live, Opening, ProducerSettings, SharedProducer};
use crate::clients::kafka::raw::{Outgoing, Topic, partition_of};
use crate::clients::kafka::transaction::KafkaTransaction;
use crate::clients::kafka::{PipelineClients, PipelineGroups};
use crate::codecs::Codec;
use crate::component::{
    Acknowledges, Answer, BuildContext, BuildError, CheckContext, CompiledSink, KAFKA_TRANSACTION, Place, Problem,
    Settled, Sink, SinkConfig, SinkError, SinkTraits, Spanned, Touched,
};
use crate::record::{Batch, BodyFormat, Record, json};
use crate::runtime::Runtime;

/// How long one request to the broker may take.
const REQUEST: Duration = Duration::from_secs(5);
/// Limits of topics are asked for again when a run starts, unless that was done just now for another sink,
const LIMITS_AGE_AT_START: Duration = Duration::from_secs(5);
/// and now and then while it goes on.
const LIMITS_AGE: Duration = Duration::from_mins(10);

/// Writes records to a topic of a Kafka cluster.
///
/// ```yaml
/// kafka: { brokers: "localhost:9092", topic: totals, key: .user }
/// ```
///
/// Key, headers and timestamp of a record are kept. Keys go to the partitions that Kafka's own clients choose. A record
/// that the topic does not take (too large, or without a key where the topic is compacted) is rejected before it is sent. Its
/// size counts as it is before compression.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct KafkaConfig {
    /// The brokers to ask first, as `host:port, host:port`; `embedded` for a cluster inside this process, which is for
    /// trying things out: nothing in it survives the process.
    brokers: Spanned<String>,
    /// The topic. Weir does not create it; a broker that is set to create topics does.
    topic: Spanned<String>,
    /// The field of the body that becomes the key. Where it is missing or null, the record has no key. If this is left out,
    /// records keep the key that they came with.
    key: Option<Spanned<String>>,
    /// How bodies are encoded.
    #[serde(default)]
    codec: Codec,
    /// How batches are compressed on their way and at rest.
    #[serde(default)]
    compression: Compression,
    /// Encryption; none if left out.
    tls: Option<Tls>,
    /// Authentication; none if left out.
    sasl: Option<Sasl>,
    /// Further settings of librdkafka, by its own names.
    #[serde(default)]
    options: Options,
}

/// How batches are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Compression {
    /// Not at all.
    #[default]
    None,
    /// By gzip: small and slow.
    Gzip,
    /// By snappy: fast.
    Snappy,
    /// By LZ4: fast.
    Lz4,
    /// By Zstandard: small, and faster than gzip.
    Zstd,
}

impl Compression {
    fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }
}

impl SinkConfig for KafkaConfig {
    const NAME: &'static str = "kafka";

    fn compile(self, cx: &mut CheckContext) -> Option<CompiledSink> {
        let before = cx.problems.len();
        if !is_topic_name(&self.topic.value) {
            cx.report(
                Problem::error(self.topic.span, format!("Kafka takes no topic of such a name: `{}`", self.topic.value))
                    .help("a name has letters, digits, `.`, `_` and `-`, and at most 249 of them"),
            );
        }
        let key = self.key.as_ref().and_then(|key| KeyPath::parse(key, cx));
        let right = cx.problems.len() == before;
        let connection =
            Connection::check(Role::Producer, &self.brokers, self.tls.as_ref(), self.sasl.as_ref(), &self.options, cx)?;
        if !right {
            return None;
        }
        cx.writes.push(Place { system: system(&self.brokers), name: self.topic.value.clone() });
        let (topic, codec, compression) = (self.topic.value, self.codec, self.compression);
        Some(CompiledSink {
            traits: SinkTraits {
                acknowledges: Acknowledges::Durable,
                transactional_with: if connection.is_embedded() { &[] } else { &[KAFKA_TRANSACTION] },
                transaction_timeout: Some(connection.transaction_timeout()),
                idempotent_by_key: false,
                per_lane: true,
                carries_headers: true,
            },
            touched: Touched { reads: self.key.iter().map(|key| key.value.clone()).collect(), writes: BTreeSet::new() },
            build: Arc::new(move |cx| {
                let producer = shared_producer(&connection, cx);
                producer.announce(&topic);
                let transaction = shared_transaction(&producer, cx)?;
                Ok(Box::new(KafkaSink {
                    producer,
                    transaction,
                    name: topic.clone(),
                    key: key.clone(),
                    codec,
                    compression,
                    runtime: cx.runtime.clone(),
                    topic: None,
                    opening: None,
                    partitions: 0,
                    turn: 0,
                    scratch: Vec::new(),
                }))
            }),
        })
    }
}

fn shared_producer(connection: &Connection, cx: &BuildContext) -> Arc<SharedProducer> {
    cx.clients.shared(PipelineClients::default).producer(connection.identity(), || {
        SharedProducer::new(ProducerSettings {
            connection: connection.clone(),
            pipeline: Arc::clone(&cx.pipeline),
            transactional: cx.transactional,
            memory: cx.memory,
            runtime: cx.runtime.clone(),
        })
    })
}

fn shared_transaction(
    producer: &Arc<SharedProducer>,
    cx: &BuildContext,
) -> Result<Option<Arc<KafkaTransaction>>, BuildError> {
    if !cx.transactional {
        return Ok(None);
    }
    let groups = cx.clients.shared(PipelineGroups::default);
    let clients = cx.clients.shared(PipelineClients::default);
    let make = || KafkaTransaction::new(Arc::clone(producer), groups, &cx.instance);
    let transaction = clients.transaction(producer, make).map_err(BuildError)?;
    cx.clients.set_transaction(Arc::clone(&transaction) as _);
    Ok(Some(transaction))
}

struct KafkaSink {
    producer: Arc<SharedProducer>,
    transaction: Option<Arc<KafkaTransaction>>,
    name: String,
    key: Option<KeyPath>,
    codec: Codec,
    compression: Compression,
    runtime: Runtime,
    topic: Option<Topic<producer::Context>>,
    /// Which partitions the client of `topic` has opened. None in a transaction, of which nothing stays if a part of it is
    /// refused.
    opening: Option<Arc<Opening>>,
    /// How many partitions the topic had when the run began.
    partitions: usize,
    /// Where the next record without a key goes.
    turn: usize,
    scratch: Vec<u8>,
}

impl KafkaSink {
    /// The client to write with. In a transaction it opens the transaction.
    fn live(&self) -> Result<Arc<Live>, SinkError> {
        match &self.transaction {
            Some(transaction) => transaction.begin(),
            None => self
                .producer
                .current()
                .filter(|live| !live.has_failed())
                .ok_or_else(|| SinkError::Outage("the producer has failed".to_owned())),
        }
    }

    /// The handle of the topic; a new one if the client was replaced.
    fn topic(&mut self, live: &Live) -> Result<&Topic<producer::Context>, SinkError> {
        if self.topic.as_ref().is_none_or(|topic| !Arc::ptr_eq(topic.producer(), live.raw())) {
            // As Java's default: keys go where other clients would send them.
            let settings = [("partitioner", "murmur2_random"), ("compression.codec", self.compression.name())];
            let topic = Topic::new(live.raw(), &self.name, &settings).map_err(SinkError::Retry)?;
            self.topic = Some(topic);
            let opens = self.transaction.is_none() && self.partitions > 0;
            self.opening = opens.then(|| live.opening(&self.name, self.partitions));
        }
        Ok(self.topic.as_ref().expect("made above"))
    }

    async fn start(&mut self) -> Result<(), SinkError> {
        self.producer.create_embedded_topic(&self.name).map_err(SinkError::Retry)?;
        self.producer.refresh_limits(LIMITS_AGE_AT_START).await;
        let live = if self.transaction.is_some() {
            // The transaction has made it, and taken its identity.
            self.producer.current().ok_or_else(|| SinkError::Retry("the transaction was not fenced yet".to_owned()))?
        } else {
            let producer = Arc::clone(&self.producer);
            self.runtime.blocking(move || producer.fresh(None)).await.map_err(SinkError::Retry)?
        };
        if let Some(old) = self.topic.take_if(|topic| !Arc::ptr_eq(topic.producer(), live.raw())) {
            // It may be the last that holds its client, which then waits for its threads.
            self.runtime.blocking(move || drop(old)).await;
        }
        self.topic(&live)?;
        self.partitions = self.ask(Arc::clone(&live)).await?;
        // Anew, now that the number of partitions is known.
        self.topic = None;
        self.topic(&live).map(drop)
    }

    /// Asks the brokers whether the topic is there and may be written, and says why if they turn us away. Returns how many
    /// partitions it has.
    async fn ask(&self, live: Arc<Live>) -> Result<usize, SinkError> {
        let (producer, name) = (Arc::clone(&self.producer), self.name.clone());
        self.runtime.blocking(move || is_there(&producer, &live, &name)).await
    }

    /// Hands a batch to the client. While there are partitions that hold no record of the client yet, the first record of
    /// each goes alone, and is waited for.
    async fn send(&mut self, live: &Arc<Live>, batch: &Batch) -> Result<Answer, SinkError> {
        self.topic(live)?;
        let mut refused = Vec::new();
        let sent = match self.opening.clone().filter(|opening| !opening.is_over()) {
            None => self.enqueue(live, batch, (0..batch.len()).map(Placed::by_the_client)).await?,
            Some(opening) => {
                let mut left = self.place(batch);
                loop {
                    let first = first_of_each(&opening, &left);
                    if first.is_empty() {
                        break;
                    }
                    let settled = outcome(self.enqueue(live, batch, first.iter().copied()).await?.answer()).await?;
                    for placed in first {
                        if settled.refused.iter().all(|refusal| refusal.record != placed.record) {
                            opening.open(placed.partition);
                        }
                        left.retain(|other| other.record != placed.record);
                    }
                    refused.extend(settled.refused);
                }
                self.enqueue(live, batch, left.into_iter()).await?
            }
        };
        let answer = sent.answer();
        Ok(Box::pin(async move {
            let mut settled = outcome(answer).await?;
            settled.refused.append(&mut refused);
            settled.refused.sort_unstable_by_key(|refusal| refusal.record);
            Ok(settled)
        }))
    }

    /// Where each record of a batch goes. One without a key goes anywhere: to each partition in turn.
    fn place(&mut self, batch: &Batch) -> Vec<Placed> {
        let partitions = self.partitions;
        let place = |(number, record)| {
            let key = key_of(self.key.as_ref(), batch, record);
            let partition = key.as_ref().map_or(self.turn, |key| partition_of(key, partitions));
            if key.is_none() {
                self.turn = (self.turn + 1) % partitions.max(1);
            }
            Placed { record: number, partition, is_given: key.is_none() }
        };
        batch.records().iter().enumerate().map(place).collect()
    }

    /// Enqueues records of a batch, in their order.
    async fn enqueue(
        &mut self,
        live: &Arc<Live>,
        batch: &Batch,
        records: impl ExactSizeIterator<Item = Placed>,
    ) -> Result<Enqueuing, SinkError> {
        let limits = self.producer.limits(&self.name);
        let mut enqueuing = live.open(records.len());
        for placed in records {
            let at = placed.record;
            let record = &batch.records()[at];
            let value = match encoded(self.codec, batch, record, &mut self.scratch) {
                Ok(value) => value,
                Err(error) => {
                    enqueuing.refuse(at, error);
                    continue;
                }
            };
            let key = key_of(self.key.as_ref(), batch, record);
            let key = key.as_deref();
            let headers = batch.headers(record);
            if let Some(refusal) = limits.refusal(value, key, headers, live.queue_bytes()) {
                enqueuing.refuse(at, refusal);
                continue;
            }
            let partition = placed.given();
            let outgoing = Outgoing { partition, value, key, headers, timestamp: record.timestamp.0 };
            let topic = self.topic.as_ref().expect("made above");
            loop {
                let mut outcome = enqueuing.enqueue(topic, outgoing);
                if outcome == Err(Code::QueueFull) {
                    let room = live.room().notified();
                    tokio::pin!(room);
                    room.as_mut().enable();
                    // There may have been room just before we listened.
                    outcome = enqueuing.enqueue(topic, outgoing);
                    if outcome == Err(Code::QueueFull) && !live.has_failed() {
                        room.await;
                        continue;
                    }
                }
                match outcome {
                    Ok(()) => break,
                    Err(Code::MessageSizeTooLarge) => {
                        enqueuing.refuse(at, "the record is larger than the client sends".to_owned());
                        break;
                    }
                    // The transaction has failed, or the client, and what is under way tells why.
                    Err(code @ (Code::State | Code::Fatal | Code::QueueFull)) => {
                        if code == Code::Fatal {
                            live.set_failed();
                        }
                        enqueuing.fail(if code == Code::QueueFull { Code::State } else { code });
                        return Ok(enqueuing);
                    }
                    Err(code) => return Err(producer::failed(code)),
                }
            }
        }
        Ok(enqueuing)
    }
}

/// A record of a batch, and where it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Placed {
    record: usize,
    partition: usize,
    /// Whether the client is told the partition; else its partitioner finds the same.
    is_given: bool,
}

impl Placed {
    /// Where the client's partitioner says.
    fn by_the_client(record: usize) -> Self {
        Self { record, partition: 0, is_given: false }
    }

    fn given(self) -> Option<i32> {
        i32::try_from(self.partition).ok().filter(|_| self.is_given)
    }
}

/// The records that go first, of those that are left, in order: one into each partition that is closed.
fn first_of_each(opening: &Opening, left: &[Placed]) -> Vec<Placed> {
    let mut taken = vec![false; opening.partitions()];
    let is_first =
        |placed: &&Placed| !opening.is_open(placed.partition) && !replace(&mut taken[placed.partition], true);
    left.iter().filter(is_first).copied().collect()
}

/// The key that a record is sent with.
fn key_of<'a>(path: Option<&KeyPath>, batch: &'a Batch, record: &Record) -> Option<Cow<'a, [u8]>> {
    match path {
        Some(path) => path.of(batch, record),
        None => batch.key(record).map(Cow::Borrowed),
    }
}

/// What became of records, once all of them have their fates.
async fn outcome(answer: oneshot::Receiver<Result<Settled, SinkError>>) -> Result<Settled, SinkError> {
    answer.await.unwrap_or_else(|_| Err(SinkError::Outage("the producer was closed".to_owned())))
}

/// The value to send; `None` for a tombstone.
fn encoded<'a>(
    codec: Codec,
    batch: &'a Batch,
    record: &Record,
    scratch: &'a mut Vec<u8>,
) -> Result<Option<&'a [u8]>, String> {
    match record.format {
        BodyFormat::Absent => return Ok(None),
        // These are written as they stand.
        BodyFormat::Verbatim => return Ok(Some(batch.body(record))),
        BodyFormat::Json if codec == Codec::Json => return Ok(Some(batch.body(record))),
        BodyFormat::Json | BodyFormat::Raw => {}
    }
    scratch.clear();
    codec.encode(batch, record, scratch)?;
    Ok(Some(scratch))
}

/// How many partitions the topic has, if it exists. A broker that creates topics does it when it is asked this. Blocks.
fn is_there(producer: &SharedProducer, live: &Live, name: &str) -> Result<usize, SinkError> {
    let metadata = live.raw().client().fetch_metadata(Some(name), REQUEST).map_err(|error| {
        let why = live.turned_away().unwrap_or_else(|| error.to_string());
        SinkError::Retry(format!("the brokers do not answer, so it is not known whether topic `{name}` exists: {why}"))
    })?;
    live.is_let_in();
    let Some(topic) = metadata.topics().iter().find(|topic| topic.name() == name) else {
        return Err(SinkError::Retry(format!("the brokers know no topic `{name}` yet")));
    };
    match topic.error().map(Code::from) {
        None if producer.may_write(name) == Some(false) => Err(denied(name)),
        None => Ok(topic.partitions().len()),
        Some(Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::LeaderNotAvailable) => {
            Err(SinkError::Retry(format!("topic `{name}` does not exist yet; Weir does not create it")))
        }
        Some(Code::TopicAuthorizationFailed) => Err(denied(name)),
        Some(code) => Err(SinkError::Retry(format!("topic `{name}` is not ready: {code}"))),
    }
}

/// A right is missing that can be given while we wait.
fn denied(name: &str) -> SinkError {
    SinkError::Retry(format!("not allowed to write to topic `{name}`"))
}

impl Sink for KafkaSink {
    fn open(&mut self) -> BoxFuture<'_, Result<(), SinkError>> {
        Box::pin(self.start())
    }

    fn write(&mut self, batch: Arc<Batch>) -> BoxFuture<'_, Result<Answer, SinkError>> {
        Box::pin(async move {
            if let Some(live) = self.producer.current().filter(|live| live.turned_away().is_some()) {
                self.ask(live).await?;
            }
            let live = self.live()?;
            self.send(&live, &batch).await
        })
    }

    fn refresh(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(self.producer.refresh_limits(LIMITS_AGE_AT_START))
    }

    /// An answer means that all replicas have the records, so there is nothing to flush; what a topic takes is looked up
    /// here now and then.
    fn flush(&mut self) -> BoxFuture<'_, Result<(), SinkError>> {
        Box::pin(async move {
            self.producer.refresh_limits(LIMITS_AGE).await;
            Ok(())
        })
    }
}

/// A path to the field that becomes the key.
#[derive(Debug, Clone)]
struct KeyPath {
    field: String,
    below: OwnedValuePath,
}

impl KeyPath {
    fn parse(text: &Spanned<String>, cx: &mut CheckContext) -> Option<Self> {
        let path = parse_value_path(&text.value).ok().filter(|_| text.value.starts_with('.'));
        let mut segments = path.into_iter().flat_map(|path| path.segments);
        if let Some(OwnedSegment::Field(field)) = segments.next() {
            return Some(Self { field: field.to_string(), below: segments.collect::<Vec<_>>().into() });
        }
        cx.report(
            Problem::error(text.span, format!("`{}` is not a path to a field", text.value))
                .help("write it as `.user` or `.user.id`"),
        );
        None
    }

    /// The key of a record: a string as it reads, any other value as its JSON text.
    fn of<'a>(&self, batch: &'a Batch, record: &Record) -> Option<Cow<'a, [u8]>> {
        let fields = batch.fields(record)?;
        let field = &fields[json::find(batch.bytes(), fields, &self.field)?];
        let value = batch.slice(field.value);
        if self.below.segments.is_empty() {
            return key_text(value);
        }
        let mut tree = &serde_json::from_slice::<serde_json::Value>(value).ok()?;
        for segment in &self.below.segments {
            tree = match segment {
                OwnedSegment::Field(name) => tree.get(name.as_str())?,
                OwnedSegment::Index(at) => {
                    let list = tree.as_array()?;
                    let at = if *at < 0 { list.len().checked_add_signed(*at)? } else { usize::try_from(*at).ok()? };
                    list.get(at)?
                }
            };
        }
        key_text(tree.to_string().as_bytes()).map(|key| Cow::Owned(key.into_owned()))
    }
}

fn key_text(value: &[u8]) -> Option<Cow<'_, [u8]>> {
    match value {
        b"null" => None,
        [b'"', inside @ .., b'"'] => Some(json::unescape(inside)),
        _ => Some(Cow::Borrowed(value)),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr as Error};

    use super::*;
    use crate::clients::kafka::config::OptionValue;
    use futures::StreamExt;

    use crate::clients::kafka::fixture::{Process, SOON, batch, check, draft, here, run, unique, write};
    use crate::clients::kafka::raw::MockBroker;
    use crate::component::BoxSink;
    use crate::record::Draft;
    use crate::sources::kafka::tests as sources;

    pub(crate) fn config(topic: &str) -> KafkaConfig {
        KafkaConfig {
            brokers: here("embedded".to_owned()),
            topic: here(topic.to_owned()),
            key: None,
            codec: Codec::Raw,
            compression: Compression::None,
            tls: None,
            sasl: None,
            options: Options::new(),
        }
    }

    impl KafkaConfig {
        /// Writes to other brokers than the embedded ones.
        pub(crate) fn set_brokers(&mut self, brokers: &str) {
            self.brokers = here(brokers.to_owned());
        }

        /// With settings of librdkafka.
        pub(crate) fn set_options(&mut self, options: Options) {
            self.options = options;
        }
    }

    pub(crate) fn compiled(config: KafkaConfig) -> CompiledSink {
        let mut cx = check();
        config.compile(&mut cx).unwrap_or_else(|| panic!("{:?}", cx.problems))
    }

    pub(crate) async fn sink_to(process: &Process, config: KafkaConfig) -> BoxSink {
        let mut sink = process.sink(&compiled(config));
        sink.open().await.unwrap();
        sink
    }

    #[test]
    fn a_key_must_be_a_path_to_a_field() {
        for wrong in ["user", ".", "", ".user[", "%key"] {
            let mut cx = check();
            let wrong = KafkaConfig { key: Some(here(wrong.to_owned())), ..config("x") };
            assert!(wrong.compile(&mut cx).is_none());
            assert!(cx.problems[0].message.contains("is not a path to a field"), "{:?}", cx.problems);
        }
        let compiled = compiled(KafkaConfig { key: Some(here(".user".to_owned())), ..config("x") });
        assert_eq!(compiled.touched.reads, BTreeSet::from([".user".to_owned()]));
    }

    #[test]
    fn the_key_is_the_text_of_the_last_field_of_that_name() {
        let body = r#"{"u":"first","\u0075":{"id":7,"n\u0061me":"ada","tags":["a","b\"c"],"gone":null},"n":12.50,"s":"a\u0062"}"#;
        let batch = Codec::Json.decode(batch(&[draft(body)]), &mut Vec::new());
        let key = |path: &str| {
            let path = KeyPath::parse(&here(path.to_owned()), &mut check()).unwrap();
            path.of(&batch, &batch.records()[0]).map(|key| String::from_utf8(key.into_owned()).unwrap())
        };
        assert_eq!(key(".u.id").as_deref(), Some("7"));
        assert_eq!(key(".u.name").as_deref(), Some("ada"));
        assert_eq!(key(".u.tags[-1]").as_deref(), Some("b\"c"));
        assert_eq!(key(".n").as_deref(), Some("12.50"));
        assert_eq!(key(".s").as_deref(), Some("ab"));
        assert_eq!(key(".u.gone"), None);
        assert_eq!(key(".other"), None);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_full_queue_is_waited_for() {
        let process = Process::new("one", false);
        let mut config = config(&unique("full"));
        let few: OptionValue = serde_json::from_str("10").unwrap();
        config.options.insert("queue.buffering.max.messages".to_owned(), here(few));
        let mut sink = sink_to(&process, config).await;
        let texts: Vec<String> = (0..500).map(|n| n.to_string()).collect();
        write(&mut sink, &texts.iter().map(|text| draft(text)).collect::<Vec<_>>()).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_too_large_is_refused_alone() {
        let process = Process::new("one", false);
        let mut sink = sink_to(&process, config(&unique("large"))).await;
        // It would never fit into the queue of the client, and so be waited for without an end.
        let large = "x".repeat(9 << 20);
        let batch = Arc::new(batch(&[draft("a"), draft(&large), Draft { key: Some(b"k"), ..draft("b") }]));
        let settled = sink.write(batch).await.unwrap().await.unwrap();
        assert_eq!(settled.refused.iter().map(|refusal| refusal.record).collect::<Vec<_>>(), [1]);
        assert!(settled.refused[0].error.contains("queue has room for 8388608"), "{}", settled.refused[0].error);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn where_no_limit_is_known_none_is_made_up() {
        let process = Process::new("one", false);
        let mut sink = sink_to(&process, config(&unique("large"))).await;
        write(&mut sink, &[draft("a"), draft(&"x".repeat(3_000_000))]).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn rule_14_a_size_that_the_broker_refuses_is_learned() {
        let broker = MockBroker::start().unwrap();
        broker.create_topic("small", 1);
        let too_large =
            || broker.fail_next(RDKafkaApiKey::Produce as i16, &[Error::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE]);
        let process = Process::new("one", false);
        let mut config = config("small");
        config.set_brokers(&broker.address());
        let mut sink = sink_to(&process, config).await;
        // A batch of several, none of which may be to blame.
        let several = Arc::new(batch(&[draft("a"), draft("b")]));
        too_large();
        let outcome = sink.write(Arc::clone(&several)).await.err();
        assert!(matches!(outcome, Some(SinkError::Rewind(_))), "{outcome:?}");
        sink.open().await.unwrap();
        assert_eq!(sink.write(several).await.unwrap().await.unwrap().refused, []);
        // A record beside which there is no room now.
        let large = "x".repeat(300_000);
        let alone = Arc::new(batch(&[draft(&large)]));
        too_large();
        let outcome = sink.write(Arc::clone(&alone)).await.unwrap().await;
        assert!(matches!(outcome, Err(SinkError::Rewind(_))), "what stands behind it must not be written: {outcome:?}");
        // It is not even sent again, and what is smaller is.
        sink.open().await.unwrap();
        let refused = sink.write(alone).await.unwrap().await.unwrap().refused;
        assert!(refused[0].error.contains("the topic takes at most"), "{}", refused[0].error);
        write(&mut sink, &[draft(&large[..299_000])]).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_right_that_librdkafka_gives_up_for_is_waited_for() {
        let broker = MockBroker::start().unwrap();
        broker.create_topic("out", 1);
        let process = Process::new("one", false);
        let mut config = config("out");
        config.set_brokers(&broker.address());
        let mut sink = sink_to(&process, config).await;
        let denied = [Error::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED];
        broker.fail_next(RDKafkaApiKey::Produce as i16, &denied);
        let one = Arc::new(batch(&[draft("a")]));
        let outcome = match sink.write(Arc::clone(&one)).await {
            Ok(answer) => answer.await.err(),
            Err(error) => Some(error),
        };
        assert!(matches!(outcome, Some(SinkError::Outage(_))), "{outcome:?}");
        // The right is there: the next run has a client that is let in.
        sink.open().await.unwrap();
        assert_eq!(sink.write(one).await.unwrap().await.unwrap().refused, []);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn rule_15_keys_go_where_java_clients_send_them() {
        let (topic, process) = (unique("keys"), Process::new("one", false));
        let mut sink = sink_to(&process, config(&topic)).await;
        // Kafka's own tests say which number each of these texts has; what matters is its rest by four partitions.
        for (key, hash) in
            [("foobar", -790_332_482_i32), ("21", -973_932_308), ("a-little-bit-long-string", -985_981_536)]
        {
            let expected = (hash & i32::MAX) % 4;
            write(&mut sink, &[Draft { key: Some(key.as_bytes()), ..draft(key) }]).await;
            let (mut source, _) = process.source(&sources::compiled(sources::config(&unique("group"), &topic)));
            let (cx, _requests) = run();
            let mut stream = source.stream(cx);
            let at = loop {
                let pulled = tokio::time::timeout(SOON, stream.next()).await.unwrap().unwrap().unwrap();
                let batch = pulled.batch;
                if batch.records().iter().any(|record| batch.key(record) == Some(key.as_bytes())) {
                    break batch.origin().number;
                }
            };
            assert_eq!(at, expected, "{key}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn rule_17_pipelines_share_no_client() {
        let connection = {
            let mut check = check();
            let brokers = here("embedded".to_owned());
            Connection::check(Role::Producer, &brokers, None, None, &Options::new(), &mut check).unwrap()
        };
        let (one, other) = (Process::new("one", false), Process::new("one", false));
        let of = |process: &Process| shared_producer(&connection, &process.context("out"));
        assert!(Arc::ptr_eq(&of(&one), &of(&one)));
        assert!(!Arc::ptr_eq(&of(&one), &of(&other)));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn sinks_of_one_pipeline_share_a_producer() {
        let process = Process::new("one", false);
        let _sinks = [process.sink(&compiled(config("a"))), process.sink(&compiled(config("b")))];
        let compiled = compiled(config("c"));
        let cx = process.context("out");
        let mut check = check();
        let brokers = here("embedded".to_owned());
        let connection = Connection::check(Role::Producer, &brokers, None, None, &Options::new(), &mut check).unwrap();
        let shared = shared_producer(&connection, &cx);
        drop((compiled.build)(&cx).unwrap());
        assert_eq!(Arc::strong_count(&shared), 4, "two sinks, the registry, and this test");
    }
}
