//! Dead letters in a topic: read by nobody's membership, from their beginning to what is there now; and what consumer
//! groups have committed of them, which tells what was replayed.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde::Deserialize;
use tokio::sync::Notify;

use super::config::{Connection, Options, RECEIVE_BYTES, Role, Sasl, Tls};
use super::raw::{Message, PartitionQueue};
use crate::clients::letters::{Keeper, Place, Visit, only};
use crate::clock::Clock;
use crate::component::node::{Key, Kind, Node, Style, read};
use crate::component::{CheckContext, Span, Spanned};
use crate::delivery::Letter;
use crate::expr::Schema;
use crate::record::{Headers, HeadersBuilder, Timestamp};

/// How long the brokers may take to answer a question,
const REQUEST: Duration = Duration::from_secs(10);
/// and to tell what a group has committed: a transaction that a killed process left open ends within its own time-out.
const SETTLED: Duration = Duration::from_mins(2);
/// How long nothing at all may come while letters are read.
const SILENCE: Duration = Duration::from_secs(60);
/// Between two looks at the queues.
const LOOK: Duration = Duration::from_millis(5);
/// How many letters are taken from a queue at once.
const LETTERS: usize = 500;

/// The topic of a dead letter.
#[derive(Clone)]
pub(crate) struct LetterTopic {
    connection: Connection,
    topic: String,
    /// The config of the connection, for a source.
    config: Node,
}

impl fmt::Debug for LetterTopic {
    /// Without the config, which may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LetterTopic").field("topic", &self.topic).finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct TopicConfig {
    brokers: Spanned<String>,
    topic: String,
    tls: Option<Tls>,
    sasl: Option<Sasl>,
    #[serde(default)]
    options: Options,
}

type Client = BaseConsumer<Quiet>;

/// A client of which a person at a terminal hears only what fails.
struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, _: RDKafkaLogLevel, _: &str, text: &str) {
        tracing::debug!("{text}");
    }
}

impl ConsumerContext for Quiet {}

impl LetterTopic {
    /// The topic that a sink of this config writes.
    ///
    /// # Errors
    /// If it is in the memory of another process.
    pub(crate) fn of(config: &Node) -> Result<Self, String> {
        let mut config = only(config, &["brokers", "topic", "tls", "sasl", "options"]);
        let TopicConfig { brokers, topic, tls, sasl, options } =
            read(&config).map_err(|_| "its `brokers` and `topic` cannot be read".to_owned())?;
        let connect = |options: &Options| {
            let mut cx = CheckContext::new("dead_letter", Span::default(), Schema::default());
            Connection::check(Role::Consumer, &brokers, tls.as_ref(), sasl.as_ref(), options, &mut cx)
        };
        // Some settings are for who writes only.
        let fits =
            |(name, value): &(String, _)| connect(&Options::from([(name.clone(), Spanned::clone(value))])).is_some();
        let options: Options = options.into_iter().filter(fits).collect();
        let connection = connect(&options).ok_or("its brokers cannot be reached as it says")?;
        if connection.is_embedded() {
            return Err(
                "the embedded Kafka is in the memory of the process that runs the pipeline, and its dead letters \
                        end with it: name a real broker, or a file"
                    .to_owned(),
            );
        }
        config = only(&config, &["brokers", "tls", "sasl", "options"]);
        if let Kind::Map(entries) = &mut config.kind {
            for (_, node) in entries.iter_mut().filter(|(key, _)| key.name == "options") {
                let names: Vec<&str> = options.keys().map(String::as_str).collect();
                *node = only(node, &names);
            }
        }
        Ok(Self { connection, topic, config })
    }

    /// The config of a `kafka` source that reads it as a member of a group.
    pub(crate) fn source_config(&self, group: &str) -> Node {
        let node = |kind| Node { span: self.config.span, kind };
        let text = |text: &str| {
            let offsets = vec![(0, self.config.span.start)];
            node(Kind::Scalar { text: text.to_owned(), style: Style::Quoted, offsets, secret: false })
        };
        let mut config = self.config.clone();
        if let Kind::Map(entries) = &mut config.kind {
            let topics = node(Kind::List(vec![text(&self.topic)]));
            for (name, value) in [("group", text(group)), ("topics", topics), ("codec", text("raw"))] {
                entries.push((Key { name: name.to_owned(), span: self.config.span }, value));
            }
        }
        config
    }

