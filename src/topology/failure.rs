//! Why a stage stopped, and with it the run.

use super::channel::Closed;

/// Why a stage ended its run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// A neighbour went first, whose failure is the one to report.
    Closed,
    /// The pipeline goes back to the last commit and tries again.
    Rewind(String),
    /// It panicked: a bug, or a record that it cannot stand. Tried again like a rewind.
    Panicked(String),
    /// A person must act.
    Fatal(String),
}

impl From<Closed> for Failure {
    fn from(Closed: Closed) -> Self {
        Self::Closed
    }
}

impl Failure {
    /// A word out of a small set, for metrics.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Rewind(_) => "error",
            Self::Panicked(_) => "panic",
            Self::Fatal(_) => "fatal",
        }
    }

    /// What went wrong, for a person.
    pub(super) fn text(&self) -> &str {
        match self {
            Self::Closed => "a neighbouring stage stopped",
            Self::Rewind(text) | Self::Panicked(text) | Self::Fatal(text) => text,
        }
    }
}
