//! From a document to a plan: every component is compiled, and everything that is read is found.

use std::collections::HashSet;
use std::sync::Arc;

use super::declared::Declared;
use super::domains::divide;
use super::draft::{self, Chosen, Component, Draft, listed};
use super::graph::order;
use super::loops::Loops;
use super::parallelism::lanes;
use super::paths::{self, NamedPlaces};
use super::resolve::{Link, Links, Stage, resolve};
use super::{
    Buffer, CompileOptions, Guarantee, OnError, Plan, SinkStage, SourceStage, Tables, TransformStage, Upstream,
};
use crate::clients::letters::files::LetterPaths;
use crate::component::{
    CheckContext, CompiledSink, CompiledSource, CompiledTransform, Port, Problem, Severity, Span, nearest,
};
use crate::config::{Document, substituted};
use crate::expr::Schema;

/// Compiles a document. The plan is there if no problem is an error.
#[must_use]
pub fn compile(document: &Document, options: &CompileOptions) -> (Option<Plan>, Vec<Problem>) {
    let mut problems = Vec::new();
    let plan = draft::draft(document, &options.tables, &mut problems)
        .and_then(|draft| Compiler::new(document, &draft, options).run(&mut problems));
    let sound = problems.iter().all(|problem| problem.severity != Severity::Error);
    (plan.filter(|_| sound), problems)
}

/// The name of a document's pipeline, and the best place to show it. `None` if it has none that can be used.
#[must_use]
pub fn declared_name(document: &Document) -> Option<(Arc<str>, Span)> {
    if let Some(node) = document.root.get("name") {
        return node.text().map(|name| (name.into(), node.span));
    }
    let stem = document.file.path.file_stem()?.to_string_lossy();
    Some((stem.as_ref().into(), draft::first_line(&document.root)))
}

struct Compiler<'a> {
    document: &'a Document,
    draft: &'a Draft<'a>,
    options: &'a CompileOptions,
    sources: Vec<Option<CompiledSource>>,
    transforms: Vec<Option<CompiledTransform>>,
    sinks: Vec<Option<CompiledSink>>,
    dead_letter: Option<CompiledSink>,
    /// What is known of the bodies that leave each transform.
    schemas: Vec<Option<Schema>>,
    loops: Loops,
}

impl<'a> Compiler<'a> {
    fn new(document: &'a Document, draft: &'a Draft<'a>, options: &'a CompileOptions) -> Self {
        let transforms = draft.transforms.len();
        Self {
            document,
            draft,
            options,
            sources: Vec::new(),
            transforms: (0..transforms).map(|_| None).collect(),
            sinks: Vec::new(),
            dead_letter: None,
            schemas: vec![None; transforms],
            loops: Loops::default(),
        }
    }

    fn run(mut self, problems: &mut Vec<Problem>) -> Option<Plan> {
        let links = resolve(self.draft, problems);
        let transforms_read = |links: &[Link]| {
            let transform = |link: &Link| if let Stage::Transform(at) = link.stage { Some(at) } else { None };
            links.iter().filter_map(transform).collect::<Vec<_>>()
        };
        let reads: Vec<_> = links.transforms.iter().map(|links| transforms_read(links)).collect();
        let order = order(&reads);
        for circle in &order.circles {
            problems.push(self.circle(circle, &links));
        }
        self.compile_components(&order.order, &links, problems);

        // Where a transform stands in the plan.
        let mut place = vec![0; order.order.len()];
        for (at, transform) in order.order.iter().enumerate() {
            place[*transform] = at;
        }
        let mut ports = Ports { compiler: &self, place: &place, read: HashSet::new(), problems };
        let transform_inputs: Vec<_> = links.transforms.iter().map(|links| ports.upstreams(links)).collect();
        let sink_inputs: Vec<_> = links.sinks.iter().map(|links| ports.upstreams(links)).collect();
        let read = ports.read;
        // Without sinks, whatever is not read follows from that.
        if !links.some_unknown && order.circles.is_empty() && !self.draft.sinks.is_empty() {
            self.unread(&read, &links, problems);
        }
        let on_errors = self.on_errors(problems);
        self.assemble(&order.order, transform_inputs, sink_inputs, &on_errors, problems)
    }

