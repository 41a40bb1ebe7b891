//! A segment: one file of the log, named for the place in the log at which it begins. It holds frames, one behind the
//! other, and nothing else.
//!
//! What is wrong in a segment costs the frames that are wrong: a reader looks for the next one that is sound.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::frame::{HEADER, Header, MAGIC};
use crate::record::Batch;

const SOUND: &str = "segment";
const DAMAGED: &str = "damaged";
/// How much is read at once when the next sound frame is looked for.
const SEARCH: usize = 1 << 20;
/// A sector that cannot be read. The standard library has no name for it.
const EIO: i32 = 5;

/// One file of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Segment {
    /// Where it begins in the log.
    pub(super) base: u64,
    /// Whether it was set aside: what is sound in it is still read, and it is kept for a person to look at.
    pub(super) damaged: bool,
}

impl Segment {
    pub(super) fn path(self, folder: &Path) -> PathBuf {
        folder.join(format!("{:020}.{}", self.base, if self.damaged { DAMAGED } else { SOUND }))
    }

    /// The segment that a file is, by its name.
    fn of(path: &Path) -> Option<Self> {
        let (base, kind) = path.file_name()?.to_str()?.split_once('.')?;
        let is_place = base.len() == 20 && base.bytes().all(|digit| digit.is_ascii_digit());
        let base = base.parse().ok().filter(|_| is_place)?;
        [SOUND, DAMAGED].contains(&kind).then_some(Self { base, damaged: kind == DAMAGED })
    }
}

/// The segments of a folder, by their places.
pub(super) fn list(folder: &Path) -> io::Result<Vec<Segment>> {
    let mut segments = Vec::new();
    for entry in fs::read_dir(folder)? {
        segments.extend(Segment::of(&entry?.path()));
    }
    segments.sort_unstable();
    segments.dedup_by_key(|segment| segment.base);
    Ok(segments)
}

/// Reads frames of a segment.
#[derive(Debug)]
pub(super) struct Frames {
    file: File,
    base: u64,
}

impl Frames {
    pub(super) fn open(folder: &Path, segment: Segment) -> io::Result<Self> {
        Ok(Self { file: File::open(segment.path(folder))?, base: segment.base })
    }

    pub(super) fn base(&self) -> u64 {
        self.base
    }

    /// The header of the frame at a place. `None` if no sound one that ends before `end` stands there.
    pub(super) fn header(&self, position: u64, end: u64) -> io::Result<Option<Header>> {
        let mut bytes = [0; HEADER];
        if end.saturating_sub(position) < HEADER as u64 || !self.read(&mut bytes, position)? {
            return Ok(None);
        }
        Ok(Header::decode(&bytes, position).filter(|header| header.end(position) <= end))
    }

    /// The batch of the frame at a place. `None` if it is not what was written.
    pub(super) fn batch(&self, header: &Header, position: u64) -> io::Result<Option<Batch>> {
        let mut body = vec![0; header.len as usize];
        let whole = self.read(&mut body, position + HEADER as u64)?;
        Ok(if whole { header.read(body) } else { None })
    }

    /// The place of the next sound header from a place on; `end` if there is none.
    pub(super) fn next(&self, from: u64, end: u64) -> io::Result<u64> {
        let mut at = from;
        while end.saturating_sub(at) >= HEADER as u64 {
            let len = usize::try_from(end - at).unwrap_or(SEARCH).min(SEARCH);
            let mut bytes = vec![0; len];
            let read = self.read_some(&mut bytes, at)?;
            for found in memchr::memmem::find_iter(&bytes[..read], &MAGIC) {
                let position = at + found as u64;
                if self.header(position, end)?.is_some() {
                    return Ok(position);
                }
            }
            // What begins one may stand across the edge. Where nothing can be read, the search goes on behind it.
            at += (len - (MAGIC.len() - 1)) as u64;
        }
        Ok(end)
    }

    /// The place behind the last sound frame that is in a row with the first, and the records up to there.
    pub(super) fn sound_end(&self) -> io::Result<(u64, Option<u64>)> {
        let end = self.end()?;
        let (mut at, mut records) = (self.base, None);
        while let Some(header) = self.header(at, end)? {
            at = header.end(at);
            records = Some(header.after());
        }
        Ok((at, records))
    }

    /// The place of the end of the file.
    pub(super) fn end(&self) -> io::Result<u64> {
        Ok(self.base.saturating_add(self.file.metadata()?.len()))
    }

    /// Fills the buffer. False if these bytes are not there, or the disk cannot read them any more.
    fn read(&self, bytes: &mut [u8], position: u64) -> io::Result<bool> {
        let at = position.saturating_sub(self.base);
        match self.file.read_exact_at(bytes, at) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof || error.raw_os_error() == Some(EIO) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Reads what is there of these bytes.
    fn read_some(&self, bytes: &mut [u8], position: u64) -> io::Result<usize> {
        let mut read = 0;
        while read < bytes.len() {
            let at = position.saturating_sub(self.base) + read as u64;
            match self.file.read_at(&mut bytes[read..], at) {
                Ok(0) => break,
                Ok(more) => read += more,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(EIO) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(read)
    }
}
