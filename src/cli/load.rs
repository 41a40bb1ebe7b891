//! Pipeline files from disk: read, checked and compiled together.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::component::{Problem, Severity, Span};
use crate::config::{Document, Environment, ProcessEnvironment, SourceFile, diagnostic, load};
use crate::plan::{CompileOptions, Plan, compile, declared_name};

/// A pipeline file is written by people; a larger one was named by mistake.
const LARGEST_FILE: u64 = 4 << 20;

/// Nobody reads more of them at once.
const MOST_PROBLEMS: usize = 100;

/// What was found in some files.
#[derive(Debug)]
pub struct Checked {
    /// The pipelines that are right.
    pub plans: Vec<Plan>,
    /// All problems, file by file, each file's by their place.
    pub files: Vec<FileReport>,
}

/// What was found in one file.
#[derive(Debug)]
pub struct FileReport {
    /// The file; its text is empty if it could not be read.
    pub file: Arc<SourceFile>,
    /// Errors and warnings.
    pub problems: Vec<Problem>,
}

impl Checked {
    /// Whether any file has an error.
    #[must_use]
    pub fn has_errors(&self) -> bool {
        let mut problems = self.files.iter().flat_map(|report| &report.problems);
        problems.any(|problem| problem.severity == Severity::Error)
    }

    /// All problems of a severity as text.
    #[must_use]
    pub fn render(&self) -> String {
        let mut out = String::new();
        for report in &self.files {
            for problem in &report.problems {
                let _ = writeln!(out, "{}", diagnostic::render(&report.file, problem));
            }
        }
        out
    }
}

/// Checks files, and the YAML files of folders.
#[must_use]
pub fn check_files(paths: &[PathBuf], environment: &dyn Environment, options: &CompileOptions) -> Checked {
    let mut checked = Checked { plans: Vec::new(), files: Vec::new() };
    let mut names = Names::default();
    for path in paths {
        match pipeline_files(path) {
            Ok(files) => {
                for file in files {
                    checked.add(&file, environment, options, &mut names);
                }
            }
            Err(words) => checked.files.push(unreadable(path, words)),
        }
    }
    checked
}

/// The plans of all pipelines of files and folders, for a machine of this many processors.
///
/// # Errors
/// What is wrong with them, as text for the terminal. Warnings are logged.
pub fn load_plans(paths: &[PathBuf]) -> Result<Vec<Plan>, String> {
    let checked = check_files(paths, &ProcessEnvironment, &CompileOptions::new(cores()));
    if checked.has_errors() {
        return Err(checked.render());
    }
    for report in &checked.files {
        for problem in &report.problems {
            let (start, _) = diagnostic::places(&report.file, problem.span);
            let place = format!("{}:{}:{}", report.file.path.display(), start.line, start.column);
            tracing::warn!(%place, "{}", problem.message);
        }
    }
    Ok(checked.plans)
}

/// The processors of this machine.
#[must_use]
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Names of pipelines, and where each was first given.
#[derive(Default)]
struct Names(HashMap<Arc<str>, String>);

impl Checked {
    fn add(&mut self, path: &Path, environment: &dyn Environment, options: &CompileOptions, names: &mut Names) {
        let file = match read_file(path) {
            Ok(text) => Arc::new(SourceFile { path: path.to_owned(), text }),
            Err(report) => return self.files.push(*report),
        };
        let (documents, mut problems) = load(Arc::clone(&file), environment);
        for document in &documents {
            let (plan, found) = compile(document, options);
            problems.extend(found);
            match names.claim(document) {
                Ok(()) => self.plans.extend(plan),
                Err(problem) => problems.push(problem),
            }
        }
        diagnostic::arrange(&mut problems);
        if problems.len() > MOST_PROBLEMS {
            let more = problems.split_off(MOST_PROBLEMS);
            let severity = more.iter().map(|problem| problem.severity).min().unwrap_or(Severity::Warning);
            let words = format!("there are {} more problems in this file", more.len());
            problems.push(Problem { severity, ..Problem::error(more[0].span, words) });
        }
        self.files.push(FileReport { file, problems });
    }
}

impl Names {
    /// Gives a name to the first pipeline that has it.
    fn claim(&mut self, document: &Document) -> Result<(), Problem> {
        let Some((name, span)) = declared_name(document) else { return Ok(()) };
        // That it has no name of its own was reported, and the file's name is not the mistake.
        if document.count > 1 && document.root.get("name").is_none() {
            return Ok(());
        }
        let (start, _) = diagnostic::places(&document.file, span);
        let place = format!("{}:{}", document.file.path.display(), start.line);
        if let Some(first) = self.0.get(&name) {
            return Err(Problem::error(span, format!("another pipeline is named `{name}`"))
                .help(format!("it is at {first}; a name identifies the pipeline's positions and metrics")));
        }
        self.0.insert(name, place);
        Ok(())
    }
}

/// A file, or the YAML files of a folder in the order of their names.
fn pipeline_files(path: &Path) -> Result<Vec<PathBuf>, String> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = std::fs::read_dir(path).map_err(|error| format!("the folder cannot be read: {error}"))?;
    let mut files = Vec::new();
    for entry in entries {
        let file = entry.map_err(|error| format!("the folder cannot be read: {error}"))?.path();
        let is_yaml = file.extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
        // Kubernetes mounts a ConfigMap as links into hidden folders.
        let is_hidden = file.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if is_yaml && !is_hidden && file.is_file() {
            files.push(file);
        }
    }
    files.sort();
    if files.is_empty() {
        return Err("the folder holds no `.yaml` file".to_owned());
    }
    Ok(files)
}

fn read_file(path: &Path) -> Result<String, Box<FileReport>> {
    let cannot = |words: String| Box::new(unreadable(path, words));
    let size = std::fs::metadata(path).map_err(|error| cannot(format!("the file cannot be read: {error}")))?.len();
    if size > LARGEST_FILE {
        return Err(cannot(format!("the file holds {size} bytes; a pipeline file has at most {LARGEST_FILE}")));
    }
    let mut bytes = Vec::new();
    // Not all of what is too large is read: it may be a log, or a device.
    std::fs::File::open(path)
        .and_then(|file| file.take(LARGEST_FILE + 1).read_to_end(&mut bytes))
        .map_err(|error| cannot(format!("the file cannot be read: {error}")))?;
    if bytes.len() as u64 > LARGEST_FILE {
        return Err(cannot(format!("it has no end: a pipeline file has at most {LARGEST_FILE} bytes")));
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
        let file = Arc::new(SourceFile { path: path.to_owned(), text });
        let problem = Problem::error(Span { start: at, end: at + '\u{fffd}'.len_utf8() }, "the file is not UTF-8 text");
        Box::new(FileReport { file, problems: vec![problem] })
    })
}

fn unreadable(path: &Path, words: String) -> FileReport {
    let file = Arc::new(SourceFile { path: path.to_owned(), text: String::new() });
    FileReport { file, problems: vec![Problem::error(Span::default(), words)] }
}
