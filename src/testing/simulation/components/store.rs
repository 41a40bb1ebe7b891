//! The store of a process. A commit goes on when nobody waits for it any more, as one on a thread of its own does.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::Mutex;

use super::super::faults::Step;
use super::super::place::Place;
use crate::state::{Store, StoreError};

#[derive(Debug)]
pub(in super::super) struct SimulatedStore {
    place: Place,
    one_at_a_time: Arc<Mutex<()>>,
}

impl SimulatedStore {
    pub(in super::super) fn new(place: Place) -> Self {
        Self { place, one_at_a_time: Arc::default() }
    }
}

impl Store for SimulatedStore {
    fn load(&self, scope: &str) -> BoxFuture<'_, Result<Vec<(String, Vec<u8>)>, StoreError>> {
        let scope = scope.to_owned();
        async move {
            let _turn = self.one_at_a_time.lock().await;
            self.place.step(Step::Load, "").await.map_err(StoreError)?;
            Ok(self.place.world.load(self.place.instance, &scope))
        }
        .boxed()
    }

    fn commit(&self, scope: &str, entries: Vec<(String, Option<Vec<u8>>)>) -> BoxFuture<'_, Result<(), StoreError>> {
        let (place, scope, turns) = (self.place.clone(), scope.to_owned(), Arc::clone(&self.one_at_a_time));
        let work = async move {
            let _turn = turns.lock().await;
            place.step(Step::StoreBefore, "").await.map_err(StoreError)?;
            place.world.store(place.instance, &scope, entries);
            place.step(Step::StoreAfter, "").await.map_err(StoreError)
        };
        async move {
            let working = self.place.runtime.spawn(work);
            working.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
        }
        .boxed()
    }
}
