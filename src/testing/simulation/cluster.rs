//! The brokers of the world: groups with sessions and offsets, transactions with identities and a time-out.
//!
//! As Kafka does, a group checks who commits, and never whether the partition is theirs; and it takes a commit from nobody
//! when it has no members.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::delivery::Mark;

/// After this long without a word a member is out.
pub(super) const SESSION: Duration = Duration::from_secs(10);
/// After this long an open transaction is aborted, and its producer fenced.
pub(super) const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(10);

/// A member of a group. A process that comes back is another member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct MemberId(u64);

/// By whom offsets are committed: a member and its generation, or nobody.
pub(super) type Membership = Option<(MemberId, u32)>;

/// The offsets of one group, by partition.
pub(super) type Offsets = BTreeMap<i32, i64>;

/// What a member hears when it says that it lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct View {
    pub(super) generation: u32,
    /// What it holds and may keep.
    pub(super) keeps: BTreeSet<i32>,
    /// What it holds and must give up.
    pub(super) gives_up: BTreeSet<i32>,
}

#[derive(Debug)]
struct Member {
    /// The static identity: who comes back with it takes the partitions over.
    instance: usize,
    heard: Duration,
    generation: u32,
}

/// A consumer group over the partitions of one source.
#[derive(Debug, Default)]
pub(super) struct Group {
    partitions: i32,
    members: BTreeMap<MemberId, Member>,
    next_member: u64,
    generation: u32,
    owners: BTreeMap<i32, MemberId>,
    committed: Offsets,
    /// What went with the offset of a partition last.
    marks: BTreeMap<i32, Mark>,
}

impl Group {
    pub(super) fn new(partitions: i32) -> Self {
        Self { partitions, ..Self::default() }
    }

    /// A process joins. One that was a member under the same identity is followed by its new self.
    pub(super) fn join(&mut self, instance: usize, now: Duration) -> MemberId {
        self.expire(now);
        let id = MemberId(self.next_member);
        self.next_member += 1;
        let before = self.members.iter().find(|(_, member)| member.instance == instance).map(|(&id, _)| id);
        if let Some(before) = before {
            self.members.remove(&before);
            for owner in self.owners.values_mut().filter(|owner| **owner == before) {
                *owner = id;
            }
        }
        self.generation += 1;
        self.members.insert(id, Member { instance, heard: now, generation: self.generation });
        self.assign();
        id
    }

    /// A member says that it lives; `None` if it is none any more.
    pub(super) fn heartbeat(&mut self, id: MemberId, now: Duration) -> Option<View> {
        self.expire(now);
        let generation = self.generation;
        let member = self.members.get_mut(&id)?;
        member.heard = now;
        member.generation = generation;
        let (keeps, gives_up) = self
            .owners
            .iter()
            .filter(|(_, owner)| **owner == id)
            .map(|(&partition, _)| partition)
            .partition(|&partition| self.target(partition) == Some(id));
        Some(View { generation, keeps, gives_up })
    }

    /// A member has given partitions up, and takes part in the next generation.
    pub(super) fn release(&mut self, id: MemberId, partitions: &BTreeSet<i32>) {
        self.owners.retain(|partition, owner| *owner != id || !partitions.contains(partition));
        self.assign();
        let generation = self.generation;
        if let Some(member) = self.members.get_mut(&id) {
            member.generation = generation;
        }
    }

    /// Checks who commits. Whether the partitions are theirs is not asked.
    pub(super) fn admits(&mut self, membership: Membership, now: Duration) -> Result<(), String> {
        self.expire(now);
        match membership {
            None if self.members.is_empty() => Ok(()),
            None => Err("the group has members, and this is none of them".to_owned()),
            Some((id, generation)) => match self.members.get(&id) {
                None => Err("unknown member".to_owned()),
                Some(member) if member.generation != generation => Err("illegal generation".to_owned()),
                Some(_) => Ok(()),
            },
        }
    }

