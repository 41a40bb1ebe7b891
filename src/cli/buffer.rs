//! `weir buffer list|show`: what disk buffers hold. It reads beside a running daemon, and without one, and writes
//! nothing.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde_json::{Map, Value, json};

use super::check::Format;
use super::{FAILED, FINE, INVALID};
use crate::component::ByteSize;
use crate::config::Settings;
use crate::record::{Batch, BodyFormat, Header, Record};
use crate::state::buffer::{Survey, folder, frames, survey};

/// What is asked of the buffers of a data folder.
#[derive(Debug, Subcommand)]
pub(super) enum Ask {
    /// List all buffers of the data folder: records, bytes, the oldest record, damaged segments
    List {
        /// The settings of the daemon, for its data folder; `WEIR_…` variables win over it
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// How the list is printed
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Print records that wait in a buffer, oldest first, as JSON lines, with their content
    Show {
        /// The settings of the daemon, for its data folder; `WEIR_…` variables win over it
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// How many records
        #[arg(long, value_name = "N", default_value_t = 10)]
        limit: usize,
        /// The buffer, as `list` names it
        #[arg(value_name = "PIPELINE/STAGE")]
        buffer: String,
    },
}

/// Answers. Returns the exit code: 0, 1 if the folder cannot be read, 2 if there is no such buffer.
pub(super) fn answer(ask: &Ask, out: &mut dyn Write) -> io::Result<u8> {
    let (Ask::List { config, .. } | Ask::Show { config, .. }) = ask;
    let settings = match Settings::load(config.as_deref()) {
        Ok(settings) => settings,
        Err(mistakes) => {
            eprintln!("{mistakes}");
            return Ok(INVALID);
        }
    };
    let data_dir = &settings.data_dir;
    let found = match survey(data_dir) {
        Ok(found) => found,
        Err(error) => {
            eprintln!("cannot read the buffers in `{}`: {error}", data_dir.display());
            return Ok(FAILED);
        }
    };
    match ask {
        Ask::List { format: Format::Text, .. } => list(&found, data_dir, out),
        Ask::List { format: Format::Json, .. } => list_json(&found, out),
        Ask::Show { limit, buffer, .. } => show(&found, data_dir, buffer, *limit, out),
    }
}

fn list(found: &[Survey], data_dir: &Path, out: &mut dyn Write) -> io::Result<u8> {
    if found.is_empty() {
        writeln!(out, "no buffers in {}", data_dir.display())?;
        return Ok(FINE);
    }
    let head = ["BUFFER", "RECORDS", "SIZE", "OLDEST", "SEGMENTS", "DAMAGED"].map(str::to_owned);
    let rows = found.iter().map(|one| {
        [
            one.name(),
            one.records.to_string(),
            ByteSize(one.bytes).to_string(),
            one.oldest().unwrap_or_else(|| "-".to_owned()),
            one.segments.to_string(),
            one.damaged.len().to_string(),
        ]
    });
    let rows: Vec<_> = std::iter::once(head).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or_default();
    for row in &rows {
        let cells: Vec<_> =
            row.iter().enumerate().map(|(at, cell)| format!("{cell:width$}", width = width(at))).collect();
        writeln!(out, "{}", cells.join("  ").trim_end())?;
    }
    for path in found.iter().flat_map(|one| &one.damaged) {
        writeln!(out, "damaged, what was sound in it has been read or will be: {}", path.display())?;
    }
    Ok(FINE)
}

fn list_json(found: &[Survey], out: &mut dyn Write) -> io::Result<u8> {
    for one in found {
        let line = json!({
            "pipeline": one.pipeline,
            "stage": one.stage,
            "records": one.records,
            "bytes": one.bytes,
            "oldest": one.oldest(),
            "segments": one.segments,
            "damaged": one.damaged,
        });
        writeln!(out, "{line}")?;
    }
    Ok(FINE)
}

fn show(found: &[Survey], data_dir: &Path, buffer: &str, limit: usize, out: &mut dyn Write) -> io::Result<u8> {
    let Some(one) = found.iter().find(|one| one.name() == buffer) else {
        let known: Vec<_> = found.iter().map(Survey::name).collect();
        let known = if known.is_empty() { "there are none".to_owned() } else { known.join(", ") };
        eprintln!("no buffer is named `{buffer}` in {}; the buffers are: {known}", data_dir.display());
        return Ok(INVALID);
    };
    let mut left = limit;
    let mut printed = Ok(());
    let read = frames(&folder(data_dir, &one.pipeline, &one.stage), |batch| {
        for record in batch.records().iter().take(left) {
            printed = writeln!(out, "{}", shown(batch, record));
        }
        left = left.saturating_sub(batch.len());
        left > 0 && printed.is_ok()
    });
    printed?;
    if let Err(error) = read {
        eprintln!("cannot read the buffer `{buffer}`: {error}");
        return Ok(FAILED);
    }
    Ok(FINE)
}

/// A record as one JSON object.
fn shown(batch: &Batch, record: &Record) -> Value {
    let origin = batch.origin();
    let mut shown = Map::new();
    shown.insert("source".to_owned(), json!(origin.source));
    shown.insert("topic".to_owned(), json!(origin.topic));
    shown.insert("partition".to_owned(), json!(origin.number));
    shown.insert("offset".to_owned(), json!(record.offset));
    shown.insert("timestamp_ms".to_owned(), json!(record.timestamp.0));
    text_or_bytes(&mut shown, "key", batch.key(record));
    let headers: Vec<_> = batch
        .headers(record)
        .map(|Header { name, value }| {
            let mut header = Map::new();
            text_or_bytes(&mut header, "name", Some(name));
            text_or_bytes(&mut header, "value", value);
            Value::Object(header)
        })
        .collect();
    if !headers.is_empty() {
        shown.insert("headers".to_owned(), headers.into());
    }
    let body = batch.body(record);
    match (record.format, serde_json::from_slice::<Value>(body)) {
        (BodyFormat::Absent, _) => {}
        (BodyFormat::Json, Ok(value)) => drop(shown.insert("body".to_owned(), value)),
        _ => text_or_bytes(&mut shown, "body", Some(body)),
    }
    Value::Object(shown)
}

/// As text under `name` if it is UTF-8, else as an array of bytes under `name_bytes`.
fn text_or_bytes(object: &mut Map<String, Value>, name: &str, bytes: Option<&[u8]>) {
    let Some(bytes) = bytes else { return };
    match std::str::from_utf8(bytes) {
        Ok(text) => object.insert(name.to_owned(), text.into()),
        Err(_) => object.insert(format!("{name}_bytes"), bytes.to_vec().into()),
    };
}

impl Survey {
    /// As `show` takes it.
    fn name(&self) -> String {
        format!("{}/{}", self.pipeline, self.stage)
    }

