//! The main job, side by side with what else could do it, on this machine, in one call.
//!
//! ```text
//! cargo bench --bench main_job                                  everything, about a quarter of an hour
//! cargo bench --bench main_job -- --only kafka --rounds 5       parts: kafka, file, start, stall
//! cargo bench --bench main_job -- --records 200000 --stall 10   fewer records, a shorter stall
//! cargo bench --bench main_job -- --leave-out asyncio           without those whose name has such a word
//! ```
//!
//! The contestants take turns, so that a machine that is busy for a while is so for all of them. CPU is that of the
//! whole process, user and system. To leave out what starting costs, each contestant does a short job too, and what
//! counts is the difference between the two. The map's results are compared, record by record, in the first round.

mod asyncio;
mod bare;
#[path = "../../tests/broker/mod.rs"]
mod broker;
mod files;
mod kafka;
mod measure;
#[path = "../../tests/process/mod.rs"]
mod process;
mod records;
mod report;
mod stall;
mod start;

use std::collections::BTreeMap;
use std::time::Duration;

use asyncio::Python;
use broker::Broker;
use kafka::Run;
use process::Home;
use records::Digest;
use report::Report;

/// How many records the short job has, which tells what starting costs.
const SHORT: u64 = 50_000;

struct Options {
    rounds: u64,
    records: u64,
    stall: Duration,
    only: Option<Vec<String>>,
    leave_out: Option<String>,
}

impl Options {
    fn parse() -> Result<Self, String> {
        let mut options =
            Self { rounds: 3, records: 4_000_000, stall: Duration::from_secs(60), only: None, leave_out: None };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut number = || -> Result<u64, String> {
                let value = arguments.next().unwrap_or_default();
                value.parse().map_err(|_| format!("`{argument}` needs a number, not `{value}`"))
            };
            match argument.as_str() {
                // Cargo says so to every benchmark.
                "--bench" => {}
                "--rounds" => options.rounds = number()?.max(1),
                "--records" => options.records = number()?.max(2 * SHORT),
                "--stall" => options.stall = Duration::from_secs(number()?),
                "--only" => {
                    let parts = arguments.next().ok_or("`--only` needs parts: kafka, file, start, stall")?;
                    options.only = Some(parts.split(',').map(str::to_owned).collect());
                }
                "--leave-out" => options.leave_out = Some(arguments.next().ok_or("`--leave-out` needs a word")?),
                _ => {
                    let known = "--rounds, --records, --stall, --only, --leave-out";
                    return Err(format!("unknown argument `{argument}`; there are {known}"));
                }
            }
        }
        Ok(options)
    }

    fn wants(&self, part: &str) -> bool {
        self.only.as_ref().is_none_or(|parts| parts.iter().any(|one| one == part))
    }

    fn takes_part(&self, contestant: &str) -> bool {
        self.leave_out.as_ref().is_none_or(|words| words.split(',').all(|word| !contestant.contains(word)))
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, argument, brokers, source, sink, group] = &arguments[..]
        && argument == bare::ARGUMENT
    {
        bare::run(brokers, source, sink, group);
    }
    let options = match Options::parse() {
        Ok(options) => options,
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(2);
        }
    };
    let python = match Python::prepare() {
        Ok(python) => Some(python),
        Err(error) => {
            eprintln!("without the asyncio scripts, and without the ratios to them: {error}");
            None
        }
    };
    let mut report = Report::default();
    if options.wants("kafka") || options.wants("start") || options.wants("stall") {
        with_a_broker(&options, python.as_ref(), &mut report);
    }
    if options.wants("file") {
        measure_files(&options, python.as_ref(), &mut report);
    }
    print!("{report}");
    std::process::exit(i32::from(!report.all_passed()));
}

fn with_a_broker(options: &Options, python: Option<&Python>, report: &mut Report) {
    let broker = Broker::shared();
    if options.wants("start") {
        report.ready((0..options.rounds.max(3)).map(|_| start::run(broker)).collect());
    }
    if !options.wants("kafka") && !options.wants("stall") {
        return;
    }
    eprintln!("filling a topic with {} records", options.records);
    let long = kafka::fill(broker, options.records);
    if options.wants("kafka") {
        let short = kafka::fill(broker, SHORT);
        let (few, expected) = (Digest::expected(SHORT).count, Digest::expected(options.records));
        let mut runs = BTreeMap::<_, Vec<(Run, Run)>>::new();
        for round in 0..options.rounds {
            for contestant in kafka::Contestant::all(python).filter(|one| options.takes_part(one.name())) {
                eprintln!("kafka, round {}: {}", round + 1, contestant.name());
                let check = (round == 0 && contestant != kafka::Contestant::Bare).then_some(expected);
                let start = kafka::run(contestant, broker, python, &short, few, None);
                let whole = kafka::run(contestant, broker, python, &long, expected.count, check);
                runs.entry(contestant).or_default().push((start, whole));
            }
        }
        report.kafka(options.records, expected.count, &runs);
    }
    if options.wants("stall") {
        eprintln!("a sink that stands still for {:?}", options.stall);
        let stall = stall::run(broker, &long, Digest::expected(options.records), options.stall);
        report.stall(options.stall, stall);
    }
}

fn measure_files(options: &Options, python: Option<&Python>, report: &mut Report) {
    let home = Home::new();
    let (long, short) = (home.path("long.ndjson"), home.path("short.ndjson"));
    eprintln!("filling a file with {} records", options.records);
    files::fill(&long, options.records);
    files::fill(&short, SHORT);
    let expected = Digest::expected(options.records);
    let mut runs = BTreeMap::<_, Vec<(Run, Run)>>::new();
    for round in 0..options.rounds {
        for contestant in files::Contestant::all(python).filter(|one| options.takes_part(one.name())) {
            eprintln!("file, round {}: {}", round + 1, contestant.name());
            let start = files::run(contestant, python, &short, None);
            let whole = files::run(contestant, python, &long, (round == 0).then_some(expected));
            runs.entry(contestant).or_default().push((start, whole));
        }
    }
    report.files(options.records, &runs);
}
