//! `weir run`: the daemon, from its settings to its exit code.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::SignalStream;
use tokio_stream::{Stream, StreamExt};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::load::load_plans;
use super::{FAILED, FINE, INVALID};
use crate::config::Settings;
use crate::observe::{Admin, Metrics, Phase, PipelineState, PipelineStatus, StatusBoard, logs};
use crate::plan::Plan;
use crate::runtime::Runtime;
use crate::state::{DataDir, DiskStore, instance_id};
use crate::topology::{self, Host, PipelineEnd};

/// How often the scheduler shows that it is alive.
const BEAT: Duration = Duration::from_secs(5);
/// How long threads that block in a client's call may hold up the end, when all is committed.
const LEAVE_WITHIN: Duration = Duration::from_secs(1);

/// Runs the pipelines until all have ended or the process is asked to stop. Returns the exit code.
pub(super) fn run(config: Option<&Path>, paths: &[PathBuf]) -> u8 {
    let settings = match Settings::load(config) {
        Ok(settings) => settings,
        Err(mistakes) => {
            eprintln!("{mistakes}");
            return INVALID;
        }
    };
    let runtime = Runtime::system();
    if let Err(error) = logs::init(settings.log.style, settings.log.level.clone(), runtime.clock()) {
        eprintln!("{error}");
        return FAILED;
    }
    let plans = match load_plans(paths) {
        Ok(plans) => plans,
        Err(mistakes) => {
            eprint!("{mistakes}");
            return INVALID;
        }
    };
    // Weir's own workers hardly block; threads for work that does are made as it comes.
    let tokio = match tokio::runtime::Builder::new_multi_thread().thread_name("weir").enable_all().build() {
        Ok(tokio) => tokio,
        Err(error) => {
            error!(%error, "cannot start");
            return FAILED;
        }
    };
    match tokio.block_on(serve(plans, &settings, runtime)) {
        Ok(End::Orderly(code)) => {
            tokio.shutdown_timeout(LEAVE_WITHIN);
            code
        }
        Ok(End::Abandoned) => {
            tokio.shutdown_background();
            FAILED
        }
        Err(error) => {
            error!("cannot start: {error}");
            FAILED
        }
    }
}

/// How the process ends.
enum End {
    /// Every pipeline has ended by itself.
    Orderly(u8),
    /// Some had to be left as they were.
    Abandoned,
}

async fn serve(plans: Vec<Plan>, settings: &Settings, runtime: Runtime) -> Result<End, String> {
    let mut signals = Signals::listen().map_err(|error| format!("cannot wait for signals: {error}"))?;
    let status = StatusBoard::default();
    let metrics = Metrics::new();
    let admin = match &settings.admin.listen {
        Some(listen) => Some(
            Admin::start(listen, metrics.clone(), status.clone(), runtime.clone())
                .await
                .map_err(|error| error.to_string())?,
        ),
        None => None,
    };
    let data = Data::open(settings).map_err(|error| error.to_string())?;
    let data_dir = Arc::clone(data.dir.path());
    let heart = runtime.spawn(beat(status.clone(), runtime.clone()));
    for plan in &plans {
        status.publish(starting(plan, &runtime));
    }
    info!(
        version = env!("CARGO_PKG_VERSION"),
        pipelines = plans.len(),
        instance = &*data.instance,
        data_dir = %data_dir.display(),
        admin = admin.as_ref().map_or_else(|| "off".to_owned(), |admin| admin.address().to_string()),
        "weir is running"
    );

    let stop = CancellationToken::new();
    let host = Host {
        runtime: runtime.clone(),
        metrics,
        status: status.clone(),
        store: data.store,
        instance: data.instance,
        data_dir,
        memory: settings.memory,
    };
    let pipelines = topology::run(plans, host, stop.clone());
    tokio::pin!(pipelines);
    status.set_phase(Phase::Ready);
    let ends = tokio::select! {
        biased;
        ends = &mut pipelines => Some(ends),
        name = signals.next() => {
            info!(signal = name, "stopping: closing the open epochs");
            status.set_phase(Phase::Stopping);
            stop.cancel();
            tokio::select! {
                biased;
                ends = &mut pipelines => Some(ends),
                name = signals.next() => {
                    warn!(signal = name, "asked twice to stop: leaving at once");
                    None
                }
                () = runtime.sleep(settings.grace) => {
                    warn!(grace = ?settings.grace, "the pipelines did not stop within the grace period: leaving");
                    None
                }
            }
        }
    };

    heart.abort();
    let end = if let Some(ends) = ends {
        End::Orderly(tell_ends(&ends))
    } else {
        tell_uncommitted(&status);
        End::Abandoned
    };
    if let Some(admin) = admin {
        admin.stop().await;
    }
    Ok(end)
}

