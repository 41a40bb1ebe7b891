//! All files of one sink: which are known, which are open, what was written since the last barrier. Everything here may
//! block.
//!
//! A file is **claimed** in the store before the first byte is written to it, so that a file which is not empty is either
//! one that the store knows, or somebody else's. The store knows, for each, how much of it is committed; the rest is cut
//! off before a run. A file that is rotated grows under `NAME.open`. It is finished at a barrier, and renamed once the
//! barrier is committed; the store says so until it is done, so a crash in between leaves nothing to guess.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::claim::{Claim, Owner};
use super::compress::Compression;
use super::disk::{Name, OnDisk, cannot, create_folder, exists, folder, sync_folder};
use super::known::{Known, Standing};
use crate::clients::files::entry::{self, Entry};
use crate::clients::files::names;
use crate::clients::files::pattern::{Paths, Pattern};
use crate::clients::lines;
use crate::clock::Clock;
use crate::codecs::Codec;
use crate::component::{Refusal, Settled, SinkError};
use crate::delivery::Changes;
use crate::record::Batch;

/// Files that are open at once; those that were not written for the longest time are closed. Far below the usual limit
/// of 1024 for a process.
const MAX_OPEN: usize = 128;
/// Lines that wait to be compressed, in one file: less than a reader notices, and enough for a good ratio.
const FRAME_BYTES: usize = 1 << 20;
/// The same, in all files.
const FRAMES_BYTES: usize = 8 << 20;
/// The key of the number that the last rotated file got.
pub(super) const NUMBER: &str = "number";

/// When a file is finished, and the next one begun.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rotation {
    pub(super) size: Option<u64>,
    pub(super) after_ms: Option<i64>,
}

#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) pattern: Pattern,
    pub(super) codec: Codec,
    pub(super) compression: Option<Compression>,
    pub(super) rotation: Option<Rotation>,
    pub(super) append: bool,
}

/// All files of one sink.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) settings: Settings,
    owner: Owner,
    clock: Clock,
    /// Keeps other sinks of this process off the path.
    claim: Option<Claim>,
    paths: Paths,
    /// By the final path.
    pub(super) known: BTreeMap<Arc<str>, Known>,
    /// Of rotated files: the final path of the one that grows, by the path that the user wrote.
    pub(super) growing: BTreeMap<Arc<str>, Arc<str>>,
    /// The number that the last rotated file got.
    pub(super) number: u64,
    /// Files of an earlier config are finished, and no barrier has said so yet.
    pub(super) leaves_finished: bool,
    /// Folders with names in them that may not be on the disk. They stay so whatever becomes of a run.
    unsynced: BTreeSet<PathBuf>,
    /// Final paths of files that have them by now: the store need not know them any more.
    renamed: Vec<Arc<str>>,
    /// Why no run can begin.
    pub(super) refused: Option<SinkError>,
    /// Counts writes, so that it is known which file was written last.
    writes: u64,
    /// Reused by all batches.
    lines: Vec<u8>,
}

/// Lines of a batch, by file, ready to be written.
#[derive(Debug)]
pub(super) struct Staged {
    parts: Vec<(Arc<str>, Vec<u8>)>,
    pub(super) settled: Settled,
    /// What the store must know before.
    pub(super) claims: Changes,
}

/// What a barrier commits, and what is done then.
#[derive(Debug, Default)]
pub(super) struct Barrier {
    pub(super) changes: Changes,
    /// Final paths of files that are finished.
    pub(super) finished: Vec<Arc<str>>,
}

impl Files {
    pub(super) fn new(settings: Settings, owner: Owner, clock: Clock) -> Self {
        Self {
            paths: Paths::new(settings.pattern.clone()),
            settings,
            owner,
            clock,
            claim: None,
            known: BTreeMap::new(),
            growing: BTreeMap::new(),
            number: 0,
            leaves_finished: false,
            unsynced: BTreeSet::new(),
            renamed: Vec::new(),
            refused: None,
            writes: 0,
            lines: Vec::new(),
        }
    }

