//! Writes what a program made of a record: untouched fields byte for byte and in their order, changed ones in their
//! place, new ones at the end.

use vrl::value::{ObjectMap, Value};

use super::program::Metadata;
use super::rewrite::Rewrite;
use super::target::{Change, Overlay, Place};
use super::value::{self, Unwritable};
use crate::record::{
    Batch, BatchBuilder, BodyFormat, ByteRange, Field, FieldRange, HeadersBuilder, Record, Timestamp, index_u32, json,
};

/// Changed fields of one record, as (index in the record, slot), by rising index; reused from record to record.
pub(super) type Edits = Vec<(usize, usize)>;

/// The largest record that a program may make.
const RECORD_BYTES_MAX: usize = 1 << 30;

/// Adds a record to `rewrite` as a program has left it.
pub(super) fn changed(
    batch: &Batch,
    record: &Record,
    overlay: &Overlay,
    edits: &mut Edits,
    rewrite: &mut Rewrite,
) -> Result<(), String> {
    let metadata_changed = overlay.metadata_changed();
    if !overlay.body_changed && !metadata_changed {
        if record.duplicate_keys {
            collapsed(batch, record, |name| overlay.has_touched(name), rewrite);
        } else {
            rewrite.keep(record);
        }
        return Ok(());
    }
    // What can fail comes before the first byte.
    let metadata = metadata_changed.then(|| NewMetadata::of(batch, record, overlay)).transpose()?;
    let builder = rewrite.builder();
    let (bytes_before, fields_before) = (builder.bytes().len(), builder.fields_mut().len());
    match body(batch, record, overlay, edits, builder) {
        Ok(written) if builder.bytes().len() - bytes_before <= RECORD_BYTES_MAX => {
            push(batch, record, written, metadata.as_ref(), builder);
            Ok(())
        }
        outcome => {
            builder.bytes_mut().truncate(bytes_before);
            builder.fields_mut().truncate(fields_before);
            Err(match outcome {
                Err(Unwritable::Infinite) => {
                    "the program computed an infinite number, and JSON has no such value".to_owned()
                }
                Err(Unwritable::TooDeep) => "the program nested arrays and objects deeper than 127".to_owned(),
                Ok(_) => "the program made a record larger than 1 GiB".to_owned(),
            })
        }
    }
}

fn push(batch: &Batch, record: &Record, written: Record, metadata: Option<&NewMetadata>, builder: &mut BatchBuilder) {
    let Some(metadata) = metadata else {
        builder.push_with_body(batch, record, written);
        return;
    };
    let key = metadata.key.as_deref().map(|key| builder.append(key));
    let headers = builder.append(metadata.headers.encoded());
    builder.push(Record { key, headers, timestamp: metadata.timestamp, ..written });
}

/// Writes the body. The record that is returned has the key and the headers of the old one still.
fn body(
    batch: &Batch,
    record: &Record,
    overlay: &Overlay,
    edits: &mut Edits,
    builder: &mut BatchBuilder,
) -> Result<Record, Unwritable> {
    let start = builder.bytes().len();
    let (out, index) = builder.parts_mut();
    let mut object = ObjectWriter { bytes: batch.bytes(), start, first: index.len(), out, index };
    let fields = match (overlay.tree.get(), batch.fields(record)) {
        (Some(Value::Object(tree)), _) if overlay.body_changed => {
            object.tree(tree)?;
            Some(object.range())
        }
        (Some(tree), _) if overlay.body_changed => {
            value::write(tree, 0, object.out)?;
            None
        }
        (None, Some(fields)) if overlay.body_changed => {
            if record.duplicate_keys {
                let kept = without_duplicates(batch.bytes(), fields, |name| overlay.has_touched(name));
                object.edited(batch, record, &kept, fields, overlay, edits)?;
            } else {
                object.edited(batch, record, fields, fields, overlay, edits)?;
            }
            Some(object.range())
        }
        (_, Some(fields)) if record.duplicate_keys => {
            object.open();
            for field in without_duplicates(batch.bytes(), fields, |name| overlay.has_touched(name)) {
                object.copy(&[field]);
            }
            object.close();
            Some(object.range())
        }
        (_, fields) => {
            // Only metadata was changed.
            let shift = index_u32(start).wrapping_sub(record.body.start);
            object.out.extend_from_slice(batch.body(record));
            object.index.extend(fields.unwrap_or_default().iter().map(|field| field.shifted(shift)));
            fields.map(|_| object.range())
        }
    };
    let format = if overlay.body_changed { BodyFormat::Json } else { record.format };
    let body = ByteRange::new(start, builder.bytes().len());
    let duplicate_keys = record.duplicate_keys && fields.is_some_and(|range| has_duplicates(builder, range));
    Ok(Record { body, format, fields, duplicate_keys, ..*record })
}

