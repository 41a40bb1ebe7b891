//! The parts of a node, as serde asks for them: items, entries, keys, places, variants.

use serde::de::value::StrDeserializer;
use serde::de::{self, DeserializeSeed, EnumAccess, IntoDeserializer, MapAccess, SeqAccess, VariantAccess, Visitor};

use super::At;
use super::error::{Error, Fault, Inner, Raised, State, address};
use super::stand_in::StandIn;
use super::words::{one_of, unknown_key};
use crate::component::node::{Key, Kind, Node};
use crate::component::spanned::{SPANNED, SPANNED_FIELDS};
use crate::component::{Problem, Span, nearest};

/// The items of a list.
pub(super) struct Items<'a> {
    pub(super) items: std::slice::Iter<'a, Node>,
    pub(super) state: &'a State,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        let Some(node) = self.items.next() else { return Ok(None) };
        At { node, key: node.span, state: self.state }.seed(seed).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.items.len())
    }
}

/// The entries of a map, and stand-ins for fields that were found missing.
pub(super) struct Entries<'a> {
    pub(super) at: At<'a>,
    pub(super) known: Vec<&'a (Key, Node)>,
    pub(super) next: usize,
    pub(super) missing: Vec<&'static str>,
    pub(super) value: Option<&'a (Key, Node)>,
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        while let Some(entry) = self.known.get(self.next).copied() {
            self.next += 1;
            let (key, _) = entry;
            if self.at.state.has(Fault::Entry(address(key))) {
                self.at.state.count_stand_in();
                continue;
            }
            self.value = Some(entry);
            return seed.deserialize(InKey { key }).map(Some).map_err(|error| in_key(error, key));
        }
        self.value = None;
        match self.missing.last() {
            Some(field) => {
                let field: StrDeserializer<'_, Error> = (*field).into_deserializer();
                seed.deserialize(field).map(Some)
            }
            None => Ok(None),
        }
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let state = self.at.state;
        let Some((key, node)) = self.value else {
            self.missing.pop();
            state.count_stand_in();
            return seed.deserialize(StandIn::new()).map_err(|_| Error::stand_in_refused());
        };
        At { node, key: key.span, state }.seed(seed).map_err(|error| {
            // A type that takes no stand-in may have a default, or at least its neighbours are read to their end.
            let refused = error.is_stand_in_refused() && !state.has(Fault::Entry(address(key)));
            if refused { Error::placed(Fault::Entry(address(key)), None) } else { error }
        })
    }
}

/// Gives an error in a key its place.
fn in_key(error: Error, key: &Key) -> Error {
    let problem = match *error.0 {
        Inner::Raised(Raised::Expected(expected)) => {
            Problem::error(key.span, format!("expected {expected}, found `{}`", key.name))
        }
        Inner::Raised(Raised::UnknownVariant(found, variants)) => {
            Problem::error(key.span, format!("expected {}, found `{found}`", one_of(variants)))
                .help_if(nearest(&found, variants.iter().copied()), |near| format!("did you mean `{near}`?"))
        }
        Inner::Raised(Raised::UnknownField(_, fields)) => unknown_key(key, fields),
        Inner::Raised(Raised::Words(words)) => Problem::error(key.span, words),
        Inner::Raised(Raised::Missing(_)) | Inner::Placed { .. } | Inner::StandInRefused => return error,
    };
    Error::placed(Fault::Entry(address(key)), Some(problem))
}

/// A key, as a deserializer: text, a number, a word of an enum, or text with its place.
#[derive(Clone, Copy)]
struct InKey<'a> {
    key: &'a Key,
}

macro_rules! key_integers {
    ($($method:ident $visit:ident),*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            visitor.$visit(self.key.name.parse().map_err(|_| Error::expected("a whole number"))?)
        }
    )*};
}

