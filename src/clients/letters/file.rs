//! Dead letters in a file: one JSON object a line.
//!
//! A letter is known by the number of its line, and the file by its path and the hash of its first line: if somebody moves
//! the file away and another one grows in its place, what was replayed of the old one says nothing of the new.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::ops::ControlFlow;
use std::sync::Arc;

use async_stream::try_stream;
use futures::stream::BoxStream;
use serde::Deserialize;

use super::{Keeper, Place, Visit, only};
use crate::codecs::Codec;
use crate::component::node::{Node, read};
use crate::component::{
    BuiltSource, CompiledSource, KeepsPositions, LOCAL_TRANSACTION, Pulled, Source, SourceContext, SourceError,
    SourceTraits,
};
use crate::delivery::Letter;
use crate::expr::Schema;
use crate::record::{BatchBuilder, Draft, Partition, Position, fingerprint};

/// A batch has about this many bytes at most,
const BATCH_BYTES: usize = 1 << 20;
/// and this many letters.
const BATCH_LETTERS: usize = 1000;

/// The file of a dead letter.
#[derive(Debug, Clone)]
pub(crate) struct LetterFile {
    path: String,
}

#[derive(Deserialize)]
struct FileConfig {
    path: String,
}

impl LetterFile {
    /// The file that a sink of this config writes.
    ///
    /// # Errors
    /// If it writes more than one.
    pub(crate) fn of(config: &Node) -> Result<Self, String> {
        let unread = |what: &str| {
            Err(format!("a dead letter in {what} cannot be read again yet: give it one plain file, or a topic"))
        };
        if config.get("rotate").is_some() {
            return unread("files that rotate");
        }
        if config.get("compression").is_some_and(|compression| compression.text() != Some("none")) {
            return unread("a compressed file");
        }
        match read::<FileConfig>(&only(config, &["path"])) {
            Ok(FileConfig { path }) if path.contains('%') => unread("files by date"),
            Ok(FileConfig { path }) => Ok(Self { path }),
            Err(_) => Err("its `path` cannot be read".to_owned()),
        }
    }

    /// What it is called.
    pub(crate) fn keeper(&self) -> Keeper {
        Keeper::File(self.path.clone())
    }

    fn cannot(&self, error: &io::Error) -> String {
        format!("the dead letters in `{}` cannot be read: {error}", self.path)
    }

    /// Shows every letter from a line on.
    ///
    /// # Errors
    /// If the file cannot be read. One that does not exist has no letters.
    pub(crate) fn scan(&self, from: i64, visit: &mut Visit<'_>) -> Result<(), String> {
        let mut lines = match Lines::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            lines => lines.map_err(|error| self.cannot(&error))?,
        };
        let mut line = Vec::new();
        while let Some(at) = lines.next(&mut line).map_err(|error| self.cannot(&error))? {
            let wanted = at >= from && !line.is_empty();
            if wanted && visit(Place { partition: 0, offset: at }, Letter::from_json(&line)) == ControlFlow::Break(()) {
                break;
            }
        }
        Ok(())
    }

    /// What the file is called where positions are stored.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub(crate) fn identity(&self) -> Result<String, String> {
        let mut first = Vec::new();
        match Lines::open(&self.path).and_then(|mut lines| lines.next(&mut first)) {
            Ok(_) => Ok(format!("{}#{:016x}", self.path, fingerprint(&first))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(self.path.clone()),
            Err(error) => Err(self.cannot(&error)),
        }
    }

    /// A source of its lines. `topic` is what their positions are stored by.
    pub(crate) fn source(&self, topic: &str) -> CompiledSource {
        let (file, topic): (_, Arc<str>) = (self.clone(), topic.into());
        CompiledSource {
            traits: SourceTraits {
                keeps_positions: KeepsPositions::Store,
                finite: true,
                partitioned: false,
                transactional_with: &[LOCAL_TRANSACTION],
            },
            codec: Codec::Raw,
            schema: Schema::default(),
            build: Arc::new(move |cx| {
                let origin = Partition { source: Arc::clone(&cx.component), topic: Arc::clone(&topic), number: 0 };
                let source = FileSource { file: file.clone(), origin: Arc::new(origin) };
                Ok(BuiltSource { source: Box::new(source), positions: None })
            }),
        }
    }
}

