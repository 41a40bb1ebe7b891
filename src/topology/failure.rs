//! Why a stage stopped, and with it the run.

use std::any::Any;
use std::panic::AssertUnwindSafe;

use futures::FutureExt;

use super::channel::Closed;
use super::suspicion::Suspect;

/// Why a stage ended its run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// A neighbour went first, whose failure is the one to report.
    Closed,
    /// The pipeline goes back to the last commit and tries again. No record is to blame.
    Rewind(String),
    /// It took too long. What is under way next time is less.
    Stalled(String),
    /// A component failed at work on records: if that returns, one of them is the cause.
    AtWork(AtWork),
    /// Something panicked that was not at work on a record: a bug. Tried again like a rewind.
    Panicked(String),
    /// A person must act.
    Fatal(String),
}

/// A failure at work on records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AtWork {
    /// What went wrong, for a person.
    pub(super) text: String,
    pub(super) panicked: bool,
    /// The record, if it was the only one under way.
    pub(super) alone: Option<Suspect>,
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
            Self::Rewind(_) | Self::AtWork(AtWork { panicked: false, .. }) => "error",
            Self::Stalled(_) => "stalled",
            Self::Panicked(_) | Self::AtWork(_) => "panic",
            Self::Fatal(_) => "fatal",
        }
    }

    /// What went wrong, for a person.
    pub(super) fn text(&self) -> &str {
        match self {
            Self::Closed => "a neighbouring stage stopped",
            Self::AtWork(AtWork { text, .. })
            | Self::Rewind(text)
            | Self::Stalled(text)
            | Self::Panicked(text)
            | Self::Fatal(text) => text,
        }
    }
}

/// Runs a component's work on records; what it panics of is put down to them.
pub(super) fn at_work<T>(alone: Option<Suspect>, work: impl FnOnce() -> T) -> Result<T, Failure> {
    std::panic::catch_unwind(AssertUnwindSafe(work))
        .map_err(|panic| Failure::AtWork(AtWork { text: panic_text(&*panic), panicked: true, alone }))
}

/// Like [`at_work`], for work that waits.
pub(super) async fn waits_at_work<T>(alone: Option<&Suspect>, work: impl Future<Output = T>) -> Result<T, Failure> {
    let panicked = |text| Failure::AtWork(AtWork { text, panicked: true, alone: alone.cloned() });
    caught(work).await.map_err(panicked)
}

/// Waits for work that may panic; a panic becomes its text.
pub(super) async fn caught<T>(work: impl Future<Output = T>) -> Result<T, String> {
    AssertUnwindSafe(work).catch_unwind().await.map_err(|panic| panic_text(&*panic))
}

/// What is said of a panic: its text may quote a record, and this goes to the log, to `/ready` and to dead letters.
pub(super) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    tracing::debug!("a panic was caught: {}", text.unwrap_or("without a word"));
    "it panicked; the log names the place".to_owned()
}
