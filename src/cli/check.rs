//! `weir check FILE|DIR…`: says all that is wrong, and runs nothing.

use std::io::{self, Write};
use std::path::PathBuf;

use super::load::{Checked, check_files, cores};
use crate::config::{ProcessEnvironment, diagnostic};
use crate::plan::CompileOptions;

/// How problems are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object on a line for each problem.
    Json,
}

/// Checks files, and the YAML files of folders. Returns the exit code: 0 if they can run, though there may be warnings;
/// 2 if not.
///
/// # Errors
/// If the answer cannot be printed.
pub fn check(paths: &[PathBuf], format: Format, out: &mut dyn Write) -> io::Result<u8> {
    let checked = check_files(paths, &ProcessEnvironment, &CompileOptions::new(cores()));
    report(&checked, format, out)?;
    Ok(if checked.has_errors() { 2 } else { 0 })
}

fn report(checked: &Checked, format: Format, out: &mut dyn Write) -> io::Result<()> {
    if format == Format::Json {
        for report in &checked.files {
            for problem in &report.problems {
                writeln!(out, "{}", diagnostic::json(&report.file, problem))?;
            }
        }
        return Ok(());
    }
    write!(out, "{}", checked.render())?;
    let files = checked.files.len();
    let wrong = checked.files.iter().filter(|report| !report.problems.is_empty()).count();
    let pipelines = checked.plans.len();
    match (checked.has_errors(), wrong) {
        (true, _) => writeln!(out, "{wrong} of {} cannot run as written", counted(files, "file")),
        (false, 0) => writeln!(out, "{} in {}: no mistakes", counted(pipelines, "pipeline"), counted(files, "file")),
        (false, _) => writeln!(out, "{} in {}: warnings only", counted(pipelines, "pipeline"), counted(files, "file")),
    }
}

fn counted(number: usize, word: &str) -> String {
    if number == 1 { format!("1 {word}") } else { format!("{number} {word}s") }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn checked(folder: &Path, format: Format) -> (u8, String) {
        let mut out = Vec::new();
        let code = check(&[folder.to_owned()], format, &mut out).unwrap();
        (code, String::from_utf8(out).unwrap().replace(&folder.display().to_string(), "DIR"))
    }

    #[test]
    fn every_file_of_a_folder_is_checked_in_the_order_of_names() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("b.yml"), "sourcez: 1\n").unwrap();
        std::fs::write(folder.path().join("a.yaml"), "a: [1\n").unwrap();
        std::fs::write(folder.path().join("c.txt"), "no pipeline").unwrap();
        std::fs::write(folder.path().join("d.yaml"), b"a: \xff\n").unwrap();
        let (code, text) = checked(folder.path(), Format::Text);
        assert_eq!(code, 2);
        let first_lines: Vec<_> = text.lines().filter(|line| line.contains(": error: ")).collect();
        assert!(first_lines[0].starts_with("DIR/a.yaml:1:4: error: "), "{text}");
        assert!(first_lines[1].starts_with("DIR/b.yml:1:1: error: "), "{text}");
        assert_eq!(first_lines.last(), Some(&"DIR/d.yaml:1:4: error: the file is not UTF-8 text"));
        assert!(text.ends_with("3 of 3 files cannot run as written\n"), "{text}");
    }

    #[test]
    fn json_has_one_object_on_each_line() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.yaml"), "sourcez: 1\n").unwrap();
        let (code, text) = checked(folder.path(), Format::Json);
        assert_eq!(code, 2);
        for line in text.lines() {
            let object: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!(object["file"], "DIR/a.yaml");
        }
    }

    #[test]
    fn what_cannot_be_read_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let (code, text) = checked(folder.path(), Format::Text);
        assert_eq!(code, 2);
        assert!(text.starts_with("DIR:1:1: error: the folder holds no `.yaml` file\n"), "{text}");
        let (code, text) = checked(&folder.path().join("none.yaml"), Format::Text);
        assert_eq!(code, 2);
        assert!(text.contains("DIR:1:1: error: the file cannot be read: "), "{text}");
    }
}
