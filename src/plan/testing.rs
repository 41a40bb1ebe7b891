//! Components that do nothing, for tests of the plan.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::Deserialize;

use super::{CompileOptions, Plan, Tables, compile};
use crate::codecs::Codec;
use crate::component::node::{Kind, Node};
use crate::component::{
    Acknowledges, BuildError, CheckContext, CompiledSink, CompiledSource, CompiledTransform, KeepsPositions, Problem,
    SinkConfig, SinkSpec, SinkTraits, SourceConfig, SourceSpec, SourceTraits, Text, Touched, TransformConfig,
    TransformSpec,
};
use crate::config::{Document, Environment, SourceFile, load};
use crate::expr::Schema;

pub(super) const TABLES: Tables = Tables {
    sources: &[SourceSpec::of::<KafkaSource>(), SourceSpec::of::<FileSource>(), SourceSpec::of::<StdinSource>()],
    transforms: &[TransformSpec::of::<Map>(), TransformSpec::of::<Filter>(), ROUTE],
    sinks: &[
        SinkSpec::of::<KafkaSink>(),
        SinkSpec::of::<FileSink>(),
        SinkSpec::of::<StdoutSink>(),
        SinkSpec::of::<UdpSink>(),
    ],
};

/// No variables, no files.
struct Nothing;

impl Environment for Nothing {
    fn var(&self, name: &str) -> Option<String> {
        (name == "SECRET").then(|| "hunter2".to_owned())
    }

    fn secret_file(&self, _: &std::path::Path) -> Result<String, String> {
        Err("no such file".to_owned())
    }
}

/// The documents of a text, which must be YAML.
pub(super) fn documents(text: &str) -> Vec<Document> {
    let file = Arc::new(SourceFile { path: "orders.yaml".into(), text: text.to_owned() });
    let (documents, problems) = load(file, &Nothing);
    assert_eq!(problems, [], "{text}");
    documents
}

/// The plan of a text with one document, and all that is said of it.
pub(super) fn planned(text: &str) -> (Option<Plan>, Vec<Problem>) {
    compile(&documents(text)[0], &CompileOptions { cores: 4, tables: TABLES })
}

/// What is wrong, each as the text that is underlined, and the words.
pub(super) fn mistakes(text: &str) -> Vec<(String, String)> {
    let (plan, problems) = planned(text);
    assert!(plan.is_none(), "{problems:?}");
    problems.iter().map(|problem| (text[problem.span.range()].to_owned(), problem.message.clone())).collect()
}

pub(super) fn mistake(text: &str) -> (String, String) {
    let mut mistakes = mistakes(text);
    assert_eq!(mistakes.len(), 1, "{mistakes:?}");
    mistakes.remove(0)
}

fn source(keeps_positions: KeepsPositions, kinds: &'static [&'static str]) -> CompiledSource {
    CompiledSource {
        traits: SourceTraits {
            keeps_positions,
            finite: false,
            partitioned: kinds.contains(&"kafka"),
            transactional_with: kinds,
        },
        codec: Codec::Json,
        schema: Schema::default(),
        build: Arc::new(|_| Err(BuildError("a test builds nothing".to_owned()))),
    }
}

fn sink(acknowledges: Acknowledges, kinds: &'static [&'static str]) -> CompiledSink {
    CompiledSink {
        traits: SinkTraits {
            acknowledges,
            transactional_with: kinds,
            transaction_timeout: kinds
                .contains(&crate::component::KAFKA_TRANSACTION)
                .then_some(std::time::Duration::from_secs(10)),
            idempotent_by_key: false,
            per_lane: kinds.contains(&"kafka"),
            carries_headers: true,
        },
        touched: Touched::default(),
        build: Arc::new(|_| Err(BuildError("a test builds nothing".to_owned()))),
    }
}

fn transform(outputs: Vec<String>, default_output: bool) -> CompiledTransform {
    let mut touched = Touched::default();
    touched.reads.insert(".price".to_owned());
    touched.writes.insert(".total".to_owned());
    CompiledTransform {
        outputs,
        default_output,
        touched,
        schema: Schema::default(),
        build: Arc::new(|| unreachable!("a test builds nothing")),
    }
}

macro_rules! configs {
    ($($name:ident $trait:ident $compiled:ident $kind:literal { $($field:ident: $type:ty),* } $made:expr;)*) => {$(
        #[derive(Debug, Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields)]
        #[expect(dead_code, reason = "only read")]
        struct $name { $($field: $type),* }

        impl $trait for $name {
            const NAME: &'static str = $kind;

            fn compile(self, _: &mut CheckContext) -> Option<$compiled> {
                Some($made)
            }
        }
    )*};
}

configs!(
    KafkaSource SourceConfig CompiledSource "kafka" { topics: Vec<String> }
        source(KeepsPositions::Source, &["kafka", "local"]);
    FileSource SourceConfig CompiledSource "file" { path: String } source(KeepsPositions::Store, &["local"]);
    StdinSource SourceConfig CompiledSource "stdin" { codec: Option<Codec> } source(KeepsPositions::Nowhere, &[]);
    KafkaSink SinkConfig CompiledSink "kafka" { topic: String } sink(Acknowledges::Durable, &["kafka"]);
    StdoutSink SinkConfig CompiledSink "stdout" { codec: Option<Codec> } sink(Acknowledges::Received, &[]);
    FileSink SinkConfig CompiledSink "file" { path: String } sink(Acknowledges::Durable, &["local"]);
    UdpSink SinkConfig CompiledSink "udp" { codec: Option<Codec> } sink(Acknowledges::Nothing, &[]);
);

/// A program that may hold the word `bad`, which is a mistake.
#[derive(Debug, Deserialize, JsonSchema)]
struct Map(Text);

impl TransformConfig for Map {
    const NAME: &'static str = "map";

    fn compile(self, cx: &mut CheckContext) -> Option<CompiledTransform> {
        if let Some(at) = self.0.value.find("bad") {
            let words = format!("`bad` is bad in `{}`", self.0.value.trim());
            cx.report(Problem::error(self.0.span_of(at, at + 3), words));
            return None;
        }
        Some(transform(Vec::new(), true))
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[expect(dead_code, reason = "only read")]
struct Filter(Text);

impl TransformConfig for Filter {
    const NAME: &'static str = "filter";

    fn compile(self, _: &mut CheckContext) -> Option<CompiledTransform> {
        Some(transform(Vec::new(), true))
    }
}

const ROUTE: TransformSpec = TransformSpec {
    name: "route",
    schema: |generator| String::json_schema(generator),
    compile: |node: &Node, _| {
        let Kind::Map(entries) = &node.kind else { return None };
        Some(transform(entries.iter().map(|(key, _)| key.name.clone()).collect(), false))
    },
};
