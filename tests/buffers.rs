//! Disk buffers, with the real binary: what stands still behind one blocks nothing before it, what is in one survives the
//! process, a full one waits or sheds, and a damaged one flows on. No broker is needed.

mod broker;
mod process;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use broker::wait::wait_until;
use broker::{free_port, send_signal};
use process::{Home, http_get, sum_of_series};

/// For what takes a moment even on a machine that is busy with other tests.
const SOON: Duration = Duration::from_mins(1);

const COUNT: u32 = 20_000;

/// A pipeline that writes what it makes to a file, and by a buffer to a standard output that somebody may read.
struct Piped {
    home: Home,
    admin: String,
    child: Child,
}

impl Piped {
    fn start(home: Home) -> Self {
        let admin = format!("127.0.0.1:{}", free_port());
        let mut command = home.command("piped.yaml", &admin);
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("the binary was built");
        Self { home, admin, child }
    }

    /// With these settings of the buffer, this many records, at this rate.
    fn new(buffer: &str, count: u32, more: &str) -> Self {
        let mut home = Home::new();
        // A sink that stands still holds up the end of its own domain.
        home.set("WEIR_GRACE", "1s");
        home.write(
            "piped.yaml",
            format!(
                "name: piped\ncommit: {{ interval: 50ms }}\nsources:\n  orders:\n    generate: {{ shape: orders, count: {count}, seed: 3{more} }}\n\
                 sinks:\n  now:\n    file: {{ path: now.ndjson }}\n  later:\n    buffer: {buffer}\n    stdout: {{}}\n"
            ),
        );
        Self::start(home)
    }

    fn lines_now(&self) -> u32 {
        let text = fs::read_to_string(self.home.path("now.ndjson")).unwrap_or_default();
        counted(text.matches('\n').count())
    }

    /// All that comes out of the standard output until it is closed, while the process goes on.
    fn read_to_end(&mut self) -> Vec<String> {
        let stdout = self.child.stdout.take().expect("it was not read before");
        BufReader::new(stdout).lines().map(|line| line.expect("lines are text")).collect()
    }

    fn exit_code(&mut self) -> Option<i32> {
        let mut code = None;
        wait_until("the daemon to end", SOON, || {
            code = self.child.try_wait().expect("a child can be waited for").map(|status| status.code());
            code.is_some()
        });
        code.flatten()
    }

    fn metric(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let (_, text) = http_get(&self.admin, "/metrics")?;
        sum_of_series(&text, name, labels)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.home.path("log.txt")).unwrap_or_default()
    }

    /// Asks it to stop, and starts it again when it has. What was written to its standard output is dropped.
    fn restart(mut self, between: impl FnOnce(&Home)) -> Self {
        send_signal(self.child.id(), "TERM");
        self.exit_code();
        // The home outlives the process.
        let home = std::mem::replace(&mut self.home, Home::new());
        between(&home);
        Self::start(home)
    }

    fn segments(&self) -> Vec<PathBuf> {
        segments(&self.home)
    }
}

fn counted(number: usize) -> u32 {
    u32::try_from(number).expect("a test counts no further")
}

fn segments(home: &Home) -> Vec<PathBuf> {
    let folder = fs::read_dir(home.path("data/buffers/piped/later")).expect("the buffer is there");
    let files = folder.map(|entry| entry.expect("it can be read").path());
    let mut files: Vec<_> = files.filter(|path| path.extension().is_some_and(|kind| kind == "segment")).collect();
    files.sort();
    files
}

