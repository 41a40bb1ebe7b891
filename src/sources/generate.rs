//! Makes records: to try a pipeline, to test it, to measure it.
//!
//! Record *i* is a function of the seed and *i*, so the generator can resume at any position like a source that keeps
//! its data.

mod shapes;

use std::sync::Arc;
use std::time::Duration;

use async_stream::stream;
use futures::stream::BoxStream;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::clock::{Clock, Instant};
use crate::codecs::Codec;
use crate::component::{
    BuiltSource, CheckContext, CompiledSource, KeepsPositions, Problem, Pulled, Source, SourceConfig, SourceContext,
    SourceError, SourceTraits, Spanned,
};
use crate::expr::Schema;
use crate::record::{Batch, BatchBuilder, ByteRange, Partition, Position, Record};

/// Makes records, as fast as they are taken or at a steady rate.
///
/// ```yaml
/// generate: { shape: orders, rate: 10, count: 1000 }
/// ```
///
/// The same `seed` gives the same records, on any machine, and the position is the number of records made: after a
/// restart the generator goes on where the last commit stands. Only `%timestamp` is the time at which a record is made.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct GenerateConfig {
    /// What the records are.
    shape: Shape,
    /// How many to make. Without it the source never ends.
    #[serde(default)]
    count: Option<u64>,
    /// Records per second. Without it they are made as fast as they are taken.
    #[serde(default)]
    rate: Option<Spanned<f64>>,
    /// Which records to make, out of all that have this shape.
    #[serde(default)]
    seed: u64,
}

/// What the records are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Shape {
    /// Orders of a shop: `id`, `ts`, `user`, `country`, `sku`, `qty`, `price`, `status`.
    Orders,
    /// Requests to a web server: `ts`, `ip`, `method`, `path`, `status`, `bytes`, `duration_ms`, `agent`.
    AccessLogs,
    /// What the project measures itself with: about 250 bytes, nine fields, a tenth of them with `level` debug.
    Reference,
}

impl SourceConfig for GenerateConfig {
    const NAME: &'static str = "generate";

    fn compile(self, cx: &mut CheckContext) -> Option<CompiledSource> {
        if let Some(rate) = &self.rate
            && !(rate.value >= SLOWEST && rate.value <= FASTEST)
        {
            cx.report(
                Problem::error(rate.span, format!("`rate` must be between {SLOWEST} and {FASTEST} records per second"))
                    .help("leave `rate` out to make records as fast as they are taken"),
            );
            return None;
        }
        let traits = SourceTraits {
            keeps_positions: KeepsPositions::Store,
            finite: self.count.is_some(),
            partitioned: false,
            transactional_with: None,
        };
        let recipe = Recipe {
            shape: self.shape,
            seed: self.seed,
            count: self.count.map_or(i64::MAX, |count| i64::try_from(count).unwrap_or(i64::MAX)),
            rate: self.rate.map(|rate| rate.value),
        };
        Some(CompiledSource {
            traits,
            codec: Codec::Json,
            // Any JSON, although the types are known: a program that was tried on generated records must compile for
            // those of a broker too.
            schema: Schema::default(),
            build: Arc::new(move |cx| {
                let name = Arc::clone(&cx.component);
                let origin = Arc::new(Partition { source: Arc::clone(&name), topic: name, number: 0 });
                Ok(BuiltSource { source: Box::new(GenerateSource { origin, recipe }), positions: None })
            }),
        })
    }
}

/// One record in a day.
const SLOWEST: f64 = 0.000_01;
/// More than any machine makes.
const FASTEST: f64 = 1e9;
/// The most records of a batch.
const BATCH: i64 = 1000;
/// A batch holds the records of at most this long, if there is a rate.
const TICK: Duration = Duration::from_millis(10);
/// Who falls behind by more than this, because records were not taken, does not catch up.
const BEHIND: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy)]
struct Recipe {
    shape: Shape,
    seed: u64,
    count: i64,
    rate: Option<f64>,
}

impl Recipe {
    /// Records `from` to `to`.
    fn make(&self, origin: &Arc<Partition>, from: i64, to: i64, clock: Clock) -> Batch {
        /// No shape is larger than this on average; a guess that is too small costs a copy.
        const EXPECTED_BYTES: usize = 288;
        let records = usize::try_from(to - from).unwrap_or_default();
        let mut batch = BatchBuilder::new(Arc::clone(origin), records * EXPECTED_BYTES, records);
        let timestamp = clock.timestamp();
        for offset in from..to {
            let start = batch.bytes().len();
            shapes::write(self.shape, self.seed, offset.unsigned_abs(), batch.bytes_mut());
            let body = ByteRange::new(start, batch.bytes().len());
            batch.push(Record { body, timestamp, offset, ..Record::default() });
        }
        batch.finish()
    }
}

struct GenerateSource {
    origin: Arc<Partition>,
    recipe: Recipe,
}

