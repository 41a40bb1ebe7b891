//! `json`: a body is one JSON value.

use crate::record::{Batch, BodyFormat, Record, Rejected, json};

/// Validates and indexes each body. Malformed ones never travel on.
pub(super) fn decode(batch: Batch, rejected: &mut Vec<Rejected>) -> Batch {
    let mut malformed = Vec::new();
    let decoded = batch.reindexed(|bytes, records, fields| {
        let expected = records.len();
        records.retain_mut(|record| {
            record.format == BodyFormat::Absent
                || match json::index(bytes, record.body, fields) {
                    Ok(indexed) => {
                        if fields.capacity() < expected {
                            // The records of a batch are alike: the first one tells how large the index will be.
                            fields.reserve(fields.len() * expected);
                        }
                        record.format = BodyFormat::Json;
                        record.fields = indexed.fields;
                        record.duplicate_keys = indexed.duplicate_keys;
                        true
                    }
                    Err(reason) => {
                        malformed.push((*record, reason.to_string()));
                        false
                    }
                }
        });
    });
    rejected.extend(
        malformed.into_iter().map(|(record, error)| Rejected { batch: decoded.with_records(vec![record]), error }),
    );
    decoded
}

/// Writes the body as it stands, but on one line. A raw body becomes a JSON string.
pub(super) fn encode(batch: &Batch, record: &Record, out: &mut Vec<u8>) -> Result<(), String> {
    let body = batch.body(record);
    match record.format {
        BodyFormat::Verbatim => out.extend_from_slice(body),
        BodyFormat::Absent => out.extend_from_slice(b"null"),
        BodyFormat::Json if json::is_one_line(body) => out.extend_from_slice(body),
        BodyFormat::Json => json::compact(body, out),
        BodyFormat::Raw => match std::str::from_utf8(body) {
            Ok(text) => json::write_string(text, out),
            Err(_) => return Err("the body is neither JSON nor UTF-8 text, so it has no form in JSON".to_owned()),
        },
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::codecs::Codec;
    use crate::record::{BatchBuilder, Draft, Partition};

    fn batch(bodies: &[&[u8]]) -> Batch {
        let origin = Arc::new(Partition { source: "s".into(), topic: "t".into(), number: 0 });
        let mut builder = BatchBuilder::new(origin, 0, bodies.len());
        for body in bodies {
            builder.push_copy(Draft { body, ..Draft::default() });
        }
        builder.finish()
    }

    fn encoded(batch: &Batch, record: usize) -> Result<String, String> {
        let mut out = Vec::new();
        Codec::Json.encode(batch, &batch.records()[record], &mut out)?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn malformed_and_empty_bodies_are_rejected_with_their_place_and_the_others_go_on() {
        let mut rejected = Vec::new();
        let decoded = Codec::Json.decode(batch(&[b"{\"a\":1}", b"{\"a\":1,}", b"", b"[1]"]), &mut rejected);
        assert_eq!(decoded.len(), 2);
        assert_eq!(decoded.fields(&decoded.records()[0]).map(<[_]>::len), Some(1));
        assert_eq!(decoded.fields(&decoded.records()[1]), None);
        let reasons: Vec<_> = rejected.iter().map(|rejected| rejected.error.as_str()).collect();
        assert_eq!(
            reasons,
            ["not JSON: trailing comma at line 1 column 8", "not JSON: expected a JSON value, found nothing"]
        );
        assert_eq!(rejected[0].batch.body(&rejected[0].batch.records()[0]), b"{\"a\":1,}");
    }

    #[test]
    fn a_body_is_encoded_as_it_stands_but_on_one_line() {
        let bodies: [&[u8]; 2] = [br#" { "a" : 1.50 } "#, b"{\n  \"a b\": \"x\\\" \\n\",\r\n  \"c\": [ 1, 2 ]\n}"];
        let decoded = Codec::Json.decode(batch(&bodies), &mut Vec::new());
        assert_eq!(encoded(&decoded, 0).unwrap(), r#" { "a" : 1.50 } "#);
        assert_eq!(encoded(&decoded, 1).unwrap(), r#"{"a b":"x\" \n","c":[1,2]}"#);
    }

    #[test]
    fn a_raw_body_is_encoded_as_a_string_or_not_at_all() {
        let raw = batch(&[b"say \"hi\"\n", b"\xff"]);
        assert_eq!(encoded(&raw, 0).unwrap(), r#""say \"hi\"\n""#);
        assert!(encoded(&raw, 1).is_err());
    }

    #[test]
    fn what_is_verbatim_is_written_as_it_stands_by_every_codec() {
        let origin = Arc::new(Partition { source: "s".into(), topic: "t".into(), number: 0 });
        let mut builder = BatchBuilder::new(origin, 0, 1);
        builder.push_copy(Draft { body: b"{\"a\":\xff", format: BodyFormat::Verbatim, ..Draft::default() });
        let batch = builder.finish();
        for codec in [Codec::Json, Codec::Raw] {
            let mut out = Vec::new();
            codec.encode(&batch, &batch.records()[0], &mut out).unwrap();
            assert_eq!(out, b"{\"a\":\xff");
        }
    }
}
