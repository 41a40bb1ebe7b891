//! Reads blocks of a file and cuts them into batches. Everything here may block.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::mem;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::clients::lines::{BLOCK_BYTES, Cutter, Tail};
use crate::record::{Batch, BatchBuilder, Partition, Timestamp};

/// Blocks that are read in one go: waking the thread that reads costs as much as reading a block.
const BLOCKS: usize = 4;

/// Why reading stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stopped {
    /// That is enough for once.
    Full,
    /// Nothing more is there.
    AtEnd,
    /// The next line is longer than allowed.
    TooLong,
}

/// A place in a file, and what was read already from there on.
#[derive(Debug)]
pub(super) struct Cursor {
    cutter: Cutter,
    /// The start of the next line.
    offset: u64,
    /// What was read from there on.
    carry: Vec<u8>,
    /// Whether `carry` holds whole lines.
    more: bool,
}

impl Cursor {
    pub(super) fn new(max_line_bytes: usize) -> Self {
        Self { cutter: Cutter { max_line_bytes, expected: 0 }, offset: 0, carry: Vec::new(), more: false }
    }

    pub(super) fn go_to(&mut self, offset: u64) {
        *self = Self { cutter: self.cutter, offset, carry: Vec::new(), more: false };
    }

    pub(super) fn take(&mut self) -> Self {
        let (cutter, offset) = (self.cutter, self.offset);
        mem::replace(self, Self { cutter, offset, carry: Vec::new(), more: false })
    }

    pub(super) fn max_line_bytes(&self) -> usize {
        self.cutter.max_line_bytes
    }

    /// The end of what was read, a line without its newline included.
    pub(super) fn read_to(&self) -> u64 {
        self.offset + self.carry.len() as u64
    }

    /// Adds batches of whole lines, each with the offset behind it.
    pub(super) fn read(
        &mut self,
        file: &File,
        tail: Tail,
        timestamp: Timestamp,
        origin: &Arc<Partition>,
        batches: &mut VecDeque<(Batch, u64)>,
    ) -> io::Result<Stopped> {
        while batches.len() < BLOCKS {
            let want = if self.more { 0 } else { BLOCK_BYTES };
            let (mut block, at_end) = read_block(file, mem::take(&mut self.carry), self.offset, want)?;
            let tail = if at_end { tail } else { Tail::Open };
            let cut = self.cutter.cut(&block, self.offset, timestamp, tail);
            self.more = cut.more;
            self.carry = block[cut.end..].to_vec();
            if cut.end > 0 {
                // Records point into the block as it was read: nothing is copied but the start of the next line.
                block.truncate(cut.end);
                let batch = BatchBuilder::over(Arc::clone(origin), block, 0).finish().with_records(cut.records);
                self.offset += cut.end as u64;
                batches.push_back((batch, self.offset));
            } else if cut.too_long {
                return Ok(Stopped::TooLong);
            } else if at_end {
                return Ok(Stopped::AtEnd);
            }
        }
        Ok(Stopped::Full)
    }
}

/// Reads up to `want` bytes behind those that were read already, and says whether the file ended there.
fn read_block(file: &File, mut block: Vec<u8>, offset: u64, want: usize) -> io::Result<(Vec<u8>, bool)> {
    let mut filled = block.len();
    block.resize(filled + want, 0);
    while filled < block.len() {
        match file.read_at(&mut block[filled..], offset + filled as u64) {
            Ok(0) => {
                block.truncate(filled);
                return Ok((block, true));
            }
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok((block, false))
}
