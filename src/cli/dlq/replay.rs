//! `weir dlq replay`: letters go back into the stages that refused them, in a pipeline that ends when they are through.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::future;
use tokio_util::sync::CancellationToken;

use super::archive::{Archive, Chosen, once};
use super::progress::{Names, Progress};
use super::show::parsed;
use super::{Opened, Stop, counted, told};
use crate::cli::run::Signals;
use crate::cli::{FAILED, FINE};
use crate::clients::letters::Place;
use crate::clients::letters::replay::{Selection, is_json};
use crate::delivery::{Letter, checkpoint};
use crate::observe::{Metrics, StatusBoard, logs};
use crate::plan::Plan;
use crate::record::BodyFormat;
use crate::runtime::Runtime;
use crate::state::{DataDir, DiskStore, Store, instance_id};
use crate::topology::{self, Host, PipelineEnd};

/// So many letters can be named one by one: the name of their consumer group lists them.
const MOST_PLACES: usize = 100;
/// How often the start is looked at,
const LOOK: Duration = Duration::from_millis(200);
/// and how long a stage may be in trouble there before the replay is given up. A daemon would wait for ever.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long threads that block in a client's call may hold up the end.
const LEAVE_WITHIN: Duration = Duration::from_secs(1);

/// Which letters are to be replayed.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) stage: Option<String>,
    pub(super) limit: Option<usize>,
    pub(super) dry_run: bool,
    pub(super) places: Vec<String>,
}

/// What was found of them.
#[derive(Debug, Default)]
struct Picked {
    /// By stage, what is to be replayed.
    letters: BTreeMap<Arc<str>, Selection>,
    /// Those that were named, as far as they were found.
    found: BTreeSet<Place>,
    replayed_before: u64,
    cut: u64,
    damaged: u64,
    of_other_stages: u64,
    beyond_limit: u64,
}

impl Picked {
    fn len(&self) -> usize {
        self.letters.values().map(Selection::len).sum()
    }
}

/// Replays letters. Returns the exit code.
pub(super) fn replay(opened: &Opened, through: Option<Plan>, asked: &Asked, out: &mut dyn Write) -> Result<u8, Stop> {
    let runtime = Runtime::system();
    let settings = &opened.settings;
    logs::init(settings.log.style, settings.log.level.clone(), runtime.clock()).map_err(Stop::failed)?;
    let names = Names::of(&opened.plan.name);
    let mut plan = through.unwrap_or_else(|| opened.plan.clone());
    // What was replayed is stored by the name of the pipeline whose letters they are.
    plan.name = Arc::clone(&opened.plan.name);
    if let Some(stage) = &asked.stage {
        plan.decodes(stage).map_err(Stop::invalid)?;
    }
    let tokio = tokio::runtime::Builder::new_multi_thread().thread_name("weir").enable_all().build();
    let tokio = tokio.map_err(|error| Stop::failed(format!("cannot start: {error}")))?;
    let data = Data::open(opened, &plan)?;
    let progress = tokio.block_on(data.progress(opened, &names))?;
    let picked = pick(opened, asked, &progress, runtime.clock())?;
    for stage in picked.letters.keys() {
        plan.decodes(stage).map_err(|error| {
            let next = "name the stages that are meant with `--stage`, or replay `--through` a file that has them all";
            Stop::invalid(format!("letters were refused by a stage that is not there: {error}; {next}"))
        })?;
    }
    if asked.dry_run || picked.len() == 0 {
        return Ok(told(say_what_would_be(opened, &picked, asked.dry_run, out)));
    }

    let chosen_one_by_one = !asked.places.is_empty();
    let mut letters = Vec::new();
    let mut choices = Vec::new();
    for (stage, selection) in &picked.letters {
        let once = chosen_one_by_one.then(|| once(selection));
        let selection = Arc::new(selection.clone());
        let decoded_by = plan.decodes(stage).map_err(Stop::invalid)?;
        let chosen = Chosen { stage, once: once.as_deref(), selection: Arc::clone(&selection), decoded_by };
        letters.push((Arc::clone(stage), opened.archive.source(&names, chosen).map_err(Stop::failed)?));
        prepare(&opened.archive, &names, stage, once.as_deref(), &progress, &data.instance)?;
        choices.push((Arc::clone(stage), selection));
    }
    let plan = plan.replaying(letters).map_err(Stop::invalid)?;
    let end = tokio.block_on(run(&plan, &data, settings.memory, settings.grace, runtime));
    let result = end.and_then(|end| {
        let after = tokio.block_on(data.progress(opened, &names))?;
        let came_through = choices
            .iter()
            .flat_map(|(stage, selection)| selection.places().map(move |place| (stage, place)))
            .filter(|(stage, place)| after.has(stage, *place))
            .count();
        Ok(told(end.say(&plan, &picked, came_through, out)))
    });
    tokio.shutdown_timeout(LEAVE_WITHIN);
    result
}

