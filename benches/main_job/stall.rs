//! A sink that does not answer for a while: memory stays flat, and nothing is lost.

use std::time::Duration;

use crate::broker::wait::{Deadline, wait_until};
use crate::broker::{Broker, unique};
use crate::kafka::{PARTITIONS, pipeline};
use crate::measure::Measured;
use crate::process::Home;
use crate::records::Digest;

/// What a stall did.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stall {
    /// How much memory grew from two seconds into the stall to its end, in MiB.
    pub(crate) growth_mib: f64,
    /// The most memory at once over the whole run, in MiB.
    pub(crate) peak_mib: f64,
    /// Whether every record came out when the sink was back.
    pub(crate) is_all_there: bool,
    /// How many records came out more than once.
    pub(crate) repeats: u64,
}

/// Runs Weir from one broker to another that is stopped in its tracks for so long.
pub(crate) fn run(broker: &Broker, source: &str, expected: Digest, stall: Duration) -> Stall {
    let other = Broker::start_new();
    let (sink, group) = (other.topic("sink", PARTITIONS), unique("group"));
    let mut home = Home::new();
    home.set("KAFKA_BROKERS", broker.address()).set("SINK_BROKERS", other.address());
    home.write("bench.yaml", pipeline("bench", "at_least_once", source, &sink, &group));
    let mut process = Measured::start(&mut home.command("bench.yaml", "off"));
    wait_until("the first records", Duration::from_mins(1), || other.end_offsets(&sink).values().sum::<i64>() > 0);

    other.pause();
    std::thread::sleep(Duration::from_secs(2));
    let (before, mut most) = (process.resident_mib(), 0.0_f64);
    let stalled = Deadline::within(stall.saturating_sub(Duration::from_secs(2)));
    while !stalled.passed() {
        assert!(!process.has_ended(), "weir ended while its sink stood still");
        most = most.max(process.resident_mib());
        std::thread::sleep(Duration::from_millis(50));
    }
    other.resume();

    wait_until("all to be committed", Duration::from_mins(3), || broker.is_all_committed(&group, source));
    let peak_mib = process.peak_mib();
    process.stop();
    // A repeat is no loss: the sums agree once each record counts once.
    let mut seen = std::collections::HashSet::new();
    let (mut found, mut repeats) = (Digest::default(), 0);
    other.reader(&sink).for_each_to_end(|body| {
        if seen.insert(body.to_vec()) {
            found.add(body);
        } else {
            repeats += 1;
        }
    });
    Stall { growth_mib: most - before, peak_mib, is_all_there: found == expected, repeats }
}
