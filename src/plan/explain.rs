//! A plan as text, for the terminal.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::{Buffer, Domain, OnError, Plan, Upstream};
use crate::clients::buffer::{KIND, WhenFull, name};
use crate::component::{Acknowledges, ByteSize, HumanDuration, KeepsPositions, Port, Touched};

/// What the plan does, and what it promises.
#[must_use]
pub fn explain(plan: &Plan) -> String {
    let mut page = Page { out: String::new(), plan, width: width(plan) };
    page.head();
    page.paths();
    page.sources();
    page.transforms();
    page.sinks();
    page.channels();
    page.domains();
    page.out
}

/// The longest name of a stage, so that columns line up.
fn width(plan: &Plan) -> usize {
    let sources = plan.sources.iter().map(|stage| &stage.name);
    let transforms = plan.transforms.iter().map(|stage| &stage.name);
    let sinks = plan.sinks.iter().chain(&plan.dead_letter).map(|stage| &stage.name);
    sources.chain(transforms).chain(sinks).map(|name| name.len()).max().unwrap_or(0).max("guarantee".len())
}

struct Page<'a> {
    out: String,
    plan: &'a Plan,
    width: usize,
}

impl Page<'_> {
    fn line(&mut self, name: &str, text: &str) {
        let line = format!("  {name:width$}  {text}", width = self.width);
        let _ = writeln!(self.out, "{}", line.trim_end());
    }

    fn section(&mut self, title: &str) {
        let _ = writeln!(self.out, "\n{title}");
    }

    fn head(&mut self) {
        let plan = self.plan;
        let _ = writeln!(self.out, "{}  ({})\n", plan.name, plan.file.display());
        self.line("guarantee", &plan.guarantee.to_string());
        let lanes = match plan.lanes {
            1 => "1: the chain of transforms runs once".to_owned(),
            lanes => format!("{lanes} parallel copies of the chain of transforms; the partitions are spread over them"),
        };
        self.line("lanes", &lanes);
        let commit = format!("every {} while records move", HumanDuration(plan.commit_interval));
        let transaction = if plan.transactional { ", in one transaction with all outputs" } else { "" };
        self.line("commit", &format!("{commit}{transaction}"));
        let memory = plan.memory.map_or_else(|| "the daemon's default".to_owned(), |bytes| ByteSize(bytes).to_string());
        self.line("memory", &memory);
    }

    fn paths(&mut self) {
        self.section("paths");
        for path in &self.plan.paths {
            let _ = writeln!(self.out, "  {} → {}: {}", path.source, path.sink, path.guarantee);
            for line in wrapped(&path.reason) {
                let _ = writeln!(self.out, "    {line}");
            }
        }
    }

    fn sources(&mut self) {
        self.section("sources");
        for stage in &self.plan.sources {
            let traits = &stage.compiled.traits;
            self.line(&stage.name, stage.kind);
            let positions = match traits.keeps_positions {
                KeepsPositions::Store => "kept in the data folder",
                KeepsPositions::Source => "kept at the source",
                KeepsPositions::Nowhere => "not kept: what was read cannot be read again",
            };
            self.line("", &format!("positions: {positions}"));
            if traits.finite {
                self.line("", "ends by itself");
            }
            self.on_error(stage.on_error);
        }
    }

    fn transforms(&mut self) {
        if self.plan.transforms.is_empty() {
            return;
        }
        self.section("transforms");
        for stage in &self.plan.transforms {
            self.line(&stage.name, &format!("{}, reads {}", stage.kind, self.upstreams(&stage.from)));
            self.touched(&stage.compiled.touched);
            if !stage.compiled.outputs.is_empty() {
                let outputs = stage.compiled.outputs.join(", ");
                self.line(
                    "",
                    &format!("outputs: {}{outputs}", if stage.compiled.default_output { "default, " } else { "" }),
                );
            }
            self.on_error(stage.on_error);
        }
    }

    fn sinks(&mut self) {
        self.section("sinks");
        for stage in self.plan.sinks.iter().chain(&self.plan.dead_letter) {
            let from =
                if stage.from.is_empty() { "what all stages refuse".to_owned() } else { self.upstreams(&stage.from) };
            self.line(&stage.name, &format!("{}, reads {from}", stage.kind));
            let traits = &stage.compiled.traits;
            let answers = match traits.acknowledges {
                Acknowledges::Durable => "answers when records are durable",
                Acknowledges::Received => "answers when records were received",
                Acknowledges::UnlessFull => "answers when records are durable, or dropped for want of room",
                Acknowledges::Nothing => "answers nothing",
            };
            let instances = if traits.per_lane { "one in each lane" } else { "one, where the lanes merge" };
            self.line("", &format!("{answers}; {instances}"));
            self.touched(&stage.compiled.touched);
            self.on_error(stage.on_error);
        }
    }

    fn touched(&mut self, touched: &Touched) {
        for (verb, fields) in [("fields read", &touched.reads), ("fields written", &touched.writes)] {
            if !fields.is_empty() {
                self.line("", &format!("{verb}: {}", listed(fields)));
            }
        }
    }

    fn on_error(&mut self, on_error: OnError) {
        let outcome = match on_error {
            OnError::DeadLetter => "go to the dead letter",
            OnError::Drop => "are dropped, and counted",
            OnError::Stop => "stop the pipeline",
            OnError::Retry => "are tried again until they are taken; records are written one by one",
        };
        self.line("", &format!("refused records: {outcome}"));
    }

    fn channels(&mut self) {
        self.section("channels");
        let plan = self.plan;
        let transforms = plan.transforms.iter().map(|stage| (&stage.from, &stage.name, &stage.buffer));
        let sinks = plan.sinks.iter().map(|stage| (&stage.from, &stage.name, &stage.buffer));
        for (from, name, buffer) in transforms.chain(sinks) {
            for upstream in from {
                let _ = writeln!(self.out, "  {} → {name}{}", self.upstream(*upstream), by_buffer(*buffer));
            }
        }
        if let Some(dead_letter) = &plan.dead_letter {
            let _ = writeln!(self.out, "  every stage → {}", dead_letter.name);
        }
        let _ = writeln!(self.out, "  All are bounded: a stage that is slow slows down what stands before it.");
        if plan.sinks.len() > 1 && plan.count_domains() == 1 {
            let _ = writeln!(
                self.out,
                "  A sink that does not answer holds back all of them: this pipeline commits as one."
            );
        }
    }

    /// What commits together, where that is not the whole.
    fn domains(&mut self) {
        let domains = self.plan.domains();
        if domains.len() == 1 {
            return;
        }
        self.section("domains");
        for (at, Domain { plan, reads, writes }) in domains.iter().enumerate() {
            let sources = plan.sources.iter().take(plan.sources.len() - reads.len()).map(|stage| &*stage.name);
            let transforms = plan.transforms.iter().map(|stage| &*stage.name);
            let sinks = plan.sinks.iter().filter(|stage| stage.kind != KIND).map(|stage| &*stage.name);
            let stages: Vec<_> = sources.chain(transforms).chain(sinks).collect();
            let _ = writeln!(self.out, "  {}. {}", at + 1, stages.join(", "));
            for (verb, links) in [("reads", reads), ("writes", writes)] {
                let buffers: Vec<_> = links.iter().map(|link| format!("`{}`", name(link.stage()))).collect();
                if !buffers.is_empty() {
                    let _ = writeln!(self.out, "     {verb} {}", buffers.join(", "));
                }
            }
        }
        let _ = writeln!(
            self.out,
            "  Each commits by itself: what does not answer in one holds back no other while its buffer has room."
        );
    }

    fn upstreams(&self, from: &[Upstream]) -> String {
        from.iter().map(|upstream| self.upstream(*upstream)).collect::<Vec<_>>().join(", ")
    }

    fn upstream(&self, upstream: Upstream) -> String {
        match upstream {
            Upstream::Source(at) => self.plan.sources[at].name.to_string(),
            Upstream::Transform(at, Port(0)) => self.plan.transforms[at].name.to_string(),
            Upstream::Transform(at, Port(port)) => {
                let stage = &self.plan.transforms[at];
                let output = stage.compiled.outputs.get(usize::from(port) - 1).map_or("?", String::as_str);
                format!("{}.{output}", stage.name)
            }
        }
    }
}

/// The buffer that a stage has before it.
fn by_buffer(buffer: Option<Buffer>) -> String {
    let Some(Buffer { disk, when_full }) = buffer else { return String::new() };
    let full = match when_full {
        WhenFull::Block => "waits",
        WhenFull::Shed => "drops the newest",
    };
    format!(", by a buffer of {} on the disk; when it is full, {full}", ByteSize(disk))
}

/// A sentence in lines that fit a terminal.
fn wrapped(text: &str) -> Vec<String> {
    const WIDTH: usize = 100;
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last_mut().expect("there is always a line");
        if !line.is_empty() && line.len() + 1 + word.len() > WIDTH {
            lines.push(word.to_owned());
        } else {
            line.push_str(if line.is_empty() { "" } else { " " });
            line.push_str(word);
        }
    }
    lines
}

fn listed(fields: &BTreeSet<String>) -> String {
    fields.iter().map(String::as_str).collect::<Vec<_>>().join(" ")
}
