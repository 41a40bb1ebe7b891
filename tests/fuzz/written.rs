//! What the store knows of a file that a `file` sink writes: whatever stands there, no committed byte is cut off for it.

use std::fs;
use std::path::Path;

use weir::delivery::checkpoint;
use weir::testing::harness;

use super::lines::in_folder;

pub(crate) const TOKENS: &[&str] = &[
    "{\"length\":",
    ",\"tail\":",
    ",\"begun\":",
    ",\"finished\":",
    "true}",
    "false}",
    "null",
    "0",
    "6",
    "13",
    "19",
    "12179381361560176241",
    "8549801636037080649",
    "10519248498540176672",
];

/// What is in the file. The fingerprints of its first lines are among the tokens, so that some mutants find their place.
const CONTENT: &[u8] = b"first\nsecond\nthird\n";

/// The bytes are the entry of a file that grows, under its own name or towards its final one.
pub(crate) fn check_entry(input: &[u8]) {
    in_folder(async |folder| {
        check(folder, "plain", "", input).await;
        check(folder, "row", ", rotate: { size: 1MiB }", input).await;
    });
}

async fn check(folder: &Path, name: &str, more: &str, input: &[u8]) {
    let path = folder.join(format!("{name}.ndjson"));
    let (is_final, growing) = match more {
        "" => (path.clone(), path.clone()),
        _ => (folder.join(format!("{name}-000001.ndjson")), folder.join(format!("{name}-000001.ndjson.open"))),
    };
    fs::write(&growing, CONTENT).expect("the file can be written");
    let sink = harness::sink_named("out", &format!("file: {{ path: \"{}\"{more} }}", path.display()));
    let key = checkpoint::participant_key("out", &format!("file/{}", is_final.display()));
    let entries = vec![(key, input.to_vec())];
    let content = || fs::read(&growing).or_else(|_| fs::read(&is_final)).unwrap_or_default();
    let first = sink.participants().recover(&entries).await;
    let left = content();
    assert!(CONTENT.starts_with(&left), "what is left was there: {:?}", String::from_utf8_lossy(&left));
    if left.len() < CONTENT.len() {
        // An entry names each place that is cut back to, with what stands in front of it.
        let names = |number: u64| {
            let digits = number.to_string();
            input.windows(digits.len()).any(|window| window == digits.as_bytes())
        };
        assert!(
            first.is_ok() && names(left.len() as u64) && names(fingerprint(&left)),
            "{} bytes: {first:?}",
            left.len()
        );
    }
    let again = sink.participants().recover(&entries).await;
    assert_eq!((again.is_ok(), content()), (first.is_ok(), left), "{again:?}");
}

/// FNV-1a, as the sink computes it; of nothing it is 0.
fn fingerprint(bytes: &[u8]) -> u64 {
    let hash = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    if bytes.is_empty() { 0 } else { bytes.iter().fold(0xcbf2_9ce4_8422_2325, hash) }
}

#[test]
fn an_entry_that_is_right_cuts_back_to_its_place() {
    in_folder(async |folder| {
        let entry = r#"{"length":6,"tail":12179381361560176241,"begun":null,"finished":false}"#;
        check(folder, "plain", "", entry.as_bytes()).await;
        assert_eq!(fs::read(folder.join("plain.ndjson")).expect("it is there"), b"first\n");
        let finished = entry.replace("null", "5").replace("false", "true");
        check(folder, "row", ", rotate: { size: 1MiB }", finished.as_bytes()).await;
        assert_eq!(fs::read(folder.join("row-000001.ndjson")).expect("it has its final name"), b"first\n");
    });
}
