//! What is committed of each file beside its position: which file it is, what proves it, and since when it is gone.
//!
//! A file is a partition: the path under which it was found first, and a number, because one path names many files in its
//! life. A mark is an entry beside the position, under the partition's name with a word before it, such as
//! `id:/var/log/app.log`; no absolute path begins so.

use std::sync::Arc;

use super::identity::{FileId, Place, Proof};
use crate::delivery::Positions;
use crate::record::{Partition, Position};

const ID: &str = "id";
const PROOF: &str = "proof";
const PROVEN: &str = "proven";
const WHOLE: &str = "whole";
const GONE: &str = "gone";

/// What earlier versions counted above these bits of a position: how often the file under a path began anew.
const OFFSET_BITS: u32 = 44;

/// What is known of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Known {
    /// Up to where it was read.
    pub(super) place: Place,
    /// Which file it is; earlier versions knew it by its path only.
    pub(super) id: Option<FileId>,
    /// Of a compressed file: how long it was when the end of what it holds was reached.
    pub(super) whole: Option<u64>,
    /// Since when there is no such file, in milliseconds since the Unix epoch.
    pub(super) gone: Option<i64>,
}

/// The partitions of a file's marks.
#[derive(Debug)]
pub(super) struct Marks {
    id: Arc<Partition>,
    proof: Arc<Partition>,
    proven: Arc<Partition>,
    whole: Arc<Partition>,
    gone: Arc<Partition>,
}

fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

impl Marks {
    pub(super) fn of(file: &Partition) -> Self {
        let mark = |word: &str| Arc::new(Partition { topic: format!("{word}:{}", file.topic).into(), ..file.clone() });
        Self { id: mark(ID), proof: mark(PROOF), proven: mark(PROVEN), whole: mark(WHOLE), gone: mark(GONE) }
    }

    /// What is known of a file, as entries. A mark that does not hold any more is removed.
    pub(super) fn of_known(&self, known: &Known) -> Vec<(Arc<Partition>, Position)> {
        let mut notes = self.of_place(known.place);
        let mut note = |partition: &Arc<Partition>, value: Option<i64>| {
            notes.push((Arc::clone(partition), value.map_or(Position::FORGOTTEN, Position)));
        };
        note(&self.id, known.id.map(|id| id.0));
        note(&self.whole, known.whole.map(number));
        note(&self.gone, known.gone);
        notes
    }

    /// What moves with each batch.
    pub(super) fn of_place(&self, place: Place) -> Vec<(Arc<Partition>, Position)> {
        let Some(proof) = place.proof else { return Vec::new() };
        vec![(Arc::clone(&self.proof), Position(proof.sum)), (Arc::clone(&self.proven), Position(number(proof.at)))]
    }

    /// Removes all that is known of a file.
    pub(super) fn forget(&self, file: &Arc<Partition>) -> Vec<(Arc<Partition>, Position)> {
        [file, &self.id, &self.proof, &self.proven, &self.whole, &self.gone]
            .map(|partition| (Arc::clone(partition), Position::FORGOTTEN))
            .into()
    }
}

/// What is committed of a file.
pub(super) fn known(committed: &Positions, file: &Partition) -> Option<Known> {
    let position = committed.get(file)?;
    let marks = Marks::of(file);
    let mark = |partition: &Arc<Partition>| committed.get(&**partition).map(|position| position.0);
    let id = mark(&marks.id).map(FileId);
    let mut offset = position.0;
    if id.is_none() {
        offset &= (1 << OFFSET_BITS) - 1;
    }
    let bytes = |partition: &Arc<Partition>| mark(partition).and_then(|bytes| u64::try_from(bytes).ok());
    let proof = mark(&marks.proof).zip(bytes(&marks.proven)).map(|(sum, at)| Proof { at, sum });
    Some(Known {
        place: Place { offset: u64::try_from(offset).unwrap_or(0), proof },
        id,
        whole: bytes(&marks.whole),
        gone: mark(&marks.gone),
    })
}

