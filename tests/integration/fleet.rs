//! Several processes that run one pipeline and share its consumer group, while records keep coming.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::broker::wait::{Deadline, wait_for, wait_until};
use crate::broker::{Broker, send_signal, unique};
use crate::process::{Home, Weir};
use crate::{SOON, home, orders};

/// How many partitions there are to share.
const PARTITIONS: i32 = 6;

/// A pipeline, and the homes of the processes that run it. A home keeps its instance's identity over restarts.
pub(crate) struct Fleet {
    pub(crate) broker: &'static Broker,
    pub(crate) name: String,
    pub(crate) source: String,
    pub(crate) sink: String,
    pub(crate) guarantee: &'static str,
    homes: Vec<Home>,
}

impl Fleet {
    /// Of so many processes. `settings` go into the source's config.
    pub(crate) fn new(guarantee: &'static str, settings: &str, processes: usize) -> Self {
        let broker = Broker::shared();
        let (source, sink) = (broker.topic("orders", PARTITIONS), broker.topic("totals", PARTITIONS));
        let name = unique("etl");
        let text = orders::pipeline(&name, guarantee, &source, &sink, "")
            .replace(&format!("group: {name}"), &format!("group: {name}, {settings}"));
        let homes = (0..processes).map(|number| {
            let mut home = home(broker);
            home.set("WEIR_INSTANCE", &format!("{name}-{number}"));
            home.write("etl.yaml", &text);
            home
        });
        Self { broker, homes: homes.collect(), name, source, sink, guarantee }
    }

    /// Starts the process of a home.
    pub(crate) fn start(&self, number: usize) -> Weir {
        self.homes[number].start("etl.yaml")
    }

    /// Starts the process of a home with the identity of another's.
    pub(crate) fn start_as(&self, number: usize, other: usize) -> Weir {
        self.homes[number].start_with("etl.yaml", &[("WEIR_INSTANCE", &format!("{}-{other}", self.name))])
    }

    /// Starts the process of a home, and tells how long it took from there until its first records were committed.
    pub(crate) fn start_moving(&self, number: usize) -> (Weir, Duration) {
        let deadline = Deadline::within(SOON);
        let mut weir = self.start(number);
        let pipeline = [("pipeline", self.name.as_str())];
        wait_until("the first commit of a process", SOON, || {
            weir.must_run();
            let written = self.written(&weir).is_some_and(|records| records > 0.0);
            // No epoch is opened in which nothing moved.
            written && weir.metric("weir_epoch_duration_seconds_count", &pipeline).is_some_and(|epochs| epochs > 0.0)
        });
        (weir, SOON.saturating_sub(deadline.left()))
    }

    /// How many records this process's sink was given; `None` if it does not answer.
    fn written(&self, weir: &Weir) -> Option<f64> {
        let labels = [("pipeline", self.name.as_str()), ("component", "totals")];
        weir.metric("weir_component_received_records_total", &labels)
    }

    /// Waits until a process writes records, and tells how long that took.
    pub(crate) fn wait_busy(&self, weir: &mut Weir) -> Duration {
        let deadline = Deadline::within(SOON);
        let before = wait_for("an answer of its metrics", SOON, || {
            weir.must_run();
            self.written(weir)
        });
        wait_until("it to take a part of the partitions", SOON, || {
            weir.must_run();
            self.written(weir).is_some_and(|now| now > before)
        });
        SOON.saturating_sub(deadline.left())
    }

    /// Waits until the group has committed all that the source holds now, and tells how long that took.
    pub(crate) fn wait_committed(&self, limit: Duration) -> Duration {
        let ends = self.broker.end_offsets(&self.source);
        let deadline = Deadline::within(limit);
        wait_until("all partitions to be committed so far", limit, || {
            let committed = self.broker.committed_offsets(&self.name, &self.source);
            ends.iter().all(|(partition, end)| *end == 0 || committed.get(partition).is_some_and(|at| at >= end))
        });
        limit.saturating_sub(deadline.left())
    }

    /// Produces records at an even pace while `scenario` runs; waits until they are committed, stops the processes that
    /// the scenario leaves, and judges what came out.
    pub(crate) fn run(&self, scenario: impl FnOnce() -> Vec<Weir>) {
        let stop = AtomicBool::new(false);
        let count = std::thread::scope(|threads| {
            let feeder = threads.spawn(|| feed(self.broker, &self.source, &stop));
            // The feeder must end also when an assertion fails, or the scope would wait for it for ever.
            let _stop = StopOnDrop(&stop);
            let mut left = scenario();
            stop.store(true, Ordering::Relaxed);
            let count = feeder.join().expect("the feeder does not fail");
            wait_until("all to be committed", SOON, || {
                left.iter_mut().for_each(Weir::must_run);
                self.broker.is_all_committed(&self.name, &self.source)
            });
            for weir in &mut left {
                assert_eq!(weir.stop(SOON), 0);
            }
            count
        });
        // What a killed process left open hides what came behind it until the broker ends it.
        self.broker.reader(&self.sink).read_until(orders::kept(count), SOON);
        let records = self.broker.consume_all_committed(&self.sink);
        if self.guarantee == "exactly_once" {
            orders::assert_exactly(&records, count);
            eprintln!("{}: {count} records, each once", self.name);
        } else {
            let repeats = orders::assert_at_least(&records, count);
            eprintln!("{}: {count} records, {repeats} of them repeated", self.name);
        }
    }
}

/// Stops a process in its tracks.
pub(crate) fn freeze(weir: &Weir) {
    send_signal(weir.pid(), "STOP");
}

/// Lets it go on.
pub(crate) fn thaw(weir: &Weir) {
    send_signal(weir.pid(), "CONT");
}

/// Produces orders at an even pace until it is told to stop; tells how many there are.
pub(crate) fn feed(broker: &Broker, topic: &str, stop: &AtomicBool) -> u64 {
    let writer = broker.writer(topic);
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..20 {
            writer.send(&orders::order(count));
            count += 1;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    writer.flush();
    count
}

/// Stops the feeder, whatever happens.
pub(crate) struct StopOnDrop<'a>(pub(crate) &'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
