//! From the text of a pipeline file to one tree for each of its documents.
//!
//! YAML comes as a stream of events with places. Trees are built from it without recursion and
//! within limits, so that no file, however hostile, exhausts the stack or the memory. After a syntax
//! error the next document is read, so that one report covers the whole file.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use granit_parser::{ErrorKind, Event, Parser, ScalarStyle, ScanError};

use super::document::{Document, SourceFile};
use super::interpolate::{Environment, fill, is_one_substitution};
use super::scalar::offsets;
use crate::component::node::{Key, Kind, Node, Style};
use crate::component::{Problem, Span, Text};

/// No pipeline needs more levels; the tree is read by recursion.
const DEEPEST: usize = 64;
/// What all trees of a file may take in memory, with what aliases and variables add.
const LARGEST: usize = 64 << 20;
/// More mistakes in one file help nobody.
const MOST_PROBLEMS: usize = 100;

/// Reads all documents of a file. Values with mistakes are [`Kind::Broken`]; a document that is no YAML is left out.
#[must_use]
pub fn load(file: Arc<SourceFile>, environment: &dyn Environment) -> (Vec<Document>, Vec<Problem>) {
    let mut loader = Loader::new(&file.text, environment);
    let roots = loader.documents();
    let mut problems = loader.problems;
    if roots.is_empty() && problems.is_empty() {
        let start = Span { start: 0, end: 0 };
        problems.push(
            Problem::error(start, "the file declares no pipeline")
                .help("a pipeline has at least `sources` and `sinks`"),
        );
    }
    let count = roots.len();
    let document = move |(index, root)| Document { file: Arc::clone(&file), index, count, root };
    (roots.into_iter().enumerate().map(document).collect(), problems)
}

struct Loader<'a> {
    text: &'a str,
    environment: &'a dyn Environment,
    problems: Vec<Problem>,
    /// Lists and maps that are not closed yet, the innermost last.
    open: Vec<Open>,
    /// Trees that an alias may repeat, by the parser's number.
    anchors: HashMap<usize, Node>,
    root: Option<Node>,
    spent: usize,
}

/// A list or a map that is not closed yet.
struct Open {
    span: Span,
    /// The parser's number of its anchor; 0 for none.
    anchor: usize,
    content: Content,
}

enum Content {
    List(Vec<Node>),
    Map { entries: Vec<(Key, Node)>, names: HashSet<String>, key: Option<PendingKey> },
}

/// The key of the value that comes next.
enum PendingKey {
    Good(Key),
    /// It was refused, and its value is dropped.
    Refused,
}

/// Why a document is given up.
struct GiveUp;

impl<'a> Loader<'a> {
    fn new(text: &'a str, environment: &'a dyn Environment) -> Self {
        Self {
            text,
            environment,
            problems: Vec::new(),
            open: Vec::new(),
            anchors: HashMap::new(),
            root: None,
            spent: 0,
        }
    }

    /// The roots of all documents that hold anything.
    fn documents(&mut self) -> Vec<Node> {
        let options = granit_parser::options! {
            emit_unresolved_aliases: true,
            emit_comments: false,
            flow_nesting_limit: DEEPEST,
            block_nesting_limit: DEEPEST,
        };
        let mut parser = Parser::new_from_str_with_options(self.text, options);
        let mut roots = Vec::new();
        loop {
            let step = match parser.next_event() {
                None | Some(Ok((Event::StreamEnd, _))) => return roots,
                Some(Ok((Event::DocumentEnd, _))) => {
                    roots.extend(self.root.take().filter(|root| !root.is_null()));
                    self.forget();
                    Ok(())
                }
                Some(Ok((event, span))) => self.event(event, span),
                Some(Err(error)) => {
                    self.problems.push(syntax_error(self.text, &error));
                    Err(GiveUp)
                }
            };
            if self.problems.len() >= MOST_PROBLEMS {
                return roots;
            }
            if step.is_err() {
                self.forget();
                match parser.proceed_next_document() {
                    Ok(true) if self.spent < LARGEST => {}
                    _ => return roots,
                }
            }
        }
    }

    /// Between two documents nothing is carried over but the budget.
    fn forget(&mut self) {
        self.open.clear();
        self.anchors.clear();
        self.root = None;
    }

