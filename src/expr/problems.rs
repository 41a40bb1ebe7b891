//! VRL's diagnostics, placed in the pipeline file.

use vrl::diagnostic::{Diagnostic, Note, Severity as VrlSeverity};

use crate::component::{Problem, Severity, Text};

/// What VRL says of a program, in its own words, at the place in the file.
pub(super) fn placed(diagnostic: &Diagnostic, text: &Text) -> Problem {
    let labels = &diagnostic.labels;
    let main = labels.iter().find(|label| label.primary).or_else(|| labels.first());
    let span = main.map_or(text.span, |label| {
        let end = label.span.end().min(text.value.len());
        text.span_of(label.span.start().min(end), end)
    });
    let message = match diagnostic.code {
        0 => diagnostic.message.clone(),
        code => format!("{} (VRL E{code:03})", diagnostic.message),
    };
    let mut problem = Problem::error(span, message);
    problem.severity = match diagnostic.severity {
        VrlSeverity::Bug | VrlSeverity::Error => Severity::Error,
        VrlSeverity::Warning | VrlSeverity::Note => Severity::Warning,
    };
    if let Some(main) = main
        && main.message != diagnostic.message
    {
        problem.label = in_our_words(&main.message);
    }
    let others = labels.iter().filter(|label| main.is_none_or(|main| !std::ptr::eq(main, *label)));
    for label in others.filter(|label| !label.message.trim().is_empty()) {
        match problem.help.last_mut() {
            // An introduction and the code that it introduces.
            Some(step) if step.ends_with(':') => *step = format!("{step} `{}`", label.message.trim()),
            _ => problem.help.push(in_our_words(&label.message)),
        }
    }
    problem.help.extend(steps(&diagnostic.notes).iter().map(|step| in_our_words(step)));
    problem
}

/// What somebody wrote stands in backticks, and no step begins as if another stood before it.
fn in_our_words(text: &str) -> String {
    let text = text.trim();
    let text = text.strip_prefix("help: ").or_else(|| text.strip_prefix("or ")).unwrap_or(text);
    if text.contains('`') { text.to_owned() } else { text.replace('"', "`") }
}

/// The notes that are a next step: hints and suggested code, without the links.
fn steps(notes: &[Note]) -> Vec<String> {
    let mut steps = Vec::<String>::new();
    // A suggestion is a note `try: …`, then its code in notes of its own, indented.
    let mut code_follows = false;
    for note in notes {
        match note {
            Note::Hint(_) | Note::Example(_) | Note::CoerceValue | Note::UserErrorMessage(_) => {
                code_follows = false;
                steps.push(note.to_string());
            }
            Note::Basic(line) if line.trim().is_empty() || line.contains("://") => {}
            Note::Basic(line) => match steps.last_mut() {
                Some(step) if code_follows && line.starts_with(' ') => {
                    step.push_str(if step.ends_with('`') { ", `" } else { ": `" });
                    step.push_str(line.trim());
                    step.push('`');
                }
                _ => {
                    code_follows = line.starts_with("try:");
                    steps.push(line.trim().to_owned());
                }
            },
            _ => {}
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::component::{CheckContext, Span};
    use crate::expr::{Program, ProgramKind, Schema};

    fn problems(text: &Text) -> Vec<Problem> {
        let mut cx = CheckContext::new("stage", Span::default(), Schema::default());
        let _ = Program::compile(text, ProgramKind::Mapping, &Schema::default(), &mut cx);
        cx.problems
    }

    #[test]
    fn a_mistake_is_placed_in_the_file_and_tells_the_next_step() {
        // A block scalar in a file: each line stands four bytes further in than in the program.
        let text = Text {
            value: ".x = 1\n.a = upcas(.b)\n".to_owned(),
            span: Span { start: 100, end: 140 },
            offsets: vec![(0, 104), (7, 115)],
        };
        let found = problems(&text);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].message, "call to undefined function (VRL E105)");
        assert_eq!(found[0].span, Span { start: 120, end: 125 });
        assert_eq!(found[0].help, ["did you mean `upcase`?"]);
    }

    #[test]
    fn suggested_code_stands_beside_what_suggests_it() {
        let found = problems(&Text::from(".a = to_int(.b)"));
        assert_eq!(found[0].message, "unhandled fallible assignment (VRL E103)");
        assert_eq!(found[0].help, ["change this to an infallible assignment: `.a, err = to_int(.b)`"]);
    }
}
