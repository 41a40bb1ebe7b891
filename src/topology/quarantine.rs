//! The gate that keeps suspects apart: what the sources have under way, and what they may let in next.
//!
//! While nothing is suspected, everything passes, and costs a look per batch. A suspect waits until nothing else is under
//! way; then as many suspects enter as may travel together, and nothing follows them until they are committed. Records of
//! which nothing is suspected go on in between, in epochs of their own and at full speed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::failure::{AtWork, Failure};
use super::suspicion::{Cause, Finding, Ranges, Suspect, Suspicion, advance};
use crate::component::Pulled;
use crate::delivery::Positions;
use crate::record::{Batch, Rejected};

/// What the sources of a pipeline have under way, and who of it is suspected. Its suspicion outlives runs.
#[derive(Debug, Clone, Default)]
pub(super) struct Quarantine(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    /// Woken when somebody may enter who could not.
    changed: Notify,
    /// Whether any record is condemned, and whether suspects are under way: looked at for each batch in each stage.
    has_verdicts: AtomicBool,
    isolated: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    suspicion: Suspicion,
    /// Records that entered and are not committed, in this run.
    records: u64,
    /// Where they stand.
    ranges: Ranges,
    /// They are suspects, and nothing else is under way.
    isolated: bool,
    /// A suspect waits until nothing is under way: nobody else enters.
    waits: bool,
}

