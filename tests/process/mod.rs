//! The real binary as a child of a test or a benchmark, in a home folder of its own.
//!
//! However the test process ends, the child ends with it.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::broker::wait::{Deadline, wait_for, wait_until};
use crate::broker::{free_port, install, send_signal};

const WEIR: &str = env!("CARGO_BIN_EXE_weir");

/// Starts the process, tells its id, and passes its exit code on. It kills the process when this script's standard
/// input ends, which also happens when the test is killed.
const KEEPER: &str = r#"
log=$1; shift
exec 3<&0
"$@" </dev/null 3<&- >>"$log" 2>&1 &
pid=$!
echo "$pid"
(while read -r line; do :; done; kill -KILL "$pid") <&3 >/dev/null 2>&1 &
watch=$!
exec 3<&-
wait "$pid"
code=$?
kill "$watch" 2>/dev/null
exit "$code"
"#;

/// A folder with pipeline files and the data folder of the processes that run them. It is removed when it is dropped,
/// unless the test failed.
#[derive(Debug)]
pub(crate) struct Home {
    folder: PathBuf,
    variables: Vec<(String, String)>,
    wrapper: Vec<String>,
    started: AtomicU32,
}

impl Home {
    /// An empty home.
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = install::target_dir().join("tmp").join(format!("weir-{}-{number}", std::process::id()));
        fs::create_dir_all(&folder).expect("the target folder can be written");
        Self { folder, variables: Vec::new(), wrapper: Vec::new(), started: AtomicU32::new(0) }
    }

    /// Sets a variable for all processes of this home.
    pub(crate) fn set(&mut self, name: &str, value: &str) -> &mut Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Puts these words before the command of each process that is started. What they run must keep the process's id.
    pub(crate) fn wrap(&mut self, words: Vec<String>) -> &mut Self {
        self.wrapper = words;
        self
    }

    /// A path within it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Writes a file in it.
    pub(crate) fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).expect("the target folder can be written");
        path
    }

    /// Leaves it where it is.
    pub(crate) fn keep(self) {
        std::mem::forget(self);
    }

    /// Runs a command of the binary to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(WEIR);
        command.args(arguments).current_dir(&self.folder).stdin(Stdio::null());
        self.set_variables(&mut command, "off");
        command.output().expect("the binary was built")
    }

    /// Starts `weir run` on a file of this home.
    pub(crate) fn start(&self, file: &str) -> Weir {
        self.start_with(file, &[])
    }

    /// Starts `weir run` on a file of this home with some more variables set.
    pub(crate) fn start_with(&self, file: &str, variables: &[(&str, &str)]) -> Weir {
        self.launch(&["run", file], variables)
    }

    /// Starts any command of the binary, to be looked after while it runs.
    pub(crate) fn start_command(&self, arguments: &[&str]) -> Weir {
        self.launch(arguments, &[])
    }

    fn launch(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Weir {
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let admin = format!("127.0.0.1:{}", free_port());
        let log = self.path(&format!("log-{number}.txt"));
        let mut command = Command::new("sh");
        command.args(["-c", KEEPER, "sh"]).arg(&log).args(&self.wrapper).arg(WEIR).args(arguments);
        // The keeper itself has nothing to say; the shell would tell of each kill.
        command.current_dir(&self.folder).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        // A Ctrl-C in the terminal reaches the test; the keeper then ends the process.
        command.process_group(0);
        self.set_variables(&mut command, &admin);
        command.envs(variables.iter().copied());
        let mut keeper = command.spawn().expect("`sh` is on every Unix");
        let mut pid = String::new();
        let stdout = keeper.stdout.take().expect("it is piped");
        BufReader::new(stdout).read_line(&mut pid).expect("the keeper tells the process's id");
        let pid = pid.trim().parse().expect("the keeper tells the process's id");
        Weir { keeper, pid, admin, log, code: None }
    }

    /// `weir run` on a file of this home, for those who look after the process themselves.
    pub(crate) fn command(&self, file: &str, admin: &str) -> Command {
        let mut command = Command::new(WEIR);
        let log = fs::File::create(self.path("log.txt")).expect("the target folder can be written");
        command.args(["run", file]).current_dir(&self.folder).stderr(log);
        self.set_variables(&mut command, admin);
        command
    }

    fn set_variables(&self, command: &mut Command, admin: &str) {
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("WEIR_") {
                command.env_remove(name);
            }
        }
        command.env("WEIR_DATA_DIR", self.path("data")).env("WEIR_ADMIN__LISTEN", admin);
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("what the processes wrote is kept in {}", self.folder.display());
        } else {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

/// A running `weir run`. It is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Weir {
    keeper: Child,
    pid: u32,
    admin: String,
    log: PathBuf,
    code: Option<i32>,
}

