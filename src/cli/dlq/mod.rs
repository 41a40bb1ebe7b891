//! `weir dlq list|show|replay`: what a pipeline's stages have refused, and the way back.

mod archive;
mod list;
mod progress;
mod replay;
mod show;
mod shown;
mod stored;

use std::io::{self, stdout};
use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, Subcommand};

use self::archive::Archive;
use super::load::load_plans;
use super::{FAILED, INVALID, printed};
use crate::config::Settings;
use crate::plan::Plan;
use crate::state::Entries;

/// What may be done with dead letters.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List the dead letters of a pipeline
    List {
        #[command(flatten)]
        which: Which,
        /// Only those that this stage refused
        #[arg(long)]
        stage: Option<String>,
        /// Only those refused since then: a time such as `2026-01-31T12:00:00Z`, or how long ago, such as `2h`
        #[arg(long, value_name = "TIME")]
        since: Option<String>,
        /// The first so many
        #[arg(long, value_name = "NUMBER")]
        limit: Option<u64>,
        /// Only how many there are, by stage and error
        #[arg(long)]
        summary: bool,
        /// How letters are printed
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Show one dead letter whole, with the record's content
    Show {
        #[command(flatten)]
        which: Which,
        /// Where the letter stands: PARTITION/OFFSET in a topic, the number of the line in a file, in one of
        /// several with the name of the file before it, as `list` shows it
        place: String,
        /// Write only the body, byte by byte
        #[arg(long)]
        raw: bool,
    },
    /// Send dead letters back into the stages that refused them
    Replay {
        #[command(flatten)]
        which: Which,
        /// Through the stages of this file, a corrected one for example
        #[arg(long, value_name = "FILE")]
        through: Option<PathBuf>,
        /// Only those that this stage refused
        #[arg(long)]
        stage: Option<String>,
        /// The first so many
        #[arg(long, value_name = "NUMBER")]
        limit: Option<usize>,
        /// Say what would be replayed, and do nothing
        #[arg(long)]
        dry_run: bool,
        /// Only these; all that were not replayed yet, if none is named
        #[arg(value_name = "PLACE")]
        places: Vec<String>,
    },
}

/// How letters are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(super) enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object on a line for each letter.
    Json,
}

/// Which pipeline's dead letters are meant.
#[derive(Debug, Args)]
pub(super) struct Which {
    /// The pipeline's name, if the file has several
    #[arg(long, value_name = "NAME")]
    pipeline: Option<String>,
    /// The settings of the daemon; `WEIR_…` variables win over it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The pipeline file whose dead letter is meant
    file: PathBuf,
}

/// Why a command ends early.
#[derive(Debug)]
struct Stop {
    code: u8,
    words: String,
}

impl Stop {
    /// The files or the arguments are wrong.
    fn invalid(words: impl Into<String>) -> Self {
        Self { code: INVALID, words: words.into() }
    }

    /// Something failed.
    fn failed(words: impl Into<String>) -> Self {
        Self { code: FAILED, words: words.into() }
    }
}

/// What every command begins with.
struct Opened {
    plan: Plan,
    archive: Archive,
    settings: Settings,
    /// What the daemon's store has of the pipeline, where letters are in files; `None` while somebody else holds it.
    stored: Option<Entries>,
}

impl Opened {
    /// The folder that replays of the pipeline's letters have for themselves.
    fn own_folder(&self) -> PathBuf {
        self.settings.data_dir.join("dlq").join(&*self.plan.name)
    }
}

impl Which {
    fn open(&self) -> Result<Opened, Stop> {
        let settings =
            Settings::load(self.config.as_deref()).map_err(|mistakes| Stop::invalid(mistakes.to_string()))?;
        let plan = self.plan(&self.file)?;
        let in_files = plan.dead_letter.as_ref().is_some_and(|sink| sink.kind == "file");
        let stored = if in_files { stored::of_pipeline(&settings.data_dir, &plan.name)? } else { None };
        let archive = Archive::of(&plan, stored.as_ref()).map_err(Stop::invalid)?;
        Ok(Opened { plan, archive, settings, stored })
    }

    /// The pipeline that is meant, of any file.
    fn plan(&self, file: &PathBuf) -> Result<Plan, Stop> {
        let plans = load_plans(std::slice::from_ref(file)).map_err(|mistakes| Stop::invalid(mistakes.trim_end()))?;
        let names: Vec<Arc<str>> = plans.iter().map(|plan| Arc::clone(&plan.name)).collect();
        let listed = names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        let file = file.display();
        match &self.pipeline {
            Some(name) => plans
                .into_iter()
                .find(|plan| *plan.name == **name)
                .ok_or_else(|| Stop::invalid(format!("{file}: no pipeline is named `{name}`; there are {listed}"))),
            None if plans.len() > 1 => {
                Err(Stop::invalid(format!("{file}: there are several pipelines; name one with `--pipeline`: {listed}")))
            }
            None => {
                let only = plans.into_iter().next();
                only.ok_or_else(|| Stop::invalid(format!("{file}: there is no pipeline in it")))
            }
        }
    }
}

/// Does what a command asks. Returns the exit code.
pub(super) fn run(command: Command) -> u8 {
    let done = match command {
        Command::List { which, stage, since, limit, summary, format } => which.open().and_then(|opened| {
            let wanted = list::Wanted::new(stage, since.as_deref(), limit, summary, format)?;
            list::list(&opened, &wanted, &mut stdout().lock())
        }),
        Command::Show { which, place, raw } => {
            which.open().and_then(|opened| show::show(&opened, &place, raw, &mut stdout().lock()))
        }
        Command::Replay { which, through, stage, limit, dry_run, places } => which.open().and_then(|opened| {
            let through = through.map(|file| which.plan(&file)).transpose()?;
            let asked = replay::Asked { stage, limit, dry_run, places };
            replay::replay(&opened, through, &asked, &mut stdout().lock())
        }),
    };
    done.unwrap_or_else(|Stop { code, words }| {
        eprintln!("{words}");
        code
    })
}

/// What a command that prints ends with.
fn told(printing: io::Result<u8>) -> u8 {
    printed(printing)
}

/// A number of things, in words.
fn counted(number: u64, word: &str) -> String {
    if number == 1 { format!("1 {word}") } else { format!("{number} {word}s") }
}
