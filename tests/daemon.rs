//! The daemon from outside: what it answers, and how it starts and ends. No broker is needed.

mod broker;
mod process;

use std::fs::File;
use std::io::Read;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use broker::send_signal;
use broker::wait::wait_until;
use process::Home;

/// For what takes a moment even on a machine that is busy with other tests.
const SOON: Duration = Duration::from_mins(1);

const ENDLESS: &str = "
sources:
  orders:
    generate: { shape: orders, rate: 100 }
sinks:
  nowhere:
    blackhole: {}
";

/// A daemon whose sink waits for ever: nobody reads its standard output. Killed when dropped.
struct Blocked {
    home: Home,
    child: Child,
}

impl Blocked {
    fn start(grace: &str) -> Self {
        let home = Home::new();
        home.write("blocked.yaml", ENDLESS.replace("blackhole", "stdout").replace(", rate: 100", ""));
        let log = File::create(home.path("log.txt")).expect("the home can be written");
        let child = Command::new(env!("CARGO_BIN_EXE_weir"))
            .args(["run", "blocked.yaml"])
            .current_dir(home.path("."))
            .env("WEIR_DATA_DIR", home.path("data"))
            .env("WEIR_ADMIN__LISTEN", "off")
            .env("WEIR_GRACE", grace)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("the binary was built");
        let mut blocked = Self { home, child };
        // The first bytes are out, and the pipe takes no more than the kernel's 64 KiB.
        let stdout = blocked.child.stdout.as_mut().expect("it is piped");
        stdout.read_exact(&mut [0]).expect("the daemon writes");
        blocked
    }

    fn terminate(&self) {
        send_signal(self.child.id(), "TERM");
    }

