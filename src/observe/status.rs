//! The status of the process and of every pipeline, as `topology` and `cli` publish it and the
//! admin server reads it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;

use crate::clock::Instant;

/// How old the last beat of a heart may be. Beats come every few seconds; a minute without one is no pause of a busy
/// machine.
const HEARTBEAT_LIMIT: Duration = Duration::from_mins(1);

/// What a pipeline is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PipelineState {
    /// Not running yet: connecting, or fencing an earlier process.
    Starting,
    /// Records move, or none wait.
    Running,
    /// Records wait and no epoch has committed for longer than it should take.
    Stuck,
    /// It failed and waits before it starts again.
    BackingOff,
    /// It failed again and again without a commit in between. It is tried again now and then, for ever.
    Failing,
    /// It has ended, and a person must act.
    Failed,
    /// Every finite source was read to its end, and all of it is committed.
    Finished,
    /// It was asked to stop, and did.
    Stopped,
}

impl PipelineState {
    /// Whether it does what it was asked to do.
    #[must_use]
    pub fn is_ready(self) -> bool {
        matches!(self, Self::Running | Self::Finished | Self::Stopped)
    }

    /// How much it asks for a person.
    fn gravity(self) -> u8 {
        match self {
            Self::Finished => 0,
            Self::Stopped => 1,
            Self::Running => 2,
            Self::Starting => 3,
            Self::Failing | Self::BackingOff => 4,
            Self::Stuck => 5,
            Self::Failed => 6,
        }
    }

    /// Whether nothing of it is left to commit.
    #[must_use]
    pub fn is_over(self) -> bool {
        matches!(self, Self::Finished | Self::Stopped)
    }
}

/// The status of one pipeline.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PipelineStatus {
    /// The pipeline's name.
    pub pipeline: Arc<str>,
    /// What it is doing.
    pub state: PipelineState,
    /// Unix time in seconds since which it is in this state; without progress, since when there was none.
    pub since: f64,
    /// The stage to look at, if there is one.
    pub stage: Option<String>,
    /// Why, for a person.
    pub reason: Option<String>,
    /// Unix time in seconds of the last commit.
    pub last_commit: Option<f64>,
    /// The number of the last committed epoch of this process.
    pub epoch: u64,
    /// How often it went back to the last commit.
    pub restarts: u64,
}

/// What the process is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Reading its files, opening its data folder.
    #[default]
    Starting,
    /// Configured, and all its pipelines handed to their supervisors.
    Ready,
    /// Asked to stop.
    Stopping,
}

/// What is published of the process and of all its pipelines.
#[derive(Debug, Clone, Default)]
pub struct StatusBoard {
    board: Arc<Mutex<Board>>,
    /// The epoch domain whose status is published through this handle; empty where a pipeline is one.
    domain: Arc<str>,
}

#[derive(Debug, Default)]
struct Board {
    phase: Phase,
    pipelines: BTreeMap<Arc<str>, Published>,
    hearts: BTreeMap<Arc<str>, Instant>,
}

/// What is published of one pipeline.
#[derive(Debug, Default)]
struct Published {
    domains: BTreeMap<Arc<str>, PipelineStatus>,
    /// What a person should know though the pipeline goes on, by stage.
    notes: BTreeMap<Arc<str>, String>,
}

impl Published {
    /// The status of the whole: of the domain that fares worst.
    fn whole(&self) -> Option<PipelineStatus> {
        let mut whole = self.domains.values().max_by_key(|status| status.state.gravity())?.clone();
        whole.restarts = self.domains.values().map(|status| status.restarts).sum();
        if let (None, Some((stage, note))) = (&whole.reason, self.notes.first_key_value()) {
            whole.stage = Some(stage.to_string());
            whole.reason = Some(note.clone());
        }
        Some(whole)
    }
}