/// Whether fields of the same name remain: those that the program did not touch.
#[cold]
fn has_duplicates(builder: &mut BatchBuilder, range: FieldRange) -> bool {
    let (bytes, index) = builder.parts_mut();
    let fields = &index[range.start as usize..];
    without_duplicates(bytes, fields, |_| true).len() < fields.len()
}

/// The fields without the earlier ones of those that have a touched name more than once.
fn without_duplicates(bytes: &[u8], fields: &[Field], is_touched: impl Fn(&str) -> bool) -> Vec<Field> {
    let mut later = std::collections::HashSet::new();
    let mut kept: Vec<_> = fields
        .iter()
        .rev()
        .filter(|field| {
            let name = json::unescape(&bytes[field.key.range()]);
            let touched = std::str::from_utf8(&name).is_ok_and(&is_touched);
            later.insert(name) || !touched
        })
        .copied()
        .collect();
    kept.reverse();
    kept
}

/// Adds a record to `rewrite` as it came, but of several touched fields with one name only the last.
#[cold]
pub(super) fn collapsed(batch: &Batch, record: &Record, is_touched: impl Fn(&str) -> bool, rewrite: &mut Rewrite) {
    let fields = batch.fields(record).unwrap_or_default();
    let kept = without_duplicates(batch.bytes(), fields, is_touched);
    if kept.len() == fields.len() {
        rewrite.keep(record);
        return;
    }
    let builder = rewrite.builder();
    let start = builder.bytes().len();
    let (out, index) = builder.parts_mut();
    let mut object = ObjectWriter { bytes: batch.bytes(), start, first: index.len(), out, index };
    object.open();
    for field in &kept {
        object.copy(std::slice::from_ref(field));
    }
    object.close();
    let range = object.range();
    let body = ByteRange::new(start, builder.bytes().len());
    let duplicate_keys = has_duplicates(builder, range);
    builder.push_with_body(batch, record, Record { body, fields: Some(range), duplicate_keys, ..*record });
}

/// Writes an object and its index at once.
struct ObjectWriter<'a> {
    /// The bytes that the fields came in.
    bytes: &'a [u8],
    /// Where the object begins in `out`.
    start: usize,
    /// Where its fields begin in `index`.
    first: usize,
    out: &'a mut Vec<u8>,
    index: &'a mut Vec<Field>,
}

impl ObjectWriter<'_> {
    fn open(&mut self) {
        self.out.push(b'{');
    }

    fn close(&mut self) {
        self.out.push(b'}');
    }

    fn range(&self) -> FieldRange {
        FieldRange { start: index_u32(self.first), len: index_u32(self.index.len() - self.first) }
    }

    fn separate(&mut self) {
        if self.out.len() > self.start + 1 {
            self.out.push(b',');
        }
    }

    /// Copies fields that stand next to each other, with all that stands between them.
    fn copy(&mut self, fields: &[Field]) {
        let (Some(first), Some(last)) = (fields.first(), fields.last()) else { return };
        self.separate();
        let from = first.key.range().start - 1;
        let shift = index_u32(self.out.len()).wrapping_sub(index_u32(from));
        self.out.extend_from_slice(&self.bytes[from..last.value.range().end]);
        self.index.extend(fields.iter().map(|field| field.shifted(shift)));
    }

    /// Writes one field; `key` is its name in quotes, and a colon.
    fn field(&mut self, key: &[u8], escaped_key: bool, value: &Value) -> Result<(), Unwritable> {
        self.separate();
        let key_start = self.out.len() + 1;
        self.out.extend_from_slice(key);
        let value_start = self.out.len();
        value::write(value, 1, self.out)?;
        let text = &self.out[value_start..];
        let escaped_value = text[0] == b'"' && memchr::memchr(b'\\', text).is_some();
        self.index.push(Field {
            key: ByteRange::new(key_start, value_start - 2),
            value: ByteRange::new(value_start, self.out.len()),
            escaped_key,
            escaped_value,
        });
        Ok(())
    }

    fn tree(&mut self, tree: &ObjectMap) -> Result<(), Unwritable> {
        let mut encoded = Vec::new();
        self.open();
        for (key, value) in tree {
            encoded.clear();
            json::write_string(key, &mut encoded);
            encoded.push(b':');
            self.field(&encoded, encoded.contains(&b'\\'), value)?;
        }
        self.close();
        Ok(())
    }

    /// Writes the record's `fields` with the changes over them. `all` is what the slots' places count in; `fields` may
    /// lack some of them.
    fn edited(
        &mut self,
        batch: &Batch,
        record: &Record,
        fields: &[Field],
        all: &[Field],
        overlay: &Overlay,
        edits: &mut Edits,
    ) -> Result<(), Unwritable> {
        edits.clear();
        for (number, slot) in overlay.slots.iter().enumerate() {
            if slot.change != Change::None
                && let Place::At(at) = slot.locate(batch, record, all)
            {
                edits.push((at, number));
            }
        }
        edits.sort_unstable();
        let contiguous = fields.len() == all.len();
        let mut rest = fields;
        self.open();
        for &(at, slot) in edits.iter() {
            let slot = &overlay.slots[slot];
            let old = &all[at];
            let place = if contiguous { at + rest.len() - fields.len() } else { position(rest, old) };
            self.copy_run(&rest[..place], contiguous);
            rest = &rest[place + 1..];
            if let (Change::Set, Some(value)) = (slot.change, slot.value.get()) {
                if old.escaped_key {
                    let key = old.key.range();
                    let encoded = [&self.bytes[key.start - 1..=key.end], b":"].concat();
                    self.field(&encoded, true, value)?;
                } else {
                    self.field(&slot.encoded, false, value)?;
                }
            }
        }
        self.copy_run(rest, contiguous);
        for slot in &overlay.slots {
            if let (Change::Set, Place::Absent, Some(value)) = (slot.change, slot.place.get(), slot.value.get()) {
                self.field(&slot.encoded, slot.encoded.contains(&b'\\'), value)?;
            }
        }
        self.close();
        Ok(())
    }

    fn copy_run(&mut self, fields: &[Field], contiguous: bool) {
        if contiguous {
            self.copy(fields);
        } else {
            for field in fields {
                self.copy(std::slice::from_ref(field));
            }
        }
    }
}

