//! A frame: one batch, whole, as a segment holds it.
//!
//! A header of fixed length, then a body. All numbers are little-endian. The checksum of a header also covers the place
//! where it stands in the log, so that bytes of a record that look like a frame are never taken for one.
//!
//! | header | | body | |
//! |---|---|---|---|
//! | 4 | `WFr1` | text | the source of the batch |
//! | 4 | length of the body | text | its topic |
//! | 4 | records in it | 4 | its partition |
//! | 4 | checksum of the body | 4 | number of records |
//! | 8 | records in the log before it | 29 each | format and flags, lengths, timestamp, offset |
//! | 8 | when it was written, in ms | | body, key and headers of each record |
//! | 4 | checksum of header and place | | |

use std::sync::Arc;

use crate::record::{Batch, BatchBuilder, BodyFormat, ByteRange, Partition, Record, Timestamp, json};

/// The length of a header in bytes.
pub const HEADER: usize = 36;
/// What a frame begins with.
pub const MAGIC: [u8; 4] = *b"WFr1";
/// What stands of a record before its bytes.
const FACTS: usize = 29;

/// The header of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the body.
    pub len: u32,
    /// Records in the frame.
    pub records: u32,
    /// The checksum of the body.
    pub sum: u32,
    /// Records in the log before this frame.
    pub before: u64,
    /// When it was written.
    pub written: Timestamp,
}

impl Header {
    /// Of a body that [`encode`] made. `None` if it is longer than a frame can be.
    #[must_use]
    pub fn of(body: &[u8], records: usize, before: u64, written: Timestamp) -> Option<Self> {
        let sum = crc32fast::hash(body);
        Some(Self { len: u32::try_from(body.len()).ok()?, records: u32::try_from(records).ok()?, sum, before, written })
    }

    /// The bytes of the header of a frame at a place in the log.
    #[must_use]
    pub fn encode(&self, position: u64) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..8].copy_from_slice(&self.len.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.records.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.sum.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.before.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.written.0.to_le_bytes());
        let sum = checksum(&bytes[..32], position);
        bytes[32..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Reads a header. `None` if there is none at this place.
    #[must_use]
    pub fn decode(bytes: &[u8; HEADER], position: u64) -> Option<Self> {
        let mut rest = &bytes[..];
        let magic: [u8; 4] = take(&mut rest)?;
        let header = Self {
            len: u32::from_le_bytes(take(&mut rest)?),
            records: u32::from_le_bytes(take(&mut rest)?),
            sum: u32::from_le_bytes(take(&mut rest)?),
            before: u64::from_le_bytes(take(&mut rest)?),
            written: Timestamp(i64::from_le_bytes(take(&mut rest)?)),
        };
        let sum = u32::from_le_bytes(take(&mut rest)?);
        (magic == MAGIC && sum == checksum(&bytes[..32], position)).then_some(header)
    }

    /// The place behind the frame.
    #[must_use]
    pub fn end(&self, position: u64) -> u64 {
        position.saturating_add(HEADER as u64 + u64::from(self.len))
    }

    /// Records in the log up to the end of the frame.
    #[must_use]
    pub fn after(&self) -> u64 {
        self.before.saturating_add(u64::from(self.records))
    }

    /// The batch that a body holds. `None` if it is not what was written.
    #[must_use]
    pub fn read(&self, body: Vec<u8>) -> Option<Batch> {
        let whole = body.len() == self.len as usize && crc32fast::hash(&body) == self.sum;
        let batch = if whole { decode(body)? } else { return None };
        (batch.len() == self.records as usize).then_some(batch)
    }
}

fn checksum(header: &[u8], position: u64) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(header);
    sum.update(&position.to_le_bytes());
    sum.finalize()
}

/// Appends the body of a batch's frame.
pub fn encode(batch: &Batch, out: &mut Vec<u8>) {
    // A batch holds less than 4 GiB; a body that is longer all the same has no header.
    let len = |len: usize| u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes();
    let origin = batch.origin();
    for text in [&origin.source, &origin.topic] {
        out.extend_from_slice(&len(text.len()));
        out.extend_from_slice(text.as_bytes());
    }
    out.extend_from_slice(&origin.number.to_le_bytes());
    out.extend_from_slice(&len(batch.len()));
    for record in batch.records() {
        let format = match record.format {
            BodyFormat::Raw => 0_u8,
            BodyFormat::Json => 1,
            BodyFormat::Verbatim => 2,
            BodyFormat::Absent => 3,
        };
        out.push(format | if record.key.is_some() { 4 } else { 0 });
        out.extend_from_slice(&len(record.body.len()));
        out.extend_from_slice(&len(record.key.map_or(0, ByteRange::len)));
        out.extend_from_slice(&len(record.headers.len()));
        out.extend_from_slice(&record.timestamp.0.to_le_bytes());
        out.extend_from_slice(&record.offset.to_le_bytes());
    }
    for record in batch.records() {
        out.extend_from_slice(batch.body(record));
        out.extend_from_slice(batch.key(record).unwrap_or_default());
        out.extend_from_slice(batch.slice(record.headers));
    }
}

