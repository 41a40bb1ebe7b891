//! What the user wrote: the pipeline files and the daemon's own settings.

mod document;

pub use document::{Document, SourceFile};
