//! The rules of the house that a compiler does not hold: layers, one row for each component, who may spawn, what every
//! file begins with. Each breach is told with its place and what to do.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// The layers, from left to right: a module uses its own layer and what stands to its right.
const LAYERS: &[&[&str]] = &[
    &["cli"],
    &["topology"],
    &["plan"],
    &["config"],
    &["sources", "transforms", "sinks"],
    &["component", "clients", "codecs", "expr"],
    &["delivery", "state", "observe"],
    &["record", "clock", "runtime"],
];

/// A module that drives all the others in tests. Nothing in the program uses it.
const TESTING: &str = "testing";

/// Modules whose neighbours in the layer are no business of theirs: a source knows no sink.
const STRANGERS: &[&str] = &["sources", "transforms", "sinks"];

/// Who may spawn tasks. Each waits for what it spawned.
const SPAWNS_TASKS: &[&str] = &["src/topology/", "src/cli/", "src/observe/admin.rs", "src/runtime.rs", "src/testing/"];

/// Where blocking C calls, fsyncs, standard input and output live: these may have named threads of their own.
const SPAWNS_THREADS: &[&str] = &["src/clients/kafka", "src/clients/stdio.rs", "src/state/"];

/// Lines of a file, without the tests that end it.
const LONGEST_FILE: usize = 600;

struct Text {
    /// From the root of the project, with `/`.
    path: String,
    text: String,
}

impl Text {
    /// The code: without the tests that end the file, and without comments.
    fn code(&self) -> String {
        let end = ["\n#[cfg(test)]\nmod ", "\n#[cfg(test)]\npub(crate) mod "]
            .iter()
            .filter_map(|tests| self.text.find(tests))
            .min()
            .unwrap_or(self.text.len());
        let mut code = String::new();
        for line in self.text[..end].lines() {
            let comment = line.trim_start().starts_with("//");
            code.push_str(if comment { "" } else { line });
            code.push('\n');
        }
        code
    }

    fn is_this_file(&self) -> bool {
        self.path == "tests/tidy.rs"
    }

    fn starts_with_any(&self, prefixes: &[&str]) -> bool {
        prefixes.iter().any(|prefix| self.path.starts_with(prefix))
    }

    /// The first module of its path within the crate; `None` for `lib.rs`, `main.rs` and files outside `src`.
    fn module(&self) -> Option<&str> {
        let path = self.path.strip_prefix("src/")?;
        let module = path.split('/').next()?.trim_end_matches(".rs");
        (!matches!(module, "lib" | "main")).then_some(module)
    }

    /// How many `super::` lead to the root of the crate.
    fn depth(&self) -> usize {
        self.path.split('/').skip(1).filter(|part| *part != "mod.rs").count()
    }
}

#[derive(Default)]
struct Breaches(String);

impl Breaches {
    fn add(&mut self, file: &Text, at: usize, what: &str) {
        let line = file.text[..at.min(file.text.len())].matches('\n').count() + 1;
        let _ = writeln!(self.0, "{}:{line}: {what}", file.path);
    }

    fn none(self) {
        assert!(self.0.is_empty(), "\n{}", self.0);
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All text files of the project with one of these names or endings.
fn files(endings: &[&str]) -> Vec<Text> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).expect("the project can be read") {
            let path = entry.expect("the project can be read").path();
            let name = path.file_name().expect("an entry has a name").to_string_lossy().into_owned();
            let kept_out = ["target", ".git", "weir-data", "__pycache__"].contains(&name.as_str());
            match path.is_dir() {
                true if !kept_out => walk(&path, found),
                true => {}
                false => found.push(path),
            }
        }
    }
    let mut found = Vec::new();
    walk(root(), &mut found);
    found.sort();
    found
        .into_iter()
        .filter(|path| endings.iter().any(|ending| path.to_string_lossy().ends_with(ending)))
        .map(|path| Text {
            path: path.strip_prefix(root()).expect("it was found there").to_string_lossy().replace('\\', "/"),
            text: fs::read_to_string(&path).unwrap_or_default(),
        })
        .collect()
}

fn sources() -> Vec<Text> {
    files(&[".rs"]).into_iter().filter(|file| file.path.starts_with("src/")).collect()
}

fn offsets(text: &str, pattern: &str) -> Vec<usize> {
    text.match_indices(pattern).map(|(at, _)| at).collect()
}

fn identifier(text: &str) -> &str {
    let end = text.find(|char: char| !char.is_alphanumeric() && char != '_').unwrap_or(text.len());
    &text[..end]
}

