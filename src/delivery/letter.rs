//! A dead letter, read back: the record as it entered the stage that refused it, and what was said of it.
//!
//! Letters come from outside: anybody may have written to the topic or the file. Whatever does not read as a letter is an
//! error with a reason, never a panic.

use serde_json::{Map, Value};

use super::dead_letter::HEADER_PREFIX;
use crate::record::{BodyFormat, Draft, Header, Headers, HeadersBuilder, Timestamp};

/// The facts of a letter, by the names that stand behind [`HEADER_PREFIX`] in a header, and alone in a line of JSON.
pub(super) mod fact {
    /// What was wrong. Always the first, so that the last header of this name begins what Weir added.
    pub(in crate::delivery) const ERROR: &str = "error";
    pub(in crate::delivery) const STAGE: &str = "stage";
    pub(in crate::delivery) const PIPELINE: &str = "pipeline";
    pub(in crate::delivery) const VERSION: &str = "version";
    pub(in crate::delivery) const SOURCE: &str = "source";
    pub(in crate::delivery) const TOPIC: &str = "topic";
    pub(in crate::delivery) const PARTITION: &str = "partition";
    pub(in crate::delivery) const OFFSET: &str = "offset";
    /// When it was refused.
    pub(in crate::delivery) const TIME: &str = "time";
    /// When the record was made.
    pub(in crate::delivery) const TIMESTAMP: &str = "timestamp-ms";
    /// What the body was known to be.
    pub(in crate::delivery) const FORMAT: &str = "format";
    /// How often the record was tried, this time included.
    pub(in crate::delivery) const ATTEMPT: &str = "attempt";
    /// The letter that this one follows.
    pub(in crate::delivery) const REPLAYED_FROM: &str = "replayed-from";
    /// How long the body was before it was cut.
    pub(in crate::delivery) const CUT: &str = "cut-from-bytes";
}

/// A dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    /// The body as it entered the stage; empty if there was none.
    pub body: Vec<u8>,
    /// What the body was known to be; `None` in letters that do not say it.
    pub format: Option<BodyFormat>,
    /// The record's key.
    pub key: Option<Vec<u8>>,
    /// The record's own headers, encoded (see [`Headers`]).
    pub headers: Vec<u8>,
    /// When the record was made.
    pub timestamp: Timestamp,
    /// What was wrong.
    pub error: String,
    /// The stage that refused it.
    pub stage: String,
    /// The pipeline of the stage.
    pub pipeline: String,
    /// A hash of the pipeline's text.
    pub version: Option<String>,
    /// The source that the record came from.
    pub source: String,
    /// Its topic, or what the source has in its place.
    pub topic: String,
    /// The partition of the topic.
    pub partition: i32,
    /// The offset in the partition.
    pub offset: i64,
    /// When it was refused, in RFC 3339.
    pub refused_at: Option<String>,
    /// How often the record was tried: 1 for one that was never replayed.
    pub attempt: u32,
    /// The letter that this one follows, if the record was refused in a replay.
    pub replayed_from: Option<String>,
    /// How long the body was, if it was cut. Such a letter cannot be replayed.
    pub cut_from: Option<u64>,
}

/// Why something is no letter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no dead letter: {0}")]
pub struct NotALetter(String);

impl Letter {
    /// Reads a letter of a sink that carries headers.
    ///
    /// # Errors
    /// If the headers do not say where the record came from, and why it was refused.
    pub fn from_headers(
        body: Option<&[u8]>,
        key: Option<&[u8]>,
        headers: Headers<'_>,
        timestamp: Timestamp,
    ) -> Result<Self, NotALetter> {
        let all: Vec<Header<'_>> = headers.collect();
        let (own, facts) =
            split_facts(&all).ok_or_else(|| NotALetter(format!("it has no header `{}`", name_of(fact::ERROR))))?;
        let mut encoded = HeadersBuilder::default();
        for header in own {
            encoded.push(header.name, header.value);
        }
        let find = |name: &str| {
            let name = name_of(name);
            let header = facts.iter().find(|header| header.name == name.as_bytes())?;
            Some(String::from_utf8_lossy(header.value?).into_owned())
        };
        let facts = Facts { find, name: name_of };
        let mut letter = facts.letter()?;
        letter.key = key.map(<[u8]>::to_vec);
        letter.headers = encoded.encoded().to_vec();
        letter.timestamp = facts.number(fact::TIMESTAMP)?.map_or(timestamp, Timestamp);
        letter.set_body(body.map(<[u8]>::to_vec));
        Ok(letter)
    }