impl Source for GenerateSource {
    fn stream(&mut self, cx: SourceContext) -> BoxStream<'_, Result<Pulled, SourceError>> {
        Box::pin(stream! {
            let (runtime, clock) = (&cx.runtime, cx.runtime.clock());
            let mut next = cx.resume_from(&self.origin).map_or(0, |position| position.0).max(0);
            let mut pace = self.recipe.rate.map(|rate| Pace::from(clock.now(), rate));
            while next < self.recipe.count {
                let records = match &mut pace {
                    Some(pace) => {
                        runtime.sleep_until(pace.next_due(clock.now(), self.recipe.count - next)).await;
                        pace.take_due(clock.now())
                    }
                    None => BATCH,
                };
                let end = next.saturating_add(records).min(self.recipe.count);
                let batch = self.recipe.make(&self.origin, next, end, clock);
                next = end;
                yield Ok(Pulled { batch, position: Position(next) });
            }
        })
    }
}

/// Keeps a rate exactly: each record has its own moment, counted from the start and not from the record before.
#[derive(Debug)]
struct Pace {
    start: Instant,
    rate: f64,
    made: i64,
}

impl Pace {
    fn from(start: Instant, rate: f64) -> Self {
        Self { start, rate, made: 0 }
    }

    /// The moment of a record, the first being 0.
    fn moment(&self, record: i64) -> Instant {
        self.start + Duration::from_secs_f64(count(record) / self.rate)
    }

    /// When the next batch, of at most `left` records, is due: at the moment of its last record.
    fn next_due(&mut self, now: Instant, left: i64) -> Instant {
        if now > self.moment(self.made) + BEHIND {
            *self = Self::from(now, self.rate);
        }
        self.moment(self.made + self.in_a_tick().min(left) - 1)
    }

    /// Takes the records whose moment has come: at least one, at most a batch.
    fn take_due(&mut self, now: Instant) -> i64 {
        let due = whole(now.duration_since(self.start).as_secs_f64() * self.rate) + 1 - self.made;
        let taken = due.clamp(1, BATCH);
        self.made += taken;
        taken
    }

    fn in_a_tick(&self) -> i64 {
        whole(TICK.as_secs_f64() * self.rate).clamp(1, BATCH)
    }
}

#[expect(clippy::cast_precision_loss, reason = "a rate held for 285 years at 1 MHz stays below 2^53")]
fn count(records: i64) -> f64 {
    records as f64
}

#[expect(clippy::cast_possible_truncation, reason = "the cast saturates, and fractions of records are meant to go")]
fn whole(records: f64) -> i64 {
    records as i64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::harness;

    #[tokio::test]
    async fn the_same_seed_gives_the_same_records_and_a_restart_goes_on_where_it_stood() {
        let all = harness::source("generate: { shape: orders, count: 2500, seed: 3 }").rest().await;
        assert_eq!(all.len(), 2500);
        let mut run = harness::source("generate: { shape: orders, count: 2500, seed: 3 }");
        let first = run.next_batch().await.commit();
        assert_eq!(first.position, Position(1000));
        assert_eq!(first.batch.records()[999].offset, 999);
        assert_eq!(harness::texts(&first.batch), all[..1000]);
        // Not committed, so it comes again.
        run.next_batch().await;
        assert_eq!(run.restart().await.rest().await, all[1000..]);
        assert_eq!(run.rewind().await.rest().await, [""; 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_is_kept_exactly() {
        let clock = Clock::system();
        for (rate, records) in [("0.5", 3_u32), ("10", 50), ("333", 1000), ("12345", 30_000)] {
            let mut run = harness::source(&format!("generate: {{ shape: orders, rate: {rate}, count: {records} }}"));
            let start = clock.now();
            assert_eq!(run.rest().await.len(), records as usize);
            let took = clock.now().duration_since(start).as_secs_f64();
            let expected = (f64::from(records) - 1.0) / rate.parse::<f64>().unwrap();
            // tokio's timers count in milliseconds.
            assert!((took - expected).abs() < 0.003, "{records} at {rate} a second took {took} s");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_was_held_up_does_not_catch_up() {
        let mut run = harness::source("generate: { shape: orders, rate: 1000 }");
        run.next_batch().await;
        tokio::time::advance(Duration::from_secs(60)).await;
        let clock = Clock::system();
        let start = clock.now();
        let mut records = 0;
        while records < 2000 {
            records += run.next_batch().await.pulled.batch.len();
        }
        let took = clock.now().duration_since(start).as_secs_f64();
        assert!((1.8..2.1).contains(&took), "2000 records took {took} s");
    }

    #[test]
    fn a_rate_that_nobody_can_keep_is_a_mistake() {
        let yaml = "generate: { shape: orders, rate: 0 }";
        let problems = harness::source_problems(yaml);
        assert_eq!(problems.len(), 1);
        assert_eq!(harness::underlined(yaml, problems[0].span), "0");
        assert!(problems[0].message.contains("`rate` must be between"));
    }
}
