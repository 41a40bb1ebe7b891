//! What a file declares, key by key: names and kinds are checked, components are not compiled yet.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use super::parallelism::MOST_LANES;
use super::{Guarantee, OnError, Tables};
use crate::clients::buffer::BufferConfig;
use crate::component::node::{Key, Kind, Node, read, read_at};
use crate::component::{ByteSize, HumanDuration, Problem, Span, Spanned, nearest};
use crate::config::Document;

/// No pipeline needs more stages, and the checks compare stages with each other.
const MOST_STAGES: usize = 1000;

/// The keys of a pipeline.
const KEYS: &[&str] =
    &["name", "guarantee", "sources", "transforms", "sinks", "dead_letter", "commit", "memory", "parallelism"];

/// The keys that may stand beside the kind of a component.
const BESIDE: &[&str] = &["name", "from", "on_error", "parallelism", "buffer", "was"];

/// The name of every pipeline's dead letter.
pub const DEAD_LETTER: &str = "dead_letter";

/// A pipeline as its file declares it.
#[derive(Debug)]
pub(super) struct Draft<'a> {
    pub(super) name: Arc<str>,
    pub(super) guarantee: Option<Spanned<Guarantee>>,
    pub(super) sources: Vec<Component<'a>>,
    pub(super) transforms: Vec<Component<'a>>,
    pub(super) sinks: Vec<Component<'a>>,
    pub(super) dead_letter: Option<Component<'a>>,
    pub(super) commit_interval: Duration,
    /// Where the interval stands, if it is said.
    pub(super) commit_interval_at: Option<Span>,
    pub(super) memory: Option<u64>,
    pub(super) parallelism: Option<usize>,
}

/// A component as its file declares it.
#[derive(Debug)]
pub(super) struct Component<'a> {
    pub(super) name: Arc<str>,
    /// Where the name stands, or what else shows the component best.
    pub(super) span: Span,
    /// `None` if it has none, or one that is unknown.
    pub(super) chosen: Option<Chosen<'a>>,
    pub(super) from: From,
    pub(super) on_error: Option<Spanned<OnError>>,
    /// The disk buffer before it, and the place of the word.
    pub(super) buffer: Option<(BufferConfig, Span)>,
}

/// The kind of a component, found in its table.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chosen<'a> {
    /// Its row.
    pub(super) row: usize,
    pub(super) kind: &'static str,
    pub(super) config: &'a Node,
    pub(super) span: Span,
}

/// What a component says of its input.
#[derive(Debug)]
pub(super) enum From {
    /// Nothing: the default holds.
    Default,
    /// These.
    Named(Vec<Reference>),
    /// Something that was reported.
    Broken,
}

/// `stage` or `stage.output`.
#[derive(Debug, Clone)]
pub(super) struct Reference {
    pub(super) stage: String,
    pub(super) output: Option<String>,
    pub(super) span: Span,
}

/// Which of the three tables a component belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Section {
    Source,
    Transform,
    Sink,
    DeadLetter,
}

impl Section {
    fn word(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Transform => "transform",
            Self::Sink | Self::DeadLetter => "sink",
        }
    }

    fn kinds(self, tables: &Tables) -> Vec<&'static str> {
        match self {
            Self::Source => tables.sources.iter().map(|row| row.name).collect(),
            Self::Transform => tables.transforms.iter().map(|row| row.name).collect(),
            Self::Sink | Self::DeadLetter => tables.sinks.iter().map(|row| row.name).collect(),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Commit {
    interval: Option<Spanned<HumanDuration>>,
}

/// Reads a document. `None` if it is no map of keys.
pub(super) fn draft<'a>(document: &'a Document, tables: &Tables, problems: &mut Vec<Problem>) -> Option<Draft<'a>> {
    let root = &document.root;
    let Kind::Map(entries) = &root.kind else {
        if root.kind != Kind::Broken {
            let found = format!("expected the keys of a pipeline, found {}", root.describe());
            problems.push(Problem::error(root.span, found).help("begin with `sources:` and `sinks:`"));
        }
        return None;
    };
    for (key, _) in entries.iter().filter(|(key, _)| !KEYS.contains(&key.name.as_str())) {
        problems.push(unknown_key(key));
    }
    let mut reader = Reader { tables, problems };
    let first = first_line(root);
    let (commit_interval, commit_interval_at) = reader.commit_interval(root.get("commit"));
    let mut draft = Draft {
        name: reader.pipeline_name(document, first),
        guarantee: root.get("guarantee").and_then(|node| reader.value(node)),
        sources: reader.named(root, "sources", Section::Source),
        transforms: reader.transforms(root.get("transforms")),
        sinks: reader.named(root, "sinks", Section::Sink),
        dead_letter: None,
        commit_interval,
        commit_interval_at,
        memory: root.get("memory").and_then(|node| reader.memory(node)),
        parallelism: root.get("parallelism").and_then(|node| reader.parallelism(node)),
    };
    if let Some((key, node)) = entries.iter().find(|(key, _)| key.name == DEAD_LETTER) {
        draft.dead_letter = Some(reader.component(Arc::from(DEAD_LETTER), key.span, node, Section::DeadLetter));
    }
    for (section, word) in [("sources", "source"), ("sinks", "sink")] {
        let meant = |(key, _): &(Key, Node)| nearest(&key.name, KEYS.iter().copied()) == Some(section);
        if !entries.iter().any(meant) {
            let problem = Problem::error(first, format!("the pipeline has no {word}"));
            problems.push(problem.help(format!("add `{section}:` with at least one {word} under its name")));
        }
    }
    if draft.sources.len() + draft.transforms.len() + draft.sinks.len() > MOST_STAGES {
        problems.push(Problem::error(first, format!("a pipeline has at most {MOST_STAGES} stages")));
        return None;
    }
    Some(draft)
}

