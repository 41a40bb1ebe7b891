//! Which name means which stage, and what reads what where the file leaves it open.

use std::collections::{HashMap, HashSet};

use super::draft::{Component, Draft, From, Reference, listed};
use crate::component::{Problem, Span, nearest};

/// A stage of the draft, by its place in its section.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Stage {
    Source(usize),
    Transform(usize),
    Sink(usize),
}

/// That a stage reads another one.
#[derive(Debug, Clone)]
pub(super) struct Link {
    pub(super) stage: Stage,
    /// The named output; `None` for the default one.
    pub(super) output: Option<String>,
    /// Where the file says so; the reader's own place if it is a default.
    pub(super) span: Span,
    /// Whether the file says nothing, and this is the default.
    pub(super) is_default: bool,
}

/// What every transform and every sink reads.
#[derive(Debug, Default)]
pub(super) struct Links {
    pub(super) transforms: Vec<Vec<Link>>,
    pub(super) sinks: Vec<Vec<Link>>,
    /// Stages that a reference which leads nowhere probably meant: that nobody reads them follows from it.
    pub(super) meant: HashSet<Stage>,
    /// Whether a reference leads nowhere, and it is not known what it meant.
    pub(super) some_unknown: bool,
}

/// Resolves every `from`.
pub(super) fn resolve(draft: &Draft<'_>, problems: &mut Vec<Problem>) -> Links {
    let names = names(draft, problems);
    let mut resolver = Resolver { draft, names, links: Links::default(), problems };
    for (at, transform) in draft.transforms.iter().enumerate() {
        let links = resolver.links_of(transform, at.checked_sub(1));
        resolver.links.transforms.push(links);
    }
    let last = draft.transforms.len().checked_sub(1);
    for sink in &draft.sinks {
        let links = resolver.links_of(sink, last);
        resolver.links.sinks.push(links);
    }
    resolver.links
}

/// All stages by name. A name stands for one stage.
fn names<'d>(draft: &'d Draft<'_>, problems: &mut Vec<Problem>) -> HashMap<&'d str, Stage> {
    let sources = draft.sources.iter().enumerate().map(|(at, source)| (source, Stage::Source(at)));
    let transforms = draft.transforms.iter().enumerate().map(|(at, transform)| (transform, Stage::Transform(at)));
    let sinks = draft.sinks.iter().enumerate().map(|(at, sink)| (sink, Stage::Sink(at)));
    let mut names = HashMap::new();
    for (component, stage) in sources.chain(transforms).chain(sinks) {
        let name: &str = &component.name;
        match names.get(name) {
            None => {
                names.insert(name, stage);
            }
            Some(first) => {
                let words = format!("the name `{name}` is taken by a {}", word(*first));
                let help = "sources, transforms and sinks share their names: `from` and the metrics use them";
                problems.push(Problem::error(component.span, words).help(help));
            }
        }
    }
    names
}

fn word(stage: Stage) -> &'static str {
    match stage {
        Stage::Source(_) => "source",
        Stage::Transform(_) => "transform",
        Stage::Sink(_) => "sink",
    }
}

struct Resolver<'r, 'd> {
    draft: &'r Draft<'d>,
    names: HashMap<&'r str, Stage>,
    links: Links,
    problems: &'r mut Vec<Problem>,
}

impl Resolver<'_, '_> {
    fn links_of(&mut self, reader: &Component<'_>, above: Option<usize>) -> Vec<Link> {
        match &reader.from {
            From::Named(references) => references.iter().filter_map(|reference| self.named(reference)).collect(),
            From::Default => self.default(reader, above).into_iter().collect(),
            From::Broken => {
                self.links.some_unknown = true;
                Vec::new()
            }
        }
    }

    fn named(&mut self, reference: &Reference) -> Option<Link> {
        let Reference { stage: name, output, span } = reference;
        match self.names.get(name.as_str()).copied() {
            Some(Stage::Sink(_)) => {
                let help = "read what the sink reads";
                self.problems.push(
                    Problem::error(*span, format!("`{name}` is a sink, and nothing can be read from it")).help(help),
                );
                // The reader may have meant any stage.
                self.links.some_unknown = true;
                None
            }
            Some(stage) => Some(Link { stage, output: output.clone(), span: *span, is_default: false }),
            None => {
                self.unknown(name, *span);
                None
            }
        }
    }

    fn unknown(&mut self, name: &str, span: Span) {
        // Each name is compared with all others; nobody reads this many answers.
        const MOST_ANSWERS: usize = 100;
        if self.problems.len() > MOST_ANSWERS {
            self.links.some_unknown = true;
            return;
        }
        let readable = self.names.iter().filter(|(_, stage)| !matches!(stage, Stage::Sink(_)));
        let mut readable: Vec<_> = readable.map(|(name, stage)| (*name, *stage)).collect();
        readable.sort_by_key(|(_, stage)| *stage);
        let problem = Problem::error(span, format!("no stage is named `{name}`")).label("read from here");
        let near = nearest(name, readable.iter().map(|(name, _)| *name));
        if let Some(near) = near {
            self.links.meant.extend(self.names.get(near));
            self.problems.push(problem.help(format!("did you mean `{near}`?")));
            return;
        }
        self.links.some_unknown = true;
        let names: Vec<_> = readable.iter().take(20).map(|(name, _)| *name).collect();
        self.problems.push(problem.help(format!("the stages that can be read are {}", listed(&names))));
    }

    /// The transform above, or the only source.
    fn default(&mut self, reader: &Component<'_>, above: Option<usize>) -> Option<Link> {
        let span = reader.span;
        if let Some(above) = above {
            return Some(Link { stage: Stage::Transform(above), output: None, span, is_default: true });
        }
        match self.draft.sources.as_slice() {
            [_] => Some(Link { stage: Stage::Source(0), output: None, span, is_default: true }),
            // That there is no source was reported.
            [] => None,
            [first, ..] => {
                let names: Vec<_> = self.draft.sources.iter().map(|source| source.name.to_string()).collect();
                let words = format!("`{}` must say which of the {} sources it reads", reader.name, names.len());
                self.problems.push(Problem::error(span, words).help(format!(
                    "add `from: {}`, or `from: [{}]` to read all",
                    first.name,
                    names.join(", ")
                )));
                self.links.some_unknown = true;
                None
            }
        }
    }
}
