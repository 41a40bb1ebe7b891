//! What must survive the process.

pub mod buffer;
mod disk;
mod instance;
mod memory;
mod store;

pub use disk::DiskStore;
pub use instance::{DataDir, instance_id};
pub use memory::MemoryStore;
pub use store::{Entries, Store, StoreError};
