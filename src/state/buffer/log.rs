//! The log: one writer appends frames, one reader follows. Calls that touch the disk block; only waiting does not.
//!
//! Three places matter, in this order: what was **read** (the reader has committed it: segments before it go), what is
//! **visible** (the writer has committed it: the reader may have it), and the **end** (what the writer has written).

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::frame::{self, HEADER, Header};
use super::segment::{Frames, Segment, list};
use crate::record::{Batch, BatchBuilder, Partition, Timestamp};

/// Where the reader stands, for people who look into the folder. What counts is in the store.
pub(super) const HINT: &str = "read";

/// How large a log may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// All segments together, in bytes.
    pub bytes: u64,
    /// One segment: with this many bytes it is closed, and the next begins.
    pub segment: u64,
}

impl Limits {
    /// Of a log of this many bytes. Space is freed by whole segments.
    #[must_use]
    pub fn of(bytes: u64) -> Self {
        Self { bytes, segment: (bytes / 8).clamp(64 << 10, 64 << 20) }
    }
}

/// A place between two frames, and the records before it in the whole life of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Place {
    /// Bytes since the beginning.
    pub position: u64,
    /// Records since the beginning.
    pub records: u64,
}

/// What is in a log now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stats {
    /// Bytes on the disk that are not read, or stand in one segment with what is not.
    pub bytes: u64,
    /// Records that were written and not read.
    pub records: u64,
    /// Segments that were set aside, and lie on the disk for a person.
    pub damaged: u64,
    /// What was set aside last, for a person.
    pub damage: Option<String>,
}

/// Why a batch was not appended.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// There is no room. It comes when the reader has moved on.
    #[error("the buffer is full")]
    Full,
    /// An earlier run of the writer wants to write.
    #[error("another run writes the buffer")]
    Stale,
    /// It does not fit into a frame.
    #[error("the batch is larger than a frame of a buffer can be")]
    TooLarge,
    /// The disk refuses.
    #[error("cannot write to `{}`: {error}", folder.display())]
    Disk {
        /// Where the log is.
        folder: PathBuf,
        /// What it said.
        error: io::Error,
    },
}

/// Where a reader stands.
#[derive(Debug)]
pub struct Cursor {
    position: u64,
    /// Records before it, as far as they are known.
    records: u64,
    open: Option<Frames>,
}

/// A log of batches in a folder, which no other process may write.
#[derive(Debug)]
pub struct Log {
    folder: PathBuf,
    limits: Limits,
    inner: Mutex<Inner>,
    moved: Notify,
}

#[derive(Debug)]
struct Inner {
    /// By their bases. Each ends where the next begins, the last at the end.
    segments: VecDeque<Segment>,
    /// The last segment's file; `None` if the next frame begins a new segment.
    active: Option<Arc<File>>,
    unsynced: Vec<Arc<File>>,
    /// Whether files came, went or got other names since the folder was synced.
    unsynced_names: bool,
    end: Place,
    visible: Place,
    read: Place,
    /// Raised for each run of the writer.
    run: u64,
    finished: bool,
    abandoned: bool,
    damaged: u64,
    damage: Option<String>,
    /// Reused by all frames.
    bytes: Vec<u8>,
}

impl Log {
    /// Opens a log of which the store says that it counts up to `committed`; where the store knows nothing, all that is
    /// sound counts. A new one begins at `first`, which must lie behind all that an earlier log of this folder can have
    /// held.
    pub fn open(folder: &Path, limits: Limits, committed: Option<Place>, first: u64) -> io::Result<Self> {
        create(folder)?;
        let segments = list(folder)?;
        let end = match (committed, segments.last()) {
            (Some(committed), _) => committed,
            (None, None) => Place { position: first, records: 0 },
            (None, Some(last)) => sound_end(folder, &segments, *last)?,
        };
        let damaged = segments.iter().filter(|segment| segment.damaged).count() as u64;
        let segments: VecDeque<_> = segments.into_iter().filter(|segment| segment.base < end.position).collect();
        let inner = Inner {
            read: end,
            segments,
            active: None,
            unsynced: Vec::new(),
            unsynced_names: false,
            end,
            visible: end,
            run: 0,
            finished: false,
            abandoned: false,
            damaged,
            damage: None,
            bytes: Vec::new(),
        };
        let log = Self { folder: folder.to_owned(), limits, inner: Mutex::new(inner), moved: Notify::new() };
        log.cursor(None)?;
        Ok(log)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where it is.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// How large it may be.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// What is in it.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let inner = self.inner();
        Stats {
            bytes: inner.bytes_held(),
            records: inner.end.records.saturating_sub(inner.read.records),
            damaged: inner.damaged,
            damage: inner.damage.clone(),
        }
    }

