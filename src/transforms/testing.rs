//! Runs a transform over a few records.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::codecs::Codec;
use crate::component::{CheckContext, CompiledTransform, Output, Port, Problem, Span, TransformConfig};
use crate::expr::Schema;
use crate::record::{Batch, BatchBuilder, Draft, Partition, Timestamp};

/// What became of the records.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Ran {
    /// Bodies by output.
    pub(super) emitted: BTreeMap<u16, Vec<String>>,
    pub(super) discarded: u64,
    /// Bodies as they came, with the reason.
    pub(super) rejected: Vec<(String, String)>,
}

impl Ran {
    /// The bodies at the default output.
    pub(super) fn bodies(&self) -> Vec<&str> {
        self.emitted.get(&0).into_iter().flatten().map(String::as_str).collect()
    }
}

pub(super) fn compile(config: impl TransformConfig) -> Result<CompiledTransform, Vec<Problem>> {
    let mut cx = CheckContext::new("stage", Span::default(), Schema::default());
    match config.compile(&mut cx) {
        Some(compiled) => Ok(compiled),
        None => Err(cx.problems),
    }
}

pub(super) fn batch(bodies: &[&str]) -> Batch {
    let origin = Arc::new(Partition { source: "s".into(), topic: "t".into(), number: 3 });
    let mut builder = BatchBuilder::new(origin, 0, bodies.len());
    for (offset, body) in (100..).zip(bodies) {
        let draft =
            Draft { body: body.as_bytes(), timestamp: Timestamp(1_700_000_000_123), offset, ..Draft::default() };
        builder.push_copy(draft);
    }
    let mut rejected = Vec::new();
    let batch = Codec::Json.decode(builder.finish(), &mut rejected);
    assert!(rejected.is_empty(), "{rejected:?}");
    batch
}

pub(super) fn apply(compiled: &CompiledTransform, batch: Batch) -> (Output, Ran) {
    let records = batch.len();
    let mut out = Output::default();
    (compiled.build)().apply(batch, &mut out);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let mut ran = Ran { discarded: out.discarded, ..Ran::default() };
    for (Port(port), batch) in &out.emitted {
        let bodies = batch.records().iter().map(|record| text(batch.body(record)));
        ran.emitted.entry(*port).or_default().extend(bodies);
    }
    for rejected in &out.rejected {
        ran.rejected.push((text(rejected.batch.body(&rejected.batch.records()[0])), rejected.error.clone()));
    }
    let accounted = ran.emitted.values().map(Vec::len).sum::<usize>() + ran.rejected.len();
    assert_eq!(accounted as u64 + ran.discarded, records as u64, "a record was forgotten");
    (out, ran)
}

pub(super) fn run(config: impl TransformConfig, bodies: &[&str]) -> Ran {
    let compiled = compile(config).unwrap_or_else(|problems| panic!("{problems:#?}"));
    apply(&compiled, batch(bodies)).1
}
