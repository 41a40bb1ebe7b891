//! Paths with a time in them: which file a record belongs to.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use jiff::fmt::strtime::{self, BrokenDownTime};

use crate::record::Timestamp;

/// Paths of times that are remembered; records of few times come at once.
const REMEMBERED: usize = 256;
const MINUTE_MS: i64 = 60_000;

/// A path, in which `%Y`, `%m`, `%d` and the like stand for a record's time.
#[derive(Debug, Clone)]
pub(crate) struct Pattern {
    text: Arc<str>,
    /// All times of one such span have the same path; `None` if all times have.
    span_ms: Option<i64>,
}

impl Pattern {
    /// # Errors
    /// What is wrong with it, in words.
    pub(crate) fn new(text: &str) -> Result<Self, String> {
        let at = |millis| render(text, Timestamp(millis));
        let first = at(0)?;
        // Each unit that a pattern can name changes somewhere between these, and no zone but UTC is asked for.
        let changes_within = |step: i64, steps: i64| -> Result<bool, String> {
            (1..=steps).try_fold(false, |changes, n| Ok(changes || at(n * step)? != first))
        };
        let span_ms = if changes_within(1, 9)? || changes_within(100, 9)? {
            Some(1)
        } else if changes_within(1000, 59)? {
            Some(1000)
        } else {
            text.contains('%').then_some(MINUTE_MS)
        };
        Ok(Self { text: text.into(), span_ms })
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Whether it is the path of one file.
    pub(crate) fn is_plain(&self) -> bool {
        self.span_ms.is_none()
    }

    /// Whether its files can be told from others by their names.
    ///
    /// # Errors
    /// Why not, in words.
    pub(crate) fn is_found_again(&self) -> Result<(), String> {
        if self.is_plain() {
            return Ok(());
        }
        let path = render(&self.text, Timestamp(0))?;
        if path.matches('/').count() != self.text.matches('/').count() {
            return Err(format!("a time in `{}` has slashes in it: write `%m/%d/%y` for `%D`", self.text));
        }
        let Some(_) = When::of(&self.text, &path) else {
            return Err(format!(
                "files of `{}` cannot be told from others by their names: use `%Y-%m-%d`, `%H` and the like",
                self.text
            ));
        };
        Ok(())
    }

    /// One of the paths that it makes.
    pub(crate) fn example(text: &str) -> String {
        render(text, Timestamp(0)).unwrap_or_else(|_| text.to_owned())
    }

    /// The time that made a path; `None` if none did.
    pub(super) fn time_of(&self, path: &str) -> Option<When> {
        When::of(&self.text, path)
    }

    /// What stands before the first part with a time in it: a folder, with its `/`, or nothing.
    pub(crate) fn fixed_folder(&self) -> &str {
        let fixed = self.text.split('%').next().unwrap_or_default();
        &fixed[..fixed.rfind('/').map_or(0, |at| at + 1)]
    }
}

/// A time as far as a path tells it: from the year on to the smallest unit. Times of one pattern can be put in order.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct When([Option<i64>; 11]);

impl When {
    /// The time that a pattern, or a part of one, made a text of; `None` if it made it of none.
    pub(super) fn of(pattern: &str, text: &str) -> Option<Self> {
        let time = BrokenDownTime::parse(pattern, text).ok()?;
        // Reading is more generous than writing: with `%d`, 7 is read as 07 is.
        if time.to_string(pattern).is_ok_and(|written| written != text) {
            return None;
        }
        let year = time.year().or(time.iso_week_year()).map(i64::from);
        let week = time.iso_week().or(time.monday_based_week()).or(time.sunday_based_week()).map(i64::from);
        Some(Self([
            time.timestamp().map(jiff::Timestamp::as_millisecond),
            year,
            time.month().map(i64::from),
            week,
            time.day_of_year().map(i64::from),
            time.day().map(i64::from),
            time.weekday().map(|day| day.to_monday_zero_offset().into()),
            time.hour().map(i64::from),
            time.minute().map(i64::from),
            time.second().map(i64::from),
            time.subsec_nanosecond().map(i64::from),
        ]))
    }
}

fn render(text: &str, time: Timestamp) -> Result<String, String> {
    if !text.contains('%') {
        return Ok(text.to_owned());
    }
    let time = jiff::Timestamp::from_millisecond(time.0).map_err(|_| "the time is out of range".to_owned())?;
    strtime::format(text, time).map_err(|error| {
        let words = error.to_string();
        words.strip_prefix("strftime formatting failed: ").unwrap_or(&words).to_owned()
    })
}

/// The paths of the times that were met last.
#[derive(Debug)]
pub(crate) struct Paths {
    pattern: Pattern,
    by_span: HashMap<i64, Arc<str>>,
    last: Option<(i64, Arc<str>)>,
}

impl Paths {
    pub(crate) fn new(pattern: Pattern) -> Self {
        Self { pattern, by_span: HashMap::new(), last: None }
    }

