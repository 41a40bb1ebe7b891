//! A client that has lost all of its brokers is told of them again.
//!
//! A broker that has just started answers, for a moment, that the cluster has no brokers. librdkafka then forgets all that it
//! knew, and what would begin anew from the first ones is cancelled by the rest of the same answer: the client never
//! connects again (librdkafka issue 5301, in 2.12 and 2.13). It says that all brokers are down, once, and that is when it
//! is told. A broker that it still knows is not added twice.

use std::ffi::CString;

use rdkafka::bindings as sys;
use rdkafka::client::{Client, ClientContext};

/// Tells a client of brokers (`host:port, host:port`).
pub(crate) fn add_brokers<C: ClientContext>(client: &Client<C>, brokers: &str) {
    let Ok(brokers) = CString::new(brokers) else { return };
    // SAFETY: the client is alive, and the text is copied during the call.
    unsafe { sys::rd_kafka_brokers_add(client.native_ptr(), brokers.as_ptr()) };
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::time::Duration;

    use crate::clients::kafka::config::{Connection, Role};
    use crate::clients::kafka::fixture::{SOON, check, here, options};
    use crate::clients::kafka::producer::{ProducerSettings, SharedProducer};
    use crate::clock::Clock;
    use crate::runtime::Runtime;

    const TOPIC: &str = "orders";
    const METADATA: i16 = 3;
    const API_VERSIONS: i16 = 18;
    const INIT_PRODUCER_ID: i16 = 22;
    const UNSUPPORTED_VERSION: i16 = 35;
    const LEADER_NOT_AVAILABLE: i16 = 5;

    /// A broker that tells what a test wants, and takes no record.
    struct Scripted {
        port: u16,
        /// Says, until somebody has heard it, that there are no brokers.
        is_empty: AtomicBool,
        connections: AtomicUsize,
        /// How often it named itself.
        named: AtomicUsize,
    }

    impl Scripted {
        fn start() -> Arc<Self> {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            let broker = Arc::new(Self {
                port,
                is_empty: AtomicBool::new(false),
                connections: AtomicUsize::new(0),
                named: AtomicUsize::new(0),
            });
            let serving = Arc::clone(&broker);
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let broker = Arc::clone(&serving);
                    broker.connections.fetch_add(1, Ordering::AcqRel);
                    std::thread::spawn(move || while broker.answer(&stream).is_some() {});
                }
            });
            broker
        }

        /// Answers one request.
        fn answer(&self, mut stream: &TcpStream) -> Option<()> {
            let mut size = [0; 4];
            stream.read_exact(&mut size).ok()?;
            let mut request = vec![0; u32::from_be_bytes(size) as usize];
            stream.read_exact(&mut request).ok()?;
            let (api, version) = (i16::from_be_bytes([request[0], request[1]]), [request[2], request[3]]);
            let body = match api {
                API_VERSIONS if version != [0, 0] => Bytes::default().short(UNSUPPORTED_VERSION).int(0),
                API_VERSIONS => {
                    let apis = [(0, 3), (METADATA, 1), (API_VERSIONS, 0), (INIT_PRODUCER_ID, 0)];
                    let listed = Bytes::default().short(0).int(apis.len());
                    apis.into_iter().fold(listed, |bytes, (api, newest)| bytes.short(api).short(0).short(newest))
                }
                METADATA => self.metadata(),
                INIT_PRODUCER_ID => Bytes::default().int(0).short(0).int(0).int(7).short(0),
                _ => return Some(()),
            };
            let mut answer = Bytes::default().int(4 + body.0.len()).0;
            answer.extend_from_slice(&request[4..8]);
            answer.extend(body.0);
            stream.write_all(&answer).ok()
        }

        /// An answer of version 1.
        fn metadata(&self) -> Bytes {
            let is_empty = self.is_empty.swap(false, Ordering::AcqRel);
            let (brokers, error) = if is_empty {
                (Bytes::default().int(0), LEADER_NOT_AVAILABLE)
            } else {
                self.named.fetch_add(1, Ordering::AcqRel);
                (Bytes::default().int(1).int(1).text("127.0.0.1").int(self.port.into()).short(-1), 0)
            };
            // The controller; one topic that is not internal; its one partition, of which the broker is the leader.
            let topic = brokers.int(1).int(1).short(0).text(TOPIC).byte(0);
            let partition = topic.int(1).short(error).int(0);
            let leader = if is_empty { partition.short(-1).short(-1) } else { partition.int(1) };
            leader.int(1).int(1).int(1).int(1)
        }
    }

    #[derive(Default)]
    struct Bytes(Vec<u8>);

    impl Bytes {
        fn byte(mut self, byte: u8) -> Self {
            self.0.push(byte);
            self
        }

        fn short(mut self, number: i16) -> Self {
            self.0.extend(number.to_be_bytes());
            self
        }

        fn int(mut self, number: usize) -> Self {
            self.0.extend(u32::try_from(number).unwrap().to_be_bytes());
            self
        }

        fn text(self, text: &str) -> Self {
            let mut bytes = self.short(i16::try_from(text.len()).unwrap());
            bytes.0.extend_from_slice(text.as_bytes());
            bytes
        }
    }

    fn wait_until(what: &str, is_so: impl Fn() -> bool) {
        let clock = Clock::system();
        let begun = clock.now();
        while !is_so() {
            assert!(clock.now().duration_since(begun) < SOON, "{what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn a_producer_outlives_an_answer_that_names_no_broker() {
        // Whether librdkafka gets over it by itself is a race, so several meet it.
        let brokers: Vec<_> = (0..8).map(|_| Scripted::start()).collect();
        let producers: Vec<_> = brokers
            .iter()
            .map(|broker| {
                let options = options(&[("topic.metadata.refresh.interval.ms", 100)]);
                let address = here(format!("127.0.0.1:{}", broker.port));
                let connection = Connection::check(Role::Producer, &address, None, None, &options, &mut check());
                let producer = SharedProducer::new(ProducerSettings {
                    connection: connection.unwrap(),
                    pipeline: "test".into(),
                    transactional: false,
                    memory: 32 << 20,
                    runtime: Runtime::system(),
                });
                let live = producer.fresh(None).unwrap();
                let topic = super::super::Topic::new(live.raw(), TOPIC, &[]).unwrap();
                (producer, topic)
            })
            .collect();
        let named = |broker: &Scripted| broker.named.load(Ordering::Acquire);
        let connections = |broker: &Scripted| broker.connections.load(Ordering::Acquire);
        for broker in &brokers {
            wait_until("the client asks for the brokers", || named(broker) >= 2);
            broker.is_empty.store(true, Ordering::Release);
        }
        for broker in &brokers {
            wait_until("the client hears of none", || !broker.is_empty.load(Ordering::Acquire));
            // The first connection was to the broker that was named in the file, the second to the same as it named itself.
            wait_until("the client connects again", || connections(broker) > 2);
            let before = named(broker);
            wait_until("the client asks for the brokers again", || named(broker) > before);
        }
        drop(producers);
    }
}
