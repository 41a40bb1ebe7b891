//! Which stage holds the others up: the one that works while those before it wait for room.

use std::sync::Arc;

use super::parts::Parts;
use crate::observe::{PipelineMetrics, StageMetrics};
use crate::plan::Plan;

/// A stage counts as blocked if it waited for room in more than this share of the time.
const BLOCKED: f64 = 0.2;

/// Watches how the stages of a pipeline spend their time.
pub(super) struct Bottleneck {
    stages: Vec<Watched>,
    named: Option<Arc<str>>,
}

struct Watched {
    name: Arc<str>,
    metrics: StageMetrics,
    /// Where nothing is behind a stage, waiting for room is waiting for the outside world: its own work.
    last: bool,
    before: [f64; 3],
}

impl Bottleneck {
    pub(super) fn of(plan: &Plan, parts: &Parts) -> Self {
        let watched = |name: &Arc<str>, metrics: &StageMetrics, last| Watched {
            name: Arc::clone(name),
            metrics: metrics.clone(),
            last,
            before: times(metrics),
        };
        let sources = plan.sources.iter().zip(&parts.sources).map(|(s, part)| watched(&s.name, &part.metrics, false));
        let transforms =
            plan.transforms.iter().zip(&parts.transforms).map(|(stage, metrics)| watched(&stage.name, metrics, false));
        let sinks = parts.all_sinks(plan).map(|(stage, part)| watched(&stage.name, &part.metrics, true));
        Self { stages: sources.chain(transforms).chain(sinks).collect(), named: None }
    }

    /// Names the bottleneck of the time since the last look, or nobody.
    pub(super) fn look(&mut self, metrics: &PipelineMetrics) {
        let mut somebody_waits = false;
        let mut most: Option<(f64, Arc<str>)> = None;
        for stage in &mut self.stages {
            let now = times(&stage.metrics);
            let [busy, idle, blocked] = std::array::from_fn(|at| now[at] - stage.before[at]);
            stage.before = now;
            let all = busy + idle + blocked;
            somebody_waits |= !stage.last && all > 0.0 && blocked / all > BLOCKED;
            let work = if stage.last { busy + blocked } else { busy };
            if most.as_ref().is_none_or(|(most, _)| work > *most) {
                most = Some((work, Arc::clone(&stage.name)));
            }
        }
        let found = most.filter(|_| somebody_waits).map(|(_, name)| name);
        if found != self.named {
            if let Some(name) = &self.named {
                metrics.bottleneck(name, false);
            }
            if let Some(name) = &found {
                metrics.bottleneck(name, true);
            }
            self.named = found;
        }
    }
}

fn times(metrics: &StageMetrics) -> [f64; 3] {
    [metrics.busy_seconds.get(), metrics.idle_seconds.get(), metrics.blocked_seconds.get()]
}