    /// Forgets all files, and closes them.
    pub(super) fn reset(&mut self) {
        self.known.clear();
        self.growing.clear();
        self.number = 0;
        self.leaves_finished = false;
        self.renamed.clear();
        self.refused = None;
    }

    fn now_ms(&self) -> i64 {
        self.clock.timestamp().0
    }

    // Opening.

    /// Begins a run. A path of one file is staged at once, so that mistakes show before anything is read.
    pub(super) fn open(&mut self) -> Result<Staged, SinkError> {
        if let Some(error) = &self.refused {
            return Err(error.clone());
        }
        if self.claim.is_none() {
            self.claim = Some(Claim::of(&self.settings.pattern, &self.owner)?);
        }
        let mut staged = Staged { parts: Vec::new(), settled: Settled::all(), claims: Changes::new() };
        if self.settings.pattern.is_plain() && self.settings.rotation.is_none() {
            let path: Arc<str> = self.settings.pattern.text().into();
            let path = self.file_for(&path, &mut staged.claims)?;
            staged.parts.push((path, Vec::new()));
        }
        Ok(staged)
    }

    /// The file to which lines of a path go now. What the store must know of it first is added to `claims`.
    fn file_for(&mut self, path: &Arc<str>, claims: &mut Changes) -> Result<Arc<str>, SinkError> {
        let file = match self.settings.rotation {
            None => self.plain_file(path)?,
            Some(rotation) => self.rotated_file(path, rotation)?,
        };
        let key = entry::key(&file);
        let is_new = self.known.get(&file).is_some_and(|known| known.standing == Standing::New);
        if is_new && claims.iter().all(|(claimed, _)| *claimed != key) {
            claims.push((key, self.known.get(&file).map(|known| known.entry.encode())));
            if self.settings.rotation.is_some() {
                claims.push((NUMBER.to_owned(), Some(self.number.to_be_bytes().to_vec())));
            }
        }
        Ok(file)
    }

    /// A file that is appended to under its own name, whoever began it.
    fn plain_file(&mut self, path: &Arc<str>) -> Result<Arc<str>, SinkError> {
        if self.known.get(path).is_none_or(|known| known.standing == Standing::Foreign) {
            let length = match fs::metadata(&**path) {
                Ok(metadata) => metadata.len(),
                Err(error) if error.kind() == ErrorKind::NotFound => 0,
                Err(error) => return Err(cannot("look at", Path::new(&**path), &error)),
            };
            if length > 0 && !self.settings.append {
                return Err(SinkError::Fatal(format!(
                    "`{path}` holds {length} bytes that this pipeline did not write, or that were changed since: move \
                     the file away, or say `append: true` to write behind them"
                )));
            }
            if length > 0 {
                self.adopt(path)?;
            } else {
                self.known.insert(Arc::clone(path), Known::default());
            }
        }
        Ok(Arc::clone(path))
    }

    /// Takes over what stands in a file already.
    fn adopt(&mut self, path: &Arc<str>) -> Result<(), SinkError> {
        let on_disk = OnDisk::open(Path::new(&**path))?;
        let length = on_disk.length()?;
        let read = |error| cannot("read", Path::new(&**path), &error);
        let tail = entry::tail(&on_disk.file, length).map_err(read)?;
        let entry = Entry { length, tail, ..Entry::default() };
        self.known.insert(Arc::clone(path), Known::new(entry, Standing::New));
        Ok(())
    }

