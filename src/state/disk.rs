//! The store on disk: one file, and one thread that owns it.
//!
//! The thread takes all requests that have arrived and commits them in one transaction, with one fsync: two hundred
//! pipelines that commit every second must not pay for two hundred fsyncs.

use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use futures::future::BoxFuture;
use redb::{Database, DatabaseError, ReadableDatabase, StorageError, TableDefinition, TableError};
use tokio::sync::{mpsc, oneshot};

use super::store::{Entries, Store, StoreError};

/// Values by scope and key.
const ENTRIES: TableDefinition<(&str, &str), &[u8]> = TableDefinition::new("entries");
/// The store holds positions and ids: a small cache holds all of it.
const CACHE_BYTES: usize = 8 << 20;
/// Requests that wait for the thread; whoever comes then waits at the door.
const QUEUE: usize = 1024;

/// Entries of one scope to be written; `None` removes a key.
type Changes = Vec<(String, Option<Vec<u8>>)>;
/// Who waits for an answer.
type Done<T> = oneshot::Sender<Result<T, StoreError>>;
/// Opens the database again after an error, which the old handle never forgets.
type Open = Box<dyn Fn() -> Result<Database, StoreError> + Send>;

/// The store of a process, in one file that no other process may open.
pub struct DiskStore {
    requests: Option<mpsc::Sender<Request>>,
    thread: Option<JoinHandle<()>>,
}

enum Request {
    Load { scope: String, done: Done<Entries> },
    Commit { scope: String, entries: Changes, done: Done<()> },
}

impl DiskStore {
    /// Opens the file, or creates it; its folder must exist.
    ///
    /// # Errors
    /// If another process has it open, if it is damaged, or if the disk refuses.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        // Asked once, and an error is no answer: what cannot be seen, or was there a moment ago, is not made anew.
        let is_there = path.try_exists().map_err(|error| cannot_open(path, &error))?;
        let database = if is_there { open(path)? } else { create(path)? };
        let path = path.to_owned();
        Self::start(database, Some(path.clone()), Box::new(move || open(&path)))
    }

    fn start(database: Database, path: Option<PathBuf>, open: Open) -> Result<Self, StoreError> {
        let (requests, queue) = mpsc::channel(QUEUE);
        let thread = thread::Builder::new()
            .name("weir-store".to_owned())
            .spawn(move || Owner { open, path, database: Some(database) }.serve(queue))
            .map_err(|error| StoreError(format!("cannot start the thread of the store: {error}")))?;
        Ok(Self { requests: Some(requests), thread: Some(thread) })
    }

    async fn ask<T>(&self, request: impl FnOnce(Done<T>) -> Request) -> Result<T, StoreError> {
        let gone = || StoreError("the thread of the store has ended".to_owned());
        let (done, answer) = oneshot::channel();
        let requests = self.requests.as_ref().ok_or_else(gone)?;
        requests.send(request(done)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

impl Drop for DiskStore {
    /// Waits for what is under way, so that the file is closed properly and can be opened again at once.
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for DiskStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DiskStore")
    }
}

impl Store for DiskStore {
    fn load(&self, scope: &str) -> BoxFuture<'_, Result<Entries, StoreError>> {
        let scope = scope.to_owned();
        Box::pin(self.ask(|done| Request::Load { scope, done }))
    }

    fn commit(&self, scope: &str, entries: Changes) -> BoxFuture<'_, Result<(), StoreError>> {
        let scope = scope.to_owned();
        Box::pin(self.ask(|done| Request::Commit { scope, entries, done }))
    }
}

/// The thread's side.
struct Owner {
    open: Open,
    /// Where the file is, unless a test keeps it in memory.
    path: Option<PathBuf>,
    /// `None` after an error, until the next request opens it again.
    database: Option<Database>,
}

impl Owner {
    fn serve(mut self, mut queue: mpsc::Receiver<Request>) {
        let mut arrived = Vec::new();
        while queue.blocking_recv_many(&mut arrived, QUEUE) > 0 {
            let mut group = Vec::new();
            for request in arrived.drain(..) {
                match request {
                    Request::Commit { scope, entries, done } => group.push((scope, entries, done)),
                    Request::Load { scope, done } => {
                        // Requests are served in their order: what was committed before is loaded.
                        self.commit(&mut group);
                        let _ = done.send(self.with(|database| load(database, &scope)));
                    }
                }
            }
            self.commit(&mut group);
        }
    }

