//! Makes records: to try a pipeline, to test it, to measure it.
//!
//! Record *i* is a function of the seed and *i*, so the generator can resume at any position like a source that keeps
//! its data.

mod shapes;

use std::mem;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_stream::try_stream;
use futures::stream::BoxStream;
use schemars::JsonSchema;
use serde::Deserialize;
use vrl::value::Kind;
use vrl::value::kind::Collection;

use crate::clock::Instant;
use crate::codecs::Codec;
use crate::component::{
    BuiltSource, CheckContext, CompiledSource, KeepsPositions, Problem, Pulled, Source, SourceConfig, SourceContext,
    SourceError, SourceTraits, Spanned, Text,
};
use crate::expr::{Evaluator, Mapped, Program, ProgramKind, Rewrite, Schema};
use crate::record::{Batch, BatchBuilder, BodyFormat, ByteRange, FieldRange, Partition, Position, Record, Timestamp};

/// Makes records, as fast as they are taken or at a steady rate.
///
/// ```yaml
/// generate: { shape: orders, rate: 10, count: 1000 }
/// ```
///
/// A program in VRL makes any other record. It begins with an empty object; `%offset` is the record's number, and what it
/// draws at random follows from that number and the `seed`. `abort` leaves a record out.
///
/// ```yaml
/// generate:
///   rate: 10
///   program: |
///     .reading = random_float(-20.0, 40.0)
///     .sensor = mod(%offset, 12)
///     %key = "sensor-" + to_string(.sensor)
/// ```
///
/// The same `seed` gives the same records, on any machine, and the position is the number of records made: after a
/// restart the generator goes on where the last commit stands. Only `%timestamp`, and with it `now()` in a program, is the
/// time at which a record is made.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct GenerateConfig {
    /// What the records are, out of what comes with Weir. Either this or `program`.
    #[serde(default)]
    shape: Option<Shape>,
    /// What the records are, as a program.
    #[serde(default)]
    program: Option<Text>,
    /// How many to make. Without it the source never ends.
    #[serde(default)]
    count: Option<u64>,
    /// Records per second. Without it they are made as fast as they are taken.
    #[serde(default)]
    rate: Option<Spanned<f64>>,
    /// Which records to make, out of all that there could be.
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
        let content = match (self.shape, self.program) {
            (Some(shape), None) => Content::Shape(shape, self.seed),
            (None, Some(program)) => Content::Program(compile(&program, self.seed, cx)?),
            (None, None) => {
                cx.report(
                    Problem::error(cx.span, "`generate` needs to know what to make")
                        .help("give a `shape` (`orders`, `access_logs` or `reference`), or a `program`"),
                );
                return None;
            }
            (Some(_), Some(program)) => {
                cx.report(
                    Problem::error(program.span, "`shape` and `program` both say what to make")
                        .help("leave one of them out"),
                );
                return None;
            }
        };
        let traits = SourceTraits {
            keeps_positions: KeepsPositions::Store,
            finite: self.count.is_some(),
            partitioned: false,
            transactional_with: &[],
        };
        let count = self.count.map_or(i64::MAX, |count| i64::try_from(count).unwrap_or(i64::MAX));
        let rate = self.rate.map(|rate| rate.value);
        Some(CompiledSource {
            traits,
            codec: Codec::Json,
            // Any JSON, although more is known: a program that was tried on generated records must compile for those of
            // a broker too.
            schema: Schema::default(),
            build: Arc::new(move |cx| {
                let name = Arc::clone(&cx.component);
                let origin = Arc::new(Partition { source: Arc::clone(&name), topic: name, number: 0 });
                let maker = match &content {
                    Content::Shape(shape, seed) => Maker::Shape(*shape, *seed),
                    Content::Program(program) => Maker::Program(Box::new(Evaluator::new(program))),
                };
                Ok(BuiltSource { source: Box::new(GenerateSource { origin, maker, count, rate }), positions: None })
            }),
        })
    }
}

/// What a record is made by.
enum Content {
    Shape(Shape, u64),
    Program(Program),
}

