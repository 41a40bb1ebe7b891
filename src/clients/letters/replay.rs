//! A source of letters to be tried again: of all that another source reads, it yields the records within the letters that
//! were chosen, as they entered the stage that refused them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_stream::try_stream;
use futures::StreamExt;
use futures::stream::BoxStream;

use super::{Keeper, Place};
use crate::codecs::Codec;
use crate::component::{BoxSource, BuiltSource, CompiledSource, Pulled, Source, SourceContext, SourceError};
use crate::delivery::{Letter, NotALetter, Positions};
use crate::record::{Batch, BatchBuilder, BodyFormat, Draft, Partition, Position, Record};

/// The letters that were chosen, of one stage: offsets by partition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Selection(BTreeMap<i32, BTreeSet<i64>>);

impl Selection {
    /// Only what is of one partition, as if it were the first.
    pub(crate) fn of(&self, partition: i32) -> Self {
        Self(self.0.get(&partition).map(|offsets| (0, offsets.clone())).into_iter().collect())
    }

    /// The partitions that something was chosen of.
    pub(crate) fn partitions(&self) -> impl Iterator<Item = i32> {
        self.0.keys().copied()
    }

    pub(crate) fn add(&mut self, Place { partition, offset }: Place) {
        self.0.entry(partition).or_default().insert(offset);
    }

    fn has(&self, Place { partition, offset }: Place) -> bool {
        self.0.get(&partition).is_some_and(|offsets| offsets.contains(&offset))
    }

    pub(crate) fn len(&self) -> usize {
        self.0.values().map(BTreeSet::len).sum()
    }

    /// All of them, in order.
    pub(crate) fn places(&self) -> impl Iterator<Item = Place> {
        let of = |(&partition, offsets): (&i32, &BTreeSet<i64>)| {
            offsets.iter().map(move |&offset| Place { partition, offset }).collect::<Vec<_>>()
        };
        self.0.iter().flat_map(of)
    }

    /// The last letter of each partition, where it is not behind what was committed.
    fn ends(&self, stored: &StoredBy, committed: &Positions) -> BTreeMap<i32, i64> {
        let position = |(partition, position): (&Partition, &Position)| Some((stored.number(partition)?, position.0));
        let done: BTreeMap<i32, i64> = committed.iter().filter_map(position).collect();
        let last = |(&number, offsets): (&i32, &BTreeSet<i64>)| Some((number, *offsets.last()?));
        let is_left = |(number, last): &(i32, i64)| *last >= done.get(number).copied().unwrap_or(0);
        self.0.iter().filter_map(last).filter(is_left).collect()
    }
}

/// What the positions of letters are stored by.
#[derive(Debug, Clone)]
pub(crate) enum StoredBy {
    /// The topic that they are in.
    Topic(Arc<str>),
    /// A name for each file; the number is that of its letters' places.
    Files(Arc<BTreeMap<Arc<str>, i32>>),
}

impl StoredBy {
    /// The number of a partition in the places of letters.
    fn number(&self, partition: &Partition) -> Option<i32> {
        match self {
            Self::Topic(topic) => (*topic == partition.topic).then_some(partition.number),
            Self::Files(names) => names.get(&partition.topic).copied(),
        }
    }
}

/// What letters are read from, and where they go.
#[derive(Debug, Clone)]
pub(crate) struct Replay {
    pub(crate) keeper: Keeper,
    /// The stage that refused them.
    pub(crate) stage: Arc<str>,
    pub(crate) stored: StoredBy,
    pub(crate) selection: Arc<Selection>,
    /// How the stage decodes what it reads, if it is a source: its letters are records that were not decoded yet.
    pub(crate) decoded_by: Option<Codec>,
}

impl Replay {
    /// The source of the chosen letters among all that `all` reads.
    pub(crate) fn source(self, all: CompiledSource) -> CompiledSource {
        let build = all.build;
        let mut traits = all.traits;
        traits.finite = true;
        CompiledSource {
            traits,
            codec: self.decoded_by.unwrap_or(Codec::Raw),
            schema: all.schema,
            build: Arc::new(move |cx| {
                let BuiltSource { source, positions } = build(cx)?;
                Ok(BuiltSource { source: Box::new(ReplaySource { replay: self.clone(), all: source }), positions })
            }),
        }
    }

