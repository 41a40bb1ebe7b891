//! Sinks: durable by flush or by answer, in order or not, or in a transaction of brokers or of the store.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;

use super::super::cluster::TRANSACTION_TIMEOUT;
use super::super::faults::Step;
use super::super::member::Members;
use super::super::mutation::Mutation;
use super::super::outcome::{Arrival, read};
use super::super::place::Place;
use super::super::scenario::{Destination, SinkKind, Stage};
use super::super::world::Writer;
use super::SIMULATED;
use super::file::LocalFile;
use super::transaction::SimulatedTransaction;
use crate::component::{Acknowledges, Answer, CompiledSink, Refusal, Settled, Sink, SinkError, SinkTraits, Touched};
use crate::delivery::Participants;
use crate::record::Batch;

/// What a sink is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A sink of the first pipeline.
    Sink(usize),
    /// Its dead letter.
    DeadLetter,
    /// The sink of the second pipeline.
    Chained,
}

impl Purpose {
    /// Whether it belongs to the second pipeline, and its number among the sinks of its pipeline.
    fn place(self) -> (bool, usize) {
        match self {
            Self::Sink(at) => (false, at),
            Self::DeadLetter => (false, usize::MAX),
            Self::Chained => (true, 0),
        }
    }
}

pub(super) fn compiled(place: &Place, purpose: Purpose, kind: SinkKind, per_lane: bool) -> CompiledSink {
    let place = place.clone();
    let is_local = place.world.scenario.is_local();
    CompiledSink {
        traits: SinkTraits {
            acknowledges: Acknowledges::Durable,
            transactional_with: &[SIMULATED],
            transaction_timeout: Some(TRANSACTION_TIMEOUT),
            idempotent_by_key: false,
            // A file has one writer.
            per_lane: per_lane && !is_local,
            carries_headers: true,
        },
        touched: Touched::default(),
        build: Arc::new(move |cx| {
            let transaction = (cx.transactional && !is_local).then(|| {
                let members = cx.clients.shared(Members::default);
                let transaction = cx.clients.shared(|| SimulatedTransaction::new(&place, &cx.pipeline, members));
                cx.clients.set_transaction(Arc::clone(&transaction) as _);
                transaction
            });
            let file = (cx.transactional && is_local).then(|| {
                let file = Arc::new(LocalFile::new(&place, &cx.component));
                cx.clients.shared(Participants::default).join(Arc::clone(&file) as _);
                file
            });
            let writer = place.world.build_writer(place.instance, purpose.place());
            let name = Arc::clone(&cx.component);
            let (place, kept_back) = (place.clone(), None);
            Ok(Box::new(Simulated {
                place,
                name,
                purpose,
                kind,
                transaction,
                file,
                run: 0,
                writer,
                kept_back,
                held: Vec::new(),
            }))
        }),
    }
}

struct Simulated {
    place: Place,
    name: Arc<str>,
    purpose: Purpose,
    kind: SinkKind,
    transaction: Option<Arc<SimulatedTransaction>>,
    /// What it writes in a local transaction, and in which run of it.
    file: Option<Arc<LocalFile>>,
    run: u64,
    writer: Writer,
    /// A batch that a broken sink keeps back.
    kept_back: Option<Arc<Batch>>,
    /// Batches whose memory a broken sink does not give back.
    held: Vec<Arc<Batch>>,
}

impl Simulated {
    fn is_broken_by(&self, mutation: Mutation) -> bool {
        self.place.world.is_broken_by(mutation)
    }

    fn is_transactional(&self) -> bool {
        self.transaction.is_some() || self.file.is_some()
    }

    /// What the batch holds, without what is refused.
    fn arrivals(&self, batch: &Batch) -> Vec<Arrival> {
        let refused = self.refusals(batch);
        let taken = batch.records().iter().enumerate().filter(|(at, _)| refused.iter().all(|one| one.record != *at));
        taken
            .filter_map(|(_, record)| {
                let (id, path) = read(batch.body(record))?;
                let to = match self.purpose {
                    Purpose::Sink(at) => Destination::Sink(at),
                    Purpose::Chained => Destination::Chained,
                    Purpose::DeadLetter => {
                        let stage = batch.headers(record).find(|header| header.name == b"weir-stage")?.value?;
                        Destination::Letter(Stage::named(std::str::from_utf8(stage).ok()?)?)
                    }
                };
                Some(Arrival { to, id, path })
            })
            .collect()
    }

    fn refusals(&self, batch: &Batch) -> Vec<Refusal> {
        let Purpose::Sink(sink) = self.purpose else { return Vec::new() };
        let is_refused =
            |record| read(batch.body(record)).is_some_and(|(id, _)| self.place.world.scenario.is_refused(sink, id));
        batch
            .records()
            .iter()
            .enumerate()
            .filter(|(_, record)| is_refused(record))
            .map(|(record, _)| Refusal { record, error: "refused".to_owned() })
            .collect()
    }

    fn is_poisoned(&self, batch: &Batch) -> bool {
        let Purpose::Sink(sink) = self.purpose else { return false };
        let scenario = &self.place.world.scenario;
        batch
            .records()
            .iter()
            .filter_map(|record| read(batch.body(record)))
            .any(|(id, _)| scenario.is_poison(Stage::Sink(sink), id))
    }

    /// Takes a batch over, in a transaction or not.
    fn take(&self, batch: &Batch) -> Result<(), SinkError> {
        let arrivals = self.arrivals(batch);
        if let Some(transaction) = &self.transaction {
            return transaction.produce(self.writer, arrivals).map_err(SinkError::Outage);
        }
        if let Some(file) = &self.file {
            return file.write(self.run, arrivals).map_err(SinkError::Outage);
        }
        self.place.world.take(self.writer, arrivals);
        Ok(())
    }

