//! Lines from standard input.

use std::io::{self, Read};
use std::mem;
use std::sync::{Arc, Mutex, PoisonError};

use async_stream::try_stream;
use futures::stream::BoxStream;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::clients::lines::{BLOCK_BYTES, Cutter, LongLine, Tail};
use crate::clients::stdio::{self, Blocks};
use crate::codecs::Codec;
use crate::component::{
    BuiltSource, CheckContext, CompiledSource, KeepsPositions, Pulled, Source, SourceConfig, SourceContext,
    SourceError, SourceTraits,
};
use crate::expr::Schema;
use crate::record::{BatchBuilder, Partition, Position, Timestamp};

/// Reads lines from standard input, and ends where it ends.
///
/// ```yaml
/// stdin: { codec: raw }
/// ```
///
/// One line is one record, as with the source `file`. What was read from standard input cannot be read again: what is under
/// way when the process is killed, or when the pipeline returns to its last commit, is lost. A process has one standard
/// input, so one source can read it. A line of more than 4 MiB is refused, with its beginning.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct StdinConfig {
    /// How each line is read.
    #[serde(default)]
    codec: Codec,
}

impl SourceConfig for StdinConfig {
    const NAME: &'static str = "stdin";

    fn compile(self, _: &mut CheckContext) -> Option<CompiledSource> {
        Some(CompiledSource {
            traits: SourceTraits {
                keeps_positions: KeepsPositions::Nowhere,
                finite: true,
                partitioned: false,
                transactional_with: &[],
            },
            codec: self.codec,
            schema: Schema::default(),
            build: Arc::new(|cx| {
                let name = Arc::clone(&cx.component);
                let origin = Arc::new(Partition { source: Arc::clone(&name), topic: name, number: 0 });
                let source = StdinSource { origin, input: None, of_process: true };
                Ok(BuiltSource { source: Box::new(source), positions: None })
            }),
        })
    }
}

/// The longest line.
const MAX_LINE_BYTES: usize = 4 << 20;

/// The process's standard input, while no source has it.
static STANDARD_INPUT: Mutex<Slot> = Mutex::new(Slot::Unread);

enum Slot {
    Unread,
    Taken,
    Returned(Input),
}

struct StdinSource {
    origin: Arc<Partition>,
    /// Taken at the first run, and kept: what was read ahead in one run is read on in the next.
    input: Option<Input>,
    /// Whether the input is the process's own, so that it goes back when the source is gone.
    of_process: bool,
}

/// An input, and how far it was read.
struct Input {
    blocks: Blocks,
    cutter: Cutter,
    /// What was received and not cut into lines.
    carry: Vec<u8>,
    /// The line that is longer than allowed and has not ended yet.
    long: Option<LongLine>,
    /// Whether `carry` is to be looked at again before more is received.
    more: bool,
    /// Bytes cut into lines.
    position: u64,
    ended: bool,
}

impl Input {
    fn of(reader: impl Read + Send + 'static) -> io::Result<Self> {
        let cutter = Cutter { max_line_bytes: MAX_LINE_BYTES, expected: 0 };
        Ok(Self {
            blocks: stdio::read(reader)?,
            cutter,
            carry: Vec::new(),
            long: None,
            more: false,
            position: 0,
            ended: false,
        })
    }

    fn of_process() -> Result<Self, SourceError> {
        let mut slot = STANDARD_INPUT.lock().unwrap_or_else(PoisonError::into_inner);
        match mem::replace(&mut *slot, Slot::Taken) {
            Slot::Returned(input) => Ok(input),
            Slot::Taken => {
                Err(SourceError::Fatal("standard input is read by another source of this process".to_owned()))
            }
            Slot::Unread => Self::of(io::stdin()).map_err(|error| {
                *slot = Slot::Unread;
                SourceError::Retry(format!("cannot start a thread for standard input: {error}"))
            }),
        }
    }

    /// Waits for more, and takes all that has arrived, up to a block.
    async fn receive(&mut self) -> Result<(), SourceError> {
        let mut received = self.blocks.recv().await;
        loop {
            match received {
                Some(Ok(block)) if self.carry.is_empty() => self.carry = block,
                Some(Ok(block)) => self.carry.extend_from_slice(&block),
                Some(Err(error)) => return Err(SourceError::Fatal(format!("cannot read standard input: {error}"))),
                None => {
                    self.ended = true;
                    return Ok(());
                }
            }
            if self.carry.len() >= BLOCK_BYTES {
                return Ok(());
            }
            match self.blocks.try_recv() {
                Ok(more) => received = Some(more),
                Err(_) => return Ok(()),
            }
        }
    }
}

impl Input {
    /// Cuts what was received: whole lines, or a line that is refused; `None` if more is needed for either.
    fn cut(&mut self, origin: &Arc<Partition>, now: Timestamp) -> Option<Pulled> {
        if let Some(long) = &mut self.long {
            let read = long.read(&self.carry);
            self.carry.drain(..read);
            self.more = long.has_ended() && !self.carry.is_empty();
            return if long.has_ended() || self.ended { self.refuse(origin, now) } else { None };
        }
        let tail = if self.ended { Tail::Last } else { Tail::Open };
        let cut = self.cutter.cut(&self.carry, self.position, now, tail);
        self.more = cut.more || cut.too_long;
        if cut.end == 0 {
            self.long = cut.too_long.then(|| LongLine::at(self.position));
            return None;
        }
        let rest = self.carry.split_off(cut.end);
        let block = mem::replace(&mut self.carry, rest);
        self.position += block.len() as u64;
        let batch = BatchBuilder::over(Arc::clone(origin), block, 0).finish().with_records(cut.records);
        Some(Pulled::new(batch, self.reached()))
    }

