//! Keys of a JSON object: they compare by what they stand for, and the last of two equal ones counts.

use std::collections::HashSet;

use super::text::unescape;
use crate::record::Field;

/// Whether a field has this name.
#[must_use]
#[inline]
pub fn is_named(bytes: &[u8], field: &Field, name: &str) -> bool {
    let key = &bytes[field.key.range()];
    if field.escaped_key { unescape(key) == name.as_bytes() } else { key == name.as_bytes() }
}

/// The index of the field with this name; of several, the last.
#[must_use]
pub fn find(bytes: &[u8], fields: &[Field], name: &str) -> Option<usize> {
    fields.iter().rposition(|field| is_named(bytes, field, name))
}

/// Remembers which keys an object has had, roughly: it never misses a repeated one, and seldom suspects another.
#[derive(Default)]
pub(super) struct KeyFilter {
    buckets: [u64; 4],
    keys: usize,
}

/// Beyond this many keys nearly every one is suspected, and one look at all of them together is cheaper.
const FILTER_KEYS: usize = 64;

impl KeyFilter {
    /// Adds a key; returns whether it has to be compared with the ones before.
    #[inline]
    pub(super) fn seen_before(&mut self, key: &[u8]) -> bool {
        self.keys += 1;
        if self.is_full() {
            return false;
        }
        let hash = hash(key);
        let bucket = &mut self.buckets[(hash >> 62) as usize];
        let bit = 1 << (hash >> 56 & 63);
        let seen = *bucket & bit != 0;
        *bucket |= bit;
        seen
    }

    /// Whether it took no note of some keys, so that all of them have to be compared.
    pub(super) fn is_full(&self) -> bool {
        self.keys > FILTER_KEYS
    }
}

/// Mixes the first and the last eight bytes and the length of a key.
#[inline]
fn hash(key: &[u8]) -> u64 {
    let mixed = match (key.first_chunk(), key.last_chunk()) {
        (Some(first), Some(last)) => u64::from_le_bytes(*first) ^ u64::from_le_bytes(*last).rotate_left(29),
        _ => key.iter().fold(0, |word, &byte| word << 8 | u64::from(byte)),
    };
    (mixed ^ key.len() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Whether two fields have the same name. Takes time in proportion to their number, however many there are.
#[cold]
pub(super) fn has_duplicates(bytes: &[u8], fields: &[Field]) -> bool {
    let mut names = HashSet::with_capacity(fields.len());
    fields.iter().any(|field| !names.insert(unescape(&bytes[field.key.range()])))
}
