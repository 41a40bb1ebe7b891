//! The table of sources: one row and one file for each kind.

use crate::component::SourceSpec;

/// All kinds of sources, by name.
pub const SOURCES: &[SourceSpec] = &[];
