//! What the errors of the client call for.

use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use super::{Client, GroupConsumer, REQUEST};
use crate::clients::kafka::errors::{FENCED_AGAIN, Verdict, verdict};
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
                let what = format!("another process has joined group `{group}` as `{instance}`");
                self.give_up(if self.fenced_again() {
                    SourceError::Fatal(format!("{what}, twice in a minute: each needs an identity of its own"))
                } else {
                    SourceError::Retry(format!("{what}, or the group has forgotten that this one had"))
                });
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

    /// Notes that the group has given this identity to another member. Returns whether that happened a moment ago already.
    ///
    /// Once says little: a coordinator that ends in the middle of a rebalance forgets who had joined, and its successor
    /// knows the identity by a member of an earlier life.
    fn fenced_again(&self) -> bool {
        let now = self.settings.runtime.clock().now();
        let former = self.state().fenced.replace(now);
        former.is_some_and(|at| now.duration_since(at) < FENCED_AGAIN)
    }

    /// A topic or a partition is not there, which ends by itself: it comes, or the group takes it away.
    pub(super) fn warn_of_missing(&self) {
        let settings = &self.settings;
        settings.metrics.error("topic_missing");
        self.state().topic_missing = true;
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
        let mut state = self.state();
        state.dead = true;
        state.set_fault(fault);
        drop(state);
        self.wake.notify_one();
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

#[cfg(test)]
mod tests {
    use rdkafka::bindings::rd_kafka_resp_err_t as Error;
    use rdkafka::types::RDKafkaApiKey;

    use crate::clients::kafka::fixture::{Process, SOON, pull, run, unique, write};
    use crate::clients::kafka::fixture::{bodies, draft};
    use crate::clients::kafka::raw::MockBroker;
    use crate::component::{BoxSource, SourceError};
    use crate::sinks::kafka::tests::{config as sink_config, sink_to};
    use crate::sources::kafka::tests::{compiled, config};

    /// Reads until the broker says that another member has the identity.
    async fn fenced(broker: &MockBroker, source: &mut BoxSource) -> SourceError {
        let (cx, _requests) = run();
        assert_eq!(bodies(&pull(source, cx, 1).await.unwrap()), ["only"]);
        broker.fail_next(RDKafkaApiKey::Heartbeat as i16, &[Error::RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID]);
        let (cx, _requests) = run();
        let failed = async { pull(source, cx, usize::MAX).await.unwrap_err() };
        tokio::time::timeout(SOON, failed).await.expect("the next heartbeat tells")
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn rule_9_a_member_that_is_fenced_joins_again_and_gives_up_if_it_is_fenced_at_once() {
        let broker = MockBroker::start().unwrap();
        broker.create_topic("in", 1);
        let process = Process::new("one", false);
        let mut to = sink_config("in");
        to.set_brokers(&broker.address());
        write(&mut sink_to(&process, to).await, &[draft("only")]).await;

        let mut from = config(&unique("group"), "in");
        from.set_brokers(&broker.address());
        let (mut source, _) = process.source(&compiled(from));
        let first = fenced(&broker, &mut source).await;
        assert!(matches!(&first, SourceError::Retry(why) if why.contains("one")), "{first}");
        let second = fenced(&broker, &mut source).await;
        assert!(matches!(&second, SourceError::Fatal(why) if why.contains("twice in a minute")), "{second}");
    }
}