    /// What it is called.
    pub(crate) fn keeper(&self) -> Keeper {
        Keeper::Topic(self.topic.clone())
    }

    /// The name of the topic.
    pub(crate) fn name(&self) -> &str {
        &self.topic
    }

    fn client(&self, group: &str) -> Result<Arc<Client>, String> {
        let defaults = [
            ("fetch.wait.max.ms", "20".to_owned()),
            ("fetch.queue.backoff.ms", "5".to_owned()),
            ("queued.max.messages.kbytes", "16384".to_owned()),
            ("receive.message.max.bytes", RECEIVE_BYTES.to_string()),
        ];
        let fixed = [
            ("group.id", group.to_owned()),
            ("enable.auto.commit", "false".to_owned()),
            ("enable.auto.offset.store", "false".to_owned()),
            // Letters that the topic has deleted meanwhile are gone, and are no reason to fail.
            ("auto.offset.reset", "earliest".to_owned()),
            ("isolation.level", "read_committed".to_owned()),
            ("enable.partition.eof", "true".to_owned()),
            ("allow.auto.create.topics", "false".to_owned()),
        ];
        let config = self.connection.client_config(&defaults, &fixed)?;
        config.create_with_context(Quiet).map(Arc::new).map_err(|error| error.to_string())
    }

    /// The numbers of the topic's partitions.
    fn partitions(&self, client: &Client) -> Result<Vec<i32>, String> {
        let name = &self.topic;
        let metadata = client.fetch_metadata(Some(name), REQUEST).map_err(|error| {
            format!("the brokers do not answer, so the dead letters in topic `{name}` cannot be read: {error}")
        })?;
        let topic = metadata.topics().iter().find(|topic| topic.name() == name);
        match topic.map(|topic| (topic, topic.error().map(Code::from))) {
            Some((topic, None)) => {
                Ok(topic.partitions().iter().map(rdkafka::metadata::MetadataPartition::id).collect())
            }
            Some((_, Some(Code::UnknownTopicOrPartition | Code::UnknownTopic))) | None => {
                Err(format!("topic `{name}`, which the dead letters go to, does not exist"))
            }
            Some((_, Some(code))) => Err(format!("the dead letters in topic `{name}` cannot be read: {code}")),
        }
    }

    /// Shows every letter, partition by partition.
    ///
    /// # Errors
    /// If the topic cannot be read to its end.
    pub(crate) fn scan(&self, clock: Clock, visit: &mut Visit<'_>) -> Result<(), String> {
        let client = self.client("weir-dlq-reader")?;
        let starts = self.partitions(&client)?.into_iter().map(|number| (number, Offset::Beginning)).collect();
        self.read(&client, starts, clock, visit)
    }

    /// Shows the letter at a place, and what stands behind it in its partition.
    ///
    /// # Errors
    /// If the topic cannot be read.
    pub(crate) fn scan_from(&self, place: Place, clock: Clock, visit: &mut Visit<'_>) -> Result<(), String> {
        let client = self.client("weir-dlq-reader")?;
        if !self.partitions(&client)?.contains(&place.partition) {
            return Ok(());
        }
        self.read(&client, BTreeMap::from([(place.partition, Offset::Offset(place.offset))]), clock, visit)
    }

    fn read(
        &self,
        client: &Arc<Client>,
        starts: BTreeMap<i32, Offset>,
        clock: Clock,
        visit: &mut Visit<'_>,
    ) -> Result<(), String> {
        let cannot = |error: String| format!("the dead letters in topic `{}` cannot be read: {error}", self.topic);
        let wake = Arc::new(Notify::new());
        let mut queues = VecDeque::new();
        let mut assignment = TopicPartitionList::new();
        for (number, start) in starts {
            let queue = PartitionQueue::split(client, &self.topic, number, &wake);
            queues.push_back((number, queue.ok_or_else(|| cannot("a queue cannot be made".to_owned()))?));
            assignment.add_partition_offset(&self.topic, number, start).map_err(|error| cannot(error.to_string()))?;
        }
        client.assign(&assignment).map_err(|error| cannot(error.to_string()))?;
        let mut heard = clock.now();
        while let Some((number, queue)) = queues.front() {
            let messages = queue.drain(LETTERS);
            // Errors of the client come here; those that it survives are waited out.
            if let Some(Err(error)) = client.poll(if messages.is_empty() { LOOK } else { Duration::ZERO })
                && error.rdkafka_error_code().is_some_and(is_final)
            {
                return Err(cannot(error.to_string()));
            }
            let mut is_read = false;
            for message in messages.iter() {
                heard = clock.now();
                match message.error() {
                    None if is_read => {}
                    None => {
                        let place = Place { partition: *number, offset: message.offset() };
                        if visit(place, letter(message)) == ControlFlow::Break(()) {
                            return Ok(());
                        }
                    }
                    Some(Code::PartitionEOF) => is_read = true,
                    Some(_) => return Err(cannot(message.error_text())),
                }
            }
            if is_read {
                drop(messages);
                queues.pop_front();
            }
            if clock.now().duration_since(heard) > SILENCE {
                return Err(cannot(format!("nothing came for {} s", SILENCE.as_secs())));
            }
        }
        Ok(())
    }

