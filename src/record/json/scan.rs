//! The scanner: validates all of a body and indexes its top-level fields, in one pass and without recursion.
//!
//! It sees every record, so it is written for speed: strings go by eight bytes at a time, `None` stands for every
//! mistake, and the reason is looked for afterwards, by a slower reader, only where there is one.

use super::Malformed;
use super::keys::{KeyFilter, has_duplicates};
use crate::record::{ByteRange, Field, FieldRange, index_u32};

/// How deep arrays and objects may nest; `serde_json` has the same limit.
pub const MAX_DEPTH: u32 = 127;

/// What the scanner found in a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Indexed {
    /// The top-level fields; `None` if the body is not an object.
    pub fields: Option<FieldRange>,
    /// Whether two of them have the same name.
    pub duplicate_keys: bool,
}

/// Validates the JSON value in `bytes[body]` and appends its top-level fields to `fields`. If it is malformed, `fields`
/// is left as it was.
///
/// # Errors
/// What is wrong with it, and where.
///
/// # Panics
/// If `body` is not a range of `bytes`.
pub fn index(bytes: &[u8], body: ByteRange, fields: &mut Vec<Field>) -> Result<Indexed, Malformed> {
    let first = fields.len();
    // Only the end is cut off: places in the index are places in `bytes`.
    let text = &bytes[..body.range().end];
    scan(text, body.range().start, fields).ok_or_else(|| {
        fields.truncate(first);
        Malformed::explain(&bytes[body.range()])
    })
}

fn scan(text: &[u8], start: usize, fields: &mut Vec<Field>) -> Option<Indexed> {
    let at = skip_space(text, start);
    let (indexed, at) = if text.get(at) == Some(&b'{') {
        object(text, at + 1, fields)?
    } else {
        (Indexed { fields: None, duplicate_keys: false }, value(text, at)?)
    };
    (skip_space(text, at) == text.len()).then_some(indexed)
}

/// The body's own object, from behind its brace.
fn object(text: &[u8], start: usize, fields: &mut Vec<Field>) -> Option<(Indexed, usize)> {
    let first = fields.len();
    let mut filter = KeyFilter::default();
    let mut duplicate_keys = false;
    let mut escaped = false;
    let mut at = skip_space(text, start);
    if text.get(at) == Some(&b'}') {
        at += 1;
    } else {
        loop {
            if *text.get(at)? != b'"' {
                return None;
            }
            let key = string(text, at + 1)?;
            let colon = skip_space(text, key.end + 1);
            if *text.get(colon)? != b':' {
                return None;
            }
            let value_start = skip_space(text, colon + 1);
            let (value_end, escaped_value) = match *text.get(value_start)? {
                b'"' => string(text, value_start + 1).map(|string| (string.end + 1, string.escaped))?,
                b'{' | b'[' => (nested(text, value_start, 1)?, false),
                _ => (literal(text, value_start)?, false),
            };
            escaped |= key.escaped;
            let name = &text[at + 1..key.end];
            duplicate_keys |=
                filter.seen_before(name) && fields[first..].iter().any(|field| text[field.key.range()] == *name);
            fields.push(Field {
                key: ByteRange::new(at + 1, key.end),
                value: ByteRange::new(value_start, value_end),
                escaped_key: key.escaped,
                escaped_value,
            });
            at = skip_space(text, value_end);
            match *text.get(at)? {
                b',' => at = skip_space(text, at + 1),
                b'}' => {
                    at += 1;
                    break;
                }
                _ => return None,
            }
        }
    }
    let found = &fields[first..];
    if !duplicate_keys && (escaped || filter.is_full()) {
        duplicate_keys = has_duplicates(text, found);
    }
    let range = FieldRange { start: index_u32(first), len: index_u32(found.len()) };
    Some((Indexed { fields: Some(range), duplicate_keys }, at))
}

