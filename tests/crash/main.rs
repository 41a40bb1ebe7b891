//! The real binary is killed with SIGKILL at random moments, twenty times, while 200,000 records pass.
//!
//! Every record must come out: under `exactly_once` once, as readers of committed data see it, and in the order of its
//! key; else at least once, where a repeat is a replay from a committed place. The moments follow from a seed, which is
//! printed; `CRASH_SEED` sets it.

#[path = "../broker/mod.rs"]
mod broker;
#[path = "../integration/orders.rs"]
#[allow(dead_code, reason = "each test binary uses a part of it")]
mod orders;
#[path = "../process/mod.rs"]
mod process;

mod files;
mod kafka;

use std::time::Duration;

use broker::wait::wait_until;
use process::{Home, Weir};

/// How often the process is killed while records move.
const KILLS: u64 = 20;

/// How many records pass.
const COUNT: u64 = 200_000;

const SOON: Duration = Duration::from_mins(1);

/// Epochs are short, so that kills meet all of their steps.
const COMMIT: &str = "commit: { interval: 250ms }\n";

/// The records that are there before the first process is; the others come evenly between the kills.
const AT_FIRST: u64 = 20_000;

fn seeded(test: &str) -> fastrand::Rng {
    let seed = std::env::var("CRASH_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    eprintln!("{test}: CRASH_SEED={seed}");
    fastrand::Rng::with_seed(seed)
}

/// Starts and kills processes of `home` while `supply` hands over the records of a range, a few at a time. The last
/// process is left running.
fn kill_again_and_again(
    home: &Home,
    pipeline: &str,
    random: &mut fastrand::Rng,
    supply: impl Fn(u64, u64) + Sync,
) -> Weir {
    supply(0, AT_FIRST);
    for round in 0..KILLS {
        if random.u8(0..4) == 0 {
            // One more that hardly gets to its feet.
            let mut weir = home.start("crash.yaml");
            std::thread::sleep(Duration::from_millis(random.u64(0..500)));
            weir.kill();
        }
        let share = |round| AT_FIRST + (COUNT - AT_FIRST) * round / KILLS;
        std::thread::scope(|threads| {
            threads.spawn(|| supply_evenly(&supply, share(round), share(round + 1)));
            let mut weir = home.start("crash.yaml");
            wait_until("records to move", SOON, || {
                weir.must_run();
                moved(&weir, pipeline) > 0.0
            });
            std::thread::sleep(Duration::from_millis(random.u64(0..1_300)));
            weir.must_run();
            weir.kill();
        });
    }
    home.start("crash.yaml")
}

/// Hands over a range of records within about two seconds, so that the pipeline moves when it is killed.
fn supply_evenly(supply: impl Fn(u64, u64), from: u64, to: u64) {
    const STEPS: u64 = 100;
    for step in 0..STEPS {
        supply(from + (to - from) * step / STEPS, from + (to - from) * (step + 1) / STEPS);
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// How many records this process has handed to its sink.
fn moved(weir: &Weir, pipeline: &str) -> f64 {
    let labels = [("pipeline", pipeline), ("component", "totals")];
    weir.metric("weir_component_received_records_total", &labels).unwrap_or_default()
}
