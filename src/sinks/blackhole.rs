//! Takes everything and keeps nothing.

use std::sync::Arc;

use futures::future::{self, BoxFuture};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::component::{
    Acknowledges, Answer, CheckContext, CompiledSink, Settled, Sink, SinkConfig, SinkError, SinkTraits, Touched,
};
use crate::record::Batch;

/// Discards every record, at once: to measure what stands before it, or to end a branch on purpose.
///
/// ```yaml
/// blackhole: {}
/// ```
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct BlackholeConfig {}

impl SinkConfig for BlackholeConfig {
    const NAME: &'static str = "blackhole";

    fn compile(self, _: &mut CheckContext) -> Option<CompiledSink> {
        let traits = SinkTraits {
            // What is discarded on purpose is not lost.
            acknowledges: Acknowledges::Durable,
            transactional_with: &[],
            transaction_timeout: None,
            idempotent_by_key: false,
            per_lane: true,
            carries_headers: false,
        };
        Some(CompiledSink { traits, touched: Touched::default(), build: Arc::new(|_| Ok(Box::new(Blackhole))) })
    }
}

struct Blackhole;

impl Sink for Blackhole {
    fn open(&mut self) -> BoxFuture<'_, Result<(), SinkError>> {
        Box::pin(future::ready(Ok(())))
    }

    fn write(&mut self, _: Arc<Batch>) -> BoxFuture<'_, Result<Answer, SinkError>> {
        let taken: Answer = Box::pin(future::ready(Ok(Settled::all())));
        Box::pin(future::ready(Ok(taken)))
    }

    fn flush(&mut self) -> BoxFuture<'_, Result<(), SinkError>> {
        Box::pin(future::ready(Ok(())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::harness;

    #[tokio::test]
    async fn everything_is_taken() {
        let mut sink = harness::sink("blackhole: {}");
        sink.open().await.unwrap();
        assert_eq!(sink.write(&["one", "two"]).await, Ok(Settled::all()));
        sink.flush().await.unwrap();
    }
}
