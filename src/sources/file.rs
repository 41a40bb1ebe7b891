//! Lines of files, read once or followed as they grow.
//!
//! One line is one record; its position is the byte just past its newline. Resuming from a committed position
//! therefore neither skips nor repeats a line.
//!
//! A file that is truncated or replaced begins anew, and positions may only grow: so a position also counts how often
//! that happened to its file, in the bits above the offset.

mod cursor;
mod listing;
mod reader;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use async_stream::try_stream;
use futures::stream::{BoxStream, Stream};
use glob::Pattern;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Visitor};

use self::listing::{is_pattern, list, missing, retry};
use self::reader::{FileId, Place, Reader, Seen, end_of_lines};
use crate::clients::lines::Tail;
use crate::codecs::Codec;
use crate::component::{
    BuiltSource, ByteSize, CheckContext, CompiledSource, KeepsPositions, LOCAL_TRANSACTION, Problem, Pulled, Source,
    SourceConfig, SourceContext, SourceError, SourceTraits, Spanned,
};
use crate::expr::Schema as BodySchema;
use crate::observe::StageMetrics;
use crate::record::Partition;
use crate::runtime::Runtime;

/// Reads lines from files: once, or for ever as they grow.
///
/// ```yaml
/// file: { path: "/var/log/app/*.log", follow: true }
/// ```
///
/// One line is one record. A line ends with `\n` or `\r\n`, which is not part of the record; empty lines are no records.
/// Files are read in the order of their names, each from its beginning, or from where the last run committed.
///
/// **Read once** (the default): the pipeline ends at the end of the last file. What stands behind the last newline is a
/// record too. No file under `path`, or a file that has become shorter than its committed position, is an error.
///
/// **Followed** (`follow: true`): the pipeline never ends. Files that appear later are found within a second and read
/// from their beginning; a file that does not exist yet is waited for. What stands behind the last newline waits for its
/// own newline. A file that is truncated, or replaced by another of the same name, begins anew; of the replaced one the
/// rest is read first. Files are known by their path: a pattern should not match the names that rotation gives to old
/// files, or they are read twice. A rotation while the pipeline is down loses what was not read before.
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
    /// The longest line. A longer one stops the pipeline: it can be neither held in memory nor left out in silence.
    #[serde(default = "max_line_bytes")]
    max_line_bytes: Spanned<ByteSize>,
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
        };
        Some(CompiledSource {
            traits,
            codec: self.codec,
            schema: BodySchema::default(),
            build: Arc::new(move |cx| {
                let source = FileSource {
                    settings: settings.clone(),
                    name: Arc::clone(&cx.component),
                    metrics: cx.metrics.clone(),
                    followed: BTreeMap::new(),
                    retired: VecDeque::new(),
                    listed: false,
                };
                Ok(BuiltSource { source: Box::new(source), positions: None })
            }),
        })
    }
}

/// New files are looked for this often.
const LISTING: Duration = Duration::from_secs(1);
/// Files that are read to their end are looked at this often.
const WATCHING: Duration = Duration::from_millis(100);
/// A file that was replaced is read on for this long: its writer may not have noticed yet.
const LINGER: Duration = Duration::from_secs(5);
/// Files kept open while they wait for more. Far below the usual limit of 1024.
const MAX_OPEN: usize = 256;
/// Replaced files kept open, so that a rewind across a rotation finds them.
const MAX_RETIRED: usize = 64;

#[derive(Debug, Clone)]
struct Settings {
    paths: Arc<[String]>,
    follow: bool,
    start_at: StartAt,
    max_line_bytes: usize,
}

struct FileSource {
    settings: Settings,
    name: Arc<str>,
    metrics: StageMetrics,
    /// The files that are followed, by path; they outlive a run, so that a rewind knows what was replaced meanwhile.
    followed: BTreeMap<Arc<str>, Reader>,
    /// Files that were replaced, latest last.
    retired: VecDeque<Retired>,
    /// Whether files were looked for before: those found later are read from their beginning.
    listed: bool,
}

impl Source for FileSource {
    fn stream(&mut self, cx: SourceContext) -> BoxStream<'_, Result<Pulled, SourceError>> {
        if self.settings.follow { Box::pin(self.follow(cx)) } else { Box::pin(self.read_once(cx)) }
    }
}

