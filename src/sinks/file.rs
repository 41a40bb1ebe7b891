//! Writes lines to files: to one, to one for each time, or to a row of them that are finished one after another.
//!
//! The store knows how much of each file is committed. What a crash, or a failed run, left behind that place is cut off
//! before anything is written again.

mod claim;
mod compress;
mod disk;
mod faults;
mod files;
mod known;
mod recovery;
mod shared;

use std::sync::Arc;

use futures::future::{self, BoxFuture};
use schemars::JsonSchema;
use serde::Deserialize;

use self::compress::Compression;
use self::files::{Files, Rotation, Settings};

use self::shared::{Shared, Written};
use crate::clients::files::names;
use crate::clients::files::pattern::Pattern;
use crate::clock::Instant;
use crate::codecs::Codec;
use crate::component::{
    Acknowledges, Answer, BoxSink, BuildContext, ByteSize, CheckContext, CompiledSink, HumanDuration,
    LOCAL_TRANSACTION, Place, Problem, Sink, SinkConfig, SinkError, SinkTraits, Spanned, Touched,
};
use crate::delivery::{OwnEntries, Participants};
use crate::record::Batch;

/// Writes each record as a line to a file.
///
/// ```yaml
/// file: { path: /var/lib/app/orders.ndjson }
/// ```
///
/// The file is created if need be; its folder must exist. Lines are durable when their epoch is committed, and what is not
/// committed is cut off before the pipeline goes on after a crash. With `guarantee: exactly_once` that makes each record
/// come once, for records of `file` sources or of one `kafka` source. Else some may come twice.
///
/// One sink writes a file: a lock keeps others out. A file that holds something that this pipeline did not write is
/// refused, unless `append` says that it may be written behind. A file that is renamed or removed, as log rotation by
/// others does it, is noticed at the next commit, and a new one is begun; `rotate` does it without a gap. Nobody else may
/// write behind what the pipeline wrote: the next start cannot tell that from records of an epoch that was cut short, and
/// cuts it off, with a warning.
///
/// **One file for each time**: `%Y`, `%m`, `%d`, `%H` and the like in the path stand for the record's timestamp, in UTC, as
/// `strftime` knows them; `%%` is a `%`. Folders are created. Late records go to the file of their time.
///
/// ```yaml
/// file: { path: "orders/%Y-%m-%d/%H.ndjson.zst", compression: zstd }
/// ```
///
/// **A row of files**: with `rotate`, a file grows as `orders-000001.ndjson.open`. Once it is large enough it is finished
/// with the next commit, and once it is old enough also if no record comes: it becomes `orders-000001.ndjson`, and the next
/// record begins `orders-000002.ndjson.open`. A file with a final name holds committed records only, and is not touched any
/// more. At the end of a finite input, all files are finished.
///
/// ```yaml
/// file: { path: orders.ndjson, rotate: { size: 100MB, after: 1h } }
/// ```
///
/// A record whose text holds a line end is refused, unless it is JSON, where line ends between values become blanks.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct FileConfig {
    /// The file, or a pattern with times in it.
    path: Spanned<String>,
    /// How each record is written.
    #[serde(default)]
    codec: Codec,
    /// How files are compressed; not at all if left out. Each commit ends a frame of its own.
    compression: Option<Compression>,
    /// When a file is finished and the next one begun; never if left out.
    rotate: Option<Spanned<RotateConfig>>,
    /// Whether to write behind what is in a file already.
    #[serde(default)]
    append: bool,
}

/// When a file is finished. Where both are given, whichever comes first.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RotateConfig {
    /// Once it has this size; it may become larger by about one commit's worth.
    size: Option<Spanned<ByteSize>>,
    /// Once it is this old.
    after: Option<Spanned<HumanDuration>>,
}

