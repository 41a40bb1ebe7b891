//! The outputs of a stage: every port to all that read it, and what it refuses to the dead letter.

use crate::clock::Clock;
use crate::component::{Port, Rejected};
use crate::delivery::DeadLetterForm;
use crate::observe::StageMetrics;
use crate::plan::OnError;
use crate::record::Batch;
use crate::record::budget::{Budget, Owner};

use super::channel::{Closed, Item, Writer};
use super::failure::Failure;

/// Where one lane of a stage writes.
#[derive(Debug, Default)]
pub(super) struct Ports {
    /// By port; each port to any number of readers.
    writers: Vec<Vec<Writer>>,
}

impl Ports {
    /// Adds a reader of a port.
    pub(super) fn connect(&mut self, port: Port, writer: Writer) {
        let port = usize::from(port.0);
        if self.writers.len() <= port {
            self.writers.resize_with(port + 1, Vec::new);
        }
        self.writers[port].push(writer);
    }

    /// Whether anybody reads the port.
    pub(super) fn is_read(&self, port: Port) -> bool {
        self.writers.get(usize::from(port.0)).is_some_and(|readers| !readers.is_empty())
    }

    /// Passes a batch to all readers of a port. They share its bytes.
    pub(super) async fn write(&self, port: Port, batch: Batch) -> Result<(), Closed> {
        let Some((last, others)) = self.writers.get(usize::from(port.0)).and_then(|readers| readers.split_last())
        else {
            return Ok(());
        };
        for writer in others {
            writer.write(Item::Batch(batch.clone())).await?;
        }
        last.write(Item::Batch(batch)).await
    }

    /// Passes a barrier to all readers of all ports.
    pub(super) async fn barrier(&self, epoch: u64) -> Result<(), Closed> {
        for writer in self.writers.iter().flatten() {
            writer.write(Item::Barrier(epoch)).await?;
        }
        Ok(())
    }
}

/// What becomes of the records that one lane of a stage refuses.
#[derive(Debug)]
pub(super) struct Rejects {
    pub(super) stage: std::sync::Arc<str>,
    pub(super) on_error: OnError,
    /// Whether the stage is the dead letter itself.
    pub(super) is_dead_letter: bool,
    pub(super) form: Option<DeadLetterForm>,
    pub(super) dead_letter: Option<Writer>,
    pub(super) metrics: StageMetrics,
    pub(super) budget: Budget,
    pub(super) clock: Clock,
}

impl Rejects {
    /// Sends refused records where the stage's `on_error` says, in order.
    pub(super) async fn handle(&self, rejected: Vec<Rejected>) -> Result<(), Failure> {
        let Some(first) = rejected.first() else {
            return Ok(());
        };
        let count = rejected.len() as u64;
        self.metrics.error("rejected");
        match (self.on_error, &self.dead_letter, &self.form) {
            (OnError::Drop, _, _) => self.metrics.discarded("rejected", count),
            (OnError::DeadLetter, Some(writer), Some(form)) => {
                self.metrics.discarded("dead_letter", count);
                for letters in form.letters(&self.stage, &rejected, self.clock.timestamp()) {
                    letters.charge(|bytes| self.budget.charge(bytes, None::<Owner>));
                    writer.write(Item::Batch(letters)).await?;
                }
            }
            (OnError::DeadLetter | OnError::Stop, _, _) => {
                let origin = first.batch.origin();
                let offset = first.batch.records().first().map_or(-1, |record| record.offset);
                let next = if self.is_dead_letter {
                    "make room for it in the dead letter, or take the cause away"
                } else {
                    "name a `dead_letter` for the pipeline, or say `on_error: drop` for this stage"
                };
                return Err(Failure::Fatal(format!(
                    "a record at offset {offset} of {origin} was refused: {}; {next}",
                    first.error
                )));
            }
        }
        Ok(())
    }

    /// Passes a barrier to the dead letter.
    pub(super) async fn barrier(&self, epoch: u64) -> Result<(), Closed> {
        match &self.dead_letter {
            Some(writer) => writer.write(Item::Barrier(epoch)).await,
            None => Ok(()),
        }
    }
}
