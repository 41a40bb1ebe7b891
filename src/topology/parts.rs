//! The components of a pipeline: built once, they outlive runs, so that a rewind costs no connection and no rebalance.

use std::sync::Arc;

use tokio::sync::Mutex;

use super::host::Host;
use super::ledger::{Account, Ledger};
use crate::component::{BoxSink, BoxSource, BuildContext, BuildError, Clients, KeepsPositions};
use crate::delivery::{LocalTransaction, Participants, Transaction, checkpoint};
use crate::observe::StageMetrics;
use crate::plan::{Plan, SinkStage};

/// The components of one pipeline.
pub(super) struct Parts {
    pub(super) sources: Vec<SourcePart>,
    pub(super) transforms: Vec<StageMetrics>,
    pub(super) sinks: Vec<SinkPart>,
    pub(super) dead_letter: Option<SinkPart>,
    pub(super) ledger: Ledger,
}

/// A source.
pub(super) struct SourcePart {
    pub(super) source: Arc<Mutex<BoxSource>>,
    pub(super) metrics: StageMetrics,
}

/// A sink: one instance for each lane, or one for all.
pub(super) struct SinkPart {
    pub(super) instances: Vec<Arc<Mutex<BoxSink>>>,
    pub(super) metrics: StageMetrics,
}

impl Parts {
    /// Builds every component of a plan. Nothing connects yet.
    pub(super) fn build(plan: &Plan, host: &Host) -> Result<Self, BuildError> {
        let clients = Clients::default();
        let context = |name: &Arc<str>, metrics: &StageMetrics| BuildContext {
            pipeline: Arc::clone(&plan.name),
            component: Arc::clone(name),
            instance: Arc::clone(&host.instance),
            data_dir: Arc::clone(&host.data_dir),
            store: Arc::clone(&host.store),
            memory: plan.memory.unwrap_or(host.memory),
            transactional: plan.transactional,
            runtime: host.runtime.clone(),
            metrics: metrics.clone(),
            clients: clients.clone(),
        };
        let place = |name: &Arc<str>, error: BuildError| BuildError(format!("cannot build `{name}`: {error}"));

        let mut sources = Vec::new();
        let mut accounts = Vec::new();
        for stage in &plan.sources {
            let metrics = host.metrics.stage(&plan.name, &stage.name, "source", stage.kind);
            let built = (stage.compiled.build)(&context(&stage.name, &metrics)).map_err(|e| place(&stage.name, e))?;
            accounts.push(Account {
                source: Arc::clone(&stage.name),
                keeps: stage.compiled.traits.keeps_positions,
                own: built.positions,
                committed: std::sync::Mutex::default(),
            });
            sources.push(SourcePart { source: Arc::new(Mutex::new(built.source)), metrics });
        }
        let build_sink = |stage: &SinkStage, instances: usize| {
            let metrics = host.metrics.stage(&plan.name, &stage.name, "sink", stage.kind);
            let build = || (stage.compiled.build)(&context(&stage.name, &metrics)).map_err(|e| place(&stage.name, e));
            let instances =
                (0..instances).map(|_| Ok(Arc::new(Mutex::new(build()?)))).collect::<Result<Vec<_>, BuildError>>()?;
            Ok(SinkPart { instances, metrics })
        };
        let lanes_of = |stage: &SinkStage| if stage.compiled.traits.per_lane { plan.lanes } else { 1 };
        let sinks = plan
            .sinks
            .iter()
            .map(|stage| build_sink(stage, lanes_of(stage)))
            .collect::<Result<Vec<_>, BuildError>>()?;
        let dead_letter = plan.dead_letter.as_ref().map(|stage| build_sink(stage, 1)).transpose()?;
        let transforms = plan
            .transforms
            .iter()
            .map(|stage| host.metrics.stage(&plan.name, &stage.name, "transform", stage.kind))
            .collect();
        let participants = clients.shared(Participants::default);
        let local = Arc::new(local_transaction(plan, host, &accounts, &participants));
        let transaction = match clients.transaction() {
            _ if !plan.transactional => None,
            Some(transaction) => Some(transaction),
            None if participants.is_empty() => {
                return Err(BuildError("no sink declared the transaction that the plan counts on".to_owned()));
            }
            None => Some(Arc::clone(&local) as Arc<dyn Transaction>),
        };
        let scope = checkpoint::scope(&plan.name);
        let ledger = Ledger { scope, accounts, store: Arc::clone(&host.store), transaction, participants, local };
        Ok(Self { sources, transforms, sinks, dead_letter, ledger })
    }

    /// Builds the components of stages that panicked anew; what they knew may be wrong. Returns the old ones.
    pub(super) fn rebuild(&mut self, plan: &Plan, host: &Host) -> Result<Self, BuildError> {
        let fresh = Self::build(plan, host)?;
        for (old, new) in self.ledger.accounts.iter().zip(&fresh.ledger.accounts) {
            *new.committed.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = old.committed();
        }
        Ok(std::mem::replace(self, fresh))
    }

    /// Whether a stage is a sink, or the dead letter.
    pub(super) fn is_sink(&self, plan: &Plan, stage: &str) -> bool {
        self.all_sinks(plan).any(|(sink, _)| *sink.name == *stage)
    }

    /// Every sink instance with its stage, the dead letter last.
    pub(super) fn all_sinks<'a>(&'a self, plan: &'a Plan) -> impl Iterator<Item = (&'a SinkStage, &'a SinkPart)> {
        plan.sinks.iter().zip(&self.sinks).chain(plan.dead_letter.iter().zip(&self.dead_letter))
    }
}

/// The transaction of what a pipeline writes to this machine.
fn local_transaction(
    plan: &Plan,
    host: &Host,
    accounts: &[Account],
    participants: &Arc<Participants>,
) -> LocalTransaction {
    let (store, participants) = (Arc::clone(&host.store), Arc::clone(participants));
    let domain = plan.domain.clone().unwrap_or_default();
    let transaction = LocalTransaction::new(&plan.name, store, participants, host.runtime.clone()).of_domain(domain);
    // The plan has seen to it that there is one at most.
    let mut judges = accounts.iter().filter(|account| account.keeps == KeepsPositions::Source);
    let judge = judges.find_map(|account| Some((&account.source, account.own.as_ref()?)));
    match judge {
        Some((source, positions)) => transaction.judged_by(Arc::clone(source), Arc::clone(positions)),
        None => transaction,
    }
}
