//! What a file holds: its bytes, or what a compressed one was made of.

use std::fs::File;
use std::io::{self, BufReader, ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use flate2::bufread::MultiGzDecoder;

/// How a file is written, known by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Plain,
    Gzip,
    Zstd,
}

const GZIP: &[u8] = &[0x1f, 0x8b, 0x08];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];

impl Format {
    /// `None` if so little is written that it can still become anything.
    pub(crate) fn of(file: &File) -> io::Result<Option<Self>> {
        let mut start = [0; 4];
        let mut read = 0;
        while read < start.len() {
            match file.read_at(&mut start[read..], read as u64) {
                Ok(0) => break,
                Ok(more) => read += more,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let start = &start[..read];
        Ok(match start {
            _ if start.starts_with(GZIP) => Some(Self::Gzip),
            _ if start.starts_with(ZSTD) => Some(Self::Zstd),
            _ if GZIP.starts_with(start) || ZSTD.starts_with(start) => None,
            _ => Some(Self::Plain),
        })
    }

    /// A compressed file is written once: it is complete when its end was reached.
    pub(crate) fn is_compressed(self) -> bool {
        self != Self::Plain
    }
}

/// Reads a file from its beginning to a place, without a position of the file's own.
struct FromStart {
    file: Arc<File>,
    offset: u64,
    end: u64,
}

impl Read for FromStart {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.offset).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(left);
        let read = self.file.read_at(&mut buffer[..wanted], self.offset)?;
        self.offset += read as u64;
        Ok(read)
    }
}

/// Unpacks a compressed file from its beginning: all members of a gzip file, all frames of a zstd file. It holds what its
/// format looks back to (32 KiB, or up to 128 MiB where a zstd file asks for that), however much comes out.
pub(crate) struct Unpacker {
    content: Box<dyn Read + Send + Sync>,
}

impl std::fmt::Debug for Unpacker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Unpacker")
    }
}

impl Unpacker {
    pub(crate) fn start(file: &Arc<File>, format: Format) -> io::Result<Self> {
        Self::up_to(file, format, u64::MAX)
    }

    /// Of the first bytes of a file only.
    pub(crate) fn up_to(file: &Arc<File>, format: Format, end: u64) -> io::Result<Self> {
        let packed = BufReader::with_capacity(64 << 10, FromStart { file: Arc::clone(file), offset: 0, end });
        let content: Box<dyn Read + Send + Sync> = match format {
            Format::Gzip => Box::new(MultiGzDecoder::new(packed)),
            Format::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(packed)?),
            Format::Plain => Box::new(packed),
        };
        Ok(Self { content })
    }

    /// Reads on from `at` to `offset`, or to the end if that comes first, and hands out what was read.
    pub(crate) fn skip(&mut self, at: &mut u64, offset: u64, seen: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        let mut block = vec![0; 64 << 10];
        while *at < offset {
            let want = block.len().min(usize::try_from(offset - *at).unwrap_or(usize::MAX));
            let read = self.read(&mut block[..want])?;
            if read == 0 {
                break;
            }
            seen(&block[..read]);
            *at += read as u64;
        }
        Ok(())
    }
}

impl Read for Unpacker {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.content.read(buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                outcome => return outcome,
            }
        }
    }
}

/// Whether an error tells of the content, not of the machine that it lies on.
pub(crate) fn is_damage(error: &io::Error) -> bool {
    error.raw_os_error().is_none()
}

/// What is wrong with a compressed file, for a person.
pub(crate) fn damage(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::UnexpectedEof => "it is cut off: the end of the compressed data is missing".to_owned(),
        _ => format!("the compressed data is damaged: {error}"),
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use std::fmt::Write as _;
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    /// As many lines, each with its number.
    pub(crate) fn numbered(lines: usize) -> String {
        let mut text = String::new();
        for line in 0..lines {
            let _ = writeln!(text, "line {line}");
        }
        text
    }

    pub(crate) fn gzip(text: &str) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    }

    pub(crate) fn zstandard(text: &str) -> Vec<u8> {
        zstd::encode_all(text.as_bytes(), 1).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::testing::{gzip, zstandard};
    use super::*;

    fn file(bytes: &[u8]) -> Arc<File> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Arc::new(file)
    }

    #[test]
    fn the_first_bytes_tell_the_format_whatever_the_name() {
        for (bytes, format) in [
            (gzip("x"), Some(Format::Gzip)),
            (zstandard("x"), Some(Format::Zstd)),
            (b"{\"a\":1}\n".to_vec(), Some(Format::Plain)),
            (b"(x".to_vec(), Some(Format::Plain)),
            (b"(".to_vec(), None),
            (gzip("x")[..2].to_vec(), None),
            (Vec::new(), None),
        ] {
            assert_eq!(Format::of(&file(&bytes)).unwrap(), format, "{bytes:?}");
        }
    }

    #[test]
    fn all_members_and_frames_are_read() {
        for (bytes, format) in [
            ([gzip("one\n"), gzip("two\n")].concat(), Format::Gzip),
            ([zstandard("one\n"), zstandard("two\n")].concat(), Format::Zstd),
        ] {
            let file = file(&bytes);
            let mut unpacker = Unpacker::start(&file, format).unwrap();
            let (mut at, mut seen) = (0, Vec::new());
            unpacker.skip(&mut at, 6, &mut |bytes| seen.extend_from_slice(bytes)).unwrap();
            assert_eq!((at, &*seen), (6, &b"one\ntw"[..]));
            unpacker.skip(&mut at, 100, &mut |bytes| seen.extend_from_slice(bytes)).unwrap();
            assert_eq!((at, &*seen), (8, &b"one\ntwo\n"[..]));
            let first = match format {
                Format::Zstd => zstandard("one\n").len(),
                _ => gzip("one\n").len(),
            };
            let mut text = String::new();
            Unpacker::up_to(&file, format, first as u64).unwrap().read_to_string(&mut text).unwrap();
            assert_eq!(text, "one\n");
        }
    }

    #[test]
    fn what_is_cut_off_or_damaged_is_an_error_behind_what_could_be_read() {
        let text = "0123456789\n".repeat(1000);
        for (packed, format) in [(gzip(&text), Format::Gzip), (zstandard(&text), Format::Zstd)] {
            let mut all = Vec::new();
            let cut = file(&packed[..packed.len() - 3]);
            let error = Unpacker::start(&cut, format).unwrap().read_to_end(&mut all).unwrap_err();
            assert!(is_damage(&error) && damage(&error).contains("is cut off"), "{error:?}");
            let mut damaged = packed.clone();
            damaged.truncate(packed.len() - 1);
            damaged.extend([packed[packed.len() - 1] ^ 1, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7]);
            let error = Unpacker::start(&file(&damaged), format).unwrap().read_to_end(&mut all).unwrap_err();
            assert!(is_damage(&error) && damage(&error).contains("damaged"), "{error:?}");
        }
    }
}