/// A body that is no object; returns the place behind it.
fn value(text: &[u8], at: usize) -> Option<usize> {
    match *text.get(at)? {
        b'"' => Some(string(text, at + 1)?.end + 1),
        b'{' | b'[' => nested(text, at, 0),
        _ => literal(text, at),
    }
}

/// A number, `true`, `false` or `null`.
#[inline]
fn literal(text: &[u8], at: usize) -> Option<usize> {
    match text[at] {
        b'-' | b'0'..=b'9' => number(text, at),
        b't' => text[at..].starts_with(b"true").then_some(at + 4),
        b'f' => text[at..].starts_with(b"false").then_some(at + 5),
        b'n' => text[at..].starts_with(b"null").then_some(at + 4),
        _ => None,
    }
}

/// An array or an object within a value. What is open is kept as bits, a one for an object, so that deep nesting costs
/// no stack.
fn nested(text: &[u8], start: usize, outer: u32) -> Option<usize> {
    let mut objects = 0_u128;
    let mut depth = outer;
    let mut at = start;
    loop {
        // Here stands a value.
        let mut closed = match *text.get(at)? {
            open @ (b'{' | b'[') => {
                if depth == MAX_DEPTH {
                    return None;
                }
                depth += 1;
                let is_object = open == b'{';
                objects = objects << 1 | u128::from(is_object);
                at = skip_space(text, at + 1);
                if *text.get(at)? == open + 2 {
                    // The closing bracket stands two behind the opening one in ASCII.
                    true
                } else {
                    if is_object {
                        at = key(text, at)?;
                    }
                    continue;
                }
            }
            b'"' => {
                at = string(text, at + 1)?.end + 1;
                false
            }
            _ => {
                at = literal(text, at)?;
                false
            }
        };
        // Behind a value, or at the bracket that closes one.
        loop {
            if closed {
                objects >>= 1;
                depth -= 1;
                at += 1;
                if depth == outer {
                    return Some(at);
                }
            }
            at = skip_space(text, at);
            let in_object = objects & 1 == 1;
            match *text.get(at)? {
                b',' => {
                    at = skip_space(text, at + 1);
                    if in_object {
                        at = key(text, at)?;
                    }
                    break;
                }
                b'}' if in_object => closed = true,
                b']' if !in_object => closed = true,
                _ => return None,
            }
        }
    }
}

/// A key and its colon; returns the place of the value.
#[inline]
fn key(text: &[u8], at: usize) -> Option<usize> {
    if *text.get(at)? != b'"' {
        return None;
    }
    let colon = skip_space(text, string(text, at + 1)?.end + 1);
    (*text.get(colon)? == b':').then(|| skip_space(text, colon + 1))
}

#[inline]
fn skip_space(text: &[u8], mut at: usize) -> usize {
    while let Some(b' ' | b'\n' | b'\r' | b'\t') = text.get(at) {
        at += 1;
    }
    at
}

/// A string that was read.
struct Str {
    /// The place of its closing quote.
    end: usize,
    /// Whether it holds an escape.
    escaped: bool,
}

const ONES: u64 = u64::MAX / 255;
const HIGH_BITS: u64 = ONES << 7;

/// Marks, in their high bits, the bytes of a word that end a run of plain text: quotes, backslashes and control
/// characters. Only the lowest mark is to be trusted: a borrow may add false ones above it.
#[inline]
pub(super) fn special_bytes(word: u64) -> u64 {
    let control = word.wrapping_sub(ONES * 0x20);
    let quote = (word ^ (ONES * 0x22)).wrapping_sub(ONES);
    let backslash = (word ^ (ONES * 0x5c)).wrapping_sub(ONES);
    (control | quote | backslash) & !word & HIGH_BITS
}