    /// The path of a time.
    ///
    /// # Errors
    /// If no calendar has that time.
    pub(crate) fn of(&mut self, time: Timestamp) -> Result<Arc<str>, String> {
        let Some(span_ms) = self.pattern.span_ms else { return Ok(Arc::clone(&self.pattern.text)) };
        let span = time.0.div_euclid(span_ms);
        if let Some((last, path)) = &self.last
            && *last == span
        {
            return Ok(Arc::clone(path));
        }
        if self.by_span.len() > REMEMBERED {
            self.by_span.clear();
        }
        let path = match self.by_span.entry(span) {
            Entry::Occupied(known) => Arc::clone(known.get()),
            Entry::Vacant(new) => Arc::clone(new.insert(render(&self.pattern.text, time)?.into())),
        };
        self.last = Some((span, Arc::clone(&path)));
        Ok(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(text: &str) -> Option<i64> {
        Pattern::new(text).unwrap().span_ms
    }

    #[test]
    fn a_path_changes_with_the_smallest_unit_in_it() {
        assert_eq!(span("out.ndjson"), None);
        assert_eq!(span("%Y/%m/%d/%H.ndjson"), Some(MINUTE_MS));
        assert_eq!(span("%H%M"), Some(MINUTE_MS));
        assert_eq!(span("%H%M%S"), Some(1000));
        assert_eq!(span("%s"), Some(1000));
        assert_eq!(span("%3f"), Some(1));
        assert!(Pattern::new("%Q-%!").is_err());
    }

    #[test]
    fn a_record_goes_to_the_file_of_its_time_in_utc() {
        let mut paths = Paths::new(Pattern::new("late-%Y-%m-%d.%%.ndjson").unwrap());
        let day = 86_400_000;
        for (time, path) in [
            (0, "late-1970-01-01.%.ndjson"),
            (day, "late-1970-01-02.%.ndjson"),
            (day - 1, "late-1970-01-01.%.ndjson"),
            (-1, "late-1969-12-31.%.ndjson"),
            (1_763_942_399_999, "late-2025-11-23.%.ndjson"),
        ] {
            assert_eq!(&*paths.of(Timestamp(time)).unwrap(), path);
        }
        assert!(paths.of(Timestamp(i64::MAX)).is_err());
    }

    #[test]
    fn a_path_tells_the_time_that_made_it() {
        let day = 86_400_000;
        for text in ["%Y-%m-%d/%H.gz", "%Y%m%dT%H%M%S", "%s.x", "%Y/%j", "%G-W%V-%u", "%d.%m.%y é %%", "%B %-d, %Y"] {
            let pattern = Pattern::new(text).unwrap();
            assert_eq!(pattern.is_found_again(), Ok(()), "{text}");
            let mut paths = Paths::new(pattern.clone());
            let mut of = |days: i64| pattern.time_of(&paths.of(Timestamp(days * day)).unwrap());
            assert!(of(20_000).is_some(), "{text}");
            assert!(text.starts_with("%B") || of(20_000) < of(20_001) && of(20_001) < of(20_100), "{text}");
        }
        let dated = Pattern::new("dead-%Y-%m-%d.ndjson").unwrap();
        for other in ["dead-2025-1-2.ndjson", "dead-2025-13-01.ndjson", "dead-2025-01-02.ndjson.gz", "dead-.ndjson"] {
            assert_eq!(dated.time_of(other), None, "{other}");
        }
        assert!(Pattern::new("%D.x").unwrap().is_found_again().unwrap_err().contains("has slashes"));
        assert!(Pattern::new("%c.x").unwrap().is_found_again().unwrap_err().contains("cannot be told"));
    }

    #[test]
    fn the_folder_that_is_always_there_is_known() {
        let folder = |text: &str| Pattern::new(text).unwrap().fixed_folder().to_owned();
        assert_eq!(folder("/var/out/%Y/x-%m"), "/var/out/");
        assert_eq!(folder("x-%m"), "");
    }
}
