//! Metrics, named as Prometheus asks. Handles are resolved once per stage; costs are paid per batch.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use prometheus::core::Collector;
use prometheus::{
    Counter, CounterVec, Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec,
    IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

/// What the names of all families begin with, but those of the process, which Prometheus names for every program.
const NAMESPACE: &str = "weir";

const STAGE_LABELS: &[&str] = &["pipeline", "component", "kind", "type"];
const BUFFER_LABELS: &[&str] = &["pipeline", "component"];

/// The families of the process, in one registry.
#[derive(Clone)]
pub struct Metrics(Arc<Families>);

struct Families {
    registry: Registry,
    received_records: IntCounterVec,
    received_bytes: IntCounterVec,
    sent_records: IntCounterVec,
    sent_bytes: IntCounterVec,
    errors: IntCounterVec,
    discarded: IntCounterVec,
    time: CounterVec,
    channel_records: IntGaugeVec,
    channel_bytes: IntGaugeVec,
    lag: IntGaugeVec,
    epoch_duration: HistogramVec,
    epoch_last_committed: GaugeVec,
    record_latency: HistogramVec,
    memory_budget: IntGaugeVec,
    restarts: IntCounterVec,
    bottleneck: IntGaugeVec,
    buffer_bytes: IntGaugeVec,
    buffer_records: IntGaugeVec,
    buffer_limit: IntGaugeVec,
    buffer_damaged: IntGaugeVec,
    stuck: IntGaugeVec,
    stuck_seconds: GaugeVec,
    /// Of each pipeline, what each of its domains says.
    stuck_parts: Mutex<BTreeMap<String, Arc<Mutex<Vec<f64>>>>>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

fn named(name: &str, help: &str) -> Opts {
    Opts::new(name, help).namespace(NAMESPACE)
}

fn add<C: Collector + Clone + 'static>(registry: &Registry, family: prometheus::Result<C>) -> C {
    let family = family.expect("names and labels are valid");
    registry.register(Box::new(family.clone())).expect("names are distinct");
    family
}

fn with<'a>(labels: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    labels.iter().chain(more).copied().collect()
}

