//! Each row of the table of sources, run by the real binary: it stops on time in the middle of things, and a process that
//! follows goes on where the last commit stands.

use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::process::Command;

use weir::component::{KeepsPositions, LOCAL_TRANSACTION};
use weir::sources::SOURCES;

use crate::broker::wait::wait_until;
use crate::broker::{Broker, Record, unique};
use crate::process::Home;
use crate::{SOON, STOP, compiled, stop_in_time};

/// How a kind of source is exercised.
struct Way {
    /// What a pipeline file says for it. Its records come from one partition, in the order of their numbers.
    config: String,
    /// Puts in the records of a range of numbers.
    supply: Box<dyn FnMut(Range<u64>)>,
}

/// Every kind needs one. The bodies are `{"n":0}`, `{"n":1}` and so on.
fn way(kind: &str, home: &mut Home) -> Way {
    let append = |file: File| {
        let mut file = file;
        move |range: Range<u64>| {
            let lines: String = range.map(|n| body(n) + "\n").collect();
            file.write_all(lines.as_bytes()).expect("the home can be written");
        }
    };
    match kind {
        "file" => {
            let file = File::create(home.path("in.ndjson")).expect("the home can be written");
            Way { config: "file: { path: in.ndjson, follow: true }".to_owned(), supply: Box::new(append(file)) }
        }
        // It makes its records itself, slowly enough to be stopped while it does.
        "generate" => Way {
            config: format!("generate: {{ program: '.n = %offset', rate: 4000, count: {} }}", PARTS[3]),
            supply: Box::new(drop),
        },
        "kafka" => {
            let broker = Broker::shared();
            let topic = broker.topic("conformance", 1);
            let config = format!("kafka: {{ brokers: \"{}\", topics: [{topic}], group: {topic} }}", broker.address());
            let supply = move |range: Range<u64>| broker.produce(&topic, range.map(|n| Record::new(body(n))));
            Way { config, supply: Box::new(supply) }
        }
        "stdin" => {
            // A pipe that is open at both ends never ends, whoever comes and goes.
            let pipe = home.path("stdin");
            let made = Command::new("mkfifo").arg(&pipe).status().expect("`mkfifo` is on every Unix");
            assert!(made.success());
            let words = ["sh", "-c", "exec \"$@\" <>stdin", "sh"];
            home.wrap(words.map(str::to_owned).to_vec());
            let file = File::options().read(true).write(true).open(pipe).expect("it was just made");
            Way { config: "stdin: {}".to_owned(), supply: Box::new(append(file)) }
        }
        other => panic!(
            "the source `{other}` is in the table, and nobody runs it: add to `way` in tests/conformance/sources.rs how it is \
             configured and how records come to it"
        ),
    }
}

fn body(n: u64) -> String {
    format!("{{\"n\":{n}}}")
}

/// The numbers that are there at the start, before the kill, before the stop, and in the end.
const PARTS: [u64; 4] = [5_000, 15_000, 30_000, 40_000];

/// The numbers that came out, in their order.
fn came(home: &Home) -> Vec<u64> {
    let text = std::fs::read_to_string(home.path("out.ndjson")).unwrap_or_default();
    // The last line may be on its way.
    let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
    let numbers = whole.lines().map(|line| {
        let number = line.strip_prefix("{\"n\":").and_then(|rest| rest.strip_suffix('}')?.parse().ok());
        number.unwrap_or_else(|| panic!("not what went in: {line}"))
    });
    numbers.collect()
}

#[test]
fn every_source_stops_on_time_and_goes_on_from_its_last_commit() {
    for row in SOURCES {
        let mut home = Home::new();
        let Way { config, mut supply } = way(row.name, &mut home);
        let traits = compiled(row.name, &config, row.compile).traits;
        let replays = traits.keeps_positions != KeepsPositions::Nowhere;
        // Files are cut back to what is committed with a position, so a kill repeats nothing either, where they are one commit.
        let in_transaction = traits.transactional_with.contains(&LOCAL_TRANSACTION);
        let guarantee = if in_transaction { "guarantee: exactly_once\n" } else { "" };
        let may_be_killed = in_transaction || traits.keeps_positions == KeepsPositions::Store;
        let name = unique("conformance");
        let sink = "file: { path: out.ndjson }";
        home.write(
            "source.yaml",
            format!(
                "name: {name}\n{guarantee}commit: {{ interval: 50ms }}\nsources:\n  in:\n    {config}\nsinks:\n  out:\n    {sink}\n"
            ),
        );

        let mut weir = home.start("source.yaml");
        supply(0..PARTS[0]);
        let more = |weir: &mut crate::process::Weir, than: usize| {
            wait_until(&format!("records of the source `{}`", row.name), SOON, || {
                weir.must_run();
                came(&home).len() > than
            });
        };
        more(&mut weir, 0);
        supply(PARTS[0]..PARTS[1]);
        let mut before = 0;
        if may_be_killed {
            weir.kill();
            before = came(&home).len();
            weir = home.start("source.yaml");
            // What was not committed is cut off first.
            weir.wait_ready();
        }
        supply(PARTS[1]..PARTS[2]);
        more(&mut weir, before);
        stop_in_time(&format!("the source `{}`", row.name), &mut weir);

        if replays {
            assert!(came(&home).len() < index(PARTS[3]), "{}: it was stopped in the middle", row.name);
            weir = home.start("source.yaml");
            supply(PARTS[2]..PARTS[3]);
            wait_until(&format!("all of the source `{}`", row.name), SOON, || {
                let all = came(&home).len() >= index(PARTS[3]);
                assert!(all || weir.exit_code().is_none_or(|code| code == 0), "{}", weir.log());
                all
            });
            if !traits.finite {
                weir.terminate();
            }
            assert_eq!(weir.wait(STOP), 0, "{}: {}", row.name, weir.log());
            let came = came(&home);
            let wrong = came.iter().zip(0..).find(|(is, due)| **is != *due);
            assert_eq!(wrong, None, "{}: out of {} records, where the second was due", row.name, came.len());
            assert_eq!(came.len(), index(PARTS[3]), "{}", row.name);
        } else {
            let came = came(&home);
            assert!(came.is_sorted_by(|one, next| one < next), "{}: twice, or out of order", row.name);
        }
    }
}

fn index(number: u64) -> usize {
    usize::try_from(number).expect("it is small")
}
