//! What each path from a source to a sink promises, and why.

use std::sync::Arc;
use std::time::Duration;

use super::{Guarantee, SinkStage, SourceStage, TransformStage, Upstream};
use crate::component::{Acknowledges, HumanDuration, KeepsPositions, LOCAL_TRANSACTION, Problem, Span, Spanned};

/// What one path promises.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathGuarantee {
    /// Where it begins.
    pub source: Arc<str>,
    /// Where it ends.
    pub sink: Arc<str>,
    /// What it promises.
    pub guarantee: Guarantee,
    /// Why that, and no more.
    pub reason: String,
}

/// The parts of a plan that decide what it promises.
#[derive(Debug)]
pub(super) struct Parts<'a> {
    pub(super) sources: &'a [SourceStage],
    pub(super) transforms: &'a [TransformStage],
    pub(super) sinks: &'a [SinkStage],
    pub(super) dead_letter: Option<&'a SinkStage>,
    pub(super) commit_interval: Duration,
    /// What the file asks for.
    pub(super) stated: Option<Guarantee>,
    /// Whether the whole pipeline could be exactly once.
    pub(super) could_be_exact: bool,
}

impl Parts<'_> {
    /// The kind whose transaction can hold all sources, all sinks and the dead letter.
    pub(super) fn shared_transaction(&self) -> Option<&'static str> {
        self.kinds().into_iter().find(|kind| self.outside(kind).is_empty() && self.judges(kind).len() <= 1)
    }

    /// All kinds of transactions that a stage could be in, in the order in which the stages name them.
    fn kinds(&self) -> Vec<&'static str> {
        let of_sources = self.sources.iter().flat_map(|source| source.compiled.traits.transactional_with);
        let of_sinks = self.all_sinks().flat_map(|sink| sink.compiled.traits.transactional_with);
        let mut kinds = Vec::new();
        for kind in of_sources.chain(of_sinks) {
            if !kinds.contains(kind) {
                kinds.push(*kind);
            }
        }
        kinds
    }

    /// What keeps stages out of a transaction of a kind.
    fn outside(&self, kind: &str) -> Vec<String> {
        let sources = self.sources.iter().filter(|source| !source.compiled.traits.transactional_with.contains(&kind));
        let sources = sources.map(|stage| {
            format!(
                "the positions of `{}`, a `{}` source as configured here, cannot be part of a {kind} transaction",
                stage.name, stage.kind
            )
        });
        let sinks = self.all_sinks().filter(|sink| !sink.compiled.traits.transactional_with.contains(&kind));
        let sinks = sinks.map(|stage| {
            format!(
                "what `{}` writes, a `{}` sink as configured here, cannot be part of a {kind} transaction",
                stage.name, stage.kind
            )
        });
        sources.chain(sinks).collect()
    }

    /// The sources whose own commit decides a transaction of a kind. Two of them could decide differently.
    fn judges(&self, kind: &str) -> Vec<&SourceStage> {
        let keeps = |source: &&SourceStage| source.compiled.traits.keeps_positions == KeepsPositions::Source;
        if kind == LOCAL_TRANSACTION { self.sources.iter().filter(keeps).collect() } else { Vec::new() }
    }

    /// What keeps stages out of the transaction that most of the pipeline could be in.
    fn reasons_against_exactly_once(&self) -> Vec<String> {
        if self.shared_transaction().is_some() {
            return Vec::new();
        }
        let Some(kind) = self.kinds().into_iter().min_by_key(|kind| self.outside(kind).len()) else {
            return self.outside("kafka or local");
        };
        let outside = self.outside(kind);
        match self.judges(kind).as_slice() {
            [first, second, ..] if outside.is_empty() => vec![format!(
                "`{}` and `{}` both keep their positions themselves, and a {kind} transaction can follow only one of them",
                first.name, second.name
            )],
            _ => outside,
        }
    }

    fn all_sinks(&self) -> impl Iterator<Item = &SinkStage> {
        self.sinks.iter().chain(self.dead_letter)
    }

    /// Every path, by sink.
    pub(super) fn paths(&self) -> Vec<PathGuarantee> {
        let mut paths = Vec::new();
        for sink in self.sinks {
            let reached = self.sources_of(&sink.from);
            paths.extend(
                self.sources
                    .iter()
                    .zip(reached)
                    .filter(|(_, reached)| *reached)
                    .map(|(source, _)| self.path(source, sink)),
            );
        }
        if let Some(dead_letter) = self.dead_letter {
            paths.extend(self.sources.iter().map(|source| self.path(source, dead_letter)));
        }
        paths
    }

    /// For each source, whether its records come to a stage that reads these.
    fn sources_of(&self, from: &[Upstream]) -> Vec<bool> {
        let mut sources = vec![false; self.sources.len()];
        let mut transforms = vec![false; self.transforms.len()];
        let mut next = from.to_vec();
        while let Some(upstream) = next.pop() {
            match upstream {
                Upstream::Source(at) => sources[at] = true,
                Upstream::Transform(at, _) => {
                    if !std::mem::replace(&mut transforms[at], true) {
                        next.extend(&self.transforms[at].from);
                    }
                }
            }
        }
        sources
    }

    fn path(&self, source: &SourceStage, sink: &SinkStage) -> PathGuarantee {
        let (guarantee, reason) = self.judge(source, sink);
        PathGuarantee { source: Arc::clone(&source.name), sink: Arc::clone(&sink.name), guarantee, reason }
    }

    fn judge(&self, source: &SourceStage, sink: &SinkStage) -> (Guarantee, String) {
        if let Some(window) = loss_at_source(source, self.commit_interval) {
            return (Guarantee::AtMostOnce, window);
        }
        if let Some(window) = loss_at_sink(sink) {
            return (Guarantee::AtMostOnce, window);
        }
        let transaction = self.shared_transaction();
        if self.stated == Some(Guarantee::ExactlyOnce)
            && let Some(kind) = transaction
        {
            let reason =
                format!("outputs and the positions of `{}` are committed in one {kind} transaction", source.name);
            return (Guarantee::ExactlyOnce, reason);
        }
        let mut reason = format!(
            "after a crash `{}` is read again from its last commit, so some records may come twice",
            source.name
        );
        let traits = &sink.compiled.traits;
        if traits.idempotent_by_key {
            reason.push_str("; the second replaces the first by its key, so in effect once");
        } else if traits.acknowledges == Acknowledges::Received {
            reason.push_str("; `");
            reason.push_str(&sink.name);
            reason.push_str("` says that records were received, not that they are durable");
        } else if self.could_be_exact {
            reason.push_str("; `guarantee: exactly_once` is possible here");
        }
        (Guarantee::AtLeastOnce, reason)
    }
}