impl Quarantine {
    /// Of a pipeline in which these stages try for ever what they cannot do.
    pub(super) fn new(patient: Vec<Arc<str>>) -> Self {
        let state = State { suspicion: Suspicion::new(patient), ..State::default() };
        Self(Arc::new(Inner { state: Mutex::new(state), ..Inner::default() }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A run begins: nothing is under way.
    pub(super) fn begin_run(&self) {
        let mut state = self.state();
        let suspicion = std::mem::take(&mut state.suspicion);
        *state = State { suspicion, ..State::default() };
        self.publish(&state);
    }

    fn publish(&self, state: &State) {
        self.0.has_verdicts.store(state.suspicion.has_verdicts(), Ordering::Release);
        self.0.isolated.store(state.isolated, Ordering::Release);
    }

    /// Waits until a source may pull.
    pub(super) async fn may_pull(&self) {
        self.until(|quarantine| {
            let state = quarantine.state();
            (!state.isolated && !state.waits).then_some(())
        })
        .await;
    }

    /// Lets records at the front of what was pulled enter, if any may, and says how many.
    pub(super) fn admit_now(&self, pulled: &Pulled) -> Option<usize> {
        let mut state = self.state();
        let admitted = state.admit(pulled);
        self.publish(&state);
        admitted
    }

    /// Waits until records at the front of what was pulled may enter, lets them, and says how many.
    pub(super) async fn admit(&self, pulled: &Pulled) -> usize {
        self.until(|_| self.admit_now(pulled)).await
    }

    /// A source no longer waits with what it has pulled.
    pub(super) fn withdraw(&self) {
        self.state().waits = false;
        self.0.changed.notify_waiters();
    }

    async fn until<T>(&self, mut ready: impl FnMut(&Self) -> Option<T>) -> T {
        loop {
            let changed = self.0.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(value) = ready(self) {
                return value;
            }
            changed.await;
        }
    }

    /// So many records are committed, up to these positions.
    pub(super) fn committed(&self, records: u64, positions: &[Positions]) {
        let mut state = self.state();
        state.records = state.records.saturating_sub(records);
        for (partition, &position) in positions.iter().flatten() {
            advance(&mut state.ranges, partition, position);
        }
        // An epoch without records, opened before the suspects entered, acquits none of them.
        let isolated = state.isolated && records > 0;
        state.suspicion.committed(records, isolated, positions);
        if state.records == 0 {
            state.isolated = false;
            self.0.changed.notify_waiters();
        }
        self.publish(&state);
    }

    /// How many records entered and are not committed.
    pub(super) fn under_way(&self) -> u64 {
        self.state().records
    }

    /// Draws what follows from the failure of a run.
    pub(super) fn failed(&self, failure: &Failure) -> Finding {
        let cause = match failure {
            Failure::AtWork(AtWork { alone, .. }) => Cause::AtWork(alone.as_ref()),
            Failure::Stalled(_) => Cause::TooSlow,
            _ => return Finding::Nothing,
        };
        let state = &mut *self.state();
        state.suspicion.failed(cause, failure.text(), state.isolated, state.records, &state.ranges)
    }

    /// Whether suspects are under way and nothing else is.
    pub(super) fn is_isolated(&self) -> bool {
        self.0.isolated.load(Ordering::Acquire)
    }

    /// Whether a single suspect is under way, and nothing else: what fails now is it.
    pub(super) fn is_alone(&self) -> bool {
        self.is_isolated() && self.state().records == 1
    }

    /// The only record of a batch, if it is the only one under way.
    pub(super) fn alone(&self, stage: &Arc<str>, batch: &Batch) -> Option<Suspect> {
        match batch.records() {
            [record] if self.is_alone() => Some(Suspect::new(stage, batch, record)),
            _ => None,
        }
    }

    /// Takes out of a batch what its stage is to refuse.
    pub(super) fn sift(&self, stage: &str, batch: Batch) -> (Batch, Vec<Rejected>) {
        if !self.0.has_verdicts.load(Ordering::Acquire) {
            return (batch, Vec::new());
        }
        let state = self.state();
        let (mut kept, mut rejected) = (Vec::with_capacity(batch.len()), Vec::new());
        for record in batch.records() {
            match state.suspicion.verdict(stage, &batch, record) {
                None => kept.push(*record),
                Some(reason) => {
                    rejected.push(Rejected { batch: batch.with_records(vec![*record]), error: reason.to_owned() });
                }
            }
        }
        (batch.with_records(kept), rejected)
    }
}

impl State {
    fn admit(&mut self, pulled: &Pulled) -> Option<usize> {
        let (front, are_suspects) = self.suspicion.front(pulled);
        let admitted = if are_suspects {
            if self.isolated || self.records > 0 {
                self.waits = true;
                return None;
            }
            self.isolated = true;
            self.waits = false;
            front.min(usize::try_from(self.suspicion.limit()).unwrap_or(usize::MAX))
        } else if self.isolated || self.waits {
            return None;
        } else {
            front
        };
        let admitted = cut_at(pulled, admitted);
        self.note(pulled, admitted);
        Some(admitted)
    }

    /// Notes that records at the front of what was pulled are under way.
    fn note(&mut self, pulled: &Pulled, records: usize) {
        let batch = &pulled.batch;
        if batch.is_empty() || records == 0 {
            return;
        }
        self.records += records as u64;
        let behind = pulled.in_front_of(records);
        if let Some(range) = self.ranges.get_mut(&**pulled.partition()) {
            range.end = range.end.max(behind);
        } else {
            let front = pulled.in_front_of(0);
            self.ranges.insert((**pulled.partition()).clone(), front..behind);
        }
    }
}

/// The nearest place at or behind `at` where a batch can be cut: between offsets that rise, if places follow from them.
fn cut_at(pulled: &Pulled, at: usize) -> usize {
    let records = pulled.batch.records();
    let is_place = |at: &usize| pulled.read_from.is_some() || records[at - 1].offset < records[*at].offset;
    (at.max(1)..records.len()).find(is_place).unwrap_or(records.len())
}

/// Takes so many records off the front of what was pulled; what is left, if there is any, stays.
pub(super) fn take_front(held: &mut Option<Pulled>, records: usize) -> Option<Pulled> {
    let whole = held.take()?;
    if records >= whole.batch.len() {
        return Some(whole);
    }
    let (front, rest) = whole.batch.records().split_at(records);
    let (batch, position) = (whole.batch.with_records(front.to_vec()), whole.in_front_of(records));
    let piece = Pulled { read_from: whole.read_from.clone(), ..Pulled::new(batch, position) };
    // What the source refused, and what it noted, stands behind all of it.
    *held = Some(Pulled { batch: whole.batch.with_records(rest.to_vec()), ..whole });
    Some(piece)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::atomic::AtomicUsize;
    use std::time::Duration;

    use super::super::PipelineEnd;
    use super::super::testing::{Deed, Id, Kit, Outcome};
    use super::*;
    use crate::plan::OnError;
    use crate::record::{BatchBuilder, Draft, Partition, Position};

    #[test]
    fn what_a_source_refused_and_noted_goes_with_the_last_of_what_was_pulled() {
        let origin = Arc::new(Partition { source: "in".into(), topic: "in".into(), number: 0 });
        let mut batch = BatchBuilder::new(Arc::clone(&origin), 0, 3);
        (0..3).for_each(|offset| batch.push_copy(Draft { body: b"x", offset, ..Draft::default() }));
        let batch = batch.finish();
        let refused = vec![Rejected { batch: batch.with_records(Vec::new()), error: "too long".to_owned() }];
        let notes = vec![(Arc::clone(&origin), Position(9))];
        let mut held = Some(Pulled { refused, notes, ..Pulled::new(batch, Position(4)) });
        let parts: Vec<_> = std::iter::from_fn(|| take_front(&mut held, 2)).collect();
        let facts: Vec<_> =
            parts.iter().map(|part| (part.batch.len(), part.position, part.refused.len(), part.notes.len())).collect();
        assert_eq!(facts, [(2, Position(2), 0, 0), (1, Position(4), 1, 1)]);
    }

    /// Records that a stage cannot stand.
    fn cannot_stand(
        stage: &'static str,
        records: &'static [Id],
        deed: Deed,
    ) -> impl Fn(&str, Id) -> Deed + Send + Sync {
        move |at, id| if at == stage && records.contains(&id) { deed } else { Deed::Pass }
    }

    /// Everything but the poison came out, once in a transaction, and in the order of each partition.
    fn assert_the_others_came(kit: &Kit, sink: &str, poison: &[Id]) {
        let came = kit.world.of(sink);
        let all: BTreeSet<Id> = came.iter().copied().collect();
        assert_eq!(all.into_iter().collect::<Vec<_>>(), kit.all_but(poison), "each of the others came to `{sink}`");
        if kit.transactional {
            for number in 0..kit.partitions {
                let offsets: Vec<i64> = came.iter().filter(|id| id.0 == number).map(|id| id.1).collect();
                assert!(offsets.is_sorted_by(|one, next| one < next), "{number}: {offsets:?}");
            }
        }
    }

    /// A poison record ends in the dead letter under both guarantees, with any lanes, in a bounded number of runs.
    async fn ends_in_the_dead_letter(stage: &'static str, deed: Deed, records: &'static [Id], runs: u64) {
        for (seed, transactional, lanes) in [(1, false, 1), (2, false, 3), (3, true, 1), (4, true, 3)] {
            let kit = Kit { transactional, lanes, ..Kit::new(cannot_stand(stage, records, deed)) };
            let outcome = kit.run(seed).await;
            assert_eq!(outcome.end, PipelineEnd::Finished);
            assert_the_others_came(&kit, "out", records);
            let letters = kit.world.letters();
            let refused: BTreeSet<Id> = letters.iter().map(|(id, ..)| *id).collect();
            assert_eq!(refused.into_iter().collect::<Vec<_>>(), records);
            for (_, at, why) in &letters {
                assert_eq!(at, stage);
                assert!(why.contains("failed 3 times at work on this record alone"), "{why}");
            }
            if transactional {
                assert_eq!(letters.len(), records.len(), "none is refused twice");
            }
            assert!(outcome.status.restarts <= runs, "{} restarts", outcome.status.restarts);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_record_that_makes_a_transform_panic_ends_in_the_dead_letter_and_the_others_come_through() {
        // 120 records under way: two failures, seven halvings, three strikes.
        ends_in_the_dead_letter("work", Deed::Panic, &[(1, 17)], 12).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_record_that_makes_a_sink_go_back_or_panic_ends_in_the_dead_letter() {
        ends_in_the_dead_letter("out", Deed::Rewind, &[(2, 0)], 12).await;
        ends_in_the_dead_letter("out", Deed::Panic, &[(0, 39)], 12).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_cause_is_found_behind_the_failures_that_follow_from_it() {
        for seed in 0..10 {
            let deeds = |stage: &str, id: Id| if stage == "one" && id == (1, 17) { Deed::Rewind } else { Deed::Pass };
            let kit = Kit { transactional: true, sinks: vec!["one", "other"], ..Kit::new(deeds) };
            kit.world.hides_causes.store(true, Ordering::Relaxed);
            let outcome = kit.run(seed).await;
            assert_eq!(outcome.end, PipelineEnd::Finished);
            assert!(outcome.status.restarts < 20, "{}", outcome.status.restarts);
            assert_the_others_came(&kit, "one", &[(1, 17)]);
            assert_the_others_came(&kit, "other", &[]);
            assert_eq!(kit.world.letters().len(), 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn neighbours_that_are_poison_too_are_found_at_less_cost() {
        ends_in_the_dead_letter("work", Deed::Panic, &[(1, 7), (1, 8), (1, 9), (2, 30)], 40).await;
    }

    #[tokio::test(start_paused = true)]
    async fn each_stage_refuses_what_it_cannot_stand_itself() {
        let deeds = |stage: &str, id: Id| match (stage, id) {
            ("work", (0, 3)) => Deed::Panic,
            ("left" | "right", (0, 5)) | ("right", (1, 5)) => Deed::Rewind,
            _ => Deed::Pass,
        };
        let kit = Kit { transactional: true, sinks: vec!["left", "right"], ..Kit::new(deeds) };
        assert_eq!(kit.run(7).await.end, PipelineEnd::Finished);
        assert_the_others_came(&kit, "left", &[(0, 3), (0, 5)]);
        assert_the_others_came(&kit, "right", &[(0, 3), (0, 5), (1, 5)]);
        let mut letters: Vec<_> = kit.world.letters().into_iter().map(|(id, stage, _)| (id, stage)).collect();
        letters.sort();
        let expected = [((0, 3), "work"), ((0, 5), "left"), ((0, 5), "right"), ((1, 5), "right")];
        assert_eq!(letters, expected.map(|(id, stage)| (id, stage.to_owned())));
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_dead_letter_it_stops_the_pipeline_and_is_not_skipped() {
        for transactional in [false, true] {
            let deeds = cannot_stand("work", &[(1, 17)], Deed::Panic);
            let kit = Kit { transactional, dead_letter: false, ..Kit::new(deeds) };
            let outcome = kit.run(5).await;
            let PipelineEnd::Failed(why) = outcome.end else { panic!("{:?}", outcome.end) };
            assert!(why.contains("offset 17 of t/1") && why.contains("dead_letter"), "{why}");
            assert!(kit.world.of("out").iter().all(|id| id.0 != 1 || id.1 < 17), "what follows it waits");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_dropped_and_counted_where_the_stage_says_so() {
        let deeds = cannot_stand("work", &[(1, 17)], Deed::Panic);
        let kit = Kit { transactional: true, on_error: Some(OnError::Drop), ..Kit::new(deeds) };
        let Outcome { end, metrics, .. } = kit.run(5).await;
        assert_eq!(end, PipelineEnd::Finished);
        assert_the_others_came(&kit, "out", &[(1, 17)]);
        assert_eq!(kit.world.letters(), []);
        assert!(metrics.text().contains("reason=\"rejected\""));
    }

    #[tokio::test(start_paused = true)]
    async fn a_letter_that_the_dead_letter_cannot_stand_stops_the_pipeline() {
        let deeds = |stage: &str, id: Id| match (stage, id) {
            ("work", (1, 17)) => Deed::Refuse,
            ("dead_letter", _) => Deed::Rewind,
            _ => Deed::Pass,
        };
        let kit = Kit { transactional: true, ..Kit::new(deeds) };
        let PipelineEnd::Failed(why) = kit.run(5).await.end else { panic!("it goes on") };
        assert!(why.contains("`dead_letter`") && why.contains("make room for it"), "{why}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_no_record_can_have_caused_condemns_none() {
        // The other side of the sink fails thirty times, whatever is written.
        let left = Arc::new(AtomicUsize::new(30));
        let deeds = move |stage: &str, _: Id| {
            let fails =
                stage == "out" && left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok();
            if fails { Deed::Outage } else { Deed::Pass }
        };
        let kit = Kit { transactional: true, ..Kit::new(deeds) };
        let outcome = kit.run(6).await;
        assert_eq!(outcome.end, PipelineEnd::Finished);
        assert!(outcome.status.restarts >= 15, "{} restarts", outcome.status.restarts);
        assert_eq!(kit.world.letters(), []);
        assert_the_others_came(&kit, "out", &[]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_made_durable_condemns_no_record_even_while_one_is_looked_for() {
        for transactional in [false, true] {
            let kit = Kit { transactional, ..Kit::new(cannot_stand("work", &[(1, 17)], Deed::Panic)) };
            let run = kit.start(6);
            for restarts in [2, 6, 9, 20, 30] {
                run.until("it goes on", |run| run.status().restarts >= restarts || run.status().state.is_over()).await;
                kit.world.flushes_fail.store(6, Ordering::Relaxed);
            }
            kit.world.flushes_fail.store(0, Ordering::Relaxed);
            assert_eq!(run.end().await.end, PipelineEnd::Finished);
            assert!(kit.world.letters().iter().all(|(id, ..)| *id == (1, 17)));
            assert_the_others_came(&kit, "out", &[(1, 17)]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn commits_that_fail_condemn_no_record_even_while_one_is_looked_for() {
        let kit = Kit::new(cannot_stand("work", &[(1, 17)], Deed::Panic));
        let run = kit.start(6);
        for restarts in [2, 6, 9, 20] {
            run.until("it goes on", |run| run.status().restarts >= restarts || run.status().state.is_over()).await;
            kit.store.fail_next(4);
        }
        assert_eq!(run.end().await.end, PipelineEnd::Finished);
        assert!(kit.world.letters().iter().all(|(id, ..)| *id == (1, 17)));
        assert_the_others_came(&kit, "out", &[(1, 17)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_patient_stage_is_tried_for_ever_and_moves_on_once_it_can() {
        let mended = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&mended);
        let deeds = move |stage: &str, id: Id| {
            let fails = stage == "out" && id == (1, 17) && !seen.load(Ordering::Relaxed);
            if fails { Deed::Rewind } else { Deed::Pass }
        };
        let kit = Kit { transactional: true, on_error: Some(OnError::Retry), ..Kit::new(deeds) };
        let run = kit.start(6);
        run.until("it tries again and again", |run| run.status().restarts >= 40).await;
        assert_eq!(kit.world.letters(), []);
        mended.store(true, Ordering::Relaxed);
        assert_eq!(run.end().await.end, PipelineEnd::Finished);
        assert_the_others_came(&kit, "out", &[]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_record_is_found_though_another_partition_commits_before_it_in_each_run() {
        let poison: &[Id] = &[(1, 0)];
        // The source begins each run with a batch of the other partition, of which nothing is suspected.
        let kit = Kit {
            partitions: 2,
            records: 800,
            batch: 4,
            lanes: 1,
            ..Kit::new(cannot_stand("work", poison, Deed::Panic))
        };
        let outcome = kit.run(1).await;
        assert_eq!(outcome.end, PipelineEnd::Finished);
        assert_the_others_came(&kit, "out", poison);
        assert_eq!(kit.world.letters().len(), 1);
        assert!(outcome.status.restarts <= 20, "{} restarts", outcome.status.restarts);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_that_does_not_return_condemns_no_record() {
        let left = Arc::new(AtomicUsize::new(2));
        let deeds = move |stage: &str, id: Id| {
            let fails = stage == "work"
                && id == (1, 17)
                && left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok();
            if fails { Deed::Panic } else { Deed::Pass }
        };
        let kit = Kit { transactional: true, ..Kit::new(deeds) };
        assert_eq!(kit.run(6).await.end, PipelineEnd::Finished);
        assert_eq!(kit.world.letters(), []);
        assert_the_others_came(&kit, "out", &[]);
    }

    #[tokio::test(start_paused = true)]
    async fn rule_3_a_transform_that_panics_costs_the_source_nothing_but_a_new_stream() {
        let kit = Kit { transactional: true, ..Kit::new(cannot_stand("work", &[(1, 17)], Deed::Panic)) };
        let outcome = kit.run(6).await;
        assert_eq!(outcome.end, PipelineEnd::Finished);
        assert_eq!(kit.world.built.load(Ordering::Relaxed), 1, "the source keeps its place in its group");
        assert_eq!(kit.world.streams.load(Ordering::Relaxed) as u64, outcome.status.restarts + 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_search_takes_no_longer_waits_while_it_comes_closer() {
        let kit = Kit { transactional: true, ..Kit::new(cannot_stand("work", &[(1, 17)], Deed::Panic)) };
        let run = kit.start(6);
        let clock = run.host.runtime.clock();
        let started = clock.now();
        assert_eq!(run.end().await.end, PipelineEnd::Finished);
        let took = clock.now().duration_since(started);
        assert!(took < Duration::from_secs(10), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn whatever_is_poison_and_wherever_each_record_has_one_outcome_and_its_order() {
        for seed in 0..60 {
            let mut random = fastrand::Rng::with_seed(seed);
            let (rate, salt) = (random.i64(8..60), random.i64(0..1_000));
            let poison = move |stage: &str, id: Id| {
                let draw = (id.1 * 31 + i64::from(id.0) * 17 + salt + i64::from(stage.as_bytes()[0])).rem_euclid(rate);
                match (stage, draw) {
                    ("work", 0) | ("other", 3) => Deed::Panic,
                    ("work", 1) | ("one", 4) => Deed::Refuse,
                    ("one" | "other", 2) => Deed::Rewind,
                    _ => Deed::Pass,
                }
            };
            let transactional = random.bool();
            let kit = Kit {
                transactional,
                lanes: random.usize(1..4),
                partitions: random.i32(1..4),
                records: random.i64(1..60),
                batch: random.i64(1..24),
                pause: Duration::from_millis(random.u64(0..300)),
                base: random.i64(0..3) << Position::OFFSET_BITS,
                sinks: vec!["one", "other"],
                ..Kit::new(poison)
            };
            let outcome = kit.run(seed).await;
            assert_eq!(outcome.end, PipelineEnd::Finished, "seed {seed}");
            let mut letters: Vec<(Id, String)> =
                kit.world.letters().into_iter().map(|(id, stage, _)| (id, stage)).collect();
            letters.sort();
            if !transactional {
                letters.dedup();
            }
            let mut expected = Vec::new();
            for sink in ["one", "other"] {
                let refused = |id: &Id| poison("work", *id) != Deed::Pass || poison(sink, *id) != Deed::Pass;
                let missing: Vec<Id> = kit.all_but(&[]).into_iter().filter(refused).collect();
                assert_the_others_came(&kit, sink, &missing);
                expected.extend(
                    missing.into_iter().filter(|id| poison("work", *id) == Deed::Pass).map(|id| (id, sink.to_owned())),
                );
            }
            let of_work = kit.all_but(&[]).into_iter().filter(|id| poison("work", *id) != Deed::Pass);
            expected.extend(of_work.map(|id| (id, "work".to_owned())));
            expected.sort();
            assert_eq!(letters, expected, "seed {seed}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_pipeline_that_is_asked_to_stop_in_the_middle_of_the_search_stops_and_loses_nothing() {
        for seed in 0..40 {
            let deeds = cannot_stand("work", &[(1, 17), (2, 3)], Deed::Panic);
            let kit = Kit { transactional: true, pause: Duration::from_millis(20), ..Kit::new(deeds) };
            let run = kit.start(seed);
            run.host.runtime.sleep(Duration::from_millis(100 + 73 * seed)).await;
            run.stop.cancel();
            let ended = run.end().await.end;
            assert!(matches!(ended, PipelineEnd::Stopped | PipelineEnd::Finished), "{ended:?}");
            assert_eq!(kit.run(seed + 1_000).await.end, PipelineEnd::Finished);
            assert_the_others_came(&kit, "out", &[(1, 17), (2, 3)]);
            assert_eq!(kit.world.letters().len(), 2);
        }
    }
}
