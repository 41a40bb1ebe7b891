//! What a topic takes: asked before records are produced, because a refusal by the broker fails the whole batch that the
//! record is in, and aborts a transaction.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, ConfigResource, OwnedResourceSpecifier, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;

use crate::record::Headers;
use crate::runtime::Runtime;

/// How long the broker may take to describe its topics. The one that tests run against never does.
const REQUEST: Duration = if cfg!(test) { Duration::from_millis(100) } else { Duration::from_secs(5) };
/// What a batch adds to its records,
const BATCH_OVERHEAD: usize = 61;
/// and a record to its key, value and headers, at most,
const RECORD_OVERHEAD: usize = 40;
/// and a header to its name and value.
const HEADER_OVERHEAD: usize = 10;
/// The largest batch that is sent, unless a topic takes less.
const BATCH_BYTES: usize = 1_000_000;
/// After a refusal batches are this many times smaller. Each step costs a rewind.
const CUT: usize = 4;
/// Below this a batch is one record.
const SMALLEST_BATCH: usize = 1024;

/// What a topic takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Limits {
    /// The largest batch in bytes, and so the largest record; `None` if nobody knows.
    pub(crate) batch_bytes: Option<usize>,
    /// Records must have a key.
    pub(crate) compacted: bool,
}

impl Limits {
    /// Why a record would be refused, if it would be. `queue_bytes` is the room that the client has for all of its records.
    pub(crate) fn refusal(
        &self,
        value: Option<&[u8]>,
        key: Option<&[u8]>,
        headers: Headers<'_>,
        queue_bytes: usize,
    ) -> Option<String> {
        if self.compacted && key.is_none() {
            return Some("the topic is compacted, so a record needs a key, and this one has none".to_owned());
        }
        // Two numbers that are nearly always far apart; headers are walked only if they could matter.
        let most = self.batch_bytes.unwrap_or(usize::MAX);
        let bytes = size(value, key, headers);
        if bytes <= most.min(queue_bytes) {
            return None;
        }
        let bytes = bytes + headers.count() * HEADER_OVERHEAD;
        Some(if bytes > most {
            format!("the record takes {bytes} bytes, and the topic takes at most {most} bytes")
        } else {
            format!(
                "the record takes {bytes} bytes, and the client's queue has room for {queue_bytes}: it is a quarter to a \
                 half of the pipeline's `memory`"
            )
        })
    }
}

/// What a record takes in a batch, but for what each header adds.
pub(crate) fn size(value: Option<&[u8]>, key: Option<&[u8]>, headers: Headers<'_>) -> usize {
    let content = value.map_or(0, <[u8]>::len) + key.map_or(0, <[u8]>::len);
    BATCH_OVERHEAD + RECORD_OVERHEAD + content + headers.encoded().len()
}

/// What the topics of a producer take: as the broker told, and as its refusals taught.
#[derive(Debug, Default)]
pub(crate) struct TopicLimits {
    topics: BTreeMap<String, Topic>,
    /// The largest batch that is still sent, once a larger one was refused.
    cap: Option<usize>,
}

/// What is known of a topic.
#[derive(Debug, Default)]
struct Topic {
    /// What the broker told.
    told: Option<Limits>,
    /// One byte less than the smallest record that was refused, until the broker tells something new. It may tell the old
    /// thing for a while: the brokers of a cluster do not learn of a change at the same time.
    learned: Option<usize>,
}

impl Topic {
    fn limits(&self) -> Limits {
        let told = self.told.unwrap_or_default();
        Limits { batch_bytes: told.batch_bytes.into_iter().chain(self.learned).min(), ..told }
    }
}

impl TopicLimits {
    /// A topic will be written.
    pub(crate) fn announce(&mut self, topic: &str) {
        self.topics.entry(topic.to_owned()).or_default();
    }

    /// Whether a topic was announced.
    pub(crate) fn has(&self, topic: &str) -> bool {
        self.topics.contains_key(topic)
    }

    /// The topics.
    pub(crate) fn names(&self) -> Vec<String> {
        self.topics.keys().cloned().collect()
    }

    /// What a topic takes, as far as it is known.
    pub(crate) fn of(&self, topic: &str) -> Limits {
        self.topics.get(topic).map(Topic::limits).unwrap_or_default()
    }

    /// The broker has told. Where that is new, what was learned before is not needed any more.
    pub(crate) fn told(&mut self, described: BTreeMap<String, Limits>) {
        let mut is_new = false;
        for (topic, limits) in described {
            let topic = self.topics.entry(topic).or_default();
            if topic.told != Some(limits) {
                *topic = Topic { told: Some(limits), learned: None };
                is_new = true;
            }
        }
        if is_new && self.topics.values().all(|topic| topic.told.is_some()) {
            self.cap = None;
        }
    }

    /// The largest batch that any topic is known to take.
    pub(crate) fn largest(&self) -> usize {
        self.known().max().unwrap_or(BATCH_BYTES)
    }

    /// The largest batch that every topic takes, as far as it is known.
    pub(crate) fn smallest(&self) -> usize {
        self.known().chain(self.cap).min().unwrap_or(BATCH_BYTES).min(BATCH_BYTES)
    }

    fn known(&self) -> impl Iterator<Item = usize> {
        self.topics.values().filter_map(|topic| topic.limits().batch_bytes)
    }

