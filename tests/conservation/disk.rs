//! Small disks that can be full: memory file systems in a mount namespace that ends with the test.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Mounts a memory file system of so many bytes on each folder, says so, and holds the namespace until its standard input
/// ends: when the test says so, and also when it is killed.
const KEEPER: &str = r#"
size=$1; shift
for folder; do mount -t tmpfs -o "size=$size" tmpfs "$folder" || exit 1; done
echo mounted
read -r line
"#;

/// Set to 1 on a machine that cannot mount: then no disk is ever full. Without it such a machine fails the test.
const WITHOUT: &str = "CONSERVATION_WITHOUT_DISKS";

/// Whether full disks are left out, because somebody has said so.
pub(crate) fn are_left_out() -> bool {
    std::env::var(WITHOUT).is_ok_and(|value| value == "1")
}

/// The file that takes all the room.
const BALLAST: &str = "ballast";

/// Disks that only processes started [`Self::within`] see under their paths.
#[derive(Debug)]
pub(crate) struct Disks {
    keeper: Child,
    /// Whether the namespace has users of its own, because this user may not mount.
    own_users: bool,
}

impl Disks {
    /// Mounts a disk of `size` bytes on each of these folders; `None` if full disks [are left out](are_left_out).
    ///
    /// # Panics
    /// If this machine cannot do it, with what to do.
    pub(crate) fn mount(folders: &[PathBuf], size: u64) -> Option<Self> {
        for folder in folders {
            fs::create_dir_all(folder).expect("the target folder can be written");
        }
        if are_left_out() {
            return None;
        }
        let root = Self::try_mount(folders, size, false);
        let mounted = root.or_else(|as_root| Self::try_mount(folders, size, true).map_err(|own| (as_root, own)));
        Some(mounted.unwrap_or_else(|(as_root, own)| {
            panic!(
                "no disk can be filled: this machine mounts no memory file system ({as_root}; with users of its own: \
                 {own}). Run the test as root, or where a user may make namespaces (`sysctl \
                 kernel.unprivileged_userns_clone=1`; in a container `--cap-add SYS_ADMIN`), with `unshare` and \
                 `nsenter` of util-linux. Or set {WITHOUT}=1 to leave full disks out."
            )
        }))
    }

    fn try_mount(folders: &[PathBuf], size: u64, own_users: bool) -> Result<Self, String> {
        let mut command = Command::new("unshare");
        command.arg("--mount");
        if own_users {
            command.args(["--user", "--map-root-user"]);
        }
        command.args(["sh", "-c", KEEPER, "sh"]).arg(size.to_string()).args(folders).process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut keeper = command.spawn().map_err(|error| format!("cannot run `unshare`: {error}"))?;
        let mut answer = String::new();
        let stdout = keeper.stdout.take().expect("it is piped");
        let _ = BufReader::new(stdout).read_line(&mut answer);
        if answer.trim() == "mounted" {
            return Ok(Self { keeper, own_users });
        }
        drop(keeper.stdin.take());
        let output = keeper.wait_with_output().map_err(|error| error.to_string())?;
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }

    /// What comes before a command that is to see the disks and to begin in `folder`. The process keeps its id.
    pub(crate) fn within(&self, folder: &Path) -> Vec<String> {
        let mut words = vec!["nsenter".to_owned(), format!("--target={}", self.keeper.id()), "--mount".to_owned()];
        if self.own_users {
            words.extend(["--user".to_owned(), "--preserve-credentials".to_owned()]);
        }
        // The working folder must be found anew within the namespace.
        let inside = ["--", "sh", "-c", "cd \"$0\" && exec \"$@\""];
        words.extend(inside.map(str::to_owned));
        words.push(folder.display().to_string());
        words
    }

    /// Where this process finds a path of a disk.
    pub(crate) fn outside(&self, path: &Path) -> PathBuf {
        let path = path.strip_prefix("/").expect("paths of disks are absolute");
        Path::new("/proc").join(self.keeper.id().to_string()).join("root").join(path)
    }

    /// Takes all the room that is left.
    pub(crate) fn fill(&self, folder: &Path) {
        let ballast = self.outside(folder).join(BALLAST);
        let mut ballast = File::options().create(true).append(true).open(ballast).expect("a file can be made");
        for size in [1 << 20, 1 << 12, 1] {
            let block = vec![0; size];
            while ballast.write_all(&block).is_ok() {}
        }
    }

    /// Gives the room back.
    pub(crate) fn free(&self, folder: &Path) {
        let _ = fs::remove_file(self.outside(folder).join(BALLAST));
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Home;

    #[test]
    fn a_full_disk_takes_nothing_until_it_is_freed() {
        let home = Home::new();
        let folder = home.path("disk");
        let Some(disks) = Disks::mount(std::slice::from_ref(&folder), 1 << 20) else {
            return eprintln!("full disks are left out: {WITHOUT}=1");
        };
        let file = disks.outside(&folder).join("file");
        fs::write(&file, "some").unwrap();
        disks.fill(&folder);
        assert!(fs::write(&file, vec![1; 1 << 16]).is_err());
        disks.free(&folder);
        fs::write(&file, vec![1; 1 << 16]).unwrap();
        assert!(!folder.join("file").exists(), "only who is within sees it under its own path");
    }
}
