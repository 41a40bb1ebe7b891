//! Back to what the store knows: what came later is cut off, what was committed is completed.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use super::disk::{OnDisk, cannot, exists, folder, sync_folder};
use super::files::{Files, NUMBER, rename};
use super::known::{Known, Standing};
use crate::clients::files::entry::{self, Entry};
use crate::clients::files::names;
use crate::component::SinkError;
use crate::delivery::Changes;

/// What became of a file that the store knows.
enum Found {
    /// It is as the store knows it.
    Known(Known),
    /// The store need not know it any more.
    Gone,
}

impl Files {
    /// Begins anew from the entries of the store, and returns what is to be changed in them.
    pub(super) fn recover(&mut self, entries: &BTreeMap<String, Vec<u8>>) -> Result<Changes, SinkError> {
        self.reset();
        let mut changes = Changes::new();
        if let Some(bytes) = entries.get(NUMBER) {
            let number = bytes.as_slice().try_into();
            self.number = u64::from_be_bytes(number.map_err(|_| SinkError::Fatal(damaged(NUMBER)))?);
        }
        for (key, bytes) in entries {
            let Some(path) = entry::path_of(key) else { continue };
            let entry = Entry::decode(bytes).ok_or_else(|| SinkError::Fatal(damaged(path)))?;
            let file = Arc::<str>::from(path);
            let found = if entry.begun.is_some() { rotated(&file, entry)? } else { plain(&file, entry)? };
            match found {
                Found::Known(mut known) => {
                    if known.entry.begun.is_some() {
                        self.go_on(&file, &mut known);
                    }
                    self.known.insert(file, known);
                }
                Found::Gone => changes.push((key.clone(), None)),
            }
        }
        Ok(changes)
    }

    /// A rotated file grows on. It is finished if the config has another path by now, or does not rotate any more.
    fn go_on(&mut self, file: &Arc<str>, known: &mut Known) {
        let pattern = &self.settings.pattern;
        let base = names::parted(file).map(|(base, _)| base);
        let base = base.filter(|base| !pattern.is_plain() || base == pattern.text());
        let base = base.filter(|base| self.settings.rotation.is_some() && !self.growing.contains_key(base.as_str()));
        if let Some(base) = base {
            self.growing.insert(base.into(), Arc::clone(file));
        } else {
            known.finish();
            self.leaves_finished = true;
        }
    }
}

fn damaged(what: &str) -> String {
    format!("the stored entry of `{what}` is damaged: restore the data folder from a backup")
}

/// A file that grows under its own name.
fn plain(file: &str, entry: Entry) -> Result<Found, SinkError> {
    let path = Path::new(file);
    let length = match fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == ErrorKind::NotFound => 0,
        Err(error) => return Err(cannot("look at", path, &error)),
    };
    if length == 0 {
        if entry.length > 0 {
            tracing::warn!(path = %file, "the file was moved away or emptied: a new one is begun");
        }
        return Ok(Found::Gone);
    }
    let foreign = length != entry.length && !cut_back(path, &entry)?;
    let standing = if foreign { Standing::Foreign } else { Standing::Claimed };
    Ok(Found::Known(Known::new(entry, standing)))
}

/// A file that grows under another name than its final one.
fn rotated(file: &str, entry: Entry) -> Result<Found, SinkError> {
    let open = names::open(file);
    if !exists(&open)? {
        // It has its final name, and the store could not be told; or nothing was written.
        if exists(Path::new(file))? {
            // The name must be on the disk before the store forgets the other one.
            sync_folder(folder(&open))?;
        } else if entry.length > 0 {
            tracing::warn!(path = %file, "the file is gone under both of its names");
        }
        return Ok(Found::Gone);
    }
    if !cut_back(&open, &entry)? {
        return Err(SinkError::Fatal(format!(
            "`{}` is not as this pipeline left it, and committed records are missing in it: move it away",
            open.display()
        )));
    }
    if entry.finished {
        rename(file)?;
        return Ok(Found::Gone);
    }
    if entry.length == 0 {
        fs::remove_file(&open).map_err(|error| cannot("remove", &open, &error))?;
        sync_folder(folder(&open))?;
        return Ok(Found::Gone);
    }
    Ok(Found::Known(Known::new(entry, Standing::Claimed)))
}

/// Cuts a file back to what is committed. `false` if that is not in it: then nothing is changed.
fn cut_back(path: &Path, entry: &Entry) -> Result<bool, SinkError> {
    let on_disk = OnDisk::open(path)?;
    let length = on_disk.length()?;
    let tail = (length >= entry.length).then(|| entry::tail(&on_disk.file, entry.length));
    let tail = tail.transpose().map_err(|error| cannot("read", path, &error))?;
    if tail != Some(entry.tail) {
        return Ok(false);
    }
    if length > entry.length {
        tracing::warn!(
            path = %path.display(),
            bytes = length - entry.length,
            "what stands behind the last commit is cut off: it will be written again, unless others wrote it"
        );
        on_disk.cut(entry.length)?;
        on_disk.sync()?;
    }
    Ok(true)
}
