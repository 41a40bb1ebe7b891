//! What a process cost: CPU, time, memory.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Linux counts CPU time in hundredths of a second, whatever the kernel's own tick.
const TICK: f64 = 0.01;

/// A process under measurement; it is killed when this is dropped.
pub(crate) struct Measured {
    child: Child,
    peak_kib: u64,
}

impl Measured {
    /// Starts it.
    pub(crate) fn start(command: &mut Command) -> Self {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        Self { child: child.unwrap_or_else(|error| panic!("cannot run {command:?}: {error}")), peak_kib: 0 }
    }

    /// Its id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// User and system time of all its threads so far, in seconds. It can be asked until the process is [reaped](Self::reap).
    pub(crate) fn cpu(&self) -> f64 {
        let fields = stat(self.pid());
        let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok()).unwrap_or_default();
        (ticks(11) + ticks(12)) * TICK
    }

    /// Whether it has ended. What it cost can still be asked.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.note_peak();
        stat(self.pid()).first().is_none_or(|state| state == "Z")
    }

    /// The most memory that it held at once, in MiB.
    pub(crate) fn peak_mib(&mut self) -> f64 {
        self.note_peak();
        mib(self.peak_kib)
    }

    /// The memory that it holds now, in MiB.
    pub(crate) fn resident_mib(&self) -> f64 {
        mib(status(self.pid(), "VmRSS:").unwrap_or_default())
    }

    /// Asks it to stop and waits for its end.
    pub(crate) fn stop(mut self) {
        crate::broker::send_signal(self.pid(), "TERM");
        crate::broker::wait::wait_until("a contestant to stop", Duration::from_mins(1), || self.has_ended());
    }

    /// Its exit code, once it has ended.
    pub(crate) fn reap(mut self) -> Option<i32> {
        self.child.wait().ok()?.code()
    }

    /// The peak is gone with the memory itself when the process ends.
    fn note_peak(&mut self) {
        self.peak_kib = self.peak_kib.max(status(self.pid(), "VmHWM:").unwrap_or_default());
    }
}

impl Drop for Measured {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The fields behind the process's name, which may itself hold anything.
fn stat(pid: u32) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = text.rsplit_once(')').map_or("", |(_, fields)| fields);
    fields.split_whitespace().map(str::to_owned).collect()
}

fn status(pid: u32, name: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[expect(clippy::cast_precision_loss, reason = "memory in KiB is far below 2^52")]
fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

/// The middle one of some figures.
pub(crate) fn median(figures: impl IntoIterator<Item = f64>) -> f64 {
    let mut figures: Vec<_> = figures.into_iter().collect();
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}
