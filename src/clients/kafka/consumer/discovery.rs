//! Topics that match a pattern, found while the source runs.

use std::collections::BTreeSet;
use std::time::Duration;

use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaResult;
use rdkafka::metadata::MetadataTopic;

use super::{Client, GroupConsumer, REQUEST};
use crate::clock::Instant;
use crate::component::SourceError;

/// How often it is looked which topics there are, unless the options say otherwise.
const LOOK: Duration = Duration::from_secs(5);

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// When it was last looked.
    looked: Option<Instant>,
    /// The topics that match now.
    matching: BTreeSet<String>,
    /// Those that were there when this process looked for the first time. Later ones start at their beginning.
    first: Option<BTreeSet<String>>,
}

impl Found {
    /// A new client is subscribed to nothing yet.
    pub(super) fn forget_subscription(&mut self) {
        self.looked = None;
        self.matching.clear();
    }
}

/// Whether a topic that matches is one of the pipeline's own outputs.
enum Own {
    Yes,
    No,
    /// It has the name of one, and it is not known whether it is in the same cluster.
    Unknown,
}

impl GroupConsumer {
    /// Subscribes to the topics that are named, if there are any; those that match a pattern follow.
    pub(super) fn subscribe(&self, client: &Client) -> Result<(), String> {
        let names: Vec<&str> = self.settings.topics.names().iter().map(String::as_str).collect();
        if names.is_empty() {
            return Ok(());
        }
        client.subscribe(&names).map_err(|error| error.to_string())
    }

    /// How many partitions the topics have that there are now; `None` if nobody says. Blocks.
    pub(super) fn count_partitions(&self, client: &Client) -> Option<usize> {
        let topics = &self.settings.topics;
        let (names, is_one) = (topics.names(), topics.names().len() == 1 && !topics.has_patterns());
        let metadata = client.fetch_metadata(names.first().map(String::as_str).filter(|_| is_one), REQUEST).ok()?;
        let matching = topics.matching(metadata.topics().iter().map(MetadataTopic::name));
        let is_read =
            |topic: &&MetadataTopic| names.iter().any(|name| name == topic.name()) || matching.contains(topic.name());
        Some(metadata.topics().iter().filter(is_read).map(|topic| topic.partitions().len()).sum())
    }

    /// Looks now and then which topics there are, and subscribes to those that match. On the polling thread. Returns whether
    /// the client goes on.
    pub(super) fn look_for_topics(&self, client: &Client) -> bool {
        let settings = &self.settings;
        if !settings.topics.has_patterns() || !self.is_time_to_look() {
            return true;
        }
        let metadata = match client.fetch_metadata(None, REQUEST) {
            // A broker that has just started may know of no broker and no topic.
            Ok(metadata) if metadata.brokers().is_empty() => Err("the cluster has no broker yet".to_owned()),
            answer => answer.map_err(|error| error.to_string()),
        };
        let metadata = match metadata {
            Ok(metadata) => metadata,
            Err(error) => {
                if self.seldom.now("topics unknown") {
                    tracing::warn!(component = %settings.source, "cannot ask which topics there are: {error}");
                }
                return true;
            }
        };
        let there = metadata.topics().iter().filter(|topic| topic.error().is_none()).map(MetadataTopic::name);
        let mut matching = settings.topics.matching(there);
        let known = self.state().found.matching.clone();
        for topic in matching.difference(&known).cloned().collect::<Vec<_>>() {
            match self.own_output(client, &topic) {
                Own::No => {}
                Own::Unknown => {
                    matching.remove(&topic);
                }
                Own::Yes => {
                    let pattern = settings.topics.pattern_of(&topic).unwrap_or_default();
                    self.give_up(SourceError::Fatal(format!(
                        "the pattern `{pattern}` matches topic `{topic}`, which this pipeline itself writes: its records would \
                         be read again, without end; narrow the pattern, or write under another name"
                    )));
                    return false;
                }
            }
        }
        self.take_over(client, matching, &known)
    }

    fn is_time_to_look(&self) -> bool {
        let interval = self.settings.connection.option("topic.metadata.refresh.interval.ms");
        let interval = interval.and_then(|millis| millis.parse().ok()).map_or(LOOK, Duration::from_millis);
        let now = self.settings.runtime.clock().now();
        let mut state = self.state();
        let is_time = state.found.looked.is_none_or(|looked| now.duration_since(looked) >= interval);
        if is_time {
            state.found.looked = Some(now);
        }
        is_time
    }

    fn take_over(&self, client: &Client, matching: BTreeSet<String>, known: &BTreeSet<String>) -> bool {
        let settings = &self.settings;
        let is_first = self.state().found.first.is_none();
        if matching == *known && !(is_first && matching.is_empty()) {
            return true;
        }
        for topic in matching.difference(known) {
            tracing::info!(component = %settings.source, %topic, "topic found");
        }
        for topic in known.difference(&matching) {
            tracing::warn!(component = %settings.source, %topic, "topic gone");
        }
        if matching.is_empty() && self.seldom.now("no topic matches") {
            tracing::warn!(component = %settings.source, "no topic matches {} yet", settings.topics);
        }
        {
            let mut state = self.state();
            state.found.first.get_or_insert_with(|| matching.clone());
            state.found.matching = matching;
        }
        if let Err(error) = self.subscribe_again(client) {
            self.give_up(SourceError::Retry(format!("cannot subscribe to the topics that match: {error}")));
            return false;
        }
        true
    }

    /// All topics that are read: those that are named, and those that match a pattern now.
    pub(super) fn subscribed(&self) -> Vec<String> {
        let matching = &self.state().found.matching;
        self.settings.topics.names().iter().chain(matching).cloned().collect()
    }

    /// Subscribes to all topics that are read.
    pub(super) fn subscribe_again(&self, client: &Client) -> KafkaResult<()> {
        let all = self.subscribed();
        if all.is_empty() {
            client.unsubscribe();
            return Ok(());
        }
        client.subscribe(&all.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// The topics whose start is decided together with this one's; `None` if it was found later than the others.
    pub(super) fn starting_together(&self, topic: &str) -> Option<Vec<String>> {
        if self.settings.topics.names().iter().any(|name| name == topic) {
            return Some(vec![topic.to_owned()]);
        }
        let state = self.state();
        state.found.first.as_ref().filter(|first| first.contains(topic)).map(|first| first.iter().cloned().collect())
    }

    /// Whether a topic is written by this pipeline. What can be known without asking is refused by the plan already.
    fn own_output(&self, client: &Client, topic: &str) -> Own {
        let Some(clients) = self.settings.outputs.upgrade() else { return Own::No };
        let mut own = Own::No;
        for producer in clients.writers_of(topic) {
            if producer.settings().connection.has_brokers_of(&self.settings.connection) {
                return Own::Yes;
            }
            match (client.client().fetch_cluster_id(REQUEST), producer.cluster_id()) {
                (Some(from), Some(to)) if from == to => return Own::Yes,
                (Some(_), Some(_)) => {}
                _ => own = Own::Unknown,
            }
        }
        own
    }
}