/// What survives the process, held by it alone.
struct Data {
    dir: DataDir,
    store: Arc<DiskStore>,
    instance: Arc<str>,
}

impl Data {
    fn open(settings: &Settings) -> Result<Self, crate::state::StoreError> {
        let dir = DataDir::take_to_stay(&settings.data_dir)?;
        let store = Arc::new(DiskStore::open(&dir.store())?);
        let instance = match &settings.instance {
            Some(instance) => Arc::from(instance.as_str()),
            None => instance_id(dir.path())?,
        };
        Ok(Self { dir, store, instance })
    }
}

fn starting(plan: &Plan, runtime: &Runtime) -> PipelineStatus {
    PipelineStatus {
        pipeline: Arc::clone(&plan.name),
        state: PipelineState::Starting,
        since: runtime.clock().wall().as_secs_f64(),
        stage: None,
        reason: None,
        last_commit: None,
        epoch: 0,
        restarts: 0,
    }
}

/// Shows that the workers still take turns. What `/live` tells is whether they do.
async fn beat(status: StatusBoard, runtime: Runtime) {
    loop {
        status.beat("scheduler", runtime.clock().now());
        runtime.sleep(BEAT).await;
    }
}

/// Says how each pipeline ended, and what the process is to answer.
fn tell_ends(ends: &[(Arc<str>, PipelineEnd)]) -> u8 {
    let mut code = FINE;
    for (pipeline, end) in ends {
        match end {
            PipelineEnd::Finished => info!(%pipeline, "finished: all that its sources have is committed"),
            PipelineEnd::Stopped => info!(%pipeline, "stopped: all that it read is committed"),
            PipelineEnd::Failed(reason) => {
                error!(%pipeline, "failed: {reason}");
                code = FAILED;
            }
        }
    }
    code
}

/// Says for which pipelines the last commit is not the end of what was read.
fn tell_uncommitted(status: &StatusBoard) {
    for left in status.all().into_iter().filter(|left| !left.state.is_over()) {
        error!(
            pipeline = %left.pipeline,
            state = ?left.state,
            epoch = left.epoch,
            last_commit = left.last_commit,
            stage = left.stage,
            reason = left.reason,
            "left behind: what it read after this epoch is not committed, and is read again at the next start"
        );
    }
}

/// The signals that ask the process to stop.
pub(super) struct Signals(Pin<Box<dyn Stream<Item = &'static str> + Send>>);

impl Signals {
    pub(super) fn listen() -> std::io::Result<Self> {
        let of = |kind, name| Ok::<_, std::io::Error>(SignalStream::new(signal(kind)?).map(move |()| name));
        let terminate = of(SignalKind::terminate(), "SIGTERM")?;
        let interrupt = of(SignalKind::interrupt(), "SIGINT")?;
        // Of a terminal that was closed. Left alone it would end the process with its epochs open.
        Ok(Self(Box::pin(terminate.merge(interrupt).merge(of(SignalKind::hangup(), "SIGHUP")?))))
    }

    /// Waits for one of them.
    pub(super) async fn next(&mut self) -> &'static str {
        match self.0.next().await {
            Some(name) => name,
            // The runtime is going down: nobody will hear of another one.
            None => std::future::pending().await,
        }
    }
}