    // The writer's side.

    /// Begins a run of the writer: cuts off all behind what is committed, and shuts earlier runs out. Returns the run.
    pub fn cut_back(&self, committed: Option<Place>) -> io::Result<u64> {
        let mut inner = self.inner();
        let to = committed.unwrap_or(inner.visible);
        inner.run += 1;
        inner.active = None;
        inner.unsynced.clear();
        for segment in list(&self.folder)?.into_iter().filter(|segment| segment.base >= to.position) {
            fs::remove_file(segment.path(&self.folder))?;
            inner.unsynced_names = true;
        }
        inner.segments.retain(|segment| segment.base < to.position);
        if let Some(last) = inner.segments.back().copied() {
            let file = OpenOptions::new().write(true).open(last.path(&self.folder))?;
            let len = to.position - last.base;
            let had = file.metadata()?.len();
            if had > len {
                file.set_len(len)?;
            }
            // One that lacks bytes, or was set aside, is not written any more.
            if had >= len && !last.damaged {
                inner.active = Some(Arc::new(file));
            }
        }
        (inner.end, inner.visible) = (to, to);
        let run = inner.run;
        drop(inner);
        self.moved.notify_waiters();
        Ok(run)
    }

    /// Where the log ends now.
    #[must_use]
    pub fn end(&self) -> Place {
        self.inner().end
    }

    /// Appends a batch. Nobody sees it before it is synced and published.
    pub fn append(&self, run: u64, batch: &Batch, written: Timestamp) -> Result<(), AppendError> {
        let mut inner = self.inner();
        if inner.run != run {
            return Err(AppendError::Stale);
        }
        let mut bytes = std::mem::take(&mut inner.bytes);
        bytes.clear();
        bytes.resize(HEADER, 0);
        frame::encode(batch, &mut bytes);
        let appended = self.append_frame(&mut inner, &mut bytes, batch.len(), written);
        // One large batch is no reason to hold its memory for ever.
        bytes.shrink_to(4 << 20);
        inner.bytes = bytes;
        appended
    }

    fn append_frame(
        &self,
        inner: &mut Inner,
        bytes: &mut [u8],
        records: usize,
        written: Timestamp,
    ) -> Result<(), AppendError> {
        if inner.is_full(bytes.len() as u64, self.limits) {
            return Err(AppendError::Full);
        }
        let Place { position, records: before } = inner.end;
        let header = Header::of(&bytes[HEADER..], records, before, written).ok_or(AppendError::TooLarge)?;
        bytes[..HEADER].copy_from_slice(&header.encode(position));
        let failed = |error| AppendError::Disk { folder: self.folder.clone(), error };
        let file = self.active(inner).map_err(failed)?;
        let base = inner.segments.back().map_or(position, |segment| segment.base);
        if let Err(error) = file.write_all_at(bytes, position - base) {
            // The next frame is written over what came of this one.
            let _ = file.set_len(position - base);
            return Err(failed(error));
        }
        inner.end = Place { position: header.end(position), records: header.after() };
        Ok(())
    }

    /// The file for the next frame: of the last segment, or of a new one.
    fn active(&self, inner: &mut Inner) -> io::Result<Arc<File>> {
        let len = inner.segments.back().map_or(0, |last| inner.end.position - last.base);
        let file = match inner.active.take().filter(|_| len < self.limits.segment) {
            Some(file) => file,
            None => {
                let segment = Segment { base: inner.end.position, damaged: false };
                let file =
                    OpenOptions::new().write(true).create(true).truncate(true).open(segment.path(&self.folder))?;
                inner.segments.push_back(segment);
                inner.unsynced_names = true;
                Arc::new(file)
            }
        };
        if inner.unsynced.last().is_none_or(|last| !Arc::ptr_eq(last, &file)) {
            inner.unsynced.push(Arc::clone(&file));
        }
        inner.active = Some(Arc::clone(&file));
        Ok(file)
    }

    /// Makes durable all that was appended, and tells up to where. After an error it is not known what is on the disk.
    pub fn sync(&self, run: u64) -> Result<Place, AppendError> {
        let (end, files, names) = {
            let mut inner = self.inner();
            if inner.run != run {
                return Err(AppendError::Stale);
            }
            (inner.end, std::mem::take(&mut inner.unsynced), std::mem::take(&mut inner.unsynced_names))
        };
        let sync = || {
            files.iter().try_for_each(|file| file.sync_data())?;
            if names { File::open(&self.folder)?.sync_all() } else { Ok(()) }
        };
        sync().map_err(|error| AppendError::Disk { folder: self.folder.clone(), error })?;
        Ok(end)
    }

