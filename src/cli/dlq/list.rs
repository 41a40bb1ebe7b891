//! `weir dlq list`: one line for each letter, and how many there are.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::ops::ControlFlow;

use serde_json::{Map, Value};

use super::progress::{Names, Progress};
use super::shown::one_line;
use super::{Format, Opened, Stop, archive::Archive, counted, stored, told};
use crate::clients::letters::Place;
use crate::component::HumanDuration;
use crate::delivery::{Letter, NotALetter};
use crate::runtime::Runtime;
use crate::state::Store;

/// Errors that are counted apart; more are counted together.
const MOST_ERRORS: usize = 10_000;
/// How much of an error stands in a line of the table.
const LONGEST_ERROR: usize = 160;

/// What of the letters is wanted, and how.
#[derive(Debug)]
pub(super) struct Wanted {
    stage: Option<String>,
    since: Option<jiff::Timestamp>,
    limit: u64,
    summary: bool,
    format: Format,
}

impl Wanted {
    pub(super) fn new(
        stage: Option<String>,
        since: Option<&str>,
        limit: Option<u64>,
        summary: bool,
        format: Format,
    ) -> Result<Self, Stop> {
        let since = since.map(moment).transpose().map_err(Stop::invalid)?;
        Ok(Self { stage, since, limit: limit.unwrap_or(u64::MAX), summary, format })
    }

    fn takes(&self, letter: &Letter) -> bool {
        let refused_at = || letter.refused_at.as_deref()?.parse::<jiff::Timestamp>().ok();
        self.stage.as_ref().is_none_or(|stage| *stage == letter.stage)
            && self.since.is_none_or(|since| refused_at().is_some_and(|at| at >= since))
    }
}

/// A time, or how long ago.
fn moment(text: &str) -> Result<jiff::Timestamp, String> {
    if let Ok(at) = text.parse() {
        return Ok(at);
    }
    let ago = HumanDuration::parse(text).and_then(|HumanDuration(ago)| i64::try_from(ago.as_millis()).ok());
    let at = ago.map(|ago| Runtime::system().clock().timestamp().0.saturating_sub(ago));
    at.and_then(|at| jiff::Timestamp::from_millisecond(at).ok()).ok_or_else(|| {
        format!(
            "`--since`: expected a time such as `2026-01-31T12:00:00Z`, or how long ago, such as `2h`, found `{text}`"
        )
    })
}

/// Which letters were replayed; `None` if it cannot be told now, because the daemon holds the store.
pub(super) fn progress(opened: &Opened) -> Result<Option<Progress>, Stop> {
    let tokio = tokio::runtime::Builder::new_current_thread().build();
    let tokio = tokio.map_err(|error| Stop::failed(format!("cannot start: {error}")))?;
    let names = Names::of(&opened.plan.name);
    let found = match &opened.archive {
        Archive::Topic(topic) => {
            let held = stored::held(&opened.own_folder())?;
            let store = held.as_ref().map(|(_, store)| store as &dyn Store);
            tokio.block_on(Progress::of_topic(topic, &names, store)).map(Some)
        }
        Archive::Files(files) => opened.stored.as_ref().map(|stored| Progress::of_files(files, stored)).transpose(),
    };
    found.map_err(Stop::failed)
}

/// Whether a letter was replayed, in a word.
pub(super) fn replayed(progress: Option<&Progress>, letter: &Letter, place: Place) -> &'static str {
    match progress {
        _ if letter.cut_from.is_some() => "cut",
        Some(progress) if progress.has(&letter.stage, place) => "yes",
        Some(_) => "no",
        None => "?",
    }
}

/// How many letters there are, by stage and error.
#[derive(Debug, Default)]
struct Counts {
    letters: u64,
    replayed: u64,
    cut: u64,
    damaged: u64,
    by_error: BTreeMap<(String, String), u64>,
}

impl Counts {
    fn add(&mut self, letter: &Letter, replayed: &str) {
        self.letters += 1;
        self.replayed += u64::from(replayed == "yes");
        self.cut += u64::from(replayed == "cut");
        let error =
            if self.by_error.len() < MOST_ERRORS { one_line(&letter.error, LONGEST_ERROR) } else { String::new() };
        *self.by_error.entry((letter.stage.clone(), error)).or_default() += 1;
    }

    fn write(&self, progress_is_known: bool, out: &mut dyn Write) -> io::Result<()> {
        let mut by_error: Vec<_> = self.by_error.iter().collect();
        by_error.sort_by(|(one, a), (other, b)| b.cmp(a).then(one.cmp(other)));
        for ((stage, error), count) in by_error {
            let error = if error.is_empty() { "other errors" } else { error };
            writeln!(out, "{count:>9}  {}  {error}", one_line(stage, 64))?;
        }
        write!(out, "{}", counted(self.letters, "letter"))?;
        if self.replayed > 0 {
            write!(out, ", {} replayed", self.replayed)?;
        }
        if self.cut > 0 {
            write!(out, ", {} cut: it cannot be replayed", self.cut)?;
        }
        if self.damaged > 0 {
            write!(out, ", and {} that is no letter", counted(self.damaged, "record"))?;
        }
        writeln!(out)?;
        if !progress_is_known {
            writeln!(out, "which of them were replayed is known when the daemon does not hold its data folder")?;
        }
        Ok(())
    }
}

