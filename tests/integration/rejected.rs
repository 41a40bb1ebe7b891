//! Records that a stage refuses: to the dead letter with the reason, or the pipeline stops.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::broker::wait::wait_until;
use crate::broker::{Broker, Consumed, Reader, Record, unique};
use crate::{GUARANTEES, SOON, home, orders};

fn dead_letter(topic: &str) -> String {
    format!("dead_letter:\n  kafka: {{ brokers: \"${{KAFKA_BROKERS}}\", topic: {topic} }}\n")
}

/// Reads until every one of `keys` has a dead letter, and gives the letters by key.
fn letters_of(reader: &mut Reader, keys: &[&str]) -> BTreeMap<String, Consumed> {
    wait_until(&format!("the dead letters of {keys:?}"), SOON, || {
        reader.poll(Duration::from_millis(50));
        let has = |key: &&str| reader.records.iter().any(|letter| letter.key.as_deref() == Some(key.as_bytes()));
        keys.iter().all(has)
    });
    let key = |letter: &Consumed| String::from_utf8_lossy(letter.key.as_deref().unwrap_or_default()).into_owned();
    reader.records.iter().map(|letter| (key(letter), letter.clone())).collect()
}

#[test]
fn a_record_larger_than_the_topic_takes_goes_to_the_dead_letter_and_the_others_go_on() {
    const COUNT: u64 = 2_000;
    let broker = Broker::shared();
    for guarantee in GUARANTEES {
        let (source, dead, name) = (broker.topic("orders", 2), broker.topic("dead", 1), unique("etl"));
        let sink = unique("small");
        broker.create_topic(&sink, 2, &[("max.message.bytes", "20000")]);
        let pad = "larger than the topic takes, ".repeat(4_000);
        let huge = format!(r#"{{"key":"huge","level":"info","price":1,"qty":1,"pad":"{pad}"}}"#);
        broker.produce(&source, (0..COUNT / 2).map(orders::order));
        broker.produce(&source, [Record::new(huge.clone()).key("huge").to(0).header("trace", "h")]);
        broker.produce(&source, (COUNT / 2..COUNT).map(orders::order));
        let home = home(broker);
        home.write("etl.yaml", orders::pipeline(&name, guarantee, &source, &sink, &dead_letter(&dead)));
        let mut weir = home.start("etl.yaml");

        broker.reader(&sink).read_until(orders::kept(COUNT), SOON);
        wait_until("all to be committed", SOON, || broker.is_all_committed(&name, &source));
        assert_eq!(weir.stop(SOON), 0);

        orders::assert_exactly(&broker.consume_all_committed(&sink), COUNT);
        let letters = broker.consume_all_committed(&dead);
        assert_eq!(letters.len(), 1, "{guarantee}");
        // As it entered the stage that refused it: the sink, so behind the map.
        assert_eq!(letters[0].json()["total"], 1);
        assert_eq!(letters[0].json()["pad"], pad);
        assert_eq!(letters[0].key.as_deref(), Some(&b"huge"[..]));
        assert_eq!(letters[0].header("trace"), Some("h"));
        assert_eq!(letters[0].header("weir-stage"), Some("totals"));
        assert_eq!(letters[0].header("weir-topic"), Some(source.as_str()));
        assert!(
            letters[0].header("weir-error").is_some_and(|error| error.contains("20000")),
            "{:?}",
            letters[0].headers
        );
    }
}

/// Rule 29: a letter is cut until its topic takes it.
#[test]
fn rule_29_a_dead_letter_topic_that_takes_little_stops_nothing() {
    const COUNT: u64 = 100;
    let broker = Broker::shared();
    for guarantee in GUARANTEES {
        let (source, sink, name) = (broker.topic("orders", 1), broker.topic("totals", 1), unique("etl"));
        let dead = unique("dead");
        broker.create_topic(&dead, 1, &[("max.message.bytes", "1500")]);
        let long = "not a number, ".repeat(1_000);
        let unmappable = format!(r#"{{"key":"unmappable","level":"info","price":"{long}","qty":1}}"#);
        broker.produce(&source, [Record::new(unmappable.clone()).key("unmappable").header("trace", long)]);
        broker.produce(&source, (0..COUNT).map(orders::order));
        let home = home(broker);
        home.write("etl.yaml", orders::pipeline(&name, guarantee, &source, &sink, &dead_letter(&dead)));
        let mut weir = home.start("etl.yaml");

        broker.reader(&sink).read_until(orders::kept(COUNT), SOON);
        wait_until("all to be committed", SOON, || {
            weir.must_run();
            broker.is_all_committed(&name, &source)
        });
        assert_eq!(weir.stop(SOON), 0);
        let letters = broker.consume_all_committed(&dead);
        assert_eq!(letters.len(), 1, "{guarantee}");
        assert_eq!(letters[0].header("weir-cut-from-bytes"), Some(unmappable.len().to_string().as_str()));
        assert_eq!(letters[0].header("weir-offset"), Some("0"));
        assert!(letters[0].header("weir-error").is_some_and(|error| error.len() > 100), "{:?}", letters[0].headers);
    }
}

#[test]
fn what_cannot_be_read_or_mapped_goes_to_the_dead_letter_as_it_entered() {
    const COUNT: u64 = 1_000;
    let broker = Broker::shared();
    for guarantee in GUARANTEES {
        let (source, sink, name) = (broker.topic("orders", 2), broker.topic("totals", 2), unique("etl"));
        let dead = broker.topic("dead", 1);
        let broken = br#"{"key":"broken", "level":"info",, "#;
        let not_utf8 = b"{\"key\":\"\xff\xfe\"}";
        let unmappable = r#"{"key":"unmappable","level":"info","price":"a lot","qty":1}"#;
        broker.produce(&source, (0..COUNT / 2).map(orders::order));
        broker.produce(
            &source,
            [
                Record::new(&broken[..]).key("broken").header("trace", "b").at(1_600_000_000_000),
                Record::new(&not_utf8[..]).key("not-utf8"),
                Record::new(unmappable).key("unmappable").header("trace", "u"),
            ],
        );
        broker.produce(&source, (COUNT / 2..COUNT).map(orders::order));
        let home = home(broker);
        home.write("etl.yaml", orders::pipeline(&name, guarantee, &source, &sink, &dead_letter(&dead)));
        let mut weir = home.start("etl.yaml");

        let letters = letters_of(&mut broker.reader(&dead), &["broken", "not-utf8", "unmappable"]);
        broker.reader(&sink).read_until(orders::kept(COUNT), SOON);
        wait_until("all to be committed", SOON, || broker.is_all_committed(&name, &source));
        assert_eq!(weir.stop(SOON), 0);

        orders::assert_exactly(&broker.consume_all_committed(&sink), COUNT);
        assert_eq!(broker.consume_all_committed(&dead).len(), 3);
        let broken_letter = &letters["broken"];
        assert_eq!(broken_letter.value, broken);
        assert_eq!(broken_letter.timestamp, Some(1_600_000_000_000));
        assert_eq!(broken_letter.header("trace"), Some("b"));
        assert_eq!(broken_letter.header("weir-stage"), Some("orders"));
        assert_eq!(broken_letter.header("weir-pipeline"), Some(name.as_str()));
        assert!(broken_letter.header("weir-error").is_some_and(|error| !error.is_empty()));
        assert!(broken_letter.header("weir-offset").is_some_and(|offset| offset.parse::<i64>().is_ok()));
        assert_eq!(letters["not-utf8"].value, not_utf8);
        let unmappable_letter = &letters["unmappable"];
        assert_eq!(unmappable_letter.text(), unmappable);
        assert_eq!(unmappable_letter.header("weir-stage"), Some("priced"));
        assert_eq!(unmappable_letter.header("trace"), Some("u"));
    }
}

#[test]
fn without_a_dead_letter_a_refused_record_stops_the_pipeline_and_is_not_skipped() {
    let broker = Broker::shared();
    for guarantee in GUARANTEES {
        let (source, sink, name) = (broker.topic("orders", 1), broker.topic("totals", 1), unique("etl"));
        broker.produce(&source, (0..100).map(orders::order));
        broker.produce(&source, [Record::new("not json").key("k")]);
        broker.produce(&source, (100..200).map(orders::order));
        let home = home(broker);
        home.write("etl.yaml", orders::pipeline(&name, guarantee, &source, &sink, ""));

        for _ in 0..2 {
            let mut weir = home.start("etl.yaml");
            assert_eq!(weir.wait(SOON), 1, "{guarantee}");
            let log = weir.log();
            let told = |line: &str| line.contains("ERROR") && line.contains("orders") && line.contains("dead_letter");
            assert!(log.lines().any(told), "no line says what to do:\n{log}");
            assert!(!log.contains("not json"), "the log holds the record's content:\n{log}");
            let committed = broker.committed_offsets(&name, &source).get(&0).copied().unwrap_or(0);
            assert!(committed <= 100, "the refused record was skipped: {committed}");
        }
    }
}

#[test]
fn a_refused_record_is_dropped_and_counted_where_the_stage_says_so() {
    const COUNT: u64 = 100;
    let broker = Broker::shared();
    let (source, sink, name) = (broker.topic("orders", 1), broker.topic("totals", 1), unique("etl"));
    broker.produce(&source, [Record::new("not json")]);
    broker.produce(&source, (0..COUNT).map(orders::order));
    let home = home(broker);
    let pipeline = orders::pipeline(&name, "at_least_once", &source, &sink, "");
    home.write("etl.yaml", pipeline.replacen("  orders:\n", "  orders:\n    on_error: drop\n", 1));
    let mut weir = home.start("etl.yaml");

    broker.reader(&sink).read_until(orders::kept(COUNT), SOON);
    wait_until("all to be committed", SOON, || broker.is_all_committed(&name, &source));
    let labels = [("pipeline", name.as_str()), ("component", "orders")];
    assert_eq!(weir.metric("weir_component_discarded_records_total", &labels), Some(1.0));
    assert_eq!(weir.stop(SOON), 0);
    orders::assert_exactly(&broker.consume_all_committed(&sink), COUNT);
}

#[test]
fn a_record_that_spoils_the_request_it_travels_in_is_found_and_goes_to_the_dead_letter() {
    const COUNT: u64 = 3_000;
    let for_ever = [("message.timestamp.after.max.ms", "9223372036854775807")];
    let broker = Broker::shared();
    let guarantee = "exactly_once";
    let (source, sink, dead, name) = (unique("orders"), broker.topic("totals", 2), unique("dead"), unique("etl"));
    broker.create_topic(&source, 2, &for_ever);
    broker.create_topic(&dead, 1, &for_ever);
    broker.produce(&source, (0..COUNT / 2).map(orders::order));
    // The sink's topic takes no record of the future; in a transaction the broker fails all that comes with it.
    let body = r#"{"key":"future","level":"info","price":1,"qty":1}"#;
    broker.produce(&source, [Record::new(body).key("future").to(0).at(4_080_000_000_000)]);
    broker.produce(&source, (COUNT / 2..COUNT).map(orders::order));
    let home = home(broker);
    home.write("etl.yaml", orders::pipeline(&name, guarantee, &source, &sink, &dead_letter(&dead)));
    let mut weir = home.start("etl.yaml");

    broker.reader(&sink).read_until(orders::kept(COUNT), Duration::from_mins(3));
    wait_until("all to be committed", SOON, || broker.is_all_committed(&name, &source));
    assert_eq!(weir.stop(SOON), 0);

    orders::assert_exactly(&broker.consume_all_committed(&sink), COUNT);
    let letters = broker.consume_all_committed(&dead);
    assert_eq!(letters.len(), 1, "{guarantee}");
    assert_eq!(letters[0].json()["key"], "future");
    assert_eq!(letters[0].header("weir-stage"), Some("totals"));
    assert!(letters[0].header("weir-error").is_some_and(|error| error.contains("timestamp")), "{guarantee}");
}

#[test]
fn rule_14_a_record_without_a_key_does_not_reach_a_compacted_topic_and_stops_nothing() {
    const COUNT: u64 = 500;
    let broker = Broker::shared();
    for guarantee in GUARANTEES {
        let (source, sink, name) = (broker.topic("orders", 2), unique("table"), unique("etl"));
        let dead = broker.topic("dead", 1);
        broker.create_topic(&sink, 2, &[("cleanup.policy", "compact")]);
        let keyless = |n: u64| n % 100 == 7;
        let record = |n| {
            let mut record = orders::order(n);
            record.key = record.key.filter(|_| !keyless(n));
            record
        };
        broker.produce(&source, (0..COUNT).map(record));
        let home = home(broker);
        let letters = format!("dead_letter:\n  kafka: {{ brokers: \"${{KAFKA_BROKERS}}\", topic: {dead} }}\n");
        home.write("etl.yaml", orders::pipeline(&name, guarantee, &source, &sink, &letters));
        let mut weir = home.start("etl.yaml");
        wait_until("all to be committed", SOON, || {
            weir.must_run();
            broker.is_all_committed(&name, &source)
        });
        assert_eq!(weir.stop(SOON), 0);
        let numbers = |topic: &str| -> BTreeSet<u64> {
            let came = broker.consume_all_committed(topic);
            came.iter().map(|record| record.json()["n"].as_u64().expect("each has its number")).collect()
        };
        let kept: BTreeSet<u64> = (0..COUNT).filter(|n| orders::mapped(*n).is_some()).collect();
        let (without, with): (BTreeSet<u64>, BTreeSet<u64>) = kept.into_iter().partition(|n| keyless(*n));
        assert_eq!(numbers(&sink), with, "{guarantee}");
        assert_eq!(numbers(&dead), without, "{guarantee}");
        let letters = broker.consume_all_committed(&dead);
        let why = letters[0].header("weir-error").expect("a letter has a reason");
        assert!(why.contains("key"), "{why}");
    }
}
