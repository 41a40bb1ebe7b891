//! Topics of a Kafka cluster, read as a member of a consumer group.
//!
//! The group keeps the positions. The stream drains one partition after the other on the worker that polls it, so a
//! stream that nobody polls fetches no more than librdkafka's queues hold. The membership outlives runs.

use std::sync::Arc;

use async_stream::try_stream;
use futures::stream::BoxStream;
use schemars::JsonSchema;
use serde::Deserialize;
use vrl::value::Kind;

use crate::clients::kafka::config::{Connection, Options, Protocol, Role, Sasl, StartAt, Tls, instance_name, system};
use crate::clients::kafka::consumer::{GroupConsumer, GroupPositions, GroupSettings, Reader, Stop};
use crate::clients::kafka::topics::Topics;
use crate::clients::kafka::{PipelineClients, PipelineGroups};
use crate::codecs::Codec;
use crate::component::{
    BuiltSource, CheckContext, CompiledSource, KAFKA_TRANSACTION, KeepsPositions, LOCAL_TRANSACTION, Problem, Pulled,
    Source, SourceConfig, SourceContext, SourceError, SourceTraits, Spanned,
};
use crate::expr::Schema;

/// Reads topics of a Kafka cluster, from where its consumer group stands.
///
/// ```yaml
/// kafka: { brokers: "localhost:9092", group: orders-etl, topics: [orders] }
/// ```
///
/// Processes with the same `group` share the partitions; when one joins or leaves, partitions move one by one. A process
/// that restarts within ten seconds keeps its own. Offsets are committed to the group when the sinks hold the records.
///
/// A topic that does not exist yet is waited for. A tombstone (a record without a body, which deletes its key in a
/// compacted topic) stays one on its way to a `kafka` sink.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct KafkaConfig {
    /// The brokers to ask first, as `host:port, host:port`; `embedded` for a cluster inside this process, which is for
    /// trying things out: nothing in it survives the process.
    brokers: Spanned<String>,
    /// The consumer group.
    group: Spanned<String>,
    /// The topics, by their exact names, or by patterns: what begins with `^` is a regular expression that is matched from
    /// the beginning of a name (`^orders-` is every topic whose name begins so, `^orders-(eu|us)$` two of them). A topic that
    /// comes later is found within seconds and read from its beginning; one that is deleted is forgotten. A pattern must not
    /// match what the pipeline itself writes.
    topics: Spanned<Vec<Spanned<String>>>,
    /// How bodies are decoded.
    #[serde(default)]
    codec: Codec,
    /// Where the group begins when it has no offset in a topic: at its very first start. Partitions that are added later
    /// are always read from their beginning.
    #[serde(default)]
    start_at: StartAt,
    /// How the members of the group agree.
    #[serde(default)]
    protocol: Protocol,
    /// Encryption; none if left out.
    tls: Option<Tls>,
    /// Authentication; none if left out.
    sasl: Option<Sasl>,
    /// Further settings of librdkafka, by its own names.
    #[serde(default)]
    options: Options,
}

impl SourceConfig for KafkaConfig {
    const NAME: &'static str = "kafka";

    fn compile(self, cx: &mut CheckContext) -> Option<CompiledSource> {
        let right = check_group(&self, cx);
        let topics = Topics::check(&self.topics, &system(&self.brokers), cx);
        let right = check_protocol(&self, cx) && right;
        let connection =
            Connection::check(Role::Consumer, &self.brokers, self.tls.as_ref(), self.sasl.as_ref(), &self.options, cx)?;
        let topics = topics.filter(|_| right)?;
        let group = self.group.value;
        let (start_at, protocol) = (self.start_at, self.protocol);
        let kind = match self.codec {
            Codec::Json => Kind::json(),
            Codec::Raw => Kind::bytes(),
        };
        Some(CompiledSource {
            traits: SourceTraits {
                keeps_positions: KeepsPositions::Source,
                finite: false,
                partitioned: true,
                // The transactions of the embedded cluster hide nothing from a reader.
                transactional_with: if connection.is_embedded() {
                    &[]
                } else {
                    &[KAFKA_TRANSACTION, LOCAL_TRANSACTION]
                },
            },
            codec: self.codec,
            schema: Schema { kind },
            build: Arc::new(move |cx| {
                let outputs = cx.clients.shared(PipelineClients::default);
                let consumer = Arc::new(GroupConsumer::new(GroupSettings {
                    connection: connection.clone(),
                    source: Arc::clone(&cx.component),
                    group: group.clone(),
                    topics: topics.clone(),
                    outputs: Arc::downgrade(&outputs),
                    start_at,
                    protocol,
                    instance: instance_name(&cx.instance, &cx.pipeline, &cx.component),
                    transactional: cx.transactional,
                    memory: cx.memory,
                    metrics: cx.metrics.clone(),
                    runtime: cx.runtime.clone(),
                }));
                let groups = cx.clients.shared(PipelineGroups::default);
                groups.add(Arc::clone(&cx.component), Arc::clone(&consumer));
                let positions = Arc::new(GroupPositions(Arc::clone(&consumer)));
                let source = KafkaSource { consumer, _outputs: outputs };
                Ok(BuiltSource { source: Box::new(source), positions: Some(positions) })
            }),
        })
    }
}

