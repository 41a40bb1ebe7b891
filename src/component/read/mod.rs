//! How a config struct is read from the tree: a serde deserializer that finds every mistake.
//!
//! Serde stops at the first error. So the tree is read again and again: each round reports one
//! mistake and puts a stand-in (an empty list, `1`, the first variant) in the place of the value
//! that is wrong, or of the one that is missing, until a round passes. A value that was made with a
//! stand-in is thrown away. Unknown keys are seen before serde sees them, and are left out.

mod access;
mod error;
mod stand_in;
mod words;

use std::marker::PhantomData;

use serde::de::{self, DeserializeOwned, DeserializeSeed, Visitor};

use self::access::{Entries, Items, Place, Variant};
use self::error::{Error, Fault, Inner, Raised, State, address};
use self::stand_in::StandIn;
use self::words::{meant_field, missing_field, one_of, shows_secret, unknown_key};
use super::nearest::nearest;
use super::node::{Key, Kind, Node, Style, Typed};
use super::problem::{Problem, Span};
use super::spanned::{SPANNED, TEXT};

/// Reads a value from the tree.
///
/// # Errors
/// All mistakes: unknown and missing fields, wrong types, values out of range. None if all of them were reported when
/// the tree was made.
pub fn read<T: DeserializeOwned>(node: &Node) -> Result<T, Vec<Problem>> {
    read_at(node, node.span)
}

/// Reads a value from the tree. What is missing from it is reported at `key`.
///
/// # Errors
/// As [`read`].
pub fn read_at<T: DeserializeOwned>(node: &Node, key: Span) -> Result<T, Vec<Problem>> {
    /// Enough for any person, and few enough that a hostile file costs little.
    const MOST_ROUNDS: usize = 100;
    let state = State::default();
    for _ in 0..MOST_ROUNDS {
        state.used.set(0);
        match (At { node, key, state: &state }).seed(PhantomData) {
            Ok(value) if state.used.get() == 0 && state.problems.borrow().is_empty() => return Ok(value),
            Ok(_) => break,
            Err(error) => {
                if !state.absorb(error) {
                    break;
                }
            }
        }
    }
    Err(state.problems.into_inner())
}

/// A node, as a deserializer.
#[derive(Clone, Copy)]
struct At<'a> {
    node: &'a Node,
    /// Where to report what is missing from it.
    key: Span,
    state: &'a State,
}

