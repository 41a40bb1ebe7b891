//! Kafka to Kafka: each contestant reads the same topic and writes to one of its own.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use weir::clock::{Clock, Instant};

use crate::asyncio::Python;
use crate::bare;
use crate::broker::wait::Deadline;
use crate::broker::{Broker, Record, unique};
use crate::measure::Measured;
use crate::process::Home;
use crate::records::{Digest, Records, TRANSFORMS};

/// Of source and sink.
pub(crate) const PARTITIONS: i32 = 4;

const RUN_LIMIT: Duration = Duration::from_mins(3);
const CALL_LIMIT: Duration = Duration::from_secs(20);

/// Who does the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Contestant {
    /// librdkafka alone, without the map.
    Bare,
    /// Weir, at least once.
    AtLeastOnce,
    /// Weir, exactly once.
    ExactlyOnce,
    /// aiokafka with one send for each record, as it is usually written.
    Asyncio,
    /// aiokafka with batches that the script fills by hand.
    AsyncioBatches,
}

impl Contestant {
    /// For the table.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare rdkafka loop (no map)",
            Self::AtLeastOnce => "weir, at least once",
            Self::ExactlyOnce => "weir, exactly once",
            Self::Asyncio => "asyncio, a send per record",
            Self::AsyncioBatches => "asyncio, hand-filled batches",
        }
    }

    fn needs_python(self) -> bool {
        matches!(self, Self::Asyncio | Self::AsyncioBatches)
    }

    /// Those that can run here.
    pub(crate) fn all(python: Option<&Python>) -> impl Iterator<Item = Self> {
        let all = [Self::Bare, Self::AtLeastOnce, Self::ExactlyOnce, Self::Asyncio, Self::AsyncioBatches];
        all.into_iter().filter(move |contestant| python.is_some() || !contestant.needs_python())
    }
}

/// What one run took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run {
    /// CPU seconds of the whole process.
    pub(crate) cpu: f64,
    /// From the first records that came out to nearly the last; file to file, of the whole process.
    pub(crate) seconds: f64,
    /// Records that came out in that time.
    pub(crate) written: f64,
    /// The most memory at once, in MiB.
    pub(crate) peak_mib: f64,
}

/// Fills a topic with the first `count` records.
pub(crate) fn fill(broker: &Broker, count: u64) -> String {
    let topic = broker.topic("source", PARTITIONS);
    let mut records = Records::new();
    let sent = (0..count).map(|_| {
        let (key, body) = records.draw();
        Record::new(body).key(key)
    });
    broker.produce(&topic, sent);
    topic
}

