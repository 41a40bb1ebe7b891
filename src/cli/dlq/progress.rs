//! Which letters were replayed.
//!
//! A replay commits how far it came together with what it delivered: in a consumer group of its own for a topic, in the
//! store for files. Brokers forget groups that nobody uses, after a week by default, so what they told is also kept in the
//! replay's own folder. Letters of a stage that are replayed in their order need one position for each partition. Letters
//! that a person names one by one do not wait for those before them: such a choice has a group, or an entry, of its own,
//! whose name lists the places.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::clients::kafka::letters::LetterTopic;
use crate::clients::letters::Place;
use crate::clients::letters::files::LetterFiles;
use crate::delivery::{Positions, checkpoint};
use crate::plan::letters_of;
use crate::record::{Partition, Position};
use crate::state::{Entries, Store};

use super::archive::places_of;

/// What replays of a pipeline's letters are called.
#[derive(Debug, Clone)]
pub(super) struct Names {
    pipeline: String,
}

/// Separates the identity of a file from the choice.
const CHOICE: char = '#';

impl Names {
    pub(super) fn of(pipeline: &str) -> Self {
        Self { pipeline: pipeline.to_owned() }
    }

    /// What the consumer groups of all replays begin with. Names of pipelines and stages have no `.` in them.
    fn prefix(&self) -> String {
        format!("{}.weir-dlq.", self.pipeline)
    }

    /// The consumer group of a replay.
    pub(super) fn group(&self, stage: &str, once: Option<&str>) -> String {
        let once = once.map(|once| format!(".{once}")).unwrap_or_default();
        format!("{}{stage}{once}", self.prefix())
    }

    /// Where the store keeps what the groups of a topic's replays have committed.
    fn memory(&self) -> String {
        format!("replayed letters of {}", self.pipeline)
    }

    /// What the positions of a replay of a file are stored by.
    pub(super) fn topic(identity: &str, once: Option<&str>) -> String {
        let once = once.map(|once| format!("{CHOICE}{once}")).unwrap_or_default();
        format!("{identity}{once}")
    }
}

/// Which letters were replayed.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// By stage and partition: letters before this offset.
    before: BTreeMap<(String, i32), i64>,
    /// By stage: letters that were chosen one by one.
    chosen: BTreeMap<String, BTreeSet<Place>>,
    /// The members of each consumer group.
    members: BTreeMap<String, Vec<String>>,
}

impl Progress {
    /// Of the letters in a topic: what its groups have committed, and what `store` remembers of those that are forgotten.
    ///
    /// # Errors
    /// If the brokers, or the store, do not tell.
    pub(super) async fn of_topic(
        topic: &LetterTopic,
        names: &Names,
        store: Option<&dyn Store>,
    ) -> Result<Self, String> {
        let mut positions = Positions::new();
        if let Some(store) = store {
            let entries = store.load(&names.memory()).await.map_err(|error| error.to_string())?;
            positions = checkpoint::decode_of(&entries, |_| true)?;
            positions.retain(|partition, _| &*partition.topic == topic.name());
        }
        let mut members = BTreeMap::new();
        for (group, of_group) in topic.groups(&names.prefix())? {
            for (number, offset) in topic.committed(&group)? {
                let (source, topic) = (Arc::from(group.as_str()), Arc::from(topic.name()));
                let known = positions.entry(Partition { source, topic, number }).or_insert(Position(offset));
                *known = Position(offset).max(*known);
            }
            members.insert(group, of_group);
        }
        if let Some(store) = store {
            let changes = checkpoint::encode(&positions);
            store.commit(&names.memory(), changes).await.map_err(|error| error.to_string())?;
        }
        let mut progress = Self { members, ..Self::default() };
        for (partition, position) in &positions {
            let Some(rest) = partition.source.strip_prefix(&names.prefix()) else { continue };
            let (stage, once) = rest.split_once('.').map_or((rest, None), |(stage, once)| (stage, Some(once)));
            match once {
                None => progress.add_all(stage, partition.number, position.0),
                Some(once) => {
                    let of_partition = places_of(once).into_iter().filter(|place| place.partition == partition.number);
                    progress.add_chosen(stage, of_partition, position.0);
                }
            }
        }
        Ok(progress)
    }

    /// Of the letters in files, by what the store has of the pipeline.
    ///
    /// # Errors
    /// If a file cannot be read, or an entry is damaged.
    pub(super) fn of_files(files: &LetterFiles, stored: &Entries) -> Result<Self, String> {
        Self::of_entries(stored, &files.identities()?)
    }