    fn event(&mut self, event: Event<'_>, span: granit_parser::Span) -> Result<(), GiveUp> {
        let bytes = span.byte_range().unwrap_or_default();
        let place = Span { start: bytes.start, end: bytes.end };
        let is_tagged = event.tag().is_some();
        if let Some(tag) = event.tag() {
            let at = span.tag_span().and_then(|tag| tag.byte_range());
            let at = at.map_or(place, |range| Span { start: range.start, end: range.end });
            let words = format!("the tag `{}` is not supported", tag.original());
            self.problems.push(Problem::error(at, words).help("put a text that begins with `!` in quotes"));
        }
        match event {
            Event::Scalar(value, style, anchor, _) => {
                let node = if is_tagged {
                    Node { span: place, kind: Kind::Broken }
                } else {
                    self.scalar(&value, style, place)
                };
                self.put(node, anchor)
            }
            Event::SequenceStart(_, anchor, _) => self.begin(place, anchor, Content::List(Vec::new())),
            Event::MappingStart(_, anchor, _) => {
                let content = Content::Map { entries: Vec::new(), names: HashSet::new(), key: None };
                self.begin(place, anchor, content)
            }
            Event::SequenceEnd | Event::MappingEnd => self.end(place),
            Event::Alias(target) => {
                let node = self.alias(target, place);
                self.put(node, 0)
            }
            Event::UnresolvedAlias(name) => {
                self.problems.push(
                    Problem::error(place, format!("there is no anchor `&{name}` above this alias"))
                        .help(format!("put the text in quotes if you mean it: `\"*{name}\"`")),
                );
                self.put(Node { span: place, kind: Kind::Broken }, 0)
            }
            _ => Ok(()),
        }
    }

    fn scalar(&mut self, value: &str, style: ScalarStyle, place: Span) -> Node {
        // The parser gives `~` where nothing stands.
        let value = if place.start == place.end && style == ScalarStyle::Plain { "" } else { value };
        let offsets = offsets(self.text, place.range(), style, value);
        let mut span = place;
        if matches!(style, ScalarStyle::Literal | ScalarStyle::Folded) {
            let trimmed = self.text.get(place.range()).unwrap_or_default().trim_end().len();
            span.end = place.start + trimmed;
        }
        let style = match style {
            ScalarStyle::Plain => Style::Plain,
            ScalarStyle::SingleQuoted | ScalarStyle::DoubleQuoted => Style::Quoted,
            ScalarStyle::Literal | ScalarStyle::Folded => Style::Block,
        };
        let text = value.to_owned();
        if style == Style::Block || self.awaits_key() {
            return Node { span, kind: Kind::Scalar { text, style, offsets, secret: false } };
        }
        // In a flow, `${…}` must be in quotes. What is nothing else is still a number, if that is what it is.
        let style = if is_one_substitution(&text) { Style::Plain } else { style };
        let text = Text { value: text, span, offsets };
        let kind = match fill(text, self.environment, &mut self.problems) {
            Some(filled) => Kind::Scalar { text: filled.text, style, offsets: filled.offsets, secret: filled.secret },
            None => Kind::Broken,
        };
        Node { span, kind }
    }

    /// Whether the next node is the key of a map.
    fn awaits_key(&self) -> bool {
        matches!(self.open.last(), Some(Open { content: Content::Map { key: None, .. }, .. }))
    }

    fn begin(&mut self, span: Span, anchor: usize, content: Content) -> Result<(), GiveUp> {
        if self.open.len() == DEEPEST {
            self.problems.push(too_deep(span));
            return Err(GiveUp);
        }
        self.open.push(Open { span, anchor, content });
        Ok(())
    }

    fn end(&mut self, close: Span) -> Result<(), GiveUp> {
        let Some(Open { mut span, anchor, content }) = self.open.pop() else { return Ok(()) };
        let (last, kind) = match content {
            Content::List(items) => (items.last().map(|item| item.span.end), Kind::List(items)),
            Content::Map { entries, .. } => {
                let last = entries.last().map(|(key, value)| key.span.end.max(value.span.end));
                (last, Kind::Map(entries))
            }
        };
        // A block has no closing bracket: it ends with what it holds, not at the next line that is no part of it.
        let bracket = close.start < close.end;
        span.end = if bracket { close.end } else { last.unwrap_or(span.end) }.max(span.start);
        self.put(Node { span, kind }, anchor)
    }

