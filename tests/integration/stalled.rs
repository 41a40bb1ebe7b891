//! Nobody reads the standard output: the pipeline waits, keeps its partitions and its memory, and goes on where it was.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::Duration;

use crate::broker::wait::{Deadline, wait_until};
use crate::broker::{Broker, Record, free_port, send_signal, unique};
use crate::process::http_get;
use crate::{SOON, home};

/// Longer than the session's time-out, which is ten seconds.
const STALL: Duration = Duration::from_secs(15);
const PARTITIONS: i32 = 100;
const COUNT: u64 = 100_000;
/// What the pipeline may hold. Without a bound on all queues together, a hundred partitions would hold a hundred MiB.
const MEMORY_MIB: u64 = 32;
/// Code, stacks, and what a client holds besides records.
const REST_MIB: u64 = 48;

/// Killed when this is dropped.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The most memory that a process ever had, in MiB.
fn peak_mib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process lives");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux tells it");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("it is a number");
    kib / 1024
}

#[test]
fn rule_16_with_a_hundred_partitions_and_a_reader_that_stopped_reading_memory_holds_and_nothing_is_lost() {
    let broker = Broker::shared();
    let (topic, name) = (broker.topic("many", PARTITIONS), unique("stalled"));
    let filler = "x".repeat(1000);
    let partition = |n: u64| i32::try_from(n).expect("tests are small") % PARTITIONS;
    let writer = broker.writer(&topic);
    for n in 0..COUNT {
        writer.send(&Record::new(format!("{n} {filler}")).to(partition(n)));
        // A reader is given whole batches. These are as large as those of Java's producer.
        if n % (16 * u64::from(PARTITIONS.unsigned_abs())) == 0 {
            writer.flush();
        }
    }
    writer.flush();
    let home = home(broker);
    let source = format!("kafka: {{ brokers: \"${{KAFKA_BROKERS}}\", topics: [{topic}], group: {name}, codec: raw }}");
    let head = format!("name: {name}\nmemory: {MEMORY_MIB}MiB\n");
    home.write(
        "etl.yaml",
        format!("{head}sources:\n  in:\n    {source}\nsinks:\n  out:\n    stdout: {{ codec: raw }}\n"),
    );
    let admin = format!("127.0.0.1:{}", free_port());
    let mut command = home.command("etl.yaml", &admin);
    let mut weir = Started(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("the binary was built"));
    let pid = weir.0.id();
    let mut lines = BufReader::new(weir.0.stdout.take().expect("it is piped")).lines();
    let mut seen = BTreeMap::<i32, Vec<u64>>::new();
    let mut read = |line: std::io::Result<String>| {
        let line = line.expect("lines are text");
        let n: u64 = line.split(' ').next().and_then(|n| n.parse().ok()).expect("it begins with its number");
        seen.entry(partition(n)).or_default().push(n);
    };
    read(lines.next().expect("the first record comes"));

    let stall = Deadline::within(STALL);
    while !stall.passed() {
        assert_eq!(http_get(&admin, "/live").map(|(status, _)| status), Some(200), "a new process would not help");
        std::thread::sleep(Duration::from_millis(250));
    }
    let ready = http_get(&admin, &format!("/ready/{name}")).expect("the admin server answers");
    assert!(ready.0 == 503 && ready.1.contains("\"stage\":\"out\""), "it does not say where it waits: {ready:?}");
    let peak = peak_mib(pid);
    println!("peak {peak} MiB");
    assert!(peak <= MEMORY_MIB + REST_MIB, "{peak} MiB for a budget of {MEMORY_MIB} MiB");

    lines.by_ref().take(usize::try_from(COUNT).expect("tests are small") - 1).for_each(&mut read);
    wait_until("all to be committed", SOON, || broker.is_all_committed(&name, &topic));
    let log = std::fs::read_to_string(home.path("log.txt")).expect("it was written");
    assert!(!log.contains("partitions given up"), "it lost its place in the group:\n{log}");
    let expected = (0..COUNT).fold(BTreeMap::<i32, Vec<u64>>::new(), |mut all, n| {
        all.entry(partition(n)).or_default().push(n);
        all
    });
    assert_eq!(seen, expected, "each comes once, and those of a partition in their order");
    send_signal(pid, "TERM");
    let mut code = None;
    wait_until("the process to end", SOON, || {
        code = weir.0.try_wait().expect("a child can be waited for").and_then(|status| status.code());
        code.is_some()
    });
    assert_eq!(code, Some(0));
}
