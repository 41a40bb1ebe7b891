//! Dead letters in a topic make a round trip: listed, shown, and sent back into the stage that refused them.

use std::collections::BTreeMap;
use std::process::Output;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use serde_json::Value;

use crate::broker::wait::wait_until;
use crate::broker::{Broker, Consumed, Record, unique};
use crate::process::Home;
use crate::{GUARANTEES, SOON, home, orders};

/// Topics of a pipeline and its files: as it was, and corrected.
struct Scene {
    broker: &'static Broker,
    guarantee: &'static str,
    source: String,
    sink: String,
    dead: String,
    name: String,
    home: Home,
}

impl Scene {
    fn new(guarantee: &'static str, partitions: i32) -> Self {
        let broker = Broker::shared();
        let (source, sink) = (broker.topic("orders", partitions), broker.topic("totals", partitions));
        let (dead, name, home) = (broker.topic("dead", partitions), unique("etl"), home(broker));
        let scene = Self { broker, guarantee, source, sink, dead, name, home };
        let file = scene.file();
        scene.home.write("etl.yaml", &file);
        // A price in words counts as nothing.
        scene.home.write("fixed.yaml", file.replace("to_int!(.price)", "(to_int(.price) ?? 0)"));
        scene
    }

    fn file(&self) -> String {
        let dead = &self.dead;
        let more = format!(
            "commit: {{ interval: 50ms }}\ndead_letter:\n  kafka: {{ brokers: \"${{KAFKA_BROKERS}}\", topic: {dead} }}\n"
        );
        orders::pipeline(&self.name, self.guarantee, &self.source, &self.sink, &more)
    }

    /// Runs the pipeline until all of its input is committed.
    fn drain(&self) {
        let mut weir = self.home.start("etl.yaml");
        wait_until("all to be committed", SOON, || {
            weir.must_run();
            self.broker.is_all_committed(&self.name, &self.source)
        });
        assert_eq!(weir.stop(SOON), 0);
    }

    fn dlq(&self, arguments: &[&str]) -> Output {
        let all: Vec<_> = ["dlq"].iter().chain(arguments).copied().collect();
        self.home.run(&all)
    }

