//! The simulated components, and the plans made of them.

mod buffer;
mod file;
mod sink;
mod source;
mod store;
mod transaction;
mod transform;

use std::path::PathBuf;
use std::time::Duration;

pub(super) use file::length;
pub(super) use store::SimulatedStore;

use super::place::Place;
use super::scenario::{Scenario, SinkKind, SinkShape, SourceShape, Stage};
use crate::clients::buffer::WhenFull;
use crate::plan::{Buffer, Domain, Guarantee, OnError, Plan, SinkStage, SourceStage, TransformStage, Upstream};

/// The kind that simulated components share a transaction by.
const SIMULATED: &str = "simulated";

/// The name of the pipeline.
pub(super) const PIPELINE: &str = "simulated";
/// The name of the one that reads the log of the first.
pub(super) const SECOND: &str = "second";

/// The pipelines of a scenario, for one process, as they run: cut at their buffers, whose ends are watched.
pub(super) fn domains(place: &Place) -> Vec<Vec<Domain>> {
    plans(place).iter().map(|plan| buffer::watch(place, plan.domains())).collect()
}

/// The pipelines of a scenario, for one process.
pub(super) fn plans(place: &Place) -> Vec<Plan> {
    let scenario = &place.world.scenario;
    let mut plans = vec![first(place, scenario)];
    if scenario.chained {
        plans.push(second(place, scenario));
    }
    plans
}

/// The buffer before a stage, if it has one.
fn buffer_of(scenario: &Scenario, stage: Stage) -> Option<Buffer> {
    let has_one = scenario.buffers.contains(&stage);
    has_one.then_some(Buffer { disk: scenario.disk, when_full: WhenFull::Block })
}

/// The pipeline of a scenario.
fn first(place: &Place, scenario: &Scenario) -> Plan {
    let sources = scenario.sources.iter().enumerate().map(|(at, shape)| {
        let log = source::Log::Fixed { source: at, records: shape.records };
        source_stage(place, &format!("in{at}"), at, shape, log)
    });
    let transforms = scenario.transforms.iter().enumerate().map(|(at, shape)| TransformStage {
        name: format!("t{at}").into(),
        kind: SIMULATED,
        from: shape.from.clone(),
        compiled: transform::compiled(place, at, shape.kind),
        on_error: shape.on_error,
        buffer: buffer_of(scenario, Stage::Transform(at)),
    });
    let sinks = scenario.sinks.iter().enumerate().map(|(at, shape)| SinkStage {
        name: format!("out{at}").into(),
        kind: SIMULATED,
        from: shape.from.clone(),
        compiled: sink::compiled(place, sink::Purpose::Sink(at), shape.kind, shape.per_lane),
        on_error: shape.on_error,
        buffer: buffer_of(scenario, Stage::Sink(at)),
    });
    let mut plan = Plan {
        name: PIPELINE.into(),
        lanes: scenario.lanes,
        memory: Some(scenario.memory),
        sources: sources.collect(),
        transforms: transforms.collect(),
        sinks: sinks.collect(),
        dead_letter: Some(SinkStage {
            name: "dead_letter".into(),
            kind: SIMULATED,
            from: Vec::new(),
            compiled: sink::compiled(place, sink::Purpose::DeadLetter, scenario.dead_letter, false),
            on_error: OnError::Stop,
            buffer: None,
        }),
        ..empty(scenario)
    };
    // A buffer whose two sides meet again is refused by `check`.
    if !scenario.buffers.is_empty() && plan.count_domains() == 1 {
        plan.transforms.iter_mut().for_each(|stage| stage.buffer = None);
    }
    plan
}

/// The pipeline that reads what the first sink holds.
fn second(place: &Place, scenario: &Scenario) -> Plan {
    let SinkShape { kind, .. } = scenario.sinks[0];
    let shape = SourceShape { partitions: 1, records: 0, grouped: true };
    let kind = if kind == SinkKind::Unordered { SinkKind::Flushed } else { kind };
    Plan {
        name: SECOND.into(),
        sources: vec![source_stage(place, "log", scenario.sources.len(), &shape, source::Log::Between)],
        sinks: vec![SinkStage {
            name: "chained".into(),
            kind: SIMULATED,
            from: vec![Upstream::Source(0)],
            compiled: sink::compiled(place, sink::Purpose::Chained, kind, true),
            on_error: OnError::Stop,
            buffer: None,
        }],
        ..empty(scenario)
    }
}

fn empty(scenario: &Scenario) -> Plan {
    Plan {
        name: SECOND.into(),
        domain: None,
        file: PathBuf::new(),
        declared: crate::plan::Declared::default(),
        guarantee: if scenario.exactly_once { Guarantee::ExactlyOnce } else { Guarantee::AtLeastOnce },
        paths: Vec::new(),
        transactional: scenario.exactly_once,
        commit_interval: Duration::from_millis(500),
        lanes: 1,
        memory: None,
        sources: Vec::new(),
        transforms: Vec::new(),
        sinks: Vec::new(),
        dead_letter: None,
    }
}

fn source_stage(place: &Place, name: &str, group: usize, shape: &SourceShape, log: source::Log) -> SourceStage {
    SourceStage {
        name: name.into(),
        kind: SIMULATED,
        compiled: source::compiled(place, group, shape, log),
        on_error: OnError::Stop,
    }
}
