//! What tests are made of: a harness for one component, the simulation.
