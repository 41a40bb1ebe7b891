//! A file of the world that takes part in the local commit, as the file of a file sink does: the store holds its length,
//! and what is behind that is cut off before each run.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::future::{self, BoxFuture};

use super::super::disk::FileId;
use super::super::outcome::Arrival;
use super::super::place::Place;
use crate::delivery::{Changes, Participant};

/// The key under which the store holds its length.
pub(in super::super) const LENGTH: &str = "length";

#[derive(Debug)]
pub(super) struct LocalFile {
    place: Place,
    id: FileId,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    run: u64,
    /// The length at each barrier that the commit has not asked for.
    barriers: VecDeque<usize>,
}

impl LocalFile {
    pub(super) fn new(place: &Place, stage: &Arc<str>) -> Self {
        Self { place: place.clone(), id: (place.instance, Arc::clone(stage)), state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The run that was begun last.
    pub(super) fn run(&self) -> u64 {
        self.state().run
    }

    /// Writes, unless another run has begun.
    pub(super) fn write(&self, run: u64, arrivals: Vec<Arrival>) -> Result<(), String> {
        if self.run() != run {
            return Err("another run writes the file".to_owned());
        }
        self.place.world.disk.write(&self.id, arrivals);
        Ok(())
    }

    /// Makes durable what was written; returns the length.
    pub(super) fn sync(&self) -> usize {
        self.place.world.disk.sync(&self.id)
    }

    /// A barrier stands behind this length.
    pub(super) fn barrier(&self, length: usize) {
        self.state().barriers.push_back(length);
    }
}

impl Participant for LocalFile {
    fn name(&self) -> &str {
        &self.id.1
    }

    fn changes(&self) -> Changes {
        let length = self.state().barriers.pop_front();
        length.map(|length| (LENGTH.to_owned(), Some((length as u64).to_be_bytes().to_vec()))).into_iter().collect()
    }

    fn committed(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(future::ready(Ok(())))
    }

    fn recover(&self, entries: BTreeMap<String, Vec<u8>>) -> BoxFuture<'_, Result<(), String>> {
        let length = length(&entries);
        if let Err(breach) = self.place.world.disk.cut(&self.id, length) {
            self.place.world.breach(breach);
        }
        let mut state = self.state();
        *state = State { run: state.run + 1, barriers: VecDeque::new() };
        Box::pin(future::ready(Ok(())))
    }
}

/// How much of a file counts, by the entries of its stage.
pub(in super::super) fn length(entries: &BTreeMap<String, Vec<u8>>) -> usize {
    let bytes = entries.get(LENGTH).and_then(|bytes| <[u8; 8]>::try_from(bytes.as_slice()).ok());
    bytes.map_or(0, |bytes| usize::try_from(u64::from_be_bytes(bytes)).unwrap_or(usize::MAX))
}
