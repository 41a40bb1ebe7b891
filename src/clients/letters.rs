//! Dead letters, read again: from the topic or the file that a pipeline's dead letter wrote, to be shown, or to be sent
//! back into the stages that refused them.

pub(crate) mod file;
pub(crate) mod replay;

use std::ops::ControlFlow;

use crate::component::node::{Key, Kind, Node};
use crate::delivery::{Letter, NotALetter};

/// Where a letter stands: its offset in a partition of the topic; or the number of its line in the file, from 0.
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
}

impl Keeper {
    /// A place as a person writes it: `0/17` in a topic, the number of the line in a file, from 1.
    pub(crate) fn short(&self, Place { partition, offset }: Place) -> String {
        match self {
            Self::Topic(_) => format!("{partition}/{offset}"),
            Self::File(_) => (offset.saturating_add(1)).to_string(),
        }
    }

    /// A place with the name of what keeps it.
    pub(crate) fn full(&self, place: Place) -> String {
        match self {
            Self::Topic(name) => format!("{name}/{}", self.short(place)),
            Self::File(path) => format!("{path}:{}", self.short(place)),
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
        }
    }
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
    }
}