    /// The file that grows for a path; the next one is begun where the last is old or large enough.
    fn rotated_file(&mut self, path: &Arc<str>, rotation: Rotation) -> Result<Arc<str>, SinkError> {
        let now = self.now_ms();
        if let Some(file) = self.growing.get(path).cloned() {
            let known = self.known.get_mut(&file);
            match known {
                Some(known) if !known.is_due(rotation, now) => return Ok(file),
                Some(known) => known.finish(),
                None => {}
            }
            self.growing.remove(path);
        }
        let file = loop {
            self.number += 1;
            let file = names::numbered(path, self.number);
            // Somebody else may have put a file there; a name is never used twice.
            if !exists(Path::new(&file))? && !exists(&names::open(&file))? {
                break Arc::<str>::from(file);
            }
        };
        let entry = Entry { begun: Some(now), ..Entry::default() };
        self.known.insert(Arc::clone(&file), Known::new(entry, Standing::New));
        self.growing.insert(Arc::clone(path), Arc::clone(&file));
        Ok(file)
    }

    // Writing.

    /// Encodes a batch and finds the files that its lines go to. Nothing is written yet.
    pub(super) fn stage(&mut self, batch: &Batch) -> Result<Staged, SinkError> {
        let mut staged = Staged { parts: Vec::new(), settled: Settled::all(), claims: Changes::new() };
        if self.settings.pattern.is_plain() {
            let mut lines = std::mem::take(&mut self.lines);
            lines.clear();
            staged.settled = lines::encode(self.settings.codec, batch, &mut lines);
            staged.parts.push((Arc::from(self.settings.pattern.text()), lines));
        } else {
            self.stage_by_time(batch, &mut staged);
        }
        for at in 0..staged.parts.len() {
            if !staged.parts[at].1.is_empty() {
                let file = self.file_for(&Arc::clone(&staged.parts[at].0), &mut staged.claims)?;
                staged.parts[at].0 = file;
            }
        }
        Ok(staged)
    }

    fn stage_by_time(&mut self, batch: &Batch, staged: &mut Staged) {
        let mut at = 0;
        for (index, record) in batch.records().iter().enumerate() {
            let encoded = self.paths.of(record.timestamp).and_then(|path| {
                // Times come in runs: most records go where the last one went.
                if staged.parts.get(at).is_none_or(|(last, _)| *last != path) {
                    at = staged.parts.iter().position(|(known, _)| *known == path).unwrap_or_else(|| {
                        staged.parts.push((path, Vec::new()));
                        staged.parts.len() - 1
                    });
                }
                lines::encode_one(self.settings.codec, batch, record, &mut staged.parts[at].1)
            });
            if let Err(error) = encoded {
                staged.settled.refused.push(Refusal { record: index, error });
            }
        }
    }

    /// Writes what was staged: all of it, or nothing. The store knows all claims.
    pub(super) fn append(&mut self, staged: Staged) -> Result<Settled, SinkError> {
        for (key, _) in &staged.claims {
            if let Some(known) = entry::path_of(key).and_then(|path| self.known.get_mut(path)) {
                known.standing = Standing::Claimed;
            }
        }
        let appended = self.append_all(&staged.parts);
        if let Some((_, lines)) = staged.parts.into_iter().next() {
            self.lines = lines;
        }
        appended.map(|()| staged.settled)
    }

    fn append_all(&mut self, parts: &[(Arc<str>, Vec<u8>)]) -> Result<(), SinkError> {
        let compressed = self.settings.compression.is_some();
        self.writes += 1;
        // What may fail comes first, and of what was written before: with compression, this batch then only waits.
        for (file, lines) in parts {
            self.ensure_open(file)?;
            let waits = self.known.get(file).map_or(0, |known| known.waiting.len());
            if waits > 0 && waits + lines.len() > FRAME_BYTES {
                self.write_frame(file)?;
            }
        }
        if compressed {
            if self.known.values().map(|known| known.waiting.len()).sum::<usize>() > FRAMES_BYTES {
                for file in self.known.keys().cloned().collect::<Vec<_>>() {
                    self.write_frame(&file)?;
                }
            }
            for (file, lines) in parts {
                if let Some(known) = self.known.get_mut(file) {
                    known.used = self.writes;
                    known.waiting.extend_from_slice(lines);
                    known.changed |= !lines.is_empty();
                }
            }
            return Ok(());
        }
        let mut done: Vec<(&Arc<str>, u64)> = Vec::new();
        for (file, lines) in parts.iter().filter(|(_, lines)| !lines.is_empty()) {
            let before = self.known.get(file).map_or(0, |known| known.length);
            if let Err(error) = self.write(file, lines) {
                for (file, length) in done.into_iter().rev() {
                    if let Some(known) = self.known.get_mut(file) {
                        known.cut_to(length);
                    }
                }
                return Err(error);
            }
            done.push((file, before));
        }
        Ok(())
    }