    fn read(&self, batch: &Batch, record: &Record) -> Result<Letter, NotALetter> {
        match self.keeper {
            Keeper::Topic(_) => {
                let body = (record.format != BodyFormat::Absent).then(|| batch.body(record));
                Letter::from_headers(body, batch.key(record), batch.headers(record), record.timestamp)
            }
            Keeper::File(_) | Keeper::Files { .. } => Letter::from_json(batch.body(record)),
        }
    }

    /// The chosen letters of a batch, as the records that they hold, one by one.
    fn open(&self, pulled: &Pulled) -> Result<Vec<Pulled>, SourceError> {
        let batch = &pulled.batch;
        let read_from = batch.origin();
        let mut letters = Vec::new();
        let Some(partition) = self.stored.number(read_from) else { return Ok(Vec::new()) };
        for record in batch.records() {
            let place = Place { partition, offset: record.offset };
            if self.selection.has(place) {
                // What a crash left uncommitted may have been cut off since, and another letter stand in its place.
                let chosen = self.read(batch, record).ok().filter(|letter| letter.stage == *self.stage);
                let letter = chosen.ok_or_else(|| {
                    let place = self.keeper.full(place);
                    SourceError::Fatal(format!(
                        "{place} is not the letter any more that was chosen: begin the replay again"
                    ))
                })?;
                letters.push((place, letter));
            }
        }
        Ok(letters.iter().map(|(place, letter)| self.record(*place, letter, read_from)).collect())
    }

    fn record(&self, place: Place, letter: &Letter, read_from: &Arc<Partition>) -> Pulled {
        let origin = Partition {
            source: letter.source.as_str().into(),
            topic: letter.topic.as_str().into(),
            number: letter.partition,
        };
        let mut batch = BatchBuilder::new(Arc::new(origin), 0, 1);
        let headers = letter.headers_of_replay(&self.keeper.full(place));
        let format = if letter.format == Some(BodyFormat::Absent) { BodyFormat::Absent } else { BodyFormat::Raw };
        batch.push_copy(Draft { headers: &headers, format, ..letter.record() });
        let batch = batch.finish();
        let batch = match self.format(letter) {
            // Whoever chose the letter has seen that the body is what it says. If it were not, the stage would judge it.
            BodyFormat::Json => decoded(batch),
            _ => batch,
        };
        Pulled { read_from: Some(Arc::clone(read_from)), ..Pulled::new(batch, Position(place.offset + 1)) }
    }

    /// What the stage is told of a body.
    fn format(&self, letter: &Letter) -> BodyFormat {
        match letter.format {
            Some(BodyFormat::Absent) => BodyFormat::Absent,
            _ if self.decoded_by.is_some() => BodyFormat::Raw,
            Some(format) => format,
            None if is_json(&letter.body) => BodyFormat::Json,
            None => BodyFormat::Raw,
        }
    }
}

/// Whether a body that a letter says to be JSON, or says nothing of, is.
pub(crate) fn is_json(body: &[u8]) -> bool {
    let mut batch = BatchBuilder::new(Arc::new(Partition { source: "".into(), topic: "".into(), number: 0 }), 0, 1);
    batch.push_copy(Draft { body, ..Draft::default() });
    !Codec::Json.decode(batch.finish(), &mut Vec::new()).is_empty()
}

fn decoded(batch: Batch) -> Batch {
    let mut rejected = Vec::new();
    let whole = batch.clone();
    let decoded = Codec::Json.decode(batch, &mut rejected);
    if rejected.is_empty() { decoded } else { whole }
}

struct ReplaySource {
    replay: Replay,
    all: BoxSource,
}

impl Source for ReplaySource {
    fn stream(&mut self, cx: SourceContext) -> BoxStream<'_, Result<Pulled, SourceError>> {
        let Self { replay, all } = self;
        let mut ends = replay.selection.ends(&replay.stored, &cx.committed);
        Box::pin(try_stream! {
            if !ends.is_empty() {
                let mut letters = all.stream(cx);
                while !ends.is_empty() && let Some(pulled) = letters.next().await {
                    let pulled = pulled?;
                    if let Some(number) = replay.stored.number(pulled.batch.origin()) {
                        let is_last = |record: &Record| ends.get(&number).is_some_and(|end| *end <= record.offset);
                        if pulled.batch.records().iter().any(is_last) {
                            ends.remove(&number);
                        }
                    }
                    for opened in replay.open(&pulled)? {
                        yield opened;
                    }
                }
            }
        })
    }
}
