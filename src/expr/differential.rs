//! A program gives the same over the lazy record as over a full tree, which is VRL's own target.

use std::sync::Arc;

use proptest::prelude::*;
use vrl::compiler::runtime::{Runtime, Terminate};
use vrl::compiler::{TargetValue, TimeZone};
use vrl::value::{ObjectMap, Secrets, Value};

use super::{Evaluator, Mapped, Program, ProgramKind, Rewrite, Schema, keep_as_read};
use crate::codecs::Codec;
use crate::component::{CheckContext, Span, Text};
use crate::record::{Batch, BatchBuilder, Draft, HeadersBuilder, Partition, Timestamp};

const MAPPINGS: &[&str] = &[
    ".x = 1",
    ".a = 1",
    ".a = .b",
    ".a.b = 1",
    ".a.b.c = .b",
    ".n.x = .a\n.n.y = .n.x",
    ".list[0] = \"first\"",
    ".list[-1] = 9",
    ".list[5].deep = true",
    ".\"odd key\" = 1",
    ".\"quo\\\"te\" = .a",
    ".\"é\" = \"ü\"",
    "del(.a)",
    "del(.a)\ndel(.b)\ndel(.n)\ndel(.list)\ndel(.name)\ndel(.level)",
    "del(.n.x)",
    "del(.n.x, compact: true)",
    "del(.n.deep.er, true)",
    "del(.list[0])",
    "del(.list[0], true)",
    "del(.none)",
    ".moved = del(.a)",
    ".a = del(.b)\n.b = del(.a)",
    "del(.a)\n.a = 1",
    ".a = 1\ndel(.a)",
    ".new = 1\ndel(.new)",
    ".new = 1\n.new = .new + 1",
    ".x = exists(.a)\n.y = exists(.n.x)\n.z = exists(.none)",
    "del(.a)\n.gone = exists(.a)",
    ".x = .a\n.a = 2\n.y = .a",
    ". = {}",
    ". = {\"only\": .a}",
    ". = .n",
    ". = .list",
    ". = null",
    ". = .a",
    "del(.)",
    ".copy = .",
    ".a = 1\n.copy = .",
    ".copy = .\n.a = 1\n.b = .copy",
    "del(.a)\n.keys = keys(object(.) ?? {})",
    ". = merge(object(.) ?? {}, {\"a\": 7, \"z\": null})",
    "x = .\nx.a = 1\n.old = x",
    ".n = merge(object(.n) ?? {}, {\"m\": [1, 2.5, null]})",
    ".n = object(.n) ?? {}\n.n |= {\"a\": [true]}",
    ".length = length(.list) ?? length(.name) ?? -1",
    ".up = upcase!(.name)",
    ".up = upcase(string(.name) ?? \"none\")",
    ".sum, .err = .a + .b",
    ".q = .a * 2 ?? \"no number\"",
    ".half = to_float!(.a) / 2",
    ".i = to_int!(.a)",
    ".s = to_string(.a) ?? encode_json(.a)",
    ".all = encode_json(.)",
    "if .level == \"debug\" { abort }\n.kept = true",
    "if .a == 1 { .one = true } else if is_string(.a) { .text = .a } else { del(.a) }",
    "if exists(.a) { .has = true; del(.b) } else { .has = false }",
    "if is_null(.a) { return null }\n.after = 1",
    ".x = (.a == .b)",
    ".x = .a != null && .b != null",
    ".x = .a || .b",
    ".kind = type_def(.a)",
    "for_each(object(.n) ?? {}) -> |key, value| { . = set!(., [\"from_\" + key], value) }",
    ".n = map_values(object(.n) ?? {}) -> |value| { [value] }",
    ".list = filter(array(.list) ?? []) -> |_index, value| { value != null }",
    ". = map_keys(object(.) ?? {}) -> |key| { upcase(key) }",
    ".got = get!(., [\"n\", \"x\"])",
    ". = set!(., [\"n\", \"x\"], 5)",
    ". = remove!(., [\"a\"])",
    ". = compact(object(.) ?? {}, recursive: true)",
    ".flat = flatten(object(.n) ?? {})",
    ".parts = split(string(.name) ?? \"\", \"e\")",
    ".r = r'[a-z]+'\n.m = match(string(.name) ?? \"\", r'e')",
    ".t = t'2020-01-01T00:00:00.5Z'\n.u = to_unix_timestamp(t'2020-01-01T00:00:00Z')",
    ".key = %key\n.at = %offset + %partition\n.topic = %topic\n.time = %timestamp",
    "%headers.new = \"v\"\n.h = %headers",
    ".h = %headers.h1\n.all = %",
    "%key = \"k\"\n.k = %key\ndel(%headers.h1)\n.h = %headers",
    ".fails = to_int!(.name)",
    ".x = 1\n.fails = string!(.a)\n.y = 2",
    ".x = unnest(.list) ?? null",
    ". = unnest!(.list)",
    ".a = {\"x\": .a, \"y\": {\"z\": .b}}\n.a.y.z2 = .a.x\ndel(.a.x)",
    ".n = .n\n.list = .list\n.a = .a",
    "null",
];

