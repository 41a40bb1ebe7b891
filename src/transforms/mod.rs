//! The table of transforms: one row and one file for each kind.

use crate::component::TransformSpec;

/// All kinds of transforms, by name.
pub const TRANSFORMS: &[TransformSpec] = &[];
