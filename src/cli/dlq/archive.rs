//! The dead letters of a pipeline, wherever its dead letter put them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use super::progress::Names;
use crate::clients::kafka::letters::LetterTopic;
use crate::clients::letters::files::{LetterFiles, LetterPaths};
use crate::clients::letters::replay::{Replay, Selection, StoredBy};
use crate::clients::letters::{Keeper, Place, Visit};
use crate::clock::Clock;
use crate::component::{CheckContext, CompiledSource, Span};
use crate::delivery::{Letter, NotALetter, checkpoint};
use crate::expr::Schema;
use crate::plan::{Plan, letters_of};
use crate::state::Entries;

/// The dead letters of a pipeline.
#[derive(Debug, Clone)]
pub(super) enum Archive {
    Topic(LetterTopic),
    Files(LetterFiles),
}

impl Archive {
    /// Where a pipeline's dead letters are. `stored` is what the store has of the pipeline, as far as it can be read now.
    ///
    /// # Errors
    /// If it has none, or none that can be read again.
    pub(super) fn of(plan: &Plan, stored: Option<&Entries>) -> Result<Self, String> {
        let place = format!("{}: pipeline `{}`", plan.file.display(), plan.name);
        let (Some(stage), Some(config)) = (&plan.dead_letter, &plan.declared.dead_letter) else {
            return Err(format!(
                "{place} has no dead letter; add `dead_letter: {{ KIND: … }}` to keep what it refuses"
            ));
        };
        let opened = match stage.kind {
            "kafka" => LetterTopic::of(config).map(Self::Topic),
            "file" => LetterPaths::of(config).and_then(|paths| {
                let of_sink = stored.map(|entries| checkpoint::participant_entries(&stage.name, entries));
                paths.find(&of_sink.unwrap_or_default()).map(Self::Files)
            }),
            kind => Err(format!("what was written to `{kind}` cannot be read again; `kafka` and `file` can")),
        };
        opened.map_err(|why| format!("{place}: its dead letters cannot be read: {why}"))
    }

    pub(super) fn keeper(&self) -> Keeper {
        match self {
            Self::Topic(topic) => topic.keeper(),
            Self::Files(files) => files.keeper(),
        }
    }

    /// Shows every letter, in order.
    pub(super) fn scan(&self, clock: Clock, visit: &mut Visit<'_>) -> Result<(), String> {
        match self {
            Self::Topic(topic) => topic.scan(clock, visit),
            Self::Files(files) => files.scan(visit),
        }
    }

    /// The letter at a place; `None` if there is none.
    pub(super) fn at(&self, wanted: Place, clock: Clock) -> Result<Option<Result<Letter, NotALetter>>, String> {
        let mut found = None;
        let mut visit = |place: Place, letter| {
            if place == wanted {
                found = Some(letter);
            }
            // What stands behind it is of no interest.
            ControlFlow::Break(())
        };
        match self {
            Self::Topic(topic) => topic.scan_from(wanted, clock, &mut visit)?,
            Self::Files(files) => files.scan_from(wanted, &mut visit)?,
        }
        Ok(found)
    }

    /// A source of the chosen letters of a stage. `once` names the choice, if it is not simply the next ones.
    pub(super) fn source(&self, names: &Names, replay: Chosen<'_>) -> Result<CompiledSource, String> {
        let Chosen { stage, once, selection, decoded_by } = replay;
        let (all, stored) = match self {
            Self::Topic(topic) => {
                let group = names.group(stage, once);
                let spec = crate::sources::SOURCES.iter().find(|spec| spec.name == "kafka");
                let spec = spec.ok_or("this build has no `kafka` source")?;
                let mut cx = CheckContext::new(letters_of(stage), Span::default(), Schema::default());
                let compiled = (spec.compile)(&topic.source_config(&group), &mut cx).ok_or_else(|| {
                    let problems = cx.problems.iter().map(|problem| problem.message.as_str());
                    format!("the topic cannot be read: {}", problems.collect::<Vec<_>>().join("; "))
                })?;
                (compiled, StoredBy::Topic(topic.name().into()))
            }
            Self::Files(files) => {
                let chosen: BTreeSet<i32> = selection.partitions().collect();
                let identities = files.identities()?.into_iter().filter(|(_, number)| chosen.contains(number));
                let topic = |(identity, number): (String, i32)| {
                    // Within its file, a choice is one of the first and only partition.
                    let once = once.is_some().then(|| self::once(&selection.of(number)));
                    (Names::topic(&identity, once.as_deref()).into(), number)
                };
                let topics: Arc<BTreeMap<Arc<str>, i32>> = Arc::new(identities.map(topic).collect());
                (files.source(&topics), StoredBy::Files(topics))
            }
        };
        let replay = Replay { keeper: self.keeper(), stage: stage.into(), stored, selection, decoded_by };
        Ok(replay.source(all))
    }
}

/// The letters of a stage that are to be replayed.
pub(super) struct Chosen<'a> {
    pub(super) stage: &'a str,
    pub(super) once: Option<&'a str>,
    pub(super) selection: Arc<Selection>,
    pub(super) decoded_by: Option<crate::codecs::Codec>,
}

/// All places at which a stage's letters were replayed one by one, of a group's or an entry's name.
pub(super) fn places_of(once: &str) -> BTreeSet<Place> {
    let place = |text: &str| {
        let (partition, offset) = text.split_once('-')?;
        Some(Place { partition: partition.parse().ok()?, offset: offset.parse().ok()? })
    };
    once.split('_').filter_map(place).collect()
}

/// A choice of places as part of a name.
pub(super) fn once(selection: &Selection) -> String {
    let place = |Place { partition, offset }: Place| format!("{partition}-{offset}");
    selection.places().map(place).collect::<Vec<_>>().join("_")
}