/// What a crash loses at a source, if it loses anything.
fn loss_at_source(source: &SourceStage, interval: Duration) -> Option<String> {
    (source.compiled.traits.keeps_positions == KeepsPositions::Nowhere).then(|| {
        format!(
            "what `{}` has read cannot be read again: a crash loses what came since the last commit (up to {} ago, or \
             longer if a sink is slow)",
            source.name,
            HumanDuration(interval)
        )
    })
}

/// What a crash loses at a sink, if it loses anything.
fn loss_at_sink(sink: &SinkStage) -> Option<String> {
    let name = &sink.name;
    match sink.compiled.traits.acknowledges {
        Acknowledges::Nothing => {
            Some(format!("`{name}` acknowledges nothing: what it was given and did not keep is lost without a trace"))
        }
        Acknowledges::UnlessFull => Some(format!(
            "while `{name}` is full, the newest records are dropped, as `when_full: shed` says, and counted"
        )),
        Acknowledges::Durable | Acknowledges::Received => None,
    }
}

/// Where the stages stand in the file.
pub(super) struct Places {
    pub(super) sources: Vec<Span>,
    pub(super) sinks: Vec<Span>,
    pub(super) dead_letter: Option<Span>,
    /// If it is said.
    pub(super) commit_interval: Option<Span>,
}

