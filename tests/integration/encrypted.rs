//! A cluster behind TLS: records pass where its certificate is trusted. Where it is not, that is told and waited for.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::broker::Record;
use crate::broker::tls::{TlsBroker, self_signed};
use crate::broker::unique;
use crate::broker::wait::{Deadline, wait_until};
use crate::denied::is_blocked;
use crate::process::Home;
use crate::{GUARANTEES, SOON};

/// Longer than a client's first tries last, after which it could give up or fall silent.
const WAITS: Duration = Duration::from_secs(12);

#[test]
fn a_certificate_that_is_not_trusted_is_told_and_waited_for_and_records_pass_where_it_is() {
    let keys = Home::new();
    let tls = TlsBroker::start(&keys.path("."));
    let (_, stranger) = self_signed(&keys.path("."), "stranger");
    std::thread::scope(|threads| {
        for guarantee in GUARANTEES {
            let (tls, stranger) = (&tls, &stranger);
            threads.spawn(move || is_told_and_waited_for(tls, stranger, guarantee));
        }
    });
}

fn is_told_and_waited_for(tls: &TlsBroker, stranger: &Path, guarantee: &str) {
    let broker = &tls.broker;
    let (source, sink) = (broker.topic("orders", 1), broker.topic("totals", 1));
    let name = unique("encrypted");
    let home = Home::new();
    let connection = format!("brokers: \"{}\", tls: {{ ca: ca.pem }}", tls.tls_address());
    home.write("etl.yaml", pipeline(&name, guarantee, &connection, &source, &sink));
    broker.produce(&source, [Record::new("{\"n\":1}")]);
    fs::copy(stranger, home.path("ca.pem")).expect("the home can be written");
    let mut weir = home.start("etl.yaml");
    let why = "certificate verify failed";
    wait_until("the certificate to be told", SOON, || is_blocked(&mut weir, &name, why));
    let deadline = Deadline::within(WAITS);
    while !deadline.passed() {
        weir.must_run();
        std::thread::sleep(Duration::from_millis(100));
    }
    wait_until("the certificate to be told still", SOON, || is_blocked(&mut weir, &name, why));
    assert_eq!(weir.stop(SOON), 0);

    // A client reads the certificate when it is made.
    fs::copy(&tls.certificate, home.path("ca.pem")).expect("the home can be written");
    let mut weir = home.start("etl.yaml");
    let mut reader = broker.reader(&sink);
    assert_eq!(reader.read_until(1, SOON)[0].text(), "{\"n\":1}");
    wait_until("all to be committed", SOON, || broker.is_all_committed(&name, &source));
    wait_until("it to be ready", SOON, || weir.get(&format!("/ready/{name}")).is_some_and(|(status, _)| status == 200));
    assert_eq!(weir.stop(SOON), 0);
}

fn pipeline(name: &str, guarantee: &str, connection: &str, source: &str, sink: &str) -> String {
    format!(
        r"
name: {name}
guarantee: {guarantee}
sources:
  orders:
    kafka: {{ {connection}, topics: [{source}], group: {name} }}
sinks:
  totals:
    kafka: {{ {connection}, topic: {sink} }}
"
    )
}
