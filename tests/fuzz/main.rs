//! Everything that takes bytes from outside, fed with bytes that nobody meant: nothing may panic, and where there is a
//! reference, the answer must be the same.
//!
//! `cargo test --test fuzz` replays the corpus of each target, `tests/data/fuzz/TARGET/*`, and tries mutants of it: the same
//! ones each time, and a few fresh ones, whose seed it prints. The long run is
//!
//! ```sh
//! FUZZ_SECONDS=600 cargo test --release --test fuzz -- --nocapture
//! ```
//!
//! An input that fails is made smaller and written to `tests/data/fuzz-failures/TARGET`, with the command that replays it.
//! Once its cause is mended, it goes into the corpus. A target is a function and a row of [`TARGETS`].

mod buffers;
mod json;
mod letters;
mod lines;
mod mutator;
mod stored;
mod written;
mod yaml;

use std::any::Any;
use std::cell::Cell;
use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::Duration;

use mutator::Mutator;
use weir::clock::Clock;

/// Something that takes bytes from outside.
struct Target {
    /// Of its corpus, and of its test.
    name: &'static str,
    /// Panics if the bytes are handled wrongly.
    check: fn(&[u8]),
    /// What its inputs are made of.
    tokens: &'static [&'static str],
    /// Folders of the project whose files are inputs too.
    also: &'static [&'static str],
    /// How many mutants a normal run tries: as many as take about two seconds.
    mutants: u32,
}

const TARGETS: &[Target] = &[
    Target { name: "json", check: json::check, tokens: json::TOKENS, also: &[], mutants: 6000 },
    Target { name: "yaml", check: yaml::check, tokens: yaml::TOKENS, also: YAML_FILES, mutants: 1000 },
    Target { name: "letter-json", check: letters::check_json, tokens: letters::TOKENS, also: &[], mutants: 20_000 },
    Target {
        name: "letter-headers",
        check: letters::check_headers,
        tokens: letters::TOKENS,
        also: &[],
        mutants: 20_000,
    },
    Target { name: "checkpoint", check: stored::check_entries, tokens: stored::TOKENS, also: &[], mutants: 20_000 },
    Target { name: "prepared", check: stored::check_prepared, tokens: stored::TOKENS, also: &[], mutants: 10_000 },
    Target { name: "file-positions", check: lines::check_positions, tokens: stored::TOKENS, also: &[], mutants: 500 },
    Target { name: "file-content", check: lines::check_content, tokens: json::TOKENS, also: &[], mutants: 1000 },
    Target { name: "file-entry", check: written::check_entry, tokens: written::TOKENS, also: &[], mutants: 1500 },
    Target { name: "buffer-frame", check: buffers::check_frame, tokens: buffers::TOKENS, also: &[], mutants: 400 },
    Target { name: "buffer-segment", check: buffers::check_segment, tokens: buffers::TOKENS, also: &[], mutants: 200 },
];

const YAML_FILES: &[&str] = &["pipelines", "tests/golden/diagnostics", "tests/golden/plans"];

/// The seeds of the mutants that each run tries.
const FIXED_SEEDS: std::ops::Range<u64> = 0..4;

#[test]
fn json() {
    fuzz("json");
}

#[test]
fn yaml() {
    fuzz("yaml");
}

#[test]
fn letter_json() {
    fuzz("letter-json");
}

#[test]
fn letter_headers() {
    fuzz("letter-headers");
}

#[test]
fn checkpoint() {
    fuzz("checkpoint");
}

#[test]
fn prepared() {
    fuzz("prepared");
}

#[test]
fn file_positions() {
    fuzz("file-positions");
}

#[test]
fn file_entry() {
    fuzz("file-entry");
}

#[test]
fn buffer_frame() {
    fuzz("buffer-frame");
}

#[test]
fn buffer_segment() {
    fuzz("buffer-segment");
}

#[test]
fn file_content() {
    fuzz("file-content");
}

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data")
}

/// The corpus of a target, by name.
fn corpus(target: &Target) -> Vec<(String, Vec<u8>)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let own = files(&data().join("fuzz").join(target.name));
    assert!(!own.is_empty(), "{} has no corpus", target.name);
    let also = target.also.iter().flat_map(|folder| files(&root.join(folder)));
    let also = also.filter(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    let read = |path: PathBuf| {
        let input = fs::read(&path).expect("the corpus can be read");
        (path.display().to_string(), input)
    };
    own.into_iter().chain(also).map(read).collect()
}

/// The files of a folder, by name.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<_> = entries.map(|entry| entry.expect("the corpus can be read").path()).collect();
    files.retain(|path| path.is_file());
    files.sort();
    files
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

