//! One pipeline through one round: its processes are struck by the schedule while records pass; then all is quiet, it
//! must finish, and everything is counted.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use weir::clock::Instant;

use crate::account::{Account, Figures, Found};
use crate::broker::send_signal;
use crate::broker::wait::Deadline;
use crate::disk::Disks;
use crate::files::Finals;
use crate::pipeline::Pipeline;
use crate::process::{Home, Weir};
use crate::records::{KEYS, LOWERED_LIMIT, TOPIC_LIMIT};
use crate::round::{Round, Trouble};
use crate::schedule::{Action, Disk, PROCESSES, Schedule};

/// How long the pipeline may take to finish when all is quiet. It covers a session and a transaction of a process that
/// was killed, and a slow machine.
const FINISH: Duration = Duration::from_mins(4);
/// How long a pipeline may be called stuck when nothing is left to be done.
const READY: Duration = Duration::from_mins(1);
/// A stop takes at most its grace of 30 s, and a slow machine.
const STOP: Duration = Duration::from_secs(90);
/// A pipeline that has moved nothing for 10 s is stuck; it is looked at every second.
const STUCK: Duration = Duration::from_secs(14);
/// A broker is frozen for at most 15 s, and starts within a few more.
const BROKER_BACK: Duration = Duration::from_secs(30);
/// What a shell says of a process that SIGTERM has ended, which then did not listen.
const KILLED_BY_SIGTERM: i32 = 128 + 15;
/// How often the processes are looked at.
const LOOK: Duration = Duration::from_millis(50);

/// A process of the pipeline, with what outlives it.
struct Slot {
    home: Home,
    sinks: PathBuf,
    weir: Option<Weir>,
    state: SlotState,
    /// Whether it was ever there.
    was_there: bool,
    /// Whether it starts again as soon as it has ended.
    comes_back: bool,
    /// Since when nothing was done to it.
    since: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SlotState {
    Away,
    Running,
    Frozen,
    Leaving,
}

/// A pipeline that is struck.
pub(crate) struct Struck<'a> {
    round: &'a Round,
    who: String,
    pipeline: Pipeline<'a>,
    slots: Vec<Slot>,
    /// The disks of all its processes, unless full disks are left out.
    disks: Option<Disks>,
    folder_of: [PathBuf; 2],
    full: [Trouble; 2],
    faults: BTreeMap<&'static str, usize>,
    finals: Finals,
    looked: Instant,
    found: Found,
}

/// The homes of a pipeline's processes, and the disks they share.
pub(crate) struct Place {
    pub(crate) homes: Vec<Home>,
    disks: Option<Disks>,
}

impl Place {
    /// For one pipeline; its disks have this size.
    pub(crate) fn new(disk_size: u64) -> Self {
        let homes: Vec<_> = (0..PROCESSES).map(|_| Home::new()).collect();
        let disks = Disks::mount(&Disk::ALL.map(|disk| folder_of(&homes[0], disk)), disk_size);
        Self { homes, disks }
    }
}

fn folder_of(first: &Home, disk: Disk) -> PathBuf {
    first.path(match disk {
        Disk::Sinks => "disk-of-the-sinks",
        Disk::Data => "disk-of-the-data",
    })
}

impl<'a> Struck<'a> {
    /// A pipeline whose processes live in these homes.
    pub(crate) fn new(round: &'a Round, pipeline: Pipeline<'a>, place: Place) -> Self {
        let Place { homes, disks } = place;
        let folder_of = Disk::ALL.map(|disk| folder_of(&homes[0], disk));
        let mut slots = Vec::new();
        for (number, mut home) in homes.into_iter().enumerate() {
            let [sinks, data] = [0, 1].map(|disk: usize| folder_of[disk].join(format!("process-{number}")));
            for folder in [&sinks, &data] {
                let seen = disks.as_ref().map_or_else(|| folder.clone(), |disks| disks.outside(folder));
                std::fs::create_dir_all(seen).expect("a folder can be made");
            }
            let file = home.write("pipeline.yaml", pipeline.text());
            home.set("KAFKA_BROKERS", round.broker.address())
                .set("SINK_DIR", &sinks.display().to_string())
                .set("WEIR_DATA_DIR", &data.display().to_string());
            let checked = home.run(&["check", "pipeline.yaml"]);
            assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
            if let Some(disks) = &disks {
                home.wrap(disks.within(file.parent().expect("a file is in a folder")));
            }
            let since = round.now();
            slots.push(Slot {
                home,
                sinks,
                weir: None,
                state: SlotState::Away,
                was_there: false,
                comes_back: false,
                since,
            });
        }
        let who = pipeline.case.name();
        Self {
            round,
            who,
            pipeline,
            slots,
            disks,
            folder_of,
            full: Default::default(),
            faults: BTreeMap::new(),
            finals: Finals::default(),
            looked: round.now(),
            found: Found::default(),
        }
    }

