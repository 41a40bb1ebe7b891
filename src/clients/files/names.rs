//! Names of files that are rotated: a number before the extension, and another name while they grow.

use std::path::PathBuf;

/// What the files of this machine are called where pipelines are searched for circles.
pub(crate) const FILES: &str = "files";

/// The least digits of a number, so that names sort as they were made.
const DIGITS: usize = 6;

/// `orders.ndjson.gz` and 7 make `orders-000007.ndjson.gz`.
pub(crate) fn numbered(path: &str, number: u64) -> String {
    let (stem, extension) = split(path);
    format!("{stem}-{number:0DIGITS$}{extension}")
}

/// The path that was numbered, and the number; `None` if this was not.
pub(crate) fn parted(numbered: &str) -> Option<(String, u64)> {
    let (stem, extension) = split(numbered);
    let (stem, number) = stem.rsplit_once('-')?;
    let is_number = number.len() >= DIGITS && number.bytes().all(|byte| byte.is_ascii_digit());
    let number = number.parse().ok().filter(|_| is_number)?;
    Some((format!("{stem}{extension}"), number))
}

/// What is behind the name of a file that grows.
pub(crate) const OPEN: &str = ".open";

/// The name under which a file grows.
pub(crate) fn open(path: &str) -> PathBuf {
    PathBuf::from(format!("{path}{OPEN}"))
}

/// Before and from the extension on. That of a compressed file is two: `.ndjson.gz`.
fn split(path: &str) -> (&str, &str) {
    let name = path.rfind('/').map_or(0, |at| at + 1);
    let dot = |end: usize| path[name..end].rfind('.').filter(|at| *at > 0).map(|at| name + at);
    let mut at = dot(path.len()).unwrap_or(path.len());
    if [".gz", ".zst"].contains(&&path[at..]) {
        at = dot(at).unwrap_or(at);
    }
    path.split_at(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_stands_before_the_extension_and_comes_off_again() {
        for (path, name) in [
            ("a.d/out.ndjson", "a.d/out-000007.ndjson"),
            ("out.v1.ndjson.gz", "out.v1-000007.ndjson.gz"),
            ("out.zst", "out-000007.zst"),
            ("a.d/out", "a.d/out-000007"),
            ("a/.hidden", "a/.hidden-000007"),
        ] {
            assert_eq!(numbered(path, 7), name);
            assert_eq!(parted(name), Some((path.to_owned(), 7)));
        }
        assert_eq!(parted(&numbered("out.txt", 12_345_678)), Some(("out.txt".to_owned(), 12_345_678)));
        assert_eq!((parted("out.txt"), parted("out-12.txt"), parted("2025-11.txt")), (None, None, None));
        assert_eq!(open("out.txt"), PathBuf::from("out.txt.open"));
    }
}
