//! Which record it is that a stage cannot stand: found by halving what is under way.
//!
//! A failure at work on records that returns before they are committed makes all of them suspects. Suspects travel in
//! epochs of their own, with nothing else under way, and of half as many records each time, until one that is alone fails
//! again and again: it is condemned, and its stage refuses it. So finding one among `n` takes about log2(n) runs. Once it
//! is past, the epochs double until no suspect is left. A failure that no record can have caused changes nothing here.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::sync::Arc;

use crate::component::Pulled;
use crate::delivery::Positions;
use crate::record::{Batch, BodyFormat, Partition, Position, Record};

/// How often a record that is alone must fail before it is condemned: more than once, because what is outside of it fails
/// too.
const STRIKES: u32 = 3;
/// More verdicts than this are waiting only if their partitions have gone to other processes.
const VERDICTS: usize = 64;

/// Ranges of positions, by partition.
pub(super) type Ranges = BTreeMap<Partition, Range<Position>>;

/// A record as it enters a stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Suspect {
    pub(super) stage: Arc<str>,
    pub(super) partition: Arc<Partition>,
    pub(super) offset: i64,
    /// Tells records apart that a stage made of one. A letter has none: it is written anew each time.
    content: Option<u64>,
}

impl Suspect {
    pub(super) fn new(stage: &Arc<str>, batch: &Batch, record: &Record) -> Self {
        let content = (record.format != BodyFormat::Verbatim).then(|| content_of(batch, record));
        Self { stage: Arc::clone(stage), partition: Arc::clone(batch.origin()), offset: record.offset, content }
    }

    /// Whether both stand for the same record of a source, at the same stage.
    fn is_at_place_of(&self, other: &Self) -> bool {
        (&self.stage, &self.partition, self.offset) == (&other.stage, &other.partition, other.offset)
    }

    fn is(&self, batch: &Batch, record: &Record) -> bool {
        self.offset == record.offset
            && self.partition == *batch.origin()
            && self.content.is_none_or(|content| content == content_of(batch, record))
    }
}

fn content_of(batch: &Batch, record: &Record) -> u64 {
    let mut hasher = DefaultHasher::new();
    (batch.body(record), batch.key(record), batch.slice(record.headers)).hash(&mut hasher);
    hasher.finish()
}

/// What a failure may tell about the records that were under way.
#[derive(Debug, Clone, Copy)]
pub(super) enum Cause<'a> {
    /// A stage was at work; with which record, if there was only one.
    AtWork(Option<&'a Suspect>),
    /// They took too long together. Fewer are quicker, but no record is condemned for it.
    TooSlow,
}

/// What follows from a failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Finding {
    /// Nothing yet: it may not return, or no record is to blame.
    Nothing,
    /// It returned: from now on at most so many of the records that were under way travel together.
    Narrowed(u64),
    /// It failed alone, and is tried once more.
    Struck,
    /// It is to be refused by its stage.
    Condemned(Suspect),
}

/// A record that its stage is to refuse.
#[derive(Debug, Clone)]
struct Verdict {
    suspect: Suspect,
    reason: Arc<str>,
    /// Once this is committed, the record is past.
    behind: Option<Position>,
}

/// What is known of the records that make a pipeline fail. It outlives runs.
#[derive(Debug, Default)]
pub(super) struct Suspicion {
    /// Whose records are never condemned: they are tried for ever.
    patient: Vec<Arc<str>>,
    /// What was under way when a failure came for the first time.
    failed: Ranges,
    /// What was under way when it returned.
    suspects: Ranges,
    /// How many suspects travel together.
    limit: u64,
    /// The cause is among so many of the next suspects; 0 if that is not known.
    cornered: u64,
    /// Who failed alone last, and how often in a row.
    struck: Option<(Suspect, u32)>,
    verdicts: Vec<Verdict>,
}

impl Suspicion {
    pub(super) fn new(patient: Vec<Arc<str>>) -> Self {
        Self { patient, ..Self::default() }
    }

    /// How many records at the front of what was pulled are of one kind, and whether they are suspects.
    pub(super) fn front(&self, pulled: &Pulled) -> (usize, bool) {
        let batch = &pulled.batch;
        let Some(range) = self.suspects.get(&**pulled.partition()) else { return (batch.len(), false) };
        let is_suspect = |record: &usize| range.contains(&pulled.in_front_of(*record));
        if batch.is_empty() {
            return (0, false);
        }
        let first = is_suspect(&0);
        ((0..batch.len()).take_while(|record| is_suspect(record) == first).count(), first)
    }

    /// How many suspects travel together.
    pub(super) fn limit(&self) -> u64 {
        self.limit.max(1)
    }

    /// A run has failed with these records under way; `isolated` if they were suspects and nothing else.
    pub(super) fn failed(
        &mut self,
        cause: Cause<'_>,
        reason: &str,
        isolated: bool,
        records: u64,
        ranges: &Ranges,
    ) -> Finding {
        match cause {
            Cause::AtWork(Some(alone)) if isolated && records == 1 => self.strike(alone, reason, ranges),
            _ if isolated && records > 1 => self.narrow(records),
            _ if !isolated && (overlap(ranges, &self.failed) || overlap(ranges, &self.suspects)) => {
                self.failed.clear();
                for (partition, range) in ranges {
                    let suspects = self.suspects.entry(partition.clone()).or_insert_with(|| range.clone());
                    *suspects = suspects.start.min(range.start)..suspects.end.max(range.end);
                }
                self.narrow(records)
            }
            _ => {
                if !isolated {
                    self.failed.clone_from(ranges);
                }
                Finding::Nothing
            }
        }
    }

