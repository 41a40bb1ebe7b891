//! Reads blocks of a file and cuts them into batches. Everything here may block.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::mem;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::identity::{Place, Window};
use crate::clients::lines::{BLOCK_BYTES, Cutter, LongLine, Tail};
use crate::clients::packed::{Format, Unpacker};
use crate::component::Rejected;
use crate::record::{Batch, BatchBuilder, Partition, Timestamp};

/// Batches that are read in one go: waking the thread that reads costs as much as reading a block.
const PIECES: usize = 4;
/// Blocks that are read in one go where a line that is refused fills them.
const BLOCKS: usize = 64;

/// Why reading stopped.
#[derive(Debug)]
pub(super) enum Stopped {
    /// That is enough for once.
    Full,
    /// Nothing more is there.
    AtEnd,
    /// The file does not hold what was read of it.
    Changed,
    /// It cannot be read, or what it holds cannot be unpacked.
    Failed(Arc<io::Error>),
}

/// What was read: lines, then perhaps one that is refused, and the place behind them.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) batch: Batch,
    pub(super) refused: Vec<Rejected>,
    pub(super) end: Place,
}

/// What a cursor reads from, and how its lines are named.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) file: Arc<File>,
    pub(super) format: Format,
    pub(super) tail: Tail,
    pub(super) timestamp: Timestamp,
    pub(super) origin: Arc<Partition>,
    pub(super) path: Arc<str>,
}

/// A place in a file, and what was read already from there on.
#[derive(Debug)]
pub(super) struct Cursor {
    cutter: Cutter,
    /// The start of the next line.
    place: Place,
    /// What stands before it; `None` where it was not read yet.
    window: Option<Window>,
    /// What was read from there on.
    carry: Vec<u8>,
    /// Whether `carry` holds whole lines.
    more: bool,
    /// The line that begins there, if it is longer than allowed, and the window behind what was read of it.
    long: Option<(LongLine, Window)>,
    /// Of a compressed file: what unpacks it, behind what was read.
    unpacker: Option<Unpacker>,
    /// What came behind the bytes that were read.
    failure: Option<Arc<io::Error>>,
}

impl Cursor {
    pub(super) fn new(max_line_bytes: usize) -> Self {
        Self::at(Cutter { max_line_bytes, expected: 0 }, Place::start())
    }

    fn at(cutter: Cutter, place: Place) -> Self {
        let (window, long, unpacker, failure) = (None, None, None, None);
        Self { cutter, place, window, carry: Vec::new(), more: false, long, unpacker, failure }
    }

    pub(super) fn go_to(&mut self, place: Place) {
        *self = Self::at(self.cutter, place);
    }

    pub(super) fn take(&mut self) -> Self {
        let empty = Self::at(self.cutter, self.place);
        mem::replace(self, empty)
    }

    /// The end of what was read, a line without its newline included.
    fn read_to(&self) -> u64 {
        let line = self.long.as_ref().map_or(self.place.offset, |(long, _)| long.end());
        line + self.carry.len() as u64
    }

    /// Lets go of a line that waits for its end: it is read again when there is more of it. Of one that is too long only
    /// the beginning is held, and that is kept.
    pub(super) fn rest(&mut self) {
        if self.long.is_none() {
            self.go_to(self.place);
        }
    }

    /// What stands at the start of the next line, up to what a dead letter holds.
    pub(super) fn beginning(&self) -> &[u8] {
        &self.carry[..self.carry.len().min(LongLine::KEPT_BYTES)]
    }

