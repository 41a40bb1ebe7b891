//! The promises: what is committed, when, and how much may be under way.

mod positions;
mod transaction;

pub use positions::{CommitPositions, Positions};
pub use transaction::{Committed, SourceOffsets, Transaction};
