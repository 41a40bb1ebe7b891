//! A plan that sends dead letters back: its sources are letters, each feeding the stage that refused them. Everything
//! behind that stage stands as it was declared; what no letter can reach is left out.

use std::sync::Arc;

use super::draft::listed;
use super::guarantee::Parts;
use super::{Guarantee, LETTERS, OnError, Plan, SourceStage, Upstream};
use crate::codecs::Codec;
use crate::component::{CompiledSource, nearest};

/// What the name of a source of letters ends with, behind the name of the stage that they are of. A pipeline file cannot
/// give a stage such a name.
const SUFFIX: &str = ".letters";

/// The name of the source of a stage's letters.
#[must_use]
pub fn letters_of(stage: &str) -> Arc<str> {
    format!("{stage}{SUFFIX}").into()
}

impl SourceStage {
    /// The stage that what it refuses comes from: itself, or the stage that its letters are of.
    #[must_use]
    pub fn refuses_as(&self) -> &str {
        match self.name.strip_suffix(SUFFIX) {
            Some(stage) if self.kind == LETTERS => stage,
            _ => &self.name,
        }
    }
}

/// A stage of a plan, by its index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entry {
    Source(usize),
    Transform(usize),
    Sink(usize),
}

impl Plan {
    fn entry(&self, stage: &str) -> Option<Entry> {
        let source = self.sources.iter().position(|source| &*source.name == stage).map(Entry::Source);
        let transform = || self.transforms.iter().position(|transform| &*transform.name == stage).map(Entry::Transform);
        let sink = || self.sinks.iter().position(|sink| &*sink.name == stage).map(Entry::Sink);
        source.or_else(transform).or_else(sink)
    }

    /// Its stages by name, in the order of the file.
    pub fn stages(&self) -> impl Iterator<Item = &str> {
        let sources = self.sources.iter().map(|stage| &*stage.name);
        let transforms = self.transforms.iter().map(|stage| &*stage.name);
        sources.chain(transforms).chain(self.sinks.iter().map(|stage| &*stage.name))
    }

    /// How letters of a stage are decoded: by the codec of the source if the stage is one, for they were refused before that.
    ///
    /// # Errors
    /// If it has no such stage.
    pub fn decodes(&self, stage: &str) -> Result<Option<Codec>, String> {
        match self.entry(stage) {
            Some(Entry::Source(at)) => Ok(Some(self.sources[at].compiled.codec)),
            Some(Entry::Transform(_) | Entry::Sink(_)) => Ok(None),
            None => {
                let meant = nearest(stage, self.stages()).map(|near| format!(", did you mean `{near}`?"));
                let stages: Vec<_> = self.stages().map(str::to_owned).collect();
                let meant = meant.unwrap_or_else(|| format!(": its stages are {}", listed(&stages)));
                Err(format!("pipeline `{}` has no stage `{stage}`{meant}", self.name))
            }
        }
    }