/// With the newer protocol the broker decides what a member of a classic group decides itself; librdkafka takes no such
/// setting then.
fn check_protocol(config: &KafkaConfig, cx: &mut CheckContext) -> bool {
    const OF_THE_BROKER: [&str; 2] = ["session.timeout.ms", "heartbeat.interval.ms"];
    let before = cx.problems.len();
    if config.protocol == Protocol::Consumer {
        for (name, value) in config.options.iter().filter(|(name, _)| OF_THE_BROKER.contains(&name.as_str())) {
            cx.report(
                Problem::error(value.span, format!("`{name}` means nothing with `protocol: consumer`"))
                    .help("the broker's own settings decide it; remove it, or use `protocol: classic`"),
            );
        }
    }
    cx.problems.len() == before
}

fn check_group(config: &KafkaConfig, cx: &mut CheckContext) -> bool {
    let before = cx.problems.len();
    if config.group.value.is_empty() {
        cx.report(Problem::error(config.group.span, "`group` is empty").help("name the consumer group"));
    }
    cx.problems.len() == before
}

struct KafkaSource {
    consumer: Arc<GroupConsumer>,
    /// The consumer asks what the pipeline writes. It is kept here and not there: it holds the consumer itself.
    _outputs: Arc<PipelineClients>,
}

impl Source for KafkaSource {
    /// `cx.committed` is not needed: the consumer has noted what this process committed, and asked the group for the rest.
    fn stream(&mut self, cx: SourceContext) -> BoxStream<'_, Result<Pulled, SourceError>> {
        let consumer = Arc::clone(&self.consumer);
        let run = consumer.next_run();
        Box::pin(try_stream! {
            let starting = Arc::clone(&consumer);
            let (epochs, waiting) = (cx.epochs.clone(), cx.waiting.clone());
            let _ended_when_dropped = EndRun { consumer: Arc::clone(&consumer), run };
            cx.runtime.blocking(move || starting.begin_run(run, epochs, waiting)).await?;
            let mut reader = Reader::new(Arc::clone(&consumer));
            loop {
                match reader.next() {
                    Ok(Some(pulled)) => yield pulled,
                    Ok(None) => reader.woken().await,
                    Err(Stop::Error(error) | Stop::Denied(error)) => Err(error)?,
                    Err(Stop::Gap(partition, offset)) => {
                        let asked = Arc::clone(&consumer);
                        Err(cx.runtime.blocking(move || asked.describe_gap(&partition, offset)).await)?;
                    }
                }
            }
        })
    }
}

/// Tells the consumer when its run is over.
struct EndRun {
    consumer: Arc<GroupConsumer>,
    run: u64,
}

impl Drop for EndRun {
    fn drop(&mut self) {
        self.consumer.end_run(self.run);
    }
}

