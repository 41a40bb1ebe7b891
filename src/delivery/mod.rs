//! The promises: what is committed, when, and how much may be under way.

pub mod checkpoint;
mod dead_letter;
pub mod letter;
mod positions;
mod transaction;

pub use dead_letter::{DeadLetterForm, HEADER_PREFIX};
pub use letter::{Letter, NotALetter};
pub use positions::{CommitPositions, Positions};
pub use transaction::{Committed, SourceOffsets, Transaction};
