//! The order of the transforms: each behind all that it reads.

use std::collections::BTreeSet;

/// The transforms in an order in which each stands behind what it reads, as near to the file's order as can be; and the
/// circles that make this impossible for some, each as the stages that a record would pass, in their order.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Order {
    pub(super) order: Vec<usize>,
    pub(super) circles: Vec<Vec<usize>>,
}

/// Orders transforms, given for each the transforms that it reads.
pub(super) fn order(reads: &[Vec<usize>]) -> Order {
    let mut readers = vec![Vec::new(); reads.len()];
    let mut waits_for = vec![0_usize; reads.len()];
    for (reader, upstream) in reads.iter().enumerate() {
        for &stage in upstream {
            readers[stage].push(reader);
            waits_for[reader] += 1;
        }
    }
    let mut ready: BTreeSet<usize> = (0..reads.len()).filter(|stage| waits_for[*stage] == 0).collect();
    let mut order = Vec::with_capacity(reads.len());
    while let Some(stage) = ready.pop_first() {
        order.push(stage);
        for &reader in &readers[stage] {
            waits_for[reader] -= 1;
            if waits_for[reader] == 0 {
                ready.insert(reader);
            }
        }
    }
    let stuck: BTreeSet<usize> = (0..reads.len()).filter(|stage| waits_for[*stage] > 0).collect();
    let circles = circles(reads, &stuck);
    // Stages behind a circle are compiled too, so that their own mistakes are told.
    order.extend(stuck);
    Order { order, circles }
}

/// One circle through each stage that is in one, each circle once.
fn circles(reads: &[Vec<usize>], stuck: &BTreeSet<usize>) -> Vec<Vec<usize>> {
    let mut seen = BTreeSet::new();
    let mut circles = Vec::new();
    for &start in stuck {
        let mut walk = Vec::new();
        let mut at = start;
        // Every stuck stage reads a stuck one, so that the walk goes on until it meets itself, or an earlier walk.
        while seen.insert(at) {
            walk.push(at);
            match reads[at].iter().copied().find(|stage| stuck.contains(stage)) {
                Some(upstream) => at = upstream,
                None => break,
            }
        }
        if let Some(begin) = walk.iter().position(|stage| *stage == at).filter(|_| !walk.is_empty()) {
            let is_circle = reads[walk[walk.len() - 1]].contains(&at);
            if is_circle {
                let mut circle = walk.split_off(begin);
                circle.reverse();
                let first = circle.iter().enumerate().min_by_key(|(_, stage)| **stage).map_or(0, |(first, _)| first);
                circle.rotate_left(first);
                circles.push(circle);
            }
        }
    }
    circles
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Order, order};

    #[test]
    fn the_order_of_the_file_is_kept_where_it_can_be() {
        assert_eq!(order(&[vec![], vec![0], vec![1]]), Order { order: vec![0, 1, 2], circles: vec![] });
        assert_eq!(order(&[vec![2], vec![], vec![]]), Order { order: vec![1, 2, 0], circles: vec![] });
    }

    #[test]
    fn a_circle_is_told_in_the_order_of_its_records() {
        assert_eq!(order(&[vec![1], vec![2], vec![0]]).circles, [vec![0, 2, 1]]);
        assert_eq!(order(&[vec![0]]).circles, [vec![0]]);
        assert_eq!(order(&[vec![1], vec![0], vec![3], vec![2], vec![3]]).circles, [vec![0, 1], vec![2, 3]]);
    }

    proptest! {
        #[test]
        fn every_stage_stands_once_and_behind_what_it_reads(
            reads in (1_usize..12).prop_flat_map(|stages| {
                proptest::collection::vec(proptest::collection::vec(0..stages, 0..3), stages)
            })
        ) {
            let Order { order, circles } = order(&reads);
            let mut sorted = order.clone();
            sorted.sort_unstable();
            prop_assert_eq!(sorted, (0..reads.len()).collect::<Vec<_>>());
            let place = |stage: usize| order.iter().position(|other| *other == stage).unwrap();
            let sound = (0..reads.len()).all(|stage| reads[stage].iter().all(|read| place(*read) < place(stage)));
            prop_assert_eq!(sound, circles.is_empty());
            for circle in circles {
                for (at, stage) in circle.iter().enumerate() {
                    prop_assert!(reads[circle[(at + 1) % circle.len()]].contains(stage));
                }
            }
        }
    }
}
