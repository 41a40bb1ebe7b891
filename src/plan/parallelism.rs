//! How many lanes a pipeline has. Results never depend on it: a lane is a parallel copy of the chain of transforms, and
//! all records of one partition pass through the same lane in their order.

/// The most lanes that a file may ask for.
pub const MOST_LANES: usize = 64;

/// The most lanes that a pipeline gets without asking.
const MOST_BY_DEFAULT: usize = 8;

/// What the file says; else one lane for each processor if there are partitions to spread over them, else one.
pub(super) fn lanes(stated: Option<usize>, any_source_is_partitioned: bool, cores: usize) -> usize {
    match stated {
        Some(lanes) => lanes,
        None if any_source_is_partitioned => cores.clamp(1, MOST_BY_DEFAULT),
        None => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::lanes;

    #[test]
    fn what_the_file_says_wins() {
        assert_eq!(lanes(Some(3), true, 16), 3);
        assert_eq!(lanes(Some(3), false, 1), 3);
    }

    #[test]
    fn only_partitions_can_be_spread() {
        assert_eq!(lanes(None, false, 16), 1);
        assert_eq!(lanes(None, true, 4), 4);
        assert_eq!(lanes(None, true, 128), 8);
        assert_eq!(lanes(None, true, 0), 1);
    }
}
