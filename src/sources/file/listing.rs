//! The files that a source names, by path and by pattern.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, Metadata};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use glob::{MatchOptions, Pattern};

use super::Settings;
use super::identity::FileId;
use crate::clients::files;
use crate::component::SourceError;
use crate::runtime::Runtime;

pub(super) fn is_pattern(path: &str) -> bool {
    path.contains(['*', '?', '['])
}

/// A file that was found.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Found {
    /// Absolute. Of several names of one file, the first.
    pub(super) path: Arc<str>,
    pub(super) id: FileId,
    pub(super) len: u64,
    /// Whether its file system knows when it was born. If not, its id may be another one after the next mount.
    pub(super) has_birth: bool,
}

impl Found {
    pub(super) fn new(path: Arc<str>, metadata: &Metadata) -> Self {
        Self { path, id: FileId::of(metadata), len: metadata.len(), has_birth: metadata.created().is_ok() }
    }
}

/// What a look for files found.
#[derive(Debug)]
pub(super) struct Listing {
    /// In the order of their names.
    pub(super) files: Vec<Found>,
    /// What could not be looked at, for a person.
    pub(super) trouble: Option<String>,
}

/// The files that there are, in the order of their names. One that is followed need not exist yet.
pub(super) async fn list(runtime: &Runtime, settings: &Settings) -> Result<Listing, SourceError> {
    let (paths, follow) = (Arc::clone(&settings.paths), settings.follow);
    let list = move || {
        let (mut found, mut trouble) = (BTreeMap::new(), None);
        for path in &*paths {
            let absolute = absolute(path).map_err(|error| fatal(path, "cannot find", &error))?;
            let absolute = text(&absolute)?;
            if is_pattern(path) {
                trouble = match_files(path, &absolute, follow, &mut found)?.or(trouble);
                continue;
            }
            match fs::metadata(&*absolute) {
                Ok(metadata) if metadata.is_dir() => Err(SourceError::Fatal(format!(
                    "`{path}` is a folder: to read the files in it, say `{}/*`",
                    path.trim_end_matches('/')
                )))?,
                Ok(metadata) if !metadata.is_file() => {
                    Err(SourceError::Fatal(format!(
                        "`{path}` is no regular file: it has no positions to resume from"
                    )))?;
                }
                Ok(metadata) => {
                    found.insert(absolute, metadata);
                }
                Err(error) if !follow => Err(missing(path, &error))?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                // No reason to hold up the others.
                Err(error) => trouble = Some(format!("cannot read `{path}`: {error}")),
            }
        }
        let mut seen = HashSet::new();
        let files = found.into_iter().map(|(path, metadata)| Found::new(path, &metadata));
        let files = files.filter(|found| seen.insert(found.id)).collect();
        Ok(Listing { files, trouble })
    };
    runtime.blocking(list).await
}

/// Whether a path, or a pattern, leads to the files that a sink writes under a path, which may have times in it. Of a path
/// from the root and one that is not it cannot be told.
pub(super) fn leads_to(path: &str, written: &str) -> bool {
    let plain = |path: &str| path.trim_start_matches("./").to_owned();
    let written = plain(&files::pattern::Pattern::example(written));
    let path = plain(path);
    path == written
        || is_pattern(&path) && Pattern::new(&path).is_ok_and(|path| path.matches_with(&written, AS_A_SHELL))
}

/// From the root. In a pattern, the folder that the process is in stands for itself.
fn absolute(path: &str) -> io::Result<PathBuf> {
    if !is_pattern(path) || path.starts_with('/') {
        return std::path::absolute(path);
    }
    let folder = std::env::current_dir()?;
    let folder = folder.to_str().map(Pattern::escape);
    std::path::absolute(Path::new(folder.as_deref().unwrap_or_default()).join(path))
}

/// As a shell does: a name that begins with a dot is only matched by a pattern that does.
const AS_A_SHELL: MatchOptions =
    MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: true };

/// Whether part of a name begins with a dot.
fn is_hidden(path: &Path) -> bool {
    path.components().any(|part| matches!(part, Component::Normal(name) if name.as_encoded_bytes().starts_with(b".")))
}

/// Adds the files that a pattern matches. Returns which folder could not be searched.
fn match_files(
    path: &str,
    absolute: &str,
    follow: bool,
    found: &mut BTreeMap<Arc<str>, Metadata>,
) -> Result<Option<String>, SourceError> {
    let no_pattern = |error| SourceError::Fatal(format!("`{path}` is no pattern: {error}"));
    let pattern = Pattern::new(absolute).map_err(no_pattern)?;
    // Asked to mind dots, the library panics where a folder holds a name that is not UTF-8.
    let options = MatchOptions { require_literal_leading_dot: false, ..AS_A_SHELL };
    let mut any = false;
    let mut trouble = None;
    for file in glob::glob_with(absolute, options).map_err(no_pattern)? {
        let file = match file {
            Ok(file) => file,
            // A folder that was removed while it was searched.
            Err(error) if error.error().kind() == io::ErrorKind::NotFound => continue,
            Err(error) if is_hidden(error.path()) && !pattern.matches_path_with(error.path(), AS_A_SHELL) => continue,
            Err(error) => {
                let (folder, error) = (error.path().display(), error.error());
                trouble = Some(format!("cannot look for files in `{folder}`: {error}"));
                continue;
            }
        };
        if is_hidden(&file) && !pattern.matches_path_with(&file, AS_A_SHELL) {
            continue;
        }
        if let Some(metadata) = fs::metadata(&file).ok().filter(Metadata::is_file) {
            any = true;
            found.insert(text(&file)?, metadata);
        }
    }
    match trouble {
        // What is read once is read whole.
        Some(trouble) if !follow => Err(SourceError::Retry(trouble)),
        None if !any && !follow => {
            Err(SourceError::Fatal(format!("no file matches `{path}`: say `follow: true` to wait for one")))
        }
        trouble => Ok(trouble),
    }
}

fn text(path: &Path) -> Result<Arc<str>, SourceError> {
    let unreadable = || SourceError::Fatal(format!("the name of `{}` is not UTF-8: rename it", path.display()));
    path.to_str().map(Arc::from).ok_or_else(unreadable)
}

pub(super) fn missing(path: &str, error: &io::Error) -> SourceError {
    match error.kind() {
        io::ErrorKind::NotFound => {
            SourceError::Fatal(format!("there is no file `{path}`: say `follow: true` to wait for it"))
        }
        _ => fatal(path, "cannot read", error),
    }
}

pub(super) fn fatal(path: &str, what: &str, error: &io::Error) -> SourceError {
    SourceError::Fatal(format!("{what} `{path}`: {error}"))
}

pub(super) fn retry(path: &str, what: &str, error: &io::Error) -> SourceError {
    SourceError::Retry(format!("{what} `{path}`: {error}"))
}