    /// Writes the lines that wait as one compressed frame.
    fn write_frame(&mut self, file: &Arc<str>) -> Result<(), SinkError> {
        let Some(known) = self.known.get_mut(file).filter(|known| !known.waiting.is_empty()) else { return Ok(()) };
        let Some(compression) = self.settings.compression else { return Ok(()) };
        let frame = compression.frame(&known.waiting);
        let frame = frame.map_err(|error| SinkError::Rewind(format!("cannot compress lines for `{file}`: {error}")))?;
        self.write(file, &frame)?;
        if let Some(known) = self.known.get_mut(file) {
            known.waiting.clear();
        }
        Ok(())
    }

    /// Appends bytes to a file: all of them, or none.
    fn write(&mut self, file: &Arc<str>, bytes: &[u8]) -> Result<(), SinkError> {
        self.ensure_open(file)?;
        let Some(known) = self.known.get_mut(file) else { return Ok(()) };
        known.used = self.writes;
        known.write(bytes)
    }

    /// Opens a file that is not open, and closes one that was not written for long if there are too many.
    fn ensure_open(&mut self, file: &Arc<str>) -> Result<(), SinkError> {
        let Some(known) = self.known.get(file).filter(|known| known.on_disk.is_none()) else { return Ok(()) };
        let rotated = known.entry.begun.is_some();
        let open = self.known.iter().filter(|(_, known)| known.on_disk.is_some());
        if open.clone().count() >= MAX_OPEN
            && let Some((oldest, _)) = open.min_by_key(|(_, known)| known.used)
        {
            self.close(&Arc::clone(oldest))?;
        }
        let path = if rotated { names::open(file) } else { PathBuf::from(&**file) };
        if rotated || !self.settings.pattern.is_plain() {
            self.unsynced.extend(create_folder(folder(&path))?);
        }
        let on_disk = OnDisk::open(&path)?;
        // Also of one that was there: an earlier run, or process, may have ended between making and syncing it.
        self.unsynced.insert(folder(&path).to_owned());
        let Some(known) = self.known.get_mut(file) else { return Ok(()) };
        let length = on_disk.length()?;
        if length != known.length && known.torn_at.is_none() {
            return Err(SinkError::Rewind(format!(
                "`{}` has {length} bytes instead of {}: somebody else changed it",
                path.display(),
                known.length
            )));
        }
        if self.settings.compression.is_none() {
            let end = lines::past_last_newline(&on_disk.file, length);
            let end = end.map_err(|error| cannot("read", &path, &error))?;
            known.open_line_at = (end < length && known.torn_at.is_none()).then_some(length);
        }
        known.on_disk = Some(on_disk);
        known.repair()
    }

    /// Closes a file. What is in it becomes durable first: an error would find nobody later.
    fn close(&mut self, file: &Arc<str>) -> Result<(), SinkError> {
        self.write_frame(file)?;
        let Some(known) = self.known.get_mut(file) else { return Ok(()) };
        known.settle(file)?;
        known.on_disk = None;
        Ok(())
    }

    // Barriers.

