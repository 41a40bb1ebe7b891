//! File to file, one lane.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::Path;
use std::time::Duration;

use weir::clock::Clock;

use crate::asyncio::Python;
use crate::kafka::Run;
use crate::measure::Measured;
use crate::process::Home;
use crate::records::{Digest, Records, TRANSFORMS};

/// Who does the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Contestant {
    /// Weir, one lane.
    Weir,
    /// orjson and uvloop, batches of lines.
    Asyncio,
}

impl Contestant {
    /// For the table.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Weir => "weir, one lane",
            Self::Asyncio => "asyncio, batches of lines",
        }
    }

    /// Those that can run here.
    pub(crate) fn all(python: Option<&Python>) -> impl Iterator<Item = Self> {
        [Self::Weir, Self::Asyncio].into_iter().filter(move |one| python.is_some() || *one != Self::Asyncio)
    }
}

/// Fills a file with the first `count` records.
pub(crate) fn fill(path: &Path, count: u64) {
    let mut file = BufWriter::new(File::create(path).expect("the target folder can be written"));
    let mut records = Records::new();
    for _ in 0..count {
        writeln!(file, "{}", records.draw().1).expect("the target folder can be written");
    }
    file.flush().expect("the target folder can be written");
}

/// Runs a contestant over a file, and checks what came out if that is asked for.
pub(crate) fn run(contestant: Contestant, python: Option<&Python>, source: &Path, expected: Option<Digest>) -> Run {
    let home = Home::new();
    let sink = home.path("mapped.ndjson");
    let mut command = match contestant {
        Contestant::Weir => {
            home.write("bench.yaml", pipeline(source));
            home.command("bench.yaml", "off")
        }
        Contestant::Asyncio => {
            let mut command = python.expect("it is left out without Python").script("file_map.py");
            command.arg("--source").arg(source).arg("--sink").arg(&sink);
            command
        }
    };
    let clock = Clock::system();
    let started = clock.now();
    let mut process = Measured::start(&mut command);
    while !process.has_ended() {
        std::thread::sleep(Duration::from_millis(5));
    }
    let (cpu, seconds) = (process.cpu(), clock.now().duration_since(started).as_secs_f64());
    let peak_mib = process.peak_mib();
    assert_eq!(process.reap(), Some(0), "{} failed", contestant.name());
    let mut found = Digest::default();
    if let Some(expected) = expected {
        let lines = BufReader::new(File::open(&sink).expect("the contestant made it"));
        lines.split(b'\n').for_each(|line| found.add(&line.expect("the file can be read")));
        assert_eq!(found, expected, "{} wrote something else", contestant.name());
    }
    Run { cpu, seconds, written: 0.0, peak_mib }
}

fn pipeline(source: &Path) -> String {
    format!(
        r"name: bench
sources:
  records:
    file: {{ path: {}, follow: false }}
{TRANSFORMS}sinks:
  mapped:
    file: {{ path: mapped.ndjson }}
",
        source.display()
    )
}
