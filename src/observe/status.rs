//! The status of every pipeline, as `topology` publishes it and the admin server reads it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

/// What a pipeline is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PipelineState {
    /// Not running yet: connecting, or fencing an earlier process.
    Starting,
    /// Records move, or none wait.
    Running,
    /// Records wait and no epoch has committed for longer than it should take.
    Stuck,
    /// It failed and waits before it starts again.
    BackingOff,
    /// A person must act; it is tried again now and then.
    Failed,
    /// Every finite source was read to its end, and all of it is committed.
    Finished,
    /// It was asked to stop, and did.
    Stopped,
}

/// The status of one pipeline.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PipelineStatus {
    /// The pipeline's name.
    pub pipeline: Arc<str>,
    /// What it is doing.
    pub state: PipelineState,
    /// Unix time in seconds since which it is in this state.
    pub since: f64,
    /// The stage to look at, if there is one.
    pub stage: Option<String>,
    /// Why, for a person.
    pub reason: Option<String>,
    /// Unix time in seconds of the last commit.
    pub last_commit: Option<f64>,
    /// The number of the last committed epoch of this process.
    pub epoch: u64,
    /// How often it went back to the last commit.
    pub restarts: u64,
}

/// What is published of all pipelines of the process.
#[derive(Debug, Clone, Default)]
pub struct StatusBoard(Arc<Mutex<BTreeMap<Arc<str>, PipelineStatus>>>);

impl StatusBoard {
    /// Publishes the status of a pipeline.
    pub fn publish(&self, status: PipelineStatus) {
        let mut board = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        board.insert(Arc::clone(&status.pipeline), status);
    }

    /// The status of one pipeline.
    #[must_use]
    pub fn get(&self, pipeline: &str) -> Option<PipelineStatus> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(pipeline).cloned()
    }

    /// The status of all pipelines, by name.
    #[must_use]
    pub fn all(&self) -> Vec<PipelineStatus> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}
