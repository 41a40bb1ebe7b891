//! A batch: many records of one partition, one allocation for their bytes.
//!
//! Records are ranges into the batch's bytes, so that filtering, routing and cloning a batch move
//! no data. What changes a body writes a new batch.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use super::budget::Reservation;
use super::headers::Headers;
use super::json;
use super::partition::Partition;

/// A range of a batch's bytes. A batch holds less than 4 GiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ByteRange {
    /// The first byte.
    pub start: u32,
    /// One past the last byte.
    pub end: u32,
}

impl ByteRange {
    /// The range from `start` to `end`, both offsets into the batch's bytes.
    ///
    /// # Panics
    /// If an offset exceeds 4 GiB: sources cap a batch far below that.
    #[must_use]
    pub fn new(start: usize, end: usize) -> Self {
        let narrow = |at: usize| u32::try_from(at).expect("a batch holds less than 4 GiB");
        Self { start: narrow(start), end: narrow(end) }
    }

    /// As indices.
    #[must_use]
    pub fn range(self) -> Range<usize> {
        self.start as usize..self.end as usize
    }

    /// The number of bytes.
    #[must_use]
    pub fn len(self) -> usize {
        (self.end - self.start) as usize
    }

    /// Whether it holds no byte.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.start == self.end
    }
}

/// Milliseconds since the Unix epoch, as Kafka counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(pub i64);

/// What the bytes of a body are known to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BodyFormat {
    /// Any bytes.
    #[default]
    Raw,
    /// One valid JSON value; if it is an object, its top-level fields are indexed.
    Json,
    /// Written as it stands, in whatever format its sink writes: a dead letter.
    Verbatim,
    /// There is no body at all: a Kafka tombstone, which deletes its key. Its range is empty.
    Absent,
}

/// The top-level fields of one body within the batch's index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FieldRange {
    /// The first field.
    pub start: u32,
    /// How many.
    pub len: u32,
}

/// A top-level field of a JSON object, as it stands in the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// The key between its quotes, escapes untouched.
    pub key: ByteRange,
    /// The value, without white space around it.
    pub value: ByteRange,
    /// Whether the key holds an escape, so that its bytes are not its name.
    pub escaped_key: bool,
    /// Whether the value is a string that holds an escape, so that its bytes are not its text.
    pub escaped_value: bool,
}

impl Field {
    /// The same field in a copy of its text that stands `shift` bytes further on, counted around the end of `u32`.
    #[must_use]
    #[inline]
    pub(crate) fn shifted(self, shift: u32) -> Self {
        let moved =
            |range: ByteRange| ByteRange { start: range.start.wrapping_add(shift), end: range.end.wrapping_add(shift) };
        Self { key: moved(self.key), value: moved(self.value), ..self }
    }
}

/// An index or a count of fields, which take a byte of the batch each.
pub(crate) fn index_u32(index: usize) -> u32 {
    u32::try_from(index).expect("a batch holds less than 4 GiB")
}

/// One record: ranges into its batch, and numbers.
#[derive(Debug, Clone, Copy, Default)]
pub struct Record {
    /// The body.
    pub body: ByteRange,
    /// What the body is known to be.
    pub format: BodyFormat,
    /// The top-level fields, if the body is a JSON object; `None` for any other body.
    pub fields: Option<FieldRange>,
    /// Whether two top-level fields have the same name.
    pub duplicate_keys: bool,
    /// The key.
    pub key: Option<ByteRange>,
    /// Encoded headers (see [`Headers`]); empty if there are none.
    pub headers: ByteRange,
    /// When the record was made, or, where the source cannot tell, when it was read.
    pub timestamp: Timestamp,
    /// The offset of the record in its partition.
    pub offset: i64,
}

/// What all records of a batch share.
struct Data {
    bytes: Bytes,
    fields: Vec<Field>,
    reservation: OnceLock<Reservation>,
}

/// Many records of one partition, in order. Cloning shares the bytes.
#[derive(Clone)]
pub struct Batch {
    origin: Arc<Partition>,
    data: Arc<Data>,
    records: Vec<Record>,
}

