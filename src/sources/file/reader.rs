//! One file, read line by line from a place on, and what a look at it shows.

use std::collections::VecDeque;
use std::fs::{self, File, Metadata};
use std::io;
use std::mem;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::cursor::{Cursor, Piece, Reading, Stopped};
use super::identity::{FileId, Place};
use super::marks::{Known, Marks};
use crate::clients::lines::Tail;
use crate::clients::packed::{Format, damage, is_damage};
use crate::clock::Instant;
use crate::component::{Pulled, Rejected};
use crate::observe::StageMetrics;
use crate::record::{BatchBuilder, Draft, Partition, Position, Timestamp};
use crate::runtime::Runtime;

/// A compressed file that is cut off is tried again once its length has stood still for this long.
const SETTLED: Duration = Duration::from_secs(1);
/// One that is cut off and does not grow for this long is refused.
const CUT_OFF: Duration = Duration::from_secs(10);

/// What a look at a file showed.
pub(super) enum Seen {
    /// Nothing new.
    Same,
    /// It was written to since its end was reached.
    Moved(u64),
    /// It is shorter than what was read of it.
    Shorter,
    /// It cannot be looked at.
    Failed(io::Error),
}

/// By what it shows that a file was written to.
#[derive(Debug, Clone, Copy)]
struct Stamp {
    len: u64,
    /// When it was written last; `None` if its length is all that is known.
    written: Option<SystemTime>,
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self { len: metadata.len(), written: metadata.modified().ok() }
    }

    fn is_of(self, metadata: &Metadata) -> bool {
        self.len == metadata.len()
            && self.written.is_none_or(|written| metadata.modified().is_ok_and(|now| now == written))
    }
}

/// What came of reading on.
pub(super) enum Read {
    Pulled(Pulled),
    /// Nothing for now; whether there is more to read stands in `ready`.
    Nothing,
    /// The file does not hold what was read of it: it was written anew.
    Changed,
    /// What it holds cannot be unpacked.
    Damaged(Arc<io::Error>),
    /// It cannot be read for now.
    Failed(Arc<io::Error>),
}

/// A compressed file that could not be unpacked to its end.
#[derive(Debug)]
struct Stalled {
    len: u64,
    since: Instant,
    error: Arc<io::Error>,
    refused: bool,
}

/// Reads one file, line by line, from a place on.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own, and most combinations occur")]
pub(super) struct Reader {
    pub(super) origin: Arc<Partition>,
    marks: Marks,
    /// Its name now, or the last one known.
    pub(super) path: Arc<str>,
    /// What is to be committed of it.
    pub(super) known: Known,
    /// Whether `known` was said, so that it will be.
    said: bool,
    /// Where it was begun.
    pub(super) first: Place,
    /// Where the next block begins; ahead of the known place by what is in `pieces`.
    cursor: Cursor,
    /// Read and not handed on yet.
    pieces: VecDeque<Piece>,
    /// What it was when its end was reached.
    seen: Option<Stamp>,
    /// Closed where too many are open; opened again when there is something to read.
    pub(super) file: Option<Arc<File>>,
    format: Option<Format>,
    /// Whether there is something to read.
    pub(super) ready: bool,
    /// Whether it was found under a name that is followed.
    pub(super) listed: bool,
    /// Since when it does not have the name under which it was found first.
    pub(super) moved_since: Option<Instant>,
    /// Whether nobody needs to wait for it: it has lost its name and was read to its end.
    pub(super) finished: bool,
    /// Whether what was read of it is not in it any more.
    pub(super) lost: bool,
    stalled: Option<Stalled>,
    /// Whether an error was logged that has not gone away since.
    pub(super) complained: bool,
}

impl Reader {
    pub(super) fn new(origin: Partition, path: &Arc<str>, known: Known, max_line_bytes: usize) -> Self {
        let mut reader = Self {
            marks: Marks::of(&origin),
            origin: Arc::new(origin),
            path: Arc::clone(path),
            known,
            said: false,
            first: known.place,
            cursor: Cursor::new(max_line_bytes),
            pieces: VecDeque::new(),
            seen: None,
            file: None,
            format: None,
            ready: false,
            listed: false,
            moved_since: None,
            finished: false,
            lost: false,
            stalled: None,
            complained: false,
        };
        reader.take_up(known);
        reader
    }

    /// Goes on from a place.
    pub(super) fn take_up(&mut self, known: Known) {
        self.known = known;
        self.said = false;
        self.cursor.go_to(known.place);
        self.pieces.clear();
        self.seen = known.whole.map(|len| Stamp { len, written: None });
        self.stalled = None;
        // It is opened even if it has not grown, so that its end can be read after it has lost its name.
        self.ready = known.whole.is_none() && known.gone.is_none();
        self.finished = known.whole.is_some() || known.gone.is_some();
        self.lost = false;
    }

    /// Takes note that what is known of it is committed already.
    pub(super) fn is_committed(&mut self) {
        self.said = true;
    }

