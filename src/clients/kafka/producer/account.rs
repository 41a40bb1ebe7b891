//! The account of what a producer has under way: for each batch a slot, which answers when each of its records has its
//! fate.

use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use rdkafka::error::RDKafkaErrorCode as Code;
use tokio::sync::{Notify, oneshot};

use crate::clients::kafka::errors::{Verdict, verdict};
use crate::component::{Refusal, Settled, SinkError};

/// What is under way, shared with the polling thread.
#[derive(Debug, Default)]
pub(super) struct Account {
    pub(super) slots: Mutex<Slots>,
    /// Woken when records were settled, for those that wait for room.
    pub(super) room: Notify,
    pub(super) failed: AtomicBool,
    /// Why the brokers turn the client away, since they last did.
    pub(super) turned_away: Mutex<Option<String>>,
    pub(super) stop: AtomicBool,
    /// Makes the polling thread panic.
    #[cfg(test)]
    pub(super) panics: AtomicBool,
}

#[derive(Debug, Default)]
pub(super) struct Slots {
    all: Vec<Slot>,
    free: Vec<usize>,
    /// How many batches have records without a fate.
    under_way: usize,
    /// Why the transaction, or the client, failed, if it is more than a consequence.
    pub(super) cause: Option<SinkError>,
    /// Batches of which only a consequence is known. They are answered with the cause, once it is known or nothing that
    /// could tell it is under way: the client fails all that it holds when a broker refuses one request, and often tells of
    /// that request last.
    victims: Vec<usize>,
    /// Why no record gets a fate any more.
    given_up: Option<&'static str>,
}

#[derive(Debug, Default)]
struct Slot {
    remaining: usize,
    refused: Vec<Refusal>,
    failure: Option<SinkError>,
    /// What befell records because others had failed.
    consequence: Option<SinkError>,
    answer: Option<oneshot::Sender<Result<Settled, SinkError>>>,
}

/// What became of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fate {
    /// All replicas have it.
    Written,
    /// The broker will never take it, for this reason. It is not sent again, and what it took down with it is.
    Refused(String),
    /// It was not written, or nobody knows.
    Failed(Code),
}

impl Slots {
    /// Opens an account of `records`.
    pub(super) fn open(&mut self, records: usize) -> (usize, oneshot::Receiver<Result<Settled, SinkError>>) {
        let (answer, answered) = oneshot::channel();
        let slot = Slot { remaining: records, answer: Some(answer), ..Slot::default() };
        let at = if let Some(at) = self.free.pop() {
            self.all[at] = slot;
            at
        } else {
            self.all.push(slot);
            self.all.len() - 1
        };
        self.under_way += 1;
        if let Some(why) = self.given_up {
            self.give_up(why);
        }
        (at, answered)
    }

    /// Nobody will tell of any fate any more: all that wait are answered so, and all that come.
    pub(super) fn give_up(&mut self, why: &'static str) {
        self.given_up = Some(why);
        for slot in &mut self.all {
            if let Some(answer) = slot.answer.take() {
                let _ = answer.send(Err(SinkError::Outage(why.to_owned())));
            }
        }
    }

    /// Notes the fate of a record of a batch.
    pub(super) fn settle(&mut self, at: usize, fate: Fate) {
        let Some(slot) = self.all.get_mut(at) else { return };
        match fate {
            Fate::Written => {}
            // What the others are purged for is reported before it: the cause counts, whenever it comes.
            Fate::Refused(error) => {
                if matches!(slot.failure, None | Some(SinkError::Outage(_))) {
                    slot.failure = Some(SinkError::Rewind(error.clone()));
                }
                if matches!(self.cause, None | Some(SinkError::Outage(_))) {
                    self.cause = Some(SinkError::Rewind(error));
                }
            }
            Fate::Failed(code) if is_consequence(code) => {
                slot.consequence.get_or_insert_with(|| failed(code));
            }
            Fate::Failed(code) => {
                let failure = slot.failure.get_or_insert_with(|| failed(code));
                self.cause.get_or_insert_with(|| failure.clone());
            }
        }
        self.discharge(at, 1);
    }

    /// Refuses a record that was not enqueued.
    pub(super) fn refuse(&mut self, at: usize, record: usize, error: String) {
        if let Some(slot) = self.all.get_mut(at) {
            slot.refused.push(Refusal { record, error });
        }
        self.discharge(at, 1);
    }

    /// Takes records off an account; the last one answers.
    pub(super) fn discharge(&mut self, at: usize, records: usize) {
        let Some(slot) = self.all.get_mut(at) else { return };
        slot.remaining -= records.min(slot.remaining);
        if slot.remaining > 0 || slot.answer.is_none() {
            return;
        }
        self.under_way -= 1;
        if slot.failure.is_none() && slot.consequence.is_some() {
            self.victims.push(at);
        } else {
            self.answer(at);
        }
        if self.cause.is_some() || self.under_way == 0 {
            for victim in std::mem::take(&mut self.victims) {
                self.all[victim].failure.clone_from(&self.cause);
                self.answer(victim);
            }
        }
    }