/// Reports what the file asks for and cannot have; warns of paths that lose records if the file does not say that they
/// may.
pub(super) fn check(
    parts: &Parts<'_>,
    stated: Option<&Spanned<Guarantee>>,
    places: &Places,
    problems: &mut Vec<Problem>,
) {
    match stated {
        Some(stated) if stated.value == Guarantee::AtMostOnce => {}
        Some(stated) => {
            let blamed = match stated.value {
                Guarantee::ExactlyOnce => parts.reasons_against_exactly_once(),
                _ => losses(parts),
            };
            let words = format!("the guarantee `{}` cannot be held", stated.value.word());
            let help = match stated.value {
                Guarantee::ExactlyOnce => {
                    "exactly once needs a `kafka` source and `kafka` sinks of one cluster, or `file` sources, or one \
                     `kafka` source, and `file` sinks; the dead letter included. Everything else is at least once at \
                     best"
                }
                _ => "say `guarantee: at_most_once` if a loss is acceptable",
            };
            for why in blamed {
                problems.push(Problem::error(stated.span, format!("{words}: {why}")).help(help));
            }
            if stated.value == Guarantee::ExactlyOnce {
                let place = places.commit_interval.unwrap_or(stated.span);
                problems.extend(interval_too_long(parts).map(|words| {
                    Problem::error(place, words)
                        .help("shorten `commit: { interval: … }`, or raise the sink's `transaction.timeout.ms` in its `options`")
                }));
            }
        }
        None => {
            let accept = "say `guarantee: at_most_once` if this is acceptable";
            for (source, span) in parts.sources.iter().zip(&places.sources) {
                if let Some(window) = loss_at_source(source, parts.commit_interval) {
                    let words = format!("records of `{}` are delivered at most once: {window}", source.name);
                    problems.push(Problem::warning(*span, words).help(accept));
                }
            }
            for (sink, span) in parts.all_sinks().zip(places.sinks.iter().chain(&places.dead_letter)) {
                if let Some(window) = loss_at_sink(sink) {
                    let words = format!("records for `{}` are delivered at most once: {window}", sink.name);
                    problems.push(Problem::warning(*span, words).help(accept));
                }
            }
        }
    }
}

/// Why no transaction could hold an epoch of this length: it is aborted at half of its time-out, so that the other side
/// never has to, which would be fatal to the client and hold up all readers until then.
fn interval_too_long(parts: &Parts<'_>) -> Option<String> {
    parts.shared_transaction()?;
    let timeout = |sink: &SinkStage| Some((sink.compiled.traits.transaction_timeout?, Arc::clone(&sink.name)));
    let (timeout, sink) = parts.all_sinks().filter_map(timeout).min()?;
    let interval = parts.commit_interval;
    (interval >= timeout / 2).then(|| {
        format!(
            "an epoch of {} is too long for the transactions of `{sink}`, which time out after {}: it must be less than half of \
             that",
            HumanDuration(interval),
            HumanDuration(timeout)
        )
    })
}

/// How stages lose records.
fn losses(parts: &Parts<'_>) -> Vec<String> {
    let sources = parts.sources.iter().filter_map(|source| loss_at_source(source, parts.commit_interval));
    sources.chain(parts.all_sinks().filter_map(loss_at_sink)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{mistake, planned};

    #[test]
    fn rule_10_an_interval_that_no_transaction_can_hold_is_refused_at_its_place() {
        let text = |interval: &str| {
            format!(
                "guarantee: exactly_once\ncommit: {{ interval: {interval} }}\n\
                 sources: {{ in: {{ kafka: {{ topics: [t] }} }} }}\nsinks: {{ out: {{ kafka: {{ topic: u }} }} }}\n"
            )
        };
        assert!(planned(&text("4999ms")).0.is_some());
        let (place, words) = mistake(&text("5s"));
        assert_eq!(place, "5s");
        assert!(words.contains("time out after 10s: it must be less than half of that"), "{words}");
        let at_least_once = text("5s").replace("exactly_once", "at_least_once");
        assert!(planned(&at_least_once).0.is_some(), "without a transaction nothing times out");
    }
}
