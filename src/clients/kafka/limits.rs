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
/// The limit of a topic that nobody changed, and librdkafka's own.
const DEFAULT_BYTES: usize = 1_000_000;

/// What a topic takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// The largest batch in bytes, and so the largest record.
    pub(crate) batch_bytes: usize,
    /// Records must have a key.
    pub(crate) compacted: bool,
    /// Whether the broker told us.
    pub(crate) known: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self { batch_bytes: DEFAULT_BYTES, compacted: false, known: false }
    }
}

impl Limits {
    /// Why a record would be refused, if it would be.
    pub(crate) fn refusal(&self, value: Option<&[u8]>, key: Option<&[u8]>, headers: Headers<'_>) -> Option<String> {
        if self.compacted && key.is_none() {
            return Some("the topic is compacted, so a record needs a key, and this one has none".to_owned());
        }
        // Two numbers that are nearly always far apart; headers are walked only if they could matter.
        let bytes = size(value, key, headers);
        if bytes <= self.batch_bytes {
            return None;
        }
        let bytes = bytes + headers.count() * HEADER_OVERHEAD;
        Some(format!("the record takes {bytes} bytes, and the topic takes at most {} bytes", self.batch_bytes))
    }
}

/// What a record takes in a batch, but for what each header adds.
pub(crate) fn size(value: Option<&[u8]>, key: Option<&[u8]>, headers: Headers<'_>) -> usize {
    let content = value.map_or(0, <[u8]>::len) + key.map_or(0, <[u8]>::len);
    BATCH_OVERHEAD + RECORD_OVERHEAD + content + headers.encoded().len()
}

/// What the topics of a producer take: as the broker told, or as its refusals taught where it may not be asked.
#[derive(Debug, Default)]
pub(crate) struct TopicLimits {
    topics: BTreeMap<String, Limits>,
    /// The largest batch that is still sent, once a larger one was refused.
    cap: Option<usize>,
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
        self.topics.get(topic).copied().unwrap_or_default()
    }

    /// The broker has told. What was learned before is not needed any more.
    pub(crate) fn told(&mut self, described: BTreeMap<String, Limits>) {
        self.topics.extend(described);
        if self.topics.values().all(|limits| limits.known) {
            self.cap = None;
        }
    }

    /// The largest batch that any topic takes.
    pub(crate) fn largest(&self) -> usize {
        self.topics.values().map(|limits| limits.batch_bytes).max().unwrap_or(BATCH_BYTES)
    }

    /// The largest batch that every topic takes.
    pub(crate) fn smallest(&self) -> usize {
        let limits = self.topics.values().map(|limits| limits.batch_bytes);
        limits.chain(self.cap).min().unwrap_or(BATCH_BYTES).min(BATCH_BYTES)
    }

    /// Learns from a refusal of a record of this size, sent while batches had at most `batch_bytes`. Returns whether the
    /// record itself is too large: it was, if no other had room beside it. Else the next batches are smaller, until either
    /// the topic takes them or the record is alone.
    pub(crate) fn refused(&mut self, topic: &str, size: usize, batch_bytes: usize) -> bool {
        let is_alone = size >= batch_bytes;
        if is_alone {
            let limits = self.topics.entry(topic.to_owned()).or_default();
            limits.batch_bytes = limits.batch_bytes.min(size - 1);
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
        batch_bytes: value("max.message.bytes").and_then(|bytes| bytes.parse().ok()).unwrap_or(DEFAULT_BYTES),
        compacted: value("cleanup.policy").is_some_and(|policy| policy.split(',').any(|part| part.trim() == "compact")),
        known: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::HeadersBuilder;

    #[test]
    fn a_record_is_refused_before_the_broker_would_refuse_it() {
        let limits = Limits { batch_bytes: 1000, compacted: false, known: true };
        let none = Headers::decode(&[]);
        assert_eq!(limits.refusal(Some(&[0; 800]), Some(&[0; 90]), none), None);
        let refusal = limits.refusal(Some(&[0; 900]), None, none).unwrap();
        assert!(refusal.contains("at most 1000 bytes"), "{refusal}");
        let mut headers = HeadersBuilder::default();
        headers.push(b"trace", Some(&[0; 200]));
        assert!(limits.refusal(Some(&[0; 800]), None, Headers::decode(headers.encoded())).is_some());
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
        assert!(limits.of("small").refusal(Some(&value), None, headers).is_some(), "it is not sent again");
        assert_eq!(limits.of("small").refusal(Some(&value[1..]), None, headers), None, "nothing more is refused");
        // Batches of small records are too large all the same, until they are small.
        while limits.smallest() > 20_000 {
            let smallest = limits.smallest();
            assert!(!limits.refused("small", 300, smallest));
            assert!(limits.smallest() < smallest);
        }
        // Once the broker tells, that holds.
        limits.told(BTreeMap::from([(
            "small".to_owned(),
            Limits { batch_bytes: 30_000, compacted: false, known: true },
        )]));
        assert_eq!((limits.smallest(), limits.largest()), (30_000, 30_000));
    }

    #[test]
    fn a_compacted_topic_takes_no_record_without_a_key() {
        let limits = Limits { compacted: true, ..Limits::default() };
        let none = Headers::decode(&[]);
        assert!(limits.refusal(Some(b"x"), None, none).unwrap().contains("needs a key"));
        assert_eq!(limits.refusal(Some(b"x"), Some(b""), none), None);
    }
}
