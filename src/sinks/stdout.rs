//! Lines on standard output.

use std::io::{self, ErrorKind, Write};
use std::sync::Arc;

use futures::future::{self, BoxFuture};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::clients::lines;
use crate::clients::stdio::Writer;
use crate::codecs::Codec;
use crate::component::{
    Acknowledges, Answer, CheckContext, CompiledSink, Settled, Sink, SinkConfig, SinkError, SinkTraits, Touched,
};
use crate::record::Batch;

/// Writes each record as a line to standard output.
///
/// ```yaml
/// stdout: { codec: json }
/// ```
///
/// A record whose text holds a line end is refused, unless it is JSON, where line ends between values become blanks. The
/// pipeline waits for as long as nobody reads, and stops when standard output is closed. That a line was taken does not
/// mean that it was read.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct StdoutConfig {
    /// How each record is written.
    #[serde(default)]
    codec: Codec,
}

impl SinkConfig for StdoutConfig {
    const NAME: &'static str = "stdout";

    fn compile(self, _: &mut CheckContext) -> Option<CompiledSink> {
        let traits = SinkTraits {
            acknowledges: Acknowledges::Received,
            transactional_with: &[],
            transaction_timeout: None,
            idempotent_by_key: false,
            per_lane: false,
            carries_headers: false,
        };
        Some(CompiledSink {
            traits,
            touched: Touched::default(),
            build: Arc::new(move |_| Ok(Box::new(StdoutSink::writing(self.codec, io::stdout)))),
        })
    }
}

/// Starts the thread that writes.
type Start = Box<dyn Fn() -> io::Result<Writer> + Send>;

struct StdoutSink {
    codec: Codec,
    start: Start,
    /// The way to the thread, from the first run on.
    writer: Option<Writer>,
}

impl StdoutSink {
    fn writing<W: Write + Send + 'static>(codec: Codec, output: impl Fn() -> W + Send + 'static) -> Self {
        Self { codec, start: Box::new(move || Writer::start(output())), writer: None }
    }

    async fn deliver(&mut self, batch: &Batch) -> Result<Settled, SinkError> {
        let mut lines = Vec::new();
        let settled = lines::encode(self.codec, batch, &mut lines);
        let writer = self.writer.as_ref().ok_or_else(|| SinkError::Outage("standard output is not open".to_owned()))?;
        match writer.write(lines).await {
            Ok(()) => Ok(settled),
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                Err(SinkError::Fatal("standard output was closed".to_owned()))
            }
            Err(error) => Err(SinkError::Outage(format!("cannot write to standard output: {error}"))),
        }
    }
}

impl Sink for StdoutSink {
    fn open(&mut self) -> BoxFuture<'_, Result<(), SinkError>> {
        if self.writer.as_ref().is_none_or(Writer::is_closed) {
            match (self.start)() {
                Ok(writer) => self.writer = Some(writer),
                Err(error) => {
                    let error = SinkError::Retry(format!("cannot start a thread for standard output: {error}"));
                    return Box::pin(future::ready(Err(error)));
                }
            }
        }
        Box::pin(future::ready(Ok(())))
    }

    fn write(&mut self, batch: Arc<Batch>) -> BoxFuture<'_, Result<Answer, SinkError>> {
        Box::pin(async move {
            let settled = self.deliver(&batch).await?;
            Ok(Box::pin(future::ready(Ok(settled))) as Answer)
        })
    }

    fn flush(&mut self) -> BoxFuture<'_, Result<(), SinkError>> {
        // What was answered was written.
        Box::pin(future::ready(Ok(())))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::sync::Mutex;

    use super::*;
    use crate::testing::harness::batch;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // As a pipe does: not all at once, and now and then not at all.
            let mut held = self.0.lock().unwrap();
            if held.len() % 3 == 1 {
                held.push(bytes[0]);
                return Ok(1);
            }
            let some = bytes.len().min(2);
            held.extend_from_slice(&bytes[..some]);
            Ok(some)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn each_record_is_a_line() {
        let output = Shared::default();
        let of_sink = output.clone();
        let mut sink = StdoutSink::writing(Codec::Raw, move || of_sink.clone());
        sink.open().await.unwrap();
        let settled = sink.write(Arc::new(batch(&["one", "t\nwo", "three"]))).await.unwrap().await.unwrap();
        assert_eq!(settled.refused[0].record, 1);
        sink.open().await.unwrap();
        sink.write(Arc::new(batch(&["four"]))).await.unwrap().await.unwrap();
        assert_eq!(*output.0.lock().unwrap(), b"one\nthree\nfour\n");
    }

    /// A disk with room for some bytes, until it is emptied.
    #[derive(Clone, Default)]
    struct Small(Arc<Mutex<(usize, Vec<u8>)>>);

    impl Write for Small {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let (room, held) = &mut *self.0.lock().unwrap();
            let some = bytes.len().min(*room);
            if some == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            held.extend_from_slice(&bytes[..some]);
            *room -= some;
            Ok(some)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_line_that_a_full_disk_tore_is_ended_before_the_next() {
        let disk = Small::default();
        disk.0.lock().unwrap().0 = 6;
        let of_sink = disk.clone();
        let mut sink = StdoutSink::writing(Codec::Raw, move || of_sink.clone());
        sink.open().await.unwrap();
        for _ in 0..2 {
            // The second time there is room for nothing.
            let full = sink.write(Arc::new(batch(&["one", "two", "three"]))).await.err();
            assert!(matches!(full, Some(SinkError::Outage(_))), "{full:?}");
        }
        disk.0.lock().unwrap().0 = 100;
        sink.write(Arc::new(batch(&["one", "two", "three"]))).await.unwrap().await.unwrap();
        let (_, held) = &*disk.0.lock().unwrap();
        assert_eq!(String::from_utf8_lossy(held), "one\ntwo\none\ntwo\nthree\n");
    }

    #[tokio::test]
    async fn a_reader_that_is_gone_stops_the_pipeline() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let mut sink = StdoutSink::writing(Codec::Raw, move || writer.try_clone().unwrap());
        sink.open().await.unwrap();
        let written = sink.write(Arc::new(batch(&["one"]))).await.err();
        assert_eq!(written, Some(SinkError::Fatal("standard output was closed".to_owned())));
    }

    #[tokio::test]
    async fn a_reader_that_does_not_read_holds_up_nobody_but_the_sink() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut sink = StdoutSink::writing(Codec::Raw, move || writer.try_clone().unwrap());
        sink.open().await.unwrap();
        // More than a pipe holds.
        let large = "x".repeat(1 << 20);
        let batch = Arc::new(batch(&[&large]));
        // This test's only worker is free while the thread waits for the reader.
        assert!(futures::poll!(sink.write(Arc::clone(&batch))).is_pending());
        // The write was abandoned; the sink can be dropped although its thread is stuck.
        drop(sink);
        let mut read = vec![0; large.len()];
        reader.read_exact(&mut read).unwrap();
        assert_eq!(read, large.as_bytes());
    }
}
