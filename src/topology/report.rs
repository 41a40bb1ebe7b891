//! What stages tell the coordinator.

use tokio::sync::mpsc;

use super::failure::Failure;
use crate::clock::Instant;
use crate::delivery::Positions;

/// A stage's word to the coordinator.
#[derive(Debug)]
pub(super) enum Report {
    /// The first batch since the last barrier was pulled: there is something to commit.
    Moved,
    /// A source holds back records until all that moved is committed: the epoch is to close at once.
    Hurry,
    /// A sink has something to do at a barrier, also if nothing has moved.
    Wanted,
    /// A finite source has been read to its end.
    Ended { source: usize },
    /// A source has put the barrier behind the last batch it pulled.
    Barrier {
        source: usize,
        epoch: u64,
        /// The positions that moved since the barrier before.
        positions: Positions,
        /// When each batch of the epoch arrived, and how many records it has.
        arrivals: Vec<(Instant, usize)>,
    },
    /// Everything before the barrier is durable at this sink.
    Settled { sink: usize, epoch: u64 },
}

/// A report and the run it is of; the coordinator drops what is of an earlier one.
#[derive(Debug)]
pub(super) struct Dated {
    pub(super) run: u64,
    pub(super) report: Report,
}

/// The way to the coordinator. One mailbox serves all runs of a pipeline.
#[derive(Debug, Clone)]
pub(super) struct Reports(mpsc::Sender<Dated>);

impl Reports {
    /// The mailbox. It holds a few reports from every stage of any sensible pipeline.
    pub(super) fn mailbox() -> (Self, mpsc::Receiver<Dated>) {
        let (sender, receiver) = mpsc::channel(256);
        (Self(sender), receiver)
    }

    pub(super) async fn send(&self, run: u64, report: Report) -> Result<(), Failure> {
        self.0.send(Dated { run, report }).await.map_err(|_| Failure::Closed)
    }
}