    /// What Kafka does not ask: whether who commits holds the partitions, and whether they go forward. The first of
    /// them for which it is not so.
    pub(super) fn misplaced(&self, membership: Membership, offsets: &Offsets) -> Option<String> {
        let (&partition, offset) = offsets.iter().find(|(partition, offset)| {
            let is_owner = self.owners.get(partition).copied() == membership.map(|(id, _)| id) && membership.is_some();
            !is_owner || self.committed.get(partition).is_some_and(|committed| committed > offset)
        })?;
        let committed = self.committed.get(&partition);
        Some(format!(
            "offset {offset} of partition {partition}, which stands at {committed:?}, was committed by who must not"
        ))
    }

    pub(super) fn commit(&mut self, offsets: &Offsets) {
        self.committed.extend(offsets);
    }

    /// Notes a mark beside the offsets of partitions.
    pub(super) fn mark(&mut self, partitions: impl IntoIterator<Item = i32>, mark: &Mark) {
        self.marks.extend(partitions.into_iter().map(|partition| (partition, mark.clone())));
    }

    /// Whether a partition has this mark.
    pub(super) fn has_mark(&self, partition: i32, mark: &Mark) -> bool {
        self.marks.get(&partition) == Some(mark)
    }

    pub(super) fn committed(&self) -> &Offsets {
        &self.committed
    }

    /// Puts out who has not been heard of for too long.
    fn expire(&mut self, now: Duration) {
        let before = self.members.len();
        self.members.retain(|_, member| now < member.heard + SESSION);
        if self.members.len() < before {
            self.assign();
        }
    }

    /// Gives partitions that nobody holds to whom they belong.
    fn assign(&mut self) {
        for partition in 0..self.partitions {
            let is_held = self.owners.get(&partition).is_some_and(|owner| self.members.contains_key(owner));
            let target = self.target(partition);
            if !is_held && self.owners.get(&partition).copied() != target {
                self.generation += 1;
                match target {
                    Some(target) => self.owners.insert(partition, target),
                    None => self.owners.remove(&partition),
                };
            }
        }
    }

    /// To whom a partition belongs: to each in turn, by identity.
    fn target(&self, partition: i32) -> Option<MemberId> {
        let mut members: Vec<_> = self.members.iter().map(|(&id, member)| (member.instance, id)).collect();
        members.sort_unstable();
        let turn = usize::try_from(partition).unwrap_or(0).checked_rem(members.len())?;
        members.get(turn).map(|&(_, id)| id)
    }
}

/// An open transaction: what was written, and the offsets that go with it, by group.
#[derive(Debug)]
pub(super) struct Open<T> {
    pub(super) since: Duration,
    pub(super) written: Vec<T>,
    pub(super) offsets: BTreeMap<usize, Offsets>,
    /// It may stay open for too long: it is being committed, or its process is gone.
    pub(super) may_expire: bool,
}

/// A producer of an identity that is not the newest one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fenced;

/// The transactions of one identity.
#[derive(Debug)]
pub(super) struct Identity<T> {
    epoch: u32,
    open: Option<Open<T>>,
}

impl<T> Default for Identity<T> {
    fn default() -> Self {
        Self { epoch: 0, open: None }
    }
}

impl<T> Identity<T> {
    /// A producer takes the identity: what an earlier one left open is aborted, and it can write no more.
    pub(super) fn init(&mut self) -> u32 {
        self.open = None;
        self.epoch += 1;
        self.epoch
    }

    /// The newest producer's number.
    pub(super) fn epoch(&self) -> u32 {
        self.epoch
    }

    /// The open transaction of a producer, opened if there is none.
    pub(super) fn open(&mut self, epoch: u32, now: Duration) -> Result<&mut Open<T>, Fenced> {
        if epoch != self.epoch {
            return Err(Fenced);
        }
        Ok(self.open.get_or_insert_with(|| Open {
            since: now,
            written: Vec::new(),
            offsets: BTreeMap::new(),
            may_expire: false,
        }))
    }

