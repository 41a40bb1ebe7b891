//! A scenario for each seed: shapes that nobody would think of.

use std::time::Duration;

use super::outcome::Path;
use super::scenario::{Scenario, SinkKind, SinkShape, SourceShape, Stage, TransformKind, TransformShape};
use crate::component::Port;
use crate::plan::{OnError, Upstream};

impl Scenario {
    /// A scenario that follows from a seed: several sources and sinks, merges, fan-out and routes, one process or more.
    #[must_use]
    pub fn generated(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed ^ 0x5eed_0f5c_e7a5_1005);
        let random = &mut random;
        let exactly_once = random.bool();
        let processes = *pick(random, &[1, 1, 1, 2, 2, 3]);
        let grouped = exactly_once || processes > 1;
        let sources: Vec<_> = (0..random.usize(1..=3))
            .map(|_| SourceShape {
                partitions: random.i32(1..=4),
                records: random.i64(1..=24),
                grouped: grouped || random.u8(0..4) == 0,
            })
            .collect();
        let mut outputs: Vec<Upstream> = (0..sources.len()).map(Upstream::Source).collect();
        let mut transforms = Vec::new();
        for at in 0..random.usize(0..=Path::TRANSFORMS.min(4)) {
            let from = several(random, &outputs);
            let kind = *pick(
                random,
                &[TransformKind::Map, TransformKind::Filter, TransformKind::Route(2), TransformKind::Route(3)],
            );
            outputs.extend(match kind {
                TransformKind::Map | TransformKind::Filter => vec![Upstream::Transform(at, Port(0))],
                TransformKind::Route(ports) => (1..=ports).map(|port| Upstream::Transform(at, Port(port))).collect(),
            });
            transforms.push(TransformShape { from, kind, on_error: on_error(random) });
        }
        let sinks = (0..random.usize(1..=3))
            .map(|_| SinkShape {
                from: several(random, &outputs),
                kind: kind(random),
                per_lane: random.bool(),
                refuses: random.bool(),
                on_error: on_error(random),
            })
            .collect();
        let stages: Vec<Stage> = (0..transforms.len()).map(Stage::Transform).chain([Stage::Sink(0)]).collect();
        let mut scenario = Self {
            exactly_once,
            processes,
            lanes: random.usize(1..=4),
            memory: *pick(random, &[64, 1_000, 4_000, 1 << 20]),
            padding: *pick(random, &[0, 0, 100]),
            work: Duration::from_millis(*pick(random, &[0, 0, 30])),
            sources,
            transforms,
            sinks,
            dead_letter: kind(random),
            chained: random.u8(0..5) == 0,
            buffers: Vec::new(),
            disk: 0,
            faults: random.u32(0..=8),
            ends: random.u32(0..=4),
            menu: &[],
            planned: None,
            poisoned: (random.u8(0..6) == 0).then(|| *pick(random, &stages)),
            salt: random.u64(..),
            mutation: None,
        };
        if scenario.processes == 1 && !scenario.chained && random.bool() {
            scenario.buffer_some(random);
        }
        scenario
    }

    /// Puts a disk buffer before one or two stages.
    fn buffer_some(&mut self, random: &mut fastrand::Rng) {
        let transforms = (0..self.transforms.len()).map(Stage::Transform);
        let stages: Vec<Stage> = transforms.chain((0..self.sinks.len()).map(Stage::Sink)).collect();
        for _ in 0..random.usize(1..=2) {
            let stage = *pick(random, &stages);
            if !self.buffers.contains(&stage) {
                self.buffers.push(stage);
            }
        }
        self.disk = *pick(random, &[1, 100_000, 1 << 20]);
        if self.exactly_once {
            // With a buffer all is committed in the store, where one group at the most can have the last word.
            self.sources.iter_mut().for_each(|source| source.grouped = false);
            self.sources[0].grouped = random.bool();
        }
        if random.u8(0..4) == 0 {
            // Enough for more than one segment.
            self.padding = 8_000;
        }
    }
}

fn pick<'a, T>(random: &mut fastrand::Rng, of: &'a [T]) -> &'a T {
    &of[random.usize(0..of.len())]
}

/// One to three of what can be read, each once; the newest more often than not, so that chains grow.
fn several(random: &mut fastrand::Rng, outputs: &[Upstream]) -> Vec<Upstream> {
    let mut from = Vec::new();
    for _ in 0..*pick(random, &[1, 1, 2, 3]) {
        let upstream = if random.bool() { outputs[outputs.len() - 1] } else { *pick(random, outputs) };
        if !from.contains(&upstream) {
            from.push(upstream);
        }
    }
    from
}

fn kind(random: &mut fastrand::Rng) -> SinkKind {
    *pick(random, &[SinkKind::Flushed, SinkKind::Acknowledged, SinkKind::Unordered])
}

fn on_error(random: &mut fastrand::Rng) -> OnError {
    *pick(random, &[OnError::DeadLetter, OnError::DeadLetter, OnError::DeadLetter, OnError::Drop])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_always_gives_the_same_shape_and_all_kinds_come_up() {
        let shapes: Vec<_> = (0..100).map(|seed| Scenario::generated(seed).to_string()).collect();
        assert_eq!(shapes[7], Scenario::generated(7).to_string());
        for word in [
            "exactly once",
            "at least once",
            "3 processes",
            "Route(3)",
            "second pipeline",
            "bytes before t0",
            "bytes before out0",
            "Unordered",
            "t0, ",
            "cannot stand",
        ] {
            assert!(shapes.iter().any(|shape| shape.contains(word)), "{word}");
        }
    }
}