/// Chooses the letters that are to be replayed.
fn pick(opened: &Opened, asked: &Asked, progress: &Progress, clock: crate::clock::Clock) -> Result<Picked, Stop> {
    let places = asked.places.iter().map(|place| parsed(opened, place)).collect::<Result<BTreeSet<_>, _>>()?;
    if places.len() > MOST_PLACES {
        return Err(Stop::invalid(format!("at most {MOST_PLACES} letters can be named one by one")));
    }
    let mut picked = Picked::default();
    let limit = asked.limit.unwrap_or(usize::MAX);
    let mut visit = |place: Place, letter: Result<Letter, _>| {
        if !places.is_empty() {
            if !places.contains(&place) {
                return ControlFlow::Continue(());
            }
            picked.found.insert(place);
        }
        match letter {
            Err(_) => picked.damaged += 1,
            Ok(letter) if asked.stage.as_ref().is_some_and(|stage| *stage != letter.stage) => {
                picked.of_other_stages += 1;
            }
            Ok(letter) if letter.cut_from.is_some() => picked.cut += 1,
            Ok(letter) if letter.format == Some(BodyFormat::Json) && !is_json(&letter.body) => picked.damaged += 1,
            Ok(letter) if progress.has(&letter.stage, place) => picked.replayed_before += 1,
            Ok(_) if picked.len() >= limit => picked.beyond_limit += 1,
            Ok(letter) => picked.letters.entry(letter.stage.into()).or_default().add(place),
        }
        ControlFlow::Continue(())
    };
    opened.archive.scan(clock, &mut visit).map_err(Stop::failed)?;
    if let Some(missing) = places.difference(&picked.found).next() {
        return Err(Stop::invalid(format!("there is no letter at {}", opened.archive.keeper().full(*missing))));
    }
    Ok(picked)
}

/// Sees to it that a consumer group can go on: nobody else is in it, and where it stands the topic still has letters.
fn prepare(
    archive: &Archive,
    names: &Names,
    stage: &str,
    once: Option<&str>,
    progress: &Progress,
    instance: &str,
) -> Result<(), Stop> {
    let Archive::Topic(topic) = archive else { return Ok(()) };
    let group = names.group(stage, once);
    // A static member's id begins with the instance; one that was killed stays for its session.
    if let Some(other) = progress.members(&group).iter().find(|member| !member.starts_with(instance)) {
        return Err(Stop::failed(format!(
            "`{other}` replays letters of `{stage}` right now, as a member of group `{group}`: wait until it has ended"
        )));
    }
    if once.is_some() {
        return Ok(());
    }
    let beginnings = topic.beginnings().map_err(Stop::failed)?;
    let gone: BTreeMap<i32, i64> = progress
        .before(stage)
        .into_iter()
        .filter_map(|(partition, at)| Some((partition, *beginnings.get(&partition).filter(|first| at < **first)?)))
        .collect();
    if gone.is_empty() {
        return Ok(());
    }
    tracing::warn!(stage, "the topic has deleted letters that were never replayed: the replay begins behind them");
    topic.commit(&group, &gone).map_err(Stop::failed)
}

