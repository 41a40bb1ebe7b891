//! How deep a program is nested, told from its text before anything works through it.
//!
//! VRL compiles and runs a program by recursion: a thousand terms in a row, which nobody writes by hand and a generator
//! does, would overflow the stack, and that ends the process.

/// The deepest program. Compiling one takes less than a quarter of the 2 MiB of stack that a worker has.
pub(super) const DEEPEST: usize = 200;

/// Where a program becomes deeper than [`DEEPEST`], if it does: brackets in brackets, and operators in a row.
pub(super) fn too_deep(program: &str) -> Option<usize> {
    let bytes = program.as_bytes();
    // For each open bracket, the operators so far in the expression that it holds.
    let mut open = vec![0_usize];
    let (mut at, mut was_operator) = (0, false);
    while let Some(&byte) = bytes.get(at) {
        let begun = at;
        at += 1;
        match byte {
            b'#' => at += line_end(&bytes[at..]),
            b'"' => at += quoted(&bytes[at..], b'"'),
            b'\'' if begun > 0 && matches!(bytes[begun - 1], b'r' | b's' | b't') => at += quoted(&bytes[at..], b'\''),
            b'(' | b'[' | b'{' => open.push(0),
            b')' | b']' | b'}' if open.len() > 1 => drop(open.pop()),
            b',' | b';' => *last(&mut open) = 0,
            // An expression goes on in the next line where one of the two lines shows it.
            b'\n' if !was_operator && !goes_on(&bytes[at..]) => *last(&mut open) = 0,
            b'|' | b'&' | b'?' | b'=' | b'!' | b'<' | b'>' | b'+' | b'-' | b'*' | b'/' | b'%' => {
                while bytes.get(at).is_some_and(|next| b"|&?=<>".contains(next)) {
                    at += 1;
                }
                *last(&mut open) += 1;
            }
            b'e' if bytes[begun..].starts_with(b"else") => *last(&mut open) += 1,
            _ => {}
        }
        was_operator = match byte {
            byte if byte.is_ascii_whitespace() => was_operator,
            byte => b"|&?=!<>+-*/%".contains(&byte),
        };
        if open.len() - 1 + open.iter().sum::<usize>() > DEEPEST {
            return Some(begun);
        }
    }
    None
}

fn last(open: &mut [usize]) -> &mut usize {
    open.last_mut().expect("the outermost is never closed")
}

fn line_end(rest: &[u8]) -> usize {
    rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len())
}

/// The length of what is left of a text in quotes.
fn quoted(rest: &[u8], quote: u8) -> usize {
    let mut at = 0;
    while let Some(&byte) = rest.get(at) {
        at += if byte == b'\\' { 2 } else { 1 };
        if byte == quote {
            break;
        }
    }
    at.min(rest.len())
}

/// Whether a line goes on with the expression of the one before it.
fn goes_on(rest: &[u8]) -> bool {
    let rest = rest.trim_ascii_start();
    rest.first().is_some_and(|byte| b"|&?=<>+-*/%".contains(byte)) || rest.starts_with(b"else")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brackets_in_brackets_and_operators_in_a_row_are_deep() {
        let terms = |count: usize, between: &str| vec![".a == \"b && c\""; count].join(between);
        for (program, is_deep) in [
            (format!("{}1{}", "(".repeat(150), ")".repeat(150)), false),
            (format!("{}1{}", "(".repeat(250), ")".repeat(250)), true),
            (terms(90, " || "), false),
            (terms(300, " || "), true),
            (terms(300, "\n|| "), true),
            (terms(300, " ||\n"), true),
            (vec!["1"; 300].join("+"), true),
            (vec!["if .a { 1 }"; 300].join(" else "), true),
            // Statements, elements and arguments stand beside each other.
            (terms(300, "\n"), false),
            (format!("includes([{}], .a)", vec!["-1"; 1000].join(", ")), false),
            (vec![".x = round(.a + .b, 2)"; 1000].join("\n"), false),
            (format!(".a = \"{}\" # {}", "((((\\\"".repeat(300), "+ ".repeat(300)), false),
            (format!(".a = s'{}'", "((((".repeat(300)), false),
        ] {
            assert_eq!(too_deep(&program).is_some(), is_deep, "{}", &program[..40]);
        }
        assert_eq!(too_deep(")]}\"'\\"), None);
    }
}
