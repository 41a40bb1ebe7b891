//! Each row of the table of sinks, run by the real binary: it stops on time in the middle of things, and of the records that
//! go in each comes out or is refused.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::ops::Range;

use weir::sinks::SINKS;

use crate::broker::wait::wait_until;
use crate::broker::{Broker, unique};
use crate::process::{Home, Weir};
use crate::{SOON, STOP, compiled, stop_in_time};

/// How a kind of sink is exercised.
struct Way {
    /// What a pipeline file says for it.
    config: String,
    /// Everything that came out; nothing where the sink keeps nothing.
    read: Option<Read>,
}

type Read = Box<dyn Fn(&Home) -> Vec<u8>>;

/// Every kind needs one. What comes out holds the body of each record.
fn way(kind: &str) -> Way {
    match kind {
        "blackhole" => Way { config: "blackhole: {}".to_owned(), read: None },
        "file" => Way {
            config: "file: { path: out.ndjson }".to_owned(),
            read: Some(Box::new(|home| fs::read(home.path("out.ndjson")).unwrap_or_default())),
        },
        "kafka" => {
            let broker = Broker::shared();
            let topic = broker.topic("conformance", 2);
            let config = format!("kafka: {{ brokers: \"{}\", topic: {topic} }}", broker.address());
            let read = move |_: &Home| {
                let records = broker.consume_all_committed(&topic);
                records.into_iter().flat_map(|record| record.value).collect()
            };
            Way { config, read: Some(Box::new(read)) }
        }
        // What a process writes is in its log.
        "stdout" => Way { config: "stdout: {}".to_owned(), read: Some(Box::new(logs)) },
        other => panic!(
            "the sink `{other}` is in the table, and nobody runs it: add to `way` in tests/conformance/sinks.rs how it is \
             configured and where what it writes can be read"
        ),
    }
}

fn logs(home: &Home) -> Vec<u8> {
    (0..2).flat_map(|number| fs::read(home.path(&format!("log-{number}.txt"))).unwrap_or_default()).collect()
}

/// How many records there are before the stop, and in all.
const PARTS: [u64; 2] = [20_000, 30_000];

/// What does not decode is refused at the source, and what is too large by a sink that has a limit.
fn body(n: u64) -> String {
    match n % 1_000 {
        7 => format!("{{\"id\":\"n={n};\",, "),
        11 if n < 1_000 => format!("{{\"id\":\"n={n};\",\"pad\":\"{}\"}}", "x".repeat(2_000_000)),
        _ => format!("{{\"id\":\"n={n};\"}}"),
    }
}

fn is_refused_before(n: u64) -> bool {
    n % 1_000 == 7
}

/// How often each number is in it.
fn numbers(bytes: &[u8], seen: &mut BTreeMap<u64, u32>) {
    for (at, _) in bytes.windows(3).enumerate().filter(|(_, window)| window == b"\"n=") {
        let digits: Vec<u8> = bytes[at + 3..].iter().copied().take_while(u8::is_ascii_digit).collect();
        let number = String::from_utf8(digits).ok().and_then(|digits| digits.parse().ok());
        *seen.entry(number.expect("a number stands there")).or_default() += 1;
    }
}

fn refused(home: &Home) -> BTreeMap<u64, u32> {
    let mut refused = BTreeMap::new();
    // The body stands in the letter as text, with its quotes escaped.
    let letters = fs::read_to_string(home.path("dead.ndjson")).unwrap_or_default().replace("\\\"", "\"");
    numbers(letters.as_bytes(), &mut refused);
    refused
}

fn supply(home: &Home, range: Range<u64>) {
    let file = File::options().create(true).append(true).open(home.path("in.ndjson"));
    let lines: String = range.map(|n| body(n) + "\n").collect();
    file.and_then(|mut file| file.write_all(lines.as_bytes())).expect("the home can be written");
}

fn received(weir: &Weir) -> u64 {
    let count = weir.metric("weir_component_received_records_total", &[("component", "out")]).unwrap_or(0.0);
    format!("{count:.0}").parse().expect("it is a count")
}

#[test]
fn every_sink_stops_on_time_and_of_what_goes_in_nothing_is_forgotten() {
    for row in SINKS {
        let home = Home::new();
        let Way { config, read } = way(row.name);
        compiled(row.name, &config, row.compile);
        let name = unique("conformance");
        home.write(
            "sink.yaml",
            format!(
                "name: {name}\ncommit: {{ interval: 50ms }}\nsources:\n  in:\n    file: {{ path: in.ndjson, follow: true }}\nsinks:\n  \
                 out:\n    {config}\ndead_letter:\n  file: {{ path: dead.ndjson }}\n"
            ),
        );
        supply(&home, 0..PARTS[0]);
        let mut weir = home.start("sink.yaml");
        wait_until(&format!("records in the sink `{}`", row.name), SOON, || {
            weir.must_run();
            received(&weir) > 0
        });
        stop_in_time(&format!("the sink `{}`", row.name), &mut weir);

        let mut weir = home.start("sink.yaml");
        supply(&home, PARTS[0]..PARTS[1]);
        let outcome = || {
            let mut seen = refused(&home);
            let came = read.as_ref().map(|read| read(&home)).unwrap_or_default();
            numbers(&came, &mut seen);
            seen
        };
        let good = (PARTS[0]..PARTS[1]).filter(|n| !is_refused_before(*n)).count() as u64;
        wait_until(&format!("all records in the sink `{}`", row.name), SOON, || {
            weir.must_run();
            if read.is_some() { outcome().len() as u64 == PARTS[1] } else { received(&weir) >= good }
        });
        weir.terminate();
        assert_eq!(weir.wait(STOP), 0, "{}: {}", row.name, weir.log());

        let outcome = outcome();
        let all = (0..PARTS[1]).filter(|n| read.is_some() || is_refused_before(*n));
        for n in all {
            assert_eq!(outcome.get(&n), Some(&1), "{}: how often {n} came out or was refused", row.name);
        }
        for n in (0..PARTS[1]).filter(|n| is_refused_before(*n)) {
            assert_eq!(refused(&home).get(&n), Some(&1), "{}: {n} is in the dead letter", row.name);
        }
    }
}
