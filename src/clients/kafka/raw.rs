//! The calls to librdkafka that its Rust wrapper does not offer, or offers at a price per record.
//!
//! All `unsafe` of the Kafka client stands here. Draining a partition's queue through the wrapper costs four times as
//! much as in batches, and its producer builds a C string for each record. Callbacks from C only set a flag and wake a
//! task: a panic in one would abort the process.

#![expect(unsafe_code, reason = "these calls have no safe form; each states why it is sound")]

mod brokers;
mod describe;
mod mock;
mod outgoing;

use std::ffi::{CStr, CString, c_char, c_void};
use std::fmt;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rdkafka::bindings as sys;
use rdkafka::client::{Client, ClientContext};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::topic_partition_list::TopicPartitionList;
use rdkafka::types::RDKafkaType;
use tokio::sync::Notify;

pub(crate) use brokers::add_brokers;
pub(crate) use mock::MockBroker;
pub(crate) use outgoing::{Outgoing, Topic, partition_of};

use super::limits::size;
use crate::record::{Headers, HeadersBuilder};

fn millis(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX)
}

/// Text that C gave us; empty if it gave none.
///
/// # Safety
/// `text` is null or a C string that lives during the call.
unsafe fn text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: not null, and a live C string by this function's contract.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// What a queue's callback touches: a flag, and the task to wake.
struct Wake {
    ready: AtomicBool,
    task: Arc<Notify>,
}

/// Called by librdkafka, with the queue's lock held, when an empty queue gets something.
unsafe extern "C" fn wake(_: *mut sys::rd_kafka_t, opaque: *mut c_void) {
    // SAFETY: `opaque` is the `Wake` of a queue that disables this callback before it is freed.
    let wake = unsafe { &*opaque.cast::<Wake>() };
    wake.ready.store(true, Ordering::Release);
    wake.task.notify_one();
}

/// The queue of one assigned partition, split from the consumer's main queue.
pub(crate) struct PartitionQueue<C: ConsumerContext + 'static> {
    queue: NonNull<sys::rd_kafka_queue_t>,
    wake: Box<Wake>,
    enabled: AtomicBool,
    /// The queue must not outlive its client.
    _consumer: Arc<BaseConsumer<C>>,
}

// SAFETY: librdkafka's queues may be used from any thread.
unsafe impl<C: ConsumerContext + 'static> Send for PartitionQueue<C> {}
// SAFETY: as above; the rest is atomic.
unsafe impl<C: ConsumerContext + 'static> Sync for PartitionQueue<C> {}

impl<C: ConsumerContext + 'static> PartitionQueue<C> {
    /// Splits a partition's queue off. To be called before the partition is assigned, so that nothing of it reaches the
    /// main queue. `task` is woken whenever the queue stops being empty.
    pub(crate) fn split(
        consumer: &Arc<BaseConsumer<C>>,
        topic: &str,
        partition: i32,
        task: &Arc<Notify>,
    ) -> Option<Self> {
        let topic = CString::new(topic).ok()?;
        // SAFETY: the client is alive, and the name is a C string.
        let queue =
            unsafe { sys::rd_kafka_queue_get_partition(consumer.client().native_ptr(), topic.as_ptr(), partition) };
        let queue = NonNull::new(queue)?;
        let wake_up = Box::new(Wake { ready: AtomicBool::new(true), task: Arc::clone(task) });
        // SAFETY: the queue is ours. The opaque pointer is a box that lives until `disable` has returned.
        unsafe {
            sys::rd_kafka_queue_forward(queue.as_ptr(), ptr::null_mut());
            let opaque = ptr::from_ref::<Wake>(&wake_up).cast_mut().cast::<c_void>();
            sys::rd_kafka_queue_cb_event_enable(queue.as_ptr(), Some(wake), opaque);
        }
        Some(Self { queue, wake: wake_up, enabled: AtomicBool::new(true), _consumer: Arc::clone(consumer) })
    }

    /// Whether something may be in the queue.
    pub(crate) fn is_ready(&self) -> bool {
        self.wake.ready.load(Ordering::Acquire)
    }

    /// Says that something may be in the queue.
    pub(crate) fn set_ready(&self) {
        self.wake.ready.store(true, Ordering::Release);
    }

    /// Stops the wake-ups. Must precede another split of the same partition, which shares the underlying queue.
    pub(crate) fn disable(&self) {
        if self.enabled.swap(false, Ordering::AcqRel) {
            // SAFETY: the queue is ours. The call takes the queue's lock, so no callback runs after it returns.
            unsafe { sys::rd_kafka_queue_cb_event_enable(self.queue.as_ptr(), None, ptr::null_mut()) };
        }
    }

    /// Takes up to `limit` messages, without waiting. Whatever more there is leaves the queue ready.
    pub(crate) fn drain(&self, limit: usize) -> Messages {
        let mut messages: Vec<*mut sys::rd_kafka_message_t> = Vec::with_capacity(limit);
        // Cleared first: what arrives while we drain sets it again.
        self.wake.ready.store(false, Ordering::Release);
        // SAFETY: the buffer has room for `limit` pointers, and the call says how many it wrote.
        let count = unsafe {
            let count = sys::rd_kafka_consume_batch_queue(self.queue.as_ptr(), 0, messages.as_mut_ptr(), limit);
            let count = usize::try_from(count).unwrap_or(0);
            messages.set_len(count);
            count
        };
        if count == limit {
            self.set_ready();
        }
        Messages(messages)
    }
}

