//! Dead letters in a file make a round trip: listed, shown, and sent back into the stage that refused them. No broker is
//! needed.

mod broker;
mod process;

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use broker::wait::wait_until;
use process::Home;
use serde_json::Value;

/// For what takes a moment even on a machine that is busy with other tests.
const SOON: Duration = Duration::from_mins(1);

const PIPELINE: &str = r"
name: orders
commit: { interval: 50ms }
sources:
  lines:
    file: { path: in.ndjson }
transforms:
  - name: priced
    map: |
      .total = to_int!(.price) * to_int!(.qty)
sinks:
  totals:
    file: { path: out.ndjson }
dead_letter:
  file: { path: dead.ndjson }
";

fn fixed(pipeline: &str) -> String {
    pipeline.replace("to_int!(.price)", "(to_int(.price) ?? 0)")
}

fn wrong(n: u64) -> String {
    format!("{{\"n\":{n},\"price\":\"a lot\",\"qty\":2}}\n")
}

/// A home in which the pipeline has read these lines.
fn drained(guarantee: &str, lines: &str) -> Home {
    drained_into("{ path: dead.ndjson }", guarantee, lines)
}

/// The same, with its dead letter elsewhere.
fn drained_into(dead_letter: &str, guarantee: &str, lines: &str) -> Home {
    let home = Home::new();
    let pipeline = format!("guarantee: {guarantee}{}", PIPELINE.replace("{ path: dead.ndjson }", dead_letter));
    home.write("fixed.yaml", fixed(&pipeline));
    home.write("orders.yaml", pipeline);
    home.write("in.ndjson", lines);
    let output = home.run(&["run", "orders.yaml"]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    home
}

/// What a command says, and its exit code.
fn dlq(home: &Home, arguments: &[&str]) -> (i32, String, String) {
    let all: Vec<_> = ["dlq"].iter().chain(arguments).copied().collect();
    let output = home.run(&all);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("it prints text");
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

fn said(home: &Home, arguments: &[&str]) -> String {
    let (code, said, errors) = dlq(home, arguments);
    assert_eq!(code, 0, "{arguments:?}: {errors}");
    said
}

fn listed(home: &Home) -> Vec<Value> {
    let said = said(home, &["list", "--format", "json", "orders.yaml"]);
    said.lines().map(|line| serde_json::from_str(line).expect("each line is an object")).collect()
}

/// How often each record came out, by its number.
fn delivered(home: &Home) -> BTreeMap<u64, usize> {
    let mut numbers = BTreeMap::new();
    for line in fs::read_to_string(home.path("out.ndjson")).expect("it was written").lines() {
        let body: Value = serde_json::from_str(line).expect("each line is a record");
        *numbers.entry(body["n"].as_u64().expect("each has its number")).or_default() += 1;
    }
    numbers
}

#[test]
fn letters_go_through_a_corrected_pipeline_once() {
    let home = drained(
        "at_least_once",
        &format!("{{\"n\":0,\"price\":1,\"qty\":1}}\n{}no JSON\n{}{}", wrong(1), wrong(2), wrong(3)),
    );
    let letters = listed(&home);
    assert_eq!(letters.len(), 4);
    let place = |n: u64| {
        let found = letters.iter().find(|letter| {
            let body = said(&home, &["show", "--raw", "orders.yaml", letter["place"].as_str().expect("text")]);
            body.contains(&format!("\"n\":{n},"))
        });
        found.expect("each is there")["place"].as_str().expect("text").to_owned()
    };
    let shown = said(&home, &["show", "orders.yaml", &place(2)]);
    assert!(
        shown.contains("by stage     priced\n")
            && shown.ends_with("\n{\n  \"n\": 2,\n  \"price\": \"a lot\",\n  \"qty\": 2\n}\n"),
        "{shown}"
    );

    // One that is named does not wait for those before it.
    let would = said(&home, &["replay", "--dry-run", "--stage", "priced", "orders.yaml"]);
    assert!(
        would.starts_with("3 letters into `priced`:\n") && would.contains("3 letters would be replayed\n"),
        "{would}"
    );
    let third = place(3);
    assert_eq!(
        said(&home, &["replay", "--through", "fixed.yaml", "orders.yaml", &third]),
        "replayed 1 letter: 1 record delivered\n"
    );
    assert_eq!(
        said(&home, &["replay", "--through", "fixed.yaml", "orders.yaml"]),
        "replayed 3 letters: 2 records delivered, 1 refused again\nskipped: 1 replayed before\n"
    );
    // The line that is no JSON is a letter again; it is the only one left.
    let again: Vec<_> = listed(&home).into_iter().filter(|letter| letter["replayed"] == false).collect();
    assert_eq!(again.len(), 1);
    assert_eq!((&again[0]["stage"], &again[0]["attempt"]), (&"lines".into(), &2.into()));
    assert_eq!(delivered(&home), (0..4).map(|n| (n, 1)).collect());
    let (code, _, errors) = dlq(&home, &["replay", "orders.yaml", "99"]);
    assert_eq!((code, errors.as_str()), (2, "there is no letter at dead.ndjson:99\n"));
}

/// The pipeline, with another dead letter and a time of its own for each record.
fn filed(dead_letter: &str) -> String {
    let stamped =
        "transforms:\n  - name: stamped\n    map: |\n      %timestamp = from_unix_timestamp!(to_int!(.day) * 86400)\n";
    PIPELINE.replace("transforms:\n", stamped).replace("{ path: dead.ndjson }", dead_letter)
}

fn wrong_on(day: u64, n: u64) -> String {
    format!("{{\"n\":{n},\"day\":{day},\"price\":\"a lot\",\"qty\":2}}\n")
}

/// All files below the folder of dead letters, in the order of their names.
fn dead_files(home: &Home) -> Vec<String> {
    let (mut names, mut folders) = (Vec::new(), vec![home.path("dead")]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("it is there") {
            let path = entry.expect("it can be read").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(home.path("dead")).expect("it was found there");
                names.push(name.to_str().expect("it is text").to_owned());
            }
        }
    }
    names.sort();
    names
}

/// Letters in files of one form: some in files that are finished, some in those that grow. They are listed and shown in
/// order, without what is not committed, and go back once.
fn round_trip(guarantee: &str, dead_letter: &str, files: &[&str], places: &[&str]) {
    let home = Home::new();
    fs::create_dir(home.path("dead")).expect("a folder can be made");
    let pipeline = format!("guarantee: {guarantee}{}", filed(dead_letter));
    home.write("orders.yaml", &pipeline);
    home.write("fixed.yaml", fixed(&pipeline));
    let first = format!("{}{}{}", wrong_on(2, 0), wrong_on(1, 1), wrong_on(2, 2));
    home.write("in.ndjson", &first);
    let output = home.run(&["run", "orders.yaml"]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    // The rest by a process that is stopped before the end of its input: what grows goes on growing.
    home.write("follow.yaml", pipeline.replace("path: in.ndjson", "path: in.ndjson, follow: true"));
    let mut weir = home.start("follow.yaml");
    home.write("in.ndjson", format!("{first}{}{}", wrong_on(3, 3), wrong_on(1, 4)));
    wait_until("the last letters", SOON, || {
        weir.must_run();
        let shown = said(&home, &["list", "orders.yaml"]);
        shown.contains("5 letters\n") && shown.ends_with("when the daemon does not hold its data folder\n")
    });
    assert_eq!(weir.stop(SOON), 0);
    assert_eq!(dead_files(&home), files, "{dead_letter}");
    // What a crash leaves behind what is committed is no letter, whether it looks like one or not.
    for name in files.iter().filter(|name| name.strip_suffix(".open").is_some()) {
        let path = home.path("dead").join(name);
        let bytes = fs::read(&path).expect("it is there");
        fs::write(&path, [&*bytes, &bytes[..bytes.len() - 1]].concat()).expect("it can be written");
    }

    let letters = listed(&home);
    let place = |letter: &Value| letter["place"].as_str().expect("text").to_owned();
    assert_eq!(letters.iter().map(place).collect::<Vec<_>>(), places, "{dead_letter}");
    assert!(letters.iter().all(|letter| letter["replayed"] == false));
    let table = said(&home, &["list", "orders.yaml"]);
    assert!(table.ends_with("5 letters\n") && places.iter().all(|place| table.contains(place)), "{table}");
    let last = places.last().expect("there are some");
    let shown = said(&home, &["show", "orders.yaml", last]);
    assert!(shown.starts_with(&format!("letter       dead/{last}\n")), "{shown}");
    assert!(said(&home, &["show", "--raw", "orders.yaml", &format!("dead/{last}")]).contains("\"price\":\"a lot\""));

    // Two that are named, in two files or in one; then the rest.
    let replay = |more: &[&str]| said(&home, &[&["replay", "--through", "fixed.yaml", "orders.yaml"], more].concat());
    assert_eq!(replay(&[last, places[1]]), "replayed 2 letters: 2 records delivered\n", "{dead_letter}");
    let done = listed(&home).iter().filter(|letter| letter["replayed"] == true).map(place).collect::<Vec<_>>();
    assert_eq!(done, [places[1], last], "{dead_letter}");
    assert_eq!(replay(&[]), "replayed 3 letters: 3 records delivered\nskipped: 2 replayed before\n", "{dead_letter}");
    assert_eq!(replay(&[]), "there is nothing to replay\nskipped: 5 replayed before\n", "{dead_letter}");
    assert!(listed(&home).iter().all(|letter| letter["replayed"] == true));
    assert_eq!(delivered(&home), (0..5).map(|n| (n, 1)).collect(), "{dead_letter}");
}

#[test]
fn letters_in_a_compressed_file_make_the_round_trip() {
    for compression in ["gzip", "zstd"] {
        let home = drained_into(
            &format!("{{ path: dead.packed, compression: {compression} }}"),
            "at_least_once",
            &(0..3).map(wrong).collect::<String>(),
        );
        assert_eq!(listed(&home).iter().map(|letter| letter["place"].clone()).collect::<Vec<_>>(), ["1", "2", "3"]);
        let replay = || said(&home, &["replay", "--through", "fixed.yaml", "orders.yaml"]);
        assert_eq!(replay(), "replayed 3 letters: 3 records delivered\n");
        assert_eq!(replay(), "there is nothing to replay\nskipped: 3 replayed before\n");
        assert_eq!(delivered(&home), (0..3).map(|n| (n, 1)).collect());
        // A person who looks at a damaged file is told which, and what to do.
        let path = home.path("dead.packed");
        let mut bytes = fs::read(&path).expect("it is there");
        let middle = bytes.len() / 2;
        bytes[middle..middle + 8].fill(0xff);
        fs::write(&path, bytes).expect("it can be written");
        let (code, _, errors) = dlq(&home, &["list", "orders.yaml"]);
        assert_eq!(code, 1, "{errors}");
        assert!(errors.contains("`dead.packed` cannot be read: the compressed data is damaged: "), "{errors}");
        assert!(errors.ends_with("restore the file, or move it away to read the others\n"), "{errors}");
    }
}

#[test]
fn letters_in_files_by_date_make_the_round_trip() {
    round_trip(
        "at_least_once",
        "{ path: 'dead/%d.%m.%Y/x-%H.ndjson' }",
        &["02.01.1970/x-00.ndjson", "03.01.1970/x-00.ndjson", "04.01.1970/x-00.ndjson"],
        &[
            "02.01.1970/x-00.ndjson:1",
            "02.01.1970/x-00.ndjson:2",
            "03.01.1970/x-00.ndjson:1",
            "03.01.1970/x-00.ndjson:2",
            "04.01.1970/x-00.ndjson:1",
        ],
    );
}

#[test]
fn letters_in_rotated_files_make_the_round_trip() {
    round_trip(
        "exactly_once",
        "{ path: dead/all.ndjson, rotate: { size: 1GB } }",
        &["all-000001.ndjson", "all-000002.ndjson.open"],
        &[
            "all-000001.ndjson:1",
            "all-000001.ndjson:2",
            "all-000001.ndjson:3",
            "all-000002.ndjson:1",
            "all-000002.ndjson:2",
        ],
    );
}

#[test]
fn letters_in_files_of_all_these_forms_at_once_make_the_round_trip() {
    for (guarantee, compression, ending) in [("at_least_once", "gzip", "gz"), ("exactly_once", "zstd", "zst")] {
        let name = |day: u64, number: u64| format!("1970-01-0{day}-00000{number}.ndjson.{ending}");
        let open = |day, number| format!("{}.open", name(day, number));
        let line = |day, number, line| format!("{}:{line}", name(day, number));
        let files = [name(2, 2), open(2, 4), name(3, 1), open(4, 3)];
        let places = [line(3, 1, 1), line(3, 1, 2), line(2, 2, 1), line(4, 3, 1), line(2, 4, 1)];
        round_trip(
            guarantee,
            &format!(
                "{{ path: 'dead/%Y-%m-%d.ndjson.{ending}', rotate: {{ after: 1d }}, compression: {compression} }}"
            ),
            &files.each_ref().map(String::as_str),
            &places.each_ref().map(String::as_str),
        );
    }
}

/// Replays `COUNT` letters with a process that is killed again and again, and tells how often each record came.
fn survive(guarantee: &str, dead_letter: &str) -> BTreeMap<u64, usize> {
    let lines: String = (0..COUNT).map(wrong).collect();
    let home = drained_into(dead_letter, guarantee, &lines);
    let mut killed_midway = 0;
    let size = || fs::metadata(home.path("out.ndjson")).map_or(0, |metadata| metadata.len());
    while killed_midway < 3 {
        let before = size();
        let mut replay = home.start_command(&["dlq", "replay", "--through", "fixed.yaml", "orders.yaml"]);
        wait_until("the replay to deliver", SOON, || size() > before || replay.exit_code().is_some());
        let ended = replay.exit_code();
        replay.kill();
        if ended == Some(0) {
            break;
        }
        assert_eq!(ended, None, "{}", replay.log());
        killed_midway += 1;
    }
    said(&home, &["replay", "--through", "fixed.yaml", "orders.yaml"]);
    assert!(killed_midway > 0, "no kill came in the middle");
    assert!(listed(&home).iter().all(|letter| letter["replayed"] == true));
    delivered(&home)
}

/// Letters that a replay with kills sends back: more than it delivers before the first kill.
const COUNT: u64 = 20_000;

#[test]
fn rule_29_a_replay_that_is_killed_goes_on_and_delivers_nothing_twice() {
    for dead_letter in ["{ path: dead.ndjson }", "{ path: dead.zst, rotate: { size: 1KB }, compression: zstd }"] {
        assert_eq!(survive("exactly_once", dead_letter), (0..COUNT).map(|n| (n, 1)).collect(), "{dead_letter}");
    }
}

#[test]
fn rule_29_a_replay_that_is_killed_loses_nothing() {
    assert_eq!(
        survive("at_least_once", "{ path: dead.ndjson }").into_keys().collect::<Vec<_>>(),
        (0..COUNT).collect::<Vec<_>>()
    );
}

#[test]
fn beside_a_running_daemon_letters_in_a_file_are_listed_and_not_replayed() {
    let home = Home::new();
    home.write("orders.yaml", PIPELINE.replace("path: in.ndjson", "path: in.ndjson, follow: true"));
    home.write("in.ndjson", wrong(1));
    let mut weir = home.start("orders.yaml");
    wait_until("the letter", SOON, || {
        weir.must_run();
        fs::metadata(home.path("dead.ndjson")).is_ok_and(|metadata| metadata.len() > 0)
    });
    let table = said(&home, &["list", "orders.yaml"]);
    assert!(table.contains("  ?  ") && table.ends_with("when the daemon does not hold its data folder\n"), "{table}");
    let (code, _, errors) = dlq(&home, &["replay", "orders.yaml"]);
    assert_eq!(code, 1, "{errors}");
    assert!(
        errors.contains("in use by another process") && errors.contains("while the daemon that writes it is stopped"),
        "{errors}"
    );
    assert_eq!(weir.stop(SOON), 0);
    assert!(
        said(&home, &["replay", "orders.yaml"]).starts_with("replayed 1 letter: 0 records delivered, 1 refused again")
    );
}

#[test]
fn what_cannot_be_read_again_says_why_and_what_to_do() {
    let home = Home::new();
    let file = |text: String| {
        home.write("orders.yaml", text);
        let (code, _, errors) = dlq(&home, &["list", "orders.yaml"]);
        assert_eq!(code, 2, "{errors}");
        errors
    };
    let (head, _) = PIPELINE.split_once("dead_letter:").expect("it has one");
    assert!(file(head.to_owned()).contains("orders.yaml: pipeline `orders` has no dead letter; add `dead_letter: "));
    let stdout = file(format!("{head}dead_letter: {{ stdout: {{}} }}\n"));
    assert!(stdout.contains("what was written to `stdout` cannot be read again; `kafka` and `file` can"), "{stdout}");
    let embedded = file(format!("{head}dead_letter: {{ kafka: {{ brokers: embedded, topic: dead }} }}\n"));
    assert!(embedded.contains("in the memory of the process that runs the pipeline"), "{embedded}");
    let two = file(format!("{PIPELINE}---{}", PIPELINE.replace("name: orders", "name: other")));
    assert!(two.contains("there are several pipelines; name one with `--pipeline`: `orders`, `other`"), "{two}");

    let unknown = file(PIPELINE.replace("dead.ndjson", "'dead-%c.ndjson'"));
    assert!(
        unknown.contains("files of `dead-%c.ndjson` cannot be told from others by their names: use `"),
        "{unknown}"
    );

    home.write("dated.yaml", PIPELINE.replace("dead.ndjson", "'dead-%Y.ndjson'"));
    home.write("dead-2026.ndjson", "");
    let (_, _, errors) = dlq(&home, &["show", "dated.yaml", "17"]);
    assert!(
        errors.contains(
            "expected FILE:LINE with one of the files that `weir dlq list` shows, such as `dead-2026.ndjson:17`"
        ),
        "{errors}"
    );
    home.write("orders.yaml", PIPELINE);
    for (arguments, words) in [
        (&["show", "orders.yaml", "0/17"][..], "`0/17` is no place of a letter: expected the number of a line"),
        (
            &["replay", "orders.yaml", "--stage", "price"],
            "pipeline `orders` has no stage `price`, did you mean `priced`?",
        ),
        (&["list", "orders.yaml", "--since", "lately"], "expected a time such as `2026-01-31T12:00:00Z`"),
        (&["list", "orders.yaml", "--pipeline", "other"], "no pipeline is named `other`; there are `orders`"),
    ] {
        let (code, _, errors) = dlq(&home, arguments);
        assert_eq!(code, 2, "{errors}");
        assert!(errors.contains(words), "{errors}");
    }
    // Nothing was refused yet.
    assert!(said(&home, &["list", "orders.yaml"]).ends_with("0 letters\n"));
    assert!(!home.path("data").join("weir.redb").exists(), "looking leaves no trace");
}
