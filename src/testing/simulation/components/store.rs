//! The store of a process. What it was asked for goes on when nobody waits for it any more, as on a thread of its own: who
//! asks and is not polled for a while holds up nobody else.

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

    fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> BoxFuture<'_, T> {
        async move {
            let working = self.place.runtime.spawn(work);
            working.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
        }
        .boxed()
    }
}

impl Store for SimulatedStore {
    fn load(&self, scope: &str) -> BoxFuture<'_, Result<Vec<(String, Vec<u8>)>, StoreError>> {
        let (place, scope, turns) = (self.place.clone(), scope.to_owned(), Arc::clone(&self.one_at_a_time));
        self.run(async move {
            let _turn = turns.lock().await;
            place.step(Step::Load, "").await.map_err(StoreError)?;
            Ok(place.world.load(place.instance, &scope))
        })
    }

    fn commit(&self, scope: &str, entries: Vec<(String, Option<Vec<u8>>)>) -> BoxFuture<'_, Result<(), StoreError>> {
        let (place, scope, turns) = (self.place.clone(), scope.to_owned(), Arc::clone(&self.one_at_a_time));
        self.run(async move {
            let _turn = turns.lock().await;
            place.step(Step::StoreBefore, "").await.map_err(StoreError)?;
            place.world.store(place.instance, &scope, entries);
            place.step(Step::StoreAfter, "").await.map_err(StoreError)
        })
    }
}