impl<C: ConsumerContext + 'static> Drop for PartitionQueue<C> {
    fn drop(&mut self) {
        self.disable();
        // SAFETY: the queue is ours, and its client is alive.
        unsafe { sys::rd_kafka_queue_destroy(self.queue.as_ptr()) };
    }
}

/// Messages taken from a queue; freed when dropped. Each pins the buffer it was fetched in, so they are copied at once.
pub(crate) struct Messages(Vec<*mut sys::rd_kafka_message_t>);

impl Messages {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Message<'_>> {
        // SAFETY: the pointers are live until `self` is dropped.
        self.0.iter().map(|&message| Message(unsafe { &*message }))
    }
}

impl Drop for Messages {
    fn drop(&mut self) {
        for &message in &self.0 {
            // SAFETY: each is ours, and freed once.
            unsafe { sys::rd_kafka_message_destroy(message) };
        }
    }
}

/// One message, or an error that stands in its place.
#[derive(Clone, Copy)]
pub(crate) struct Message<'a>(&'a sys::rd_kafka_message_t);

impl<'a> Message<'a> {
    pub(crate) fn error(self) -> Option<RDKafkaErrorCode> {
        (self.0.err != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR).then(|| self.0.err.into())
    }

    /// What librdkafka says of the error.
    pub(crate) fn error_text(self) -> String {
        // SAFETY: the message is alive, and the text belongs to it.
        unsafe { text(sys::rd_kafka_message_errstr(self.0)) }
    }

    pub(crate) fn offset(self) -> i64 {
        self.0.offset
    }

    pub(crate) fn payload(self) -> Option<&'a [u8]> {
        // SAFETY: payload and length belong together, and live as long as the message.
        unsafe { bytes(self.0.payload, self.0.len) }
    }

    pub(crate) fn key(self) -> Option<&'a [u8]> {
        // SAFETY: key and length belong together, and live as long as the message.
        unsafe { bytes(self.0.key, self.0.key_len) }
    }

    /// Milliseconds since the Unix epoch; `None` if the broker knows no time.
    pub(crate) fn timestamp(self) -> Option<i64> {
        let mut kind = sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: the message is alive.
        let at = unsafe { sys::rd_kafka_message_timestamp(self.0, &raw mut kind) };
        (kind != sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE && at >= 0).then_some(at)
    }

    /// Appends the headers, in order, with repeats.
    pub(crate) fn headers(self, into: &mut HeadersBuilder) {
        let mut headers = ptr::null_mut();
        // SAFETY: the message is alive, and keeps the headers.
        if unsafe { sys::rd_kafka_message_headers(self.0, &raw mut headers) }
            != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR
        {
            return;
        }
        for at in 0.. {
            let (mut name, mut value, mut size) = (ptr::null(), ptr::null(), 0);
            // SAFETY: the headers live as long as the message; the call says when `at` is past the last.
            let header = unsafe {
                if sys::rd_kafka_header_get_all(headers, at, &raw mut name, &raw mut value, &raw mut size)
                    != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR
                {
                    return;
                }
                (CStr::from_ptr(name), bytes(value, size))
            };
            into.push(header.0.to_bytes(), header.1);
        }
    }
}

/// A slice that C described; `None` for a null pointer, which is not the same as an empty one.
///
/// # Safety
/// `pointer` is null, or points to `len` bytes that live for `'a`.
unsafe fn bytes<'a>(pointer: *const c_void, len: usize) -> Option<&'a [u8]> {
    // SAFETY: by this function's contract.
    NonNull::new(pointer.cast_mut()).map(|at| unsafe { std::slice::from_raw_parts(at.as_ptr().cast::<u8>(), len) })
}

/// Who a consumer is in its group at this moment: what makes a transaction's offsets legal.
pub(crate) struct GroupMetadata(NonNull<sys::rd_kafka_consumer_group_metadata_t>);

// SAFETY: a plain value once it is made.
unsafe impl Send for GroupMetadata {}

