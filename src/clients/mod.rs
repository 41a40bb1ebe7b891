//! Connections that a source and a sink share.

pub mod kafka;
