//! What speaks against a member of the cluster: two machines that run as one, and a disk that is older than what the member
//! has said. Such a member gets nothing, and its votes do not count: it would forget what others rely on. It must be removed
//! and join again as a new one.
//!
//! - **Twice.** Every start of a node draws a number that goes with all that it asks. Two numbers that both speak over some
//!   time are two machines. What waited at a node that stood still comes late, in any order, and all at once: that is none.
//! - **Behind.** Up to the entries that a member acknowledged when they were committed, its raft log can lose nothing.
//!   Whoever led when it did remembers how far that is, for as long as it runs.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::log::EntryId;
use super::message::Refused;
use crate::planted::{Bug, planted};
use crate::rt;

/// Messages of a start that has ended may be on their way for so long.
const LATE_MAX: Duration = Duration::from_secs(5);
/// After so long an ended start that is heard again is as if heard for the first time.
const FORGOTTEN: Duration = Duration::from_secs(60);
/// Starts of a member that are remembered.
const STARTS_MAX: usize = 16;

/// What is known of all members, this node among them. Clones name the same.
#[derive(Clone, Default)]
pub(crate) struct Standing(Arc<Mutex<Known>>);

#[derive(Default)]
struct Known {
    members: BTreeMap<u64, Member>,
    /// What peers have against this node, the first thing that one said.
    own: Option<String>,
}

#[derive(Default)]
struct Member {
    /// The start that speaks, and when it was heard last.
    start: Option<(u64, tokio::time::Instant)>,
    ended: VecDeque<u64>,
    /// An ended start that was heard again, and when first.
    returned: Option<(u64, tokio::time::Instant)>,
    /// Raft index up to which it has all that was committed.
    has: u64,
    /// The same at a moment, and long enough ago that nothing it said before is on its way any more.
    noted: Option<(u64, tokio::time::Instant)>,
    settled: u64,
    fault: Option<String>,
    /// When it last answered this node.
    answered: Option<tokio::time::Instant>,
}

impl Member {
    fn end(&mut self, start: u64) {
        self.ended.push_back(start);
        if self.ended.len() > STARTS_MAX {
            self.ended.pop_front();
        }
    }

    fn settle(&mut self) {
        match self.noted {
            Some((_, at)) if at.elapsed() < LATE_MAX => {}
            noted => {
                self.settled = noted.map_or(self.settled, |(has, _)| has);
                self.noted = Some((self.has, rt::instant()));
            }
        }
    }
}