    /// Reads a letter of a sink that carries no headers: a line of JSON.
    ///
    /// # Errors
    /// If it is no JSON object, or does not say where the record came from, and why it was refused.
    pub fn from_json(line: &[u8]) -> Result<Self, NotALetter> {
        let object: Map<String, Value> =
            serde_json::from_slice(line).map_err(|error| NotALetter(format!("no JSON object: {error}")))?;
        let find = |name: &str| match object.get(&key_of(name))? {
            Value::Null => None,
            Value::String(text) => Some(text.clone()),
            other => Some(other.to_string()),
        };
        let facts = Facts { find, name: key_of };
        let mut letter = facts.letter()?;
        letter.timestamp = Timestamp(facts.number(fact::TIMESTAMP)?.unwrap_or_default());
        letter.key = bytes_of(&object, "key")?;
        let mut headers = HeadersBuilder::default();
        match object.get("headers") {
            None | Some(Value::Null) => {}
            Some(Value::Array(list)) => {
                for header in list {
                    let header = header.as_object().ok_or_else(|| NotALetter("a header is no object".to_owned()))?;
                    let name = bytes_of(header, "name")?.unwrap_or_default();
                    headers.push(&name, bytes_of(header, "value")?.as_deref());
                }
            }
            Some(_) => return Err(NotALetter("`headers` is no list".to_owned())),
        }
        letter.headers = headers.encoded().to_vec();
        letter.set_body(bytes_of(&object, "body")?);
        Ok(letter)
    }

    fn set_body(&mut self, body: Option<Vec<u8>>) {
        if body.is_none() {
            self.format = Some(BodyFormat::Absent);
        }
        self.body = body.unwrap_or_default();
    }

    /// The record, as it entered the stage.
    #[must_use]
    pub fn record(&self) -> Draft<'_> {
        Draft {
            body: &self.body,
            format: self.format.unwrap_or_default(),
            key: self.key.as_deref(),
            headers: &self.headers,
            timestamp: self.timestamp,
            offset: self.offset,
        }
    }

    /// The record's headers when it is tried again: its own, then the letter's place and the number of this attempt.
    #[must_use]
    pub fn headers_of_replay(&self, place: &str) -> Vec<u8> {
        let mut headers = HeadersBuilder::default();
        for Header { name, value } in Headers::decode(&self.headers) {
            headers.push(name, value);
        }
        let attempt = self.attempt.saturating_add(1).to_string();
        headers.push(name_of(fact::REPLAYED_FROM).as_bytes(), Some(place.as_bytes()));
        headers.push(name_of(fact::ATTEMPT).as_bytes(), Some(attempt.as_bytes()));
        headers.encoded().to_vec()
    }
}

/// What a replay has put behind the headers of a record, taken off again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Past {
    pub(super) replayed_from: Option<String>,
    pub(super) attempt: u32,
}

impl Past {
    /// The record's own headers, and its past. A program that rewrites all headers makes the record forget it.
    pub(super) fn split(mut headers: Vec<Header<'_>>) -> (Vec<Header<'_>>, Self) {
        let first = Self { replayed_from: None, attempt: 1 };
        let [.., place, attempt] = headers.as_slice() else { return (headers, first) };
        let is = |header: &Header<'_>, name| header.name == name_of(name).as_bytes();
        if !is(place, fact::REPLAYED_FROM) || !is(attempt, fact::ATTEMPT) {
            return (headers, first);
        }
        let text = |header: &Header<'_>| String::from_utf8_lossy(header.value.unwrap_or_default()).into_owned();
        let past = Self { replayed_from: Some(text(place)), attempt: text(attempt).parse().unwrap_or(1) };
        headers.truncate(headers.len() - 2);
        (headers, past)
    }
}

