//! What this client may do with a topic. The wrapper has no call for it.

use std::ffi::CString;
use std::ptr::NonNull;
use std::time::Duration;

use rdkafka::bindings as sys;
use rdkafka::client::ClientContext;

use super::{Event, Producer, millis};

/// Frees what C gave us, when it goes out of scope.
struct Owned<T>(NonNull<T>, unsafe extern "C" fn(*mut T));

impl<T> Owned<T> {
    fn new(pointer: *mut T, free: unsafe extern "C" fn(*mut T)) -> Option<Self> {
        NonNull::new(pointer).map(|pointer| Self(pointer, free))
    }

    fn get(&self) -> *mut T {
        self.0.as_ptr()
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: the function belongs to the type, and is called once.
        unsafe { (self.1)(self.0.as_ptr()) };
    }
}

impl<C: ClientContext + 'static> Producer<C> {
    /// Whether this client may write to a topic; `None` if the broker does not tell. Blocks.
    pub(crate) fn may_write(&self, topic: &str, timeout: Duration) -> Option<bool> {
        let name = CString::new(topic).ok()?;
        let client = self.client().native_ptr();
        // SAFETY: the client is alive. Each object is freed by its own function when it goes out of scope, the event last
        // of those that are read from; the collection and the options are only read during the call.
        unsafe {
            let mut names = [name.as_ptr()];
            let topics = sys::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), names.len());
            let topics = Owned::new(topics, sys::rd_kafka_TopicCollection_destroy)?;
            let kind = sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS;
            let options = Owned::new(sys::rd_kafka_AdminOptions_new(client, kind), sys::rd_kafka_AdminOptions_destroy)?;
            let asks = Owned::new(
                sys::rd_kafka_AdminOptions_set_include_authorized_operations(options.get(), 1),
                sys::rd_kafka_error_destroy,
            );
            if asks.is_some() {
                return None;
            }
            let mut why = [0; 256];
            sys::rd_kafka_AdminOptions_set_request_timeout(options.get(), millis(timeout), why.as_mut_ptr(), why.len());
            let queue = Owned::new(sys::rd_kafka_queue_new(client), sys::rd_kafka_queue_destroy)?;
            sys::rd_kafka_DescribeTopics(client, topics.get(), options.get(), queue.get());
            // The request ends by its own time-out.
            let event = Event(NonNull::new(sys::rd_kafka_queue_poll(queue.get(), millis(2 * timeout)))?);
            let result = sys::rd_kafka_event_DescribeTopics_result(event.0.as_ptr());
            if result.is_null() {
                return None;
            }
            let mut count = 0;
            let described = sys::rd_kafka_DescribeTopics_result_topics(result, &raw mut count);
            if described.is_null() || count == 0 {
                return None;
            }
            let topic = *described;
            let error = sys::rd_kafka_TopicDescription_error(topic);
            let denied = sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
            match sys::rd_kafka_error_code(error) {
                sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR => {}
                code => return (code == denied).then_some(false),
            }
            let mut count = 0;
            let operations = sys::rd_kafka_TopicDescription_authorized_operations(topic, &raw mut count);
            if operations.is_null() {
                return None;
            }
            let write = sys::rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_WRITE;
            Some((0..count).any(|at| *operations.add(at) == write))
        }
    }
}