    /// Strikes it by the schedule while records pass, and counts what came out.
    pub(crate) fn run(mut self, schedule: &Schedule) -> Outcome {
        let round = self.round;
        round.log(&self.who, &self.pipeline.variant());
        let at_first = self.pipeline.backlog() * round.rate;
        let mut supplier = self.pipeline.supplier();
        supplier.supply(0, at_first);
        let mut count = std::thread::scope(|threads| {
            let supply = threads.spawn(|| supply_evenly(round, &mut supplier, at_first));
            for step in &schedule.steps {
                self.look_until(step.at);
                self.round.log(&self.who, &step.action.to_string());
                self.perform(step.action);
            }
            self.look_until(round.length);
            supply.join().expect("the supplier does not fail")
        });
        self.be_quiet();
        supplier.finish();
        self.pipeline.check_input(count);
        let drained = round.now();
        let stopped = self.finish(count);
        let took = round.now().saturating_duration_since(drained);
        self.round.log(&self.who, &format!("finished {:.1} s after the last fault", took.as_secs_f64()));
        let (before, _) = self.count(count);

        // A clean stop leaves nothing undone: a few more records, and nothing else comes.
        supplier.supply(count, count + KEYS);
        supplier.finish();
        count += KEYS;
        self.start_all();
        let stopped = self.finish(count) && stopped;
        self.look_at_files();
        self.finals.must_be_there(&mut self.found);
        let (figures, mistakes) = self.count(count);
        if stopped && figures.repeats != before.repeats {
            let what = format!("{} repeats, {} before it", figures.repeats, before.repeats);
            self.found.add("repeated after a clean stop", what);
        }
        self.end(figures, &mistakes, schedule)
    }

    fn end(self, figures: Figures, mistakes: &Found, schedule: &Schedule) -> Outcome {
        let mut told = String::new();
        if !(mistakes.is_nothing() && self.found.is_nothing()) {
            let home = &self.slots[0].home;
            told = format!("{}\n{mistakes}{}", self.who, self.found);
            home.write("found.txt", &told);
            home.write("schedule.txt", schedule.to_string());
            self.round.write_log(&home.path("round.txt"));
            self.save_disks();
            for slot in self.slots {
                let _ = writeln!(told, "    kept: {}", slot.home.path("").display());
                slot.home.keep();
            }
        }
        Outcome { figures, faults: self.faults, told }
    }

    /// The disks end with the test; what is on them does not.
    fn save_disks(&self) {
        let Some(disks) = &self.disks else { return };
        for folder in &self.folder_of {
            let _ =
                std::process::Command::new("cp").arg("-r").arg(disks.outside(folder).join(".")).arg(folder).status();
        }
    }

    fn look_until(&mut self, at: Duration) {
        loop {
            self.look();
            let left = at.saturating_sub(self.round.elapsed());
            if left.is_zero() {
                return;
            }
            std::thread::sleep(LOOK.min(left));
        }
    }

    /// Whether a fault outside the process may explain that it ends, or ends badly.
    fn is_excused(&self) -> bool {
        let now = self.round.now();
        (self.pipeline.case.reads_kafka() && self.round.broker_is_felt())
            || self.full.iter().any(|trouble| trouble.is_felt(now))
    }

