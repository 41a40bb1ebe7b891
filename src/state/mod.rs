//! What must survive the process.

mod store;

pub use store::{Store, StoreError};
