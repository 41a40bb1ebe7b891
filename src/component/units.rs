//! Values with units, as people write them: `250ms`, `64MiB`.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, Error, Unexpected, Visitor};

/// A duration with its unit: `250ms`, `10s`, `1m`, `2h`, `1d`. A bare number is refused: it would leave the unit to be
/// guessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct HumanDuration(pub Duration);

/// An amount of bytes: `512B`, `64KiB`, `10MB`, `2GiB`, or a bare number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ByteSize(pub u64);

const DURATION_UNITS: &[(&str, u64)] = &[
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
    ("d", 86_400_000_000_000),
];

const SIZE_UNITS: &[(&str, u64)] = &[
    ("B", 1),
    ("kB", 1000),
    ("KB", 1000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

/// `number` × the unit behind it. At most three decimal places, so that no binary fraction is involved.
fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let split = text.find(|letter: char| letter.is_ascii_alphabetic())?;
    let (number, unit) = text.split_at(split);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    let (whole, decimals) = number.trim_end_matches(' ').split_once('.').unwrap_or((number.trim_end_matches(' '), "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(decimals) || decimals.len() > 3 {
        return None;
    }
    let thousandths = format!("{decimals:0<3}").parse::<u64>().ok()?;
    let whole = whole.parse::<u64>().ok()?.checked_mul(*factor)?;
    let fraction = u64::try_from(u128::from(thousandths) * u128::from(*factor) / 1000).ok()?;
    whole.checked_add(fraction)
}

impl HumanDuration {
    /// Reads `250ms`, `1.5s`, `10s`, `1m`, `2h`, `1d`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        scaled(text, DURATION_UNITS).map(|nanos| Self(Duration::from_nanos(nanos)))
    }
}

impl ByteSize {
    /// Reads `1024`, `64KiB`, `1.5GiB`, `10MB`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        text.parse().ok().or_else(|| scaled(text, SIZE_UNITS)).map(Self)
    }
}

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.as_nanos();
        if nanos == 0 {
            return f.write_str("0s");
        }
        match DURATION_UNITS.iter().rev().find(|(_, factor)| nanos.is_multiple_of(u128::from(*factor))) {
            Some((unit, factor)) => write!(f, "{}{unit}", nanos / u128::from(*factor)),
            None => write!(f, "{:?}", self.0),
        }
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let binary = SIZE_UNITS.iter().rev().filter(|(unit, _)| unit.contains('i'));
        match binary.into_iter().find(|(_, factor)| self.0 >= *factor && self.0.is_multiple_of(*factor)) {
            Some((unit, factor)) => write!(f, "{}{unit}", self.0 / factor),
            None => write!(f, "{}B", self.0),
        }
    }
}

impl<'de> Deserialize<'de> for HumanDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = HumanDuration;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration with its unit (`ms`, `s`, `m`, `h` or `d`), such as `10s`")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<HumanDuration, E> {
                HumanDuration::parse(text).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = ByteSize;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an amount of bytes, such as `64KiB`, `10MB` or `2GiB`")
            }

            fn visit_u64<E: Error>(self, bytes: u64) -> Result<ByteSize, E> {
                Ok(ByteSize(bytes))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<ByteSize, E> {
                ByteSize::parse(text).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(Text)
    }
}

impl JsonSchema for HumanDuration {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": r"^[0-9]+(\.[0-9]{1,3})? *(ms|s|m|h|d)$" })
    }
}

impl JsonSchema for ByteSize {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "ByteSize".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["string", "integer"],
            "minimum": 0,
            "pattern": r"^[0-9]+(\.[0-9]{1,3})? *([kKMGT]?B|[KMGT]iB)?$"
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{ByteSize, HumanDuration};

    #[test]
    fn durations_need_their_unit() {
        let parsed = |text| HumanDuration::parse(text).map(|duration| duration.0);
        assert_eq!(parsed("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(parsed("1.5s"), Some(Duration::from_millis(1500)));
        assert_eq!(parsed("2h"), Some(Duration::from_hours(2)));
        assert_eq!(parsed("1d"), Some(Duration::from_hours(24)));
        for wrong in
            ["", "10", "s", "-1s", "1 0s", "1.2.3s", "1.2345s", "10sec", "1e3s", "99999999999999999999s", ".5s"]
        {
            assert_eq!(parsed(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn sizes_are_decimal_or_binary() {
        let parsed = |text| ByteSize::parse(text).map(|size| size.0);
        assert_eq!(parsed("1024"), Some(1024));
        assert_eq!(parsed("64KiB"), Some(65_536));
        assert_eq!(parsed("10MB"), Some(10_000_000));
        assert_eq!(parsed("1.5GiB"), Some(1_610_612_736));
        for wrong in ["", "10M", "10mb", "MiB", "-1", "99999999TiB"] {
            assert_eq!(parsed(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn they_print_as_they_are_written() {
        for text in ["250ms", "10s", "1m", "2h", "1d"] {
            assert_eq!(HumanDuration::parse(text).map(|duration| duration.to_string()).as_deref(), Some(text));
        }
        for text in ["512B", "64KiB", "2GiB"] {
            assert_eq!(ByteSize::parse(text).map(|size| size.to_string()).as_deref(), Some(text));
        }
        assert_eq!(ByteSize(10_000_000).to_string(), "10000000B");
    }
}
