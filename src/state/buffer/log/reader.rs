//! The reader's side of the log: from a place on, past what is damaged, and no further than what is committed.

use std::fs;
use std::io::{self, ErrorKind};
use std::sync::Arc;

use super::super::frame::HEADER;
use super::super::segment::{Frames, Segment};
use super::{HINT, Inner, Log, Place};
use crate::record::{Batch, BatchBuilder, Partition};

/// Where a reader stands.
#[derive(Debug)]
pub struct Cursor {
    pub(super) position: u64,
    /// Records before it, as far as they are known.
    records: u64,
    /// So many records of the frame that it stands before were committed.
    skip: usize,
    open: Option<Frames>,
}

impl Log {
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
        let (position, skip) = self.frame_at(&inner, position)?;
        let records = self.records_before(&inner, position)?;
        inner.read = Place { position, records };
        self.remove_passed(&mut inner);
        drop(inner);
        // The commit that brought it here may never have been told: who waits for room looks again.
        self.moved.notify_waiters();
        Ok(Cursor { position, records, skip, open: None })
    }

    /// The place of the frame that a committed position is in, and how many of its records are committed. A position `n`
    /// places in front of the end of a frame says that `n` of its records are left.
    fn frame_at(&self, inner: &Inner, position: u64) -> io::Result<(u64, usize)> {
        let Some((segment, end)) = inner.segment_at(position) else { return Ok((position, 0)) };
        let frames = match Frames::open(&self.folder, segment) {
            Ok(frames) => frames,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok((position, 0)),
            Err(error) => return Err(error),
        };
        if frames.header(position, end)?.is_some() {
            return Ok((position, 0));
        }
        let mut at = segment.base;
        while at < position {
            match frames.header(at, end)? {
                Some(header) if header.end(at) > position => {
                    let left = header.end(at) - position;
                    let skip = u64::from(header.records).saturating_sub(left);
                    return Ok((at, usize::try_from(skip).unwrap_or(0)));
                }
                Some(header) => at = header.end(at),
                None => at = frames.next(at + 1, end)?,
            }
        }
        Ok((position, 0))
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
                        let path = segment.path(&self.folder);
                        self.note_damage(format!(
                            "the segment `{}` of the buffer is gone: what it held is lost",
                            path.display()
                        ));
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
            let skip = std::mem::take(&mut cursor.skip);
            if let (Some(header), Some(batch)) = (header, batch) {
                let left = batch.records().get(skip..).unwrap_or_default().to_vec();
                let batch = if skip == 0 { batch } else { batch.with_records(left) };
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
            match fs::rename(segment.path(&self.folder), aside.path(&self.folder)) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            inner.unsynced_names = true;
            inner.segments[at] = aside;
            if at + 1 == inner.segments.len() {
                inner.active = None;
            }
            self.seen().damaged += 1;
        }
        drop(inner);
        let path = Segment { damaged: true, ..segment }.path(&self.folder);
        self.note_damage(format!(
            "the segment `{}` of the buffer, kept under this name, is damaged: {bytes} bytes at {} cannot be read and are \
             passed over",
            path.display(),
            position - segment.base
        ));
        Ok(())
    }

    fn note_damage(&self, words: String) {
        tracing::error!("{words}; the rest of the buffer goes on");
        self.seen().damage = Some(words);
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
        self.until(|seen| {
            let has_more = seen.places.visible.position > position;
            (has_more || seen.finished).then_some(has_more)
        })
        .await
    }
}

impl Cursor {
    pub(super) fn place(&self) -> Place {
        Place { position: self.position, records: self.records }
    }
}

/// A batch without a record.
fn nothing() -> Batch {
    let nowhere = Partition { source: "".into(), topic: "".into(), number: 0 };
    BatchBuilder::new(Arc::new(nowhere), 0, 0).finish()
}