    /// Adds batches of whole lines, each with the place behind it.
    pub(super) fn read(&mut self, reading: &Reading, pieces: &mut VecDeque<Piece>) -> Stopped {
        match self.find_place(reading) {
            Ok(true) => {}
            Ok(false) => return Stopped::Changed,
            Err(error) => return Stopped::Failed(Arc::new(error)),
        }
        for _ in 0..BLOCKS {
            if pieces.len() == PIECES {
                break;
            }
            let at_end = match self.fill(reading) {
                Ok(at_end) => at_end,
                Err(error) => return Stopped::Failed(error),
            };
            if self.long.is_some() {
                if let Some(piece) = self.read_long(reading, at_end) {
                    pieces.push_back(piece);
                } else if at_end {
                    return Stopped::AtEnd;
                }
                continue;
            }
            let tail = if at_end { reading.tail } else { Tail::Open };
            let cut = self.cutter.cut(&self.carry, self.place.offset, reading.timestamp, tail);
            self.more = cut.more;
            if cut.end > 0 {
                // Records point into the block as it was read: nothing is copied but the start of the next line.
                let rest = self.carry[cut.end..].to_vec();
                let mut block = mem::replace(&mut self.carry, rest);
                block.truncate(cut.end);
                let window = self.window.get_or_insert_default();
                window.push(&block);
                self.place = Place::behind(self.place.offset + cut.end as u64, window);
                let batch = BatchBuilder::over(Arc::clone(&reading.origin), block, 0).finish();
                let batch = batch.with_records(cut.records);
                pieces.push_back(Piece { batch, refused: Vec::new(), end: self.place });
            } else if cut.too_long {
                let window = self.window.clone().unwrap_or_default();
                self.long = Some((LongLine::at(self.place.offset), window));
                if let Some(piece) = self.read_long(reading, at_end) {
                    pieces.push_back(piece);
                }
            } else if at_end {
                return Stopped::AtEnd;
            }
        }
        Stopped::Full
    }

    /// Sees to it that the file holds before the place what was read there: it may have been written anew.
    fn find_place(&mut self, reading: &Reading) -> io::Result<bool> {
        let Place { offset, proof } = self.place;
        if !reading.format.is_compressed() {
            let Some(window) = Window::before(&reading.file, offset)? else { return Ok(false) };
            let unchanged = match proof {
                None => true,
                Some(proof) if proof.at == offset => window.is(proof),
                Some(proof) => Window::before(&reading.file, proof.at)?.is_some_and(|window| window.is(proof)),
            };
            self.window = Some(window);
            return Ok(unchanged);
        }
        if self.unpacker.is_some() || self.failure.is_some() {
            return Ok(true);
        }
        let mut unpacker = Unpacker::start(&reading.file, reading.format)?;
        let (mut at, mut window) = (0, Window::default());
        if let Some(proof) = proof {
            unpacker.skip(&mut at, proof.at, &mut |bytes| window.push(bytes))?;
            if at != proof.at || !window.is(proof) {
                return Ok(false);
            }
        }
        unpacker.skip(&mut at, offset, &mut |bytes| window.push(bytes))?;
        self.window = Some(window);
        self.unpacker = Some(unpacker);
        Ok(at == offset)
    }

    /// Reads one more block behind what was read already, and says whether the file ended there.
    fn fill(&mut self, reading: &Reading) -> Result<bool, Arc<io::Error>> {
        if let Some(error) = &self.failure {
            return Err(Arc::clone(error));
        }
        if self.more {
            return Ok(false);
        }
        let mut at = self.read_to();
        let mut filled = self.carry.len();
        self.carry.resize(filled + BLOCK_BYTES, 0);
        while filled < self.carry.len() {
            let room = &mut self.carry[filled..];
            let read = match &mut self.unpacker {
                Some(unpacker) => unpacker.read(room),
                None => reading.file.read_at(room, at),
            };
            match read {
                Ok(0) => {
                    self.carry.truncate(filled);
                    return Ok(true);
                }
                Ok(read) => {
                    filled += read;
                    at += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    // The lines before it are told first.
                    self.carry.truncate(filled);
                    self.failure = Some(Arc::new(error));
                    return Ok(false);
                }
            }
        }
        Ok(false)
    }

    /// Reads on in the line that is too long; at its end it is refused.
    fn read_long(&mut self, reading: &Reading, at_end: bool) -> Option<Piece> {
        let (long, window) = self.long.as_mut()?;
        let read = long.read(&self.carry);
        window.push(&self.carry[..read]);
        self.carry.drain(..read);
        let ended = long.has_ended() || (at_end && reading.tail == Tail::Last);
        let (long, window) = self.long.take_if(|_| ended)?;
        self.more = !self.carry.is_empty();
        self.place = Place::behind(long.end(), &window);
        self.window = Some(window);
        let place = format!("`{}`", reading.path);
        let refused = long.refuse(&reading.origin, reading.timestamp, &place, self.cutter.max_line_bytes);
        let batch = BatchBuilder::new(Arc::clone(&reading.origin), 0, 0).finish();
        Some(Piece { batch, refused: vec![refused], end: self.place })
    }
}