    /// A copy of the tree with the anchor.
    fn alias(&mut self, target: usize, place: Span) -> Node {
        let broken = Node { span: place, kind: Kind::Broken };
        let Some(node) = self.anchors.get(&target) else {
            self.problems.push(Problem::error(place, "this alias stands for a value that holds it"));
            return broken;
        };
        if self.open.len() + depth(node) > DEEPEST {
            self.problems.push(too_deep(place));
            return broken;
        }
        // `put` charges one node; the tree below it is charged before it is copied.
        self.spent = self.spent.saturating_add(node_cost(node));
        if self.spent > LARGEST { broken } else { node.clone() }
    }

    /// Adds a finished node to what it stands in.
    fn put(&mut self, node: Node, anchor: usize) -> Result<(), GiveUp> {
        self.spent = self.spent.saturating_add(own_cost(&node));
        if self.spent > LARGEST {
            let message = "the file needs too much memory once its aliases and variables are filled in";
            self.problems.push(Problem::error(node.span, message));
            return Err(GiveUp);
        }
        if anchor != 0 {
            self.spent = self.spent.saturating_add(node_cost(&node));
            self.anchors.insert(anchor, node.clone());
        }
        let Some(Open { content, .. }) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        match content {
            Content::List(items) => items.push(node),
            Content::Map { entries, names, key } => match key.take() {
                Some(PendingKey::Good(key)) => entries.push((key, node)),
                Some(PendingKey::Refused) => {}
                None => *key = Some(checked_key(node, entries, names, &mut self.problems, self.text)),
            },
        }
        Ok(())
    }
}

/// A key must be a text, and stand once in its map.
fn checked_key(
    node: Node,
    entries: &[(Key, Node)],
    names: &mut HashSet<String>,
    problems: &mut Vec<Problem>,
    file: &str,
) -> PendingKey {
    let span = node.span;
    let name = match node.kind {
        Kind::Scalar { text, .. } if span.start < span.end => text,
        Kind::Broken => return PendingKey::Refused,
        Kind::Scalar { .. } => {
            problems.push(Problem::error(span, "there is no key before the `:`"));
            return PendingKey::Refused;
        }
        Kind::List(_) | Kind::Map(_) => {
            problems.push(
                Problem::error(span, "a key must be text")
                    .help("put a text that begins with `{` or `[`, such as `{{ name }}`, in quotes"),
            );
            return PendingKey::Refused;
        }
    };
    if name == "<<" {
        problems.push(Problem::error(span, "merge keys are not supported").help("repeat the keys, or use a variable"));
        return PendingKey::Refused;
    }
    if !names.insert(name.clone()) {
        let first = entries.iter().find(|(key, _)| key.name == name).map(|(key, _)| line_of(file, key.span.start));
        problems.push(
            Problem::error(span, format!("the key `{name}` stands twice in this map"))
                .help_if(first, |line| format!("it is on line {line} already")),
        );
        return PendingKey::Refused;
    }
    PendingKey::Good(Key { name, span })
}

fn line_of(file: &str, at: usize) -> usize {
    1 + file.bytes().take(at).filter(|byte| *byte == b'\n').count()
}

fn too_deep(span: Span) -> Problem {
    Problem::error(span, format!("lists and maps are nested more than {DEEPEST} levels deep"))
}

/// About what a node takes in memory, without what it holds.
fn own_cost(node: &Node) -> usize {
    let kind = match &node.kind {
        Kind::Scalar { text, offsets, .. } => text.len() + offsets.len() * size_of::<(usize, usize)>(),
        _ => 0,
    };
    size_of::<(Key, Node)>() + kind
}

fn node_cost(node: &Node) -> usize {
    let inside = match &node.kind {
        Kind::List(items) => items.iter().map(node_cost).sum(),
        Kind::Map(entries) => entries.iter().map(|(key, value)| key.name.len() + node_cost(value)).sum(),
        Kind::Scalar { .. } | Kind::Broken => 0,
    };
    own_cost(node) + inside
}