impl Drop for Piped {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const LATER: [(&str, &str); 2] = [("pipeline", "piped"), ("component", "later.buffer")];

#[test]
fn a_sink_that_stands_still_behind_a_buffer_stops_no_other_branch() {
    let mut piped = Piped::new("{ disk: 64MiB }", COUNT, "");
    // Nobody reads the standard output.
    wait_until("the other branch to have all", SOON, || piped.lines_now() == COUNT);
    wait_until("the buffer to hold what waits", SOON, || {
        piped.metric("weir_buffer_records", &LATER).is_some_and(|records| records > f64::from(COUNT / 2))
    });
    assert_eq!(piped.metric("weir_buffer_limit_bytes", &LATER), Some(f64::from(64 << 20)));
    assert!(piped.metric("weir_buffer_bytes", &LATER).is_some_and(|bytes| bytes > 1e6));

    // Beside the running daemon, what waits can be looked at.
    let list = piped.home.run(&["buffer", "list", "--format", "json"]);
    let listed: serde_json::Value = serde_json::from_slice(&list.stdout).expect("one buffer on one line");
    assert_eq!((&listed["pipeline"], &listed["stage"]), (&"piped".into(), &"later".into()));
    assert!(listed["records"].as_u64().is_some_and(|records| records > u64::from(COUNT / 2)), "{listed}");
    let show = piped.home.run(&["buffer", "show", "piped/later", "--limit", "3"]);
    assert_eq!(String::from_utf8_lossy(&show.stdout).lines().count(), 3);

    let lines = piped.read_to_end();
    assert_eq!(piped.exit_code(), Some(0), "{}", piped.log());
    assert_eq!(lines.join("\n") + "\n", fs::read_to_string(piped.home.path("now.ndjson")).expect("it is text"));
}

#[test]
fn what_waits_in_a_buffer_survives_the_process() {
    let piped = Piped::new("{ disk: 64MiB }", COUNT, "");
    wait_until("the other branch to have all", SOON, || piped.lines_now() == COUNT);
    let all: Vec<String> =
        fs::read_to_string(piped.home.path("now.ndjson")).expect("text").lines().map(str::to_owned).collect();
    // Twice: once asked to stop while a sink stands still, which must not wait for the buffer; once killed.
    let mut piped = piped.restart(|_| ());
    wait_until("it to run again", SOON, || piped.metric("weir_buffer_records", &LATER).is_some_and(|left| left > 0.0));
    piped.child.kill().expect("it runs");
    let mut piped = piped.restart(|_| ());
    let lines = piped.read_to_end();
    assert_eq!(piped.exit_code(), Some(0), "{}", piped.log());
    // What the first processes wrote into their pipes was dropped with them, and was not committed, or was.
    let first = all.iter().position(|line| *line == lines[0]).expect("it is one of them");
    assert_eq!(lines, all[first..], "from some place on, all of them, in order");
    assert!(counted(lines.len()) > COUNT / 2);
}

#[test]
fn a_full_buffer_makes_what_comes_before_it_wait_and_says_so() {
    let mut piped = Piped::new("{ disk: 1MiB }", COUNT, ", rate: 40000");
    wait_until("the buffer to be full, loudly", SOON, || piped.log().contains("the buffer of `later` is full (1MiB)"));
    let size: u64 = piped.segments().iter().map(|path| fs::metadata(path).map_or(0, |file| file.len())).sum();
    assert!(size <= 1 << 20, "{size} bytes");
    assert!(piped.lines_now() < COUNT);
    // Readiness names the stage at the root of it, not the one that waits for it.
    wait_until("readiness to say so", SOON, || {
        http_get(&piped.admin, "/ready/piped")
            .is_some_and(|(code, body)| code == 503 && body.contains(r#""stage":"later""#))
    });
    let lines = piped.read_to_end();
    assert_eq!(piped.exit_code(), Some(0), "{}", piped.log());
    assert_eq!((counted(lines.len()), piped.lines_now()), (COUNT, COUNT));
}

#[test]
fn a_full_buffer_that_sheds_drops_the_newest_and_counts_them() {
    let mut piped = Piped::new("{ disk: 1MiB, when_full: shed }", COUNT, ", rate: 40000");
    wait_until("the other branch to have all", SOON, || piped.lines_now() == COUNT);
    let dropped = [LATER[0], LATER[1], ("reason", "buffer_full")];
    let mut shed = 0.0;
    wait_until("all to be kept or shed", SOON, || {
        shed = piped.metric("weir_component_discarded_records_total", &dropped).unwrap_or_default();
        let kept = piped.metric("weir_component_sent_records_total", &LATER).unwrap_or_default();
        kept + shed >= f64::from(COUNT)
    });
    let lines = piped.read_to_end();
    assert_eq!(piped.exit_code(), Some(0), "{}", piped.log());
    let came = counted(lines.len());
    assert!((f64::from(came) + shed - f64::from(COUNT)).abs() < 0.5, "each is delivered or counted: {came}, {shed}");
    assert!(came < COUNT);
}

#[test]
fn a_damaged_segment_is_set_aside_and_named_and_the_rest_flows() {
    let piped = Piped::new("{ disk: 8MiB }", COUNT, "");
    wait_until("the other branch to have all", SOON, || piped.lines_now() == COUNT);
    wait_until("a few segments", SOON, || piped.segments().len() > 2);
    let mut damaged = PathBuf::new();
    let mut piped = piped.restart(|home| {
        // The second: of the first, records may be on their way.
        damaged.clone_from(&segments(home)[1]);
        let mut bytes = fs::read(&damaged).expect("it can be read");
        let middle = bytes.len() / 2;
        bytes[middle..middle + 10].fill(b'?');
        fs::write(&damaged, bytes).expect("it can be written");
    });
    let aside = damaged.with_extension("damaged");
    let name = aside.file_name().expect("it has one").to_string_lossy().into_owned();
    let stdout = piped.child.stdout.take().expect("it is piped");
    let mut lines = BufReader::new(stdout).lines();
    let mut read = BTreeMap::new();
    let mut told = false;
    for (at, line) in lines.by_ref().enumerate() {
        *read.entry(line.expect("it is text")).or_insert(0) += 1;
        // Once all but the end is read, the damage has been met, and the pipeline is still there to tell of it.
        if counted(at) == COUNT * 7 / 10 {
            wait_until("readiness to name it", SOON, || {
                http_get(&piped.admin, "/ready/piped").is_some_and(|(code, body)| code == 200 && body.contains(&name))
            });
            assert!(piped.metric("weir_buffer_damaged_segments", &LATER) == Some(1.0));
            told = true;
        }
    }
    assert!(told, "{} lines", read.len());
    assert_eq!(piped.exit_code(), Some(0), "{}", piped.log());
    assert!(piped.log().contains(&name));
    assert!(aside.exists() && !damaged.exists());
    let list = piped.home.run(&["buffer", "list"]);
    assert!(String::from_utf8_lossy(&list.stdout).contains(&name));
    // One frame is lost, of what was not read before; what is there is whole.
    let all = File::open(piped.home.path("now.ndjson")).expect("it is there");
    let all: BTreeMap<_, usize> = BufReader::new(all).lines().map(|line| (line.expect("text"), 1)).collect();
    assert!(read.iter().all(|(line, count)| all.get(line) == Some(count)));
    let came = counted(read.len());
    assert!(came > COUNT * 7 / 10 && came < COUNT);
}
