//! One file on the disk: opened, locked, appended to, cut, synced. Everything here may block.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::component::SinkError;

/// An open file that is locked.
#[derive(Debug)]
pub(super) struct OnDisk {
    pub(super) file: File,
    path: PathBuf,
}

/// What has become of the name of an open file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Name {
    /// It is the file's.
    Kept,
    /// The file has another name now.
    Renamed,
    /// Nobody can open the file any more.
    Removed,
}

impl OnDisk {
    /// Opens a file, and creates it if it is not there.
    pub(super) fn open(path: &Path) -> Result<Self, SinkError> {
        let file = OpenOptions::new().read(true).append(true).create(true).open(path);
        let file = file.map_err(|error| cannot("open", path, &error))?;
        let metadata = file.metadata().map_err(|error| cannot("look at", path, &error))?;
        if !metadata.is_file() {
            let path = path.display();
            return Err(SinkError::Fatal(format!(
                "`{path}` is no regular file: lines in it could not be made durable"
            )));
        }
        match file.try_lock() {
            Ok(()) => Ok(Self { file, path: path.to_owned() }),
            Err(TryLockError::WouldBlock) => Err(SinkError::Retry(format!(
                "`{}` is written by another process, and locked: waiting until it ends",
                path.display()
            ))),
            Err(TryLockError::Error(error)) => Err(cannot("lock", path, &error)),
        }
    }

    pub(super) fn length(&self) -> Result<u64, SinkError> {
        Ok(self.file.metadata().map_err(|error| self.cannot("look at", &error))?.len())
    }

    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        self.file.write_all(bytes).map_err(|error| self.cannot("write", &error))
    }

    /// Cuts it to a length. One that is shorter, for others have emptied it, stays so: it would be filled with zeros.
    pub(super) fn cut(&self, length: u64) -> Result<(), SinkError> {
        if self.length()? <= length {
            return Ok(());
        }
        self.file.set_len(length).map_err(|error| self.cannot("repair", &error))
    }

    pub(super) fn sync(&self) -> Result<(), SinkError> {
        // The kernel forgets what it could not write: a second sync would succeed, and prove nothing.
        self.file.sync_data().map_err(|error| not_synced(&self.path, &error))
    }

    pub(super) fn name(&self) -> Result<Name, SinkError> {
        let metadata = self.file.metadata().map_err(|error| self.cannot("look at", &error))?;
        match fs::metadata(&self.path) {
            Ok(named) if (named.dev(), named.ino()) == (metadata.dev(), metadata.ino()) => Ok(Name::Kept),
            Err(error) if error.kind() != ErrorKind::NotFound => Err(self.cannot("look at", &error)),
            _ if metadata.nlink() == 0 => Ok(Name::Removed),
            _ => Ok(Name::Renamed),
        }
    }

    fn cannot(&self, what: &str, error: &io::Error) -> SinkError {
        cannot(what, &self.path, error)
    }
}

/// The folder of a path.
pub(super) fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Creates a folder and those above it, and returns the folders whose entries must be synced for that.
pub(super) fn create_folder(path: &Path) -> Result<Vec<PathBuf>, SinkError> {
    let mut changed = Vec::new();
    for missing in path.ancestors().take_while(|folder| !folder.as_os_str().is_empty()) {
        if exists(missing)? {
            break;
        }
        changed.push(folder(missing).to_owned());
    }
    if !changed.is_empty() {
        fs::create_dir_all(path).map_err(|error| cannot("create the folder", path, &error))?;
    }
    Ok(changed)
}

/// Whether there is something of this name. An error is no answer.
pub(super) fn exists(path: &Path) -> Result<bool, SinkError> {
    path.try_exists().map_err(|error| cannot("look at", path, &error))
}

/// Makes the names in a folder durable.
pub(super) fn sync_folder(folder: &Path) -> Result<(), SinkError> {
    File::open(folder).and_then(|opened| opened.sync_all()).map_err(|error| not_synced(folder, &error))
}

fn not_synced(path: &Path, error: &io::Error) -> SinkError {
    // No record is the cause, and none is refused for it.
    SinkError::Outage(format!("cannot sync `{}`: {error}", path.display()))
}

/// A person must act where the path is wrong; a full or broken disk may be mended meanwhile.
pub(super) fn cannot(what: &str, path: &Path, error: &io::Error) -> SinkError {
    let mut text = format!("cannot {what} `{}`: {error}", path.display());
    if error.kind() == ErrorKind::NotFound && !folder(path).exists() {
        text =
            format!("cannot {what} `{}`: there is no folder `{}`; create it", path.display(), folder(path).display());
    }
    match error.kind() {
        ErrorKind::NotFound
        | ErrorKind::NotADirectory
        | ErrorKind::IsADirectory
        | ErrorKind::PermissionDenied
        | ErrorKind::ReadOnlyFilesystem
        | ErrorKind::InvalidFilename => SinkError::Fatal(text),
        _ => SinkError::Retry(text),
    }
}
