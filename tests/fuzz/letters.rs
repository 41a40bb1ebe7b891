//! Dead letters, which anybody may have written to the topic or the file.

use weir::delivery::Letter;
use weir::record::{Draft, Headers, HeadersBuilder, Timestamp};

pub(crate) const TOKENS: &[&str] = &[
    "weir-error",
    "weir-stage",
    "weir-cut-from-bytes",
    "\"error\":",
    "\"stage\":",
    "\"body\":",
    "\"body_bytes\":[1,256,-1]",
    "\"key_bytes\":[]",
    "\"headers\":[{\"name\":\"x\"}]",
    "\"format\":",
    "\"attempt\":",
    "\"offset\":",
    "\"partition\":",
    "null",
    "[]",
    "{}",
    "\n",
    "=",
];

pub(crate) fn check_json(input: &[u8]) {
    if let Ok(letter) = Letter::from_json(input) {
        check(&letter);
        assert!(serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(input).is_ok());
    }
}

/// Each line is a header, `name=value`, or one without a value; the last line is the body.
pub(crate) fn check_headers(input: &[u8]) {
    let mut lines: Vec<&[u8]> = input.split(|byte| *byte == b'\n').collect();
    let body = lines.pop();
    let mut headers = HeadersBuilder::default();
    for line in lines {
        match line.iter().position(|byte| *byte == b'=') {
            Some(at) => headers.push(&line[..at], Some(&line[at + 1..])),
            None => headers.push(line, None),
        }
    }
    let headers = Headers::decode(headers.encoded());
    if let Ok(letter) = Letter::from_headers(body, Some(b"key"), headers, Timestamp(5)) {
        assert_eq!(letter.key.as_deref(), Some(&b"key"[..]));
        check(&letter);
    }
    // As bytes that are no headers at all.
    let _ = Letter::from_headers(None, None, Headers::decode(input), Timestamp(i64::MIN));
}

/// What is replayed is what the letter says.
fn check(letter: &Letter) {
    let Draft { body, key, headers, .. } = letter.record();
    assert_eq!((body, key), (&*letter.body, letter.key.as_deref()));
    let own = Headers::decode(headers).count();
    let replayed = letter.headers_of_replay("0/1");
    assert!(Headers::decode(&replayed).count() > own, "a replayed letter is marked");
}