/// Reads the body of a frame: any bytes, for a checksum proves little. `None` if it is not what [`encode`] makes.
#[must_use]
pub fn decode(body: Vec<u8>) -> Option<Batch> {
    let mut rest = &body[..];
    let source = take_text(&mut rest)?;
    let topic = take_text(&mut rest)?;
    let number = i32::from_le_bytes(take(&mut rest)?);
    let origin = Arc::new(Partition { source, topic, number });
    let count = u32::from_le_bytes(take(&mut rest)?) as usize;
    let (mut facts, bytes) = rest.split_at_checked(count.checked_mul(FACTS)?)?;
    let mut at = body.len() - bytes.len();
    let mut records = Vec::with_capacity(count);
    for _ in 0..count {
        records.push(take_record(&mut facts, &mut at, body.len())?);
    }
    if at != body.len() {
        return None;
    }
    let mut batch = BatchBuilder::over(origin, body, records.len());
    for record in records {
        batch.push(record);
    }
    Some(batch.finish().reindexed(|bytes, records, fields| {
        for record in records.iter_mut().filter(|record| record.format == BodyFormat::Json) {
            match json::index(bytes, record.body, fields) {
                Ok(indexed) => {
                    record.fields = indexed.fields;
                    record.duplicate_keys = indexed.duplicate_keys;
                }
                // A program may nest deeper than what is read again. It is passed on as it stands.
                Err(_) => record.format = BodyFormat::Verbatim,
            }
        }
    }))
}

fn take_record(facts: &mut &[u8], at: &mut usize, end: usize) -> Option<Record> {
    let [flags] = take(facts)?;
    let format = match flags & 3 {
        0 => BodyFormat::Raw,
        1 => BodyFormat::Json,
        2 => BodyFormat::Verbatim,
        _ => BodyFormat::Absent,
    };
    let mut range = |len: [u8; 4]| {
        let start = *at;
        *at = start.checked_add(u32::from_le_bytes(len) as usize).filter(|to| *to <= end)?;
        u32::try_from(*at).ok()?;
        Some(ByteRange::new(start, *at))
    };
    let body = range(take(facts)?)?;
    let key = range(take(facts)?)?;
    let headers = range(take(facts)?)?;
    let has_key = flags & 4 != 0;
    let sound = flags < 8 && (has_key || key.is_empty()) && (format != BodyFormat::Absent || body.is_empty());
    sound.then_some(Record {
        body,
        format,
        key: has_key.then_some(key),
        headers,
        timestamp: Timestamp(i64::from_le_bytes(take(facts)?)),
        offset: i64::from_le_bytes(take(facts)?),
        ..Record::default()
    })
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*taken)
}

