//! What a file is known by, whatever its name: which file it is, and what stood in it before a place.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::UNIX_EPOCH;

/// How much before a place is looked at to know its content again.
const WINDOW_BYTES: usize = 1024;

/// A number that stays the same in all versions of Weir and on all machines (64-bit FNV-1a); it is never negative.
fn hash(parts: &[&[u8]]) -> i64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in parts.iter().copied().flatten() {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    (hash >> 1).cast_signed()
}

/// Which file it is: its inode and the moment of its birth. An inode is given to another file once its own is gone, and
/// the number of a device may change with a reboot; so the device counts only where a file system knows no births.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct FileId(pub(super) i64);

impl FileId {
    pub(super) fn of(metadata: &Metadata) -> Self {
        let birth = metadata.created().ok().and_then(|birth| birth.duration_since(UNIX_EPOCH).ok());
        let since = birth.map_or(u128::from(metadata.dev()), |birth| birth.as_nanos());
        Self(hash(&[&metadata.ino().to_le_bytes(), &since.to_le_bytes()]))
    }
}

/// What stood before a place in a file: the last bytes there, as a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Proof {
    /// The place.
    pub(super) at: u64,
    pub(super) sum: i64,
}

/// A place in a file, and what proves that a file is the one it was taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Place {
    /// Bytes from the beginning; of what a compressed file holds.
    pub(super) offset: u64,
    /// What stood before it, or before an earlier place: a position may be committed that stands within a batch. Earlier
    /// versions noted none: any content is then taken for the right one.
    pub(super) proof: Option<Proof>,
}

impl Place {
    pub(super) fn start() -> Self {
        Self::behind(0, &Window::default())
    }

    /// The place behind a window.
    pub(super) fn behind(offset: u64, window: &Window) -> Self {
        Self { offset, proof: Some(Proof { at: offset, sum: window.sum() }) }
    }

    /// Whether anything was read that the file can be known by.
    pub(super) fn can_be_known(self) -> bool {
        self.proof.is_some_and(|proof| proof.at > 0)
    }
}

/// The last bytes before a place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Window(Vec<u8>);

impl Window {
    /// Moves behind more bytes.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(WINDOW_BYTES)..];
        let surplus = (self.0.len() + bytes.len()).saturating_sub(WINDOW_BYTES);
        self.0.drain(..surplus.min(self.0.len()));
        self.0.extend_from_slice(bytes);
    }

    fn sum(&self) -> i64 {
        hash(&[&self.0])
    }

    /// Whether these were the last bytes before the place of a proof.
    pub(super) fn is(&self, proof: Proof) -> bool {
        proof.sum == self.sum()
    }

    /// Reads what stands before `offset`; `None` if the file is shorter.
    pub(super) fn before(file: &File, offset: u64) -> io::Result<Option<Self>> {
        let start = offset.saturating_sub(WINDOW_BYTES as u64);
        let mut bytes = vec![0; usize::try_from(offset - start).unwrap_or(WINDOW_BYTES)];
        match file.read_exact_at(&mut bytes, start) {
            Ok(()) => Ok(Some(Self(bytes))),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_file_is_the_same_under_another_name_and_another_one_under_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let (path, renamed) = (folder.path().join("a"), folder.path().join("b"));
        let id = |path| FileId::of(&fs::metadata(path).unwrap());
        fs::write(&path, "x").unwrap();
        let first = id(&path);
        fs::write(&path, "more").unwrap();
        assert_eq!(id(&path), first);
        fs::rename(&path, &renamed).unwrap();
        assert_eq!(id(&renamed), first);
        fs::write(&path, "x").unwrap();
        assert_ne!(id(&path), first);
    }

    #[test]
    fn an_inode_that_is_used_again_is_another_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let mut ids = std::collections::BTreeSet::new();
        for _ in 0..20 {
            let mut file = File::create(&path).unwrap();
            file.write_all(b"the same first line\n").unwrap();
            let metadata = file.metadata().unwrap();
            if metadata.created().is_err() {
                return;
            }
            ids.insert(FileId::of(&metadata));
            fs::remove_file(&path).unwrap();
        }
        // The clock of a file system may tick in milliseconds.
        assert!(ids.len() > 1);
    }

    proptest! {
        #[test]
        fn a_window_holds_what_the_file_holds(parts in proptest::collection::vec(0..1500_usize, 0..6)) {
            let mut file = tempfile::tempfile().unwrap();
            let mut window = Window::default();
            let mut offset = 0;
            for (part, letter) in parts.into_iter().zip(b'a'..) {
                let bytes = vec![letter; part];
                file.write_all(&bytes).unwrap();
                window.push(&bytes);
                offset += part as u64;
                prop_assert_eq!(Window::before(&file, offset).unwrap(), Some(window.clone()));
            }
            prop_assert_eq!(Window::before(&file, offset + 1).unwrap(), None);
        }
    }
}
