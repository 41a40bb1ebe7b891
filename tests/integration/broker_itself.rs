//! The broker that all other tests stand on.

use std::time::Duration;

use crate::broker::{Broker, Record};

#[test]
fn records_come_back_as_they_were_produced() {
    let broker = Broker::shared();
    let topic = broker.topic("round-trip", 3);
    let sent = (0..1000).map(|n| {
        let key = format!("k{}", n % 7);
        Record::new(format!("{{\"n\":{n}}}")).key(key).header("h", "1").header("h", "2").at(1_000 + n)
    });
    broker.produce(&topic, sent);

    let records = broker.consume_all_committed(&topic);

    assert_eq!(records.len(), 1000);
    let mut numbers: Vec<_> = records.iter().map(|record| record.json()["n"].as_i64()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..1000).map(Some).collect::<Vec<_>>());
    for record in &records {
        assert_eq!(record.header("h"), Some("1"));
        assert_eq!(record.headers.len(), 2);
        assert_eq!(record.timestamp, record.json()["n"].as_i64().map(|n| 1_000 + n));
    }
    assert!(broker.committed_offsets("nobody", &topic).is_empty());
    broker.delete_topic(&topic);
}

#[test]
fn a_killed_broker_comes_back_on_its_port_with_its_data() {
    let broker = Broker::start_new();
    let topic = broker.topic("restart", 2);
    broker.produce(&topic, (0..100).map(|n| Record::new(n.to_string())));
    let mut reader = broker.reader(&topic);
    reader.read_until(100, Duration::from_secs(20));

    broker.kill();
    broker.start();

    broker.produce(&topic, (0..100).map(|n| Record::new(n.to_string())));
    reader.read_until(200, Duration::from_mins(1));
    reader.read_to_end();
    assert_eq!(reader.records.len(), 200);
}
