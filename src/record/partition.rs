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
///
/// Its low [`Position::OFFSET_BITS`] bits count as [`crate::record::Record::offset`] does: in front of a record they are
/// its offset. What a source keeps in the bits above is its own business.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(pub i64);

impl Position {
    /// Committed in place of a position, it removes the entry of its partition: nothing will be read of it any more.
    pub const FORGOTTEN: Self = Self(i64::MIN);

    /// How many bits of a position count as offsets do.
    pub const OFFSET_BITS: u32 = 44;

    /// The place in front of a record of a batch that ends at this position.
    #[must_use]
    pub fn in_front_of(self, offset: i64) -> Self {
        const SPAN: i64 = 1 << Position::OFFSET_BITS;
        Self(self.0 - self.0.wrapping_sub(offset).rem_euclid(SPAN))
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_in_front_of_a_record_follows_from_the_position_behind_its_batch() {
        assert_eq!(Position(10).in_front_of(7), Position(7));
        assert_eq!(Position(10).in_front_of(10), Position(10));
        let second_file = 2 << Position::OFFSET_BITS;
        assert_eq!(Position(second_file + 500).in_front_of(0), Position(second_file));
        assert_eq!(Position(second_file + 500).in_front_of(123), Position(second_file + 123));
    }
}
