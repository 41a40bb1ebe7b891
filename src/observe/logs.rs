//! The log: one line for each thing that a person may act on, to stderr, as text or as JSON.
//!
//! A record's content appears in no line.

use std::fmt;
use std::io::{IsTerminal, stderr};
use std::panic::PanicHookInfo;

use tracing::{Subscriber, debug, error};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;

use crate::clock::Clock;

/// How a line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogStyle {
    /// For people; in colour on a terminal.
    Text,
    /// One JSON object on each line.
    Json,
}

/// Sends every line of the process to stderr. Called once, before the first task is spawned.
///
/// # Errors
/// If the process logs already.
pub fn init(style: LogStyle, levels: Targets, clock: Clock) -> Result<(), String> {
    let subscriber = tracing_subscriber::registry().with(lines(style, clock, stderr).with_filter(levels));
    tracing::subscriber::set_global_default(subscriber).map_err(|error| error.to_string())?;
    std::panic::set_hook(Box::new(log_panic));
    Ok(())
}

fn lines<S, W>(style: LogStyle, clock: Clock, writer: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    W: for<'writer> MakeWriter<'writer> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer().with_timer(WallTime(clock)).with_writer(writer);
    match style {
        LogStyle::Text => {
            let colour = stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
            layer.with_target(false).with_ansi(colour).boxed()
        }
        LogStyle::Json => layer.json().flatten_event(true).with_current_span(true).with_span_list(false).boxed(),
    }
}

/// A panic is a bug. Where it happened is told at once; its text may quote what was being worked on, a record too, so
/// only those who ask for `debug` see it.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let place = panic.location().map_or_else(String::new, ToString::to_string);
    let thread = std::thread::current().name().unwrap_or("unnamed").to_owned();
    error!(place, thread, "a bug: a task panicked");
    debug!(place, text = panic.payload_as_str().unwrap_or_default(), "what the panic said");
}

/// The process's own clock, in RFC 3339.
#[derive(Debug)]
struct WallTime(Clock);

impl FormatTime for WallTime {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let micros = i64::try_from(self.0.wall().as_micros()).unwrap_or(i64::MAX);
        let time = jiff::Timestamp::from_microsecond(micros).map_err(|_| fmt::Error)?;
        write!(writer, "{time:.6}")
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use tracing_subscriber::filter::LevelFilter;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(style: LogStyle, say: impl FnOnce()) -> String {
        let written = Lines::default();
        let writer = written.clone();
        let clock = Clock::starting_at(Duration::from_secs(1_750_000_000));
        let levels = Targets::new().with_default(LevelFilter::INFO);
        let layer = lines(style, clock, move || writer.clone()).with_filter(levels);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), say);
        let bytes = written.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_json_line_is_one_object_with_the_fields_of_the_event() {
        let line = logged(LogStyle::Json, || tracing::warn!(pipeline = "orders", epoch = 7, "went back"));
        let object: serde_json::Value = serde_json::from_str(line.trim_end()).unwrap();
        assert_eq!(object["level"], "WARN");
        assert_eq!(object["message"], "went back");
        assert_eq!(object["pipeline"], "orders");
        assert_eq!(object["epoch"], 7);
        assert!(object["timestamp"].as_str().unwrap().starts_with("2025-06-15T15:06:4"), "{line}");
    }

    #[test]
    fn a_text_line_holds_time_level_text_and_fields() {
        let line = logged(LogStyle::Text, || tracing::info!(pipeline = "orders", "started"));
        assert!(line.starts_with("2025-06-15T15:06:4"), "{line}");
        assert!(line.contains(" INFO started pipeline=\"orders\""), "{line}");
        assert_eq!(line.lines().count(), 1);
    }

    #[test]
    fn what_is_below_the_level_is_not_logged() {
        assert_eq!(logged(LogStyle::Text, || tracing::debug!("a detail")), "");
    }
}