impl GroupMetadata {
    /// As the consumer stands now. `None` if it is in no generation: such offsets would be accepted by a group that has
    /// become empty, whoever had read them.
    pub(crate) fn of<C: ConsumerContext>(consumer: &BaseConsumer<C>) -> Option<Self> {
        // SAFETY: the client is alive; the answer is ours.
        let metadata = unsafe { sys::rd_kafka_consumer_group_metadata(consumer.client().native_ptr()) };
        let metadata = Self(NonNull::new(metadata)?);
        // SAFETY: alive.
        let generation = unsafe { sys::rd_kafka_consumer_group_metadata_generation_id(metadata.0.as_ptr()) };
        // 0 is the epoch in which a member asks to be let in, where the broker assigns.
        (generation > 0).then_some(metadata)
    }
}

impl Drop for GroupMetadata {
    fn drop(&mut self) {
        // SAFETY: ours, and freed once.
        unsafe { sys::rd_kafka_consumer_group_metadata_destroy(self.0.as_ptr()) };
    }
}

/// Why a transactional call failed, and what that calls for.
#[derive(Debug, Clone)]
pub(crate) struct TransactionError {
    /// The reason by its code.
    pub(crate) code: RDKafkaErrorCode,
    /// The reason in words.
    pub(crate) text: String,
    /// The producer is of no more use.
    pub(crate) fatal: bool,
    /// The same call may be made again, and goes on where it stopped.
    pub(crate) retriable: bool,
}

impl fmt::Display for TransactionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Takes an error over from C.
///
/// # Safety
/// `error` is null or an error that is ours to free.
unsafe fn outcome(error: *mut sys::rd_kafka_error_t) -> Result<(), TransactionError> {
    let Some(error) = NonNull::new(error) else { return Ok(()) };
    let error = error.as_ptr();
    // SAFETY: alive until it is destroyed below, once.
    unsafe {
        let result = TransactionError {
            code: sys::rd_kafka_error_code(error).into(),
            text: text(sys::rd_kafka_error_string(error)),
            fatal: sys::rd_kafka_error_is_fatal(error) != 0,
            retriable: sys::rd_kafka_error_is_retriable(error) != 0,
        };
        sys::rd_kafka_error_destroy(error);
        Err(result)
    }
}

/// The fate of a record.
pub(crate) struct Delivery<'a> {
    /// The number given when it was produced.
    pub(crate) number: usize,
    /// Why it failed, if it did.
    pub(crate) failure: Option<RDKafkaErrorCode>,
    message: Message<'a>,
}

impl Delivery<'_> {
    /// The topic that it was sent to.
    pub(crate) fn topic(&self) -> String {
        // SAFETY: the message is alive, and keeps its topic, which keeps its name.
        unsafe { text(sys::rd_kafka_topic_name(self.message.0.rkt)) }
    }

    /// What it takes in a batch.
    pub(crate) fn size(&self) -> usize {
        let mut headers = HeadersBuilder::default();
        self.message.headers(&mut headers);
        size(self.message.payload(), self.message.key(), Headers::decode(headers.encoded()))
    }
}

/// One event of a producer's queue.
pub(crate) enum ProducerEvent<'a> {
    /// The fate of records.
    Deliveries(&'a mut dyn Iterator<Item = Delivery<'a>>),
    /// Something is wrong with the client as a whole.
    Error(RDKafkaErrorCode, String),
    /// A log line: syslog level and text.
    Log(i32, String),
}

/// A producer whose deliveries are told as numbers, a whole event at a time.
pub(crate) struct Producer<C: ClientContext + 'static> {
    client: Client<C>,
    queue: NonNull<sys::rd_kafka_queue_t>,
}

// SAFETY: librdkafka's clients and queues may be used from any thread.
unsafe impl<C: ClientContext + 'static> Send for Producer<C> {}
// SAFETY: as above.
unsafe impl<C: ClientContext + 'static> Sync for Producer<C> {}