impl Batch {
    /// The partition that all records came from.
    #[must_use]
    pub fn origin(&self) -> &Arc<Partition> {
        &self.origin
    }

    /// The records.
    #[must_use]
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// The number of records.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether it holds no record.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// All bytes that the ranges of the records point into.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.data.bytes
    }

    /// The bytes of a range.
    #[must_use]
    pub fn slice(&self, range: ByteRange) -> &[u8] {
        &self.data.bytes[range.range()]
    }

    /// The body of one of its records.
    #[must_use]
    pub fn body(&self, record: &Record) -> &[u8] {
        self.slice(record.body)
    }

    /// The key of one of its records.
    #[must_use]
    pub fn key(&self, record: &Record) -> Option<&[u8]> {
        record.key.map(|key| self.slice(key))
    }

    /// The headers of one of its records, in order, with repeats.
    #[must_use]
    pub fn headers(&self, record: &Record) -> Headers<'_> {
        Headers::decode(self.slice(record.headers))
    }

    /// The top-level fields of a record's body; `None` if the body is no JSON object.
    #[must_use]
    pub fn fields(&self, record: &Record) -> Option<&[Field]> {
        let FieldRange { start, len } = record.fields?;
        Some(&self.data.fields[start as usize..(start + len) as usize])
    }

    /// The JSON text of a top-level field; of several with this name, the last. `None` if the body is no JSON object or
    /// has no such field.
    #[must_use]
    pub fn field(&self, record: &Record, name: &str) -> Option<&[u8]> {
        let fields = self.fields(record)?;
        let at = json::find(self.bytes(), fields, name)?;
        Some(self.slice(fields[at].value))
    }

    /// The sum of the bodies and keys of its records, in bytes: what metrics count.
    #[must_use]
    pub fn payload_bytes(&self) -> u64 {
        self.records.iter().map(|record| (record.body.len() + record.key.map_or(0, ByteRange::len)) as u64).sum()
    }

    /// What the batch occupies, in bytes: what the memory budget counts.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        (self.data.bytes.len() + size_of_val(self.data.fields.as_slice()) + size_of_val(self.records.as_slice())) as u64
    }

    /// The same bytes with other records, which must be ranges of this batch.
    #[must_use]
    pub fn with_records(&self, records: Vec<Record>) -> Self {
        Self { origin: Arc::clone(&self.origin), data: Arc::clone(&self.data), records }
    }

    /// Keeps the records for which `keep` holds.
    pub fn retain(&mut self, keep: impl FnMut(&Record) -> bool) {
        self.records.retain(keep);
    }

    /// Charges the batch's memory to a budget until its bytes are freed; charged once, wherever it goes.
    pub(crate) fn charge(&self, reserve: impl FnOnce(u64) -> Reservation) {
        self.data.reservation.get_or_init(|| reserve(self.memory_bytes()));
    }
}

impl fmt::Debug for Batch {
    /// Without content: a record's content appears in no log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch")
            .field("origin", &self.origin.to_string())
            .field("records", &self.records.len())
            .field("bytes", &self.data.bytes.len())
            .finish()
    }
}

/// A record to be copied into a batch.
#[derive(Debug, Clone, Copy, Default)]
pub struct Draft<'a> {
    /// The body.
    pub body: &'a [u8],
    /// What the body is known to be: raw until a codec has decoded it.
    pub format: BodyFormat,
    /// The key.
    pub key: Option<&'a [u8]>,
    /// Encoded headers, as [`super::HeadersBuilder`] writes them or [`Headers::encoded`] gives them.
    pub headers: &'a [u8],
    /// When the record was made.
    pub timestamp: Timestamp,
    /// The offset of the record in its partition.
    pub offset: i64,
}

/// Collects records into one allocation.
#[derive(Debug)]
pub struct BatchBuilder {
    origin: Arc<Partition>,
    bytes: Vec<u8>,
    fields: Vec<Field>,
    records: Vec<Record>,
}

