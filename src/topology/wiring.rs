//! From a plan to the tasks of one run: every stage in every lane, and the channels between them.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::{Mutex, mpsc};

use super::channel::{Reader, Writer, channel};
use super::commits::Commits;
use super::inputs::Inputs;
use super::outputs::{Ports, Rejects};
use super::pace::Pace;
use super::parts::{Parts, SinkPart};
use super::quarantine::Quarantine;
use super::report::Reports;
use super::stage::{Command, Commands, SinkTask, SourceTask, StageContext, TransformTask};
use super::trouble::Troubles;
use crate::component::{EpochRequests, Port, SourceContext};
use crate::delivery::DeadLetterForm;
use crate::observe::StageMetrics;
use crate::plan::{DEAD_LETTER, OnError, Plan, SinkStage, Upstream};
use crate::record::budget::Budget;
use crate::runtime::Runtime;

/// Room for every command that can be under way: a few barriers, a stop, the partitions of a rebalance.
const COMMANDS: usize = 64;

/// The tasks of one run, ready to be spawned.
pub(super) struct Wired {
    pub(super) sources: Vec<SourceTask>,
    pub(super) transforms: Vec<TransformTask>,
    /// The dead letter last.
    pub(super) sinks: Vec<SinkTask>,
    pub(super) commands: Commands,
}

/// What all stages of a run share.
pub(super) struct Shared {
    pub(super) run: u64,
    pub(super) runtime: Runtime,
    pub(super) budget: Budget,
    pub(super) reports: Reports,
    pub(super) requests: EpochRequests,
    pub(super) troubles: Troubles,
    pub(super) commits: Commits,
    pub(super) pace: Pace,
    pub(super) quarantine: Quarantine,
}

/// The writers of every stage, filled while the readers are made.
struct Fabric<'a> {
    plan: &'a Plan,
    shared: &'a Shared,
    /// By source, by lane.
    sources: Vec<Vec<Ports>>,
    /// By transform, by lane.
    transforms: Vec<Vec<Ports>>,
    dead_letter: Option<&'a StageMetrics>,
    dead_letters: Vec<Reader>,
}

impl Fabric<'_> {
    /// The channel from an upstream stage into one lane of a reader.
    fn connect(&mut self, from: Upstream, lane: usize, reader: &StageMetrics) -> Reader {
        let (writing, reading) = channel(self.shared.run, reader);
        match from {
            Upstream::Source(source) => self.sources[source][lane].connect(Port(0), writing),
            Upstream::Transform(transform, port) => self.transforms[transform][lane].connect(port, writing),
        }
        reading
    }

    /// The inputs of a stage in the given lanes.
    fn inputs(&mut self, from: &[Upstream], lanes: std::ops::Range<usize>, reader: &StageMetrics) -> Inputs {
        let readers = lanes.flat_map(|lane| from.iter().map(move |&upstream| (upstream, lane)));
        Inputs::new(readers.map(|(upstream, lane)| self.connect(upstream, lane, reader)).collect())
    }

    /// Where one lane of a stage sends what it refuses.
    fn rejects(&mut self, stage: &str, on_error: OnError, metrics: &StageMetrics) -> Rejects {
        let dead_letter: Option<Writer> = self.dead_letter.map(|reader| {
            let (writing, reading) = channel(self.shared.run, reader);
            self.dead_letters.push(reading);
            writing
        });
        let form = self.plan.dead_letter.as_ref().map(|sink| DeadLetterForm {
            pipeline: Arc::clone(&self.plan.name),
            version: Arc::clone(&self.plan.declared.version),
            headers: sink.compiled.traits.carries_headers,
            is_replay: self.plan.is_replay(),
        });
        Rejects {
            stage: stage.into(),
            on_error,
            is_dead_letter: false,
            form,
            dead_letter,
            metrics: metrics.clone(),
            budget: self.shared.budget.clone(),
            clock: self.shared.runtime.clock(),
        }
    }

    fn context(&self, name: &Arc<str>, metrics: &StageMetrics) -> StageContext {
        StageContext {
            name: Arc::clone(name),
            run: self.shared.run,
            runtime: self.shared.runtime.clone(),
            metrics: metrics.clone(),
            budget: self.shared.budget.clone(),
            reports: self.shared.reports.clone(),
            troubles: self.shared.troubles.clone(),
            commits: self.shared.commits.clone(),
            quarantine: self.shared.quarantine.clone(),
        }
    }
}

