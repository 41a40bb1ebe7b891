//! Drives one component without a topology, from the text that a pipeline file would hold for it.
//!
//! It panics where a test should fail: a config with a mistake, a stream that ends or errs unexpectedly.

use std::fmt::Debug;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::clock::Instant;
use crate::component::node::{Kind, Node};
use crate::component::{
    BoxSink, BoxSource, BoxTransform, BuildContext, BuiltSource, CheckContext, Clients, CompiledSink, CompiledSource,
    CompiledTransform, EpochRequests, Output, Problem, Pulled, Settled, SinkError, SourceContext, SourceError, Span,
    Waiting,
};
use crate::config::{ProcessEnvironment, SourceFile, load};
use crate::delivery::{Changes, CommitPositions, Participants, Positions, checkpoint};
use crate::expr::Schema;
use crate::observe::Metrics;
use crate::record::{Batch, BatchBuilder, Draft, Partition, Position};
use crate::runtime::Runtime;
use crate::sinks::SINKS;
use crate::sources::SOURCES;
use crate::state::MemoryStore;
use crate::transforms::TRANSFORMS;

/// What the component is called.
const NAME: &str = "component";
/// Longer than anything that a test waits for; a paused clock passes it at once.
const PATIENCE: Duration = Duration::from_secs(60);

/// A source whose stream is pulled by hand.
///
/// # Panics
/// If the text is no valid config.
#[must_use]
pub fn source(yaml: &str) -> SourceRun {
    SourceRun::of(ok(compile_source(yaml)))
}

/// The mistakes of a source's config.
#[must_use]
pub fn source_problems(yaml: &str) -> Vec<Problem> {
    mistakes(compile_source(yaml))
}

/// A transform.
///
/// # Panics
/// If the text is no valid config.
#[must_use]
pub fn transform(yaml: &str) -> TransformRun {
    let compiled = ok(compile(yaml, |kind, config, cx| {
        let spec = TRANSFORMS.iter().find(|spec| spec.name == kind).expect("the kind is in the table");
        (spec.compile)(config, cx)
    }));
    TransformRun { transform: (compiled.build)(), compiled }
}

/// A sink that is opened and written by hand.
///
/// # Panics
/// If the text is no valid config.
#[must_use]
pub fn sink(yaml: &str) -> SinkRun {
    sink_named(NAME, yaml)
}

/// As [`sink`], for a test that has several in one process.
///
/// # Panics
/// If the text is no valid config.
#[must_use]
pub fn sink_named(name: &str, yaml: &str) -> SinkRun {
    let compiled = ok(compile_sink(yaml));
    let process = BuildContext { component: name.into(), ..build_context() };
    SinkRun { sink: Some(build_sink(&compiled, &process)), compiled, process }
}

/// The mistakes of a sink's config.
#[must_use]
pub fn sink_problems(yaml: &str) -> Vec<Problem> {
    mistakes(compile_sink(yaml))
}

/// A batch of raw bodies, as a source yields them.
#[must_use]
pub fn batch<B: AsRef<[u8]>>(bodies: &[B]) -> Batch {
    let origin = Partition { source: NAME.into(), topic: NAME.into(), number: 0 };
    let mut batch = BatchBuilder::new(Arc::new(origin), 0, bodies.len());
    for (body, offset) in bodies.iter().zip(0..) {
        batch.push_copy(Draft { body: body.as_ref(), offset, ..Draft::default() });
    }
    batch.finish()
}

/// The bodies of a batch as text.
#[must_use]
pub fn texts(batch: &Batch) -> Vec<String> {
    batch.records().iter().map(|record| String::from_utf8_lossy(batch.body(record)).into_owned()).collect()
}

type Compiled<T> = Result<T, Vec<Problem>>;

fn ok<T>(compiled: Compiled<T>) -> T {
    compiled.unwrap_or_else(|problems| panic!("the config has mistakes: {problems:#?}"))
}

fn mistakes<T: Debug>(compiled: Compiled<T>) -> Vec<Problem> {
    compiled.expect_err("the config has mistakes")
}

fn compile_source(yaml: &str) -> Compiled<CompiledSource> {
    compile(yaml, |kind, config, cx| {
        let spec = SOURCES.iter().find(|spec| spec.name == kind).expect("the kind is in the table");
        (spec.compile)(config, cx)
    })
}

