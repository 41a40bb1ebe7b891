//! `route`: sends each record to the first output whose condition holds.

use std::fmt;
use std::sync::Arc;

use schemars::{JsonSchema, Schema};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use crate::component::{
    CheckContext, CompiledTransform, Output, Port, Problem, Spanned, Text, Touched, Transform, TransformConfig,
};
use crate::expr::{Evaluator, Program, ProgramKind, Rewrite, keep_as_read};
use crate::record::{Batch, Record};

/// Sends each record to the first output whose condition holds, in the order of the file.
///
/// ```yaml
/// route:
///   large: .total >= 1000
///   foreign: .country != "NL"
///   else: drop
/// ```
///
/// Each output is read by its name, as in `from: split.large`. What no condition holds for goes to the output `else`;
/// with `else: drop` there is no such output, and those records are dropped and counted. The conditions are boolean
/// expressions in VRL. One that fails at run time rejects the record.
#[derive(Debug, JsonSchema)]
#[schemars(transform = conditions_by_name)]
pub(super) struct RouteConfig {
    #[schemars(skip)]
    routes: Vec<(Spanned<String>, Text)>,
    /// `drop` drops what no condition holds for.
    #[schemars(rename = "else")]
    rest: Option<Text>,
}

/// The output of what no condition holds for.
const ELSE: &str = "else";

impl<'de> Deserialize<'de> for RouteConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = RouteConfig;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("outputs by name, each with a condition")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RouteConfig, A::Error> {
                let mut config = RouteConfig { routes: Vec::new(), rest: None };
                while let Some(name) = map.next_key::<Spanned<String>>()? {
                    let condition = map.next_value()?;
                    if name.value == ELSE {
                        config.rest = Some(condition);
                    } else {
                        config.routes.push((name, condition));
                    }
                }
                Ok(config)
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

fn conditions_by_name(schema: &mut Schema) {
    schema.insert("additionalProperties".to_owned(), serde_json::json!({ "type": "string" }));
    schema.insert("minProperties".to_owned(), 1.into());
}

impl TransformConfig for RouteConfig {
    const NAME: &'static str = "route";

    fn compile(self, cx: &mut CheckContext) -> Option<CompiledTransform> {
        let mistakes = cx.problems.len();
        if self.routes.is_empty() {
            cx.report(Problem::error(cx.span, "`route` has no output").help("name one, with its condition"));
        }
        let drops_rest = self.rest.as_ref().is_some_and(|rest| rest.value.trim() == "drop");
        if let Some(rest) = self.rest.as_ref().filter(|_| !drops_rest) {
            let problem = Problem::error(rest.span, "`else` takes no condition")
                .help("leave it out for an output of that name, or say `else: drop`");
            cx.report(problem);
        }
        let schema = cx.schema.clone();
        let (mut outputs, mut conditions, mut touched) = (Vec::new(), Vec::new(), Touched::default());
        for (name, condition) in self.routes {
            if !is_output_name(&name) {
                let span = if name.span.start == name.span.end { condition.span } else { name.span };
                let problem = Problem::error(span, format!("`{}` cannot name an output", name.value))
                    .help("use letters, digits and `_`, a letter first");
                cx.report(problem);
            }
            if let Some(condition) = Program::compile(&condition, ProgramKind::Condition, &schema, cx) {
                let more = condition.touched();
                touched.reads.extend(more.reads);
                touched.writes.extend(more.writes);
                conditions.push(condition);
            }
            outputs.push(name.value);
        }
        if conditions.len() < outputs.len() || outputs.is_empty() || has_errors(&cx.problems[mistakes..]) {
            return None;
        }
        if !drops_rest {
            outputs.push(ELSE.to_owned());
        }
        Some(CompiledTransform {
            outputs,
            default_output: false,
            touched,
            schema,
            build: Arc::new(move || {
                Box::new(Route { conditions: conditions.iter().map(Evaluator::new).collect(), drops_rest })
            }),
        })
    }
}

fn has_errors(problems: &[Problem]) -> bool {
    problems.iter().any(|problem| problem.severity == crate::component::Severity::Error)
}

fn is_output_name(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_alphabetic())
        && name.chars().all(|character| character.is_ascii_alphanumeric() || character == '_')
}

struct Route {
    conditions: Vec<Evaluator>,
    drops_rest: bool,
}

