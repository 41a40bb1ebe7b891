//! The records of these tests, the pipeline that they pass, and what must come out of it.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::broker::{Consumed, Record};

/// How many keys the records are spread over.
pub(crate) const KEYS: u64 = 16;

/// The `n`th record. Its key tells its order: the records of a key count up in `seq`.
pub(crate) fn order(n: u64) -> Record {
    let (key, seq) = (format!("user-{}", n % KEYS), n / KEYS);
    let level = if n % 5 == 3 { "debug" } else { "info" };
    let body = format!(
        r#"{{"key":"{key}","seq":{seq},"n":{n},"level":"{level}","price":{},"qty":{},"note":"order {n}"}}"#,
        n % 100,
        1 + n % 3
    );
    Record::new(body)
        .key(key)
        .header("trace", format!("t-{n}"))
        .header("trace", "again")
        .at(1_700_000_000_000 + i64::try_from(n).expect("tests are small"))
}

/// What becomes of the `n`th record; `None` if it is dropped on purpose.
pub(crate) fn mapped(n: u64) -> Option<Value> {
    let level = if n % 5 == 3 { return None } else { "info" };
    Some(json!({
        "key": format!("user-{}", n % KEYS),
        "seq": n / KEYS,
        "n": n,
        "level": level,
        "price": n % 100,
        "note": format!("order {n}"),
        "total": (n % 100) * (1 + n % 3),
    }))
}

/// How many of the first `count` records come out.
pub(crate) fn kept(count: u64) -> usize {
    (0..count).filter(|n| mapped(*n).is_some()).count()
}

/// A pipeline that filters and maps orders from a topic to a topic. `more` goes to the top level.
pub(crate) fn pipeline(name: &str, guarantee: &str, source: &str, sink: &str, more: &str) -> String {
    format!(
        r#"
name: {name}
guarantee: {guarantee}
sources:
  orders:
    kafka: {{ brokers: "${{KAFKA_BROKERS}}", topics: [{source}], group: {name} }}
transforms:
  - name: wanted
    filter: .level != "debug"
  - name: priced
    map: |
      .total = to_int!(.price) * to_int!(.qty)
      del(.qty)
sinks:
  totals:
    kafka: {{ brokers: "${{KAFKA_BROKERS}}", topic: {sink} }}
{more}"#
    )
}

/// The numbers of the records of each key, in the order in which a reader finds them.
pub(crate) fn by_key(records: &[Consumed]) -> BTreeMap<String, Vec<u64>> {
    let mut numbers = BTreeMap::<String, Vec<u64>>::new();
    for record in records {
        let body = record.json();
        let key = body["key"].as_str().expect("each has its key in its body");
        assert_eq!(record.key.as_deref(), Some(key.as_bytes()), "the key is kept");
        numbers.entry(key.to_owned()).or_default().push(body["n"].as_u64().expect("each has its number"));
    }
    numbers
}

/// The numbers that must come out of the first `count` records, key by key in order.
pub(crate) fn expected(count: u64) -> BTreeMap<String, Vec<u64>> {
    let mut numbers = BTreeMap::<String, Vec<u64>>::new();
    for n in (0..count).filter(|n| mapped(*n).is_some()) {
        numbers.entry(format!("user-{}", n % KEYS)).or_default().push(n);
    }
    numbers
}

/// Proves that every record came out once, in the order of its key.
pub(crate) fn assert_exactly(records: &[Consumed], count: u64) {
    let (found, expected) = (by_key(records), expected(count));
    for (key, expected) in &expected {
        let found = found.get(key).map_or(&[][..], Vec::as_slice);
        if found != expected {
            let at = found.iter().zip(expected).take_while(|(one, other)| one == other).count();
            panic!(
                "{key}: {} records, {} expected; they part at {at}: found {:?}, expected {:?}",
                found.len(),
                expected.len(),
                &found[at.saturating_sub(2)..found.len().min(at + 6)],
                &expected[at.saturating_sub(2)..expected.len().min(at + 6)]
            );
        }
    }
    assert_eq!(found.len(), expected.len(), "no other keys");
}

/// Proves that no record is missing, and that a repeat is a replay: within a key the numbers go back to a committed
/// place and on from there, and never jump over one. Tells how many came more than once.
pub(crate) fn assert_at_least(records: &[Consumed], count: u64) -> usize {
    let (found, expected) = (by_key(records), expected(count));
    let mut repeats = 0;
    for (key, expected) in &expected {
        let mut next = 0;
        for n in found.get(key).map_or(&[][..], Vec::as_slice) {
            if expected.get(next) == Some(n) {
                next += 1;
            } else {
                let is_a_repeat = expected[..next].binary_search(n).is_ok();
                assert!(is_a_repeat, "{key}: {n} came where {:?} was due", expected.get(next));
                repeats += 1;
            }
        }
        assert_eq!(next, expected.len(), "{key}: {:?} and what follows is missing", expected.get(next));
    }
    repeats
}