    fn narrow(&mut self, records: u64) -> Finding {
        self.cornered = records;
        self.limit = (records / 2).max(1);
        Finding::Narrowed(self.limit)
    }

    fn strike(&mut self, alone: &Suspect, reason: &str, ranges: &Ranges) -> Finding {
        let mut alone = alone.clone();
        let strikes = match self.struck.take() {
            Some((before, strikes)) if before.is_at_place_of(&alone) => {
                if before.content != alone.content {
                    // It holds what changes with each try, as the time of its arrival: its place has to tell it.
                    alone.content = None;
                }
                strikes + 1
            }
            _ => 1,
        };
        if strikes < STRIKES {
            self.struck = Some((alone, strikes));
            return Finding::Struck;
        }
        if self.patient.contains(&alone.stage) {
            self.struck = Some((alone, strikes));
            return Finding::Nothing;
        }
        if self.verdicts.len() == VERDICTS {
            self.verdicts.remove(0);
        }
        self.verdicts.push(Verdict {
            suspect: alone.clone(),
            reason: format!("the stage failed {strikes} times at work on this record alone: {reason}").into(),
            behind: ranges.get(&*alone.partition).map(|range| range.end),
        });
        Finding::Condemned(alone)
    }

    /// So many records are committed; `isolated` if they were suspects and nothing else.
    pub(super) fn committed(&mut self, records: u64, isolated: bool, positions: &[Positions]) {
        if isolated {
            self.cornered = self.cornered.saturating_sub(records);
            self.limit = match self.cornered {
                0 => self.limit.saturating_mul(2),
                left => (left / 2).max(1),
            };
            self.struck = None;
        }
        if self.is_calm() {
            return;
        }
        for (partition, &position) in positions.iter().flatten() {
            advance(&mut self.failed, partition, position);
            advance(&mut self.suspects, partition, position);
            self.verdicts.retain(|verdict| {
                *verdict.suspect.partition != *partition || verdict.behind.is_none_or(|behind| position < behind)
            });
        }
    }

    /// Nothing is suspected and nothing failed lately.
    fn is_calm(&self) -> bool {
        self.failed.is_empty() && self.suspects.is_empty() && self.verdicts.is_empty()
    }

    /// Whether any record is condemned.
    pub(super) fn has_verdicts(&self) -> bool {
        !self.verdicts.is_empty()
    }

    /// Why a stage is to refuse a record, if it is.
    pub(super) fn verdict(&self, stage: &str, batch: &Batch, record: &Record) -> Option<&str> {
        let of_stage = self.verdicts.iter().filter(|verdict| *verdict.suspect.stage == *stage);
        of_stage.into_iter().find(|verdict| verdict.suspect.is(batch, record)).map(|verdict| &*verdict.reason)
    }
}

/// Whether any partition has a position in both.
fn overlap(one: &Ranges, other: &Ranges) -> bool {
    one.iter().any(|(partition, range)| {
        other.get(partition).is_some_and(|other| range.start < other.end && other.start < range.end)
    })
}

/// Takes off the ranges of a partition what is committed.
pub(super) fn advance(ranges: &mut Ranges, partition: &Partition, committed: Position) {
    let Some(range) = ranges.get_mut(partition) else { return };
    range.start = range.start.max(committed);
    if range.start >= range.end {
        ranges.remove(partition);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{BatchBuilder, Draft};

    fn record(body: &str) -> Batch {
        let origin = Arc::new(Partition { source: "in".into(), topic: "t".into(), number: 0 });
        let mut batch = BatchBuilder::new(origin, 8, 1);
        batch.push_copy(Draft { body: body.as_bytes(), offset: 7, ..Draft::default() });
        batch.finish()
    }

    #[test]
    fn a_record_that_is_another_one_with_each_try_is_condemned_by_its_place() {
        for (bodies, condemns_others) in [(["a", "b", "c"], true), (["a", "a", "a"], false)] {
            let mut suspicion = Suspicion::default();
            let ranges = Ranges::from([(record("").origin().as_ref().clone(), Position(7)..Position(8))]);
            let mut findings = Vec::new();
            for body in bodies {
                let batch = record(body);
                let suspect = Suspect::new(&"out".into(), &batch, &batch.records()[0]);
                findings.push(suspicion.failed(Cause::AtWork(Some(&suspect)), "it fails", true, 1, &ranges));
            }
            assert_eq!(findings[..2], [Finding::Struck, Finding::Struck]);
            assert!(matches!(findings[2], Finding::Condemned(_)), "{bodies:?}");
            let next = record("d");
            assert_eq!(suspicion.verdict("out", &next, &next.records()[0]).is_some(), condemns_others);
            assert_eq!(suspicion.verdict("other", &next, &next.records()[0]), None);
        }
    }
}