impl StatusBoard {
    /// A handle through which the status of one epoch domain of a pipeline is published.
    #[must_use]
    pub fn of_domain(&self, domain: &Arc<str>) -> Self {
        Self { board: Arc::clone(&self.board), domain: Arc::clone(domain) }
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes the status of a pipeline, or of one of its domains.
    pub fn publish(&self, status: PipelineStatus) {
        let mut board = self.board();
        let published = board.pipelines.entry(Arc::clone(&status.pipeline)).or_default();
        published.domains.insert(Arc::clone(&self.domain), status);
    }

    /// Publishes what a person should know of a stage, though its pipeline goes on.
    pub fn note(&self, pipeline: &Arc<str>, stage: &Arc<str>, note: String) {
        let mut board = self.board();
        let published = board.pipelines.entry(Arc::clone(pipeline)).or_default();
        published.notes.insert(Arc::clone(stage), note);
    }

    /// The status of one pipeline.
    #[must_use]
    pub fn get(&self, pipeline: &str) -> Option<PipelineStatus> {
        self.board().pipelines.get(pipeline)?.whole()
    }

    /// The status of all pipelines, by name.
    #[must_use]
    pub fn all(&self) -> Vec<PipelineStatus> {
        self.board().pipelines.values().filter_map(Published::whole).collect()
    }

    /// Publishes what the process is doing.
    pub fn set_phase(&self, phase: Phase) {
        self.board().phase = phase;
    }

    /// What the process is doing.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.board().phase
    }

    /// Tells that a task which must never stand still is going on. Its first beat makes it count, until [`Self::rest`].
    pub fn beat(&self, heart: &str, now: Instant) {
        let mut board = self.board();
        match board.hearts.get_mut(heart) {
            Some(last) => *last = now,
            None => drop(board.hearts.insert(heart.into(), now)),
        }
    }

    /// Tells that such a task has ended, as it should.
    pub fn rest(&self, heart: &str) {
        self.board().hearts.remove(heart);
    }

    /// A task that has stood still for so long that only a new process helps, and for how long.
    #[must_use]
    pub fn stopped_heart(&self, now: Instant) -> Option<(Arc<str>, Duration)> {
        let board = self.board();
        let ages = board.hearts.iter().map(|(heart, last)| (heart, now.saturating_duration_since(*last)));
        let (heart, age) = ages.max_by_key(|(_, age)| *age).filter(|(_, age)| *age > HEARTBEAT_LIMIT)?;
        Some((Arc::clone(heart), age))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    fn status(state: PipelineState, restarts: u64) -> PipelineStatus {
        PipelineStatus {
            pipeline: "p".into(),
            state,
            since: 0.0,
            stage: None,
            reason: None,
            last_commit: None,
            epoch: 1,
            restarts,
        }
    }

    #[test]
    fn a_pipeline_fares_as_the_worst_of_its_domains() {
        let board = StatusBoard::default();
        let later = board.of_domain(&"later".into());
        board.publish(status(PipelineState::Finished, 1));
        later.publish(status(PipelineState::Stuck, 2));
        let whole = board.get("p").unwrap();
        assert_eq!((whole.state, whole.restarts, board.all().len()), (PipelineState::Stuck, 3, 1));
        later.publish(status(PipelineState::Running, 2));
        assert_eq!(board.get("p").unwrap().state, PipelineState::Running);
    }

    #[test]
    fn a_note_is_told_as_long_as_nothing_worse_is() {
        let board = StatusBoard::default();
        board.publish(status(PipelineState::Running, 0));
        board.note(&"p".into(), &"later".into(), "a segment is damaged".to_owned());
        let whole = board.get("p").unwrap();
        assert_eq!((whole.stage.as_deref(), whole.reason.as_deref()), (Some("later"), Some("a segment is damaged")));
        let reason = Some("no broker".to_owned());
        board.publish(PipelineStatus { reason, ..status(PipelineState::Stuck, 0) });
        assert_eq!(board.get("p").unwrap().reason.as_deref(), Some("no broker"));
    }

    #[test]
    fn a_heart_counts_from_its_first_beat_until_it_rests() {
        let board = StatusBoard::default();
        let start = Clock::system().now();
        let late = start + HEARTBEAT_LIMIT + Duration::from_secs(1);
        assert_eq!(board.stopped_heart(late), None);

        board.beat("a", start);
        board.beat("b", start + Duration::from_secs(30));
        assert_eq!(board.stopped_heart(start + HEARTBEAT_LIMIT), None);
        assert_eq!(board.stopped_heart(late), Some(("a".into(), HEARTBEAT_LIMIT + Duration::from_secs(1))));

        board.beat("a", late);
        assert_eq!(board.stopped_heart(late), None);
        board.rest("a");
        board.rest("b");
        assert_eq!(board.stopped_heart(late + late.duration_since(start)), None);
    }
}
