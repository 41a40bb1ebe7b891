//! The name that was probably meant.

/// The candidate nearest to `name`, if one is near enough to be meant.
#[must_use]
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Distances cost the product of both lengths, and no name is that long.
    const LONGEST: usize = 100;
    if name.is_empty() || name.len() > LONGEST {
        return None;
    }
    let wanted = folded(name);
    candidates
        .into_iter()
        .filter(|candidate| candidate.len() <= LONGEST)
        .map(|candidate| (distance(&wanted, &folded(candidate)), candidate))
        .filter(|(distance, candidate)| *distance <= wanted.len().max(candidate.len()).max(3) / 3)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Case and the kind of dash are what people mix up most.
fn folded(name: &str) -> String {
    name.to_lowercase().replace('-', "_")
}

fn distance(wanted: &str, candidate: &str) -> usize {
    // A name that was cut short is nearer than its length tells.
    if wanted.len() >= 3 && candidate.starts_with(wanted) {
        return 1;
    }
    strsim::damerau_levenshtein(wanted, candidate)
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn a_slip_of_the_finger_is_understood() {
        assert_eq!(nearest("brokerz", ["topics", "brokers"]), Some("brokers"));
        assert_eq!(nearest("Brokers", ["topics", "brokers"]), Some("brokers"));
        assert_eq!(nearest("start-at", ["start_at"]), Some("start_at"));
        assert_eq!(nearest("comp", ["compression"]), Some("compression"));
        assert_eq!(nearest("form", ["from", "for"]), Some("from"));
    }

    #[test]
    fn what_is_far_is_not_guessed() {
        assert_eq!(nearest("colour", ["brokers", "topic"]), None);
        assert_eq!(nearest("x", ["from"]), None);
        assert_eq!(nearest("", ["a"]), None);
    }
}
