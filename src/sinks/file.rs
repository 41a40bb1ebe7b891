//! Appends lines to a file.
//!
//! The file holds whole lines only: a write that fails is cut off again before it is tried again, and what a crash left
//! without its newline, which nobody was told is written, is cut off at the next start.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use futures::future::{self, BoxFuture};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::clients::lines::{self, past_last_newline};
use crate::codecs::Codec;
use crate::component::{
    Acknowledges, Answer, BoxSink, BuildContext, CheckContext, CompiledSink, Problem, Settled, Sink, SinkConfig,
    SinkError, SinkTraits, Spanned, Touched,
};
use crate::record::Batch;
use crate::runtime::Runtime;

/// Appends each record as a line to a file.
///
/// ```yaml
/// file: { path: /var/lib/app/orders.ndjson }
/// ```
///
/// The file is created if need be; its folder must exist. Lines are durable when their epoch is committed. After a crash,
/// lines that were not committed may be in the file, and are written again. One sink writes a file: a lock keeps others
/// out. A file that is renamed or removed, as log rotation does, is noticed at the next commit, and a new one is begun.
///
/// A record whose text holds a line end is refused, unless it is JSON, where line ends between values become blanks.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct FileConfig {
    /// The file.
    path: Spanned<String>,
    /// How each record is written.
    #[serde(default)]
    codec: Codec,
}

impl SinkConfig for FileConfig {
    const NAME: &'static str = "file";

    fn compile(self, cx: &mut CheckContext) -> Option<CompiledSink> {
        let span = self.path.span;
        if self.path.is_empty() {
            cx.report(Problem::error(span, "the path is empty"));
            return None;
        }
        if self.path.contains('%') {
            cx.report(
                Problem::error(
                    span,
                    format!("`{}` holds a `%`: a path with a date or a field in it is not supported", *self.path),
                )
                .help("give the path of one file"),
            );
            return None;
        }
        let path: Arc<Path> = PathBuf::from(self.path.value).into();
        let traits = SinkTraits {
            acknowledges: Acknowledges::Durable,
            transactional_with: &[],
            transaction_timeout: None,
            idempotent_by_key: false,
            per_lane: false,
            carries_headers: false,
        };
        let build = move |cx: &BuildContext| {
            let output =
                Output { path: Arc::clone(&path), codec: self.codec, lines: Vec::new(), open: None, claim: None };
            let sink = FileSink { runtime: cx.runtime.clone(), output: Arc::new(Mutex::new(output)) };
            Ok(Box::new(sink) as BoxSink)
        };
        Some(CompiledSink { traits, touched: Touched::default(), build: Arc::new(build) })
    }
}

struct FileSink {
    runtime: Runtime,
    /// Locked by each piece of blocking work: one that a rewind abandoned ends before the next begins.
    output: Arc<Mutex<Output>>,
}

impl FileSink {
    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce(&mut Output) -> T + Send + 'static) -> T {
        let output = Arc::clone(&self.output);
        self.runtime.blocking(move || work(&mut output.lock().unwrap_or_else(PoisonError::into_inner))).await
    }
}

impl Sink for FileSink {
    fn open(&mut self) -> BoxFuture<'_, Result<(), SinkError>> {
        Box::pin(self.blocking(Output::open))
    }

    fn write(&mut self, batch: Arc<Batch>) -> BoxFuture<'_, Result<Answer, SinkError>> {
        Box::pin(async move {
            // The stage may free the batch at once; the epoch is not settled before `flush`.
            let settled = self.blocking(move |output| output.append(&batch)).await?;
            Ok(Box::pin(future::ready(Ok(settled))) as Answer)
        })
    }

    fn flush(&mut self) -> BoxFuture<'_, Result<(), SinkError>> {
        Box::pin(self.blocking(Output::flush))
    }
}

/// The files that sinks of this process write. A second one would be a mistake in a pipeline file, and waiting would not
/// mend it.
static CLAIMED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// One path in [`CLAIMED`].
struct Claim(PathBuf);