impl FileConfig {
    fn pattern(&self, cx: &mut CheckContext) -> Option<Pattern> {
        let span = self.path.span;
        let path = self.path.value.as_str();
        if path.is_empty() {
            cx.report(Problem::error(span, "the path is empty"));
            return None;
        }
        if path.ends_with('/') {
            cx.report(Problem::error(span, format!("`{path}` is a folder")).help("add the name of a file"));
            return None;
        }
        match Pattern::new(path) {
            Ok(pattern) => Some(pattern),
            Err(error) => {
                let words = format!("`{path}` is no pattern of times: {error}");
                cx.report(Problem::error(span, words).help("use `%Y-%m-%d` and the like; a `%` itself is `%%`"));
                None
            }
        }
    }

    fn rotation(&self, pattern: &Pattern, cx: &mut CheckContext) -> Option<Rotation> {
        let rotate = self.rotate.as_ref()?;
        let RotateConfig { size, after } = &rotate.value;
        if size.is_none() && after.is_none() {
            cx.report(
                Problem::error(rotate.span, "`rotate` does not say when")
                    .help("add `size: 100MB`, `after: 1h`, or both"),
            );
        }
        if let Some(size) = size.as_ref().filter(|size| size.value.0 == 0) {
            cx.report(Problem::error(size.span, "`size` must be at least 1 byte"));
        }
        if let Some(after) = after.as_ref().filter(|after| after.value.0.as_millis() < 1000) {
            cx.report(Problem::error(after.span, "`after` must be at least `1s`"));
        }
        if after.is_none() && size.is_some() && !pattern.is_plain() {
            cx.report(
                Problem::error(rotate.span, "a file of a time that is over may never reach its `size`")
                    .help("add `after`: the file is finished then, whatever its size"),
            );
        }
        Some(Rotation {
            size: size.as_ref().map(|size| size.value.0),
            after_ms: after.as_ref().map(|after| i64::try_from(after.value.0.as_millis()).unwrap_or(i64::MAX)),
        })
    }
}

impl SinkConfig for FileConfig {
    const NAME: &'static str = "file";

    fn compile(self, cx: &mut CheckContext) -> Option<CompiledSink> {
        let pattern = self.pattern(cx)?;
        let problems = cx.problems.len();
        let rotation = self.rotation(&pattern, cx);
        if cx.problems.len() > problems {
            return None;
        }
        let written = pattern.text();
        let written = if rotation.is_some() { names::numbered(written, 1) } else { written.to_owned() };
        cx.writes.push(Place { system: names::FILES.to_owned(), name: written });
        let traits = SinkTraits {
            acknowledges: Acknowledges::Durable,
            transactional_with: &[LOCAL_TRANSACTION],
            transaction_timeout: None,
            idempotent_by_key: false,
            per_lane: false,
            carries_headers: false,
        };
        let settings =
            Settings { pattern, codec: self.codec, compression: self.compression, rotation, append: self.append };
        let build = move |cx: &BuildContext| {
            let owner = (Arc::clone(&cx.pipeline), Arc::clone(&cx.component));
            let files = Files::new(settings.clone(), owner, cx.runtime.clock());
            let entries = OwnEntries::new(Arc::clone(&cx.store), &cx.pipeline, Arc::clone(&cx.component));
            let shared = Arc::new(Shared::new(Arc::clone(&cx.component), cx.runtime.clone(), entries, files));
            cx.clients.shared(Participants::default).join(Arc::new(Arc::clone(&shared)));
            Ok(Box::new(FileSink { shared, run: 0 }) as BoxSink)
        };
        Some(CompiledSink { traits, touched: Touched::default(), build: Arc::new(build) })
    }
}

struct FileSink {
    shared: Arc<Shared>,
    /// The run that this sink was opened in: what it leaves behind finds no way into the files of a later one.
    run: u64,
}

