//! A disk buffer: a sink that ends one epoch domain, and a source that begins the next. Both hold one [`Link`].
//!
//! What the sink has written counts once the epoch of its domain is committed; the source passes on nothing else. What
//! the source has passed on goes once the epoch of *its* domain is committed.

mod sink;
mod source;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use schemars::JsonSchema;
use serde::Deserialize;

use crate::component::{BuildContext, ByteSize, CompiledSink, CompiledSource, Spanned};
use crate::delivery::checkpoint;
use crate::observe::{BufferMetrics, StageMetrics};
use crate::runtime::Runtime;
use crate::state::Entries;
use crate::state::buffer::{Limits, Log, Place, folder};

/// What a file calls a buffer, and metrics its two ends.
pub const KIND: &str = "buffer";

/// The key under which the store holds how much of a buffer counts.
const COMMITTED: &str = "committed";

/// A buffer on the disk before a transform or a sink.
///
/// ```yaml
/// buffer: { disk: 2GiB }
/// ```
///
/// What comes before the buffer commits without waiting for what stands behind it: a sink that does not answer fills its
/// buffer and blocks no other branch. Records in the buffer survive the process.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BufferConfig {
    /// The space on the disk that it may take, at least `1MiB`. It is freed by segments of an eighth of this size, or of
    /// 64 MiB if that is less. An epoch that finds nothing in the buffer that could be freed is taken even if it is larger.
    pub disk: Spanned<ByteSize>,
    /// What happens when it is full.
    #[serde(default)]
    pub when_full: WhenFull,
}

/// What happens when a buffer is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WhenFull {
    /// What comes before it waits.
    #[default]
    Block,
    /// The newest records are dropped, and counted.
    Shed,
}

/// What the two ends of a buffer share. It opens the log when either is first used.
#[derive(Clone)]
pub struct Link(Arc<Shared>);

struct Shared {
    /// The name of the folder: the stage that reads it, for most.
    stage: Arc<str>,
    disk: u64,
    when_full: WhenFull,
    log: OnceLock<Arc<Log>>,
    /// What was said before the log was opened.
    finished: AtomicBool,
    abandoned: AtomicBool,
    left: AtomicBool,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Link").field(&self.0.stage).finish()
    }
}

impl Link {
    /// The buffer of a stage.
    #[must_use]
    pub fn new(stage: Arc<str>, disk: u64, when_full: WhenFull) -> Self {
        let [finished, abandoned, left] = [(); 3].map(|()| AtomicBool::new(false));
        Self(Arc::new(Shared { stage, disk, when_full, log: OnceLock::new(), finished, abandoned, left }))
    }

    /// The name of its folder.
    #[must_use]
    pub fn stage(&self) -> &Arc<str> {
        &self.0.stage
    }

    /// The end that is written. A dead letter's buffer carries headers if the dead letter does.
    #[must_use]
    pub fn sink(&self, carries_headers: bool) -> CompiledSink {
        sink::compiled(self.clone(), carries_headers)
    }

    /// The end that is read.
    #[must_use]
    pub fn source(&self) -> CompiledSource {
        source::compiled(self.clone())
    }

    /// All that will ever be written is written and committed, or the writer has failed for good: the reader ends when it
    /// has read all.
    pub fn finish(&self) {
        self.0.finished.store(true, Ordering::SeqCst);
        self.tell();
    }

    /// The reader has stopped, as all of the pipeline does: what finds no room now is read again at the next start.
    pub fn leave(&self) {
        self.0.left.store(true, Ordering::SeqCst);
        self.abandon();
    }

    /// Whether the reader has stopped.
    pub(super) fn has_left(&self) -> bool {
        self.0.left.load(Ordering::SeqCst)
    }

    /// The reader has failed for good: who waits for room waits in vain.
    pub fn abandon(&self) {
        self.0.abandoned.store(true, Ordering::SeqCst);
        self.tell();
    }

    /// Tells the log what was said of its ends.
    fn tell(&self) {
        let Some(log) = self.0.log.get() else { return };
        if self.0.finished.load(Ordering::SeqCst) {
            log.finish();
        }
        if self.0.abandoned.load(Ordering::SeqCst) {
            log.abandon();
        }
    }

    /// Its log; `None` before one of its ends was used.
    #[must_use]
    pub fn log_if_open(&self) -> Option<&Arc<Log>> {
        self.0.log.get()
    }

    /// The log, opened by whichever end comes first, with what the store says of it. Neither end waits for the other: one
    /// that has begun to open it may not be polled for as long as its own domain is held up. Opening changes nothing on the
    /// disk, so that both may.
    async fn log(&self, home: &Home) -> Result<Arc<Log>, String> {
        let log = if let Some(log) = self.0.log.get() {
            Arc::clone(log)
        } else {
            let opened = self.open(home).await?;
            Arc::clone(self.0.log.get_or_init(|| opened))
        };
        self.tell();
        Ok(log)
    }