impl Metrics {
    /// All families, without a series yet.
    ///
    /// # Panics
    /// Never: the names are distinct.
    #[must_use]
    pub fn new() -> Self {
        let registry = Registry::new();
        let counter =
            |name: &str, help: &str, labels: &[&str]| add(&registry, IntCounterVec::new(named(name, help), labels));
        let gauge =
            |name: &str, help: &str, labels: &[&str]| add(&registry, IntGaugeVec::new(named(name, help), labels));
        let seconds = |name: &str, help: &str, buckets: &[f64]| {
            let opts = HistogramOpts::new(name, help).namespace(NAMESPACE).buckets(buckets.to_vec());
            add(&registry, HistogramVec::new(opts, &["pipeline"]))
        };
        let stage = STAGE_LABELS;
        let families = Families {
            received_records: counter("component_received_records_total", "Records that entered a component.", stage),
            received_bytes: counter("component_received_bytes_total", "Bytes of bodies and keys that entered.", stage),
            sent_records: counter("component_sent_records_total", "Records that left a component.", stage),
            sent_bytes: counter("component_sent_bytes_total", "Bytes of bodies and keys that left.", stage),
            errors: counter("component_errors_total", "Errors of a component.", &with(stage, &["error"])),
            discarded: counter(
                "component_discarded_records_total",
                "Records dropped on purpose, or sent to the dead letter.",
                &with(stage, &["reason"]),
            ),
            time: add(
                &registry,
                CounterVec::new(
                    named("component_time_seconds_total", "Time that a stage was busy, idle or blocked."),
                    &with(stage, &["state"]),
                ),
            ),
            channel_records: gauge("channel_records", "Records waiting before a component.", stage),
            channel_bytes: gauge("channel_bytes", "Bytes waiting before a component.", stage),
            lag: gauge(
                "consumer_lag_records",
                "Newest offset minus committed offset.",
                &["pipeline", "component", "topic", "partition"],
            ),
            epoch_duration: seconds(
                "epoch_duration_seconds",
                "From the opening of an epoch's barrier to its commit.",
                &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0],
            ),
            epoch_last_committed: add(
                &registry,
                GaugeVec::new(
                    named("epoch_last_committed_timestamp_seconds", "When an epoch last committed, in Unix time."),
                    &["pipeline"],
                ),
            ),
            record_latency: seconds(
                "record_latency_seconds",
                "From a batch's arrival at the source to the commit that holds it.",
                &[0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0],
            ),
            memory_budget: gauge("memory_budget_bytes", "Bytes of records in memory.", &["pipeline", "state"]),
            restarts: counter("pipeline_restarts_total", "Returns to the last commit.", &["pipeline", "reason"]),
            bottleneck: gauge(
                "pipeline_bottleneck",
                "1 for the stage that holds the others up.",
                &["pipeline", "component"],
            ),
            buffer_bytes: gauge("buffer_bytes", "Bytes that a disk buffer takes.", BUFFER_LABELS),
            buffer_records: gauge("buffer_records", "Records in a disk buffer.", BUFFER_LABELS),
            buffer_limit: gauge("buffer_limit_bytes", "Bytes that a disk buffer may take.", BUFFER_LABELS),
            buffer_damaged: gauge(
                "buffer_damaged_segments",
                "Segments of a disk buffer that were set aside for a person to look at.",
                BUFFER_LABELS,
            ),
            stuck: gauge(
                "pipeline_stuck",
                "1 for the stage at which a pipeline makes no progress, and why; no series while it does.",
                &["pipeline", "component", "reason"],
            ),
            stuck_seconds: add(
                &registry,
                GaugeVec::new(
                    named("pipeline_stuck_seconds", "Since when a pipeline makes no progress; 0 while it does."),
                    &["pipeline"],
                ),
            ),
            stuck_parts: Mutex::default(),
            registry: registry.clone(),
        };
        let build = gauge("build_info", "1, for the version of the program.", &["version"]);
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let process = prometheus::process_collector::ProcessCollector::for_self();
        registry.register(Box::new(process)).expect("names are distinct");
        Self(Arc::new(families))
    }

    /// The handles of one stage. `kind` is `source`, `transform` or `sink`; `type_name` is the kind in the pipeline file.
    #[must_use]
    pub fn stage(&self, pipeline: &str, component: &str, kind: &str, type_name: &str) -> StageMetrics {
        let labels = [pipeline, component, kind, type_name];
        let time = |state| self.0.time.with_label_values(&with(&labels, &[state]));
        StageMetrics {
            received_records: self.0.received_records.with_label_values(&labels),
            received_bytes: self.0.received_bytes.with_label_values(&labels),
            sent_records: self.0.sent_records.with_label_values(&labels),
            sent_bytes: self.0.sent_bytes.with_label_values(&labels),
            busy_seconds: time("busy"),
            idle_seconds: time("idle"),
            blocked_seconds: time("blocked"),
            channel_records: self.0.channel_records.with_label_values(&labels),
            channel_bytes: self.0.channel_bytes.with_label_values(&labels),
            metrics: self.clone(),
            labels: labels.map(Arc::from),
        }
    }

    /// The handles of one pipeline.
    #[must_use]
    pub fn pipeline(&self, pipeline: &str) -> PipelineMetrics {
        let mut stuck_parts = self.0.stuck_parts.lock().unwrap_or_else(PoisonError::into_inner);
        PipelineMetrics {
            epoch_duration: self.0.epoch_duration.with_label_values(&[pipeline]),
            epoch_last_committed: self.0.epoch_last_committed.with_label_values(&[pipeline]),
            record_latency: self.0.record_latency.with_label_values(&[pipeline]),
            memory_used: Share::of(self.0.memory_budget.with_label_values(&[pipeline, "used"])),
            memory_limit: Share::of(self.0.memory_budget.with_label_values(&[pipeline, "limit"])),
            stuck_seconds: Worst {
                gauge: self.0.stuck_seconds.with_label_values(&[pipeline]),
                parts: Arc::clone(stuck_parts.entry(pipeline.to_owned()).or_default()),
                at: Arc::default(),
            },
            metrics: self.clone(),
            pipeline: pipeline.into(),
        }
    }

    /// A pipeline stands still for good, for so many seconds.
    pub fn pipeline_has_failed_for(&self, pipeline: &str, seconds: f64) {
        self.0.stuck_seconds.with_label_values(&[pipeline]).set(seconds.max(0.0));
    }

    /// All series in the Prometheus text format.
    ///
    /// # Panics
    /// Never: writing to memory cannot fail.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.0.registry.gather(), &mut text).expect("memory takes any bytes");
        String::from_utf8_lossy(&text).into_owned()
    }
}

