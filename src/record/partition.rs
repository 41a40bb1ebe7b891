//! Where records come from: a partition of a source, and a position in it.

use std::fmt;
use std::sync::Arc;

/// One ordered sequence of records of a source: a Kafka partition, a file, a generator.
///
/// Order is kept within a partition, and only there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Partition {
    /// The name of the source in the pipeline file.
    pub source: Arc<str>,
    /// The Kafka topic, the path of the file, or the name of the source where it has neither.
    pub topic: Arc<str>,
    /// The number of the partition within the topic; 0 where there is only one.
    pub number: i32,
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.number)
    }
}

/// A place between two records of a partition: everything before it has been read.
///
/// The unit is the source's own: the next offset for Kafka, the byte after the last newline for a
/// file, the number of records for a generator. Positions of one partition are ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(pub i64);

impl Position {
    /// Committed in place of a position, it removes the entry of its partition: nothing will be read of it any more.
    pub const FORGOTTEN: Self = Self(i64::MIN);
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