impl FileSource {
    fn read_once(&mut self, cx: SourceContext) -> impl Stream<Item = Result<Pulled, SourceError>> + Send + '_ {
        try_stream! {
            for path in list(&cx.runtime, &self.settings).await? {
                let mut reader = self.reader(&path);
                reader.take_up(cx.resume_from(&reader.origin).map(Place::of).unwrap_or_default());
                let len = reader.open(&cx.runtime).await.map_err(|error| missing(&path, &error))?;
                let committed = reader.place.offset;
                if len < committed {
                    Err(SourceError::Fatal(format!(
                        "`{path}` has become shorter than what was read of it: it has {len} bytes, and {committed} were \
                         committed; restore it, give it another name, or say `follow: true` to begin anew"
                    )))?;
                }
                while let Some(pulled) = reader.read(&cx.runtime, Tail::Last).await? {
                    yield pulled;
                }
            }
        }
    }

    fn follow(&mut self, cx: SourceContext) -> impl Stream<Item = Result<Pulled, SourceError>> + Send + '_ {
        try_stream! {
            self.rewind(&cx);
            let runtime = &cx.runtime;
            let mut next_listing = runtime.clock().now();
            let mut next_look = next_listing;
            loop {
                let now = runtime.clock().now();
                if now >= next_listing {
                    next_listing = now + LISTING;
                    for pulled in self.find(&cx).await? {
                        yield pulled;
                    }
                }
                if now >= next_look {
                    next_look = now + WATCHING;
                    for pulled in self.look(runtime).await? {
                        yield pulled;
                    }
                }
                let mut open = self.followed.values().filter(|reader| reader.file.is_some()).count();
                let mut none_was_ready = true;
                for reader in self.followed.values_mut().filter(|reader| reader.ready) {
                    none_was_ready = false;
                    if reader.file.is_none() {
                        match reader.open(runtime).await {
                            Ok(_) => open += usize::from(reader.file.is_some()),
                            Err(error) => reader.complain(&self.name, &self.metrics, &error),
                        }
                    }
                    // One read of each, so that a large file does not hold up the others.
                    while let Some(pulled) = reader.read(runtime, Tail::Open).await? {
                        yield pulled;
                        if !reader.holds_batches() {
                            break;
                        }
                    }
                    if open > MAX_OPEN && reader.file.take().is_some() {
                        open -= 1;
                    }
                }
                if none_was_ready {
                    runtime.sleep_until(next_look.min(next_listing)).await;
                }
            }
        }
    }

    fn reader(&self, path: &Arc<str>) -> Reader {
        let origin = Partition { source: Arc::clone(&self.name), topic: Arc::clone(path), number: 0 };
        Reader::new(origin, self.settings.max_line_bytes)
    }

    /// Puts all files back to what was committed.
    fn rewind(&mut self, cx: &SourceContext) {
        for (path, reader) in &mut self.followed {
            let place = cx.resume_from(&reader.origin).map_or(reader.first, Place::of);
            if place.generation == reader.place.generation {
                reader.take_up(place);
            } else if let Some(retired) = self.retired.iter().find(|old| old.is(path, place.generation)) {
                reader.file = Some(Arc::clone(&retired.file));
                reader.id = Some(retired.id);
                reader.take_up(place);
            } else {
                tracing::error!(
                    component = &*self.name,
                    path = &**path,
                    "the file was truncated before all that had been read of it was committed: lines are lost"
                );
                reader.take_up(Place { offset: 0, ..reader.place });
            }
        }
    }

    /// Looks for files that are not followed yet.
    async fn find(&mut self, cx: &SourceContext) -> Result<Vec<Pulled>, SourceError> {
        let of_this_source = |partition: &Partition| partition.source == self.name;
        let first_start = !self.listed && !cx.committed.keys().any(of_this_source);
        let mut pulled = Vec::new();
        for path in list(&cx.runtime, &self.settings).await? {
            if self.followed.contains_key(&path) {
                continue;
            }
            let mut reader = self.reader(&path);
            if let Some(position) = cx.resume_from(&reader.origin) {
                reader.first = Place::of(position);
            } else if first_start && self.settings.start_at == StartAt::End {
                let file = Arc::clone(&path);
                let end = cx.runtime.blocking(move || end_of_lines(&file)).await;
                reader.first.offset = end.map_err(|error| retry(&path, "cannot read", &error))?;
                // Said at once, so that it is committed: after a crash the end may be elsewhere.
                pulled.push(reader.moved_to(reader.first)?);
            }
            reader.take_up(reader.first);
            self.followed.insert(path, reader);
        }
        self.listed = true;
        Ok(pulled)
    }

    /// Looks at the files that wait: has one grown, or was it truncated or replaced?
    async fn look(&mut self, runtime: &Runtime) -> Result<Vec<Pulled>, SourceError> {
        let waiting = self.followed.iter().filter(|(_, reader)| !reader.ready);
        let looks: Vec<_> = waiting.map(|(path, reader)| (Arc::clone(path), reader.look())).collect();
        let look_at_all = move || looks.into_iter().map(|(path, look)| (path, look())).collect::<Vec<_>>();
        let mut pulled = Vec::new();
        for (path, seen) in runtime.blocking(look_at_all).await {
            let reader = self.followed.get_mut(&path).expect("a file once found is followed for ever");
            let component = &*self.name;
            match seen {
                Seen::Same => reader.replaced_since = None,
                Seen::Ready(id) => {
                    reader.id.get_or_insert(id);
                    reader.ready = true;
                }
                Seen::Truncated => {
                    tracing::warn!(component, path = &*path, "the file was truncated: it is read from its beginning");
                    pulled.push(reader.begin_anew()?);
                }
                Seen::Replaced | Seen::Missing if reader.id.is_none() => {}
                Seen::Replaced | Seen::Missing => {
                    let now = runtime.clock().now();
                    let since = *reader.replaced_since.get_or_insert(now);
                    if now.duration_since(since) < LINGER {
                        continue;
                    }
                    // Nobody will end its last line now.
                    while let Some(rest) = reader.read(runtime, Tail::Last).await? {
                        pulled.push(rest);
                    }
                    tracing::info!(
                        component,
                        path = &*path,
                        "the file was replaced or removed, and is read to its end"
                    );
                    if let (Some(file), Some(id)) = (reader.file.take(), reader.id.take()) {
                        let generation = reader.place.generation;
                        self.retired.push_back(Retired { path: Arc::clone(&path), generation, id, file });
                        if self.retired.len() > MAX_RETIRED {
                            self.retired.pop_front();
                        }
                    }
                    reader.id = None;
                    pulled.push(reader.begin_anew()?);
                }
                Seen::Failed(error) => reader.complain(component, &self.metrics, &error),
            }
        }
        Ok(pulled)
    }
}