/// What survives a replay, held by it alone.
struct Data {
    dir: DataDir,
    store: Arc<DiskStore>,
    instance: Arc<str>,
    /// The replays' own folder, where another one is needed beside it.
    own: Option<(DataDir, Arc<DiskStore>)>,
}

impl Data {
    /// Where no file is involved, a replay has a folder of its own, and works beside the daemon. Where letters are in a file,
    /// or records go to one, the daemon's own store knows how far that file is written, so its folder must be free.
    fn open(opened: &Opened, plan: &Plan) -> Result<Self, Stop> {
        let settings = &opened.settings;
        let in_file = matches!(opened.archive, Archive::Files(_));
        let to_file = plan.sinks.iter().chain(&plan.dead_letter).any(|sink| sink.kind == "file");
        let take = |path: &Path, next: &str| {
            let dir = DataDir::take_to_stay(path).map_err(|error| Stop::failed(format!("{error}; {next}")))?;
            let store = DiskStore::open(&dir.store()).map_err(|error| Stop::failed(error.to_string()))?;
            Ok::<_, Stop>((dir, Arc::new(store)))
        };
        let other = "another replay of this pipeline's letters is under way; wait until it has ended";
        let daemon =
            "dead letters in a file, or for a file, can be replayed only while the daemon that writes it is stopped";
        let own = if in_file { None } else { Some(take(&opened.own_folder(), other)?) };
        let ((dir, store), own) = match own {
            Some(own) if !to_file => (own, None),
            own => (take(&settings.data_dir, daemon)?, own),
        };
        let instance = match &settings.instance {
            Some(instance) => Arc::from(instance.as_str()),
            None => instance_id(dir.path()).map_err(|error| Stop::failed(error.to_string()))?,
        };
        Ok(Self { dir, store, instance, own })
    }

    async fn progress(&self, opened: &Opened, names: &Names) -> Result<Progress, Stop> {
        let progress = match &opened.archive {
            Archive::Topic(topic) => {
                let own = self.own.as_ref().map_or(&self.store, |(_, store)| store);
                Progress::of_topic(topic, names, Some(&**own)).await
            }
            Archive::Files(files) => {
                let scope = checkpoint::scope(&opened.plan.name);
                let entries = self.store.load(&scope).await.map_err(|error| Stop::failed(error.to_string()))?;
                Progress::of_files(files, &entries)
            }
        };
        progress.map_err(Stop::failed)
    }
}

/// How a replay ended.
struct End {
    end: PipelineEnd,
    metrics: Metrics,
}

/// Runs the plan until its letters are through, or somebody asks it to stop.
async fn run(plan: &Plan, data: &Data, memory: u64, grace: Duration, runtime: Runtime) -> Result<End, Stop> {
    let mut signals = Signals::listen().map_err(|error| Stop::failed(format!("cannot wait for signals: {error}")))?;
    let metrics = Metrics::new();
    let status = StatusBoard::default();
    let host = Host {
        runtime: runtime.clone(),
        metrics: metrics.clone(),
        status: status.clone(),
        store: Arc::clone(&data.store) as _,
        instance: Arc::clone(&data.instance),
        data_dir: Arc::clone(data.dir.path()),
        memory,
    };
    let stop = CancellationToken::new();
    let pipeline = topology::run(vec![plan.clone()], host, stop.clone());
    tokio::pin!(pipeline);
    let ends = tokio::select! {
        biased;
        ends = &mut pipeline => ends,
        why = cannot_begin(plan, &metrics, &status, &runtime) => {
            stop.cancel();
            tokio::select! {
                biased;
                _ = &mut pipeline => {}
                () = runtime.sleep(grace) => {}
            }
            return Err(Stop::failed(format!("the replay cannot begin: {why}; nothing was replayed")));
        }
        _ = signals.next() => {
            stop.cancel();
            tokio::select! {
                biased;
                ends = &mut pipeline => ends,
                _ = signals.next() => return Err(left_behind()),
                () = runtime.sleep(grace) => return Err(left_behind()),
            }
        }
    };
    let end = ends.into_iter().next().map(|(_, end)| end);
    let end = end.ok_or_else(|| Stop::failed("the replay has ended without a word"))?;
    Ok(End { end, metrics })
}

