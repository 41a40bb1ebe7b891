//! Which files have come to their ends for good, because that is committed: no rewind asks for them again, so what is
//! held of them can be let go. An open file keeps its place on the disk after it was removed.

use std::sync::{Mutex, PoisonError};

use futures::FutureExt;
use futures::future::{self, BoxFuture};

use super::marks;
use crate::delivery::{CommitPositions, Positions};
use crate::record::Partition;

/// What was committed since the source looked last.
#[derive(Debug, Default)]
pub(super) struct Ended(Mutex<Since>);

/// Files by what was committed of them.
#[derive(Debug, Default)]
pub(super) struct Since {
    /// They have lost their names, and were read to their ends.
    pub(super) gone: Vec<Partition>,
    /// Nothing is known of them any more.
    pub(super) forgotten: Vec<Partition>,
}

impl Ended {
    /// What was committed since this was asked last.
    pub(super) fn take(&self) -> Since {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl CommitPositions for Ended {
    /// They are in the store already.
    fn commit(&self, _: u64, _: Positions) -> BoxFuture<'_, Result<(), String>> {
        future::ready(Ok(())).boxed()
    }

    fn committed(&self, positions: &Positions) -> BoxFuture<'_, ()> {
        let mut since = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        since.gone.extend(marks::gone(positions));
        since.forgotten.extend(marks::forgotten(positions));
        future::ready(()).boxed()
    }
}