/// The modules of the crate that a piece of code names, by `crate::name` and by `crate::{name…, name…}`.
fn modules_named(code: &str) -> Vec<(usize, &str)> {
    let mut named = Vec::new();
    for at in offsets(code, "crate::") {
        if code[..at].ends_with(|char: char| char.is_alphanumeric() || char == '_' || char == '$') {
            continue;
        }
        let rest = &code[at + "crate::".len()..];
        let Some(group) = rest.strip_prefix('{') else {
            named.push((at, identifier(rest)));
            continue;
        };
        let mut depth = 0;
        let mut begins = true;
        for (offset, char) in group.char_indices() {
            match char {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => begins = true,
                char if char.is_whitespace() => {}
                _ if begins => {
                    named.push((at, identifier(&group[offset..])));
                    begins = false;
                }
                _ => {}
            }
        }
    }
    named
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

#[test]
fn each_layer_uses_only_what_stands_to_its_right() {
    let mut breaches = Breaches::default();
    for file in sources() {
        let code = file.code();
        for at in offsets(&code, &"super::".repeat(file.depth())) {
            breaches.add(&file, at, "write `crate::`: this `super` leads out of the module");
        }
        let Some(module) = file.module().filter(|module| *module != TESTING) else { continue };
        let Some(own) = layer(module) else {
            breaches.add(&file, 0, "the module stands in no layer of `tests/tidy.rs`");
            continue;
        };
        for (at, used) in modules_named(&code) {
            if used == TESTING {
                breaches.add(&file, at, "only tests use `testing`");
            }
            let Some(other) = layer(used) else { continue };
            if other < own {
                breaches.add(&file, at, &format!("`{module}` may not use `{used}`, which stands to its left"));
            } else if used != module && other == own && STRANGERS.contains(&module) {
                breaches.add(&file, at, &format!("`{module}` may not use `{used}`: put what both need into `clients`"));
            }
        }
    }
    breaches.none();
}

#[test]
fn the_modules_of_the_crate_are_in_layers() {
    let library = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let modules: BTreeSet<&str> =
        offsets(&library, "pub mod ").into_iter().map(|at| identifier(&library[at + "pub mod ".len()..])).collect();
    let layered: BTreeSet<&str> = LAYERS.iter().copied().flatten().copied().chain([TESTING]).collect();
    assert_eq!(modules, layered);
}

#[test]
fn every_component_is_a_row_of_its_table() {
    let mut breaches = Breaches::default();
    for (table, spec) in [("sources", "SourceSpec"), ("transforms", "TransformSpec"), ("sinks", "SinkSpec")] {
        let folder = root().join("src").join(table);
        let rows = fs::read_to_string(folder.join("mod.rs")).unwrap();
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            let for_tests = rows.contains(&format!("#[cfg(test)]\nmod {name};"));
            if name != "mod" && !for_tests && !rows.contains(&format!("{spec}::of::<{name}::")) {
                let file = Text { path: format!("src/{table}/mod.rs"), text: String::new() };
                breaches.add(&file, 0, &format!("`{name}` has no row: add `{spec}::of::<{name}::…>()`"));
            }
        }
    }
    breaches.none();
}

#[test]
fn only_who_waits_for_a_task_spawns_it() {
    let mut breaches = Breaches::default();
    for file in sources() {
        let code = file.code();
        for at in offsets(&code, ".spawn(") {
            let before = &code[at.saturating_sub(300)..at];
            let thread = before.contains("thread::Builder") && file.starts_with_any(SPAWNS_THREADS);
            if !thread && !file.starts_with_any(SPAWNS_TASKS) {
                breaches.add(&file, at, "only `topology`, `cli` and `observe::admin` spawn tasks");
            }
        }
        for at in offsets(&code, "thread::spawn(") {
            breaches.add(&file, at, "a thread has a name: use `std::thread::Builder`");
        }
    }
    breaches.none();
}

#[test]
fn every_select_says_which_branch_goes_first() {
    let mut breaches = Breaches::default();
    for file in files(&[".rs"]).into_iter().filter(|file| !file.is_this_file()) {
        for at in offsets(&file.text, "select! {") {
            if !file.text[at + "select! {".len()..].trim_start().starts_with("biased;") {
                breaches.add(&file, at, "begin with `biased;`: a random order cannot be replayed");
            }
        }
    }
    breaches.none();
}

#[test]
fn files_are_short_named_for_their_idea_and_begin_with_their_purpose() {
    let mut breaches = Breaches::default();
    for file in files(&[".rs"]) {
        if !file.text.starts_with("//!") {
            breaches.add(&file, 0, "begin the file with `//!` and its purpose");
        }
        let lines = file.code().trim_end().lines().count();
        if lines > LONGEST_FILE {
            breaches.add(&file, 0, &format!("{lines} lines: it holds more than one idea"));
        }
        for part in file.path.split('/') {
            if matches!(part.trim_end_matches(".rs"), "util" | "utils" | "common" | "helper" | "helpers" | "misc") {
                breaches.add(&file, 0, "name the file for its idea");
            }
        }
    }
    breaches.none();
}

#[test]
fn nothing_is_left_for_later() {
    let mut breaches = Breaches::default();
    for file in files(&[".rs"]).into_iter().filter(|file| !file.is_this_file()) {
        for unfinished in ["todo!(", "unimplemented!(", "dbg!(", "#[ignore", "TODO", "FIXME"] {
            for at in offsets(&file.text, unfinished) {
                breaches.add(&file, at, &format!("`{unfinished}`: finish it or remove it"));
            }
        }
    }
    breaches.none();
}

