//! The end of a buffer that is written: the last stage of an epoch domain.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::{self, BoxFuture};

use super::{Home, Link, WhenFull, entry, name, stored};
use crate::component::{
    Acknowledges, Answer, BoxSink, ByteSize, CompiledSink, LOCAL_TRANSACTION, Settled, Sink, SinkError, SinkTraits,
    Touched,
};
use crate::delivery::{Changes, OwnEntries, Participant, Participants};
use crate::record::Batch;
use crate::state::buffer::{AppendError, Log, Place};

/// After this long a full buffer is trouble: then it is told why the pipeline stands still.
const PATIENCE: Duration = Duration::from_secs(1);

pub(super) fn compiled(link: Link, carries_headers: bool) -> CompiledSink {
    let traits = SinkTraits {
        acknowledges: match link.0.when_full {
            WhenFull::Block => Acknowledges::Durable,
            WhenFull::Shed => Acknowledges::UnlessFull,
        },
        transactional_with: match link.0.when_full {
            WhenFull::Block => &[LOCAL_TRANSACTION],
            WhenFull::Shed => &[],
        },
        transaction_timeout: None,
        idempotent_by_key: false,
        per_lane: false,
        carries_headers,
    };
    let build = move |cx: &crate::component::BuildContext| {
        let name: Arc<str> = name(&link.0.stage).into();
        let own = OwnEntries::new(Arc::clone(&cx.store), &cx.pipeline, Arc::clone(&name));
        let writer = Arc::new(Writer { name, link: link.clone(), home: Home::of(cx), own, state: Mutex::default() });
        cx.clients.shared(Participants::default).join(Arc::clone(&writer) as Arc<dyn Participant>);
        Ok(Box::new(BufferSink { writer, run: 0, waited: false }) as BoxSink)
    };
    CompiledSink { traits, touched: Touched::default(), build: Arc::new(build) }
}

/// What the sink and its part in the commit share.
#[derive(Debug)]
struct Writer {
    /// Its name as a participant, and the stage's.
    name: Arc<str>,
    link: Link,
    home: Home,
    own: OwnEntries,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The run of the log that was begun last.
    run: u64,
    /// Where each barrier stands that the commit has not asked for.
    barriers: VecDeque<Place>,
    /// What was asked for last.
    asked: Option<Place>,
}

impl Writer {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn log(&self) -> Result<Arc<Log>, String> {
        self.link.log(&self.home).await
    }
}

impl Participant for Writer {
    fn name(&self) -> &str {
        &self.name
    }

    fn changes(&self) -> Changes {
        let mut state = self.state();
        match state.barriers.pop_front() {
            Some(place) if state.asked != Some(place) => {
                state.asked = Some(place);
                vec![entry(place)]
            }
            _ => Changes::new(),
        }
    }

    fn committed(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async {
            let Some(committed) = self.state().asked else { return Ok(()) };
            let log = self.log().await?;
            self.home.on(&log, move |log| log.publish(committed)).await;
            Ok(())
        })
    }

    fn recover(&self, entries: BTreeMap<String, Vec<u8>>) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            let committed = stored(entries.get(super::COMMITTED))?;
            let log = self.log().await?;
            let run = self.home.on(&log, move |log| log.cut_back(committed)).await;
            let run = run.map_err(|error| super::cannot_open(log.folder(), &error))?;
            if committed.is_none() {
                // Durable before the first frame: what a crash leaves behind it was never committed.
                self.own.write(vec![entry(log.end())]).await.map_err(|error| error.to_string())?;
            }
            *self.state() = State { run, barriers: VecDeque::new(), asked: None };
            Ok(())
        })
    }
}

struct BufferSink {
    writer: Arc<Writer>,
    /// The run of the log in which it writes.
    run: u64,
    /// Whether it has told why it waits for room.
    waited: bool,
}

impl BufferSink {
    /// Appends a batch, if there is room.
    async fn append(&self, log: &Arc<Log>, batch: &Arc<Batch>) -> Result<(), AppendError> {
        let (run, batch) = (self.run, Arc::clone(batch));
        let now = self.writer.home.runtime.clock().timestamp();
        self.writer.home.on(log, move |log| log.append(run, &batch, now)).await
    }

