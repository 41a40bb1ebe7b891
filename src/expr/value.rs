//! Between JSON text and VRL's values.
//!
//! Numbers: a field that no program touches keeps its number as it was written. One that is read becomes an `i64` if it
//! is an integer that fits, else an `f64`, which may round it. A value that is written stands in its shortest form;
//! timestamps become RFC 3339 strings, regular expressions their source text, and bytes that are not UTF-8 are
//! replaced by U+FFFD, as JSON has no form for them.

use bytes::Bytes;
use vrl::prelude::NotNan;
use vrl::value::{KeyString, ObjectMap, Value};

use crate::record::{ByteRange, Field, json};

/// JSON that a decoder let through and a parser here did not: a bug, which costs the record and not the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unreadable;

/// Reads the JSON value in a range of a batch. Strings without escapes share the batch's bytes.
pub(super) fn read(bytes: &Bytes, range: ByteRange) -> Result<Value, Unreadable> {
    let text = &bytes[..range.range().end];
    let (value, _) = Reader { bytes, text }.value(range.range().start, 0).ok_or(Unreadable)?;
    Ok(value)
}

/// Reads a field. Most are strings as they stand, which need no second look.
#[inline]
pub(super) fn read_field(bytes: &Bytes, field: &Field) -> Result<Value, Unreadable> {
    let range = field.value.range();
    if bytes[range.start] == b'"' && !field.escaped_value {
        return Ok(Value::Bytes(bytes.slice(range.start + 1..range.end - 1)));
    }
    read(bytes, field.value)
}

/// Reads an object whose top level is indexed. Of equal keys the last counts.
pub(super) fn read_object(bytes: &Bytes, fields: &[Field]) -> Result<Value, Unreadable> {
    let mut object = ObjectMap::new();
    for field in fields {
        let key = key_of(&bytes[field.key.range()]).ok_or(Unreadable)?;
        object.insert(key, read_field(bytes, field)?);
    }
    Ok(Value::Object(object))
}

fn key_of(raw: &[u8]) -> Option<KeyString> {
    let key = json::unescape(raw);
    Some(KeyString::from(std::str::from_utf8(&key).ok()?))
}

/// Parses text that the scanner has validated. It recurses, which is safe: the scanner limits the depth.
struct Reader<'a> {
    bytes: &'a Bytes,
    text: &'a [u8],
}

impl Reader<'_> {
    fn value(&self, at: usize, depth: u32) -> Option<(Value, usize)> {
        match *self.text.get(at)? {
            b'"' => {
                let (end, escaped) = self.string_end(at + 1)?;
                Some((self.string(at + 1, end, escaped), end + 1))
            }
            b'{' if depth < json::MAX_DEPTH => self.object(at + 1, depth + 1),
            b'[' if depth < json::MAX_DEPTH => self.array(at + 1, depth + 1),
            b't' => Some((Value::Boolean(true), at + 4)),
            b'f' => Some((Value::Boolean(false), at + 5)),
            b'n' => Some((Value::Null, at + 4)),
            _ => self.number(at),
        }
    }

    fn object(&self, at: usize, depth: u32) -> Option<(Value, usize)> {
        let mut object = ObjectMap::new();
        let mut at = self.skip_space(at);
        if self.text.get(at) == Some(&b'}') {
            return Some((Value::Object(object), at + 1));
        }
        loop {
            let (end, _) = self.string_end(at + 1)?;
            let key = key_of(&self.text[at + 1..end])?;
            let colon = self.skip_space(end + 1);
            let (value, behind) = self.value(self.skip_space(colon + 1), depth)?;
            object.insert(key, value);
            at = self.skip_space(behind);
            if self.text.get(at) == Some(&b'}') {
                return Some((Value::Object(object), at + 1));
            }
            at = self.skip_space(at + 1);
        }
    }

    fn array(&self, at: usize, depth: u32) -> Option<(Value, usize)> {
        let mut items = Vec::new();
        let mut at = self.skip_space(at);
        if self.text.get(at) == Some(&b']') {
            return Some((Value::Array(items), at + 1));
        }
        loop {
            let (value, behind) = self.value(at, depth)?;
            items.push(value);
            at = self.skip_space(behind);
            if self.text.get(at) == Some(&b']') {
                return Some((Value::Array(items), at + 1));
            }
            at = self.skip_space(at + 1);
        }
    }

    /// The closing quote of a string, and whether it holds an escape.
    fn string_end(&self, start: usize) -> Option<(usize, bool)> {
        let mut at = start;
        let mut escaped = false;
        loop {
            at += memchr::memchr2(b'"', b'\\', self.text.get(at..)?)?;
            if self.text[at] == b'"' {
                return Some((at, escaped));
            }
            escaped = true;
            at += 2;
        }
    }

    fn string(&self, start: usize, end: usize, escaped: bool) -> Value {
        if escaped {
            Value::Bytes(json::unescape(&self.text[start..end]).into_owned().into())
        } else {
            Value::Bytes(self.bytes.slice(start..end))
        }
    }

    fn number(&self, start: usize) -> Option<(Value, usize)> {
        let text = &self.text[start..];
        let is_part = |byte: &&u8| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E');
        let length = text.iter().take_while(is_part).count();
        let value = integer(&text[..length]).map_or_else(|| float(&text[..length]), |integer| Some(integer.into()))?;
        Some((value, start + length))
    }

    fn skip_space(&self, mut at: usize) -> usize {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.text.get(at) {
            at += 1;
        }
        at
    }
}

