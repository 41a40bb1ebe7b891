//! The Python scripts of `benches/asyncio/`, in an environment of their own below `target/`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::broker::install::target_dir;

/// The environment's Python.
pub(crate) struct Python(PathBuf);

impl Python {
    /// Makes the environment, or takes the one that is there.
    ///
    /// # Errors
    /// What is missing, for a person.
    pub(crate) fn prepare() -> Result<Self, String> {
        let folder = target_dir().join("asyncio-venv");
        let python = folder.join("bin/python");
        let wanted = fs::read_to_string(scripts().join("requirements.txt")).map_err(|error| error.to_string())?;
        let done = folder.join("requirements-installed.txt");
        if fs::read_to_string(&done).is_ok_and(|installed| installed == wanted) {
            return Ok(Self(python));
        }
        let help = "help: install Python 3 with venv and pip, for example `apt-get install python3-venv`";
        run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))
            .map_err(|error| format!("cannot make an environment with python3: {error}\n{help}"))?;
        let requirements = scripts().join("requirements.txt");
        run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "--requirement"]).arg(requirements))
            .map_err(|error| format!("pip cannot install benches/asyncio/requirements.txt: {error}"))?;
        fs::write(&done, wanted).map_err(|error| error.to_string())?;
        Ok(Self(python))
    }

    /// Runs a script.
    pub(crate) fn script(&self, name: &str) -> Command {
        let mut command = Command::new(&self.0);
        command.arg(scripts().join(name));
        command
    }
}

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/asyncio")
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    Err([output.stdout, output.stderr].iter().map(|text| String::from_utf8_lossy(text)).collect())
}