    /// Waits for the answer to a batch, which comes when the outside world is there.
    fn answer(&self, batch: &Batch, what: String) -> Answer {
        let (place, writer, kind) = (self.place.clone(), self.writer, self.kind);
        let (is_transactional, refused) = (self.is_transactional(), self.refusals(batch));
        let (arrivals, until) = (self.arrivals(batch), place.world.taken(writer));
        async move {
            let work = place.world.work(writer);
            if !place.world.is_broken_by(Mutation::HidesItsPace) {
                place.runtime.sleep(work).await;
            }
            place.until_reachable().await;
            // Where what became of a batch is not known, only a rewind keeps the order.
            let error =
                if is_transactional || kind == SinkKind::Acknowledged { SinkError::Outage } else { SinkError::Retry };
            place.step(Step::Answer, &what).await.map_err(error)?;
            match kind {
                _ if is_transactional => {}
                SinkKind::Unordered => {
                    place.world.take(writer, arrivals);
                    place.world.make_durable(writer, u64::MAX);
                }
                // Those before it are in, and it with them.
                SinkKind::Acknowledged => place.world.make_durable(writer, until),
                SinkKind::Flushed => {}
            }
            Ok(Settled { refused, dropped: 0 })
        }
        .boxed()
    }
}

impl Sink for Simulated {
    fn open(&mut self) -> BoxFuture<'_, Result<(), SinkError>> {
        async {
            self.kept_back = None;
            self.held.clear();
            self.place.step(Step::Open, &self.name).await.map_err(SinkError::Retry)?;
            if !self.place.is_reachable() {
                return Err(SinkError::Retry("it cannot be reached".to_owned()));
            }
            self.run = self.file.as_ref().map_or(0, |file| file.run());
            if !self.is_transactional() {
                // What an aborted run wrote is there, and some day durable.
                self.place.world.make_durable(self.writer, u64::MAX);
            }
            Ok(())
        }
        .boxed()
    }

    fn write(&mut self, batch: Arc<Batch>) -> BoxFuture<'_, Result<Answer, SinkError>> {
        async move {
            let what = format!("{} {}", self.name, named(&batch));
            let in_transaction = self.is_transactional();
            if !in_transaction && !self.place.is_reachable() {
                return Err(SinkError::Retry("it cannot be reached".to_owned()));
            }
            let error = if in_transaction { SinkError::Outage } else { SinkError::Retry };
            self.place.step(Step::Write, &what).await.map_err(error)?;
            if self.is_poisoned(&batch) {
                return Err(SinkError::Rewind("it cannot go on behind this record".to_owned()));
            }
            if self.is_broken_by(Mutation::OvertakenByBarrier) || self.is_broken_by(Mutation::WritesInSilence) {
                if let Some(before) = self.kept_back.replace(Arc::clone(&batch)) {
                    self.take(&before)?;
                }
            } else if in_transaction || self.kind != SinkKind::Unordered {
                if self.is_broken_by(Mutation::Reorders)
                    && let Some(before) = self.kept_back.take()
                {
                    self.take(&batch)?;
                    self.take(&before)?;
                } else if self.is_broken_by(Mutation::Reorders) && self.place.world.below(4) == 0 {
                    self.kept_back = Some(Arc::clone(&batch));
                } else {
                    self.take(&batch)?;
                }
            }
            if self.is_broken_by(Mutation::HoldsMemory) {
                self.held.push(Arc::clone(&batch));
            }
            Ok(self.answer(&batch, what))
        }
        .boxed()
    }

    fn flush(&mut self) -> BoxFuture<'_, Result<(), SinkError>> {
        async {
            self.place.step(Step::Flush, &self.name).await.map_err(SinkError::Retry)?;
            if self.is_broken_by(Mutation::HidesItsPace) {
                self.place.runtime.sleep(self.place.world.work_left(self.writer)).await;
            }
            if self.is_broken_by(Mutation::Reorders)
                && let Some(before) = self.kept_back.take()
            {
                self.take(&before)?;
            }
            if let Some(transaction) = &self.transaction {
                self.place.world.fall_silent(self.writer);
                if let Some(late) = self.kept_back.take_if(|_| self.place.world.is_broken_by(Mutation::WritesInSilence))
                {
                    let (late, writer, transaction) = (self.arrivals(&late), self.writer, Arc::clone(transaction));
                    let runtime = self.place.runtime.clone();
                    drop(self.place.runtime.spawn(async move {
                        runtime.sleep(Duration::from_millis(1)).await;
                        let _ = transaction.produce(writer, late);
                    }));
                }
            } else if self.file.is_none()
                && self.kind == SinkKind::Flushed
                && !self.is_broken_by(Mutation::AnswersTooEarly)
            {
                self.place.world.make_durable(self.writer, u64::MAX);
            }
            let length = self.file.as_ref().map(|file| file.sync());
            self.place.step(Step::Flushed, &self.name).await.map_err(SinkError::Retry)?;
            // Only now: who tries again has one barrier, not two.
            if let (Some(file), Some(length)) = (&self.file, length) {
                file.barrier(length);
            }
            Ok(())
        }
        .boxed()
    }
}

/// A batch in the trace.
pub(super) fn named(batch: &Batch) -> String {
    let offsets: Vec<i64> = batch.records().iter().map(|record| record.offset).collect();
    format!("{}/{}: {offsets:?}", batch.origin().source, batch.origin().number)
}