/// An integer that fits. Minus zero does not: only a float has it.
fn integer(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text.split_first()? {
        (b'-', digits) => (true, digits),
        _ => (false, text),
    };
    if digits == b"0" {
        return (!negative).then_some(0);
    }
    digits.iter().try_fold(0_i64, |number, byte| {
        let digit = i64::from(byte.wrapping_sub(b'0'));
        let number = number.checked_mul(10).filter(|_| digit < 10)?;
        if negative { number.checked_sub(digit) } else { number.checked_add(digit) }
    })
}

fn float(text: &[u8]) -> Option<Value> {
    let number = std::str::from_utf8(text).ok()?.parse().ok()?;
    Some(Value::Float(NotNan::new(number).ok()?))
}

/// Why a value cannot be written as JSON that every reader here accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unwritable {
    /// A float that JSON has no form for.
    Infinite,
    /// Arrays and objects nested deeper than a decoder lets through.
    TooDeep,
}

/// Appends a value as JSON; `depth` counts the arrays and objects around it.
pub(super) fn write(value: &Value, depth: u32, out: &mut Vec<u8>) -> Result<(), Unwritable> {
    match value {
        Value::Bytes(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => json::write_string(text, out),
            Err(_) => json::write_string(&String::from_utf8_lossy(bytes), out),
        },
        Value::String(text) => json::write_string(text, out),
        Value::Integer(number) => write_number(number, out)?,
        // A whole one keeps its `.0`, so that it stays a float for whoever reads it.
        Value::Float(number) if number.is_finite() => write_number(&number.into_inner(), out)?,
        Value::Float(_) => return Err(Unwritable::Infinite),
        Value::Boolean(true) => out.extend_from_slice(b"true"),
        Value::Boolean(false) => out.extend_from_slice(b"false"),
        Value::Null => out.extend_from_slice(b"null"),
        Value::Timestamp(_) | Value::Regex(_) => json::write_string(&value.to_string_lossy(), out),
        Value::Array(_) | Value::Object(_) if depth == json::MAX_DEPTH => return Err(Unwritable::TooDeep),
        Value::Array(items) => {
            out.push(b'[');
            for (number, item) in items.iter().enumerate() {
                if number > 0 {
                    out.push(b',');
                }
                write(item, depth + 1, out)?;
            }
            out.push(b']');
        }
        Value::Object(object) => {
            out.push(b'{');
            for (number, (key, value)) in object.iter().enumerate() {
                if number > 0 {
                    out.push(b',');
                }
                json::write_string(key, out);
                out.push(b':');
                write(value, depth + 1, out)?;
            }
            out.push(b'}');
        }
    }
    Ok(())
}

fn write_number(number: &impl serde::Serialize, out: &mut Vec<u8>) -> Result<(), Unwritable> {
    serde_json::to_writer(out, number).map_err(|_| Unwritable::Infinite)
}

/// A scalar as text: what a key or a header holds. `None` for what has no such form.
pub(super) fn text_of(value: &Value) -> Option<Bytes> {
    match value {
        Value::Array(_) | Value::Object(_) | Value::Null => None,
        scalar => Some(scalar.coerce_to_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Value {
        let bytes = Bytes::copy_from_slice(text.as_bytes());
        read(&bytes, ByteRange::new(0, bytes.len())).unwrap()
    }

    fn write_text(value: &Value) -> String {
        let mut out = Vec::new();
        write(value, 0, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn json_is_read_as_vrl_itself_reads_it() {
        for text in [
            "null",
            "true",
            "false",
            "0",
            "-0",
            "-1",
            "9223372036854775807",
            "-9223372036854775808",
            "9223372036854775808",
            "18446744073709551615",
            "18446744073709551616",
            "1.5",
            "-1e3",
            "1e-400",
            "\"\"",
            "\"plain\"",
            r#""es\"ca\\ped \u00e9 \ud83d\ude00 \/""#,
            "[]",
            "{}",
            "[ 1 , [ ] , { } ]",
            r#"{ "b" : { "x" : [ null ] } , "a" : "é" , "b" : 2 , "\u0061" : 3 }"#,
        ] {
            assert_eq!(read_text(text), serde_json::from_str::<Value>(text).unwrap(), "{text}");
        }
    }

    #[test]
    fn a_string_without_escapes_shares_the_bytes_of_its_batch() {
        let bytes = Bytes::from_static(b"\"shared\"");
        let Value::Bytes(text) = read(&bytes, ByteRange::new(0, 8)).unwrap() else { panic!("a string is bytes") };
        assert_eq!(text.as_ptr(), bytes[1..].as_ptr());
    }

    #[test]
    fn values_are_written_as_vrl_itself_writes_them() {
        for text in [
            "null",
            "true",
            "-17",
            "1.0",
            "1e300",
            "1.0e-7",
            "\"tab\\t quote\\\" control\\u0001 é\"",
            r#"{"a":[1,{"b":null}],"c":{}}"#,
        ] {
            let value: Value = serde_json::from_str(text).unwrap();
            assert_eq!(write_text(&value), serde_json::to_string(&value).unwrap(), "{text}");
        }
        let bytes = Value::Bytes(Bytes::from_static(b"a\xffb"));
        assert_eq!(write_text(&bytes), "\"a\u{fffd}b\"");
        let infinite = Value::Float(NotNan::new(f64::INFINITY).unwrap());
        assert_eq!(write(&infinite, 0, &mut Vec::new()), Err(Unwritable::Infinite));
        let nested = |depth| (0..depth).fold(Value::Null, |value, _| Value::Array(vec![value]));
        assert_eq!(write(&nested(127), 0, &mut Vec::new()), Ok(()));
        assert_eq!(write(&nested(128), 0, &mut Vec::new()), Err(Unwritable::TooDeep));
    }
}