    /// Learns from a refusal of a record of this size, sent while batches had at most `batch_bytes`. Returns whether the
    /// record itself is too large: it was, if no other had room beside it. Else the next batches are smaller, until either
    /// the topic takes them or the record is alone.
    pub(crate) fn refused(&mut self, topic: &str, size: usize, batch_bytes: usize) -> bool {
        let is_alone = size >= batch_bytes;
        if is_alone {
            let topic = self.topics.entry(topic.to_owned()).or_default();
            topic.learned = Some(topic.learned.map_or(size - 1, |learned| learned.min(size - 1)));
        } else {
            let smaller = if batch_bytes / CUT < SMALLEST_BATCH { 1 } else { batch_bytes / CUT };
            self.cap = Some(self.cap.map_or(smaller, |cap| cap.min(smaller)));
        }
        is_alone
    }
}

/// Asks the broker what topics take. Those that it says nothing of are left out.
///
/// # Errors
/// If it does not answer, or this client may not ask.
pub(crate) async fn describe(
    config: &ClientConfig,
    topics: &[String],
    runtime: &Runtime,
) -> Result<BTreeMap<String, Limits>, String> {
    let admin: AdminClient<DefaultClientContext> = config.create().map_err(|error| error.to_string())?;
    let asked: Vec<_> = topics.iter().map(|topic| ResourceSpecifier::Topic(topic)).collect();
    let options = AdminOptions::new().request_timeout(Some(REQUEST));
    let answer = admin.describe_configs(&asked, &options).await;
    // Dropping it waits for its thread.
    runtime.blocking(move || drop(admin)).await;
    let mut described = BTreeMap::new();
    let mut failure = None;
    for resource in answer.map_err(|error| error.to_string())? {
        match resource {
            Ok(resource) => {
                if let OwnedResourceSpecifier::Topic(topic) = &resource.specifier {
                    described.insert(topic.clone(), read(&resource));
                }
            }
            Err(code) => failure = Some(code.to_string()),
        }
    }
    match failure {
        Some(failure) if described.is_empty() => Err(failure),
        _ => Ok(described),
    }
}

fn read(topic: &ConfigResource) -> Limits {
    let value = |name: &str| topic.get(name).and_then(|entry| entry.value.as_deref());
    Limits {
        batch_bytes: value("max.message.bytes").and_then(|bytes| bytes.parse().ok()),
        compacted: value("cleanup.policy").is_some_and(|policy| policy.split(',').any(|part| part.trim() == "compact")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::HeadersBuilder;

    /// More than any record here takes.
    const ROOM: usize = 16 << 20;

    fn at_most(bytes: usize) -> Limits {
        Limits { batch_bytes: Some(bytes), compacted: false }
    }

    #[test]
    fn a_record_is_refused_before_the_broker_would_refuse_it() {
        let limits = at_most(1000);
        let none = Headers::decode(&[]);
        assert_eq!(limits.refusal(Some(&[0; 800]), Some(&[0; 90]), none, ROOM), None);
        let refusal = limits.refusal(Some(&[0; 900]), None, none, ROOM).unwrap();
        assert!(refusal.contains("at most 1000 bytes"), "{refusal}");
        let mut headers = HeadersBuilder::default();
        headers.push(b"trace", Some(&[0; 200]));
        assert!(limits.refusal(Some(&[0; 800]), None, Headers::decode(headers.encoded()), ROOM).is_some());
    }

    #[test]
    fn where_no_limit_is_known_only_the_queue_is_one() {
        let (limits, none, value) = (Limits::default(), Headers::decode(&[]), vec![0; 2_000_000]);
        assert_eq!(limits.refusal(Some(&value), None, none, ROOM), None);
        let refusal = limits.refusal(Some(&value), None, none, 1 << 20).unwrap();
        assert!(refusal.contains("queue has room for 1048576"), "{refusal}");
    }

    #[test]
    fn rule_14_a_refusal_teaches_what_the_broker_would_not_tell() {
        // The topic takes 20 kB, and a record of 100 kB comes, again and again.
        let mut limits = TopicLimits::default();
        limits.announce("small");
        let mut rewinds = 0;
        while !limits.refused("small", 100_000, limits.smallest()) {
            rewinds += 1;
        }
        assert_eq!(rewinds, 2, "it is alone soon");
        let headers = Headers::decode(&[]);
        let value = vec![0; 100_000 - BATCH_OVERHEAD - RECORD_OVERHEAD];
        assert!(limits.of("small").refusal(Some(&value), None, headers, ROOM).is_some(), "it is not sent again");
        assert_eq!(limits.of("small").refusal(Some(&value[1..]), None, headers, ROOM), None, "nothing more is refused");
        // Batches of small records are too large all the same, until they are small.
        while limits.smallest() > 20_000 {
            let smallest = limits.smallest();
            assert!(!limits.refused("small", 300, smallest));
            assert!(limits.smallest() < smallest);
        }
        // Once the broker tells, that holds.
        limits.told(BTreeMap::from([("small".to_owned(), at_most(30_000))]));
        assert_eq!((limits.smallest(), limits.largest()), (30_000, 30_000));
    }

    #[test]
    fn what_a_refusal_taught_holds_until_the_broker_tells_something_new() {
        let mut limits = TopicLimits::default();
        let told = |bytes| BTreeMap::from([("small".to_owned(), at_most(bytes))]);
        limits.told(told(30_000));
        assert!(limits.refused("small", 25_000, 1));
        limits.told(told(30_000));
        assert_eq!(limits.of("small").batch_bytes, Some(24_999), "that broker has not heard of the change yet");
        limits.told(told(20_000));
        limits.told(told(40_000));
        assert_eq!(limits.of("small").batch_bytes, Some(40_000));
    }

    #[test]
    fn a_compacted_topic_takes_no_record_without_a_key() {
        let limits = Limits { compacted: true, ..Limits::default() };
        let none = Headers::decode(&[]);
        assert!(limits.refusal(Some(b"x"), None, none, ROOM).unwrap().contains("needs a key"));
        assert_eq!(limits.refusal(Some(b"x"), Some(b""), none, ROOM), None);
    }
}
