//! The records of the conservation test: what each is, and what must become of it.

use serde_json::{Value, json};

/// How many keys the records are spread over. The `n`th record has key `n % KEYS`.
pub(crate) const KEYS: u64 = 32;

/// What a topic of a Kafka sink takes; a [`Kind::Large`] record is larger.
pub(crate) const TOPIC_LIMIT: &str = "20000";
/// What it takes while its limit is lowered; a [`Kind::Medium`] record is larger, and all others are much smaller.
pub(crate) const LOWERED_LIMIT: &str = "10000";

/// What a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It comes out.
    Good,
    /// The filter drops it.
    Debug,
    /// Its body does not decode.
    Broken,
    /// The program fails on it.
    Unmappable,
    /// The topic of a Kafka sink refuses its timestamp, and with it all that is in one request with it.
    Poison,
    /// It is larger than the topic of a Kafka sink takes while its limit is lowered.
    Medium,
    /// It is larger than the topic of a Kafka sink ever takes.
    Large,
}

/// What must become of a record. There is no fourth outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It comes out of the sink.
    Delivered,
    /// It is dropped on purpose.
    Filtered,
    /// It is in the dead letter.
    DeadLettered,
    /// It comes out or is in the dead letter.
    Either,
}

impl Kind {
    /// What the `n`th record is. The divisors have no factor in common with each other or with [`KEYS`], so that every
    /// key meets every kind.
    pub(crate) fn of(n: u64) -> Self {
        match n {
            n if n % 41 == 5 => Self::Broken,
            n if n % 43 == 7 => Self::Unmappable,
            n if n % 5_003 == 1_717 => Self::Poison,
            n if n % 251 == 11 => Self::Large,
            n if n % 127 == 19 => Self::Medium,
            n if n % 9 == 4 => Self::Debug,
            _ => Self::Good,
        }
    }

    /// What must become of it, where the sink is a topic or takes anything.
    pub(crate) fn fate(self, sink_is_topic: bool) -> Fate {
        match self {
            Self::Debug => Fate::Filtered,
            Self::Broken | Self::Unmappable => Fate::DeadLettered,
            Self::Large | Self::Poison if sink_is_topic => Fate::DeadLettered,
            Self::Medium if sink_is_topic => Fate::Either,
            Self::Good | Self::Poison | Self::Medium | Self::Large => Fate::Delivered,
        }
    }
}

/// The key of the `n`th record.
pub(crate) fn key(n: u64) -> String {
    format!("user-{}", n % KEYS)
}

/// The body of the `n`th record. Its number stands in front as `id=N;`, so that it is found in a dead letter of any form.
pub(crate) fn body(n: u64) -> String {
    let (key, price, qty) = (key(n), n % 100, 1 + n % 3);
    match Kind::of(n) {
        Kind::Good | Kind::Poison => {
            format!(r#"{{"id":"id={n};","key":"{key}","n":{n},"level":"info","price":{price},"qty":{qty}}}"#)
        }
        Kind::Debug => {
            format!(r#"{{"id":"id={n};","key":"{key}","n":{n},"level":"debug","price":{price},"qty":{qty}}}"#)
        }
        Kind::Broken => format!(r#"{{"id":"id={n};","key":"{key}",, "#),
        Kind::Unmappable => {
            format!(r#"{{"id":"id={n};","key":"{key}","n":{n},"level":"info","price":"a lot","qty":{qty}}}"#)
        }
        kind @ (Kind::Medium | Kind::Large) => {
            let pad = "larger than the topic takes, ".repeat(if kind == Kind::Large { 1_000 } else { 500 });
            let front = format!(r#""id":"id={n};","key":"{key}","n":{n},"level":"info""#);
            format!(r#"{{{front},"price":{price},"qty":{qty},"pad":"{pad}"}}"#)
        }
    }
}

/// Whether a body that came out is what the pipeline must make of the `n`th record.
pub(crate) fn is_mapped(n: u64, body: &Value) -> bool {
    let expected = json!({
        "id": format!("id={n};"), "key": key(n), "n": n, "level": "info", "price": n % 100,
        "total": (n % 100) * (1 + n % 3),
    });
    let (Some(expected), Some(body)) = (expected.as_object(), body.as_object()) else { return false };
    let padded = matches!(Kind::of(n), Kind::Medium | Kind::Large);
    expected.iter().all(|(field, value)| body.get(field) == Some(value))
        && body.len() == expected.len() + usize::from(padded)
}

/// The number of the record that a letter, or anything else, speaks of.
pub(crate) fn id_in(bytes: &[u8]) -> Option<u64> {
    let at = bytes.windows(3).position(|window| window == b"id=")? + 3;
    let digits = &bytes[at..];
    let end = digits.iter().position(|byte| *byte == b';')?;
    std::str::from_utf8(&digits[..end]).ok()?.parse().ok()
}
