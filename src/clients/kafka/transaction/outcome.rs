//! What became of a commit that failed: the broker is asked, under the identity taken anew; unless another process has it.

use std::sync::{Arc, PoisonError};

use super::super::consumer::GroupOffsets;
use super::super::errors::FENCED_AGAIN;
use super::super::producer::Live;
use super::super::raw::TransactionError;
use super::{CALL, HEARTBEAT, Inner, PAUSE, Sent, init, is_fencing};
use crate::clock::Instant;
use crate::delivery::Committed;

impl Inner {
    /// Ends a commit that failed: by an abort if the producer survives it, else by asking the broker what happened.
    pub(super) fn settle(&self, live: &Live, error: &TransactionError, sent: &Sent) -> Committed {
        let why = format!("the commit failed: {error}");
        if !error.fatal && live.raw().abort_transaction(CALL).is_ok() {
            self.note_opened(None);
            return Committed::Aborted(why);
        }
        live.set_failed();
        let fatal = live.raw().client().fatal_error();
        let fencing = is_fencing(error.code) || fatal.is_some_and(|(code, _)| is_fencing(code));
        if fencing && let Some(why) = self.is_replaced() {
            return Committed::Fenced(why);
        }
        tracing::warn!(pipeline = %self.producer.settings().pipeline, "{why}; asking the broker what became of it");
        match self.recover(sent) {
            Some(true) => Committed::Yes,
            Some(false) => Committed::Aborted(why),
            None => Committed::Aborted(format!("{why}; it is not known what became of it, because we are stopping")),
        }
    }

    /// Takes the identity anew, so that nothing of the old producer is in flight any more, and reads what the group has
    /// committed. `None` if we are stopping.
    fn recover(&self, sent: &Sent) -> Option<bool> {
        let complain = |error: String| {
            if self.producer.may_say(&error) {
                tracing::warn!(pipeline = %self.producer.settings().pipeline, "{error}");
            }
            std::thread::sleep(PAUSE);
        };
        let mut live = None;
        while !self.is_closing() {
            let candidate = match live.take() {
                Some(live) => live,
                None => match self.id().and_then(|id| self.producer.replace(Some(&id))) {
                    Ok(live) => live,
                    Err(error) => {
                        complain(error);
                        continue;
                    }
                },
            };
            match init(&candidate) {
                Ok(()) => break,
                Err(error) => complain(error),
            }
            if !candidate.has_failed() {
                live = Some(candidate);
            }
        }
        let mut happened = !sent.is_empty();
        for (group, GroupOffsets { offsets, .. }) in sent {
            let partitions: Vec<_> = offsets.iter().map(|(partition, _)| Arc::clone(partition)).collect();
            let committed = loop {
                if self.is_closing() {
                    return None;
                }
                if group.is_given_up() {
                    // Only the next run makes a new client, which reads what the group has committed.
                    return Some(false);
                }
                match group.reload_committed(&partitions) {
                    Ok(committed) => break committed,
                    Err(error) => complain(format!("cannot read the group's offsets: {error}")),
                }
            };
            happened &= offsets.iter().all(|(partition, offset)| committed.get(partition) == Some(offset));
        }
        Some(happened)
    }

    /// Whether it must not take its identity back: the group has told that another process is there in its place, or it was
    /// fenced a moment ago already. Why, if so.
    pub(super) fn is_replaced(&self) -> Option<String> {
        if self.is_overdue() {
            self.note_opened(None);
            return None;
        }
        let started = self.now();
        loop {
            if let Some(why) = self.groups.all().iter().find_map(|group| group.take_fatal()) {
                return Some(why);
            }
            if self.is_closing() || self.now().duration_since(started) >= HEARTBEAT {
                return self.fenced_again().then(|| self.fenced_text());
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Notes that another producer took this identity. Returns whether that happened a moment ago already.
    fn fenced_again(&self) -> bool {
        let now = self.now();
        let mut fenced = self.fenced.lock().unwrap_or_else(PoisonError::into_inner);
        if fenced.is_some_and(|at| now.duration_since(at) < FENCED_AGAIN) {
            return true;
        }
        *fenced = Some(now);
        false
    }

    fn fenced_text(&self) -> String {
        format!(
            "another process works as instance `{}` of pipeline `{}`: each needs an identity of its own (`WEIR_INSTANCE`)",
            self.instance,
            self.producer.settings().pipeline
        )
    }

    /// Notes since when the broker may hold a transaction of this producer open; `None` if it holds none.
    pub(super) fn note_opened(&self, since: Option<Instant>) {
        *self.opened.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }

    /// Whether a transaction was open for so long that the broker has ended it by itself: this process was stopped, starved
    /// or cut off, and being fenced for it says nothing of another process.
    fn is_overdue(&self) -> bool {
        let opened = *self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        opened.is_some_and(|since| self.now().duration_since(since) >= self.producer.transaction_timeout())
    }
}
