//! The table of transforms: one row and one file for each kind.

mod filter;
mod map;
mod route;

use crate::component::TransformSpec;

/// All kinds of transforms, by name.
pub const TRANSFORMS: &[TransformSpec] = &[
    TransformSpec::of::<filter::FilterConfig>(),
    TransformSpec::of::<map::MapConfig>(),
    TransformSpec::of::<route::RouteConfig>(),
];

#[cfg(test)]
mod testing;