fn compile_sink(yaml: &str) -> Compiled<CompiledSink> {
    compile(yaml, |kind, config, cx| {
        let spec = SINKS.iter().find(|spec| spec.name == kind).expect("the kind is in the table");
        (spec.compile)(config, cx)
    })
}

/// Reads `KIND: CONFIG`.
fn compile<T>(yaml: &str, by_kind: impl FnOnce(&str, &Node, &mut CheckContext) -> Option<T>) -> Compiled<T> {
    let file = Arc::new(SourceFile { path: "test.yaml".into(), text: yaml.to_owned() });
    let (documents, problems) = load(file, &ProcessEnvironment);
    if !problems.is_empty() {
        return Err(problems);
    }
    let [document] = documents.as_slice() else { panic!("one document, not {}", documents.len()) };
    let Kind::Map(entries) = &document.root.kind else { panic!("`KIND: CONFIG`, not {}", document.root.describe()) };
    let [(kind, config)] = entries.as_slice() else { panic!("one kind, not {}", entries.len()) };
    let mut cx = CheckContext::new(NAME, kind.span, Schema::default());
    let compiled = by_kind(&kind.name, config, &mut cx);
    match compiled {
        Some(compiled) if cx.problems.is_empty() => Ok(compiled),
        _ => Err(cx.problems),
    }
}

/// What a component is built with in a test.
#[must_use]
pub fn build_context() -> BuildContext {
    BuildContext {
        pipeline: "test".into(),
        component: NAME.into(),
        instance: "test".into(),
        data_dir: Arc::from(Path::new(".")),
        store: Arc::new(MemoryStore::new()),
        memory: 64 << 20,
        transactional: false,
        runtime: Runtime::system(),
        metrics: Metrics::new().stage("test", NAME, "test", "test"),
        clients: Clients::default(),
    }
}

/// The text of a config that a span points at.
#[must_use]
pub fn underlined(yaml: &str, span: Span) -> &str {
    &yaml[span.range()]
}

/// A source that is being pulled.
pub struct SourceRun {
    compiled: CompiledSource,
    committed: Arc<Positions>,
    /// Where the source hears of commits, if it does.
    hears: Option<Arc<dyn CommitPositions>>,
    /// Passed over on the way to a batch, and not committed yet.
    passed: Vec<Pulled>,
    /// Asks for the next batch.
    pulls: mpsc::Sender<oneshot::Sender<Item>>,
    task: JoinHandle<BoxSource>,
}

type Item = Option<Result<Pulled, SourceError>>;

impl SourceRun {
    fn of(compiled: CompiledSource) -> Self {
        let BuiltSource { source, positions: hears } = build_source(&compiled);
        let committed = Arc::default();
        let (pulls, task) = pull(source, Arc::clone(&committed));
        Self { compiled, committed, hears, passed: Vec::new(), pulls, task }
    }

    /// What the source declares.
    #[must_use]
    pub fn compiled(&self) -> &CompiledSource {
        &self.compiled
    }

    /// What is committed.
    #[must_use]
    pub fn committed(&self) -> &Positions {
        &self.committed
    }

    /// The next item of the stream; `None` at its end.
    ///
    /// # Panics
    /// If there is none for a minute.
    pub async fn pull(&mut self) -> Item {
        self.pull_within(PATIENCE).await.expect("a batch within a minute")
    }

    /// The next item, if there is one within this time.
    ///
    /// # Panics
    /// If the source panics.
    pub async fn pull_within(&mut self, limit: Duration) -> Option<Item> {
        let (answer, mut item) = oneshot::channel();
        self.pulls.send(answer).await.expect("the source panicked");
        match tokio::time::timeout(limit, &mut item).await {
            Ok(item) => Some(item.expect("the source panicked")),
            Err(_) => None,
        }
    }

