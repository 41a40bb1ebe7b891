//! What is known of the types of bodies at one point of a pipeline.

use vrl::value::Kind;
use vrl::value::kind::Collection;

/// The type of a body. Programs are checked against it, so that `.price * .qty` needs no conversion where both are
/// known to be numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct Schema {
    /// VRL's own word for it.
    pub kind: Kind,
}

impl Default for Schema {
    /// Any JSON value.
    fn default() -> Self {
        Self { kind: Kind::json() }
    }
}

impl Schema {
    /// A body that is one or the other.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self { kind: self.kind.union(other.kind) }
    }

    /// The body of a record that a program leaves as a value of this kind: JSON has no timestamps and no regular
    /// expressions, so who reads them later finds strings.
    pub(super) fn written_as_json(kind: &Kind) -> Self {
        let kind = as_json(kind);
        if kind.is_never() { Self::default() } else { Self { kind } }
    }
}

fn as_json(kind: &Kind) -> Kind {
    let mut json = kind.clone();
    // Both are asked: either call removes what it finds.
    if json.contains_timestamp() || json.contains_regex() {
        json.remove_timestamp();
        json.remove_regex();
        json.add_bytes();
    }
    if let Some(object) = json.as_object_mut() {
        *object = collection_as_json(object);
    }
    if let Some(array) = json.as_array_mut() {
        *array = collection_as_json(array);
    }
    json
}

fn collection_as_json<K: Ord + Clone>(collection: &Collection<K>) -> Collection<K>
where
    Collection<K>: Clone,
{
    let known = collection.known().iter().map(|(key, kind)| (key.clone(), as_json(kind))).collect();
    // A kind without end, such as "anything", would be walked for ever.
    let unknown = if collection.is_unknown_exact() { as_json(&collection.unknown_kind()) } else { Kind::json() };
    Collection::from_parts(known, unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_json_has_no_type_for_is_read_back_as_a_string() {
        let kind = Kind::object(
            Collection::empty().with_known("at", Kind::timestamp().or_null()).with_known("n", Kind::integer()),
        );
        let expected = Kind::object(
            Collection::empty().with_known("at", Kind::bytes().or_null()).with_known("n", Kind::integer()),
        );
        assert_eq!(Schema::written_as_json(&kind).kind, expected);
        assert_eq!(Schema::written_as_json(&Kind::json()).kind, Kind::json());
        assert!(!Schema::written_as_json(&Kind::any()).kind.contains_timestamp());
    }
}
