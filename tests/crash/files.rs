//! To files, under both guarantees: from a file and from Kafka, to one file, and to many that are rotated and compressed.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::broker::wait::wait_until;
use crate::broker::{Broker, Consumed, unique};
use crate::process::Home;
use crate::{COMMIT, COUNT, SOON, kill_again_and_again, orders, seeded};

/// One file that grows.
const PLAIN: &str = "{ path: totals.ndjson }";
/// Files that are finished one after another.
const ROTATED: &str = "{ path: totals/all.ndjson.gz, rotate: { size: 200kB }, compression: gzip }";
/// Files of times, which are finished too.
const BY_MINUTE: &str = "{ path: \"totals/%H-%M.ndjson.zst\", rotate: { size: 100kB, after: 3s }, compression: zstd }";
/// By a disk buffer, which is an epoch domain more.
const BUFFERED: &str = "{ path: totals.ndjson }\n    buffer: { disk: 64MiB }";
/// By one that is full now and then.
const NARROW: &str = "{ path: totals.ndjson }\n    buffer: { disk: 1MiB }";

fn pipeline(name: &str, guarantee: &str, source: &str, sink: &str) -> String {
    format!(
        r#"
name: {name}
guarantee: {guarantee}
{COMMIT}sources:
  orders:
    {source}
transforms:
  - filter: .level != "debug"
  - map: |
      .total = to_int!(.price) * to_int!(.qty)
      del(.qty)
sinks:
  totals:
    file: {sink}
"#
    )
}

/// The records that came out of a file after all the kills.
fn survive_from_a_file(guarantee: &str, sink: &str) -> Vec<Consumed> {
    let mut random = seeded(&format!("file to file, {guarantee}, {sink}"));
    let name = unique("crash");
    let home = Home::new();
    home.write("crash.yaml", pipeline(&name, guarantee, "file: { path: orders.ndjson, follow: true }", sink));

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
    let last: Vec<String> = (COUNT - 2 * orders::KEYS..COUNT)
        .filter(|n| orders::mapped(*n).is_some())
        .map(|n| format!("\"note\":\"order {n}\""))
        .collect();
    wait_until("the last record of each key", SOON, || {
        weir.must_run();
        let lines = lines(&home);
        let end = &lines[lines.len().saturating_sub(1000)..];
        last.iter().all(|note| end.iter().any(|line| line.contains(note)))
    });
    assert_eq!(weir.stop(SOON), 0);
    records(&home)
}

/// The records that came out of a topic after all the kills.
fn survive_from_kafka(guarantee: &str, sink: &str) -> Vec<Consumed> {
    let broker = Broker::shared();
    let mut random = seeded(&format!("kafka to file, {guarantee}, {sink}"));
    let (source, name) = (broker.topic("orders", 4), unique("crash"));
    let mut home = Home::new();
    home.set("KAFKA_BROKERS", broker.address()).set("WEIR_INSTANCE", &unique("instance"));
    let config = format!("kafka: {{ brokers: \"${{KAFKA_BROKERS}}\", topics: [{source}], group: {name} }}");
    home.write("crash.yaml", pipeline(&name, guarantee, &config, sink));

    let writer = broker.writer(&source);
    let supply = |from, to| (from..to).for_each(|n| writer.send(&orders::order(n)));
    let mut weir = kill_again_and_again(&home, &name, &mut random, supply);

    writer.flush();
    wait_until("all to be committed", SOON, || {
        weir.must_run();
        broker.is_all_committed(&name, &source)
    });
    wait_until("what is in a buffer to be committed too", SOON, || {
        weir.must_run();
        weir.metric("weir_buffer_records", &[("pipeline", &name)]).is_none_or(|records| records == 0.0)
    });
    assert_eq!(weir.stop(SOON), 0);
    eprintln!("kafka to file, {guarantee}: the group was asked {} times what became of an epoch", settled(&home));
    records(&home)
}