fn take_text(bytes: &mut &[u8]) -> Option<Arc<str>> {
    let len = u32::from_le_bytes(take(bytes)?) as usize;
    let (text, rest) = bytes.split_at_checked(len)?;
    *bytes = rest;
    std::str::from_utf8(text).ok().map(Arc::from)
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::record::{Draft, HeadersBuilder};

    /// A batch of any records of any partition, decoded as a stage would hand them over.
    pub(crate) fn batches() -> impl Strategy<Value = Batch> {
        let body = prop_oneof![
            any::<Vec<u8>>().prop_map(|body| (body, BodyFormat::Raw)),
            any::<Vec<u8>>().prop_map(|body| (body, BodyFormat::Verbatim)),
            Just((br#"{"a":1,"b":[2],"a":3}"#.to_vec(), BodyFormat::Json)),
            Just((b" 7 ".to_vec(), BodyFormat::Json)),
            Just((Vec::new(), BodyFormat::Absent)),
        ];
        let header = (any::<Vec<u8>>(), proptest::option::of(any::<Vec<u8>>()));
        let record = (
            body,
            proptest::option::of(any::<Vec<u8>>()),
            proptest::collection::vec(header, 0..3),
            any::<i64>(),
            any::<i64>(),
        );
        ("\\PC{0,8}", "\\PC{0,8}", any::<i32>(), proptest::collection::vec(record, 0..6)).prop_map(
            |(source, topic, number, records)| {
                let origin = Partition { source: source.into(), topic: topic.into(), number };
                let mut batch = BatchBuilder::new(Arc::new(origin), 0, 0);
                for ((body, format), key, headers, timestamp, offset) in &records {
                    let mut encoded = HeadersBuilder::default();
                    for (name, value) in headers {
                        encoded.push(name, value.as_deref());
                    }
                    batch.push_copy(Draft {
                        body,
                        format: *format,
                        key: key.as_deref(),
                        headers: encoded.encoded(),
                        timestamp: Timestamp(*timestamp),
                        offset: *offset,
                    });
                }
                batch.finish().reindexed(|bytes, records, fields| {
                    for record in records.iter_mut().filter(|record| record.format == BodyFormat::Json) {
                        let indexed = json::index(bytes, record.body, fields).unwrap();
                        (record.fields, record.duplicate_keys) = (indexed.fields, indexed.duplicate_keys);
                    }
                })
            },
        )
    }

    /// Everything about the records of a batch.
    pub(crate) fn whole(batch: &Batch) -> impl PartialEq + std::fmt::Debug + use<> {
        let records = batch.records().iter().map(|record| {
            let fields = batch.fields(record).map(|fields| {
                let of = |range| batch.slice(range).to_vec();
                fields.iter().map(|field| (of(field.key), of(field.value))).collect::<Vec<_>>()
            });
            (
                (batch.body(record).to_vec(), record.format, fields, record.duplicate_keys),
                (batch.key(record).map(<[u8]>::to_vec), batch.slice(record.headers).to_vec()),
                (record.timestamp, record.offset),
            )
        });
        (Partition::clone(batch.origin()), records.collect::<Vec<_>>())
    }

    fn framed(batch: &Batch, position: u64) -> ([u8; HEADER], Vec<u8>) {
        let mut body = Vec::new();
        encode(batch, &mut body);
        (Header::of(&body, batch.len(), 7, Timestamp(8)).unwrap().encode(position), body)
    }

    proptest! {
        #[test]
        fn a_batch_comes_back_whole(batch in batches(), position in any::<u64>()) {
            let (header, body) = framed(&batch, position);
            let header = Header::decode(&header, position).unwrap();
            prop_assert_eq!((header.before, header.written), (7, Timestamp(8)));
            prop_assert_eq!(whole(&header.read(body).unwrap()), whole(&batch));
        }

        #[test]
        fn a_frame_that_is_not_what_was_written_is_none(
            batch in batches(), at in any::<prop::sample::Index>(), bit in 0..8_u32, elsewhere in 1..u64::MAX,
        ) {
            let (mut header, mut body) = framed(&batch, 100);
            prop_assert_eq!(Header::decode(&header, 100_u64.wrapping_add(elsewhere)), None, "a place counts");
            let at = at.index(HEADER + body.len());
            if at < HEADER {
                header[at] ^= 1 << bit;
                prop_assert_eq!(Header::decode(&header, 100), None);
            } else {
                body[at - HEADER] ^= 1 << bit;
                prop_assert!(Header::decode(&header, 100).unwrap().read(body).is_none());
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in any::<Vec<u8>>(), batch in batches(), at in any::<prop::sample::Index>()) {
            let _ = decode(bytes.clone());
            // A body of which one byte is another, past its checksum.
            let (_, mut body) = framed(&batch, 0);
            let at = at.index(body.len());
            body[at] = bytes.first().copied().unwrap_or(255);
            if let Some(batch) = decode(body) {
                whole(&batch);
            }
        }
    }

    #[test]
    fn what_is_nested_too_deep_to_be_read_again_is_passed_on_as_it_stands() {
        let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
        let origin = Partition { source: "s".into(), topic: "t".into(), number: 0 };
        let mut batch = BatchBuilder::new(Arc::new(origin), 0, 1);
        batch.push_copy(Draft { body: deep.as_bytes(), format: BodyFormat::Json, ..Draft::default() });
        let mut body = Vec::new();
        encode(&batch.finish(), &mut body);
        let read = decode(body).unwrap();
        assert_eq!(read.records()[0].format, BodyFormat::Verbatim);
        assert_eq!(read.body(&read.records()[0]), deep.as_bytes());
    }
}
