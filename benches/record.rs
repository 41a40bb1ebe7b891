//! What a record costs on its way through decode, filter and map, on one core.
//!
//! `cargo bench --bench record` prints, or `cargo bench --bench record -- NAME` for one line only, nanoseconds for each record and the ratio to the same work over a full tree. The
//! records are those of the reference map: about 250 bytes of JSON with nine top-level fields, of which the map drops
//! debug records, deletes a field, adds two and upper-cases one.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vrl::compiler::runtime::{Runtime, Terminate};
use vrl::compiler::{TargetValue, TimeZone};
use vrl::value::{ObjectMap, Secrets, Value};
use weir::codecs::Codec;
use weir::component::{CheckContext, Span, Text};
use weir::expr::{Evaluator, Mapped, Program, ProgramKind, Rewrite, Schema, keep_as_read};
use weir::record::{Batch, BatchBuilder, Draft, Partition};

#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const RECORDS: u32 = 20_000;
const BATCH_RECORDS: u32 = 1_000;
/// Many short rounds: the best of them was hardly disturbed by what else the machine does.
const ROUNDS: usize = 100;

const FILTER: &str = ".level != \"debug\"";
const MAP: &str = r#"
del(.trace)
.env = "production"
.checked = true
.service = upcase!(.service)
"#;
const MAP_WITH_ABORT: &str = r#"
if .level == "debug" { abort }
del(.trace)
.env = "production"
.checked = true
.service = upcase!(.service)
"#;

fn main() {
    let raw = records();
    let bytes: usize = raw.iter().flat_map(|batch| batch.records().iter().map(|record| record.body.len())).sum();
    println!("{RECORDS} records of {} bytes, best of {ROUNDS} rounds\n", bytes / RECORDS as usize);

    let decoded: Vec<_> = raw.iter().map(|batch| Codec::Json.decode(batch.clone(), &mut Vec::new())).collect();
    let filter = compile(ProgramKind::Condition, FILTER);
    let map = compile(ProgramKind::Mapping, MAP);
    let map_with_abort = compile(ProgramKind::Mapping, MAP_WITH_ABORT);
    let filtered: Vec<_> = decoded.iter().flat_map(|batch| filtered(&mut Evaluator::new(&filter), batch)).collect();

    let copy = measure("copy into a new batch", || decoded.iter().for_each(|batch| drop(black_box(copied(batch)))));
    let decode = measure("decode: validate and index", || {
        for batch in &raw {
            black_box(Codec::Json.decode(batch.clone(), &mut Vec::new()));
        }
    });
    let filter_time = measure("filter", || {
        let mut evaluator = Evaluator::new(&filter);
        for batch in &decoded {
            black_box(self::filtered(&mut evaluator, batch));
        }
    });
    let map_time = measure("map of what the filter leaves", || {
        let mut evaluator = Evaluator::new(&map);
        for batch in &filtered {
            black_box(mapped(&mut evaluator, batch));
        }
    });
    let whole_map = measure("map with abort", || {
        let mut evaluator = Evaluator::new(&map_with_abort);
        for batch in &decoded {
            black_box(mapped(&mut evaluator, batch));
        }
    });
    let together = measure("decode, map with abort, written", || {
        let mut evaluator = Evaluator::new(&map_with_abort);
        for batch in &raw {
            let decoded = Codec::Json.decode(batch.clone(), &mut Vec::new());
            black_box(mapped(&mut evaluator, &decoded));
        }
    });
    let tree = measure("the same over serde_json and a tree", || {
        for batch in &raw {
            black_box(mapped_as_tree(&map_with_abort, batch));
        }
    });

    if [copy, decode, filter_time, map_time, whole_map, together, tree].contains(&Duration::MAX) {
        return;
    }
    println!();
    for (name, time) in [
        ("decode", decode),
        ("filter", filter_time),
        ("map", map_time),
        ("map with abort", whole_map),
        ("decode, filter and map", decode + filter_time + map_time),
        ("decode, map with abort, written", together),
    ] {
        println!("{name:<36}{:>8.2} of the tree {:>8.2} copies", ratio(time, tree), ratio(time, copy));
    }
}

fn ratio(time: Duration, base: Duration) -> f64 {
    time.as_secs_f64() / base.as_secs_f64()
}

