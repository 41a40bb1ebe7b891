//! Runs a program over the records of a lane.

use std::sync::LazyLock;

use vrl::compiler::state::RuntimeState;
use vrl::compiler::{Context, ExpressionError, TimeZone};
use vrl::value::Value;

use super::program::Program;
use super::rewrite::Rewrite;
use super::target::{LazyRecord, Overlay};
use super::write;
use crate::record::{Batch, Record};

/// A program, and all that its runs reuse from record to record.
pub struct Evaluator {
    program: Program,
    state: RuntimeState,
    overlay: Overlay,
    edits: write::Edits,
}

/// What a mapping made of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mapped {
    /// It goes on, changed or not.
    Kept,
    /// The program said `abort`: the record is dropped on purpose.
    Dropped,
}

/// Times without a zone are UTC everywhere: a replay on another machine must give the same.
static UTC: LazyLock<TimeZone> =
    LazyLock::new(|| TimeZone::try_from("UTC".to_owned()).expect("the zone database has UTC"));

impl Evaluator {
    /// Of one lane.
    #[must_use]
    pub fn new(program: &Program) -> Self {
        Self {
            program: program.clone(),
            state: RuntimeState::default(),
            overlay: Overlay::new(&program.0.fields),
            edits: write::Edits::default(),
        }
    }

    /// Whether a condition holds.
    ///
    /// # Errors
    /// What failed: the record is to be rejected, for the answer is not known.
    pub fn holds(&mut self, batch: &Batch, record: &Record) -> Result<bool, String> {
        let answer = self.run(batch, record);
        if let Some(error) = self.overlay.take_error() {
            return Err(error);
        }
        match answer {
            Ok(Value::Boolean(holds)) => Ok(holds),
            // A condition that may fail gives its error as its value.
            Ok(other) => Err(other.to_string_lossy().into_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Runs a mapping, and adds what it made of the record to `rewrite`, which is of this batch.
    ///
    /// # Errors
    /// What failed: the record is to be rejected, and nothing that the program wrote remains.
    pub fn map(&mut self, batch: &Batch, record: &Record, rewrite: &mut Rewrite) -> Result<Mapped, String> {
        let end = self.run(batch, record);
        if let Some(error) = self.overlay.take_error() {
            return Err(error);
        }
        match end {
            Ok(_) | Err(ExpressionError::Return { .. }) => {}
            Err(ExpressionError::Abort { .. }) => return Ok(Mapped::Dropped),
            Err(error) => return Err(error.to_string()),
        }
        write::changed(batch, record, &self.overlay, &mut self.edits, rewrite)?;
        Ok(Mapped::Kept)
    }

    /// Lets go of the last record's batch.
    pub fn release(&mut self) {
        self.overlay.clear();
        self.state.clear();
    }

    /// Whether the last run has looked at a field.
    fn has_touched(&self, name: &str) -> bool {
        self.overlay.has_touched(name)
    }

    /// VRL's own `Runtime` asks for the whole record before it begins, which would make every body a tree.
    fn run(&mut self, batch: &Batch, record: &Record) -> Result<Value, ExpressionError> {
        self.overlay.clear();
        self.state.clear();
        let program = &self.program.0;
        let mut target = LazyRecord::new(batch, record, &mut self.overlay, program.salt);
        program.vrl.resolve(&mut Context::new(&mut target, &mut self.state, &UTC))
    }
}

/// Lets a record go on that conditions have read and not changed. Fields that they have read are no longer ambiguous
/// then: of several with one name only the last goes on, which is the one that the conditions saw.
pub fn keep_as_read(batch: &Batch, record: &Record, read_by: &[Evaluator], rewrite: &mut Rewrite) {
    if record.duplicate_keys {
        write::collapsed(batch, record, |name| read_by.iter().any(|reader| reader.has_touched(name)), rewrite);
    } else {
        rewrite.keep(record);
    }
}
