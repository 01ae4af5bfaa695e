//! Bugs that tests plant, one at a time, to see that the simulation finds them: each takes away something that the code
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
}

#[cfg(test)]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Plants a bug on this thread, or takes it away.
#[cfg(test)]
pub(crate) fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

/// Whether a bug is planted.
#[cfg(test)]
pub(crate) fn planted(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// Whether a bug is planted: never.
#[cfg(not(test))]
pub(crate) const fn planted(_bug: Bug) -> bool {
    false
}
