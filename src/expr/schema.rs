//! What is known of the types of bodies at one point of a pipeline.

use vrl::value::Kind;

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
}
