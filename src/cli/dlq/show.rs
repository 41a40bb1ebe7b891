//! `weir dlq show`: one letter whole. The record's content is shown because a person asks for it.

use std::io::{self, Write};

use super::list::{progress, replayed};
use super::shown::{body, bytes, one_line};
use super::{Opened, Stop, told};
use crate::clients::letters::Place;
use crate::clients::letters::replay::is_json;
use crate::delivery::Letter;
use crate::record::{BodyFormat, Header, Headers};
use crate::runtime::Runtime;

/// Shows the letter at a place. Returns the exit code.
pub(super) fn show(opened: &Opened, place: &str, raw: bool, out: &mut dyn Write) -> Result<u8, Stop> {
    let place = parsed(opened, place)?;
    let keeper = opened.archive.keeper();
    let letter = opened.archive.at(place, Runtime::system().clock()).map_err(Stop::failed)?;
    let letter = letter.ok_or_else(|| Stop::failed(format!("there is no letter at {}", keeper.full(place))))?;
    let letter = letter.map_err(|error| Stop::failed(format!("{}: {error}", keeper.full(place))))?;
    if raw {
        return Ok(told(out.write_all(&letter.body).and_then(|()| out.flush()).map(|()| super::super::FINE)));
    }
    let replayed = replayed(progress(opened)?.as_ref(), &letter, place);
    Ok(told(write(&keeper.full(place), &letter, replayed, out).map(|()| super::super::FINE)))
}

/// A place that was written for this pipeline's dead letter.
pub(super) fn parsed(opened: &Opened, text: &str) -> Result<Place, Stop> {
    let keeper = opened.archive.keeper();
    keeper
        .place(text)
        .ok_or_else(|| Stop::invalid(format!("`{text}` is no place of a letter: expected {}", keeper.expected())))
}

fn write(place: &str, letter: &Letter, replayed: &str, out: &mut dyn Write) -> io::Result<()> {
    let mut line = |name: &str, value: &str| writeln!(out, "{name:<12} {}", one_line(value, usize::MAX));
    line("letter", place)?;
    line("refused at", letter.refused_at.as_deref().unwrap_or("unknown"))?;
    line("by stage", &letter.stage)?;
    let version = letter.version.as_deref().map(|version| format!(", version {version}")).unwrap_or_default();
    line("of pipeline", &format!("{}{version}", letter.pipeline))?;
    line("error", &letter.error)?;
    let from = format!("source {}, {}/{}, offset {}", letter.source, letter.topic, letter.partition, letter.offset);
    line("came from", &from)?;
    line("attempt", &letter.attempt.to_string())?;
    if let Some(before) = &letter.replayed_from {
        line("after", before)?;
    }
    line("replayed", if replayed == "cut" { "no: its body was cut, so it cannot be" } else { replayed })?;
    let made = jiff::Timestamp::from_millisecond(letter.timestamp.0);
    line("timestamp", &made.map_or_else(|_| letter.timestamp.0.to_string(), |at| format!("{at:.3}")))?;
    if let Some(key) = &letter.key {
        line("key", &bytes(key))?;
    }
    for Header { name, value } in Headers::decode(&letter.headers) {
        line("header", &format!("{}: {}", bytes(name), value.map_or_else(|| "null".to_owned(), bytes)))?;
    }
    if letter.format == Some(BodyFormat::Absent) {
        line("body", "none: it deletes its key")?;
        return out.flush();
    }
    let size = match letter.cut_from {
        Some(whole) => format!("{} of {whole} bytes", letter.body.len()),
        None => format!("{} bytes", letter.body.len()),
    };
    line("body", &size)?;
    writeln!(out, "\n{}", body(&letter.body, is_json(&letter.body)))?;
    out.flush()
}