    /// Commits a group in one transaction and answers each of its requests; leaves the group empty.
    fn commit(&mut self, group: &mut Vec<(String, Changes, Done<()>)>) {
        if group.is_empty() {
            return;
        }
        let outcome = self.is_there().and_then(|()| {
            self.with(|database| {
                let transaction = database.begin_write()?;
                {
                    let mut table = transaction.open_table(ENTRIES)?;
                    for (scope, entries, _) in group.iter() {
                        for (key, value) in entries {
                            let key = (scope.as_str(), key.as_str());
                            match value {
                                Some(value) => table.insert(key, value.as_slice())?,
                                None => table.remove(key)?,
                            };
                        }
                    }
                }
                Ok(transaction.commit()?)
            })
        });
        for (.., done) in group.drain(..) {
            let _ = done.send(outcome.clone());
        }
    }

    /// A file that was removed can still be written, for nobody to read.
    fn is_there(&self) -> Result<(), StoreError> {
        let Some(path) = &self.path else { return Ok(()) };
        match path.try_exists() {
            Ok(false) => Err(StoreError(format!(
                "the store `{}` was removed while it was in use: what is committed would not be found again; stop, and \
                 restore the data folder",
                path.display()
            ))),
            Ok(true) => Ok(()),
            Err(error) => Err(cannot_open(path, &error)),
        }
    }

