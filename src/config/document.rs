//! One pipeline of a file: its tree, and the text that places point into.

use std::path::PathBuf;
use std::sync::Arc;

use crate::component::node::Node;

/// A pipeline file as it was read.
#[derive(Debug)]
pub struct SourceFile {
    /// The path as the user wrote it.
    pub path: PathBuf,
    /// The text that spans point into.
    pub text: String,
}

/// One document of a pipeline file: one pipeline.
#[derive(Debug, Clone)]
pub struct Document {
    /// The file.
    pub file: Arc<SourceFile>,
    /// Its number in the file, from 0.
    pub index: usize,
    /// How many documents the file has.
    pub count: usize,
    /// What it says.
    pub root: Node,
}
