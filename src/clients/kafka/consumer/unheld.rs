//! Partitions that nobody holds, though the group is at rest.
//!
//! A cooperative rebalance first takes partitions from one member, and gives them to another when the first has come back
//! for it. A member with an identity of its own that ends in between, and is there again within its session, is answered
//! as before: no rebalance follows, and nobody ever reads those partitions. So after each rebalance the members look
//! whether every partition has a holder, and rejoin if one has none.

use std::collections::BTreeSet;
use std::time::Duration;

use rdkafka::consumer::Consumer;
use rdkafka::metadata::MetadataTopic;

use super::{Client, GroupConsumer};
use crate::clients::kafka::config::Protocol;
use crate::clock::Instant;

/// How long after a rebalance the members look, and how long between two looks.
const LOOK: Duration = Duration::from_secs(5);
/// How long the broker may take to answer: no revoke is heeded meanwhile.
const REQUEST: Duration = Duration::from_secs(2);
/// After how many looks that find the same a member rejoins that holds nothing and so has nothing to lose,
const PATIENCE: u32 = 2;
/// and after how many one that has to interrupt its work for it.
const PATIENCE_AT_WORK: u32 = 4;

/// A topic and the number of a partition.
type Name = (String, i32);

/// What is known of the group as a whole.
#[derive(Debug, Default)]
pub(super) struct Unheld {
    /// When to look next; `None` if every partition has a holder since the last rebalance.
    due: Option<Instant>,
    /// What had no holder at the last look,
    names: BTreeSet<Name>,
    /// and for how many looks.
    looks: u32,
}

impl Unheld {
    /// A rebalance has changed what this member holds, or could have.
    pub(super) fn look_after(&mut self, rebalance: Instant) {
        *self = Self { due: Some(rebalance + LOOK), ..Self::default() };
    }

    /// Takes a look into account. Returns for how many looks the same partitions have been without a holder.
    fn looked(&mut self, now: Instant, unheld: Option<BTreeSet<Name>>) -> u32 {
        let is_settled = unheld.as_ref().is_some_and(BTreeSet::is_empty);
        self.due = (!is_settled).then(|| now + LOOK);
        match unheld {
            Some(names) if !names.is_empty() && names == self.names => self.looks += 1,
            Some(names) => (self.looks, self.names) = (u32::from(!names.is_empty()), names),
            // It is not at rest, or does not answer.
            None => (self.looks, self.names) = (0, BTreeSet::new()),
        }
        self.looks
    }
}

impl GroupConsumer {
    /// Rejoins the group if partitions have had no holder for a while. On the polling thread.
    pub(super) fn claim_what_nobody_holds(&self, client: &Client) {
        let settings = &self.settings;
        // With the other protocols the broker assigns, or all partitions in one step.
        if settings.protocol != Protocol::Classic || settings.connection.is_embedded() {
            return;
        }
        let now = settings.runtime.clock().now();
        if self.state().unheld.due.is_none_or(|due| now < due) {
            return;
        }
        let unheld = self.ask_what_nobody_holds(client);
        let (looks, patience) = {
            let mut state = self.state();
            let looks = state.unheld.looked(settings.runtime.clock().now(), unheld);
            let is_idle = state.assignment.held().next().is_none();
            (looks, if is_idle { PATIENCE } else { PATIENCE_AT_WORK })
        };
        if looks < patience {
            return;
        }
        let names: Vec<_> = {
            let mut state = self.state();
            let names = std::mem::take(&mut state.unheld.names);
            state.unheld.look_after(settings.runtime.clock().now());
            names.into_iter().map(|(topic, number)| format!("{topic}/{number}")).collect()
        };
        tracing::warn!(
            component = %settings.source,
            partitions = %names.join(" "),
            "no member of the group holds these partitions: rejoining, so that they are shared out anew"
        );
        client.unsubscribe();
        // It waits in the client until what is held is given up.
        if let Err(error) = self.subscribe_again(client) {
            tracing::warn!(component = %settings.source, "cannot rejoin: {error}");
        }
    }

