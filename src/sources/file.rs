//! Lines of files, read once or followed as they grow.
//!
//! One line is one record; its position is the byte just past its newline. Resuming from a committed position
//! therefore neither skips nor repeats a line.
//!
//! A file is known by what it is, not by its name, and each is a partition of its own: the path under which it was found
//! first, and a number, for under one path there are many files in the course of time.

mod cursor;
mod ended;
mod follow;
mod identity;
mod listing;
mod marks;
mod moved;
mod once;
mod reader;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::BoxStream;
use glob::Pattern;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Visitor};

use self::ended::Ended;
use self::follow::Held;
use self::identity::FileId;
use self::listing::{is_pattern, leads_to};
use self::reader::Reader;
use crate::clients::files::names;
use crate::codecs::Codec;
use crate::component::{
    BuiltSource, ByteSize, CheckContext, CompiledSource, HumanDuration, KeepsPositions, LOCAL_TRANSACTION,
    Pattern as ReadPattern, Problem, Pulled, Source, SourceConfig, SourceContext, SourceError, SourceTraits, Spanned,
};
use crate::expr::Schema as BodySchema;
use crate::observe::StageMetrics;
use crate::record::Partition;

/// Reads lines from files: once, or for ever as they grow.
///
/// ```yaml
/// file: { path: "/var/log/app/*.log", follow: true }
/// ```
///
/// One line is one record. A line ends with `\n` or `\r\n`, which is not part of the record; empty lines are no records. A
/// line that is longer than `max_line_bytes` is refused with its beginning: it goes to the dead letter, if there is one.
/// Files are read in the order of their names, each from its beginning, or from where the last run committed. `gzip` and
/// `zstd` files are known by their first bytes, whatever their names, and unpacked. One that is damaged or cut off is read
/// up to there and then refused, with what is wrong; the other files are read on, and so is the damaged one once it is
/// repaired.
///
/// **Read once** (the default): the pipeline ends at the end of the last file. What stands behind the last newline is a
/// record too. No file under `path`, or a file that does not hold any more what was read of it, is an error.
///
/// **Followed** (`follow: true`): the pipeline never ends. Files that appear later are found within a second and read
/// from their beginning; a file that does not exist yet is waited for. What stands behind the last newline waits for its
/// own newline. A compressed file is complete when its end was reached; one that is cut off is given 10 seconds to grow.
///
/// **Rotation.** A file is known by its inode, the moment of its birth, and what stood before the place up to which it was
/// read, so that neither a new name nor an inode that is used again confuses it. It holds whether the process ran or not:
///
/// - A file that was renamed is read on, also under a name that `path` does not match, if it is still in its folder. It
///   is read to its end before the file that took its name, and five seconds longer, for its writer may not have noticed
///   yet; then what stands behind its last newline is a record.
/// - A file that holds all that was read of one that is gone, or was truncated, is that file, and is read on: a copy
///   (`copytruncate`), or the file compressed. Its name must go on from the other's, as `app.log.1`, `app.log-1.gz` and
///   `app-1.log` do from `app.log`. As long as the other is there, such a file waits, for up to five seconds; then it is
///   a file of its own.
/// - Any other file is a new one: also one that is made anew under an old name, whatever it holds.
///
/// Files whose names are not UTF-8 are passed over, and so are names that begin with a dot where the pattern does not. What
/// cannot be read for now (a right that is missing, a disk with an error) is tried again, and holds up no other file.
///
/// To miss nothing however often files are rotated while the process is down, let `path` match the names of old files too:
/// `/var/log/app.log*`. What is written between a copy and the truncation behind it is lost to everybody.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct FileConfig {
    /// The file, a pattern (`*`, `?`, `[a-z]`, and `**` for any folders), or a list of these.
    path: Spanned<Paths>,
    /// Whether to wait for more at the end of a file.
    #[serde(default)]
    follow: bool,
    /// How each line is read.
    #[serde(default)]
    codec: Codec,
    /// Where to begin with the files that are there at the very first start. For `follow: true` only.
    #[serde(default)]
    start_at: Option<Spanned<StartAt>>,
    /// The longest line. A longer one is refused, with its beginning.
    #[serde(default = "max_line_bytes")]
    max_line_bytes: Spanned<ByteSize>,
    /// How long the position of a file that is gone is kept. A file that comes back later is read from its beginning.
    #[serde(default = "forget_after")]
    forget_after: HumanDuration,
}

/// Where to begin where nothing was committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum StartAt {
    /// With the first line.
    #[default]
    Beginning,
    /// With what is written from now on.
    End,
}

/// One path or pattern, or several.
#[derive(Debug, Clone)]
struct Paths(Vec<Spanned<String>>);

fn max_line_bytes() -> Spanned<ByteSize> {
    Spanned { value: ByteSize(4 << 20), ..Spanned::default() }
}

fn forget_after() -> HumanDuration {
    HumanDuration(Duration::from_hours(7 * 24))
}

impl<'de> Deserialize<'de> for Paths {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMany;
        impl<'de> Visitor<'de> for OneOrMany {
            type Value = Paths;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a path, or a list of paths")
            }

            fn visit_str<E: de::Error>(self, path: &str) -> Result<Paths, E> {
                Ok(Paths(vec![Spanned { value: path.to_owned(), ..Spanned::default() }]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Paths, A::Error> {
                let mut paths = Vec::new();
                while let Some(path) = list.next_element()? {
                    paths.push(path);
                }
                Ok(Paths(paths))
            }
        }
        deserializer.deserialize_any(OneOrMany)
    }
}

impl JsonSchema for Paths {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Paths".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" }, "minItems": 1 }] })
    }
}

impl SourceConfig for FileConfig {
    const NAME: &'static str = "file";

