//! The log: one writer appends frames, one reader follows. Calls that touch the disk block; only waiting does not.
//!
//! Three places matter, in this order: what was **read** (the reader has committed it: segments before it go), what is
//! **visible** (the writer has committed it: the reader may have it), and the **end** (what the writer has written).

mod reader;

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

pub use reader::Cursor;

use super::frame::{self, HEADER, Header};
use super::segment::{Frames, Segment, list};
use crate::record::{Batch, Timestamp};

/// Where the reader stands, for people who look into the folder. What counts is in the store.
pub(super) const HINT: &str = "read";

/// How deep in the data folder a log lies, as `folder` in [`super`] places it.
const DEPTH: usize = 3;

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
    Full {
        /// The bytes that it takes.
        frame: u64,
    },
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

/// A log of batches in a folder, which no other process may write.
#[derive(Debug)]
pub struct Log {
    folder: PathBuf,
    limits: Limits,
    /// Held while the disk works, which may be for ever: only calls that block take it, through [`Log::inner`].
    inner: Mutex<Inner>,
    /// Held for a moment: who waits, and who looks, asks nothing else.
    seen: Mutex<Seen>,
    moved: Notify,
}

/// What is known of a log without waiting for its disk.
#[derive(Debug, Default)]
struct Seen {
    places: Places,
    finished: bool,
    abandoned: bool,
    damaged: u64,
    damage: Option<String>,
}

/// Where a log begins and ends, and its two ends are.
#[derive(Debug, Clone, Copy, Default)]
struct Places {
    first: u64,
    end: Place,
    visible: Place,
    read: Place,
}

/// The working part of a log, locked. What others see of it follows when it is let go.
struct Working<'a> {
    inner: MutexGuard<'a, Inner>,
    seen: &'a Mutex<Seen>,
}

impl Deref for Working<'_> {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.inner
    }
}

impl DerefMut for Working<'_> {
    fn deref_mut(&mut self) -> &mut Inner {
        &mut self.inner
    }
}

