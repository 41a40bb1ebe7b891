//! What must come out, what did, and whether the promise was kept.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::scenario::{Destination, Fate, Id, Scenario, SinkKind, Stage};
use crate::component::Port;
use crate::plan::{OnError, Upstream};

/// The outputs of transforms that a record went through, five bits each. Order is kept along a path: where branches merge
/// again, each keeps its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Path(pub(super) u32);

impl Path {
    /// So many transforms, and so many outputs of each, have five bits for each of their outputs, and room for all.
    pub(super) const TRANSFORMS: usize = 6;

    pub(super) fn through(self, transform: usize, port: Port) -> Self {
        let output = 4 * u32::try_from(transform).unwrap_or(0) + u32::from(port.0) + 1;
        Self(self.0 << 5 | output)
    }
}

/// A record that came by a path, at one of its destinations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// Where it came.
    pub to: Destination,
    /// Which record.
    pub id: Id,
    /// On which way.
    pub path: Path,
}

/// What a record is written as: everything that the oracles ask for.
pub(super) fn body(id: Id, path: Path, padding: usize) -> Vec<u8> {
    let mut body = Vec::with_capacity(17 + padding);
    body.push(u8::try_from(id.source).unwrap_or(u8::MAX));
    body.extend(id.partition.to_le_bytes());
    body.extend(path.0.to_le_bytes());
    body.extend(id.offset.to_le_bytes());
    body.resize(17 + padding, 0);
    body
}

/// Reads what [`body`] wrote.
pub(super) fn read(body: &[u8]) -> Option<(Id, Path)> {
    let (&source, rest) = body.split_first()?;
    let (partition, rest) = rest.split_first_chunk()?;
    let (path, rest) = rest.split_first_chunk()?;
    let (offset, _) = rest.split_first_chunk()?;
    let (partition, offset) = (i32::from_le_bytes(*partition), i64::from_le_bytes(*offset));
    Some((Id { source: usize::from(source), partition, offset }, Path(u32::from_le_bytes(*path))))
}

/// What came out, in order of arrival.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Delivered(BTreeMap<Destination, Vec<Arrival>>);

impl Delivered {
    pub(super) fn push(&mut self, arrival: Arrival) {
        self.0.entry(arrival.to).or_default().push(arrival);
    }

    /// What came to one place.
    #[must_use]
    pub fn at(&self, destination: Destination) -> &[Arrival] {
        self.0.get(&destination).map_or(&[], Vec::as_slice)
    }

    /// How many records came out, wherever.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.values().map(Vec::len).sum()
    }

    /// Whether nothing came out.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Records of one partition that come by one path to one destination keep their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Stream {
    to: Destination,
    source: usize,
    partition: i32,
    path: Path,
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { to, source, partition, path } = self;
        write!(f, "partition {partition} of in{source} by path {:x} to {to:?}", path.0)
    }
}

fn stream(Arrival { to, id, path }: Arrival) -> Stream {
    Stream { to, source: id.source, partition: id.partition, path }
}

/// What must come out.
#[derive(Debug, Default)]
pub(super) struct Expected(BTreeMap<Stream, BTreeSet<i64>>);

impl Expected {
    /// Follows each record through the pipeline.
    pub(super) fn of(scenario: &Scenario) -> Self {
        let mut expected = Self::default();
        for (source, shape) in scenario.sources.iter().enumerate() {
            for partition in 0..shape.partitions {
                for offset in 0..shape.records {
                    let id = Id { source, partition, offset };
                    expected.follow(scenario, Upstream::Source(source), id, Path::default());
                }
            }
        }
        expected
    }

    fn follow(&mut self, scenario: &Scenario, upstream: Upstream, id: Id, path: Path) {
        for (at, transform) in scenario.transforms.iter().enumerate() {
            if !transform.from.contains(&upstream) {
                continue;
            }
            let stage = Stage::Transform(at);
            match scenario.fate(at, id) {
                _ if scenario.is_poison(stage, id) => self.refuse(stage, transform.on_error, id, path),
                Fate::Passed(port) => self.follow(scenario, Upstream::Transform(at, port), id, path.through(at, port)),
                Fate::Dropped => {}
                Fate::Refused => self.refuse(stage, transform.on_error, id, path),
            }
        }
        for (at, sink) in scenario.sinks.iter().enumerate().filter(|(_, sink)| sink.from.contains(&upstream)) {
            let stage = Stage::Sink(at);
            if scenario.is_refused(at, id) || scenario.is_poison(stage, id) {
                self.refuse(stage, sink.on_error, id, path);
                continue;
            }
            self.add(Arrival { to: Destination::Sink(at), id, path });
            if scenario.chained && at == 0 {
                self.add(Arrival { to: Destination::Chained, id, path });
            }
        }
    }