/// All files of a source that are known.
pub(super) fn files(committed: &Positions, source: &str) -> Vec<(Partition, Known)> {
    let is_file = |partition: &&Partition| {
        // There is always a next number.
        &*partition.source == source && partition.topic.starts_with('/') && (0..i32::MAX).contains(&partition.number)
    };
    let files = committed.keys().filter(is_file);
    files.filter_map(|file| Some((file.clone(), known(committed, file)?))).collect()
}

/// The files whose loss of their names is among these positions.
pub(super) fn gone(positions: &Positions) -> impl Iterator<Item = Partition> {
    positions.iter().filter(|(_, position)| **position != Position::FORGOTTEN).filter_map(|(mark, _)| {
        let path = mark.topic.strip_prefix(GONE)?.strip_prefix(':')?;
        Some(Partition { topic: path.into(), ..mark.clone() })
    })
}

/// The files of which these positions leave nothing.
pub(super) fn forgotten(positions: &Positions) -> impl Iterator<Item = Partition> {
    let forgotten = positions.iter().filter(|(_, position)| **position == Position::FORGOTTEN);
    forgotten.filter(|(file, _)| file.topic.starts_with('/')).map(|(file, _)| file.clone())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::delivery::checkpoint;

    fn file(number: i32) -> Partition {
        Partition { source: "in".into(), topic: "/var/log/app.log".into(), number }
    }

    fn stored(positions: &Positions) -> Positions {
        let entries: Vec<_> = checkpoint::encode(positions).into_iter().filter_map(|(k, v)| Some((k, v?))).collect();
        checkpoint::decode("in", &entries).unwrap()
    }

    #[test]
    fn a_position_that_an_earlier_version_stored_is_one_of_the_path() {
        let positions = Positions::from([(file(0), Position((3 << OFFSET_BITS) | 0x04d2))]);
        let known = known(&stored(&positions), &file(0)).unwrap();
        assert_eq!(known, Known { place: Place { offset: 1234, proof: None }, ..Known::default() });
    }

    proptest! {
        #[test]
        fn what_is_known_of_a_file_comes_back_from_the_store(
            offset in 0..i64::MAX, id in 0..i64::MAX, sum in 0..i64::MAX, at in 0..i64::MAX,
            whole in proptest::option::of(0..i64::MAX), gone in proptest::option::of(0..i64::MAX),
        ) {
            let known = Known {
                place: Place { offset: offset.unsigned_abs(), proof: Some(Proof { at: at.unsigned_abs(), sum }) },
                id: Some(FileId(id)),
                whole: whole.map(i64::unsigned_abs),
                gone,
            };
            let mut positions = Positions::from([(file(2), Position(offset))]);
            positions.extend(Marks::of(&file(2)).of_known(&known).into_iter().map(|(p, at)| (Partition::clone(&p), at)));
            let stored = stored(&positions);
            prop_assert_eq!(files(&stored, "in"), vec![(file(2), known)]);
            prop_assert_eq!(files(&stored, "other"), vec![]);
            prop_assert_eq!(super::gone(&positions).collect::<Vec<_>>(), gone.map(|_| file(2)).into_iter().collect::<Vec<_>>());
            prop_assert_eq!(super::forgotten(&positions).count(), 0);

            let forgotten = Marks::of(&file(2)).forget(&Arc::new(file(2)));
            let forgotten: Positions = forgotten.into_iter().map(|(p, at)| (Partition::clone(&p), at)).collect();
            prop_assert_eq!(forgotten.len(), 6);
            prop_assert_eq!(super::forgotten(&forgotten).collect::<Vec<_>>(), vec![file(2)]);
            prop_assert_eq!(super::gone(&forgotten).count(), 0);
            prop_assert!(checkpoint::encode(&forgotten).iter().all(|(_, value)| value.is_none()));
        }

        #[test]
        fn whatever_is_stored_is_read_without_a_panic(values in proptest::collection::vec(any::<i64>(), 6)) {
            let marks = Marks::of(&file(0));
            let partitions = [&Arc::new(file(0)), &marks.id, &marks.proof, &marks.proven, &marks.whole, &marks.gone];
            let positions = partitions.iter().zip(values).map(|(p, at)| (Partition::clone(p), Position(at))).collect();
            let _ = files(&positions, "in");
        }
    }
}
