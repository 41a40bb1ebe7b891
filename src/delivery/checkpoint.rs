//! Positions in the store: one entry for each partition, in the scope of its pipeline. What else becomes durable with
//! them is in the same scope, so that one commit holds both.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::positions::Positions;
use crate::record::{Partition, Position};

/// Separates the parts of a key. It appears in no name, topic or path that anybody uses; where it does, the topic is the
/// middle part and may hold it.
const SEPARATOR: char = '\u{1f}';

/// The scope of a pipeline's positions in the store.
#[must_use]
pub fn scope(pipeline: &str) -> String {
    format!("positions{SEPARATOR}{pipeline}")
}

/// The entries of positions. One that is [forgotten](Position::FORGOTTEN) is removed.
#[must_use]
pub fn encode(positions: &Positions) -> Vec<(String, Option<Vec<u8>>)> {
    let entry = |(partition, position): (&Partition, &Position)| {
        let Partition { source, topic, number } = partition;
        let key = format!("{source}{SEPARATOR}{topic}{SEPARATOR}{number}");
        (key, (*position != Position::FORGOTTEN).then(|| position.0.to_be_bytes().to_vec()))
    };
    positions.iter().map(entry).collect()
}

/// The positions of one source among the entries of a pipeline.
///
/// # Errors
/// Names the entry that cannot be read.
pub fn decode(source: &str, entries: &[(String, Vec<u8>)]) -> Result<Positions, String> {
    decode_of(entries, |of_source| of_source == source)
}

/// The positions of all sources whose names are wanted.
///
/// # Errors
/// Names the entry that cannot be read.
pub fn decode_of(entries: &[(String, Vec<u8>)], wanted: impl Fn(&str) -> bool) -> Result<Positions, String> {
    let mut positions = Positions::new();
    for (key, value) in entries {
        let damaged = || format!("the stored position `{}` is damaged", key.replace(SEPARATOR, "/"));
        let (source, rest) = key.split_once(SEPARATOR).ok_or_else(damaged)?;
        if !wanted(source) {
            continue;
        }
        let (topic, number) = rest.rsplit_once(SEPARATOR).ok_or_else(damaged)?;
        let number = number.parse().map_err(|_| damaged())?;
        let position = value.as_slice().try_into().map_err(|_| damaged())?;
        let partition = Partition { source: Arc::from(source), topic: Arc::from(topic), number };
        positions.insert(partition, Position(i64::from_be_bytes(position)));
    }
    Ok(positions)
}

/// The key of an entry of a participant. It looks like a position of a source without a name, which no source is.
#[must_use]
pub fn participant_key(participant: &str, key: &str) -> String {
    format!("{SEPARATOR}{participant}{SEPARATOR}{key}")
}

/// The entries of a participant among those of a pipeline, by its own keys.
#[must_use]
pub fn participant_entries(participant: &str, entries: &[(String, Vec<u8>)]) -> BTreeMap<String, Vec<u8>> {
    let prefix = participant_key(participant, "");
    let own = |(key, value): &(String, Vec<u8>)| Some((key.strip_prefix(&prefix)?.to_owned(), value.clone()));
    entries.iter().filter_map(own).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn positions_come_back_as_they_were(
            entries in proptest::collection::btree_map((".*", any::<i32>()), i64::MIN + 1.., 0..8)
        ) {
            let positions: Positions = entries
                .into_iter()
                .map(|((topic, number), at)| {
                    (Partition { source: "s".into(), topic: topic.into(), number }, Position(at))
                })
                .collect();
            let stored: Vec<_> = encode(&positions).into_iter().map(|(key, value)| (key, value.unwrap())).collect();
            prop_assert_eq!(decode("s", &stored), Ok(positions));
            prop_assert_eq!(decode("other", &stored), Ok(Positions::new()));
        }

        #[test]
        fn a_forgotten_position_removes_its_entry(topic in ".*", number: i32) {
            let partition = Partition { source: "s".into(), topic: topic.into(), number };
            let entries = encode(&Positions::from([(partition, Position::FORGOTTEN)]));
            prop_assert!(matches!(&*entries, [(_, None)]));
        }

        #[test]
        fn entries_of_a_participant_are_its_own_and_no_positions(
            entries in proptest::collection::btree_map(".*", any::<Vec<u8>>(), 0..8)
        ) {
            let stored: Vec<_> =
                entries.iter().map(|(key, value)| (participant_key("out", key), value.clone())).collect();
            prop_assert_eq!(participant_entries("out", &stored), entries);
            prop_assert_eq!(participant_entries("", &stored), BTreeMap::new());
            prop_assert_eq!(decode("s", &stored), Ok(Positions::new()));
        }

        #[test]
        fn a_damaged_entry_is_an_error_and_no_panic(key in ".*", value in any::<Vec<u8>>()) {
            let _ = decode("s", &[(key, value)]);
        }
    }
}