/// A letter's headers: those of the record, and those that Weir added. The record may have some of the same names; its own
/// stand before the others.
pub(super) fn split_facts<'a, 'h>(headers: &'a [Header<'h>]) -> Option<(&'a [Header<'h>], &'a [Header<'h>])> {
    let error = name_of(fact::ERROR);
    let first = headers.iter().rposition(|header| header.name == error.as_bytes())?;
    Some(headers.split_at(first))
}

/// The name of a fact's header.
pub(super) fn name_of(fact: &str) -> String {
    format!("{HEADER_PREFIX}{fact}")
}

/// The key of a fact in JSON.
pub(super) fn key_of(fact: &str) -> String {
    fact.replace('-', "_")
}

/// The word for a body's format.
pub(super) fn word_of(format: BodyFormat) -> &'static str {
    match format {
        BodyFormat::Json => "json",
        BodyFormat::Raw | BodyFormat::Verbatim => "raw",
        BodyFormat::Absent => "none",
    }
}

/// The facts of a letter in either form.
struct Facts<F> {
    find: F,
    /// How a fact is called there.
    name: fn(&str) -> String,
}

impl<F: Fn(&str) -> Option<String>> Facts<F> {
    fn text(&self, fact: &str) -> Result<String, NotALetter> {
        (self.find)(fact).ok_or_else(|| NotALetter(format!("it has no `{}`", (self.name)(fact))))
    }

    fn number<T: std::str::FromStr>(&self, fact: &str) -> Result<Option<T>, NotALetter> {
        let Some(text) = (self.find)(fact) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| NotALetter(format!("`{}` is no number", (self.name)(fact))))
    }

    fn required<T: std::str::FromStr>(&self, fact: &str) -> Result<T, NotALetter> {
        self.number(fact)?.ok_or_else(|| NotALetter(format!("it has no `{}`", (self.name)(fact))))
    }

    /// All but the record's key, headers, timestamp and body.
    fn letter(&self) -> Result<Letter, NotALetter> {
        Ok(Letter {
            body: Vec::new(),
            format: (self.find)(fact::FORMAT).and_then(|word| {
                [BodyFormat::Json, BodyFormat::Raw, BodyFormat::Absent]
                    .into_iter()
                    .find(|format| word_of(*format) == word)
            }),
            key: None,
            headers: Vec::new(),
            timestamp: Timestamp::default(),
            error: self.text(fact::ERROR)?,
            stage: self.text(fact::STAGE)?,
            pipeline: (self.find)(fact::PIPELINE).unwrap_or_default(),
            version: (self.find)(fact::VERSION),
            source: self.text(fact::SOURCE)?,
            topic: self.text(fact::TOPIC)?,
            partition: self.required(fact::PARTITION)?,
            offset: self.required(fact::OFFSET)?,
            refused_at: (self.find)(fact::TIME),
            attempt: self.number(fact::ATTEMPT)?.unwrap_or(1),
            replayed_from: (self.find)(fact::REPLAYED_FROM),
            cut_from: self.number(fact::CUT)?,
        })
    }
}