/// Compiles a program for a body that is an empty object.
fn compile(program: &Text, seed: u64, cx: &mut CheckContext) -> Option<Program> {
    let nothing = Schema { kind: Kind::object(Collection::empty()) };
    // What a program draws follows from the stage's name, so the seed is made a part of it.
    let name = Arc::clone(&cx.component);
    let seeded: Arc<str> = format!("{name}/{seed}").into();
    let unseeded = mem::replace(&mut cx.component, seeded);
    let program = Program::compile(program, ProgramKind::Mapping, &nothing, cx);
    cx.component = unseeded;
    program
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

/// Makes records.
enum Maker {
    Shape(Shape, u64),
    Program(Box<Evaluator>),
}

impl Maker {
    /// Records `from` to `to`, in order.
    fn make(&mut self, origin: &Arc<Partition>, from: i64, to: i64, now: Timestamp) -> Result<Vec<Batch>, SourceError> {
        match self {
            Self::Shape(shape, seed) => Ok(vec![shaped(*shape, *seed, origin, from..to, now)]),
            Self::Program(evaluator) => programmed(evaluator, origin, from..to, now),
        }
    }
}

fn shaped(shape: Shape, seed: u64, origin: &Arc<Partition>, numbers: Range<i64>, timestamp: Timestamp) -> Batch {
    /// No shape is larger than this on average; a guess that is too small costs a copy.
    const EXPECTED_BYTES: usize = 288;
    let records = numbers.clone().count();
    let mut batch = BatchBuilder::new(Arc::clone(origin), records * EXPECTED_BYTES, records);
    for offset in numbers {
        let start = batch.bytes().len();
        shapes::write(shape, seed, offset.unsigned_abs(), batch.bytes_mut());
        let body = ByteRange::new(start, batch.bytes().len());
        batch.push(Record { body, timestamp, offset, ..Record::default() });
    }
    batch.finish()
}

fn programmed(
    evaluator: &mut Evaluator,
    origin: &Arc<Partition>,
    numbers: Range<i64>,
    timestamp: Timestamp,
) -> Result<Vec<Batch>, SourceError> {
    let mut empty = BatchBuilder::new(Arc::clone(origin), 2, numbers.clone().count());
    // All of them share one empty object.
    let body = empty.append(b"{}");
    let (format, fields) = (BodyFormat::Json, Some(FieldRange::default()));
    for offset in numbers {
        empty.push(Record { body, format, fields, timestamp, offset, ..Record::default() });
    }
    let empty = empty.finish();
    let mut made = Rewrite::of(&empty);
    for record in empty.records() {
        match evaluator.map(&empty, record, &mut made) {
            Ok(Mapped::Kept | Mapped::Dropped) => {}
            Err(error) => {
                return Err(SourceError::Fatal(format!("the program failed for record {}: {error}", record.offset)));
            }
        }
    }
    evaluator.release();
    Ok(made.finish())
}

struct GenerateSource {
    origin: Arc<Partition>,
    maker: Maker,
    count: i64,
    rate: Option<f64>,
}

impl Source for GenerateSource {
    fn stream(&mut self, cx: SourceContext) -> BoxStream<'_, Result<Pulled, SourceError>> {
        Box::pin(try_stream! {
            let (runtime, clock) = (&cx.runtime, cx.runtime.clock());
            let mut next = cx.resume_from(&self.origin).map_or(0, |position| position.0).max(0);
            let mut pace = self.rate.map(|rate| Pace::from(clock.now(), rate));
            while next < self.count {
                let records = match &mut pace {
                    Some(pace) => {
                        runtime.sleep_until(pace.next_due(clock.now(), self.count - next)).await;
                        pace.take_due(clock.now())
                    }
                    None => BATCH,
                };
                let from = next;
                next = from.saturating_add(records).min(self.count);
                let mut made = self.maker.make(&self.origin, from, next, clock.timestamp())?;
                // The records that a program left out are behind the last of those that it made.
                let last = made.pop();
                for batch in made {
                    let end = batch.records().last().map_or(from, |record| record.offset + 1);
                    yield Pulled::new(batch, Position(end));
                }
                if let Some(batch) = last {
                    yield Pulled::new(batch, Position(next));
                }
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
    use crate::clock::Clock;
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

    const READINGS: &str = "
        generate:
          count: COUNT
          seed: SEED
          program: |
            if mod(%offset, 3) == 1 { abort }
            .reading = random_int(0, 1_000_000)
            .number = %offset
            %key = \"even\"
    ";

    fn readings(count: u32, seed: u32) -> harness::SourceRun {
        harness::source(&READINGS.replace("COUNT", &count.to_string()).replace("SEED", &seed.to_string()))
    }

    #[tokio::test]
    async fn a_program_makes_records_that_follow_from_seed_and_number() {
        let all = readings(2999, 1).rest().await;
        assert_eq!(all.len(), 1999, "every third is left out");
        assert!(all[1].starts_with(r#"{"reading":"#) && all[1].ends_with(r#","number":2}"#), "{}", all[1]);
        assert_ne!(all, readings(2999, 2).rest().await);

        let mut run = readings(2999, 1);
        let first = run.next_batch().await.commit();
        assert_eq!(first.position, Position(1000));
        assert_eq!(first.batch.key(&first.batch.records()[0]), Some(&b"even"[..]));
        let rest = run.restart().await.rest().await;
        assert_eq!([harness::texts(&first.batch), rest].concat(), all);
    }

    #[tokio::test]
    async fn a_program_that_fails_stops_the_source_and_names_the_record() {
        let mut run = harness::source("generate: { program: \".x = [1, 2]\\nassert!(%offset < 5)\" }");
        let error = run.error().await;
        assert!(
            matches!(&error, SourceError::Fatal(text) if text.starts_with("the program failed for record 5: ")),
            "{error}"
        );
    }

    #[test]
    fn what_to_make_is_said_once() {
        let yaml = "generate: { rate: 10 }";
        let problems = harness::source_problems(yaml);
        assert_eq!(harness::underlined(yaml, problems[0].span), "generate");
        let yaml = "generate: { shape: orders, program: \".x = 1\" }";
        let problems = harness::source_problems(yaml);
        assert_eq!(problems[0].message, "`shape` and `program` both say what to make");
    }

    #[test]
    fn a_mistake_in_a_program_is_reported_at_its_place() {
        let yaml = "generate: { program: \".x = upcase(7)\" }";
        let problems = harness::source_problems(yaml);
        assert_eq!(harness::underlined(yaml, problems[0].span), "7");
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