fn left_behind() -> Stop {
    Stop::failed("left at once: what was under way is not committed, and is replayed the next time")
}

/// Resolves with the reason if a stage is in trouble for long before the first letter was read.
async fn cannot_begin(plan: &Plan, metrics: &Metrics, status: &StatusBoard, runtime: &Runtime) -> String {
    let sources = plan.sources.iter().map(|source| metrics.stage(&plan.name, &source.name, "source", source.kind));
    let sources: Vec<_> = sources.collect();
    let mut since = None;
    loop {
        runtime.sleep(LOOK).await;
        if sources.iter().any(|source| source.received_records.get() > 0) {
            return future::pending().await;
        }
        // What is tried again and again is in no trouble for a moment in between.
        let Some(status) = status.get(&plan.name) else { continue };
        let Some(reason) = status.reason else { continue };
        let now = runtime.clock().now();
        if now.duration_since(*since.get_or_insert(now)) >= PATIENCE {
            return status.stage.map_or_else(|| reason.clone(), |stage| format!("`{stage}`: {reason}"));
        }
    }
}

impl End {
    /// Tells how it went. Returns the exit code.
    fn say(&self, plan: &Plan, picked: &Picked, came_through: usize, out: &mut dyn Write) -> io::Result<u8> {
        let sent = |name: &str, kind: &str| self.metrics.stage(&plan.name, name, "sink", kind).sent_records.get();
        let delivered: u64 = plan.sinks.iter().map(|sink| sent(&sink.name, sink.kind)).sum();
        let again = plan.dead_letter.as_ref().map_or(0, |sink| sent(&sink.name, sink.kind));
        let replayed = counted(came_through as u64, "letter");
        write!(out, "replayed {replayed}: {} delivered", counted(delivered, "record"))?;
        if again > 0 {
            write!(out, ", {again} refused again")?;
        }
        writeln!(out)?;
        say_what_was_skipped(picked, out)?;
        let left = picked.len() - came_through;
        if left > 0 {
            writeln!(out, "left for the next time: {left}")?;
        }
        out.flush()?;
        match &self.end {
            PipelineEnd::Finished if left == 0 => Ok(FINE),
            PipelineEnd::Finished | PipelineEnd::Stopped => Ok(FAILED),
            PipelineEnd::Failed(reason) => {
                eprintln!("the replay has failed: {reason}");
                Ok(FAILED)
            }
        }
    }
}

fn say_what_was_skipped(picked: &Picked, out: &mut dyn Write) -> io::Result<()> {
    let skipped = [
        (picked.replayed_before, "replayed before"),
        (picked.cut, "cut, so that the record is not whole"),
        (picked.damaged, "damaged, or no letter at all"),
        (picked.of_other_stages, "of other stages"),
        (picked.beyond_limit, "beyond the limit"),
    ];
    let skipped: Vec<_> =
        skipped.into_iter().filter(|(count, _)| *count > 0).map(|(count, why)| format!("{count} {why}")).collect();
    if skipped.is_empty() { Ok(()) } else { writeln!(out, "skipped: {}", skipped.join("; ")) }
}

fn say_what_would_be(opened: &Opened, picked: &Picked, dry_run: bool, out: &mut dyn Write) -> io::Result<u8> {
    let keeper = opened.archive.keeper();
    for (stage, selection) in &picked.letters {
        writeln!(out, "{} into `{stage}`:", counted(selection.len() as u64, "letter"))?;
        for place in selection.places() {
            writeln!(out, "  {}", keeper.short(place))?;
        }
    }
    if picked.len() == 0 {
        writeln!(out, "there is nothing to replay")?;
    } else if dry_run {
        writeln!(out, "{} would be replayed", counted(picked.len() as u64, "letter"))?;
    }
    say_what_was_skipped(picked, out)?;
    out.flush()?;
    Ok(FINE)
}
