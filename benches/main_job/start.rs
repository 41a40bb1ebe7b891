//! How soon the daemon is ready.

use std::fmt::Write;
use std::time::Duration;

use weir::clock::Clock;

use crate::broker::wait::Deadline;
use crate::broker::{Broker, free_port};
use crate::kafka::pipeline;
use crate::measure::Measured;
use crate::process::{Home, http_get};

const PIPELINES: usize = 10;

/// Milliseconds from the start of a process with ten pipelines to its first answer that it is ready.
pub(crate) fn run(broker: &Broker) -> f64 {
    let (source, sink) = (broker.topic("source", 1), broker.topic("sink", 1));
    let mut home = Home::new();
    home.set("KAFKA_BROKERS", broker.address()).set("SINK_BROKERS", broker.address());
    let mut file = String::new();
    for number in 0..PIPELINES {
        let name = format!("bench-{number}");
        writeln!(file, "---\n{}", pipeline(&name, "at_least_once", &source, &sink, &format!("{source}-{number}")))
            .expect("memory takes any text");
    }
    home.write("ten.yaml", file);
    let admin = format!("127.0.0.1:{}", free_port());
    let (clock, deadline) = (Clock::system(), Deadline::within(Duration::from_secs(30)));
    let started = clock.now();
    let mut process = Measured::start(&mut home.command("ten.yaml", &admin));
    while http_get(&admin, "/ready").is_none_or(|(status, _)| status != 200) {
        assert!(!process.has_ended() && !deadline.passed(), "the daemon does not become ready");
        std::thread::sleep(Duration::from_millis(1));
    }
    let millis = clock.now().duration_since(started).as_secs_f64() * 1e3;
    process.stop();
    millis
}
