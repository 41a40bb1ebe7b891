//! Lines: cut from blocks of bytes, found in files, made of records.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use memchr::{memchr, memchr_iter, memrchr};

use crate::codecs::Codec;
use crate::component::{Refusal, Rejected, Settled};
use crate::delivery::CUT_FROM_BYTES;
use crate::record::{Batch, BatchBuilder, ByteRange, Draft, HeadersBuilder, Partition, Record, Timestamp};

/// How much is read at once. Large enough that costs per batch vanish, small enough to stay in the cache.
pub(crate) const BLOCK_BYTES: usize = 256 << 10;
/// A batch of very short lines ends here: a record's own size is many times theirs.
const MAX_RECORDS: usize = 16 << 10;

/// What the end of a block means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tail {
    /// More may follow: what stands behind the last newline waits for its own.
    Open,
    /// Nothing follows: what stands behind the last newline is a line too.
    Last,
}

/// The lines of one block.
#[derive(Debug, Default)]
pub(crate) struct Cut {
    /// A record for each line that is not empty.
    pub(crate) records: Vec<Record>,
    /// How many bytes of the block were cut into lines.
    pub(crate) end: usize,
    /// Whether whole lines are left behind `end`.
    pub(crate) more: bool,
    /// Whether the line that begins at `end` is longer than allowed.
    pub(crate) too_long: bool,
}

/// How lines are cut.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cutter {
    /// The longest line, without its line end.
    pub(crate) max_line_bytes: usize,
    /// How many records the last block had: the guess for the next one.
    pub(crate) expected: usize,
}

impl Cutter {
    /// Cuts a block that begins at a line's start, which is byte `base` of its file.
    ///
    /// A line ends with `\n` or `\r\n`. Empty lines are no records.
    pub(crate) fn cut(&mut self, block: &[u8], base: u64, timestamp: Timestamp, tail: Tail) -> Cut {
        let mut cut = Cut { records: Vec::with_capacity(self.expected), ..Cut::default() };
        let mut start = 0;
        let ends = memchr_iter(b'\n', block);
        let last = (tail == Tail::Last && block.last().is_some_and(|&byte| byte != b'\n')).then_some(block.len());
        for end in ends.chain(last) {
            if cut.records.len() == MAX_RECORDS {
                cut.more = true;
                break;
            }
            let line_end = if end > start && block[end - 1] == b'\r' { end - 1 } else { end };
            if line_end - start > self.max_line_bytes {
                cut.too_long = true;
                break;
            }
            if line_end > start {
                cut.records.push(Record {
                    body: ByteRange::new(start, line_end),
                    timestamp,
                    offset: i64::try_from(base).unwrap_or(i64::MAX).saturating_add_unsigned(start as u64),
                    ..Record::default()
                });
            }
            start = (end + 1).min(block.len());
        }
        cut.end = start;
        // One more than allowed may be the `\r` of a line end that is not read yet.
        cut.too_long |= !cut.more && block.len() - start > self.max_line_bytes + 1;
        self.expected = cut.records.len() + cut.records.len() / 8 + 16;
        cut
    }
}

/// A line that is longer than allowed. It is read to its end and refused; only its beginning is kept.
#[derive(Debug)]
pub(crate) struct LongLine {
    /// Where it begins.
    start: u64,
    beginning: Vec<u8>,
    /// What was read of it, its line end included.
    read: u64,
    ended: bool,
}

impl LongLine {
    /// How much of it a dead letter holds: enough to know it by.
    pub(crate) const KEPT_BYTES: usize = 16 << 10;

    /// One that begins at byte `start`.
    pub(crate) fn at(start: u64) -> Self {
        Self { start, beginning: Vec::new(), read: 0, ended: false }
    }

    /// Reads on in it, and says how many bytes of the block belong to it.
    pub(crate) fn read(&mut self, block: &[u8]) -> usize {
        let newline = memchr(b'\n', block);
        let bytes = newline.map_or(block.len(), |at| at + 1);
        let kept = newline.unwrap_or(bytes).min(Self::KEPT_BYTES - self.beginning.len());
        self.beginning.extend_from_slice(&block[..kept]);
        self.read += bytes as u64;
        self.ended |= newline.is_some();
        bytes
    }

