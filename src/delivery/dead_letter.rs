//! Dead letters: what a stage refused, as it entered the stage, with the reason and the place it came from.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::letter::{Past, fact, key_of, name_of, split_facts, word_of};
use crate::record::{Batch, BatchBuilder, BodyFormat, Draft, Header, HeadersBuilder, Record, Rejected, Timestamp};

/// The prefix of the headers that Weir adds to a dead letter.
pub const HEADER_PREFIX: &str = "weir-";

/// The last header of a record that its source could not hold whole: how many bytes its body had.
pub const CUT_FROM_BYTES: &str = "weir-cut-from-bytes";

/// How dead letters are written.
#[derive(Debug, Clone)]
pub struct DeadLetterForm {
    /// The pipeline's name.
    pub pipeline: Arc<str>,
    /// A hash of the pipeline's text.
    pub version: Arc<str>,
    /// Whether the sink carries headers. One that does gets the very bytes of the record, and the rest as headers; one
    /// that does not gets a JSON object that holds everything.
    pub headers: bool,
    /// Whether the records are letters that are tried again: each then has its past behind its own headers.
    pub is_replay: bool,
}

impl DeadLetterForm {
    /// One batch for each partition in a row of refused records, in their order. `refused_at` is now.
    #[must_use]
    pub fn letters(&self, stage: &str, rejected: &[Rejected], refused_at: Timestamp) -> Vec<Batch> {
        rejected
            .chunk_by(|one, next| one.batch.origin() == next.batch.origin())
            .map(|chunk| {
                let origin = chunk[0].batch.origin();
                let bytes = chunk.iter().map(|one| one.batch.payload_bytes()).sum::<u64>();
                let capacity = usize::try_from(bytes).unwrap_or(0) + 512 * chunk.len();
                let mut letters = BatchBuilder::new(Arc::clone(origin), capacity, chunk.len());
                for one in chunk {
                    self.write(stage, one, refused_at, &mut letters);
                }
                letters.finish()
            })
            .collect()
    }

    /// Letters that their sink refuses, for their size most likely, with at most `most` bytes of each part of the record: its
    /// body, its key, all its own headers, and what was wrong with it, of which the beginning always stays. Each says how long
    /// its body was; the place that the record came from is named already.
    #[must_use]
    pub fn cut(letters: &Batch, records: &[Record], most: usize) -> Batch {
        let mut shorter = BatchBuilder::new(Arc::clone(letters.origin()), most.min(1 << 16), records.len());
        for record in records {
            let body = letters.body(record);
            let line = letters.headers(record).is_empty().then(|| cut_line(body, most)).flatten();
            let all: Vec<_> = letters.headers(record).collect();
            let (own, facts) = split_facts(&all).unwrap_or((&all, &[]));
            let own_bytes: usize = own.iter().map(|one| one.name.len() + one.value.map_or(0, <[u8]>::len)).sum();
            let own = if own_bytes > most { &[] } else { own };
            let key = letters.key(record);
            let mut headers = HeadersBuilder::default();
            for Header { name, value } in own.iter().chain(facts) {
                let is_error = *name == name_of(fact::ERROR).as_bytes();
                let shorter = value.filter(|_| is_error).and_then(|value| std::str::from_utf8(value).ok());
                let shorter = shorter.map(|error| shortened(error, most.clamp(SHORTEST_ERROR, LONGEST_ERROR)));
                headers.push(name, shorter.as_deref().map_or(*value, |error| Some(error.as_bytes())));
            }
            let key_bytes = key.map_or(0, <[u8]>::len);
            if line.is_none() && body.len().max(own_bytes).max(key_bytes) > most {
                headers.push(name_of(fact::CUT).as_bytes(), Some(body.len().to_string().as_bytes()));
            }
            shorter.push_copy(Draft {
                body: line.as_deref().unwrap_or(&body[..body.len().min(most)]),
                format: record.format,
                key: key.map(|key| &key[..key.len().min(most)]),
                headers: headers.encoded(),
                timestamp: record.timestamp,
                offset: record.offset,
            });
        }
        shorter.finish()
    }

