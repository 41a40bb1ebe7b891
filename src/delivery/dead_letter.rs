//! Dead letters: what a stage refused, as it entered the stage, with the reason and the place it came from.

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::record::{Batch, BatchBuilder, BodyFormat, Draft, Header, Headers, HeadersBuilder, Record, Rejected};

/// The prefix of the headers that Weir adds to a dead letter.
pub const HEADER_PREFIX: &str = "weir-";

/// How dead letters are written.
#[derive(Debug, Clone)]
pub struct DeadLetterForm {
    /// The pipeline's name.
    pub pipeline: Arc<str>,
    /// Whether the sink carries headers. One that does gets the very bytes of the record, and the rest as headers; one
    /// that does not gets a JSON object that holds everything.
    pub headers: bool,
}

impl DeadLetterForm {
    /// One batch for each partition in a row of refused records, in their order.
    #[must_use]
    pub fn letters(&self, stage: &str, rejected: &[Rejected]) -> Vec<Batch> {
        rejected
            .chunk_by(|one, next| one.batch.origin() == next.batch.origin())
            .map(|chunk| {
                let origin = chunk[0].batch.origin();
                let bytes = chunk.iter().map(|one| one.batch.payload_bytes()).sum::<u64>();
                let capacity = usize::try_from(bytes).unwrap_or(0) + 512 * chunk.len();
                let mut letters = BatchBuilder::new(Arc::clone(origin), capacity, chunk.len());
                for one in chunk {
                    self.write(stage, one, &mut letters);
                }
                letters.finish()
            })
            .collect()
    }

    /// Letters that their sink refuses, for their size most likely, with at most `most` bytes of each body. What was cut
    /// away is named in a header; the place that the record came from is named already.
    #[must_use]
    pub fn cut(letters: &Batch, records: &[Record], most: usize) -> Batch {
        let mut shorter = BatchBuilder::new(Arc::clone(letters.origin()), most.min(1 << 16), records.len());
        for record in records {
            let body = letters.body(record);
            let mut headers = HeadersBuilder::default();
            for Header { name, value } in letters.headers(record) {
                headers.push(name, value);
            }
            if body.len() > most {
                headers.push(b"weir-cut-from-bytes", Some(body.len().to_string().as_bytes()));
            }
            shorter.push_copy(Draft {
                body: &body[..body.len().min(most)],
                format: BodyFormat::Verbatim,
                key: letters.key(record),
                headers: headers.encoded(),
                timestamp: record.timestamp,
                offset: record.offset,
            });
        }
        shorter.finish()
    }

    /// What is said about each record of a refused batch.
    fn facts<'a>(&'a self, stage: &'a str, one: &'a Rejected, offset: i64) -> [(&'static str, String); 7] {
        let origin = one.batch.origin();
        [
            ("error", one.error.clone()),
            ("stage", stage.to_owned()),
            ("pipeline", self.pipeline.to_string()),
            ("source", origin.source.to_string()),
            ("topic", origin.topic.to_string()),
            ("partition", origin.number.to_string()),
            ("offset", offset.to_string()),
        ]
    }

    fn write(&self, stage: &str, one: &Rejected, letters: &mut BatchBuilder) {
        for record in one.batch.records() {
            let body = one.batch.body(record);
            let key = one.batch.key(record);
            let facts = self.facts(stage, one, record.offset);
            let (format, timestamp, offset) = (written_as_it_stands(record.format), record.timestamp, record.offset);
            if self.headers {
                let mut headers = HeadersBuilder::default();
                for Header { name, value } in one.batch.headers(record) {
                    headers.push(name, value);
                }
                for (name, value) in &facts {
                    headers.push(format!("{HEADER_PREFIX}{name}").as_bytes(), Some(value.as_bytes()));
                }
                letters.push_copy(Draft { body, format, key, headers: headers.encoded(), timestamp, offset });
            } else {
                let mut object = Map::new();
                object.extend(facts.into_iter().map(|(name, value)| (name.to_owned(), value.into())));
                object.insert("timestamp_ms".to_owned(), timestamp.0.into());
                text_or_bytes(&mut object, "key", key);
                headers_of(&mut object, one.batch.headers(record));
                text_or_bytes(&mut object, "body", Some(body));
                let envelope = Value::Object(object).to_string();
                letters.push_copy(Draft { body: envelope.as_bytes(), format, key, headers: &[], timestamp, offset });
            }
        }
    }
}

/// A record without a body is a letter without one.
fn written_as_it_stands(format: BodyFormat) -> BodyFormat {
    if format == BodyFormat::Absent { format } else { BodyFormat::Verbatim }
}

/// As text under `name` if it is UTF-8, else as an array of bytes under `name_bytes`.
fn text_or_bytes(object: &mut Map<String, Value>, name: &str, bytes: Option<&[u8]>) {
    let Some(bytes) = bytes else { return };
    match std::str::from_utf8(bytes) {
        Ok(text) => object.insert(name.to_owned(), text.into()),
        Err(_) => object.insert(format!("{name}_bytes"), bytes.to_vec().into()),
    };
}

fn headers_of(object: &mut Map<String, Value>, headers: Headers<'_>) {
    if headers.is_empty() {
        return;
    }
    let list = headers.map(|Header { name, value }| {
        let mut header = Map::new();
        text_or_bytes(&mut header, "name", Some(name));
        text_or_bytes(&mut header, "value", value);
        Value::Object(header)
    });
    object.insert("headers".to_owned(), list.collect());
}

#[cfg(test)]
mod tests {
    use super::*;
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
        DeadLetterForm { pipeline: "p".into(), headers }
    }

    #[test]
    fn a_letter_keeps_the_very_bytes_and_says_why_in_headers() {
        let letters = form(true).letters("clean", &[refused(b"{\"a\":\xff}")]);
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
        let letters = form(true).letters("clean", &[refused(&[b'x'; 100])]);
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
        let letters = form(false).letters("clean", &[refused(b"x\ny"), refused(b"\xff")]);
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
}
