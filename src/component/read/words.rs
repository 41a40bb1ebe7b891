//! The words of the mistakes that a reader finds.

use crate::component::node::{Key, Kind, Node};
use crate::component::{Problem, Span, nearest};

pub(super) fn missing_field(key: Span, field: &str) -> Problem {
    Problem::error(key, format!("the field `{field}` is missing")).help(format!("add `{field}: …` here"))
}

/// The field that an unknown key was probably meant to be.
pub(super) fn meant_field<'a>(name: &str, fields: &[&'a str]) -> Option<&'a str> {
    // `path:app.log` is a key without a value, since no space follows the colon.
    let begun = name.split(':').next().unwrap_or(name);
    nearest(begun, fields.iter().copied())
}

pub(super) fn unknown_key(key: &Key, fields: &[&str]) -> Problem {
    if let Some((name, value)) = key.name.split_once(':').filter(|(name, _)| fields.contains(name)) {
        return Problem::error(key.span, format!("unknown field `{}`", key.name))
            .help(format!("put a space after the colon: `{name}: {value}`"));
    }
    let problem = Problem::error(key.span, format!("unknown field `{}`", key.name))
        .help_if(nearest(&key.name, fields.iter().copied()), |near| format!("did you mean `{near}`?"));
    match fields {
        [] => problem.help("there are no fields here"),
        [only] => problem.help(format!("the only field is `{only}`")),
        _ => problem.help(format!("the fields are {}", list(fields))),
    }
}

pub(super) fn list(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

pub(super) fn one_of(variants: &[&str]) -> String {
    match variants {
        [only] => format!("`{only}`"),
        _ => format!("one of {}", list(variants)),
    }
}

/// Whether a message holds the text of a substituted value of this tree.
pub(super) fn shows_secret(node: &Node, words: &str) -> bool {
    match &node.kind {
        Kind::Scalar { text, secret: true, .. } => !text.is_empty() && (node.is_secret() || words.contains(text)),
        Kind::Scalar { .. } | Kind::Broken => false,
        Kind::List(items) => items.iter().any(|item| holds_secret(item, words)),
        Kind::Map(entries) => entries.iter().any(|(_, value)| holds_secret(value, words)),
    }
}

fn holds_secret(node: &Node, words: &str) -> bool {
    match &node.kind {
        Kind::Scalar { text, secret: true, .. } => !text.is_empty() && words.contains(text.as_str()),
        _ => shows_secret(node, words),
    }
}
