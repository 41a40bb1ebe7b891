//! How a mistake is shown: `path/file.yaml:LINE:COLUMN: error: …`, the line with the text
//! underlined, and the next steps; or one JSON object for each.

use std::fmt::Write as _;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use serde::Serialize;

use super::document::SourceFile;
use crate::component::{Problem, Severity, Span};

/// A place as people count: lines from 1, columns in characters from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The line.
    pub line: usize,
    /// The column.
    pub column: usize,
}

/// Sorts problems by their place, and drops those that say the same of the same text.
pub fn arrange(problems: &mut Vec<Problem>) {
    problems.sort_by(|one, other| {
        let key = |problem: &Problem| (problem.span.start, problem.severity, problem.span.end);
        key(one).cmp(&key(other)).then_with(|| one.message.cmp(&other.message))
    });
    problems.dedup_by(|later, earlier| later.span.start == earlier.span.start && later.message == earlier.message);
}

/// Where the underlined text begins, and where it ends.
#[must_use]
pub fn places(file: &SourceFile, span: Span) -> (Place, Place) {
    let span = underlined(&file.text, span);
    (place(&file.text, span.start), place(&file.text, span.end))
}

/// A problem as text, with a line end.
#[must_use]
pub fn render(file: &SourceFile, problem: &Problem) -> String {
    let span = underlined(&file.text, problem.span);
    let Place { line, column } = place(&file.text, span.start);
    let severity = word(problem.severity);
    let path = printable(&file.path.display().to_string());
    let mut out = format!("{path}:{line}:{column}: {severity}: {}\n", printable(&problem.message));
    snippet(&mut out, file, span, line, problem);
    for help in &problem.help {
        let _ = writeln!(out, "help: {}", printable(help));
    }
    out
}

/// A problem as one line of JSON, without a line end.
#[must_use]
pub fn json(file: &SourceFile, problem: &Problem) -> String {
    #[derive(Serialize)]
    struct Json<'a> {
        file: String,
        line: usize,
        column: usize,
        end_line: usize,
        end_column: usize,
        severity: &'a str,
        message: &'a str,
        label: &'a str,
        help: &'a [String],
    }
    let (start, end) = places(file, problem.span);
    let json = Json {
        file: file.path.display().to_string(),
        line: start.line,
        column: start.column,
        end_line: end.line,
        end_column: end.column,
        severity: word(problem.severity),
        message: &problem.message,
        label: &problem.label,
        help: &problem.help,
    };
    serde_json::to_string(&json).unwrap_or_default()
}

fn word(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    }
}

/// The span within the text, on the borders of characters, without blanks at its end.
fn underlined(text: &str, span: Span) -> Span {
    let inside = |mut at: usize| {
        at = at.min(text.len());
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        at
    };
    let start = inside(span.start);
    let end = inside(span.end).max(start);
    Span { start, end: start + text[start..end].trim_end().len() }
}

fn place(text: &str, at: usize) -> Place {
    let before = &text[..at];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let line = 1 + before.bytes().filter(|byte| *byte == b'\n').count();
    Place { line, column: 1 + before[line_start..].chars().count() }
}

/// The line with carets under the span. A span over several lines is underlined to the end of its first.
fn snippet(out: &mut String, file: &SourceFile, span: Span, line: usize, problem: &Problem) {
    let text = &file.text;
    let line_start = text[..span.start].rfind('\n').map_or(0, |newline| newline + 1);
    let line_text = text[line_start..].split('\n').next().unwrap_or_default().trim_end_matches('\r');
    if line_text.trim().is_empty() {
        return;
    }
    let start = (span.start - line_start).min(line_text.len());
    let end = (span.end - line_start).min(line_text.len()).max(start);
    let label = (!problem.label.is_empty()).then(|| printable(&problem.label));
    let level = match problem.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let annotation = AnnotationKind::Primary.span(start..end).label(label);
    let source = Snippet::source(line_text).line_start(line).annotation(annotation);
    let rendered = Renderer::plain().render(&[Group::with_level(level).element(source)]);
    out.push_str(rendered.trim_end_matches('\n'));
    out.push('\n');
}

/// Text of the user without what a terminal would obey.
fn printable(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(text: &str) -> SourceFile {
        SourceFile { path: "pipelines/orders.yaml".into(), text: text.to_owned() }
    }

    fn shown(text: &str, start: usize, end: usize) -> String {
        let problem = Problem::error(Span { start, end }, "no stage is named `cleen`")
            .label("read from here")
            .help("did you mean `clean`?");
        render(&file(text), &problem)
    }

    #[test]
    fn the_text_is_underlined_and_the_next_step_follows() {
        insta::assert_snapshot!(shown("a: 1\n    from: cleen # c\n", 15, 20));
    }

    #[test]
    fn tabs_and_wide_characters_keep_the_carets_in_place() {
        insta::assert_snapshot!(shown("表:\t{ from: cleen }\n", 13, 18));
    }

    #[test]
    fn a_span_over_several_lines_is_underlined_to_the_end_of_the_first() {
        insta::assert_snapshot!(shown("a:\n  b: 1\n  c: 2\n", 5, 17));
    }

    #[test]
    fn the_end_of_a_file_has_a_place() {
        insta::assert_snapshot!(shown("a: 1\nb: [", 9, 9));
        assert!(shown("", 0, 0).starts_with("pipelines/orders.yaml:1:1: error: "));
        assert!(shown("a: 1\n", 5, 5).starts_with("pipelines/orders.yaml:2:1: error: "));
        assert!(shown("a: 1\n", 99, 100).starts_with("pipelines/orders.yaml:2:1: error: "));
    }

    #[test]
    fn a_very_long_line_is_cut_around_the_text() {
        let line = format!("a: [{}, cleen, {}]", vec!["x"; 500].join(", "), vec!["y"; 500].join(", "));
        let start = line.find("cleen").unwrap();
        let shown = shown(&line, start, start + 5);
        assert!(shown.contains("cleen") && shown.lines().all(|line| line.len() < 200), "{shown}");
    }

    #[test]
    fn a_file_cannot_send_commands_to_the_terminal() {
        let shown = render(&file("a: \u{1b}[2J\n"), &Problem::error(Span { start: 3, end: 7 }, "odd \u{1b}[2J"));
        assert!(!shown.contains('\u{1b}'), "{shown:?}");
    }

    #[test]
    fn problems_are_arranged_by_place() {
        let problem = |start: usize, words: &str| Problem::error(Span { start, end: start + 1 }, words);
        let mut problems = vec![problem(5, "b"), problem(1, "a"), problem(5, "a"), problem(5, "b")];
        arrange(&mut problems);
        let order: Vec<_> = problems.iter().map(|problem| (problem.span.start, problem.message.as_str())).collect();
        assert_eq!(order, [(1, "a"), (5, "a"), (5, "b")]);
    }

    #[test]
    fn json_counts_as_people_do() {
        let problem = Problem::warning(Span { start: 5, end: 7 }, "say `x`").help("do");
        assert_eq!(
            json(&file("é\na: bc\n"), &problem),
            r#"{"file":"pipelines/orders.yaml","line":2,"column":3,"end_line":2,"end_column":5,"severity":"warning","message":"say `x`","label":"","help":["do"]}"#
        );
    }

    proptest! {
        #[test]
        fn any_text_and_any_span_can_be_shown(text in any::<String>(), start in 0_usize..40, length in 0_usize..40) {
            let shown = shown(&text, start, start + length);
            prop_assert!(shown.starts_with("pipelines/orders.yaml:"));
        }
    }
}
