//! The figures as tables, and what they must reach.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::time::Duration;

use crate::kafka::Run;
use crate::measure::median;
use crate::stall::Stall;
use crate::{SHORT, files, kafka};

/// The most memory that a process may hold, in MiB.
const PEAK_MIB: f64 = 100.0;

/// How much memory may grow while a sink stands still, in MiB: what the allocator needs to settle.
const GROWTH_MIB: f64 = 8.0;

/// What was measured so far.
#[derive(Default)]
pub(crate) struct Report {
    tables: String,
    targets: Vec<Target>,
}

struct Target {
    what: String,
    figure: String,
    is_met: bool,
}

/// A contestant's figures, round by round.
struct Figures {
    micros: Vec<f64>,
    rates: Vec<f64>,
    peak_mib: f64,
}

impl Figures {
    /// `rate` tells the records a second of one round.
    fn of(records: u64, rounds: &[(Run, Run)], rate: impl Fn(&(Run, Run)) -> f64) -> Self {
        let more = as_float(records - SHORT);
        Self {
            micros: rounds.iter().map(|(short, long)| (long.cpu - short.cpu) / more * 1e6).collect(),
            rates: rounds.iter().map(rate).collect(),
            peak_mib: median(rounds.iter().map(|(_, long)| long.peak_mib)),
        }
    }
}

/// The middle one of the rounds' ratios. Both figures of a ratio are of one round, so that a machine that is busy for a
/// while does not count for one of them alone.
fn ratio(figures: &[f64], to: &[f64]) -> f64 {
    median(figures.iter().zip(to).map(|(figure, to)| figure / to))
}

impl Report {
    /// Kafka to Kafka.
    pub(crate) fn kafka(&mut self, records: u64, kept: u64, runs: &BTreeMap<kafka::Contestant, Vec<(Run, Run)>>) {
        use kafka::Contestant::{Asyncio, AsyncioBatches, AtLeastOnce, Bare, ExactlyOnce};
        let figures: BTreeMap<_, _> = runs
            .iter()
            .map(|(contestant, rounds)| {
                // The bare loop drops no record.
                let share = if *contestant == Bare { 1.0 } else { as_float(records) / as_float(kept) };
                (*contestant, Figures::of(records, rounds, |(_, long)| long.written / long.seconds * share))
            })
            .collect();
        self.table("Kafka -> map -> Kafka, 4 partitions", figures.iter().map(|(one, figures)| (one.name(), figures)));
        let Some(weir) = figures.get(&AtLeastOnce) else { return };
        if let Some(bare) = figures.get(&Bare) {
            self.at_most("CPU per record, against the bare loop", ratio(&weir.micros, &bare.micros), 2.5);
        }
        if let Some(asyncio) = figures.get(&Asyncio) {
            self.at_least("CPU per record, times less than asyncio", ratio(&asyncio.micros, &weir.micros), 3.3);
        }
        if let Some(batches) = figures.get(&AsyncioBatches) {
            let times = ratio(&batches.micros, &weir.micros);
            let _ = writeln!(self.tables, "  times less than asyncio with hand-filled batches: {times:.2}\n");
        }
        if let Some(exactly) = figures.get(&ExactlyOnce) {
            self.at_least("throughput of exactly once, against at least once", ratio(&exactly.rates, &weir.rates), 0.9);
            self.peak("peak memory, Kafka to Kafka, exactly once", exactly.peak_mib);
        }
        self.peak("peak memory, Kafka to Kafka", weir.peak_mib);
    }

    /// File to file.
    pub(crate) fn files(&mut self, records: u64, runs: &BTreeMap<files::Contestant, Vec<(Run, Run)>>) {
        use files::Contestant::{Asyncio, Weir};
        let more = as_float(records - SHORT);
        let rate = |(short, long): &(Run, Run)| more / (long.seconds - short.seconds);
        let figures: BTreeMap<_, _> =
            runs.iter().map(|(contestant, rounds)| (*contestant, Figures::of(records, rounds, rate))).collect();
        self.table("file -> map -> file", figures.iter().map(|(one, figures)| (one.name(), figures)));
        let Some(weir) = figures.get(&Weir) else { return };
        if let Some(asyncio) = figures.get(&Asyncio) {
            self.at_most("CPU per record, against asyncio, file to file", ratio(&weir.micros, &asyncio.micros), 0.85);
        }
        self.peak("peak memory, file to file", weir.peak_mib);
    }

    /// The start with ten pipelines, in milliseconds.
    pub(crate) fn ready(&mut self, millis: Vec<f64>) {
        let millis = median(millis);
        self.targets.push(Target {
            what: "ready with ten pipelines, at most 300 ms".to_owned(),
            figure: format!("{millis:.0} ms"),
            is_met: millis <= 300.0,
        });
    }

    /// A sink that stood still.
    pub(crate) fn stall(&mut self, lasted: Duration, stall: Stall) {
        self.targets.push(Target {
            what: format!("memory flat while the sink stands still for {lasted:?}"),
            figure: format!("+{:.1} MiB, peak {:.0} MiB", stall.growth_mib, stall.peak_mib),
            is_met: stall.growth_mib <= GROWTH_MIB && stall.peak_mib < PEAK_MIB,
        });
        self.targets.push(Target {
            what: "nothing lost when the sink is back".to_owned(),
            figure: format!("{} repeated", stall.repeats),
            is_met: stall.is_all_there,
        });
    }

    /// Whether every target that was measured is met.
    pub(crate) fn all_passed(&self) -> bool {
        self.targets.iter().all(|target| target.is_met)
    }

    fn table<'a>(&mut self, title: &str, rows: impl Iterator<Item = (&'a str, &'a Figures)>) {
        let _ = writeln!(self.tables, "{title:<38} {:>12} {:>12} {:>10}", "CPU/record", "records/s", "peak");
        for (name, Figures { micros, rates, peak_mib }) in rows {
            let (micros, rate) = (median(micros.iter().copied()), median(rates.iter().copied()));
            let _ = writeln!(self.tables, "  {name:<36} {micros:>9.2} µs {rate:>12.0} {peak_mib:>6.0} MiB");
        }
        self.tables.push('\n');
    }

    fn at_most(&mut self, what: &str, ratio: f64, limit: f64) {
        let what = format!("{what}: at most {limit}");
        self.targets.push(Target { what, figure: format!("{ratio:.2}"), is_met: ratio <= limit });
    }

    fn at_least(&mut self, what: &str, ratio: f64, limit: f64) {
        let what = format!("{what}: at least {limit}");
        self.targets.push(Target { what, figure: format!("{ratio:.2}"), is_met: ratio >= limit });
    }

    fn peak(&mut self, what: &str, mib: f64) {
        let what = format!("{what}: below {PEAK_MIB} MiB");
        self.targets.push(Target { what, figure: format!("{mib:.0} MiB"), is_met: mib < PEAK_MIB });
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n{}What it must reach", self.tables)?;
        for Target { what, figure, is_met } in &self.targets {
            let word = if *is_met { "PASS" } else { "FAIL" };
            writeln!(f, "  {word}  {what:<64} {figure}")?;
        }
        Ok(())
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of records are far below 2^52")]
fn as_float(count: u64) -> f64 {
    count as f64
}
