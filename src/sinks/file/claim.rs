//! One path has one writer. Within a process a list of paths sees to it: a second sink would be a mistake in a pipeline
//! file, and waiting would not mend it. Other processes are kept out by a lock on the file.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::clients::files::pattern::Pattern;
use crate::component::SinkError;

/// Who writes a path.
static CLAIMED: Mutex<BTreeMap<PathBuf, Owner>> = Mutex::new(BTreeMap::new());

/// A pipeline, and a sink in it.
pub(super) type Owner = (Arc<str>, Arc<str>);

/// One path in the list, for as long as this lives.
#[derive(Debug)]
pub(super) struct Claim(PathBuf);

impl Claim {
    pub(super) fn of(pattern: &Pattern, owner: &Owner) -> Result<Self, SinkError> {
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
        match claimed.entry(absolute) {
            Entry::Vacant(free) => {
                let path = free.key().clone();
                free.insert(owner.clone());
                Ok(Self(path))
            }
            // A write that hangs outlives the sink that began it.
            Entry::Occupied(held) if held.get() == owner => Err(SinkError::Retry(format!(
                "an earlier run still writes `{}`: waiting until the disk has answered it",
                pattern.text()
            ))),
            Entry::Occupied(_) => Err(SinkError::Fatal(format!(
                "`{}` is written by another sink of this process: give each sink a file of its own",
                pattern.text()
            ))),
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sink_waits_for_its_own_earlier_life_and_for_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let pattern = Pattern::new(folder.path().join("out.txt").to_str().unwrap()).unwrap();
        let owner = |pipeline: &str, sink: &str| (pipeline.into(), sink.into());
        let held = Claim::of(&pattern, &owner("orders", "out")).unwrap();
        let again = || Claim::of(&pattern, &owner("orders", "out"));
        assert!(matches!(again(), Err(SinkError::Retry(_))));
        for other in [owner("orders", "copy"), owner("logs", "out")] {
            assert!(matches!(Claim::of(&pattern, &other), Err(SinkError::Fatal(_))));
        }
        drop(held);
        again().unwrap();
    }
}