    fn wait(&mut self, limit: Duration) -> Option<i32> {
        let mut code = None;
        wait_until("the daemon to end", limit, || {
            code = self.child.try_wait().expect("a child can be waited for").map(|status| status.code());
            code.is_some()
        });
        code.flatten()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.home.path("log.txt")).unwrap_or_default()
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn it_tells_how_it_fares() {
    let home = Home::new();
    home.write("endless.yaml", ENDLESS);
    let mut weir = home.start("endless.yaml");
    weir.wait_ready();
    wait_until("an epoch to commit", SOON, || {
        weir.metric("weir_epoch_duration_seconds_count", &[("pipeline", "endless")]).is_some_and(|count| count > 0.0)
    });
    let get = |path| weir.get(path).expect("it answers");
    assert_eq!(get("/live").0, 200);
    let (code, body) = get("/ready/endless");
    assert_eq!(code, 200, "{body}");
    assert!(body.contains(r#""state":"running""#), "{body}");
    assert_eq!(get("/ready/other").0, 404);
    let stage = [("pipeline", "endless"), ("component", "nowhere"), ("kind", "sink"), ("type", "blackhole")];
    assert!(weir.metric("weir_component_received_records_total", &stage).is_some_and(|count| count > 0.0));
    assert!(weir.metric("weir_build_info", &[]).is_some());
    assert_eq!(weir.stop(SOON), 0);
}

#[test]
fn a_folder_runs_each_of_its_files() {
    let home = Home::new();
    std::fs::create_dir(home.path("many")).unwrap();
    for number in 0..10 {
        home.write(&format!("many/p{number}.yaml"), ENDLESS);
    }
    home.write("many/notes.txt", "no pipeline");
    let mut weir = home.start("many");
    weir.wait_ready();
    let (_, body) = weir.get("/ready").expect("it answers");
    for number in 0..10 {
        assert!(body.contains(&format!("\"p{number}\"")), "{body}");
    }
    assert_eq!(weir.stop(SOON), 0);
}

#[test]
fn a_data_folder_has_one_process() {
    let home = Home::new();
    home.write("endless.yaml", ENDLESS);
    let mut weir = home.start("endless.yaml");
    weir.wait_ready();
    let second = home.run(&["run", "endless.yaml"]);
    let words = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(1), "{words}");
    assert!(words.contains("in use by another process"), "{words}");
    assert_eq!(weir.stop(SOON), 0);
}

#[test]
fn an_admin_address_in_use_is_told() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut home = Home::new();
    home.write("endless.yaml", ENDLESS);
    home.set("WEIR_ADMIN__LISTEN", &address);
    let output = home.run(&["run", "endless.yaml"]);
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{words}");
    assert!(words.contains(&address) && words.contains("admin.listen"), "{words}");
}

#[test]
fn settings_come_from_a_file_and_variables_win() {
    let home = Home::new();
    home.write("endless.yaml", ENDLESS.replace("rate: 100", "count: 10"));
    home.write("weir.yaml", "log: { format: json, level: info }\n");
    let output = home.run(&["run", "--config", "weir.yaml", "endless.yaml"]);
    assert_eq!(output.status.code(), Some(0));
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(words.lines().count() > 1);
    for line in words.lines() {
        assert!(line.starts_with('{') && line.ends_with('}'), "{line}");
    }
    home.write("weir.yaml", "log: { format: xml }\ngracious: 1\n");
    let output = home.run(&["run", "--config", "weir.yaml", "endless.yaml"]);
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{words}");
    assert!(words.contains("weir.yaml: `log.format`") && words.contains("weir.yaml: `gracious`"), "{words}");
}

#[test]
fn a_record_of_100_mb_goes_to_the_dead_letter_and_stops_nothing() {
    let input = format!("{{\"a\":1}}\n{}\nnot JSON\n{{\"a\":2}}\n", "x".repeat(100_000_000));
    let home = Home::new();
    home.write("in.log", &input);
    let pipeline = "
sources:
  lines: { file: { path: in.log } }
sinks:
  out: { file: { path: out.ndjson } }
";
    home.write("long.yaml", pipeline);
    let output = home.run(&["run", "long.yaml"]);
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{words}");
    assert!(
        words.contains("offset 8") && words.contains("100000000 bytes") && words.contains("dead_letter"),
        "{words}"
    );

    let home = Home::new();
    home.write("in.log", &input);
    home.write("long.yaml", format!("{pipeline}dead_letter: {{ file: {{ path: dead.ndjson }} }}\n"));
    let output = home.run(&["run", "long.yaml"]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let written = std::fs::read_to_string(home.path("out.ndjson")).unwrap();
    assert!(written.ends_with("{\"a\":2}\n"), "{written}");
    let dead = std::fs::read_to_string(home.path("dead.ndjson")).unwrap();
    let letters: Vec<&str> = dead.lines().collect();
    assert_eq!(letters.len(), 2);
    assert!(letters[0].contains("100000000 bytes") && letters[0].len() < 100_000, "{}", letters[0].len());
    assert!(letters[0].contains("\"cut_from_bytes\":100000000") && letters[1].contains("not JSON"), "{}", letters[1]);
}

#[test]
fn who_asks_twice_does_not_wait_for_the_grace() {
    let mut weir = Blocked::start("10m");
    weir.terminate();
    wait_until("it to be stopping", SOON, || weir.log().contains("stopping"));
    weir.terminate();
    assert_eq!(weir.wait(SOON), Some(1), "{}", weir.log());
    assert!(weir.log().contains("left behind"), "{}", weir.log());
}

#[test]
fn the_grace_ends_the_wait() {
    let mut weir = Blocked::start("300ms");
    weir.terminate();
    assert_eq!(weir.wait(SOON), Some(1), "{}", weir.log());
    assert!(weir.log().contains("within the grace period"), "{}", weir.log());
    assert!(weir.log().contains("left behind"), "{}", weir.log());
}

/// Records come from one file and go to a row of others.
const ROTATED: &str = "
commit: { interval: 50ms }
sources:
  lines:
    file: { path: in.ndjson, follow: true }
sinks:
  out:
    file: { path: out.ndjson, rotate: { after: 1s } }
";

#[test]
fn a_rotated_file_gets_its_final_name_in_time_though_nothing_moves() {
    for guarantee in ["at_least_once", "exactly_once"] {
        let home = Home::new();
        home.write("rotated.yaml", format!("guarantee: {guarantee}{ROTATED}"));
        home.write("in.ndjson", "{\"n\":1}\n");
        let mut weir = home.start("rotated.yaml");
        wait_until("the file to be finished", SOON, || {
            weir.must_run();
            home.path("out-000001.ndjson").exists()
        });
        assert_eq!(std::fs::read_to_string(home.path("out-000001.ndjson")).expect("it is there"), "{\"n\":1}\n");
        assert!(!home.path("out-000001.ndjson.open").exists());
        // One for the record, one for the name; no more, as nothing moves.
        wait_until("its metrics", SOON, || weir.metric("weir_epoch_duration_seconds_count", &[]).is_some());
        let epochs = weir.metric("weir_epoch_duration_seconds_count", &[]).expect("it answers");
        assert!(epochs <= 2.0, "{epochs} epochs");
        assert_eq!(weir.stop(SOON), 0);
    }
}

/// A pipeline from standard input, whose lines its sink cannot write: nothing may pass for done.
#[test]
fn records_that_their_source_cannot_read_again_are_not_lost_in_silence() {
    let home = Home::new();
    home.write("pipe.yaml", "{ sources: { in: { stdin: {} } }, sinks: { out: { stdout: {} } } }");
    home.write("lines.ndjson", "{\"a\":1}\n".repeat(1000));
    let log = File::create(home.path("log.txt")).expect("the home can be written");
    let code = Command::new(env!("CARGO_BIN_EXE_weir"))
        .args(["run", "pipe.yaml"])
        .current_dir(home.path("."))
        .env("WEIR_DATA_DIR", home.path("data"))
        .env("WEIR_ADMIN__LISTEN", "off")
        .stdin(File::open(home.path("lines.ndjson")).expect("it was written"))
        .stdout(File::options().write(true).open("/dev/full").expect("Linux has a full device"))
        .stderr(log)
        .status()
        .expect("the binary was built")
        .code();
    let log = std::fs::read_to_string(home.path("log.txt")).expect("it was written");
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("were lost on the way") && log.contains("records=1000"), "{log}");
}

/// A terminal that is closed asks the daemon to stop, as `SIGTERM` does.
#[test]
fn a_hangup_closes_the_epoch() {
    let home = Home::new();
    home.write("endless.yaml", ENDLESS);
    let mut weir = home.start("endless.yaml");
    weir.wait_ready();
    send_signal(weir.pid(), "HUP");
    assert_eq!(weir.wait(SOON), 0, "{}", weir.log());
    assert!(weir.log().contains("SIGHUP"), "{}", weir.log());
}

/// What a generator may write and a person does not: it is refused at its place, and ends no process.
#[test]
fn a_program_that_is_nested_too_deeply_is_a_mistake_like_any_other() {
    let home = Home::new();
    for terms in [10, 190, 3000] {
        let condition = vec![".a == \"x\""; terms / 2].join(" || ");
        let steps = format!(
            "sources: {{ in: {{ generate: {{ shape: orders, count: 10 }} }} }}\ntransforms:\n  - filter: '{condition}'\n"
        );
        home.write("deep.yaml", format!("{steps}sinks: {{ out: {{ blackhole: {{}} }} }}\n"));
        let checked = home.run(&["check", "deep.yaml"]);
        let said = String::from_utf8_lossy(&checked.stdout).into_owned() + &String::from_utf8_lossy(&checked.stderr);
        assert_eq!(checked.status.code(), Some(if terms > 200 { 2 } else { 0 }), "{terms}: {said}");
        if terms > 200 {
            assert!(said.contains("deep.yaml:3:") && said.contains("nested too deeply"), "{said}");
        } else {
            assert_eq!(home.run(&["run", "deep.yaml"]).status.code(), Some(0), "{terms}");
        }
    }
}
