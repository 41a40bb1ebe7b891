//! A record as a program sees it: fields are parsed when they are first read, and what is written lies over the record
//! until the program has succeeded.

use std::cell::{Cell, OnceCell, RefCell};
use std::fmt;

use vrl::compiler::{SecretTarget, Target};
use vrl::path::{BorrowedSegment, OwnedSegment, OwnedTargetPath, PathPrefix, ValuePath};
use vrl::value::{KeyString, ObjectMap, Value};

use super::functions::{ARRIVAL, DRAW};
use super::program::{Metadata, NamedField};
use super::value;
use crate::record::{Batch, BodyFormat, Field, Record, json};

/// What a program has read and written of one record. It lives as long as its lane, so that a record costs no
/// allocation of its own.
pub(super) struct Overlay {
    /// The top-level fields that the program names.
    pub(super) slots: Vec<Slot>,
    /// The whole body, once a program has asked for it or replaced it. From then on it stands for all fields.
    pub(super) tree: OnceCell<Value>,
    /// Whether the body, as slots or as a tree, differs from what the record holds.
    pub(super) body_changed: bool,
    pub(super) metadata: [Entry; Metadata::ALL.len()],
    metadata_root: OnceCell<Value>,
    /// Whether any metadata was looked at: most programs look at none, and leave nothing to clear.
    metadata_used: Cell<bool>,
    arrival: OnceCell<Value>,
    drawn: Value,
    draws: u64,
    /// VRL takes a failing read for null and goes on after a failing write. What is noted here afterwards rejects the
    /// record.
    error: RefCell<Option<String>>,
}

/// A top-level field.
pub(super) struct Slot {
    pub(super) name: Box<str>,
    /// Its name and a colon, as a new field is written.
    pub(super) encoded: Vec<u8>,
    pub(super) place: Cell<Place>,
    /// Where the record before had it: most records of a batch look alike.
    hint: Cell<usize>,
    pub(super) value: OnceCell<Value>,
    pub(super) change: Change,
    /// Whether the program removes it without looking at what it was, so that it need not be parsed for that.
    removed_unread: bool,
}

/// Where a field stands in the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Nobody has looked.
    Unknown,
    /// The record has no such field.
    Absent,
    /// Its index; of several with the same name, the last.
    At(usize),
}

/// What a program has done to a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    None,
    Set,
    Removed,
}

/// One kind of metadata.
#[derive(Default)]
pub(super) struct Entry {
    pub(super) value: OnceCell<Value>,
    pub(super) changed: bool,
}

impl Overlay {
    pub(super) fn new(fields: &[NamedField]) -> Self {
        let slots = fields.iter().map(|NamedField { name, removed_unread }| {
            let mut encoded = Vec::new();
            json::write_string(name, &mut encoded);
            encoded.push(b':');
            Slot {
                name: name.as_str().into(),
                encoded,
                place: Cell::new(Place::Unknown),
                hint: Cell::new(0),
                value: OnceCell::new(),
                change: Change::None,
                removed_unread: *removed_unread,
            }
        });
        Self {
            slots: slots.collect(),
            tree: OnceCell::new(),
            body_changed: false,
            metadata: Default::default(),
            metadata_root: OnceCell::new(),
            metadata_used: Cell::new(false),
            arrival: OnceCell::new(),
            drawn: Value::Null,
            draws: 0,
            error: RefCell::new(None),
        }
    }

    /// Forgets the record, and lets go of its batch.
    pub(super) fn clear(&mut self) {
        for slot in &mut self.slots {
            slot.place.set(Place::Unknown);
            slot.value.take();
            slot.change = Change::None;
        }
        self.tree.take();
        self.body_changed = false;
        self.draws = 0;
        if self.metadata_used.take() {
            self.metadata = Default::default();
            self.metadata_root.take();
            self.arrival.take();
        }
        self.error.get_mut().take();
    }

    pub(super) fn take_error(&mut self) -> Option<String> {
        self.error.get_mut().take()
    }

    /// Whether the program has read or written a field.
    pub(super) fn has_touched(&self, name: &str) -> bool {
        let touched = |slot: &Slot| slot.place.get() != Place::Unknown || slot.change != Change::None;
        self.tree.get().is_some() || self.slots.iter().any(|slot| *slot.name == *name && touched(slot))
    }

