//! Where each part of a scalar stands in the file.
//!
//! The parser hands over a scalar's value: a block is re-indented and folded, a quoted text is
//! unescaped. Here the value is laid beside its source again, so that a mistake inside it (in a VRL
//! program, say) can be underlined where the user wrote it.

use std::ops::Range;

use granit_parser::ScalarStyle;

/// Pairs of (offset in the value, offset in the file), rising; see [`crate::component::Text`].
pub(super) fn offsets(source: &str, span: Range<usize>, style: ScalarStyle, value: &str) -> Vec<(usize, usize)> {
    let raw = source.get(span.clone()).unwrap_or_default();
    match style {
        ScalarStyle::SingleQuoted | ScalarStyle::DoubleQuoted => {
            let inside = raw.get(1..raw.len().saturating_sub(1)).unwrap_or_default();
            quoted(inside, span.start + 1, value, style == ScalarStyle::DoubleQuoted)
        }
        ScalarStyle::Plain | ScalarStyle::Literal | ScalarStyle::Folded => by_lines(raw, span.start, value),
    }
}

const BLANKS: [char; 4] = [' ', '\t', '\r', '\n'];

/// Lays the lines of an unescaped scalar beside its value: both hold the same words, and differ in the blanks between.
fn by_lines(raw: &str, start: usize, value: &str) -> Vec<(usize, usize)> {
    let mut pairs = Vec::new();
    let mut read = 0;
    let mut line_start = start;
    for line in raw.split_inclusive('\n') {
        let words = line.trim_matches(BLANKS);
        if !words.is_empty() {
            let rest = &value[read..];
            let found = read + (rest.len() - rest.trim_start_matches(BLANKS).len());
            if !value[found..].starts_with(words) {
                break;
            }
            let indent = line.len() - line.trim_start_matches(BLANKS).len();
            let before = value[read..found].bytes().rev().zip(line[..indent].bytes().rev());
            // The blanks that both have before the words belong to the line too.
            let kept = before.take_while(|(in_value, in_file)| in_value == in_file && *in_value != b'\n').count();
            pairs.push((found - kept, line_start + indent - kept));
            read = found + words.len();
        }
        line_start += line.len();
    }
    if pairs.is_empty() {
        pairs.push((0, start));
    }
    pairs
}

/// Lays a quoted scalar beside its value, escape by escape.
fn quoted(raw: &str, start: usize, value: &str, double: bool) -> Vec<(usize, usize)> {
    let mut pairs = Pairs(vec![(0, start)]);
    let (mut at, mut read) = (0, 0);
    while let Some(letter) = raw[at..].chars().next() {
        let (from_raw, to_value) = if BLANKS.contains(&letter) {
            blanks(&raw[at..])
        } else if double && letter == '\\' {
            pairs.push(read, start + at);
            escape(&raw[at..], value[read..].chars().next())
        } else if !double && raw[at..].starts_with("''") {
            (2, 1)
        } else {
            (letter.len_utf8(), letter.len_utf8())
        };
        at += from_raw;
        read += to_value;
        if !value.is_char_boundary(read) || !raw.is_char_boundary(at) {
            break;
        }
        pairs.push(read, start + at);
    }
    pairs.0
}

/// The length of a run of blanks in the source, and in the value: line ends are folded.
fn blanks(raw: &str) -> (usize, usize) {
    let run = raw.len() - raw.trim_start_matches(BLANKS).len();
    match raw[..run].matches('\n').count() {
        0 => (run, run),
        1 => (run, 1),
        lines => (run, lines - 1),
    }
}

