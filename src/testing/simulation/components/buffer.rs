//! The ends of real disk buffers, watched: what they do is a step that can fail, and they can be broken on purpose.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_stream::try_stream;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;

use super::super::faults::Step;
use super::super::mutation::Mutation;
use super::super::place::Place;
use super::sink::named;
use crate::clients::buffer::{KIND, Link, name};
use crate::clock::Instant;
use crate::component::{
    Answer, BoxSink, BoxSource, BuildContext, BuiltSource, Clients, CompiledSink, CompiledSource, Pulled, Sink,
    SinkError, Source, SourceContext, SourceError,
};
use crate::delivery::{Changes, Participant, Participants};
use crate::plan::Domain;
use crate::record::Batch;
use crate::state::buffer;

/// Watches the ends of all buffers.
pub(super) fn watch(place: &Place, mut domains: Vec<Domain>) -> Vec<Domain> {
    for Domain { plan, reads, writes } in &mut domains {
        let link_of = |links: &[Link], stage: &str| links.iter().find(|link| *name(link.stage()) == *stage).cloned();
        for sink in plan.sinks.iter_mut().chain(&mut plan.dead_letter).filter(|sink| sink.kind == KIND) {
            if let Some(link) = link_of(writes, &sink.name) {
                sink.compiled = writing_end(place, link, sink.compiled.clone());
            }
        }
        for source in plan.sources.iter_mut().filter(|source| source.kind == KIND) {
            if let Some(link) = link_of(reads, &source.name) {
                source.compiled = reading_end(place, link, source.compiled.clone());
            }
        }
    }
    domains
}

/// What both ends are watched with.
#[derive(Debug, Clone)]
struct Watch {
    place: Place,
    link: Link,
}

impl Watch {
    fn is_broken_by(&self, mutation: Mutation) -> bool {
        self.place.world.is_broken_by(mutation)
    }

    /// All that is written is synced.
    fn synced(&self) {
        if let Some(log) = self.link.log_if_open() {
            self.place.world.disk.synced_buffer(self.place.instance, self.link.stage(), log.end().position);
        }
    }
}

fn writing_end(place: &Place, link: Link, real: CompiledSink) -> CompiledSink {
    let watch = Watch { place: place.clone(), link };
    let build = move |cx: &BuildContext| {
        // What the real end shares with the transaction is watched too.
        let aside = BuildContext { clients: Clients::default(), ..cx.clone() };
        let sink = (real.build)(&aside)?;
        let participants = cx.clients.shared(Participants::default);
        for real in aside.clients.shared(Participants::default).all() {
            participants.join(Arc::new(Part { watch: watch.clone(), real, asked: Mutex::default() }));
        }
        Ok(Box::new(WritingEnd { watch: watch.clone(), name: Arc::clone(&cx.component), real: sink }) as BoxSink)
    };
    CompiledSink { build: Arc::new(build), ..real }
}

struct WritingEnd {
    watch: Watch,
    name: Arc<str>,
    real: BoxSink,
}

impl Sink for WritingEnd {
    fn open(&mut self) -> BoxFuture<'_, Result<(), SinkError>> {
        Box::pin(async {
            self.watch.place.step(Step::Open, &self.name).await.map_err(SinkError::Retry)?;
            self.real.open().await
        })
    }

    fn write(&mut self, batch: Arc<Batch>) -> BoxFuture<'_, Result<Answer, SinkError>> {
        Box::pin(async move {
            let what = format!("{} {}", self.name, named(&batch));
            self.watch.place.step(Step::Write, &what).await.map_err(SinkError::Retry)?;
            self.real.write(batch).await
        })
    }

    fn flush(&mut self) -> BoxFuture<'_, Result<(), SinkError>> {
        Box::pin(async {
            self.watch.place.step(Step::Flush, &self.name).await.map_err(SinkError::Retry)?;
            self.real.flush().await?;
            if !self.watch.is_broken_by(Mutation::SyncsTooLate) {
                self.watch.synced();
            }
            if self.watch.is_broken_by(Mutation::ShowsUncommitted)
                && let Some(log) = self.watch.link.log_if_open()
            {
                log.publish(log.end());
            }
            // After an error it would not be known what is on the disk.
            self.watch.place.step(Step::Flushed, &self.name).await.map_err(SinkError::Outage)
        })
    }

    fn refresh(&mut self) -> BoxFuture<'_, ()> {
        self.real.refresh()
    }

    fn wants_barrier_at(&self) -> Option<Instant> {
        self.real.wants_barrier_at()
    }
}

/// The part of the writing end in the commit.
#[derive(Debug)]
struct Part {
    watch: Watch,
    real: Arc<dyn Participant>,
    /// What the commit asked for last, whether or not it happened.
    asked: Mutex<Changes>,
}

impl Participant for Part {
    fn name(&self) -> &str {
        self.real.name()
    }

    fn changes(&self) -> Changes {
        let changes = self.real.changes();
        if !changes.is_empty() {
            self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&changes);
        }
        changes
    }

    fn committed(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async {
            self.watch.place.step(Step::Show, self.name()).await?;
            self.real.committed().await
        })
    }

    fn recover(&self, mut entries: BTreeMap<String, Vec<u8>>) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async {
            self.watch.place.step(Step::CutBack, self.name()).await?;
            if self.watch.is_broken_by(Mutation::ForgetsToCutBack) {
                let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone();
                entries.extend(asked.into_iter().filter_map(|(key, value)| Some((key, value?))));
            }
            self.real.recover(entries).await?;
            // What is left is committed, and was synced before.
            self.watch.synced();
            Ok(())
        })
    }

    fn finish(&self) -> BoxFuture<'_, Result<(), String>> {
        self.real.finish()
    }
}

fn reading_end(place: &Place, link: Link, real: CompiledSource) -> CompiledSource {
    let watch = Watch { place: place.clone(), link };
    let build = move |cx: &BuildContext| {
        let built = (real.build)(cx)?;
        let source = ReadingEnd { watch: watch.clone(), name: Arc::clone(&cx.component), real: built.source };
        Ok(BuiltSource { source: Box::new(source), ..built })
    };
    CompiledSource { build: Arc::new(build), ..real }
}

struct ReadingEnd {
    watch: Watch,
    name: Arc<str>,
    real: BoxSource,
}

impl ReadingEnd {
    /// Nothing that is committed may be found damaged, whatever a crash left behind it.
    fn look_for_damage(watch: &Watch) {
        let damage = watch.link.log_if_open().and_then(|log| log.stats().damage);
        if damage.is_some() {
            watch.place.world.breach(format!("the buffer of `{}` is damaged", watch.link.stage()));
        }
    }
}

impl Source for ReadingEnd {
    fn stream(&mut self, cx: SourceContext) -> BoxStream<'_, Result<Pulled, SourceError>> {
        let Self { watch, name, real } = self;
        Box::pin(try_stream! {
            let mut stream = real.stream(cx);
            while let Some(pulled) = stream.next().await {
                let pulled = pulled?;
                Self::look_for_damage(watch);
                let what = format!("{name} {}", named(&pulled.batch));
                watch.place.step(Step::Pull, &what).await.map_err(SourceError::Retry)?;
                if watch.is_broken_by(Mutation::ReleasesTooEarly)
                    && let Some(log) = watch.link.log_if_open()
                {
                    let position = u64::try_from(pulled.position.0).unwrap_or(0);
                    log.release(buffer::Place { position, records: 0 });
                }
                yield pulled;
            }
        })
    }
}
