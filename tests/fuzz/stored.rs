//! What the store holds: it lies on a disk, so it may come back as anything.

use std::sync::Arc;

use super::lines::wait_for;
use futures::future::BoxFuture;
use weir::delivery::{
    CommitPositions, FenceError, LocalTransaction, Mark, Participants, Positions, Transaction, checkpoint,
};
use weir::record::Position;
use weir::runtime::Runtime;
use weir::state::{MemoryStore, Store};

pub(crate) const TOKENS: &[&str] = &[
    "\u{1f}",
    "\n",
    "=",
    "in",
    "id:",
    "proof:",
    "proven:",
    "whole:",
    "gone:",
    "FILE",
    "\0\0\0\0\0\0\0\u{1}",
    "\0\0\0\0\0\0\0\0",
    "\u{7f}",
];

/// Each line is an entry, `key=value`; a value is eight bytes where it is right.
pub(crate) fn check_entries(input: &[u8]) {
    let entries: Vec<(String, Vec<u8>)> = input
        .split(|byte| *byte == b'\n')
        .filter_map(|line| {
            let at = line.iter().position(|byte| *byte == b'=')?;
            Some((String::from_utf8_lossy(&line[..at]).into_owned(), line[at + 1..].to_vec()))
        })
        .collect();
    if let Ok(positions) = checkpoint::decode("in", &entries) {
        let stored: Vec<_> =
            checkpoint::encode(&positions).into_iter().filter_map(|(key, value)| Some((key, value?))).collect();
        let kept: Positions = positions.into_iter().filter(|(_, at)| *at != Position::FORGOTTEN).collect();
        assert_eq!(checkpoint::decode("in", &stored), Ok(kept));
    }
    for participant in ["", "in", "out"] {
        for key in checkpoint::participant_entries(participant, &entries).keys() {
            let whole = checkpoint::participant_key(participant, key);
            assert!(entries.iter().any(|(entry, _)| *entry == whole), "{whole}");
        }
    }
}

/// A source that decided nothing, or everything.
#[derive(Debug)]
struct Judge(bool);

impl CommitPositions for Judge {
    fn commit(&self, _: u64, _: Positions) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }

    fn is_decided(&self, _: Mark, _: Positions) -> BoxFuture<'_, Result<bool, FenceError>> {
        Box::pin(async { Ok(self.0) })
    }
}

/// The bytes are an epoch that was prepared: whether it is one or not, the start says so.
pub(crate) fn check_prepared(input: &[u8]) {
    for decided in [false, true] {
        let store = MemoryStore::new();
        let scope = checkpoint::scope("p");
        let key = checkpoint::participant_key("", "prepared");
        wait_for(store.commit(&scope, vec![(key.clone(), Some(input.to_vec()))])).expect("it is in memory");
        let judge = Arc::new(Judge(decided));
        let transaction =
            LocalTransaction::new("p", Arc::new(store.clone()), Arc::<Participants>::default(), Runtime::system())
                .judged_by("in".into(), judge);
        if wait_for(transaction.fence()).is_ok() {
            assert_eq!(store.get(&scope, &key), None, "what was prepared is settled");
        } else {
            assert!(store.get(&scope, &key).is_some(), "what cannot be settled is kept");
        }
    }
}