fn fuzz(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("each test has a row");
    if let Ok(path) = std::env::var("FUZZ_INPUT") {
        (target.check)(&fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}")));
        return;
    }
    let corpus = corpus(target);
    for (name, input) in &corpus {
        assert_holds(target, input, &format!("the corpus, `{name}`"));
    }
    let inputs: Vec<Vec<u8>> = corpus.into_iter().map(|(_, input)| input).collect();
    let fresh = number("FUZZ_SEED").unwrap_or_else(|| fastrand::u64(..1 << 32));
    let Some(seconds) = number("FUZZ_SECONDS") else {
        let each = target.mutants / 5;
        let tried: u32 = FIXED_SEEDS.chain([fresh]).map(|seed| try_mutants(target, &inputs, seed, each)).sum();
        println!("{name}: {tried} mutants, of the seeds {FIXED_SEEDS:?} and {fresh}");
        return;
    };
    let clock = Clock::system();
    let end = clock.now() + Duration::from_secs(seconds);
    let (mut seed, mut tried) = (fresh, 0_u64);
    while clock.now() < end {
        tried += u64::from(try_mutants(target, &inputs, seed, 1000));
        seed += 1;
    }
    println!("{name}: {tried} mutants, of the seeds {fresh} to {}", seed - 1);
}

/// Tries mutants of a seed, and says how many.
fn try_mutants(target: &Target, corpus: &[Vec<u8>], seed: u64, count: u32) -> u32 {
    let mut mutator = Mutator::new(seed, corpus, target.tokens);
    for _ in 0..count {
        let input = mutator.mutant();
        assert_holds(target, &input, &format!("FUZZ_SEED={seed}"));
    }
    count
}

thread_local! {
    /// Whether a panic is one that is looked for.
    static TRYING: Cell<bool> = const { Cell::new(false) };
}

/// What goes wrong with an input, if anything does. The panic is told by who asks.
fn failure(target: &Target, input: &[u8]) -> Option<String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let tell = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !TRYING.get() {
                tell(info);
            }
        }));
    });
    TRYING.set(true);
    let caught = panic::catch_unwind(AssertUnwindSafe(|| (target.check)(input)));
    TRYING.set(false);
    caught.err().map(|caught| words(&*caught))
}

fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_else(|| "a panic".to_owned())
}

/// Fails with the smallest input that was found to fail, and how to replay it.
fn assert_holds(target: &Target, input: &[u8], from: &str) {
    let Some(first) = failure(target, input) else { return };
    let input = smaller(target, input.to_vec());
    let folder = data().join("fuzz-failures").join(target.name);
    fs::create_dir_all(&folder).expect("the folder can be made");
    let path = folder.join(format!("{:016x}", mutator::hash(&input)));
    fs::write(&path, &input).expect("the input can be written");
    panic!(
        "{} fails, from {from}: {first}\n{} bytes: {:?}\nreplay: FUZZ_INPUT={} cargo test --test fuzz {}",
        target.name,
        input.len(),
        String::from_utf8_lossy(&input[..input.len().min(500)]),
        path.display(),
        target.name.replace('-', "_"),
    );
}

/// Leaves out what the failure does not need.
fn smaller(target: &Target, mut input: Vec<u8>) -> Vec<u8> {
    let mut tries = 2000;
    let mut size = input.len().div_ceil(2);
    while size > 0 && tries > 0 {
        let mut at = 0;
        while at < input.len() && tries > 0 {
            tries -= 1;
            let mut less = input.clone();
            less.drain(at..(at + size).min(input.len()));
            if failure(target, &less).is_some() {
                input = less;
            } else {
                at += size;
            }
        }
        size /= 2;
    }
    input
}

#[test]
fn every_target_has_a_test_and_every_corpus_a_target() {
    let text = include_str!("main.rs");
    for target in TARGETS {
        assert!(text.contains(&format!("    fuzz(\"{}\");", target.name)), "{} has no test", target.name);
    }
    for entry in fs::read_dir(data().join("fuzz")).expect("the corpus can be read") {
        let name = entry.expect("the corpus can be read").file_name();
        assert!(TARGETS.iter().any(|target| *target.name == *name), "{} has no target", name.display());
    }
}

#[test]
fn a_seed_gives_the_same_mutants_and_most_are_new() {
    let corpus = [b"{\"a\":[1,2]}".to_vec(), b"[]".to_vec()];
    let mutants = |seed| {
        let mut mutator = Mutator::new(seed, &corpus, &["null"]);
        (0..200).map(|_| mutator.mutant()).collect::<Vec<_>>()
    };
    assert_eq!(mutants(7), mutants(7));
    assert_ne!(mutants(7), mutants(8));
    let new = mutants(7).iter().filter(|mutant| !corpus.contains(mutant)).count();
    assert!(new > 150, "{new}");
}
