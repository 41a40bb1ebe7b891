//! The lives of the processes: they start, crash, are held still, are stopped, and come back, until all is committed.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::components::{PIPELINE, SECOND, SimulatedStore, domains};
use super::place::Place;
use super::world::{World, name};
use crate::observe::{Metrics, PipelineState, StatusBoard};
use crate::runtime::{Process, Runtime};
use crate::topology::{self, Host, PipelineEnd};

/// How often the processes are looked after.
const TICK: Duration = Duration::from_millis(50);
/// No schedule of a scenario this small takes longer than this much simulated time.
const LONGEST: Duration = Duration::from_secs(1_200);
/// After its end a process may take this long to clear up.
const LONGEST_END: Duration = Duration::from_secs(60);
/// More lives than this are no bad luck.
const MOST_LIVES: u32 = 64;

/// What the lives of all processes came to.
#[derive(Debug, Default)]
pub(super) struct Lives {
    pub(super) count: u32,
    pub(super) restarts: u64,
    pub(super) turns: u64,
    /// From the asking to the end.
    pub(super) longest_stop: Duration,
}

/// A process, while it runs or is down.
struct Slot {
    instance: usize,
    life: Option<Life>,
    starts_at: Duration,
}

/// One life of a process.
struct Life {
    place: Place,
    running: JoinHandle<Vec<(Arc<str>, PipelineEnd)>>,
    host: Host,
}

/// Runs processes until all records are through.
///
/// # Errors
/// A pipeline that hangs, fails, or leaves something behind.
pub(super) async fn live(seed: u64, world: &Arc<World>) -> Result<Lives, String> {
    let scenario = &world.scenario;
    let keeper = Runtime::simulated(seed);
    let mut lives = Lives::default();
    let mut slots: Vec<Slot> = (0..scenario.processes)
        .map(|instance| {
            let starts_at = Duration::from_millis(if instance == 0 { 0 } else { world.below(4_000) });
            Slot { instance, life: None, starts_at }
        })
        .collect();
    let mut is_over = false;
    loop {
        if let Some(breach) = world.first_breach() {
            return Err(breach);
        }
        for instance in world.released() {
            if let Some(life) = &slots[instance].life {
                life.place.note("goes on");
                life.place.process.release();
            }
        }
        for slot in &mut slots {
            if slot.life.is_none() && !is_over && world.now() >= slot.starts_at {
                lives.count += 1;
                slot.life = Some(start(seed.wrapping_add(u64::from(lives.count)), world, slot.instance));
            }
            let Some(life) = slot.life.take() else { continue };
            if life.place.process.is_dead() {
                world.crashed(slot.instance);
            } else if life.running.is_finished() {
                lives.restarts += life.restarts();
                lives.turns += life.place.process.turns();
                let stop = world.take_stop(slot.instance).unwrap_or_default();
                lives.longest_stop = lives.longest_stop.max(stop);
                is_over |= end(life, &keeper).await?;
            } else {
                life.stop_if_failed();
                slot.life = Some(life);
                continue;
            }
            slot.starts_at = world.now() + downtime(world);
        }
        world.expire();
        if !is_over && scenario.is_endless() && world.is_done() {
            is_over = true;
            world.calm();
        }
        if is_over {
            for life in slots.iter().filter_map(|slot| slot.life.as_ref()) {
                life.place.process.release();
                life.place.stop.cancel();
            }
            if slots.iter().all(|slot| slot.life.is_none()) {
                return Ok(lives);
            }
        }
        if lives.count > MOST_LIVES {
            return Err("the processes die again and again".to_owned());
        }
        if world.now() > LONGEST {
            let running = slots.iter().filter_map(|slot| slot.life.as_ref());
            let states: Vec<String> = running.map(Life::state).collect();
            return Err(format!("it hangs: {}", states.join("; ")));
        }
        keeper.sleep(TICK).await;
    }
}

fn start(seed: u64, world: &Arc<World>, instance: usize) -> Life {
    let process = Process::default();
    let runtime = Runtime::of_process(seed, process.clone());
    let stop = CancellationToken::new();
    let place = Place { world: Arc::clone(world), process, instance, runtime, stop };
    place.note("starts");
    if instance == 0 {
        place.plan_ahead();
    }
    let host = host(&place);
    let running = topology::run_domains(domains(&place), host.clone(), place.stop.clone());
    Life { running: place.runtime.spawn(running), place, host }
}

/// What a process of the simulation gives to its pipelines.
pub(super) fn host(place: &Place) -> Host {
    Host {
        runtime: place.runtime.clone(),
        metrics: Metrics::new(),
        status: StatusBoard::default(),
        store: Arc::new(SimulatedStore::new(place.clone())),
        instance: name(place.instance).into(),
        data_dir: place.world.disk.data_dir(place.instance).into(),
        memory: 1 << 20,
    }
}

/// How long a process is down: mostly for less than its session, sometimes for longer.
fn downtime(world: &World) -> Duration {
    let longest = if world.below(4) == 0 { 20_000 } else { 2_000 };
    Duration::from_millis(world.below(longest))
}

/// What a process leaves when it has ended in order: nothing. Returns whether all is done.
async fn end(life: Life, keeper: &Runtime) -> Result<bool, String> {
    let Life { place, running, host } = life;
    let ends = running.await.map_err(|error| format!("the process died: {error}"))?;
    let mut all_finished = true;
    for (pipeline, end) in ends {
        place.note(&format!("`{pipeline}` ended: {end:?}"));
        match end {
            PipelineEnd::Finished => {}
            PipelineEnd::Stopped => all_finished = false,
            PipelineEnd::Failed(_) if place.world.take_failure_on_purpose() => all_finished = false,
            PipelineEnd::Failed(reason) => return Err(format!("`{pipeline}` failed: {reason}")),
        }
        let held = host.metrics.pipeline(&pipeline).memory_used.get();
        if held != 0 {
            return Err(format!("`{pipeline}` has ended and holds {held} bytes of its budget"));
        }
    }
    let ended = place.world.now();
    while place.process.tasks() > 0 && !place.process.is_dead() {
        if place.world.now() > ended + LONGEST_END {
            return Err(format!("{} tasks are left behind", place.process.tasks()));
        }
        keeper.sleep(TICK).await;
    }
    Ok(all_finished)
}

impl Life {
    fn restarts(&self) -> u64 {
        let of = |name| self.host.status.get(name).map_or(0, |status| status.restarts);
        of(PIPELINE) + of(SECOND)
    }

    /// For a person who wonders why it does not move.
    fn state(&self) -> String {
        let status = self.host.status.get(PIPELINE);
        let state = status.map(|status| format!("{:?} {:?} {:?}", status.state, status.stage, status.reason));
        format!("{} has {} tasks, and is {state:?}", name(self.place.instance), self.place.process.tasks())
    }

    /// A person sees that a pipeline has failed, and starts the process anew.
    fn stop_if_failed(&self) {
        let failed = |name| self.host.status.get(name).is_some_and(|status| status.state == PipelineState::Failed);
        if failed(PIPELINE) || failed(SECOND) {
            self.place.stop.cancel();
        }
    }
}