impl Standing {
    fn with<T>(&self, act: impl FnOnce(&mut Known) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn of<T>(&self, member: u64, act: impl FnOnce(&mut Member) -> T) -> T {
        self.with(|known| act(known.members.entry(member).or_default()))
    }

    /// Hears a member that was started as `start`.
    ///
    /// # Errors
    /// What speaks against it.
    pub(super) fn hear(&self, member: u64, start: u64) -> Result<(), Refused> {
        self.of(member, |known| {
            if let Some(fault) = &known.fault {
                return Err(Refused::Member(fault.clone()));
            }
            match known.start {
                Some((current, _)) if current == start => {}
                Some((current, heard)) if known.ended.contains(&start) => {
                    if planted(Bug::TwinsAreServed) {
                        return Ok(());
                    }
                    let first = known.returned.filter(|(which, at)| *which == start && at.elapsed() < FORGOTTEN);
                    let (_, at) = *known.returned.insert(first.unwrap_or((start, rt::instant())));
                    if at.elapsed() < LATE_MAX {
                        let late = format!("a message of node {member} from before its last start");
                        return Err(Refused::Unavailable(late));
                    }
                    if heard > at {
                        let fault = format!(
                            "two machines run as node {member}: one of them is a copy. Stop both, remove the node, and let one \
                             join again as a new node"
                        );
                        tracing::error!("{fault}");
                        known.fault = Some(fault.clone());
                        return Err(Refused::Member(fault));
                    }
                    // The one that was taken for the newer has been silent since: its message had come late.
                    known.ended.retain(|ended| *ended != start);
                    known.end(current);
                }
                Some((current, _)) => known.end(current),
                None => {}
            }
            known.start = Some((start, rt::instant()));
            Ok(())
        })
    }

    /// Notes that a member answered.
    pub(super) fn answered(&self, member: u64) {
        self.of(member, |known| known.answered = Some(rt::instant()));
    }

    /// Whether a member answered within a time.
    pub(super) fn answers(&self, member: u64, within: Duration) -> bool {
        self.of(member, |known| known.answered.is_some_and(|at| at.elapsed() < within))
    }

    /// Remembers that a member has the raft log up to `acknowledged`, of which `committed` was committed before it was asked.
    pub(super) fn has(&self, member: u64, acknowledged: u64, committed: u64) {
        self.of(member, |known| {
            known.has = known.has.max(acknowledged.min(committed));
            known.settle();
        });
    }

    /// What a member is known to have, for [`Standing::shows`] when it has answered what is asked now.
    pub(super) fn known(&self, member: u64) -> u64 {
        self.of(member, |known| known.has)
    }

    /// Looks at the end of its raft log that a member told in a message of its own, which may come late.
    ///
    /// # Errors
    /// What speaks against the member.
    pub(super) fn look(&self, member: u64, last: Option<EntryId>) -> Result<(), String> {
        let settled = self.of(member, |known| {
            known.settle();
            known.settled
        });
        self.shows(member, settled, last.map_or(0, |id| id.index))
    }

    /// Looks at a member that had the raft log up to `known` and answers that it has nothing beyond `index`.
    ///
    /// # Errors
    /// What speaks against the member.
    pub(super) fn shows(&self, member: u64, known: u64, index: u64) -> Result<(), String> {
        self.of(member, |m| {
            if m.fault.is_none() && index < known && !planted(Bug::OldDisksAreServed) {
                let fault = format!(
                    "node {member} had acknowledged raft entry {known} and now ends at {index}: its disk was put back from \
                     an older copy. Remove the node, and let it join again as a new one"
                );
                tracing::error!("{fault}");
                m.fault = Some(fault);
            }
            m.fault.clone().map_or(Ok(()), Err)
        })
    }

    /// What speaks against a member.
    ///
    /// # Errors
    /// That.
    pub(super) fn check(&self, member: u64) -> Result<(), String> {
        self.of(member, |known| known.fault.clone().map_or(Ok(()), Err))
    }

    /// Something speaks against this node: a peer says so, or did before its last start.
    pub(super) fn accused(&self, why: &str) {
        self.with(|known| {
            if known.own.is_none() {
                tracing::error!("this node is refused: {why}");
                known.own = Some(why.to_owned());
            }
        });
    }

    /// What peers have against this node.
    pub(crate) fn accusation(&self) -> Option<String> {
        self.with(|known| known.own.clone())
    }

    /// Members that this node refuses, and why.
    pub(crate) fn faults(&self) -> Vec<(u64, String)> {
        self.with(|known| {
            let fault = |(id, member): (&u64, &Member)| member.fault.clone().map(|fault| (*id, fault));
            known.members.iter().filter_map(fault).collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGAIN: &str = "cargo test -p samovar-node --lib raft::standing::tests";

    fn in_time(life: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(life);
    }

    /// Each second of some, the starts of member 7 that speak, in this order; what the last of them was told.
    async fn speak(standing: &Standing, seconds: u32, starts: &[u64]) -> Result<(), Refused> {
        let mut told = Ok(());
        for _ in 0..seconds {
            for start in starts {
                told = standing.hear(7, *start);
            }
            rt::sleep(Duration::from_secs(1)).await;
        }
        told
    }

    #[test]
    fn late_messages_of_an_ended_start_are_turned_away_and_no_more() {
        in_time(async {
            let standing = Standing::default();
            speak(&standing, 2, &[1]).await.unwrap();
            speak(&standing, 10, &[2]).await.unwrap();
            let late = speak(&standing, 1, &[1, 1, 1]).await;
            assert!(matches!(late, Err(Refused::Unavailable(_))), "a burst from before: {late:?} ({AGAIN})");
            speak(&standing, 100, &[2]).await.expect("who runs is heard all the while");
            assert!(standing.faults().is_empty(), "{:?} ({AGAIN})", standing.faults());
        });
    }

    #[test]
    fn an_earlier_start_that_was_not_known_does_not_replace_the_one_that_runs_for_good() {
        in_time(async {
            let standing = Standing::default();
            speak(&standing, 1, &[3]).await.unwrap();
            // Of a start between two restarts, all of which waited here.
            speak(&standing, 1, &[2]).await.unwrap();
            speak(&standing, 8, &[3]).await.expect("the one that goes on speaking is heard again");
            speak(&standing, 60, &[3]).await.expect("and stays so");
            assert!(standing.faults().is_empty(), "{:?} ({AGAIN})", standing.faults());
        });
    }

    #[test]
    fn two_starts_that_both_speak_are_two_machines() {
        in_time(async {
            let standing = Standing::default();
            speak(&standing, 1, &[1]).await.unwrap();
            let told = speak(&standing, 8, &[2, 1]).await;
            assert!(matches!(told, Err(Refused::Member(_))), "{told:?} ({AGAIN})");
        });
    }
}
