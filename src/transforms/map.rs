//! `map`: changes each record by a VRL program.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::component::{CheckContext, CompiledTransform, Output, Text, Transform, TransformConfig};
use crate::expr::{Evaluator, Mapped, Program, ProgramKind, Rewrite};
use crate::record::{Batch, BodyFormat};

/// Changes each record by a program in VRL, the Vector Remap Language.
///
/// ```yaml
/// map: |
///   if .level == "debug" { abort }
///   .total = to_float!(.price) * to_int!(.qty)
///   del(.internal)
///   %key = .user
/// ```
///
/// `.` is the record's body; `%key`, `%headers`, `%timestamp`, `%topic`, `%partition` and `%offset` are its metadata, of
/// which the last three cannot be changed. The record is what the assignments make of it; the value of the last
/// expression is not used. `abort` drops the record on purpose, and it is counted. An error at run time, as of
/// `to_float!`, rejects the record as it came.
///
/// Fields that the program does not touch keep their text, their order, and their numbers as they were written. An
/// integer that does not fit 64 bits is read as a floating-point number. A program that reads `.` as a whole writes the
/// fields of the body in alphabetical order. A Kafka tombstone (a record without a body, which deletes its key) passes
/// through untouched: a program that gave it a body would bring the key back.
///
/// A replay gives the same result: `now()` is the record's `%timestamp` as it came, and random numbers and UUIDs follow
/// from where the record comes from. A timestamp without a zone is read as UTC.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(transparent)]
pub(super) struct MapConfig {
    /// The program.
    program: Text,
}

impl TransformConfig for MapConfig {
    const NAME: &'static str = "map";

    fn compile(self, cx: &mut CheckContext) -> Option<CompiledTransform> {
        let schema = cx.schema.clone();
        let program = Program::compile(&self.program, ProgramKind::Mapping, &schema, cx)?;
        Some(CompiledTransform {
            outputs: Vec::new(),
            default_output: true,
            touched: program.touched(),
            schema: program.schema_after(),
            build: Arc::new(move || Box::new(Map { evaluator: Evaluator::new(&program) })),
        })
    }
}

struct Map {
    evaluator: Evaluator,
}