const CONDITIONS: &[&str] = &[
    "true",
    "false",
    ".a == 1",
    ".a >= 2",
    ".name != \"x\" && exists(.level)",
    "contains(.name, \"e\")",
    "to_int(.a) > 1 || is_null(.b)",
    "x = .a\nx == .b || .n.x == 1",
    "length(.list) == 2",
    "starts_with!(.name, \"a\")",
    "!bool!(.flag)",
    "%offset == 7 && %key == \"key\"",
    "is_object(.) && length(object!(.)) > 3",
    "includes(array(.list) ?? [], 1)",
];

fn compiled(kind: ProgramKind, text: &str) -> Program {
    let mut cx = CheckContext::new("stage", Span::default(), Schema::default());
    Program::compile(&Text::from(text), kind, &Schema::default(), &mut cx)
        .unwrap_or_else(|| panic!("{text}: {:#?}", cx.problems))
}

fn scalars() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("null".to_owned()),
        Just("true".to_owned()),
        Just("1".to_owned()),
        Just("1.0".to_owned()),
        (-5_i64..5).prop_map(|number| number.to_string()),
        any::<i64>().prop_map(|number| number.to_string()),
        Just("18446744073709551615".to_owned()),
        (-1000_i32..1000).prop_map(|number| format!("{}.{}e1", number / 10, number.abs() % 10)),
        Just("\"debug\"".to_owned()),
        Just("\"12\"".to_owned()),
        Just(r#""é \u00e9 \ud83d\ude00 \"q\" \n""#.to_owned()),
        "[ -!#-\\[\\]-~]{0,20}".prop_map(|text| format!("\"{text}\"")),
    ]
}

fn values() -> impl Strategy<Value = String> {
    scalars().prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec((names(), inner.clone()), 0..4).prop_map(|fields| object(&fields)),
            prop::collection::vec(inner, 0..4).prop_map(|items| format!("[{}]", items.join(" , "))),
        ]
    })
}

/// The names that the programs use, now and then escaped, and others.
fn names() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "a",
        "b",
        "n",
        "x",
        "list",
        "name",
        "level",
        "flag",
        "deep",
        "er",
        r"\u0061",
        r"n\u0061me",
        "other",
        "é",
        "odd key",
        "quo\\\"te",
        "",
    ])
}