/// The metrics of one stage, shared by its lanes.
#[derive(Clone)]
pub struct StageMetrics {
    /// Records in.
    pub received_records: IntCounter,
    /// Bytes in.
    pub received_bytes: IntCounter,
    /// Records out.
    pub sent_records: IntCounter,
    /// Bytes out.
    pub sent_bytes: IntCounter,
    /// Time spent working.
    pub busy_seconds: Counter,
    /// Time spent waiting for input.
    pub idle_seconds: Counter,
    /// Time spent waiting for room behind.
    pub blocked_seconds: Counter,
    /// Records waiting before the stage.
    pub channel_records: IntGauge,
    /// Bytes waiting before the stage.
    pub channel_bytes: IntGauge,
    metrics: Metrics,
    labels: [Arc<str>; 4],
}

impl fmt::Debug for StageMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StageMetrics").field(&self.labels).finish()
    }
}

impl StageMetrics {
    fn labels<'a>(&'a self, more: &'a str) -> Vec<&'a str> {
        self.labels.iter().map(AsRef::as_ref).chain([more]).collect()
    }

    /// Counts an error, by a reason out of a small fixed set.
    pub fn error(&self, error: &str) {
        self.errors(error, 1);
    }

    /// Counts several errors of one kind at once.
    pub fn errors(&self, error: &str, count: u64) {
        self.metrics.0.errors.with_label_values(&self.labels(error)).inc_by(count);
    }

    /// Counts records that go no further, by a reason out of a small fixed set.
    pub fn discarded(&self, reason: &str, records: u64) {
        self.metrics.0.discarded.with_label_values(&self.labels(reason)).inc_by(records);
    }

    /// The metrics of the disk buffer that the stage is an end of.
    #[must_use]
    pub fn buffer(&self) -> BufferMetrics {
        let labels = [&*self.labels[0], &*self.labels[1]];
        let families = &self.metrics.0;
        BufferMetrics {
            bytes: families.buffer_bytes.with_label_values(&labels),
            records: families.buffer_records.with_label_values(&labels),
            limit: families.buffer_limit.with_label_values(&labels),
            damaged: families.buffer_damaged.with_label_values(&labels),
        }
    }

    /// Sets the lag of a partition.
    pub fn lag(&self, topic: &str, partition: i32, records: i64) {
        let partition = partition.to_string();
        let labels = [&*self.labels[0], &*self.labels[1], topic, &partition];
        self.metrics.0.lag.with_label_values(&labels).set(records);
    }

    /// Forgets the lag of a partition that is no longer held.
    pub fn forget_lag(&self, topic: &str, partition: i32) {
        let partition = partition.to_string();
        let labels = [&*self.labels[0], &*self.labels[1], topic, &partition];
        let _ = self.metrics.0.lag.remove_label_values(&labels);
    }
}

/// A part of a gauge: the epoch domains of a pipeline add up to what is seen of it.
#[derive(Debug, Clone)]
pub struct Share {
    whole: IntGauge,
    part: Arc<AtomicI64>,
}

impl Share {
    fn of(whole: IntGauge) -> Self {
        Self { whole, part: Arc::default() }
    }

    /// Sets this part.
    pub fn set(&self, part: i64) {
        self.whole.add(part - self.part.swap(part, Ordering::Relaxed));
    }

    /// The whole.
    #[must_use]
    pub fn get(&self) -> i64 {
        self.whole.get()
    }
}

/// A part of a gauge: of what the epoch domains of a pipeline say, the highest is seen.
#[derive(Debug, Clone)]
pub struct Worst {
    gauge: Gauge,
    parts: Arc<Mutex<Vec<f64>>>,
    /// The number of this part, once it has said something.
    at: Arc<OnceLock<usize>>,
}

impl Worst {
    /// Sets this part.
    pub fn set(&self, part: f64) {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let at = *self.at.get_or_init(|| {
            parts.push(0.0);
            parts.len() - 1
        });
        parts[at] = part;
        self.gauge.set(parts.iter().copied().fold(0.0, f64::max));
    }
}

