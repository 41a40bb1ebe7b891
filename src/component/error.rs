//! A component's error is an instruction: what to do, not where it came from.

/// What a source asks for when it cannot read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// Try again from the last commit, after a back-off.
    #[error("{0}")]
    Retry(String),
    /// A person must act: trying again would give the same.
    #[error("{0}")]
    Fatal(String),
}

/// What a sink asks for when it cannot write.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SinkError {
    /// Write the batch again after a back-off; nothing of it was written, or writing it twice does no harm.
    #[error("{0}")]
    Retry(String),
    /// Each record of the batch goes to the dead letter.
    #[error("{0}")]
    Reject(String),
    /// The run cannot go on: what the sink holds is unknown. The pipeline goes back to the last commit. If a single record
    /// brings this about again and again, that record is refused; where no record can be the cause, say `Outage`.
    #[error("{0}")]
    Rewind(String),
    /// The run cannot go on, and no record is the cause: the other side went away, or the disk failed. The pipeline goes
    /// back to the last commit, and nothing is ever refused for it.
    #[error("{0}")]
    Outage(String),
    /// A person must act: trying again would give the same.
    #[error("{0}")]
    Fatal(String),
}

/// A component that cannot be built from a valid config, by something outside it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BuildError(pub String);