/// Lists the letters of a pipeline. Returns the exit code.
pub(super) fn list(opened: &Opened, wanted: &Wanted, out: &mut dyn Write) -> Result<u8, Stop> {
    let progress = progress(opened)?;
    let mut printer = Printer { opened, wanted, progress, counts: Counts::default(), shown: 0, out };
    let mut failed = printer.begin();
    let clock = Runtime::system().clock();
    let scanned = opened.archive.scan(clock, &mut |place, letter| {
        if failed.is_ok() {
            failed = printer.letter(place, letter);
        }
        let enough = !wanted.summary && printer.shown >= wanted.limit;
        if failed.is_err() || enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    scanned.map_err(Stop::failed)?;
    Ok(told(failed.and_then(|()| printer.end())))
}

struct Printer<'a> {
    opened: &'a Opened,
    wanted: &'a Wanted,
    progress: Option<Progress>,
    counts: Counts,
    shown: u64,
    out: &'a mut dyn Write,
}

impl Printer<'_> {
    fn is_table(&self) -> bool {
        !self.wanted.summary && self.wanted.format == Format::Text
    }

    fn row(&mut self, cells: [&str; 7]) -> io::Result<()> {
        let stages = self.opened.plan.stages().map(str::len).max().unwrap_or(0).max("STAGE".len());
        let places = self.opened.archive.keeper().width() + 10;
        let [place, time, stage, attempt, replayed, from, error] = cells;
        writeln!(
            self.out,
            "{place:<places$}  {time:<24}  {stage:<stages$}  {attempt:>3}  {replayed:<8}  {from:<20}  {error}"
        )
    }

    fn begin(&mut self) -> io::Result<()> {
        if self.is_table() {
            self.row(["PLACE", "REFUSED AT", "STAGE", "TRY", "REPLAYED", "CAME FROM", "ERROR"])?;
        }
        Ok(())
    }

    fn letter(&mut self, place: Place, letter: Result<Letter, NotALetter>) -> io::Result<()> {
        let short = self.opened.archive.keeper().short(place);
        let letter = match letter {
            Ok(letter) => letter,
            Err(error) => {
                self.counts.damaged += 1;
                let is_wanted = self.wanted.stage.is_none() && self.wanted.since.is_none();
                return match self.wanted.format {
                    _ if self.wanted.summary || !is_wanted => Ok(()),
                    Format::Text => {
                        self.row([&short, "-", "-", "-", "-", "-", &one_line(&error.to_string(), LONGEST_ERROR)])
                    }
                    Format::Json => {
                        let object = serde_json::json!({ "place": short, "damaged": error.to_string() });
                        writeln!(self.out, "{object}")
                    }
                };
            }
        };
        if !self.wanted.takes(&letter) {
            return Ok(());
        }
        let replayed = replayed(self.progress.as_ref(), &letter, place);
        self.counts.add(&letter, replayed);
        if self.wanted.summary {
            return Ok(());
        }
        self.shown += 1;
        match self.wanted.format {
            Format::Json => writeln!(self.out, "{}", json(&short, &letter, replayed)),
            Format::Text => {
                let from = format!("{}/{}/{}", letter.topic, letter.partition, letter.offset);
                self.row([
                    &short,
                    letter.refused_at.as_deref().map_or("-".to_owned(), |at| one_line(at, 32)).as_str(),
                    &one_line(&letter.stage, 64),
                    &letter.attempt.to_string(),
                    replayed,
                    &one_line(&from, 80),
                    &one_line(&letter.error, LONGEST_ERROR),
                ])
            }
        }
    }

    fn end(mut self) -> io::Result<u8> {
        match self.wanted.format {
            Format::Text if self.wanted.summary => self.counts.write(self.progress.is_some(), &mut self.out)?,
            Format::Text => {
                self.counts.by_error.clear();
                self.counts.write(self.progress.is_some(), &mut self.out)?;
            }
            Format::Json if self.wanted.summary => {
                for ((stage, error), count) in &self.counts.by_error {
                    let object = serde_json::json!({ "stage": stage, "error": error, "letters": count });
                    writeln!(self.out, "{object}")?;
                }
            }
            Format::Json => {}
        }
        self.out.flush()?;
        Ok(super::super::FINE)
    }
}

/// A letter without its content, for programs.
fn json(place: &str, letter: &Letter, replayed: &str) -> Value {
    let mut object = Map::new();
    let mut put = |name: &str, value: Value| {
        object.insert(name.to_owned(), value);
    };
    put("place", place.into());
    put("time", letter.refused_at.clone().into());
    put("stage", letter.stage.as_str().into());
    put("error", letter.error.as_str().into());
    put("attempt", letter.attempt.into());
    put(
        "replayed",
        match replayed {
            "yes" => true.into(),
            "?" => Value::Null,
            _ => false.into(),
        },
    );
    put("replayed_from", letter.replayed_from.clone().into());
    put("cut_from_bytes", letter.cut_from.into());
    put("source", letter.source.as_str().into());
    put("topic", letter.topic.as_str().into());
    put("partition", letter.partition.into());
    put("offset", letter.offset.into());
    put("pipeline", letter.pipeline.as_str().into());
    put("version", letter.version.clone().into());
    Value::Object(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_a_time_or_how_long_ago() {
        assert_eq!(moment("2026-01-31T12:00:00Z").unwrap().as_millisecond(), 1_769_860_800_000);
        let now = Runtime::system().clock().timestamp().0;
        let hour_ago = moment("1h").unwrap().as_millisecond();
        assert!((now - hour_ago - 3_600_000).abs() < 60_000);
        assert!(moment("yesterday").unwrap_err().contains("found `yesterday`"));
    }
}