    /// Waits for room: at first in silence, for that is what a buffer is for, then loudly.
    async fn wait(&mut self, log: &Log, frame: u64) -> Result<(), SinkError> {
        let runtime = &self.writer.home.runtime;
        let room = log.room(frame);
        let has_room = if self.waited {
            room.await
        } else {
            tokio::select! {
                biased;
                has_room = room => has_room,
                () = runtime.sleep(PATIENCE) => {
                    self.waited = true;
                    let stage = &self.writer.link.0.stage;
                    return Err(SinkError::Retry(format!(
                        "the buffer of `{stage}` is full ({}): what comes before it waits until `{stage}` has taken some of it",
                        ByteSize(log.limits().bytes)
                    )));
                }
            }
        };
        if has_room {
            return Ok(());
        }
        let stage = &self.writer.link.0.stage;
        if self.writer.link.has_left() {
            return Err(SinkError::Outage(format!("the buffer of `{stage}` is full, and what reads it has stopped")));
        }
        Err(SinkError::Fatal(format!("the buffer of `{stage}` is full, and what reads it has failed")))
    }
}

impl Sink for BufferSink {
    fn open(&mut self) -> BoxFuture<'_, Result<(), SinkError>> {
        // The log was opened and cut back before.
        self.run = self.writer.state().run;
        self.waited = false;
        Box::pin(future::ready(Ok(())))
    }

    fn write(&mut self, batch: Arc<Batch>) -> BoxFuture<'_, Result<Answer, SinkError>> {
        Box::pin(async move {
            let log = self.writer.log().await.map_err(SinkError::Retry)?;
            let settled = loop {
                match self.append(&log, &batch).await {
                    Ok(()) => break Settled::all(),
                    Err(AppendError::Full { .. }) if self.writer.link.0.when_full == WhenFull::Shed => {
                        self.writer.home.metrics.discarded("buffer_full", batch.len() as u64);
                        break Settled { dropped: batch.len(), ..Settled::all() };
                    }
                    Err(AppendError::Full { frame }) => self.wait(&log, frame).await?,
                    Err(error) => return Err(said(&error)),
                }
            };
            self.waited = false;
            Ok(Box::pin(future::ready(Ok(settled))) as Answer)
        })
    }

    fn flush(&mut self) -> BoxFuture<'_, Result<(), SinkError>> {
        Box::pin(async move {
            let log = self.writer.log().await.map_err(SinkError::Retry)?;
            let run = self.run;
            let place = self.writer.home.on(&log, move |log| log.sync(run)).await;
            // The kernel forgets what it could not write: a second sync would succeed, and prove nothing.
            let place = place.map_err(|error| SinkError::Outage(error.to_string()))?;
            self.writer.state().barriers.push_back(place);
            Ok(())
        })
    }
}

/// A full disk may have room again; an aborted run has nothing to write.
fn said(error: &AppendError) -> SinkError {
    match error {
        AppendError::Full { .. } | AppendError::Disk { .. } => SinkError::Retry(error.to_string()),
        AppendError::Stale => SinkError::Outage(error.to_string()),
        AppendError::TooLarge => SinkError::Reject(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::component::BuildContext;
    use crate::record::{BatchBuilder, Draft, Partition};
    use crate::testing::harness::build_context;

    #[tokio::test]
    async fn a_disk_that_fails_is_no_records_fault() {
        let data = tempfile::tempdir().unwrap();
        let context = BuildContext { data_dir: data.path().into(), ..build_context() };
        let link = Link::new("out".into(), 1 << 20, WhenFull::Block);
        let mut sink = (link.sink(true).build)(&context).unwrap();
        context.clients.shared(Participants::default).recover(&Vec::new()).await.unwrap();
        sink.open().await.unwrap();
        let partition = Partition { source: "in".into(), topic: "t".into(), number: 0 };
        let mut batch = BatchBuilder::new(Arc::new(partition), 8, 1);
        batch.push_copy(Draft { body: b"one", ..Draft::default() });
        assert!(sink.write(Arc::new(batch.finish())).await.is_ok());
        // The name of the new segment can be synced no more.
        std::fs::remove_dir_all(data.path().join("buffers")).unwrap();
        // A sink that says `Rewind` has records refused once that returns.
        assert!(matches!(sink.flush().await, Err(SinkError::Outage(_))));
    }
}
