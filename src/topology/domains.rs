//! A pipeline of one or several epoch domains. Each is supervised by itself: a sink that blocks one blocks no other, as
//! long as the buffer between them has room.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio_util::sync::CancellationToken;

use super::host::Host;
use super::supervisor::{PipelineEnd, supervise};
use crate::clients::buffer::Link;
use crate::plan::Domain;

/// How often the buffers are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Runs a pipeline, cut into its domains, until all of them have ended.
pub(super) async fn run(mut domains: Vec<Domain>, host: Host, stop: CancellationToken) -> PipelineEnd {
    if domains.len() == 1
        && let Some(only) = domains.pop()
    {
        return supervise(only.plan, host, stop).await;
    }
    let pipeline = domains.first().map(|domain| Arc::clone(&domain.plan.name)).unwrap_or_default();
    let buffers: Vec<_> = domains.iter().flat_map(|domain| domain.writes.clone()).collect();
    let memory = (host.memory / domains.len() as u64).max(1);
    let mut running = FuturesUnordered::new();
    for Domain { plan, reads, writes } in domains {
        let name = plan.domain.clone().unwrap_or_default();
        let host = Host { status: host.status.of_domain(&name), memory, ..host.clone() };
        let supervisor = host.runtime.spawn(supervise(plan, host.clone(), stop.clone()));
        running.push(async move {
            let ended = supervisor.await;
            let end = ended.unwrap_or_else(|error| PipelineEnd::Failed(format!("the supervisor died: {error}")));
            tell_neighbours(&end, &reads, &writes);
            end
        });
    }
    let mut worst = PipelineEnd::Finished;
    let look = look_every_second(&pipeline, &host, &buffers);
    tokio::pin!(look);
    loop {
        tokio::select! {
            biased;
            end = running.next() => match end {
                Some(end) => worst = worse(worst, end),
                None => return worst,
            },
            () = &mut look => return worst,
        }
    }
}

/// What a domain's end means to those that it shares a buffer with. One that was stopped stops with all of them, and its
/// buffers wait for the next start.
fn tell_neighbours(end: &PipelineEnd, reads: &[Link], writes: &[Link]) {
    if *end == PipelineEnd::Stopped {
        // Who waits for room must not wait for one that has stopped.
        reads.iter().for_each(Link::leave);
        return;
    }
    // Nothing more will come. What is there is read to its end.
    writes.iter().for_each(Link::finish);
    if let PipelineEnd::Failed(_) = end {
        reads.iter().for_each(Link::abandon);
    }
}

/// The end of the whole: a failure counts more than a stop, and the first failure is the one to look at.
fn worse(one: PipelineEnd, other: PipelineEnd) -> PipelineEnd {
    match (one, other) {
        (failed @ PipelineEnd::Failed(_), _) | (_, failed @ PipelineEnd::Failed(_)) => failed,
        (PipelineEnd::Stopped, _) | (_, PipelineEnd::Stopped) => PipelineEnd::Stopped,
        (PipelineEnd::Finished, PipelineEnd::Finished) => PipelineEnd::Finished,
    }
}

/// Publishes what of the buffers a person should know, for ever.
async fn look_every_second(pipeline: &Arc<str>, host: &Host, buffers: &[Link]) {
    loop {
        host.runtime.sleep(LOOK).await;
        for buffer in buffers {
            if let Some(damage) = buffer.log_if_open().and_then(|log| log.stats().damage) {
                host.status.note(pipeline, buffer.stage(), damage);
            }
        }
    }
}
