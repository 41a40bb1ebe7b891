//! Records on their way into a producer's queue: what they are made of, their topic, and their partition.

use std::ffi::{CString, c_void};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use rdkafka::bindings as sys;
use rdkafka::bindings::rd_kafka_vtype_t as vtype;
use rdkafka::client::ClientContext;
use rdkafka::error::RDKafkaErrorCode;

use super::{Producer, text};
use crate::record::{Header, Headers};

/// `RD_KAFKA_PARTITION_UA`: the partitioner decides.
const UNASSIGNED: i32 = -1;

/// A record on its way out.
#[derive(Clone, Copy)]
pub(crate) struct Outgoing<'a> {
    /// Where to, if not where the partitioner says.
    pub(crate) partition: Option<i32>,
    /// The value; `None` for a tombstone.
    pub(crate) value: Option<&'a [u8]>,
    pub(crate) key: Option<&'a [u8]>,
    pub(crate) headers: Headers<'a>,
    /// Milliseconds since the Unix epoch; 0 for now.
    pub(crate) timestamp: i64,
}

/// A topic as a producer writes it, with the settings that belong to the topic.
pub(crate) struct Topic<C: ClientContext + 'static> {
    topic: NonNull<sys::rd_kafka_topic_t>,
    producer: Arc<Producer<C>>,
}

// SAFETY: librdkafka's topics may be used from any thread.
unsafe impl<C: ClientContext + 'static> Send for Topic<C> {}
// SAFETY: as above.
unsafe impl<C: ClientContext + 'static> Sync for Topic<C> {}

impl<C: ClientContext + 'static> Topic<C> {
    /// A handle. Nothing is asked of the broker yet.
    pub(crate) fn new(producer: &Arc<Producer<C>>, name: &str, settings: &[(&str, &str)]) -> Result<Self, String> {
        let name = CString::new(name).map_err(|_| "a topic's name holds no zero byte".to_owned())?;
        // SAFETY: the configuration is ours until the topic takes it over. If it cannot be made, it is freed.
        unsafe {
            // What was said of all topics holds for this one; a new configuration would know nothing of it.
            let config = sys::rd_kafka_default_topic_conf_dup(producer.client.native_ptr());
            for (key, value) in settings {
                let (key, value) = (CString::new(*key), CString::new(*value));
                let (Ok(key), Ok(value)) = (key, value) else { continue };
                let mut why = [0; 256];
                let result =
                    sys::rd_kafka_topic_conf_set(config, key.as_ptr(), value.as_ptr(), why.as_mut_ptr(), why.len());
                if result != sys::rd_kafka_conf_res_t::RD_KAFKA_CONF_OK {
                    sys::rd_kafka_topic_conf_destroy(config);
                    return Err(text(why.as_ptr()));
                }
            }
            let topic = sys::rd_kafka_topic_new(producer.client.native_ptr(), name.as_ptr(), config);
            let Some(topic) = NonNull::new(topic) else {
                // The settings are gone already, whatever it was.
                return Err(text(sys::rd_kafka_err2str(sys::rd_kafka_last_error())));
            };
            Ok(Self { topic, producer: Arc::clone(producer) })
        }
    }

    pub(crate) fn producer(&self) -> &Arc<Producer<C>> {
        &self.producer
    }

    /// Copies a record into the producer's queue. `number` comes back with its delivery.
    pub(crate) fn produce(&self, record: Outgoing<'_>, number: usize) -> Result<(), RDKafkaErrorCode> {
        let headers = native_headers(record.headers);
        let (value, value_len) = parts(record.value);
        let (key, key_len) = parts(record.key);
        // SAFETY: each argument has the type that its tag announces. Value and key are copied during the call. The
        // headers are taken over if the call succeeds, and freed here if it does not.
        unsafe {
            let error = sys::rd_kafka_producev(
                self.producer.client.native_ptr(),
                vtype::RD_KAFKA_VTYPE_RKT,
                self.topic.as_ptr(),
                vtype::RD_KAFKA_VTYPE_MSGFLAGS,
                sys::RD_KAFKA_MSG_F_COPY,
                vtype::RD_KAFKA_VTYPE_PARTITION,
                record.partition.unwrap_or(UNASSIGNED),
                vtype::RD_KAFKA_VTYPE_VALUE,
                value,
                value_len,
                vtype::RD_KAFKA_VTYPE_KEY,
                key,
                key_len,
                vtype::RD_KAFKA_VTYPE_OPAQUE,
                ptr::without_provenance_mut::<c_void>(number),
                vtype::RD_KAFKA_VTYPE_TIMESTAMP,
                record.timestamp.max(0),
                vtype::RD_KAFKA_VTYPE_HEADERS,
                headers,
                vtype::RD_KAFKA_VTYPE_END,
            );
            if error == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
                return Ok(());
            }
            if !headers.is_null() {
                sys::rd_kafka_headers_destroy(headers);
            }
            Err(error.into())
        }
    }
}

impl<C: ClientContext + 'static> Drop for Topic<C> {
    fn drop(&mut self) {
        // SAFETY: ours, given back once, while the client lives.
        unsafe { sys::rd_kafka_topic_destroy(self.topic.as_ptr()) };
    }
}

/// Where the partitioner `murmur2_random` sends a key, of so many partitions.
pub(crate) fn partition_of(key: &[u8], partitions: usize) -> usize {
    let count = i32::try_from(partitions.max(1)).unwrap_or(i32::MAX);
    let (topic, nothing) = (ptr::null(), ptr::null_mut());
    // SAFETY: the key lives during the call, which reads nothing else: neither the topic nor the opaque pointers.
    let partition = unsafe {
        sys::rd_kafka_msg_partitioner_murmur2(topic, key.as_ptr().cast(), key.len(), count, nothing, nothing)
    };
    usize::try_from(partition).unwrap_or(0)
}

/// A pointer and a length; a null pointer for an absent value.
fn parts(bytes: Option<&[u8]>) -> (*mut c_void, usize) {
    bytes.map_or((ptr::null_mut(), 0), |bytes| (bytes.as_ptr().cast_mut().cast(), bytes.len()))
}

fn native_headers(headers: Headers<'_>) -> *mut sys::rd_kafka_headers_t {
    if headers.is_empty() {
        return ptr::null_mut();
    }
    let signed = |len: usize| isize::try_from(len).expect("a slice is no longer than isize::MAX");
    // SAFETY: the list is ours; names and values are copied during each call.
    unsafe {
        let list = sys::rd_kafka_headers_new(8);
        for Header { name, value } in headers {
            let (value, len) = parts(value);
            sys::rd_kafka_header_add(list, name.as_ptr().cast(), signed(name.len()), value, signed(len));
        }
        list
    }
}
