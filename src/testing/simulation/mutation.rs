//! Breaches of the protocol, each of which the oracles must notice: they prove that the simulation has teeth.

/// One breach, which only simulated components commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutation {
    /// A sink says that it is flushed before it is, so that positions are committed before outputs.
    AnswersTooEarly,
    /// A sink keeps its last batch back at the barrier and writes it with the next one: the barrier overtakes a batch.
    OvertakenByBarrier,
    /// A transactional sink writes its last batch a moment after its barrier, between it and the commit.
    WritesInSilence,
    /// What an aborted run wrote stays in the transaction of the next one.
    KeepsAborted,
    /// A new run, or a new life, takes its identity without ending what the one before left open.
    ForgetsToFence,
    /// A commit that happened and whose answer was lost is taken for one that did not happen.
    TakesDoubtForAbort,
    /// A commit that did not happen is taken for one that did.
    TakesDoubtForCommit,
    /// Positions of partitions that were lost are committed with whatever membership there is now.
    CommitsLostPositions,
    /// Positions are committed without being a member of the group.
    CommitsAsNobody,
    /// A partition is read from an offset that a transaction in flight is about to move.
    ReadsUnstableOffsets,
    /// A source goes on where it stands after a rewind.
    ForgetsToRewind,
    /// A sink writes batches that are in flight together in any order.
    Reorders,
    /// A sink holds on to batches that it has answered for, so that sources wait for memory that does not come back.
    HoldsMemory,
    /// A sink answers at once for what it is far from having done, so that nobody knows how slow it is.
    HidesItsPace,
    /// A transaction does not tell after which time the other side aborts it.
    HidesItsTimeout,
    /// Partitions are given up before the epoch is closed that holds what was read of them.
    LeavesUnclosed,
    /// A buffer shows its reader what is written and synced, whether or not its epoch will be committed.
    ShowsUncommitted,
    /// What an aborted run wrote into a buffer is not cut off: it counts as if its epoch had been committed.
    ForgetsToCutBack,
    /// A buffer lets go of what its reader was given, before the epoch of the reader is committed.
    ReleasesTooEarly,
    /// A buffer says that it is synced before it is, so that a crash takes what the store says is there.
    SyncsTooLate,
}

impl Mutation {
    /// All of them.
    pub const ALL: [Self; 20] = [
        Self::AnswersTooEarly,
        Self::OvertakenByBarrier,
        Self::WritesInSilence,
        Self::KeepsAborted,
        Self::ForgetsToFence,
        Self::TakesDoubtForAbort,
        Self::TakesDoubtForCommit,
        Self::CommitsLostPositions,
        Self::CommitsAsNobody,
        Self::ReadsUnstableOffsets,
        Self::ForgetsToRewind,
        Self::Reorders,
        Self::HoldsMemory,
        Self::HidesItsPace,
        Self::HidesItsTimeout,
        Self::LeavesUnclosed,
        Self::ShowsUncommitted,
        Self::ForgetsToCutBack,
        Self::ReleasesTooEarly,
        Self::SyncsTooLate,
    ];

    /// Whether it is a breach of transactions, and means nothing elsewhere.
    #[must_use]
    pub fn is_of_transactions(self) -> bool {
        !matches!(self, Self::AnswersTooEarly | Self::OvertakenByBarrier | Self::ForgetsToRewind | Self::Reorders)
    }
}
