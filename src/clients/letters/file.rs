//! A file of dead letters: one JSON object a line, compressed or not.
//!
//! A letter is known by the number of its line, and the file by its final path and the hash of its first line: if somebody
//! moves the file away and another one grows in its place, what was replayed of the old one says nothing of the new.

use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use crate::clients::files::entry::{self, Entry};
use crate::clients::files::names;
use crate::clients::packed::{Format, Unpacker, damage, is_damage};
use crate::component::Pulled;
use crate::delivery::{Letter, NotALetter};
use crate::record::{BatchBuilder, Draft, Partition, Position, fingerprint};

/// A batch has about this many bytes at most,
const BATCH_BYTES: usize = 1 << 20;
/// and this many letters.
const BATCH_LETTERS: usize = 1000;

/// A file of dead letters.
#[derive(Debug, Clone)]
pub(super) struct LetterFile {
    /// The name that it has, or will have when it is finished.
    pub(super) path: Arc<str>,
    /// It grows under another name.
    pub(super) rotated: bool,
    /// How much of it is committed, where the store knows that; else all of it counts.
    pub(super) entry: Option<Entry>,
}

impl LetterFile {
    /// Why it cannot be read, for a person.
    pub(super) fn cannot(&self, error: &io::Error) -> String {
        let path = &self.path;
        if error.kind() != ErrorKind::AlreadyExists && is_damage(error) {
            let what = damage(error);
            return format!(
                "the dead letters in `{path}` cannot be read: {what}; restore the file, or move it away to read the others"
            );
        }
        format!("the dead letters in `{path}` cannot be read: {error}")
    }

