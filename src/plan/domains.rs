//! The epoch domains of a plan: what commits together. A plan without a disk buffer is one domain.
//!
//! A `buffer` on a stage cuts the stage off from what it reads. What still hangs together is a domain, with its own
//! coordinator, epochs and share of the memory. All sources are in the first one. The dead letter is then a domain too,
//! the last: every other writes its letters into a buffer of its own, so that one sink writes them, in one place.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Buffer, OnError, Plan, SinkStage, SourceStage, TransformStage, Upstream};
use crate::clients::buffer::{KIND, Link, WhenFull, name};

/// Room for the letters of one domain on their way to the dead letter.
const LETTERS: u64 = 64 << 20;
/// What a domain needs of the memory at the least.
const LEAST_MEMORY: u64 = 1 << 20;

/// One epoch domain of a pipeline: a plan that runs by itself, between buffers.
#[derive(Debug, Clone)]
pub struct Domain {
    /// Its sources, stages and sinks, the ends of buffers among them.
    pub plan: Plan,
    /// The buffers that it reads.
    pub reads: Vec<Link>,
    /// The buffers that it writes.
    pub writes: Vec<Link>,
}

/// Which stage belongs to which domain.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Division {
    /// By transform.
    pub(super) transforms: Vec<usize>,
    /// By sink.
    pub(super) sinks: Vec<usize>,
    /// How many there are, the dead letter's not counted.
    pub(super) count: usize,
}

/// A buffer that separates nothing, by its place among the transforms, then the sinks.
pub(super) type Idle = usize;

/// Finds what hangs together.
pub(super) fn divide(transforms: &[TransformStage], sinks: &[SinkStage]) -> Result<Division, Vec<Idle>> {
    // The sources are one vertex, for they all belong to the first domain; then the transforms; then the sinks.
    let vertex = |upstream: &Upstream| if let Upstream::Transform(at, _) = upstream { at + 1 } else { 0 };
    let of_transforms = transforms.iter().map(|stage| (&stage.from, stage.buffer.is_some()));
    let stages: Vec<_> = of_transforms.chain(sinks.iter().map(|stage| (&stage.from, stage.buffer.is_some()))).collect();
    let mut groups = Groups((0..=stages.len()).collect());
    for (at, (from, buffered)) in stages.iter().enumerate() {
        // What one buffer takes comes from one domain.
        let own = if *buffered { from.first().map(vertex) } else { Some(at + 1) };
        for upstream in *from {
            groups.join(own.unwrap_or(0), vertex(upstream));
        }
    }
    // A buffer leads from its writer's group to its reader's. One from which records come back separates nothing.
    let roots: Vec<_> = (0..=stages.len()).map(|at| groups.root(at)).collect();
    let edges: Vec<_> = stages
        .iter()
        .enumerate()
        .filter(|(_, (_, buffered))| *buffered)
        .map(|(at, (from, _))| (at, roots[from.first().map_or(0, vertex)], roots[at + 1]))
        .collect();
    let leads_back = |&(_, writer, reader): &(usize, usize, usize)| {
        let mut reached = vec![reader];
        let mut at = 0;
        while at < reached.len() {
            let from = reached[at];
            for &(_, _, next) in edges.iter().filter(|(_, writer, _)| *writer == from) {
                if !reached.contains(&next) {
                    reached.push(next);
                }
            }
            at += 1;
        }
        reached.contains(&writer)
    };
    let idle: Vec<_> = edges.iter().filter(|edge| leads_back(edge)).map(|(at, ..)| *at).collect();
    if !idle.is_empty() {
        return Err(idle);
    }
    // Numbered in the order of the plan, the sources' group first.
    let mut numbers = BTreeMap::from([(roots[0], 0)]);
    let mut all = Vec::new();
    for root in &roots[1..] {
        let next = numbers.len();
        all.push(*numbers.entry(*root).or_insert(next));
    }
    let sinks = all.split_off(transforms.len());
    Ok(Division { transforms: all, sinks, count: numbers.len() })
}

/// Sets that grow together.
struct Groups(Vec<usize>);

impl Groups {
    fn root(&self, mut at: usize) -> usize {
        while self.0[at] != at {
            at = self.0[at];
        }
        at
    }

    fn join(&mut self, one: usize, other: usize) {
        let (one, other) = (self.root(one), self.root(other));
        self.0[one.max(other)] = one.min(other);
    }
}

impl Plan {
    /// What commits together, each as a plan of its own: what is written into a buffer comes before what reads it, and the
    /// dead letter last. Only the plan itself if it has no buffer.
    #[must_use]
    pub fn domains(&self) -> Vec<Domain> {
        let alone = || vec![Domain { plan: self.clone(), reads: Vec::new(), writes: Vec::new() }];
        match divide(&self.transforms, &self.sinks) {
            Ok(division) if division.count > 1 => Cutter::new(self, &division).cut(&division),
            // A buffer that separates nothing has been reported.
            _ => alone(),
        }
    }

    /// How many domains it has.
    #[must_use]
    pub fn count_domains(&self) -> usize {
        let letters = usize::from(self.dead_letter.is_some());
        divide(&self.transforms, &self.sinks).map_or(1, |division| match division.count {
            1 => 1,
            count => count + letters,
        })
    }
}

struct Cutter<'a> {
    plan: &'a Plan,
    domains: Vec<Domain>,
    /// Where each source and each transform stands in the domain that has it.
    transforms: Vec<usize>,
}

