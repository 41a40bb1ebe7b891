//! One path has one writer. Within a process a list of paths sees to it: a second sink would be a mistake in a pipeline
//! file, and waiting would not mend it. Other processes are kept out by a lock on the file.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::clients::files::pattern::Pattern;
use crate::component::SinkError;

static CLAIMED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// One path in the list, for as long as this lives.
#[derive(Debug)]
pub(super) struct Claim(PathBuf);

impl Claim {
    pub(super) fn of(pattern: &Pattern) -> Result<Self, SinkError> {
        let text = Path::new(pattern.text());
        let absolute = if pattern.is_plain() {
            // The file may not exist yet; its folder does, unless it will be created.
            let folder = text.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
            text.canonicalize().unwrap_or_else(|_| whole(folder).join(text.file_name().unwrap_or_default()))
        } else {
            let fixed = pattern.fixed_folder();
            whole(Path::new(if fixed.is_empty() { "." } else { fixed })).join(&pattern.text()[fixed.len()..])
        };
        let mut claimed = CLAIMED.lock().unwrap_or_else(PoisonError::into_inner);
        if claimed.insert(absolute.clone()) {
            return Ok(Self(absolute));
        }
        Err(SinkError::Fatal(format!(
            "`{}` is written by another sink of this process: give each sink a file of its own",
            pattern.text()
        )))
    }
}

/// A folder without links and dots in its path, as far as it exists.
fn whole(folder: &Path) -> PathBuf {
    folder.canonicalize().or_else(|_| std::path::absolute(folder)).unwrap_or_else(|_| folder.to_owned())
}

impl Drop for Claim {
    fn drop(&mut self) {
        CLAIMED.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}