impl<'a> At<'a> {
    /// Reads what a seed makes of the node. A type may refuse it after the last of its parts was read.
    fn seed<'de, T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Error> {
        let before = self.state.used.get();
        seed.deserialize(self).map_err(|error| {
            if self.is_replaced() {
                Error::stand_in_refused()
            } else {
                self.blame(error, self.state.used.get() > before)
            }
        })
    }

    fn is_replaced(self) -> bool {
        self.node.kind == Kind::Broken || self.state.has(Fault::Value(address(self.node)))
    }

    /// Reads the node, or its stand-in if a mistake in it was reported.
    fn with<'de, V: Visitor<'de>>(
        self,
        visitor: V,
        read: impl FnOnce(Self, V) -> Result<V::Value, Error>,
        stand_in: impl FnOnce(StandIn, V) -> Result<V::Value, Error>,
    ) -> Result<V::Value, Error> {
        if self.is_replaced() {
            self.state.count_stand_in();
            return stand_in(StandIn::new(), visitor).map_err(|_| Error::stand_in_refused());
        }
        let before = self.state.used.get();
        read(self, visitor).map_err(|error| self.blame(error, self.state.used.get() > before))
    }

    /// Gives an error its place: this node, unless it has one.
    fn blame(self, error: Error, follows: bool) -> Error {
        let here = Fault::Value(address(self.node));
        match *error.0 {
            Inner::Placed { .. } => error,
            Inner::StandInRefused => Error::placed(here, None),
            Inner::Raised(Raised::Missing(field)) => self.missing(field),
            Inner::Raised(Raised::UnknownField(name, fields)) => self.unknown_field(&name, fields),
            // What a type says of a value that is partly a stand-in is no mistake of the file.
            Inner::Raised(_) if follows => Error::placed(here, None),
            Inner::Raised(Raised::Expected(expected)) => Error::placed(here, Some(self.mismatch(&expected))),
            Inner::Raised(Raised::UnknownVariant(found, variants)) => {
                Error::placed(here, Some(self.unknown_variant(&found, variants)))
            }
            Inner::Raised(Raised::Words(words)) => {
                let words = if shows_secret(self.node, &words) {
                    "this value is not accepted here; it was substituted, and is not shown".to_owned()
                } else {
                    words
                };
                Error::placed(here, Some(Problem::error(self.node.span, words)))
            }
        }
    }

    fn mismatch(self, expected: &str) -> Problem {
        let problem = Problem::error(self.place(), format!("expected {expected}, found {}", self.node.describe()));
        let Some(text) = self.node.text().filter(|_| !self.node.is_secret()) else { return problem };
        let quoted = matches!(self.node.kind, Kind::Scalar { style: Style::Quoted, .. });
        if quoted && !matches!(Typed::of(text), Typed::Text | Typed::Null) && expected != "keys and values" {
            return problem.help(format!("remove the quotes: `{text}`"));
        }
        if expected == "`true` or `false`" {
            let meant = match text.to_ascii_lowercase().as_str() {
                "yes" | "y" | "on" | "1" => Some("true"),
                "no" | "n" | "off" | "0" => Some("false"),
                _ => None,
            };
            return problem.help_if(meant, |meant| format!("write `{meant}`"));
        }
        if !quoted && expected == "keys and values" && text.contains(':') {
            return problem.help("put a space after the colon");
        }
        if !quoted && expected == "a list" && text.len() < 60 && !text.contains([',', '\n']) {
            return problem.help(format!("write `[{text}]`"));
        }
        problem
    }

    /// The node's own place, or its key's if there is nothing to underline.
    fn place(self) -> Span {
        if self.node.span.start < self.node.span.end { self.node.span } else { self.key }
    }

    fn missing(self, field: &'static str) -> Error {
        let fault = Fault::Missing(address(self.node), field);
        let Kind::Map(entries) = &self.node.kind else {
            return Error::placed(fault, Some(missing_field(self.key, field)));
        };
        let unknown = self.state.unknown.borrow();
        let follows = entries.iter().any(|(key, _)| {
            self.state.has(Fault::Entry(address(key))) && key.name == field
                || unknown.contains(&(address(key), Some(field.to_owned())))
        });
        Error::placed(fault, (!follows).then(|| missing_field(self.key, field)))
    }

    fn unknown_field(self, name: &str, fields: &[&str]) -> Error {
        let entries = if let Kind::Map(entries) = &self.node.kind { entries.as_slice() } else { &[] };
        match entries.iter().find(|(key, _)| key.name == name) {
            Some((key, _)) => Error::placed(Fault::Entry(address(key)), Some(unknown_key(key, fields))),
            None => Error::placed(Fault::Value(address(self.node)), None),
        }
    }

    fn unknown_variant(self, found: &str, variants: &[&str]) -> Problem {
        let span = match &self.node.kind {
            Kind::Map(entries) => entries.first().map_or(self.node.span, |(key, _)| key.span),
            _ => self.place(),
        };
        if self.node.is_secret() {
            return Problem::error(span, format!("expected {}, found {}", one_of(variants), self.node.describe()));
        }
        Problem::error(span, format!("expected {}, found `{found}`", one_of(variants)))
            .help_if(nearest(found, variants.iter().copied()), |near| format!("did you mean `{near}`?"))
    }

    /// The entries of a map; nothing is an empty map.
    fn entries(self) -> Result<&'a [(Key, Node)], Error> {
        match &self.node.kind {
            Kind::Map(entries) => Ok(entries),
            _ if self.node.is_null() => Ok(&[]),
            _ => Err(Error::expected("keys and values")),
        }
    }

    fn items(self) -> Result<&'a [Node], Error> {
        match &self.node.kind {
            Kind::List(items) => Ok(items),
            _ => Err(Error::expected("a list")),
        }
    }

    fn scalar(self, expected: &str) -> Result<&'a str, Error> {
        self.node.text().ok_or_else(|| Error::expected(expected))
    }

    /// What a plain scalar means; quoted and block ones are text.
    fn typed(self, expected: &str) -> Result<Typed, Error> {
        let text = self.scalar(expected)?;
        Ok(if matches!(self.node.kind, Kind::Scalar { style: Style::Plain, .. }) {
            Typed::of(text)
        } else {
            Typed::Text
        })
    }

    fn integer(self, min: i128, max: i128) -> Result<i128, Error> {
        let expected = match (min, max) {
            (0, max) if max > i128::from(u32::MAX) => "a whole number, 0 or more".to_owned(),
            (_, max) if max > i128::from(u32::MAX) => "a whole number".to_owned(),
            _ => format!("a whole number from {min} to {max}"),
        };
        match self.typed(&expected)? {
            Typed::Integer(value) if (min..=max).contains(&value) => Ok(value),
            _ => Err(Error::expected(expected)),
        }
    }

    fn float(self) -> Result<f64, Error> {
        match self.typed("a number")? {
            Typed::Float(value) => Ok(value),
            #[expect(clippy::cast_precision_loss, reason = "a float field takes the nearest float")]
            Typed::Integer(value) => Ok(value as f64),
            _ => Err(Error::expected("a number")),
        }
    }

    /// Reports each key that is no field, and returns the others.
    fn known(self, entries: &'a [(Key, Node)], fields: &'static [&'static str]) -> Vec<&'a (Key, Node)> {
        let (known, unknown) = entries.iter().partition::<Vec<_>, _>(|(key, _)| fields.contains(&key.name.as_str()));
        for (key, _) in unknown {
            let near = meant_field(&key.name, fields).map(str::to_owned);
            if self.state.unknown.borrow_mut().insert((address(key), near)) {
                self.state.problems.borrow_mut().push(unknown_key(key, fields));
            }
        }
        known
    }

    fn read_enum<'de, V: Visitor<'de>>(self, variants: &'static [&'static str], visitor: V) -> Result<V::Value, Error> {
        let unknown = |name: &str| Error::raised(Raised::UnknownVariant(name.to_owned(), variants));
        if let Kind::Map(entries) = &self.node.kind {
            let [(key, value)] = entries.as_slice() else {
                return Err(Error::expected(format!("{}, and only one", one_of(variants))));
            };
            if !variants.contains(&key.name.as_str()) {
                return Err(unknown(&key.name));
            }
            let content = At { node: value, key: key.span, state: self.state };
            return visitor.visit_enum(Variant { name: &key.name, at: self, content: Some(content) });
        }
        let name = self.scalar(&one_of(variants))?;
        if variants.contains(&name) {
            visitor.visit_enum(Variant { name, at: self, content: None })
        } else {
            Err(unknown(name))
        }
    }

    fn read_struct<'de, V: Visitor<'de>>(self, fields: &'static [&'static str], visitor: V) -> Result<V::Value, Error> {
        let known = self.known(self.entries()?, fields);
        let node = address(self.node);
        let missing = fields.iter().copied().filter(|field| self.state.has(Fault::Missing(node, field))).collect();
        visitor.visit_map(Entries { at: self, known, next: 0, missing, value: None })
    }
}

