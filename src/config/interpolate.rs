//! `${NAME}`, `${NAME:-default}` and `${file:/run/secrets/x}` inside plain and quoted scalars.
//!
//! Substitution happens after parsing, in one scalar at a time, so that no value can change the
//! structure of the file. `$${` stands for `${`. Block scalars hold programs and are left alone.

use std::io::Read as _;
use std::path::Path;

use crate::component::node::{Kind, Node};
use crate::component::{Problem, Span, Text};

/// Where the values of `${…}` come from.
pub trait Environment {
    /// A variable; `None` if it is not set.
    fn var(&self, name: &str) -> Option<String>;

    /// The text of a secret file, without its last line end.
    ///
    /// # Errors
    /// Why it cannot be read, in words.
    fn secret_file(&self, path: &Path) -> Result<String, String>;
}

/// The variables and the files of this process.
#[derive(Debug, Clone, Copy, Default)]
pub struct ProcessEnvironment;

impl Environment for ProcessEnvironment {
    fn var(&self, name: &str) -> Option<String> {
        std::env::var(name).ok()
    }

    fn secret_file(&self, path: &Path) -> Result<String, String> {
        /// A certificate chain fits; a log file or a device does not.
        const LARGEST: u64 = 1 << 20;
        let mut text = String::new();
        let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
        file.take(LARGEST + 1).read_to_string(&mut text).map_err(|error| error.to_string())?;
        if text.len() as u64 > LARGEST {
            return Err("it holds more than 1 MiB".to_owned());
        }
        let line = text.strip_suffix('\n').map(|line| line.strip_suffix('\r').unwrap_or(line).len());
        text.truncate(line.unwrap_or(text.len()));
        Ok(text)
    }
}

/// A scalar after substitution.
pub(super) struct Filled {
    /// The text, and where its parts stand.
    pub(super) text: String,
    pub(super) offsets: Vec<(usize, usize)>,
    /// Whether a part of it came from outside the file.
    pub(super) secret: bool,
}

/// Whether a scalar is one `${…}` and nothing else.
pub(super) fn is_one_substitution(text: &str) -> bool {
    text.starts_with("${") && text.find('}') == Some(text.len() - 1)
}

/// Substitutes each `${…}` of a scalar. `None` if a mistake was reported.
pub(super) fn fill(text: Text, environment: &dyn Environment, problems: &mut Vec<Problem>) -> Option<Filled> {
    if !text.value.contains("${") {
        return Some(Filled { text: text.value, offsets: text.offsets, secret: false });
    }
    let mut filled = Filled { text: String::new(), offsets: Vec::new(), secret: false };
    let mut sound = true;
    let mut copied = 0;
    while let Some(found) = text.value[copied..].find("${") {
        let start = copied + found;
        if text.value[copied..start].ends_with('$') {
            filled.copy(&text, copied, start);
            filled.text.push('{');
            copied = start + 2;
            continue;
        }
        filled.copy(&text, copied, start);
        let Some(length) = text.value[start..].find('}') else {
            let span = text.span_of(start, text.value.len());
            problems.push(
                Problem::error(span, "`${` is never closed")
                    .help("close it with `}`, or write `$${` if you mean the characters"),
            );
            return None;
        };
        let end = start + length + 1;
        let span = text.span_of(start, end);
        if text.value[start + 2..end].contains("${") {
            problems.push(
                Problem::error(span, "a `${…}` cannot hold another one")
                    .help("give a default without `${…}`, or set the variable where the process is started"),
            );
            return None;
        }
        match substitute(&text.value[start + 2..end - 1], span, environment) {
            Ok((value, outside)) => {
                filled.offsets.push((filled.text.len(), span.start));
                filled.text.push_str(&value);
                filled.secret |= outside;
            }
            Err(problem) => {
                problems.push(problem);
                sound = false;
            }
        }
        copied = end;
    }
    filled.copy(&text, copied, text.value.len());
    // An empty value leaves two places for one offset: the later one is right for what follows.
    filled.offsets.reverse();
    filled.offsets.dedup_by_key(|pair| pair.0);
    filled.offsets.reverse();
    sound.then_some(filled)
}

impl Filled {
    fn copy(&mut self, text: &Text, start: usize, end: usize) {
        let moved = self.text.len();
        self.offsets.push((moved, text.place(start)));
        let inside = text.offsets.iter().filter(|(in_text, _)| (start + 1..end).contains(in_text));
        self.offsets.extend(inside.map(|&(in_text, in_file)| (moved + in_text - start, in_file)));
        self.text.push_str(&text.value[start..end]);
    }
}

/// The value of one `${…}`, and whether it came from outside the file.
fn substitute(inside: &str, span: Span, environment: &dyn Environment) -> Result<(String, bool), Problem> {
    if let Some(path) = inside.strip_prefix("file:").filter(|path| !path.starts_with('-')) {
        let value = environment.secret_file(Path::new(path)).map_err(|reason| {
            Problem::error(span, format!("the file `{path}` cannot be read: {reason}"))
                .help("the path is read by the daemon, on the machine that runs it")
        })?;
        return Ok((value, true));
    }
    let (name, default) = match inside.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (inside, None),
    };
    if !is_variable_name(name) {
        return Err(Problem::error(span, format!("`{name}` is not the name of a variable"))
            .help("write `${NAME}`, `${NAME:-default}` or `${file:/path}`; `$${` stands for the characters `${`"));
    }
    match (environment.var(name), default) {
        (Some(value), None) => Ok((value, true)),
        // As in a shell, an empty variable takes the default too.
        (Some(value), Some(_)) if !value.is_empty() => Ok((value, true)),
        (_, Some(default)) => Ok((default.to_owned(), false)),
        (None, None) => Err(Problem::error(span, format!("the variable `{name}` is not set"))
            .help(format!("set it, or give it a default: `${{{name}:-default}}`"))),
    }
}

