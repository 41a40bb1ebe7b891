//! What the store knows of a file: how much of it is committed, and what stands at that place.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};

/// A file, as it was at a barrier.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// How many bytes are committed.
    pub(crate) length: u64,
    /// A fingerprint of the last of them: a file that does not have it there is another file.
    pub(crate) tail: u64,
    /// For a file that grows under another name than its final one: when it was begun, in ms since the Unix epoch.
    pub(crate) begun: Option<i64>,
    /// Nothing more is written to it: it gets its final name.
    pub(crate) finished: bool,
}

/// The store's key for the file of a path.
pub(crate) fn key(path: &str) -> String {
    format!("file/{path}")
}

/// The path of a key; `None` if the key is that of something else.
pub(crate) fn path_of(key: &str) -> Option<&str> {
    key.strip_prefix("file/")
}

impl Entry {
    pub(crate) fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("numbers and words are always written")
    }

    /// `None` if it is not what [`Self::encode`] made.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }
}

/// Bytes that a fingerprint covers.
const TAIL: u64 = 256;

/// A fingerprint of the bytes before a place in a file; 0 at its beginning.
pub(crate) fn tail(file: &File, length: u64) -> io::Result<u64> {
    if length == 0 {
        return Ok(0);
    }
    let from = length.saturating_sub(TAIL);
    let mut bytes = vec![0; usize::try_from(length - from).unwrap_or(0)];
    file.read_exact_at(&mut bytes, from)?;
    Ok(fnv1a(&bytes))
}

/// FNV-1a, 64 bits. It is kept for years, so it must not change with the compiler as the standard library's may.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn an_entry_comes_back_as_it_was_and_damage_is_told() {
        let entry = Entry { length: u64::MAX, tail: u64::MAX, begun: Some(-1), finished: true };
        assert_eq!(Entry::decode(&entry.encode()), Some(entry));
        assert_eq!(Entry::decode(b"{}"), None);
        assert_eq!(path_of(&key("a/b")), Some("a/b"));
    }

    #[test]
    fn a_tail_tells_files_apart() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[b'x'; 1000]).unwrap();
        file.write_all(b"one\n").unwrap();
        let one = tail(&file, 1004).unwrap();
        file.write_all(b"two\n").unwrap();
        assert_eq!(tail(&file, 1004).unwrap(), one);
        assert_ne!(tail(&file, 1008).unwrap(), one);
        assert_eq!(tail(&file, 0).unwrap(), Entry::default().tail);
        assert!(tail(&file, 1009).is_err(), "the file is shorter");
        // The published test vector.
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }
}
