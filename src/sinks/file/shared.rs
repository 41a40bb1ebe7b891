//! What a file sink shares with the local commit of its pipeline.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::future::BoxFuture;

use super::files::{Barrier, Files, Staged};
use crate::clock::Instant;
use crate::component::{Settled, SinkError};
use crate::delivery::{Changes, OwnEntries, Participant};
use crate::record::Batch;
use crate::runtime::Runtime;

/// The files of a sink, and its barriers that are not committed yet.
pub(super) struct Shared {
    name: Arc<str>,
    runtime: Runtime,
    entries: OwnEntries,
    /// Locked by each piece of blocking work, for as long as it takes.
    working: Mutex<Working>,
    /// Locked for a moment only.
    barriers: Mutex<Barriers>,
    /// When a file is to be finished, as of the last work. Locked for a moment only.
    due: Mutex<Option<Instant>>,
}

struct Working {
    /// Raised by each recovery. Work of an earlier run that was abandoned before it began finds another number here.
    run: u64,
    files: Files,
}

#[derive(Debug, Default)]
struct Barriers {
    /// In the order in which they were flushed, which is that in which they are committed.
    open: VecDeque<Barrier>,
    /// Files that are finished in the epoch that is being committed.
    finished: Vec<Arc<str>>,
}

/// What became of a batch.
pub(super) enum Written {
    /// It is written.
    All(Settled),
    /// It can be written once the store knows what files it goes to.
    Claims(Staged),
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileSink").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) fn new(name: Arc<str>, runtime: Runtime, entries: OwnEntries, files: Files) -> Self {
        let working = Mutex::new(Working { run: 0, files });
        Self { name, runtime, entries, working, barriers: Mutex::default(), due: Mutex::default() }
    }

    fn working(&self) -> MutexGuard<'_, Working> {
        self.working.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn barriers(&self) -> MutexGuard<'_, Barriers> {
        self.barriers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When a file is to be finished, whether a record comes or not.
    pub(super) fn due(&self) -> Option<Instant> {
        *self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The run that work may be done for.
    pub(super) fn run(&self) -> u64 {
        self.working().run
    }

    /// Works on the files for a run, unless a later one has begun.
    pub(super) async fn work<T: Send + 'static>(
        self: &Arc<Self>,
        run: u64,
        work: impl FnOnce(&mut Files) -> Result<T, SinkError> + Send + 'static,
    ) -> Result<T, SinkError> {
        let shared = Arc::clone(self);
        let checked = move || {
            let mut working = shared.working();
            if working.run == run {
                let outcome = work(&mut working.files);
                let due = working.files.due_in().map(|wait| shared.runtime.clock().now() + wait);
                *shared.due.lock().unwrap_or_else(PoisonError::into_inner) = due;
                outcome
            } else {
                Err(SinkError::Rewind("a later run has begun".to_owned()))
            }
        };
        self.runtime.blocking(checked).await
    }

    /// Writes a batch, unless the store must know of its files first.
    pub(super) async fn write(self: &Arc<Self>, run: u64, batch: Arc<Batch>) -> Result<Written, SinkError> {
        let write = move |files: &mut Files| {
            let staged = files.stage(&batch)?;
            if staged.claims.is_empty() { files.append(staged).map(Written::All) } else { Ok(Written::Claims(staged)) }
        };
        self.work(run, write).await
    }

    /// Claims the files of what was staged, and writes it.
    pub(super) async fn append(self: &Arc<Self>, run: u64, staged: Staged) -> Result<Settled, SinkError> {
        if !staged.claims.is_empty() {
            let claimed = self.entries.write(staged.claims.clone()).await;
            claimed
                .map_err(|error| SinkError::Retry(format!("cannot note in the store which file is begun: {error}")))?;
        }
        self.work(run, move |files| files.append(staged)).await
    }

    /// Makes everything durable that was written before a barrier.
    pub(super) async fn flush(self: &Arc<Self>, run: u64) -> Result<(), SinkError> {
        let shared = Arc::clone(self);
        let flush = move |files: &mut Files| {
            let barrier = files.flush()?;
            shared.barriers().open.push_back(barrier);
            Ok(())
        };
        self.work(run, flush).await
    }

    fn rename(&self, finished: Vec<Arc<str>>) -> Result<(), String> {
        self.working().files.rename(finished).map_err(|error| error.to_string())
    }
}

impl Participant for Arc<Shared> {
    fn name(&self) -> &str {
        &self.name
    }

    fn changes(&self) -> Changes {
        let mut barriers = self.barriers();
        let Barrier { changes, finished } = barriers.open.pop_front().unwrap_or_default();
        barriers.finished.extend(finished);
        changes
    }

    fn committed(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async {
            let finished = std::mem::take(&mut self.barriers().finished);
            if finished.is_empty() {
                return Ok(());
            }
            let shared = Arc::clone(self);
            self.runtime.blocking(move || shared.rename(finished)).await
        })
    }

    fn recover(&self, entries: BTreeMap<String, Vec<u8>>) -> BoxFuture<'_, Result<(), String>> {
        let shared = Arc::clone(self);
        let recover = move || {
            let mut working = shared.working();
            working.run += 1;
            *shared.barriers() = Barriers::default();
            match working.files.recover(&entries) {
                // It is told when the sink is opened, which can say that a person must act.
                Err(error @ SinkError::Fatal(_)) => {
                    working.files.refused = Some(error);
                    Ok(Changes::new())
                }
                outcome => outcome.map_err(|error| error.to_string()),
            }
        };
        Box::pin(async move {
            let changes = self.runtime.blocking(recover).await?;
            if changes.is_empty() {
                return Ok(());
            }
            self.entries.write(changes).await.map_err(|error| error.to_string())
        })
    }

    fn finish(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async {
            let shared = Arc::clone(self);
            let finish = move || shared.working().files.finish().map_err(|error| error.to_string());
            let Barrier { changes, finished } = self.runtime.blocking(finish).await?;
            if changes.is_empty() {
                return Ok(());
            }
            self.entries.write(changes).await.map_err(|error| error.to_string())?;
            let shared = Arc::clone(self);
            self.runtime.blocking(move || shared.rename(finished)).await
        })
    }
}