    /// Lets the reader have what is committed.
    pub fn publish(&self, committed: Place) {
        self.inner().visible = committed;
        self.moved.notify_waiters();
    }

    /// Nothing will be written any more: the reader ends when it has read all.
    pub fn finish(&self) {
        self.inner().finished = true;
        self.moved.notify_waiters();
    }

    /// Nobody will read any more.
    pub fn abandon(&self) {
        self.inner().abandoned = true;
        self.moved.notify_waiters();
    }

    /// Waits until there may be room again for this many bytes. False if there never will be.
    pub async fn room(&self, bytes: u64) -> bool {
        self.until(|inner| match inner.is_full(bytes, self.limits) {
            false => Some(true),
            true => inner.abandoned.then_some(false),
        })
        .await
    }

    // The reader's side.

    /// A reader that goes on behind what it has committed, or at the beginning. Segments that it has passed go.
    pub fn cursor(&self, committed: Option<u64>) -> io::Result<Cursor> {
        let mut inner = self.inner();
        let first = inner.segments.front().map_or(inner.visible.position, |segment| segment.base);
        let last = inner.visible.position;
        let position = match committed {
            Some(position) if position < first => {
                let (folder, bytes) = (self.folder.display(), first - position);
                tracing::error!(buffer = %folder, bytes, "files of the buffer are missing: what they held is lost");
                first
            }
            Some(position) if position > last => {
                let folder = self.folder.display();
                tracing::error!(buffer = %folder, "the buffer is not the one that was read before: reading all of it");
                first
            }
            Some(position) => position,
            None => first,
        };
        let records = self.records_before(&inner, position)?;
        inner.read = Place { position, records };
        self.remove_passed(&mut inner);
        Ok(Cursor { position, records, open: None })
    }

    /// The records in the log before a place.
    fn records_before(&self, inner: &Inner, position: u64) -> io::Result<u64> {
        if position >= inner.visible.position {
            return Ok(inner.visible.records);
        }
        let Some((segment, end)) = inner.segment_at(position) else { return Ok(inner.visible.records) };
        let frames = match Frames::open(&self.folder, segment) {
            Ok(frames) => frames,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(inner.visible.records),
            Err(error) => return Err(error),
        };
        let sound = frames.next(position, end)?;
        Ok(frames.header(sound, end)?.map_or(inner.visible.records, |header| header.before))
    }

    /// Batches from where the cursor stands, in order, each with the place behind it: at least one if there is any, and
    /// not many more than `most_bytes`. What is damaged is set aside and passed over: an empty batch moves on past it.
    pub fn read(&self, cursor: &mut Cursor, most_bytes: usize) -> io::Result<Vec<(Batch, Place)>> {
        let mut batches = Vec::new();
        let mut bytes = 0;
        while bytes < most_bytes {
            let Some((segment, end)) = self.next_segment(cursor) else { break };
            if cursor.open.as_ref().is_none_or(|open| open.base() != segment.base) {
                cursor.open = match Frames::open(&self.folder, segment) {
                    Ok(frames) => Some(frames),
                    Err(error) if error.kind() == ErrorKind::NotFound => {
                        self.note_damage(segment, "is gone");
                        cursor.position = end;
                        batches.push((nothing(), cursor.place()));
                        continue;
                    }
                    Err(error) => return Err(error),
                };
            }
            let Some(frames) = &cursor.open else { continue };
            let position = cursor.position;
            let header = frames.header(position, end)?;
            let batch = match &header {
                Some(header) => frames.batch(header, position)?,
                None => None,
            };
            if let (Some(header), Some(batch)) = (header, batch) {
                (cursor.position, cursor.records) = (header.end(position), header.after());
                bytes += HEADER + header.len as usize;
                batches.push((batch, cursor.place()));
            } else {
                // A sound header tells where the next frame is; else it is looked for.
                let from = header.map_or(position + 1, |header| header.end(position));
                cursor.position = frames.next(from, end)?;
                cursor.records = frames.header(cursor.position, end)?.map_or(cursor.records, |header| header.before);
                self.set_aside(segment, position, cursor.position - position)?;
                batches.push((nothing(), cursor.place()));
            }
        }
        Ok(batches)
    }

    /// The segment in which the cursor stands, and where it ends for a reader. `None` if there is nothing to read yet.
    fn next_segment(&self, cursor: &mut Cursor) -> Option<(Segment, u64)> {
        let inner = self.inner();
        if cursor.position >= inner.visible.position {
            return None;
        }
        let found = inner.segment_at(cursor.position);
        if found.is_none() {
            cursor.position = inner.segments.front().map_or(inner.visible.position, |first| first.base);
            return inner.segment_at(cursor.position);
        }
        found
    }