impl Claim {
    fn of(path: &Path) -> Result<Self, SinkError> {
        let taken = || {
            SinkError::Fatal(format!(
                "`{}` is written by another sink of this process: give each sink a file of its own",
                path.display()
            ))
        };
        // The file may not exist yet; its folder does.
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let folder = folder.canonicalize().map_err(|error| cannot("open the folder of", path, &error))?;
        let absolute = path.canonicalize().unwrap_or_else(|_| folder.join(path.file_name().unwrap_or_default()));
        let mut claimed = CLAIMED.lock().unwrap_or_else(PoisonError::into_inner);
        if claimed.insert(absolute.clone()) { Ok(Self(absolute)) } else { Err(taken()) }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        CLAIMED.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}

/// The file, and what is known of it.
struct Output {
    path: Arc<Path>,
    codec: Codec,
    /// Reused by all batches.
    lines: Vec<u8>,
    open: Option<Opened>,
    /// Keeps other sinks of this process off the file.
    claim: Option<Claim>,
}

struct Opened {
    file: File,
    /// The folder's entry is not durable yet.
    is_new: bool,
    /// Lines were written since the last sync.
    unsynced: bool,
    /// Where a write failed that could not be cut off yet.
    torn_at: Option<u64>,
}

impl Output {
    fn open(&mut self) -> Result<(), SinkError> {
        if self.claim.is_none() {
            self.claim = Some(Claim::of(&self.path)?);
        }
        // A file that a rewind finds open stays open, and locked.
        match &mut self.open {
            Some(open) => open.cut_torn_line(&self.path),
            None => self.reopen(),
        }
    }

    fn reopen(&mut self) -> Result<(), SinkError> {
        let mut open = Opened::open(&self.path)?;
        open.cut_torn_line(&self.path)?;
        self.open = Some(open);
        Ok(())
    }

    fn opened(&mut self) -> Result<&mut Opened, SinkError> {
        if self.open.is_none() {
            self.reopen()?;
        }
        self.open.as_mut().ok_or_else(|| SinkError::Retry("the file is not open".to_owned()))
    }

    fn append(&mut self, batch: &Batch) -> Result<Settled, SinkError> {
        let mut lines = std::mem::take(&mut self.lines);
        lines.clear();
        let settled = lines::encode(self.codec, batch, &mut lines);
        let path = Arc::clone(&self.path);
        let appended = self.opened().and_then(|open| open.append(&path, &lines));
        self.lines = lines;
        appended.map(|()| settled)
    }

    /// Makes all lines durable. A file that was renamed is finished; the next line begins a new one.
    fn flush(&mut self) -> Result<(), SinkError> {
        let Some(open) = &mut self.open else { return Ok(()) };
        let path = &*self.path;
        open.sync(path).map_err(|error| {
            // The kernel forgets what it could not write: a second sync would succeed, and prove nothing.
            SinkError::Rewind(format!("cannot sync `{}`: {error}", path.display()))
        })?;
        let metadata = open.file.metadata().map_err(|error| cannot("look at", path, &error))?;
        let has_the_name = match fs::metadata(path) {
            Ok(named) => (named.dev(), named.ino()) == (metadata.dev(), metadata.ino()),
            Err(error) if error.kind() == ErrorKind::NotFound => false,
            Err(error) => return Err(cannot("look at", path, &error)),
        };
        if has_the_name {
            return Ok(());
        }
        self.open = None;
        if metadata.nlink() == 0 {
            // Nobody can read what this epoch wrote.
            return Err(SinkError::Rewind(format!("`{}` was removed: a new one is begun", path.display())));
        }
        tracing::info!(path = %path.display(), "the file was renamed: a new one is begun");
        Ok(())
    }
}

impl Opened {
    fn open(path: &Path) -> Result<Self, SinkError> {
        let mut options = OpenOptions::new();
        options.read(true).append(true);
        let (file, is_new) = match options.open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => (options.create(true).open(path), true),
            opened => (opened, false),
        };
        let file = file.map_err(|error| cannot("open", path, &error))?;
        let metadata = file.metadata().map_err(|error| cannot("look at", path, &error))?;
        if !metadata.is_file() {
            let path = path.display();
            return Err(SinkError::Fatal(format!(
                "`{path}` is no regular file: lines in it could not be made durable"
            )));
        }
        match file.try_lock() {
            Ok(()) => Ok(Self { file, is_new, unsynced: false, torn_at: None }),
            Err(TryLockError::WouldBlock) => Err(SinkError::Retry(format!(
                "`{}` is written by another process, and locked: waiting until it ends",
                path.display()
            ))),
            Err(TryLockError::Error(error)) => Err(cannot("lock", path, &error)),
        }
    }