impl<C: ClientContext + 'static> Producer<C> {
    /// Makes a client. It connects in the background.
    pub(crate) fn new(config: &ClientConfig, context: C) -> Result<Self, String> {
        let native = config.create_native_config().map_err(|error| error.to_string())?;
        // SAFETY: the configuration is alive.
        unsafe { sys::rd_kafka_conf_set_events(native.ptr(), sys::RD_KAFKA_EVENT_DR | sys::RD_KAFKA_EVENT_ERROR) };
        let client =
            Client::new(config, native, RDKafkaType::RD_KAFKA_PRODUCER, context).map_err(|error| error.to_string())?;
        // SAFETY: the client is alive; the reference to its queue is ours to give back.
        let queue = unsafe { sys::rd_kafka_queue_get_main(client.native_ptr()) };
        let queue = NonNull::new(queue).ok_or("librdkafka has no queue of events")?;
        Ok(Self { client, queue })
    }

    pub(crate) fn client(&self) -> &Client<C> {
        &self.client
    }

    /// Waits for one event.
    pub(crate) fn poll(&self, timeout: Duration, handle: impl FnOnce(ProducerEvent<'_>)) {
        // SAFETY: the queue is alive; the event is ours until it is destroyed below.
        let event = unsafe { sys::rd_kafka_queue_poll(self.queue.as_ptr(), millis(timeout)) };
        let Some(event) = NonNull::new(event).map(Event) else { return };
        let event = event.0.as_ptr();
        // SAFETY: the event is alive during this block, and so is all that is read from it.
        unsafe {
            match sys::rd_kafka_event_type(event) {
                sys::RD_KAFKA_EVENT_DR => {
                    let mut deliveries = std::iter::from_fn(|| {
                        let message = Message(sys::rd_kafka_event_message_next(event).as_ref()?);
                        Some(Delivery { number: message.0._private.addr(), failure: message.error(), message })
                    });
                    handle(ProducerEvent::Deliveries(&mut deliveries));
                }
                sys::RD_KAFKA_EVENT_ERROR => {
                    let code = sys::rd_kafka_event_error(event).into();
                    handle(ProducerEvent::Error(code, text(sys::rd_kafka_event_error_string(event))));
                }
                sys::RD_KAFKA_EVENT_LOG => {
                    let (mut facility, mut line, mut level) = (ptr::null(), ptr::null(), 0);
                    if sys::rd_kafka_event_log(event, &raw mut facility, &raw mut line, &raw mut level) == 0 {
                        handle(ProducerEvent::Log(level, text(line)));
                    }
                }
                _ => {}
            }
        }
    }

    /// Makes a waiting [`Self::poll`] return.
    pub(crate) fn interrupt(&self) {
        // SAFETY: the queue is alive.
        unsafe { sys::rd_kafka_queue_yield(self.queue.as_ptr()) };
    }

    /// Records and delivery reports that are still under way.
    pub(crate) fn outstanding(&self) -> usize {
        // SAFETY: the client is alive.
        usize::try_from(unsafe { sys::rd_kafka_outq_len(self.client.native_ptr()) }).unwrap_or(0)
    }

    /// Fails everything that is under way.
    pub(crate) fn purge(&self) {
        let all = sys::RD_KAFKA_PURGE_F_QUEUE | sys::RD_KAFKA_PURGE_F_INFLIGHT | sys::RD_KAFKA_PURGE_F_NON_BLOCKING;
        // SAFETY: the client is alive.
        unsafe { sys::rd_kafka_purge(self.client.native_ptr(), all) };
    }

    pub(crate) fn init_transactions(&self, timeout: Duration) -> Result<(), TransactionError> {
        // SAFETY: the client is alive; the error is ours.
        unsafe { outcome(sys::rd_kafka_init_transactions(self.client.native_ptr(), millis(timeout))) }
    }

    pub(crate) fn begin_transaction(&self) -> Result<(), TransactionError> {
        // SAFETY: the client is alive; the error is ours.
        unsafe { outcome(sys::rd_kafka_begin_transaction(self.client.native_ptr())) }
    }

    pub(crate) fn send_offsets(
        &self,
        offsets: &TopicPartitionList,
        group: &GroupMetadata,
        timeout: Duration,
    ) -> Result<(), TransactionError> {
        // SAFETY: client, list and metadata are alive, and only read; the error is ours.
        unsafe {
            outcome(sys::rd_kafka_send_offsets_to_transaction(
                self.client.native_ptr(),
                offsets.ptr(),
                group.0.as_ptr(),
                millis(timeout),
            ))
        }
    }

    pub(crate) fn commit_transaction(&self, timeout: Duration) -> Result<(), TransactionError> {
        // SAFETY: the client is alive; the error is ours.
        unsafe { outcome(sys::rd_kafka_commit_transaction(self.client.native_ptr(), millis(timeout))) }
    }

    pub(crate) fn abort_transaction(&self, timeout: Duration) -> Result<(), TransactionError> {
        // SAFETY: the client is alive; the error is ours.
        unsafe { outcome(sys::rd_kafka_abort_transaction(self.client.native_ptr(), millis(timeout))) }
    }
}

impl<C: ClientContext + 'static> Drop for Producer<C> {
    fn drop(&mut self) {
        self.purge();
        // SAFETY: our reference, given back once, before the client goes.
        unsafe { sys::rd_kafka_queue_destroy(self.queue.as_ptr()) };
    }
}

/// An event that is ours to free.
struct Event(NonNull<sys::rd_kafka_event_t>);

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: ours, and freed once.
        unsafe { sys::rd_kafka_event_destroy(self.0.as_ptr()) };
    }
}