    /// All records of a batch have their fates.
    fn answer(&mut self, at: usize) {
        let slot = &mut self.all[at];
        let Some(answer) = slot.answer.take() else { return };
        let mut refused = std::mem::take(&mut slot.refused);
        refused.sort_unstable_by_key(|refusal| refusal.record);
        let failure = slot.failure.take().or(slot.consequence.take());
        // Nobody listens any more if the run was aborted.
        let _ = answer.send(failure.map_or(Ok(Settled { refused, dropped: 0 }), Err));
        self.free.push(at);
    }
}

/// Whether an error may only follow from the failure of another record.
pub(super) fn is_consequence(code: Code) -> bool {
    matches!(
        code,
        Code::PurgeQueue
            | Code::PurgeInflight
            | Code::State
            | Code::Fatal
            | Code::GaplessGuarantee
            | Code::OutOfOrderSequenceNumber
    )
}

/// What to do about records that were not written.
pub(crate) fn failed(code: Code) -> SinkError {
    match verdict(code) {
        // The next run does not begin to write before the right is there.
        Verdict::Denied | Verdict::DeniedForGood => SinkError::Outage(format!("not allowed to write: {code}")),
        Verdict::Size | Verdict::Suspect => SinkError::Rewind(format!("records were not written: {code}")),
        _ => SinkError::Outage(format!("records were not written: {code}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_answered_when_its_last_record_has_its_fate() {
        let mut slots = Slots::default();
        let (first, mut answer) = slots.open(3);
        let (second, mut other) = slots.open(1);
        slots.refuse(first, 2, "no".to_owned());
        slots.settle(second, Fate::Written);
        assert_eq!(other.try_recv().unwrap(), Ok(Settled::all()));
        slots.refuse(first, 0, "no".to_owned());
        assert!(answer.try_recv().is_err(), "one is still under way");
        slots.settle(first, Fate::Written);
        let refused: Vec<_> =
            answer.try_recv().unwrap().unwrap().refused.iter().map(|refusal| refusal.record).collect();
        assert_eq!(refused, [0, 2]);
        assert_eq!(slots.open(1).0, first, "a slot is used again");
    }

    #[test]
    fn rule_17_who_waits_for_a_thread_that_panicked_is_told() {
        let mut slots = Slots::default();
        let (first, mut answer) = slots.open(3);
        slots.give_up("gone");
        let told = || Err(SinkError::Outage("gone".to_owned()));
        assert_eq!(answer.try_recv().unwrap(), told());
        let (second, mut later) = slots.open(1);
        assert_eq!(later.try_recv().unwrap(), told());
        // What is discharged later changes nothing.
        slots.discharge(first, 3);
        slots.discharge(second, 1);
    }

    #[test]
    fn what_the_broker_refuses_one_record_for_all_are() {
        let mut slots = Slots::default();
        let (slot, mut answer) = slots.open(2);
        slots.settle(slot, Fate::Refused("no".to_owned()));
        slots.settle(slot, Fate::Written);
        assert!(matches!(answer.try_recv().unwrap(), Err(SinkError::Rewind(_))));
    }

    #[test]
    fn a_consequence_waits_for_its_cause() {
        let mut slots = Slots::default();
        let [(purged, mut first), (refused, mut second), (late, mut third)] = [(); 3].map(|()| slots.open(1));
        slots.settle(purged, Fate::Failed(Code::PurgeQueue));
        assert!(first.try_recv().is_err(), "others are under way, which may know why");
        slots.settle(refused, Fate::Failed(Code::InvalidDifferentRecord));
        let cause = second.try_recv().unwrap();
        assert!(matches!(cause, Err(SinkError::Rewind(_))), "a record may be to blame");
        assert_eq!(first.try_recv().unwrap(), cause);
        slots.settle(late, Fate::Failed(Code::State));
        assert_eq!(third.try_recv().unwrap(), cause);
    }

    #[test]
    fn a_consequence_without_a_cause_is_told_when_nothing_is_under_way() {
        let mut slots = Slots::default();
        let [(one, mut first), (other, mut second)] = [(); 2].map(|()| slots.open(1));
        slots.settle(one, Fate::Failed(Code::PurgeQueue));
        slots.settle(other, Fate::Failed(Code::PurgeInflight));
        for answer in [&mut first, &mut second] {
            assert!(matches!(answer.try_recv().unwrap(), Err(SinkError::Outage(_))), "no record is to blame");
        }
    }

    #[test]
    fn what_a_record_is_refused_for_counts_and_not_what_follows_from_it() {
        let mut slots = Slots::default();
        let (slot, mut answer) = slots.open(3);
        slots.settle(slot, Fate::Failed(Code::PurgeQueue));
        slots.settle(slot, Fate::Refused("too large".to_owned()));
        slots.settle(slot, Fate::Failed(Code::PurgeInflight));
        assert_eq!(answer.try_recv().unwrap(), Err(SinkError::Rewind("too large".to_owned())));
    }

    #[test]
    fn what_was_never_enqueued_is_not_waited_for() {
        let mut slots = Slots::default();
        let (slot, mut answer) = slots.open(5);
        slots.discharge(slot, 4);
        slots.settle(slot, Fate::Failed(Code::PurgeQueue));
        assert!(matches!(answer.try_recv().unwrap(), Err(SinkError::Outage(_))), "no record is to blame");
    }
}
