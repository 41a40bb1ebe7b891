//! What tests are made of: the deterministic simulation of the real topology.

pub mod simulation;
