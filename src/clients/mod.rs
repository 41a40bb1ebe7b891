//! Connections that a source and a sink share.

pub mod buffer;
pub mod kafka;
pub(crate) mod letters;
pub(crate) mod lines;
pub(crate) mod stdio;