    /// Looks at the files that are finished.
    fn look_at_files(&mut self) {
        let Some(form) = self.pipeline.form() else { return };
        for number in 0..self.slots.len() {
            let folder = self.outside(&self.slots[number].sinks);
            self.finals.look(&folder, form, &mut self.found);
        }
        self.looked = self.round.now();
    }

    /// Where this process finds a path that may be on a disk.
    fn outside(&self, path: &Path) -> PathBuf {
        self.disks.as_ref().map_or_else(|| path.to_owned(), |disks| disks.outside(path))
    }

    /// Looks after processes that have ended.
    fn look(&mut self) {
        if self.round.now().saturating_duration_since(self.looked) > Duration::from_secs(1) {
            self.look_at_files();
        }
        for number in 0..self.slots.len() {
            let is_excused = self.is_excused();
            let slot = &mut self.slots[number];
            let Some(weir) = &mut slot.weir else { continue };
            let Some(code) = weir.exit_code() else { continue };
            let log = weir.log_path().display().to_string();
            let state = std::mem::replace(&mut slot.state, SlotState::Away);
            slot.weir = None;
            self.round.log(&self.who, &format!("process {number} ended with {code}"));
            match state {
                SlotState::Leaving if code == 0 || is_excused => {}
                // Asked before it could listen: it has read nothing.
                SlotState::Leaving if code == KILLED_BY_SIGTERM => {}
                SlotState::Leaving => {
                    self.found.add("ended badly", format!("process {number} was asked to stop: code {code}; {log}"));
                }
                _ => {
                    // A process that starts on a full disk may give up; who looks after it starts it again.
                    if !self.full[Disk::Data as usize].is_felt(self.round.now()) {
                        self.found.add("ended by itself", format!("process {number}: code {code}; {log}"));
                    }
                    std::thread::sleep(Duration::from_millis(500));
                    self.start(number);
                }
            }
            if self.slots[number].comes_back {
                self.start(number);
            }
        }
    }

    /// Starts a process. One that is still leaving starts as soon as it is gone.
    fn start(&mut self, number: usize) -> bool {
        let slot = &mut self.slots[number];
        if slot.state == SlotState::Leaving {
            slot.comes_back = true;
            return true;
        }
        if slot.weir.is_none() {
            slot.weir = Some(slot.home.start("pipeline.yaml"));
            slot.state = SlotState::Running;
            slot.was_there = true;
            slot.comes_back = false;
            slot.since = self.round.now();
            return true;
        }
        false
    }

    /// Waits for the end of a process that was asked to stop, if it was. One that does not end is a mistake, and killed.
    fn wait_end(&mut self, number: usize) {
        let deadline = Deadline::within(STOP);
        while self.slots[number].state == SlotState::Leaving {
            self.look();
            let slot = &mut self.slots[number];
            if let Some(weir) = &mut slot.weir
                && deadline.passed()
            {
                let log = weir.log_path().display().to_string();
                self.found.add("did not stop", format!("process {number} within {STOP:?}; {log}"));
                weir.kill();
                slot.weir = None;
                slot.state = SlotState::Away;
            }
            std::thread::sleep(LOOK);
        }
    }

    fn signal(&mut self, number: usize, name: &str, from: SlotState, to: SlotState) -> bool {
        let slot = &mut self.slots[number];
        let Some(weir) = slot.weir.as_mut().filter(|_| slot.state == from) else { return false };
        if weir.exit_code().is_some() {
            return false;
        }
        send_signal(weir.pid(), name);
        slot.state = to;
        slot.since = self.round.now();
        true
    }

