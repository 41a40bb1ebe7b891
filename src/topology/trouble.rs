//! What stages are waiting for, while they wait: the reason that `/ready/PIPELINE` gives.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The stages of a pipeline that cannot go on for now, and why.
#[derive(Debug, Clone, Default)]
pub(super) struct Troubles(Arc<Mutex<BTreeMap<Arc<str>, String>>>);

impl Troubles {
    /// A stage cannot go on, and tries again.
    pub(super) fn set(&self, stage: &Arc<str>, reason: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(Arc::clone(stage), reason.to_owned());
    }

    /// The stage goes on.
    pub(super) fn clear(&self, stage: &Arc<str>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(stage);
    }

    /// All stages go on: a new run begins.
    pub(super) fn clear_all(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// One stage in trouble, if there is any.
    pub(super) fn first(&self) -> Option<(Arc<str>, String)> {
        let troubles = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        troubles.first_key_value().map(|(stage, reason)| (Arc::clone(stage), reason.clone()))
    }
}