    /// Shows every letter from a line on, by the number of its line.
    ///
    /// # Errors
    /// If the file cannot be read. One that does not exist has no letters.
    pub(super) fn scan(
        &self,
        from: i64,
        visit: &mut dyn FnMut(i64, Result<Letter, NotALetter>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, String> {
        let cannot = |error| self.cannot(&error);
        let Some(mut lines) = Lines::open(self).map_err(cannot)? else { return Ok(ControlFlow::Continue(())) };
        let mut line = Vec::new();
        while let Some(at) = lines.next(&mut line).map_err(cannot)? {
            if at >= from && !line.is_empty() && visit(at, Letter::from_json(&line)).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// What the file is called where positions are stored.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub(super) fn identity(&self) -> Result<String, String> {
        let cannot = |error| self.cannot(&error);
        let Some(mut lines) = Lines::open(self).map_err(cannot)? else { return Ok(self.path.to_string()) };
        let mut first = Vec::new();
        lines.next(&mut first).map_err(cannot)?;
        Ok(format!("{}#{:016x}", self.path, fingerprint(&first)))
    }

    /// Opens it under the name that it has now. The answer tells whether it is finished; `None` if it is not there.
    fn open(&self) -> io::Result<Option<(File, bool)>> {
        let there = |path: &Path| match File::open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            opened => opened.map(Some),
        };
        let path = Path::new(&*self.path);
        if !self.rotated {
            return Ok(there(path)?.map(|file| (file, false)));
        }
        let open = names::open(&self.path);
        if let Some(growing) = there(&open)? {
            // It may have got its final name just now.
            if path.exists() && open.exists() {
                let words =
                    format!("there is `{}` beside it: one of them is not the pipeline's, move it away", open.display());
                return Err(io::Error::new(ErrorKind::AlreadyExists, words));
            }
            return Ok(Some((growing, false)));
        }
        Ok(there(path)?.map(|file| (file, true)))
    }
}

/// The whole lines of a file, as far as they count. What stands behind the last newline is no letter yet, or never was
/// acknowledged as one.
pub(super) struct Lines {
    reader: BufReader<Unpacker>,
    next: i64,
    /// The last frame may be there in part: it is being written, or was when the process died.
    may_be_torn: bool,
}

impl Lines {
    /// `None` if the file is not there.
    pub(super) fn open(file: &LetterFile) -> io::Result<Option<Self>> {
        let Some((opened, finished)) = file.open()? else { return Ok(None) };
        let opened = Arc::new(opened);
        let length = opened.metadata()?.len();
        // A file that was put in the place of another is none that the store knows.
        let is_known = |entry: &&Entry| {
            entry.length <= length && entry::tail(&opened, entry.length).is_ok_and(|tail| tail == entry.tail)
        };
        let committed = file.entry.as_ref().filter(is_known).map(|entry| entry.length);
        let end = committed.unwrap_or(length);
        // Of nothing, no format is whole.
        let format = Format::of(&opened)?.filter(|_| end > 0).unwrap_or(Format::Plain);
        let content = Unpacker::up_to(&opened, format, end)?;
        let reader = BufReader::with_capacity(1 << 16, content);
        Ok(Some(Self { reader, next: 0, may_be_torn: !finished && committed.is_none() }))
    }

    /// Reads the next line and tells its number.
    fn next(&mut self, line: &mut Vec<u8>) -> io::Result<Option<i64>> {
        line.clear();
        match self.reader.read_until(b'\n', line) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof && self.may_be_torn => line.clear(),
            read => drop(read?),
        }
        if line.pop() != Some(b'\n') {
            line.clear();
            return Ok(None);
        }
        self.next += 1;
        Ok(Some(self.next - 1))
    }

    /// Reads a batch; `None` at the end.
    pub(super) fn batch(&mut self, origin: &Arc<Partition>, from: i64) -> io::Result<Option<Pulled>> {
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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::clients::packed::testing::{gzip, zstandard};

    const LETTER: &str = r#"{"error":"e","stage":"s","source":"in","topic":"t","partition":0,"offset":0,"body":"x"}"#;

    fn file(bytes: impl AsRef<[u8]>) -> (tempfile::TempDir, LetterFile) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dead.ndjson");
        fs::write(&path, bytes).unwrap();
        (folder, LetterFile { path: path.to_string_lossy().into(), rotated: false, entry: None })
    }

    /// The lines that hold letters, and those that do not.
    fn seen(file: &LetterFile) -> Result<Vec<(i64, bool)>, String> {
        let mut seen = Vec::new();
        let scanned = file.scan(0, &mut |line, letter| {
            seen.push((line, letter.is_ok()));
            ControlFlow::Continue(())
        });
        scanned.map(|_| seen)
    }

    fn move_to(file: &LetterFile, name: &Path) {
        fs::rename(&*file.path, name).unwrap();
    }

    #[test]
    fn whole_lines_are_letters_or_say_why_not() {
        let text = format!("{LETTER}\nno letter\n\n{LETTER}\n{{\"torn");
        for bytes in [text.clone().into_bytes(), gzip(&text), zstandard(&text)] {
            let (_folder, file) = file(bytes);
            assert_eq!(seen(&file), Ok(vec![(0, true), (1, false), (3, true)]));
        }
    }

    #[test]
    fn what_is_not_committed_is_no_letter_yet() {
        let line = format!("{LETTER}\n");
        for frame in [line.clone().into_bytes(), gzip(&line), zstandard(&line)] {
            let (_folder, mut file) = file([&*frame, &*frame, &frame[..frame.len() / 2]].concat());
            let opened = File::open(&*file.path).unwrap();
            let entry =
                |length: u64| Some(Entry { length, tail: entry::tail(&opened, length).unwrap(), ..Entry::default() });
            file.entry = entry(frame.len() as u64);
            assert_eq!(seen(&file), Ok(vec![(0, true)]));
            file.entry = entry(0);
            assert_eq!(seen(&file), Ok(vec![]));
            // Nobody says how much is committed: the half of a frame is being written.
            file.entry = None;
            assert_eq!(seen(&file), Ok(vec![(0, true), (1, true)]));
            // The entry is that of another file.
            file.entry = Some(Entry { length: frame.len() as u64, tail: 7, ..Entry::default() });
            assert_eq!(seen(&file), Ok(vec![(0, true), (1, true)]));
        }
    }

    #[test]
    fn a_rotated_file_is_the_same_under_both_of_its_names() {
        let (folder, mut file) = file(gzip(&format!("{LETTER}\n")));
        file.rotated = true;
        let finished = file.identity().unwrap();
        let open = names::open(&file.path);
        move_to(&file, &open);
        assert_eq!((file.identity(), seen(&file)), (Ok(finished), Ok(vec![(0, true)])));
        fs::write(&*file.path, "").unwrap();
        let error = seen(&file).unwrap_err();
        assert!(error.contains("dead.ndjson.open` beside it: one of them is not the pipeline's"), "{error}");
        drop(folder);
    }

    #[test]
    fn a_finished_file_that_is_damaged_says_so_and_what_to_do() {
        let text = format!("{LETTER}\n").repeat(100);
        for packed in [gzip(&text), zstandard(&text)] {
            let (_folder, mut file) = file(&packed[..packed.len() - 3]);
            file.rotated = true;
            let error = seen(&file).unwrap_err();
            assert!(error.contains("is cut off") && error.contains("restore the file, or move it away"), "{error}");
        }
    }

    #[test]
    fn a_file_that_grows_stays_the_same_and_another_one_in_its_place_is_not() {
        let (_folder, file) = file(format!("{LETTER}\n"));
        let first = file.identity().unwrap();
        fs::write(&*file.path, format!("{LETTER}\n{LETTER}\n")).unwrap();
        assert_eq!(file.identity().unwrap(), first);
        fs::write(&*file.path, LETTER.replace("\"offset\":0", "\"offset\":1") + "\n").unwrap();
        assert_ne!(file.identity().unwrap(), first);
        fs::remove_file(&*file.path).unwrap();
        assert_eq!((file.identity(), seen(&file)), (Ok(file.path.to_string()), Ok(vec![])));
    }
}
