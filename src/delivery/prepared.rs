//! An epoch that waits for its judge, as the store keeps it.

use std::sync::Arc;

use super::checkpoint;
use super::participant::Changes;
use super::positions::Positions;

/// All that is needed to confirm the epoch, or to ask what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Prepared {
    /// The number of its mark.
    pub(super) number: u64,
    /// The source that decides.
    pub(super) source: Arc<str>,
    /// What that source was asked to commit.
    pub(super) positions: Positions,
    /// What the store holds if it was committed.
    pub(super) changes: Changes,
}

impl Prepared {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = self.number.to_be_bytes().to_vec();
        put(&mut bytes, self.source.as_bytes());
        put_changes(&mut bytes, &checkpoint::encode(&self.positions));
        put_changes(&mut bytes, &self.changes);
        bytes
    }

    /// # Errors
    /// If it is not what [`Self::encode`] made.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, String> {
        Self::read(&mut &*bytes).ok_or_else(|| "the stored epoch that waits for its source is damaged".to_owned())
    }

    fn read(bytes: &mut &[u8]) -> Option<Self> {
        let (number, rest) = bytes.split_first_chunk()?;
        *bytes = rest;
        let source: Arc<str> = take_text(bytes)?.into();
        let positions = take_changes(bytes)?.into_iter().map(|(key, value)| Some((key, value?)));
        let positions = checkpoint::decode(&source, &positions.collect::<Option<Vec<_>>>()?).ok()?;
        let changes = take_changes(bytes)?;
        bytes.is_empty().then_some(Self { number: u64::from_be_bytes(*number), source, positions, changes })
    }
}

fn put_length(bytes: &mut Vec<u8>, length: usize) {
    bytes.extend_from_slice(&(length as u64).to_be_bytes());
}

fn put(bytes: &mut Vec<u8>, part: &[u8]) {
    put_length(bytes, part.len());
    bytes.extend_from_slice(part);
}

fn put_changes(bytes: &mut Vec<u8>, changes: &Changes) {
    put_length(bytes, changes.len());
    for (key, value) in changes {
        put(bytes, key.as_bytes());
        bytes.push(u8::from(value.is_some()));
        if let Some(value) = value {
            put(bytes, value);
        }
    }
}

fn take_length(bytes: &mut &[u8]) -> Option<usize> {
    let (length, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    usize::try_from(u64::from_be_bytes(*length)).ok()
}

fn take<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = take_length(bytes)?;
    let (part, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(part)
}

fn take_text(bytes: &mut &[u8]) -> Option<String> {
    String::from_utf8(take(bytes)?.to_vec()).ok()
}

fn take_changes(bytes: &mut &[u8]) -> Option<Changes> {
    let mut changes = Changes::new();
    for _ in 0..take_length(bytes)? {
        let key = take_text(bytes)?;
        let (has_value, rest) = bytes.split_first()?;
        *bytes = rest;
        let value = match has_value {
            0 => None,
            1 => Some(take(bytes)?.to_vec()),
            _ => return None,
        };
        changes.push((key, value));
    }
    Some(changes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Partition, Position};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_epoch_comes_back_as_it_was_and_part_of_it_is_an_error(
            number in any::<u64>(),
            at in any::<i64>(),
            changes in proptest::collection::vec((".*", proptest::option::of(any::<Vec<u8>>())), 0..4),
            cut in any::<prop::sample::Index>(),
        ) {
            let partition = Partition { source: "in".into(), topic: "orders".into(), number: 3 };
            let positions = Positions::from([(partition, Position(at))]);
            let prepared = Prepared { number, source: "in".into(), positions, changes };
            let bytes = prepared.encode();
            prop_assert_eq!(Prepared::decode(&bytes), Ok(prepared));
            prop_assert!(Prepared::decode(&bytes[..cut.index(bytes.len())]).is_err());
        }

        #[test]
        fn damaged_bytes_are_an_error_and_no_panic(bytes in any::<Vec<u8>>()) {
            let _ = Prepared::decode(&bytes);
        }
    }
}
