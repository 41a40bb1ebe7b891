//! Bodies of JSON: what decode lets through, lazy reads and writes. The reference is `serde_json`.

use std::cell::RefCell;

use serde_json::Value;
use weir::codecs::Codec;
use weir::record::{Batch, Record};
use weir::testing::harness::{self, TransformRun};

pub(crate) const TOKENS: &[&str] = &[
    "null",
    "true",
    "false",
    "\"a\":",
    "\"\\u0061\":",
    "\"new\":1,",
    "\"\"",
    "\\u0000",
    "\\ud83d\\ude00",
    "\\ud800",
    "\\udc00",
    "\\/",
    "\\",
    "{}",
    "[]",
    ",",
    ":",
    "  \n\t",
    "\u{feff}",
    "\u{2028}",
    "é",
    "1.5e-7",
];

/// Programs over the lazy record, and what each makes of an object.
type Mapped = fn(&mut serde_json::Map<String, Value>);

const PROGRAMS: &[(&str, Mapped)] = &[
    (".new = true", |object| drop(object.insert("new".into(), true.into()))),
    ("del(.a)", |object| drop(object.shift_remove("a"))),
    (".a = \"é\\n\"\ndel(.b)", |object| {
        object.insert("a".into(), "é\n".into());
        object.shift_remove("b");
    }),
    (".gone = exists(.zzz)", |object| drop(object.insert("gone".into(), object.contains_key("zzz").into()))),
];

/// Programs of which no more is asked than that they give JSON, or refuse the record.
const ANY: &[&str] = &[".copy = .", ".x = .a\n.a.b.c = .x", ". = .a", ".n = to_string(.a) ?? \"none\"", ".a[2] = .b"];

thread_local! {
    static MAPS: RefCell<Vec<TransformRun>> = RefCell::new(
        PROGRAMS.iter().map(|(program, _)| *program).chain(ANY.iter().copied()).map(map).collect()
    );
}

fn map(program: &str) -> TransformRun {
    harness::transform(&format!("map: {}", Value::from(program)))
}

pub(crate) fn check(input: &[u8]) {
    let reference = serde_json::from_slice::<Value>(input);
    let mut rejected = Vec::new();
    let batch = Codec::Json.decode(harness::batch(&[input]), &mut rejected);
    assert_eq!(batch.len() + rejected.len(), 1);
    let reference = match (&reference, rejected.first()) {
        (Ok(reference), None) => reference,
        (Err(_), Some(rejected)) => {
            assert_eq!(rejected.batch.body(&rejected.batch.records()[0]), input, "it is refused as it came");
            return;
        }
        (Ok(_), Some(rejected)) => panic!("serde_json takes it, and decode says: {}", rejected.error),
        (Err(error), None) => panic!("decode takes it, and serde_json says: {error}"),
    };
    let record = batch.records()[0];
    check_fields(&batch, &record, reference);
    check_line(&batch, &record, reference);
    MAPS.with_borrow_mut(|maps| {
        for (number, run) in maps.iter_mut().enumerate() {
            let output = run.apply(batch.clone());
            let outcomes = output.emitted.iter().map(|(_, batch)| batch.len()).sum::<usize>() + output.rejected.len();
            assert_eq!(outcomes + usize::try_from(output.discarded).unwrap_or(0), 1, "one outcome");
            let expected = PROGRAMS.get(number).and_then(|(_, change)| {
                let mut object = reference.as_object()?.clone();
                change(&mut object);
                Some(Value::Object(object))
            });
            for (_, batch) in &output.emitted {
                let record = &batch.records()[0];
                let written = parsed(batch.body(record));
                check_fields(batch, record, &written);
                assert!(expected.as_ref().is_none_or(|expected| *expected == written), "{expected:?}, not {written:?}");
            }
            assert!(expected.is_none() || output.rejected.is_empty(), "{}", output.rejected[0].error);
        }
    });
}

fn parsed(text: &[u8]) -> Value {
    serde_json::from_slice(text).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(text)))
}

/// The index finds what the reference finds; of several fields of one name, the last.
fn check_fields(batch: &Batch, record: &Record, reference: &Value) {
    let fields = batch.fields(record);
    assert_eq!(fields.is_some(), reference.is_object());
    for (name, value) in reference.as_object().into_iter().flatten() {
        let found = batch.field(record, name).unwrap_or_else(|| panic!("no field {name:?}"));
        assert_eq!(parsed(found), *value, "of {name:?}");
    }
    let names = fields.unwrap_or_default().len();
    assert!(names >= reference.as_object().map_or(0, serde_json::Map::len));
}

/// A sink of lines writes it in one line, and it is the same value.
fn check_line(batch: &Batch, record: &Record, reference: &Value) {
    let mut line = Vec::new();
    Codec::Json.encode(batch, record, &mut line).expect("what was decoded has a form in JSON");
    assert!(!line.contains(&b'\n'), "it is one line");
    assert_eq!(parsed(&line), *reference);
}
