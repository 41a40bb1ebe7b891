//! What a pipeline promises from end to end: domain by domain, each path the least of what it passes.

use std::collections::HashMap;
use std::sync::Arc;

use super::draft::Draft;
use super::guarantee::{self, Parts, PathGuarantee, Places};
use super::{Domain, Guarantee, Plan};
use crate::clients::buffer::name;
use crate::component::{Problem, Span, Spanned};

/// Where what a promise depends on stands in the file, by the names of stages and of the ends of buffers.
pub(super) struct NamedPlaces {
    stages: HashMap<Arc<str>, Span>,
    commit_interval: Option<Span>,
}

impl NamedPlaces {
    pub(super) fn of(draft: &Draft<'_>) -> Self {
        let mut places = HashMap::new();
        for component in draft.sources.iter().chain(&draft.transforms).chain(&draft.sinks).chain(&draft.dead_letter) {
            places.insert(Arc::clone(&component.name), component.span);
            if let Some((_, span)) = &component.buffer {
                places.insert(name(&component.name).into(), *span);
            }
        }
        Self { stages: places, commit_interval: draft.commit_interval_at }
    }

    fn of_domain(&self, plan: &Plan) -> Places {
        let place = |name: &Arc<str>| self.stages.get(name).copied().unwrap_or_default();
        Places {
            sources: plan.sources.iter().map(|stage| place(&stage.name)).collect(),
            sinks: plan.sinks.iter().map(|stage| place(&stage.name)).collect(),
            dead_letter: plan.dead_letter.as_ref().map(|stage| place(&stage.name)),
            commit_interval: self.commit_interval,
        }
    }
}

/// Derives what a plan promises, and reports what the file asks for and cannot have.
pub(super) fn derive(
    plan: &mut Plan,
    stated: Option<&Spanned<Guarantee>>,
    places: &NamedPlaces,
    problems: &mut Vec<Problem>,
) {
    let domains = plan.domains();
    let mut parts: Vec<_> = domains.iter().map(|domain| parts(&domain.plan, stated)).collect();
    let exact = parts.iter().all(|parts| parts.shared_transaction().is_some());
    for parts in &mut parts {
        parts.could_be_exact = exact;
    }
    for (parts, domain) in parts.iter().zip(&domains) {
        guarantee::check(parts, stated, &places.of_domain(&domain.plan), problems);
    }
    let paths = parts.iter().zip(&domains).map(|(parts, domain)| (domain, parts.paths())).collect();
    let paths = end_to_end(plan, paths);
    let least = paths.iter().map(|path| path.guarantee).min();
    plan.guarantee = least.unwrap_or(Guarantee::AtLeastOnce);
    plan.transactional = exact && stated.is_some_and(|stated| stated.value == Guarantee::ExactlyOnce);
    plan.paths = paths;
}

fn parts<'a>(plan: &'a Plan, stated: Option<&Spanned<Guarantee>>) -> Parts<'a> {
    Parts {
        sources: &plan.sources,
        transforms: &plan.transforms,
        sinks: &plan.sinks,
        dead_letter: plan.dead_letter.as_ref(),
        commit_interval: plan.commit_interval,
        stated: stated.map(|stated| stated.value),
        could_be_exact: false,
    }
}

/// Joins the paths of all domains, given in the order in which records pass them, to paths between real ends.
fn end_to_end(plan: &Plan, domains: Vec<(&Domain, Vec<PathGuarantee>)>) -> Vec<PathGuarantee> {
    let mut into_buffers: HashMap<Arc<str>, Vec<PathGuarantee>> = HashMap::new();
    let mut whole: Vec<PathGuarantee> = Vec::new();
    for (domain, paths) in domains {
        let written: Vec<String> = domain.writes.iter().map(|link| name(link.stage())).collect();
        for path in paths {
            let joined = match into_buffers.get(&path.source) {
                Some(before) => before.iter().map(|before| join(before, &path)).collect(),
                None => vec![path],
            };
            for path in joined {
                let ends = if written.iter().any(|written| **written == *path.sink) {
                    into_buffers.entry(Arc::clone(&path.sink)).or_default()
                } else {
                    &mut whole
                };
                add(ends, path);
            }
        }
    }
    let sinks = plan.sinks.iter().chain(&plan.dead_letter).map(|stage| &stage.name);
    let sources = || plan.sources.iter().map(|stage| &stage.name);
    let ends = sinks.flat_map(|sink| sources().map(move |source| (source, sink)));
    ends.filter_map(|(source, sink)| whole.iter().find(|path| path.source == *source && path.sink == *sink).cloned())
        .collect()
}

/// Of two ways between the same ends, the one that promises less counts.
fn add(paths: &mut Vec<PathGuarantee>, path: PathGuarantee) {
    match paths.iter_mut().find(|known| known.source == path.source && known.sink == path.sink) {
        Some(known) if known.guarantee <= path.guarantee => {}
        Some(known) => *known = path,
        None => paths.push(path),
    }
}

/// A path into a buffer, and one out of it.
fn join(before: &PathGuarantee, behind: &PathGuarantee) -> PathGuarantee {
    let (guarantee, reason) = if before.guarantee <= behind.guarantee {
        (before.guarantee, before.reason.clone())
    } else {
        (behind.guarantee, behind.reason.clone())
    };
    let by = format!("; by the buffer `{}`", before.sink);
    let reason = if reason.contains("; by the buffer") { format!("{reason}, `{}`", before.sink) } else { reason + &by };
    PathGuarantee { source: Arc::clone(&before.source), sink: Arc::clone(&behind.sink), guarantee, reason }
}
