//! What a Kafka source and a Kafka sink are configured with alike, and how it becomes librdkafka's settings.
//!
//! Both config structs name the fields `brokers`, `tls`, `sasl` and `options` themselves: a flattened struct would lose
//! the place of a mistake in the file.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaConfRes;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Deserialize;
use serde::de::{Deserializer, Visitor};

use super::embedded;
use crate::component::{CheckContext, Problem, Spanned};

/// The largest answer of a broker that is received, and the largest that librdkafka can be told.
pub(super) const RECEIVE_BYTES: i32 = i32::MAX;

/// The value of `brokers` that names the cluster inside this process.
pub(crate) const EMBEDDED: &str = "embedded";

/// After how long the broker aborts a transaction, unless the options say otherwise.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest name of a topic, a group or an instance that Kafka takes.
const NAME_LIMIT: usize = 249;

/// A text that appears in no log and no error.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

impl JsonSchema for Secret {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Secret".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        String::json_schema(generator)
    }
}

/// Encryption of the connection. `tls: {}` trusts the system's certificates.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The certificates to trust, as a PEM file.
    pub ca: Option<PathBuf>,
    /// The client's own certificate, as a PEM file.
    pub certificate: Option<PathBuf>,
    /// The client's private key, as a PEM file.
    pub key: Option<PathBuf>,
    /// The password of the private key.
    pub key_password: Option<Secret>,
    /// Whether to check the broker's certificate and name.
    #[serde(default = "yes")]
    pub verify: bool,
}

fn yes() -> bool {
    true
}

/// How the client proves who it is.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sasl {
    /// The mechanism, by Kafka's name for it.
    pub mechanism: Mechanism,
    /// The user.
    pub username: String,
    /// The password.
    pub password: Secret,
}

/// A SASL mechanism.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum Mechanism {
    /// The password itself; use it with TLS only.
    #[serde(rename = "PLAIN")]
    Plain,
    /// A challenge, hashed with SHA-256.
    #[serde(rename = "SCRAM-SHA-256")]
    ScramSha256,
    /// A challenge, hashed with SHA-512.
    #[serde(rename = "SCRAM-SHA-512")]
    ScramSha512,
}

impl Mechanism {
    fn name(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

/// Where a group begins in a topic of which it has no offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StartAt {
    /// At the oldest record.
    #[default]
    Earliest,
    /// Behind the newest record.
    Latest,
}

/// The protocol by which the members of the group agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// Every broker speaks it. Partitions move one by one while the others are read on, and a process that restarts within
    /// ten seconds keeps its own.
    #[default]
    Classic,
    /// As `classic`, but whenever a process joins or leaves, all of them give all partitions up and share them out anew.
    /// For a group that has members which know no other way, such as old clients during a migration.
    ClassicEager,
    /// Brokers from 4.0 on: the broker itself assigns the partitions, and its own settings say how long a session lasts.
    /// A process that was killed is let in again only when its session has timed out (45 s by the broker's default).
    Consumer,
}

/// Further settings of librdkafka, by its own names.
pub type Options = BTreeMap<String, Spanned<OptionValue>>;

/// The value of one of librdkafka's settings: text, a number or a boolean.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct OptionValue(String);

impl fmt::Debug for OptionValue {
    /// Without content: some settings are secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[value]")
    }
}

impl<'de> serde::de::Deserialize<'de> for OptionValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Scalar;
        impl Visitor<'_> for Scalar {
            type Value = OptionValue;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, a number or a boolean")
            }

            fn visit_str<E>(self, value: &str) -> Result<OptionValue, E> {
                Ok(OptionValue(value.to_owned()))
            }

            fn visit_bool<E>(self, value: bool) -> Result<OptionValue, E> {
                Ok(OptionValue(value.to_string()))
            }

            fn visit_i64<E>(self, value: i64) -> Result<OptionValue, E> {
                Ok(OptionValue(value.to_string()))
            }

            fn visit_u64<E>(self, value: u64) -> Result<OptionValue, E> {
                Ok(OptionValue(value.to_string()))
            }

            fn visit_f64<E>(self, value: f64) -> Result<OptionValue, E> {
                Ok(OptionValue(value.to_string()))
            }
        }
        deserializer.deserialize_any(Scalar)
    }
}

impl JsonSchema for OptionValue {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "OptionValue".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schemars::json_schema!({ "type": ["string", "number", "boolean"] })
    }
}

/// Which of the two clients a setting is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A source.
    Consumer,
    /// A sink.
    Producer,
}

