//! What the tests of the Kafka components stand on: the embedded cluster, and one pipeline's clients.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures::StreamExt;
use tokio::sync::mpsc;

use super::config::Options;
use crate::component::{
    BoxSink, BoxSource, BuildContext, CheckContext, Clients, CompiledSink, CompiledSource, EpochRequest, EpochRequests,
    Pulled, SourceContext, SourceError, Span, Spanned, Waiting,
};
use crate::delivery::{CommitPositions, Positions};
use crate::expr::Schema;
use crate::observe::Metrics;
use crate::record::{Batch, BatchBuilder, Draft, Partition, Timestamp};
use crate::runtime::Runtime;
use crate::state::MemoryStore;

/// How long a test waits for what must come.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// A name that no other test of this process uses.
pub(crate) fn unique(name: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("{name}-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

pub(crate) fn here<T>(value: T) -> Spanned<T> {
    Spanned::new(value, Span::default())
}

pub(crate) fn check() -> CheckContext {
    CheckContext::new("stage", Span::default(), Schema::default())
}

/// Settings of librdkafka, in milliseconds.
pub(crate) fn options(millis: &[(&str, u32)]) -> Options {
    let value = |millis: u32| here(serde_json::from_str(&millis.to_string()).unwrap());
    millis.iter().map(|(name, millis)| ((*name).to_owned(), value(*millis))).collect()
}

/// A session that the embedded cluster does not wait for long: in each rebalance it waits for all of it but a second.
pub(crate) fn short_session() -> Options {
    options(&[("session.timeout.ms", 4000), ("heartbeat.interval.ms", 300)])
}

/// A process that runs a pipeline.
pub(crate) struct Process {
    pub(crate) clients: Clients,
    pub(crate) instance: String,
    pub(crate) transactional: bool,
    pub(crate) memory: u64,
}

impl Process {
    pub(crate) fn new(instance: &str, transactional: bool) -> Self {
        Self { clients: Clients::default(), instance: instance.to_owned(), transactional, memory: 32 << 20 }
    }

    pub(crate) fn context(&self, component: &str) -> BuildContext {
        BuildContext {
            pipeline: "test".into(),
            component: component.into(),
            instance: self.instance.as_str().into(),
            data_dir: Arc::from(Path::new("unused")),
            store: Arc::new(MemoryStore::new()),
            memory: self.memory,
            transactional: self.transactional,
            runtime: Runtime::system(),
            metrics: Metrics::new().stage("test", component, "source", "kafka"),
            clients: self.clients.clone(),
        }
    }

    pub(crate) fn source(&self, compiled: &CompiledSource) -> (BoxSource, Arc<dyn CommitPositions>) {
        let built = (compiled.build)(&self.context("in")).unwrap();
        (built.source, built.positions.unwrap())
    }

    pub(crate) fn sink(&self, compiled: &CompiledSink) -> BoxSink {
        (compiled.build)(&self.context("out")).unwrap()
    }
}

/// A run's context, and the coordinator's end of it.
pub(crate) fn run() -> (SourceContext, mpsc::Receiver<EpochRequest>) {
    let (epochs, requests) = EpochRequests::channel();
    let cx = SourceContext {
        committed: Arc::new(Positions::new()),
        epochs,
        runtime: Runtime::system(),
        waiting: Waiting::default(),
    };
    (cx, requests)
}

/// Writes bodies, and waits until they are there.
pub(crate) async fn write(sink: &mut BoxSink, drafts: &[Draft<'_>]) {
    let answer = sink.write(Arc::new(batch(drafts))).await.unwrap();
    assert_eq!(answer.await.unwrap().refused, []);
}

pub(crate) fn batch(drafts: &[Draft<'_>]) -> Batch {
    let origin = Partition { source: "in".into(), topic: "somewhere".into(), number: 0 };
    let mut batch = BatchBuilder::new(Arc::new(origin), 0, drafts.len());
    for draft in drafts {
        batch.push_copy(*draft);
    }
    batch.finish()
}

pub(crate) fn draft(body: &str) -> Draft<'_> {
    Draft { body: body.as_bytes(), timestamp: Timestamp(1_700_000_000_000), ..Draft::default() }
}

/// Pulls batches until there are `records` of them.
pub(crate) async fn pull(
    source: &mut BoxSource,
    cx: SourceContext,
    records: usize,
) -> Result<Vec<Pulled>, SourceError> {
    let mut stream = source.stream(cx);
    let mut pulled = Vec::new();
    let mut count = 0;
    while count < records {
        let next = tokio::time::timeout(SOON, stream.next()).await.expect("records come soon");
        let next = next.expect("the stream goes on")?;
        count += next.batch.len();
        pulled.push(next);
    }
    Ok(pulled)
}

/// The positions behind what was pulled.
pub(crate) fn positions(pulled: &[Pulled]) -> Positions {
    pulled.iter().map(|pulled| ((**pulled.batch.origin()).clone(), pulled.position)).collect()
}

/// The bodies that were pulled, sorted.
pub(crate) fn bodies(pulled: &[Pulled]) -> Vec<String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut bodies: Vec<_> = pulled
        .iter()
        .flat_map(|pulled| pulled.batch.records().iter().map(|record| text(pulled.batch.body(record))))
        .collect();
    bodies.sort();
    bodies
}
