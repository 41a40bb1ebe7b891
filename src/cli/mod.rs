//! The command line: one file for each command.

mod buffer;
pub mod check;
mod dlq;
pub mod explain;
pub mod load;
mod run;

use std::io::{self, stdout};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// All went well.
const FINE: u8 = 0;
/// Something failed while running.
const FAILED: u8 = 1;
/// A pipeline file, the settings or the arguments are invalid; nothing ran.
const INVALID: u8 = 2;

/// Streaming data pipelines as one small daemon.
#[derive(Debug, Parser)]
#[command(name = "weir", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run pipelines until they end or the process is asked to stop
    Run {
        /// The settings of the daemon; `WEIR_…` variables win over it
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Pipeline files, or folders of them
        #[arg(required = true, value_name = "FILE|DIR")]
        paths: Vec<PathBuf>,
    },
    /// Report every mistake in pipeline files, without running them
    Check {
        /// How mistakes are printed
        #[arg(long, value_enum, default_value_t)]
        format: check::Format,
        /// Pipeline files, or folders of them
        #[arg(required = true, value_name = "FILE|DIR")]
        paths: Vec<PathBuf>,
    },
    /// Look into the disk buffers of a data folder, beside a running daemon or without one
    Buffer {
        #[command(subcommand)]
        ask: buffer::Ask,
    },
    /// List, show and replay the dead letters of a pipeline
    Dlq {
        #[command(subcommand)]
        command: dlq::Command,
    },
    /// Show what pipeline files compile to: stages, lanes, channels, fields, guarantees
    Explain {
        /// Pipeline files, or folders of them
        #[arg(required = true, value_name = "FILE|DIR")]
        paths: Vec<PathBuf>,
    },
}

/// Parses the arguments of the process and does what they ask. The answer is 0 if all went well, 1 if something failed
/// while running, 2 if a file or the arguments are invalid.
#[must_use]
pub fn main() -> ExitCode {
    let code = match Cli::parse().command {
        Command::Run { config, paths } => run::run(config.as_deref(), &paths),
        Command::Check { format, paths } => printed(check::check(&paths, format, &mut stdout().lock())),
        Command::Buffer { ask } => printed(buffer::answer(&ask, &mut stdout().lock())),
        Command::Dlq { command } => dlq::run(command),
        Command::Explain { paths } => printed(explain::explain(&paths, &mut stdout().lock())),
    };
    code.into()
}

/// The code of a command that prints its answer, if it could.
fn printed(answer: io::Result<u8>) -> u8 {
    answer.unwrap_or_else(|error| {
        // Who closes the pipe, as `head` does, has read enough.
        if error.kind() != io::ErrorKind::BrokenPipe {
            eprintln!("cannot print the answer: {error}");
        }
        FAILED
    })
}
