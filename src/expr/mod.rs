//! VRL over lazy records: programs are compiled and type-checked before anything starts.
//!
//! Two kinds of code for one language: [`Program`] is what the plan checks, [`Evaluator`] what a lane runs. A record's
//! fields are parsed when a program first reads them (`target`), and what it wrote is copied over the record only when
//! it has succeeded (`write`).

mod depth;
mod evaluator;
mod functions;
mod problems;
mod program;
mod rewrite;
mod schema;
mod target;
mod value;
mod write;

#[cfg(test)]
mod differential;

pub use evaluator::{Evaluator, Mapped, keep_as_read};
pub use program::{Program, ProgramKind};
pub use rewrite::Rewrite;
pub use schema::Schema;