#[expect(clippy::disallowed_methods, reason = "a benchmark measures real time, outside the daemon")]
fn measure(name: &str, mut work: impl FnMut()) -> Duration {
    let mut wanted = std::env::args().skip(1).filter(|argument| argument != "--bench").peekable();
    if wanted.peek().is_some() && !wanted.any(|wanted| name == wanted) {
        return Duration::MAX;
    }
    let rounds = (0..ROUNDS).map(|_| {
        let start = Instant::now();
        work();
        start.elapsed()
    });
    let best = rounds.min().expect("there is a round");
    println!("{name:<36}{:>8.0} ns a record", best.as_secs_f64() * 1e9 / f64::from(RECORDS));
    best
}

fn compile(kind: ProgramKind, text: &str) -> Program {
    let mut cx = CheckContext::new("bench", Span::default(), Schema::default());
    Program::compile(&Text::from(text), kind, &Schema::default(), &mut cx)
        .unwrap_or_else(|| panic!("{:#?}", cx.problems))
}

/// A tenth of the records is on the level `debug`.
fn records() -> Vec<Batch> {
    let mut random = fastrand::Rng::with_seed(1);
    let origin = Arc::new(Partition { source: "bench".into(), topic: "bench".into(), number: 0 });
    let level = ["debug", "info", "info", "info", "warn", "info", "info", "error", "info", "info"];
    let service = ["checkout", "billing", "search", "frontend"];
    (0..RECORDS / BATCH_RECORDS)
        .map(|batch| {
            let mut builder =
                BatchBuilder::new(Arc::clone(&origin), BATCH_RECORDS as usize * 256, BATCH_RECORDS as usize);
            for record in 0..BATCH_RECORDS {
                let offset = i64::from(batch * BATCH_RECORDS + record);
                let body = format!(
                    concat!(
                        r#"{{"ts":"2026-11-23T12:{:02}:{:02}.{:03}Z","level":"{}","service":"{}","user":{},"#,
                        r#""latency_ms":{}.{},"path":"/api/v1/orders/{}/items","trace":"{:032x}","#,
                        r#""message":"request handled","tags":{{"zone":"eu-{}","canary":false}}}}"#
                    ),
                    random.u8(0..60),
                    random.u8(0..60),
                    random.u16(0..1000),
                    level[random.usize(0..10)],
                    service[random.usize(0..4)],
                    random.u32(1..1_000_000),
                    random.u16(0..900),
                    random.u8(1..10),
                    random.u32(0..1_000_000),
                    random.u128(..),
                    random.u8(1..5),
                );
                builder.push_copy(Draft { body: body.as_bytes(), offset, ..Draft::default() });
            }
            builder.finish()
        })
        .collect()
}

fn copied(batch: &Batch) -> Batch {
    let mut builder = BatchBuilder::new(Arc::clone(batch.origin()), batch.bytes().len(), batch.len());
    batch.records().iter().for_each(|record| builder.push_from(batch, record));
    builder.finish()
}

fn filtered(evaluator: &mut Evaluator, batch: &Batch) -> Vec<Batch> {
    let mut rewrite = Rewrite::of(batch);
    for record in batch.records() {
        if evaluator.holds(batch, record).expect("the condition never fails") {
            keep_as_read(batch, record, std::slice::from_ref(evaluator), &mut rewrite);
        }
    }
    evaluator.release();
    rewrite.finish()
}

fn mapped(evaluator: &mut Evaluator, batch: &Batch) -> Vec<Batch> {
    let mut rewrite = Rewrite::of(batch);
    for record in batch.records() {
        let _: Mapped = evaluator.map(batch, record, &mut rewrite).expect("the map never fails");
    }
    evaluator.release();
    rewrite.finish()
}

fn mapped_as_tree(program: &Program, batch: &Batch) -> Vec<u8> {
    let utc = TimeZone::try_from("UTC".to_owned()).expect("UTC is a zone");
    let mut runtime = Runtime::default();
    let mut out = Vec::with_capacity(batch.bytes().len() * 5 / 4);
    for record in batch.records() {
        let mut target = TargetValue {
            value: serde_json::from_slice(batch.body(record)).expect("the records are JSON"),
            metadata: Value::Object(ObjectMap::new()),
            secrets: Secrets::default(),
        };
        match runtime.resolve(&mut target, program.vrl(), &utc) {
            Ok(_) => serde_json::to_writer(&mut out, &target.value).expect("a tree has a text"),
            Err(Terminate::Abort(_)) => {}
            Err(error) => panic!("{error}"),
        }
        runtime.clear();
    }
    out
}