/// How often a process found an epoch prepared, and asked the group what became of it.
fn settled(home: &Home) -> usize {
    let logs = fs::read_dir(home.path(".")).into_iter().flatten().filter_map(Result::ok);
    let logs = logs.filter(|entry| entry.file_name().to_string_lossy().starts_with("log-"));
    logs.map(|log| fs::read_to_string(log.path()).unwrap_or_default().matches("left prepared is settled").count()).sum()
}

/// All that the sink has written, in the order of the names of its files.
fn records(home: &Home) -> Vec<Consumed> {
    lines(home).iter().map(|line| record(line)).collect()
}

fn lines(home: &Home) -> Vec<String> {
    let mut files: Vec<PathBuf> = vec![home.path("totals.ndjson")];
    let folder = fs::read_dir(home.path("totals")).into_iter().flatten();
    files.extend(folder.map(|entry| entry.expect("the folder can be read").path()));
    files.sort();
    files.iter().flat_map(|file| lines_of(file)).collect()
}

/// The whole lines of a file, which may still be growing.
fn lines_of(path: &Path) -> Vec<String> {
    let Ok(file) = File::open(path) else { return Vec::new() };
    let name = path.to_string_lossy();
    let decoded: Box<dyn Read> = if name.contains(".gz") {
        Box::new(flate2::read::MultiGzDecoder::new(file))
    } else if name.contains(".zst") {
        Box::new(zstd::Decoder::new(file).expect("memory suffices"))
    } else {
        Box::new(file)
    };
    let mut reader = BufReader::new(decoded);
    let mut lines = Vec::new();
    let mut line = String::new();
    while reader.read_line(&mut line).is_ok_and(|read| read > 0) {
        if line.ends_with('\n') {
            lines.push(line.trim_end().to_owned());
        }
        line.clear();
    }
    lines
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

#[test]
fn file_to_file_no_record_is_lost_and_repeats_are_replays() {
    let repeats = orders::assert_at_least(&survive_from_a_file("at_least_once", PLAIN), COUNT);
    eprintln!("file to file: {repeats} records came more than once");
}

#[test]
fn file_to_file_exactly_once_no_record_is_lost_or_repeated_or_out_of_order() {
    orders::assert_exactly(&survive_from_a_file("exactly_once", PLAIN), COUNT);
}

#[test]
fn file_to_rotated_files_exactly_once_no_record_is_lost_or_repeated_or_out_of_order() {
    orders::assert_exactly(&survive_from_a_file("exactly_once", ROTATED), COUNT);
}

#[test]
fn by_a_buffer_from_file_to_file_no_record_is_lost_and_repeats_are_replays() {
    let repeats = orders::assert_at_least(&survive_from_a_file("at_least_once", BUFFERED), COUNT);
    eprintln!("file to buffer to file: {repeats} records came more than once");
}

#[test]
fn by_a_buffer_from_file_to_file_exactly_once_no_record_is_lost_or_repeated_or_out_of_order() {
    orders::assert_exactly(&survive_from_a_file("exactly_once", NARROW), COUNT);
}

#[test]
fn by_a_buffer_from_kafka_to_file_exactly_once_no_record_is_lost_or_repeated_or_out_of_order() {
    orders::assert_exactly(&survive_from_kafka("exactly_once", BUFFERED), COUNT);
}

#[test]
fn kafka_to_file_no_record_is_lost_and_repeats_are_replays() {
    let repeats = orders::assert_at_least(&survive_from_kafka("at_least_once", PLAIN), COUNT);
    eprintln!("kafka to file: {repeats} records came more than once");
}

#[test]
fn kafka_to_file_exactly_once_no_record_is_lost_or_repeated_or_out_of_order() {
    orders::assert_exactly(&survive_from_kafka("exactly_once", PLAIN), COUNT);
}

#[test]
fn kafka_to_files_of_times_exactly_once_no_record_is_lost_or_repeated_or_out_of_order() {
    orders::assert_exactly(&survive_from_kafka("exactly_once", BY_MINUTE), COUNT);
}
