//! What lies on the disk of a buffer: a segment of any bytes is read to its end, and written on.

use std::fs;

use weir::record::Timestamp;
use weir::state::buffer::{Limits, Log, folder, frame, frames, survey};

pub(crate) const TOKENS: &[&str] = &["WFr1", "\0\0\0\0", "\u{1}\0\0\0", "\u{7f}", "orders", "{\"a\":1}"];

/// A frame's body: what is read of it is written as it was.
pub(crate) fn check_body(input: &[u8]) {
    if let Some(batch) = frame::decode(input.to_vec()) {
        let mut again = Vec::new();
        frame::encode(&batch, &mut again);
        let read = frame::decode(again).expect("what was written can be read");
        assert_eq!(read.len(), batch.len());
        for (one, other) in read.records().iter().zip(batch.records()) {
            assert_eq!((read.body(one), read.key(one)), (batch.body(other), batch.key(other)));
            assert_eq!((one.timestamp, one.offset), (other.timestamp, other.offset));
        }
    }
}

/// A segment.
pub(crate) fn check_segment(input: &[u8]) {
    let home = tempfile::tempdir().expect("a folder for tests can be made");
    let of = folder(home.path(), "p", "s");
    fs::create_dir_all(&of).expect("the folder can be made");
    fs::write(of.join(format!("{:020}.segment", 0)), input).expect("the folder can be written");
    survey(home.path()).expect("damage is no error");
    frames(&of, |_| true).expect("damage is no error");
    let log = Log::open(&of, Limits::of(1 << 20), None, 0).expect("damage is no error");
    let run = log.cut_back(None).expect("damage is no error");
    let mut cursor = log.cursor(None).expect("damage is no error");
    let batches = log.read(&mut cursor, usize::MAX).expect("damage is no error");
    if let Some((batch, _)) = batches.last() {
        log.append(run, batch, Timestamp(0)).expect("there is room");
        log.publish(log.sync(run).expect("the disk takes it"));
        let (again, place) = log.read(&mut cursor, usize::MAX).expect("it is sound").remove(0);
        assert_eq!((again.len(), place), (batch.len(), log.end()));
    }
}