impl BatchBuilder {
    /// An empty batch of a partition, with room for `bytes` and `records`.
    #[must_use]
    pub fn new(origin: Arc<Partition>, bytes: usize, records: usize) -> Self {
        Self { origin, bytes: Vec::with_capacity(bytes), fields: Vec::new(), records: Vec::with_capacity(records) }
    }

    /// Starts from a block that was read in one piece; records are then pushed as ranges of it.
    #[must_use]
    pub fn over(origin: Arc<Partition>, block: Vec<u8>, records: usize) -> Self {
        Self { origin, bytes: block, fields: Vec::new(), records: Vec::with_capacity(records) }
    }

    /// The bytes so far. Append to them, then point a record's ranges at what was appended.
    pub fn bytes_mut(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// The bytes so far.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The field index so far. Append to it, then point a record's `fields` at what was appended.
    pub fn fields_mut(&mut self) -> &mut Vec<Field> {
        &mut self.fields
    }

    /// Both at once, for a writer that indexes while it writes.
    pub fn parts_mut(&mut self) -> (&mut Vec<u8>, &mut Vec<Field>) {
        (&mut self.bytes, &mut self.fields)
    }

    /// Appends bytes and says where they stand.
    pub fn append(&mut self, bytes: &[u8]) -> ByteRange {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        ByteRange::new(start, self.bytes.len())
    }

    /// Adds a record whose ranges already point into these bytes.
    pub fn push(&mut self, record: Record) {
        self.records.push(record);
    }

    /// Copies a record in.
    pub fn push_copy(&mut self, draft: Draft<'_>) {
        let body = self.append(draft.body);
        let key = draft.key.map(|key| self.append(key));
        let headers = self.append(draft.headers);
        self.records.push(Record {
            body,
            format: draft.format,
            key,
            headers,
            timestamp: draft.timestamp,
            offset: draft.offset,
            ..Record::default()
        });
    }

    /// Copies a record of another batch in, with the index of its fields.
    pub fn push_from(&mut self, batch: &Batch, record: &Record) {
        let body = self.append(batch.body(record));
        let fields = batch.fields(record).map(|fields| {
            let first = self.fields.len();
            let shift = body.start.wrapping_sub(record.body.start);
            self.fields.extend(fields.iter().map(|field| field.shifted(shift)));
            FieldRange { start: index_u32(first), len: index_u32(fields.len()) }
        });
        self.push_with_body(batch, record, Record { body, fields, ..*record });
    }

    /// Adds a record whose body, and what is known of it, is already in these bytes; its key and headers are copied
    /// from a record of another batch.
    pub fn push_with_body(&mut self, batch: &Batch, from: &Record, body: Record) {
        let key = batch.key(from).map(|key| self.append(key));
        let headers =
            if from.headers.is_empty() { ByteRange::default() } else { self.append(batch.slice(from.headers)) };
        self.records.push(Record { key, headers, ..body });
    }

    /// The number of records so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether no record was added.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The finished batch.
    #[must_use]
    pub fn finish(self) -> Batch {
        let data = Data { bytes: self.bytes.into(), fields: self.fields, reservation: OnceLock::new() };
        Batch { origin: self.origin, data: Arc::new(data), records: self.records }
    }
}

impl Batch {
    /// Takes the batch apart for decoding in place: same bytes and records, a new field index.
    ///
    /// `index` sees the bytes, the records and an empty index; it sets each record's format and
    /// fields, and removes what it refuses.
    #[must_use]
    pub fn reindexed(self, index: impl FnOnce(&[u8], &mut Vec<Record>, &mut Vec<Field>)) -> Self {
        let mut records = self.records;
        let mut fields = Vec::new();
        index(&self.data.bytes, &mut records, &mut fields);
        let data = Data { bytes: self.data.bytes.clone(), fields, reservation: OnceLock::new() };
        Self { origin: self.origin, data: Arc::new(data), records }
    }
}