    /// Of the letters in files of these identities.
    fn of_entries(entries: &Entries, identities: &BTreeMap<String, i32>) -> Result<Self, String> {
        let suffix = letters_of("");
        let mut progress = Self::default();
        for (partition, position) in checkpoint::decode_of(entries, |source| source.ends_with(&*suffix))? {
            let stage = partition.source.strip_suffix(&*suffix).unwrap_or_default();
            let topic = &*partition.topic;
            if let Some(number) = identities.get(topic) {
                progress.add_all(stage, *number, position.0);
            } else if let Some((identity, once)) = topic.rsplit_once(CHOICE)
                && let Some(number) = identities.get(identity)
            {
                let of_file = places_of(once).into_iter().filter(|place| place.partition == 0);
                progress.add_chosen(stage, of_file.map(|place| Place { partition: *number, ..place }), position.0);
            }
        }
        Ok(progress)
    }

    /// All letters of a partition that stand before a position.
    fn add_all(&mut self, stage: &str, partition: i32, position: i64) {
        self.before.insert((stage.to_owned(), partition), position);
    }

    /// The letters of a partition that were chosen one by one, as far as they stand before a position.
    fn add_chosen(&mut self, stage: &str, places: impl IntoIterator<Item = Place>, position: i64) {
        let done = places.into_iter().filter(|place| place.offset < position);
        self.chosen.entry(stage.to_owned()).or_default().extend(done);
    }

    /// Whether the letter at a place was replayed into the stage that refused it.
    pub(super) fn has(&self, stage: &str, place: Place) -> bool {
        let before = self.before.get(&(stage.to_owned(), place.partition));
        before.is_some_and(|before| place.offset < *before)
            || self.chosen.get(stage).is_some_and(|places| places.contains(&place))
    }

    /// How far the replay of a stage's letters in their order came, by partition.
    pub(super) fn before(&self, stage: &str) -> BTreeMap<i32, i64> {
        let of_stage = self.before.iter().filter(|((of, _), _)| of == stage);
        of_stage.map(|((_, partition), offset)| (*partition, *offset)).collect()
    }

    /// The members of a consumer group.
    pub(super) fn members(&self, group: &str) -> &[String] {
        self.members.get(group).map_or(&[], Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::dlq::archive::once;
    use crate::clients::letters::replay::Selection;

    fn place(partition: i32, offset: i64) -> Place {
        Place { partition, offset }
    }

    #[test]
    fn a_choice_of_letters_is_known_by_its_name() {
        let mut selection = Selection::default();
        selection.add(place(1, 3));
        selection.add(place(0, 17));
        assert_eq!(once(&selection), "0-17_1-3");
        assert_eq!(places_of("0-17_1-3"), BTreeSet::from([place(0, 17), place(1, 3)]));
        assert_eq!(places_of("what_is-this_0-x_9999999999-1"), BTreeSet::new());
        let names = Names::of("orders");
        assert_eq!(names.group("priced", Some("0-17")), "orders.weir-dlq.priced.0-17");
        assert_eq!(names.group("priced", None), "orders.weir-dlq.priced");
    }

    #[test]
    fn letters_before_the_position_and_those_chosen_are_replayed() {
        let mut progress = Progress::default();
        progress.add_all("priced", 0, 5);
        progress.add_chosen("priced", places_of("0-17_0-21"), 18);
        assert!(progress.has("priced", place(0, 4)) && !progress.has("priced", place(0, 5)));
        assert!(progress.has("priced", place(0, 17)));
        // The replay was killed before it came so far.
        assert!(!progress.has("priced", place(0, 21)) && !progress.has("priced", place(1, 3)));
        assert!(!progress.has("other", place(0, 4)));
    }

    #[test]
    fn the_store_tells_of_these_files_and_no_others() {
        let at = |source: &str, topic: &str, position| {
            (Partition { source: Arc::from(source), topic: Arc::from(topic), number: 0 }, Position(position))
        };
        let positions: Positions = [
            at("priced.letters", &Names::topic("dead#aa", None), 2),
            at("priced.letters", &Names::topic("dead#aa", Some("0-7")), 8),
            at("priced.letters", &Names::topic("dead#bb", None), 100),
            at("priced.letters", &Names::topic("dead-2#cc", None), 1),
            at("priced.letters", &Names::topic("dead-2#cc", Some("0-3_0-4_1-5")), 100),
            at("priced", "dead#aa", 100),
        ]
        .into();
        let entries: Entries =
            checkpoint::encode(&positions).into_iter().map(|(key, value)| (key, value.unwrap())).collect();
        let identities = BTreeMap::from([("dead#aa".to_owned(), 0), ("dead-2#cc".to_owned(), 1)]);
        let progress = Progress::of_entries(&entries, &identities).unwrap();
        let done = |file| (0..10).filter(|line| progress.has("priced", place(file, *line))).collect::<Vec<i64>>();
        assert_eq!((done(0), done(1)), (vec![0, 1, 7], vec![0, 3, 4]));
    }
}