impl<'de> de::Deserializer<'de> for InKey<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_str(&self.key.name)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        if !variants.contains(&self.key.name.as_str()) {
            return Err(Error::raised(Raised::UnknownVariant(self.key.name.clone(), variants)));
        }
        let name: StrDeserializer<'_, Error> = self.key.name.as_str().into_deserializer();
        visitor.visit_enum(name)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match name {
            SPANNED => visitor.visit_map(PlaceOfKey { key: self.key, field: 0 }),
            _ => visitor.visit_str(&self.key.name),
        }
    }

    key_integers!(
        deserialize_i8 visit_i8, deserialize_i16 visit_i16, deserialize_i32 visit_i32, deserialize_i64 visit_i64,
        deserialize_u8 visit_u8, deserialize_u16 visit_u16, deserialize_u32 visit_u32, deserialize_u64 visit_u64
    );

    serde::forward_to_deserialize_any! {
        bool f32 f64 char str string bytes byte_buf unit unit_struct seq tuple tuple_struct map identifier ignored_any
    }
}

/// `Spanned` and `Text`: the value and its place, as the fields of a map.
pub(super) struct Place<'a> {
    pub(super) at: At<'a>,
    pub(super) field: usize,
    pub(super) fields: &'static [&'static str],
}

impl<'de> MapAccess<'de> for Place<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let Some(field) = self.fields.get(self.field) else { return Ok(None) };
        self.field += 1;
        let field: StrDeserializer<'_, Error> = (*field).into_deserializer();
        seed.deserialize(field).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let Span { start, end } = self.at.node.span;
        match self.field {
            1 => self.at.seed(seed),
            2 => seed.deserialize(start.into_deserializer()),
            3 => seed.deserialize(end.into_deserializer()),
            _ => {
                let pairs =
                    if let Kind::Scalar { offsets, .. } = &self.at.node.kind { offsets.as_slice() } else { &[] };
                let flat = pairs.iter().flat_map(|&(in_text, in_file)| [in_text, in_file]);
                seed.deserialize(de::value::SeqDeserializer::new(flat))
            }
        }
    }
}

/// A key and its place, as the fields of a map.
struct PlaceOfKey<'a> {
    key: &'a Key,
    field: usize,
}

impl<'de> MapAccess<'de> for PlaceOfKey<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let Some(field) = SPANNED_FIELDS.get(self.field) else { return Ok(None) };
        self.field += 1;
        let field: StrDeserializer<'_, Error> = (*field).into_deserializer();
        seed.deserialize(field).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        match self.field {
            1 => seed.deserialize(InKey { key: self.key }),
            2 => seed.deserialize(self.key.span.start.into_deserializer()),
            _ => seed.deserialize(self.key.span.end.into_deserializer()),
        }
    }
}

/// A variant of an enum: a word, or a key with its content.
pub(super) struct Variant<'a> {
    pub(super) name: &'a str,
    pub(super) at: At<'a>,
    pub(super) content: Option<At<'a>>,
}

impl<'a> Variant<'a> {
    fn content(self) -> Result<At<'a>, Error> {
        self.content.ok_or_else(|| {
            let problem = Problem::error(self.at.place(), format!("`{}` needs a value", self.name))
                .help(format!("write `{}: …`", self.name));
            Error::placed(Fault::Value(address(self.at.node)), Some(problem))
        })
    }
}

impl<'de, 'a> EnumAccess<'de> for Variant<'a> {
    type Error = Error;
    type Variant = Variant<'a>;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Error> {
        let name: StrDeserializer<'_, Error> = self.name.into_deserializer();
        Ok((seed.deserialize(name)?, self))
    }
}

impl<'de> VariantAccess<'de> for Variant<'_> {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        match self.content {
            Some(content) if !content.node.is_null() && content.node.kind != Kind::Broken => {
                let problem = Problem::error(content.node.span, format!("`{}` takes no value", self.name))
                    .help(format!("write `{}` alone", self.name));
                Err(Error::placed(Fault::Value(address(self.at.node)), Some(problem)))
            }
            _ => Ok(()),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Error> {
        self.content()?.seed(seed)
    }

    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, Error> {
        de::Deserializer::deserialize_tuple(self.content()?, len, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(self, fields: &'static [&'static str], visitor: V) -> Result<V::Value, Error> {
        de::Deserializer::deserialize_struct(self.content()?, "", fields, visitor)
    }
}
