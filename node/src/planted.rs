//! Bugs that tests plant, to see that the simulation finds them: each takes away something that the code
//! around it is there for. Outside tests none is ever planted, and the compiler drops them.

/// A bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bug {
    /// The raft log says that it is durable before it is.
    AckBeforeFsync,
    /// A vote is not written down.
    VoteNotPersisted,
    /// A leader answers linearizable reads without asking whether it still leads.
    StaleRead,
    /// Apply takes the time from the clock.
    ApplyReadsClock,
    /// A snapshot ends before its last block.
    SnapshotWithoutLastBlock,
    /// The answers kept for repetitions are gone after a restart.
    OutcomesLostAtRestart,
    /// A write is sent to the leader without a name.
    ForwardedWithoutName,
    /// The raft log is released up to what was applied, durable or not.
    ReleasedBeforeDurable,
    /// An election is begun without asking the peers first.
    NoPreVote,
    /// A permit to vote for another is taken from whoever gives it.
    PermitOfAnybody,
    /// A leader whose clock is not that of its peers goes on.
    LeadsWithWrongClock,
    /// Two machines may run as one node.
    TwinsAreServed,
    /// A member may come back with an older disk.
    OldDisksAreServed,
    /// A Raft core that ended stays so.
    CoreStaysEnded,
    /// A node cosigns whatever head it is shown.
    CosignWithoutCheck,
    /// A member that was removed goes on as a voter.
    RemovedNodeVotes,
    /// What the raft log has no room for counts as written.
    FullDiskUnnoticed,
    /// Frames on disk are taken for what was written, whatever their checksum says.
    DamageUnnoticed,
    /// Who follows the log is not told of an entry when several are new.
    WatchLeavesOut,
}

#[cfg(test)]
thread_local! {
    /// A bit for each.
    static PLANTED: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// Plants a bug on this thread in place of others, or takes all away.
#[cfg(test)]
pub(crate) fn plant(bug: Option<Bug>) {
    PLANTED.set(bug.map_or(0, |bug| 1 << bug as u64));
}

/// Whether a bug is planted.
#[cfg(test)]
pub(crate) fn planted(bug: Bug) -> bool {
    PLANTED.get() & 1 << bug as u64 != 0
}

/// Whether a bug is planted: never.
#[cfg(not(test))]
pub(crate) const fn planted(_bug: Bug) -> bool {
    false
}
