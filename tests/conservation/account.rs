//! What came out, counted against what went in: losses, repeats and violations of order, with their places.

use std::collections::{BTreeMap, HashMap};
use std::fmt::{self, Write as _};

use crate::records::{Fate, KEYS, Kind, id_in, is_mapped};

/// How many cases of each mistake are told one by one.
const TOLD: usize = 20;

/// Everything that is wrong, by kind.
#[derive(Debug, Default)]
pub(crate) struct Found {
    mistakes: BTreeMap<&'static str, (u64, Vec<String>)>,
}

impl Found {
    /// One more.
    pub(crate) fn add(&mut self, kind: &'static str, what: String) {
        let (count, told) = self.mistakes.entry(kind).or_default();
        *count += 1;
        if told.len() < TOLD {
            told.push(what);
        }
    }

    /// Whether nothing is wrong.
    pub(crate) fn is_nothing(&self) -> bool {
        self.mistakes.is_empty()
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (kind, (count, told)) in &self.mistakes {
            writeln!(f, "{kind}: {count}")?;
            for what in told {
                writeln!(f, "    {what}")?;
            }
            if *count > told.len() as u64 {
                writeln!(f, "    …")?;
            }
        }
        Ok(())
    }
}

/// A partition of a topic, or a file, that is read from its begin to its end.
#[derive(Debug)]
pub(crate) struct Stream {
    name: String,
    /// Whether all records of a key that is in it are in it: nothing may be jumped over.
    is_whole: bool,
    /// The last record of each key, or the highest if it may be repeated.
    high: HashMap<u64, u64>,
}

impl Stream {
    /// A stream by its name.
    pub(crate) fn new(name: String, is_whole: bool) -> Self {
        Self { name, is_whole, high: HashMap::new() }
    }

    /// What follows is in another file.
    pub(crate) fn goes_on_in(&mut self, name: String) {
        self.name = name;
    }
}

/// How often each record came out, and where first.
#[derive(Debug)]
pub(crate) struct Account {
    count: u64,
    exactly_once: bool,
    sink_is_topic: bool,
    delivered: Vec<Seen>,
    dead: Vec<Seen>,
    found: Found,
}

#[derive(Debug, Clone, Default)]
struct Seen {
    times: u32,
    first: Option<String>,
}

/// The figures of a pipeline.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Figures {
    /// What went in.
    pub(crate) records: u64,
    pub(crate) delivered: u64,
    pub(crate) filtered: u64,
    pub(crate) dead_lettered: u64,
    /// What came more than once.
    pub(crate) repeats: u64,
}

impl Figures {
    /// With those of another round.
    pub(crate) fn add(&mut self, other: Self) {
        self.records += other.records;
        self.delivered += other.delivered;
        self.filtered += other.filtered;
        self.dead_lettered += other.dead_lettered;
        self.repeats += other.repeats;
    }
}

impl Account {
    /// Of the first `count` records.
    pub(crate) fn new(count: u64, exactly_once: bool, sink_is_topic: bool) -> Self {
        let nothing = vec![Seen::default(); usize::try_from(count).expect("a round is small")];
        let (delivered, dead) = (nothing.clone(), nothing);
        Self { count, exactly_once, sink_is_topic, delivered, dead, found: Found::default() }
    }

    /// A record that came out of the sink.
    pub(crate) fn delivered(&mut self, stream: &mut Stream, at: u64, body: &[u8]) {
        let place = format!("{} at {at}", stream.name);
        let Ok(json) = serde_json::from_slice::<serde_json::Value>(body) else {
            let text: String = String::from_utf8_lossy(body).chars().take(200).collect();
            return self.found.add("torn", format!("{place}: no record is `{text}`"));
        };
        let Some(n) = json["n"].as_u64().filter(|n| *n < self.count) else {
            return self.found.add("unknown", format!("{place}: {json} was never produced"));
        };
        if !is_mapped(n, &json) {
            self.found.add("changed", format!("{place}: {n} is not what the pipeline must make of it: {json}"));
        }
        let fate = self.fate(n);
        if !matches!(fate, Fate::Delivered | Fate::Either) {
            return self.found.add("wrong outcome", format!("{place}: {n} came out, but must be {fate:?}"));
        }
        let is_first = self.see(n, &place, true);
        self.in_order(stream, n, &place, is_first);
    }

    /// A file that cannot be read to its end.
    pub(crate) fn damaged(&mut self, what: String) {
        self.found.add("torn", what);
    }

    /// A letter.
    pub(crate) fn dead_letter(&mut self, stream: &Stream, at: u64, letter: &[u8]) {
        let place = format!("{} at {at}", stream.name);
        let Some(n) = id_in(letter).filter(|n| *n < self.count) else {
            let text: String = String::from_utf8_lossy(letter).chars().take(200).collect();
            return self.found.add("unknown", format!("{place}: a letter of no record: `{text}`"));
        };
        let fate = self.fate(n);
        if !matches!(fate, Fate::DeadLettered | Fate::Either) {
            return self.found.add("wrong outcome", format!("{place}: a letter of {n}, which must be {fate:?}"));
        }
        self.see(n, &place, false);
    }

