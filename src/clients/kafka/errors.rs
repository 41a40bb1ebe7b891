//! What each error of a broker, or of librdkafka, calls for: one table for both directions.
//!
//! No error makes a record vanish. A record is refused only where the broker says that it will never take this very
//! record; whatever a person can mend outside (a password, a right, a topic) is waited for, loudly; and what is not known
//! is done again from the last commit.

use std::time::Duration;

use rdkafka::error::RDKafkaErrorCode as Code;

/// Fenced twice within this time: another process uses the same identity.
pub(super) const FENCED_AGAIN: Duration = Duration::from_mins(1);

/// What an error calls for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It, or the batch that it is in, is larger than the topic takes.
    Size,
    /// One record among others may be to blame, and the broker does not always say which: librdkafka then gives all records
    /// of the request the same code.
    Suspect,
    /// This client may not do what it must: its credentials or its rights have to be mended outside.
    Denied,
    /// As denied, and librdkafka gives the client up: a new one has to ask.
    DeniedForGood,
    /// The topic or the partition is not there (any more).
    Missing,
    /// The position that was asked for is not there (any more).
    Gap,
    /// Another process has taken this one's identity.
    Fenced,
    /// The group still knows an earlier life of this process, and lets it in when that has timed out.
    Unreleased,
    /// The client is of no more use, and a new one may be.
    Broken,
    /// Anything else: it passes, and what did not happen is done again.
    Passing,
}

/// The table. What is not in it passes.
const TABLE: &[(Verdict, &[Code])] = &[
    (Verdict::Size, &[Code::MessageSizeTooLarge, Code::MessageBatchTooLarge]),
    (
        Verdict::Suspect,
        &[
            Code::InvalidRecord,
            Code::InvalidTimestamp,
            Code::InvalidDifferentRecord,
            Code::InvalidMessage,
            Code::InvalidMessageSize,
            Code::UnsupportedForMessageFormat,
        ],
    ),
    (
        Verdict::Denied,
        &[
            Code::TopicAuthorizationFailed,
            Code::GroupAuthorizationFailed,
            Code::DelegationTokenAuthorizationFailed,
            Code::DelegationTokenExpired,
            Code::Authentication,
            Code::SaslAuthenticationFailed,
            Code::UnsupportedSASLMechanism,
            Code::IllegalSASLState,
            Code::SecurityDisabled,
            Code::SSL,
        ],
    ),
    (Verdict::DeniedForGood, &[Code::ClusterAuthorizationFailed, Code::TransactionalIdAuthorizationFailed]),
    (
        Verdict::Missing,
        &[Code::UnknownTopicOrPartition, Code::UnknownTopic, Code::UnknownPartition, Code::UnknownTopicId],
    ),
    (Verdict::Gap, &[Code::AutoOffsetReset, Code::OffsetOutOfRange, Code::LogTruncation]),
    (Verdict::Fenced, &[Code::Fenced, Code::ProducerFenced, Code::InvalidProducerEpoch, Code::FencedInstanceId]),
    (Verdict::Unreleased, &[Code::UnreleasedInstanceId]),
    (Verdict::Broken, &[Code::Fatal, Code::GaplessGuarantee]),
];

/// What an error calls for.
pub(crate) fn verdict(code: Code) -> Verdict {
    let row = TABLE.iter().find(|(_, codes)| codes.contains(&code));
    row.map_or(Verdict::Passing, |(verdict, _)| *verdict)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_code_is_decided_twice() {
        let mut seen = BTreeSet::new();
        for code in TABLE.iter().flat_map(|(_, codes)| *codes) {
            assert!(seen.insert(*code as i32), "{code:?}");
        }
    }

    #[test]
    fn only_what_the_broker_says_of_a_record_refuses_it() {
        let refusing = |code: &Code| verdict(*code) == Verdict::Size;
        let all = TABLE.iter().flat_map(|(_, codes)| *codes);
        let codes: Vec<_> = all.filter(|code| refusing(code)).copied().collect();
        assert_eq!(codes, [Code::MessageSizeTooLarge, Code::MessageBatchTooLarge]);
        for passing in [Code::BrokerTransportFailure, Code::NotEnoughReplicas, Code::PurgeQueue, Code::Unknown] {
            assert_eq!(verdict(passing), Verdict::Passing);
        }
    }
}
