//! A real Apache Kafka for tests and benchmarks: one broker in combined mode on free loopback ports.
//!
//! A test binary shares one broker ([`Broker::shared`]) and takes topics of unique names; a test that kills or pauses
//! its broker starts its own. However the test process ends, the broker ends with it and its folder is removed.

#![allow(dead_code, reason = "each test binary uses a part of it")]

mod client;
pub(crate) mod install;
pub(crate) mod secured;
pub(crate) mod tls;
pub(crate) mod wait;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

#[allow(unused_imports, reason = "each test binary uses a part of it")]
pub(crate) use client::{Consumed, Reader, Record, Writer, unique};
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, Producer};
use wait::Deadline;

const START_LIMIT: Duration = Duration::from_secs(90);

/// Starts the broker, and ends it when this script's standard input ends: when the test process says so, and also when
/// it is killed. The last word that it read says whether the folder stays.
const KEEPER: &str = r#"
folder=$1; shift
"$@" </dev/null >>"$folder/broker.log" 2>&1 &
pid=$!
echo "$pid"
word=
while read -r line; do word=$line; done
kill -KILL "$pid" 2>/dev/null
wait "$pid" 2>/dev/null
[ "$word" = keep ] || rm -rf "$folder"
"#;

/// A broker. It ends when this is dropped, or when the process ends.
#[derive(Debug)]
pub(crate) struct Broker {
    address: String,
    folder: PathBuf,
    process: Mutex<Option<Process>>,
}

#[derive(Debug)]
struct Process {
    keeper: Child,
    pid: u32,
}

