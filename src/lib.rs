//! Weir: streaming data pipelines as one small daemon.
//!
//! The modules are listed in the order in which a record, and the file that declares its way,
//! meets them. `ARCHITECTURE.md` tells the life of a record; `tests/tidy.rs` holds the layers.

pub mod cli;
pub mod config;
pub mod plan;
pub mod topology;

pub mod component;
pub mod sinks;
pub mod sources;
pub mod transforms;

pub mod clients;
pub mod codecs;
pub mod expr;

pub mod delivery;
pub mod observe;
pub mod state;

pub mod clock;
pub mod record;
pub mod runtime;

pub mod testing;