    fn compile_components(&mut self, order: &[usize], links: &Links, problems: &mut Vec<Problem>) {
        let Tables { sources, transforms, sinks } = self.options.tables;
        let draft = self.draft;
        for source in &draft.sources {
            let compiled = self.component(source, Schema::default(), problems, |chosen, cx| {
                (sources[chosen.row].compile)(chosen.config, cx)
            });
            self.sources.push(compiled);
        }
        for &at in order {
            let schema = self.schema_of(&links.transforms[at]);
            let compiled = self.component(&draft.transforms[at], schema.clone(), problems, |chosen, cx| {
                (transforms[chosen.row].compile)(chosen.config, cx)
            });
            // A transform with mistakes is taken to change nothing, so that those behind it are still checked.
            self.schemas[at] = Some(compiled.as_ref().map_or(schema, |compiled| compiled.schema.clone()));
            self.transforms[at] = compiled;
        }
        let sink = |this: &mut Self, component: &Component<'_>, schema, problems: &mut Vec<Problem>| {
            this.component(component, schema, problems, |chosen, cx| (sinks[chosen.row].compile)(chosen.config, cx))
        };
        for (component, links) in draft.sinks.iter().zip(&links.sinks) {
            let schema = self.schema_of(links);
            let compiled = sink(self, component, schema, problems);
            self.sinks.push(compiled);
        }
        self.dead_letter =
            draft.dead_letter.as_ref().and_then(|component| sink(self, component, Schema::default(), problems));
        if let Some(chosen) = draft.dead_letter.as_ref().and_then(|component| component.chosen)
            && chosen.kind == "file"
            && let Err(why) = LetterPaths::of(chosen.config)
        {
            let words = format!("`weir dlq` will not find these dead letters: {why}");
            problems.push(Problem::warning(chosen.span, words));
        }
        let reads = self.dead_letter.as_ref().is_some_and(|compiled| !compiled.touched.reads.is_empty());
        if let Some(chosen) = draft.dead_letter.as_ref().and_then(|component| component.chosen).filter(|_| reads) {
            let span = chosen.config.get("key").map_or(chosen.span, |key| key.span);
            problems.push(
                Problem::error(span, "a dead letter is written as it is, and keeps the key of its record")
                    .help("remove `key`: a record that was refused may not have the field"),
            );
        }
        let hidden = substituted(&self.document.root, &self.document.file.text);
        problems.extend(self.loops.problems().into_iter().map(|problem| without(problem, &hidden)));
    }

    /// What is known of the bodies that enter a stage.
    fn schema_of(&self, links: &[Link]) -> Schema {
        let schema = |link: &Link| match link.stage {
            Stage::Source(at) => self.sources[at].as_ref().map(|compiled| compiled.schema.clone()),
            Stage::Transform(at) => self.schemas[at].clone(),
            Stage::Sink(_) => None,
        };
        let known = links.iter().map(|link| schema(link).unwrap_or_default());
        known.reduce(Schema::union).unwrap_or_default()
    }

    fn component<T>(
        &mut self,
        component: &Component<'_>,
        schema: Schema,
        problems: &mut Vec<Problem>,
        compile: impl FnOnce(&Chosen<'_>, &mut CheckContext) -> Option<T>,
    ) -> Option<T> {
        let chosen = component.chosen?;
        let mut cx = CheckContext::new(Arc::clone(&component.name), chosen.span, schema);
        let compiled = compile(&chosen, &mut cx);
        let hidden = substituted(chosen.config, &self.document.file.text);
        problems.extend(cx.problems.into_iter().map(|problem| without(problem, &hidden)));
        self.loops.add(&component.name, cx.writes, cx.reads);
        compiled
    }

    fn circle(&self, circle: &[usize], links: &Links) -> Problem {
        let name = |at: usize| &*self.draft.transforms[at].name;
        let first = circle[0];
        let before = circle[circle.len() - 1];
        let link = links.transforms[first].iter().find(|link| link.stage == Stage::Transform(before));
        let span = link.map_or(self.draft.transforms[first].span, |link| link.span);
        if circle.len() == 1 {
            return Problem::error(span, format!("`{}` reads itself", name(first)));
        }
        let path: Vec<_> = circle.iter().chain([&first]).map(|at| format!("`{}`", name(*at))).collect();
        Problem::error(span, format!("records would go in a circle: {}", path.join(" → ")))
            .help("every stage must be reached from a source; break the circle at one `from`")
    }

    /// Reports stages, and outputs, whose records would go nowhere.
    fn unread(&self, read: &HashSet<(Stage, Port)>, links: &Links, problems: &mut Vec<Problem>) {
        let all = links.transforms.iter().chain(&links.sinks).flatten();
        let touched: HashSet<Stage> = all.map(|link| link.stage).chain(links.meant.iter().copied()).collect();
        let sources = self.draft.sources.iter().enumerate().map(|(at, source)| (Stage::Source(at), source));
        let transforms = self.draft.transforms.iter().enumerate().map(|(at, stage)| (Stage::Transform(at), stage));
        for (stage, component) in sources.chain(transforms) {
            let name = &component.name;
            if !touched.contains(&stage) {
                problems.push(
                    Problem::error(component.span, format!("nobody reads `{name}`"))
                        .help(format!("add `from: {name}` to a stage, or remove `{name}`")),
                );
                continue;
            }
            let Stage::Transform(at) = stage else { continue };
            let Some(compiled) = self.transforms[at].as_ref().filter(|_| !links.meant.contains(&stage)) else {
                continue;
            };
            if compiled.default_output && !read.contains(&(stage, Port(0))) {
                let words = format!("nobody reads what leaves `{name}` by its default output");
                problems.push(Problem::error(component.span, words).help(format!("add `from: {name}` to a stage")));
            }
            for (port, output) in compiled.outputs.iter().enumerate() {
                if !read.contains(&(stage, port_of(port))) {
                    let words = format!("nobody reads the output `{output}` of `{name}`");
                    problems.push(
                        Problem::error(component.span, words)
                            .help(format!("add `from: {name}.{output}` to a stage; a `blackhole` sink discards it")),
                    );
                }
            }
        }
    }

    /// What becomes of rejects, for sources, transforms and sinks in their order.
    fn on_errors(&self, problems: &mut Vec<Problem>) -> Vec<OnError> {
        let has_dead_letter = self.draft.dead_letter.is_some();
        let default = if has_dead_letter { OnError::DeadLetter } else { OnError::Stop };
        let all = self.draft.sources.iter().chain(&self.draft.transforms).chain(&self.draft.sinks);
        all.map(|component| match &component.on_error {
            Some(stated) => {
                if stated.value == OnError::DeadLetter && !has_dead_letter {
                    problems.push(
                        Problem::error(stated.span, "the pipeline has no dead letter")
                            .help("add `dead_letter: { KIND: … }` at the top of the file, or use `drop` or `stop`"),
                    );
                }
                stated.value
            }
            None => default,
        })
        .collect()
    }

    fn assemble(
        self,
        order: &[usize],
        mut transform_inputs: Vec<Vec<Upstream>>,
        sink_inputs: Vec<Vec<Upstream>>,
        on_errors: &[OnError],
        problems: &mut Vec<Problem>,
    ) -> Option<Plan> {
        let draft = self.draft;
        let (of_sources, rest) = on_errors.split_at(draft.sources.len());
        let (of_transforms, of_sinks) = rest.split_at(draft.transforms.len());
        let mut sources = Vec::new();
        for ((component, compiled), &on_error) in draft.sources.iter().zip(self.sources).zip(of_sources) {
            let kind = component.chosen?.kind;
            sources.push(SourceStage { name: Arc::clone(&component.name), kind, compiled: compiled?, on_error });
        }
        let mut compiled_transforms = self.transforms;
        let mut transforms = Vec::new();
        for &at in order {
            let component = &draft.transforms[at];
            transforms.push(TransformStage {
                name: Arc::clone(&component.name),
                kind: component.chosen?.kind,
                from: std::mem::take(&mut transform_inputs[at]),
                compiled: compiled_transforms[at].take()?,
                on_error: of_transforms[at],
                buffer: buffer_of(component),
            });
        }
        let mut sinks = Vec::new();
        let compiled = draft.sinks.iter().zip(self.sinks);
        for (((component, compiled), from), &on_error) in compiled.zip(sink_inputs).zip(of_sinks) {
            let kind = component.chosen?.kind;
            sinks.push(SinkStage {
                name: Arc::clone(&component.name),
                kind,
                from,
                compiled: compiled?,
                on_error,
                buffer: buffer_of(component),
            });
        }
        let dead_letter = match &draft.dead_letter {
            None => None,
            Some(component) => Some(SinkStage {
                name: Arc::clone(&component.name),
                kind: component.chosen?.kind,
                from: Vec::new(),
                compiled: self.dead_letter?,
                on_error: OnError::Stop,
                buffer: None,
            }),
        };
        if sources.is_empty() || sinks.is_empty() {
            return None;
        }
        if !is_in_order(&transforms) {
            // A circle, which has been reported.
            return None;
        }
        let partitioned = sources.iter().any(|source| source.compiled.traits.partitioned);
        let mut plan = Plan {
            name: Arc::clone(&draft.name),
            domain: None,
            file: self.document.file.path.clone(),
            declared: Declared::of(
                self.document,
                draft.dead_letter.as_ref().and_then(|component| component.chosen).map(|chosen| chosen.config),
            ),
            guarantee: Guarantee::AtLeastOnce,
            paths: Vec::new(),
            transactional: false,
            commit_interval: draft.commit_interval,
            lanes: lanes(draft.parallelism, partitioned, self.options.cores),
            memory: draft.memory,
            sources,
            transforms,
            sinks,
            dead_letter,
        };
        if let Err(idle) = divide(&plan.transforms, &plan.sinks) {
            let transforms = order.iter().map(|at| &draft.transforms[*at]);
            let stages: Vec<_> = transforms.chain(&draft.sinks).collect();
            problems.extend(idle.into_iter().map(|at| separates_nothing(stages[at])));
            return None;
        }
        paths::derive(&mut plan, draft.guarantee.as_ref(), &NamedPlaces::of(draft), problems);
        Some(plan)
    }
}