/// The metrics of one disk buffer.
#[derive(Debug, Clone)]
pub struct BufferMetrics {
    bytes: IntGauge,
    records: IntGauge,
    limit: IntGauge,
    damaged: IntGauge,
}

impl BufferMetrics {
    /// Tells what is in it, and how many bytes it may take.
    pub fn set(&self, bytes: u64, records: u64, limit_bytes: u64, damaged_segments: u64) {
        let gauges = [&self.bytes, &self.records, &self.limit, &self.damaged];
        for (gauge, value) in gauges.into_iter().zip([bytes, records, limit_bytes, damaged_segments]) {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        }
    }
}

/// The metrics of one pipeline.
#[derive(Clone)]
pub struct PipelineMetrics {
    /// From the opening of a barrier to the commit.
    pub epoch_duration: Histogram,
    /// Unix time of the last commit, in seconds.
    pub epoch_last_committed: Gauge,
    /// From a batch's arrival to the commit that holds it.
    pub record_latency: Histogram,
    /// Bytes of records in memory.
    pub memory_used: Share,
    /// The budget.
    pub memory_limit: Share,
    /// Since when there is no progress.
    pub stuck_seconds: Worst,
    metrics: Metrics,
    pipeline: Arc<str>,
}

impl fmt::Debug for PipelineMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PipelineMetrics").field(&self.pipeline).finish()
    }
}

impl PipelineMetrics {
    /// Counts a return to the last commit, by a reason out of a small fixed set.
    pub fn restart(&self, reason: &str) {
        self.metrics.0.restarts.with_label_values(&[&self.pipeline, reason]).inc();
    }

    /// Names the stage that holds the others up; the earlier one is unnamed.
    pub fn bottleneck(&self, component: &str, is_one: bool) {
        self.metrics.0.bottleneck.with_label_values(&[&*self.pipeline, component]).set(i64::from(is_one));
    }

    /// Names the stage at which there is no progress, and why, by a reason out of a small fixed set.
    pub fn stuck_at(&self, component: &str, reason: &str) {
        self.metrics.0.stuck.with_label_values(&[&*self.pipeline, component, reason]).set(1);
    }

    /// There is progress again, or it is missing elsewhere.
    pub fn not_stuck_at(&self, component: &str, reason: &str) {
        let _ = self.metrics.0.stuck.remove_label_values(&[&*self.pipeline, component, reason]);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    #[test]
    fn the_parts_of_a_gauge_add_up() {
        let metrics = Metrics::new();
        let (one, other) = (metrics.pipeline("p").memory_used, metrics.pipeline("p").memory_used);
        one.set(5);
        other.set(3);
        metrics.pipeline("p").stuck_seconds.set(9.0);
        metrics.pipeline("p").stuck_seconds.set(0.0);
        assert!(
            metrics.text().contains("weir_pipeline_stuck_seconds{pipeline=\"p\"} 9"),
            "and of some the worst is seen"
        );
        one.clone().set(4);
        assert_eq!(other.get(), 7);
    }

    fn with_a_series_of_each() -> Metrics {
        let metrics = Metrics::new();
        let stage = metrics.stage("orders", "a \"quoted\\name\"\nof two lines", "source", "kafka");
        stage.received_records.inc_by(2);
        stage.error("retry");
        stage.discarded("filtered", 3);
        stage.lag("orders", 0, 17);
        stage.buffer().set(4096, 3, 1 << 20, 0);
        let pipeline = metrics.pipeline("orders");
        pipeline.epoch_duration.observe(0.004);
        pipeline.record_latency.observe(0.2);
        pipeline.memory_used.set(1 << 20);
        pipeline.restart("panic");
        pipeline.bottleneck("priced", true);
        pipeline.stuck_at("totals", "waits");
        metrics
    }

    /// A line of the text format, `name{label="value",…} number`, as its name and its number.
    fn sample(line: &str) -> Option<(&str, f64)> {
        let (series, number) = line.rsplit_once(' ')?;
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        let is_name = |text: &str| {
            !text.is_empty()
                && !text.starts_with(|first: char| first.is_ascii_digit())
                && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        };
        let mut rest = labels.strip_suffix('}')?;
        while !rest.is_empty() {
            let (label, value) = rest.split_once("=\"")?;
            let mut escaped = false;
            let end = value.find(|char| {
                let closes = char == '"' && !escaped;
                escaped = char == '\\' && !escaped;
                closes
            })?;
            let after = &value[end + 1..];
            rest = after.strip_prefix(',').unwrap_or(after);
            if !is_name(label) || (rest.len() == after.len() && !after.is_empty()) {
                return None;
            }
        }
        Some((name, number.parse().ok()?)).filter(|(name, _)| is_name(name))
    }

    #[test]
    fn the_text_is_valid_exposition_format() {
        let text = with_a_series_of_each().text();
        let mut types = BTreeMap::new();
        for line in text.lines() {
            if let Some(declared) = line.strip_prefix("# TYPE ") {
                let (name, kind) = declared.split_once(' ').unwrap();
                assert_eq!(types.insert(name, kind), None, "`{name}` is declared twice");
                assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            } else if !line.starts_with("# HELP ") {
                let (name, number) = sample(line).unwrap_or_else(|| panic!("not a sample: {line}"));
                let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
                let histogram = family.is_some_and(|family| types.get(family) == Some(&"histogram"));
                assert!(histogram || types.contains_key(name), "`{name}` was not declared before");
                assert!(number.is_finite(), "{line}");
            }
        }
    }

    /// The words of the README that are names of metrics.
    fn documented() -> BTreeSet<&'static str> {
        let readme = include_str!("../../README.md");
        let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
        let names = readme.match_indices("weir_").map(|(at, _)| {
            let length = readme[at..].bytes().take_while(|byte| is_part(byte)).count();
            &readme[at..at + length]
        });
        names.collect()
    }