fn object(fields: &[(&'static str, String)]) -> String {
    let fields: Vec<_> = fields.iter().map(|(name, value)| format!("\"{name}\": {value}")).collect();
    format!("{{{}}}", fields.join(", "))
}

fn bodies() -> impl Strategy<Value = String> {
    let fields = prop::collection::vec((names(), values()), 0..8);
    prop_oneof![20 => fields.prop_map(|fields| object(&fields)), 1 => values(), 1 => values().prop_map(|value| format!(" {value}\n"))]
}

fn batch_of(body: &str) -> Batch {
    let mut headers = HeadersBuilder::default();
    headers.push(b"h1", Some(b"one"));
    headers.push(b"h2", None);
    let origin = Arc::new(Partition { source: "s".into(), topic: "topic".into(), number: 2 });
    let mut builder = BatchBuilder::new(origin, 0, 1);
    builder.push_copy(Draft {
        body: body.as_bytes(),
        key: Some(b"key"),
        headers: headers.encoded(),
        timestamp: Timestamp(1_600_000_000_000),
        offset: 7,
        ..Draft::default()
    });
    let mut rejected = Vec::new();
    let batch = Codec::Json.decode(builder.finish(), &mut rejected);
    assert!(rejected.is_empty(), "{body}: {rejected:?}");
    batch
}

/// The same record as a full tree.
fn tree_of(body: &str) -> TargetValue {
    let headers = ObjectMap::from([("h1".into(), "one".into()), ("h2".into(), Value::Null)]);
    let time = chrono::DateTime::from_timestamp_millis(1_600_000_000_000).unwrap();
    let metadata = ObjectMap::from([
        ("key".into(), "key".into()),
        ("headers".into(), headers.into()),
        ("timestamp".into(), time.into()),
        ("topic".into(), "topic".into()),
        ("partition".into(), 2.into()),
        ("offset".into(), 7.into()),
    ]);
    TargetValue { value: serde_json::from_str(body).unwrap(), metadata: metadata.into(), secrets: Secrets::default() }
}

fn run_on_tree(program: &Program, target: &mut TargetValue) -> Result<Value, Terminate> {
    let utc = TimeZone::try_from("UTC".to_owned()).unwrap();
    Runtime::default().resolve(target, &program.0.vrl, &utc)
}

#[derive(Debug, PartialEq)]
enum Outcome {
    /// As VRL reads it: what nobody touched may be a larger integer in the text.
    Body(Value),
    Dropped,
    Rejected(String),
}

fn parsed(json: &[u8]) -> Value {
    serde_json::from_slice(json).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(json)))
}

fn map_lazily(program: &Program, batch: &Batch) -> Outcome {
    let mut rewrite = Rewrite::of(batch);
    let mut evaluator = Evaluator::new(program);
    match evaluator.map(batch, &batch.records()[0], &mut rewrite) {
        Ok(Mapped::Dropped) => return Outcome::Dropped,
        Err(error) => return Outcome::Rejected(error),
        Ok(Mapped::Kept) => {}
    }
    let batches = rewrite.finish();
    assert_index_is_right(&batches[0]);
    Outcome::Body(parsed(batches[0].body(&batches[0].records()[0])))
}

/// The index that was written with a body is the one that a scan finds.
fn assert_index_is_right(batch: &Batch) {
    let record = &batch.records()[0];
    let mut fields = Vec::new();
    let scanned = crate::record::json::index(batch.bytes(), record.body, &mut fields).unwrap();
    let shown = String::from_utf8_lossy(batch.body(record));
    assert_eq!(batch.fields(record), scanned.fields.map(|_| fields.as_slice()), "{shown}");
    assert_eq!(record.duplicate_keys, scanned.duplicate_keys, "{shown}");
}

fn map_tree(program: &Program, body: &str) -> Outcome {
    let mut target = tree_of(body);
    match run_on_tree(program, &mut target) {
        Ok(_) => Outcome::Body(parsed(&serde_json::to_vec(&target.value).unwrap())),
        Err(Terminate::Abort(_)) => Outcome::Dropped,
        Err(error) => Outcome::Rejected(error.to_string()),
    }
}

fn judge_lazily(program: &Program, batch: &Batch) -> Result<bool, String> {
    let mut evaluator = Evaluator::new(program);
    let record = &batch.records()[0];
    let answer = evaluator.holds(batch, record)?;
    let mut rewrite = Rewrite::of(batch);
    keep_as_read(batch, record, std::slice::from_ref(&evaluator), &mut rewrite);
    let batches = rewrite.finish();
    assert_index_is_right(&batches[0]);
    assert_eq!(parsed(batches[0].body(&batches[0].records()[0])), parsed(batch.body(record)));
    Ok(answer)
}

