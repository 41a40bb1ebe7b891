//! The data folder of a process, and who the process is.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use uuid::Uuid;

use super::store::StoreError;

/// How often a folder that somebody holds is tried again by who means to stay,
const LOOKS: u32 = 100;
/// and how soon.
const LOOK: Duration = Duration::from_millis(20);

/// A data folder that this process holds for as long as the value lives. Two processes with one data folder would take
/// each other's positions and identity for their own.
#[derive(Debug)]
pub struct DataDir {
    path: Arc<Path>,
    /// Locked; the kernel unlocks it when the process ends, however it ends.
    _lock: File,
}

impl DataDir {
    /// Creates the folder if need be, and takes it.
    ///
    /// # Errors
    /// If another process holds it, or if the disk refuses.
    pub fn take(path: &Path) -> Result<Self, StoreError> {
        Self::try_take(path)?.ok_or_else(|| in_use(path))
    }

    /// `None` if another process holds it.
    fn try_take(path: &Path) -> Result<Option<Self>, StoreError> {
        let failed = |error: io::Error| StoreError(format!("cannot use the data folder `{}`: {error}", path.display()));
        fs::create_dir_all(path).map_err(failed)?;
        let path = path.canonicalize().map_err(failed)?;
        let lock = OpenOptions::new().create(true).write(true).truncate(false).open(path.join("lock"));
        let lock = lock.map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(Self { path: path.into(), _lock: lock })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }

    /// As [`take`](Self::take), for who means to stay: others hold the folder for a moment only to look what is in it.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    pub fn take_to_stay(path: &Path) -> Result<Self, StoreError> {
        for _ in 0..LOOKS {
            if let Some(taken) = Self::try_take(path)? {
                return Ok(taken);
            }
            thread::sleep(LOOK);
        }
        Self::take(path)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Arc<Path> {
        &self.path
    }

    /// Where the process's store is.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.path.join("weir.redb")
    }
}

fn in_use(path: &Path) -> StoreError {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    StoreError(format!(
        "the data folder `{}` is in use by another process: give each process one of its own (`WEIR_DATA_DIR`)",
        path.display()
    ))
}

/// Who this process is among those that run the same pipelines: a UUID, made at the first start and kept in the data
/// folder, so that a restart is known as the same member of its consumer groups and fences its own transactions.
///
/// # Errors
/// If the file in the folder is damaged, or the disk refuses.
pub fn instance_id(data_dir: &Path) -> Result<Arc<str>, StoreError> {
    let path = data_dir.join("instance");
    match fs::read_to_string(&path) {
        Ok(text) => match Uuid::parse_str(text.trim()) {
            Ok(id) => Ok(id.to_string().into()),
            Err(_) => Err(StoreError(format!(
                "`{}` holds no instance id: write the old one into it, or remove it to start as a new instance",
                path.display()
            ))),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let id = Uuid::new_v4().to_string();
            create(data_dir, &path, &id)
                .map_err(|error| StoreError(format!("cannot write `{}`: {error}", path.display())))?;
            Ok(id.into())
        }
        Err(error) => Err(StoreError(format!("cannot read `{}`: {error}", path.display()))),
    }
}

/// Either the whole file is there after a crash, or none.
fn create(data_dir: &Path, path: &Path, id: &str) -> io::Result<()> {
    let unfinished = data_dir.join("instance.new");
    let mut file = File::create(&unfinished)?;
    writeln!(file, "{id}")?;
    file.sync_all()?;
    fs::rename(&unfinished, path)?;
    File::open(data_dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_keeps_its_id() {
        let dir = tempfile::tempdir().unwrap();
        let id = instance_id(dir.path()).unwrap();
        assert!(Uuid::parse_str(&id).is_ok());
        assert_eq!(instance_id(dir.path()).unwrap(), id);
    }

    #[test]
    fn an_unfinished_id_is_made_anew_and_a_damaged_one_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("instance.new"), "6e").unwrap();
        instance_id(dir.path()).unwrap();
        fs::write(dir.path().join("instance"), "").unwrap();
        let error = instance_id(dir.path()).unwrap_err().to_string();
        assert!(error.contains("holds no instance id"), "{error}");
    }

    #[test]
    fn a_data_folder_has_one_process() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("data");
        let held = DataDir::take(&path).unwrap();
        let error = DataDir::take(&path).unwrap_err().to_string();
        assert!(error.contains("in use by another process") && error.contains("data"), "{error}");
        drop(held);
        DataDir::take(&path).unwrap();
    }

    #[test]
    fn who_only_looks_into_a_data_folder_keeps_nobody_out() {
        let parent = tempfile::tempdir().unwrap();
        let looking = DataDir::take(parent.path()).unwrap();
        thread::scope(|scope| {
            let stays = scope.spawn(|| DataDir::take_to_stay(parent.path()).map(drop));
            drop(looking);
            stays.join().unwrap().unwrap();
        });
    }
}
