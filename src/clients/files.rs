//! What the files of a `file` sink are called, and what the store knows of them: for the sink, and for those who read them
//! again.

pub(crate) mod entry;
pub(crate) mod names;
pub(crate) mod pattern;
pub(crate) mod search;