/// The first key of a document: the place of what is said of the whole.
pub(super) fn first_line(root: &Node) -> Span {
    match &root.kind {
        Kind::Map(entries) => entries.first().map_or(root.span, |(key, _)| key.span),
        _ => root.span,
    }
}

fn unknown_key(key: &Key) -> Problem {
    let problem = Problem::error(key.span, format!("unknown key `{}` of a pipeline", key.name));
    if key.name == "was" {
        return Problem::error(key.span, "`was` is not supported yet").help("keep the name of the pipeline");
    }
    match nearest(&key.name, KEYS.iter().copied()) {
        Some(near) => problem.help(format!("did you mean `{near}`?")),
        None => problem.help(format!("the keys are {}", listed(KEYS))),
    }
}

pub(super) fn listed<S: AsRef<str>>(names: &[S]) -> String {
    names.iter().map(|name| format!("`{}`", name.as_ref())).collect::<Vec<_>>().join(", ")
}

/// Whether a stage may have this name: it becomes a metric's label, and `.` and blanks have a meaning in `from`.
fn is_name(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_alphabetic()) && has_name_letters(name)
}

/// A pipeline is often named for its file, and files are often numbered.
fn is_pipeline_name(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_alphanumeric()) && has_name_letters(name)
}

fn has_name_letters(name: &str) -> bool {
    name.len() <= 100 && name.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_' || letter == '-')
}

struct Reader<'r> {
    tables: &'r Tables,
    problems: &'r mut Vec<Problem>,
}

