//! The data: records, the batches that carry them, and the lazy JSON body.

mod batch;
pub mod budget;
mod fingerprint;
mod headers;
pub mod json;
mod partition;
mod rejected;

pub(crate) use batch::index_u32;
pub use batch::{Batch, BatchBuilder, BodyFormat, ByteRange, Draft, Field, FieldRange, Record, Timestamp};
pub use fingerprint::fingerprint;
pub use headers::{Header, Headers, HeadersBuilder};
pub use partition::{Partition, Position};
pub use rejected::Rejected;
