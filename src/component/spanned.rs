//! Values that know where they stand in the pipeline file.
//!
//! `config`'s deserializer recognises these two types by the names below and hands the place over
//! with the value; under any other deserializer they have an empty place.

use std::fmt;
use std::ops::Deref;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

use super::problem::Span;

/// The struct name by which a deserializer recognises [`Spanned`].
pub const SPANNED: &str = "$weir::Spanned";
/// The fields it is given: `value`, `start`, `end`, and for [`Text`] also `offsets`.
pub const SPANNED_FIELDS: &[&str] = &["value", "start", "end"];
/// The struct name by which a deserializer recognises [`Text`].
pub const TEXT: &str = "$weir::Text";
/// The fields it is given. `offsets` is a list of numbers: pairs of (offset in the value, offset in the file).
pub const TEXT_FIELDS: &[&str] = &["value", "start", "end", "offsets"];

/// A value and its place.
#[derive(Debug, Clone, Default)]
pub struct Spanned<T> {
    /// The value.
    pub value: T,
    /// Its place in the file.
    pub span: Span,
}

impl<T> Deref for Spanned<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> Spanned<T> {
    /// A value with a place.
    pub fn new(value: T, span: Span) -> Self {
        Self { value, span }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Spanned<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
            type Value = Spanned<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value with its place")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Spanned<T>, A::Error> {
                let (mut value, mut span) = (None, Span::default());
                while let Some(key) = map.next_key::<String>()? {
                    match key.as_str() {
                        "value" => value = Some(map.next_value()?),
                        "start" => span.start = map.next_value()?,
                        _ => span.end = map.next_value()?,
                    }
                }
                let value = value.ok_or_else(|| serde::de::Error::missing_field("value"))?;
                Ok(Spanned { value, span })
            }
        }
        deserializer.deserialize_struct(SPANNED, SPANNED_FIELDS, Fields(std::marker::PhantomData))
    }
}

impl<T: JsonSchema> JsonSchema for Spanned<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        T::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

/// A text in another language (a VRL program) that stands in the file, and where each part of it stands.
///
/// A block scalar is re-indented and a quoted one unescaped, so an offset in the text is not an offset in the file.
#[derive(Debug, Clone, Default)]
pub struct Text {
    /// The text as its own language reads it.
    pub value: String,
    /// The whole scalar's place.
    pub span: Span,
    /// Pairs of (offset in the text, offset in the file), rising; between two pairs both grow alike, up to the next one.
    pub offsets: Vec<(usize, usize)>,
}

impl Text {
    /// Where in the file a byte of the text stands.
    #[must_use]
    pub fn place(&self, offset: usize) -> usize {
        let after = self.offsets.partition_point(|&(in_text, _)| in_text <= offset);
        // A substituted value may be longer than the text that stands for it.
        let limit = self.offsets.get(after).map_or(self.span.end, |&(_, in_file)| in_file);
        match after.checked_sub(1).map(|at| self.offsets[at]) {
            Some((in_text, in_file)) => (in_file + (offset - in_text)).min(limit),
            None => self.span.start,
        }
    }

    /// Where in the file a range of the text stands.
    #[must_use]
    pub fn span_of(&self, start: usize, end: usize) -> Span {
        let start = self.place(start);
        Span { start, end: self.place(end).max(start) }
    }
}

impl From<&str> for Text {
    fn from(value: &str) -> Self {
        Self { value: value.to_owned(), span: Span { start: 0, end: value.len() }, offsets: vec![(0, 0)] }
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Text;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a program as text")
            }

            fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Text, E> {
                Ok(Text::from(value))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Text, A::Error> {
                let mut text = Text::default();
                let mut offsets = Vec::<usize>::new();
                while let Some(key) = map.next_key::<String>()? {
                    match key.as_str() {
                        "value" => text.value = map.next_value()?,
                        "start" => text.span.start = map.next_value()?,
                        "end" => text.span.end = map.next_value()?,
                        _ => offsets = map.next_value()?,
                    }
                }
                text.offsets = offsets.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
                Ok(text)
            }
        }
        deserializer.deserialize_struct(TEXT, TEXT_FIELDS, Fields)
    }
}

impl JsonSchema for Text {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Text".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        String::json_schema(generator)
    }
}