    /// Ends the open transaction, and returns it if there was one.
    pub(super) fn end(&mut self, epoch: u32) -> Result<Option<Open<T>>, Fenced> {
        if epoch == self.epoch { Ok(self.open.take()) } else { Err(Fenced) }
    }

    /// Nobody will end what is open.
    pub(super) fn abandon(&mut self) {
        if let Some(open) = &mut self.open {
            open.may_expire = true;
        }
    }

    /// Whether offsets of a group are under way.
    pub(super) fn is_moving(&self, group: usize) -> bool {
        self.open.as_ref().is_some_and(|open| open.offsets.contains_key(&group))
    }

    /// Aborts what has been open for too long, and returns it.
    pub(super) fn expire(&mut self, now: Duration) -> Option<Open<T>> {
        if self.open.as_ref().is_none_or(|open| now < open.since + TRANSACTION_TIMEOUT) {
            return None;
        }
        self.epoch += 1;
        self.open.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn numbers(partitions: &BTreeSet<i32>) -> Vec<i32> {
        partitions.iter().copied().collect()
    }

    #[test]
    fn a_partition_moves_only_when_it_was_given_up() {
        let mut group = Group::new(4);
        let a = group.join(0, Duration::ZERO);
        assert_eq!(numbers(&group.heartbeat(a, SECOND).unwrap().keeps), [0, 1, 2, 3]);
        let b = group.join(1, SECOND);
        let view = group.heartbeat(a, SECOND).unwrap();
        assert_eq!((numbers(&view.keeps), numbers(&view.gives_up)), (vec![0, 2], vec![1, 3]));
        assert_eq!(numbers(&group.heartbeat(b, SECOND).unwrap().keeps), Vec::<i32>::new());
        group.release(a, &view.gives_up);
        assert_eq!(numbers(&group.heartbeat(b, SECOND).unwrap().keeps), [1, 3]);
    }

    #[test]
    fn who_is_not_heard_of_is_out_and_may_not_commit() {
        let mut group = Group::new(2);
        let a = group.join(0, Duration::ZERO);
        let generation = group.heartbeat(a, Duration::ZERO).unwrap().generation;
        assert_eq!(group.admits(Some((a, generation)), SECOND), Ok(()));
        let b = group.join(1, 11 * SECOND);
        assert_eq!(numbers(&group.heartbeat(b, 11 * SECOND).unwrap().keeps), [0, 1]);
        assert!(group.admits(Some((a, generation)), 11 * SECOND).is_err());
        assert_eq!(group.heartbeat(a, 11 * SECOND), None);
        assert!(group.admits(None, 11 * SECOND).is_err());
        assert_eq!(group.admits(None, 30 * SECOND), Ok(()), "an emptied group takes a commit from nobody");
    }

    #[test]
    fn who_comes_back_in_time_keeps_its_partitions() {
        let mut group = Group::new(2);
        group.join(0, Duration::ZERO);
        group.join(1, Duration::ZERO);
        let again = group.join(0, 5 * SECOND);
        let view = group.heartbeat(again, 5 * SECOND).unwrap();
        assert_eq!((numbers(&view.keeps), numbers(&view.gives_up)), (vec![0], vec![1]));
    }

    #[test]
    fn a_transaction_that_is_open_too_long_is_aborted_and_its_producer_fenced() {
        let mut identity = Identity::default();
        let epoch = identity.init();
        identity.open(epoch, Duration::ZERO).unwrap().written.push(());
        assert!(identity.expire(9 * SECOND).is_none());
        assert!(identity.expire(10 * SECOND).is_some());
        assert!(identity.open(epoch, 10 * SECOND).is_err());
        assert!(identity.end(epoch).is_err());
    }
}
