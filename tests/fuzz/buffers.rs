//! Segments of disk buffers, which lie on a disk and may come back as anything.

use std::fs;
use std::path::Path;

use weir::record::{Batch, Headers, Timestamp};
use weir::state::buffer::frame::{self, Header};
use weir::state::buffer::{Limits, Log, Place, folder, frames, survey};
use weir::testing::harness::{self, texts};

pub(crate) const TOKENS: &[&str] =
    &["WFr1", "\0\0\0\0", "\u{1}\0\0\0", "\u{7f}\u{7f}\u{7f}\u{7f}", "\u{4}", "\u{7}", "orders"];

/// Where the segment begins in its log.
const BASE: u64 = 4096;

/// The body of a frame whose checksum is right, whatever it holds.
pub(crate) fn check_frame(input: &[u8]) {
    if let Some(batch) = frame::decode(input.to_vec()) {
        let mut again = Vec::new();
        frame::encode(&batch, &mut again);
        let again = frame::decode(again).expect("what was written can be read");
        assert_eq!(touched(&again), touched(&batch));
    }
    // Between two frames that are right.
    let mut segment = Vec::new();
    put_frame(&mut segment, &body_of("before"), 0, 1);
    put_frame(&mut segment, input, 1, frame::decode(input.to_vec()).map_or(1, |batch| batch.len()));
    put_frame(&mut segment, &body_of("behind"), 2, 1);
    let read = read(&segment, None);
    assert_eq!((read.first().map(String::as_str), read.last().map(String::as_str)), (Some("before"), Some("behind")));
}

/// A whole segment. What is damaged is set aside, and reading ends.
pub(crate) fn check_segment(input: &[u8]) {
    read(input, None);
    // The store says that so much of it counts.
    let half = Place { position: BASE + input.len() as u64 / 2, records: 3 };
    read(input, Some(half));
    let all = Place { position: BASE + input.len() as u64, records: 3 };
    read(input, Some(all));
}

fn body_of(text: &str) -> Vec<u8> {
    let mut body = Vec::new();
    frame::encode(&harness::batch(&[text]), &mut body);
    body
}

fn put_frame(segment: &mut Vec<u8>, body: &[u8], before: u64, records: usize) {
    let header = Header::of(body, records, before, Timestamp(7)).expect("it is short");
    segment.extend(header.encode(BASE + segment.len() as u64));
    segment.extend(body);
}

/// The body, the key, the number of headers and the offset of a record.
type Facts = (Vec<u8>, Option<Vec<u8>>, usize, i64);

/// All that a batch says, touched.
fn touched(batch: &Batch) -> Vec<Facts> {
    let one = |record| {
        let headers = Headers::decode(batch.headers(record).encoded()).count();
        (batch.body(record).to_vec(), batch.key(record).map(<[u8]>::to_vec), headers, record.offset)
    };
    batch.records().iter().map(one).collect()
}

/// The bodies in a log of one segment.
fn read(segment: &[u8], committed: Option<Place>) -> Vec<String> {
    let data = tempfile::tempdir().expect("a folder can be made");
    let folder = folder(data.path(), "p", "s");
    fs::create_dir_all(&folder).expect("a folder can be made");
    fs::write(folder.join(format!("{BASE:020}.segment")), segment).expect("the file can be written");
    look(data.path(), &folder);
    let log = Log::open(&folder, Limits::of(1 << 20), committed, 1).expect("what is damaged is no error");
    let mut cursor = log.cursor(None).expect("what is damaged is no error");
    let mut bodies = Vec::new();
    // Each turn moves on by a byte at least.
    for _ in 0..=segment.len() {
        let batches = log.read(&mut cursor, 1 << 16).expect("what is damaged is no error");
        if batches.is_empty() {
            look(data.path(), &folder);
            return bodies;
        }
        for (batch, _) in &batches {
            touched(batch);
            bodies.extend(texts(batch));
        }
    }
    panic!("reading does not end");
}

/// As `weir buffer` does, beside the daemon.
fn look(data: &Path, folder: &Path) {
    assert_eq!(survey(data).expect("what is damaged is no error").len(), 1);
    frames(folder, |batch| {
        touched(batch);
        true
    })
    .expect("what is damaged is no error");
}