    /// Does it, and counts it if it could be done.
    fn perform(&mut self, action: Action) {
        use SlotState::{Away, Frozen, Leaving, Running};
        if let Action::Kill(number) | Action::Leave(number) = action {
            self.slots[number].comes_back = false;
        }
        let done = match action {
            Action::Start(number) => self.start(number),
            Action::Kill(number) => {
                let slot = &mut self.slots[number];
                slot.state = Away;
                slot.weir.take().map(|mut weir| weir.kill()).is_some()
            }
            Action::Freeze(number) => self.signal(number, "STOP", Running, Frozen),
            Action::Thaw(number) => self.signal(number, "CONT", Frozen, Running),
            Action::Leave(number) => self.signal(number, "TERM", Running, Leaving),
            Action::Intrude(number) => self.intrude(number),
            Action::Fill(disk) => self.fill(disk),
            Action::Free(disk) => self.free(disk),
            Action::LowerLimit => self.lower_limit(),
            Action::RestoreLimit => self.pipeline.set_limit(TOPIC_LIMIT),
            Action::KillBroker | Action::StartBroker | Action::FreezeBroker | Action::ThawBroker => false,
        };
        if !done {
            self.round.log(&self.who, &format!("it could not be done: {action}"));
        } else if let Some(fault) = action.fault() {
            *self.faults.entry(fault).or_default() += 1;
        }
    }

    /// Never done where full disks are left out.
    fn fill(&mut self, disk: Disk) -> bool {
        let Some(disks) = &self.disks else { return false };
        disks.fill(&self.folder_of[disk as usize]);
        self.full[disk as usize].begin(self.round.now());
        true
    }

    fn free(&mut self, disk: Disk) -> bool {
        if disk == Disk::Sinks {
            self.must_say_that_it_is_stuck();
        }
        let Some(disks) = &self.disks else { return false };
        disks.free(&self.folder_of[disk as usize]);
        self.full[disk as usize].end(self.round.now());
        true
    }

    /// A broker that is struck itself just now does it a little later.
    fn lower_limit(&mut self) -> bool {
        let deadline = Deadline::within(BROKER_BACK);
        while !self.pipeline.set_limit(LOWERED_LIMIT) {
            if deadline.passed() {
                return false;
            }
            self.look();
        }
        true
    }

    /// A process whose only sink has had no room for long cannot call its pipeline ready.
    fn must_say_that_it_is_stuck(&mut self) {
        let slot = &self.slots[0];
        let since = self.full[Disk::Sinks as usize].since().map(|full| full.max(slot.since));
        let lasts = since.map(|since| self.round.now().saturating_duration_since(since));
        // Others may hold all partitions of a topic.
        let is_alone = !self.pipeline.case.reads_kafka();
        if !is_alone || slot.state != SlotState::Running || lasts.is_none_or(|lasts| lasts < STUCK) {
            return;
        }
        let answer = slot.weir.as_ref().and_then(|weir| weir.get(&format!("/ready/{}", self.pipeline.name)));
        self.round.log(&self.who, &format!("after {lasts:?} on a full disk: {answer:?}"));
        if answer.as_ref().is_none_or(|(status, _)| *status != 503) {
            self.found.add("wrong readiness", format!("the sinks' disk is full for {lasts:?}: {answer:?}"));
        }
    }

    /// A second process on a data folder that is in use ends, and says that it failed.
    fn intrude(&mut self, number: usize) -> bool {
        let slot = &mut self.slots[number];
        // One that is about to end leaves its folder to whoever comes next.
        let Some(weir) = slot.weir.as_ref().filter(|_| slot.state == SlotState::Running) else { return false };
        // It holds its data folder when it answers.
        let deadline = Deadline::within(Duration::from_secs(20));
        while weir.get("/live").is_none() {
            if deadline.passed() {
                return false;
            }
            std::thread::sleep(LOOK);
        }
        let mut intruder = slot.home.start("pipeline.yaml");
        let deadline = Deadline::within(Duration::from_secs(30));
        while intruder.exit_code().is_none() && !deadline.passed() {
            std::thread::sleep(LOOK);
        }
        match intruder.exit_code() {
            None => self.found.add("let in", format!("a second process on the data folder of process {number}")),
            Some(0) => self.found.add("let in", format!("a second process beside process {number} ended with 0")),
            Some(_) => {}
        }
        intruder.kill();
        true
    }

