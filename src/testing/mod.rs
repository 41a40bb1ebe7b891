//! What tests are made of: a harness for one component, the deterministic simulation of the real topology.

pub mod harness;
pub mod simulation;
