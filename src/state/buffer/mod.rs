//! The log of a disk buffer: batches in segment files, written at one end, read from the other, and removed behind the
//! reader. It survives the process; how much of it counts is said by whoever commits it.

pub mod frame;
mod log;
mod segment;
mod survey;

pub use log::{AppendError, Cursor, Limits, Log, Place, Stats};
pub use survey::{Survey, folder, frames, survey};