/// A file that was replaced.
struct Retired {
    path: Arc<str>,
    generation: i64,
    id: FileId,
    file: Arc<File>,
}

impl Retired {
    fn is(&self, path: &Arc<str>, generation: i64) -> bool {
        self.path == *path && self.generation == generation
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, OpenOptions};
    use std::io::Write;
    use std::path::Path;

    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::*;
    use crate::record::Position;
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
        assert_eq!(run.committed().values().collect::<Vec<_>>(), [&Position(15)]);
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

    #[tokio::test]
    async fn a_line_that_is_too_long_stops_the_source_where_it_begins() {
        let folder = folder();
        append(&folder.path().join("in.txt"), &format!("one\n{}\ntwo\n", "x".repeat(1_000_000)));
        let mut run = source(&folder, "in.txt", ", max_line_bytes: 999999");
        let first = run.next_batch().await.commit();
        assert_eq!((texts(&first.batch), first.position), (vec!["one".to_owned()], Position(4)));
        let error = fatal(run.error().await);
        assert!(error.contains("the line at byte 4 of") && error.contains("max_line_bytes"), "{error}");
        let mut run = source(&folder, "in.txt", ", max_line_bytes: 1000000");
        assert_eq!(run.rest().await.len(), 3);
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
    async fn a_truncated_file_begins_anew_and_its_position_still_grows() {
        let folder = folder();
        let path = folder.path().join("app.log");
        append(&path, "a long first line\n");
        let mut run = source(&folder, "app.log", ", follow: true");
        let before = run.next_batch().await.commit().position;
        assert!(run.pull_within(Duration::from_secs(1)).await.is_none());
        fs::write(&path, "short\n").unwrap();
        let received = run.next_batch().await;
        assert_eq!(received.text(), "short");
        assert!(received.position() > before);
        // Longer than what was committed before, so only the position tells that it began anew.
        received.commit();
        append(&path, "longer than the first line was\n");
        assert_eq!(run.restart().await.next_batch().await.text(), "longer than the first line was");
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

        #[test]
        fn a_place_is_a_position(generation in 0..1_i64 << 19, offset in 0..1_u64 << 44) {
            let place = Place { generation, offset };
            prop_assert_eq!(place.position().map(Place::of), Some(place));
        }
    }

    #[test]
    fn the_longest_path_of_positions_is_an_error_and_no_wrap() {
        assert_eq!(Place { generation: 0, offset: 1 << 44 }.position(), None);
        assert_eq!(Place { generation: 1 << 19, offset: 0 }.position(), None);
    }
}