    fn refuse(&mut self, stage: Stage, on_error: OnError, id: Id, path: Path) {
        if on_error == OnError::DeadLetter {
            self.add(Arrival { to: Destination::Letter(stage), id, path });
        }
    }

    fn add(&mut self, arrival: Arrival) {
        self.0.entry(stream(arrival)).or_default().insert(arrival.id.offset);
    }

    /// Holds the promise against what came out: nothing is lost, nothing strange appears, and the order of each partition
    /// is kept; and where nothing may repeat, nothing does.
    ///
    /// # Errors
    /// Which record breaks which promise.
    pub(super) fn check(&self, scenario: &Scenario, delivered: &Delivered, once: bool) -> Result<(), String> {
        let mut came: BTreeMap<Stream, Vec<i64>> = BTreeMap::new();
        for arrival in delivered.0.values().flatten() {
            came.entry(stream(*arrival)).or_default().push(arrival.id.offset);
        }
        if let Some(strange) = came.keys().find(|stream| !self.0.contains_key(stream)) {
            return Err(format!("nothing was to come of {strange}"));
        }
        for (stream, expected) in &self.0 {
            let came = came.get(stream).map_or(&[][..], Vec::as_slice);
            let seen: BTreeSet<i64> = came.iter().copied().collect();
            if let Some(lost) = expected.difference(&seen).next() {
                return Err(format!("offset {lost} was lost: {stream}"));
            }
            if let Some(strange) = seen.difference(expected).next() {
                return Err(format!("offset {strange} does not belong there: {stream}"));
            }
            if once && came.len() != seen.len() {
                return Err(format!("{} records came more than once: {stream}", came.len() - seen.len()));
            }
            if keeps_order(scenario, stream.to)
                && let Some(offset) = out_of_order(came)
            {
                return Err(format!("offset {offset} came before an earlier one: {stream}"));
            }
        }
        Ok(())
    }
}

/// The first offset that came before a smaller one had come. What is repeated later does no harm.
fn out_of_order(came: &[i64]) -> Option<i64> {
    let mut newest = i64::MIN;
    let mut seen = BTreeSet::new();
    for &offset in came {
        if seen.insert(offset) && offset < newest {
            return Some(newest);
        }
        newest = newest.max(offset);
    }
    None
}

fn keeps_order(scenario: &Scenario, to: Destination) -> bool {
    let kind = match to {
        Destination::Sink(at) => scenario.sinks[at].kind,
        Destination::Chained => scenario.sinks[0].kind,
        Destination::Letter(_) => scenario.dead_letter,
    };
    scenario.exactly_once || kind != SinkKind::Unordered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_tells_its_record_and_its_path() {
        let id = Id { source: 2, partition: 7, offset: 1 << 40 };
        let path = Path::default().through(0, Port(0)).through(4, Port(3));
        assert_eq!(read(&body(id, path, 3)), Some((id, path)));
        assert_eq!(read(b"short"), None);
    }

    #[test]
    fn a_repeat_keeps_the_order_and_a_record_that_overtakes_does_not() {
        assert_eq!(out_of_order(&[0, 1, 2, 1, 2, 5]), None);
        assert_eq!(out_of_order(&[0, 2, 1]), Some(2));
    }

    #[test]
    fn each_breach_of_the_promise_is_told() {
        let scenario = Scenario::small(false);
        let expected = Expected::of(&scenario);
        let mut sound = Delivered::default();
        for (stream, offsets) in &expected.0 {
            for &offset in offsets {
                let id = Id { source: stream.source, partition: stream.partition, offset };
                sound.push(Arrival { to: stream.to, id, path: stream.path });
            }
        }
        assert_eq!(expected.check(&scenario, &sound, true), Ok(()));
        let broken = |change: &dyn Fn(&mut Vec<Arrival>)| {
            let mut delivered = sound.clone();
            change(delivered.0.get_mut(&Destination::Sink(0)).unwrap());
            expected.check(&scenario, &delivered, true).unwrap_err()
        };
        assert!(broken(&|came| came.truncate(3)).contains("was lost"));
        assert!(broken(&|came| came.push(came[0])).contains("more than once"));
        assert!(broken(&|came| came.swap(0, 1)).contains("came before"));
        let strange = broken(&|came| {
            came.push(came[0]);
            came[0].id.offset = 99;
        });
        assert!(strange.contains("does not belong"), "{strange}");
    }
}