/// Settings that Weir must hold itself, and why.
const OWNED: &[(&str, Option<Role>, &str)] = &[
    ("bootstrap.servers", None, "name the brokers in `brokers`"),
    ("metadata.broker.list", None, "name the brokers in `brokers`"),
    ("security.protocol", None, "it follows from `tls` and `sasl`"),
    ("ssl.ca.location", None, "name the file in `tls.ca`"),
    ("ssl.certificate.location", None, "name the file in `tls.certificate`"),
    ("ssl.key.location", None, "name the file in `tls.key`"),
    ("ssl.key.password", None, "it belongs in `tls.key_password`"),
    ("enable.ssl.certificate.verification", None, "say it in `tls.verify`"),
    ("sasl.mechanism", None, "say it in `sasl.mechanism`"),
    ("sasl.mechanisms", None, "say it in `sasl.mechanism`"),
    ("sasl.username", None, "it belongs in `sasl.username`"),
    ("sasl.password", None, "it belongs in `sasl.password`"),
    ("log.queue", None, "the client's log goes to Weir's own"),
    ("statistics.interval.ms", None, "the lag is computed from these statistics"),
    ("test.mock.num.brokers", None, "say `brokers: embedded`"),
    ("group.id", Some(Role::Consumer), "name the group in `group`"),
    ("group.instance.id", Some(Role::Consumer), "each process has an identity that survives its restarts"),
    ("group.protocol", Some(Role::Consumer), "say it in `protocol`"),
    ("partition.assignment.strategy", Some(Role::Consumer), "it follows from `protocol`"),
    ("enable.auto.commit", Some(Role::Consumer), "offsets are committed when the sinks hold the records"),
    ("auto.commit.interval.ms", Some(Role::Consumer), "offsets are committed when the sinks hold the records"),
    ("enable.auto.offset.store", Some(Role::Consumer), "offsets are committed when the sinks hold the records"),
    (
        "auto.offset.reset",
        Some(Role::Consumer),
        "say where a new group begins in `start_at`; a lost range is never skipped",
    ),
    ("isolation.level", Some(Role::Consumer), "records of aborted transactions are never read"),
    ("enable.partition.eof", Some(Role::Consumer), "a source that follows has no end"),
    ("allow.auto.create.topics", Some(Role::Consumer), "a misspelt topic would be created"),
    ("transactional.id", Some(Role::Producer), "it follows from the group, the pipeline and the process"),
    ("enable.idempotence", Some(Role::Producer), "a retry must neither repeat nor reorder records"),
    ("acks", Some(Role::Producer), "a record counts as written when all replicas hold it"),
    ("request.required.acks", Some(Role::Producer), "a record counts as written when all replicas hold it"),
    (
        "message.timeout.ms",
        Some(Role::Producer),
        "a record waits as long as it must; giving up would lose or reorder it",
    ),
    (
        "delivery.timeout.ms",
        Some(Role::Producer),
        "a record waits as long as it must; giving up would lose or reorder it",
    ),
    ("delivery.report.only.error", Some(Role::Producer), "every record is waited for"),
    (
        "partitioner",
        Some(Role::Producer),
        "keys go to the partitions that Java clients choose, so that topics can be joined",
    ),
    ("compression.codec", Some(Role::Producer), "say it in `compression`"),
    ("compression.type", Some(Role::Producer), "say it in `compression`"),
    ("message.max.bytes", Some(Role::Producer), "it follows from the topic's own limit"),
];

/// How to reach a cluster, checked.
#[derive(Debug, Clone)]
pub struct Connection {
    brokers: String,
    settings: BTreeMap<String, OptionValue>,
    options: BTreeMap<String, OptionValue>,
}

