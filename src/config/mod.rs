//! What the user wrote: the pipeline files and the daemon's own settings.

mod document;
mod settings;

pub use document::{Document, SourceFile};
pub use settings::{AdminSettings, LogSettings, Settings, SettingsError};