    /// Gives a damaged segment another name. What is sound in it is still read, and then it stays for a person.
    fn set_aside(&self, segment: Segment, position: u64, bytes: u64) -> io::Result<()> {
        let mut inner = self.inner();
        if let Some(at) = inner.segments.iter().position(|known| known.base == segment.base && !known.damaged) {
            let aside = Segment { damaged: true, ..segment };
            fs::rename(segment.path(&self.folder), aside.path(&self.folder))?;
            inner.unsynced_names = true;
            inner.segments[at] = aside;
            if at + 1 == inner.segments.len() {
                inner.active = None;
            }
            inner.damaged += 1;
        }
        drop(inner);
        let place = position - segment.base;
        self.note_damage(segment, &format!("is damaged: {bytes} bytes at {place} cannot be read and are passed over"));
        Ok(())
    }

    fn note_damage(&self, segment: Segment, what: &str) {
        let path = Segment { damaged: true, ..segment }.path(&self.folder);
        let words = format!("the segment `{}` of the buffer {what}", path.display());
        tracing::error!("{words}; the file is kept under this name, and the rest of the buffer goes on");
        self.inner().damage = Some(words);
    }

    /// The reader has committed what it read up to here: segments before it go.
    pub fn release(&self, read: Place) {
        let mut inner = self.inner();
        if read.position <= inner.read.position {
            return;
        }
        inner.read = read;
        self.remove_passed(&mut inner);
        drop(inner);
        let _ = fs::write(self.folder.join(HINT), format!("{} {}\n", read.position, read.records));
        self.moved.notify_waiters();
    }

    fn remove_passed(&self, inner: &mut Inner) {
        while inner.segments.get(1).is_some_and(|second| second.base <= inner.read.position) {
            let Some(first) = inner.segments.pop_front() else { break };
            // A damaged one stays for a person to look at.
            if !first.damaged
                && let Err(error) = fs::remove_file(first.path(&self.folder))
                && error.kind() != ErrorKind::NotFound
            {
                let path = first.path(&self.folder);
                tracing::warn!("cannot remove `{}`, which has been read: {error}", path.display());
            }
        }
    }

    /// Waits until there is something to read from this place on. False if there never will be.
    pub async fn readable(&self, cursor: &Cursor) -> bool {
        let position = cursor.position;
        self.until(|inner| match inner.visible.position > position {
            true => Some(true),
            false => inner.finished.then_some(false),
        })
        .await
    }

    async fn until<T>(&self, mut known: impl FnMut(&Inner) -> Option<T>) -> T {
        loop {
            let moved = self.moved.notified();
            tokio::pin!(moved);
            moved.as_mut().enable();
            if let Some(known) = known(&self.inner()) {
                return known;
            }
            moved.await;
        }
    }
}

impl Cursor {
    fn place(&self) -> Place {
        Place { position: self.position, records: self.records }
    }
}

/// A batch without a record.
fn nothing() -> Batch {
    let nowhere = Partition { source: "".into(), topic: "".into(), number: 0 };
    BatchBuilder::new(Arc::new(nowhere), 0, 0).finish()
}

impl Inner {
    fn bytes_held(&self) -> u64 {
        self.segments.front().map_or(0, |first| self.end.position - first.base)
    }

    /// Whether a frame must wait. One that finds a reader with nothing left to free is always taken, or an epoch larger
    /// than the buffer could never be committed, nor read.
    fn is_full(&self, frame: u64, limits: Limits) -> bool {
        self.bytes_held() + frame > limits.bytes && self.read.position < self.visible.position
    }

    /// The segment that a place is in, and where it ends, or where what is visible of it does.
    fn segment_at(&self, position: u64) -> Option<(Segment, u64)> {
        let at = self.segments.iter().rposition(|segment| segment.base <= position)?;
        let end = self.segments.get(at + 1).map_or(self.visible.position, |next| next.base);
        Some((self.segments[at], end.min(self.visible.position)))
    }
}

/// The end of what is sound in the last segment.
fn sound_end(folder: &Path, segments: &[Segment], last: Segment) -> io::Result<Place> {
    let (position, records) = Frames::open(folder, last)?.sound_end()?;
    if let Some(records) = records {
        return Ok(Place { position, records });
    }
    // It holds nothing yet; the one before it counts the records.
    let before = segments.iter().rev().nth(1).map(|segment| Frames::open(folder, *segment)?.sound_end()).transpose()?;
    Ok(Place { position, records: before.and_then(|(_, records)| records).unwrap_or(0) })
}

/// Creates a folder and those above it, so that their names survive a power cut.
fn create(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    if let Some(parent) = folder.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        create(parent)?;
        match fs::create_dir(folder) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
            _ => File::open(parent)?.sync_all()?,
        }
    }
    Ok(())
}