    fn compile(self, cx: &mut CheckContext) -> Option<CompiledSource> {
        let problems = cx.problems.len();
        let span = self.path.span;
        if self.path.0.is_empty() {
            cx.report(Problem::error(span, "`path` names no file").help("give a path, or a list of at least one"));
        }
        let mut paths = Vec::new();
        for path in self.path.value.0 {
            // A path that stands alone has the place of the whole value.
            let span = if path.span.end > path.span.start { path.span } else { span };
            if path.value.is_empty() {
                cx.report(Problem::error(span, "the path is empty"));
            } else if let Err(error) = Pattern::new(&path.value) {
                let problem = Problem::error(span, format!("`{}` is no pattern: {}", path.value, error.msg));
                cx.report(problem.help("in brackets, a character stands for itself: `[*]`, `[[]`"));
            }
            let of_path = path.value.clone();
            cx.reads.push(ReadPattern {
                system: names::FILES.to_owned(),
                text: Spanned::new(path.value.clone(), span),
                may_be_meant: false,
                matches: Arc::new(move |written| leads_to(&of_path, written)),
            });
            paths.push(path.value);
        }
        if let (Some(start_at), false) = (&self.start_at, self.follow) {
            cx.report(Problem::error(start_at.span, "`start_at` is for files that are followed").help(
                "say `follow: true`, or leave `start_at` out: a file that is read once is read from its beginning",
            ));
        }
        if !(1..=u64::from(u32::MAX / 4)).contains(&self.max_line_bytes.0) {
            cx.report(Problem::error(self.max_line_bytes.span, "`max_line_bytes` must be at least 1 and below 1 GiB"));
        }
        if cx.problems.len() > problems {
            return None;
        }
        let traits = SourceTraits {
            keeps_positions: KeepsPositions::Store,
            finite: !self.follow,
            // Files that are read once are read one after another.
            partitioned: self.follow && (paths.len() > 1 || is_pattern(&paths[0])),
            transactional_with: &[LOCAL_TRANSACTION],
        };
        let settings = Settings {
            paths: paths.into(),
            follow: self.follow,
            start_at: self.start_at.map(|start_at| start_at.value).unwrap_or_default(),
            max_line_bytes: usize::try_from(self.max_line_bytes.0).unwrap_or(usize::MAX),
            forget_after: self.forget_after.0,
        };
        Some(CompiledSource {
            traits,
            codec: self.codec,
            schema: BodySchema::default(),
            build: Arc::new(move |cx| {
                let ended = Arc::new(Ended::default());
                let source = FileSource {
                    settings: settings.clone(),
                    name: Arc::clone(&cx.component),
                    metrics: cx.metrics.clone(),
                    files: BTreeMap::new(),
                    over: Vec::new(),
                    retired: VecDeque::new(),
                    held: HashMap::new(),
                    first_start: false,
                    from_end: HashSet::new(),
                    trouble: None,
                    ended: Arc::clone(&ended),
                };
                Ok(BuiltSource { source: Box::new(source), positions: Some(ended) })
            }),
        })
    }
}

#[derive(Debug, Clone)]
struct Settings {
    paths: Arc<[String]>,
    follow: bool,
    start_at: StartAt,
    max_line_bytes: usize,
    forget_after: Duration,
}

struct FileSource {
    settings: Settings,
    name: Arc<str>,
    metrics: StageMetrics,
    /// The files that are followed; they outlive a run, so that a rewind knows what has become of them meanwhile.
    files: BTreeMap<Arc<Partition>, Reader>,
    /// Files whose content is nowhere any more.
    over: Vec<Reader>,
    /// Files that were read to their end after they had lost their names, latest last.
    retired: VecDeque<Arc<Partition>>,
    /// Files that look like copies of others, which are still there.
    held: HashMap<FileId, Held>,
    /// Whether no file was ever found: those found later are read from their beginning.
    first_start: bool,
    /// Files of the first start whose ends, where they are to be begun, could not be read yet.
    from_end: HashSet<FileId>,
    /// What could not be listed, once it was logged.
    trouble: Option<String>,
    /// Hears of commits.
    ended: Arc<Ended>,
}

impl Source for FileSource {
    fn stream(&mut self, cx: SourceContext) -> BoxStream<'_, Result<Pulled, SourceError>> {
        if self.settings.follow { Box::pin(self.follow(cx)) } else { Box::pin(self.read_once(cx)) }
    }
}

impl FileSource {
    fn partition(&self, path: &Arc<str>, number: i32) -> Partition {
        Partition { source: Arc::clone(&self.name), topic: Arc::clone(path), number }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, OpenOptions};
    use std::io::Write;
    use std::path::{Path, PathBuf};

    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::follow::MAX_OPEN;
    use super::*;
    use crate::clients::packed::testing::{gzip, numbered, zstandard};
    use crate::record::{BatchBuilder, Position};
    use crate::testing::harness::{self, SourceRun, texts};

    fn folder() -> TempDir {
        tempfile::tempdir().unwrap()
    }

