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
/// Stores that are remembered. A broker takes 4 KiB of metadata by default, and each is 37 bytes at most.
const MOST: usize = 64;

/// The stores that moved an offset.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Lineage(Vec<(Arc<str>, u64)>);

impl Lineage {
    /// What is not of our making is no lineage.
    pub(crate) fn read(text: &str) -> Self {
        let mut words = text.split(' ');
        if words.next() != Some(WORD) {
            return Self::default();
        }
        let one = |word: &str| {
            let (store, number) = word.split_once(':')?;
            Some((store.into(), number.parse().ok()?))
        };
        Self(words.map(one).collect::<Option<_>>().unwrap_or_default())
    }

    /// As it is once a commit with this mark is made.
    pub(crate) fn with(&self, mark: &Mark) -> Self {
        let others = self.0.iter().filter(|(store, _)| *store != mark.store).cloned();
        Self(std::iter::once((Arc::clone(&mark.store), mark.number)).chain(others).take(MOST).collect())
    }

    /// The last number of a store.
    pub(crate) fn number_of(&self, store: &str) -> Option<u64> {
        self.0.iter().find(|(known, _)| **known == *store).map(|(_, number)| *number)
    }
}

impl fmt::Display for Lineage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(WORD)?;
        self.0.iter().try_for_each(|(store, number)| write!(f, " {store}:{number}"))
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
    fn it_fits_whatever_number_of_stores_there_was() {
        let stores = (0..1000).map(|store| mark(&format!("{store:016x}"), u64::MAX));
        let text = stores.fold(Lineage::default(), |lineage, mark| lineage.with(&mark)).to_string();
        assert!(text.len() < 4096, "{}", text.len());
        assert_eq!(Lineage::read(&text).number_of(&format!("{:016x}", 999)), Some(u64::MAX));
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in ".*", rest in "[a-z0-9: ]*") {
            let _ = Lineage::read(&text);
            let _ = Lineage::read(&format!("{WORD} {rest}"));
        }
    }
}