/// Lays the channels of a run and puts each component into its stage.
pub(super) fn wire(plan: &Plan, parts: &Parts, shared: &Shared) -> Wired {
    let lanes = plan.lanes;
    let empty = |stages: usize| (0..stages).map(|_| (0..lanes).map(|_| Ports::default()).collect()).collect();
    let mut fabric = Fabric {
        plan,
        shared,
        sources: empty(plan.sources.len()),
        transforms: empty(plan.transforms.len()),
        dead_letter: parts.dead_letter.as_ref().map(|part| &part.metrics),
        dead_letters: Vec::new(),
    };

    // Readers first: each connects itself to the ports of what it reads.
    let mut transforms = Vec::new();
    for (stage, metrics) in plan.transforms.iter().zip(&parts.transforms) {
        for lane in 0..lanes {
            let inputs = fabric.inputs(&stage.from, lane..lane + 1, metrics);
            let rejects = fabric.rejects(&stage.name, stage.on_error, metrics);
            transforms.push((fabric.context(&stage.name, metrics), inputs, rejects));
        }
    }
    let mut sinks = Vec::new();
    for (stage, part) in plan.sinks.iter().zip(&parts.sinks) {
        let instances = part.instances.len();
        for (at, instance) in part.instances.iter().enumerate() {
            let of_instance = if instances == 1 { 0..lanes } else { at..at + 1 };
            let inputs = fabric.inputs(&stage.from, of_instance, &part.metrics);
            let rejects = fabric.rejects(&stage.name, stage.on_error, &part.metrics);
            let rejects = Rejects { is_dead_letter: is_dead_letter(stage), ..rejects };
            sinks.push(sink_task(&fabric, stage, part, instance, inputs, rejects, sinks.len()));
        }
    }

    let mut source_rejects = Vec::new();
    for (stage, part) in plan.sources.iter().zip(&parts.sources) {
        source_rejects.push(fabric.rejects(stage.refuses_as(), stage.on_error, &part.metrics));
    }
    if let (Some(stage), Some(part)) = (&plan.dead_letter, &parts.dead_letter) {
        let inputs = Inputs::new(std::mem::take(&mut fabric.dead_letters));
        // What the dead letter itself refuses has nowhere to go.
        let rejects = Rejects {
            stage: Arc::clone(&stage.name),
            on_error: OnError::Stop,
            is_dead_letter: true,
            form: None,
            dead_letter: None,
            metrics: part.metrics.clone(),
            budget: shared.budget.clone(),
            clock: shared.runtime.clock(),
        };
        sinks.push(sink_task(&fabric, stage, part, &part.instances[0], inputs, rejects, sinks.len()));
    }

    let mut commands = Vec::new();
    let mut sources = Vec::new();
    let source_ports = std::mem::take(&mut fabric.sources);
    for (index, ((stage, part), (ports, rejects))) in
        plan.sources.iter().zip(&parts.sources).zip(source_ports.into_iter().zip(source_rejects)).enumerate()
    {
        let (telling, told) = mpsc::channel::<Command>(COMMANDS);
        commands.push(telling);
        sources.push(SourceTask {
            cx: fabric.context(&stage.name, &part.metrics),
            index,
            source: Arc::clone(&part.source),
            source_cx: SourceContext {
                committed: parts.ledger.accounts[index].committed(),
                epochs: shared.requests.clone(),
                runtime: shared.runtime.clone(),
                waiting: shared.troubles.waiting(&stage.name),
            },
            codec: stage.compiled.codec,
            lanes: ports,
            rejects,
            pace: shared.pace.clone(),
            commands: told,
        });
    }

    let ports = std::mem::take(&mut fabric.transforms).into_iter().flatten();
    let builders = plan.transforms.iter().flat_map(|stage| std::iter::repeat_n(&stage.compiled.build, lanes));
    let transforms = transforms
        .into_iter()
        .zip(ports)
        .zip(builders)
        .map(|(((cx, inputs, rejects), ports), build)| TransformTask { cx, transform: build(), inputs, ports, rejects })
        .collect();
    Wired { sources, transforms, sinks, commands }
}

/// Whether a sink is where letters go: fed by every stage, or, behind buffers, a domain of its own.
fn is_dead_letter(stage: &SinkStage) -> bool {
    stage.from.is_empty() || &*stage.name == DEAD_LETTER
}

fn sink_task(
    fabric: &Fabric<'_>,
    stage: &SinkStage,
    part: &SinkPart,
    instance: &Arc<Mutex<crate::component::BoxSink>>,
    inputs: Inputs,
    rejects: Rejects,
    index: usize,
) -> SinkTask {
    SinkTask {
        cx: fabric.context(&stage.name, &part.metrics),
        index,
        sink: Arc::clone(instance),
        inputs,
        one_by_one: rejects.on_error == OnError::Retry,
        alone: None,
        settled: VecDeque::new(),
        rejects,
        is_dead_letter: is_dead_letter(stage),
        transactional: fabric.plan.transactional,
    }
}
