//! What users read: every diagnostic, as `weir check` prints it, and plans, as `weir explain` does.
//!
//! Each file of `tests/golden/diagnostics` holds one idea of a mistake, each of `tests/golden/plans` a pipeline. What is
//! said of it stands beside it. To accept a change, read it, and run with `INSTA_UPDATE=always`.

use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};

use weir::cli::load::check_files;
use weir::config::Environment;
use weir::plan::{CompileOptions, explain};

/// The variables of these tests.
struct Variables;

impl Environment for Variables {
    fn var(&self, name: &str) -> Option<String> {
        match name {
            "LOGS" => Some("logs".to_owned()),
            "SECRET" => Some("hunter2".to_owned()),
            _ => None,
        }
    }

    fn secret_file(&self, _: &Path) -> Result<String, String> {
        Err("no such file".to_owned())
    }
}

/// The files of a folder, by name.
fn files(folder: &str) -> Vec<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .expect("the folder is part of the project")
        .map(|entry| entry.expect("it can be read").path())
        .collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    files
}

/// Compares what is said of each file of a folder with what stands beside it. All files are compared before it fails.
fn compare(folder: &str, say: impl Fn(&PathBuf) -> String) {
    let mut changed = Vec::new();
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(Path::new("..").join(folder));
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    for path in files(folder) {
        let name = path.file_stem().expect("a file has a name").to_string_lossy().into_owned();
        let said = say(&path);
        let compared = std::panic::catch_unwind(AssertUnwindSafe(|| {
            settings.bind(|| insta::assert_snapshot!(name.clone(), said));
        }));
        if compared.is_err() {
            changed.push(name);
        }
    }
    assert!(changed.is_empty(), "other words than before: {changed:?}");
}

fn options() -> CompileOptions {
    CompileOptions::new(4)
}

#[test]
fn diagnostics() {
    let folder = "tests/golden/diagnostics";
    assert!(files(folder).len() >= 45);
    compare(folder, |path| {
        let checked = check_files(std::slice::from_ref(path), &Variables, &options());
        let said = checked.render();
        assert!(!said.is_empty(), "{} has no mistake", path.display());
        assert!(!said.contains("hunter2"), "{said}");
        let warns = path.file_stem().expect("a file has a name").to_string_lossy().starts_with("warning-");
        assert_eq!(checked.has_errors(), !warns, "{said}");
        said
    });
}

#[test]
fn every_problem_begins_with_its_place() {
    for path in files("tests/golden/diagnostics") {
        let checked = check_files(std::slice::from_ref(&path), &Variables, &options());
        let problems: usize = checked.files.iter().map(|report| report.problems.len()).sum();
        let place = format!("{}:", path.display());
        let said = checked.render();
        let begun = said.lines().filter(|line| {
            let rest = line.strip_prefix(&place).unwrap_or_default();
            let mut parts = rest.splitn(4, ':');
            let is_number = |part: Option<&str>| part.is_some_and(|part| part.parse::<usize>().is_ok_and(|at| at > 0));
            is_number(parts.next()) && is_number(parts.next()) && matches!(parts.next(), Some(" error" | " warning"))
        });
        assert_eq!(begun.count(), problems, "{said}");
    }
}

#[test]
fn plans() {
    compare("tests/golden/plans", |path| {
        let checked = check_files(std::slice::from_ref(path), &Variables, &options());
        assert!(!checked.has_errors(), "{}", checked.render());
        checked.plans.iter().map(explain).collect()
    });
}
