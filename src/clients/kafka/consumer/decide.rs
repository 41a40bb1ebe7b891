//! The group's commit as the judge of a local transaction: it is made or it is not, and later it can be told which.
//!
//! Every commit carries its mark. One that is in doubt is made again, until the broker has taken it, or it can be made no
//! more; nothing else moves meanwhile. What became of it then is asked by the next run, or the next process, as a member of
//! the group: what an earlier process still had under way is refused from then on, and what an earlier run of this one had
//! was sent ahead of the question on the same connection. Only a commit that was never sent is known not to be made: the
//! client sends a request again by itself, and tells of the last answer only.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use rdkafka::consumer::{CommitMode, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode as Code};

use super::{COMMIT_LIMIT, Client, GroupConsumer, PAUSE, committed, offset_list};
use crate::clients::kafka::lineage::Lineage;
use crate::clients::kafka::raw::GroupMetadata;
use crate::delivery::{Decision, FenceError, Mark, Positions};
use crate::record::{Partition, Position};

/// How long a process waits to become a member before it says so, and tries again.
const JOIN_LIMIT: Duration = Duration::from_secs(10);

/// What became of one try.
enum Try {
    Done,
    /// It was not sent.
    NotSent(String),
    /// It was not taken, and another try would not be.
    Refused(String),
    /// It was not taken, because the group is rebalancing: either that ends and the partitions are still held, or they
    /// are not.
    NotNow(String),
    /// It may have been taken, or be taken yet.
    InDoubt(String),
}

impl GroupConsumer {
    /// The ticket of a decision. It is worth nothing once somebody has asked what was decided.
    pub(super) fn decision_ticket(&self) -> u64 {
        self.decisions.load(Ordering::Acquire)
    }

    /// Commits all positions with the mark, or none of them, and returns once that is known. Blocks.
    pub(super) fn decide(&self, ticket: u64, mark: &Mark, positions: &Positions) -> Decision {
        let _one_at_a_time = self.deciding.lock().unwrap_or_else(PoisonError::into_inner);
        if self.decision_ticket() != ticket {
            return Decision::Unknown("a later run has begun".to_owned());
        }
        let clock = self.settings.runtime.clock();
        let started = clock.now();
        let (mut was_sent, mut in_doubt) = (false, false);
        let not_made = |why, was_sent| if was_sent { Decision::Unknown(why) } else { Decision::No(why) };
        loop {
            let Some(client) = self.client() else {
                return not_made("the consumer is closed".to_owned(), was_sent);
            };
            if in_doubt && self.is_given_up() {
                // Only whoever asks next makes a new client, and it waits for us.
                return Decision::Unknown("the consumer was given up while a commit was in doubt".to_owned());
            }
            match self.try_decide(&client, mark, positions) {
                Try::Done => return Decision::Yes,
                Try::NotSent(why) => return not_made(why, was_sent),
                Try::Refused(why) => return Decision::Unknown(why),
                Try::NotNow(why) if !in_doubt && clock.now().duration_since(started) > COMMIT_LIMIT => {
                    return Decision::Unknown(why);
                }
                Try::NotNow(_) => {}
                Try::InDoubt(why) => {
                    in_doubt = true;
                    self.say(&format!("a commit is in doubt, and is made again: {why}"));
                }
            }
            was_sent = true;
            std::thread::sleep(PAUSE);
        }
    }

