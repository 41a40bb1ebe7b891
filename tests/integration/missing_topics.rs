//! Topics that come later than the pipeline that names them.

use crate::broker::wait::wait_until;
use crate::broker::{Broker, unique};
use crate::{GUARANTEES, SOON, home, orders};

#[test]
fn a_source_topic_that_does_not_exist_yet_is_waited_for() {
    const COUNT: u64 = 500;
    let broker = Broker::shared();
    for guarantee in GUARANTEES {
        let (source, sink, name) = (unique("late-orders"), broker.topic("totals", 2), unique("etl"));
        let home = home(broker);
        home.write("etl.yaml", orders::pipeline(&name, guarantee, &source, &sink, ""));
        let mut weir = home.start("etl.yaml");
        wait_until("it to say what it waits for", SOON, || {
            weir.must_run();
            weir.get(&format!("/ready/{name}")).is_some_and(|(status, body)| {
                let why = "waiting for a topic that does not exist";
                status == 503 && [why, &source, "\"stage\":\"orders\""].iter().all(|words| body.contains(words))
            })
        });

        broker.create_topic(&source, 2, &[]);
        broker.produce(&source, (0..COUNT).map(orders::order));

        broker.reader(&sink).read_until(orders::kept(COUNT), SOON);
        assert_eq!(weir.stop(SOON), 0);
        orders::assert_exactly(&broker.consume_all_committed(&sink), COUNT);
    }
}

#[test]
fn a_sink_topic_that_does_not_exist_yet_is_waited_for() {
    const COUNT: u64 = 500;
    let broker = Broker::shared();
    for guarantee in GUARANTEES {
        let (source, sink, name) = (broker.topic("orders", 2), unique("late-totals"), unique("etl"));
        broker.produce(&source, (0..COUNT).map(orders::order));
        let home = home(broker);
        home.write("etl.yaml", orders::pipeline(&name, guarantee, &source, &sink, ""));
        let mut weir = home.start("etl.yaml");
        weir.wait_log(&[&sink], SOON);
        weir.must_run();

        broker.create_topic(&sink, 2, &[]);

        broker.reader(&sink).read_until(orders::kept(COUNT), SOON);
        assert_eq!(weir.stop(SOON), 0);
        let records = broker.consume_all_committed(&sink);
        if guarantee == "exactly_once" {
            orders::assert_exactly(&records, COUNT);
        } else {
            orders::assert_at_least(&records, COUNT);
        }
    }
}
