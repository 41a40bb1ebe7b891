//! Finds the files that a pattern and its rotation have made.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

use super::names;
use super::pattern::{Pattern, When};

/// The order in which files come: those that are rotated as they were begun, others by their times.
type Order = (Option<u64>, Option<When>, String);

/// The final paths of all files that a sink has made, whether they have them yet or still grow under another name. Files
/// that are rotated come in the order in which they were begun, others in that of the times in their names.
///
/// # Errors
/// If a folder cannot be read. One that does not exist holds no files.
pub(crate) fn find(pattern: &Pattern, rotated: bool) -> io::Result<Vec<String>> {
    let mut parts = pattern.text().split('/').peekable();
    let mut folders = vec![String::new()];
    let mut found = BTreeSet::new();
    while let Some(part) = parts.next() {
        if parts.peek().is_some() {
            folders = next(&folders, part)?;
            continue;
        }
        for folder in &folders {
            for name in names_in(folder)? {
                let path = format!("{folder}{name}");
                found.extend(order(pattern, rotated, &path));
            }
        }
    }
    Ok(found.into_iter().map(|(_, _, path)| path).collect())
}

/// The folders that a part of the pattern names in others, each with its `/`.
fn next(folders: &[String], part: &str) -> io::Result<Vec<String>> {
    let mut next = Vec::new();
    for folder in folders {
        if !part.contains('%') {
            next.push(format!("{folder}{part}/"));
            continue;
        }
        let of_a_time = names_in(folder)?.into_iter().filter(|name| When::of(part, name).is_some());
        next.extend(of_a_time.map(|name| format!("{folder}{name}/")));
    }
    Ok(next)
}

/// What a folder holds. Names that are no text are none that a sink has given.
fn names_in(folder: &str) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(Path::new(if folder.is_empty() { "." } else { folder })) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(Vec::new()),
        entries => entries?,
    };
    let name = |entry: io::Result<fs::DirEntry>| Ok(entry?.file_name().into_string().ok());
    entries.filter_map(|entry| name(entry).transpose()).collect()
}

/// The final path of a file, and its place among the others; `None` if it is no file of the pattern's.
fn order(pattern: &Pattern, rotated: bool, path: &str) -> Option<Order> {
    let path = if rotated { path.strip_suffix(names::OPEN).unwrap_or(path) } else { path };
    let (base, number) = if rotated {
        let (base, number) = names::parted(path)?;
        (base, Some(number))
    } else {
        (path.to_owned(), None)
    };
    let time =
        if pattern.is_plain() { (base == pattern.text()).then_some(None)? } else { Some(pattern.time_of(&base)?) };
    Some((number, time, path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is found of a pattern in a folder with these files.
    fn found(files: &[&str], pattern: &str, rotated: bool) -> Vec<String> {
        let root = tempfile::tempdir().unwrap();
        for file in files {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let prefix = format!("{}/", root.path().display());
        let found = find(&Pattern::new(&format!("{prefix}{pattern}")).unwrap(), rotated).unwrap();
        found.into_iter().map(|path| path.strip_prefix(&prefix).unwrap().to_owned()).collect()
    }

    #[test]
    fn files_of_times_are_found_in_the_order_of_their_times() {
        let files =
            ["02-01-2026.gz", "01-02-2026.gz", "31-12-2025.gz", "other.gz", "1-1-2026.gz", "02-01-2026.gz.open"];
        assert_eq!(found(&files, "%d-%m-%Y.gz", false), ["31-12-2025.gz", "02-01-2026.gz", "01-02-2026.gz"]);
        let files = ["dead/2026-01-02/07.x", "dead/2026-01-02/7.x", "dead/2025-12-31/23.x", "dead/new/07.x", "07.x"];
        assert_eq!(found(&files, "dead/%Y-%m-%d/%H.x", false), ["dead/2025-12-31/23.x", "dead/2026-01-02/07.x"]);
        assert_eq!(found(&["dead"], "dead/%Y.x", false), Vec::<String>::new());
        assert_eq!(found(&[], "none/%Y/%m.x", false), Vec::<String>::new());
    }

    #[test]
    fn rotated_files_are_found_in_the_order_in_which_they_were_begun_by_both_names() {
        let files = ["d-000002.x.open", "d-000001.x", "d-1000000.x", "d.x", "d-000003.x.gz", "e-000001.x"];
        assert_eq!(found(&files, "d.x", true), ["d-000001.x", "d-000002.x", "d-1000000.x"]);
        let files = ["2026-01-02-000001.x", "2026-01-01-000002.x.open", "2026-01-02.x", "2026-01-000004.x"];
        assert_eq!(found(&files, "%Y-%m-%d.x", true), ["2026-01-02-000001.x", "2026-01-01-000002.x"]);
        // Of a file that has both names, only one comes.
        assert_eq!(found(&["d-000001.x", "d-000001.x.open"], "d.x", true), ["d-000001.x"]);
    }
}
