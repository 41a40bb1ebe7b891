//! The promises: what is committed, when, and how much may be under way.

pub mod checkpoint;
mod dead_letter;
pub mod letter;
mod local;
mod participant;
mod positions;
mod prepared;
mod transaction;

pub use dead_letter::{CUT_FROM_BYTES, DeadLetterForm, HEADER_PREFIX};
pub use letter::{Letter, NotALetter};
pub use local::LocalTransaction;
pub use participant::{Changes, OwnEntries, Participant, Participants};
pub use positions::{CommitPositions, Decision, Mark, Positions};
pub use transaction::{Committed, FenceError, SourceOffsets, Transaction};