/// Paths that only this machine has: where the project lies, and where its user is at home.
fn paths_of_this_machine() -> Vec<String> {
    let home = std::env::home_dir();
    let places = [Some(root().to_owned()), home].into_iter().flatten();
    // A single folder below the root, such as one for sources, is on many machines.
    places.filter(|place| place.components().count() > 2).map(|place| place.display().to_string()).collect()
}

#[test]
fn no_file_names_the_machine_of_a_developer() {
    let mut breaches = Breaches::default();
    let mut forbidden = paths_of_this_machine();
    // Homes, wherever they are. In parts, for this file is looked at too.
    forbidden.extend(["home", "root", "Users"].map(|folder| format!("/{folder}/")));
    for file in files(&[".rs", ".md", ".toml", ".yaml", ".yml", ".py", ".snap", "Dockerfile", ".ci/run"]) {
        for path in &forbidden {
            for at in offsets(&file.text, path) {
                breaches.add(&file, at, &format!("`{path}` is a path of one machine"));
            }
        }
    }
    breaches.none();
}

/// The rules that keep the promises, by their numbers: those of epochs and memory, of Kafka, of records, and of files. What is
/// left out is of joins, times and windows.
const RULES: &[std::ops::RangeInclusive<u32>] = &[1..=6, 8..=18, 27..=32];

/// The rules that a test is named for: `rule_8_…`, or `rule_8_and_12_…` for two.
fn rules_of(test: &str) -> Vec<u32> {
    let mut words = test.strip_prefix("rule_").unwrap_or_default().split('_');
    let mut rules = Vec::new();
    while let Some(number) = words.next().and_then(|word| word.parse().ok()) {
        rules.push(number);
        if words.next() != Some("and") {
            break;
        }
    }
    rules
}

#[test]
fn every_rule_that_keeps_a_promise_has_a_test_that_is_named_for_it() {
    let mut tested = BTreeSet::new();
    for file in files(&[".rs"]) {
        let lines: Vec<&str> = file.text.lines().map(str::trim).collect();
        for (at, line) in lines.iter().enumerate() {
            let name = line.trim_start_matches("async ").strip_prefix("fn ").map(identifier).unwrap_or_default();
            // Its attributes stand right before it.
            let is_test =
                lines[..at].iter().rev().take_while(|line| line.starts_with("#[")).any(|line| line.contains("test"));
            if is_test {
                tested.extend(rules_of(name));
            }
        }
    }
    let missing: Vec<u32> = RULES.iter().cloned().flatten().filter(|rule| !tested.contains(rule)).collect();
    assert!(
        missing.is_empty(),
        "no test begins with `rule_N_` and shows what happens without it, for N of {missing:?}"
    );
}

#[test]
fn a_test_may_be_named_for_several_rules() {
    let names = ["rule_8_zombies", "rule_8_and_12_come_and_go", "rule_8_and_he_stays", "unruly_8", "rule_of_thumb"];
    assert_eq!(names.map(rules_of), [vec![8], vec![8, 12], vec![8], vec![], vec![]]);
}

#[test]
fn links_and_paths_in_documents_lead_somewhere() {
    let mut breaches = Breaches::default();
    for file in files(&[".md"]) {
        let folder = root().join(&file.path).parent().unwrap().to_owned();
        for at in offsets(&file.text, "](") {
            let target = file.text[at + 2..].split([')', ' ']).next().unwrap_or_default();
            let path = target.split('#').next().unwrap_or_default();
            let outside = target.contains("://") || target.starts_with("mailto:") || path.is_empty();
            if !outside && !folder.join(path).exists() {
                breaches.add(&file, at, &format!("the link to `{target}` leads nowhere"));
            }
        }
        // What stands in backticks and begins like a path of the project is one.
        for (at, _) in file.text.match_indices('`') {
            let quoted = file.text[at + 1..].split(['`', ' ', '\n']).next().unwrap_or_default();
            let is_path = ["src/", "tests/", "pipelines/", "deploy/", "docs/", "benches/", ".ci/"]
                .iter()
                .any(|folder| quoted.starts_with(folder));
            if is_path && !quoted.contains(['*', '{', '<']) && !root().join(quoted).exists() {
                breaches.add(&file, at, &format!("there is no `{quoted}`"));
            }
        }
    }
    breaches.none();
}

#[test]
fn what_is_banned_from_the_build_is_not_in_it() {
    let bans = fs::read_to_string(root().join("deny.toml")).unwrap();
    let bans: Vec<&str> = bans.split("{ crate = \"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    assert!(bans.contains(&"aws-lc-sys"));
    let lock = fs::read_to_string(root().join("Cargo.lock")).unwrap();
    for ban in bans {
        assert!(!lock.contains(&format!("name = \"{ban}\"\n")), "`{ban}` is banned in deny.toml, with its reason");
    }
}

#[test]
fn modules_are_found_in_every_form_of_a_path() {
    let code =
        "use crate::clock::Clock; use crate::{plan::{Plan, Port}, record::Batch,\n state}; $crate::no; my_crate::no";
    let names: Vec<&str> = modules_named(code).into_iter().map(|(_, name)| name).collect();
    assert_eq!(names, ["clock", "plan", "record", "state"]);
}
