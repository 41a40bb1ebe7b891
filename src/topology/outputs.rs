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
        self.metrics.errors("rejected", count);
        match (self.on_error, &self.dead_letter, &self.form) {
            (OnError::Drop, _, _) => self.metrics.discarded("rejected", count),
            (OnError::DeadLetter, Some(writer), Some(form)) => {
                self.metrics.discarded("dead_letter", count);
                for letters in form.letters(&self.stage, &rejected, self.clock.timestamp()) {
                    letters.charge(|bytes| self.budget.charge(bytes, None::<Owner>));
                    writer.write(Item::Batch(letters)).await?;
                }
            }
            // A sink that is patient has tried again before it comes to this.
            (OnError::DeadLetter | OnError::Stop | OnError::Retry, _, _) => {
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

#[cfg(test)]
mod tests {
    use super::super::PipelineEnd;
    use super::super::channel::channel;
    use super::super::inputs::Inputs;
    use super::super::testing::{Deed, Id, Kit};
    use super::*;
    use crate::observe::Metrics;
    use crate::record::{BatchBuilder, Partition};

    /// The sum of a counter's series of one stage.
    fn count(metrics: &Metrics, name: &str, stage: &str) -> u64 {
        let label = format!("component=\"{stage}\"");
        let text = metrics.text();
        let series = text.lines().filter(|line| line.starts_with(&format!("weir_{name}{{")) && line.contains(&label));
        series.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_stage_received_it_sent_dropped_on_purpose_or_refused() {
        for seed in 0..60 {
            let random = fastrand::Rng::with_seed(seed);
            let salt = random.clone().i64(..);
            let deeds = move |stage: &str, id: Id| {
                let draw = (id.1 ^ salt).rem_euclid(7) + i64::from(id.0);
                match (stage, draw) {
                    ("work", 0) => Deed::Drop,
                    ("work", 1) | ("one", 2) | ("other", 3) => Deed::Refuse,
                    _ => Deed::Pass,
                }
            };
            let drops = seed % 3 == 0;
            let kit = Kit {
                transactional: seed % 2 == 0,
                lanes: 1 + usize::try_from(seed % 4).unwrap(),
                batch: 1 + i64::try_from(seed % 9).unwrap(),
                sinks: vec!["one", "other"],
                on_error: drops.then_some(OnError::Drop),
                ..Kit::new(deeds)
            };
            let outcome = kit.run(seed).await;
            assert_eq!(outcome.end, PipelineEnd::Finished);
            let of = |name: &str, stage: &str| count(&outcome.metrics, name, stage);
            for stage in ["in", "work", "one", "other", "dead_letter"] {
                let received = of("component_received_records_total", stage);
                let gone = of("component_discarded_records_total", stage);
                assert_eq!(received, of("component_sent_records_total", stage) + gone, "{stage}, seed {seed}");
            }
            let all = kit.all_but(&[]).len() as u64;
            assert_eq!(of("component_received_records_total", "in"), all);
            for sink in ["one", "other"] {
                assert_eq!(of("component_received_records_total", sink), of("component_sent_records_total", "work"));
                assert_eq!(of("component_sent_records_total", sink), kit.world.of(sink).len() as u64);
            }
            let refused = ["work", "one", "other"].map(|stage| of("component_discarded_records_total", stage));
            let letters = if drops { 0 } else { refused.iter().sum::<u64>() - dropped(&kit) };
            assert_eq!(kit.world.letters().len() as u64, letters, "seed {seed}");
        }
    }

    /// How many records the transform drops on purpose.
    fn dropped(kit: &Kit) -> u64 {
        kit.all_but(&[]).into_iter().filter(|id| (kit.deeds)("work", *id) == Deed::Drop).count() as u64
    }

    #[tokio::test]
    async fn rule_5_a_barrier_goes_to_all_outputs_before_any_later_batch() {
        let metrics = Metrics::new().stage("p", "c", "sink", "test");
        let mut ports = Ports::default();
        let mut readers = Vec::new();
        for port in [0, 0, 1] {
            let (writer, reader) = channel(1, &metrics);
            ports.connect(Port(port), writer);
            readers.push(Inputs::new(vec![reader]));
        }
        let origin = Partition { source: "s".into(), topic: "t".into(), number: 0 };
        let batch = BatchBuilder::new(std::sync::Arc::new(origin), 0, 0).finish();
        ports.barrier(1).await.unwrap();
        ports.write(Port(0), batch.clone()).await.unwrap();
        ports.write(Port(1), batch).await.unwrap();
        for reader in &mut readers {
            assert!(matches!(reader.next().await, Ok(Item::Barrier(1))));
            assert!(matches!(reader.next().await, Ok(Item::Batch(_))));
        }
    }
}