/// What stands under `name` as text, or under `name_bytes` as a list of bytes; `None` if neither is there.
fn bytes_of(object: &Map<String, Value>, name: &str) -> Result<Option<Vec<u8>>, NotALetter> {
    let wrong = |name: &str| NotALetter(format!("`{name}` is neither text nor a list of bytes"));
    match object.get(name) {
        None | Some(Value::Null) => {}
        Some(Value::String(text)) => return Ok(Some(text.clone().into_bytes())),
        Some(_) => return Err(wrong(name)),
    }
    let name = format!("{name}_bytes");
    match object.get(&name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(list)) => list
            .iter()
            .map(|byte| byte.as_u64().and_then(|byte| u8::try_from(byte).ok()).ok_or_else(|| wrong(&name)))
            .collect::<Result<_, _>>()
            .map(Some),
        Some(_) => Err(wrong(&name)),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::delivery::DeadLetterForm;
    use crate::record::{Batch, BatchBuilder, Partition, Rejected};

    /// A record as it may enter a stage.
    #[derive(Debug, Clone)]
    struct Entered {
        body: Option<Vec<u8>>,
        format: BodyFormat,
        key: Option<Vec<u8>>,
        headers: Vec<(Vec<u8>, Option<Vec<u8>>)>,
        timestamp: i64,
        origin: Partition,
        offset: i64,
    }

    fn encoded(headers: &[(Vec<u8>, Option<Vec<u8>>)]) -> Vec<u8> {
        let mut encoded = HeadersBuilder::default();
        for (name, value) in headers {
            encoded.push(name, value.as_deref());
        }
        encoded.encoded().to_vec()
    }

    fn refused(record: &Entered, headers: &[u8], error: &str) -> Rejected {
        let mut batch = BatchBuilder::new(Arc::new(record.origin.clone()), 0, 1);
        batch.push_copy(Draft {
            body: record.body.as_deref().unwrap_or_default(),
            format: if record.body.is_none() { BodyFormat::Absent } else { record.format },
            key: record.key.as_deref(),
            headers,
            timestamp: Timestamp(record.timestamp),
            offset: record.offset,
        });
        Rejected { batch: batch.finish(), error: error.to_owned() }
    }

    fn form(headers: bool, is_replay: bool) -> DeadLetterForm {
        DeadLetterForm { pipeline: "p".into(), version: "v1".into(), headers, is_replay }
    }

    fn written(form: &DeadLetterForm, refused: Rejected) -> Batch {
        form.letters("clean", &[refused], Timestamp(1_700_000_000_123)).remove(0)
    }

    /// What a reader of the sink finds.
    fn read(letters: &Batch, headers: bool) -> Letter {
        let record = &letters.records()[0];
        if headers {
            let body = (record.format != BodyFormat::Absent).then(|| letters.body(record));
            // A topic may put its own time in the place of the record's.
            Letter::from_headers(body, letters.key(record), letters.headers(record), Timestamp(5)).unwrap()
        } else {
            let mut line = Vec::new();
            crate::codecs::Codec::Json.encode(letters, record, &mut line).unwrap();
            Letter::from_json(&line).unwrap()
        }
    }

    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![any::<Vec<u8>>(), ".*".prop_map(String::into_bytes), Just(b"null".to_vec()), Just(Vec::new())]
    }

    fn header() -> impl Strategy<Value = (Vec<u8>, Option<Vec<u8>>)> {
        let name = prop_oneof![
            bytes(),
            prop::sample::select(vec![
                "weir-error",
                "weir-stage",
                "weir-attempt",
                "weir-replayed-from",
                "weir-x",
                "trace"
            ])
            .prop_map(|name| name.as_bytes().to_vec()),
        ];
        (name, proptest::option::of(bytes()))
    }

    prop_compose! {
        fn record()(
            body in proptest::option::of(bytes()),
            format in prop::sample::select(vec![BodyFormat::Json, BodyFormat::Raw]),
            key in proptest::option::of(bytes()),
            headers in proptest::collection::vec(header(), 0..6),
            timestamp in any::<i64>(),
            (source, topic, number) in ("[a-z]{1,8}", ".*", any::<i32>()),
            offset in any::<i64>(),
        ) -> Entered {
            let origin = Partition { source: source.into(), topic: topic.into(), number };
            Entered { body, format, key, headers, timestamp, origin, offset }
        }
    }

    proptest! {
        #[test]
        fn rule_29_a_letter_gives_back_the_very_record_in_both_forms(record in record(), error in ".*") {
            let headers = encoded(&record.headers);
            for in_headers in [true, false] {
                let letter = read(&written(&form(in_headers, false), refused(&record, &headers, &error)), in_headers);
                prop_assert_eq!(&letter.error, &error);
                prop_assert_eq!((letter.stage.as_str(), letter.pipeline.as_str()), ("clean", "p"));
                prop_assert_eq!(letter.version.as_deref(), Some("v1"));
                prop_assert_eq!(letter.refused_at.as_deref(), Some("2023-11-14T22:13:20.123Z"));
                prop_assert_eq!((letter.attempt, &letter.replayed_from, letter.cut_from), (1, &None, None));
                let origin = &record.origin;
                prop_assert_eq!((letter.source.as_str(), letter.topic.as_str()), (&*origin.source, &*origin.topic));
                prop_assert_eq!(letter.partition, origin.number);
                let back = letter.record();
                prop_assert_eq!(back.body, record.body.as_deref().unwrap_or_default());
                prop_assert_eq!(back.format, if record.body.is_none() { BodyFormat::Absent } else { record.format });
                prop_assert_eq!(back.key, record.key.as_deref());
                prop_assert_eq!(back.headers, headers.as_slice());
                prop_assert_eq!(back.timestamp, Timestamp(record.timestamp));
                prop_assert_eq!(back.offset, record.offset);
            }
        }

        #[test]
        fn a_record_that_is_refused_again_is_the_same_record_and_counts_its_attempts(record in record()) {
            for in_headers in [true, false] {
                let own = encoded(&record.headers);
                let mut letter = read(&written(&form(in_headers, false), refused(&record, &own, "first")), in_headers);
                for attempt in 2..4 {
                    let again = refused(&record, &letter.headers_of_replay("dead/0/17"), "again");
                    let next = read(&written(&form(in_headers, true), again), in_headers);
                    prop_assert_eq!(next.attempt, attempt);
                    prop_assert_eq!(next.replayed_from.as_deref(), Some("dead/0/17"));
                    prop_assert_eq!(&next.headers, &own);
                    prop_assert_eq!(&next.body, &letter.body);
                    letter = next;
                }
            }
        }

        #[test]
        fn what_is_no_letter_is_an_error_and_no_panic(
            body in proptest::option::of(bytes()),
            headers in proptest::collection::vec(header(), 0..12),
        ) {
            let _ = Letter::from_headers(body.as_deref(), None, Headers::decode(&encoded(&headers)), Timestamp(0));
            let _ = Letter::from_json(body.as_deref().unwrap_or_default());
        }

        #[test]
        fn a_damaged_line_is_an_error_and_no_panic(record in record(), at in any::<prop::sample::Index>(), byte: u8) {
            let letters = written(&form(false, false), refused(&record, &encoded(&record.headers), "e"));
            let mut line = letters.body(&letters.records()[0]).to_vec();
            let at = at.index(line.len());
            line[at] = byte;
            let _ = Letter::from_json(&line);
            let _ = Letter::from_json(&line[..at]);
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let none = Letter::from_headers(Some(b"x"), None, Headers::decode(&[]), Timestamp(0)).unwrap_err();
        assert_eq!(none.to_string(), "no dead letter: it has no header `weir-error`");
        let part = Letter::from_json(br#"{"error":"e","stage":"s","source":"in"}"#).unwrap_err();
        assert_eq!(part.to_string(), "no dead letter: it has no `topic`");
        let wrong = br#"{"error":"e","stage":"s","source":"in","topic":"t","partition":"one","offset":0}"#;
        assert_eq!(Letter::from_json(wrong).unwrap_err().to_string(), "no dead letter: `partition` is no number");
        assert!(Letter::from_json(b"[1]").is_err() && Letter::from_json(b"\xff").is_err());
    }

    #[test]
    fn letters_of_earlier_versions_are_read() {
        let line = br#"{"error":"e","stage":"s","pipeline":"p","source":"in","topic":"t","partition":"3","offset":"42","timestamp_ms":7,"body":"x"}"#;
        let letter = Letter::from_json(line).unwrap();
        assert_eq!((letter.partition, letter.offset, letter.timestamp), (3, 42, Timestamp(7)));
        assert_eq!((letter.format, letter.version, letter.attempt), (None, None, 1));
    }
}
