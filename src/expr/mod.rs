//! VRL over lazy records: programs are compiled and type-checked before anything starts.

mod schema;

pub use schema::Schema;