macro_rules! integers {
    ($($method:ident $visit:ident $type:ty),*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            self.with(
                visitor,
                |at, visitor| {
                    let value = at.integer(<$type>::MIN.into(), <$type>::MAX.into())?;
                    visitor.$visit(<$type>::try_from(value).map_err(|_| Error::expected("a whole number"))?)
                },
                de::Deserializer::$method,
            )
        }
    )*};
}

impl<'de> de::Deserializer<'de> for At<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.with(
            visitor,
            |at, visitor| match &at.node.kind {
                Kind::List(_) => at.deserialize_seq(visitor),
                Kind::Map(_) => at.deserialize_map(visitor),
                _ if at.node.is_null() => visitor.visit_unit(),
                _ => {
                    let text = at.scalar("a value")?;
                    match at.typed("a value")? {
                        Typed::Bool(value) => visitor.visit_bool(value),
                        Typed::Float(value) => visitor.visit_f64(value),
                        Typed::Integer(value) => match (u64::try_from(value), i64::try_from(value)) {
                            (Ok(value), _) => visitor.visit_u64(value),
                            (_, Ok(value)) => visitor.visit_i64(value),
                            _ => visitor.visit_str(text),
                        },
                        Typed::Text | Typed::Null => visitor.visit_str(text),
                    }
                }
            },
            de::Deserializer::deserialize_any,
        )
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.with(
            visitor,
            |at, visitor| match at.typed("`true` or `false`")? {
                Typed::Bool(value) => visitor.visit_bool(value),
                _ => Err(Error::expected("`true` or `false`")),
            },
            de::Deserializer::deserialize_bool,
        )
    }

    integers!(
        deserialize_i8 visit_i8 i8, deserialize_i16 visit_i16 i16, deserialize_i32 visit_i32 i32,
        deserialize_i64 visit_i64 i64, deserialize_u8 visit_u8 u8, deserialize_u16 visit_u16 u16,
        deserialize_u32 visit_u32 u32, deserialize_u64 visit_u64 u64
    );

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.with(visitor, |at, visitor| visitor.visit_f64(at.float()?), de::Deserializer::deserialize_f64)
    }

    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.with(
            visitor,
            |at, visitor| {
                let mut letters = at.scalar("a single character")?.chars();
                match (letters.next(), letters.next()) {
                    (Some(letter), None) => visitor.visit_char(letter),
                    _ => Err(Error::expected("a single character")),
                }
            },
            de::Deserializer::deserialize_char,
        )
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.with(visitor, |at, visitor| visitor.visit_str(at.scalar("text")?), de::Deserializer::deserialize_str)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.with(
            visitor,
            |at, visitor| visitor.visit_bytes(at.scalar("text")?.as_bytes()),
            de::Deserializer::deserialize_bytes,
        )
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_bytes(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.with(
            visitor,
            |at, visitor| if at.node.is_null() { visitor.visit_none() } else { visitor.visit_some(at) },
            de::Deserializer::deserialize_option,
        )
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.with(
            visitor,
            |at, visitor| if at.node.is_null() { visitor.visit_unit() } else { Err(Error::expected("nothing")) },
            de::Deserializer::deserialize_unit,
        )
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, Error> {
        self.with(
            visitor,
            |at, visitor| visitor.visit_newtype_struct(at),
            |stand_in, visitor| stand_in.deserialize_newtype_struct(name, visitor),
        )
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.with(
            visitor,
            |at, visitor| visitor.visit_seq(Items { items: at.items()?.iter(), state: at.state }),
            de::Deserializer::deserialize_seq,
        )
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, Error> {
        self.with(
            visitor,
            |at, visitor| match at.items()? {
                items if items.len() == len => visitor.visit_seq(Items { items: items.iter(), state: at.state }),
                _ => Err(Error::expected(format!("a list of {len}"))),
            },
            |stand_in, visitor| stand_in.deserialize_tuple(len, visitor),
        )
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_tuple(len, visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.with(
            visitor,
            |at, visitor| {
                let known = at.entries()?.iter().collect();
                visitor.visit_map(Entries { at, known, next: 0, missing: Vec::new(), value: None })
            },
            de::Deserializer::deserialize_map,
        )
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.with(
            visitor,
            |at, visitor| match name {
                SPANNED | TEXT => visitor.visit_map(Place { at, field: 0, fields }),
                _ => at.read_struct(fields, visitor),
            },
            |stand_in, visitor| stand_in.deserialize_struct(name, fields, visitor),
        )
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.with(
            visitor,
            |at, visitor| at.read_enum(variants, visitor),
            |stand_in, visitor| stand_in.deserialize_enum(name, variants, visitor),
        )
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::component::{HumanDuration, Spanned};

    fn scalar(text: &str) -> Node {
        let kind = Kind::Scalar { text: text.to_owned(), style: Style::Plain, offsets: Vec::new(), secret: false };
        Node { span: Span { start: 10, end: 10 + text.len() }, kind }
    }

    fn secret(text: &str) -> Node {
        let kind = Kind::Scalar { text: text.to_owned(), style: Style::Plain, offsets: Vec::new(), secret: true };
        Node { span: Span { start: 10, end: 20 }, kind }
    }

    fn map<const N: usize>(entries: [(&str, Node); N]) -> Node {
        let key = |name: &str| Key { name: name.to_owned(), span: Span { start: 0, end: name.len() } };
        let entries = entries.into_iter().map(|(name, node)| (key(name), node)).collect();
        Node { span: Span { start: 0, end: 50 }, kind: Kind::Map(entries) }
    }

    fn messages(problems: &[Problem]) -> Vec<&str> {
        problems.iter().map(|problem| problem.message.as_str()).collect()
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Config {
        brokers: String,
        port: u16,
        #[serde(default)]
        mode: Mode,
        linger: Option<HumanDurationOf>,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    struct HumanDurationOf(HumanDuration);

    #[derive(Debug, Deserialize, Default, PartialEq)]
    #[serde(rename_all = "snake_case")]
    enum Mode {
        #[default]
        Earliest,
        Latest,
        At {
            time: String,
        },
    }

    #[test]
    fn plain_scalars_are_typed_by_the_field() {
        let node = map([("brokers", scalar("1.10")), ("port", scalar("9092")), ("mode", scalar("latest"))]);
        let config = read::<Config>(&node).unwrap();
        assert_eq!(config, Config { brokers: "1.10".into(), port: 9092, mode: Mode::Latest, linger: None });
    }

    #[test]
    fn every_mistake_is_reported() {
        let node = map([
            ("brokerz", scalar("a")),
            ("port", scalar("70000")),
            ("mode", scalar("lates")),
            ("linger", scalar("5")),
        ]);
        let problems = read::<Config>(&node).unwrap_err();
        assert_eq!(
            messages(&problems),
            [
                "unknown field `brokerz`",
                "expected a whole number from 0 to 65535, found the number `70000`",
                "expected one of `earliest`, `latest`, `at`, found `lates`",
                "expected a duration with its unit (`ms`, `s`, `m`, `h` or `d`), such as `10s`, found the number `5`",
            ],
            "and that `brokers` is missing follows from the first"
        );
    }

    #[test]
    fn every_missing_field_is_reported() {
        let problems = read::<Config>(&map([("mode", map([("at", map([]))]))])).unwrap_err();
        assert_eq!(
            messages(&problems),
            ["the field `time` is missing", "the field `brokers` is missing", "the field `port` is missing"]
        );
    }

    #[test]
    fn a_broken_value_is_not_reported_again() {
        let broken = Node { span: Span::default(), kind: Kind::Broken };
        let node = map([("brokers", scalar("a")), ("port", broken)]);
        assert_eq!(read::<Config>(&node), Err(Vec::new()));
    }

    #[test]
    fn a_secret_is_never_shown() {
        let node = map([("brokers", scalar("a")), ("port", secret("hunter2")), ("mode", secret("hunter2"))]);
        for problem in read::<Config>(&node).unwrap_err() {
            assert!(!format!("{problem:?}").contains("hunter2"), "{problem:?}");
        }
    }

    #[derive(Debug, Deserialize)]
    #[serde(try_from = "RangeOf")]
    struct Range;

    #[derive(Debug, Deserialize)]
    struct RangeOf {
        min: u8,
        max: u8,
    }

    impl TryFrom<RangeOf> for Range {
        type Error = String;

        fn try_from(of: RangeOf) -> Result<Self, String> {
            if of.min < of.max { Ok(Self) } else { Err("`min` must be below `max`".to_owned()) }
        }
    }

    #[test]
    fn what_follows_from_a_mistake_is_not_reported() {
        let wrong = read::<Range>(&map([("min", scalar("2")), ("max", scalar("1"))])).unwrap_err();
        assert_eq!(messages(&wrong), ["`min` must be below `max`"]);
        let follows = read::<Range>(&map([("min", scalar("x")), ("max", scalar("1"))])).unwrap_err();
        assert_eq!(messages(&follows), ["expected a whole number from 0 to 255, found the text `x`"]);
    }

    #[test]
    fn places_are_handed_over() {
        let value = read::<Spanned<u8>>(&scalar("7")).unwrap();
        assert_eq!((value.value, value.span), (7, Span { start: 10, end: 11 }));
        let keys = read::<std::collections::HashMap<String, Spanned<u8>>>(&map([("a", scalar("7"))])).unwrap();
        assert_eq!(keys["a"].span.start, 10);
    }

    #[test]
    fn a_type_that_refuses_every_stand_in_hides_no_neighbour() {
        #[derive(Debug)]
        struct Never;
        impl<'de> Deserialize<'de> for Never {
            fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                <String as Deserialize>::deserialize(deserializer)?;
                Err(de::Error::custom("never right"))
            }
        }
        #[derive(Debug, Deserialize)]
        #[expect(dead_code, reason = "only read")]
        struct Two {
            first: Never,
            second: u8,
        }
        let problems = read::<Two>(&map([("first", scalar("a")), ("second", scalar("b"))])).unwrap_err();
        assert_eq!(problems.len(), 2, "{problems:?}");
    }
}
