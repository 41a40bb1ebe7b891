//! The files of a dead letter: one, one for each time, or a row of them. Each is a partition of its own, by its place among
//! those that were found.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use async_stream::try_stream;
use futures::stream::BoxStream;
use serde::Deserialize;

use super::file::{LetterFile, Lines};
use super::{Keeper, Place, Visit, only};
use crate::clients::files::entry::{self, Entry};
use crate::clients::files::pattern::Pattern;
use crate::clients::files::search::find;
use crate::codecs::Codec;
use crate::component::node::{Node, read};
use crate::component::{
    BuiltSource, CompiledSource, KeepsPositions, LOCAL_TRANSACTION, Pulled, Source, SourceContext, SourceError,
    SourceTraits,
};
use crate::expr::Schema;
use crate::record::{Partition, Position};

/// How the files of a dead letter are called.
#[derive(Debug, Clone)]
pub(crate) struct LetterPaths {
    pattern: Pattern,
    rotated: bool,
}

#[derive(Deserialize)]
struct FileConfig {
    path: String,
}

impl LetterPaths {
    /// Of the files that a sink of this config writes.
    ///
    /// # Errors
    /// If they cannot be told from others by their names.
    pub(crate) fn of(config: &Node) -> Result<Self, String> {
        let path = read::<FileConfig>(&only(config, &["path"])).map(|FileConfig { path }| path);
        let path = path.map_err(|_| "its `path` cannot be read".to_owned())?;
        let pattern = Pattern::new(&path).map_err(|error| format!("`{path}` is no pattern of times: {error}"))?;
        pattern.is_found_again()?;
        Ok(Self { pattern, rotated: config.get("rotate").is_some_and(|rotate| !rotate.is_null()) })
    }

    /// Looks for the files. `entries` are what the store has of the sink, as far as it can be read.
    ///
    /// # Errors
    /// If a folder cannot be read, or an entry of a file.
    pub(crate) fn find(&self, entries: &BTreeMap<String, Vec<u8>>) -> Result<LetterFiles, String> {
        let text = self.pattern.text();
        let paths = if self.is_one() { Ok(vec![text.to_owned()]) } else { find(&self.pattern, self.rotated) };
        let paths = paths.map_err(|error| format!("cannot look for the dead letters of `{text}`: {error}"))?;
        let file = |path: String| {
            let damaged = || format!("the stored entry of `{path}` is damaged: restore the data folder from a backup");
            let entry = entries.get(&entry::key(&path));
            let entry = entry.map(|bytes| Entry::decode(bytes).ok_or_else(damaged)).transpose()?;
            Ok(LetterFile { path: path.into(), rotated: self.rotated, entry })
        };
        let files = paths.into_iter().map(file).collect::<Result<Vec<_>, String>>()?;
        let keeper = match (self.is_one(), files.first()) {
            (true, Some(file)) => Keeper::File(file.path.to_string()),
            _ => Keeper::Files {
                folder: self.pattern.fixed_folder().into(),
                paths: files.iter().map(|file| Arc::clone(&file.path)).collect(),
            },
        };
        Ok(LetterFiles { keeper, files: files.into() })
    }

    /// Whether there is one file, under the name that the user wrote.
    fn is_one(&self) -> bool {
        self.pattern.is_plain() && !self.rotated
    }
}

/// The files of a dead letter that were found, in their order. One that is begun later is not among them.
#[derive(Debug, Clone)]
pub(crate) struct LetterFiles {
    keeper: Keeper,
    files: Arc<[LetterFile]>,
}

impl LetterFiles {
    /// What they are called.
    pub(crate) fn keeper(&self) -> Keeper {
        self.keeper.clone()
    }

    fn numbered(&self) -> impl Iterator<Item = (i32, &LetterFile)> {
        (0..).zip(self.files.iter())
    }

    /// Shows every letter.
    ///
    /// # Errors
    /// If a file cannot be read. One that does not exist any more has no letters.
    pub(crate) fn scan(&self, visit: &mut Visit<'_>) -> Result<(), String> {
        for (partition, file) in self.numbered() {
            let scanned = file.scan(0, &mut |offset, letter| visit(Place { partition, offset }, letter))?;
            if scanned.is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Shows the letters of one file, from a place on.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(crate) fn scan_from(&self, place: Place, visit: &mut Visit<'_>) -> Result<(), String> {
        let Place { partition, offset: from } = place;
        let Some((_, file)) = self.numbered().find(|(number, _)| *number == partition) else { return Ok(()) };
        file.scan(from, &mut |offset, letter| visit(Place { partition, offset }, letter)).map(drop)
    }

    /// What the files are called where positions are stored, and which are meant.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub(crate) fn identities(&self) -> Result<BTreeMap<String, i32>, String> {
        self.numbered().map(|(number, file)| Ok((file.identity()?, number))).collect()
    }

    /// A source of the lines of some of them: by the topic that their positions are stored by.
    pub(crate) fn source(&self, topics: &BTreeMap<Arc<str>, i32>) -> CompiledSource {
        let mut topics: Vec<_> = topics.iter().map(|(topic, number)| (*number, Arc::clone(topic))).collect();
        topics.sort();
        let file = |(number, topic)| Some((self.files.get(usize::try_from(number).ok()?)?.clone(), topic));
        let files: Vec<(LetterFile, Arc<str>)> = topics.into_iter().filter_map(file).collect();
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
                let origin = |topic: &Arc<str>| {
                    Arc::new(Partition { source: Arc::clone(&cx.component), topic: Arc::clone(topic), number: 0 })
                };
                let files = files.iter().map(|(file, topic)| (file.clone(), origin(topic))).collect();
                Ok(BuiltSource { source: Box::new(FileSource { files }), positions: None })
            }),
        }
    }
}

/// Reads the lines of files, each from where the last commit stands.
struct FileSource {
    files: Vec<(LetterFile, Arc<Partition>)>,
}

impl Source for FileSource {
    fn stream(&mut self, cx: SourceContext) -> BoxStream<'_, Result<Pulled, SourceError>> {
        Box::pin(try_stream! {
            for (file, origin) in &self.files {
                let cannot = |error: io::Error| SourceError::Retry(file.cannot(&error));
                let from = cx.resume_from(origin).map_or(0, |Position(line)| line);
                let opened = file.clone();
                let mut lines = cx.runtime.blocking(move || Lines::open(&opened)).await.map_err(cannot)?;
                while let Some(mut opened) = lines.take() {
                    let origin = Arc::clone(origin);
                    let (pulled, rest) = cx
                        .runtime
                        .blocking(move || {
                            let pulled = opened.batch(&origin, from);
                            (pulled, opened)
                        })
                        .await;
                    if let Some(pulled) = pulled.map_err(cannot)? {
                        lines = Some(rest);
                        yield pulled;
                    }
                }
            }
        })
    }
}