    /// All faults end: nothing is frozen, all disks have room, and every process that was ever there is there.
    fn be_quiet(&mut self) {
        for number in 0..self.slots.len() {
            self.signal(number, "CONT", SlotState::Frozen, SlotState::Running);
        }
        for disk in Disk::ALL {
            self.free(disk);
        }
        let deadline = Deadline::within(Duration::from_mins(3));
        while !self.round.broker_is_done() {
            self.look();
            assert!(!deadline.passed(), "the broker is not up again");
            std::thread::sleep(LOOK);
        }
        if !self.pipeline.case.writes_files() {
            assert!(self.pipeline.set_limit(TOPIC_LIMIT), "the broker is up");
        }
        self.round.log(&self.who, "all is quiet");
        self.start_all();
    }

    /// Each process that was there is there again: it cuts back what it had not committed.
    fn start_all(&mut self) {
        for number in 0..self.slots.len() {
            if self.slots[number].was_there {
                self.slots[number].comes_back = false;
                self.wait_end(number);
                self.start(number);
            }
        }
    }

    /// Waits until everything is through and each process is ready, and stops them. Tells whether all of it went well.
    fn finish(&mut self, count: u64) -> bool {
        let deadline = Deadline::within(FINISH);
        while !self.is_through(count) {
            self.look();
            if deadline.passed() {
                self.tell_stuck(&format!("not through {FINISH:?} after the last fault"));
                break;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        let deadline = Deadline::within(READY);
        while let Some(unready) = self.unready() {
            self.look();
            if deadline.passed() {
                self.tell_stuck(&format!("{unready}, though all is through"));
                break;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        for number in 0..self.slots.len() {
            self.signal(number, "TERM", SlotState::Running, SlotState::Leaving);
        }
        for number in 0..self.slots.len() {
            self.wait_end(number);
        }
        self.found.is_nothing()
    }

    fn is_through(&self, count: u64) -> bool {
        if self.pipeline.case.reads_kafka() {
            return self.pipeline.is_all_committed();
        }
        let (figures, _) = self.count(count);
        figures.delivered + figures.dead_lettered + figures.filtered == count
    }

    /// A process that does not call its pipeline ready.
    fn unready(&self) -> Option<String> {
        let path = format!("/ready/{}", self.pipeline.name);
        self.slots.iter().enumerate().find_map(|(number, slot)| {
            let answer = slot.weir.as_ref()?.get(&path);
            let is_ready = matches!(answer, Some((200, _)));
            (!is_ready).then(|| format!("process {number} is not ready: {answer:?}"))
        })
    }

    fn tell_stuck(&mut self, what: &str) {
        let standing = if self.pipeline.case.reads_kafka() { self.pipeline.standing() } else { String::new() };
        let readiness: Vec<_> = self
            .slots
            .iter()
            .filter_map(|slot| slot.weir.as_ref()?.get(&format!("/ready/{}", self.pipeline.name)))
            .collect();
        self.found.add("stuck", format!("{what}; {standing}; {readiness:?}"));
    }

    fn count(&self, count: u64) -> (Figures, Found) {
        let case = self.pipeline.case;
        let mut account = Account::new(count, case.exactly_once, !case.writes_files());
        let folders: Vec<_> = self.slots.iter().map(|slot| self.outside(&slot.sinks)).collect();
        self.pipeline.read_output(&mut account, &folders);
        account.close()
    }
}

/// What a round tells of a pipeline.
pub(crate) struct Outcome {
    pub(crate) figures: Figures,
    /// How often each kind of fault struck.
    pub(crate) faults: BTreeMap<&'static str, usize>,
    /// All that is wrong; nothing if nothing is.
    pub(crate) told: String,
}

/// Puts records in at an even pace until the round is over. Tells how many there are in all.
fn supply_evenly(round: &Round, supplier: &mut crate::pipeline::Supplier, at_first: u64) -> u64 {
    let mut next = at_first;
    while round.elapsed() < round.length {
        let millis = u64::try_from(round.elapsed().as_millis()).expect("a round is short");
        let due = at_first + round.rate * millis / 1_000;
        supplier.supply(next, due.max(next));
        next = due.max(next);
        std::thread::sleep(Duration::from_millis(20));
    }
    next
}
