//! Files of lines: whatever they hold, plain or packed, and whatever the store says of them.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use weir::component::Pulled;
use weir::record::{BatchBuilder, Partition, Position};
use weir::testing::harness::{self, SourceRun, texts};

/// The lines of the file that positions are of.
const LINES: [&str; 4] = ["first", "second", "third", "fourth"];

fn run_of(path: &Path, more: &str) -> SourceRun {
    harness::source(&format!("file: {{ path: \"{}\", codec: raw{more} }}", path.display()))
}

/// All lines up to the end, and how many records are refused; `None` if the source gives up.
async fn all(run: &mut SourceRun) -> Option<(Vec<String>, usize)> {
    let (mut lines, mut refused) = (Vec::new(), 0);
    while let Some(pulled) = run.pull().await {
        let pulled = pulled.ok()?;
        lines.extend(texts(&pulled.batch));
        refused += pulled.refused.len();
        run.commit(&pulled);
    }
    Some((lines, refused))
}

pub(crate) fn in_folder(test: impl AsyncFnOnce(&Path)) {
    let folder = tempfile::tempdir().expect("a folder can be made");
    wait_for(test(folder.path()));
}

/// Runs a future to its end.
pub(crate) fn wait_for<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime can be made").block_on(future)
}

/// The bytes of a file. Plain ones are cut into lines as the reference cuts them; of packed ones, the same lines come
/// again after a restart as at once.
pub(crate) fn check_content(input: &[u8]) {
    in_folder(async |folder| {
        let path = folder.join("in");
        fs::write(&path, input).expect("the file can be written");
        let (lines, refused) = all(&mut run_of(&path, ", max_line_bytes: 1000")).await.expect("it can be read");
        let is_packed = input.starts_with(&[0x1f, 0x8b, 8]) || input.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]);
        if !is_packed {
            let all = input.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
            let all: Vec<_> = all.filter(|line| !line.is_empty()).collect();
            let short: Vec<_> = all.iter().filter(|line| line.len() <= 1000).collect();
            assert_eq!((lines.len(), refused), (short.len(), all.len() - short.len()));
            assert!(lines.iter().zip(short).all(|(line, other)| *line == String::from_utf8_lossy(other)));
            return;
        }
        let mut run = run_of(&path, ", max_line_bytes: 1000");
        let mut again = Vec::new();
        while let Some(Ok(pulled)) = run.pull().await {
            again.extend(texts(&pulled.batch));
            run.commit(&pulled);
            if pulled.batch.is_empty() {
                break;
            }
            run.restart().await;
        }
        assert_eq!(again[..], lines[..again.len()]);
    });
}

/// Each line is a position that the store may hold: `word number position`, where the word stands before the file's path.
/// Whatever they say, lines come whole, in order, and none that is not there; or the source says what is wrong.
pub(crate) fn check_positions(input: &[u8]) {
    let text = String::from_utf8_lossy(input).into_owned();
    in_folder(async |folder| {
        let path = folder.join("in");
        fs::write(&path, LINES.map(|line| format!("{line}\n")).concat()).expect("the file can be written");
        for follow in ["", ", follow: true"] {
            let mut run = run_of(&path, follow);
            for line in text.lines() {
                let mut parts = line.splitn(3, ' ');
                let (Some(word), Some(number), Some(position)) = (parts.next(), parts.next(), parts.next()) else {
                    continue;
                };
                let (Ok(number), Ok(position)) = (number.parse(), position.trim().parse()) else { continue };
                let topic = word.replace("FILE", path.to_str().expect("it is text"));
                let partition = Partition { source: "component".into(), topic: topic.into(), number };
                let nothing = BatchBuilder::new(Arc::new(partition), 0, 0).finish();
                run.commit(&Pulled::new(nothing, Position(position)));
            }
            run.restart().await;
            if follow.is_empty() {
                if let Some((lines, refused)) = all(&mut run).await {
                    assert_eq!(refused, 0);
                    // A position that stands within a line is one that nobody committed; what follows it is whole.
                    assert!(LINES.map(String::from).ends_with(&lines[lines.len().min(1)..]), "{lines:?}");
                }
            } else {
                // It never ends; that it takes up what it finds, without a panic, is what is asked.
                let _ = run.pull_within(std::time::Duration::from_millis(2)).await;
                run.rewind().await;
            }
        }
    });
}
