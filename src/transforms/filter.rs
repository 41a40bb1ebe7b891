//! `filter`: lets records go on for which a condition holds.

use std::slice;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::component::{CheckContext, CompiledTransform, Output, Text, Transform, TransformConfig};
use crate::expr::{Evaluator, Program, ProgramKind, Rewrite, keep_as_read};
use crate::record::Batch;

/// Lets a record go on if a condition holds, and drops it otherwise; dropped records are counted.
///
/// ```yaml
/// filter: .total >= 10 && .status != "cancelled"
/// ```
///
/// The condition is a boolean expression in VRL. It changes nothing. If it fails at run time, as `.total >= 10` does
/// where `.total` is a string, the record is rejected: an error is never taken for `false`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(transparent)]
pub(super) struct FilterConfig {
    /// The condition.
    condition: Text,
}

impl TransformConfig for FilterConfig {
    const NAME: &'static str = "filter";

    fn compile(self, cx: &mut CheckContext) -> Option<CompiledTransform> {
        let schema = cx.schema.clone();
        let condition = Program::compile(&self.condition, ProgramKind::Condition, &schema, cx)?;
        Some(CompiledTransform {
            outputs: Vec::new(),
            default_output: true,
            touched: condition.touched(),
            schema: condition.schema_after(),
            build: Arc::new(move || Box::new(Filter { condition: Evaluator::new(&condition) })),
        })
    }
}

struct Filter {
    condition: Evaluator,
}

impl Transform for Filter {
    fn apply(&mut self, batch: Batch, out: &mut Output) {
        let mut rewrite = Rewrite::of(&batch);
        let mut dropped = 0;
        for record in batch.records() {
            match self.condition.holds(&batch, record) {
                Ok(true) => keep_as_read(&batch, record, slice::from_ref(&self.condition), &mut rewrite),
                Ok(false) => dropped += 1,
                Err(error) => out.reject(&batch, *record, error),
            }
        }
        self.condition.release();
        out.discard(dropped);
        rewrite.finish().into_iter().for_each(|batch| out.emit(batch));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::component::{Span, TransformConfig};
    use crate::expr::Schema;
    use crate::transforms::testing::{apply, batch, compile, run};

    fn filter(condition: &str) -> FilterConfig {
        FilterConfig { condition: Text::from(condition) }
    }

    #[test]
    fn records_go_on_in_their_own_bytes_where_the_condition_holds() {
        let batch = batch(&["{\"n\":1}", "{\"n\":20}", "{\"n\":3}"]);
        let compiled = compile(filter(".n != 20")).unwrap();
        let (out, ran) = apply(&compiled, batch.clone());
        assert_eq!(ran.bodies(), ["{\"n\":1}", "{\"n\":3}"]);
        assert_eq!(ran.discarded, 1);
        assert_eq!(out.emitted[0].1.bytes().as_ptr(), batch.bytes().as_ptr());
    }

    #[test]
    fn a_condition_that_may_fail_compiles_and_rejects_where_it_does() {
        for condition in [".total >= 10", "limit = 10\n.total >= limit", "to_int(.total) >= 10 ?? to_int(.total) >= 10"]
        {
            let ran = run(filter(condition), &["{\"total\":12.5}", "{\"total\":9}", "{\"total\":\"x\"}", "{}"]);
            assert_eq!(ran.bodies(), ["{\"total\":12.5}"], "{condition}");
            assert!(ran.discarded >= 1, "{condition}: {ran:?}");
            assert!(ran.rejected.iter().any(|(body, _)| body == "{\"total\":\"x\"}"), "{condition}: {ran:?}");
        }
        let ran = run(filter("contains(.name, \"x\")"), &["{\"name\":\"axb\"}", "{\"name\":3}"]);
        assert_eq!(ran.bodies(), ["{\"name\":\"axb\"}"]);
        assert!(ran.rejected[0].1.contains("string"), "{:?}", ran.rejected);
    }

    #[test]
    fn types_flow_from_a_map_into_a_condition_behind_it() {
        let mut cx = CheckContext::new("m", Span::default(), Schema::default());
        let mapping = Text::from(".total = to_float!(.a) * 2");
        let program = Program::compile(&mapping, ProgramKind::Mapping, &Schema::default(), &mut cx).unwrap();
        let schema = program.schema_after();
        assert!(schema.kind.at_path(&vrl::path::parse_value_path("total").unwrap()).is_float());
        // What cannot fail compiles as an infallible condition: this one would not compile if `.total` might be text.
        let strict = Text::from("x = .total >= 10\nx");
        assert!(Program::compile(&strict, ProgramKind::Condition, &Schema::default(), &mut cx).is_none());
        cx.problems.clear();
        assert!(Program::compile(&strict, ProgramKind::Condition, &schema, &mut cx).is_some(), "{:?}", cx.problems);
    }

    #[test]
    fn rule_28_a_filter_collapses_the_duplicates_that_it_has_seen() {
        let ran = run(
            filter(".user == \"me\""),
            &[
                r#"{"user":"you","x":1,"x":2,"us\u0065r":"me"}"#,
                r#"{"user":"me","user":"you"}"#,
                r#"{"x":1,"user":"me","x":2}"#,
            ],
        );
        assert_eq!(ran.bodies(), [r#"{"x":1,"x":2,"us\u0065r":"me"}"#, r#"{"x":1,"user":"me","x":2}"#]);
        assert_eq!(ran.discarded, 1);
    }

    #[test]
    fn conditions_must_be_boolean_and_change_nothing() {
        for (condition, expected) in [
            (".a", "must be a boolean"),
            ("to_int(.a)", "must be a boolean"),
            (".a = true", "E315"),
            ("del(.a) == 1", "read-only"),
            ("if .a == 1 { abort }\ntrue", "cannot `abort`"),
            ("if .a == 1 { return true }\ntrue", "cannot `return`"),
            ("%nope == 1", "no metadata named `nope`"),
            (".a ==", "E20"),
            ("", "empty"),
        ] {
            let problems = compile(filter(condition)).unwrap_err();
            let shown: Vec<_> =
                problems.iter().map(|problem| format!("{} {:?}", problem.message, problem.help)).collect();
            assert!(shown.iter().any(|text| text.contains(expected)), "{condition}: {shown:#?}");
        }
    }

    #[test]
    fn the_example_is_valid() {
        assert_eq!(FilterConfig::NAME, "filter");
        assert!(compile(filter(".total >= 10 && .status != \"cancelled\"")).is_ok());
    }
}
