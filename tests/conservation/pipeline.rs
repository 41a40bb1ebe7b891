//! The pipelines that are struck: from where, to where, under which guarantee; what goes in and what came out.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::account::{Account, Stream};
use crate::broker::{Broker, Record, Writer, unique};
use crate::files::{self, Form};
use crate::records::{KEYS, Kind, TOPIC_LIMIT, body, key};
use crate::schedule::{Disk, Exposure};

/// From where to where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    KafkaToKafka,
    KafkaToFile,
    FileToFile,
}

/// A route under a guarantee.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Case {
    pub(crate) route: Route,
    pub(crate) exactly_once: bool,
}

impl Case {
    /// All that are struck, at once.
    pub(crate) const ALL: [Self; 6] = [
        Self { route: Route::KafkaToKafka, exactly_once: true },
        Self { route: Route::KafkaToKafka, exactly_once: false },
        Self { route: Route::KafkaToFile, exactly_once: true },
        Self { route: Route::KafkaToFile, exactly_once: false },
        Self { route: Route::FileToFile, exactly_once: true },
        Self { route: Route::FileToFile, exactly_once: false },
    ];

    /// Its name, for people and for the choice of one.
    pub(crate) fn name(self) -> String {
        let route = match self.route {
            Route::KafkaToKafka => "kafka-to-kafka",
            Route::KafkaToFile => "kafka-to-file",
            Route::FileToFile => "file-to-file",
        };
        format!("{route}/{}", self.guarantee())
    }

    fn guarantee(self) -> &'static str {
        if self.exactly_once { "exactly_once" } else { "at_least_once" }
    }

    pub(crate) fn reads_kafka(self) -> bool {
        self.route != Route::FileToFile
    }

    pub(crate) fn writes_files(self) -> bool {
        self.route != Route::KafkaToKafka
    }

    /// What may strike it.
    pub(crate) fn exposure(self) -> Exposure {
        let disks: &[Disk] = if self.writes_files() { &[Disk::Sinks, Disk::Data] } else { &[Disk::Data] };
        Exposure { shares: self.reads_kafka(), disks, limit: !self.writes_files() }
    }
}

/// The setting of a topic that limits its records.
const LIMIT: &str = "max.message.bytes";

/// The setting of a topic that limits how far in the future a timestamp may lie, in milliseconds. By default it is an hour;
/// where a [`Kind::Poison`] record is to pass, it is for ever.
const LATEST: &str = "message.timestamp.after.max.ms";
const FAR: &str = "9223372036854775807";

/// How many partitions and files the records of a pipeline are spread over.
const PARTITIONS: i32 = 4;

/// A pipeline with its topics or files.
pub(crate) struct Pipeline<'a> {
    pub(crate) case: Case,
    broker: &'a Broker,
    /// Its name, and its group's.
    pub(crate) name: String,
    source: String,
    /// The topics or files of the sinks: one, or one for each half of the keys.
    sinks: Vec<String>,
    dead: String,
    /// Where the source files are.
    folder: PathBuf,
    variant: Variant,
}

/// What may be so or otherwise, and must not matter.
#[derive(Debug, Clone, Copy)]
struct Variant {
    /// The session's length, if it is not the default: the shortest that a broker grants.
    session: Option<Duration>,
    lanes: u32,
    /// Whether there are two sinks, each for one half of the keys.
    halves: bool,
    form: Form,
    /// For how many seconds records were supplied before the first process starts.
    backlog: u64,
    /// How the members of the group agree.
    protocol: &'static str,
}

/// The default twice: it is what most run.
const PROTOCOLS: [&str; 4] = ["classic", "classic", "classic_eager", "consumer"];

impl Variant {
    fn draw(random: &mut fastrand::Rng) -> Self {
        Self {
            session: random.bool().then_some(Duration::from_secs(6)),
            lanes: random.u32(1..=3),
            halves: random.bool(),
            form: Form::draw(random),
            backlog: random.u64(0..10),
            protocol: PROTOCOLS[random.usize(..PROTOCOLS.len())],
        }
    }
}