    /// The next batch that holds a record.
    ///
    /// # Panics
    /// If the stream ends or errs.
    pub async fn next_batch(&mut self) -> Received<'_> {
        loop {
            let pulled = self.pull().await.expect("another batch").expect("no error");
            if !pulled.batch.is_empty() {
                return Received { run: self, pulled };
            }
            self.passed.push(pulled);
        }
    }

    /// All that is left, up to the stream's end, as text; committed.
    ///
    /// # Panics
    /// If the stream errs.
    pub async fn rest(&mut self) -> Vec<String> {
        let mut all = Vec::new();
        while let Some(pulled) = self.pull().await {
            let pulled = pulled.expect("no error");
            all.extend(texts(&pulled.batch));
            self.commit(&pulled);
        }
        all
    }

    /// The error with which the stream ends, after any batches.
    ///
    /// # Panics
    /// If it ends without.
    pub async fn error(&mut self) -> SourceError {
        loop {
            if let Err(error) = self.pull().await.expect("an error before the end") {
                return error;
            }
        }
    }

    /// Commits a position, and all that was passed over before it.
    ///
    /// # Panics
    /// If the source has to wait for something when it hears of a commit.
    pub fn commit(&mut self, pulled: &Pulled) {
        let committed = Arc::make_mut(&mut self.committed);
        let mut epoch = Positions::new();
        for pulled in self.passed.drain(..).as_slice().iter().chain([pulled]) {
            let notes = pulled.notes.iter().map(|(partition, position)| (partition, *position));
            for (partition, position) in [(pulled.batch.origin(), pulled.position)].into_iter().chain(notes) {
                epoch.insert(Partition::clone(partition), position);
                if position == Position::FORGOTTEN {
                    committed.remove(&**partition);
                } else {
                    committed.insert(Partition::clone(partition), position);
                }
            }
        }
        if let Some(hears) = &self.hears {
            let heard = hears.committed(&epoch).now_or_never();
            heard.expect("a source that is tested here hears of a commit without waiting");
        }
    }

    /// Goes back to what was committed, as a pipeline does after a failure: the same source, a new stream.
    ///
    /// # Panics
    /// If the source panicked.
    pub async fn rewind(&mut self) -> &mut Self {
        let source = self.stop().await;
        (self.pulls, self.task) = pull(source, Arc::clone(&self.committed));
        self
    }

    /// Goes on from what was committed in a new process.
    ///
    /// # Panics
    /// If the source panicked.
    pub async fn restart(&mut self) -> &mut Self {
        drop(self.stop().await);
        let built = build_source(&self.compiled);
        self.hears = built.positions;
        (self.pulls, self.task) = pull(built.source, Arc::clone(&self.committed));
        self
    }

    /// Drops the stream, wherever it waits.
    async fn stop(&mut self) -> BoxSource {
        self.passed.clear();
        self.pulls = mpsc::channel(1).0;
        (&mut self.task).await.expect("the source panicked")
    }
}

fn build_source(compiled: &CompiledSource) -> BuiltSource {
    (compiled.build)(&build_context()).expect("the source can be built")
}

/// Starts a stream that is pulled on demand. It is dropped when nobody can pull any more.
fn pull(
    mut source: BoxSource,
    committed: Arc<Positions>,
) -> (mpsc::Sender<oneshot::Sender<Item>>, JoinHandle<BoxSource>) {
    let (pulls, mut asked) = mpsc::channel::<oneshot::Sender<Item>>(1);
    let runtime = Runtime::system();
    let cx = SourceContext {
        committed,
        epochs: EpochRequests::channel().0,
        runtime: runtime.clone(),
        waiting: Waiting::default(),
    };
    let task = runtime.spawn(async move {
        let mut stream = source.stream(cx);
        // An item that came when nobody waited any more.
        let mut kept: Option<Item> = None;
        let mut waiting: Option<oneshot::Sender<Item>> = None;
        loop {
            tokio::select! {
                biased;
                pull = asked.recv() => match pull {
                    Some(answer) => waiting = Some(answer),
                    None => break,
                },
                item = stream.next(), if kept.is_none() && waiting.is_some() => kept = Some(item),
            }
            if kept.is_some()
                && let Some(answer) = waiting.take()
            {
                kept = answer.send(kept.take().expect("checked above")).err();
            }
        }
        drop(stream);
        source
    });
    (pulls, task)
}

/// A batch of a source, which can be committed.
pub struct Received<'a> {
    run: &'a mut SourceRun,
    /// What the source yielded.
    pub pulled: Pulled,
}

