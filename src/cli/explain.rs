//! `weir explain FILE|DIR…`: prints the compiled plans.

use std::io::{self, Write};
use std::path::PathBuf;

use super::load::{check_files, cores};
use crate::config::ProcessEnvironment;
use crate::plan::{self, CompileOptions};

/// Prints the plan of each pipeline, or all that is wrong. Returns the exit code: 0, or 2 if a file cannot run.
///
/// # Errors
/// If the answer cannot be printed.
pub fn explain(paths: &[PathBuf], out: &mut dyn Write) -> io::Result<u8> {
    let checked = check_files(paths, &ProcessEnvironment, &CompileOptions::new(cores()));
    write!(out, "{}", checked.render())?;
    if checked.has_errors() {
        return Ok(2);
    }
    for (at, plan) in checked.plans.iter().enumerate() {
        let rule = if at == 0 { "" } else { "\n" };
        write!(out, "{rule}{}", plan::explain(plan))?;
    }
    Ok(0)
}