    fn append(path: &Path, text: &str) {
        OpenOptions::new().create(true).append(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
    }

    fn source(folder: &TempDir, path: &str, more: &str) -> SourceRun {
        harness::source(&format!("file: {{ path: \"{}/{path}\", codec: raw{more} }}", folder.path().display()))
    }

    /// The committed positions of files: name, number, position.
    fn positions(run: &SourceRun) -> Vec<(&str, i32, i64)> {
        let files = run.committed().iter().filter(|(file, _)| file.topic.starts_with('/'));
        files.map(|(file, at)| (file.topic.rsplit('/').next().unwrap(), file.number, at.0)).collect()
    }

    /// The next lines, in their order for each file; committed.
    async fn lines(run: &mut SourceRun, count: usize) -> Vec<String> {
        let mut lines = Vec::new();
        while lines.len() < count {
            let pulled = run.next_batch().await.commit();
            lines.extend(texts(&pulled.batch));
        }
        lines
    }

    fn fatal(error: SourceError) -> String {
        match error {
            SourceError::Fatal(error) => error,
            SourceError::Retry(error) => panic!("this is to be fatal: {error}"),
        }
    }

    #[tokio::test]
    async fn a_committed_line_is_never_read_again() {
        let folder = folder();
        let path = folder.path().join("app.log");
        append(&path, "first\n");
        let mut run = source(&folder, "app.log", ", follow: true");
        run.next_batch().await.commit();
        append(&path, "second\n");
        assert_eq!(run.restart().await.next_batch().await.text(), "second");
        assert_eq!(run.rewind().await.next_batch().await.text(), "second");
    }

    #[tokio::test]
    async fn a_file_is_read_once_to_its_very_end() {
        let folder = folder();
        let path = folder.path().join("in.txt");
        append(&path, "one\r\n\ntwo\nthree");
        let mut run = source(&folder, "in.txt", "");
        assert_eq!(run.rest().await, ["one", "two", "three"]);
        assert_eq!(positions(&run), [("in.txt", 0, 15)]);
        assert_eq!(run.restart().await.rest().await, [""; 0]);
        append(&path, "\nfour");
        assert_eq!(run.restart().await.rest().await, ["four"]);
    }

    #[tokio::test]
    async fn records_know_where_they_stand() {
        let folder = folder();
        append(&folder.path().join("in.txt"), "one\n\ntwo\n");
        let mut run = source(&folder, "in.txt", "");
        let pulled = run.next_batch().await.commit();
        let offsets: Vec<_> = pulled.batch.records().iter().map(|record| record.offset).collect();
        assert_eq!(offsets, [0, 5]);
        assert_eq!(*pulled.batch.origin().topic, *folder.path().join("in.txt").to_str().unwrap());
    }

    #[tokio::test]
    async fn a_pattern_names_files_in_order_and_each_once() {
        let folder = folder();
        for name in ["b.log", "a.log", "c.txt", ".hidden.log"] {
            append(&folder.path().join(name), &format!("{name}\n"));
        }
        fs::create_dir(folder.path().join("d.log")).unwrap();
        let path = folder.path().display();
        let mut run = harness::source(&format!("file: {{ path: [\"{path}/*.log\", \"{path}/a.log\"], codec: raw }}"));
        assert_eq!(run.rest().await, ["a.log", "b.log"]);
    }

    #[tokio::test]
    async fn what_is_not_there_to_be_read_once_is_an_error() {
        let folder = folder();
        for (path, expected) in [("none.log", "there is no file"), ("*.log", "no file matches"), ("", "is a folder")] {
            let error = fatal(source(&folder, path, "").error().await);
            assert!(error.contains(expected), "{error}");
        }
    }

    #[tokio::test]
    async fn a_file_that_became_shorter_is_not_read_once() {
        let folder = folder();
        let path = folder.path().join("in.txt");
        append(&path, "one\ntwo\n");
        let mut run = source(&folder, "in.txt", "");
        run.rest().await;
        fs::write(&path, "new\n").unwrap();
        let error = fatal(run.restart().await.error().await);
        assert!(error.contains("shorter") && error.contains("in.txt"), "{error}");
    }

    /// All that comes, in order: lines, and `!` with the reason of what is refused.
    async fn all(run: &mut SourceRun) -> Vec<String> {
        let mut all = Vec::new();
        while let Some(pulled) = run.pull().await {
            let pulled = pulled.unwrap();
            all.extend(texts(&pulled.batch));
            all.extend(pulled.refused.iter().map(|refused| format!("!{}", refused.error)));
            run.commit(&pulled);
        }
        all
    }

    #[tokio::test]
    async fn a_line_that_is_too_long_is_refused_with_its_beginning_and_the_others_come_through() {
        let folder = folder();
        let path = folder.path().join("in.txt");
        append(&path, &format!("one\n{}\ntwo\n{}", "x".repeat(3_000_000), "y".repeat(1_000_000)));
        let mut run = source(&folder, "in.txt", ", max_line_bytes: 999999");
        let refusal = |at, bytes| {
            let path = path.display();
            format!("!the line at byte {at} of `{path}` has {bytes} bytes, and 999999 are the most that is read of one")
        };
        assert_eq!(
            all(&mut run).await,
            ["one".into(), refusal(4, 3_000_000), "two".into(), refusal(3_000_009, 1_000_000)]
        );
        assert_eq!(positions(&run), [("in.txt", 0, 4_000_009)]);
        let mut run = source(&folder, "in.txt", ", max_line_bytes: 3000000");
        assert_eq!(run.rest().await.len(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_that_grows_without_end_is_refused_when_it_ends() {
        let folder = folder();
        let path = folder.path().join("app.log");
        append(&path, "one\n");
        let mut run = source(&folder, "app.log", ", follow: true, max_line_bytes: 1000");
        run.next_batch().await.commit();
        for _ in 0..10 {
            append(&path, &"x".repeat(100_000));
            assert!(run.pull_within(Duration::from_secs(2)).await.is_none());
        }
        append(&path, "\ntwo\n");
        let pulled = run.pull().await.unwrap().unwrap();
        assert_eq!((pulled.batch.len(), pulled.refused.len(), pulled.position), (0, 1, Position(1_000_005)));
        assert_eq!(pulled.refused[0].batch.payload_bytes(), 16 << 10);
        run.commit(&pulled);
        assert_eq!(run.restart().await.next_batch().await.text(), "two");
    }

    #[tokio::test]
    async fn compressed_files_are_known_by_their_content_and_resumed_in_the_middle() {
        let folder = folder();
        let text = numbered(100_000);
        let (first, rest) = text.split_at(500_000);
        for (name, bytes) in
            [("gzip", [gzip(first), gzip(rest)].concat()), ("zstd.log", [zstandard(first), zstandard(rest)].concat())]
        {
            fs::write(folder.path().join(name), bytes).unwrap();
            let mut run = source(&folder, name, "");
            let mut lines = Vec::new();
            for _ in 0..3 {
                lines.extend(texts(&run.next_batch().await.commit().batch));
                run.restart().await;
            }
            lines.extend(run.rest().await);
            assert!(lines.iter().map(String::as_str).eq(text.lines()), "{name}: {} lines", lines.len());
            assert_eq!(run.restart().await.rest().await, [""; 0]);
        }
    }

    /// Commits the first half of what comes next, as a pipeline does that narrows a failure, and counts it as read. A file
    /// of which no whole batch was committed is known by what it is, and not yet by what it holds.
    async fn commit_half(run: &mut SourceRun, read: &mut Vec<(Arc<Partition>, String)>) {
        while let Some(pulled) = run.pull_within(Duration::from_millis(500)).await {
            let Pulled { batch, position, .. } = pulled.as_ref().unwrap().as_ref().unwrap();
            let begun = run.committed().get(&**batch.origin()).is_some_and(|position| position.0 > 0);
            if batch.len() < 2 || !begun {
                let pulled = pulled.unwrap().unwrap();
                read.extend(texts(&pulled.batch).into_iter().map(|line| (Arc::clone(pulled.batch.origin()), line)));
                run.commit(&pulled);
                continue;
            }
            let half = batch.len() / 2;
            read.extend(texts(batch).into_iter().take(half).map(|line| (Arc::clone(batch.origin()), line)));
            let behind = position.in_front_of(batch.records()[half].offset);
            run.commit(&Pulled::new(batch.clone(), behind));
            run.restart().await;
            return;
        }
    }

    #[tokio::test]
    async fn a_position_within_a_batch_is_resumed_from() {
        let folder = folder();
        for (name, bytes) in [("plain", numbered(100).into_bytes()), ("gzip", gzip(&numbered(100)))] {
            let path = folder.path().join(name);
            fs::write(&path, bytes).unwrap();
            let mut run = source(&folder, name, "");
            let file = Partition { source: "component".into(), topic: path.to_str().unwrap().into(), number: 0 };
            // Behind the first line.
            run.commit(&Pulled::new(BatchBuilder::new(Arc::new(file), 0, 0).finish(), Position(7)));
            run.restart().await;
            let mut read = Vec::new();
            commit_half(&mut run, &mut read).await;
            commit_half(&mut run, &mut read).await;
            let mut lines: Vec<_> = read.into_iter().map(|(_, line)| line).collect();
            assert_eq!(lines.len(), 74);
            lines.extend(run.rest().await);
            assert!(lines.iter().map(String::as_str).eq(numbered(100).lines().skip(1)), "{lines:?}");
        }
    }

    #[tokio::test]
    async fn a_damaged_archive_is_refused_and_holds_up_no_other_file() {
        let folder = folder();
        let packed = gzip(&numbered(1000));
        fs::write(folder.path().join("a.gz"), &packed[..packed.len() - 100]).unwrap();
        append(&folder.path().join("b"), "b\n");
        let mut run = source(&folder, "*", "");
        let lines = all(&mut run).await;
        let at = lines.iter().position(|line| line.starts_with('!')).unwrap();
        assert!(
            lines[at].contains("a.gz` cannot be read on from byte") && lines[at].contains("is cut off"),
            "{}",
            lines[at]
        );
        assert!(at > 500 && lines[at + 1..] == ["b"], "{lines:?}");
        // Repaired, it is read on.
        fs::write(folder.path().join("a.gz"), &packed).unwrap();
        let rest = all(run.restart().await).await;
        assert_eq!((at + rest.len(), rest.last().unwrap().as_str()), (1000, "line 999"));
    }

    /// How many files of a folder this process holds open, also those that were removed.
    fn held(folder: &TempDir) -> usize {
        let links = fs::read_dir("/proc/self/fd").unwrap().filter_map(|fd| fs::read_link(fd.unwrap().path()).ok());
        links.filter(|to| to.starts_with(folder.path())).count()
    }

    /// Commits what comes until nothing has come for some seconds.
    async fn settle(run: &mut SourceRun) {
        while let Some(pulled) = run.pull_within(Duration::from_secs(7)).await {
            run.commit(&pulled.unwrap().unwrap());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_was_removed_gives_its_space_back_once_its_end_is_committed() {
        let folder = folder();
        let path = folder.path().join("app.log");
        append(&path, "one\n");
        let mut run = source(&folder, "*.log", ", follow: true");
        assert_eq!(lines(&mut run, 1).await, ["one"]);
        fs::remove_file(&path).unwrap();
        // Its end is said, and not committed: a rewind would ask for it.
        let end = run.pull().await.unwrap().unwrap();
        assert!(run.pull_within(Duration::from_secs(7)).await.is_none());
        assert_eq!(held(&folder), 1);
        run.commit(&end);
        settle(&mut run).await;
        assert_eq!(held(&folder), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_is_written_anew_again_and_again_holds_one_descriptor() {
        let folder = folder();
        let path = folder.path().join("state.log");
        let mut run = source(&folder, "*.log", ", follow: true");
        for text in ["the longest of all of them", "one that is shorter", "yet shorter", "short"] {
            fs::write(&path, format!("{text}\n")).unwrap();
            assert_eq!(lines(&mut run, 1).await, [text]);
            settle(&mut run).await;
            assert_eq!(held(&folder), 1);
        }
        assert_eq!(run.rewind().await.pull_within(Duration::from_secs(7)).await.map(|_| ()), None);
    }

    #[tokio::test]
    async fn a_name_that_is_not_utf_8_and_a_hidden_one_are_passed_over() {
        use std::ffi::OsStr;
        use std::os::unix::ffi::OsStrExt;
        let folder = folder();
        for (name, text) in [(&b"caf\xe9.log"[..], "no\n"), (b".hidden.log", "hidden\n"), (b"seen.log", "seen\n")] {
            append(&folder.path().join(OsStr::from_bytes(name)), text);
        }
        assert_eq!(source(&folder, "*.log", "").rest().await, ["seen"]);
        assert_eq!(source(&folder, "**/*.log", "").rest().await, ["seen"]);
        assert_eq!(source(&folder, ".*.log", "").rest().await, ["hidden"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_cannot_be_read_holds_up_no_other_and_is_never_read_from_its_beginning_for_that() {
        let folder = folder();
        append(&folder.path().join("app.log"), "old\n");
        // A regular file whose first byte nobody can read.
        for (start_at, expected) in [("beginning", &["old", "new"][..]), ("end", &["new"])] {
            let paths = format!("[/proc/self/mem, \"{}/app.log\"]", folder.path().display());
            let mut run =
                harness::source(&format!("file: {{ path: {paths}, codec: raw, follow: true, start_at: {start_at} }}"));
            assert!(run.pull_within(Duration::from_secs(3)).await.is_some_and(|pulled| {
                run.commit(&pulled.unwrap().unwrap());
                true
            }));
            fs::write(folder.path().join("app.log"), "old\nnew\n").unwrap();
            let mut read = Vec::new();
            while let Some(pulled) = run.pull_within(Duration::from_secs(7)).await {
                let pulled = pulled.unwrap().unwrap();
                read.extend(texts(&pulled.batch));
                run.commit(&pulled);
            }
            assert!(
                read.ends_with(&[expected.last().unwrap().to_string()]) && read.len() <= expected.len(),
                "{read:?}"
            );
            fs::write(folder.path().join("app.log"), "old\n").unwrap();
        }
    }

    #[tokio::test]
    async fn a_file_that_is_replaced_before_its_turn_is_not_passed_over() {
        let folder = folder();
        for name in ["a", "b"] {
            append(&folder.path().join(name), &format!("{name}\n"));
        }
        let mut run = source(&folder, "*", "");
        assert_eq!(run.next_batch().await.commit().batch.len(), 1);
        append(&folder.path().join("new"), "another b\n");
        fs::rename(folder.path().join("new"), folder.path().join("b")).unwrap();
        let error = run.error().await;
        assert!(matches!(&error, SourceError::Retry(error) if error.contains("/b`")), "{error:?}");
        assert_eq!(run.rewind().await.rest().await, ["another b"]);
    }

    #[tokio::test]
    async fn a_bomb_fills_no_memory() {
        let folder = folder();
        let bomb = gzip(&"0".repeat(50 << 20));
        assert!(bomb.len() < 1 << 20);
        fs::write(folder.path().join("bomb.gz"), bomb).unwrap();
        let mut run = source(&folder, "bomb.gz", "");
        let pulled = run.pull().await.unwrap().unwrap();
        assert_eq!((pulled.refused.len(), pulled.position), (1, Position(50 << 20)));
        assert_eq!(pulled.refused[0].batch.payload_bytes(), 16 << 10);
    }

    #[tokio::test(start_paused = true)]
    async fn an_archive_that_is_still_being_written_is_waited_for() {
        let folder = folder();
        let path = folder.path().join("in.gz");
        let packed = gzip(&numbered(1000));
        fs::write(&path, &packed[..1]).unwrap();
        let mut run = source(&folder, "*.gz", ", follow: true");
        let mut read = Vec::new();
        for end in [1000, packed.len() - 4, packed.len()] {
            while let Some(pulled) = run.pull_within(Duration::from_secs(5)).await {
                let pulled = pulled.unwrap().unwrap();
                read.extend(texts(&pulled.batch));
                assert!(pulled.refused.is_empty());
            }
            fs::write(&path, &packed[..end]).unwrap();
        }
        while let Some(pulled) = run.pull_within(Duration::from_secs(30)).await {
            read.extend(texts(&pulled.unwrap().unwrap().batch));
        }
        assert_eq!((read.len(), read.last().unwrap().as_str()), (1000, "line 999"));
    }

    #[tokio::test(start_paused = true)]
    async fn an_archive_that_stays_cut_off_is_refused_once() {
        let folder = folder();
        let packed = zstandard(&numbered(1000));
        fs::write(folder.path().join("a.zst"), &packed[..packed.len() - 1]).unwrap();
        append(&folder.path().join("b"), "b\n");
        let mut run = source(&folder, "*", ", follow: true");
        let mut refused = Vec::new();
        while let Some(pulled) = run.pull_within(Duration::from_secs(60)).await {
            refused.extend(pulled.unwrap().unwrap().refused);
        }
        assert_eq!(refused.len(), 1);
        assert!(refused[0].error.contains("is cut off"), "{}", refused[0].error);
    }

    #[tokio::test(start_paused = true)]
    async fn a_followed_line_waits_for_its_newline() {
        let folder = folder();
        let path = folder.path().join("app.log");
        append(&path, "first\nsec");
        let mut run = source(&folder, "app.log", ", follow: true");
        assert_eq!(run.next_batch().await.text(), "first");
        assert!(run.pull_within(Duration::from_secs(30)).await.is_none());
        append(&path, "ond\n");
        assert_eq!(run.next_batch().await.text(), "second");
    }

    #[tokio::test(start_paused = true)]
    async fn files_that_appear_are_found_and_read_from_their_beginning() {
        let folder = folder();
        append(&folder.path().join("a.log"), "old\n");
        let mut run = source(&folder, "*.log", ", follow: true, start_at: end");
        let pulled = run.pull().await.unwrap().unwrap();
        assert_eq!((pulled.batch.len(), pulled.position), (0, Position(4)), "the end is committed at once");
        run.commit(&pulled);
        append(&folder.path().join("b.log"), "new file\n");
        assert_eq!(run.next_batch().await.text(), "new file");
        append(&folder.path().join("a.log"), "new line\n");
        append(&folder.path().join("c.log"), "while it was down\n");
        run.restart().await;
        let mut all = Vec::new();
        for _ in 0..3 {
            all.push(run.next_batch().await.text());
        }
        all.sort();
        assert_eq!(all, ["new file", "new line", "while it was down"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_does_not_exist_yet_is_waited_for() {
        let folder = folder();
        let mut run = source(&folder, "app.log", ", follow: true");
        assert!(run.pull_within(Duration::from_secs(30)).await.is_none());
        append(&folder.path().join("app.log"), "first\n");
        assert_eq!(run.next_batch().await.text(), "first");
    }

    #[tokio::test(start_paused = true)]
    async fn a_truncated_file_begins_anew_as_another_one() {
        let folder = folder();
        let path = folder.path().join("app.log");
        append(&path, "a long first line\n");
        let mut run = source(&folder, "app.log", ", follow: true");
        assert_eq!(lines(&mut run, 1).await, ["a long first line"]);
        assert!(run.pull_within(Duration::from_secs(1)).await.is_none());
        fs::write(&path, "short\n").unwrap();
        assert_eq!(lines(&mut run, 1).await, ["short"]);
        assert!(run.pull_within(Duration::from_secs(1)).await.is_none());
        assert_eq!(positions(&run), [("app.log", 1, 6)], "of the first nothing is known any more");
        // Longer than what was committed before.
        append(&path, "longer than the first line was\n");
        assert_eq!(lines(run.restart().await, 1).await, ["longer than the first line was"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_is_written_anew_and_longer_is_not_mistaken_for_the_old_one() {
        let folder = folder();
        let path = folder.path().join("app.log");
        for down in [false, true] {
            fs::write(&path, "the old content\n").unwrap();
            let mut run = source(&folder, "app.log", ", follow: true");
            assert_eq!(lines(&mut run, 1).await, ["the old content"]);
            assert!(run.pull_within(Duration::from_secs(1)).await.is_none());
            fs::write(&path, "the new content, which is longer\nand more\n").unwrap();
            if down {
                run.restart().await;
            }
            assert_eq!(lines(&mut run, 2).await, ["the new content, which is longer", "and more"]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_truncated_while_the_process_was_down_begins_anew() {
        let folder = folder();
        let path = folder.path().join("app.log");
        append(&path, "a long first line\n");
        let mut run = source(&folder, "app.log", ", follow: true");
        run.next_batch().await.commit();
        fs::write(&path, "short\n").unwrap();
        assert_eq!(run.restart().await.next_batch().await.text(), "short");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_not_read_before_a_rotation_is_read_after_it_even_if_the_process_was_down() {
        type Rotate = fn(&Path, &Path);
        let rotations: [(&str, Rotate); 4] = [
            ("rename", |path, old| fs::rename(path, old).unwrap()),
            ("copytruncate", |path, old| {
                fs::copy(path, old).unwrap();
                OpenOptions::new().write(true).open(path).unwrap().set_len(0).unwrap();
            }),
            ("compress", |path, old| {
                fs::write(old.with_extension("1.gz"), gzip(&fs::read_to_string(path).unwrap())).unwrap();
                fs::remove_file(path).unwrap();
            }),
            ("compress by zstd", |path, old| {
                fs::write(old.with_extension("1.zst"), zstandard(&fs::read_to_string(path).unwrap())).unwrap();
                fs::remove_file(path).unwrap();
            }),
        ];
        for (name, rotate) in rotations {
            // Whether the pattern matches the names of old files or not.
            for pattern in ["app.log", "app.*"] {
                let folder = folder();
                let path = folder.path().join("app.log");
                append(&path, "read\n");
                let mut run = source(&folder, pattern, ", follow: true");
                assert_eq!(lines(&mut run, 1).await, ["read"]);
                append(&path, "not read\n");
                rotate(&path, &folder.path().join("app.log.1"));
                append(&path, "new\nfile\n");
                run.restart().await;
                assert_eq!(lines(&mut run, 3).await, ["not read", "new", "file"], "{name}, {pattern}");
                append(&path, "more\n");
                assert_eq!(lines(&mut run, 1).await, ["more"], "{name}, {pattern}");
                assert!(run.pull_within(Duration::from_secs(1)).await.is_none());
                let mut rest = Vec::new();
                run.restart().await;
                while let Some(pulled) = run.pull_within(Duration::from_secs(30)).await {
                    rest.extend(texts(&pulled.unwrap().unwrap().batch));
                }
                assert_eq!(rest, [""; 0], "{name}, {pattern}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_is_removed_and_made_anew_is_a_new_one_whatever_it_holds() {
        let folder = folder();
        let path = folder.path().join("app.log");
        append(&path, "the same line\n");
        let mut run = source(&folder, "app.log", ", follow: true");
        assert_eq!(lines(&mut run, 1).await, ["the same line"]);
        for down in [false, true] {
            fs::remove_file(&path).unwrap();
            append(&path, "the same line\n");
            if down {
                run.restart().await;
            }
            assert_eq!(lines(&mut run, 1).await, ["the same line"], "{down}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn two_files_that_begin_alike_are_two() {
        let folder = folder();
        append(&folder.path().join("app.log"), "started\n");
        let mut run = source(&folder, "app*.log", ", follow: true");
        assert_eq!(lines(&mut run, 1).await, ["started"]);
        append(&folder.path().join("app-2.log"), "started\n");
        assert_eq!(lines(&mut run, 1).await, ["started"]);
        append(&folder.path().join("app.log"), "one\n");
        assert_eq!(lines(&mut run, 1).await, ["one"]);
        append(&folder.path().join("app-2.log"), "two\n");
        assert_eq!(lines(&mut run, 1).await, ["two"]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_known_of_a_file_that_is_gone_is_forgotten_in_time() {
        let folder = folder();
        let path = folder.path().join("app.log");
        append(&path, "one\n");
        let mut run = source(&folder, "app.*", ", follow: true, forget_after: 1h");
        assert_eq!(lines(&mut run, 1).await, ["one"]);
        fs::remove_file(&path).unwrap();
        let mut at = Vec::new();
        while let Some(pulled) = run.pull_within(Duration::from_secs(2 * 3600)).await {
            let pulled = pulled.unwrap().unwrap();
            run.commit(&pulled);
            at.push(run.committed().len());
        }
        assert_eq!(at.last(), Some(&0), "{at:?}");
    }

    #[tokio::test]
    async fn a_position_that_an_earlier_version_stored_is_taken_up() {
        let folder = folder();
        let path = folder.path().join("in.txt");
        append(&path, "one\ntwo\n");
        for more in ["", ", follow: true"] {
            let mut run = source(&folder, "in.txt", more);
            let file = Partition { source: "component".into(), topic: path.to_str().unwrap().into(), number: 0 };
            // The second generation of the file, behind its first line.
            run.commit(&Pulled::new(BatchBuilder::new(Arc::new(file), 0, 0).finish(), Position((2 << 44) | 4)));
            assert_eq!(lines(run.restart().await, 1).await, ["two"]);
            assert_eq!(positions(&run), [("in.txt", 0, 8)]);
            assert!(run.committed().len() > 1, "what it is known by is noted");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_replaced_file_is_read_to_its_end_first() {
        let folder = folder();
        let path = folder.path().join("app.log");
        append(&path, "first\n");
        let mut run = source(&folder, "app.log", ", follow: true");
        run.next_batch().await.commit();
        assert!(run.pull_within(Duration::from_secs(1)).await.is_none());
        let old = folder.path().join("app.log.1");
        fs::rename(&path, &old).unwrap();
        append(&path, "of the new file\n");
        append(&old, "written late\nwithout newline");
        assert_eq!(run.next_batch().await.text(), "written late");
        assert_eq!(run.next_batch().await.text(), "without newline");
        assert_eq!(run.next_batch().await.text(), "of the new file");
        // Nothing of it was committed: a rewind finds the old file, although it has lost its name.
        run.rewind().await;
        assert_eq!(run.next_batch().await.text(), "written late");
        assert_eq!(run.next_batch().await.text(), "without newline");
        assert_eq!(run.next_batch().await.text(), "of the new file");
        append(&path, "more\n");
        assert_eq!(run.next_batch().await.text(), "more");
    }

    #[tokio::test(start_paused = true)]
    async fn more_files_than_may_be_open_are_all_followed() {
        let folder = folder();
        let files = MAX_OPEN + 50;
        for file in 0..files {
            append(&folder.path().join(format!("{file:04}.log")), &format!("{file} first\n"));
        }
        let mut run = source(&folder, "*.log", ", follow: true");
        for file in 0..files {
            assert_eq!(run.next_batch().await.text(), format!("{file} first"));
        }
        for file in (0..files).step_by(50) {
            append(&folder.path().join(format!("{file:04}.log")), &format!("{file} second\n"));
        }
        for file in (0..files).step_by(50) {
            assert_eq!(run.next_batch().await.text(), format!("{file} second"));
        }
    }

    #[test]
    fn mistakes_are_reported_at_their_place() {
        let problems = |yaml: &str| {
            let problems = harness::source_problems(yaml);
            let described = problems.iter().map(|problem| (harness::underlined(yaml, problem.span), &*problem.message));
            described.map(|(text, message)| format!("{text}: {message}")).collect::<Vec<_>>()
        };
        assert_eq!(
            problems("file: { path: [\"a[\", ok.txt], start_at: end, max_line_bytes: 0 }"),
            [
                "\"a[\": `a[` is no pattern: invalid range pattern",
                "end: `start_at` is for files that are followed",
                "0: `max_line_bytes` must be at least 1 and below 1 GiB",
            ]
        );
        assert_eq!(problems("file: { path: [] }"), ["[]: `path` names no file"]);
        assert_eq!(problems("file: { path: \"\" }"), ["\"\": the path is empty"]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever the lines, the blocks and the moments of a restart: each line comes once, in order.
        #[test]
        fn resuming_neither_skips_nor_repeats_a_line(
            lines in proptest::collection::vec("[a-z\r]{0,40}", 0..200),
            line_end in prop_oneof![Just("\n"), Just("\r\n")],
            long in proptest::collection::vec(0..200usize, 0..3),
            last_is_ended: bool,
            restarts in proptest::collection::vec(any::<bool>(), 1..20),
        ) {
            let mut lines = lines;
            for at in long {
                if let Some(line) = lines.get_mut(at) {
                    // Longer than a block.
                    *line = "x".repeat(300_000 + at);
                }
            }
            let mut text = lines.join(line_end);
            if last_is_ended {
                text.push_str(line_end);
            }
            let expected: Vec<String> = text
                .split('\n')
                .map(|line| line.strip_suffix('\r').unwrap_or(line).to_owned())
                .filter(|line| !line.is_empty())
                .collect();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
            runtime.block_on(async {
                let folder = folder();
                append(&folder.path().join("in.txt"), &text);
                let mut run = source(&folder, "in.txt", "");
                let mut read = Vec::new();
                for commits in restarts {
                    let Some(pulled) = run.pull().await else { break };
                    let pulled = pulled.unwrap();
                    if commits {
                        read.extend(texts(&pulled.batch));
                        run.commit(&pulled);
                    }
                    run.restart().await;
                }
                read.extend(run.restart().await.rest().await);
                prop_assert_eq!(read, expected);
                Ok(())
            })?;
        }

        /// Whatever rotation does, and whenever the process stops: each line comes once, and in order for each file.
        #[test]
        fn rotation_neither_loses_nor_repeats_a_line(
            steps in proptest::collection::vec((0..2_usize, step()), 1..40),
            matches_old in any::<bool>(),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
            runtime.block_on(async {
                let folder = folder();
                let pattern = if matches_old { "*.log*" } else { "*.log" };
                let mut run = source(&folder, pattern, ", follow: true");
                let mut logs = [Log::new(&folder, "a"), Log::new(&folder, "b")];
                let mut read = Vec::new();
                for (log, step) in steps {
                    match step {
                        Step::Append(count) => logs[log].append(count),
                        // A file of which nothing was read cannot be found again under a name that nobody looks for.
                        Step::Rotate(how) if !matches_old => {
                            logs[log].append(1);
                            read_on(&mut run, &mut read, Duration::from_secs(20)).await;
                            logs[log].append(3);
                            logs[log].rotate(how);
                        }
                        Step::Rotate(how) => logs[log].rotate(how),
                        Step::Half => commit_half(&mut run, &mut read).await,
                        Step::Read => read_on(&mut run, &mut read, Duration::from_millis(500)).await,
                        Step::Settle => read_on(&mut run, &mut read, Duration::from_secs(20)).await,
                        Step::Rewind => drop(run.rewind().await),
                        Step::Restart => drop(run.restart().await),
                    }
                }
                read_on(&mut run, &mut read, Duration::from_secs(60)).await;
                for log in logs {
                    let mut of_log: Vec<_> = read.iter().filter(|(_, line)| line.starts_with(&log.name)).collect();
                    of_log.sort_by_key(|(file, _)| Arc::clone(file));
                    let in_order = of_log.windows(2).all(|pair| pair[0].0 != pair[1].0 || number(&pair[0].1) < number(&pair[1].1));
                    prop_assert!(in_order, "{of_log:?}");
                    let mut lines: Vec<_> = of_log.into_iter().map(|(_, line)| line.clone()).collect();
                    lines.sort_by_key(|line| number(line));
                    prop_assert_eq!(lines, log.written);
                }
                Ok(())
            })?;
        }
    }

    #[derive(Debug, Clone, Copy)]
    enum How {
        Rename,
        CopyTruncate,
        Compress,
        Truncate,
    }

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Append(usize),
        Rotate(How),
        Read,
        /// Commits half of a batch, and goes back.
        Half,
        /// Reads until all is at its end.
        Settle,
        Rewind,
        Restart,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (1..40_usize).prop_map(Step::Append),
            3 => prop_oneof![Just(How::Rename), Just(How::CopyTruncate), Just(How::Compress), Just(How::Truncate)]
                .prop_map(Step::Rotate),
            3 => Just(Step::Read),
            1 => Just(Step::Half),
            1 => Just(Step::Settle),
            1 => Just(Step::Rewind),
            2 => Just(Step::Restart),
        ]
    }

    /// A log as a program writes it, and as logrotate treats it.
    struct Log {
        name: String,
        path: PathBuf,
        written: Vec<String>,
        rotated: usize,
    }

    impl Log {
        fn new(folder: &TempDir, name: &str) -> Self {
            let path = folder.path().join(format!("{name}.log"));
            Self { name: name.to_owned(), path, written: Vec::new(), rotated: 0 }
        }

        fn append(&mut self, count: usize) {
            for _ in 0..count {
                let line = format!("{} line {} of the log", self.name, self.written.len());
                append(&self.path, &format!("{line}\n"));
                self.written.push(line);
            }
        }

        fn rotate(&mut self, how: How) {
            if !self.path.exists() {
                return;
            }
            let old = |file: usize, more: &str| format!("{}.{file}{more}", self.path.display());
            match how {
                How::Rename => {
                    // As logrotate does it: all older ones move on.
                    for file in (0..self.rotated).rev() {
                        for more in ["", ".gz"] {
                            if Path::new(&old(file, more)).exists() {
                                fs::rename(old(file, more), old(file + 1, more)).unwrap();
                            }
                        }
                    }
                    fs::rename(&self.path, old(0, "")).unwrap();
                    self.rotated += 1;
                }
                How::CopyTruncate => {
                    fs::copy(&self.path, old(self.rotated, "")).unwrap();
                    OpenOptions::new().write(true).open(&self.path).unwrap().set_len(0).unwrap();
                    self.rotated += 1;
                }
                How::Compress => {
                    for file in 0..self.rotated {
                        if let Ok(text) = fs::read_to_string(old(file, "")) {
                            fs::write(old(file, ".gz"), gzip(&text)).unwrap();
                            fs::remove_file(old(file, "")).unwrap();
                        }
                    }
                }
                // Nothing is lost by it if nothing stands in it.
                How::Truncate if fs::metadata(&self.path).unwrap().len() == 0 => fs::write(&self.path, "").unwrap(),
                How::Truncate => {}
            }
        }
    }

    /// The number of a line that a [`Log`] wrote.
    fn number(line: &str) -> usize {
        line.split(' ').nth(2).unwrap().parse().unwrap()
    }

    /// Reads and commits until nothing has come for a time.
    async fn read_on(run: &mut SourceRun, read: &mut Vec<(Arc<Partition>, String)>, limit: Duration) {
        while let Some(pulled) = run.pull_within(limit).await {
            let pulled = pulled.unwrap().unwrap();
            read.extend(texts(&pulled.batch).into_iter().map(|line| (Arc::clone(pulled.batch.origin()), line)));
            run.commit(&pulled);
        }
    }
}
