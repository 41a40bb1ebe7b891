//! The deterministic simulation: the real topology over a source, sinks, a transaction and a store in memory.
//!
//! One seed decides everything: which task runs next, how long things take, what fails, and when the process crashes. A
//! process life is one tokio runtime with a paused clock; a crash drops it with everything in it, and the next life starts
//! from what the [`World`] holds durably. The same seed gives the same trace, byte for byte.

mod components;
mod faults;
mod world;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

pub use faults::{Fault, Faults, Step};
pub use world::{Delivered, World};

use crate::observe::{Metrics, StatusBoard};
use crate::runtime::Runtime;
use crate::topology::{self, Host, PipelineEnd};

/// What is simulated.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// Whether outputs and positions are committed in one transaction.
    pub transactional: bool,
    /// Whether each lane has its own instance of the sink.
    pub sink_per_lane: bool,
    /// Whether a plain sink holds a batch only once it has answered, as one over a network does; else once it is flushed,
    /// as a file does.
    pub durable_by_answer: bool,
    /// Parallel copies of the chain.
    pub lanes: usize,
    /// Partitions of the source.
    pub partitions: i32,
    /// Records in each partition.
    pub records: i64,
    /// How many faults are injected at the most.
    pub faults: u32,
    /// How many of them may be crashes of the process.
    pub crashes: u32,
}

impl Default for Scenario {
    fn default() -> Self {
        Self {
            transactional: false,
            sink_per_lane: true,
            durable_by_answer: false,
            lanes: 2,
            partitions: 3,
            records: 24,
            faults: 4,
            crashes: 2,
        }
    }
}

/// What a simulation came to.
#[derive(Debug)]
pub struct Report {
    /// What the world held at the end.
    pub delivered: Delivered,
    /// Everything that happened, in order.
    pub trace: String,
    /// How many lives the process had.
    pub lives: u32,
}

/// How one life of the process ended.
enum LifeEnd {
    Crashed,
    Ended(PipelineEnd),
}

/// No schedule of a scenario this small takes longer than this much simulated time.
const LONGEST_LIFE: Duration = Duration::from_secs(3600);

/// Runs a scenario under a seed until all records are through, over as many lives as it takes.
///
/// # Errors
/// What went wrong, with the trace: a record lost, repeated or out of order, a pipeline that hangs or fails.
///
/// # Panics
/// If a tokio runtime cannot be made.
pub fn run(seed: u64, scenario: &Scenario) -> Result<Report, String> {
    let world = World::new(seed, scenario);
    let mut lives = 0;
    loop {
        lives += 1;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime without I/O takes nothing from the system");
        let end = runtime.block_on(life(&world, scenario, seed.wrapping_add(lives)));
        drop(runtime);
        let failed = |what: &str| Err(format!("seed {seed}: {what}\n{}", world.trace()));
        match end {
            None => return failed("the pipeline hangs"),
            Some(LifeEnd::Crashed) => world.crash(),
            Some(LifeEnd::Ended(PipelineEnd::Stopped)) => world.end_life("stopped"),
            Some(LifeEnd::Ended(PipelineEnd::Failed(reason))) => {
                return failed(&format!("the pipeline failed: {reason}"));
            }
            Some(LifeEnd::Ended(PipelineEnd::Finished)) => break,
        }
        if lives > 64 {
            return failed("the process dies again and again");
        }
    }
    let delivered = world.delivered();
    let trace = world.trace();
    match delivered.check(scenario) {
        Ok(()) => Ok(Report { delivered, trace, lives: u32::try_from(lives).unwrap_or(u32::MAX) }),
        Err(error) => Err(format!("seed {seed}: {error}\n{trace}")),
    }
}

/// One life of the process; `None` if it does not end.
async fn life(world: &Arc<World>, scenario: &Scenario, seed: u64) -> Option<LifeEnd> {
    let runtime = Runtime::simulated(seed);
    world.begin_life(runtime.clone());
    let host = host(world, &runtime);
    let stop = CancellationToken::new();
    let stop_after = world.stop_after();
    let running = topology::run(vec![components::plan("simulated", world, scenario)], host, stop.clone());
    tokio::pin!(running);
    let mut asked = false;
    loop {
        tokio::select! {
            biased;
            () = world.crashed() => return Some(LifeEnd::Crashed),
            mut ends = &mut running => return ends.pop().map(|(_, end)| LifeEnd::Ended(end)),
            () = runtime.sleep(stop_after.unwrap_or_default()), if stop_after.is_some() && !asked => {
                asked = true;
                world.note("asked to stop");
                stop.cancel();
            }
            () = runtime.sleep(LONGEST_LIFE) => return None,
        }
    }
}

fn host(world: &Arc<World>, runtime: &Runtime) -> Host {
    Host {
        runtime: runtime.clone(),
        metrics: Metrics::new(),
        status: StatusBoard::default(),
        store: Arc::new(components::SimulatedStore::new(Arc::clone(world))),
        instance: "simulated".into(),
        data_dir: Arc::from(std::path::Path::new("")),
        memory: 1 << 20,
    }
}

/// Runs a pipeline that fails beside one that does not, in one process, and returns how often each was restarted.
///
/// # Errors
/// If either does not end, or breaks its promise.
///
/// # Panics
/// If a tokio runtime cannot be made.
pub fn run_beside_a_failing_one(seed: u64) -> Result<(u64, u64), String> {
    let failing = Scenario { faults: 8, crashes: 0, ..Scenario::default() };
    let sound = Scenario { faults: 0, crashes: 0, ..Scenario::default() };
    let worlds = [World::new(seed, &failing), World::new(seed, &sound)];
    let executor = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without I/O takes nothing from the system");
    executor.block_on(async {
        let runtime = Runtime::simulated(seed);
        for world in &worlds {
            world.begin_life(runtime.clone());
        }
        // The store of the sound one: a store that fails fails everybody who needs it.
        let host = host(&worlds[1], &runtime);
        let status = host.status.clone();
        let plans =
            vec![components::plan("failing", &worlds[0], &failing), components::plan("sound", &worlds[1], &sound)];
        let ends = topology::run(plans, host, CancellationToken::new()).await;
        if let Some((name, end)) = ends.iter().find(|(_, end)| *end != PipelineEnd::Finished) {
            return Err(format!("seed {seed}: `{name}` ended as {end:?}"));
        }
        for (world, scenario) in worlds.iter().zip([&failing, &sound]) {
            world.delivered().check(scenario).map_err(|error| format!("seed {seed}: {error}\n{}", world.trace()))?;
        }
        let restarts = |name| status.get(name).map_or(0, |status| status.restarts);
        Ok((restarts("failing"), restarts("sound")))
    })
}
