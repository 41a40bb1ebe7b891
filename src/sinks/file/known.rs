//! A file that the store knows, or will before anything is written to it.

use std::path::Path;

use super::disk::{OnDisk, cannot};
use super::files::Rotation;
use crate::clients::files::entry::{self, Entry};
use crate::component::SinkError;

/// Whose a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Standing {
    /// Ours, once the store has heard of it.
    #[default]
    New,
    /// Ours, and the store knows it.
    Claimed,
    /// What stands there is not what the store knows.
    Foreign,
}

#[derive(Debug, Default)]
pub(super) struct Known {
    /// As of the last barrier, or of its claim.
    pub(super) entry: Entry,
    pub(super) standing: Standing,
    pub(super) on_disk: Option<OnDisk>,
    /// How long it is.
    pub(super) length: u64,
    /// Where a write failed that could not be cut off yet.
    pub(super) torn_at: Option<u64>,
    /// Its last line has no newline: whoever wrote it was not we.
    pub(super) open_line_at: Option<u64>,
    /// Lines that wait to be compressed.
    pub(super) waiting: Vec<u8>,
    /// What is in it, or its entry, has changed since the last barrier.
    pub(super) changed: bool,
    /// There are bytes that may not be on the disk.
    unsynced: bool,
    /// When it was written last.
    pub(super) used: u64,
}

impl Known {
    /// A file as an entry describes it.
    pub(super) fn new(entry: Entry, standing: Standing) -> Self {
        Self { length: entry.length, entry, standing, ..Self::default() }
    }

    /// Whether it is large or old enough to be finished.
    pub(super) fn is_due(&self, rotation: Rotation, now_ms: i64) -> bool {
        let age_ms = now_ms - self.entry.begun.unwrap_or(now_ms);
        rotation.size.is_some_and(|size| self.length >= size) || rotation.after_ms.is_some_and(|after| age_ms >= after)
    }

    /// Nothing more will be written to it; the next barrier says so.
    pub(super) fn finish(&mut self) {
        self.entry.finished = true;
        self.changed = true;
    }

    /// Appends bytes to the open file: all of them, or none.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        self.repair()?;
        let Some(on_disk) = &mut self.on_disk else { return Ok(()) };
        // Others may have emptied it.
        let before = on_disk.length()?;
        let ends_a_line = if self.open_line_at == Some(before) { &b"\n"[..] } else { b"" };
        let appended = on_disk.append(ends_a_line).and_then(|()| on_disk.append(bytes));
        self.changed = true;
        self.unsynced = true;
        if let Err(error) = appended {
            self.cut_to(before);
            return Err(error);
        }
        self.length = before + (ends_a_line.len() + bytes.len()) as u64;
        Ok(())
    }

    /// Takes back what was written behind a place. If that fails, the next write begins with it.
    pub(super) fn cut_to(&mut self, length: u64) {
        self.torn_at = Some(length);
        self.length = length;
        self.changed = true;
        if self.on_disk.is_some() {
            let _ = self.repair();
        }
    }

    /// Cuts off what a write left that failed.
    pub(super) fn repair(&mut self) -> Result<(), SinkError> {
        if let (Some(length), Some(on_disk)) = (self.torn_at, &self.on_disk) {
            on_disk.cut(length)?;
            self.length = on_disk.length()?;
            self.torn_at = None;
            self.unsynced = true;
        }
        Ok(())
    }

    /// Makes the open file durable, and notes what the store must know of it.
    pub(super) fn settle(&mut self, path: &str) -> Result<(), SinkError> {
        self.repair()?;
        let Some(on_disk) = &self.on_disk else { return Ok(()) };
        if self.unsynced {
            on_disk.sync()?;
            self.unsynced = false;
        }
        self.length = on_disk.length()?;
        self.entry.length = self.length;
        let tail = entry::tail(&on_disk.file, self.length);
        self.entry.tail = tail.map_err(|error| cannot("read", Path::new(path), &error))?;
        Ok(())
    }
}
