//! The lazy JSON body: validated in one pass, indexed at its top level, and otherwise left as it was written.
//!
//! What [`index`] lets through, every parser of a field accepts: it is as strict about UTF-8, escapes, surrogates,
//! numbers and depth as `serde_json` is when it reads a tree.

mod keys;
mod scan;
mod text;

pub use keys::{find, is_named};
pub use scan::{Indexed, MAX_DEPTH, index};
pub use text::{compact, is_one_line, unescape, write_string};

use std::fmt;

/// Why a text is not JSON. It holds places and expectations, and nothing of the text itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed {
    reason: String,
}

impl Malformed {
    /// Finds the reason why a text was refused. Slow: only a malformed body pays for it.
    pub(super) fn explain(text: &[u8]) -> Self {
        if text.iter().all(|byte| matches!(byte, b' ' | b'\n' | b'\r' | b'\t')) {
            return Self { reason: "expected a JSON value, found nothing".to_owned() };
        }
        let reason = match serde_json::from_slice::<serde_json::Value>(text) {
            Err(error) => error.to_string(),
            Ok(_) => "a number is out of range".to_owned(),
        };
        Self { reason }
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not JSON: {}", self.reason)
    }
}

impl std::error::Error for Malformed {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;
    use crate::record::{ByteRange, Field};

    fn indexed(text: &[u8]) -> Result<(Indexed, Vec<Field>), Malformed> {
        let mut fields = Vec::new();
        let indexed = index(text, ByteRange::new(0, text.len()), &mut fields)?;
        Ok((indexed, fields))
    }

    /// The scanner accepts what `serde_json` accepts, and finds the same fields.
    fn agrees_with_serde_json(text: &[u8]) {
        let reference = serde_json::from_slice::<Value>(text);
        let shown = String::from_utf8_lossy(text);
        let (indexed, fields) = match (indexed(text), &reference) {
            (Ok(found), Ok(_)) => found,
            (Err(_), Err(_)) => return,
            (ours, theirs) => panic!("{shown}: ours {ours:?}, theirs {theirs:?}"),
        };
        let Ok(Value::Object(object)) = reference else {
            assert_eq!(indexed.fields, None, "{shown}");
            return;
        };
        assert_eq!(indexed.fields.map(|range| range.len as usize), Some(fields.len()), "{shown}");
        assert_eq!(indexed.duplicate_keys, object.len() != fields.len(), "{shown}");
        for (key, value) in &object {
            let found = &fields[find(text, &fields, key).expect("a field that serde_json found")];
            let ours: Value = serde_json::from_slice(&text[found.value.range()]).unwrap();
            assert_eq!(&ours, value, "{shown}");
        }
    }

    fn strings() -> impl Strategy<Value = String> {
        prop_oneof![
            "[a-z]{0,12}",
            "\\PC{0,10}",
            prop::collection::vec(
                prop_oneof![
                    Just("\\u00e9"),
                    Just("\\ud83d\\ude00"),
                    Just("\\ud83d"),
                    Just("\\ude00\\ud83d"),
                    Just("\\ud83d\\u0041"),
                    Just("\\n"),
                    Just("\\\""),
                    Just("\\x"),
                    Just("\\u12"),
                    Just("é"),
                    Just("longer than a word"),
                    Just("\u{1}"),
                ],
                0..5
            )
            .prop_map(|parts| parts.concat()),
        ]
        .prop_map(|text| format!("\"{text}\""))
    }

    fn numbers() -> impl Strategy<Value = String> {
        prop_oneof![
            any::<i64>().prop_map(|number| number.to_string()),
            any::<f64>()
                .prop_filter("JSON has no other", |number| number.is_finite())
                .prop_map(|number| format!("{number:e}")),
            "-?[0-9]{1,25}(\\.[0-9]{0,20})?([eE][+-]?[0-9]{1,4})?",
            "-?[0-9]{300,320}",
            Just("1e400".to_owned()),
            Just("-0".to_owned()),
            Just("0e999999999999".to_owned()),
            Just("1e-999999999999".to_owned()),
            Just("18446744073709551616".to_owned()),
        ]
    }