fn is_variable_name(name: &str) -> bool {
    let mut letters = name.chars();
    letters.next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
        && letters.all(|letter| letter.is_ascii_alphanumeric() || letter == '_')
}

/// The values that were substituted in a tree. No message may show one.
#[must_use]
pub fn substituted<'a>(node: &'a Node, file: &str) -> Vec<&'a str> {
    let mut values = Vec::new();
    collect(node, file, &mut values);
    values
}

fn collect<'a>(node: &'a Node, file: &str, values: &mut Vec<&'a str>) {
    match &node.kind {
        Kind::Scalar { text, offsets, secret: true, .. } => {
            for (at, &(start, in_file)) in offsets.iter().enumerate() {
                let end = offsets.get(at + 1).map_or(text.len(), |next| next.0);
                let is_value = file.get(in_file..).is_some_and(|rest| rest.starts_with("${"));
                values.extend(text.get(start..end).filter(|value| is_value && !value.is_empty()));
            }
        }
        Kind::Scalar { .. } | Kind::Broken => {}
        Kind::List(items) => items.iter().for_each(|item| collect(item, file, values)),
        Kind::Map(entries) => entries.iter().for_each(|(_, value)| collect(value, file, values)),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::HashMap;
    use std::sync::Arc;

    use super::*;
    use crate::component::node::Kind;
    use crate::config::{SourceFile, load};

    /// Variables, and files by their path, from a list.
    #[derive(Debug, Default)]
    pub(crate) struct Variables(pub(crate) HashMap<String, String>);

    impl Variables {
        pub(crate) fn of<const N: usize>(list: [(&str, &str); N]) -> Self {
            Self(list.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
        }
    }

    impl Environment for Variables {
        fn var(&self, name: &str) -> Option<String> {
            self.0.get(name).cloned()
        }

        fn secret_file(&self, path: &Path) -> Result<String, String> {
            self.0.get(&path.display().to_string()).cloned().ok_or_else(|| "no such file".to_owned())
        }
    }

    /// The scalar under `k`.
    fn filled(file: &str) -> Node {
        let (documents, problems) = load(source(file), &environment());
        assert_eq!(problems, []);
        documents[0].root.get("k").unwrap().clone()
    }

    /// The text that each mistake underlines, and its words.
    fn mistakes(file: &str) -> Vec<(String, String)> {
        let problems = load(source(file), &environment()).1;
        problems.into_iter().map(|problem| (file[problem.span.range()].to_owned(), problem.message)).collect()
    }

    fn environment() -> Variables {
        Variables::of([("A", "alpha"), ("EMPTY", ""), ("TREE", "{ x: [1] }\n- y"), ("/run/key", "s3cret")])
    }

    fn source(file: &str) -> Arc<SourceFile> {
        Arc::new(SourceFile { path: "a.yaml".into(), text: file.to_owned() })
    }

    fn text(file: &str) -> String {
        let Kind::Scalar { text, .. } = filled(file).kind else { panic!("no scalar") };
        text
    }

    #[test]
    fn variables_files_and_defaults_are_substituted() {
        assert_eq!(text("k: ${A}"), "alpha");
        assert_eq!(text("k: x-${A}-${A}"), "x-alpha-alpha");
        assert_eq!(text("k: \"${A}:\\t${NONE:-9092}\""), "alpha:\t9092");
        assert_eq!(text("k: '${EMPTY:-it''s}'"), "it's");
        assert_eq!(text("k: ${EMPTY}"), "");
        assert_eq!(text("k: ${file:/run/key}"), "s3cret");
    }

    #[test]
    fn a_value_in_quotes_alone_may_be_a_number() {
        let read = |file| crate::component::node::read::<u16>(&filled(file)).ok();
        assert_eq!(read("k: \"${NONE:-9092}\""), Some(9092));
        assert_eq!(read("k: ${NONE:-9092}"), Some(9092));
        assert_eq!(read("k: \"90${NONE:-92}\""), None);
    }

    #[test]
    fn what_is_escaped_or_in_a_block_stays() {
        assert_eq!(text("k: $${A} ${A}"), "${A} alpha");
        assert_eq!(text("k: $A and $$"), "$A and $$");
        assert_eq!(text("k: |\n  ${A}\n"), "${A}\n");
    }

    #[test]
    fn a_value_never_changes_the_structure() {
        assert_eq!(text("k: ${TREE}"), "{ x: [1] }\n- y");
    }

    #[test]
    fn what_came_from_outside_is_known() {
        let file = "k: a ${A} b ${file:/run/key}";
        assert_eq!(substituted(&filled(file), file), ["alpha", "s3cret"]);
        assert!(filled(file).is_secret() && !filled("k: ${NONE:-x}").is_secret());
    }

    #[test]
    fn mistakes_are_placed_at_the_substitution() {
        let one = |place: &str, message: &str| vec![(place.to_owned(), message.to_owned())];
        assert_eq!(mistakes("k: a ${NONE} b"), one("${NONE}", "the variable `NONE` is not set"));
        assert_eq!(mistakes("k: \"\\t${NO NE}\""), one("${NO NE}", "`NO NE` is not the name of a variable"));
        assert_eq!(mistakes("k: a ${A"), one("${A", "`${` is never closed"));
        assert_eq!(mistakes("k: ${file:/none}"), one("${file:/none}", "the file `/none` cannot be read: no such file"));
        assert_eq!(mistakes("k: ${X}${Y}").len(), 2);
    }
}
