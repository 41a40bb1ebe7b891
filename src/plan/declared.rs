//! What a plan keeps of the text that it was made from.

use std::fmt;
use std::sync::Arc;

use crate::component::node::Node;
use crate::config::Document;
use crate::record::fingerprint;

/// What a plan keeps of the text that it was made from.
#[derive(Clone, Default)]
pub struct Declared {
    /// A short hash of the pipeline's text, as it stands in the file: with `${…}`, not with what is filled in. Dead letters
    /// name it.
    pub version: Arc<str>,
    /// The config of the dead letter, as it stands under its kind: what was written there is read again by it.
    pub dead_letter: Option<Node>,
}

impl Declared {
    /// Of a document, and the config of its dead letter.
    pub(super) fn of(document: &Document, dead_letter: Option<&Node>) -> Self {
        let text = document.file.text.get(document.root.span.range()).unwrap_or_default();
        Self { version: format!("{:016x}", fingerprint(text.as_bytes())).into(), dead_letter: dead_letter.cloned() }
    }
}

impl fmt::Debug for Declared {
    /// Without the config, which may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Declared").field("version", &self.version).finish_non_exhaustive()
    }
}
