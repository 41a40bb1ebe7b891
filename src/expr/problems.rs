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
    if let Some(main) = main {
        problem.label.clone_from(&main.message);
    }
    let others = labels.iter().filter(|label| main.is_none_or(|main| !std::ptr::eq(main, *label)));
    problem.help.extend(others.map(|label| label.message.clone()));
    problem.help.extend(steps(&diagnostic.notes));
    problem.help.retain(|help| !help.trim().is_empty());
    problem
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