    /// Cuts off what a crash, or a write that failed, left without its newline.
    fn cut_torn_line(&mut self, path: &Path) -> Result<(), SinkError> {
        self.cut_failed_write(path)?;
        let cut = || {
            let len = self.file.metadata()?.len();
            let end = past_last_newline(&self.file, len)?;
            if end < len {
                self.file.set_len(end)?;
            }
            Ok(len - end)
        };
        match cut().map_err(|error: io::Error| cannot("repair", path, &error))? {
            0 => {}
            bytes => tracing::warn!(
                path = %path.display(),
                bytes,
                "the file ended within a line that was never acknowledged: it is cut off, and written again"
            ),
        }
        Ok(())
    }

    fn cut_failed_write(&mut self, path: &Path) -> Result<(), SinkError> {
        if let Some(len) = self.torn_at {
            self.file.set_len(len).map_err(|error| cannot("repair", path, &error))?;
            self.torn_at = None;
        }
        Ok(())
    }

    /// Appends all lines, or none.
    fn append(&mut self, path: &Path, lines: &[u8]) -> Result<(), SinkError> {
        self.cut_failed_write(path)?;
        self.unsynced = true;
        let before = self.file.metadata().map_err(|error| cannot("look at", path, &error))?.len();
        self.file.write_all(lines).map_err(|error| {
            self.torn_at = Some(before);
            // If that fails too, the next write begins with it.
            let _ = self.cut_failed_write(path);
            cannot("write", path, &error)
        })
    }

    fn sync(&mut self, path: &Path) -> io::Result<()> {
        if self.unsynced {
            self.file.sync_data()?;
            self.unsynced = false;
        }
        if self.is_new {
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
            File::open(folder)?.sync_all()?;
            self.is_new = false;
        }
        Ok(())
    }
}