fn judge_tree(program: &Program, body: &str) -> Result<bool, String> {
    match run_on_tree(program, &mut tree_of(body)) {
        Ok(Value::Boolean(answer)) => Ok(answer),
        Ok(error) => Err(error.to_string_lossy().into_owned()),
        Err(error) => Err(error.to_string()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn mappings_give_the_same_over_the_lazy_record_as_over_a_tree(bodies in prop::collection::vec(bodies(), 12)) {
        thread_local! {
            static PROGRAMS: Vec<Program> =
                MAPPINGS.iter().map(|text| compiled(ProgramKind::Mapping, text)).collect();
        }
        PROGRAMS.with(|programs| {
            for (program, text) in programs.iter().zip(MAPPINGS) {
                for body in &bodies {
                    let lazy = map_lazily(program, &batch_of(body));
                    assert_eq!(lazy, map_tree(program, body), "program: {text}\nbody: {body}");
                }
            }
        });
    }

    #[test]
    fn conditions_give_the_same_over_the_lazy_record_as_over_a_tree(bodies in prop::collection::vec(bodies(), 12)) {
        thread_local! {
            static PROGRAMS: Vec<Program> =
                CONDITIONS.iter().map(|text| compiled(ProgramKind::Condition, text)).collect();
        }
        PROGRAMS.with(|programs| {
            for (program, text) in programs.iter().zip(CONDITIONS) {
                for body in &bodies {
                    let lazy = judge_lazily(program, &batch_of(body));
                    assert_eq!(lazy, judge_tree(program, body), "condition: {text}\nbody: {body}");
                }
            }
        });
    }

    #[test]
    fn a_body_that_no_program_touches_is_written_as_it_came(bodies in prop::collection::vec(bodies(), 1..5)) {
        thread_local! {
            static PROGRAM: Program = compiled(ProgramKind::Mapping, "if %offset == 0 { .changed = true }");
        }
        PROGRAM.with(|program| {
            let origin = batch_of("{}").origin().clone();
            // The first record is changed, so that the others are copied.
            let mut builder = BatchBuilder::new(origin, 0, bodies.len() + 1);
            for (offset, body) in (0..).zip(std::iter::once("{}").chain(bodies.iter().map(String::as_str))) {
                builder.push_copy(Draft { body: body.as_bytes(), offset, ..Draft::default() });
            }
            let batch = Codec::Json.decode(builder.finish(), &mut Vec::new());
            let mut rewrite = Rewrite::of(&batch);
            let mut evaluator = Evaluator::new(program);
            for record in batch.records() {
                evaluator.map(&batch, record, &mut rewrite).unwrap();
            }
            let written = rewrite.finish().remove(0);
            assert_eq!(written.body(&written.records()[0]), b"{\"changed\":true}");
            for (old, new) in batch.records().iter().zip(written.records()).skip(1) {
                assert_eq!(batch.body(old), written.body(new));
                let texts = |batch: &Batch, record| -> Vec<_> {
                    let fields = batch.fields(record).unwrap_or_default().iter();
                    fields.map(|field| (batch.slice(field.key).to_vec(), batch.slice(field.value).to_vec())).collect()
                };
                assert_eq!(texts(&batch, old), texts(&written, new));
            }
        });
    }
}

#[test]
fn the_corpus_compiles_and_is_large_enough() {
    assert!(MAPPINGS.len() + CONDITIONS.len() >= 60);
    let corpus = MAPPINGS.iter().map(|text| (ProgramKind::Mapping, text));
    let corpus = corpus.chain(CONDITIONS.iter().map(|text| (ProgramKind::Condition, text)));
    let refused: Vec<_> = corpus
        .filter_map(|(kind, text)| {
            let mut cx = CheckContext::new("stage", Span::default(), Schema::default());
            let program = Program::compile(&Text::from(*text), kind, &Schema::default(), &mut cx);
            program.is_none().then(|| format!("{text}: {:?}", cx.problems))
        })
        .collect();
    assert!(refused.is_empty(), "{}", refused.join("\n\n"));
}
