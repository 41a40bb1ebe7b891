//! Reading: the queues of the partitions are drained in turn, a batch at a time.

use std::sync::Arc;

use rdkafka::error::RDKafkaErrorCode as Code;

use super::{BATCH_BYTES, BATCH_RECORDS, GroupConsumer, Queue};
use crate::clients::kafka::assignment::Held;
use crate::clients::kafka::errors::{Verdict, verdict};
use crate::clients::kafka::raw::Messages;
use crate::component::{Pulled, SourceError};
use crate::record::{BatchBuilder, BodyFormat, ByteRange, HeadersBuilder, Partition, Position, Record, Timestamp};

/// Drains the partitions of a group in turn, on the worker that needs the records.
pub(crate) struct Reader {
    group: Arc<GroupConsumer>,
    partitions: Vec<Reading>,
    changes: u64,
    turn: usize,
    /// What stands behind the batch that was handed on last.
    stop: Option<(Arc<Held<Queue>>, Stop)>,
    headers: HeadersBuilder,
}

struct Reading {
    held: Arc<Held<Queue>>,
    /// How many records make about one batch, by the size of those that came before.
    limit: usize,
}

/// Why a reader cannot go on.
pub(crate) enum Stop {
    /// As it says.
    Error(SourceError),
    /// As it says, and only a new client will know when it has changed.
    Denied(SourceError),
    /// The broker does not have this offset any more.
    Gap(Arc<Partition>, i64),
}

impl Reader {
    pub(crate) fn new(group: Arc<GroupConsumer>) -> Self {
        Self { group, partitions: Vec::new(), changes: 0, turn: 0, stop: None, headers: HeadersBuilder::default() }
    }

    /// Waits until there may be something to read.
    pub(crate) async fn woken(&self) {
        self.group.wake.notified().await;
    }

    /// The next batch, if there is one.
    pub(crate) fn next(&mut self) -> Result<Option<Pulled>, Stop> {
        if let Some((held, stop)) = self.stop.take()
            && !held.is_closed()
        {
            return Err(stop);
        }
        self.look()?;
        for _ in 0..self.partitions.len() {
            self.turn = (self.turn + 1) % self.partitions.len();
            if let Some(pulled) = self.read(self.turn)? {
                return Ok(Some(pulled));
            }
        }
        Ok(None)
    }

    fn look(&mut self) -> Result<(), Stop> {
        let state = self.group.state();
        // It stays until the next run begins: a commit may be waiting for the same word.
        if let Some(fault) = &state.fault {
            return Err(Stop::Error(fault.clone()));
        }
        if state.assignment.changes() != self.changes {
            self.changes = state.assignment.changes();
            let reading = |held: &Arc<Held<Queue>>| Reading { held: Arc::clone(held), limit: 100 };
            self.partitions = state.assignment.held().map(reading).collect();
        }
        Ok(())
    }

    fn read(&mut self, at: usize) -> Result<Option<Pulled>, Stop> {
        let Reading { held, limit } = &mut self.partitions[at];
        if !held.queue.is_ready() {
            return Ok(None);
        }
        let Some(messages) = held.read(|queue| queue.drain(*limit)) else { return Ok(None) };
        if messages.is_empty() {
            return Ok(None);
        }
        let now = self.group.settings.runtime.clock().timestamp();
        let Copied { pulled, stop, missing } = copy(&messages, held, now, &mut self.headers);
        if missing {
            self.group.warn_of_missing();
        }
        if let Some(Pulled { batch, .. }) = &pulled {
            let size = batch.bytes().len() / batch.len().max(1) + 1;
            *limit = (BATCH_BYTES / size).clamp(1, BATCH_RECORDS);
        }
        if stop.is_some() || missing {
            held.stalled();
        }
        if let Some(Stop::Denied(error)) = &stop {
            self.group.give_up(error.clone());
        }
        match pulled {
            Some(pulled) => {
                self.stop = stop.map(|stop| (Arc::clone(held), stop));
                Ok(held.yielded(pulled.position.0).then_some(pulled))
            }
            // A partition that is being taken away is no business of ours any more, gap or not.
            None if held.is_closed() => Ok(None),
            None => stop.map_or(Ok(None), Err),
        }
    }
}

/// What was made of messages.
struct Copied {
    pulled: Option<Pulled>,
    stop: Option<Stop>,
    /// The partition has been deleted. The group takes it away soon, or it comes back.
    missing: bool,
}

/// Copies messages into one batch, up to the first error that is to be told.
fn copy(messages: &Messages, held: &Held<Queue>, now: Timestamp, headers: &mut HeadersBuilder) -> Copied {
    let bytes = messages
        .iter()
        .filter(|message| message.error().is_none())
        .map(|message| message.payload().map_or(0, <[u8]>::len) + message.key().map_or(0, <[u8]>::len))
        .sum();
    let mut batch = BatchBuilder::new(Arc::clone(&held.origin), bytes, messages.len());
    let mut position = None;
    let mut stop = None;
    let mut missing = false;
    for message in messages.iter() {
        if let Some(code) = message.error() {
            match verdict(code) {
                _ if code == Code::PartitionEOF => continue,
                Verdict::Missing => {
                    missing = true;
                    continue;
                }
                Verdict::Gap => {
                    stop = Some(Stop::Gap(Arc::clone(&held.origin), message.offset()));
                }
                Verdict::Denied | Verdict::DeniedForGood => {
                    let text = format!("not allowed to read topic `{}`: {code}", held.origin.topic);
                    stop = Some(Stop::Denied(SourceError::Retry(text)));
                }
                // librdkafka may go on behind what it could not read. We do not: the same range is read again.
                _ => {
                    let text = format!("cannot read partition {}: {}", held.origin, message.error_text());
                    stop = Some(Stop::Error(SourceError::Retry(text)));
                }
            }
            break;
        }
        headers.clear();
        message.headers(headers);
        let body = message.payload().map_or(ByteRange::default(), |payload| batch.append(payload));
        let key = message.key().map(|key| batch.append(key));
        let header_range =
            if headers.encoded().is_empty() { ByteRange::default() } else { batch.append(headers.encoded()) };
        batch.push(Record {
            body,
            format: if message.payload().is_none() { BodyFormat::Absent } else { BodyFormat::Raw },
            key,
            headers: header_range,
            timestamp: message.timestamp().map_or(now, Timestamp),
            offset: message.offset(),
            ..Record::default()
        });
        position = Some(Position(message.offset() + 1));
    }
    Copied { pulled: position.map(|position| Pulled::new(batch.finish(), position)), stop, missing }
}
