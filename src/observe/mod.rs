//! What an operator sees: metrics, logs, status, the admin server.
//!
//! Nothing here calls `topology`: it serves what is published to it.

mod admin;
pub mod logs;
mod metrics;
mod status;
mod throttle;

pub use admin::{Admin, AdminError};
pub use metrics::{BufferMetrics, Metrics, PipelineMetrics, Share, StageMetrics};
pub use status::{Phase, PipelineState, PipelineStatus, StatusBoard};
pub use throttle::Throttle;