    /// Makes everything durable, and says what of it the store must know.
    pub(super) fn flush(&mut self) -> Result<Barrier, SinkError> {
        let now = self.now_ms();
        if let Some(rotation) = self.settings.rotation {
            let due = |file: &Arc<str>| self.known.get(file).is_none_or(|known| known.is_due(rotation, now));
            let due: Vec<_> = self.growing.values().filter(|file| due(file)).cloned().collect();
            for file in &due {
                self.known.get_mut(file).into_iter().for_each(Known::finish);
            }
            self.growing.retain(|_, file| !due.contains(file));
        }
        let changed: Vec<_> =
            self.known.iter().filter(|(_, known)| known.changed).map(|(file, _)| Arc::clone(file)).collect();
        for file in &changed {
            self.write_frame(file)?;
        }
        for file in &changed {
            if self.known.get(file).is_some_and(|known| known.torn_at.is_some()) {
                self.ensure_open(file)?;
            }
            if let Some(known) = self.known.get_mut(file) {
                known.settle(file)?;
            }
        }
        // A name that does not reach the disk takes its file with it.
        while let Some(folder) = self.unsynced.first() {
            sync_folder(folder)?;
            self.unsynced.pop_first();
        }
        if self.settings.rotation.is_none() {
            self.notice_renames(&changed)?;
        }
        self.leaves_finished = false;
        Ok(self.barrier(&changed))
    }

    fn barrier(&mut self, changed: &[Arc<str>]) -> Barrier {
        let mut barrier = Barrier::default();
        barrier.changes.extend(self.renamed.drain(..).map(|file| (entry::key(&file), None)));
        for file in changed {
            let Some(known) = self.known.get_mut(file) else { continue };
            known.changed = false;
            barrier.changes.push((entry::key(file), Some(known.entry.encode())));
            if known.entry.finished {
                self.known.remove(file);
                barrier.finished.push(Arc::clone(file));
            }
        }
        barrier
    }

    /// A file that was renamed, as log rotation does it, is done; the next line begins a new one.
    fn notice_renames(&mut self, changed: &[Arc<str>]) -> Result<(), SinkError> {
        for file in changed {
            let Some(on_disk) = self.known.get(file).and_then(|known| known.on_disk.as_ref()) else { continue };
            match on_disk.name()? {
                Name::Kept => {}
                Name::Renamed => {
                    tracing::info!(path = %file, "the file was renamed: a new one is begun");
                    // It is claimed again before anything is written: this epoch may not be committed by then.
                    self.known.insert(Arc::clone(file), Known::default());
                }
                // Nobody can read what this epoch wrote.
                Name::Removed => return Err(SinkError::Rewind(format!("`{file}` was removed: a new one is begun"))),
            }
        }
        Ok(())
    }

    /// How soon a file is to be finished by a barrier, if no record brings one about.
    pub(super) fn due_in(&self) -> Option<Duration> {
        if self.leaves_finished {
            return Some(Duration::ZERO);
        }
        let after_ms = self.settings.rotation?.after_ms?;
        let begun = self.growing.values().filter_map(|file| self.known.get(file)?.entry.begun).min()?;
        let left_ms = begun.saturating_add(after_ms).saturating_sub(self.now_ms());
        Some(Duration::from_millis(u64::try_from(left_ms).unwrap_or(0)))
    }

    /// Finishes all files that grow: nothing will be written any more.
    pub(super) fn finish(&mut self) -> Result<Barrier, SinkError> {
        for file in std::mem::take(&mut self.growing).into_values() {
            self.known.get_mut(&file).into_iter().for_each(Known::finish);
        }
        self.flush()
    }

    /// Gives committed files their final names.
    pub(super) fn rename(&mut self, finished: Vec<Arc<str>>) -> Result<(), SinkError> {
        for file in finished {
            rename(&file)?;
            self.renamed.push(file);
        }
        Ok(())
    }
}

/// Gives a finished file its final name, if it has not got it yet.
pub(super) fn rename(file: &str) -> Result<(), SinkError> {
    let (open, path) = (names::open(file), Path::new(file));
    match (exists(&open)?, exists(path)?) {
        (true, false) => fs::rename(&open, path).map_err(|error| cannot("rename", &open, &error))?,
        (true, true) => {
            return Err(SinkError::Fatal(format!(
                "`{}` cannot get its final name: there is another file `{file}`; move that away",
                open.display()
            )));
        }
        (false, _) => {}
    }
    sync_folder(folder(path))
}