impl Connection {
    /// Checks what the types could not, without I/O; reports each mistake at its place.
    pub(crate) fn check(
        role: Role,
        brokers: &Spanned<String>,
        tls: Option<&Tls>,
        sasl: Option<&Sasl>,
        options: &Options,
        cx: &mut CheckContext,
    ) -> Option<Self> {
        let before = cx.problems.len();
        if brokers.value.split(',').all(|broker| broker.trim().is_empty()) {
            cx.report(
                Problem::error(brokers.span, "`brokers` names no broker")
                    .help("list them as `host:port, host:port`, or say `embedded` for a cluster inside this process"),
            );
        }
        let mut settings = BTreeMap::new();
        let mut set = |key: &str, value: String| {
            settings.insert(key.to_owned(), OptionValue(value));
        };
        set("security.protocol", protocol(tls, sasl).to_owned());
        if let Some(tls) = tls {
            let files = [
                ("ssl.ca.location", &tls.ca),
                ("ssl.certificate.location", &tls.certificate),
                ("ssl.key.location", &tls.key),
            ];
            for (key, path) in files {
                if let Some(path) = path {
                    set(key, path.to_string_lossy().into_owned());
                }
            }
            if let Some(Secret(password)) = &tls.key_password {
                set("ssl.key.password", password.clone());
            }
            if !tls.verify {
                set("enable.ssl.certificate.verification", "false".to_owned());
            }
            if tls.certificate.is_some() != tls.key.is_some() {
                let problem = "`tls` needs `certificate` and `key` together, or neither";
                cx.report(Problem::error(cx.span, problem));
            }
        }
        if let Some(sasl) = sasl {
            set("sasl.mechanism", sasl.mechanism.name().to_owned());
            set("sasl.username", sasl.username.clone());
            set("sasl.password", sasl.password.0.clone());
            if tls.is_none() && sasl.mechanism == Mechanism::Plain {
                cx.report(
                    Problem::warning(cx.span, "`PLAIN` sends the password in clear text")
                        .help("add `tls: {}`, or use `SCRAM-SHA-512`"),
                );
            }
        }
        for (name, value) in options {
            check_option(role, name, value, cx);
        }
        if cx.problems[before..].iter().any(|problem| problem.severity == crate::component::Severity::Error) {
            return None;
        }
        let options = options.iter().map(|(name, value)| (name.clone(), value.value.clone())).collect();
        Some(Self { brokers: brokers.value.clone(), settings, options })
    }

    /// Whether the cluster is the one inside this process.
    pub(crate) fn is_embedded(&self) -> bool {
        self.brokers == EMBEDDED
    }

    /// The brokers to ask first.
    pub(crate) fn addresses(&self) -> Result<String, String> {
        if self.is_embedded() { embedded::address() } else { Ok(self.brokers.clone()) }
    }

    /// librdkafka's settings for this connection. `defaults` give way to the user's options, `fixed` do not.
    pub(crate) fn client_config(
        &self,
        defaults: &[(&str, String)],
        fixed: &[(&str, String)],
    ) -> Result<ClientConfig, String> {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", self.addresses()?)
            .set("client.id", "weir")
            .set("socket.keepalive.enable", "true");
        // A broker that comes back is found soon; the default backs off to ten seconds.
        config.set("reconnect.backoff.max.ms", "2000");
        config.set_log_level(RDKafkaLogLevel::Info);
        for (key, value) in defaults {
            config.set(*key, value);
        }
        for (key, OptionValue(value)) in self.options.iter().chain(&self.settings) {
            config.set(key, value);
        }
        for (key, value) in fixed {
            config.set(*key, value);
        }
        Ok(config)
    }

    /// One of the user's options.
    pub(crate) fn option(&self, name: &str) -> Option<&str> {
        self.options.get(name).map(|OptionValue(value)| value.as_str())
    }

    /// After how long the broker aborts a transaction that is still open.
    pub(crate) fn transaction_timeout(&self) -> Duration {
        let millis = self.option("transaction.timeout.ms").and_then(|text| text.parse().ok());
        millis.map_or(TRANSACTION_TIMEOUT, Duration::from_millis)
    }

    /// Whether both name the same brokers.
    pub(crate) fn has_brokers_of(&self, other: &Self) -> bool {
        self.brokers == other.brokers
    }

    /// Two connections with the same identity can share a client.
    pub(crate) fn identity(&self) -> ConnectionId {
        ConnectionId(self.brokers.clone(), self.settings.clone(), self.options.clone())
    }
}

/// What makes two connections the same.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ConnectionId(String, BTreeMap<String, OptionValue>, BTreeMap<String, OptionValue>);

/// Where topics are, for who compares what is read with what is written.
pub(crate) fn system(brokers: &str) -> String {
    format!("kafka at {brokers}")
}

/// Whether Kafka takes this name for a topic.
pub(crate) fn is_topic_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    !name.is_empty() && name.len() <= NAME_LIMIT && name != "." && name != ".." && name.chars().all(allowed)
}

/// Who a member of a group is: unique among the sources of all processes, and of the characters that Kafka takes.
pub(crate) fn instance_name(instance: &str, pipeline: &str, source: &str) -> String {
    let allowed = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
    format!("{instance}.{pipeline}.{source}").chars().map(allowed).take(NAME_LIMIT).collect()
}

