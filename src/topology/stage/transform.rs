//! The stage around one lane of a transform.

use super::super::channel::Item;
use super::super::failure::{Failure, at_work};
use super::super::inputs::Inputs;
use super::super::outputs::{Ports, Rejects};
use super::{Spent, StageContext, Stopwatch};
use crate::component::{BoxTransform, Output};

/// One lane of a transform, with all that it reads and writes.
pub(in crate::topology) struct TransformTask {
    pub(in crate::topology) cx: StageContext,
    pub(in crate::topology) transform: BoxTransform,
    pub(in crate::topology) inputs: Inputs,
    pub(in crate::topology) ports: Ports,
    pub(in crate::topology) rejects: Rejects,
}

impl TransformTask {
    /// Works until the run is torn down, or something fails.
    pub(in crate::topology) async fn run(mut self) -> Result<(), Failure> {
        let mut watch = Stopwatch::start(self.cx.runtime.clock());
        loop {
            let item = self.inputs.next().await?;
            watch.lap(&self.cx.metrics, Spent::Idle);
            match item {
                Item::Batch(batch) => {
                    let metrics = &self.cx.metrics;
                    metrics.received_records.inc_by(batch.len() as u64);
                    metrics.received_bytes.inc_by(batch.payload_bytes());
                    for batch in self.cx.works_on(batch, &self.rejects).await? {
                        let alone = self.cx.quarantine.alone(&self.cx.name, &batch);
                        let mut out = Output::default();
                        at_work(alone, || self.transform.apply(batch, &mut out))?;
                        watch.lap(&self.cx.metrics, Spent::Busy);
                        self.pass_on(out).await?;
                    }
                }
                Item::Barrier(epoch) => {
                    self.ports.barrier(epoch).await?;
                    self.rejects.barrier(epoch).await?;
                }
            }
            watch.lap(&self.cx.metrics, Spent::Blocked);
        }
    }

    /// Sends what became of a batch: refused records first, so that a dead letter never waits behind a full channel.
    async fn pass_on(&mut self, out: Output) -> Result<(), Failure> {
        let Output { emitted, mut discarded, rejected } = out;
        self.rejects.handle(rejected).await?;
        for (port, batch) in emitted {
            if !self.ports.is_read(port) {
                discarded += batch.len() as u64;
                continue;
            }
            batch.charge(|bytes| self.cx.budget.charge(bytes, None));
            self.cx.metrics.sent_records.inc_by(batch.len() as u64);
            self.cx.metrics.sent_bytes.inc_by(batch.payload_bytes());
            self.ports.write(port, batch).await?;
        }
        if discarded > 0 {
            self.cx.metrics.discarded("filtered", discarded);
        }
        Ok(())
    }
}