    pub(super) fn metadata_changed(&self) -> bool {
        self.metadata_used.get() && self.metadata.iter().any(|entry| entry.changed)
    }

    pub(super) fn changed(&self, metadata: Metadata) -> Option<&Value> {
        let entry = &self.metadata[metadata as usize];
        entry.value.get().filter(|_| entry.changed)
    }

    fn slot(&self, name: &str) -> Option<usize> {
        self.slots.iter().position(|slot| *slot.name == *name)
    }
}

impl Slot {
    /// Finds the field in the record.
    pub(super) fn locate(&self, batch: &Batch, record: &Record, fields: &[Field]) -> Place {
        let known = self.place.get();
        if known != Place::Unknown {
            return known;
        }
        let place = self.look_up(batch, record, fields);
        self.place.set(place);
        place
    }

    fn look_up(&self, batch: &Batch, record: &Record, fields: &[Field]) -> Place {
        let hint = self.hint.get();
        if !record.duplicate_keys
            && let Some(field) = fields.get(hint)
            && json::is_named(batch.bytes(), field, &self.name)
        {
            return Place::At(hint);
        }
        match json::find(batch.bytes(), fields, &self.name) {
            Some(at) => {
                self.hint.set(at);
                Place::At(at)
            }
            None => Place::Absent,
        }
    }
}

/// A record under a program.
pub(super) struct LazyRecord<'a> {
    pub(super) batch: &'a Batch,
    pub(super) record: &'a Record,
    /// The top-level fields, if the body is a JSON object.
    pub(super) fields: Option<&'a [Field]>,
    pub(super) overlay: &'a mut Overlay,
    pub(super) salt: u64,
}

impl<'a> LazyRecord<'a> {
    pub(super) fn new(batch: &'a Batch, record: &'a Record, overlay: &'a mut Overlay, salt: u64) -> Self {
        Self { batch, record, fields: batch.fields(record), overlay, salt }
    }

    /// Notes a failure for after the run, and hands it to VRL, which forgets it.
    fn fail<T>(&self, error: impl Into<String>) -> Result<T, String> {
        let error = error.into();
        self.overlay.error.borrow_mut().get_or_insert_with(|| error.clone());
        Err(error)
    }

    fn read(&self, range: crate::record::ByteRange) -> Result<Value, String> {
        value::read(self.batch.bytes(), range).or_else(|value::Unreadable| self.fail(UNREADABLE))
    }