impl<'a> Pipeline<'a> {
    /// A pipeline of this case; its source files are in `folder`.
    pub(crate) fn new(case: Case, broker: &'a Broker, folder: PathBuf, random: &mut fastrand::Rng) -> Self {
        let name = unique("conservation");
        let variant = Variant::draw(random);
        let mut sinks = if variant.halves { vec!["totals", "others"] } else { vec!["totals"] };
        let mut sinks: Vec<_> = sinks.drain(..).map(str::to_owned).collect();
        let mut dead = "dead".to_owned();
        let mut source = String::new();
        if case.reads_kafka() {
            source = unique("orders");
            broker.create_topic(&source, PARTITIONS, &[(LATEST, FAR)]);
        }
        if !case.writes_files() {
            for sink in &mut sinks {
                *sink = unique(sink);
                broker.create_topic(sink, PARTITIONS, &[(LIMIT, TOPIC_LIMIT)]);
            }
            dead = unique("dead");
            broker.create_topic(&dead, 1, &[(LATEST, FAR)]);
        }
        Self { case, broker, name, source, sinks, dead, folder, variant }
    }

    /// Its file.
    pub(crate) fn text(&self) -> String {
        let (name, guarantee) = (&self.name, self.case.guarantee());
        let lanes = self.variant.lanes;
        let session = self.session().map_or_else(String::new, |session| {
            format!(", options: {{ session.timeout.ms: \"{}\" }}", session.as_millis())
        });
        let protocol = self.variant.protocol;
        let source = if self.case.reads_kafka() {
            let topic = &self.source;
            format!(
                r#"kafka: {{ brokers: "${{KAFKA_BROKERS}}", topics: [{topic}], group: {name}, protocol: {protocol}{session} }}"#
            )
        } else {
            format!(r#"file: {{ path: "{}/orders-*.ndjson", follow: true }}"#, self.folder.display())
        };
        let place = |name: &str| {
            if self.case.writes_files() {
                self.variant.form.sink(name)
            } else {
                format!(r#"kafka: {{ brokers: "${{KAFKA_BROKERS}}", topic: {name} }}"#)
            }
        };
        let dead = place(&self.dead);
        let sink = place(&self.sinks[0]);
        let (halves, sinks) = match self.sinks.get(1) {
            None => ("", format!("  totals:\n    {sink}")),
            Some(other) => (
                "  - name: halves\n    route:\n      even: mod(to_int!(.n), 2) == 0\n",
                format!(
                    "  even:\n    from: halves.even\n    {sink}\n  odd:\n    from: halves.else\n    {}",
                    place(other)
                ),
            ),
        };
        format!(
            r#"
name: {name}
guarantee: {guarantee}
commit: {{ interval: 250ms }}
parallelism: {lanes}
sources:
  orders:
    {source}
transforms:
  - name: wanted
    filter: .level != "debug"
  - name: priced
    map: |
      .total = to_int!(.price) * to_int!(.qty)
      del(.qty)
{halves}sinks:
{sinks}
dead_letter:
  {dead}
"#
        )
    }

    /// The session's length, where the pipeline says it. With `consumer` the broker does.
    fn session(&self) -> Option<Duration> {
        self.variant.session.filter(|_| self.variant.protocol != "consumer")
    }

    /// Sets what the topics of the sinks take. Tells whether the broker has answered.
    pub(crate) fn set_limit(&self, bytes: &str) -> bool {
        self.sinks.iter().all(|sink| self.broker.set_topic(sink, LIMIT, bytes))
    }

    /// What was drawn for it, for people.
    pub(crate) fn variant(&self) -> String {
        let Variant { session: _, lanes, halves: _, form, backlog, protocol } = self.variant;
        let form = if self.case.writes_files() { form.describe() } else { "topics".to_owned() };
        format!(
            "{lanes} lanes, {} sinks, {form}, {backlog} s of backlog, protocol {protocol}, session {}",
            self.sinks.len(),
            self.session().map_or("by default".to_owned(), |session| format!("{session:?}"))
        )
    }

    /// For how many seconds records were supplied before the first process starts.
    pub(crate) fn backlog(&self) -> u64 {
        self.variant.backlog
    }

    /// Who puts records in.
    pub(crate) fn supplier(&self) -> Supplier {
        if self.case.reads_kafka() {
            Supplier::Topic { writer: self.broker.writer(&self.source), poisons: !self.case.writes_files() }
        } else {
            let open = |number| {
                let path = self.folder.join(format!("orders-{number}.ndjson"));
                File::options().create(true).append(true).open(path).expect("the target folder can be written")
            };
            Supplier::Files((0..PARTITIONS).map(open).collect())
        }
    }

    /// Whether the input itself is as it was meant to be: each of the first `count` records once, in the order of its
    /// key. What the broker repeated in it, the pipeline could not know.
    pub(crate) fn check_input(&self, count: u64) {
        if !self.case.reads_kafka() {
            return;
        }
        let mut next: Vec<u64> = (0..KEYS).collect();
        self.broker.reader(&self.source).see_to_end(Duration::from_mins(2), |record| {
            let n = crate::records::id_in(&record.value).expect("each record has its number");
            let key = usize::try_from(n % KEYS).expect("keys are few");
            assert_eq!(n, next[key], "the input has its records once and in order");
            next[key] += KEYS;
        });
        assert!(next.iter().all(|next| *next >= count), "the input has all records: {next:?} of {count}");
    }

    /// Whether all of the input is committed, where the group tells.
    pub(crate) fn is_all_committed(&self) -> bool {
        self.broker.is_all_committed(&self.name, &self.source)
    }

    /// What the group has committed and where the source ends.
    pub(crate) fn standing(&self) -> String {
        let committed = self.broker.committed_offsets(&self.name, &self.source);
        format!("committed {committed:?} of {:?}", self.broker.end_offsets(&self.source))
    }

    /// Reads all that came out. `folders` are what the file sinks of each process write to.
    pub(crate) fn read_output(&self, account: &mut Account, folders: &[PathBuf]) {
        if self.case.writes_files() {
            for folder in folders {
                self.read_files(account, folder);
            }
        } else {
            self.read_topics(account);
        }
    }

    fn read_topics(&self, account: &mut Account) {
        for sink in &self.sinks {
            let stream = |partition| Stream::new(format!("{sink}[{partition}]"), true);
            let mut streams: Vec<_> = (0..PARTITIONS).map(stream).collect();
            self.broker.reader(sink).see_to_end(Duration::from_mins(2), |record| {
                let partition = usize::try_from(record.partition).expect("it is one of ours");
                let offset = u64::try_from(record.offset).expect("offsets are positive");
                account.delivered(&mut streams[partition], offset, &record.value);
            });
        }
        let dead = Stream::new(self.dead.clone(), false);
        self.broker.reader(&self.dead).see_to_end(Duration::from_mins(2), |record| {
            account.dead_letter(&dead, u64::try_from(record.offset).expect("offsets are positive"), &record.value);
        });
    }

    fn read_files(&self, account: &mut Account, folder: &Path) {
        // The files of one process hold all records of a key only where it has no others beside it.
        let mut totals = Stream::new(String::new(), !self.case.reads_kafka());
        let mut dead = Stream::new(String::new(), false);
        for path in files::list(folder) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let is_sink = self.sinks.iter().any(|sink| name.starts_with(sink.as_str()));
            let is_dead = name.starts_with(&self.dead);
            if !(is_sink || is_dead) {
                continue;
            }
            totals.goes_on_in(path.display().to_string());
            dead.goes_on_in(path.display().to_string());
            let read = files::read_lines(&path, |number, line| {
                if is_sink {
                    account.delivered(&mut totals, number, line);
                } else {
                    account.dead_letter(&dead, number, line);
                }
            });
            if let Err(damaged) = read {
                account.damaged(damaged);
            }
        }
    }

    /// How its file sinks write, if it has any.
    pub(crate) fn form(&self) -> Option<Form> {
        self.case.writes_files().then_some(self.variant.form)
    }
}

/// The year 2099, in milliseconds since the Unix epoch.
const TOO_LATE: i64 = 4_080_000_000_000;

/// Puts records in.
pub(crate) enum Supplier {
    Topic { writer: Writer, poisons: bool },
    Files(Vec<File>),
}

impl Supplier {
    /// Puts in the records of a range.
    pub(crate) fn supply(&mut self, from: u64, to: u64) {
        match self {
            Self::Topic { writer, poisons } => {
                for n in from..to {
                    let mut record = Record::new(body(n)).key(key(n));
                    if *poisons && Kind::of(n) == Kind::Poison {
                        record = record.at(TOO_LATE);
                    }
                    writer.send(&record);
                }
            }
            Self::Files(files) => {
                let count = u64::from(PARTITIONS.unsigned_abs());
                for (number, file) in (0..).zip(files) {
                    let mine = (from..to).filter(|n| n % KEYS % count == number);
                    let lines: String = mine.flat_map(|n| [body(n), "\n".to_owned()]).collect();
                    // Half a line now and half later: only whole lines are records.
                    let (now, later) = lines.as_bytes().split_at(lines.len() * 2 / 3);
                    file.write_all(now).and_then(|()| file.write_all(later)).expect("the target folder can be written");
                }
            }
        }
    }

    /// Waits until all of it is there.
    pub(crate) fn finish(&self) {
        if let Self::Topic { writer, .. } = self {
            writer.flush();
        }
    }
}
