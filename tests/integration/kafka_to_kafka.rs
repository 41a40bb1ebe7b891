//! The main job: from topic to topic through a filter and a map.

use serde_json::Value;

use crate::broker::wait::wait_until;
use crate::broker::{Broker, unique};
use crate::{GUARANTEES, SOON, home, orders};

#[test]
fn every_record_comes_out_once_and_in_the_order_of_its_key() {
    const COUNT: u64 = 20_000;
    let broker = Broker::shared();
    for guarantee in GUARANTEES {
        let (source, sink, name) = (broker.topic("orders", 4), broker.topic("totals", 4), unique("etl"));
        broker.produce(&source, (0..COUNT).map(orders::order));
        let home = home(broker);
        home.write("etl.yaml", orders::pipeline(&name, guarantee, &source, &sink, ""));
        let mut weir = home.start("etl.yaml");

        broker.reader(&sink).read_until(orders::kept(COUNT), SOON);
        wait_until("all to be committed", SOON, || broker.is_all_committed(&name, &source));
        assert_eq!(weir.stop(SOON), 0);

        orders::assert_exactly(&broker.consume_all_committed(&sink), COUNT);
    }
}

#[test]
fn bodies_headers_keys_and_timestamps_are_kept() {
    const COUNT: u64 = 200;
    let broker = Broker::shared();
    for guarantee in GUARANTEES {
        let (source, sink, name) = (broker.topic("orders", 2), broker.topic("totals", 2), unique("etl"));
        broker.produce(&source, (0..COUNT).map(orders::order));
        let home = home(broker);
        home.write("etl.yaml", orders::pipeline(&name, guarantee, &source, &sink, ""));
        let mut weir = home.start("etl.yaml");
        let mut reader = broker.reader(&sink);
        reader.read_until(orders::kept(COUNT), SOON);
        assert_eq!(weir.stop(SOON), 0);

        for record in &reader.records {
            let body = record.json();
            let n = body["n"].as_u64().expect("each has its number");
            assert_eq!(Some(&body), orders::mapped(n).as_ref());
            // Fields that no program touched stand where they stood.
            assert!(record.text().starts_with(&format!(r#"{{"key":"user-{}","seq":"#, n % orders::KEYS)));
            let sent = orders::order(n);
            assert_eq!(record.key, sent.key);
            assert_eq!(record.headers, sent.headers);
            assert_eq!(record.timestamp, sent.timestamp);
        }
    }
}

#[test]
fn a_key_can_come_from_a_field_and_metadata_can_be_read() {
    let broker = Broker::shared();
    let (source, sink, name) = (broker.topic("orders", 2), broker.topic("by-note", 2), unique("etl"));
    broker.produce(&source, (0..50).map(orders::order));
    let home = home(broker);
    home.write(
        "etl.yaml",
        format!(
            r#"
name: {name}
sources:
  orders:
    kafka: {{ brokers: "${{KAFKA_BROKERS}}", topics: [{source}], group: {name} }}
transforms:
  - map: |
      .from_topic = %topic
      .from_key = %key
sinks:
  by_note:
    kafka: {{ brokers: "${{KAFKA_BROKERS}}", topic: {sink}, key: .note, compression: zstd }}
"#
        ),
    );
    let mut weir = home.start("etl.yaml");
    let mut reader = broker.reader(&sink);
    reader.read_until(50, SOON);
    assert_eq!(weir.stop(SOON), 0);

    for record in &reader.records {
        let body = record.json();
        assert_eq!(record.key.as_deref(), body["note"].as_str().map(str::as_bytes));
        assert_eq!(body["from_topic"], Value::from(source.as_str()));
        assert_eq!(body["from_key"], body["key"]);
    }
}

#[test]
fn start_at_latest_counts_only_where_the_group_has_no_offset() {
    let broker = Broker::shared();
    let (source, sink, name) = (broker.topic("orders", 1), broker.topic("totals", 1), unique("etl"));
    broker.produce(&source, (0..10).map(orders::order));
    let home = home(broker);
    let pipeline = orders::pipeline(&name, "at_least_once", &source, &sink, "");
    let pipeline = pipeline.replace(&format!("group: {name}"), &format!("group: {name}, start_at: latest"));
    home.write("etl.yaml", pipeline);

    let mut weir = home.start("etl.yaml");
    wait_until("the source to stand at the end", SOON, || {
        weir.must_run();
        weir.metric("weir_consumer_lag_records", &[("topic", &source)]) == Some(0.0)
    });
    broker.produce(&source, (10..20).map(orders::order));
    let mut reader = broker.reader(&sink);
    reader.read_until(orders::kept(20) - orders::kept(10), SOON);
    assert_eq!(weir.stop(SOON), 0);

    // What came while it was down is read: the group has an offset now.
    broker.produce(&source, (20..30).map(orders::order));
    let mut weir = home.start("etl.yaml");
    reader.read_until(orders::kept(30) - orders::kept(10), SOON);
    assert_eq!(weir.stop(SOON), 0);
    let numbers: Vec<_> = reader.records.iter().filter_map(|record| record.json()["n"].as_u64()).collect();
    assert_eq!(numbers, (10..30).filter(|n| orders::mapped(*n).is_some()).collect::<Vec<_>>());
}

#[test]
fn metrics_readiness_and_lag_are_seen_while_it_runs() {
    const COUNT: u64 = 1_000;
    let broker = Broker::shared();
    let (source, sink, name) = (broker.topic("orders", 2), broker.topic("totals", 2), unique("etl"));
    broker.produce(&source, (0..COUNT).map(orders::order));
    let home = home(broker);
    home.write("etl.yaml", orders::pipeline(&name, "at_least_once", &source, &sink, ""));
    let mut weir = home.start("etl.yaml");
    weir.wait_ready();
    wait_until("all to be committed", SOON, || broker.is_all_committed(&name, &source));

    let count = |metric: &str, component: &str| {
        weir.metric(metric, &[("pipeline", &name), ("component", component)]).map(|value| value.to_string())
    };
    assert_eq!(count("weir_component_sent_records_total", "orders"), Some(COUNT.to_string()));
    assert_eq!(count("weir_component_received_records_total", "wanted"), Some(COUNT.to_string()));
    let kept = orders::kept(COUNT) as u64;
    assert_eq!(count("weir_component_sent_records_total", "wanted"), Some(kept.to_string()));
    assert_eq!(count("weir_component_received_records_total", "totals"), Some(kept.to_string()));
    assert_eq!(count("weir_component_discarded_records_total", "wanted"), Some((COUNT - kept).to_string()));
    wait_until("the lag to be nothing", SOON, || {
        weir.metric("weir_consumer_lag_records", &[("pipeline", &name), ("topic", &source)]) == Some(0.0)
    });
    assert!(weir.metric("weir_epoch_last_committed_timestamp_seconds", &[]).is_some_and(|time| time > 1.7e9));
    assert!(weir.metric("weir_epoch_duration_seconds_count", &[]).is_some_and(|epochs| epochs >= 1.0));
    assert!(weir.metric("weir_record_latency_seconds_count", &[]).is_some_and(|batches| batches >= 1.0));
    assert!(weir.metric("weir_memory_budget_bytes", &[("state", "limit")]).is_some_and(|bytes| bytes > 1e6));

    let (status, body) = weir.get(&format!("/ready/{name}")).expect("it answers");
    assert_eq!((status, body.contains("running")), (200, true), "{body}");
    assert_eq!(weir.get("/ready/nobody").map(|(status, _)| status), Some(404));
    assert_eq!(weir.get("/live").map(|(status, _)| status), Some(200));
    assert_eq!(weir.stop(SOON), 0);
}

#[test]
fn a_topic_that_was_written_in_transactions_has_no_lag_once_it_is_read() {
    const COUNT: u64 = 500;
    let broker = Broker::shared();
    let (source, middle, sink) = (broker.topic("orders", 2), broker.topic("middle", 2), broker.topic("totals", 2));
    let (first, second) = (unique("first"), unique("second"));
    broker.produce(&source, (0..COUNT).map(orders::order));
    let home = home(broker);
    let copy = orders::pipeline(&second, "exactly_once", &middle, &sink, "")
        .replace(".total = to_int!(.price) * to_int!(.qty)\n      del(.qty)", ".copied = true");
    let both = format!("{}\n---\n{copy}", orders::pipeline(&first, "exactly_once", &source, &middle, ""));
    home.write("both.yaml", both);
    let mut weir = home.start("both.yaml");
    broker.reader(&sink).read_until(orders::kept(COUNT), SOON);

    // Behind the last record there is a mark, which takes an offset, and which no reader ever gets.
    wait_until("the lag to be nothing", SOON, || {
        weir.metric("weir_consumer_lag_records", &[("pipeline", &second), ("topic", &middle)]) == Some(0.0)
    });
    let committed = broker.committed_offsets(&second, &middle);
    assert!(broker.end_offsets(&middle).iter().any(|(partition, end)| committed.get(partition) < Some(end)));
    assert_eq!(weir.stop(SOON), 0);
}
