//! A look at the buffers of a data folder from outside, beside a running daemon or without one. Nothing is written.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::log::{HINT, Place};
use super::segment::{Frames, Segment, list};
use crate::record::{Batch, Timestamp};

/// What is in one buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey {
    /// The pipeline.
    pub pipeline: String,
    /// The stage that reads it.
    pub stage: String,
    /// Records that are not read, some of which may not be committed.
    pub records: u64,
    /// Bytes of its segments.
    pub bytes: u64,
    /// When the oldest record that is not read was written.
    pub oldest: Option<Timestamp>,
    /// How many segments there are.
    pub segments: usize,
    /// The files that were set aside.
    pub damaged: Vec<PathBuf>,
}

/// Where the buffer of a stage is.
#[must_use]
pub fn folder(data_dir: &Path, pipeline: &str, stage: &str) -> PathBuf {
    data_dir.join("buffers").join(pipeline).join(stage)
}

/// All buffers of a data folder, by pipeline and stage.
///
/// # Errors
/// If a folder or a file cannot be read. What a running daemon takes away meanwhile is no error.
pub fn survey(data_dir: &Path) -> io::Result<Vec<Survey>> {
    let mut found = Vec::new();
    for pipeline in folders(&data_dir.join("buffers"))? {
        for stage in folders(&data_dir.join("buffers").join(&pipeline))? {
            found.push(survey_one(&folder(data_dir, &pipeline, &stage), &pipeline, &stage)?);
        }
    }
    Ok(found)
}

/// The names of the folders in a folder; none if it is not there.
fn folders(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.path().is_dir() {
            names.extend(entry.file_name().into_string());
        }
    }
    names.sort();
    Ok(names)
}

fn survey_one(folder: &Path, pipeline: &str, stage: &str) -> io::Result<Survey> {
    let all = list(folder)?;
    let damaged = all.iter().filter(|segment| segment.damaged).map(|segment| segment.path(folder)).collect();
    let read = hint(folder);
    let live: Vec<_> = all.iter().enumerate().filter(|(at, _)| is_live(&all, *at, read)).map(|(_, one)| *one).collect();
    let mut survey = Survey {
        pipeline: pipeline.to_owned(),
        stage: stage.to_owned(),
        records: 0,
        bytes: 0,
        oldest: None,
        segments: live.len(),
        damaged,
    };
    let mut first = None;
    let mut last = read.map_or(0, |read| read.records);
    for segment in &live {
        let Some(frames) = open(folder, *segment)? else { continue };
        let end = frames.end()?;
        survey.bytes += end - segment.base;
        if first.is_none() {
            let from = read.map_or(segment.base, |read| read.position.max(segment.base));
            first = frames.header(frames.next(from, end)?, end)?;
        }
        last = frames.sound_end()?.1.unwrap_or(last).max(last);
    }
    if let Some(first) = first {
        survey.records = last.saturating_sub(first.before);
        survey.oldest = Some(first.written);
    }
    Ok(survey)
}

/// Batches that a buffer holds and nobody has read, in order, until `take` says that it has enough.
///
/// # Errors
/// If a folder or a file cannot be read.
pub fn frames(folder: &Path, mut take: impl FnMut(&Batch) -> bool) -> io::Result<()> {
    let all = list(folder)?;
    let read = hint(folder);
    for (at, segment) in all.iter().enumerate() {
        let Some(frames) = open(folder, *segment)?.filter(|_| is_live(&all, at, read)) else { continue };
        let end = frames.end()?;
        let mut position = read.map_or(segment.base, |read| read.position.max(segment.base));
        loop {
            let Some(header) = frames.header(position, end)? else {
                position = frames.next(position.saturating_add(1), end)?;
                if position < end {
                    continue;
                }
                break;
            };
            if let Some(batch) = frames.batch(&header, position)?
                && !take(&batch)
            {
                return Ok(());
            }
            position = header.end(position);
        }
    }
    Ok(())
}

/// Whether something in a segment is not read.
fn is_live(all: &[Segment], at: usize, read: Option<Place>) -> bool {
    let passed = |read: Place| all.get(at + 1).is_some_and(|next| next.base <= read.position);
    !read.is_some_and(passed)
}

fn open(folder: &Path, segment: Segment) -> io::Result<Option<Frames>> {
    match Frames::open(folder, segment) {
        Ok(frames) => Ok(Some(frames)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Where the reader said it stands. It is only for this look, and may be missing or torn.
fn hint(folder: &Path) -> Option<Place> {
    let text = fs::read_to_string(folder.join(HINT)).ok()?;
    let (position, records) = text.trim_end().split_once(' ')?;
    Some(Place { position: position.parse().ok()?, records: records.parse().ok()? })
}