impl Drop for Working<'_> {
    fn drop(&mut self) {
        locked(self.seen).places = self.inner.places();
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
            bytes: Vec::new(),
        };
        let seen = Mutex::new(Seen { places: inner.places(), damaged, ..Seen::default() });
        let log = Self { folder: folder.to_owned(), limits, inner: Mutex::new(inner), seen, moved: Notify::new() };
        log.cursor(None)?;
        Ok(log)
    }

    fn inner(&self) -> Working<'_> {
        Working { inner: locked(&self.inner), seen: &self.seen }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        locked(&self.seen)
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
        let seen = self.seen();
        let places = seen.places;
        Stats {
            bytes: places.bytes_held(),
            records: places.end.records.saturating_sub(places.read.records),
            damaged: seen.damaged,
            damage: seen.damage.clone(),
        }
    }

    /// Begins a run of the writer: cuts off all behind what is committed, and shuts earlier runs out. Returns the run.
    pub fn cut_back(&self, committed: Option<Place>) -> io::Result<u64> {
        let mut inner = self.inner();
        let to = committed.unwrap_or(inner.visible);
        let known_to = inner.end.position;
        inner.run += 1;
        inner.active = None;
        inner.unsynced.clear();
        for segment in list(&self.folder)? {
            if segment.base >= to.position {
                fs::remove_file(segment.path(&self.folder))?;
                inner.unsynced_names = true;
            } else if segment.base >= known_to && inner.segments.iter().all(|known| known.base != segment.base) {
                // The reader opened the log before an epoch was confirmed that a crash had left prepared.
                inner.segments.push_back(segment);
            }
        }
        inner.segments.retain(|segment| segment.base < to.position);
        let last = inner.segments.back().copied();
        let opened = last.map(|last| OpenOptions::new().write(true).open(last.path(&self.folder)));
        // What was taken away behind our back is passed over by the reader.
        let opened = opened.filter(|file| file.as_ref().err().is_none_or(|error| error.kind() != ErrorKind::NotFound));
        if let (Some(last), Some(file)) = (last, opened.transpose()?) {
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
        self.seen().places.end
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
        let frame = bytes.len() as u64;
        if inner.places().is_full(frame, self.limits) {
            return Err(AppendError::Full { frame });
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
        let file = if let Some(file) = inner.active.take().filter(|_| len < self.limits.segment) {
            file
        } else {
            let segment = Segment { base: inner.end.position, damaged: false };
            let path = segment.path(&self.folder);
            let file = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
            inner.segments.push_back(segment);
            inner.unsynced_names = true;
            Arc::new(file)
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
        self.seen().finished = true;
        self.moved.notify_waiters();
    }

    /// Nobody will read any more.
    pub fn abandon(&self) {
        self.seen().abandoned = true;
        self.moved.notify_waiters();
    }

    /// Waits until there may be room again for this many bytes. False if there never will be.
    pub async fn room(&self, bytes: u64) -> bool {
        self.until(|seen| {
            let has_room = !seen.places.is_full(bytes, self.limits);
            (has_room || seen.abandoned).then_some(has_room)
        })
        .await
    }

    async fn until<T>(&self, mut known: impl FnMut(&Seen) -> Option<T>) -> T {
        loop {
            let moved = self.moved.notified();
            tokio::pin!(moved);
            moved.as_mut().enable();
            if let Some(known) = known(&self.seen()) {
                return known;
            }
            moved.await;
        }
    }
}

impl Places {
    fn bytes_held(&self) -> u64 {
        self.end.position.saturating_sub(self.first)
    }

    /// Whether a frame must wait. One that finds a reader with nothing left to free is always taken, or an epoch larger
    /// than the buffer could never be committed, nor read.
    fn is_full(&self, frame: u64, limits: Limits) -> bool {
        self.bytes_held() + frame > limits.bytes && self.read.position < self.visible.position
    }
}

impl Inner {
    fn places(&self) -> Places {
        let first = self.segments.front().map_or(self.end.position, |first| first.base);
        Places { first, end: self.end, visible: self.visible, read: self.read }
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

/// Creates a folder and those above it, so that their names survive a power cut: also what an earlier process made and
/// had no time to sync.
fn create(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let parents = folder.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty());
    parents.take(DEPTH).try_for_each(|parent| File::open(parent)?.sync_all())
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::super::frame::tests::{batches, whole};
    use super::*;
    use crate::record::{BatchBuilder, Draft, Partition};

    const FIRST: u64 = 1 << 40;
    const ROOMY: Limits = Limits { bytes: 1 << 20, segment: 300 };

    fn open(dir: &TempDir, limits: Limits, committed: Option<Place>) -> Log {
        Log::open(&dir.path().join("buffers/p/s"), limits, committed, FIRST).unwrap()
    }

    /// A batch of one record with this body.
    fn one(body: &str) -> Batch {
        let origin = Partition { source: "in".into(), topic: "orders".into(), number: 3 };
        let mut batch = BatchBuilder::new(Arc::new(origin), 0, 1);
        batch.push_copy(Draft { body: body.as_bytes(), ..Draft::default() });
        batch.finish()
    }

    fn append(log: &Log, run: u64, body: &str) {
        log.append(run, &one(body), Timestamp(7)).unwrap();
    }

    /// Appends, syncs and publishes, as an epoch does.
    fn commit(log: &Log, run: u64, bodies: &[&str]) -> Place {
        for body in bodies {
            append(log, run, body);
        }
        let place = log.sync(run).unwrap();
        log.publish(place);
        place
    }

    fn body(batch: &Batch) -> Option<String> {
        let record = batch.records().first()?;
        Some(String::from_utf8_lossy(batch.body(record)).into_owned())
    }

    /// The bodies from a place on, and the place behind them.
    fn read(log: &Log, from: Option<u64>) -> (Vec<String>, Place) {
        let mut cursor = log.cursor(from).unwrap();
        let batches = log.read(&mut cursor, usize::MAX).unwrap();
        (batches.iter().filter_map(|(batch, _)| body(batch)).collect(), cursor.place())
    }

    fn files(log: &Log, ending: &str) -> Vec<PathBuf> {
        let all = fs::read_dir(log.folder()).unwrap().map(|entry| entry.unwrap().path());
        let mut all: Vec<_> = all.filter(|path| path.to_string_lossy().ends_with(ending)).collect();
        all.sort();
        all
    }

    /// Changes one byte of the frame that holds this text.
    fn damage(log: &Log, text: &str) -> PathBuf {
        for path in files(log, "") {
            let mut bytes = fs::read(&path).unwrap();
            if let Some(at) = memchr::memmem::find(&bytes, text.as_bytes()) {
                bytes[at] ^= 1;
                fs::write(&path, bytes).unwrap();
                return path;
            }
        }
        panic!("nothing holds {text}");
    }

    const LONG: &str =
        "a body of a hundred bytes, give or take, so that a few of them fill a segment of three hundred bytes";

    fn long(number: u32) -> String {
        format!("{LONG} {number}")
    }

    fn commit_long(log: &Log, run: u64, numbers: std::ops::Range<u32>) -> Place {
        let bodies: Vec<_> = numbers.map(long).collect();
        commit(log, run, &bodies.iter().map(String::as_str).collect::<Vec<_>>())
    }

    #[test]
    fn who_looks_does_not_wait_for_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let log = open(&dir, ROOMY, None);
        let run = log.cut_back(None).unwrap();
        commit(&log, run, &["one"]);
        let cursor = log.cursor(None).unwrap();
        // As a write that hangs holds it.
        let working = log.inner();
        let (done, looked) = std::sync::mpsc::channel();
        std::thread::scope(|threads| {
            threads.spawn(|| {
                let room = log.room(1).now_or_never();
                done.send((log.stats().records, log.end().records, room, log.readable(&cursor).now_or_never()))
            });
            let looked = looked.recv_timeout(std::time::Duration::from_secs(30));
            drop(working);
            assert_eq!(looked, Ok((1, 1, Some(true), Some(true))));
        });
    }

    #[test]
    fn only_what_is_published_is_read_and_what_is_released_goes() {
        let dir = tempfile::tempdir().unwrap();
        let log = open(&dir, ROOMY, None);
        let run = log.cut_back(None).unwrap();
        commit_long(&log, run, 0..10);
        append(&log, run, "not yet");
        let (read_once, place) = read(&log, None);
        assert_eq!(read_once, (0..10).map(long).collect::<Vec<_>>());
        assert_eq!(place.records, 10);
        let segments = files(&log, ".segment").len();
        assert!(segments > 3);
        assert_eq!(log.stats().records, 11);

        log.release(place);
        assert_eq!(files(&log, ".segment").len(), 1);
        assert_eq!(log.stats().records, 1);
        assert_eq!(read(&log, Some(place.position)).0, Vec::<String>::new());
        commit(&log, run, &["next"]);
        assert_eq!(read(&log, Some(place.position)).0, ["not yet", "next"]);
    }

    #[test]
    fn an_epoch_that_is_confirmed_after_the_reader_has_opened_the_log_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let log = open(&dir, ROOMY, None);
        let run = log.cut_back(None).unwrap();
        let before = commit_long(&log, run, 0..3);
        let after = commit_long(&log, run, 3..9);
        drop(log);

        // A crash left the second epoch prepared: the store says `before` until its judge has been asked.
        let log = open(&dir, ROOMY, Some(before));
        let mut cursor = log.cursor(Some(before.position)).unwrap();
        log.cut_back(Some(after)).unwrap();
        let batches = log.read(&mut cursor, usize::MAX).unwrap();
        let bodies: Vec<_> = batches.iter().filter_map(|(batch, _)| body(batch)).collect();
        assert_eq!(bodies, (3..9).map(long).collect::<Vec<_>>());
        assert_eq!((cursor.place(), log.stats().damaged), (after, 0));
    }

    #[test]
    fn what_was_not_committed_is_cut_off_over_as_many_segments_as_it_takes() {
        let dir = tempfile::tempdir().unwrap();
        let log = open(&dir, ROOMY, None);
        let run = log.cut_back(None).unwrap();
        let committed = commit_long(&log, run, 0..3);
        (3..9).for_each(|number| append(&log, run, &long(number)));
        drop(log);

        let log = open(&dir, ROOMY, Some(committed));
        // The reader does not wait for the writer.
        assert_eq!(read(&log, None).0.len(), 3);
        let run = log.cut_back(Some(committed)).unwrap();
        commit(&log, run, &["another"]);
        let (bodies, place) = read(&log, None);
        assert_eq!((bodies.len(), bodies.last().map(String::as_str)), (4, Some("another")));
        assert_eq!((place, place.records), (log.end(), 4));
    }

    #[test]
    fn rule_2_a_run_that_was_cut_off_writes_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let log = open(&dir, ROOMY, None);
        let old = log.cut_back(None).unwrap();
        let new = log.cut_back(None).unwrap();
        assert!(matches!(log.append(old, &one("late"), Timestamp(0)), Err(AppendError::Stale)));
        assert!(matches!(log.sync(old), Err(AppendError::Stale)));
        append(&log, new, "in time");
    }

    #[test]
    fn a_full_log_takes_nothing_until_the_reader_has_moved() {
        let dir = tempfile::tempdir().unwrap();
        let log = open(&dir, Limits { bytes: 1000, segment: 300 }, None);
        let run = log.cut_back(None).unwrap();
        let first = commit_long(&log, run, 0..3);
        let mut number = 3;
        while log.append(run, &one(&long(number)), Timestamp(0)).is_ok() {
            number += 1;
        }
        assert!(log.stats().bytes <= 1000, "bounded by what was said");
        assert!((4..10).contains(&number));
        log.release(first);
        append(&log, run, &long(number));
    }

    #[test]
    fn an_epoch_larger_than_the_log_is_taken_when_the_reader_has_nothing_left_to_free() {
        let dir = tempfile::tempdir().unwrap();
        let log = open(&dir, Limits { bytes: 1000, segment: 300 }, None);
        let run = log.cut_back(None).unwrap();
        let end = commit_long(&log, run, 0..50);
        assert_eq!(read(&log, None), ((0..50).map(long).collect(), end));
    }

    #[test]
    fn a_damaged_frame_is_passed_over_and_its_segment_set_aside_and_the_rest_flows() {
        for header in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let log = open(&dir, ROOMY, None);
            let run = log.cut_back(None).unwrap();
            let end = commit_long(&log, run, 0..9);
            let path = if header { files(&log, ".segment").remove(1) } else { damage(&log, &long(4)) };
            if header {
                let mut bytes = fs::read(&path).unwrap();
                bytes[..HEADER].fill(0);
                fs::write(&path, bytes).unwrap();
            }
            let (bodies, place) = read(&log, None);
            assert_eq!((bodies.len(), place), (8, end), "{bodies:?}");
            let stats = log.stats();
            assert_eq!(stats.damaged, 1);
            let aside = files(&log, ".damaged");
            assert_eq!(aside, [path.with_extension("damaged")]);
            assert!(stats.damage.unwrap().contains(&aside[0].display().to_string()));

            // What was passed is not met again, and the damaged file stays.
            log.release(place);
            drop(log);
            let log = open(&dir, ROOMY, Some(end));
            assert_eq!(read(&log, Some(place.position)).0, Vec::<String>::new());
            assert_eq!((files(&log, ".damaged").len(), files(&log, ".segment").len()), (1, 1));
        }
    }

    #[test]
    fn damage_in_the_segment_that_is_written_costs_nothing_that_is_not_committed() {
        let dir = tempfile::tempdir().unwrap();
        let log = open(&dir, Limits::of(1 << 20), None);
        let run = log.cut_back(None).unwrap();
        let committed = commit(&log, run, &["one", "two", "three"]);
        append(&log, run, "open");
        damage(&log, "two");
        assert_eq!(read(&log, None).0, ["one", "three"]);
        commit(&log, run, &["next"]);
        assert_eq!(read(&log, None).0, ["one", "three", "open", "next"]);
        // And what is cut off is cut off in the file that was set aside, too.
        let run = log.cut_back(Some(committed)).unwrap();
        commit(&log, run, &["again"]);
        assert_eq!(read(&log, None).0, ["one", "three", "again"]);
    }

    #[test]
    fn a_position_within_a_frame_says_how_many_of_its_records_are_left() {
        let dir = tempfile::tempdir().unwrap();
        let log = open(&dir, ROOMY, None);
        let run = log.cut_back(None).unwrap();
        append(&log, run, "before");
        let origin = Partition { source: "in".into(), topic: "orders".into(), number: 3 };
        let mut batch = BatchBuilder::new(Arc::new(origin), 0, 0);
        for body in ["a", "b", "c"] {
            batch.push_copy(Draft { body: body.as_bytes(), ..Draft::default() });
        }
        log.append(run, &batch.finish(), Timestamp(0)).unwrap();
        let end = commit(&log, run, &[]).position;
        commit(&log, run, &["behind"]);
        for (left, expected) in [(0, "behind"), (1, "c"), (2, "b"), (3, "a")] {
            let bodies = read(&log, Some(end - left)).0;
            assert_eq!(bodies.first().map(String::as_str), Some(expected), "{bodies:?}");
            assert_eq!(bodies.len(), if left == 0 { 1 } else { 2 }, "one body for each batch");
            let mut cursor = log.cursor(Some(end - left)).unwrap();
            let batch = log.read(&mut cursor, 1).unwrap().remove(0).0;
            assert_eq!(batch.len() as u64, left.max(1));
        }
    }

    #[test]
    fn missing_files_are_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let log = open(&dir, ROOMY, None);
        let run = log.cut_back(None).unwrap();
        let end = commit_long(&log, run, 0..9);
        fs::remove_file(&files(&log, ".segment")[1]).unwrap();
        assert!(read(&log, None).0.len() < 9);
        drop(log);
        // All of them: the log goes on where the store says.
        let log = open(&dir, ROOMY, Some(end));
        for path in files(&log, "segment") {
            fs::remove_file(path).unwrap();
        }
        let run = log.cut_back(Some(end)).unwrap();
        commit(&log, run, &["next"]);
        assert_eq!(read(&log, Some(end.position)).0, ["next"]);
    }

    #[test]
    fn where_the_store_was_lost_all_that_is_sound_counts() {
        let dir = tempfile::tempdir().unwrap();
        let log = open(&dir, ROOMY, None);
        let run = log.cut_back(None).unwrap();
        commit_long(&log, run, 0..5);
        drop(log);
        let log = open(&dir, ROOMY, None);
        let last = files(&log, ".segment").pop().unwrap();
        let mut torn = fs::read(&last).unwrap();
        torn.extend_from_slice(b"WFr1 torn");
        drop(log);
        fs::write(&last, torn).unwrap();
        let log = open(&dir, ROOMY, None);
        let run = log.cut_back(None).unwrap();
        commit(&log, run, &["next"]);
        let (bodies, place) = read(&log, None);
        assert_eq!((bodies.len(), place.records), (6, 6));
    }

    #[test]
    fn a_position_of_another_log_reads_all() {
        let dir = tempfile::tempdir().unwrap();
        let log = open(&dir, ROOMY, None);
        let run = log.cut_back(None).unwrap();
        commit(&log, run, &["one", "two"]);
        assert_eq!(read(&log, Some(FIRST - 1)).0, ["one", "two"]);
        assert_eq!(read(&log, Some(FIRST << 1)).0, ["one", "two"]);
    }

    #[tokio::test]
    async fn a_reader_waits_for_more_and_ends_when_there_will_be_none() {
        let dir = tempfile::tempdir().unwrap();
        let log = open(&dir, ROOMY, None);
        let run = log.cut_back(None).unwrap();
        let mut cursor = log.cursor(None).unwrap();
        let (readable, _) = tokio::join!(log.readable(&cursor), async { commit(&log, run, &["one"]) });
        assert!(readable);
        log.read(&mut cursor, 1).unwrap();
        let (readable, ()) = tokio::join!(log.readable(&cursor), async { log.finish() });
        assert!(!readable);
    }

    /// What a writer does.
    #[derive(Debug, Clone)]
    enum Step {
        Append(Batch),
        Commit,
        /// The reader commits what it has read.
        Release,
        /// The process dies; this share of what was not synced is on the disk, and then some bytes that nobody wrote.
        Crash(prop::sample::Index, Vec<u8>),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            5 => batches().prop_map(Step::Append),
            2 => Just(Step::Commit),
            1 => Just(Step::Release),
            1 => (any::<prop::sample::Index>(), any::<Vec<u8>>()).prop_map(|(at, bytes)| Step::Crash(at, bytes)),
        ];
        // Each ends with a crash.
        (proptest::collection::vec(step, 0..40), any::<prop::sample::Index>()).prop_map(|(mut steps, at)| {
            steps.push(Step::Crash(at, Vec::new()));
            steps
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn after_a_crash_at_any_byte_exactly_the_committed_frames_are_there(steps in steps()) {
            let dir = tempfile::tempdir().unwrap();
            let mut log = open(&dir, ROOMY, None);
            let mut run = log.cut_back(None).unwrap();
            // What the store would hold: of the writer, and of the reader.
            let (mut committed, mut read) = (log.end(), None);
            let (mut pending, mut expected) = (Vec::new(), Vec::new());
            for step in steps {
                match step {
                    Step::Append(batch) => {
                        log.append(run, &batch, Timestamp(0)).unwrap();
                        pending.push(batch);
                    }
                    Step::Commit => {
                        committed = log.sync(run).unwrap();
                        log.publish(committed);
                        expected.append(&mut pending);
                    }
                    Step::Release => {
                        let mut cursor = log.cursor(read).unwrap();
                        log.read(&mut cursor, usize::MAX).unwrap();
                        read = Some(cursor.position);
                        log.release(cursor.place());
                        expected.clear();
                    }
                    Step::Crash(at, garbage) => {
                        if let Some(last) = files(&log, ".segment").pop() {
                            let base: u64 = last.file_stem().unwrap().to_str().unwrap().parse().unwrap();
                            let mut bytes = fs::read(&last).unwrap();
                            let durable = usize::try_from(committed.position.saturating_sub(base)).unwrap();
                            if durable < bytes.len() {
                                bytes.truncate(durable + at.index(bytes.len() - durable));
                            }
                            bytes.extend(garbage);
                            fs::write(&last, bytes).unwrap();
                        }
                        pending.clear();
                        log = open(&dir, ROOMY, Some(committed));
                        let mut cursor = log.cursor(read).unwrap();
                        let there = log.read(&mut cursor, usize::MAX).unwrap();
                        let there: Vec<_> = there.iter().map(|(batch, _)| whole(batch)).collect();
                        prop_assert_eq!(there, expected.iter().map(whole).collect::<Vec<_>>());
                        prop_assert_eq!(log.stats().damaged, 0);
                        run = log.cut_back(Some(committed)).unwrap();
                        prop_assert_eq!(log.end(), committed);
                    }
                }
            }
        }

        #[test]
        fn any_bytes_as_a_segment_are_read_to_their_end(bytes in any::<Vec<u8>>(), batch in batches(), cut in any::<u16>()) {
            let dir = tempfile::tempdir().unwrap();
            let log = open(&dir, ROOMY, None);
            let run = log.cut_back(None).unwrap();
            log.append(run, &batch, Timestamp(0)).unwrap();
            let end = log.sync(run).unwrap();
            let path = files(&log, ".segment").pop().unwrap();
            let mut all = fs::read(&path).unwrap();
            let at = usize::from(cut) % all.len();
            all.splice(at..at, bytes);
            fs::write(&path, all).unwrap();
            drop(log);
            for committed in [None, Some(end)] {
                let log = open(&dir, ROOMY, committed);
                let mut cursor = log.cursor(None).unwrap();
                log.read(&mut cursor, usize::MAX).unwrap();
                prop_assert_eq!(cursor.position, log.end().position);
                prop_assert!(cursor.position <= log.end().position);
                log.cut_back(committed).unwrap();
            }
        }
    }
}
