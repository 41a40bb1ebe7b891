//! One file, read line by line from a place on, and what a look at it shows.

use std::collections::VecDeque;
use std::fs::{self, File, Metadata};
use std::io;
use std::mem;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use super::cursor::{Cursor, Stopped};
use super::listing::retry;
use crate::clients::lines::{Tail, past_last_newline};
use crate::clock::Instant;
use crate::component::{Pulled, SourceError};
use crate::observe::StageMetrics;
use crate::record::{Batch, BatchBuilder, Partition, Position};
use crate::runtime::Runtime;

/// A position, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Place {
    /// How often the file began anew.
    pub(super) generation: i64,
    /// Bytes from its beginning.
    pub(super) offset: u64,
}

impl Place {
    /// 16 TiB a file, which is as much as ext4 can hold, and half a million generations.
    const OFFSET_BITS: u32 = 44;

    pub(super) fn of(position: Position) -> Self {
        let offset = position.0 & ((1 << Self::OFFSET_BITS) - 1);
        Self { generation: position.0 >> Self::OFFSET_BITS, offset: offset.unsigned_abs() }
    }

    pub(super) fn position(self) -> Option<Position> {
        let fits = self.offset < 1 << Self::OFFSET_BITS && self.generation < 1 << (63 - Self::OFFSET_BITS);
        fits.then(|| Position((self.generation << Self::OFFSET_BITS) | self.offset.cast_signed()))
    }
}

/// Which file it is, whatever its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }
}

/// What a look at a file showed.
pub(super) enum Seen {
    /// Nothing new.
    Same,
    /// There is something to read.
    Ready(FileId),
    /// It is shorter than what was read of it.
    Truncated,
    /// Another file has its name.
    Replaced,
    /// No file has its name.
    Missing,
    /// It cannot be looked at.
    Failed(io::Error),
}

/// Reads one file, line by line, from a place on.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) origin: Arc<Partition>,
    /// Where it was begun.
    pub(super) first: Place,
    /// The start of the next line.
    pub(super) place: Place,
    /// Where the next block begins; ahead of `place` by what is in `batches`.
    cursor: Cursor,
    /// Read and not handed on yet, each with the offset behind it.
    batches: VecDeque<(Batch, u64)>,
    /// The end of what was read, a line without its newline included.
    read_to: u64,
    /// Closed where too many are open; opened again when there is something to read.
    pub(super) file: Option<Arc<File>>,
    /// Which file it is, once it was seen.
    pub(super) id: Option<FileId>,
    /// Whether there is something to read.
    pub(super) ready: bool,
    /// Since when another file, or none, has its name.
    pub(super) replaced_since: Option<Instant>,
    /// Whether an error was logged that has not gone away since.
    complained: bool,
}

impl Reader {
    pub(super) fn new(origin: Partition, max_line_bytes: usize) -> Self {
        Self {
            origin: Arc::new(origin),
            first: Place::default(),
            place: Place::default(),
            cursor: Cursor::new(max_line_bytes),
            batches: VecDeque::new(),
            read_to: 0,
            file: None,
            id: None,
            ready: false,
            replaced_since: None,
            complained: false,
        }
    }

    fn path(&self) -> &Arc<str> {
        &self.origin.topic
    }

    /// Goes on from a place in the file that is open, or that has the path.
    pub(super) fn take_up(&mut self, place: Place) {
        self.place = place;
        self.cursor.go_to(place.offset);
        self.batches.clear();
        self.read_to = place.offset;
        // It is opened even if it has not grown, so that its end can be read after it was replaced.
        self.ready = self.id.is_some();
        self.replaced_since = None;
    }

    /// Begins a new generation, and says so: after a crash nobody would know.
    pub(super) fn begin_anew(&mut self) -> Result<Pulled, SourceError> {
        self.take_up(Place { generation: self.place.generation + 1, offset: 0 });
        self.moved_to(self.place)
    }

    /// No record, but a new position.
    pub(super) fn moved_to(&self, place: Place) -> Result<Pulled, SourceError> {
        let batch = BatchBuilder::new(Arc::clone(&self.origin), 0, 0).finish();
        Ok(Pulled { batch, position: self.position(place)?, read_from: None })
    }

    fn position(&self, place: Place) -> Result<Position, SourceError> {
        place.position().ok_or_else(|| {
            let path = self.path();
            SourceError::Fatal(format!("`{path}` is larger than 16 TiB, or began anew too often: give it another name"))
        })
    }