fn position(fields: &[Field], field: &Field) -> usize {
    fields.iter().position(|other| other == field).expect("the last field of its name is kept")
}

/// The metadata of a record of which a program has changed a part.
struct NewMetadata {
    key: Option<bytes::Bytes>,
    headers: HeadersBuilder,
    timestamp: Timestamp,
}

impl NewMetadata {
    fn of(batch: &Batch, record: &Record, overlay: &Overlay) -> Result<Self, String> {
        let key = match overlay.changed(Metadata::Key) {
            Some(key) => value::text_of(key),
            None => record.key.map(|key| batch.bytes().slice(key.range())),
        };
        let mut headers = HeadersBuilder::default();
        match overlay.changed(Metadata::Headers) {
            Some(Value::Object(new)) => write_headers(batch, record, new, &mut headers)?,
            Some(_) => {}
            None => batch.headers(record).for_each(|header| headers.push(header.name, header.value)),
        }
        let timestamp = match overlay.changed(Metadata::Timestamp) {
            Some(Value::Timestamp(time)) => Timestamp(time.timestamp_millis()),
            _ => record.timestamp,
        };
        Ok(Self { key, headers, timestamp })
    }
}

/// Headers whose values did not change keep their order and their repeats; a changed one stands where it first stood, and
/// new ones at the end.
fn write_headers(batch: &Batch, record: &Record, new: &ObjectMap, out: &mut HeadersBuilder) -> Result<(), String> {
    let old = super::target::headers_of(batch, record);
    let mut written = std::collections::BTreeSet::new();
    for header in batch.headers(record) {
        let name = String::from_utf8_lossy(header.name);
        let Some(value) = new.get(&*name) else { continue };
        if old.get(&*name) == Some(value) {
            out.push(header.name, header.value);
        } else if !written.contains(&*name) {
            write_header(header.name, value, out)?;
        }
        written.insert(name.into_owned());
    }
    for (name, value) in new.iter().filter(|(name, _)| !written.contains(name.as_str())) {
        write_header(name.as_bytes(), value, out)?;
    }
    Ok(())
}

fn write_header(name: &[u8], value: &Value, out: &mut HeadersBuilder) -> Result<(), String> {
    let values = match value {
        Value::Array(values) => values.as_slice(),
        one => std::slice::from_ref(one),
    };
    for value in values {
        match (value, value::text_of(value)) {
            (Value::Null, _) => out.push(name, None),
            (_, Some(text)) => out.push(name, Some(&text)),
            (other, None) => {
                let name = String::from_utf8_lossy(name);
                return Err(format!("the header `{name}` cannot be {}", other.kind_str()));
            }
        }
    }
    Ok(())
}