impl<'a> Cutter<'a> {
    fn new(plan: &'a Plan, division: &Division) -> Self {
        let domains = division.count + usize::from(plan.dead_letter.is_some());
        let memory = plan.memory.map(|memory| (memory / domains as u64).max(LEAST_MEMORY));
        let empty = Plan {
            sources: Vec::new(),
            transforms: Vec::new(),
            sinks: Vec::new(),
            dead_letter: None,
            memory,
            ..plan.clone()
        };
        let empty = Domain { plan: empty, reads: Vec::new(), writes: Vec::new() };
        Self { plan, domains: vec![empty; domains], transforms: Vec::new() }
    }

    fn cut(mut self, division: &Division) -> Vec<Domain> {
        self.domains[0].plan.sources.clone_from(&self.plan.sources);
        for (stage, &domain) in self.plan.transforms.iter().zip(&division.transforms) {
            let from = self.inputs(&stage.name, &stage.from, stage.buffer, division, domain);
            let transforms = &mut self.domains[domain].plan.transforms;
            self.transforms.push(transforms.len());
            transforms.push(TransformStage { from, buffer: None, ..stage.clone() });
        }
        for (stage, &domain) in self.plan.sinks.iter().zip(&division.sinks) {
            let from = self.inputs(&stage.name, &stage.from, stage.buffer, division, domain);
            self.domains[domain].plan.sinks.push(SinkStage { from, buffer: None, ..stage.clone() });
        }
        self.name_domains(division.count);
        if let Some(dead_letter) = &self.plan.dead_letter {
            self.cut_dead_letter(dead_letter);
        }
        self.in_order()
    }

    /// Where a stage reads within its domain. A buffer is put in between if it has one.
    fn inputs(
        &mut self,
        stage: &Arc<str>,
        from: &[Upstream],
        buffer: Option<Buffer>,
        division: &Division,
        domain: usize,
    ) -> Vec<Upstream> {
        let within = |upstream: &Upstream| match *upstream {
            Upstream::Source(at) => Upstream::Source(at),
            Upstream::Transform(at, port) => Upstream::Transform(self.transforms[at], port),
        };
        let from: Vec<_> = from.iter().map(|upstream| (upstream, within(upstream))).collect();
        let Some(buffer) = buffer else { return from.into_iter().map(|(_, within)| within).collect() };
        let writer = match from.first() {
            Some((Upstream::Transform(at, _), _)) => division.transforms[*at],
            _ => 0,
        };
        let link = Link::new(Arc::clone(stage), buffer.disk, buffer.when_full);
        let from = from.into_iter().map(|(_, within)| within).collect();
        self.domains[writer].plan.sinks.push(writing_end(&link, from, true));
        self.domains[writer].writes.push(link.clone());
        vec![self.read(domain, link)]
    }

    /// Adds a buffer to what a domain reads.
    fn read(&mut self, domain: usize, link: Link) -> Upstream {
        let Domain { plan, reads, .. } = &mut self.domains[domain];
        plan.sources.push(SourceStage {
            name: name(link.stage()).into(),
            kind: KIND,
            compiled: link.source(),
            on_error: OnError::Stop,
        });
        reads.push(link);
        Upstream::Source(plan.sources.len() - 1)
    }

    /// A domain has the name of the first stage that begins it.
    fn name_domains(&mut self, count: usize) {
        for domain in &mut self.domains[1..count] {
            domain.plan.domain = domain.reads.first().map(|link| Arc::clone(link.stage()));
        }
    }

    /// Leads what each domain refuses to the last one.
    fn cut_dead_letter(&mut self, dead_letter: &SinkStage) {
        let last = self.domains.len() - 1;
        let mut from = Vec::new();
        for domain in 0..last {
            let stage = match &self.domains[domain].plan.domain {
                None => Arc::clone(&dead_letter.name),
                Some(domain) => format!("{}.{domain}", dead_letter.name).into(),
            };
            let link = Link::new(stage, LETTERS, WhenFull::Block);
            let end = writing_end(&link, Vec::new(), dead_letter.compiled.traits.carries_headers);
            self.domains[domain].plan.dead_letter = Some(end);
            self.domains[domain].writes.push(link.clone());
            from.push(self.read(last, link));
        }
        let plan = &mut self.domains[last].plan;
        plan.domain = Some(Arc::clone(&dead_letter.name));
        plan.sinks.push(SinkStage { from, ..dead_letter.clone() });
    }

    /// Writers before readers.
    fn in_order(self) -> Vec<Domain> {
        let mut ordered: Vec<Domain> = Vec::new();
        let mut left = self.domains;
        while !left.is_empty() {
            let written: Vec<_> = ordered.iter().flat_map(|domain| &domain.writes).map(Link::stage).collect();
            let ready = left.iter().position(|domain| domain.reads.iter().all(|link| written.contains(&link.stage())));
            // There is no circle, so one of them is ready.
            let next = left.remove(ready.unwrap_or(0));
            ordered.push(next);
        }
        ordered
    }
}

/// The sink that writes a buffer.
fn writing_end(link: &Link, from: Vec<Upstream>, carries_headers: bool) -> SinkStage {
    SinkStage {
        name: name(link.stage()).into(),
        kind: KIND,
        from,
        compiled: link.sink(carries_headers),
        // What the disk refuses is tried again; only a batch of several GiB could be refused.
        on_error: OnError::Stop,
        buffer: None,
    }
}
