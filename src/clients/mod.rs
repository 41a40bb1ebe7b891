//! Connections that a source and a sink share.
