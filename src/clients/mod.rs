//! What a source and a sink share: connections, and what both know of files.

pub mod buffer;
pub(crate) mod files;
pub mod kafka;
pub(crate) mod letters;
pub(crate) mod lines;
pub(crate) mod packed;
pub(crate) mod stdio;
