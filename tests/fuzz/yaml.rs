//! Pipeline files: whatever they hold, all mistakes are told, each at a place inside the file.

use std::path::Path;
use std::sync::Arc;

use weir::component::{Problem, Severity};
use weir::config::{Environment, SourceFile, diagnostic, load};
use weir::plan::{CompileOptions, compile, declared_name, explain};

pub(crate) const TOKENS: &[&str] = &[
    "name: ",
    "sources:\n  a: ",
    "sinks:\n  z: ",
    "transforms:\n  - ",
    "from: ",
    "map: ",
    "filter: ",
    "route: { x: true }",
    "stdin: {}",
    "blackhole: {}",
    "stdout: {}",
    "generate: { shape: orders }",
    "file: { path: x }",
    "kafka: { brokers: b, topics: [t], group: g }",
    "guarantee: exactly_once",
    "dead_letter: ",
    "on_error: drop",
    "parallelism: ",
    "---\n",
    "${X}",
    "${X:-y}",
    "${file:/x}",
    "$${",
    "&a ",
    "*a",
    "<<: *a",
    "|\n    ",
    ">-\n    ",
    "!!str ",
    "\"\\x41\\u00e9\"",
    "'it''s'",
    "? ",
    ": ",
    "# é\n",
    "\u{feff}",
    "\u{85}",
    "\t",
    "10s",
    "64MiB",
    ".a == 1",
];

/// A machine with one variable.
struct Variables;

impl Environment for Variables {
    fn var(&self, name: &str) -> Option<String> {
        (name == "X").then(|| "value: [\n".to_owned())
    }

    fn secret_file(&self, _: &Path) -> Result<String, String> {
        Err("no such file".to_owned())
    }
}

pub(crate) fn check(input: &[u8]) {
    let text = String::from_utf8_lossy(input).into_owned();
    let file = Arc::new(SourceFile { path: "pipeline.yaml".into(), text });
    let (documents, problems) = load(Arc::clone(&file), &Variables);
    let is_error = |problems: &[Problem]| problems.iter().any(|problem| problem.severity == Severity::Error);
    assert!(!documents.is_empty() || is_error(&problems), "nothing, and nobody says why");
    check_places(&file, &problems);
    for document in &documents {
        let _ = declared_name(document);
        let (plan, mistakes) = compile(document, &CompileOptions::new(4));
        check_places(&file, &mistakes);
        assert!(plan.is_some() || is_error(&mistakes) || is_error(&problems), "no plan, and nobody says why");
        if let Some(plan) = plan.filter(|_| !is_error(&mistakes)) {
            assert!(!explain(&plan).is_empty());
        }
    }
}

fn check_places(file: &SourceFile, problems: &[Problem]) {
    for problem in problems {
        let span = problem.span;
        assert!(span.start <= span.end && span.end <= file.text.len(), "{span:?} is outside the file: {problem:?}");
        let on_characters = file.text.is_char_boundary(span.start) && file.text.is_char_boundary(span.end);
        assert!(on_characters, "{span:?} cuts a character: {problem:?}");
        assert!(!problem.message.is_empty(), "{problem:?}");
        let (start, end) = diagnostic::places(file, span);
        assert!((start.line, start.column) <= (end.line, end.column), "{problem:?}");
        assert!(diagnostic::render(file, problem).starts_with("pipeline.yaml:"), "{problem:?}");
        let json = diagnostic::json(file, problem);
        assert!(serde_json::from_str::<serde_json::Value>(&json).is_ok(), "{json}");
    }
}
