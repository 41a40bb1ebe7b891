//! Who has moved an offset: goes with it to the broker, in the metadata of the commit.
//!
//! A process that prepared an epoch and crashed asks, once it is back, whether its commit was made. By then another may
//! hold the partition, and have committed further. So each commit carries on what it found: of every store that ever
//! moved the offset the last number, the newest first.

use std::fmt;
use std::sync::Arc;

use crate::delivery::Mark;

/// Begins each text. Other metadata is somebody else's.
const WORD: &str = "weir1";
/// Says that the list is not whole.
const INTERRUPTED: &str = "?";
/// Stores that are remembered. A broker takes 4 KiB of metadata by default, and each is 37 bytes at most.
const MOST: usize = 64;

/// The stores that moved an offset.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Lineage {
    stores: Vec<(Arc<str>, u64)>,
    /// Somebody else moved the offset in between, or there were too many stores: others than these may have, too.
    is_interrupted: bool,
}

impl Lineage {
    /// What is not of our making tells of no store, and of none that it was not there.
    pub(crate) fn read(text: &str) -> Self {
        let mut words = text.split(' ').peekable();
        if words.next() != Some(WORD) {
            return Self { stores: Vec::new(), is_interrupted: true };
        }
        let is_interrupted = words.next_if_eq(&INTERRUPTED).is_some();
        let one = |word: &str| {
            let (store, number) = word.split_once(':')?;
            Some((store.into(), number.parse().ok()?))
        };
        match words.map(one).collect::<Option<_>>() {
            Some(stores) => Self { stores, is_interrupted },
            None => Self { stores: Vec::new(), is_interrupted: true },
        }
    }

    /// As it is once a commit with this mark is made.
    pub(crate) fn with(&self, mark: &Mark) -> Self {
        let others = self.stores.iter().filter(|(store, _)| *store != mark.store).cloned();
        let mut stores: Vec<_> = std::iter::once((Arc::clone(&mark.store), mark.number)).chain(others).collect();
        let is_interrupted = self.is_interrupted || stores.len() > MOST;
        stores.truncate(MOST);
        Self { stores, is_interrupted }
    }

    /// The last number of a store.
    pub(crate) fn number_of(&self, store: &str) -> Option<u64> {
        self.stores.iter().find(|(known, _)| **known == *store).map(|(_, number)| *number)
    }

    /// Whether a store that is not in it has never moved the offset.
    pub(crate) fn is_whole(&self) -> bool {
        !self.is_interrupted
    }
}

impl fmt::Display for Lineage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(WORD)?;
        if self.is_interrupted {
            write!(f, " {INTERRUPTED}")?;
        }
        self.stores.iter().try_for_each(|(store, number)| write!(f, " {store}:{number}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn mark(store: &str, number: u64) -> Mark {
        Mark { store: store.into(), number }
    }

    #[test]
    fn the_last_number_of_each_store_is_carried_on() {
        let lineage =
            Lineage::default().with(&mark("a", 1)).with(&mark("b", 7)).with(&mark("a", 2)).with(&mark("c", 1));
        assert_eq!(lineage.to_string(), "weir1 c:1 a:2 b:7");
        let read = Lineage::read(&lineage.to_string());
        assert_eq!((read.number_of("a"), read.number_of("b"), read.number_of("d")), (Some(2), Some(7), None));
    }

    #[test]
    fn it_is_whole_until_somebody_else_has_moved_the_offset() {
        let first = Lineage::default();
        assert_eq!((first.to_string().as_str(), Lineage::read(&first.to_string()).is_whole()), ("weir1", true));
        for foreign in ["", "by hand", "weir1 a", "weir2 a:1"] {
            let found = Lineage::read(foreign);
            assert!(!found.is_whole(), "{foreign}");
            let later = Lineage::read(&found.with(&mark("b", 7)).to_string());
            assert_eq!((later.is_whole(), later.number_of("b")), (false, Some(7)), "{foreign}");
        }
        assert!(Lineage::read(&first.with(&mark("a", 1)).to_string()).is_whole());
    }

    #[test]
    fn it_fits_whatever_number_of_stores_there_was() {
        let stores = (0..1000).map(|store| mark(&format!("{store:016x}"), u64::MAX));
        let text = stores.fold(Lineage::default(), |lineage, mark| lineage.with(&mark)).to_string();
        assert!(text.len() < 4096, "{}", text.len());
        let read = Lineage::read(&text);
        assert_eq!(read.number_of(&format!("{:016x}", 999)), Some(u64::MAX));
        assert!(!read.is_whole(), "the oldest are not in it any more");
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in ".*", rest in "[a-z0-9: ]*") {
            let _ = Lineage::read(&text);
            let read = Lineage::read(&format!("{WORD} {rest}"));
            prop_assert_eq!(Lineage::read(&read.to_string()), read);
        }
    }
}