/// A string, from behind its opening quote.
#[inline]
fn string(text: &[u8], start: usize) -> Option<Str> {
    let mut at = start;
    let mut high = 0;
    while let Some(word) = text.get(at..).and_then(|rest| rest.first_chunk()) {
        let word = u64::from_le_bytes(*word);
        let special = special_bytes(word);
        if special != 0 {
            let plain = special.trailing_zeros() / 8;
            high |= word & HIGH_BITS & !(u64::MAX << (plain * 8));
            at += plain as usize;
            return match text[at] {
                b'"' if high == 0 || is_utf8(&text[start..at]) => Some(Str { end: at, escaped: false }),
                b'\\' => string_with_escapes(text, start, at),
                _ => None,
            };
        }
        high |= word & HIGH_BITS;
        at += 8;
    }
    string_with_escapes(text, start, at)
}

#[cold]
fn is_utf8(text: &[u8]) -> bool {
    std::str::from_utf8(text).is_ok()
}

/// The rest of a string byte by byte: at its first escape, or close to the end of the text.
fn string_with_escapes(text: &[u8], start: usize, mut at: usize) -> Option<Str> {
    let mut escaped = false;
    loop {
        match *text.get(at)? {
            b'"' => break,
            b'\\' => {
                escaped = true;
                at = escape(text, at + 1)?;
            }
            ..0x20 => return None,
            _ => at += 1,
        }
    }
    let raw = &text[start..at];
    (raw.is_ascii() || is_utf8(raw)).then_some(Str { end: at, escaped })
}

/// An escape, from behind its backslash.
fn escape(text: &[u8], at: usize) -> Option<usize> {
    match *text.get(at)? {
        b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => Some(at + 1),
        b'u' => match code_unit(text, at + 1)? {
            0xd800..=0xdbff => {
                let low = text[at + 5..].starts_with(b"\\u").then(|| code_unit(text, at + 7))??;
                matches!(low, 0xdc00..=0xdfff).then_some(at + 11)
            }
            0xdc00..=0xdfff => None,
            _ => Some(at + 5),
        },
        _ => None,
    }
}

/// Four hexadecimal digits.
pub(super) fn code_unit(text: &[u8], at: usize) -> Option<u32> {
    let digits = text.get(at..)?.first_chunk::<4>()?;
    digits.iter().try_fold(0, |unit, &digit| Some(unit << 4 | char::from(digit).to_digit(16)?))
}

/// A number of at most this many digits and no exponent is in range, whatever it is.
const SAFE_DIGITS: usize = 300;

#[inline]
fn number(text: &[u8], start: usize) -> Option<usize> {
    let digits_start = start + usize::from(text[start] == b'-');
    let digits_end = skip_digits(text, digits_start);
    match digits_end - digits_start {
        0 => return None,
        1 => {}
        _ if text[digits_start] == b'0' => return None,
        _ => {}
    }
    let mut at = digits_end;
    if text.get(at) == Some(&b'.') {
        let fraction = at + 1;
        at = skip_digits(text, fraction);
        if at == fraction {
            return None;
        }
    }
    match text.get(at) {
        Some(b'e' | b'E') => number_with_exponent(text, start, at + 1),
        _ if digits_end - digits_start > SAFE_DIGITS => in_range(text, start, at),
        _ => Some(at),
    }
}

/// The rest of a number, from behind its `e`.
#[cold]
fn number_with_exponent(text: &[u8], start: usize, exponent: usize) -> Option<usize> {
    let digits = exponent + usize::from(matches!(text.get(exponent), Some(b'+' | b'-')));
    let end = skip_digits(text, digits);
    if end == digits {
        return None;
    }
    in_range(text, start, end)
}

/// A number that no `f64` can hold is refused: every reader downstream would see infinity.
#[cold]
fn in_range(text: &[u8], start: usize, end: usize) -> Option<usize> {
    let number: f64 = std::str::from_utf8(&text[start..end]).ok()?.parse().ok()?;
    number.is_finite().then_some(end)
}

#[inline]
fn skip_digits(text: &[u8], mut at: usize) -> usize {
    while let Some(b'0'..=b'9') = text.get(at) {
        at += 1;
    }
    at
}