fn depth(node: &Node) -> usize {
    match &node.kind {
        Kind::List(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Kind::Map(entries) => 1 + entries.iter().map(|(_, value)| depth(value)).max().unwrap_or(0),
        Kind::Scalar { .. } | Kind::Broken => 0,
    }
}

/// A syntax error, in words that say what to do.
fn syntax_error(text: &str, error: &ScanError) -> Problem {
    let mut start = error.marker().byte_offset().unwrap_or(text.len()).min(text.len());
    while !text.is_char_boundary(start) {
        start -= 1;
    }
    let end = start + text[start..].chars().next().filter(|letter| *letter != '\n').map_or(0, char::len_utf8);
    let line_start = text[..start].rfind('\n').map_or(0, |at| at + 1);
    let line = text[line_start..].lines().next().unwrap_or_default();
    let problem = |words: &str| Problem::error(Span { start, end }, words);
    match error.kind() {
        ErrorKind::TabInIndentation
        | ErrorKind::TabInBlockIndentation
        | ErrorKind::TabNotAllowed
        | ErrorKind::TabAtBlockScalarStart => problem("a tab cannot indent a line in YAML").help("use spaces"),
        _ if line[..line.len() - line.trim_start().len()].contains('\t') => {
            problem("a tab cannot indent a line in YAML").help("use spaces")
        }
        ErrorKind::UnclosedQuotedScalar | ErrorKind::DocumentIndicatorInQuotedScalar => {
            problem("a quote is never closed")
        }
        ErrorKind::MismatchedFlowCollectionEnd { open, close } => problem(&format!("`{open}` is closed by `{close}`")),
        ErrorKind::UnclosedFlowCollection { open } => problem(&format!("`{open}` is never closed")),
        ErrorKind::RecursionLimitExceeded => too_deep(Span { start, end }),
        ErrorKind::MappingValueNotAllowed => problem("a `:` that begins a value is not allowed here")
            .help("put a text that holds `: ` in quotes, and check that the keys of a map start in one column"),
        // In a flow, the `{` of a substitution begins a map.
        _ if text[..start].ends_with('$') && text[start..].starts_with('{') => {
            let length = text[start..].find(['}', '\n']).map_or(1, |end| end + 1);
            let end = start + text[start..start + length].trim_end().len();
            Problem::error(Span { start: start - 1, end }, "`${…}` must be in quotes inside `{ }` and `[ ]`")
                .help(format!("write `\"{}\"`", &text[start - 1..end]))
        }
        ErrorKind::SimpleKeyExpected | ErrorKind::InvalidSimpleKey => {
            problem("expected a `:` behind this key").help("a key and its value are written `key: value`, with a space")
        }
        ErrorKind::ExpectedBlockMappingKey | ErrorKind::InvalidIndentation => {
            problem("expected a key in the column of the keys above").help("check how the line is indented")
        }
        ErrorKind::UnexpectedCharacter { character } => {
            problem(&format!("a value cannot begin with `{character}`")).help("put it in quotes, or in a block (`|`)")
        }
        kind => problem(&format!("invalid YAML: {kind}")),
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use proptest::prelude::*;

    use super::*;
    use crate::config::interpolate::tests::Variables;

    fn loaded(text: &str) -> (Vec<Document>, Vec<Problem>) {
        let file = Arc::new(SourceFile { path: "a.yaml".into(), text: text.to_owned() });
        load(file, &Variables::of([("V", "value")]))
    }

    fn messages(text: &str) -> Vec<String> {
        loaded(text).1.into_iter().map(|problem| problem.message).collect()
    }

    #[test]
    fn each_document_is_a_pipeline() {
        let (documents, problems) = loaded("# only a comment\n---\na: 1\n---\n---\nb: 2\n...\n");
        assert_eq!(problems, []);
        assert_eq!(
            documents.iter().map(|document| (document.index, document.count)).collect::<Vec<_>>(),
            [(0, 2), (1, 2)]
        );
        assert!(documents[1].root.get("b").is_some());
    }

    #[test]
    fn a_syntax_error_costs_one_document() {
        let (documents, problems) = loaded("a: [1\n---\nb: 2\n---\nc: \"x\n---\nd: 4\n");
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert_eq!(documents.len(), 2);
    }

    #[test]
    fn spans_end_with_what_they_hold() {
        let text = "a:\n  b: 1 # c\n\n  d: [1, 2 ]  \n\ne:\n- x\n- y\n\n";
        let (documents, _) = loaded(text);
        let span = |name| &text[documents[0].root.get(name).unwrap().span.range()];
        assert_eq!(span("a"), "b: 1 # c\n\n  d: [1, 2 ]");
        assert_eq!(&text[documents[0].root.span.range()], text.trim_end());
        assert!(span("e").ends_with("x\n- y"));
    }

    #[test]
    fn a_key_stands_once() {
        let (documents, problems) = loaded("a: 1\nb: 2\na: 3\n");
        assert_eq!(problems[0].message, "the key `a` stands twice in this map");
        assert_eq!(problems[0].help, ["it is on line 1 already"]);
        assert_eq!(documents[0].root.get("a").unwrap().text(), Some("1"));
    }

    #[test]
    fn aliases_repeat_a_value() {
        let (documents, problems) = loaded("a: &x { b: \"${V}\" }\nc: *x\n");
        assert_eq!(problems, []);
        assert_eq!(documents[0].root.get("c").unwrap().get("b").unwrap().text(), Some("value"));
        assert_eq!(messages("a: *nope\n"), ["there is no anchor `&nope` above this alias"]);
        assert_eq!(messages("a: &x [*x]\n"), ["this alias stands for a value that holds it"]);
    }

    #[test]
    fn an_alias_bomb_is_stopped() {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..30 {
            let alias = format!("*a{}", level - 1);
            writeln!(text, "a{level}: &a{level} [{}]", [alias.as_str(); 10].join(", ")).unwrap();
        }
        assert_eq!(messages(&text), ["the file needs too much memory once its aliases and variables are filled in"]);
    }

    #[test]
    fn nesting_is_limited() {
        for text in ["[".repeat(100_000), "{a: ".repeat(5000), "- ".repeat(5000), "? ".repeat(5000)] {
            assert_eq!(messages(&text).len(), 1);
        }
        let mut deep =
            String::from("a: &a [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[x]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]\nb: ");
        deep.push_str(&"[".repeat(40));
        deep.push_str("*a");
        deep.push_str(&"]".repeat(40));
        assert_eq!(messages(&deep), ["lists and maps are nested more than 64 levels deep"]);
    }

    #[test]
    fn common_slips_are_told_in_words() {
        assert_eq!(messages("a:\n\tb: 1\n"), ["a tab cannot indent a line in YAML"]);
        assert_eq!(messages("a: \"x\n"), ["a quote is never closed"]);
        assert_eq!(messages("a: { b: 1\n"), ["`{` is never closed"]);
        assert_eq!(messages("a: { b: ${V} }\n"), ["`${…}` must be in quotes inside `{ }` and `[ ]`"]);
        assert_eq!(messages("? [1]\n: 2\n"), ["a key must be text"]);
        assert_eq!(messages("a: !!str 1\n"), ["the tag `!!str` is not supported"]);
        assert_eq!(messages("a: { <<: 1 }\n"), ["merge keys are not supported"]);
        assert_eq!(messages(""), ["the file declares no pipeline"]);
    }

    /// Fragments that make YAML of every kind, right and wrong.
    fn yaml() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            Just("a: "),
            Just("b:\n"),
            Just("\n  "),
            Just("\n"),
            Just("- "),
            Just("["),
            Just("]"),
            Just("{"),
            Just("}"),
            Just(", "),
            Just("\"x\\t"),
            Just("\""),
            Just("'"),
            Just("|\n  "),
            Just(">-\n "),
            Just("${V}"),
            Just("${"),
            Just("${N:-d}"),
            Just("$${"),
            Just("&x "),
            Just("*x"),
            Just("---\n"),
            Just("...\n"),
            Just("\t"),
            Just("# c\n"),
            Just("é😀"),
            Just("!t "),
            Just("<<: "),
            Just("? "),
            Just("~"),
            Just("\\u00e9"),
            Just("\r\n"),
            Just("%YAML 1.2\n")
        ];
        proptest::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
    }

    fn is_sound(text: &str, node: &Node) {
        assert!(text.get(node.span.range()).is_some(), "{:?} of {text:?}", node.span);
        match &node.kind {
            Kind::Scalar { text: value, offsets, .. } => {
                assert!(offsets.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1), "{offsets:?}");
                assert!(
                    offsets.iter().all(|pair| pair.0 <= value.len() && text.is_char_boundary(pair.1)),
                    "{offsets:?}"
                );
            }
            Kind::List(items) => items.iter().for_each(|item| is_sound(text, item)),
            Kind::Map(entries) => {
                for (key, value) in entries {
                    assert!(text.get(key.span.range()).is_some());
                    is_sound(text, value);
                }
            }
            Kind::Broken => {}
        }
    }

    proptest! {
        #[test]
        fn no_text_is_too_much_and_all_places_are_in_the_file(text in prop_oneof![yaml(), any::<String>()]) {
            let (documents, problems) = loaded(&text);
            for document in &documents {
                is_sound(&text, &document.root);
            }
            for problem in problems {
                prop_assert!(text.get(problem.span.range()).is_some(), "{problem:?} of {text:?}");
            }
        }
    }
}