    /// The slot that a path leads into, unless the body is not, or no longer, kept as slots.
    fn slot_of<'p>(&self, path: &'p OwnedTargetPath) -> Option<(usize, &'a [Field], &'p [OwnedSegment])> {
        let fields = self.fields?;
        let (OwnedSegment::Field(name), rest) = path.path.segments.split_first()? else { return None };
        if self.overlay.tree.get().is_some() {
            return None;
        }
        Some((self.overlay.slot(name)?, fields, rest))
    }

    /// The value of a field, parsed if need be.
    fn load(&self, slot: usize, fields: &[Field]) -> Result<Option<&Value>, String> {
        let slot = &self.overlay.slots[slot];
        if slot.change == Change::Removed {
            return Ok(None);
        }
        if let Some(value) = slot.value.get() {
            return Ok(Some(value));
        }
        match slot.locate(self.batch, self.record, fields) {
            Place::At(at) => {
                let value = value::read_field(self.batch.bytes(), &fields[at])
                    .or_else(|value::Unreadable| self.fail(UNREADABLE))?;
                let _ = slot.value.set(value);
                Ok(slot.value.get())
            }
            Place::Absent | Place::Unknown => Ok(None),
        }
    }

    /// The whole body.
    fn tree(&self) -> Result<&Value, String> {
        if let Some(tree) = self.overlay.tree.get() {
            return Ok(tree);
        }
        let tree = self.build_tree()?;
        Ok(self.overlay.tree.get_or_init(|| tree))
    }

    fn build_tree(&self) -> Result<Value, String> {
        let bytes = self.batch.bytes();
        let Some(fields) = self.fields else {
            return match self.record.format {
                BodyFormat::Json => self.read_body(),
                BodyFormat::Absent => Ok(Value::Null),
                BodyFormat::Raw | BodyFormat::Verbatim => Ok(Value::Bytes(bytes.slice(self.record.body.range()))),
            };
        };
        let mut tree = value::read_object(bytes, fields).or_else(|value::Unreadable| self.fail::<Value>(UNREADABLE))?;
        if let Value::Object(object) = &mut tree {
            for slot in &self.overlay.slots {
                match (slot.change, slot.value.get()) {
                    (Change::Set, Some(value)) => {
                        object.insert(KeyString::from(&*slot.name), value.clone());
                    }
                    (Change::Removed, _) => {
                        object.remove(&*slot.name);
                    }
                    _ => {}
                }
            }
        }
        Ok(tree)
    }

    /// A JSON body that is not an object. White space around it is not part of the value.
    fn read_body(&self) -> Result<Value, String> {
        let body = self.batch.body(self.record);
        let space = body.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        let range = self.record.body.range();
        self.read(crate::record::ByteRange::new(range.start + space, range.end))
    }

    /// The whole body, to be changed.
    fn tree_mut(&mut self) -> Result<&mut Value, String> {
        self.tree()?;
        self.overlay.body_changed = true;
        Ok(self.overlay.tree.get_mut().expect("built above"))
    }

    fn insert_into_body(&mut self, path: &OwnedTargetPath, value: Value) -> Result<(), String> {
        if path.path.is_root() {
            self.overlay.tree = OnceCell::from(value);
            self.overlay.body_changed = true;
            return Ok(());
        }
        let Some((at, fields, rest)) = self.slot_of(path) else {
            self.tree_mut()?.insert(&path.path, value);
            return Ok(());
        };
        let value = if rest.is_empty() {
            value
        } else {
            // What is no object or array gives way to one, as in VRL's own trees.
            self.load(at, fields)?;
            let slot = &mut self.overlay.slots[at];
            let mut current = slot.value.take().filter(|_| slot.change != Change::Removed).unwrap_or(Value::Null);
            current.insert(Tail(rest), value);
            current
        };
        let slot = &mut self.overlay.slots[at];
        slot.value = OnceCell::from(value);
        slot.change = Change::Set;
        self.overlay.body_changed = true;
        Ok(())
    }

    fn remove_from_body(&mut self, path: &OwnedTargetPath, compact: bool) -> Result<Option<Value>, String> {
        let Some((at, fields, rest)) = self.slot_of(path) else {
            return Ok(self.tree_mut()?.remove(&path.path, compact));
        };
        let slot = &mut self.overlay.slots[at];
        if slot.removed_unread && rest.is_empty() {
            let is_there = match slot.change {
                Change::None => matches!(slot.locate(self.batch, self.record, fields), Place::At(_)),
                Change::Set => true,
                Change::Removed => false,
            };
            if is_there {
                slot.value.take();
                slot.change = Change::Removed;
                self.overlay.body_changed = true;
            }
            return Ok(None);
        }
        if self.load(at, fields)?.is_none() {
            return Ok(None);
        }
        let slot = &mut self.overlay.slots[at];
        let Some(mut current) = slot.value.take() else { return Ok(None) };
        if rest.is_empty() {
            slot.change = Change::Removed;
            self.overlay.body_changed = true;
            return Ok(Some(current));
        }
        let removed = current.remove(Tail(rest), compact);
        if removed.is_some() {
            self.overlay.body_changed = true;
            slot.change = if compact && current.is_empty() { Change::Removed } else { Change::Set };
        }
        if slot.change != Change::Removed {
            slot.value = OnceCell::from(current);
        }
        Ok(removed)
    }

    /// What the record itself has of a kind of metadata.
    fn original(&self, metadata: Metadata) -> Value {
        let (batch, record) = (self.batch, self.record);
        match metadata {
            Metadata::Key => match record.key {
                Some(key) => Value::Bytes(batch.bytes().slice(key.range())),
                None => Value::Null,
            },
            Metadata::Headers => Value::Object(headers_of(batch, record)),
            Metadata::Timestamp => timestamp_of(record),
            Metadata::Topic => Value::from(&*batch.origin().topic),
            Metadata::Partition => Value::from(i64::from(batch.origin().number)),
            Metadata::Offset => Value::from(record.offset),
        }
    }

    fn metadata(&self, metadata: Metadata) -> &Value {
        self.overlay.metadata_used.set(true);
        self.overlay.metadata[metadata as usize].value.get_or_init(|| self.original(metadata))
    }

    fn read_metadata(&self, path: &OwnedTargetPath) -> Option<&Value> {
        let Some((first, rest)) = path.path.segments.split_first() else {
            self.overlay.metadata_used.set(true);
            return Some(self.overlay.metadata_root.get_or_init(|| {
                let all = Metadata::ALL.into_iter();
                Value::Object(all.map(|metadata| (metadata.name().into(), self.metadata(metadata).clone())).collect())
            }));
        };
        let OwnedSegment::Field(name) = first else { return None };
        if let Some(metadata) = Metadata::named(name) {
            return descend(self.metadata(metadata), rest);
        }
        (path == &*ARRIVAL).then(|| {
            self.overlay.metadata_used.set(true);
            self.overlay.arrival.get_or_init(|| timestamp_of(self.record))
        })
    }

    /// The metadata that a path leads into, to be changed.
    fn metadata_mut<'p>(&mut self, path: &'p OwnedTargetPath) -> Result<(Metadata, &'p [OwnedSegment]), String> {
        let known = path.path.segments.split_first().and_then(|(first, rest)| match first {
            OwnedSegment::Field(name) => Some((Metadata::named(name)?, rest)),
            OwnedSegment::Index(_) => None,
        });
        match known {
            Some((metadata, _)) if metadata.is_read_only() => self.fail(format!("`{path}` is read-only")),
            Some(known) => {
                self.metadata(known.0);
                self.overlay.metadata_root.take();
                Ok(known)
            }
            None => self.fail(format!("a record has no metadata `{path}`")),
        }
    }

    fn insert_into_metadata(&mut self, path: &OwnedTargetPath, value: Value) -> Result<(), String> {
        if is_verdict(path) {
            return Ok(());
        }
        let (metadata, rest) = self.metadata_mut(path)?;
        let entry = &mut self.overlay.metadata[metadata as usize];
        let value = match entry.value.take() {
            Some(mut current) if !rest.is_empty() => {
                current.insert(Tail(rest), value);
                current
            }
            _ => value,
        };
        let fits = match metadata {
            Metadata::Key => value.is_null() || value::text_of(&value).is_some(),
            Metadata::Headers => value.is_null() || value.is_object(),
            _ => value.is_timestamp(),
        };
        if !fits {
            return self.fail(format!("`{path}` cannot be {}", value.kind_str()));
        }
        *entry = Entry { value: OnceCell::from(value), changed: true };
        Ok(())
    }

    fn remove_from_metadata(&mut self, path: &OwnedTargetPath, compact: bool) -> Result<Option<Value>, String> {
        let (metadata, rest) = self.metadata_mut(path)?;
        if metadata == Metadata::Timestamp {
            return self.fail("`%timestamp` cannot be removed");
        }
        let entry = &mut self.overlay.metadata[metadata as usize];
        let Some(mut current) = entry.value.take() else { return Ok(None) };
        let removed = if rest.is_empty() {
            let empty = if metadata == Metadata::Headers { Value::Object(ObjectMap::new()) } else { Value::Null };
            Some(std::mem::replace(&mut current, empty))
        } else {
            current.remove(Tail(rest), compact)
        };
        *entry = Entry { value: OnceCell::from(current), changed: entry.changed || removed.is_some() };
        Ok(removed)
    }

    /// A number that follows from where the record comes from, from the stage, and from how many were drawn before.
    fn draw(&mut self) -> &mut Value {
        let origin = self.batch.origin();
        let mut seed = hash(origin.source.as_bytes(), self.salt);
        seed = hash(origin.topic.as_bytes(), seed);
        seed = hash(&origin.number.to_le_bytes(), seed);
        seed = hash(&self.record.offset.to_le_bytes(), seed);
        seed = hash(&self.overlay.draws.to_le_bytes(), seed);
        self.overlay.draws += 1;
        self.overlay.drawn = Value::Integer(seed.cast_signed());
        &mut self.overlay.drawn
    }
}

