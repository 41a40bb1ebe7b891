//! The disks of the world: folders in which real logs lie, and files of simulated sinks. A crash takes what was not synced.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::components::PIPELINE;
use super::outcome::Arrival;
use crate::state::buffer::folder;

/// A folder of its own for one world, gone with it.
#[derive(Debug)]
pub(super) struct Folder(PathBuf);

impl Folder {
    /// A name that no other world uses. Nothing is there until something is written.
    pub(super) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        // Nothing in it outlives the test, and an fsync costs nothing in memory.
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self(parent.join(format!("weir-simulation-{}-{number}", std::process::id())))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // A world without a buffer has written nothing.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A file that a simulated sink writes, and the process whose file it is.
pub(super) type FileId = (usize, Arc<str>);

#[derive(Debug, Default)]
struct Written {
    arrivals: Vec<Arrival>,
    /// How many of them survive a crash for sure.
    synced: usize,
}

/// The disks of all processes.
#[derive(Debug)]
pub(super) struct Disk {
    root: PathBuf,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Up to where each buffer is synced, by process and stage.
    buffers: BTreeMap<(usize, Arc<str>), u64>,
    /// By process, and by the stage that writes it.
    files: BTreeMap<FileId, Written>,
}

impl Disk {
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), inner: Mutex::default() }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a process keeps what must survive it.
    pub(super) fn data_dir(&self, instance: usize) -> PathBuf {
        self.root.join(instance.to_string())
    }

    // Buffers.

    /// The buffer of a stage is there, and synced up to this place of its log.
    pub(super) fn synced_buffer(&self, instance: usize, stage: &Arc<str>, position: u64) {
        self.inner().buffers.insert((instance, Arc::clone(stage)), position);
    }

    /// The stages of a process that have a buffer.
    pub(super) fn buffers(&self, instance: usize) -> BTreeSet<Arc<str>> {
        let inner = self.inner();
        inner.buffers.keys().filter(|(of, _)| *of == instance).map(|(_, stage)| Arc::clone(stage)).collect()
    }

    // Files.

    pub(super) fn write(&self, file: &FileId, arrivals: impl IntoIterator<Item = Arrival>) {
        self.inner().files.entry(file.clone()).or_default().arrivals.extend(arrivals);
    }

    /// Makes all of a file durable, and tells how much that is.
    pub(super) fn sync(&self, file: &FileId) -> usize {
        let mut inner = self.inner();
        let written = inner.files.entry(file.clone()).or_default();
        written.synced = written.arrivals.len();
        written.synced
    }

    /// Cuts a file back to a length.
    ///
    /// # Errors
    /// If it is shorter than that.
    pub(super) fn cut(&self, file: &FileId, to: usize) -> Result<(), String> {
        let mut inner = self.inner();
        let written = inner.files.entry(file.clone()).or_default();
        let has = written.arrivals.len();
        if has < to {
            return Err(format!("of `{}` {to} records are committed, and {has} of them are there", file.1));
        }
        written.arrivals.truncate(to);
        written.synced = written.synced.min(to);
        Ok(())
    }

    /// All files, with what is in them.
    pub(super) fn files(&self) -> Vec<(FileId, Vec<Arrival>)> {
        self.inner().files.iter().map(|(file, written)| (file.clone(), written.arrivals.clone())).collect()
    }

    // Crashes.

    /// A process is gone, and with it what it had not synced: any beginning of it may have reached the disk, and anything
    /// may stand where the rest was to be.
    ///
    /// # Errors
    /// What the machine that runs the simulation says.
    pub(super) fn crashed(&self, instance: usize, random: &mut fastrand::Rng) -> io::Result<()> {
        let mut inner = self.inner();
        for (_, written) in inner.files.iter_mut().filter(|((of, _), _)| *of == instance) {
            let survives = random.usize(written.synced..=written.arrivals.len());
            written.arrivals.truncate(survives);
            written.synced = survives;
        }
        for ((_, stage), synced) in inner.buffers.iter().filter(|((of, _), _)| *of == instance) {
            tear(&folder(&self.data_dir(instance), PIPELINE, stage), *synced, random)?;
        }
        Ok(())
    }
}

/// Takes from the segments of a log what is behind a place.
fn tear(folder: &Path, synced: u64, random: &mut fastrand::Rng) -> io::Result<()> {
    let mut paths = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    // What follows from the seed must not follow from the order in which the system tells them.
    paths.sort_unstable();
    for path in paths {
        let base: Option<u64> = path.file_stem().and_then(|base| base.to_str()?.parse().ok());
        let Some(base) = base else { continue };
        // The name of a segment that was never synced need not be there.
        if base >= synced && random.bool() {
            fs::remove_file(path)?;
            continue;
        }
        let len = fs::metadata(&path)?.len();
        let durable = synced.saturating_sub(base).min(len);
        let survives = random.u64(durable..=len);
        let file = OpenOptions::new().write(true).open(path)?;
        file.set_len(survives)?;
        if survives > durable && random.bool() {
            let torn = random.u64(durable..survives);
            file.write_all_at(&vec![0; usize::try_from(survives - torn).unwrap_or(0)], torn)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_takes_only_what_was_not_synced() {
        let world = Folder::new();
        fs::create_dir_all(world.path()).unwrap();
        let [first, second] = [100, 200].map(|base: u64| world.path().join(format!("{base:020}.segment")));
        let mut lengths = BTreeSet::new();
        for seed in 0..50 {
            fs::write(&first, [1; 100]).unwrap();
            fs::write(&second, [1; 50]).unwrap();
            tear(world.path(), 210, &mut fastrand::Rng::with_seed(seed)).unwrap();
            assert_eq!(fs::read(&first).unwrap(), [1; 100]);
            let left = fs::read(&second).unwrap();
            assert!(left.len() >= 10 && left[..10] == [1; 10], "{left:?}");
            lengths.insert(left.len());
        }
        assert!(lengths.len() > 10, "{lengths:?}");
        // Names that were not synced may be lost as well.
        for seed in 0..50 {
            tear(world.path(), 100, &mut fastrand::Rng::with_seed(seed)).unwrap();
        }
        assert!(!first.exists() && !second.exists());
    }

    #[test]
    fn the_folder_of_a_world_goes_with_it() {
        let folder = Folder::new();
        let path = folder.path().to_owned();
        fs::create_dir_all(path.join("0/buffers")).unwrap();
        drop(folder);
        assert!(!path.exists());
    }
}