/// The whole lines of a file. What stands behind the last newline is no letter yet, or never was acknowledged as one.
struct Lines {
    reader: BufReader<File>,
    next: i64,
}

impl Lines {
    fn open(path: &str) -> io::Result<Self> {
        Ok(Self { reader: BufReader::with_capacity(1 << 16, File::open(path)?), next: 0 })
    }

    /// Reads the next line and tells its number.
    fn next(&mut self, line: &mut Vec<u8>) -> io::Result<Option<i64>> {
        line.clear();
        self.reader.read_until(b'\n', line)?;
        if line.pop() != Some(b'\n') {
            line.clear();
            return Ok(None);
        }
        self.next += 1;
        Ok(Some(self.next - 1))
    }

    /// Reads a batch; `None` at the end.
    fn batch(&mut self, origin: &Arc<Partition>, from: i64) -> io::Result<Option<Pulled>> {
        let mut batch = BatchBuilder::new(Arc::clone(origin), 0, 0);
        let mut line = Vec::new();
        while batch.bytes().len() < BATCH_BYTES && batch.len() < BATCH_LETTERS {
            let Some(at) = self.next(&mut line)? else { break };
            if at >= from && !line.is_empty() {
                batch.push_copy(Draft { body: &line, offset: at, ..Draft::default() });
            }
        }
        let batch = batch.finish();
        Ok((!batch.is_empty()).then_some(Pulled::new(batch, Position(self.next))))
    }
}

/// Reads the lines of the file, from where the last commit stands.
struct FileSource {
    file: LetterFile,
    origin: Arc<Partition>,
}

impl Source for FileSource {
    fn stream(&mut self, cx: SourceContext) -> BoxStream<'_, Result<Pulled, SourceError>> {
        let Self { file, origin } = self;
        let (file, origin) = (&*file, &*origin);
        let from = cx.resume_from(origin).map_or(0, |Position(line)| line);
        Box::pin(try_stream! {
            let cannot = |error: io::Error| SourceError::Retry(file.cannot(&error));
            let path = file.path.clone();
            let mut lines = cx.runtime.blocking(move || Lines::open(&path)).await.map_err(cannot)?;
            loop {
                let origin = Arc::clone(origin);
                let (pulled, rest) = cx
                    .runtime
                    .blocking(move || {
                        let pulled = lines.batch(&origin, from);
                        (pulled, lines)
                    })
                    .await;
                lines = rest;
                match pulled.map_err(cannot)? {
                    Some(pulled) => yield pulled,
                    None => break,
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const LETTER: &str = r#"{"error":"e","stage":"s","source":"in","topic":"t","partition":0,"offset":0,"body":"x"}"#;

    fn file(text: &str) -> (tempfile::TempDir, LetterFile) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dead.ndjson");
        fs::write(&path, text).unwrap();
        (folder, LetterFile { path: path.to_string_lossy().into_owned() })
    }

    #[test]
    fn whole_lines_are_letters_or_say_why_not() {
        let (_folder, file) = file(&format!("{LETTER}\nno letter\n\n{LETTER}\n{{\"torn"));
        let mut seen = Vec::new();
        file.scan(0, &mut |place, letter| {
            seen.push((place.offset, letter.is_ok()));
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(seen, [(0, true), (1, false), (3, true)]);
    }

    #[test]
    fn a_file_that_grows_stays_the_same_and_another_one_in_its_place_is_not() {
        let (_folder, file) = file(&format!("{LETTER}\n"));
        let first = file.identity().unwrap();
        fs::write(&file.path, format!("{LETTER}\n{LETTER}\n")).unwrap();
        assert_eq!(file.identity().unwrap(), first);
        fs::write(&file.path, LETTER.replace("\"offset\":0", "\"offset\":1") + "\n").unwrap();
        assert_ne!(file.identity().unwrap(), first);
        fs::remove_file(&file.path).unwrap();
        assert_eq!(file.identity().unwrap(), file.path);
        file.scan(0, &mut |_, _| panic!("it has no letters")).unwrap();
    }
}
