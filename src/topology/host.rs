//! What the process gives to all of its pipelines.

use std::path::Path;
use std::sync::Arc;

use crate::observe::{Metrics, StatusBoard};
use crate::runtime::Runtime;
use crate::state::Store;

/// What the process gives to all of its pipelines.
#[derive(Debug, Clone)]
pub struct Host {
    /// Tasks, time, randomness.
    pub runtime: Runtime,
    /// Where metrics are counted.
    pub metrics: Metrics,
    /// Where status is published.
    pub status: StatusBoard,
    /// Where positions are kept.
    pub store: Arc<dyn Store>,
    /// Who this process is, over its restarts.
    pub instance: Arc<str>,
    /// Where the process keeps what must survive it.
    pub data_dir: Arc<Path>,
    /// The memory budget of a pipeline that names none, in bytes.
    pub memory: u64,
}