impl Reader<'_> {
    /// A value of any type; mistakes are reported.
    fn value<T: serde::de::DeserializeOwned>(&mut self, node: &Node) -> Option<T> {
        match read(node) {
            Ok(value) => Some(value),
            Err(problems) => {
                self.problems.extend(problems);
                None
            }
        }
    }

    fn pipeline_name(&mut self, document: &Document, first: Span) -> Arc<str> {
        let stem = document.file.path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let Some(node) = document.root.get("name") else {
            if document.count > 1 {
                let words = "each pipeline of a file with several needs a `name`";
                let help =
                    "add `name: …`: it identifies positions and metrics, so it cannot depend on the order in the file";
                self.problems.push(Problem::error(first, words).help(help));
            } else if !is_pipeline_name(&stem) {
                let words = format!("the pipeline needs a `name`: its file's name, `{stem}`, cannot be one");
                self.problems.push(Problem::error(first, words).help("add `name: …` of letters, digits, `_` and `-`"));
            }
            return stem.into();
        };
        let Some(name) = self.value::<String>(node) else { return stem.into() };
        if !is_pipeline_name(&name) {
            let shown = if node.is_secret() { "this".to_owned() } else { format!("`{name}`") };
            let words = format!("{shown} cannot be the name of a pipeline");
            self.problems.push(Problem::error(node.span, words).help("use letters, digits, `_` and `-`"));
        }
        name.into()
    }

    /// The interval, and where it stands if it is said.
    fn commit_interval(&mut self, node: Option<&Node>) -> (Duration, Option<Span>) {
        const DEFAULT: Duration = Duration::from_secs(1);
        const SHORTEST: Duration = Duration::from_millis(10);
        const LONGEST: Duration = Duration::from_hours(1);
        let commit = node.and_then(|node| self.value::<Commit>(node));
        let Some(interval) = commit.and_then(|commit| commit.interval) else { return (DEFAULT, None) };
        if !(SHORTEST..=LONGEST).contains(&interval.0) {
            let words = format!("expected an interval from `10ms` to `1h`, found `{}`", interval.value);
            self.problems.push(Problem::error(interval.span, words));
        }
        (interval.0, Some(interval.span))
    }

    fn memory(&mut self, node: &Node) -> Option<u64> {
        const SMALLEST: u64 = 1 << 20;
        let ByteSize(bytes) = self.value(node)?;
        if bytes < SMALLEST {
            let words = format!("expected at least `1MiB`, found `{}`", ByteSize(bytes));
            self.problems.push(Problem::error(node.span, words));
        }
        Some(bytes)
    }

    fn parallelism(&mut self, node: &Node) -> Option<usize> {
        let lanes = self.value::<usize>(node)?;
        if !(1..=MOST_LANES).contains(&lanes) {
            let words = format!("expected a number of lanes from 1 to {MOST_LANES}, found `{lanes}`");
            self.problems.push(Problem::error(node.span, words));
            return None;
        }
        Some(lanes)
    }

    /// The components of a section that is a map by name.
    fn named<'a>(&mut self, root: &'a Node, key: &str, section: Section) -> Vec<Component<'a>> {
        let Kind::Map(top) = &root.kind else { return Vec::new() };
        let Some((key, node)) = top.iter().find(|(top, _)| top.name == key) else { return Vec::new() };
        let word = section.word();
        match &node.kind {
            Kind::Map(entries) if !entries.is_empty() => entries
                .iter()
                .map(|(key, node)| {
                    self.check_name(&key.name, key.span);
                    self.component(Arc::from(key.name.as_str()), key.span, node, section)
                })
                .collect(),
            Kind::Broken => Vec::new(),
            Kind::Map(_) => {
                self.problems.push(Problem::error(key.span, format!("the pipeline has no {word}")));
                Vec::new()
            }
            Kind::List(_) => {
                let words = format!("expected {word}s by name, found a list");
                let help = format!("write `{}: {{ NAME: {{ KIND: … }} }}`: their order means nothing", key.name);
                self.problems.push(Problem::error(key.span, words).help(help));
                Vec::new()
            }
            Kind::Scalar { .. } => {
                let place = if node.is_null() { key.span } else { node.span };
                let words = format!("expected {word}s by name, found {}", node.describe());
                self.problems.push(Problem::error(place, words));
                Vec::new()
            }
        }
    }

    /// The list of transforms. One without a name takes its kind and its number among the transforms of that kind
    /// (`map_1`, `filter_1`, `map_2`), so that naming one does not rename the others.
    fn transforms<'a>(&mut self, node: Option<&'a Node>) -> Vec<Component<'a>> {
        let Some(node) = node.filter(|node| !node.is_null()) else { return Vec::new() };
        let items = match &node.kind {
            Kind::List(items) => items,
            Kind::Broken => return Vec::new(),
            _ => {
                let words = format!("expected a list of transforms, found {}", node.describe());
                let help = "write each with a dash, `- name: …`: each reads the one above it";
                self.problems.push(Problem::error(first_line(node), words).help(help));
                return Vec::new();
            }
        };
        let mut of_kind = std::collections::HashMap::<&str, usize>::new();
        let mut components = Vec::new();
        for item in items {
            let place = first_line(item);
            let mut component = self.component(Arc::from(""), place, item, Section::Transform);
            let kind = component.chosen.map_or("transform", |chosen| chosen.kind);
            let number = of_kind.entry(kind).or_default();
            *number += 1;
            let given = item.get("name").filter(|node| node.kind != Kind::Broken);
            match given.and_then(|node| self.value::<Spanned<String>>(node)) {
                Some(name) => {
                    self.check_name(&name, name.span);
                    component.span = name.span;
                    component.name = name.value.into();
                }
                None => component.name = format!("{kind}_{number}").into(),
            }
            components.push(component);
        }
        components
    }

    fn check_name(&mut self, name: &str, span: Span) {
        if name == DEAD_LETTER {
            let help = "declare the dead letter at the top of the file, as `dead_letter: { KIND: … }`";
            self.problems.push(Problem::error(span, "the name `dead_letter` is reserved").help(help));
        } else if !is_name(name) {
            let words = format!("`{name}` cannot be the name of a stage");
            let help = "begin with a letter, and go on with letters, digits, `_` and `-`";
            self.problems.push(Problem::error(span, words).help(help));
        }
    }

    fn component<'a>(&mut self, name: Arc<str>, span: Span, node: &'a Node, section: Section) -> Component<'a> {
        let mut component = Component { name, span, chosen: None, from: From::Default, on_error: None, buffer: None };
        let entries = match &node.kind {
            Kind::Map(entries) => entries,
            Kind::Broken => {
                component.from = From::Broken;
                return component;
            }
            _ => {
                self.no_map(span, node, section);
                component.from = From::Broken;
                return component;
            }
        };
        component.chosen = self.choose(span, entries, section);
        for (key, value) in entries {
            match key.name.as_str() {
                "from" if matches!(section, Section::Transform | Section::Sink) => {
                    component.from = self.from(key, value);
                }
                "on_error" if section != Section::DeadLetter => component.on_error = self.on_error(value, section),
                "buffer" if matches!(section, Section::Transform | Section::Sink) => {
                    component.buffer = self.buffer(key, value);
                }
                "from" | "on_error" | "name" | "parallelism" | "buffer" | "was" => self.misplaced(key, section),
                _ => {}
            }
        }
        component
    }

    fn no_map(&mut self, span: Span, node: &Node, section: Section) {
        let word = section.word();
        let place = if node.is_null() { span } else { node.span };
        let problem = Problem::error(place, format!("expected the kind of a {word}, found {}", node.describe()));
        let text = node.text().filter(|_| !node.is_secret()).unwrap_or_default();
        self.problems.push(match text.split(':').next() {
            Some(kind) if section.kinds(self.tables).contains(&kind) => {
                problem.help(format!("write `{kind}: {{}}`, with a colon, a space and its fields"))
            }
            _ => problem.help(format!("the kinds are {}", listed(&section.kinds(self.tables)))),
        });
    }

    /// A key that has its place elsewhere, or not yet.
    fn misplaced(&mut self, key: &Key, section: Section) {
        let (words, help) = match (key.name.as_str(), section) {
            ("name", Section::Transform) => return,
            ("name", _) => ("a name is not written here".to_owned(), "its name is the key above it"),
            ("from", Section::Source) => ("a source reads no other stage".to_owned(), "remove `from`"),
            ("from", _) => ("the dead letter reads what all stages refuse".to_owned(), "remove `from`"),
            ("on_error", _) => (
                "a dead letter cannot have a dead letter".to_owned(),
                "remove `on_error`: what it refuses stops the pipeline",
            ),
            ("parallelism", _) => (
                "`parallelism` of a single stage is not supported yet".to_owned(),
                "set it for the whole pipeline, at the top",
            ),
            ("buffer", Section::Source) => {
                ("a source has no buffer".to_owned(), "write `buffer` on the stages that read it")
            }
            ("buffer", _) => (
                "the dead letter has no buffer of its own".to_owned(),
                "remove `buffer`: where stages have buffers, the dead letter gets one by itself",
            ),
            (name, _) => (format!("`{name}` is not supported yet"), "remove it"),
        };
        self.problems.push(Problem::error(key.span, words).help(help));
    }

    /// The key that names the kind.
    fn choose<'a>(&mut self, span: Span, entries: &'a [(Key, Node)], section: Section) -> Option<Chosen<'a>> {
        let kinds = section.kinds(self.tables);
        let candidates: Vec<_> = entries.iter().filter(|(key, _)| !BESIDE.contains(&key.name.as_str())).collect();
        let row_of = |key: &Key| kinds.iter().position(|kind| *kind == key.name);
        let mut chosen: Option<Chosen<'a>> = None;
        for (key, config) in &candidates {
            match (row_of(key), chosen) {
                (Some(row), None) => chosen = Some(Chosen { row, kind: kinds[row], config, span: key.span }),
                (Some(_), Some(first)) => {
                    let words = format!("a {} has one kind, and this one is `{}` already", section.word(), first.kind);
                    self.problems.push(Problem::error(key.span, words).help("make it a component of its own"));
                }
                (None, _) => {}
            }
        }
        for (key, _) in candidates.iter().filter(|(key, _)| row_of(key).is_none()) {
            let problem = self.unknown_kind(key, section, &kinds, chosen.map(|chosen| chosen.kind));
            self.problems.push(problem);
        }
        if candidates.is_empty() {
            let words = format!("this {} names no kind", section.word());
            self.problems.push(Problem::error(span, words).help(format!("the kinds are {}", listed(&kinds))));
        }
        chosen
    }

    fn unknown_kind(&self, key: &Key, section: Section, kinds: &[&'static str], chosen: Option<&str>) -> Problem {
        let name = key.name.as_str();
        let beside = BESIDE.iter().copied().filter(|key| !matches!(*key, "parallelism" | "was"));
        if let Some(kind) = chosen {
            let problem = Problem::error(key.span, format!("unknown key `{name}` beside `{kind}`"));
            return match nearest(name, beside) {
                Some(near) => problem.help(format!("did you mean `{near}`?")),
                None => problem.help(format!("a field of `{kind}` stands under `{kind}:`, further to the right")),
            };
        }
        let word = section.word();
        let problem = Problem::error(key.span, format!("unknown kind of {word} `{name}`"));
        let elsewhere = [Section::Source, Section::Transform, Section::Sink]
            .into_iter()
            .find(|other| other.word() != word && other.kinds(self.tables).contains(&name));
        if let Some(other) = elsewhere {
            let article = |word: &str| format!("a {word}");
            return Problem::error(key.span, format!("`{name}` is {}, not {}", article(other.word()), article(word)))
                .help(format!("the kinds of {word}s are {}", listed(kinds)));
        }
        match nearest(name, kinds.iter().copied().chain(beside)) {
            Some(near) => problem.help(format!("did you mean `{near}`?")),
            None => problem.help(format!("the kinds are {}", listed(kinds))),
        }
    }

    fn from(&mut self, key: &Key, node: &Node) -> From {
        let items = match &node.kind {
            Kind::List(items) if items.is_empty() => {
                self.problems.push(Problem::error(key.span, "`from` names no stage"));
                return From::Broken;
            }
            Kind::List(items) if items.len() > MOST_STAGES => {
                self.problems.push(Problem::error(key.span, format!("`from` names more than {MOST_STAGES} stages")));
                return From::Broken;
            }
            Kind::List(items) => items.as_slice(),
            _ => std::slice::from_ref(node),
        };
        let mut references: Vec<Reference> = Vec::new();
        for item in items {
            let name = match read_at::<Spanned<String>>(item, key.span) {
                Ok(name) => name,
                Err(problems) => {
                    self.problems.extend(problems);
                    return From::Broken;
                }
            };
            let (stage, output) = match name.value.split_once('.') {
                Some((stage, output)) => (stage.to_owned(), Some(output.to_owned())),
                None => (name.value.clone(), None),
            };
            if references.iter().any(|other| other.stage == stage && other.output == output) {
                self.problems.push(Problem::error(name.span, format!("`{}` is read twice", name.value)));
                continue;
            }
            references.push(Reference { stage, output, span: name.span });
        }
        From::Named(references)
    }

    fn buffer(&mut self, key: &Key, node: &Node) -> Option<(BufferConfig, Span)> {
        const SMALLEST: u64 = 1 << 20;
        if !matches!(node.kind, Kind::Map(_) | Kind::Broken) {
            let place = if node.is_null() { key.span } else { node.span };
            let words = format!("expected the settings of a buffer, found {}", node.describe());
            self.problems.push(Problem::error(place, words).help("write `buffer: { disk: 1GiB }`"));
            return None;
        }
        let config: BufferConfig = match read_at(node, key.span) {
            Ok(config) => config,
            Err(problems) => {
                self.problems.extend(problems);
                return None;
            }
        };
        if config.disk.0 < SMALLEST {
            let words = format!("expected at least `1MiB`, found `{}`", config.disk.value);
            let help = "it holds whole batches, and its space is freed by segments of an eighth of it";
            self.problems.push(Problem::error(config.disk.span, words).help(help));
        }
        Some((config, key.span))
    }

    fn on_error(&mut self, node: &Node, section: Section) -> Option<Spanned<OnError>> {
        if node.text() == Some("retry") && section != Section::Sink {
            let words = match section {
                Section::Source => "a source cannot try again: the same bytes are refused each time",
                _ => "a transform cannot try again: the same record gives the same each time",
            };
            self.problems
                .push(Problem::error(node.span, words).help(
                    "use `dead_letter`, `drop` or `stop`; `retry` is for a sink, whose other side can be mended",
                ));
            return None;
        }
        self.value(node)
    }
}
