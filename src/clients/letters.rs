//! Dead letters, read again: from the topic or the files that a pipeline's dead letter wrote, to be shown, or to be sent
//! back into the stages that refused them.

mod file;
pub(crate) mod files;
pub(crate) mod replay;

use std::ops::ControlFlow;
use std::sync::Arc;

use crate::clients::files::names::OPEN;
use crate::component::node::{Key, Kind, Node};
use crate::delivery::{Letter, NotALetter};

/// Where a letter stands: its offset in a partition of the topic; or the number of its line in the file, from 0. Of several
/// files, each that was found counts as a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Place {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
}

/// Sees letters in the order of their places, and says whether it wants more.
pub(crate) type Visit<'a> = dyn FnMut(Place, Result<Letter, NotALetter>) -> ControlFlow<()> + 'a;

/// What keeps the letters, by its name, and how places in it are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Keeper {
    /// A Kafka topic.
    Topic(String),
    /// A file, by its path.
    File(String),
    /// Files, in their order.
    Files {
        /// What all paths begin with, and a person need not write.
        folder: Arc<str>,
        /// The final path of each.
        paths: Arc<[Arc<str>]>,
    },
}

impl Keeper {
    /// A place as a person writes it: `0/17` in a topic, the number of the line in a file, from 1, and `2026-01-31.ndjson:17`
    /// in one of several.
    pub(crate) fn short(&self, Place { partition, offset }: Place) -> String {
        match self {
            Self::Topic(_) => format!("{partition}/{offset}"),
            Self::File(_) => line(offset),
            Self::Files { folder, .. } => {
                let path = self.path(partition);
                format!("{}:{}", path.strip_prefix(&**folder).unwrap_or(path), line(offset))
            }
        }
    }

    /// The path of one of several files.
    fn path(&self, number: i32) -> &str {
        let Self::Files { paths, .. } = self else { return "" };
        usize::try_from(number).ok().and_then(|number| paths.get(number)).map_or("", |path| path)
    }

    /// How long the longest place can be that is written short, but for the number of a line.
    pub(crate) fn width(&self) -> usize {
        let Self::Files { folder, paths } = self else { return 0 };
        paths.iter().map(|path| path.chars().count()).max().unwrap_or(0).saturating_sub(folder.chars().count())
    }

    /// What [`Self::place`] expects, for a person.
    pub(crate) fn expected(&self) -> String {
        match self {
            Self::Topic(_) => "PARTITION/OFFSET, such as `0/17`".to_owned(),
            Self::File(_) => "the number of a line, such as `17`".to_owned(),
            Self::Files { paths, .. } if paths.is_empty() => {
                "FILE:LINE, and there is no file of dead letters yet".to_owned()
            }
            Self::Files { .. } => format!(
                "FILE:LINE with one of the files that `weir dlq list` shows, such as `{}`",
                self.short(Place { partition: 0, offset: 16 })
            ),
        }
    }

    /// A place with the name of what keeps it.
    pub(crate) fn full(&self, place: Place) -> String {
        match self {
            Self::Topic(name) => format!("{name}/{}", self.short(place)),
            Self::File(path) => format!("{path}:{}", self.short(place)),
            Self::Files { .. } => format!("{}:{}", self.path(place.partition), line(place.offset)),
        }
    }

    /// Reads what [`Self::short`] writes.
    pub(crate) fn place(&self, text: &str) -> Option<Place> {
        let natural = |text: &str| text.parse::<i64>().ok().filter(|number| *number >= 0);
        match self {
            Self::Topic(_) => {
                let (partition, offset) = text.split_once('/')?;
                let partition = i32::try_from(natural(partition)?).ok()?;
                Some(Place { partition, offset: natural(offset)? })
            }
            Self::File(_) => {
                let line = natural(text).filter(|line| *line > 0)?;
                Some(Place { partition: 0, offset: line - 1 })
            }
            Self::Files { folder, paths } => {
                let (path, line) = text.rsplit_once(':')?;
                let line = natural(line).filter(|line| *line > 0)?;
                let path = path.strip_suffix(OPEN).unwrap_or(path);
                let is_meant = |known: &Arc<str>| **known == *path || known.strip_prefix(&**folder) == Some(path);
                let partition = i32::try_from(paths.iter().position(is_meant)?).ok()?;
                Some(Place { partition, offset: line - 1 })
            }
        }
    }
}

/// The number of a line as people count.
fn line(offset: i64) -> String {
    offset.saturating_add(1).to_string()
}

/// A map with some of the keys of another.
pub(crate) fn only(config: &Node, keys: &[&str]) -> Node {
    let entries = match &config.kind {
        Kind::Map(entries) => entries.iter().filter(|(key, _)| keys.contains(&key.name.as_str())).cloned().collect(),
        _ => Vec::<(Key, Node)>::new(),
    };
    Node { span: config.span, kind: Kind::Map(entries) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_as_they_are_written() {
        let topic = Keeper::Topic("dead".to_owned());
        let place = Place { partition: 2, offset: 17 };
        assert_eq!((topic.short(place).as_str(), topic.full(place).as_str()), ("2/17", "dead/2/17"));
        assert_eq!(topic.place("2/17"), Some(place));
        for wrong in ["", "2", "2/", "/2", "2/-1", "-2/1", "2/1/3", "9999999999/1", "x/y"] {
            assert_eq!(topic.place(wrong), None, "{wrong}");
        }
        let file = Keeper::File("dead.ndjson".to_owned());
        let place = Place { partition: 0, offset: 0 };
        assert_eq!((file.short(place).as_str(), file.full(place).as_str()), ("1", "dead.ndjson:1"));
        assert_eq!(file.place("1"), Some(place));
        assert_eq!((file.place("0"), file.place("1/1")), (None, None));
        let paths = ["d/2026/a-000001.x", "d/2026/a-000002.x"].map(Arc::from);
        let files = Keeper::Files { folder: "d/".into(), paths: paths.into() };
        let place = Place { partition: 1, offset: 6 };
        assert_eq!((&*files.short(place), &*files.full(place)), ("2026/a-000002.x:7", "d/2026/a-000002.x:7"));
        for text in ["2026/a-000002.x:7", "d/2026/a-000002.x:7", "2026/a-000002.x.open:7"] {
            assert_eq!(files.place(text), Some(place), "{text}");
        }
        for wrong in ["7", "a-000002.x:7", "2026/a-000003.x:7", "2026/a-000002.x:0", "2026/a-000002.x:", ""] {
            assert_eq!(files.place(wrong), None, "{wrong}");
        }
        assert!(files.expected().ends_with("such as `2026/a-000001.x:17`"));
    }
}