    /// What a command says if it goes well.
    fn said(&self, arguments: &[&str]) -> String {
        let output = self.dlq(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {errors}");
        String::from_utf8(output.stdout).expect("it prints text")
    }

    /// The letters as `list` tells them to programs.
    fn listed(&self, arguments: &[&str]) -> Vec<Value> {
        let all: Vec<_> = ["list", "--format", "json", "etl.yaml"].iter().chain(arguments).copied().collect();
        self.said(&all).lines().map(|line| serde_json::from_str(line).expect("each line is an object")).collect()
    }

    /// The numbers of the records that came out, and how often each did.
    fn delivered(&self) -> BTreeMap<u64, usize> {
        let mut numbers = BTreeMap::new();
        for record in self.broker.consume_all_committed(&self.sink) {
            *numbers.entry(record.json()["n"].as_u64().expect("each has its number")).or_default() += 1;
        }
        numbers
    }
}

/// A record whose price is no number.
fn wrong(n: u64) -> Record {
    let mut record = orders::order(n);
    let body =
        String::from_utf8(record.value).expect("it is text").replacen("\"price\":", "\"price\":\"a lot\",\"was\":", 1);
    record.value = body.replacen("debug", "info", 1).into_bytes();
    record
}

#[test]
fn letters_go_through_a_corrected_pipeline_once_beside_the_running_daemon() {
    for guarantee in GUARANTEES {
        let scene = Scene::new(guarantee, 2);
        let broken =
            Record::new(&b"{\"key\":\xff"[..]).key("broken").header("weir-error", "its own").at(1_600_000_000_000);
        scene.broker.produce(&scene.source, (0..20).map(|n| if n % 4 == 0 { wrong(n) } else { orders::order(n) }));
        scene.broker.produce(&scene.source, [broken]);
        let mut weir = scene.home.start("etl.yaml");
        wait_until("all to be committed", SOON, || {
            weir.must_run();
            scene.broker.is_all_committed(&scene.name, &scene.source)
        });

        let letters = scene.listed(&[]);
        assert_eq!(letters.len(), 6);
        let of = |stage: &str| letters.iter().filter(|letter| letter["stage"] == stage).collect::<Vec<_>>();
        assert_eq!((of("priced").len(), of("orders").len()), (5, 1));
        assert!(letters.iter().all(|letter| letter["replayed"] == false && letter["topic"] == scene.source.as_str()));
        assert_eq!(scene.listed(&["--stage", "orders", "--since", "1h"]).len(), 1);
        assert_eq!(scene.listed(&["--limit", "2"]).len(), 2);
        let summary = scene.said(&["list", "--summary", "etl.yaml"]);
        assert!(summary.contains("5  priced  ") && summary.ends_with("6 letters\n"), "{summary}");

        let broken = of("orders")[0]["place"].as_str().expect("a place is text").to_owned();
        let raw = scene.dlq(&["show", "etl.yaml", &broken, "--raw"]);
        assert_eq!(raw.stdout, b"{\"key\":\xff");
        let shown = scene.said(&["show", "etl.yaml", &broken]);
        assert!(shown.contains("header       weir-error: its own") && shown.contains("7b 22 6b"), "{shown}");

        // Nothing was mended yet: what is sent back comes back, as the same records.
        let said = scene.said(&["replay", "etl.yaml", "--stage", "priced", "--limit", "1"]);
        assert_eq!(
            said,
            "replayed 1 letter: 0 records delivered, 1 refused again\nskipped: 1 of other stages; 4 beyond the limit\n"
        );
        let again: Vec<_> = scene.listed(&[]).into_iter().filter(|letter| letter["attempt"] == 2).collect();
        assert_eq!(again.len(), 1);
        let first = letters
            .iter()
            .find(|letter| letter["offset"] == again[0]["offset"] && letter["partition"] == again[0]["partition"]);
        let from = again[0]["replayed_from"].as_str().expect("it says which letter it follows");
        assert_eq!(
            from,
            format!("{}/{}", scene.dead, first.expect("it keeps its place")["place"].as_str().expect("text"))
        );

        // One that is named, then all that are left, in the corrected pipeline; then there is nothing to do.
        let named = of("priced").last().expect("there are five")["place"].as_str().expect("text").to_owned();
        let said = scene.said(&["replay", "--through", "fixed.yaml", "etl.yaml", &named]);
        assert_eq!(said, "replayed 1 letter: 1 record delivered\n");
        let said = scene.said(&["replay", "--through", "fixed.yaml", "--stage", "priced", "etl.yaml"]);
        assert_eq!(said, "replayed 4 letters: 4 records delivered\nskipped: 2 replayed before; 1 of other stages\n");
        for arguments in [&["etl.yaml"][..], &["etl.yaml", &named]] {
            let all: Vec<_> = ["replay", "--stage", "priced"].iter().chain(arguments).copied().collect();
            assert!(scene.said(&all).starts_with("there is nothing to replay\n"));
        }
        assert_eq!(weir.stop(SOON), 0);

        let delivered = scene.delivered();
        let expected: BTreeMap<u64, usize> = (0..20).filter(|n| n % 4 == 0 || n % 5 != 3).map(|n| (n, 1)).collect();
        assert_eq!(delivered, expected, "{guarantee}");
        let out = scene.broker.consume_all_committed(&scene.sink);
        let replayed: Vec<&Consumed> =
            out.iter().filter(|record| record.header("weir-replayed-from").is_some()).collect();
        assert_eq!(replayed.len(), 5);
        for record in replayed {
            let sent = orders::order(record.json()["n"].as_u64().expect("each has its number"));
            assert_eq!((&record.key, record.timestamp), (&sent.key, sent.timestamp));
            assert_eq!(&record.headers[..2], &sent.headers[..]);
        }
        let listed = scene.listed(&[]);
        assert!(
            listed.iter().all(|letter| (letter["replayed"] == true) == (letter["stage"] == "priced")),
            "{listed:?}"
        );
    }
}

#[test]
fn rule_29_letters_stay_replayed_when_the_broker_forgets_the_group() {
    let scene = Scene::new("at_least_once", 1);
    scene.broker.produce(&scene.source, (0..3).map(wrong));
    scene.drain();
    let all = ["replay", "--through", "fixed.yaml", "etl.yaml"];
    assert_eq!(
        scene.said(&[&all[..], &["--limit", "2"]].concat()),
        "replayed 2 letters: 2 records delivered\nskipped: 1 beyond the limit\n"
    );

    // As it does a week after the last commit of a group without members.
    let group = format!("{}.weir-dlq.priced", scene.name);
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", scene.broker.address()).create().expect("the settings are valid");
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("it starts");
    wait_until("the group to be forgotten", SOON, || {
        let deleted = tokio.block_on(admin.delete_groups(&[&group], &AdminOptions::new()));
        // The broker may take the member that has just left for one that will be back.
        deleted.expect("the broker answers").into_iter().all(|group| group.is_ok())
    });

    let replayed: Vec<_> = scene.listed(&[]).iter().map(|letter| letter["replayed"] == true).collect();
    assert_eq!(replayed, [true, true, false]);
    assert_eq!(scene.said(&all), "replayed 1 letter: 1 record delivered\nskipped: 2 replayed before\n");
    assert_eq!(scene.delivered(), (0..3).map(|n| (n, 1)).collect());
}

/// Replays `COUNT` letters with a process that is killed again and again, and tells how often each record came.
fn survive(guarantee: &'static str) -> BTreeMap<u64, usize> {
    let scene = Scene::new(guarantee, 4);
    scene.broker.produce(&scene.source, (0..COUNT).map(wrong));
    scene.drain();
    let mut reader = scene.broker.reader(&scene.sink);
    let mut killed_midway = 0;
    for _ in 0..10 {
        let before = reader.records.len();
        let mut replay = scene.home.start_command(&["dlq", "replay", "--through", "fixed.yaml", "etl.yaml"]);
        wait_until("the replay to deliver", SOON, || {
            reader.poll(std::time::Duration::from_millis(1));
            reader.records.len() > before || replay.exit_code().is_some()
        });
        let ended = replay.exit_code();
        replay.kill();
        if ended == Some(0) {
            break;
        }
        assert_eq!(ended, None, "{}", replay.log());
        killed_midway += 1;
        if killed_midway == 3 {
            break;
        }
    }
    let said = scene.said(&["replay", "--through", "fixed.yaml", "etl.yaml"]);
    eprintln!("{guarantee}: killed {killed_midway} times, then {said}");
    assert!(killed_midway > 0, "no kill came in the middle");
    assert!(scene.listed(&[]).iter().all(|letter| letter["replayed"] == true));
    scene.delivered()
}

/// Letters that a replay with kills sends back: more than it delivers before the first kill.
const COUNT: u64 = 20_000;

#[test]
fn rule_29_a_replay_that_is_killed_goes_on_and_delivers_nothing_twice() {
    let delivered = survive("exactly_once");
    assert_eq!(delivered, (0..COUNT).map(|n| (n, 1)).collect());
}

#[test]
fn rule_29_a_replay_that_is_killed_loses_nothing() {
    let delivered = survive("at_least_once");
    assert_eq!(delivered.keys().copied().collect::<Vec<_>>(), (0..COUNT).collect::<Vec<_>>());
}

#[test]
fn letters_of_a_stage_that_is_not_there_are_named_and_nothing_is_replayed() {
    let scene = Scene::new("at_least_once", 1);
    scene.broker.produce(&scene.source, [wrong(0)]);
    scene.drain();
    scene.home.write("renamed.yaml", scene.file().replace("name: priced", "name: costed"));
    let output = scene.dlq(&["replay", "--through", "renamed.yaml", "etl.yaml"]);
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{words}");
    assert!(words.contains("has no stage `priced`: its stages are `orders`, `wanted`, `costed`, `totals`"), "{words}");
    assert_eq!(scene.listed(&[])[0]["replayed"], false);
}

#[test]
fn a_replay_that_cannot_begin_says_why_and_ends() {
    let scene = Scene::new("at_least_once", 1);
    scene.broker.produce(&scene.source, [wrong(0)]);
    scene.drain();
    scene.home.write("elsewhere.yaml", scene.file().replace(&scene.sink, "nowhere-at-all"));
    let output = scene.dlq(&["replay", "--through", "elsewhere.yaml", "etl.yaml"]);
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{words}");
    let told = "the replay cannot begin: `totals`: topic `nowhere-at-all` does not exist yet";
    assert!(words.contains(told) && words.ends_with("; nothing was replayed\n"), "{words}");
    assert_eq!(scene.listed(&[])[0]["replayed"], false);
}

#[test]
fn a_letter_that_was_cut_is_marked_and_not_replayed() {
    let broker = Broker::shared();
    let (source, sink, name, dead) =
        (broker.topic("orders", 1), broker.topic("totals", 1), unique("etl"), unique("small"));
    broker.create_topic(&dead, 1, &[("max.message.bytes", "30000")]);
    let large = format!(r#"{{"key":"large","level":"info","price":"{}","qty":1}}"#, "a lot, ".repeat(6_000));
    broker.produce(&source, [Record::new(large).key("large")]);
    let more = format!("dead_letter:\n  kafka: {{ brokers: \"${{KAFKA_BROKERS}}\", topic: {dead} }}\n");
    let home = home(broker);
    home.write("etl.yaml", orders::pipeline(&name, "at_least_once", &source, &sink, &more));
    let mut weir = home.start("etl.yaml");
    wait_until("all to be committed", SOON, || {
        weir.must_run();
        broker.is_all_committed(&name, &source)
    });
    assert_eq!(weir.stop(SOON), 0);

    let listed = String::from_utf8(home.run(&["dlq", "list", "etl.yaml"]).stdout).expect("it prints text");
    assert!(listed.contains("  cut  ") && listed.ends_with("1 letter, 1 cut: it cannot be replayed\n"), "{listed}");
    let output = home.run(&["dlq", "replay", "etl.yaml"]);
    let said = String::from_utf8(output.stdout).expect("it prints text");
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(said, "there is nothing to replay\nskipped: 1 cut, so that the record is not whole\n");
}