    /// The line that is too long, once it was read.
    fn refuse(&mut self, origin: &Arc<Partition>, now: Timestamp) -> Option<Pulled> {
        let long = self.long.take()?;
        self.position = long.end();
        let refused = vec![long.refuse(origin, now, "standard input", MAX_LINE_BYTES)];
        let batch = BatchBuilder::new(Arc::clone(origin), 0, 0).finish();
        Some(Pulled { refused, ..Pulled::new(batch, self.reached()) })
    }

    fn reached(&self) -> Position {
        Position(i64::try_from(self.position).unwrap_or(i64::MAX))
    }
}

impl Source for StdinSource {
    fn stream(&mut self, cx: SourceContext) -> BoxStream<'_, Result<Pulled, SourceError>> {
        Box::pin(try_stream! {
            if self.input.is_none() {
                self.input = Some(Input::of_process()?);
            }
            let input = self.input.as_mut().expect("taken above");
            loop {
                if !input.more {
                    if input.ended {
                        break;
                    }
                    input.receive().await?;
                }
                let now = cx.runtime.clock().timestamp();
                if let Some(pulled) = input.cut(&self.origin, now) {
                    yield pulled;
                }
            }
        })
    }
}

impl Drop for StdinSource {
    fn drop(&mut self) {
        if let (Some(input), true) = (self.input.take(), self.of_process) {
            *STANDARD_INPUT.lock().unwrap_or_else(PoisonError::into_inner) = Slot::Returned(input);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use futures::StreamExt;

    use super::*;
    use crate::component::{EpochRequests, Waiting};
    use crate::runtime::Runtime;
    use crate::testing::harness::texts;

    fn context() -> SourceContext {
        SourceContext {
            committed: Arc::default(),
            epochs: EpochRequests::channel().0,
            runtime: Runtime::system(),
            waiting: Waiting::default(),
        }
    }

    fn source(input: impl Read + Send + 'static) -> StdinSource {
        let origin = Arc::new(Partition { source: "in".into(), topic: "in".into(), number: 0 });
        StdinSource { origin, input: Some(Input::of(input).unwrap()), of_process: false }
    }

    async fn all(source: &mut StdinSource) -> Vec<String> {
        let pulled: Vec<_> = source.stream(context()).collect().await;
        pulled.into_iter().flat_map(|pulled| texts(&pulled.unwrap().batch)).collect()
    }

    #[tokio::test]
    async fn standard_input_is_read_to_its_end() {
        assert_eq!(all(&mut source(&b"one\r\n\ntwo\nthree"[..])).await, ["one", "two", "three"]);
        assert_eq!(all(&mut source(&b""[..])).await, [""; 0]);
        let many = "line\n".repeat(200_000);
        assert_eq!(all(&mut source(io::Cursor::new(many))).await.len(), 200_000);
    }

    #[tokio::test]
    async fn a_line_comes_when_it_is_written_and_a_rewind_goes_on_behind_it() {
        let (reader, mut writer) = io::pipe().unwrap();
        let mut source = source(reader);
        writer.write_all(b"one\ntw").unwrap();
        let first = source.stream(context()).next().await.unwrap().unwrap();
        assert_eq!((texts(&first.batch), first.position), (vec!["one".to_owned()], Position(4)));
        {
            // Nobody writes: the stream waits, and can be dropped.
            let mut stream = source.stream(context());
            assert!(futures::poll!(stream.next()).is_pending());
        }
        writer.write_all(b"o\n").unwrap();
        drop(writer);
        assert_eq!(all(&mut source).await, ["two"]);
    }

    #[tokio::test]
    async fn a_line_that_is_too_long_is_refused_with_its_beginning_behind_those_before_it() {
        let input = format!("one\n{}\ntwo\n{}", "x".repeat(9 << 20), "y".repeat(MAX_LINE_BYTES + 1));
        let pulled: Vec<_> = source(io::Cursor::new(input)).stream(context()).map(Result::unwrap).collect().await;
        let mut seen = Vec::new();
        for pulled in &pulled {
            seen.extend(texts(&pulled.batch));
            for refused in &pulled.refused {
                let kept = refused.batch.body(&refused.batch.records()[0]);
                seen.push(format!("{}: {}", char::from(kept[0]), refused.error));
            }
        }
        let refusal = |letter, at, bytes| {
            format!(
                "{letter}: the line at byte {at} of standard input has {bytes} bytes, and {MAX_LINE_BYTES} are the most \
                 that is read of one"
            )
        };
        let second = 4 + (9 << 20) + 1 + 4;
        assert_eq!(
            seen,
            ["one".into(), refusal('x', 4, 9 << 20), "two".into(), refusal('y', second, MAX_LINE_BYTES + 1)]
        );
        let end = i64::try_from(second + MAX_LINE_BYTES + 1).unwrap();
        assert_eq!(pulled.last().unwrap().position, Position(end));
    }

    #[tokio::test]
    async fn a_line_without_end_fills_no_memory() {
        struct Endless(u64);
        impl Read for Endless {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                let read = buffer.len().min(usize::try_from(self.0).unwrap());
                buffer[..read].fill(b'x');
                self.0 -= read as u64;
                Ok(read)
            }
        }
        let mut source = source(Endless(200 << 20));
        let pulled = source.stream(context()).next().await.unwrap().unwrap();
        assert_eq!((pulled.refused.len(), pulled.position), (1, Position(200 << 20)));
        assert_eq!(pulled.refused[0].batch.bytes().len() >> 10, 16);
        assert!(source.input.as_ref().unwrap().carry.capacity() < 8 << 20);
    }
}