const UNREADABLE: &str = "a field that was found valid when the record was read is not";

impl Target for LazyRecord<'_> {
    fn target_get(&self, path: &OwnedTargetPath) -> Result<Option<&Value>, String> {
        if path.prefix == PathPrefix::Metadata {
            return Ok(self.read_metadata(path));
        }
        match self.slot_of(path) {
            Some((slot, fields, rest)) => Ok(self.load(slot, fields)?.and_then(|value| descend(value, rest))),
            None => Ok(descend(self.tree()?, &path.path.segments)),
        }
    }

    fn target_insert(&mut self, path: &OwnedTargetPath, value: Value) -> Result<(), String> {
        match path.prefix {
            PathPrefix::Event => self.insert_into_body(path, value),
            PathPrefix::Metadata => self.insert_into_metadata(path, value),
        }
    }

    /// VRL's own functions have no use for it; [`DRAW`] has.
    fn target_get_mut(&mut self, path: &OwnedTargetPath) -> Result<Option<&mut Value>, String> {
        match path.prefix {
            PathPrefix::Event => Ok(self.tree_mut()?.get_mut(&path.path)),
            PathPrefix::Metadata if path == &*DRAW => Ok(Some(self.draw())),
            PathPrefix::Metadata => self.fail(format!("`{path}` cannot be changed in place")),
        }
    }

    fn target_remove(&mut self, path: &OwnedTargetPath, compact: bool) -> Result<Option<Value>, String> {
        match path.prefix {
            PathPrefix::Event => self.remove_from_body(path, compact),
            PathPrefix::Metadata => self.remove_from_metadata(path, compact),
        }
    }
}

