//! The deterministic simulation: the real topology over sources, transforms, sinks, groups, transactions and stores in
//! memory, in one process or several.
//!
//! One seed decides everything: which task runs next, how long things take, what fails, and when a process crashes or is
//! held still. All processes share one tokio runtime with a paused clock; the tasks of a process that is gone never run
//! again, and its next life starts from what the world holds durably. The same seed gives the same trace, byte for byte.

mod cluster;
mod components;
mod disk;
mod faults;
mod generator;
mod lives;
mod member;
mod mutation;
mod outcome;
mod place;
mod scenario;
mod world;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

pub use faults::{Fault, Planned, Step};
pub use mutation::Mutation;
pub use outcome::{Arrival, Delivered, Path};
pub use scenario::{Destination, Id, Scenario, SinkKind, SinkShape, SourceShape, Stage, TransformKind, TransformShape};

use crate::runtime::{Process, Runtime};
use crate::topology::{self, PipelineEnd};
use disk::Folder;
use outcome::Expected;
use place::Place;
use world::World;

/// What a simulation came to.
#[derive(Debug)]
pub struct Report {
    /// What the world held at the end.
    pub delivered: Delivered,
    /// Everything that happened, in order.
    pub trace: String,
    /// How many lives all processes had together.
    pub lives: u32,
    /// How often a pipeline went back to its last commit.
    pub restarts: u64,
    /// How many turns the tasks of processes that ended in order had.
    pub turns: u64,
    /// How long a process took at the most to stop when it was asked to.
    pub longest_stop: Duration,
    /// How many disk buffers there were, those before the dead letter among them.
    pub buffers: usize,
    /// How often each process joined its group.
    pub joins: Vec<u32>,
}

/// Runs a scenario under a seed until all records are through, over as many lives as it takes.
///
/// # Errors
/// What went wrong, with the shape and the trace: a record lost, repeated or out of order, a pipeline that hangs or fails.
pub fn run(seed: u64, scenario: &Scenario) -> Result<Report, String> {
    let executor = executor();
    executor.block_on(async {
        let folder = Folder::new();
        let world = World::new(seed, scenario, &folder);
        let failed = |what: String| format!("seed {seed}: {what}\n{scenario}\n{}", world.trace());
        let lives = lives::live(seed, &world).await.map_err(failed)?;
        let (delivered, expected) = (world.delivered(), Expected::of(scenario));
        // A process that stops or joins in order makes no repeat; only a failure does.
        let once = scenario.exactly_once || !(world.has_faulted() || scenario.poisoned.is_some());
        expected.check(scenario, &delivered, once).map_err(failed)?;
        Ok(Report {
            delivered,
            trace: world.trace(),
            lives: lives.count,
            restarts: lives.restarts,
            turns: lives.turns,
            longest_stop: lives.longest_stop,
            buffers: world.disk.buffers(0).len(),
            joins: (0..scenario.processes).map(|instance| world.joins(instance)).collect(),
        })
    })
}

fn executor() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without I/O takes nothing from the system")
}

/// Runs a pipeline that fails beside one that does not, in one process, and returns how often each was restarted.
///
/// # Errors
/// If either does not end, or breaks its promise.
pub fn run_beside_a_failing_one(seed: u64) -> Result<(u64, u64), String> {
    let failing = Scenario { faults: 8, ends: 0, ..Scenario::small(false) };
    let sound = Scenario { faults: 0, ends: 0, ..Scenario::small(false) };
    executor().block_on(async {
        let folder = Folder::new();
        let process = Process::default();
        let runtime = Runtime::of_process(seed, process.clone());
        let place = |scenario| Place {
            world: World::new(seed, scenario, &folder),
            process: process.clone(),
            instance: 0,
            runtime: runtime.clone(),
            stop: CancellationToken::new(),
        };
        let places = [place(&failing), place(&sound)];
        // The store of the sound one: a store that fails fails everybody who needs it.
        let host = lives::host(&places[1]);
        let status = host.status.clone();
        let named = |place: &Place, name: &'static str| {
            components::plans(place).into_iter().map(move |mut plan| {
                plan.name = Arc::from(name);
                plan
            })
        };
        let plans = named(&places[0], "failing").chain(named(&places[1], "sound")).collect();
        let ends = topology::run(plans, host, CancellationToken::new()).await;
        if let Some((name, end)) = ends.iter().find(|(_, end)| *end != PipelineEnd::Finished) {
            return Err(format!("seed {seed}: `{name}` ended as {end:?}"));
        }
        for (place, scenario) in places.iter().zip([&failing, &sound]) {
            let delivered = place.world.delivered();
            let checked = Expected::of(scenario).check(scenario, &delivered, !place.world.has_faulted());
            checked.map_err(|error| format!("seed {seed}: {error}\n{}", place.world.trace()))?;
        }
        let restarts = |name| status.get(name).map_or(0, |status| status.restarts);
        Ok((restarts("failing"), restarts("sound")))
    })
}
