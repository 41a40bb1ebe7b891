//! The files that a source names, by path and by pattern.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, Metadata};
use std::io;
use std::path::Path;
use std::sync::Arc;

use glob::MatchOptions;

use super::Settings;
use super::identity::FileId;
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
            let absolute = std::path::absolute(path).map_err(|error| fatal(path, "cannot find", &error))?;
            let absolute = text(&absolute)?;
            if is_pattern(path) {
                match_files(path, &absolute, follow, &mut found)?;
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
        let files = found.into_iter().map(|(path, metadata)| {
            let (id, len) = (FileId::of(&metadata), metadata.len());
            Found { path, id, len }
        });
        let files = files.filter(|found| seen.insert(found.id)).collect();
        Ok(Listing { files, trouble })
    };
    runtime.blocking(list).await
}

fn match_files(
    path: &str,
    absolute: &str,
    follow: bool,
    found: &mut BTreeMap<Arc<str>, Metadata>,
) -> Result<(), SourceError> {
    // As a shell does.
    let options =
        MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: true };
    let matches = glob::glob_with(absolute, options);
    let mut any = false;
    for file in matches.map_err(|error| SourceError::Fatal(format!("`{path}` is no pattern: {error}")))? {
        let file = match file {
            Ok(file) => file,
            // A folder that was removed while it was searched.
            Err(error) if error.error().kind() == io::ErrorKind::NotFound => continue,
            Err(error) => {
                let (folder, error) = (error.path().display(), error.error());
                return Err(SourceError::Retry(format!("cannot look for files in `{folder}`: {error}")));
            }
        };
        if let Some(metadata) = fs::metadata(&file).ok().filter(Metadata::is_file) {
            any = true;
            found.insert(text(&file)?, metadata);
        }
    }
    if !any && !follow {
        return Err(SourceError::Fatal(format!("no file matches `{path}`: say `follow: true` to wait for one")));
    }
    Ok(())
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