impl Drop for KafkaSource {
    fn drop(&mut self) {
        self.consumer.close();
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use futures::StreamExt;

    use super::*;
    use crate::clients::kafka::consumer::tests::{commit_anything, rejoin};
    use crate::clients::kafka::fixture::{
        Process, SOON, bodies, check, draft, here, options, positions, pull, run, short_session, unique, write,
    };
    use crate::component::EpochRequest;
    use crate::record::{BodyFormat, Draft, Header, HeadersBuilder, Partition, Position};
    use crate::runtime::Runtime;
    use crate::sinks::kafka::tests::{config as sink_config, sink_to};

    pub(crate) fn config(group: &str, topic: &str) -> KafkaConfig {
        KafkaConfig {
            brokers: here("embedded".to_owned()),
            group: here(group.to_owned()),
            topics: here(vec![here(topic.to_owned())]),
            codec: Codec::Raw,
            start_at: StartAt::Earliest,
            protocol: Protocol::Classic,
            tls: None,
            sasl: None,
            options: short_session(),
        }
    }

    pub(crate) fn compiled(config: KafkaConfig) -> CompiledSource {
        let mut cx = check();
        config.compile(&mut cx).unwrap_or_else(|| panic!("{:?}", cx.problems))
    }

    impl KafkaConfig {
        /// Reads from other brokers than the embedded ones.
        pub(crate) fn set_brokers(&mut self, brokers: &str) {
            self.brokers = here(brokers.to_owned());
        }
    }

    fn problems(config: KafkaConfig) -> Vec<String> {
        let mut cx = check();
        assert!(config.compile(&mut cx).is_none());
        cx.problems.into_iter().map(|problem| problem.message).collect()
    }

    #[test]
    fn what_can_be_no_topic_is_refused() {
        let found = problems(KafkaConfig {
            topics: here(vec![
                here("^orders(".to_owned()),
                here("a b".to_owned()),
                here("x".to_owned()),
                here("x".to_owned()),
            ]),
            ..config("", "unused")
        });
        assert_eq!(
            found,
            [
                "`group` is empty",
                "`^orders(` is no pattern: unclosed group",
                "Kafka knows no topic of such a name: `a b`",
                "topic `x` is listed twice",
            ]
        );
        assert_eq!(
            problems(KafkaConfig { topics: here(Vec::new()), ..config("g", "unused") }),
            ["`topics` names no topic"]
        );
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_record_arrives_as_it_was_written() {
        let (topic, process) = (unique("as-written"), Process::new("one", false));
        let mut headers = HeadersBuilder::default();
        headers.push(b"trace", Some(b"7"));
        headers.push(b"trace", None);
        let mut sink = sink_to(&process, sink_config(&topic)).await;
        let first = Draft { key: Some(b"ada"), headers: headers.encoded(), ..draft("first") };
        write(&mut sink, &[first, Draft { key: Some(b"ada"), ..draft("") }]).await;

        let (mut source, _) = process.source(&compiled(config(&unique("group"), &topic)));
        let (cx, _requests) = run();
        let pulled = pull(&mut source, cx, 2).await.unwrap();
        assert_eq!(bodies(&pulled), ["", "first"]);
        let batch = &pulled[0].batch;
        let record = &batch.records()[0];
        assert_eq!(&*batch.origin().topic, topic);
        assert_eq!(batch.key(record), Some(&b"ada"[..]));
        assert_eq!(record.timestamp, draft("").timestamp);
        assert_eq!((record.offset, record.format), (0, BodyFormat::Raw));
        let read: Vec<_> = batch.headers(record).collect();
        assert_eq!(read, [Header { name: b"trace", value: Some(b"7") }, Header { name: b"trace", value: None }]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_tombstone_stays_one_on_its_way_through() {
        let (from, to, process) = (unique("stones"), unique("stones-out"), Process::new("one", false));
        let mut sink = sink_to(&process, sink_config(&from)).await;
        let mut stone = crate::clients::kafka::fixture::batch(&[Draft { key: Some(b"ada"), ..draft("") }]);
        let records = stone
            .records()
            .iter()
            .map(|record| crate::record::Record { format: BodyFormat::Absent, ..*record })
            .collect();
        stone = stone.with_records(records);
        assert_eq!(sink.write(Arc::new(stone)).await.unwrap().await.unwrap().refused, []);

        let (mut source, _) = process.source(&compiled(config(&unique("group"), &from)));
        let (cx, _requests) = run();
        let pulled = pull(&mut source, cx, 1).await.unwrap();
        assert_eq!(pulled[0].batch.records()[0].format, BodyFormat::Absent);
        let mut sink = sink_to(&process, sink_config(&to)).await;
        let passed = sink.write(Arc::new(pulled[0].batch.clone())).await.unwrap().await.unwrap();
        assert_eq!(passed.refused, []);
        let mut other = config(&unique("group"), &to);
        other.codec = Codec::Raw;
        let (mut source, _) = Process::new("two", false).source(&compiled(other));
        let (cx, _requests) = run();
        let pulled = pull(&mut source, cx, 1).await.unwrap();
        assert_eq!(pulled[0].batch.records()[0].format, BodyFormat::Absent);
        assert_eq!(pulled[0].batch.key(&pulled[0].batch.records()[0]), Some(&b"ada"[..]));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_new_run_goes_on_where_the_last_commit_stands() {
        let (topic, process) = (unique("rewind"), Process::new("one", false));
        let mut sink = sink_to(&process, sink_config(&topic)).await;
        let texts: Vec<String> = (0..300).map(|n| format!("{n:03}")).collect();
        for chunk in texts.chunks(100) {
            write(&mut sink, &chunk.iter().map(|text| draft(text)).collect::<Vec<_>>()).await;
        }
        let (mut source, group) = process.source(&compiled(config(&unique("group"), &topic)));
        let (cx, _requests) = run();
        let all = pull(&mut source, cx, 300).await.unwrap();
        assert_eq!(bodies(&all), texts);

        // Half of each partition is committed; the next run reads the other half, and then once more.
        let ends = positions(&all);
        let half: crate::delivery::Positions =
            ends.iter().map(|(partition, end)| (partition.clone(), Position(end.0 / 2))).collect();
        group.commit(1, half.clone()).await.unwrap();
        let left: i64 = ends.iter().map(|(partition, end)| end.0 - half[partition].0).sum();
        for _ in 0..2 {
            let (cx, _requests) = run();
            let again = pull(&mut source, cx, usize::try_from(left).unwrap()).await.unwrap();
            let mut firsts = BTreeSet::new();
            for pulled in &again {
                if firsts.insert(pulled.batch.origin().number) {
                    assert_eq!(pulled.batch.records()[0].offset, half[&**pulled.batch.origin()].0);
                }
            }
            assert_eq!(positions(&again), ends);
            assert_eq!(bodies(&again).len(), usize::try_from(left).unwrap());
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn partitions_that_come_back_within_a_run_are_read_on() {
        let (topic, process) = (unique("back"), Process::new("one", false));
        let mut sink = sink_to(&process, sink_config(&topic)).await;
        write(&mut sink, &[draft("before")]).await;
        let (mut source, positions_of) = process.source(&compiled(config(&unique("group"), &topic)));
        let (cx, requests) = run();
        // Nobody closes an epoch here.
        drop(requests);
        let mut stream = source.stream(cx);
        let first = tokio::time::timeout(SOON, stream.next()).await.unwrap().unwrap().unwrap();
        positions_of.commit(1, positions(&[first])).await.unwrap();
        let group = process.clients.shared(PipelineGroups::default).get("in").unwrap();
        Runtime::system().blocking(move || rejoin(&group)).await;
        // The stream lets go of the old queues only now, and finds nothing in the new ones.
        assert!(tokio::time::timeout(Duration::from_secs(1), stream.next()).await.is_err());
        write(&mut sink, &[draft("after")]).await;
        let next = tokio::time::timeout(SOON, stream.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(bodies(&[next]), ["after"]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn latest_begins_behind_what_is_there_and_stays_there() {
        let (topic, group, process) = (unique("latest"), unique("group"), Process::new("one", false));
        let mut sink = sink_to(&process, sink_config(&topic)).await;
        write(&mut sink, &[draft("old")]).await;
        let latest = || compiled(KafkaConfig { start_at: StartAt::Latest, ..config(&group, &topic) });
        {
            let (mut source, _) = process.source(&latest());
            let (cx, _requests) = run();
            let mut stream = source.stream(cx);
            // Nothing to read yet: the start has been committed when the stream is dropped, or soon after.
            assert!(tokio::time::timeout(Duration::from_secs(3), stream.next()).await.is_err());
        }
        write(&mut sink, &[draft("new")]).await;
        let (mut source, _) = process.source(&latest());
        let (cx, _requests) = run();
        assert_eq!(bodies(&pull(&mut source, cx, 1).await.unwrap()), ["new"]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn rule_13_a_topic_that_matches_later_is_read_from_its_beginning() {
        let (prefix, group, process) = (unique("found"), unique("group"), Process::new("one", false));
        let (early, late) = (format!("{prefix}-early"), format!("{prefix}-late"));
        let writer = Process::new("writer", false);
        let mut sink = sink_to(&writer, sink_config(&early)).await;
        write(&mut sink, &[draft("old")]).await;
        let mut latest = KafkaConfig { start_at: StartAt::Latest, ..config(&group, &format!("^{prefix}-")) };
        latest.options.extend(options(&[("topic.metadata.refresh.interval.ms", 500)]));
        let (mut source, _) = process.source(&compiled(latest));
        let (cx, _requests) = run();
        let mut stream = source.stream(cx);
        // What is there at the first start is begun at its end.
        assert!(tokio::time::timeout(Duration::from_secs(3), stream.next()).await.is_err());
        let mut other = sink_to(&writer, sink_config(&late)).await;
        write(&mut other, &[draft("first")]).await;
        write(&mut sink, &[draft("new")]).await;
        let mut read = Vec::new();
        while read.len() < 2 {
            read.push(tokio::time::timeout(SOON, stream.next()).await.unwrap().unwrap().unwrap());
        }
        assert_eq!(bodies(&read), ["first", "new"]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn rule_16_where_partitions_come_later_the_queues_are_made_anew() {
        let (prefix, group, writer) = (unique("many"), unique("group"), Process::new("writer", false));
        // Room for the queues of one topic's partitions, and for no more of that size.
        let process = Process { memory: 4 << 20, ..Process::new("one", false) };
        let mut sink = sink_to(&writer, sink_config(&format!("{prefix}-early"))).await;
        write(&mut sink, &[draft("first")]).await;
        let mut pattern = config(&group, &format!("^{prefix}-"));
        pattern.options.extend(options(&[("topic.metadata.refresh.interval.ms", 500)]));
        let (mut source, _) = process.source(&compiled(pattern));
        let (cx, _requests) = run();
        assert_eq!(bodies(&pull(&mut source, cx, 1).await.unwrap()), ["first"]);
        let mut other = sink_to(&writer, sink_config(&format!("{prefix}-late"))).await;
        write(&mut other, &[draft("second")]).await;
        let (cx, _requests) = run();
        let error = pull(&mut source, cx, 2).await.unwrap_err();
        assert!(matches!(&error, SourceError::Retry(why) if why.contains("made anew for 8 partitions")), "{error}");
        let (cx, _requests) = run();
        let mut read = bodies(&pull(&mut source, cx, 2).await.unwrap());
        read.sort();
        assert_eq!(read, ["first", "second"]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn rule_18_an_output_that_comes_to_match_is_fatal() {
        let (topic, process) = (unique("loop"), Process::new("one", false));
        let (mut source, _) = process.source(&compiled(config(&unique("group"), &format!("^{topic}"))));
        let (cx, _requests) = run();
        let mut sink = sink_to(&process, sink_config(&topic)).await;
        write(&mut sink, &[draft("round and round")]).await;
        let error = pull(&mut source, cx, 1).await.unwrap_err();
        let SourceError::Fatal(text) = error else { panic!("{error}") };
        assert!(text.contains(&topic) && text.contains("narrow the pattern"), "{text}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn rule_13_an_offset_that_is_gone_is_fatal_and_named() {
        let (topic, group, process) = (unique("gone"), unique("group"), Process::new("one", false));
        let mut sink = sink_to(&process, sink_config(&topic)).await;
        write(&mut sink, &[draft("only")]).await;
        // Somebody set the group's offsets behind the end.
        (0..4).for_each(|number| commit_anything(&group, &topic, number, 500));
        let (mut source, _) = process.source(&compiled(config(&group, &topic)));
        for _ in 0..2 {
            let (cx, _requests) = run();
            let error = pull(&mut source, cx, 1).await.unwrap_err();
            let SourceError::Fatal(text) = error else { panic!("{error}") };
            assert!(text.contains("from offset 500") && text.contains("ends at "), "{text}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn rule_11_partitions_move_to_a_new_member_after_the_epoch_was_closed() {
        let (topic, group) = (unique("move"), unique("group"));
        // The member whose name comes first leads: the embedded cluster has the others join anew if the leader is faster than
        // they, and takes no offsets meanwhile. A broker does.
        let (one, two) = (Process::new("second", false), Process::new("first", false));
        let mut sink = sink_to(&one, sink_config(&topic)).await;
        let texts: Vec<String> = (0..200).map(|n| format!("{n:03}")).collect();
        for text in &texts {
            write(&mut sink, &[draft(text)]).await;
        }
        let (mut first, committer) = one.source(&compiled(config(&group, &topic)));
        let (cx, mut requests) = run();
        let mut stream = first.stream(cx);
        let mut pulled = Vec::new();
        let mut count = 0;
        while count < 200 {
            let next = tokio::time::timeout(SOON, stream.next()).await.unwrap().unwrap().unwrap();
            count += next.batch.len();
            pulled.push(next);
        }
        let held: BTreeSet<Partition> = positions(&pulled).into_keys().collect();
        assert_eq!(held.len(), 4);

        // The second member joins; the first is asked to close its epoch before its partitions go.
        let (mut second, _) = two.source(&compiled(config(&group, &topic)));
        let (other, _requests) = run();
        let mut other = second.stream(other);
        let joining = async {
            let next = tokio::time::timeout(SOON, other.next()).await;
            next.expect("the second member reads what comes").unwrap().unwrap()
        };
        let closing = async {
            let request = tokio::time::timeout(SOON, requests.recv()).await.unwrap().unwrap();
            let EpochRequest::Close { done } = request else { panic!("{request:?}") };
            committer.commit(1, positions(&pulled)).await.unwrap();
            done.send(true).unwrap();
        };
        let writing = async {
            for n in 0..40 {
                write(&mut sink, &[draft(&format!("later {n}"))]).await;
                Runtime::system().sleep(Duration::from_millis(200)).await;
            }
        };
        let polling = async {
            while let Some(Ok(pulled)) = stream.next().await {
                for record in pulled.batch.records() {
                    assert!(pulled.batch.body(record).starts_with(b"later"), "nothing is read twice");
                }
            }
        };
        let moved = tokio::select! {
            biased;
            (moved, ()) = async { tokio::join!(joining, closing) } => moved,
            () = async { tokio::join!(writing, polling); } => panic!("the second member got nothing"),
        };
        for record in moved.batch.records() {
            assert!(moved.batch.body(record).starts_with(b"later"), "what was committed is not read again");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn rule_11_an_epoch_that_does_not_close_in_time_is_gone_back_on() {
        let (topic, group) = (unique("slow"), unique("group"));
        let (one, two) = (Process::new("one", true), Process::new("two", true));
        let mut sink = sink_to(&Process::new("writer", false), sink_config(&topic)).await;
        for n in 0..40 {
            write(&mut sink, &[draft(&n.to_string())]).await;
        }
        // Who has more time to join again than an epoch has to close.
        let patient = || KafkaConfig { options: Options::new(), ..config(&group, &topic) };
        let (mut first, _) = one.source(&compiled(patient()));
        // Nobody closes an epoch here.
        let (cx, _requests) = run();
        let mut stream = first.stream(cx);
        let mut count = 0;
        while count < 40 {
            count += tokio::time::timeout(SOON, stream.next()).await.unwrap().unwrap().unwrap().batch.len();
        }
        let (mut second, _) = two.source(&compiled(patient()));
        let (other, _other_requests) = run();
        let mut other = second.stream(other);
        let failed = async {
            loop {
                match tokio::time::timeout(SOON, stream.next()).await.unwrap().unwrap() {
                    Ok(_) => {}
                    Err(error) => break error,
                }
            }
        };
        let joining = async { while other.next().await.is_some() {} };
        let error = tokio::select! {
            biased;
            error = failed => error,
            () = joining => panic!("a stream that follows has no end"),
        };
        assert!(
            matches!(&error, SourceError::Retry(why) if why.contains("before their records were committed")),
            "{error}"
        );
    }

    #[test]
    fn a_setting_that_belongs_to_the_broker_is_refused() {
        let options = |names: &[&str]| options(&names.iter().map(|name| (*name, 9000)).collect::<Vec<_>>());
        let with = |protocol, names| KafkaConfig { protocol, options: options(names), ..config("g", "t") };
        let wrong = with(Protocol::Consumer, &["session.timeout.ms", "fetch.min.bytes"]);
        assert_eq!(problems(wrong), ["`session.timeout.ms` means nothing with `protocol: consumer`"]);
        assert!(with(Protocol::ClassicEager, &["session.timeout.ms"]).compile(&mut check()).is_some());
    }
}