fn protocol(tls: Option<&Tls>, sasl: Option<&Sasl>) -> &'static str {
    match (tls, sasl) {
        (None, None) => "plaintext",
        (Some(_), None) => "ssl",
        (None, Some(_)) => "sasl_plaintext",
        (Some(_), Some(_)) => "sasl_ssl",
    }
}

/// librdkafka knows the names and the ranges of its settings; asking it makes no connection.
fn check_option(role: Role, name: &str, value: &Spanned<OptionValue>, cx: &mut CheckContext) {
    let owned = OWNED.iter().find(|(owned, of, _)| *owned == name && of.is_none_or(|of| of == role));
    if let Some((_, _, why)) = owned {
        cx.report(Problem::error(value.span, format!("`{name}` is set by Weir itself")).help(*why));
        return;
    }
    let mut probe = ClientConfig::new();
    probe.set(name, value.value.0.clone());
    let Err(error) = probe.create_native_config().map(drop) else { return };
    let problem = match error {
        KafkaError::ClientConfig(RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN, ..) => {
            Problem::error(value.span, format!("librdkafka has no setting `{name}`"))
                .help("its settings are listed in librdkafka's CONFIGURATION.md")
        }
        _ => Problem::error(value.span, format!("librdkafka does not take this value for `{name}`"))
            .help("its settings and their ranges are listed in librdkafka's CONFIGURATION.md"),
    };
    cx.report(problem);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::component::Span;
    use crate::expr::Schema as BodySchema;

    fn options(pairs: &[(&str, &str)]) -> Options {
        let value = |text: &str| Spanned::new(OptionValue(text.to_owned()), Span { start: 3, end: 4 });
        pairs.iter().map(|(key, text)| ((*key).to_owned(), value(text))).collect()
    }

    fn check(role: Role, brokers: &str, options: &Options) -> (Option<Connection>, Vec<String>) {
        let mut cx = CheckContext::new("orders", Span::default(), BodySchema::default());
        let brokers = Spanned::new(brokers.to_owned(), Span::default());
        let connection = Connection::check(role, &brokers, None, None, options, &mut cx);
        (connection, cx.problems.into_iter().map(|problem| problem.message).collect())
    }

    #[test]
    fn options_pass_through_to_librdkafka() {
        let (connection, problems) = check(Role::Consumer, "a:1", &options(&[("fetch.wait.max.ms", "20")]));
        assert!(problems.is_empty());
        let config = connection.unwrap().client_config(&[("fetch.wait.max.ms", "100".to_owned())], &[]).unwrap();
        assert_eq!(config.get("fetch.wait.max.ms"), Some("20"));
        assert_eq!(config.get("security.protocol"), Some("plaintext"));
    }

    #[test]
    fn what_weir_owns_is_refused_with_the_reason() {
        let (connection, problems) = check(Role::Consumer, "a:1", &options(&[("enable.auto.commit", "true")]));
        assert!(connection.is_none());
        assert_eq!(problems, ["`enable.auto.commit` is set by Weir itself"]);
        let (connection, _) = check(Role::Producer, "a:1", &options(&[("enable.auto.commit", "true")]));
        assert!(connection.is_some(), "it means nothing to a sink, and does no harm");
    }

    #[test]
    fn all_wrong_options_are_reported_at_once() {
        let wrong = options(&[("fetch.wait.max.ns", "1"), ("linger.ms", "soon")]);
        let (_, problems) = check(Role::Producer, " , ", &wrong);
        assert_eq!(
            problems,
            [
                "`brokers` names no broker",
                "librdkafka has no setting `fetch.wait.max.ns`",
                "librdkafka does not take this value for `linger.ms`",
            ]
        );
    }

    #[test]
    fn every_owned_setting_is_a_setting() {
        for (name, _, _) in OWNED {
            let mut probe = ClientConfig::new();
            probe.set(*name, "?");
            let unknown = matches!(
                probe.create_native_config(),
                Err(KafkaError::ClientConfig(RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN, ..))
            );
            assert!(!unknown, "librdkafka does not know `{name}`");
        }
    }

    /// librdkafka's settings of the connection that these become, and the problems.
    fn secured(tls: Option<&str>, sasl: Option<&str>) -> (BTreeMap<String, String>, Vec<String>) {
        let tls: Option<Tls> = tls.map(|tls| serde_json::from_str(tls).unwrap());
        let sasl: Option<Sasl> = sasl.map(|sasl| serde_json::from_str(sasl).unwrap());
        let mut cx = CheckContext::new("orders", Span::default(), BodySchema::default());
        let brokers = Spanned::new("a:1".to_owned(), Span::default());
        let checked =
            Connection::check(Role::Consumer, &brokers, tls.as_ref(), sasl.as_ref(), &Options::new(), &mut cx);
        let mut settings = BTreeMap::new();
        if let Some(connection) = checked {
            let config = connection.client_config(&[], &[]).unwrap();
            config.create_native_config().expect("librdkafka takes them");
            let owned = ["security.", "ssl.", "sasl.", "enable.ssl."];
            // The map itself hides what is secret.
            for name in config.config_map().into_keys().filter(|name| owned.iter().any(|own| name.starts_with(own))) {
                settings.insert(name.to_owned(), config.get(name).unwrap().to_owned());
            }
        }
        (settings, cx.problems.into_iter().map(|problem| problem.message).collect())
    }

    fn pairs(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn tls_alone_trusts_the_certificates_of_the_system_and_checks_the_broker() {
        assert_eq!(secured(Some("{}"), None), (pairs(&[("security.protocol", "ssl")]), vec![]));
        assert_eq!(secured(None, None), (pairs(&[("security.protocol", "plaintext")]), vec![]));
    }

    #[test]
    fn every_setting_of_tls_reaches_librdkafka() {
        let tls =
            r#"{ "ca": "ca.pem", "certificate": "me.pem", "key": "me.key", "key_password": "p", "verify": false }"#;
        let expected = pairs(&[
            ("security.protocol", "ssl"),
            ("ssl.ca.location", "ca.pem"),
            ("ssl.certificate.location", "me.pem"),
            ("ssl.key.location", "me.key"),
            ("ssl.key.password", "p"),
            ("enable.ssl.certificate.verification", "false"),
        ]);
        assert_eq!(secured(Some(tls), None), (expected, vec![]));
        let (settings, _) = secured(Some(r#"{ "verify": true }"#), None);
        assert_eq!(
            settings,
            pairs(&[("security.protocol", "ssl")]),
            "the broker is checked unless it is said otherwise"
        );
    }

    #[test]
    fn a_password_goes_through_tls_where_there_is_tls_and_else_a_plain_one_is_warned_of() {
        for mechanism in ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] {
            let sasl = format!(r#"{{ "mechanism": "{mechanism}", "username": "u", "password": "p" }}"#);
            let of_sasl = [("sasl.mechanism", mechanism), ("sasl.username", "u"), ("sasl.password", "p")];
            let mut expected = pairs(&of_sasl);
            expected.insert("security.protocol".to_owned(), "sasl_ssl".to_owned());
            expected.insert("ssl.ca.location".to_owned(), "ca.pem".to_owned());
            assert_eq!(secured(Some(r#"{ "ca": "ca.pem" }"#), Some(&sasl)), (expected, vec![]));
            let (settings, problems) = secured(None, Some(&sasl));
            assert_eq!(settings["security.protocol"], "sasl_plaintext");
            let warned = ["`PLAIN` sends the password in clear text"];
            assert_eq!(problems, if mechanism == "PLAIN" { &warned[..] } else { &[] });
        }
    }

    #[test]
    fn a_certificate_without_its_key_is_a_mistake_and_so_is_a_key_alone() {
        for half in [r#"{ "certificate": "me.pem" }"#, r#"{ "key": "me.key" }"#] {
            let (settings, problems) = secured(Some(half), None);
            assert_eq!(problems, ["`tls` needs `certificate` and `key` together, or neither"]);
            assert!(settings.is_empty(), "{settings:?}");
        }
    }

    #[test]
    fn a_secret_appears_in_no_debug_output() {
        let tls: Tls = serde_json::from_str(r#"{ "key_password": "hunter2" }"#).unwrap();
        let mut cx = CheckContext::new("orders", Span::default(), BodySchema::default());
        let brokers = Spanned::new("a:1".to_owned(), Span::default());
        let sasl =
            serde_json::from_str(r#"{"mechanism":"SCRAM-SHA-512","username":"u","password":"hunter2"}"#).unwrap();
        let connection =
            Connection::check(Role::Producer, &brokers, Some(&tls), Some(&sasl), &Options::new(), &mut cx).unwrap();
        let shown = format!("{tls:?} {sasl:?} {connection:?} {:?}", connection.identity());
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
