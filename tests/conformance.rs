//! Each row of each table: its page is there, documents every field, and its examples parse and compile; it stops on time,
//! and it loses nothing.

mod broker;
mod process;

#[path = "conformance/sinks.rs"]
mod sinks;
#[path = "conformance/sources.rs"]
mod sources;
#[path = "conformance/transforms.rs"]
mod transforms;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use broker::wait::wait_until;
use schemars::{Schema, SchemaGenerator};
use weir::component::node::Node;
use weir::component::{CheckContext, Problem, Severity, Span};
use weir::config::{Environment, SourceFile, diagnostic, load};
use weir::sinks::SINKS;
use weir::sources::SOURCES;
use weir::transforms::TRANSFORMS;

/// For what takes a moment even on a machine that is busy with other tests.
const SOON: Duration = Duration::from_mins(1);

/// How long a process may take to stop, whatever it is doing. Its grace is 30 s.
const STOP: Duration = Duration::from_secs(10);

/// A machine without variables and secrets: an example stands for itself.
struct Nothing;

impl Environment for Nothing {
    fn var(&self, _: &str) -> Option<String> {
        None
    }

    fn secret_file(&self, path: &Path) -> Result<String, String> {
        Err(format!("{} is not there", path.display()))
    }
}

/// Whether a config compiles; mistakes go to the context.
type Compile = Box<dyn Fn(&Node, &mut CheckContext) -> bool>;

/// A row of any table.
struct Row {
    table: &'static str,
    name: &'static str,
    schema: Schema,
    compile: Compile,
}

fn rows() -> Vec<Row> {
    let mut generator = SchemaGenerator::default();
    let mut rows = Vec::new();
    for row in SOURCES {
        let compile: Compile = Box::new(|node: &Node, cx: &mut CheckContext| (row.compile)(node, cx).is_some());
        rows.push(Row { table: "source", name: row.name, schema: (row.schema)(&mut generator), compile });
    }
    for row in TRANSFORMS {
        let compile: Compile = Box::new(|node: &Node, cx: &mut CheckContext| (row.compile)(node, cx).is_some());
        rows.push(Row { table: "transform", name: row.name, schema: (row.schema)(&mut generator), compile });
    }
    for row in SINKS {
        let compile: Compile = Box::new(|node: &Node, cx: &mut CheckContext| (row.compile)(node, cx).is_some());
        rows.push(Row { table: "sink", name: row.name, schema: (row.schema)(&mut generator), compile });
    }
    rows
}

impl Row {
    fn page(&self) -> &str {
        self.schema.get("description").and_then(|page| page.as_str()).unwrap_or_default()
    }

    /// The `yaml` blocks of its page.
    fn examples(&self) -> Vec<&str> {
        self.page().split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect()
    }

    /// Compiles an example, `NAME: …`, and returns what is wrong with it as text.
    fn compiled(&self, example: &str) -> Result<(), String> {
        let compile = |node: &Node, cx: &mut CheckContext| (self.compile)(node, cx).then_some(());
        try_compile(self.name, example, compile)
    }
}

/// Compiles `KIND: …`, or returns what is wrong with it as text.
fn try_compile<T>(
    kind: &str,
    text: &str,
    compile: impl FnOnce(&Node, &mut CheckContext) -> Option<T>,
) -> Result<T, String> {
    let file = Arc::new(SourceFile { path: PathBuf::from(kind), text: text.to_owned() });
    let (documents, mut problems) = load(Arc::clone(&file), &Nothing);
    let config = documents.first().and_then(|document| document.root.get(kind));
    let mut compiled = None;
    if let Some(config) = config {
        let mut cx = CheckContext::new(kind, config.span, weir::expr::Schema::default());
        compiled = compile(config, &mut cx);
        problems.extend(cx.problems);
    } else {
        problems.push(Problem::error(Span::default(), format!("the example does not begin with `{kind}:`")));
    }
    problems.retain(|problem| problem.severity == Severity::Error);
    let words: Vec<String> = problems.iter().map(|problem| diagnostic::render(&file, problem)).collect();
    match compiled {
        Some(compiled) if words.is_empty() => Ok(compiled),
        None if words.is_empty() => Err("not compiled, and nobody says why".to_owned()),
        _ => Err(words.join("\n")),
    }
}

/// What a way to exercise a kind says in a pipeline file, compiled.
fn compiled<T>(kind: &str, config: &str, compile: fn(&Node, &mut CheckContext) -> Option<T>) -> T {
    try_compile(kind, config, compile).unwrap_or_else(|words| panic!("{kind}:\n{words}"))
}

/// Asks a process to stop, whatever it is doing.
fn stop_in_time(who: &str, weir: &mut process::Weir) {
    weir.must_run();
    weir.terminate();
    wait_until(&format!("{who} to stop"), STOP, || weir.exit_code().is_some());
    let log = weir.log();
    assert_eq!(weir.exit_code(), Some(0), "{who}:\n{log}");
    assert!(!log.contains("left behind"), "{who}:\n{log}");
}

#[test]
fn every_kind_has_an_example_that_compiles() {
    for row in rows() {
        assert!(
            !row.examples().is_empty(),
            "{} {}: no example in a `yaml` block:\n{}",
            row.table,
            row.name,
            row.page()
        );
        for example in row.examples() {
            if let Err(words) = row.compiled(example) {
                panic!("{} {}:\n{words}", row.table, row.name);
            }
        }
    }
}

#[test]
fn every_field_of_a_kind_is_documented() {
    for row in rows() {
        let fields = row.schema.get("properties").and_then(|fields| fields.as_object()).cloned().unwrap_or_default();
        for (name, field) in fields {
            let said = field.get("description").and_then(|words| words.as_str()).unwrap_or_default();
            assert!(!said.is_empty(), "{} {}: `{name}` has no doc comment", row.table, row.name);
        }
    }
}

#[test]
fn a_misspelt_field_of_any_kind_is_refused() {
    for row in rows() {
        let has_fields = row.schema.get("properties").is_some() && row.schema.get("additionalProperties").is_none();
        let example = format!("{}: {{ no_such_field: 1 }}\n", row.name);
        if has_fields {
            row.compiled(&example).expect_err(row.name);
        }
    }
}

#[test]
fn names_are_given_once_in_a_table() {
    let mut names: Vec<(&str, &str)> = rows().iter().map(|row| (row.table, row.name)).collect();
    let all = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), all);
}