    /// Works on the database. After an error it is closed, and opened again for the next request.
    fn with<T>(&mut self, work: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, StoreError> {
        let database = match self.database.take() {
            Some(database) => database,
            None => (self.open)()?,
        };
        // A panic would end the thread, and with it every pipeline's commits for as long as the process lives.
        match panic::catch_unwind(AssertUnwindSafe(|| work(&database))) {
            Ok(Ok(value)) => {
                self.database = Some(database);
                Ok(value)
            }
            Ok(Err(error)) => Err(StoreError(format!("the store failed: {error}"))),
            Err(_) => Err(StoreError("the store failed: its library panicked".to_owned())),
        }
    }
}

fn load(database: &Database, scope: &str) -> Result<Entries, redb::Error> {
    let table = match database.begin_read()?.open_table(ENTRIES) {
        Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
        table => table?,
    };
    let mut entries = Vec::new();
    for entry in table.range((scope, "")..)? {
        let (key, value) = entry?;
        let (of, key) = key.value();
        if of != scope {
            break;
        }
        entries.push((key.to_owned(), value.value().to_owned()));
    }
    Ok(entries)
}

fn builder() -> redb::Builder {
    let mut builder = redb::Builder::new();
    // Without the check redb trusts a file that was closed properly, and panics where it was damaged since.
    builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
    builder
}

/// Opens a file that is there. One that is not (its volume may be away) is an error, never a new store: the positions of
/// all pipelines are in the old one.
fn open(path: &Path) -> Result<Database, StoreError> {
    builder().open(path).map_err(|error| explain(path, &error))
}

/// Makes the file under another name first. A crash or a full disk leaves no half of a store, which no later start could
/// tell from a damaged one.
fn create(path: &Path) -> Result<Database, StoreError> {
    let failed = |error: std::io::Error| StoreError(format!("cannot create the store `{}`: {error}", path.display()));
    let unfinished = path.with_extension("new");
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    // It stays open, and locked, while it gets its name.
    let database = builder().create(&unfinished).map_err(|error| explain(&unfinished, &error))?;
    fs::rename(&unfinished, path).map_err(failed)?;
    if let Some(folder) = path.parent() {
        // The file's name must survive a power cut as well.
        fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
    }
    Ok(database)
}

fn cannot_open(path: &Path, error: &impl fmt::Display) -> StoreError {
    StoreError(format!("cannot open the store `{}`: {error}", path.display()))
}

/// What a person can do about a database that does not open.
fn explain(path: &Path, error: &DatabaseError) -> StoreError {
    let shown = path.display();
    let damaged = |how: &str| {
        format!(
            "the store `{shown}` is damaged ({how}): restore it from a backup, or move it away to start without it; \
             sources that keep their positions in it then begin as if they were new"
        )
    };
    StoreError(match error {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => {
            format!("the store `{shown}` is in use by another process: each process needs a data folder of its own")
        }
        DatabaseError::UpgradeRequired(version) => {
            format!("the store `{shown}` was written in format {version}, which this version does not read")
        }
        DatabaseError::RepairAborted | DatabaseError::Storage(StorageError::Corrupted(_)) => {
            damaged(&error.to_string())
        }
        DatabaseError::Storage(StorageError::Io(io))
            if matches!(io.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof) =>
        {
            damaged(&io.to_string())
        }
        error => return cannot_open(path, error),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use std::sync::{Arc, Mutex};

    use futures::FutureExt;
    use redb::StorageBackend;
    use redb::backends::InMemoryBackend;

    use super::*;

    /// A disk that lives as long as the test, counts its fsyncs and fails when told to.
    #[derive(Debug, Clone, Default)]
    struct Disk(Arc<DiskState>);

    #[derive(Debug, Default)]
    struct DiskState {
        bytes: InMemoryBackend,
        syncs: AtomicU64,
        full: AtomicBool,
        /// Held by a test while it lets requests pile up.
        gate: Mutex<()>,
    }

    type IoResult<T> = Result<T, std::io::Error>;

    impl StorageBackend for Disk {
        fn len(&self) -> IoResult<u64> {
            self.0.bytes.len()
        }
        fn read(&self, offset: u64, out: &mut [u8]) -> IoResult<()> {
            self.0.bytes.read(offset, out)
        }
        fn set_len(&self, len: u64) -> IoResult<()> {
            self.0.bytes.set_len(len)
        }
        fn sync_data(&self) -> IoResult<()> {
            let _open = self.0.gate.lock().unwrap();
            if self.0.full.load(Ordering::SeqCst) {
                return Err(std::io::Error::from(std::io::ErrorKind::StorageFull));
            }
            self.0.syncs.fetch_add(1, Ordering::SeqCst);
            self.0.bytes.sync_data()
        }
        fn write(&self, offset: u64, data: &[u8]) -> IoResult<()> {
            self.0.bytes.write(offset, data)
        }
    }

    impl Disk {
        fn store(&self) -> DiskStore {
            let disk = self.clone();
            let open = move || {
                let opened = redb::Builder::new().create_with_backend(disk.clone());
                opened.map_err(|error| StoreError(error.to_string()))
            };
            DiskStore::start(open().unwrap(), None, Box::new(open)).unwrap()
        }
    }

    fn entry(key: &str, value: u8) -> Changes {
        vec![(key.to_owned(), Some(vec![value]))]
    }

    #[tokio::test]
    async fn rule_32_commits_that_arrive_together_share_one_fsync() {
        let disk = Disk::default();
        let store = disk.store();
        store.commit("first", entry("makes the table", 1)).await.unwrap();
        let before = disk.0.syncs.load(Ordering::SeqCst);

        let closed = disk.0.gate.lock().unwrap();
        let names: Vec<String> = (0..100).map(|pipeline| format!("pipeline-{pipeline}")).collect();
        let mut commits: Vec<_> = names.iter().map(|name| store.commit(name, entry("x", 1))).collect();
        for commit in &mut commits {
            // Polled once, a commit stands in the queue; none can be answered while the disk is held.
            assert!(commit.now_or_never().is_none());
        }
        drop(closed);
        futures::future::try_join_all(commits).await.unwrap();

        // One for what the thread took before the others came, one for all the others.
        let fsyncs = disk.0.syncs.load(Ordering::SeqCst) - before;
        assert!(fsyncs <= 4, "{fsyncs} fsyncs for 100 commits");
        assert_eq!(store.load("pipeline-99").await.unwrap(), [("x".to_owned(), vec![1])]);
    }

    #[tokio::test]
    async fn an_error_fails_all_its_requesters_and_the_next_commit_works() {
        let disk = Disk::default();
        let store = disk.store();
        store.commit("a", entry("x", 1)).await.unwrap();
        disk.0.full.store(true, Ordering::SeqCst);
        let (one, two) = tokio::join!(store.commit("a", entry("x", 2)), store.commit("b", entry("x", 3)));
        assert!(one.is_err() && two.is_err());
        disk.0.full.store(false, Ordering::SeqCst);
        // Whether a commit that failed is on the disk is not known; that the store works is.
        assert_eq!(store.load("a").await.unwrap().len(), 1);
        store.commit("a", entry("x", 4)).await.unwrap();
        assert_eq!(store.load("a").await.unwrap(), [("x".to_owned(), vec![4])]);
    }

    #[test]
    fn a_store_that_went_away_is_waited_for_and_never_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let (path, away) = (dir.path().join("weir.redb"), dir.path().join("away"));
        drop(create(&path).unwrap());
        let again = path.clone();
        let mut owner =
            Owner { open: Box::new(move || open(&again)), path: None, database: Some(open(&path).unwrap()) };
        let fails = |_: &Database| -> Result<(), redb::Error> { Err(redb::Error::PreviousIo) };
        let works = |_: &Database| -> Result<(), redb::Error> { Ok(()) };
        owner.with(fails).unwrap_err();
        fs::rename(&path, &away).unwrap();
        let error = owner.with(works).unwrap_err().to_string();
        assert!(error.contains("cannot open the store") && !path.exists(), "{error}");
        fs::rename(&away, &path).unwrap();
        owner.with(works).unwrap();
    }

    #[tokio::test]
    async fn a_store_that_was_removed_takes_no_commit() {
        let dir = tempfile::tempdir().unwrap();
        let (path, away) = (dir.path().join("weir.redb"), dir.path().join("away"));
        let store = DiskStore::open(&path).unwrap();
        fs::rename(&path, &away).unwrap();
        let error = store.commit("pipeline", entry("x", 1)).await.unwrap_err().to_string();
        assert!(error.contains("was removed while it was in use"), "{error}");
        fs::rename(&away, &path).unwrap();
        store.commit("pipeline", entry("x", 1)).await.unwrap();
    }

    #[tokio::test]
    async fn what_was_committed_is_there_after_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weir.redb");
        let store = DiskStore::open(&path).unwrap();
        store.commit("pipeline", vec![("a".into(), Some(vec![1])), ("b".into(), Some(vec![2]))]).await.unwrap();
        store.commit("pipeline", vec![("a".into(), None)]).await.unwrap();
        // As a kill leaves it: a copy of the file while the store is open.
        let killed = dir.path().join("killed.redb");
        std::fs::copy(&path, &killed).unwrap();
        drop(store);
        for path in [path, killed] {
            let store = DiskStore::open(&path).unwrap();
            assert_eq!(store.load("pipeline").await.unwrap(), [("b".to_owned(), vec![2])]);
            assert_eq!(store.load("pipe").await.unwrap(), []);
        }
    }

    #[tokio::test]
    async fn a_store_whose_making_was_cut_short_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weir.redb");
        // As a crash or a full disk leaves it: the file has its size, and the library's mark is not in it yet.
        std::fs::write(path.with_extension("new"), vec![0; 1 << 16]).unwrap();
        let store = DiskStore::open(&path).unwrap();
        store.commit("pipeline", entry("x", 1)).await.unwrap();
        drop(store);
        assert!(path.exists() && !path.with_extension("new").exists());
        assert_eq!(DiskStore::open(&path).unwrap().load("pipeline").await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_store_that_is_open_is_not_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weir.redb");
        let _open = DiskStore::open(&path).unwrap();
        let error = DiskStore::open(&path).unwrap_err().to_string();
        assert!(error.contains("in use by another process") && error.contains("weir.redb"), "{error}");
    }

    #[tokio::test]
    async fn a_damaged_store_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weir.redb");
        let store = DiskStore::open(&path).unwrap();
        let entries = (0..100).map(|key| (format!("{key}"), Some(vec![7; 100]))).collect();
        store.commit("pipeline", entries).await.unwrap();
        drop(store);
        let whole = std::fs::read(&path).unwrap();
        let mut overwritten = whole.clone();
        overwritten[4096..].fill(b'?');
        for damaged in
            [vec![b'?'; whole.len()], b"not a store".to_vec(), whole[..whole.len() / 2].to_vec(), overwritten]
        {
            std::fs::write(&path, damaged).unwrap();
            let error = DiskStore::open(&path).unwrap_err().to_string();
            assert!(error.contains("is damaged") && error.contains("move it away"), "{error}");
        }
    }
}
