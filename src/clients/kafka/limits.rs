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
        let content = value.map_or(0, <[u8]>::len) + key.map_or(0, <[u8]>::len);
        // Two numbers that are nearly always far apart; headers are walked only if they could matter.
        let bytes = BATCH_OVERHEAD + RECORD_OVERHEAD + content + headers.encoded().len();
        if bytes <= self.batch_bytes {
            return None;
        }
        let bytes = bytes + headers.count() * HEADER_OVERHEAD;
        Some(format!("the record takes {bytes} bytes, and the topic takes at most {} bytes", self.batch_bytes))
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
    fn a_compacted_topic_takes_no_record_without_a_key() {
        let limits = Limits { compacted: true, ..Limits::default() };
        let none = Headers::decode(&[]);
        assert!(limits.refusal(Some(b"x"), None, none).unwrap().contains("needs a key"));
        assert_eq!(limits.refusal(Some(b"x"), Some(b""), none), None);
    }
}
