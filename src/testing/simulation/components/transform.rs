//! Transforms: each record has its fate, and what passes notes in its body that it came by here.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::faults::Step;
use super::super::outcome::{body, read};
use super::super::place::{Place, panics};
use super::super::scenario::{Fate, Stage, TransformKind};
use super::sink::named;
use crate::component::{CompiledTransform, Output, Touched, Transform};
use crate::expr::Schema;
use crate::record::{Batch, BatchBuilder, Draft};

pub(super) fn compiled(place: &Place, number: usize, kind: TransformKind) -> CompiledTransform {
    let place = place.clone();
    let outputs = match kind {
        TransformKind::Route(outputs) => (1..=outputs).map(|output| output.to_string()).collect(),
        TransformKind::Map | TransformKind::Filter => Vec::new(),
    };
    CompiledTransform {
        default_output: outputs.is_empty(),
        outputs,
        touched: Touched::default(),
        schema: Schema::default(),
        build: Arc::new(move || Box::new(Simulated { place: place.clone(), number })),
    }
}

struct Simulated {
    place: Place,
    number: usize,
}

impl Transform for Simulated {
    fn apply(&mut self, batch: Batch, out: &mut Output) {
        let scenario = &self.place.world.scenario;
        self.place.step_now(Step::Apply, &format!("t{} {}", self.number, named(&batch)));
        let mut passed = BTreeMap::new();
        for record in batch.records() {
            let Some((id, path)) = read(batch.body(record)) else {
                out.reject(&batch, *record, "no record of the simulation");
                continue;
            };
            if scenario.is_poison(Stage::Transform(self.number), id) {
                panics("it cannot stand this record");
            }
            match scenario.fate(self.number, id) {
                Fate::Refused => out.reject(&batch, *record, "refused"),
                Fate::Dropped => out.discard(1),
                Fate::Passed(port) => {
                    let to = passed
                        .entry(port)
                        .or_insert_with(|| BatchBuilder::new(Arc::clone(batch.origin()), 64, batch.len()));
                    let body = body(id, path.through(self.number, port), scenario.padding);
                    to.push_copy(Draft { body: &body, offset: record.offset, ..Draft::default() });
                }
            }
        }
        for (port, batch) in passed {
            out.emit_to(port, batch.finish());
        }
    }
}
