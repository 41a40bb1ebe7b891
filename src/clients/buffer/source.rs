//! The end of a buffer that is read: the first stage of an epoch domain. Batches come out as they went in, with the
//! partitions and offsets of where they came from; its own positions count in one partition, the log.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use async_stream::try_stream;
use futures::future::{self, BoxFuture};
use futures::stream::BoxStream;

use super::{Home, Link, name};
use crate::codecs::Codec;
use crate::component::{
    BuildContext, BuiltSource, CompiledSource, KeepsPositions, LOCAL_TRANSACTION, Pulled, Source, SourceContext,
    SourceError, SourceTraits,
};
use crate::delivery::{CommitPositions, Positions};
use crate::expr::Schema;
use crate::record::{Partition, Position};
use crate::state::buffer::{Log, Place};

/// Frames are small where records come slowly; this many bytes of them are read in one go.
const AT_ONCE: usize = 256 << 10;

pub(super) fn compiled(link: Link) -> CompiledSource {
    CompiledSource {
        traits: SourceTraits {
            keeps_positions: KeepsPositions::Store,
            // It ends when what is before it has.
            finite: false,
            partitioned: true,
            transactional_with: &[LOCAL_TRANSACTION],
        },
        // They were decoded before they went in.
        codec: Codec::Raw,
        schema: Schema::default(),
        build: Arc::new(move |cx: &BuildContext| {
            let name: Arc<str> = name(&link.0.stage).into();
            let partition = Arc::new(Partition { source: Arc::clone(&name), topic: name, number: 0 });
            let passed = Arc::new(Passed { link: link.clone(), home: Home::of(cx), places: Mutex::default() });
            let source = BufferSource { partition, passed: Arc::clone(&passed) };
            Ok(BuiltSource { source: Box::new(source), positions: Some(passed) })
        }),
    }
}

struct BufferSource {
    partition: Arc<Partition>,
    passed: Arc<Passed>,
}

/// What was passed on and is not committed.
#[derive(Debug)]
struct Passed {
    link: Link,
    home: Home,
    /// Behind each batch, in order.
    places: Mutex<VecDeque<Place>>,
}

impl Passed {
    async fn log(&self) -> Result<Arc<Log>, SourceError> {
        self.link.log(&self.home).await.map_err(SourceError::Retry)
    }

    /// The place of a committed position; those before it are forgotten.
    fn take(&self, committed: Position) -> Option<Place> {
        let committed = u64::try_from(committed.0).ok()?;
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken = None;
        while let Some(place) = places.pop_front_if(|place| place.position <= committed) {
            taken = Some(place);
        }
        taken
    }
}

impl Source for BufferSource {
    fn stream(&mut self, cx: SourceContext) -> BoxStream<'_, Result<Pulled, SourceError>> {
        let (partition, passed) = (&self.partition, &self.passed);
        Box::pin(try_stream! {
            let log = passed.log().await?;
            passed.places.lock().unwrap_or_else(PoisonError::into_inner).clear();
            let failed = |error: std::io::Error| SourceError::Retry(super::cannot_open(log.folder(), &error));
            let from = cx.resume_from(partition).and_then(|position| u64::try_from(position.0).ok());
            let mut cursor = passed.home.on(&log, move |log| log.cursor(from)).await.map_err(failed)?;
            while log.readable(&cursor).await {
                let read = passed.home.on(&log, move |log| {
                    let read = log.read(&mut cursor, AT_ONCE);
                    (read, cursor)
                });
                let batches;
                (batches, cursor) = read.await;
                for (batch, place) in batches.map_err(failed)? {
                    passed.places.lock().unwrap_or_else(PoisonError::into_inner).push_back(place);
                    let position = Position(i64::try_from(place.position).unwrap_or(i64::MAX));
                    yield Pulled { read_from: Some(Arc::clone(partition)), ..Pulled::new(batch, position) };
                }
            }
        })
    }
}

impl CommitPositions for Passed {
    /// They are in the store already.
    fn commit(&self, _: u64, _: Positions) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(future::ready(Ok(())))
    }

    fn committed(&self, positions: &Positions) -> BoxFuture<'_, ()> {
        let place = positions.values().next().and_then(|position| self.take(*position));
        Box::pin(async move {
            if let (Some(place), Ok(log)) = (place, self.log().await) {
                self.home.on(&log, move |log| log.release(place)).await;
            }
        })
    }
}