    fn documents() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![strings(), numbers(), Just("true".into()), Just("false".into()), Just("null".into())];
        let space = || prop_oneof![5 => Just(""), 1 => Just(" "), 1 => Just("\r\n\t")];
        leaf.prop_recursive(6, 48, 6, move |inner| {
            let members =
                prop::collection::vec((strings(), space(), inner.clone(), space()), 0..6).prop_map(|members| {
                    let members: Vec<_> =
                        members.iter().map(|(key, a, value, b)| format!("{a}{key}{b}:{a}{value}{b}")).collect();
                    format!("{{{}}}", members.join(","))
                });
            let items = prop::collection::vec((space(), inner), 0..6).prop_map(|items| {
                let items: Vec<_> = items.iter().map(|(space, item)| format!("{space}{item}{space}")).collect();
                format!("[{}]", items.join(","))
            });
            prop_oneof![3 => members, 1 => items]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn any_bytes_are_judged_as_serde_json_does(text in prop::collection::vec(any::<u8>(), 0..64)) {
            agrees_with_serde_json(&text);
        }

        #[test]
        fn bytes_of_json_syntax_are_judged_as_serde_json_does(text in "[\\[\\]{}:,\"\\\\ \n0-9eE.+tfn-]{0,24}") {
            agrees_with_serde_json(text.as_bytes());
        }

        #[test]
        fn documents_are_judged_as_serde_json_does(text in documents()) {
            agrees_with_serde_json(text.as_bytes());
        }

        #[test]
        fn broken_documents_are_judged_as_serde_json_does(
            text in documents(), at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<bool>(),
        ) {
            let mut text = text.into_bytes();
            let at = at.index(text.len());
            if cut { text.truncate(at) } else { text[at] = byte }
            agrees_with_serde_json(&text);
        }

        #[test]
        fn compacting_changes_no_value(text in documents()) {
            if let Ok(value) = serde_json::from_str::<Value>(&text) {
                let mut compacted = Vec::new();
                compact(text.as_bytes(), &mut compacted);
                prop_assert!(is_one_line(&compacted));
                prop_assert_eq!(serde_json::from_slice::<Value>(&compacted).unwrap(), value);
            }
        }

        #[test]
        fn a_written_string_reads_as_itself(text in any::<String>()) {
            let mut out = Vec::new();
            write_string(&text, &mut out);
            prop_assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text.as_str());
            let unescaped = unescape(&out[1..out.len() - 1]);
            prop_assert_eq!(unescaped.as_ref(), text.as_bytes());
        }
    }

    #[test]
    fn nesting_is_limited_as_serde_json_limits_it() {
        for depth in [1, 2, 126, 127, 128, 129, 100_000] {
            let arrays = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
            let objects = format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth));
            let field = format!("{{\"a\":{}0{},\"b\":1}}", "[".repeat(depth - 1), "]".repeat(depth - 1));
            for text in [arrays, objects, field] {
                assert_eq!(indexed(text.as_bytes()).is_ok(), depth <= 127, "depth {depth}");
                if depth < 1000 {
                    agrees_with_serde_json(text.as_bytes());
                }
            }
        }
        agrees_with_serde_json("[".repeat(1000).as_bytes());
    }

    #[test]
    fn wide_objects_are_indexed_in_linear_time_and_their_duplicates_found() {
        let fields: Vec<_> = (0..20_000).map(|number| format!("\"field{number}\":{number}")).collect();
        let text = format!("{{{},\"field7\":0}}", fields.join(","));
        let (found, _) = indexed(text.as_bytes()).unwrap();
        assert_eq!(found.fields.map(|range| range.len), Some(20_001));
        assert!(found.duplicate_keys);
    }

    #[test]
    fn a_body_within_a_batch_is_indexed_by_places_in_the_batch() {
        let bytes = b"xx{\"a\":1}yy{\"b\":[2]}zz";
        let mut fields = Vec::new();
        index(bytes, ByteRange::new(2, 9), &mut fields).unwrap();
        assert!(index(bytes, ByteRange::new(2, 10), &mut fields).is_err());
        let second = index(bytes, ByteRange::new(11, 20), &mut fields).unwrap();
        assert_eq!(second.fields.map(|range| (range.start, range.len)), Some((1, 1)));
        assert_eq!(&bytes[fields[1].value.range()], b"[2]");
    }

    #[test]
    fn rule_28_keys_compare_unescaped() {
        let text = br#"{"us\u0065r":1,"other":2,"user":3,"\ud83d\ude00":4}"#;
        let (found, fields) = indexed(text).unwrap();
        assert!(found.duplicate_keys);
        assert_eq!(find(text, &fields, "user"), Some(2));
        assert_eq!(find(text, &fields[..1], "user"), Some(0));
        assert_eq!(find(text, &fields, "😀"), Some(3));
        assert_eq!(find(text, &fields, "us\\u0065r"), None);
    }
}
