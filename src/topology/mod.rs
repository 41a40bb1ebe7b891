//! What runs: stages, channels, epochs, supervision. The only code that spawns tasks and owns channels.

mod backoff;
mod bottleneck;
mod channel;
mod commits;
mod domains;
mod epoch;
mod failure;
mod host;
mod inputs;
mod ledger;
mod outputs;
mod pace;
mod parts;
mod progress;
mod quarantine;
mod report;
mod stage;
mod supervisor;
mod suspicion;
#[cfg(test)]
mod testing;
mod trouble;
mod wiring;

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

pub use host::Host;
pub use supervisor::PipelineEnd;

use crate::plan::{Domain, Plan};

/// Runs pipelines beside each other until each has ended; none notices the failure of another. After `stop` each closes
/// its epoch, commits it and ends.
pub async fn run(plans: Vec<Plan>, host: Host, stop: CancellationToken) -> Vec<(Arc<str>, PipelineEnd)> {
    run_domains(plans.iter().map(Plan::domains).collect(), host, stop).await
}

/// The same for pipelines that are cut into their domains already. None of them is without a domain.
pub(crate) async fn run_domains(
    pipelines: Vec<Vec<Domain>>,
    host: Host,
    stop: CancellationToken,
) -> Vec<(Arc<str>, PipelineEnd)> {
    let pipelines: Vec<_> = pipelines
        .into_iter()
        .filter_map(|domains| {
            let name = Arc::clone(&domains.first()?.plan.name);
            Some((name, host.runtime.spawn(domains::run(domains, host.clone(), stop.clone()))))
        })
        .collect();
    let mut ends = Vec::new();
    for (name, pipeline) in pipelines {
        let end = pipeline.await.unwrap_or_else(|error| PipelineEnd::Failed(format!("the supervisor died: {error}")));
        ends.push((name, end));
    }
    ends
}
