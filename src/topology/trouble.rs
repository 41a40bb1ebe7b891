//! What stages are waiting for, while they wait: the reason that `/ready/PIPELINE` gives.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::component::Waiting;

/// The stages of a pipeline that cannot go on for now, and why.
#[derive(Debug, Clone, Default)]
pub(super) struct Troubles(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    /// Of sinks.
    reasons: BTreeMap<Arc<str>, String>,
    /// What sources say by themselves.
    sources: BTreeMap<Arc<str>, Waiting>,
}

impl Troubles {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A stage cannot go on, and tries again.
    pub(super) fn set(&self, stage: &Arc<str>, reason: &str) {
        self.known().reasons.insert(Arc::clone(stage), reason.to_owned());
    }

    /// The stage goes on.
    pub(super) fn clear(&self, stage: &Arc<str>) {
        self.known().reasons.remove(stage);
    }

    /// Where a source says what it waits for, in this run.
    pub(super) fn waiting(&self, source: &Arc<str>) -> Waiting {
        let waiting = Waiting::default();
        self.known().sources.insert(Arc::clone(source), waiting.clone());
        waiting
    }

    /// All stages go on: a new run begins.
    pub(super) fn clear_all(&self) {
        *self.known() = Known::default();
    }

    /// One stage in trouble, if there is any.
    pub(super) fn first(&self) -> Option<(Arc<str>, String)> {
        let known = self.known();
        let first = known.reasons.first_key_value().map(|(stage, reason)| (Arc::clone(stage), reason.clone()));
        drop(known);
        first.or_else(|| self.first_source())
    }

    /// One source in trouble, if there is any.
    pub(super) fn first_source(&self) -> Option<(Arc<str>, String)> {
        self.known().sources.iter().find_map(|(source, waiting)| Some((Arc::clone(source), waiting.reason()?)))
    }
}