    #[test]
    fn every_documented_family_is_there_and_every_family_is_documented() {
        let text = with_a_series_of_each().text();
        let families: BTreeSet<&str> =
            text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
        let documented = documented();
        assert!(documented.len() > 15, "{documented:?}");
        for name in &documented {
            assert!(families.contains(name), "the README tells of `{name}`, which is not there:\n{text}");
        }
        for name in families.into_iter().filter(|name| name.starts_with("weir_")) {
            // Told of as "the same in bytes".
            let records = name.replace("_bytes_total", "_records_total");
            assert!(
                documented.contains(name) || documented.contains(&*records),
                "the README does not tell of `{name}`"
            );
        }
    }

    #[test]
    fn series_have_the_labels_that_tell_them_apart() {
        let text = with_a_series_of_each().text();
        for (name, labels) in [
            ("weir_component_errors_total", "error=\"retry\""),
            ("weir_component_discarded_records_total", "reason=\"filtered\""),
            ("weir_component_time_seconds_total", "state=\"busy\""),
            ("weir_component_time_seconds_total", "state=\"idle\""),
            ("weir_component_time_seconds_total", "state=\"blocked\""),
            ("weir_channel_records", "kind=\"source\""),
            ("weir_channel_bytes", "type=\"kafka\""),
            ("weir_consumer_lag_records", "partition=\"0\""),
            ("weir_epoch_duration_seconds_bucket", "le=\"+Inf\""),
            ("weir_epoch_last_committed_timestamp_seconds", "pipeline=\"orders\""),
            ("weir_memory_budget_bytes", "state=\"used\""),
            ("weir_memory_budget_bytes", "state=\"limit\""),
            ("weir_pipeline_restarts_total", "reason=\"panic\""),
            ("weir_pipeline_bottleneck", "component=\"priced\""),
            ("weir_pipeline_stuck", "reason=\"waits\""),
            ("weir_pipeline_stuck_seconds", "pipeline=\"orders\""),
            ("weir_build_info", "version="),
            ("process_resident_memory_bytes", ""),
        ] {
            let there =
                text.lines().any(|line| sample(line).is_some_and(|(is, _)| is == name) && line.contains(labels));
            assert!(there, "{name} {labels}\n{text}");
        }
    }

    #[test]
    fn the_lag_of_a_partition_that_is_gone_is_gone() {
        let metrics = Metrics::new();
        let stage = metrics.stage("orders", "in", "source", "kafka");
        stage.lag("orders", 3, 17);
        assert!(metrics.text().contains("weir_consumer_lag_records"));
        stage.forget_lag("orders", 3);
        assert!(!metrics.text().contains("weir_consumer_lag_records"));
    }
}