    /// One commit, between two rebalances: offsets go out only for partitions still held, under the assignment they were
    /// read in.
    fn try_decide(&self, client: &Client, mark: &Mark, positions: &Positions) -> Try {
        let _still = self.moves();
        let (offsets, lineages) = {
            let state = self.state();
            let offsets = match state.assignment.committable_together(positions) {
                Ok(offsets) => offsets,
                Err(why) => return Try::NotSent(why),
            };
            let lineage = |partition: &Arc<Partition>| {
                state.lineages.get(partition).cloned().unwrap_or_else(|| Lineage::read(""))
            };
            let lineages: Vec<_> = offsets.iter().map(|(partition, _)| lineage(partition).with(mark)).collect();
            (offsets, lineages)
        };
        if offsets.is_empty() {
            return Try::Done;
        }
        // Offsets without a generation would be taken by a group that has become empty, whoever had read them.
        if GroupMetadata::of(client).is_none() || client.assignment_lost() {
            let group = &self.settings.group;
            return Try::NotSent(format!("this process is not a member of group `{group}` right now"));
        }
        let made = offset_list(&offsets).and_then(|list| {
            for ((partition, _), lineage) in offsets.iter().zip(&lineages) {
                if let Some(mut element) = list.find_partition(&partition.topic, partition.number) {
                    element.set_metadata(lineage.to_string());
                }
            }
            client.commit(&list, CommitMode::Sync)
        });
        match made {
            Ok(()) => {
                self.note_committed(&offsets);
                let mut state = self.state();
                let partitions = offsets.into_iter().map(|(partition, _)| partition);
                state.lineages.extend(partitions.zip(lineages));
                Try::Done
            }
            Err(error) => judge(&error, &self.settings.group),
        }
    }

    /// Whether the positions were committed under the mark, by this process or the one before it. Blocks.
    pub(super) fn is_decided(self: &Arc<Self>, mark: &Mark, positions: &Positions) -> Result<bool, FenceError> {
        // Whoever waits for a turn to decide has lost it, and whoever is at it comes to an end first.
        self.decisions.fetch_add(1, Ordering::AcqRel);
        let _one_at_a_time = self.deciding.lock().unwrap_or_else(PoisonError::into_inner);
        let client = self.member()?;
        let answer = self.ask(&client, mark, positions);
        Ok(answer.map_err(|error| format!("cannot read the group's offsets yet: {error}"))?)
    }

