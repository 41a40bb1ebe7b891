//! What the user wrote, as a tree with places, and how a config struct is read from it.
//!
//! `config::load` makes the tree from YAML. Reading a struct from it reports every mistake, not the
//! first, each at the very text that is wrong.

use super::problem::Span;
pub use super::read::{read, read_at};

/// How a scalar was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Without quotes: may be a number, a boolean or null.
    Plain,
    /// In quotes: text.
    Quoted,
    /// A block (`|` or `>`): text, and never interpolated.
    Block,
}

/// A part of a pipeline file.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Its place, without the comment or line end behind it.
    pub span: Span,
    /// What it is.
    pub kind: Kind,
}

/// What a node is.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// A single value.
    Scalar {
        /// The text after unescaping and interpolation.
        text: String,
        /// How it was written.
        style: Style,
        /// Pairs of (offset in `text`, offset in the file), rising; see [`super::Text`].
        offsets: Vec<(usize, usize)>,
        /// Whether a part of it came from a variable or a secret file, so that no message may show it.
        secret: bool,
    },
    /// A list.
    List(Vec<Node>),
    /// Keys and values, in the order of the file. A repeated key is reported when the file is loaded.
    Map(Vec<(Key, Node)>),
    /// A value in which a mistake was already reported. Whatever is read from it is wrong, and nothing more is said.
    Broken,
}

impl Node {
    /// Whether nothing stands here: `key:`, `~` or `null`.
    #[must_use]
    pub fn is_null(&self) -> bool {
        match &self.kind {
            Kind::Scalar { text, style: Style::Plain, secret, .. } => {
                text.is_empty() || (!secret && matches!(text.as_str(), "~" | "null" | "Null" | "NULL"))
            }
            _ => false,
        }
    }

    /// The text of a scalar; `None` for lists, maps, nothing, and what is broken.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        match &self.kind {
            Kind::Scalar { text, .. } if !self.is_null() => Some(text),
            // A plain scalar that a substitution left empty is an empty text; one that was never written is nothing.
            Kind::Scalar { text, .. } if text.is_empty() && self.span.start < self.span.end => Some(text),
            _ => None,
        }
    }

    /// Whether a message must not show it.
    #[must_use]
    pub fn is_secret(&self) -> bool {
        matches!(self.kind, Kind::Scalar { secret: true, .. })
    }

    /// What it is, in words that a message can use: "the text `abc`", "a list", "nothing".
    #[must_use]
    pub fn describe(&self) -> String {
        match &self.kind {
            Kind::Scalar { secret: true, .. } => "a substituted value, which is not shown".to_owned(),
            Kind::Scalar { .. } if self.is_null() => "nothing".to_owned(),
            Kind::Scalar { text, style: Style::Plain, .. } => match Typed::of(text) {
                Typed::Bool(_) => format!("`{text}`"),
                Typed::Integer(_) | Typed::Float(_) => format!("the number `{}`", shortened(text)),
                Typed::Null | Typed::Text => format!("the text `{}`", shortened(text)),
            },
            Kind::Scalar { text, .. } => format!("the text `{}`", shortened(text)),
            Kind::List(_) => "a list".to_owned(),
            Kind::Map(_) => "keys and values".to_owned(),
            Kind::Broken => "a mistake".to_owned(),
        }
    }

    /// The value under a key.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Node> {
        match &self.kind {
            Kind::Map(entries) => entries.iter().find(|(key, _)| key.name == name).map(|(_, value)| value),
            _ => None,
        }
    }
}

/// The first line of a text, and not much of it.
fn shortened(text: &str) -> String {
    const LONGEST: usize = 40;
    let line = text.lines().next().unwrap_or_default();
    match line.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None if line.len() < text.trim_end().len() => format!("{line}…"),
        None => line.to_owned(),
    }
}

/// What a plain scalar means by the core schema of YAML 1.2.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Typed {
    /// Nothing, `~` or `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// Decimal, `0x` or `0o`. What does not fit is cut to the largest or smallest.
    Integer(i128),
    /// Finite, with a point or an exponent.
    Float(f64),
    /// Anything else.
    Text,
}

impl Typed {
    /// Reads a plain scalar.
    #[must_use]
    pub fn of(text: &str) -> Self {
        match text {
            "" | "~" | "null" | "Null" | "NULL" => return Self::Null,
            "true" | "True" | "TRUE" => return Self::Bool(true),
            "false" | "False" | "FALSE" => return Self::Bool(false),
            _ => {}
        }
        if let Some(value) = integer(text) {
            return Self::Integer(value);
        }
        // Rust also reads `inf` and `nan`, which are texts here.
        let numeric =
            text.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'+' | b'-' | b'e' | b'E'));
        match text.parse::<f64>() {
            Ok(value) if numeric && value.is_finite() => Self::Float(value),
            _ => Self::Text,
        }
    }
}

fn integer(text: &str) -> Option<i128> {
    for (prefix, radix) in [("0x", 16), ("0o", 8)] {
        if let Some(digits) = text.strip_prefix(prefix) {
            let fits = !digits.is_empty() && digits.chars().all(|digit| digit.is_digit(radix));
            return fits.then(|| i128::from_str_radix(digits, radix).unwrap_or(i128::MAX));
        }
    }
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let limit = if text.starts_with('-') { i128::MIN } else { i128::MAX };
    Some(text.parse().unwrap_or(limit))
}

/// A key of a map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Its text.
    pub name: String,
    /// Its place.
    pub span: Span,
}

#[cfg(test)]
mod tests {
    use super::Typed;

    #[test]
    fn plain_scalars_mean_what_yaml_1_2_says() {
        assert_eq!(Typed::of("12"), Typed::Integer(12));
        assert_eq!(Typed::of("-0x1"), Typed::Text);
        assert_eq!(Typed::of("0x1f"), Typed::Integer(31));
        assert_eq!(Typed::of("0o17"), Typed::Integer(15));
        assert_eq!(Typed::of("1_000"), Typed::Text);
        assert_eq!(Typed::of("1.5e3"), Typed::Float(1500.0));
        assert_eq!(Typed::of("inf"), Typed::Text);
        assert_eq!(Typed::of("no"), Typed::Text);
        assert_eq!(Typed::of("~"), Typed::Null);
        assert_eq!(Typed::of(&"9".repeat(60)), Typed::Integer(i128::MAX));
    }
}