impl Broker {
    /// The broker that all tests of this binary share.
    pub(crate) fn shared() -> &'static Self {
        static SHARED: OnceLock<Broker> = OnceLock::new();
        SHARED.get_or_init(Self::start_new)
    }

    /// A broker of one's own, to be killed or paused.
    pub(crate) fn start_new() -> Self {
        Self::start_new_with(&[])
    }

    /// A broker of one's own, with some of its settings changed.
    pub(crate) fn start_new_with(settings: &[(&str, &str)]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let jars = install::kafka_jars();
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = install::target_dir().join("kafka/run").join(format!("{}-{number}", std::process::id()));
        fs::create_dir_all(&folder).expect("the target folder can be written");
        let (port, controller_port) = (free_port(), free_port());
        let broker = Self { address: format!("127.0.0.1:{port}"), folder: folder.clone(), process: Mutex::new(None) };
        let properties = properties(&folder, port, controller_port, settings);
        fs::write(folder.join("server.properties"), properties).expect("the target folder can be written");
        // Two brokers are two clusters. An id is 16 bytes in base64, of which hexadecimal digits are a part.
        let cluster_id = format!("{:0>21x}A", (u64::from(std::process::id()) << 32) | u64::from(number));
        format_storage(&jars, &folder, &cluster_id);
        broker.start();
        broker
    }

    /// What a client's `bootstrap.servers` says.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Starts it on its port and folder, and waits until it answers. Nothing to do if it runs.
    pub(crate) fn start(&self) {
        let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        if process.is_some() {
            return;
        }
        let jars = install::kafka_jars();
        *process = Some(spawn(&jars, &self.folder));
        self.wait_until_it_answers();
    }

    /// Ends it at once, as a crash does. Its data stay for [`Self::start`].
    pub(crate) fn kill(&self) {
        let process = self.process.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(process) = process {
            end(process, "keep");
        }
    }

    /// Stops it in its tracks: connections stay, nothing is answered.
    pub(crate) fn pause(&self) {
        self.signal("STOP");
    }

    /// Lets a paused one go on.
    pub(crate) fn resume(&self) {
        self.signal("CONT");
    }

    fn signal(&self, name: &str) {
        let process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        send_signal(process.as_ref().expect("the broker runs").pid, name);
    }

    fn wait_until_it_answers(&self) {
        let deadline = Deadline::within(START_LIMIT);
        let client: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", &self.address)
            .set("reconnect.backoff.ms", "20")
            .set("reconnect.backoff.max.ms", "100")
            // Refused connections are what is expected here.
            .set("log_level", "0")
            .create()
            .expect("the settings are valid");
        loop {
            let metadata = client.client().fetch_metadata(None, Duration::from_millis(500));
            if metadata.is_ok_and(|metadata| !metadata.brokers().is_empty()) {
                return;
            }
            assert!(
                !deadline.passed(),
                "Apache Kafka did not start within {START_LIMIT:?}; the end of its log:\n{}",
                log_tail(&self.folder)
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some(process) = self.process.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            end(process, "remove");
        } else {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

/// Sends a signal to a process that this test started.
pub(crate) fn send_signal(pid: u32, name: &str) {
    let sent = Command::new("sh").args(["-c", "kill -s \"$0\" \"$1\"", name, &pid.to_string()]).status();
    assert!(sent.is_ok_and(|status| status.success()), "process {pid} takes no signal {name}");
}

fn spawn(jars: &Path, folder: &Path) -> Process {
    let mut keeper = Command::new("sh")
        .args(["-c", KEEPER, "sh"])
        .arg(folder)
        .args(["java", "-Xms256m", "-Xmx1g", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp"])
        .arg(jars.join("*"))
        .arg("kafka.Kafka")
        .arg(folder.join("server.properties"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        // A Ctrl-C in the terminal must not end the keeper before it has ended the broker.
        .process_group(0)
        .spawn()
        .expect("`sh` is on every Unix");
    let mut pid = String::new();
    let stdout = keeper.stdout.take().expect("it is piped");
    BufReader::new(stdout).read_line(&mut pid).expect("the keeper tells the broker's pid");
    Process { pid: pid.trim().parse().expect("the keeper tells the broker's pid"), keeper }
}

/// Ends a broker and waits until it is gone.
fn end(mut process: Process, word: &str) {
    if let Some(mut stdin) = process.keeper.stdin.take() {
        let _ = writeln!(stdin, "{word}");
    }
    let _ = process.keeper.wait();
}

fn properties(folder: &Path, port: u16, controller_port: u16, settings: &[(&str, &str)]) -> String {
    let mut text = format!(
        "process.roles=broker,controller\n\
         node.id=1\n\
         controller.quorum.voters=1@127.0.0.1:{controller_port}\n\
         listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}\n\
         advertised.listeners=PLAINTEXT://127.0.0.1:{port}\n\
         controller.listener.names=CONTROLLER\n\
         listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT\n\
         log.dirs={}\n\
         auto.create.topics.enable=false\n\
         group.initial.rebalance.delay.ms=0\n\
         group.consumer.min.session.timeout.ms=3000\n\
         group.consumer.session.timeout.ms=6000\n\
         group.consumer.min.heartbeat.interval.ms=500\n\
         group.consumer.heartbeat.interval.ms=1000\n\
         num.partitions=2\n\
         default.replication.factor=1\n\
         min.insync.replicas=1\n\
         offsets.topic.replication.factor=1\n\
         offsets.topic.num.partitions=4\n\
         transaction.state.log.replication.factor=1\n\
         transaction.state.log.min.isr=1\n\
         transaction.state.log.num.partitions=4\n\
         num.network.threads=2\n\
         num.io.threads=4\n\
         log.cleaner.dedupe.buffer.size=16777216\n\
         log.retention.ms=-1\n",
        folder.join("data").display()
    );
    for (name, value) in settings {
        let value = value.replace("{port}", &port.to_string()).replace("{controller}", &controller_port.to_string());
        text.extend([*name, "=", value.as_str(), "\n"]);
    }
    text
}

fn format_storage(jars: &Path, folder: &Path, cluster_id: &str) {
    let log = File::create(folder.join("format.log")).expect("the target folder can be written");
    let status = Command::new("java")
        .args(["-XX:TieredStopAtLevel=1", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp"])
        .arg(jars.join("*"))
        .args(["kafka.tools.StorageTool", "format", "--cluster-id", cluster_id, "--config"])
        .arg(folder.join("server.properties"))
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("an open file can be shared"))
        .stderr(log)
        .status()
        .expect("`java` was found before");
    assert!(
        status.success(),
        "Apache Kafka could not format its storage:\n{}",
        fs::read_to_string(folder.join("format.log")).unwrap_or_default()
    );
}

fn log_tail(folder: &Path) -> String {
    let log = fs::read_to_string(folder.join("broker.log")).unwrap_or_default();
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

/// A loopback port that is free now. It lies below the range from which systems take the ports of outgoing
/// connections, so that none of those takes it while the broker restarts.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    const FIRST: u32 = 20_000;
    const COUNT: u32 = 10_000;
    for _ in 0..COUNT {
        let at = std::process::id().wrapping_mul(31).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(FIRST + at % COUNT).expect("the range lies below 65536");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no loopback port is free between {FIRST} and {}", FIRST + COUNT);
}
