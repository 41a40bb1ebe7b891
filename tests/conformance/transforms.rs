//! Each row of the table of transforms, by the examples of its page: of the records that go in, each comes out, is refused
//! or is dropped and counted.

use weir::codecs::Codec;
use weir::record::Batch;
use weir::testing::harness;

use crate::rows;

/// Records of all sorts. At least one of them must come out of each example.
const ASSORTED: &[&str] = &[
    r#"{"total":2000,"country":"NL","status":"paid","level":"info","price":"2.5","qty":3,"user":"u","internal":1}"#,
    r#"{"total":5,"country":"NL","status":"paid","level":"debug","price":1,"qty":1}"#,
    r#"{"total":5,"country":"DE","status":"cancelled","price":"a lot","qty":"some"}"#,
    r#"{"total":"2000","country":7,"status":null}"#,
    r#"{"total":1e400,"total":12,"nested":{"a":[1,{"b":null}]}}"#,
    r"{}",
    "[1,2]",
    "\"text\"",
    "12",
    "null",
];

/// As many as that, so that outcomes stand beside each other in every way.
const COUNT: usize = 1_000;

fn assorted() -> Batch {
    let mut random = fastrand::Rng::with_seed(1);
    let bodies: Vec<&str> = (0..COUNT).map(|_| ASSORTED[random.usize(..ASSORTED.len())]).collect();
    let mut malformed = Vec::new();
    let batch = Codec::Json.decode(harness::batch(&bodies), &mut malformed);
    assert_eq!(batch.len() + malformed.len(), COUNT);
    batch
}

#[test]
fn of_what_goes_into_a_transform_nothing_is_forgotten() {
    for row in rows().iter().filter(|row| row.table == "transform") {
        for example in row.examples() {
            let mut transform = harness::transform(example);
            let batch = assorted();
            let records = batch.len();
            let output = transform.apply(batch);
            let emitted: usize = output.emitted.iter().map(|(_, batch)| batch.len()).sum();
            let refused: usize = output.rejected.iter().map(|rejected| rejected.batch.len()).sum();
            let dropped = usize::try_from(output.discarded).expect("they are few");
            assert_eq!(
                emitted + refused + dropped,
                records,
                "{}: {emitted} came out, {refused} were refused, {dropped} dropped:\n{example}",
                row.name
            );
            let outputs = transform.compiled().outputs.len();
            assert!(
                output.emitted.iter().all(|(port, _)| usize::from(port.0) <= outputs),
                "{}: no such output",
                row.name
            );
            assert!(
                emitted > 0 && emitted < records,
                "the transform `{}` is not exercised: add to `ASSORTED` in tests/conformance/transforms.rs a record that \
                 comes out of this example, and one that does not:\n{example}",
                row.name
            );
        }
    }
}