/// A person must act where the path is wrong; a full or broken disk may be mended meanwhile.
fn cannot(what: &str, path: &Path, error: &io::Error) -> SinkError {
    let text = format!("cannot {what} `{}`: {error}", path.display());
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

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use tempfile::TempDir;

    use super::*;
    use crate::testing::harness::{self, SinkRun};

    fn sink(path: &Path) -> SinkRun {
        harness::sink(&format!("file: {{ path: \"{}\", codec: raw }}", path.display()))
    }

    async fn opened(path: &Path) -> SinkRun {
        let mut sink = sink(path);
        sink.open().await.unwrap();
        sink
    }

    fn folder() -> (TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.txt");
        (folder, path)
    }

    fn text(path: &Path) -> String {
        fs::read_to_string(path).unwrap()
    }

    #[tokio::test]
    async fn each_record_is_a_line_behind_what_was_there() {
        let (_folder, path) = folder();
        fs::write(&path, "before\n").unwrap();
        let mut sink = opened(&path).await;
        assert_eq!(sink.write(&["one", "two"]).await, Ok(Settled::all()));
        sink.flush().await.unwrap();
        sink.restart().open().await.unwrap();
        sink.write(&["three"]).await.unwrap();
        assert_eq!(text(&path), "before\none\ntwo\nthree\n");
    }

    #[tokio::test]
    async fn a_record_that_is_no_line_is_refused_and_its_neighbours_are_written() {
        let (_folder, path) = folder();
        let mut sink = opened(&path).await;
        let settled = sink.write(&["one", "t\nwo", "three"]).await.unwrap();
        assert_eq!(settled.refused.iter().map(|refusal| refusal.record).collect::<Vec<_>>(), [1]);
        assert_eq!(text(&path), "one\nthree\n");
    }

    #[tokio::test]
    async fn a_line_that_a_crash_left_torn_is_cut_off() {
        let (_folder, path) = folder();
        for (torn, whole) in [("one\ntw", "one\n"), ("on", ""), ("", ""), ("one\n", "one\n")] {
            fs::write(&path, torn).unwrap();
            let mut sink = opened(&path).await;
            assert_eq!(text(&path), whole);
            sink.write(&["next"]).await.unwrap();
            assert_eq!(text(&path), format!("{whole}next\n"));
        }
    }

    #[tokio::test]
    async fn a_file_has_one_writer_in_this_process() {
        let (_folder, path) = folder();
        let first = opened(&path).await;
        // However the path is written.
        let same = path.parent().unwrap().join(".").join("out.txt");
        let Err(SinkError::Fatal(error)) = sink(&same).open().await else { panic!("a second writer") };
        assert!(error.contains("written by another sink") && error.contains("out.txt"), "{error}");
        drop(first);
        opened(&same).await;
    }

    #[tokio::test]
    async fn a_file_that_another_process_writes_is_waited_for() {
        let (_folder, path) = folder();
        // To the kernel another open file is another writer, in whichever process.
        let other = File::create(&path).unwrap();
        other.lock().unwrap();
        let mut sink = sink(&path);
        let Err(SinkError::Retry(error)) = sink.open().await else { panic!("a second writer") };
        assert!(error.contains("another process") && error.contains("out.txt"), "{error}");
        other.unlock().unwrap();
        sink.open().await.unwrap();
    }

    #[tokio::test]
    async fn a_path_that_cannot_be_written_needs_a_person() {
        let (folder, path) = folder();
        fs::create_dir(&path).unwrap();
        for path in [path, folder.path().join("none").join("out.txt"), PathBuf::from("/dev/null")] {
            let opened = sink(&path).open().await;
            assert!(
                matches!(&opened, Err(SinkError::Fatal(error)) if error.contains(path.to_str().unwrap())),
                "{opened:?}"
            );
        }
    }

    #[tokio::test]
    async fn a_renamed_file_is_finished_and_a_new_one_begun() {
        let (folder, path) = folder();
        let mut sink = opened(&path).await;
        sink.write(&["old"]).await.unwrap();
        let old = folder.path().join("out.txt.1");
        fs::rename(&path, &old).unwrap();
        sink.write(&["late"]).await.unwrap();
        sink.flush().await.unwrap();
        sink.write(&["new"]).await.unwrap();
        sink.flush().await.unwrap();
        assert_eq!((text(&old), text(&path)), ("old\nlate\n".to_owned(), "new\n".to_owned()));
    }

    #[tokio::test]
    async fn an_epoch_whose_file_was_removed_is_not_durable() {
        let (_folder, path) = folder();
        let mut sink = opened(&path).await;
        sink.write(&["gone"]).await.unwrap();
        fs::remove_file(&path).unwrap();
        assert!(matches!(sink.flush().await, Err(SinkError::Rewind(_))));
        sink.open().await.unwrap();
        sink.write(&["again"]).await.unwrap();
        sink.flush().await.unwrap();
        assert_eq!(text(&path), "again\n");
    }

    #[test]
    fn a_path_with_a_pattern_is_refused() {
        let yaml = "file: { path: \"late-%Y.ndjson\" }";
        let problems = harness::sink_problems(yaml);
        assert_eq!(problems.len(), 1);
        assert_eq!(harness::underlined(yaml, problems[0].span), "\"late-%Y.ndjson\"");
        assert_eq!(
            problems[0].message,
            "`late-%Y.ndjson` holds a `%`: a path with a date or a field in it is not supported"
        );
    }

    /// Set in a process whose files may not grow beyond 64 blocks: to it the disk is full.
    const FULL_DISK: &str = "WEIR_TEST_FULL_DISK";

    #[tokio::test]
    async fn a_write_that_a_full_disk_cuts_short_leaves_no_trace_and_is_tried_again() {
        let (_folder, path) = folder();
        let Ok(given) = std::env::var(FULL_DISK) else {
            let status = Command::new("sh")
                .args(["-c", "trap '' XFSZ; ulimit -f 64; exec \"$0\" --exact \"$1\" --nocapture"])
                .arg(std::env::current_exe().unwrap())
                .arg("sinks::file::tests::a_write_that_a_full_disk_cuts_short_leaves_no_trace_and_is_tried_again")
                .env(FULL_DISK, &path)
                .stdout(Stdio::null())
                .status();
            assert!(status.unwrap().success());
            assert!(text(&path).starts_with("fits\n"));
            return;
        };
        let path = PathBuf::from(given);
        let mut sink = opened(&path).await;
        sink.write(&["fits"]).await.unwrap();
        let large = "x".repeat(10_000);
        let too_much = vec![large.as_str(); 20];
        for _ in 0..2 {
            let Err(SinkError::Retry(error)) = sink.write(&too_much).await else { panic!("the disk is full") };
            assert!(error.contains("cannot write") && error.contains("out.txt"), "{error}");
            assert_eq!(text(&path), "fits\n", "nothing of a batch that is tried again is in the file");
        }
        sink.write(&["fits too"]).await.unwrap();
        assert_eq!(text(&path), "fits\nfits too\n");
    }
}