impl Route {
    /// The number of the first condition that holds; behind the last one if none does.
    fn output_of(&mut self, batch: &Batch, record: &Record) -> Result<usize, String> {
        for (number, condition) in self.conditions.iter_mut().enumerate() {
            if condition.holds(batch, record)? {
                return Ok(number);
            }
        }
        Ok(self.conditions.len())
    }
}

impl Transform for Route {
    fn apply(&mut self, batch: Batch, out: &mut Output) {
        let named = self.conditions.len();
        let outputs = if self.drops_rest { named } else { named + 1 };
        let mut rewrites: Vec<_> = (0..outputs).map(|_| Rewrite::of(&batch)).collect();
        let mut dropped = 0;
        for record in batch.records() {
            match self.output_of(&batch, record) {
                Ok(output) => match rewrites.get_mut(output) {
                    Some(rewrite) => {
                        let read_by = &self.conditions[..named.min(output + 1)];
                        keep_as_read(&batch, record, read_by, rewrite);
                    }
                    None => dropped += 1,
                },
                Err(error) => out.reject(&batch, *record, error),
            }
        }
        self.conditions.iter_mut().for_each(Evaluator::release);
        out.discard(dropped);
        for (port, rewrite) in (1..).zip(rewrites) {
            rewrite.finish().into_iter().for_each(|batch| out.emit_to(Port(port), batch));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::component::Span;
    use crate::transforms::testing::{compile, run};

    fn route(routes: &[(&str, &str)], rest: Option<&str>) -> RouteConfig {
        let routes = routes.iter().map(|(name, condition)| {
            (Spanned::new((*name).to_owned(), Span { start: 1, end: 2 }), Text::from(*condition))
        });
        RouteConfig { routes: routes.collect(), rest: rest.map(Text::from) }
    }

    const BODIES: [&str; 4] = ["{\"n\":1}", "{\"n\":50}", "{\"n\":2000}", "{\"n\":\"x\"}"];

    #[test]
    fn the_first_condition_that_holds_takes_the_record_and_the_rest_goes_to_else() {
        let config = route(&[("large", ".n >= 1000"), ("some", ".n >= 10")], None);
        let compiled = compile(route(&[("large", ".n >= 1000"), ("some", ".n >= 10")], None)).unwrap();
        assert_eq!(compiled.outputs, ["large", "some", "else"]);
        assert!(!compiled.default_output);
        let ran = run(config, &BODIES);
        assert_eq!(ran.emitted[&1], ["{\"n\":2000}"]);
        assert_eq!(ran.emitted[&2], ["{\"n\":50}"]);
        assert_eq!(ran.emitted[&3], ["{\"n\":1}"]);
        assert_eq!(ran.rejected[0].0, "{\"n\":\"x\"}");
    }

    #[test]
    fn with_else_drop_the_rest_is_dropped_and_counted() {
        let compiled = compile(route(&[("large", ".n >= 1000")], Some("drop"))).unwrap();
        assert_eq!(compiled.outputs, ["large"]);
        let ran = run(route(&[("large", ".n >= 1000")], Some("drop")), &BODIES);
        assert_eq!(ran.emitted.len(), 1);
        assert_eq!(ran.discarded, 2);
    }

    #[test]
    fn rule_28_what_any_condition_has_read_is_collapsed() {
        let config = route(&[("a", ".a == 1"), ("b", ".b == 2")], None);
        let ran = run(config, &[r#"{"a":0,"a":3,"b":0,"b":2,"c":1,"c":2}"#]);
        assert_eq!(ran.emitted[&2], [r#"{"a":3,"b":2,"c":1,"c":2}"#]);
    }

    #[test]
    fn mistakes_are_all_reported() {
        let config = route(&[("1st", "true"), ("ok", ".a"), ("no-dash", "fals")], Some(".x == 1"));
        let problems = compile(config).unwrap_err();
        let messages: Vec<_> = problems.iter().map(|problem| problem.message.as_str()).collect();
        for expected in ["`1st` cannot name", "must be a boolean", "`no-dash` cannot name", "E701", "`else` takes no"] {
            assert!(messages.iter().any(|message| message.contains(expected)), "{expected}: {messages:#?}");
        }
        assert!(compile(route(&[], None)).is_err());
    }
}
