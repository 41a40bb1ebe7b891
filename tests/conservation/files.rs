//! The files of file sinks: the forms that they may have, and what is in them.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use crate::account::Found;

/// How a sink writes files. It must not matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Form {
    /// One file for each minute.
    timed: bool,
    /// A row of files, finished one after another.
    rotated: bool,
    compression: Option<Compression>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compression {
    Gzip,
    Zstd,
}

impl Form {
    pub(crate) fn draw(random: &mut fastrand::Rng) -> Self {
        let compression = [None, Some(Compression::Gzip), Some(Compression::Zstd)][random.usize(..3)];
        Self { timed: random.u8(..3) == 0, rotated: random.bool(), compression }
    }

    /// A sink of this form.
    pub(crate) fn sink(self, name: &str) -> String {
        let time = if self.timed { "-%Y-%m-%dT%H-%M" } else { "" };
        let (extension, compression) = match self.compression {
            None => ("", ""),
            Some(Compression::Gzip) => (".gz", ", compression: gzip"),
            Some(Compression::Zstd) => (".zst", ", compression: zstd"),
        };
        let rotate = if self.rotated { ", rotate: { size: 32KiB, after: 3s }" } else { "" };
        format!(r#"file: {{ path: "${{SINK_DIR}}/{name}{time}.ndjson{extension}"{compression}{rotate} }}"#)
    }

    /// For people.
    pub(crate) fn describe(self) -> String {
        let words = [
            self.timed.then_some("by the minute"),
            self.rotated.then_some("rotated"),
            self.compression.map(|compression| match compression {
                Compression::Gzip => "gzip",
                Compression::Zstd => "zstd",
            }),
        ];
        let words: Vec<_> = words.into_iter().flatten().collect();
        if words.is_empty() { "plain files".to_owned() } else { format!("files {}", words.join(", ")) }
    }
}

/// The files of a folder, in the order in which they were begun.
pub(crate) fn list(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    paths
}

/// Shows the lines of a file, numbered from 1.
///
/// # Errors
/// If its end is not whole.
pub(crate) fn read_lines(path: &Path, mut see: impl FnMut(u64, &[u8])) -> Result<(), String> {
    let damaged = |error: std::io::Error| format!("{}: {error}", path.display());
    let file = BufReader::new(File::open(path).map_err(damaged)?);
    // A file that grows has one ending more.
    let name = if is_final(path) { path } else { &path.with_extension("") };
    let reader: Box<dyn Read> = match name.extension().and_then(OsStr::to_str) {
        Some("gz") => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
        Some("zst") => Box::new(zstd::Decoder::with_buffer(file).map_err(damaged)?),
        _ => Box::new(file),
    };
    for (number, line) in (1..).zip(BufReader::new(reader).split(b'\n')) {
        see(number, &line.map_err(damaged)?);
    }
    Ok(())
}

/// Files with a final name. They hold committed records only, and nobody touches them any more.
#[derive(Debug, Default)]
pub(crate) struct Finals(BTreeMap<PathBuf, u64>);

impl Finals {
    /// Remembers what the final files of a folder hold, and tells of those that have changed.
    pub(crate) fn look(&mut self, folder: &Path, form: Form, found: &mut Found) {
        if !form.rotated {
            return;
        }
        for path in list(folder).into_iter().filter(|path| is_final(path)) {
            let hash = hash_of(&path);
            match (self.0.get(&path), hash) {
                (Some(before), Some(now)) if *before != now => {
                    found.add("a final file was changed", path.display().to_string());
                }
                (None, Some(now)) => drop(self.0.insert(path, now)),
                _ => {}
            }
        }
    }

    /// Tells of those that are gone.
    pub(crate) fn must_be_there(&self, found: &mut Found) {
        for path in self.0.keys().filter(|path| !path.exists()) {
            found.add("a final file is gone", path.display().to_string());
        }
    }
}

fn is_final(path: &Path) -> bool {
    path.extension().is_some_and(|last| last != "open")
}

fn hash_of(path: &Path) -> Option<u64> {
    let bytes = fs::read(path).ok()?;
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    Some(hasher.finish())
}
