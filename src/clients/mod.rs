//! Connections that a source and a sink share.

pub(crate) mod lines;
pub(crate) mod stdio;