    /// When the oldest record was written, for a person.
    fn oldest(&self) -> Option<String> {
        let oldest = jiff::Timestamp::from_millisecond(self.oldest?.0).ok()?;
        Some(oldest.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::record::{BatchBuilder, Draft, HeadersBuilder, Partition, Timestamp};
    use crate::state::buffer::{Limits, Log};

    /// A data folder with a buffer of two records in a batch and one in another.
    fn data() -> (tempfile::TempDir, Log) {
        let data = tempfile::tempdir().unwrap();
        let log = Log::open(&folder(data.path(), "orders", "totals"), Limits::of(1 << 20), None, 0).unwrap();
        let run = log.cut_back(None).unwrap();
        for bodies in [&[b"{\"a\":1}".as_slice(), b"\xff"][..], &[b"text"]] {
            let origin = Partition { source: "in".into(), topic: "t".into(), number: 2 };
            let mut batch = BatchBuilder::new(Arc::new(origin), 0, 0);
            let mut headers = HeadersBuilder::default();
            headers.push(b"trace", None);
            for body in bodies {
                let format = if body.starts_with(b"{") { BodyFormat::Json } else { BodyFormat::Raw };
                let headers = headers.encoded();
                batch.push_copy(Draft { body, format, key: Some(b"k"), headers, offset: 5, ..Draft::default() });
            }
            log.append(run, &batch.finish(), Timestamp(1_750_000_000_000)).unwrap();
        }
        log.publish(log.sync(run).unwrap());
        (data, log)
    }

    fn said(say: impl FnOnce(&mut Vec<u8>) -> io::Result<u8>) -> (u8, String) {
        let mut out = Vec::new();
        let code = say(&mut out).unwrap();
        (code, String::from_utf8(out).unwrap())
    }

    #[test]
    fn buffers_are_listed_with_what_is_in_them() {
        let (data, log) = data();
        let found = survey(data.path()).unwrap();
        let (code, text) = said(|out| list(&found, data.path(), out));
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!((code, lines[0][0], lines.len()), (0, "BUFFER", 2));
        assert_eq!((lines[1][0], lines[1][1], lines[1][3]), ("orders/totals", "3", "2025-06-15T15:06:40Z"));
        let (_, line) = said(|out| list_json(&found, out));
        let line: Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&line["records"], &line["segments"], &line["damaged"]), (&json!(3), &json!(1), &json!([])));

        // What is read is no longer counted, before the segment goes.
        let mut cursor = log.cursor(None).unwrap();
        let (_, place) = log.read(&mut cursor, 1).unwrap().remove(0);
        log.release(place);
        assert_eq!(survey(data.path()).unwrap()[0].records, 1);
        let (_, text) = said(|out| show(&survey(data.path()).unwrap(), data.path(), "orders/totals", 10, out));
        assert_eq!(text.lines().count(), 1);
    }

    #[test]
    fn records_are_shown_whole_and_no_more_than_asked() {
        let (data, _log) = data();
        let found = survey(data.path()).unwrap();
        let show = |limit| said(|out| show(&found, data.path(), "orders/totals", limit, out)).1;
        let all: Vec<Value> = show(10).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(all.len(), 3);
        assert_eq!((&all[0]["body"], &all[0]["key"], &all[0]["offset"]), (&json!({ "a": 1 }), &json!("k"), &json!(5)));
        assert_eq!((&all[1]["body_bytes"], &all[2]["body"]), (&json!([255]), &json!("text")));
        assert_eq!(all[0]["headers"], json!([{ "name": "trace" }]));
        assert_eq!(show(1).lines().count(), 1);
    }

    #[test]
    fn a_buffer_that_is_not_there_is_an_error() {
        let (data, _log) = data();
        let found = survey(data.path()).unwrap();
        assert_eq!(said(|out| show(&found, data.path(), "orders/none", 1, out)).0, INVALID);
        let empty = tempfile::tempdir().unwrap();
        let (code, text) = said(|out| list(&survey(empty.path()).unwrap(), empty.path(), out));
        assert!(code == FINE && text.starts_with("no buffers in "), "{text}");
    }
}