impl Sink for FileSink {
    fn open(&mut self) -> BoxFuture<'_, Result<(), SinkError>> {
        Box::pin(async {
            self.run = self.shared.run();
            let staged = self.shared.work(self.run, Files::open).await?;
            self.shared.append(self.run, staged).await?;
            Ok(())
        })
    }

    fn write(&mut self, batch: Arc<Batch>) -> BoxFuture<'_, Result<Answer, SinkError>> {
        Box::pin(async move {
            // The stage may free the batch at once; the epoch is not settled before `flush`.
            let settled = match self.shared.write(self.run, batch).await? {
                Written::All(settled) => settled,
                Written::Claims(staged) => self.shared.append(self.run, staged).await?,
            };
            Ok(Box::pin(future::ready(Ok(settled))) as Answer)
        })
    }

    fn flush(&mut self) -> BoxFuture<'_, Result<(), SinkError>> {
        Box::pin(self.shared.flush(self.run))
    }

    fn wants_barrier_at(&self) -> Option<Instant> {
        self.shared.due()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs::{self, File};
    use std::io::Read;
    use std::path::{Path, PathBuf};
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use tempfile::TempDir;

    use super::*;
    use crate::component::Settled;
    use crate::record::{BatchBuilder, Draft, Partition, Timestamp};
    use crate::runtime::Runtime;
    use crate::testing::harness::{self, SinkRun};

    fn sink(path: &Path, more: &str) -> SinkRun {
        harness::sink(&format!("file: {{ path: \"{}\", codec: raw{more} }}", path.display()))
    }

    async fn opened(path: &Path) -> SinkRun {
        let mut sink = sink(path, "");
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

    /// All files under a folder, by their paths in it.
    fn texts(folder: &Path) -> BTreeMap<String, String> {
        let mut files = BTreeMap::new();
        let mut folders = vec![folder.to_owned()];
        while let Some(next) = folders.pop() {
            for entry in fs::read_dir(next).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    files.insert(path.strip_prefix(folder).unwrap().display().to_string(), text(&path));
                }
            }
        }
        files
    }

    fn owned(files: &[(&str, &str)]) -> BTreeMap<String, String> {
        files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
    }

    /// A batch of records at times, in ms.
    fn timed(records: &[(i64, &str)]) -> Batch {
        let origin = Partition { source: "in".into(), topic: "in".into(), number: 0 };
        let mut batch = BatchBuilder::new(Arc::new(origin), 0, 0);
        for (time, body) in records {
            batch.push_copy(Draft { body: body.as_bytes(), timestamp: Timestamp(*time), ..Draft::default() });
        }
        batch.finish()
    }

    async fn flush_and_commit(sink: &mut SinkRun) {
        sink.flush().await.unwrap();
        sink.commit().await.unwrap();
    }

    const HOUR: i64 = 3_600_000;

    #[tokio::test]
    async fn each_record_is_a_line_behind_what_was_committed() {
        let (_folder, path) = folder();
        let mut sink = opened(&path).await;
        assert_eq!(sink.write(&["one", "two"]).await, Ok(Settled::all()));
        flush_and_commit(&mut sink).await;
        sink.restart().open().await.unwrap();
        sink.write(&["three"]).await.unwrap();
        assert_eq!(text(&path), "one\ntwo\nthree\n");
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
    async fn what_was_not_committed_is_cut_off() {
        for more in ["", ", compression: gzip", ", compression: zstd"] {
            let (_folder, path) = folder();
            let mut sink = sink(&path, more);
            sink.open().await.unwrap();
            sink.write(&["never"]).await.unwrap();
            sink.flush().await.unwrap();
            // Neither by a rewind nor by a crash was anything committed yet.
            sink.open().await.unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"");
            sink.write(&["one"]).await.unwrap();
            flush_and_commit(&mut sink).await;
            let committed = fs::read(&path).unwrap();
            sink.write(&["two"]).await.unwrap();
            sink.flush().await.unwrap();
            assert_ne!(fs::read(&path).unwrap(), committed);
            sink.restart().open().await.unwrap();
            assert_eq!(fs::read(&path).unwrap(), committed, "{more}");
        }
    }

    #[tokio::test]
    async fn rule_2_what_an_earlier_run_left_behind_finds_no_way_into_the_file() {
        let (_folder, path) = folder();
        let mut sink = opened(&path).await;
        let entries = BTreeMap::new();
        // A rewind that this sink does not know of yet: its work was queued before.
        sink.participants().recover(&entries.into_iter().collect()).await.unwrap();
        let outcome = sink.write(&["late"]).await;
        assert!(matches!(&outcome, Err(SinkError::Rewind(error)) if error.contains("later run")), "{outcome:?}");
        assert_eq!(text(&path), "");
    }

    #[tokio::test]
    async fn rule_30_a_barrier_ends_a_frame_so_that_the_file_can_be_cut_there() {
        let (_folder, path) = folder();
        let large = "x".repeat(700_000);
        for (compression, read) in [("gzip", gunzip as fn(&[u8]) -> String), ("zstd", unzstd)] {
            let path = path.with_extension(compression);
            let mut sink = sink(&path, &format!(", compression: {compression}"));
            sink.open().await.unwrap();
            let mut committed = String::new();
            for lines in [&["one", "two"][..], &["three"], &[&large, &large, "four"]] {
                sink.write(lines).await.unwrap();
                sink.write(&["and"]).await.unwrap();
                flush_and_commit(&mut sink).await;
                committed += &[lines, &["and", ""]].concat().join("\n");
                sink.write(&["not committed"]).await.unwrap();
                sink.flush().await.unwrap();
                sink.restart().open().await.unwrap();
                assert_eq!(read(&fs::read(&path).unwrap()), committed);
            }
        }
    }

    fn gunzip(bytes: &[u8]) -> String {
        let mut text = String::new();
        flate2::read::MultiGzDecoder::new(bytes).read_to_string(&mut text).unwrap();
        text
    }

    fn unzstd(bytes: &[u8]) -> String {
        String::from_utf8(zstd::decode_all(bytes).unwrap()).unwrap()
    }

    #[tokio::test]
    async fn rule_30_a_final_name_holds_committed_bytes_only() {
        let (folder, path) = folder();
        let mut sink = sink(&path, ", rotate: { size: 4B }");
        sink.open().await.unwrap();
        sink.write(&["one", "two"]).await.unwrap();
        sink.write(&["three"]).await.unwrap();
        let open = owned(&[("out-000001.txt.open", "one\ntwo\n"), ("out-000002.txt.open", "three\n")]);
        assert_eq!(texts(folder.path()), open);
        sink.flush().await.unwrap();
        assert_eq!(texts(folder.path()), open, "the barrier is not committed yet");
        sink.commit().await.unwrap();
        let done = [("out-000001.txt", "one\ntwo\n"), ("out-000002.txt", "three\n")];
        assert_eq!(texts(folder.path()), owned(&done));
        // The next one is begun behind them, in every process.
        sink.restart().open().await.unwrap();
        sink.write(&["four"]).await.unwrap();
        assert_eq!(texts(folder.path())["out-000003.txt.open"], "four\n");
        sink.restart().open().await.unwrap();
        assert_eq!(texts(folder.path()), owned(&done));
    }

    #[tokio::test]
    async fn rule_30_a_crash_between_the_commit_and_the_renames_is_made_good() {
        let (folder, path) = folder();
        let mut sink = sink(&path, ", rotate: { size: 4B }");
        sink.open().await.unwrap();
        for line in ["first", "second", "third"] {
            sink.write(&[line]).await.unwrap();
        }
        sink.flush().await.unwrap();
        // Committed, but not told so: one of the names is there already, as a crash in the middle leaves it.
        let changes = sink.participants().changes();
        sink.store(changes).await;
        fs::rename(folder.path().join("out-000001.txt.open"), folder.path().join("out-000001.txt")).unwrap();
        sink.restart().open().await.unwrap();
        let all = [("out-000001.txt", "first\n"), ("out-000002.txt", "second\n"), ("out-000003.txt", "third\n")];
        assert_eq!(texts(folder.path()), owned(&all));
    }

    #[tokio::test]
    async fn a_file_that_is_rotated_grows_on_in_the_next_process_and_is_finished_at_the_end_of_the_input() {
        let (folder, path) = folder();
        let mut sink = sink(&path, ", rotate: { size: 1MB }");
        sink.open().await.unwrap();
        sink.write(&["one"]).await.unwrap();
        flush_and_commit(&mut sink).await;
        sink.restart().open().await.unwrap();
        sink.write(&["two"]).await.unwrap();
        flush_and_commit(&mut sink).await;
        assert_eq!(texts(folder.path()), owned(&[("out-000001.txt.open", "one\ntwo\n")]));
        sink.participants().finish().await.unwrap();
        assert_eq!(texts(folder.path()), owned(&[("out-000001.txt", "one\ntwo\n")]));
        sink.restart().open().await.unwrap();
        assert_eq!(texts(folder.path()), owned(&[("out-000001.txt", "one\ntwo\n")]));
    }

    #[tokio::test]
    async fn a_file_whose_config_rotates_no_more_is_finished() {
        let (folder, path) = folder();
        let mut sink = sink(&path, ", rotate: { size: 1MB }");
        sink.open().await.unwrap();
        sink.write(&["one"]).await.unwrap();
        flush_and_commit(&mut sink).await;
        sink.restart_as(&format!("file: {{ path: \"{}\", codec: raw }}", path.display())).open().await.unwrap();
        assert!(sink.wants_barrier_at().is_some(), "it waits for no record");
        flush_and_commit(&mut sink).await;
        assert_eq!((sink.wants_barrier_at(), &*text(&folder.path().join("out-000001.txt"))), (None, "one\n"));
        sink.write(&["two"]).await.unwrap();
        flush_and_commit(&mut sink).await;
        assert_eq!(texts(folder.path()), owned(&[("out-000001.txt", "one\n"), ("out.txt", "two\n")]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_is_old_enough_is_finished_also_if_no_record_comes() {
        let (folder, path) = folder();
        let mut sink = sink(&path, ", rotate: { after: 1h }");
        sink.open().await.unwrap();
        assert_eq!(sink.wants_barrier_at(), None, "no file grows");
        sink.write(&["one"]).await.unwrap();
        flush_and_commit(&mut sink).await;
        // Another process knows of it too.
        sink.restart().open().await.unwrap();
        let due = sink.wants_barrier_at().unwrap();
        let runtime = Runtime::system();
        let wait = due.duration_since(runtime.clock().now());
        assert!(wait > Duration::from_mins(59) && wait <= Duration::from_hours(1), "{wait:?}");
        runtime.sleep_until(due).await;
        assert_eq!(texts(folder.path()), owned(&[("out-000001.txt.open", "one\n")]));
        flush_and_commit(&mut sink).await;
        assert_eq!(texts(folder.path()), owned(&[("out-000001.txt", "one\n")]));
        assert_eq!(sink.wants_barrier_at(), None, "once");
        sink.write(&["two"]).await.unwrap();
        assert!(sink.wants_barrier_at() > Some(due), "the next one has its own time");
    }

    #[tokio::test]
    async fn a_name_that_somebody_took_is_passed_over() {
        let (folder, path) = folder();
        fs::write(folder.path().join("out-000001.txt"), "theirs\n").unwrap();
        let mut sink = sink(&path, ", rotate: { size: 1B }");
        sink.open().await.unwrap();
        sink.write(&["ours"]).await.unwrap();
        flush_and_commit(&mut sink).await;
        let both = [("out-000001.txt", "theirs\n"), ("out-000002.txt", "ours\n")];
        assert_eq!(texts(folder.path()), owned(&both));
    }

    #[tokio::test]
    async fn a_record_goes_to_the_file_of_its_time_however_late() {
        let (folder, _) = folder();
        let mut sink = sink(&folder.path().join("%Y/%m-%d/%H.txt"), "");
        sink.open().await.unwrap();
        sink.write_batch(timed(&[(0, "a"), (HOUR, "b"), (HOUR, "c"), (0, "d")])).await.unwrap();
        flush_and_commit(&mut sink).await;
        sink.write_batch(timed(&[(25 * HOUR, "e"), (0, "f")])).await.unwrap();
        sink.flush().await.unwrap();
        assert_eq!(texts(folder.path())["1970/01-01/00.txt"], "a\nd\nf\n");
        sink.restart().open().await.unwrap();
        let committed = [("1970/01-01/00.txt", "a\nd\n"), ("1970/01-01/01.txt", "b\nc\n"), ("1970/01-02/01.txt", "")];
        assert_eq!(texts(folder.path()), owned(&committed));
        let refused = sink.write_batch(timed(&[(i64::MAX, "never"), (0, "g")])).await.unwrap().refused;
        assert_eq!(refused.iter().map(|refusal| refusal.record).collect::<Vec<_>>(), [0]);
        assert_eq!(texts(folder.path())["1970/01-01/00.txt"], "a\nd\ng\n");
    }

    #[tokio::test]
    async fn more_files_than_may_be_open_at_once_are_written() {
        for more in ["", ", compression: zstd", ", rotate: { after: 1d }"] {
            let (folder, _) = folder();
            let mut sink = sink(&folder.path().join("%Y-%m-%d-%H.txt"), more);
            sink.open().await.unwrap();
            let records: Vec<_> = (0..300).map(|hour| (hour * HOUR, "x")).collect();
            for _ in 0..2 {
                sink.write_batch(timed(&records)).await.unwrap();
                flush_and_commit(&mut sink).await;
                sink.write_batch(timed(&records)).await.unwrap();
                sink.restart().open().await.unwrap();
            }
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 300);
            for entry in fs::read_dir(folder.path()).unwrap() {
                let bytes = fs::read(entry.unwrap().path()).unwrap();
                let text = if more.contains("zstd") { unzstd(&bytes) } else { String::from_utf8(bytes).unwrap() };
                assert_eq!(text, "x\nx\n");
            }
        }
    }

    #[tokio::test]
    async fn rule_31_a_file_that_the_store_does_not_know_is_refused_unless_it_may_be_written_behind() {
        let (_folder, path) = folder();
        fs::write(&path, "theirs").unwrap();
        let Err(SinkError::Fatal(error)) = sink(&path, "").open().await else { panic!("it is not ours") };
        assert!(error.contains("out.txt") && error.contains("append: true"), "{error}");

        let mut sink = sink(&path, ", append: true");
        sink.open().await.unwrap();
        sink.write(&["not committed"]).await.unwrap();
        sink.restart().open().await.unwrap();
        assert_eq!(text(&path), "theirs", "what was there is not cut");
        sink.write(&["ours"]).await.unwrap();
        flush_and_commit(&mut sink).await;
        sink.restart().open().await.unwrap();
        assert_eq!(text(&path), "theirs\nours\n");
    }

    #[tokio::test]
    async fn rule_31_a_file_that_was_changed_since_is_not_cut() {
        let (_folder, path) = folder();
        let mut sink = opened(&path).await;
        sink.write(&["one", "two"]).await.unwrap();
        flush_and_commit(&mut sink).await;
        for other in ["one\n", "another file\n"] {
            fs::write(&path, other).unwrap();
            let outcome = sink.restart().open().await;
            assert!(matches!(&outcome, Err(SinkError::Fatal(error)) if error.contains("changed")), "{outcome:?}");
            assert_eq!(text(&path), other);
        }
        // Moved away, as it says, it is begun anew.
        fs::remove_file(&path).unwrap();
        sink.restart().open().await.unwrap();
        sink.write(&["three"]).await.unwrap();
        assert_eq!(text(&path), "three\n");
    }

    #[tokio::test]
    async fn rule_31_one_path_has_one_writer_in_this_process() {
        let (folder, path) = folder();
        let first = opened(&path).await;
        // However the path is written.
        let same = folder.path().join(".").join("out.txt");
        let mut second = harness::sink_named("second", &format!("file: {{ path: \"{}\" }}", same.display()));
        let Err(SinkError::Fatal(error)) = second.open().await else { panic!("a second writer") };
        assert!(error.contains("written by another sink") && error.contains("out.txt"), "{error}");
        drop(first);
        opened(&same).await;
    }

    #[tokio::test]
    async fn rule_31_a_file_that_another_process_writes_is_waited_for() {
        let (_folder, path) = folder();
        // To the kernel another open file is another writer, in whichever process.
        let other = File::create(&path).unwrap();
        other.lock().unwrap();
        let mut sink = sink(&path, "");
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
            let opened = sink(&path, ", append: true").open().await;
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
        // The commit of what is in the old file comes when the new one is begun already.
        sink.commit().await.unwrap();
        assert_eq!((text(&old), text(&path)), ("old\nlate\n".to_owned(), "new\n".to_owned()));
        sink.restart().open().await.unwrap();
        assert_eq!((text(&old), text(&path)), ("old\nlate\n".to_owned(), String::new()));
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
    fn mistakes_in_a_config_are_told_with_their_place() {
        for (config, place, words) in [
            ("path: \"\"", "\"\"", "the path is empty"),
            ("path: out/", "out/", "is a folder"),
            ("path: \"late-%!.txt\"", "\"late-%!.txt\"", "is no pattern of times"),
            ("path: a, rotate: {}", "{}", "does not say when"),
            ("path: a, rotate: { size: 0 }", "0", "at least 1 byte"),
            ("path: a, rotate: { after: 1ms }", "1ms", "at least `1s`"),
            ("path: \"%Y\", rotate: { size: 1MB }", "{ size: 1MB }", "may never reach its `size`"),
        ] {
            let yaml = format!("file: {{ {config} }}");
            let problems = harness::sink_problems(&yaml);
            assert_eq!(problems.len(), 1, "{config}: {problems:?}");
            assert_eq!(harness::underlined(&yaml, problems[0].span), place);
            assert!(problems[0].message.contains(words), "{}", problems[0].message);
        }
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

        // Of a batch for two files, nothing is left in the one that had room.
        let folder = path.parent().unwrap();
        let mut by_hour = harness::sink(&format!("file: {{ path: \"{}/%H.txt\", codec: raw }}", folder.display()));
        by_hour.open().await.unwrap();
        let large = "x".repeat(20_000);
        let batch = || timed(&[(0, "small"), (HOUR, &large)]);
        by_hour.write_batch(batch()).await.unwrap();
        assert!(matches!(by_hour.write_batch(batch()).await, Err(SinkError::Retry(_))));
        assert_eq!(text(&folder.join("00.txt")), "small\n");
        assert_eq!(text(&folder.join("01.txt")).len(), 20_001);

        // Lines that wait to be compressed are kept until there is room.
        let noise: String = (0..60_000).map(|_| fastrand::alphanumeric()).collect();
        let mut frames = harness::sink(&format!(
            "file: {{ path: \"{}/frames.gz\", codec: raw, compression: gzip }}",
            folder.display()
        ));
        frames.open().await.unwrap();
        frames.write(&[&noise]).await.unwrap();
        assert!(matches!(frames.flush().await, Err(SinkError::Retry(_))));
        assert_eq!(fs::metadata(folder.join("frames.gz")).unwrap().len(), 0);
    }
}