    /// What is said about a record of a refused batch.
    fn facts(
        &self,
        stage: &str,
        one: &Rejected,
        record: &Record,
        past: Past,
        refused_at: Timestamp,
    ) -> Vec<(&'static str, Value)> {
        let origin = one.batch.origin();
        let mut facts: Vec<(&'static str, Value)> = vec![
            (fact::ERROR, shortened(&one.error, LONGEST_ERROR).into()),
            (fact::STAGE, stage.into()),
            (fact::PIPELINE, (&*self.pipeline).into()),
            (fact::VERSION, (&*self.version).into()),
            (fact::SOURCE, (&*origin.source).into()),
            (fact::TOPIC, (&*origin.topic).into()),
            (fact::PARTITION, origin.number.into()),
            (fact::OFFSET, record.offset.into()),
            (fact::TIME, rfc_3339(refused_at).into()),
            (fact::TIMESTAMP, record.timestamp.0.into()),
            (fact::FORMAT, word_of(record.format).into()),
            (fact::ATTEMPT, past.attempt.into()),
        ];
        facts.extend(past.replayed_from.map(|place| (fact::REPLAYED_FROM, place.into())));
        facts
    }

    fn write(&self, stage: &str, one: &Rejected, refused_at: Timestamp, letters: &mut BatchBuilder) {
        for record in one.batch.records() {
            let body = one.batch.body(record);
            let key = one.batch.key(record);
            let (timestamp, offset) = (record.timestamp, record.offset);
            let mut own: Vec<_> = one.batch.headers(record).collect();
            let cut_from = own.pop_if(|last| last.name == CUT_FROM_BYTES.as_bytes()).and_then(number_of);
            let (own, past) =
                if self.is_replay { Past::split(own) } else { (own, Past { attempt: 1, ..Past::default() }) };
            let mut facts = self.facts(stage, one, record, past, refused_at);
            facts.extend(cut_from.map(|bytes| (fact::CUT, bytes.into())));
            if self.headers {
                let mut headers = HeadersBuilder::default();
                for Header { name, value } in own {
                    headers.push(name, value);
                }
                for (fact, value) in &facts {
                    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                    headers.push(name_of(fact).as_bytes(), Some(text.as_bytes()));
                }
                let format = written_as_it_stands(record.format);
                letters.push_copy(Draft { body, format, key, headers: headers.encoded(), timestamp, offset });
            } else {
                let mut object = Map::new();
                object.extend(facts.into_iter().map(|(fact, value)| (key_of(fact), value)));
                text_or_bytes(&mut object, "key", key);
                headers_of(&mut object, &own);
                text_or_bytes(&mut object, "body", (record.format != BodyFormat::Absent).then_some(body));
                let envelope = Value::Object(object).to_string();
                let format = BodyFormat::Verbatim;
                letters.push_copy(Draft { body: envelope.as_bytes(), format, key, headers: &[], timestamp, offset });
            }
        }
    }
}

/// The number that a header holds.
fn number_of(header: Header<'_>) -> Option<u64> {
    std::str::from_utf8(header.value?).ok()?.parse().ok()
}

/// A record without a body is a letter without one, where the letter is the record itself.
fn written_as_it_stands(format: BodyFormat) -> BodyFormat {
    if format == BodyFormat::Absent { format } else { BodyFormat::Verbatim }
}

/// How many bytes of an error a letter tells,
const LONGEST_ERROR: usize = 4096;
/// and how many if it was cut as short as can be.
const SHORTEST_ERROR: usize = 200;

/// An error as a letter tells it. Some quote the value that they could not take, which may be nearly the whole record.
fn shortened(error: &str, longest: usize) -> String {
    if error.len() <= longest {
        return error.to_owned();
    }
    let end = (0..=longest).rev().find(|at| error.is_char_boundary(*at)).unwrap_or(0);
    format!("{}…", &error[..end])
}

/// A moment as people and programs read it.
fn rfc_3339(at: Timestamp) -> String {
    jiff::Timestamp::from_millisecond(at.0).map_or_else(|_| at.0.to_string(), |at| format!("{at:.3}"))
}