impl Received<'_> {
    /// Commits the position behind it.
    #[expect(clippy::must_use_candidate, reason = "committing is what it is called for")]
    pub fn commit(self) -> Pulled {
        self.run.commit(&self.pulled);
        self.pulled
    }

    /// The body of its only record.
    ///
    /// # Panics
    /// If it has several.
    #[must_use]
    pub fn text(&self) -> String {
        let [text] = self.texts().try_into().expect("one record");
        text
    }

    /// The bodies of its records.
    #[must_use]
    pub fn texts(&self) -> Vec<String> {
        texts(&self.pulled.batch)
    }

    /// The position behind it.
    #[must_use]
    pub fn position(&self) -> Position {
        self.pulled.position
    }
}

/// A transform.
pub struct TransformRun {
    compiled: CompiledTransform,
    transform: BoxTransform,
}

impl TransformRun {
    /// What the transform declares.
    #[must_use]
    pub fn compiled(&self) -> &CompiledTransform {
        &self.compiled
    }

    /// What becomes of a batch.
    #[must_use]
    pub fn apply(&mut self, batch: Batch) -> Output {
        let mut output = Output::default();
        self.transform.apply(batch, &mut output);
        output
    }
}

/// A sink.
pub struct SinkRun {
    compiled: CompiledSink,
    /// `None` only while it is replaced.
    sink: Option<BoxSink>,
    /// What it was built with: the store outlives it.
    process: BuildContext,
}

impl SinkRun {
    /// What the sink declares.
    #[must_use]
    pub fn compiled(&self) -> &CompiledSink {
        &self.compiled
    }

    /// Begins a run, from what is committed. A sink that was opened before is opened again after a rewind.
    ///
    /// # Panics
    /// If it cannot go back to what is committed.
    pub async fn open(&mut self) -> Result<(), SinkError> {
        let entries = self.process.store.load(&self.scope()).await.expect("the store in memory works");
        self.participants().recover(&entries).await.expect("it can go back to what is committed");
        self.sink().open().await
    }

    /// Commits what was flushed at the oldest barrier that is not committed yet.
    ///
    /// # Errors
    /// What went wrong after the commit.
    ///
    /// # Panics
    /// If the store was told to fail.
    pub async fn commit(&mut self) -> Result<(), String> {
        self.store(self.participants().changes()).await;
        self.participants().committed().await
    }

    /// Commits what participants have changed, and tells them nothing of it.
    ///
    /// # Panics
    /// If the store was told to fail.
    pub async fn store(&self, changes: Changes) {
        self.process.store.commit(&self.scope(), changes).await.expect("the store in memory works");
    }

    /// The local commit of the sink's pipeline.
    #[must_use]
    pub fn participants(&self) -> Arc<Participants> {
        self.process.clients.shared(Participants::default)
    }

    fn scope(&self) -> String {
        checkpoint::scope(&self.process.pipeline)
    }

    /// Writes raw bodies, and waits for the answer.
    pub async fn write<B: AsRef<[u8]>>(&mut self, bodies: &[B]) -> Result<Settled, SinkError> {
        self.write_batch(batch(bodies)).await
    }

    /// Writes a batch, and waits for the answer.
    pub async fn write_batch(&mut self, batch: Batch) -> Result<Settled, SinkError> {
        self.sink().write(Arc::new(batch)).await?.await
    }

    /// Makes durable what was written.
    pub async fn flush(&mut self) -> Result<(), SinkError> {
        self.sink().flush().await
    }

    /// When it wants a barrier.
    ///
    /// # Panics
    /// Never: it is replaced at once.
    #[must_use]
    pub fn wants_barrier_at(&self) -> Option<Instant> {
        self.sink.as_ref().expect("it is replaced at once").wants_barrier_at()
    }

    fn sink(&mut self) -> &mut BoxSink {
        self.sink.as_mut().expect("it is replaced at once")
    }

    /// Another process, whose pipeline file has another config for the sink.
    ///
    /// # Panics
    /// If the text is no valid config.
    pub fn restart_as(&mut self, yaml: &str) -> &mut Self {
        self.compiled = ok(compile_sink(yaml));
        self.restart()
    }

    /// Another process: a new sink of the same config, not yet open.
    pub fn restart(&mut self) -> &mut Self {
        // The old one must be gone first, with its locks.
        self.sink = None;
        self.process = BuildContext { store: Arc::clone(&self.process.store), ..build_context() };
        self.sink = Some(build_sink(&self.compiled, &self.process));
        self
    }
}

fn build_sink(compiled: &CompiledSink, process: &BuildContext) -> BoxSink {
    (compiled.build)(process).expect("the sink can be built")
}