impl Weir {
    /// The process's id.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// All that it wrote so far.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The path of what it writes.
    pub(crate) fn log_path(&self) -> &Path {
        &self.log
    }

    /// Its exit code, if it has ended. A signal counts as 128 and its number, as in a shell.
    pub(crate) fn exit_code(&mut self) -> Option<i32> {
        if self.code.is_none() {
            let ended = self.keeper.try_wait().expect("a child can be waited for");
            self.code = ended.map(|status| status.code().unwrap_or(-1));
        }
        self.code
    }

    /// Waits for its end and tells its exit code.
    pub(crate) fn wait(&mut self, limit: Duration) -> i32 {
        let deadline = Deadline::within(limit);
        loop {
            if let Some(code) = self.exit_code() {
                return code;
            }
            assert!(!deadline.passed(), "it has not ended after {limit:?}; its log:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Asks it to stop.
    pub(crate) fn terminate(&self) {
        send_signal(self.pid, "TERM");
    }

    /// Asks it to stop, and tells its exit code.
    pub(crate) fn stop(&mut self, limit: Duration) -> i32 {
        self.terminate();
        self.wait(limit)
    }

    /// Kills it, as a crash does, and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        if self.exit_code().is_none() {
            send_signal(self.pid, "KILL");
            self.wait(Duration::from_secs(10));
        }
    }

    /// Fails the test if it has ended.
    pub(crate) fn must_run(&mut self) {
        if let Some(code) = self.exit_code() {
            panic!("it ended with {code}; its log:\n{}", self.log());
        }
    }

    /// The status and the body of an answer of its admin server; `None` if it does not answer.
    pub(crate) fn get(&self, path: &str) -> Option<(u16, String)> {
        http_get(&self.admin, path)
    }

    /// Waits until the daemon is ready.
    pub(crate) fn wait_ready(&mut self) {
        wait_until("the daemon to be ready", Duration::from_secs(30), || {
            self.must_run();
            self.get("/ready").is_some_and(|(status, _)| status == 200)
        });
    }

    /// The sum of the series of a metric that have all these labels; `None` if there is none.
    pub(crate) fn metric(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let (_, text) = self.get("/metrics")?;
        sum_of_series(&text, name, labels)
    }

    /// Waits until its log has a line that contains all these words, and tells the line.
    pub(crate) fn wait_log(&self, words: &[&str], limit: Duration) -> String {
        wait_for(&format!("a log line with {words:?}"), limit, || {
            let log = self.log();
            log.lines().find(|line| words.iter().all(|word| line.contains(word))).map(str::to_owned)
        })
    }
}

impl Drop for Weir {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            eprintln!("the end of {}:\n{}", self.log.display(), lines[lines.len().saturating_sub(25)..].join("\n"));
        }
        if self.exit_code().is_none() {
            drop(self.keeper.stdin.take());
            let _ = self.keeper.wait();
        }
    }
}

/// The status and the body of an answer; `None` if there is none.
pub(crate) fn http_get(address: &str, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}

pub(crate) fn sum_of_series(text: &str, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let mut sum = None;
    for line in text.lines() {
        let Some(rest) = line.strip_prefix(name) else { continue };
        let Some((series, value)) = rest.rsplit_once(' ') else { continue };
        let is_asked_for = (series.is_empty() || series.starts_with('{'))
            && labels.iter().all(|(label, value)| series.contains(&format!("{label}=\"{value}\"")));
        if is_asked_for {
            sum = Some(sum.unwrap_or(0.0) + value.parse::<f64>().unwrap_or(f64::NAN));
        }
    }
    sum
}