    /// The plan in which letters, given by the stage that refused them, enter that stage again.
    ///
    /// # Errors
    /// If a stage is not in the plan, or if the letters cannot be part of the transaction that it promises.
    pub fn replaying(mut self, letters: Vec<(Arc<str>, CompiledSource)>) -> Result<Self, String> {
        let mut entries = Vec::new();
        let mut sources = Vec::new();
        for (stage, compiled) in letters {
            self.decodes(&stage)?;
            let entry = self.entry(&stage).ok_or_else(|| format!("there is no stage `{stage}`"))?;
            let on_error = match entry {
                Entry::Source(at) => self.sources[at].on_error,
                // Such letters are decoded already: nothing is refused here.
                Entry::Transform(_) | Entry::Sink(_) => OnError::Stop,
            };
            entries.push(entry);
            sources.push(SourceStage { name: letters_of(&stage), kind: LETTERS, compiled, on_error });
        }
        // Where a stage's letters enter.
        let entering = |wanted: Entry| entries.iter().position(|entry| *entry == wanted).map(Upstream::Source);

        let mut moved: Vec<Option<usize>> = Vec::new();
        let mut transforms = Vec::new();
        let upstreams = |from: &[Upstream], moved: &[Option<usize>], own: Option<Upstream>| -> Vec<Upstream> {
            let feeds = |upstream: &Upstream| match *upstream {
                Upstream::Source(at) => entering(Entry::Source(at)),
                Upstream::Transform(at, port) => moved[at].map(|at: usize| Upstream::Transform(at, port)),
            };
            from.iter().filter_map(feeds).chain(own).collect()
        };
        for (at, mut stage) in self.transforms.into_iter().enumerate() {
            stage.from = upstreams(&stage.from, &moved, entering(Entry::Transform(at)));
            // It ends with its last letter, so nothing is gained by a buffer.
            stage.buffer = None;
            moved.push((!stage.from.is_empty()).then_some(transforms.len()));
            if !stage.from.is_empty() {
                transforms.push(stage);
            }
        }
        let mut sinks = Vec::new();
        for (at, mut stage) in self.sinks.into_iter().enumerate() {
            stage.from = upstreams(&stage.from, &moved, entering(Entry::Sink(at)));
            stage.buffer = None;
            if !stage.from.is_empty() {
                sinks.push(stage);
            }
        }
        let parts = Parts {
            sources: &sources,
            transforms: &transforms,
            sinks: &sinks,
            dead_letter: self.dead_letter.as_ref(),
            commit_interval: self.commit_interval,
            stated: self.transactional.then_some(Guarantee::ExactlyOnce),
            could_be_exact: false,
        };
        if self.transactional && parts.shared_transaction().is_none() {
            return Err(format!(
                "pipeline `{}` promises exactly once, and the dead letters cannot be read in its transaction; say \
                 `guarantee: at_least_once` in a copy of its file, and replay `--through` that",
                self.name
            ));
        }
        self.paths = parts.paths();
        self.guarantee = self.paths.iter().map(|path| path.guarantee).min().unwrap_or(Guarantee::AtLeastOnce);
        Ok(Self { sources, transforms, sinks, ..self })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::planned;
    use super::*;
    use crate::component::Port;

    const FILE: &str = "
sources: { one: { kafka: { topics: [t] } }, two: { stdin: { } } }
transforms:
- { name: first, from: one, map: .a = 1 }
- { name: split, from: [first, two], route: { big: .a > 1, else: x } }
- { name: last, from: split.big, map: .b = 1 }
sinks:
  kept: { from: last, kafka: { topic: u } }
  rest: { from: split.else, stdout: }
dead_letter: { kafka: { topic: dead } }
";

    fn replaying(stages: &[&str]) -> Plan {
        let plan = planned(FILE).0.unwrap();
        let letters = plan.sources[0].compiled.clone();
        let letters = stages.iter().map(|stage| (Arc::from(*stage), letters.clone())).collect();
        plan.replaying(letters).unwrap()
    }

    fn shape(plan: &Plan) -> Vec<(String, Vec<Upstream>)> {
        let transforms = plan.transforms.iter().map(|stage| (stage.name.to_string(), stage.from.clone()));
        transforms.chain(plan.sinks.iter().map(|stage| (stage.name.to_string(), stage.from.clone()))).collect()
    }

    #[test]
    fn letters_enter_their_stage_and_go_on_as_declared() {
        let plan = replaying(&["split"]);
        assert!(plan.is_replay());
        assert_eq!((&*plan.sources[0].name, plan.sources[0].refuses_as()), ("split.letters", "split"));
        assert_eq!(
            shape(&plan),
            [
                ("split".to_owned(), vec![Upstream::Source(0)]),
                ("last".to_owned(), vec![Upstream::Transform(0, Port(1))]),
                ("kept".to_owned(), vec![Upstream::Transform(1, Port(0))]),
                ("rest".to_owned(), vec![Upstream::Transform(0, Port(2))]),
            ]
        );
    }

    #[test]
    fn what_no_letter_reaches_is_left_out() {
        assert_eq!(shape(&replaying(&["kept"])), [("kept".to_owned(), vec![Upstream::Source(0)])]);
    }

    #[test]
    fn letters_of_a_source_go_where_its_records_go() {
        let plan = replaying(&["last", "one"]);
        assert_eq!(shape(&plan)[0], ("first".to_owned(), vec![Upstream::Source(1)]));
        assert_eq!(shape(&plan)[1], ("split".to_owned(), vec![Upstream::Transform(0, Port(0))]));
        assert_eq!(shape(&plan)[2], ("last".to_owned(), vec![Upstream::Transform(1, Port(1)), Upstream::Source(0)]));
        assert_eq!(plan.sources[1].refuses_as(), "one");
    }

    #[test]
    fn a_stage_that_is_not_there_is_named_with_those_that_are() {
        let plan = planned(FILE).0.unwrap();
        assert_eq!(plan.decodes("one"), Ok(Some(Codec::Json)));
        assert_eq!(plan.decodes("kept"), Ok(None));
        let error = plan.decodes("keept").unwrap_err();
        assert_eq!(error, "pipeline `orders` has no stage `keept`, did you mean `kept`?");
        let error = plan.decodes("priced_totals").unwrap_err();
        assert!(error.ends_with("its stages are `one`, `two`, `first`, `split`, `last`, `kept`, `rest`"), "{error}");
    }
}