/// Runs a contestant over a topic, of whose records `kept` are to come out, until it has committed all of it. Checks
/// what came out if that is asked for.
pub(crate) fn run(
    contestant: Contestant,
    broker: &Broker,
    python: Option<&Python>,
    source: &str,
    kept: u64,
    expected: Option<Digest>,
) -> Run {
    let (sink, group) = (broker.topic("sink", PARTITIONS), unique("group"));
    let mut home = Home::new();
    home.set("KAFKA_BROKERS", broker.address()).set("SINK_BROKERS", broker.address());
    let progress = Progress::new(broker.address(), source, &sink, &group);
    let clock = Clock::system();
    let deadline = Deadline::within(RUN_LIMIT);
    let mut process = Measured::start(&mut command(contestant, broker, python, &home, source, &sink, &group));
    let mut pace = Pace::new(if contestant == Contestant::Bare { progress.total() } else { kept });
    loop {
        pace.note(clock.now(), progress.written());
        assert!(!process.has_ended(), "{} ended before all was done", contestant.name());
        assert!(!deadline.passed(), "{} is not done after {RUN_LIMIT:?}", contestant.name());
        if pace.is_over() && progress.is_all_committed() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let (cpu, peak_mib) = (process.cpu(), process.peak_mib());
    process.stop();
    if let Some(expected) = expected {
        let mut found = Digest::default();
        broker.reader(&sink).for_each_to_end(|body| found.add(body));
        assert_eq!(found, expected, "{} wrote something else", contestant.name());
    }
    broker.delete_topic(&sink);
    let (seconds, written) = pace.taken();
    Run { cpu, seconds, written, peak_mib }
}

fn command(
    contestant: Contestant,
    broker: &Broker,
    python: Option<&Python>,
    home: &Home,
    source: &str,
    sink: &str,
    group: &str,
) -> Command {
    let weir = |guarantee: &str| {
        home.write("bench.yaml", pipeline("bench", guarantee, source, sink, group));
        home.command("bench.yaml", "off")
    };
    let script = |more: &[&str]| {
        let python = python.expect("contestants that need Python are left out without it");
        let mut command = python.script("kafka_map.py");
        command.args(["--brokers", broker.address(), "--source", source, "--sink", sink, "--group", group]).args(more);
        command
    };
    match contestant {
        Contestant::Bare => {
            let mut command = Command::new(std::env::current_exe().expect("this process has a file"));
            command.args([bare::ARGUMENT, broker.address(), source, sink, group]);
            command
        }
        Contestant::AtLeastOnce => weir("at_least_once"),
        Contestant::ExactlyOnce => weir("exactly_once"),
        Contestant::Asyncio => script(&[]),
        Contestant::AsyncioBatches => script(&["--batches"]),
    }
}

/// The pipeline of the main job. It finds the two brokers by `KAFKA_BROKERS` and `SINK_BROKERS`.
pub(crate) fn pipeline(name: &str, guarantee: &str, source: &str, sink: &str, group: &str) -> String {
    format!(
        r#"name: {name}
guarantee: {guarantee}
sources:
  records:
    kafka: {{ brokers: "${{KAFKA_BROKERS}}", topics: [{source}], group: {group} }}
{TRANSFORMS}sinks:
  mapped:
    kafka: {{ brokers: "${{SINK_BROKERS}}", topic: {sink} }}
"#
    )
}

/// How fast records come out: from the first that are seen to the last thousandth. So neither the start counts, nor the
/// wait for the last commit, nor the few offsets that transactions take for themselves.
struct Pace {
    enough: u64,
    first: Option<(Instant, u64)>,
    last: Option<(Instant, u64)>,
}

impl Pace {
    fn new(expected: u64) -> Self {
        Self { enough: expected - expected / 1000, first: None, last: None }
    }

    fn note(&mut self, now: Instant, written: u64) {
        if written > 0 {
            self.first.get_or_insert((now, written));
        }
        if written >= self.enough {
            self.last.get_or_insert((now, written));
        }
    }

    fn is_over(&self) -> bool {
        self.last.is_some()
    }

    /// Seconds, and the records that came out in them.
    fn taken(&self) -> (f64, f64) {
        let (Some(first), Some(last)) = (self.first, self.last) else { return (f64::NAN, f64::NAN) };
        let written = u32::try_from(last.1 - first.1).unwrap_or(u32::MAX);
        (last.0.duration_since(first.0).as_secs_f64(), written.into())
    }
}

/// Looks at how far a group and a topic are.
pub(crate) struct Progress {
    consumer: BaseConsumer,
    source: TopicPartitionList,
    ends: BTreeMap<i32, i64>,
    sink: String,
}

impl Progress {
    /// For a group that reads `source`, and what it writes to `sink` of the same broker.
    pub(crate) fn new(brokers: &str, source: &str, sink: &str, group: &str) -> Self {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            .set("group.id", group)
            .set("isolation.level", "read_uncommitted")
            .create()
            .expect("the settings are valid");
        let mut list = TopicPartitionList::new();
        list.add_partition_range(source, 0, PARTITIONS - 1);
        let ends = (0..PARTITIONS).map(|partition| (partition, end(&consumer, source, partition))).collect();
        Self { consumer, source: list, ends, sink: sink.to_owned() }
    }

    /// How many offsets the sink's partitions have; transactions take a few for themselves.
    fn written(&self) -> u64 {
        let end = |partition| u64::try_from(end(&self.consumer, &self.sink, partition)).unwrap_or_default();
        (0..PARTITIONS).map(end).sum()
    }

    /// How many records the source holds.
    fn total(&self) -> u64 {
        self.ends.values().map(|end| u64::try_from(*end).unwrap_or_default()).sum()
    }

    /// Whether the group has committed all that the source holds.
    pub(crate) fn is_all_committed(&self) -> bool {
        let Ok(committed) = self.consumer.committed_offsets(self.source.clone(), CALL_LIMIT) else { return false };
        committed.elements().iter().all(|element| {
            let end = self.ends[&element.partition()];
            end == 0 || element.offset() == Offset::Offset(end)
        })
    }
}

fn end(consumer: &BaseConsumer, topic: &str, partition: i32) -> i64 {
    consumer.fetch_watermarks(topic, partition, CALL_LIMIT).expect("the broker answers").1
}