    /// Goes on in another file, which holds what was read of this one.
    pub(super) fn go_on_in(&mut self, path: &Arc<str>, id: FileId) {
        self.take_up(Known { place: self.known.place, id: Some(id), whole: None, gone: None });
        self.path = Arc::clone(path);
        self.file = None;
        self.format = None;
    }

    /// Takes note of the name under which it was found.
    pub(super) fn found_at(&mut self, path: &Arc<str>, now: Instant) {
        self.listed = true;
        self.path = Arc::clone(path);
        if *path == self.origin.topic {
            self.moved_since = None;
        } else {
            self.moved_since.get_or_insert(now);
        }
    }

    /// Takes note that no name that is followed is its own.
    pub(super) fn not_found(&mut self, now: Instant) {
        self.listed = false;
        self.moved_since.get_or_insert(now);
    }

    /// No record, but what is known of the file, to be committed.
    pub(super) fn say(&mut self) -> Pulled {
        self.said = true;
        Pulled { notes: self.marks.of_known(&self.known), ..Pulled::new(self.no_record(), self.position()) }
    }

    /// Whether what is known of it is still to be said in this run.
    pub(super) fn is_unsaid(&self) -> bool {
        !self.said
    }

    /// Nothing of it is to be known any more.
    pub(super) fn forget(&self) -> Pulled {
        let notes = self.marks.forget(&self.origin);
        Pulled { notes, ..Pulled::new(self.no_record(), Position::FORGOTTEN) }
    }

    fn no_record(&self) -> crate::record::Batch {
        BatchBuilder::new(Arc::clone(&self.origin), 0, 0).finish()
    }

    fn position(&self) -> Position {
        Position(i64::try_from(self.known.place.offset).unwrap_or(i64::MAX))
    }

    /// Logs an error once, until it has gone away: one file must not hold up the others.
    pub(super) fn complain(&mut self, component: &str, metrics: &StageMetrics, error: &io::Error) {
        self.ready = false;
        if !mem::replace(&mut self.complained, true) {
            tracing::warn!(component, path = &*self.path, %error, "cannot read the file: it is tried again");
            metrics.error("read");
        }
    }