/// A record has no secrets.
impl SecretTarget for LazyRecord<'_> {
    fn get_secret(&self, _: &str) -> Option<&str> {
        None
    }

    fn insert_secret(&mut self, _: &str, _: &str) {}

    fn remove_secret(&mut self, _: &str) {}
}

impl fmt::Debug for LazyRecord<'_> {
    /// Without content.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LazyRecord").field("offset", &self.record.offset).finish_non_exhaustive()
    }
}

/// The rest of a path.
#[derive(Clone, Copy)]
struct Tail<'a>(&'a [OwnedSegment]);

impl<'a> ValuePath<'a> for Tail<'a> {
    type Iter = std::iter::Map<std::slice::Iter<'a, OwnedSegment>, fn(&'a OwnedSegment) -> BorrowedSegment<'a>>;

    fn segment_iter(&self) -> Self::Iter {
        self.0.iter().map(BorrowedSegment::from)
    }
}

fn descend<'v>(value: &'v Value, path: &[OwnedSegment]) -> Option<&'v Value> {
    if path.is_empty() { Some(value) } else { value.get(Tail(path)) }
}

/// Where a condition that may fail puts its answer, which is also its value.
fn is_verdict(path: &OwnedTargetPath) -> bool {
    matches!(path.path.segments.first(), Some(OwnedSegment::Field(name)) if name.starts_with(super::functions::HIDDEN))
}

pub(super) fn headers_of(batch: &Batch, record: &Record) -> ObjectMap {
    let mut headers = ObjectMap::new();
    for header in batch.headers(record) {
        let name = KeyString::from(String::from_utf8_lossy(header.name));
        let value = header.value.map_or(Value::Null, |value| Value::Bytes(batch.bytes().slice_ref(value)));
        match headers.get_mut(&name) {
            None => {
                headers.insert(name, value);
            }
            Some(Value::Array(values)) => values.push(value),
            Some(first) => *first = Value::Array(vec![std::mem::replace(first, Value::Null), value]),
        }
    }
    headers
}

fn timestamp_of(record: &Record) -> Value {
    let millis = record.timestamp.0;
    let bound =
        if millis < 0 { chrono::DateTime::<chrono::Utc>::MIN_UTC } else { chrono::DateTime::<chrono::Utc>::MAX_UTC };
    Value::Timestamp(chrono::DateTime::from_timestamp_millis(millis).unwrap_or(bound))
}

/// FNV-1a with a final mix: stable over builds and machines, as a replay needs.
pub(super) fn hash(bytes: &[u8], seed: u64) -> u64 {
    let hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325 ^ seed, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    (hash ^ hash >> 31).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
