//! What the errors of the client call for.

use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use super::{Client, GroupConsumer, REQUEST};
use crate::clients::kafka::errors::{Verdict, verdict};
use crate::clients::kafka::raw::add_brokers;
use crate::component::SourceError;
use crate::record::Partition;

impl GroupConsumer {
    /// Judges an error of the main queue. Returns whether the client goes on. A client that was turned away does not:
    /// librdkafka says such a thing once and then tries on in silence, while a new client says it again, or is let in.
    pub(super) fn judge(&self, client: &Client, error: &KafkaError) -> bool {
        let settings = &self.settings;
        let (group, instance) = (&settings.group, &settings.instance);
        let code = error.rdkafka_error_code().unwrap_or(Code::Unknown);
        let is_fatal = matches!(error, KafkaError::MessageConsumptionFatal(_));
        match verdict(code) {
            Verdict::Fenced => {
                self.give_up(SourceError::Fatal(format!(
                    "another process has joined group `{group}` as `{instance}`: each needs an identity of its own"
                )));
                false
            }
            Verdict::Unreleased => {
                self.give_up(SourceError::Retry(format!(
                    "group `{group}` still knows an earlier life of `{instance}`, and lets it in when that has timed out"
                )));
                false
            }
            Verdict::Denied | Verdict::DeniedForGood if is_fatal || !self.is_answered(client, code) => {
                settings.metrics.error("denied");
                self.give_up(SourceError::Retry(format!("the brokers do not let group `{group}` read: {code}")));
                false
            }
            Verdict::Missing => {
                self.warn_of_missing();
                true
            }
            _ if is_fatal => {
                self.give_up(SourceError::Retry(format!("the consumer of group `{group}` failed: {error}")));
                false
            }
            _ => {
                if code == Code::AllBrokersDown
                    && let Ok(brokers) = settings.connection.addresses()
                {
                    add_brokers(client.client(), &brokers);
                }
                settings.metrics.error("client");
                let text = error.to_string();
                if self.seldom.now(&text) {
                    tracing::warn!(component = %settings.source, "{text}");
                }
                true
            }
        }
    }

    /// A topic or a partition is not there, which ends by itself: it comes, or the group takes it away.
    pub(super) fn warn_of_missing(&self) {
        let settings = &self.settings;
        settings.metrics.error("topic_missing");
        if self.seldom.now("topic missing") {
            let topics = &settings.topics;
            tracing::warn!(component = %settings.source, "waiting for a topic that does not exist (of {topics})");
        }
    }

    /// Whether the cluster answers although a connection was refused: one broker of several may lag behind in what it
    /// knows of us. It says nothing of what we may do.
    fn is_answered(&self, client: &Client, code: Code) -> bool {
        let is_about_the_connection = matches!(code, Code::Authentication | Code::SaslAuthenticationFailed | Code::SSL);
        is_about_the_connection
            && client.fetch_metadata(self.settings.topics.names().first().map(String::as_str), REQUEST).is_ok()
    }

    /// The client is of no more use: the run ends, and the next one makes a new client.
    pub(super) fn give_up(&self, fault: SourceError) {
        self.state().dead = true;
        self.fault(fault);
    }

    /// Says in words which records are gone. Blocks.
    pub(crate) fn describe_gap(&self, partition: &Partition, offset: i64) -> SourceError {
        let bounds =
            self.client().and_then(|client| client.fetch_watermarks(&partition.topic, partition.number, REQUEST).ok());
        let gap = match bounds {
            Some((oldest, _)) if offset >= 0 && offset < oldest => format!(
                "the oldest record now has offset {oldest}, so the {} records from {offset} on were deleted unread",
                oldest - offset
            ),
            Some((_, newest)) if offset > newest => {
                format!("the partition ends at {newest}: the topic was deleted and created again, or has lost records")
            }
            _ => "the broker does not have it".to_owned(),
        };
        SourceError::Fatal(format!(
            "partition {partition} cannot be read from offset {offset}: {gap}; decide where group `{}` goes on, and set \
             its offset there",
            self.settings.group
        ))
    }
}