/// Whether each transform stands behind all that it reads.
fn is_in_order(transforms: &[TransformStage]) -> bool {
    let stands_behind = |at: usize, from: &Upstream| !matches!(from, Upstream::Transform(read, _) if *read >= at);
    transforms.iter().enumerate().all(|(at, stage)| stage.from.iter().all(|from| stands_behind(at, from)))
}

fn buffer_of(component: &Component<'_>) -> Option<Buffer> {
    let (config, _) = component.buffer.as_ref()?;
    Some(Buffer { disk: config.disk.0, when_full: config.when_full })
}

fn separates_nothing(component: &Component<'_>) -> Problem {
    let span = component.buffer.as_ref().map_or(component.span, |(_, span)| *span);
    let words = format!(
        "the buffer of `{}` separates nothing: what stands before it and what stands behind it meet again",
        component.name
    );
    Problem::error(span, words).help("let each of them go to a stage of its own, or remove this buffer")
}

fn port_of(output: usize) -> Port {
    Port(u16::try_from(output + 1).unwrap_or(u16::MAX))
}

/// Finds the outputs that links read.
struct Ports<'c, 'p> {
    compiler: &'c Compiler<'c>,
    place: &'c [usize],
    read: HashSet<(Stage, Port)>,
    problems: &'p mut Vec<Problem>,
}

