//! Channels between stages: always bounded, and counted.
//!
//! One item is a whole batch, so that a hop costs a fraction of a nanosecond a record. A full channel
//! stops its writer.

use tokio::sync::mpsc;

use crate::observe::StageMetrics;
use crate::record::Batch;

/// How many batches wait in a channel before its writer stops. Small, so that memory and the time to close an epoch
/// stay small; more than one, so that both sides can work at once.
const CAPACITY: usize = 4;

/// What travels between stages.
#[derive(Debug)]
pub(super) enum Item {
    /// Records.
    Batch(Batch),
    /// Everything before it belongs to this epoch, or to an earlier one.
    Barrier(u64),
}

/// An item and the run that it belongs to. Whatever is of another run than its reader is dropped.
#[derive(Debug)]
struct Envelope {
    run: u64,
    item: Item,
}

/// The writing end. Its metrics are those of the stage that reads.
#[derive(Debug)]
pub(super) struct Writer {
    run: u64,
    channel: mpsc::Sender<Envelope>,
    metrics: StageMetrics,
}

/// The reading end.
#[derive(Debug)]
pub(super) struct Reader {
    run: u64,
    channel: mpsc::Receiver<Envelope>,
    metrics: StageMetrics,
}

/// The other side is gone: the run is being torn down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Closed;

/// A channel of one run into a stage.
pub(super) fn channel(run: u64, reader: &StageMetrics) -> (Writer, Reader) {
    let (writing, reading) = mpsc::channel(CAPACITY);
    (
        Writer { run, channel: writing, metrics: reader.clone() },
        Reader { run, channel: reading, metrics: reader.clone() },
    )
}

/// Adds to the gauges of what waits, or takes from them.
fn count(metrics: &StageMetrics, batch: &Batch, sign: i64) {
    let signed = |count: u64| sign * i64::try_from(count).unwrap_or(i64::MAX);
    metrics.channel_records.add(signed(batch.len() as u64));
    metrics.channel_bytes.add(signed(batch.memory_bytes()));
}

impl Writer {
    /// Waits for room, then hands the item over.
    pub(super) async fn write(&self, item: Item) -> Result<(), Closed> {
        let permit = self.channel.reserve().await.map_err(|_| Closed)?;
        if let Item::Batch(batch) = &item {
            count(&self.metrics, batch, 1);
        }
        permit.send(Envelope { run: self.run, item });
        Ok(())
    }
}

#[cfg(test)]
impl Writer {
    /// Writes as if it were of another run.
    pub(super) fn pretend_run(&mut self, run: u64) {
        self.run = run;
    }
}

impl Reader {
    /// The next item of this run, once there is one.
    pub(super) fn poll(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<Result<Item, Closed>> {
        loop {
            let Some(envelope) = std::task::ready!(self.channel.poll_recv(cx)) else {
                return std::task::Poll::Ready(Err(Closed));
            };
            if let Item::Batch(batch) = &envelope.item {
                count(&self.metrics, batch, -1);
            }
            if envelope.run == self.run {
                return std::task::Poll::Ready(Ok(envelope.item));
            }
        }
    }
}

impl Drop for Reader {
    /// What is left waits no more.
    fn drop(&mut self) {
        self.channel.close();
        while let Ok(envelope) = self.channel.try_recv() {
            if let Item::Batch(batch) = &envelope.item {
                count(&self.metrics, batch, -1);
            }
        }
    }
}
