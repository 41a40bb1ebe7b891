//! Bytes of records on a person's terminal: as text where they are text, and never as commands to the terminal.

use std::fmt::Write as _;

/// A text on one line, with what is not printable escaped, and cut where it becomes long.
pub(super) fn one_line(text: &str, longest: usize) -> String {
    let mut line = String::new();
    for (at, char) in text.chars().enumerate() {
        if at == longest {
            line.push('…');
            break;
        }
        if char.is_control() { line.extend(char.escape_default()) } else { line.push(char) }
    }
    line
}

/// A body as a person reads it: JSON with one field on each line, any other text as it stands, other bytes as numbers.
pub(super) fn body(bytes: &[u8], is_json: bool) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if is_json => pretty(text),
        Ok(text) => lines(text),
        Err(_) => hex(bytes),
    }
}

/// Bytes on one line: as text if they are text.
pub(super) fn bytes(bytes: &[u8]) -> String {
    std::str::from_utf8(bytes).map_or_else(
        |_| {
            bytes.iter().fold("0x".to_owned(), |mut hex, byte| {
                let _ = write!(hex, "{byte:02x}");
                hex
            })
        },
        |text| one_line(text, usize::MAX),
    )
}

fn lines(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for char in text.chars() {
        let plain = !char.is_control() || matches!(char, '\n' | '\t');
        if plain { shown.push(char) } else { shown.extend(char.escape_default()) }
    }
    shown
}

/// Valid JSON with each field and each item on its own line. Numbers and strings stand as they were written.
fn pretty(json: &str) -> String {
    const INDENT: usize = 2;
    let mut shown = String::with_capacity(json.len() * 2);
    let mut depth = 0;
    let new_line = |shown: &mut String, depth: usize| {
        shown.push('\n');
        shown.extend(std::iter::repeat_n(' ', depth * INDENT));
    };
    let mut in_string = false;
    let mut escaped = false;
    let mut chars = json.chars().filter(|char| !char.is_control() || char.is_whitespace()).peekable();
    while let Some(char) = chars.next() {
        if in_string {
            in_string = escaped || char != '"';
            escaped = char == '\\' && !escaped;
            shown.push(char);
            continue;
        }
        match char {
            '"' => {
                in_string = true;
                shown.push(char);
            }
            '{' | '[' => {
                shown.push(char);
                while chars.next_if(|next| next.is_whitespace()).is_some() {}
                if let Some(end) = chars.next_if(|next| matches!(next, '}' | ']')) {
                    shown.push(end);
                } else {
                    depth += 1;
                    new_line(&mut shown, depth);
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                new_line(&mut shown, depth);
                shown.push(char);
            }
            ',' => {
                shown.push(char);
                new_line(&mut shown, depth);
            }
            ':' => shown.push_str(": "),
            char if char.is_whitespace() => {}
            char => shown.push(char),
        }
    }
    shown
}

fn hex(bytes: &[u8]) -> String {
    const WIDTH: usize = 16;
    let mut shown = String::new();
    for (row, chunk) in bytes.chunks(WIDTH).enumerate() {
        let _ = write!(shown, "{:08x} ", row * WIDTH);
        for at in 0..WIDTH {
            let _ = match chunk.get(at) {
                Some(byte) => write!(shown, " {byte:02x}"),
                None => write!(shown, "   "),
            };
        }
        let text: String =
            chunk.iter().map(|byte| if (b' '..=b'~').contains(byte) { char::from(*byte) } else { '.' }).collect();
        let _ = writeln!(shown, "  {text}");
    }
    shown.truncate(shown.trim_end_matches('\n').len());
    shown
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn no_byte_of_a_record_commands_the_terminal() {
        assert_eq!(one_line("a\x1b[2Jb\nc\u{9b}", 100), "a\\u{1b}[2Jb\\nc\\u{9b}");
        assert_eq!(one_line("abcdef", 3), "abc…");
        assert_eq!(body(b"a\x1b[2J\nb\t\x07", false), "a\\u{1b}[2J\nb\t\\u{7}");
        assert_eq!(bytes(b"\xff\x00"), "0xff00");
    }

    #[test]
    fn json_is_laid_out_and_numbers_stay_as_they_were_written() {
        let json = r#"{"a":18446744073709551616,"b":[1.50, {}],"c":"x\",{","d":[ ]}"#;
        assert_eq!(
            body(json.as_bytes(), true),
            "{\n  \"a\": 18446744073709551616,\n  \"b\": [\n    1.50,\n    {}\n  ],\n  \"c\": \"x\\\",{\",\n  \"d\": []\n}"
        );
    }

    #[test]
    fn other_bytes_are_shown_as_numbers() {
        assert_eq!(body(b"\xffAB", false), format!("00000000  ff 41 42{}  .AB", "   ".repeat(13)));
    }

    proptest! {
        #[test]
        fn laid_out_json_is_the_same_value(value in any::<Vec<(String, Option<i32>)>>()) {
            let json = serde_json::to_string(&value).unwrap();
            let again: Vec<(String, Option<i32>)> = serde_json::from_str(&pretty(&json)).unwrap();
            // Control characters that JSON lets stand are left out.
            let plain = |text: &str| text.chars().filter(|char| !char.is_control()).collect::<String>();
            for (one, other) in value.iter().zip(&again) {
                prop_assert_eq!((plain(&one.0), one.1), (plain(&other.0), other.1));
            }
        }
    }
}