/// The length of an escape in the source, and of the character that it became.
fn escape(raw: &str, became: Option<char>) -> (usize, usize) {
    let value = became.map_or(0, char::len_utf8);
    match raw[1..].chars().next() {
        Some('x') => (4, value),
        // Two escapes make a character beyond the basic plane.
        Some('u') if became.is_some_and(|letter| u32::from(letter) > 0xffff) => (12, value),
        Some('u') => (6, value),
        Some('U') => (10, value),
        // An escaped line end joins two lines without a blank.
        Some('\r' | '\n') => {
            let (run, _) = blanks(&raw[1..]);
            (1 + run, raw[1..=run].matches('\n').count().saturating_sub(1))
        }
        Some(letter) => (1 + letter.len_utf8(), value),
        None => (1, 0),
    }
}

/// Pairs, without those that follow from the one before.
struct Pairs(Vec<(usize, usize)>);

impl Pairs {
    fn push(&mut self, in_value: usize, in_file: usize) {
        match self.0.last_mut() {
            Some(last) if last.0 == in_value => last.1 = in_file,
            Some(last) if in_value - last.0 == in_file - last.1 => {}
            _ => self.0.push((in_value, in_file)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use crate::component::Text;
    use crate::component::node::read;
    use crate::config::interpolate::tests::Variables;
    use crate::config::{SourceFile, load};

    fn text(file: &str) -> Text {
        let source = Arc::new(SourceFile { path: "a.yaml".into(), text: file.to_owned() });
        let (documents, problems) = load(source, &Variables::default());
        assert_eq!(problems, [], "{file}");
        read(documents[0].root.get("k").unwrap()).unwrap()
    }

    /// Each word of the value is found in the file at the place that it is said to have.
    fn every_word_is_placed(file: &str) {
        let text = text(file);
        for (at, _) in text.value.match_indices(|letter: char| letter.is_alphanumeric()) {
            let letter = text.value[at..].chars().next().unwrap();
            let place = text.place(at);
            assert!(
                file[place..].starts_with([letter, '\\']),
                "`{letter}` at {at} of {:?} is not at {place}",
                text.value
            );
        }
    }

    #[test]
    fn every_style_is_placed() {
        for file in [
            "k: one two # c\n",
            "k: one\n  two\n\n  three\n",
            "k: |\n  one\n    two\n\n  three\n",
            "k: |\n\n\n  one\n\n  two\n",
            "k: |2\n    one\n  two\n",
            "k: |+\r\n  one\r\n  two\r\n\r\n",
            "k: >-\n  one\n  two\n\n  three\n    four\n  five\n",
            "k: 'it''s one\n\n  two'\n",
            "k: \"a\\tb \\x41c\\u00e9d \\ud83d\\ude00e  \n   f \\\n   g\\\n\n  h\"\n",
        ] {
            every_word_is_placed(file);
        }
    }

    #[test]
    fn a_line_of_a_program_is_underlined_alone() {
        let file = "a: 1\nk: |\n  .a = 1\n  .b = foo(1)\n";
        let text = text(file);
        let start = text.value.find("foo").unwrap();
        assert_eq!(&file[text.span_of(start, start + 6).range()], "foo(1)");
    }

    proptest! {
        #[test]
        fn blocks_of_any_shape_are_placed(lines in proptest::collection::vec(" {0,3}[a-z]{0,5}( [a-z]{1,3})?", 1..8)) {
            let mut file = String::from("k: |1\n");
            for line in &lines {
                file.push(' ');
                file.push_str(line);
                file.push('\n');
            }
            prop_assume!(lines.iter().any(|line| !line.trim().is_empty()));
            every_word_is_placed(&file);
        }

        #[test]
        fn quoted_texts_of_any_shape_are_placed(inside in "([a-z]|\\\\t|\\\\n|\\\\x41|\\\\u00e9| |é){0,20}") {
            let file = format!("k: \"q{inside}q\"\n");
            let text = text(&file);
            for letter in ['é', 'q'] {
                for (at, _) in text.value.match_indices(letter) {
                    let place = &file[text.place(at)..];
                    prop_assert!(place.starts_with(letter) || place.starts_with("\\u00e9"));
                }
            }
        }
    }
}