impl Transform for Map {
    fn apply(&mut self, batch: Batch, out: &mut Output) {
        let mut rewrite = Rewrite::of(&batch);
        let mut dropped = 0;
        for record in batch.records() {
            if record.format == BodyFormat::Absent {
                rewrite.keep(record);
                continue;
            }
            match self.evaluator.map(&batch, record, &mut rewrite) {
                Ok(Mapped::Kept) => {}
                Ok(Mapped::Dropped) => dropped += 1,
                Err(error) => out.reject(&batch, *record, error),
            }
        }
        self.evaluator.release();
        out.discard(dropped);
        rewrite.finish().into_iter().for_each(|batch| out.emit(batch));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::component::{Severity, Span};
    use crate::expr::Schema;
    use crate::record::{BatchBuilder, Draft, HeadersBuilder, Record};
    use crate::transforms::testing::{apply, batch, compile, run};

    fn map(program: &str) -> MapConfig {
        MapConfig { program: Text::from(program) }
    }

    #[test]
    fn untouched_fields_are_copied_byte_for_byte_and_the_index_is_that_of_a_new_scan() {
        let body = r#"{"big":18446744073709551617, "old" : 1.50,"drop":{"x":[1 , 2]},"text":"caf\u00e9","n":null }"#;
        let compiled = compile(map(".old = 2\ndel(.drop)\n.new = \"x\\\"y\"\n.last = [1, {\"a\": 1.0}]")).unwrap();
        let (out, ran) = apply(&compiled, batch(&[body]));
        let expected = concat!(
            r#"{"big":18446744073709551617,"old":2,"text":"caf\u00e9","n":null,"new":"x\"y","#,
            r#""last":[1,{"a":1.0}]}"#
        );
        assert_eq!(ran.bodies(), [expected]);
        let written = &out.emitted[0].1;
        let record = &written.records()[0];
        let rescanned = batch(&[expected]);
        let fields = |batch: &Batch, record: &Record| -> Vec<_> {
            let text = |range| String::from_utf8_lossy(batch.slice(range)).into_owned();
            let fields = batch.fields(record).unwrap_or_default().iter();
            fields.map(|field| (text(field.key), text(field.value), field.escaped_key)).collect()
        };
        assert_eq!(fields(written, record), fields(&rescanned, &rescanned.records()[0]));
        assert_eq!(record.format, BodyFormat::Json);
        assert_eq!(record.offset, 100);
    }

    #[test]
    fn a_tombstone_passes_through_untouched() {
        let compiled = compile(map(".a = 1")).unwrap();
        let bodies = batch(&["{}", "1"]);
        let mut records = bodies.records().to_vec();
        records[1] = Record { format: BodyFormat::Absent, fields: None, ..records[0] };
        let (out, _) = apply(&compiled, bodies.with_records(records));
        let formats: Vec<_> = out.emitted[0].1.records().iter().map(|record| record.format).collect();
        assert_eq!(formats, [BodyFormat::Json, BodyFormat::Absent]);
    }

    #[test]
    fn a_batch_that_no_program_changed_goes_on_in_its_own_bytes() {
        let batch = batch(&[" {\"a\": 1}", "[2]", "3"]);
        let compiled = compile(map("if .a == 7 { .b = 1 }")).unwrap();
        let (out, ran) = apply(&compiled, batch.clone());
        assert_eq!(ran.bodies(), [" {\"a\": 1}", "[2]", "3"]);
        assert_eq!(out.emitted[0].1.bytes().as_ptr(), batch.bytes().as_ptr());
    }

    #[test]
    fn unchanged_records_keep_their_place_among_changed_ones() {
        let bodies = ["{\"a\":1,\"b\":0}", "{\"a\":7}", "{ \"a\":2 }"];
        let ran = run(map("if .a == 7 { .b = .a }"), &bodies);
        assert_eq!(ran.bodies(), ["{\"a\":1,\"b\":0}", "{\"a\":7,\"b\":7}", "{ \"a\":2 }"]);
    }

    #[test]
    fn abort_drops_on_purpose_and_an_error_rejects_what_came_in() {
        let bodies = ["{\"a\":\"1\"}", "{\"a\":\"x\"}", "{\"a\":null,\"drop\":true}"];
        let ran = run(map("if .drop == true { abort }\n.b = 1\n.a = to_int!(.a)"), &bodies);
        assert_eq!(ran.bodies(), ["{\"a\":1,\"b\":1}"]);
        assert_eq!(ran.discarded, 1);
        assert_eq!(ran.rejected.len(), 1);
        assert_eq!(ran.rejected[0].0, "{\"a\":\"x\"}");
    }

    #[test]
    fn rule_27_a_failing_write_rejects_the_record() {
        let ran = run(map(".done = true\n%key = .key"), &["{\"key\":\"k\"}", "{\"key\":{\"not\":\"text\"}}"]);
        assert_eq!(ran.bodies(), ["{\"key\":\"k\",\"done\":true}"]);
        assert_eq!(ran.rejected, [("{\"key\":{\"not\":\"text\"}}".to_owned(), "`%key` cannot be map".to_owned())]);
    }

    #[test]
    fn rule_27_writes_are_dropped_if_the_program_fails() {
        let compiled = compile(map(".b = 1\n%key = \"new\"\n.c = to_int!(.a)")).unwrap();
        let (out, ran) = apply(&compiled, batch(&["{\"a\":\"x\"}", "{\"a\":\"2\"}"]));
        assert_eq!(ran.bodies(), ["{\"a\":\"2\",\"b\":1,\"c\":2}"]);
        let rejected = &out.rejected[0].batch;
        assert_eq!(rejected.body(&rejected.records()[0]), b"{\"a\":\"x\"}");
        assert_eq!(rejected.key(&rejected.records()[0]), None);
    }

    #[test]
    fn rule_27_an_infinite_number_rejects_the_record_and_leaves_no_trace() {
        let program = ".x = float!(.a) * 10.0\n.y = 1";
        let ran = run(map(program), &["{\"a\":1e308}", "{\"a\":1.5}"]);
        assert_eq!(ran.bodies(), ["{\"a\":1.5,\"x\":15.0,\"y\":1}"]);
        assert!(ran.rejected[0].1.contains("infinite"), "{:?}", ran.rejected);
    }

    #[test]
    fn what_a_map_writes_is_no_deeper_than_what_a_decoder_lets_through() {
        let deep = |depth: usize| format!("{{\"a\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
        let ran = run(map(".b = [.a]"), &[&deep(125), &deep(126)]);
        assert_eq!(ran.bodies().len(), 1);
        assert!(ran.rejected[0].1.contains("deeper than 127"), "{:?}", ran.rejected);
    }

    #[test]
    fn rule_28_escaped_keys_are_fields_of_their_unescaped_name() {
        let ran = run(map(".seen = .user\n.user = 2"), &[r#"{"us\u0065r":1,"z":0}"#]);
        assert_eq!(ran.bodies(), [r#"{"us\u0065r":2,"z":0,"seen":1}"#]);
    }

    #[test]
    fn rule_28_a_duplicated_key_is_collapsed_once_read_or_written_and_only_then() {
        let body = r#"{"a":1,"b":1,"a":2,"b":2,"\u0061":3}"#;
        assert_eq!(run(map(".c = .a"), &[body]).bodies(), [r#"{"b":1,"b":2,"\u0061":3,"c":3}"#]);
        assert_eq!(run(map(".a = 0"), &[body]).bodies(), [r#"{"b":1,"b":2,"\u0061":0}"#]);
        assert_eq!(run(map("del(.b)"), &[body]).bodies(), [r#"{"a":1,"a":2,"\u0061":3}"#]);
        assert_eq!(run(map("if .a == 9 { .c = 1 }"), &[body]).bodies(), [r#"{"b":1,"b":2,"\u0061":3}"#]);
        assert_eq!(run(map("%key = \"k\""), &[body]).bodies(), [body]);
        assert_eq!(run(map("%key = string!(.b)"), &[r#"{"b":1,"a":0,"b":"k"}"#]).bodies(), [r#"{"a":0,"b":"k"}"#]);
        let ran = run(map(".c = length(object!(.))"), &[body]);
        assert_eq!(ran.bodies(), [r#"{"a":3,"b":2,"c":2}"#]);
    }

    #[test]
    fn rule_28_untouched_headers_keep_their_order_and_repeats() {
        let mut headers = HeadersBuilder::default();
        for (name, value) in [("b", Some("1")), ("a", Some("2")), ("b", Some("3")), ("n", None), ("x", Some("0"))] {
            headers.push(name.as_bytes(), value.map(str::as_bytes));
        }
        let origin = batch(&[]).origin().clone();
        let mut builder = BatchBuilder::new(origin, 0, 1);
        let draft = Draft { body: b"text", key: Some(b"k"), headers: headers.encoded(), ..Draft::default() };
        builder.push_copy(draft);
        let program = r#"
            values = %headers.b
            %headers.x = 7
            %headers.new = ["p", null]
            del(%headers.a)
            %timestamp = t'2024-01-02T03:04:05Z'
            . = { "was": string!(.), "key": %key, "at": [%topic, %partition, %offset], "n": values }
        "#;
        let compiled = compile(map(program)).unwrap();
        let (out, ran) = apply(&compiled, builder.finish());
        assert_eq!(ran.bodies(), [r#"{"at":["t",3,0],"key":"k","n":["1","3"],"was":"text"}"#]);
        let written = &out.emitted[0].1;
        let record = &written.records()[0];
        let headers: Vec<_> = written
            .headers(record)
            .map(|header| (String::from_utf8_lossy(header.name), header.value.map(String::from_utf8_lossy)))
            .collect();
        let text = |value: &'static str| Some(value.into());
        assert_eq!(
            headers,
            [
                ("b".into(), text("1")),
                ("b".into(), text("3")),
                ("n".into(), None),
                ("x".into(), text("7")),
                ("new".into(), text("p")),
                ("new".into(), None),
            ]
        );
        assert_eq!(written.key(record), Some(&b"k"[..]));
        assert_eq!(record.timestamp.0, 1_704_164_645_000);
    }

    #[test]
    fn a_raw_body_is_a_string_until_a_program_parses_it() {
        let origin = batch(&[]).origin().clone();
        let mut builder = BatchBuilder::new(origin, 0, 1);
        builder.push_copy(Draft { body: b"{\"a\": [1]}", ..Draft::default() });
        let compiled = compile(map(". = parse_json!(string!(.))\n.b = .a[0]")).unwrap();
        let (out, ran) = apply(&compiled, builder.finish());
        assert_eq!(ran.bodies(), [r#"{"a":[1],"b":1}"#]);
        let written = &out.emitted[0].1;
        assert_eq!(written.fields(&written.records()[0]).map(<[_]>::len), Some(2));
    }

    #[test]
    fn the_metadata_of_a_raw_body_can_be_assigned() {
        let raw = Schema { kind: vrl::value::Kind::bytes() };
        let mut cx = CheckContext::new("stage", Span::default(), raw);
        assert!(map("%key = upcase(string!(.))\n%headers.x = \"1\"").compile(&mut cx).is_some(), "{:?}", cx.problems);
        assert!(map("%key = \"x\"\n.a = 1").compile(&mut cx).is_none());
        let mut cx = CheckContext::new("stage", Span::default(), Schema::default());
        assert!(map(". = {}\n%headers.x = \"1\"").compile(&mut cx).is_none());
        assert!(cx.problems[0].help[0].contains("%headers = merge"), "{:?}", cx.problems);
    }

    #[test]
    fn the_body_may_become_any_value() {
        assert_eq!(run(map(". = null"), &["{\"a\":1}"]).bodies(), ["null"]);
        assert_eq!(run(map(". = [.a, .b]"), &["{\"a\":1}"]).bodies(), ["[1,null]"]);
        assert_eq!(run(map("del(.)"), &["{\"a\":1}"]).bodies(), ["{}"]);
        assert_eq!(run(map(".a = 1"), &["7"]).bodies(), ["{\"a\":1}"]);
        assert_eq!(run(map("del(.a)"), &["{\"a\":1}", "{}"]).bodies(), ["{}", "{}"]);
        assert_eq!(
            run(map(". = unnest!(.a)"), &["{\"a\":[1,2],\"b\":0}"]).bodies(),
            [r#"[{"a":1,"b":0},{"a":2,"b":0}]"#]
        );
    }

    #[test]
    fn rule_23_a_replay_gives_the_same_times_and_random_values() {
        let program =
            ".now = now()\n.n = random_int(0, 1000000)\n.m = random_int(0, 1000000)\n.f = random_float(0.0, 1.0)
            .b = random_bool()\n.bytes = encode_base16(random_bytes(8))\n.v4 = uuid_v4()\n.v7 = uuid_v7()";
        let first = run(map(program), &["{}", "{}"]);
        assert_eq!(first, run(map(program), &["{}", "{}"]));
        let parsed: Vec<serde_json::Value> =
            first.bodies().iter().map(|body| serde_json::from_str(body).unwrap()).collect();
        assert_eq!(parsed[0]["now"], "2023-11-14T22:13:20.123Z");
        assert_ne!(parsed[0]["n"], parsed[0]["m"]);
        for field in ["n", "f", "bytes", "v4", "v7"] {
            assert_ne!(parsed[0][field], parsed[1][field], "{field}");
        }
        assert!(parsed[0]["v7"].as_str().unwrap().starts_with("018bcfe5-687b-7"), "{}", parsed[0]["v7"]);
        // The time of arrival is not what the program makes of the record's time.
        let ran = run(map("%timestamp = t'2001-01-01T00:00:00Z'\n.now = now()\n.at = %timestamp"), &["{}"]);
        assert_eq!(ran.bodies(), [r#"{"now":"2023-11-14T22:13:20.123Z","at":"2001-01-01T00:00:00Z"}"#]);
    }

    #[test]
    fn what_a_program_touches_is_known_before_it_runs() {
        let compiled = compile(map(".b.c = .a\ndel(.d)\n%key = string!(.e)\n.t = now()")).unwrap();
        let names = |set: &std::collections::BTreeSet<String>| set.iter().cloned().collect::<Vec<_>>().join(" ");
        assert_eq!(names(&compiled.touched.reads), ".a .d .e");
        assert_eq!(names(&compiled.touched.writes), "%key .b.c .d .t");
    }

    #[test]
    fn mistakes_are_all_reported_each_at_its_place() {
        let program = ".a = to_int(.b)\n.c = upcas(.d)\n%partition = 1\n.e = %tpoic\n\"unused\"\n";
        let problems = compile(map(program)).unwrap_err();
        let shown: Vec<_> = problems
            .iter()
            .map(|problem| (problem.severity, &program[problem.span.range()], problem.message.as_str()))
            .collect();
        assert!(
            shown.contains(&(Severity::Error, "to_int(.b)", "unhandled fallible assignment (VRL E103)"))
                || shown.iter().any(|(_, text, message)| *text == "to_int(.b)" && message.contains("E103")),
            "{shown:#?}"
        );
        assert!(shown.iter().any(|(_, text, message)| *text == "upcas" && message.contains("E105")), "{shown:#?}");
        assert!(shown.iter().any(|(_, _, message)| message.contains("E315")), "{shown:#?}");
        assert!(
            shown.iter().any(|(severity, text, _)| *severity == Severity::Warning && *text == "\"unused\""),
            "{shown:#?}"
        );
        assert!(problems.iter().all(|problem| problem.help.iter().all(|help| !help.contains("://"))), "{problems:#?}");
    }

    #[test]
    fn metadata_that_no_record_has_and_values_that_never_fit_are_refused() {
        for (program, place) in [
            (".a = %keys", "%keys"),
            ("%key = {\"a\": 1}", "%key"),
            ("%timestamp = 5", "%timestamp"),
            ("%headers = \"x\"", "%headers"),
            ("%\"weir verdict\" = 1", "%\"weir verdict\""),
        ] {
            let problems = compile(map(program)).unwrap_err();
            let places: Vec<_> = problems.iter().map(|problem| &program[problem.span.range()]).collect();
            assert!(places.iter().all(|found| *found == place || *found == program), "{program}: {places:?}");
            assert!(problems.iter().any(|problem| problem.severity == Severity::Error), "{problems:?}");
        }
        assert!(compile(map("  # nothing\n")).is_err() || compile(map("")).is_err());
    }
}