    async fn open(&self, home: &Home) -> Result<Arc<Log>, String> {
        let scope = checkpoint::scope(&home.pipeline);
        let entries = home.store.load(&scope).await.map_err(|error| error.to_string())?;
        let committed = committed(&self.0.stage, &entries)?;
        let folder = folder(&home.data_dir, &home.pipeline, &self.0.stage);
        let limits = Limits::of(self.0.disk);
        // Behind all that an earlier log of this folder can have held, were it written with 1 GiB/s all the time.
        let millis = u64::try_from(home.runtime.clock().wall().as_millis()).unwrap_or(0);
        let first = millis.saturating_mul(1 << 20) & (u64::MAX >> 2);
        home.runtime
            .blocking(move || {
                let opened = Log::open(&folder, limits, committed, first);
                opened.map(Arc::new).map_err(|error| cannot_open(&folder, &error))
            })
            .await
    }
}

/// Where an end of a buffer lives.
#[derive(Debug, Clone)]
struct Home {
    pipeline: Arc<str>,
    data_dir: Arc<std::path::Path>,
    store: Arc<dyn crate::state::Store>,
    runtime: Runtime,
    metrics: StageMetrics,
    buffer: BufferMetrics,
}

impl Home {
    fn of(cx: &BuildContext) -> Self {
        Self {
            pipeline: Arc::clone(&cx.pipeline),
            data_dir: Arc::clone(&cx.data_dir),
            store: Arc::clone(&cx.store),
            runtime: cx.runtime.clone(),
            metrics: cx.metrics.clone(),
            buffer: cx.metrics.buffer(),
        }
    }

    /// Works on the log, off the workers.
    async fn on<T: Send + 'static>(&self, log: &Arc<Log>, work: impl FnOnce(&Log) -> T + Send + 'static) -> T {
        let log = Arc::clone(log);
        let metrics = self.buffer.clone();
        self.runtime
            .blocking(move || {
                let done = work(&log);
                let stats = log.stats();
                metrics.set(stats.bytes, stats.records, log.limits().bytes, stats.damaged);
                done
            })
            .await
    }
}

/// The name of both ends as components: no stage of a file has one like it.
#[must_use]
pub fn name(stage: &str) -> String {
    format!("{stage}.{KIND}")
}

fn cannot_open(folder: &std::path::Path, error: &std::io::Error) -> String {
    format!("cannot open the buffer `{}`: {error}", folder.display())
}

/// How much of the buffer of a stage counts, by the entries of its pipeline; `None` if the store does not know it.
///
/// # Errors
/// If what the store holds cannot be read.
pub fn committed(stage: &str, entries: &Entries) -> Result<Option<Place>, String> {
    stored(checkpoint::participant_entries(&name(stage), entries).get(COMMITTED))
}

/// What the store holds of a buffer.
fn stored(entry: Option<&Vec<u8>>) -> Result<Option<Place>, String> {
    let Some(entry) = entry else { return Ok(None) };
    let damaged = || "the stored length of a buffer is damaged".to_owned();
    let (position, records) = entry.split_first_chunk().ok_or_else(damaged)?;
    let records = records.try_into().map_err(|_| damaged())?;
    Ok(Some(Place { position: u64::from_be_bytes(*position), records: u64::from_be_bytes(records) }))
}

/// As the store holds it.
fn entry(place: Place) -> (String, Option<Vec<u8>>) {
    let value = [place.position.to_be_bytes(), place.records.to_be_bytes()].concat();
    (COMMITTED.to_owned(), Some(value))
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use futures::FutureExt;
    use futures::future::BoxFuture;

    use super::*;
    use crate::state::{MemoryStore, Store, StoreError};
    use crate::testing::harness::build_context;

    /// A store that never answers.
    #[derive(Debug)]
    struct Silent;

    impl Store for Silent {
        fn load(&self, _: &str) -> BoxFuture<'_, Result<Entries, StoreError>> {
            pending().boxed()
        }

        fn commit(&self, _: &str, _: Vec<(String, Option<Vec<u8>>)>) -> BoxFuture<'_, Result<(), StoreError>> {
            pending().boxed()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_end_that_stands_still_while_it_opens_the_log_holds_up_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let link = Link::new("out".into(), 1 << 20, WhenFull::Block);
        let home = |store: Arc<dyn Store>| {
            // Blocking work is done in its place, so that only the store is waited for.
            let runtime = Runtime::simulated(0);
            Home::of(&BuildContext { data_dir: folder.path().into(), store, runtime, ..build_context() })
        };
        let (silent, sound) = (home(Arc::new(Silent)), home(Arc::new(MemoryStore::new())));
        let mut first = Box::pin(link.log(&silent));
        assert!(first.as_mut().now_or_never().is_none());
        let log = link.log(&sound).now_or_never();
        let log = log.unwrap_or_else(|| panic!("the other end waits")).unwrap();
        assert!(Arc::ptr_eq(&log, link.log_if_open().unwrap()));
    }
}