impl Ports<'_, '_> {
    fn upstreams(&mut self, links: &[Link]) -> Vec<Upstream> {
        links.iter().filter_map(|link| self.upstream(link)).collect()
    }

    fn upstream(&mut self, link: &Link) -> Option<Upstream> {
        match link.stage {
            Stage::Source(at) => {
                if let Some(output) = &link.output {
                    let name = &self.compiler.draft.sources[at].name;
                    let words = format!("`{name}` is a source, and has no output `{output}`");
                    self.problems.push(Problem::error(link.span, words).help(format!("write `from: {name}`")));
                    return None;
                }
                Some(Upstream::Source(at))
            }
            Stage::Transform(at) => {
                let port = self.port(at, link)?;
                self.read.insert((link.stage, port));
                Some(Upstream::Transform(self.place[at], port))
            }
            Stage::Sink(_) => None,
        }
    }

    fn port(&mut self, at: usize, link: &Link) -> Option<Port> {
        let name = &self.compiler.draft.transforms[at].name;
        let compiled = self.compiler.transforms[at].as_ref()?;
        let references: Vec<_> = compiled.outputs.iter().map(|output| format!("{name}.{output}")).collect();
        match &link.output {
            None if compiled.default_output => Some(Port(0)),
            None => {
                let words = if link.is_default {
                    format!("`{name}`, the stage above, has named outputs only: say which is read")
                } else {
                    format!("`{name}` has named outputs only: say which is read")
                };
                let examples = references.iter().map(|reference| format!("from: {reference}")).collect::<Vec<_>>();
                self.problems
                    .push(Problem::error(link.span, words).help(format!("write one of {}", listed(&examples))));
                // Any of them may be meant.
                for output in 0..compiled.outputs.len() {
                    self.read.insert((link.stage, port_of(output)));
                }
                None
            }
            Some(output) => {
                if let Some(found) = compiled.outputs.iter().position(|known| known == output) {
                    return Some(port_of(found));
                }
                let problem = Problem::error(link.span, format!("`{name}` has no output `{output}`"));
                let near = nearest(output, compiled.outputs.iter().map(String::as_str));
                let problem = match (near, references.as_slice()) {
                    (Some(near), _) => {
                        let meant = compiled.outputs.iter().position(|known| known == near).unwrap_or_default();
                        self.read.insert((link.stage, port_of(meant)));
                        problem.help(format!("did you mean `{name}.{near}`?"))
                    }
                    (None, []) => {
                        self.read.insert((link.stage, Port(0)));
                        problem.help(format!("it has only one: write `from: {name}`"))
                    }
                    (None, _) => problem.help(format!("its outputs are {}", listed(&compiled.outputs))),
                };
                self.problems.push(problem);
                None
            }
        }
    }
}