    /// What a group has committed, by partition. Waits until its transactions are settled.
    ///
    /// # Errors
    /// If the brokers do not tell.
    pub(crate) fn committed(&self, group: &str) -> Result<BTreeMap<i32, i64>, String> {
        let client = self.client(group)?;
        let mut asked = TopicPartitionList::new();
        for number in self.partitions(&client)? {
            asked.add_partition(&self.topic, number);
        }
        let told = client
            .committed_offsets(asked, SETTLED)
            .map_err(|error| format!("the brokers do not tell what group `{group}` has committed: {error}"))?;
        let mut committed = BTreeMap::new();
        for element in told.elements() {
            if let Err(error) = element.error() {
                return Err(format!("the brokers do not tell what group `{group}` has committed: {error}"));
            }
            if let Offset::Offset(offset) = element.offset() {
                committed.insert(element.partition(), offset);
            }
        }
        Ok(committed)
    }

    /// The names of all groups that begin with this, each with the ids of its members.
    ///
    /// # Errors
    /// If the brokers do not tell.
    pub(crate) fn groups(&self, prefix: &str) -> Result<Vec<(String, Vec<String>)>, String> {
        let client = self.client("weir-dlq-reader")?;
        let list = client
            .fetch_group_list(None, REQUEST)
            .map_err(|error| format!("the brokers do not tell which consumer groups there are: {error}"))?;
        let groups = list.groups().iter().filter(|group| group.name().starts_with(prefix));
        Ok(groups
            .map(|group| {
                let members = group.members().iter().map(|member| member.id().to_owned()).collect();
                (group.name().to_owned(), members)
            })
            .collect())
    }

    /// The first offset of each partition that the topic still has.
    ///
    /// # Errors
    /// If the brokers do not tell.
    pub(crate) fn beginnings(&self) -> Result<BTreeMap<i32, i64>, String> {
        let client = self.client("weir-dlq-reader")?;
        let mut beginnings = BTreeMap::new();
        for number in self.partitions(&client)? {
            let (low, _) = client
                .fetch_watermarks(&self.topic, number, REQUEST)
                .map_err(|error| format!("the brokers do not tell where partition {number} begins: {error}"))?;
            beginnings.insert(number, low);
        }
        Ok(beginnings)
    }

    /// Sets a group that has no members to these offsets.
    ///
    /// # Errors
    /// If the brokers do not take them.
    pub(crate) fn commit(&self, group: &str, offsets: &BTreeMap<i32, i64>) -> Result<(), String> {
        let client = self.client(group)?;
        let mut list = TopicPartitionList::new();
        for (number, offset) in offsets {
            list.add_partition_offset(&self.topic, *number, Offset::Offset(*offset))
                .map_err(|error| error.to_string())?;
        }
        client
            .commit(&list, CommitMode::Sync)
            .map_err(|error| format!("group `{group}` does not take offsets: {error}"))
    }
}

fn letter(message: Message<'_>) -> Result<Letter, crate::delivery::NotALetter> {
    let mut headers = HeadersBuilder::default();
    message.headers(&mut headers);
    let timestamp = Timestamp(message.timestamp().unwrap_or_default());
    Letter::from_headers(message.payload(), message.key(), Headers::decode(headers.encoded()), timestamp)
}

/// Whether an error of the client will not pass by itself.
fn is_final(code: Code) -> bool {
    matches!(
        code,
        Code::Authentication
            | Code::SaslAuthenticationFailed
            | Code::TopicAuthorizationFailed
            | Code::GroupAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::UnknownTopicOrPartition
            | Code::UnknownTopic
            | Code::Fatal
    )
}
