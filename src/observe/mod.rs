//! What an operator sees: metrics, logs, status, the admin server.
//!
//! Nothing here calls `topology`: it serves what is published to it.

mod metrics;
mod status;

pub use metrics::{Metrics, PipelineMetrics, StageMetrics};
pub use status::{PipelineState, PipelineStatus, StatusBoard};