    /// Whether its line end was read.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Where what follows it begins, or what was not read of it yet.
    pub(crate) fn end(&self) -> u64 {
        self.start + self.read
    }

    /// The record that is refused. `place` names what it was read from.
    pub(crate) fn refuse(
        self,
        origin: &Arc<Partition>,
        timestamp: Timestamp,
        place: &str,
        max_line_bytes: usize,
    ) -> Rejected {
        let length = self.read - u64::from(self.ended);
        let mut headers = HeadersBuilder::default();
        headers.push(CUT_FROM_BYTES.as_bytes(), Some(length.to_string().as_bytes()));
        let mut batch = BatchBuilder::new(Arc::clone(origin), self.beginning.len() + 64, 1);
        batch.push_copy(Draft {
            body: &self.beginning,
            headers: headers.encoded(),
            timestamp,
            offset: i64::try_from(self.start).unwrap_or(i64::MAX),
            ..Draft::default()
        });
        let error = format!(
            "the line at byte {} of {place} has {length} bytes, and {max_line_bytes} are the most that is read of one",
            self.start
        );
        Rejected { batch: batch.finish(), error }
    }
}

/// The offset just past the last newline before `len`; 0 if there is none.
pub(crate) fn past_last_newline(file: &File, len: u64) -> io::Result<u64> {
    let mut block = vec![0; 64 << 10];
    let mut end = len;
    while end > 0 {
        let start = end.saturating_sub(block.len() as u64);
        let part = &mut block[..usize::try_from(end - start).expect("at most one block")];
        file.read_exact_at(part, start)?;
        if let Some(at) = memrchr(b'\n', part) {
            return Ok(start + at as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

/// Appends a line for each record. A record that has no form as a line is refused, and leaves no trace.
pub(crate) fn encode(codec: Codec, batch: &Batch, lines: &mut Vec<u8>) -> Settled {
    let mut settled = Settled::all();
    lines.reserve(batch.bytes().len() + batch.len());
    for (index, record) in batch.records().iter().enumerate() {
        if let Err(error) = encode_one(codec, batch, record, lines) {
            settled.refused.push(Refusal { record: index, error });
        }
    }
    settled
}

/// Appends a line for one record.
///
/// # Errors
/// Why the record has no form as a line; nothing is appended then.
pub(crate) fn encode_one(codec: Codec, batch: &Batch, record: &Record, lines: &mut Vec<u8>) -> Result<(), String> {
    let start = lines.len();
    let encoded = codec.encode(batch, record, lines).and_then(|()| in_one_line(codec, &mut lines[start..]));
    match encoded {
        Ok(()) => lines.push(b'\n'),
        Err(_) => lines.truncate(start),
    }
    encoded
}

/// Sees to it that a text is one line.
fn in_one_line(codec: Codec, text: &mut [u8]) -> Result<(), String> {
    if memchr(b'\n', text).is_none() {
        return Ok(());
    }
    match codec {
        // In valid JSON a line end can only stand between values: in a string it is written `\n`.
        Codec::Json => {
            text.iter_mut().filter(|byte| **byte == b'\n').for_each(|byte| *byte = b' ');
            Ok(())
        }
        Codec::Raw => Err("the record holds a line end, and each line is one record".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn cut(text: &str, tail: Tail) -> (Vec<&str>, usize, bool) {
        let mut cutter = Cutter { max_line_bytes: 8, expected: 0 };
        let cut = cutter.cut(text.as_bytes(), 100, Timestamp(7), tail);
        for record in &cut.records {
            assert_eq!((record.offset, record.timestamp), (100 + i64::from(record.body.start), Timestamp(7)));
        }
        (cut.records.iter().map(|record| &text[record.body.range()]).collect(), cut.end, cut.too_long)
    }

    #[test]
    fn lines_end_with_either_line_end_and_empty_ones_are_no_records() {
        assert_eq!(cut("a\nb\r\n\n\r\nc", Tail::Open), (vec!["a", "b"], 8, false));
        assert_eq!(cut("a\nb\r\n\n\r\nc", Tail::Last), (vec!["a", "b", "c"], 9, false));
        assert_eq!(cut("a\rb\n", Tail::Last), (vec!["a\rb"], 4, false));
        assert_eq!(cut("a\r", Tail::Open), (vec![], 0, false));
        assert_eq!(cut("a\r", Tail::Last), (vec!["a"], 2, false));
        assert_eq!(cut("", Tail::Last), (vec![], 0, false));
    }

    #[test]
    fn a_line_that_is_too_long_is_found_wherever_the_block_ends() {
        assert_eq!(cut("a\n12345678\r\n", Tail::Open), (vec!["a", "12345678"], 12, false));
        assert_eq!(cut("a\n12345678\r", Tail::Open), (vec!["a"], 2, false));
        assert_eq!(cut("a\n123456789\nb\n", Tail::Open), (vec!["a"], 2, true));
        assert_eq!(cut("a\n123456789", Tail::Last), (vec!["a"], 2, true));
        assert_eq!(cut("a\n1234567890", Tail::Open), (vec!["a"], 2, true));
    }

    #[test]
    fn a_long_line_is_refused_with_its_beginning_and_its_length_wherever_its_blocks_end() {
        let text = format!("{}\nnext", "x".repeat(100_000));
        for block in [1000, 65536, text.len()] {
            let mut line = LongLine::at(7);
            for part in text.as_bytes().chunks(block) {
                let read = line.read(part);
                if line.has_ended() {
                    assert!(part[read..].is_empty() || b"next".starts_with(&part[read..]));
                    break;
                }
                assert_eq!(read, part.len());
            }
            assert_eq!(line.end(), 7 + 100_001);
            let origin = Arc::new(Partition { source: "in".into(), topic: "in".into(), number: 0 });
            let refused = line.refuse(&origin, Timestamp(3), "`a.log`", 4096);
            let record = refused.batch.records()[0];
            assert_eq!((refused.batch.body(&record).len(), record.offset), (LongLine::KEPT_BYTES, 7));
            assert!(refused.error.contains("byte 7 of `a.log` has 100000 bytes, and 4096 are"), "{}", refused.error);
            let header = refused.batch.headers(&record).next().unwrap();
            assert_eq!((header.name, header.value), (CUT_FROM_BYTES.as_bytes(), Some(&b"100000"[..])));
        }
    }

    #[test]
    fn a_block_of_very_many_lines_is_cut_in_several_turns() {
        let text = "x\n".repeat(MAX_RECORDS + 5);
        let mut cutter = Cutter { max_line_bytes: 8, expected: 0 };
        let first = cutter.cut(text.as_bytes(), 0, Timestamp(0), Tail::Last);
        assert_eq!((first.records.len(), first.end, first.more), (MAX_RECORDS, 2 * MAX_RECORDS, true));
        let rest = cutter.cut(&text.as_bytes()[first.end..], first.end as u64, Timestamp(0), Tail::Last);
        assert_eq!((rest.records.len(), rest.more), (5, false));
    }

    #[test]
    fn the_last_newline_is_found_across_blocks() {
        let mut file = tempfile::tempfile().unwrap();
        assert_eq!(past_last_newline(&file, 0).unwrap(), 0);
        file.write_all(b"first\n").unwrap();
        file.write_all(&vec![b'x'; 200_000]).unwrap();
        assert_eq!(past_last_newline(&file, 200_006).unwrap(), 6);
        assert_eq!(past_last_newline(&file, 5).unwrap(), 0);
        file.write_all(b"\n").unwrap();
        assert_eq!(past_last_newline(&file, 200_007).unwrap(), 200_007);
    }

    #[test]
    fn a_record_is_one_line_or_refused() {
        let origin = Arc::new(Partition { source: "in".into(), topic: "in".into(), number: 0 });
        let mut builder = BatchBuilder::new(origin, 0, 0);
        for body in [&b"{\"a\":\n1}"[..], b"2"] {
            builder.push_copy(Draft { body, ..Draft::default() });
        }
        let batch = Codec::Json.decode(builder.finish(), &mut Vec::new());

        let mut lines = Vec::new();
        let settled = encode(Codec::Raw, &batch, &mut lines);
        assert_eq!(lines, b"2\n");
        assert_eq!(settled.refused.iter().map(|refusal| refusal.record).collect::<Vec<_>>(), [0]);

        lines.clear();
        assert_eq!(encode(Codec::Json, &batch, &mut lines), Settled::all());
        assert_eq!(lines, b"{\"a\":1}\n2\n");
    }
}
