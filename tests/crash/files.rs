//! File to file.

use std::fs::File;
use std::io::Write;
use std::sync::Mutex;

use crate::broker::wait::wait_until;
use crate::broker::{Consumed, unique};
use crate::process::Home;
use crate::{COMMIT, COUNT, SOON, kill_again_and_again, orders, seeded};

#[test]
fn file_to_file_no_record_is_lost_and_repeats_are_replays() {
    let mut random = seeded("file to file");
    let name = unique("crash");
    let home = Home::new();
    home.write(
        "crash.yaml",
        format!(
            r#"
name: {name}
{COMMIT}sources:
  orders:
    file: {{ path: orders.ndjson, follow: true }}
transforms:
  - filter: .level != "debug"
  - map: |
      .total = to_int!(.price) * to_int!(.qty)
      del(.qty)
sinks:
  totals:
    file: {{ path: totals.ndjson }}
"#
        ),
    );

    let source = File::create(home.path("orders.ndjson")).expect("the target folder can be written");
    let source = Mutex::new(source);
    let supply = |from, to| {
        let lines: Vec<_> = (from..to).flat_map(|n| [orders::order(n).value, b"\n".to_vec()].concat()).collect();
        // Half a line now and half later: only whole lines are records.
        let (now, later) = lines.split_at(lines.len() * 2 / 3);
        let mut source = source.lock().expect("no supplier fails");
        source.write_all(now).and_then(|()| source.write_all(later)).expect("the target folder can be written");
    };
    let mut weir = kill_again_and_again(&home, &name, &mut random, supply);

    // The last record is the end of its key only; the others may still be on their way.
    let sink = home.path("totals.ndjson");
    wait_until("the last record of each key", SOON, || {
        weir.must_run();
        let text = std::fs::read_to_string(&sink).unwrap_or_default();
        (COUNT - 2 * orders::KEYS..COUNT)
            .filter(|n| orders::mapped(*n).is_some())
            .all(|n| text.contains(&format!("\"note\":\"order {n}\"")))
    });
    assert_eq!(weir.stop(SOON), 0);

    let text = std::fs::read_to_string(&sink).expect("the sink's file is text");
    let repeats = orders::assert_at_least(&text.lines().map(record).collect::<Vec<_>>(), COUNT);
    eprintln!("file to file: {repeats} records came more than once");
}

/// A line as if it had been read from a topic.
fn record(line: &str) -> Consumed {
    let body: serde_json::Value =
        serde_json::from_str(line).unwrap_or_else(|error| panic!("a torn line: {error}: {line}"));
    Consumed {
        partition: 0,
        offset: 0,
        key: body["key"].as_str().map(|key| key.as_bytes().to_vec()),
        value: line.as_bytes().to_vec(),
        headers: Vec::new(),
        timestamp: None,
    }
}