/// A letter that is a line of JSON, with at most `most` bytes of the record's body; `None` if it is no such line.
fn cut_line(line: &[u8], most: usize) -> Option<Vec<u8>> {
    let mut object: Map<String, Value> = serde_json::from_slice(line).ok()?;
    let mut len = None;
    if let Some(Value::String(text)) = object.get_mut("body")
        && text.len() > most
    {
        len = Some(text.len());
        text.truncate((0..=most).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0));
    } else if let Some(Value::Array(bytes)) = object.get_mut("body_bytes")
        && bytes.len() > most
    {
        len = Some(bytes.len());
        bytes.truncate(most);
    }
    object.extend(len.map(|len| (key_of(fact::CUT), len.into())));
    Some(Value::Object(object).to_string().into_bytes())
}

/// As text under `name` if it is UTF-8, else as an array of bytes under `name_bytes`.
fn text_or_bytes(object: &mut Map<String, Value>, name: &str, bytes: Option<&[u8]>) {
    let Some(bytes) = bytes else { return };
    match std::str::from_utf8(bytes) {
        Ok(text) => object.insert(name.to_owned(), text.into()),
        Err(_) => object.insert(format!("{name}_bytes"), bytes.to_vec().into()),
    };
}

fn headers_of(object: &mut Map<String, Value>, headers: &[Header<'_>]) {
    if headers.is_empty() {
        return;
    }
    let list = headers.iter().map(|Header { name, value }| {
        let mut header = Map::new();
        text_or_bytes(&mut header, "name", Some(name));
        text_or_bytes(&mut header, "value", *value);
        Value::Object(header)
    });
    object.insert("headers".to_owned(), list.collect());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::Letter;
    use crate::record::Partition;

    fn refused(body: &[u8]) -> Rejected {
        let origin = Partition { source: "in".into(), topic: "orders".into(), number: 3 };
        let mut batch = BatchBuilder::new(Arc::new(origin), 0, 1);
        let mut headers = HeadersBuilder::default();
        headers.push(b"trace", Some(b"7"));
        batch.push_copy(Draft { body, key: Some(b"k"), headers: headers.encoded(), offset: 42, ..Draft::default() });
        Rejected { batch: batch.finish(), error: "no price".to_owned() }
    }

    fn form(headers: bool) -> DeadLetterForm {
        DeadLetterForm { pipeline: "p".into(), version: "v1".into(), headers, is_replay: false }
    }

    fn letters(headers: bool, rejected: &[Rejected]) -> Vec<Batch> {
        form(headers).letters("clean", rejected, Timestamp(0))
    }

    #[test]
    fn a_letter_keeps_the_very_bytes_and_says_why_in_headers() {
        let letters = letters(true, &[refused(b"{\"a\":\xff}")]);
        let record = letters[0].records()[0];
        assert_eq!(letters[0].body(&record), b"{\"a\":\xff}");
        assert_eq!(letters[0].key(&record), Some(&b"k"[..]));
        let headers: Vec<_> = letters[0]
            .headers(&record)
            .map(|header| {
                (String::from_utf8_lossy(header.name).into_owned(), header.value.unwrap_or_default().to_vec())
            })
            .collect();
        assert_eq!(headers[0], ("trace".to_owned(), b"7".to_vec()));
        assert!(headers.contains(&("weir-error".to_owned(), b"no price".to_vec())));
        assert!(headers.contains(&("weir-offset".to_owned(), b"42".to_vec())));
        assert!(headers.contains(&("weir-stage".to_owned(), b"clean".to_vec())));
    }

    #[test]
    fn rule_29_a_letter_that_is_too_large_is_cut_and_marked_and_keeps_its_source_position() {
        let letters = letters(true, &[refused(&[b'x'; 100])]);
        let cut = DeadLetterForm::cut(&letters[0], letters[0].records(), 10);
        let record = cut.records()[0];
        assert_eq!(cut.body(&record), [b'x'; 10]);
        let headers: Vec<_> =
            cut.headers(&record).map(|header| (header.name, header.value.unwrap_or_default())).collect();
        assert!(headers.contains(&(b"weir-cut-from-bytes", b"100")));
        assert!(headers.contains(&(b"weir-offset", b"42")));
    }

    #[test]
    fn a_sink_without_headers_gets_one_json_line_with_everything() {
        let letters = letters(false, &[refused(b"x\ny"), refused(b"\xff")]);
        let lines: Vec<Value> = letters[0]
            .records()
            .iter()
            .map(|record| serde_json::from_slice(letters[0].body(record)).unwrap())
            .collect();
        assert_eq!(lines[0]["body"], "x\ny");
        assert_eq!(lines[0]["key"], "k");
        assert_eq!(lines[0]["headers"][0]["value"], "7");
        assert_eq!(lines[0]["error"], "no price");
        assert_eq!(lines[1]["body_bytes"], serde_json::json!([255]));
    }
    #[test]
    fn rule_29_whatever_makes_a_letter_too_large_is_cut() {
        let origin = Partition { source: "in".into(), topic: "orders".into(), number: 3 };
        let mut batch = BatchBuilder::new(Arc::new(origin), 0, 1);
        let mut headers = HeadersBuilder::default();
        headers.push(b"trace", Some(&vec![b'h'; 100_000]));
        let (key, body) = (vec![b'k'; 100_000], &b"{}"[..]);
        batch.push_copy(Draft { body, key: Some(&key), headers: headers.encoded(), ..Draft::default() });
        let refused = Rejected { batch: batch.finish(), error: "ü".repeat(100_000) };
        let letters = letters(true, &[refused]);
        let cut = DeadLetterForm::cut(&letters[0], letters[0].records(), 10);
        assert!(cut.memory_bytes() < 1_500, "{cut:?}");
        let record = cut.records()[0];
        let letter = Letter::from_headers(Some(body), cut.key(&record), cut.headers(&record), Timestamp(0)).unwrap();
        assert_eq!((letter.key.as_deref(), letter.headers.len(), letter.cut_from), (Some(&key[..10]), 0, Some(2)));
        assert!(letter.error.ends_with("ü…") && letter.error.len() < 210, "{}", letter.error);
    }

    #[test]
    fn rule_29_what_its_source_could_not_hold_is_a_letter_that_is_cut() {
        let origin = Partition { source: "in".into(), topic: "orders".into(), number: 3 };
        let mut batch = BatchBuilder::new(Arc::new(origin), 0, 1);
        let mut headers = HeadersBuilder::default();
        headers.push(CUT_FROM_BYTES.as_bytes(), Some(b"100000000"));
        batch.push_copy(Draft { body: b"{\"a\"", headers: headers.encoded(), ..Draft::default() });
        let refused = [Rejected { batch: batch.finish(), error: "too long".to_owned() }];
        let letter = &letters(true, &refused)[0];
        let record = letter.records()[0];
        let with_headers =
            Letter::from_headers(Some(letter.body(&record)), None, letter.headers(&record), Timestamp(0)).unwrap();
        let letter = &letters(false, &refused)[0];
        let as_line = Letter::from_json(letter.body(&letter.records()[0])).unwrap();
        for letter in [with_headers, as_line] {
            assert_eq!((letter.cut_from, letter.headers.len(), &*letter.body), (Some(100_000_000), 0, &b"{\"a\""[..]));
        }
        assert_eq!(CUT_FROM_BYTES, name_of(fact::CUT));
    }

    #[test]
    fn rule_29_a_line_that_is_cut_is_a_letter_still() {
        let letters = letters(false, &[refused("äöü".repeat(50).as_bytes()), refused(&[b'\xff'; 100]), refused(b"{}")]);
        let cut = DeadLetterForm::cut(&letters[0], letters[0].records(), 11);
        let read: Vec<_> = cut.records().iter().map(|record| Letter::from_json(cut.body(record)).unwrap()).collect();
        assert_eq!((read[0].body.as_slice(), read[0].cut_from, read[0].offset), ("äöüäö".as_bytes(), Some(300), 42));
        assert_eq!((read[1].body.len(), read[1].cut_from), (11, Some(100)));
        assert_eq!((read[2].body.as_slice(), read[2].cut_from), (&b"{}"[..], None));
    }
}