    /// The client, once it is a member of the group.
    fn member(self: &Arc<Self>) -> Result<Arc<Client>, FenceError> {
        self.join_if_needed()?;
        let clock = self.settings.runtime.clock();
        let started = clock.now();
        loop {
            let client = self.client().ok_or_else(|| "the consumer is closed".to_owned())?;
            if GroupMetadata::of(&client).is_some() {
                return Ok(client);
            }
            if clock.now().duration_since(started) > JOIN_LIMIT {
                return Err(format!("waiting to become a member of group `{}`", self.settings.group).into());
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn ask(&self, client: &Client, mark: &Mark, positions: &Positions) -> KafkaResult<bool> {
        let names = positions.keys().map(|partition| (&*partition.topic, partition.number));
        let committed = committed(client, names)?;
        let by_partition = positions.iter().map(|(partition, position)| {
            let found = committed.get(&(partition.topic.to_string(), partition.number));
            (*position, found.map(|found| (found.offset, &found.lineage)))
        });
        if !has_happened(mark, &by_partition.collect::<Vec<_>>()) {
            return Ok(false);
        }
        let offsets: Vec<_> = positions.iter().map(|(partition, at)| (Arc::new(partition.clone()), at.0)).collect();
        self.note_committed(&offsets);
        Ok(true)
    }

    fn say(&self, text: &str) {
        if self.seldom.now(text) {
            tracing::warn!(component = %self.settings.source, "{text}");
        }
    }
}

/// What an error says about a commit.
fn judge(error: &KafkaError, group: &str) -> Try {
    let why = format!("group `{group}` did not take the offsets: {error}");
    match error.rdkafka_error_code() {
        Some(Code::IllegalGeneration | Code::UnknownMemberId | Code::StaleMemberEpoch | Code::RebalanceInProgress) => {
            Try::NotNow(why)
        }
        Some(
            Code::FencedInstanceId
            | Code::FencedMemberEpoch
            | Code::GroupAuthorizationFailed
            | Code::OffsetMetadataTooLarge
            | Code::InvalidCommitOffsetSize,
        ) => Try::Refused(why),
        // Of the others a broker answers some after it has written the offsets; and where it refuses one topic (a right
        // that was taken away, a topic that was deleted), it has written those of the others. Only the whole counts: it is
        // asked for until all of it is written, or a partition goes.
        _ => Try::InDoubt(why),
    }
}

/// Whether a commit with the mark was made, from what is committed of its partitions: an offset and who moved it.
///
/// A commit moves all of its partitions or none of them, so one that carries the mark, or an older one of the same store,
/// tells for all. Where none does, the store has never committed there, and one whose lineage is whole says so for all.
/// Else somebody has set the offsets by hand. Then the offsets tell: what stands before them is not read again, so it must
/// not be cut off.
fn has_happened(mark: &Mark, partitions: &[(Position, Option<(i64, &Lineage)>)]) -> bool {
    let known = partitions.iter().filter_map(|(_, found)| found.as_ref());
    let numbers: Vec<u64> = known.clone().filter_map(|(_, lineage)| lineage.number_of(&mark.store)).collect();
    if numbers.iter().any(|&number| number >= mark.number) {
        return true;
    }
    if !numbers.is_empty() || known.clone().any(|(_, lineage)| lineage.is_whole()) {
        return false;
    }
    partitions.iter().any(|(position, found)| found.is_some_and(|(offset, _)| offset >= position.0))
}

#[cfg(test)]
mod crowd;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rdkafka::bindings::rd_kafka_resp_err_t as Error;
    use rdkafka::consumer::BaseConsumer;
    use rdkafka::types::RDKafkaApiKey;

    use super::super::tests::{commit_unnoticed, rejoin};
    use super::*;
    use crate::clients::kafka::PipelineGroups;
    use crate::clients::kafka::embedded;
    use crate::clients::kafka::fixture::{Process, SOON, draft, positions, pull, run, unique, write};
    use crate::clients::kafka::raw::MockBroker;
    use crate::component::BoxSource;
    use crate::delivery::CommitPositions;
    use crate::runtime::Runtime;
    use crate::sinks::kafka::tests::{config as sink_config, sink_to};
    use crate::sources::kafka::tests::{compiled, config};

    fn mark(store: &str, number: u64) -> Mark {
        Mark { store: store.into(), number }
    }

    /// A topic with a record, and a group that reads it.
    struct Topic {
        name: String,
        group: String,
        writer: Process,
    }

    impl Topic {
        fn new() -> Self {
            Self { name: unique("decide"), group: unique("group"), writer: Process::new("writer", false) }
        }

        async fn write(&self, body: &str) {
            write(&mut sink_to(&self.writer, sink_config(&self.name)).await, &[draft(body)]).await;
        }

        /// A process that reads with the group. Dropped, it is gone as by a crash, and the group knows it.
        fn process(&self) -> Reading {
            let process = Process::new("one", false);
            let (source, judge) = process.source(&compiled(config(&self.group, &self.name)));
            Reading { source, judge, process }
        }
    }

    struct Reading {
        source: BoxSource,
        judge: Arc<dyn CommitPositions>,
        process: Process,
    }

    impl Reading {
        /// Reads one record more, and returns the position behind it.
        async fn read(&mut self) -> Positions {
            let (cx, _requests) = run();
            positions(&pull(&mut self.source, cx, 1).await.unwrap())
        }

        fn group(&self) -> Arc<GroupConsumer> {
            self.process.clients.shared(PipelineGroups::default).get("in").unwrap()
        }

        /// Asks until there is an answer, as each start of a run does.
        async fn is_decided(&self, mark: Mark, positions: &Positions) -> bool {
            let asked = async {
                loop {
                    match self.judge.is_decided(mark.clone(), positions.clone()).await {
                        Ok(answer) => return answer,
                        Err(error) => {
                            let error = error.to_string();
                            assert!(error.contains("yet") || error.contains("waiting"), "{error}");
                        }
                    }
                }
            };
            tokio::time::timeout(SOON, asked).await.expect("an answer comes soon")
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_next_process_finds_out_which_commits_were_made() {
        let topic = Topic::new();
        topic.write("first").await;
        let mut one = topic.process();
        let first = one.read().await;
        assert_eq!(one.judge.decide(mark("a", 1), first.clone()).await, Decision::Yes);
        drop(one);

        // It has to ask before it reads, and then goes on behind what was committed.
        let mut next = topic.process();
        assert!(!next.is_decided(mark("a", 2), &first).await);
        assert!(next.is_decided(mark("a", 1), &first).await);
        topic.write("second").await;
        let second = next.read().await;
        assert_ne!(second, first);
        // Nobody has asked for these to be committed.
        assert!(!next.is_decided(mark("a", 3), &second).await);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_commit_is_known_for_made_when_others_have_moved_the_offset_since() {
        let topic = Topic::new();
        topic.write("first").await;
        let mut one = topic.process();
        let first = one.read().await;
        assert_eq!(one.judge.decide(mark("a", 1), first.clone()).await, Decision::Yes);
        drop(one);
        // Another store takes over, and commits what the first had prepared as its number 2.
        topic.write("second").await;
        let mut other = topic.process();
        let mut second = other.read().await;
        while second.keys().all(|partition| !first.contains_key(partition)) {
            assert_eq!(other.judge.decide(mark("b", 1), second.clone()).await, Decision::Yes);
            topic.write("again").await;
            second = other.read().await;
        }
        assert_eq!(other.judge.decide(mark("b", 2), second.clone()).await, Decision::Yes);
        drop(other);

        let back = topic.process();
        assert!(back.is_decided(mark("a", 1), &first).await);
        assert!(!back.is_decided(mark("a", 2), &second).await);
        assert!(!back.is_decided(mark("c", 1), &second).await, "the first commit of a store, which was never made");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn rule_8_positions_of_partitions_that_went_are_refused_even_if_they_come_back() {
        let topic = Topic::new();
        topic.write("first").await;
        let mut one = topic.process();
        let first = one.read().await;
        let group = one.group();
        Runtime::system().blocking(move || rejoin(&group)).await;
        let outcome = one.judge.decide(mark("a", 1), first.clone()).await;
        assert!(matches!(&outcome, Decision::No(why) if why.contains("taken away")), "{outcome:?}");
        assert!(!one.is_decided(mark("a", 1), &first).await);
    }

    /// A process that has read a record, and what it read up to; its broker can be told to refuse something.
    async fn on_a_broker_of_its_own() -> (MockBroker, Reading, Positions) {
        let broker = MockBroker::start().unwrap();
        broker.create_topic("in", 1);
        let process = Process::new("one", false);
        let (mut to, mut from) = (sink_config("in"), config(&unique("group"), "in"));
        to.set_brokers(&broker.address());
        from.set_brokers(&broker.address());
        write(&mut sink_to(&process, to).await, &[draft("first")]).await;
        let (source, judge) = process.source(&compiled(from));
        let mut one = Reading { source, judge, process };
        let first = one.read().await;
        (broker, one, first)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_commit_that_was_sent_is_not_said_to_be_not_made() {
        let (broker, one, first) = on_a_broker_of_its_own().await;
        // It may have been taken before the answer that is seen: the client sends a request again by itself.
        broker.fail_next(RDKafkaApiKey::OffsetCommit as i16, &[Error::RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION]);
        let outcome = one.judge.decide(mark("a", 1), first.clone()).await;
        assert!(matches!(outcome, Decision::Unknown(_)), "{outcome:?}");
        // Who asks as a member of the next generation learns it.
        assert!(!one.is_decided(mark("a", 1), &first).await);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_commit_that_is_refused_for_one_topic_is_made_until_it_is_whole() {
        let (broker, one, first) = on_a_broker_of_its_own().await;
        // The other topics of the commit may be written by then.
        let refused =
            [Error::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED, Error::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART];
        broker.fail_next(RDKafkaApiKey::OffsetCommit as i16, &refused);
        assert_eq!(one.judge.decide(mark("a", 1), first.clone()).await, Decision::Yes);
        assert!(one.is_decided(mark("a", 1), &first).await);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn rule_9_who_was_replaced_asks_nothing_as_the_member_that_it_was() {
        let topic = Topic::new();
        topic.write("first").await;
        let mut one = topic.process();
        let first = one.read().await;
        let why = "another process works as this instance".to_owned();
        one.group().give_up(crate::component::SourceError::Fatal(why.clone()));
        assert_eq!(one.judge.is_decided(mark("a", 1), first).await, Err(FenceError::Fatal(why)));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn rule_8_who_is_in_no_generation_has_nothing_to_commit_with() {
        let topic = Topic::new();
        topic.write("first").await;
        let mut one = topic.process();
        one.read().await;
        let joined = one.group().client().unwrap();
        assert!(GroupMetadata::of(&joined).is_some());
        // Of the same group, and not let in: an emptied group would take its offsets.
        let mut config = rdkafka::ClientConfig::new();
        config.set("bootstrap.servers", embedded::address().unwrap()).set("group.id", &topic.group);
        let stranger: BaseConsumer = config.create().unwrap();
        assert!(GroupMetadata::of(&stranger).is_none());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn whoever_waits_to_decide_has_lost_once_somebody_asks() {
        let topic = Topic::new();
        topic.write("first").await;
        let mut one = topic.process();
        let first = one.read().await;
        let group = one.group();
        let ticket = group.decision_ticket();
        assert!(!one.is_decided(mark("a", 1), &first).await);
        // What was queued before must not be made after that answer.
        let late = first.clone();
        let decided = Runtime::system().blocking(move || group.decide(ticket, &mark("a", 1), &late)).await;
        assert!(matches!(decided, Decision::Unknown(_)), "{decided:?}");
        assert!(!one.is_decided(mark("a", 1), &first).await);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn offsets_that_somebody_set_by_hand_tell_what_is_read_again() {
        let topic = Topic::new();
        topic.write("first").await;
        let mut one = topic.process();
        let first = one.read().await;
        let (partition, position) = first.first_key_value().map(|(p, at)| (p.clone(), at.0)).unwrap();
        for (offset, kept) in [(position - 1, false), (position, true)] {
            let (group, topic, number) = (one.group(), topic.name.clone(), partition.number);
            Runtime::system().blocking(move || commit_unnoticed(&group, &topic, number, offset)).await;
            assert_eq!(one.is_decided(mark("a", 1), &first).await, kept, "{offset}");
        }
    }

    #[test]
    fn an_older_mark_of_the_same_store_tells_for_all_partitions() {
        let (older, same) = (Lineage::default().with(&mark("a", 6)), Lineage::default().with(&mark("a", 7)));
        let strange = Lineage::default().with(&mark("b", 9));
        let happened = |found: &[Option<(i64, &Lineage)>]| {
            let partitions: Vec<_> = found.iter().map(|found| (Position(10), *found)).collect();
            has_happened(&mark("a", 7), &partitions)
        };
        assert!(happened(&[Some((10, &same)), Some((3, &strange))]));
        assert!(!happened(&[Some((5, &older)), Some((12, &strange))]), "the other went to somebody else, who read on");
        assert!(!happened(&[Some((12, &strange)), Some((3, &strange))]), "it was another that read on");
        let by_hand = Lineage::read("");
        let after = by_hand.with(&mark("b", 9));
        for found in [&by_hand, &after] {
            assert!(happened(&[Some((12, found)), Some((3, found))]), "rather twice than not at all");
            assert!(!happened(&[Some((9, found)), None]));
            assert!(!happened(&[Some((12, found)), Some((3, &strange))]), "the other was never ours");
        }
        assert!(!happened(&[None]));
    }
}
