//! From a document to a plan: every component is compiled, and everything that is read is found.

use std::collections::HashSet;
use std::sync::Arc;

use super::draft::{self, Chosen, Component, Draft, listed};
use super::graph::order;
use super::guarantee::{self, Parts, Places};
use super::parallelism::lanes;
use super::resolve::{Link, Links, Stage, resolve};
use super::{CompileOptions, Guarantee, OnError, Plan, SinkStage, SourceStage, Tables, TransformStage, Upstream};
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
    match document.root.get("name") {
        Some(node) => node.text().map(|name| (name.into(), node.span)),
        None => {
            let stem = document.file.path.file_stem()?.to_string_lossy();
            Some((stem.as_ref().into(), draft::first_line(&document.root)))
        }
    }
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
        if !links.some_unknown && order.circles.is_empty() {
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
        let sink = |this: &Self, component: &Component<'_>, schema, problems: &mut Vec<Problem>| {
            this.component(component, schema, problems, |chosen, cx| (sinks[chosen.row].compile)(chosen.config, cx))
        };
        for (component, links) in draft.sinks.iter().zip(&links.sinks) {
            let compiled = sink(self, component, self.schema_of(links), problems);
            self.sinks.push(compiled);
        }
        self.dead_letter =
            draft.dead_letter.as_ref().and_then(|component| sink(self, component, Schema::default(), problems));
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
        &self,
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
            let Some(compiled) = self.transforms[at].as_ref().filter(|_| !links.meant.contains(&stage)) else { continue };
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
            });
        }
        let mut sinks = Vec::new();
        let compiled = draft.sinks.iter().zip(self.sinks);
        for (((component, compiled), from), &on_error) in compiled.zip(sink_inputs).zip(of_sinks) {
            let kind = component.chosen?.kind;
            sinks.push(SinkStage { name: Arc::clone(&component.name), kind, from, compiled: compiled?, on_error });
        }
        let dead_letter = match &draft.dead_letter {
            None => None,
            Some(component) => Some(SinkStage {
                name: Arc::clone(&component.name),
                kind: component.chosen?.kind,
                from: Vec::new(),
                compiled: self.dead_letter?,
                on_error: OnError::Stop,
            }),
        };
        if sources.is_empty() || sinks.is_empty() {
            return None;
        }
        let parts = Parts {
            sources: &sources,
            transforms: &transforms,
            sinks: &sinks,
            dead_letter: dead_letter.as_ref(),
            commit_interval: draft.commit_interval,
            stated: draft.guarantee.as_ref().map(|stated| stated.value),
        };
        let places = Places {
            sources: draft.sources.iter().map(|component| component.span).collect(),
            sinks: draft.sinks.iter().map(|component| component.span).collect(),
            dead_letter: draft.dead_letter.as_ref().map(|component| component.span),
        };
        guarantee::check(&parts, draft.guarantee.as_ref(), &places, problems);
        let paths = parts.paths();
        let transactional = parts.stated == Some(Guarantee::ExactlyOnce) && parts.shared_transaction().is_some();
        let partitioned = sources.iter().any(|source| source.compiled.traits.partitioned);
        Some(Plan {
            name: Arc::clone(&draft.name),
            file: self.document.file.path.clone(),
            guarantee: paths.iter().map(|path| path.guarantee).min().unwrap_or(Guarantee::AtLeastOnce),
            paths,
            transactional,
            commit_interval: draft.commit_interval,
            lanes: lanes(draft.parallelism, partitioned, self.options.cores),
            memory: draft.memory,
            sources,
            transforms,
            sinks,
            dead_letter,
        })
    }
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
                self.problems.push(Problem::error(link.span, words).help(format!("write one of {}", listed(&examples))));
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
