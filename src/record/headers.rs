//! Headers: an ordered list of names and values, with repeats, kept encoded until somebody asks.
//!
//! The encoding lives in memory only: name length (`u16`), value length (`u32`, all ones for a null
//! value), name, value; one header after another.

const NULL: u32 = u32::MAX;

/// One header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header<'a> {
    /// The name. Kafka asks for UTF-8 and does not check it.
    pub name: &'a [u8],
    /// The value; Kafka knows a null one.
    pub value: Option<&'a [u8]>,
}

/// The headers of one record.
#[derive(Debug, Clone, Copy)]
pub struct Headers<'a> {
    rest: &'a [u8],
}

impl<'a> Headers<'a> {
    /// Reads what a [`HeadersBuilder`] wrote.
    #[must_use]
    pub fn decode(encoded: &'a [u8]) -> Self {
        Self { rest: encoded }
    }

    /// The encoded form, to be copied as it stands.
    #[must_use]
    pub fn encoded(&self) -> &'a [u8] {
        self.rest
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }
}

#[expect(clippy::copy_iterator, reason = "it is a slice, and as cheap to pass on")]
impl<'a> Iterator for Headers<'a> {
    type Item = Header<'a>;

    fn next(&mut self) -> Option<Header<'a>> {
        let (name_len, rest) = self.rest.split_first_chunk::<2>()?;
        let (value_len, rest) = rest.split_first_chunk::<4>()?;
        let (name, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*name_len)))?;
        let value_len = u32::from_le_bytes(*value_len);
        if value_len == NULL {
            self.rest = rest;
            return Some(Header { name, value: None });
        }
        let (value, rest) = rest.split_at_checked(value_len as usize)?;
        self.rest = rest;
        Some(Header { name, value: Some(value) })
    }
}

/// Encodes headers.
#[derive(Debug, Default)]
pub struct HeadersBuilder {
    encoded: Vec<u8>,
}

impl HeadersBuilder {
    /// Appends one header. A name longer than 64 KiB is cut there.
    ///
    /// # Panics
    /// Never: the name is cut first.
    pub fn push(&mut self, name: &[u8], value: Option<&[u8]>) {
        let name = &name[..name.len().min(usize::from(u16::MAX))];
        self.encoded.extend_from_slice(&u16::try_from(name.len()).expect("cut above").to_le_bytes());
        let value_len = value.map_or(NULL, |value| u32::try_from(value.len()).unwrap_or(NULL - 1));
        self.encoded.extend_from_slice(&value_len.to_le_bytes());
        self.encoded.extend_from_slice(name);
        if let Some(value) = value {
            self.encoded.extend_from_slice(&value[..value_len as usize]);
        }
    }

    /// The encoded headers.
    #[must_use]
    pub fn encoded(&self) -> &[u8] {
        &self.encoded
    }

    /// Starts again, keeping the allocation.
    pub fn clear(&mut self) {
        self.encoded.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_keep_order_repeats_and_nulls() {
        let mut builder = HeadersBuilder::default();
        builder.push(b"a", Some(b"1"));
        builder.push(b"b", None);
        builder.push(b"a", Some(b""));
        let read: Vec<_> = Headers::decode(builder.encoded()).collect();
        assert_eq!(
            read,
            [
                Header { name: b"a", value: Some(b"1") },
                Header { name: b"b", value: None },
                Header { name: b"a", value: Some(b"") },
            ]
        );
    }
}
