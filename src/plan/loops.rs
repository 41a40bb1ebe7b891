//! Records that would come back: what a pipeline writes must not match a pattern by which it reads.

use std::sync::Arc;

use crate::component::{Pattern, Place, Problem};

/// What the components of a pipeline write, and read by patterns.
#[derive(Debug, Default)]
pub(super) struct Loops {
    writes: Vec<(Arc<str>, Place)>,
    reads: Vec<Pattern>,
}

impl Loops {
    /// Adds what a component writes and reads.
    pub(super) fn add(&mut self, component: &Arc<str>, writes: Vec<Place>, reads: Vec<Pattern>) {
        self.writes.extend(writes.into_iter().map(|place| (Arc::clone(component), place)));
        self.reads.extend(reads);
    }

    /// A problem for each output of the pipeline itself that a pattern matches.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        for Pattern { system, text, may_be_meant, matches } in &self.reads {
            for (writer, place) in
                self.writes.iter().filter(|(_, place)| place.system == *system && matches(&place.name))
            {
                let Place { name, .. } = place;
                let (words, first) = if *name == text.value {
                    (format!("`{name}` is also what `{writer}` of this pipeline writes"), "read something else")
                } else {
                    let pattern = &text.value;
                    let words =
                        format!("the pattern `{pattern}` matches `{name}`, which `{writer}` of this pipeline writes");
                    (words, "narrow the pattern")
                };
                let problem =
                    if *may_be_meant { Problem::warning(text.span, words) } else { Problem::error(text.span, words) };
                let end = if *may_be_meant { "unless a stage drops it" } else { "without end" };
                problems.push(
                    problem.help(format!(
                        "{first}, or write under another name: what is written would be read again, {end}"
                    )),
                );
            }
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::component::{Span, Spanned};

    fn place(system: &str, name: &str) -> Place {
        Place { system: system.to_owned(), name: name.to_owned() }
    }

    #[test]
    fn rule_18_a_pattern_that_matches_an_output_is_reported_for_each_of_them() {
        let mut loops = Loops::default();
        let text = Spanned::new("^orders-".to_owned(), Span { start: 3, end: 11 });
        let matches = Arc::new(|name: &str| name.starts_with("orders-"));
        loops.add(
            &"in".into(),
            Vec::new(),
            vec![Pattern { system: "a:1".to_owned(), text, may_be_meant: false, matches }],
        );
        loops.add(&"out".into(), vec![place("a:1", "orders-out")], Vec::new());
        loops.add(&"mirror".into(), vec![place("b:1", "orders-out")], Vec::new());
        loops.add(&"other".into(), vec![place("a:1", "totals")], Vec::new());
        let itself = Spanned::new("a.log".to_owned(), Span { start: 20, end: 25 });
        let matches = Arc::new(|name: &str| name == "a.log");
        loops.add(
            &"logs".into(),
            vec![place("files", "a.log")],
            vec![Pattern { system: "files".to_owned(), text: itself, may_be_meant: false, matches }],
        );
        loops.add(&"dead_letter".into(), vec![place("a:1", "orders-dead")], Vec::new());
        let problems = loops.problems();
        let said: Vec<_> = problems.iter().map(|problem| (problem.span.start, problem.message.as_str())).collect();
        assert_eq!(
            said,
            [
                (3, "the pattern `^orders-` matches `orders-out`, which `out` of this pipeline writes"),
                (3, "the pattern `^orders-` matches `orders-dead`, which `dead_letter` of this pipeline writes"),
                (20, "`a.log` is also what `logs` of this pipeline writes"),
            ]
        );
    }
}
