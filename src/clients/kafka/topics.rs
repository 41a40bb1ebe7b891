//! The topics that a source reads: by their names, and by patterns.
//!
//! Patterns are matched here and not by librdkafka or the broker, whose regular expressions differ from each other, so that
//! a pattern means the same in `check` and at run time, with every protocol.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use regex::Regex;

use super::config::is_topic_name;
use crate::component::{CheckContext, Pattern, Problem, Spanned};

/// What a name begins with that is a pattern.
const PATTERN: char = '^';
/// What the names of Kafka's own topics begin with. Only a pattern that begins so matches them.
const INTERNAL: &str = "__";

/// Which topics a source reads.
#[derive(Debug, Clone)]
pub(crate) struct Topics {
    names: Vec<String>,
    patterns: Vec<Regex>,
}

impl Topics {
    /// Reads the list of a pipeline file; reports each mistake at its place.
    pub(crate) fn check(list: &Spanned<Vec<Spanned<String>>>, system: &str, cx: &mut CheckContext) -> Option<Self> {
        let before = cx.problems.len();
        if list.value.is_empty() {
            cx.report(Problem::error(list.span, "`topics` names no topic").help("list at least one"));
        }
        let mut topics = Self { names: Vec::new(), patterns: Vec::new() };
        for (at, topic) in list.value.iter().enumerate() {
            if list.value[..at].iter().any(|earlier| earlier.value == topic.value) {
                cx.report(Problem::error(topic.span, format!("topic `{}` is listed twice", topic.value)));
            } else if topic.value.starts_with(PATTERN) {
                topics.add_pattern(topic, system, cx);
            } else if is_topic_name(&topic.value) {
                let name = topic.value.clone();
                let matches = Arc::new(move |written: &str| written == name);
                cx.reads.push(Pattern { system: system.to_owned(), text: topic.clone(), may_be_meant: true, matches });
                topics.names.push(topic.value.clone());
            } else {
                cx.report(
                    Problem::error(topic.span, format!("Kafka knows no topic of such a name: `{}`", topic.value))
                        .help("a name has letters, digits, `.`, `_` and `-`, and at most 249 of them; a pattern begins with `^`"),
                );
            }
        }
        (cx.problems.len() == before).then_some(topics)
    }

    fn add_pattern(&mut self, text: &Spanned<String>, system: &str, cx: &mut CheckContext) {
        match Regex::new(&text.value) {
            Ok(pattern) => {
                let matched = pattern.clone();
                let matches = Arc::new(move |name: &str| is_match(&matched, name));
                cx.reads.push(Pattern { system: system.to_owned(), text: text.clone(), may_be_meant: false, matches });
                self.patterns.push(pattern);
            }
            Err(error) => {
                let why = error.to_string();
                let why = why.lines().last().unwrap_or_default().trim_start_matches("error: ");
                cx.report(
                    Problem::error(text.span, format!("`{}` is no pattern: {why}", text.value))
                        .help("a topic that begins with `^` is a regular expression, such as `^orders-`"),
                );
            }
        }
    }

    /// Those that are named.
    pub(crate) fn names(&self) -> &[String] {
        &self.names
    }

    /// Whether there are patterns, so that topics come and go.
    pub(crate) fn has_patterns(&self) -> bool {
        !self.patterns.is_empty()
    }

    /// The pattern that a name matches.
    pub(crate) fn pattern_of(&self, name: &str) -> Option<&str> {
        self.patterns.iter().find(|pattern| is_match(pattern, name)).map(Regex::as_str)
    }

    /// Those of the topics that there are which match a pattern and are not named.
    pub(crate) fn matching<'a>(&self, all: impl Iterator<Item = &'a str>) -> BTreeSet<String> {
        let wanted = |name: &&str| self.pattern_of(name).is_some() && !self.names.iter().any(|named| named == name);
        all.filter(wanted).map(str::to_owned).collect()
    }
}

fn is_match(pattern: &Regex, name: &str) -> bool {
    let is_internal = name.starts_with(INTERNAL);
    pattern.is_match(name) && (!is_internal || pattern.as_str()[PATTERN.len_utf8()..].starts_with(INTERNAL))
}

impl fmt::Display for Topics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.names.iter().map(String::as_str).chain(self.patterns.iter().map(Regex::as_str));
        for (at, topic) in all.enumerate() {
            write!(f, "{}`{topic}`", if at == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clients::kafka::fixture::{check, here};

    fn topics(list: &[&str]) -> (Option<Topics>, Vec<String>) {
        let mut cx = check();
        let list = here(list.iter().map(|topic| here((*topic).to_owned())).collect());
        let topics = Topics::check(&list, "a:1", &mut cx);
        (topics, cx.problems.into_iter().map(|problem| problem.message).collect())
    }

    #[test]
    fn a_pattern_matches_from_the_beginning_of_a_name() {
        let topics = topics(&["orders-eu", "^orders-"]).0.unwrap();
        let all = ["orders-us", "orders-eu", "old-orders-us", "__orders-x", "totals"];
        assert_eq!(topics.names(), ["orders-eu"]);
        assert_eq!(topics.matching(all.into_iter()), BTreeSet::from(["orders-us".to_owned()]));
        assert_eq!(topics.pattern_of("orders-us"), Some("^orders-"));
        assert_eq!(topics.to_string(), "`orders-eu`, `^orders-`");
    }

    #[test]
    fn kafkas_own_topics_are_matched_only_by_their_own_beginning() {
        let all = ["__consumer_offsets", "a"];
        let matched = |pattern: &str| topics(&[pattern]).0.unwrap().matching(all.into_iter());
        assert_eq!(matched("^.*"), BTreeSet::from(["a".to_owned()]));
        assert_eq!(matched("^__consumer"), BTreeSet::from(["__consumer_offsets".to_owned()]));
    }

    #[test]
    fn each_mistake_is_told() {
        let (none, problems) = topics(&["^orders-(", "a b", "x", "x"]);
        assert!(none.is_none());
        assert_eq!(
            problems,
            [
                "`^orders-(` is no pattern: unclosed group",
                "Kafka knows no topic of such a name: `a b`",
                "topic `x` is listed twice",
            ]
        );
        assert_eq!(topics(&[]).1, ["`topics` names no topic"]);
    }
}