    /// How to look at it; to be called where it may block.
    pub(super) fn look(&self) -> impl FnOnce() -> Seen + Send + 'static {
        let (path, file, known, seen) = (Arc::clone(&self.path), self.file.clone(), self.known, self.seen);
        let plain = self.format == Some(Format::Plain);
        move || {
            let metadata = match file {
                Some(file) => file.metadata(),
                None => fs::metadata(&*path),
            };
            match metadata {
                Ok(metadata) if known.id.is_some_and(|id| id != FileId::of(&metadata)) => Seen::Same,
                Ok(metadata) if plain && metadata.len() < known.place.offset => Seen::Shorter,
                Ok(metadata) if !seen.is_some_and(|seen| seen.is_of(&metadata)) => Seen::Moved(metadata.len()),
                Ok(_) => Seen::Same,
                // The next listing tells what has become of it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => Seen::Same,
                Err(error) => Seen::Failed(error),
            }
        }
    }

    /// Heeds what a look showed; a file that is cut off is refused in the end.
    pub(super) fn heed_len(&mut self, len: Option<u64>, now: Instant, timestamp: Timestamp) -> Option<Pulled> {
        let Some(stalled) = &mut self.stalled else {
            self.ready |= len.is_some();
            return None;
        };
        let still = now.duration_since(stalled.since);
        match len {
            Some(len) if len != stalled.len => (stalled.len, stalled.since) = (len, now),
            Some(_) => self.ready = still >= SETTLED,
            None if still >= CUT_OFF => return self.refuse_rest(timestamp),
            None => {}
        }
        None
    }

    /// Of a compressed file that cannot be unpacked to its end: waits for the rest if it is cut off, which may be still
    /// on its way; anything else is refused.
    pub(super) fn stall(&mut self, error: Arc<io::Error>, now: Instant, timestamp: Timestamp) -> Option<Pulled> {
        let cut_off = error.kind() == io::ErrorKind::UnexpectedEof;
        let refused = self.stalled.as_ref().is_some_and(|stalled| stalled.refused);
        self.stalled = Some(Stalled { len: self.seen.map_or(0, |seen| seen.len), since: now, error, refused });
        if cut_off { None } else { self.refuse_rest(timestamp) }
    }

    /// Refuses what could not be unpacked, once. The position stays before it: a repaired file is read on.
    fn refuse_rest(&mut self, timestamp: Timestamp) -> Option<Pulled> {
        let stalled = self.stalled.as_mut()?;
        self.finished = true;
        if mem::replace(&mut stalled.refused, true) {
            return None;
        }
        let error = Arc::clone(&stalled.error);
        Some(self.refusal(&error, timestamp))
    }

    /// What stands behind the last line that could be read, and why it is refused.
    pub(super) fn refusal(&self, error: &io::Error, timestamp: Timestamp) -> Pulled {
        let mut batch = BatchBuilder::new(Arc::clone(&self.origin), 0, 1);
        let offset = self.position().0;
        batch.push_copy(Draft { body: self.cursor.beginning(), timestamp, offset, ..Draft::default() });
        let what = damage(error);
        let error = format!("`{}` cannot be read on from byte {offset} of what it holds: {what}", self.path);
        let refused = vec![Rejected { batch: batch.finish(), error }];
        Pulled { refused, ..Pulled::new(self.no_record(), self.position()) }
    }

    /// Opens the file, and says how long it is. Nothing is open if another file has the name by now.
    pub(super) async fn open(&mut self, runtime: &Runtime) -> io::Result<u64> {
        let path = Arc::clone(&self.path);
        let open = move || {
            let file = File::open(&*path)?;
            let metadata = file.metadata()?;
            let format = Format::of(&file)?;
            Ok::<_, io::Error>((Arc::new(file), FileId::of(&metadata), format, metadata.len()))
        };
        let (file, id, format, len) = runtime.blocking(open).await?;
        if *self.known.id.get_or_insert(id) == id {
            self.file = Some(file);
            self.format = format;
        }
        Ok(len)
    }

    pub(super) fn is_compressed(&self) -> bool {
        self.format.is_some_and(Format::is_compressed)
    }

    /// Whether something is left of the last read, which the next file should not wait behind.
    pub(super) fn holds_pieces(&self) -> bool {
        !self.pieces.is_empty()
    }

    /// The next batch of lines, or why there is none.
    pub(super) async fn read(&mut self, runtime: &Runtime, tail: Tail) -> Read {
        if self.pieces.is_empty()
            && let Some(outcome) = self.read_ahead(runtime, tail).await
        {
            return outcome;
        }
        let Some(Piece { batch, refused, end }) = self.pieces.pop_front() else { return Read::Nothing };
        self.known.place = end;
        let notes = if mem::replace(&mut self.said, true) {
            self.marks.of_place(end)
        } else {
            self.marks.of_known(&self.known)
        };
        Read::Pulled(Pulled { refused, notes, ..Pulled::new(batch, self.position()) })
    }

    /// Fills `pieces`, or says why nothing is in them.
    async fn read_ahead(&mut self, runtime: &Runtime, tail: Tail) -> Option<Read> {
        let Some(file) = self.file.clone() else {
            self.ready = false;
            return Some(Read::Nothing);
        };
        // A read that is abandoned takes the cursor with it; the next run puts another in its place.
        let mut cursor = self.cursor.take();
        let (origin, path, timestamp) = (Arc::clone(&self.origin), Arc::clone(&self.path), runtime.clock().timestamp());
        let (known_format, begun) = (self.format, self.known.place.offset > 0);
        let read = runtime.blocking(move || {
            let mut pieces = VecDeque::new();
            let begin = || -> io::Result<(Stamp, Option<Format>)> {
                let format = known_format.map_or_else(|| Format::of(&file), |format| Ok(Some(format)))?;
                Ok((Stamp::of(&file.metadata()?), format))
            };
            let (stamp, format) = match begin() {
                Ok((stamp, format)) => (Some(stamp), format),
                Err(error) => return (cursor, pieces, Stopped::Failed(Arc::new(error)), None, known_format),
            };
            // So little of it is written that nobody knows what it will be, unless something was read of it.
            let format = format.or((tail == Tail::Last || begun).then_some(Format::Plain));
            let Some(format) = format else { return (cursor, pieces, Stopped::AtEnd, stamp, None) };
            let tail = if format.is_compressed() { Tail::Last } else { tail };
            let reading = Reading { file, format, tail, timestamp, origin, path };
            let stopped = cursor.read(&reading, &mut pieces);
            (cursor, pieces, stopped, stamp, Some(format))
        });
        let (cursor, pieces, stopped, stamp, format) = read.await;
        self.cursor = cursor;
        self.pieces = pieces;
        self.format = format;
        if !self.pieces.is_empty() {
            self.complained = false;
            return None;
        }
        Some(match stopped {
            Stopped::Full => Read::Nothing,
            Stopped::AtEnd => {
                self.ready = false;
                self.stalled = None;
                let compressed = self.is_compressed();
                self.seen = stamp;
                // The line that waits for its newline is read again when the file has grown: many files may wait.
                self.cursor.rest();
                self.finished |= compressed;
                let whole = stamp.map(|stamp| stamp.len).filter(|_| compressed);
                self.complained = false;
                if mem::replace(&mut self.known.whole, whole) != whole {
                    return Some(Read::Pulled(self.say()));
                }
                Read::Nothing
            }
            Stopped::Changed => {
                self.ready = false;
                Read::Changed
            }
            Stopped::Failed(error) if self.is_compressed() && is_damage(&error) => {
                self.ready = false;
                self.seen = stamp;
                Read::Damaged(error)
            }
            Stopped::Failed(error) => {
                self.ready = false;
                Read::Failed(error)
            }
        })
    }

    /// Readies what could not be read or unpacked for another try, from where it is known.
    pub(super) fn try_again(&mut self) {
        self.cursor.go_to(self.known.place);
    }
}