    /// The figures and all that is wrong, when everything has been seen.
    pub(crate) fn close(mut self) -> (Figures, Found) {
        let mut figures = Figures { records: self.count, ..Figures::default() };
        for n in 0..self.count {
            let at = index(n);
            let (delivered, dead) = (self.delivered[at].times, self.dead[at].times);
            let what = match self.fate(n) {
                Fate::Filtered => {
                    figures.filtered += 1;
                    continue;
                }
                Fate::Delivered => "came out",
                Fate::DeadLettered => "is in the dead letter",
                Fate::Either if self.exactly_once && delivered > 0 && dead > 0 => {
                    self.found.add("wrong outcome", format!("{n} came out and is in the dead letter"));
                    "is"
                }
                Fate::Either => "came out nor is in the dead letter",
            };
            let times = delivered + dead;
            if delivered > 0 {
                figures.delivered += 1;
            } else if dead > 0 {
                figures.dead_lettered += 1;
            }
            figures.repeats += u64::from(times.saturating_sub(1));
            if times == 0 {
                self.found.add("lost", format!("{n} ({:?}, key {}) never {what}", Kind::of(n), n % KEYS));
            }
        }
        (figures, self.found)
    }

    fn fate(&self, n: u64) -> Fate {
        Kind::of(n).fate(self.sink_is_topic)
    }

    /// Counts it, and tells whether it is the first time.
    fn see(&mut self, n: u64, place: &str, delivered: bool) -> bool {
        let seen = &mut if delivered { &mut self.delivered } else { &mut self.dead }[index(n)];
        seen.times += 1;
        match &seen.first {
            None => seen.first = Some(place.to_owned()),
            Some(first) if self.exactly_once => {
                self.found.add("repeated", format!("{n}: first {first}, again {place}"));
            }
            Some(_) => {}
        }
        seen.times == 1
    }

    /// The order within a key. Where records may be repeated, a replay goes back to an earlier record and on from there:
    /// nothing comes for the first time behind a later one, and nothing is jumped over. But what was refused on the first way
    /// may be taken on the second, where the limit of the topic was raised meanwhile.
    fn in_order(&mut self, stream: &mut Stream, n: u64, place: &str, is_first: bool) {
        let high = stream.high.get(&(n % KEYS)).copied();
        let mut wrong = String::new();
        match high {
            Some(high) if n <= high => {
                let must_have_come = is_first && stream.is_whole && self.fate(n) == Fate::Delivered;
                if self.exactly_once || must_have_come {
                    let _ = write!(wrong, "{n} came behind {high}");
                }
            }
            _ => {
                let due = self.due_after(high, n % KEYS);
                // What may be in the dead letter instead may be left out.
                if stream.is_whole && n > due {
                    let _ = write!(wrong, "{n} came where {due} was due");
                }
                stream.high.insert(n % KEYS, n);
            }
        }
        if !wrong.is_empty() {
            self.found.add("out of order", format!("{place}: {wrong} (key {})", n % KEYS));
        }
    }

    /// The next record of a key that must come out.
    fn due_after(&self, high: Option<u64>, key: u64) -> u64 {
        let mut n = high.map_or(key, |high| high + KEYS);
        while self.fate(n) != Fate::Delivered {
            n += KEYS;
        }
        n
    }
}

fn index(n: u64) -> usize {
    usize::try_from(n).expect("a round is small")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::key;

    fn mapped(n: u64) -> Vec<u8> {
        let total = (n % 100) * (1 + n % 3);
        let body = format!(
            r#"{{"id":"id={n};","key":"{}","n":{n},"level":"info","price":{},"total":{total}}}"#,
            key(n),
            n % 100
        );
        body.into_bytes()
    }

    /// What the account says of records of one key in this order; the first `count` of that key were produced.
    fn said_of(exactly_once: bool, order: &[usize]) -> Found {
        let numbers: Vec<u64> =
            (0..).map(|n| n * KEYS).filter(|n| Kind::of(*n) == Kind::Good).take(1 + order.len()).collect();
        let mut account = Account::new(numbers[4] + 1, exactly_once, false);
        let mut stream = Stream::new("a topic".to_owned(), true);
        for (at, place) in order.iter().enumerate() {
            account.delivered(&mut stream, at as u64, &mapped(numbers[*place]));
        }
        let mut found = account.found;
        // Only what is wrong with those that came is asked for here.
        found.mistakes.remove("lost");
        found
    }

    #[test]
    fn records_in_their_order_are_right_under_both_guarantees() {
        assert!(said_of(true, &[0, 1, 2, 3, 4]).is_nothing());
        assert!(said_of(false, &[0, 1, 2, 3, 4]).is_nothing());
    }

    #[test]
    fn a_replay_is_allowed_at_least_once_and_found_exactly_once() {
        assert!(said_of(false, &[0, 1, 2, 1, 2, 3]).is_nothing());
        let found = said_of(true, &[0, 1, 2, 1, 2, 3]).to_string();
        assert!(found.contains("repeated: 2") && found.contains("out of order: 2"), "{found}");
    }

    #[test]
    fn a_gap_and_a_late_record_are_found_under_both_guarantees() {
        for exactly_once in [true, false] {
            let found = said_of(exactly_once, &[0, 2, 1, 3]).to_string();
            assert!(found.contains("was due") && found.contains("came behind"), "{found}");
        }
    }

    #[test]
    fn losses_and_wrong_outcomes_are_found() {
        let mut account = Account::new(100, true, true);
        let topic = Stream::new("a dead letter".to_owned(), false);
        account.dead_letter(&topic, 0, mapped(0).as_slice());
        account.dead_letter(&topic, 1, b"id=5;");
        account.dead_letter(&topic, 2, b"id=5;");
        account.dead_letter(&topic, 3, b"whose?");
        let (figures, found) = account.close();
        let found = found.to_string();
        for what in ["lost: ", "repeated: 1", "wrong outcome: 1", "unknown: 1", "a letter of 0"] {
            assert!(found.contains(what), "{what}: {found}");
        }
        assert_eq!((figures.dead_lettered, figures.repeats), (1, 1));
    }
}