    /// Logs an error once, until it has gone away: one file must not hold up the others.
    pub(super) fn complain(&mut self, component: &str, metrics: &StageMetrics, error: &io::Error) {
        self.ready = false;
        if !mem::replace(&mut self.complained, true) {
            tracing::warn!(component, path = &**self.path(), %error, "cannot read the file: it is tried again");
            metrics.error("read");
        }
    }

    /// How to look at it; to be called where it may block.
    pub(super) fn look(&self) -> impl FnOnce() -> Seen + Send + 'static {
        let (path, file, id) = (Arc::clone(self.path()), self.file.clone(), self.id);
        let (offset, read_to) = (self.place.offset, self.read_to);
        let judge = move |metadata: &Metadata| {
            let id = FileId::of(metadata);
            match metadata.len() {
                len if len < offset => Seen::Truncated,
                len if len != read_to => Seen::Ready(id),
                _ => Seen::Same,
            }
        };
        move || {
            // What is open is read to its end before it matters who has its name now.
            if let Some(file) = file {
                match file.metadata().map(|metadata| judge(&metadata)) {
                    Ok(Seen::Same) => {}
                    Ok(news) => return news,
                    Err(error) => return Seen::Failed(error),
                }
            }
            match fs::metadata(&*path) {
                Ok(metadata) if id.is_some_and(|id| id != FileId::of(&metadata)) => Seen::Replaced,
                Ok(metadata) => match judge(&metadata) {
                    Seen::Same if id.is_none() => Seen::Ready(FileId::of(&metadata)),
                    seen => seen,
                },
                Err(error) if error.kind() == io::ErrorKind::NotFound => Seen::Missing,
                Err(error) => Seen::Failed(error),
            }
        }
    }

    /// Opens the file, and says how long it is. Nothing is open if another file has the name by now.
    pub(super) async fn open(&mut self, runtime: &Runtime) -> io::Result<u64> {
        let path = Arc::clone(self.path());
        let open = move || {
            let file = File::open(&*path)?;
            let metadata = file.metadata()?;
            Ok::<_, io::Error>((Arc::new(file), FileId::of(&metadata), metadata.len()))
        };
        let (file, id, len) = runtime.blocking(open).await?;
        if *self.id.get_or_insert(id) == id {
            self.file = Some(file);
        }
        Ok(len)
    }

    /// Whether batches are left of the last read, which the next file should not wait behind.
    pub(super) fn holds_batches(&self) -> bool {
        !self.batches.is_empty()
    }

    /// The next batch of lines; `None` at the end of the file.
    pub(super) async fn read(&mut self, runtime: &Runtime, tail: Tail) -> Result<Option<Pulled>, SourceError> {
        if self.batches.is_empty() {
            self.read_ahead(runtime, tail).await?;
        }
        let Some((batch, offset)) = self.batches.pop_front() else { return Ok(None) };
        self.place.offset = offset;
        Ok(Some(Pulled { batch, position: self.position(self.place)?, read_from: None }))
    }

    async fn read_ahead(&mut self, runtime: &Runtime, tail: Tail) -> Result<(), SourceError> {
        let Some(file) = self.file.clone() else {
            self.ready = false;
            return Ok(());
        };
        // A read that is abandoned takes the cursor with it; the next run puts another in its place.
        let mut cursor = self.cursor.take();
        let (origin, timestamp) = (Arc::clone(&self.origin), runtime.clock().timestamp());
        let read = runtime.blocking(move || {
            let mut batches = VecDeque::new();
            let stopped = cursor.read(&file, tail, timestamp, &origin, &mut batches);
            (cursor, batches, stopped)
        });
        let (cursor, batches, stopped) = read.await;
        self.cursor = cursor;
        self.batches = batches;
        match stopped {
            _ if !self.batches.is_empty() => Ok(()),
            Ok(Stopped::Full) => Ok(()),
            Ok(Stopped::AtEnd) => {
                self.ready = false;
                self.read_to = self.cursor.read_to();
                // The line that waits for its newline is read again when the file has grown: many files may wait.
                self.cursor.go_to(self.place.offset);
                Ok(())
            }
            Ok(Stopped::TooLong) => Err(SourceError::Fatal(format!(
                "the line at byte {} of `{}` is longer than {} bytes: raise `max_line_bytes`",
                self.place.offset,
                self.path(),
                self.cursor.max_line_bytes()
            ))),
            Err(error) => Err(retry(self.path(), "cannot read", &error)),
        }
    }
}

/// Where the last whole line of a file ends; 0 if there is no file yet.
pub(super) fn end_of_lines(path: &str) -> io::Result<u64> {
    match File::open(path) {
        Ok(file) => past_last_newline(&file, file.metadata()?.len()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
}
