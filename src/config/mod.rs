//! What the user wrote: the pipeline files and the daemon's own settings.

pub mod diagnostic;
mod document;
mod interpolate;
mod load;
mod scalar;
mod settings;

pub use document::{Document, SourceFile};
pub use interpolate::{Environment, ProcessEnvironment, substituted};
pub use load::load;
pub use settings::{AdminSettings, LogSettings, Settings, SettingsError};