    /// The partitions without a holder; `None` if the group is not at rest, or if that cannot be known now.
    fn ask_what_nobody_holds(&self, client: &Client) -> Option<BTreeSet<Name>> {
        let groups = client.client().fetch_group_list(Some(&self.settings.group), REQUEST).ok()?;
        let group = groups.groups().iter().find(|group| group.name() == self.settings.group)?;
        if group.state() != "Stable" {
            return None;
        }
        let mut unheld = BTreeSet::new();
        for topic in self.subscribed() {
            let metadata = client.fetch_metadata(Some(&topic), REQUEST).ok()?;
            let partitions = metadata.topics().iter().filter(|one| one.name() == topic && one.error().is_none());
            unheld.extend(
                partitions.flat_map(MetadataTopic::partitions).map(|partition| (topic.clone(), partition.id())),
            );
        }
        for member in group.members() {
            for name in assignment(member.assignment().unwrap_or_default())? {
                unheld.remove(&name);
            }
        }
        Some(unheld)
    }
}

/// What a member was assigned, in the form that all clients share: a version, then topics with the numbers of their
/// partitions. `None` if it has another form.
fn assignment(bytes: &[u8]) -> Option<Vec<Name>> {
    let mut names = Vec::new();
    if bytes.is_empty() {
        return Some(names);
    }
    let mut rest = bytes;
    let _version = take(&mut rest, 2)?;
    for _ in 0..count(&mut rest)? {
        let length = i16::from_be_bytes(take(&mut rest, 2)?.try_into().ok()?);
        let topic = take(&mut rest, usize::try_from(length).ok()?)?;
        let topic = std::str::from_utf8(topic).ok()?;
        for _ in 0..count(&mut rest)? {
            let number = i32::from_be_bytes(take(&mut rest, 4)?.try_into().ok()?);
            names.push((topic.to_owned(), number));
        }
    }
    Some(names)
}

fn count(rest: &mut &[u8]) -> Option<usize> {
    usize::try_from(i32::from_be_bytes(take(rest, 4)?.try_into().ok()?)).ok()
}

fn take<'a>(rest: &mut &'a [u8], bytes: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(bytes)?;
    *rest = left;
    Some(taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    fn name(number: i32) -> Name {
        ("orders".to_owned(), number)
    }

    /// As a client writes it.
    fn written(numbers: &[i32]) -> Vec<u8> {
        let mut bytes = [&1i16.to_be_bytes()[..], &1i32.to_be_bytes(), &6i16.to_be_bytes(), b"orders"].concat();
        bytes.extend(i32::try_from(numbers.len()).unwrap().to_be_bytes());
        bytes.extend(numbers.iter().flat_map(|number| number.to_be_bytes()));
        // User data, which nobody needs.
        bytes.extend((-1i32).to_be_bytes());
        bytes
    }

    #[test]
    fn an_assignment_is_read_and_no_bytes_break_it() {
        assert_eq!(assignment(&[]), Some(Vec::new()));
        assert_eq!(assignment(&written(&[0, 3])), Some(vec![name(0), name(3)]));
        let whole = written(&[0, 3]);
        // The last four bytes are user data.
        for end in 1..whole.len() - 4 {
            assert_eq!(assignment(&whole[..end]), None, "cut at {end}");
        }
        assert_eq!(assignment(&[0xff; 64]), None);
    }

    #[test]
    fn only_the_same_partitions_look_after_look_count() {
        let now = Clock::system().now();
        let mut unheld = Unheld::default();
        unheld.look_after(now);
        let some = |numbers: &[i32]| Some(numbers.iter().map(|number| name(*number)).collect());
        assert_eq!(unheld.looked(now, some(&[0, 1])), 1);
        assert_eq!(unheld.looked(now, some(&[0, 1])), 2);
        assert_eq!(unheld.looked(now, some(&[1])), 1, "others than before");
        assert_eq!(unheld.looked(now, None), 0, "a group that moves");
        assert_eq!(unheld.looked(now, some(&[1])), 1);
        assert!(unheld.due.is_some());
        assert_eq!(unheld.looked(now, some(&[])), 0);
        assert!(unheld.due.is_none(), "nobody asks again until the next rebalance");
    }
}