/// A problem without the values that came from outside the file.
fn without(mut problem: Problem, hidden: &[&str]) -> Problem {
    /// Shorter ones are part of too many words, and keep no secret.
    const SHORTEST: usize = 3;
    for value in hidden.iter().filter(|value| value.len() >= SHORTEST) {
        let texts = [&mut problem.message, &mut problem.label].into_iter().chain(&mut problem.help);
        for text in texts.filter(|text| text.contains(value)) {
            *text = text.replace(value, "…");
        }
    }
    problem
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::super::testing::{documents, mistake, mistakes, planned};
    use super::super::{CompileOptions, Guarantee, OnError, Upstream};
    use super::declared_name;
    use crate::component::{Port, Severity};
    use crate::config::{ProcessEnvironment, SourceFile, load};

    const HEAD: &str = "sources: { in: { kafka: { topics: [t] } } }\n";
    const TAIL: &str = "sinks: { out: { kafka: { topic: u } } }\n";

    /// A pipeline from `in` to `out`, with these transforms.
    fn with(transforms: &str) -> String {
        format!("{HEAD}transforms:\n{transforms}{TAIL}")
    }

    fn one(place: &str, words: &str) -> (String, String) {
        (place.to_owned(), words.to_owned())
    }

    #[test]
    fn each_stage_reads_the_one_above() {
        let (plan, problems) = planned(&with("- map: .a = 1\n- name: some\n  filter: .a == 1\n- map: .b = 2\n"));
        assert_eq!(problems, []);
        let plan = plan.unwrap();
        let names: Vec<_> = plan.transforms.iter().map(|stage| &*stage.name).collect();
        assert_eq!(names, ["map_1", "some", "map_2"]);
        assert_eq!(plan.transforms[0].from, [Upstream::Source(0)]);
        assert_eq!(plan.transforms[2].from, [Upstream::Transform(1, Port(0))]);
        assert_eq!(plan.sinks[0].from, [Upstream::Transform(2, Port(0))]);
        assert_eq!((&*plan.name, plan.lanes), ("orders", 4));
        assert!(plan.transforms.iter().all(|stage| stage.on_error == OnError::Stop));
    }

    #[test]
    fn stages_are_put_behind_what_they_read() {
        let text = with("- name: late\n  from: early\n  map: .a = 1\n- name: early\n  from: in\n  map: .b = 1\n");
        let text = text.replace("{ out: {", "{ out: { from: late,");
        let plan = planned(&text).0.unwrap();
        assert_eq!(plan.transforms.iter().map(|stage| &*stage.name).collect::<Vec<_>>(), ["early", "late"]);
        assert_eq!(plan.transforms[1].from, [Upstream::Transform(0, Port(0))]);
        assert_eq!(plan.sinks[0].from, [Upstream::Transform(1, Port(0))]);
    }

    #[test]
    fn named_outputs_are_ports() {
        let text = format!(
            "{HEAD}transforms:\n- name: by\n  route: {{ big: .a > 1, else: x }}\nsinks:\n  one: {{ from: by.big, kafka: {{ topic: u }} }}\n  \
             two: {{ from: [by.else, in], kafka: {{ topic: u }} }}\n"
        );
        let plan = planned(&text).0.unwrap();
        assert_eq!(plan.sinks[0].from, [Upstream::Transform(0, Port(1))]);
        assert_eq!(plan.sinks[1].from, [Upstream::Transform(0, Port(2)), Upstream::Source(0)]);
    }

    #[test]
    fn a_name_that_is_misspelt_blames_only_the_name() {
        let text = with("- name: clean\n  map: .a = 1\n- from: cleen\n  map: .b = 1\n");
        assert_eq!(mistake(&text), one("cleen", "no stage is named `cleen`"));
    }

    #[test]
    fn records_may_not_go_in_circles() {
        let text = with("- name: a\n  from: [in, b]\n  map: .a = 1\n- name: b\n  map: .b = 1\n");
        assert_eq!(mistake(&text), one("b", "records would go in a circle: `a` → `b` → `a`"));
        assert_eq!(mistake(&with("- name: a\n  from: [in, a]\n  map: x\n")), one("a", "`a` reads itself"));
    }

    #[test]
    fn what_nobody_reads_is_a_mistake() {
        let unread = with("- name: a\n  map: .a = 1\n- name: b\n  from: in\n  map: .b = 1\n");
        assert_eq!(mistake(&unread), one("a", "nobody reads `a`"));
        let output = with("- name: by\n  route: { big: x, small: y }\n").replace("{ out: {", "{ out: { from: by.big,");
        assert_eq!(mistake(&output), one("by", "nobody reads the output `small` of `by`"));
    }

    #[test]
    fn a_default_that_would_be_a_guess_is_a_mistake() {
        let two = "sources:\n  a: { file: { path: x } }\n  b: { file: { path: y } }\nsinks: { out: { stdout: } }\n";
        assert_eq!(mistake(two), one("out", "`out` must say which of the 2 sources it reads"));
        let named = with("- name: by\n  route: { big: x }\n");
        assert_eq!(mistake(&named), one("out", "`by`, the stage above, has named outputs only: say which is read"));
    }

    #[test]
    fn the_mistakes_of_all_stages_are_told_at_once() {
        let text = with("- name: a\n  map: bad\n- name: b\n  map: |\n    .x = 1\n    .y = bad(2)\n")
            .replace("topics: [t]", "topic: [t]")
            .replace("topic: u", "topic: [u]");
        let places: Vec<_> = mistakes(&text).into_iter().map(|(place, _)| place).collect();
        assert_eq!(
            places,
            ["topic", "bad", "bad", "["]
                .into_iter()
                .map(|place| if place == "[" { "[u]".to_owned() } else { place.to_owned() })
                .collect::<Vec<_>>()
        );
    }

    #[test]
    fn a_substituted_value_is_in_no_message() {
        let text = with("- map: bad ${SECRET}\n");
        let (_, words) = mistake(&text);
        assert_eq!(words, "`bad` is bad in `bad …`");
    }

    #[test]
    fn a_guarantee_that_cannot_be_held_names_the_stage_to_blame() {
        let exact = format!("guarantee: exactly_once\n{HEAD}{TAIL}");
        let plan = planned(&exact).0.unwrap();
        assert!(plan.transactional && plan.guarantee == Guarantee::ExactlyOnce);

        let (place, words) = mistake(&exact.replace("kafka: { topic: u }", "stdout: {}"));
        assert_eq!(place, "exactly_once");
        assert!(words.contains("`out`") && words.contains("a kafka transaction"), "{words}");

        let (place, words) = mistake(&format!("guarantee: at_least_once\n{HEAD}sinks: {{ out: {{ udp: }} }}\n"));
        assert_eq!(place, "at_least_once");
        assert!(words.contains("`out` acknowledges nothing"), "{words}");
    }

    #[test]
    fn a_local_transaction_holds_files_and_one_group() {
        let exact = |sources: &str, sink: &str| {
            format!("guarantee: exactly_once\nsources: {{ {sources} }}\nsinks: {{ out: {{ from: [{sink} }} }}\n")
        };
        let kind = |text: &str| planned(text).0.map(|plan| plan.paths[0].reason.clone());
        for sources in ["a: { file: { path: a } }", "a: { kafka: { topics: [a] } }"] {
            let reason = kind(&exact(sources, "a], file: { path: x }")).unwrap();
            assert!(reason.contains("one local transaction"), "{reason}");
        }
        let both = "a: { file: { path: a } }, b: { kafka: { topics: [b] } }";
        assert!(kind(&exact(both, "a, b], file: { path: x }")).is_some());
        let groups = "a: { kafka: { topics: [a] } }, b: { kafka: { topics: [b] } }";
        let (_, words) = mistake(&exact(groups, "a, b], file: { path: x }"));
        assert!(words.contains("`a` and `b` both keep their positions"), "{words}");
        assert!(kind(&exact(groups, "a, b], kafka: { topic: x }")).unwrap().contains("one kafka transaction"));
        let (_, words) = mistake(&exact("a: { file: { path: a } }", "a], kafka: { topic: x }"));
        assert!(words.contains("what `out` writes") && words.contains("a local transaction"), "{words}");
    }

    #[test]
    fn a_path_that_loses_records_is_a_warning_unless_the_file_accepts_it() {
        let text = format!("sources: {{ in: {{ stdin: }} }}\n{TAIL}");
        let (plan, problems) = planned(&text);
        assert_eq!(plan.unwrap().guarantee, Guarantee::AtMostOnce);
        assert_eq!(problems.len(), 1);
        assert_eq!(problems[0].severity, Severity::Warning);
        let (plan, problems) = planned(&format!("guarantee: at_most_once\n{text}"));
        assert!(plan.is_some() && problems.is_empty());
    }

    #[test]
    fn a_dead_letter_takes_what_is_refused() {
        let text = format!("{}dead_letter: {{ kafka: {{ topic: dead }} }}\n", with("- map: x\n  on_error: drop\n"));
        let plan = planned(&text).0.unwrap();
        assert_eq!(plan.sources[0].on_error, OnError::DeadLetter);
        assert_eq!(plan.transforms[0].on_error, OnError::Drop);
        let dead_letter = plan.dead_letter.unwrap();
        assert_eq!((&*dead_letter.name, dead_letter.on_error), ("dead_letter", OnError::Stop));
        assert_eq!(plan.paths.len(), 2);
        assert_eq!(
            mistake(&with("- map: x\n  on_error: dead_letter\n")),
            one("dead_letter", "the pipeline has no dead letter")
        );
    }

    #[test]
    fn pipelines_of_one_file_need_names() {
        let text = format!("{HEAD}{TAIL}---\nname: two\n{HEAD}{TAIL}");
        let documents = documents(&text);
        let compile = |at: usize| {
            let options = CompileOptions { cores: 1, tables: super::super::testing::TABLES };
            super::compile(&documents[at], &options)
        };
        assert_eq!(compile(0).1[0].message, "each pipeline of a file with several needs a `name`");
        assert_eq!(&*compile(1).0.unwrap().name, "two");
        assert_eq!(&*declared_name(&documents[1]).unwrap().0, "two");
    }

    /// Lines that make pipelines of every kind, most of them wrong.
    fn lines() -> impl Strategy<Value = String> {
        let line = prop_oneof![
            Just("sources:"),
            Just("transforms:"),
            Just("sinks:"),
            Just("dead_letter:"),
            Just("commit: { interval: 1s }"),
            Just("guarantee: exactly_once"),
            Just("parallelism: 3"),
            Just("name: x"),
            Just("  in: { kafka: { topics: [t] } }"),
            Just("  b: { stdin: }"),
            Just("  out: { stdout: }"),
            Just("  out: { from: [a, b.c], kafka: { topic: 1 } }"),
            Just("  in: { from: in, udp: {} }"),
            Just("  x: *x"),
            Just("- map: .a = 1"),
            Just("- name: a\n  from: b\n  map: bad"),
            Just("- name: b\n  from: [a, in, b]\n  filter: x"),
            Just("- route: { c: x, d: y }\n  name: b"),
            Just("- 1"),
            Just("  kafka:"),
            Just("  stdout: {}"),
            Just("- route: []"),
            Just("---")
        ];
        proptest::collection::vec(line, 0..12).prop_map(|lines| lines.join("\n"))
    }

    proptest! {
        #[test]
        fn whatever_is_declared_is_answered_with_a_plan_or_a_reason(text in lines()) {
            let file = Arc::new(SourceFile { path: "a.yaml".into(), text: text.clone() });
            let (documents, problems) = load(file, &ProcessEnvironment);
            for document in &documents {
                let options = CompileOptions { cores: 2, tables: super::super::testing::TABLES };
                let (plan, found) = super::compile(document, &options);
                prop_assert!(plan.is_some() || !found.is_empty() || !problems.is_empty(), "{text}");
                for problem in found {
                    prop_assert!(text.get(problem.span.range()).is_some(), "{problem:?}");
                }
                if let Some(plan) = plan {
                    prop_assert!(!super::super::explain(&plan).is_empty());
                }
            }
        }
    }

    #[test]
    fn a_plan_is_explained() {
        let text = format!(
            "{}dead_letter: {{ kafka: {{ topic: dead }} }}\n",
            with("- name: priced\n  map: x\n- name: by\n  route: { big: x, else: y }\n")
        );
        let text = text.replace("sinks: { out: {", "sinks: { other: { from: by.else, stdout: }, out: { from: by.big,");
        let (plan, problems) = planned(&text);
        assert_eq!(problems, []);
        insta::assert_snapshot!(super::super::explain(&plan.unwrap()));
    }
}
