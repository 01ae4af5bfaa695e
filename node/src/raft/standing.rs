//! What speaks against a member of the cluster: two machines that run as one, and a disk that is older than what the member
//! has said. Such a member gets nothing, and its votes do not count: it would forget what others rely on. It must be removed
//! and join again as a new one.
//!
//! - **Twice.** Every start of a node draws a number that goes with all that it asks. A number that was replaced by another
//!   and still speaks some time later belongs to a second machine.
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
    /// The start that speaks, and since when.
    start: Option<(u64, tokio::time::Instant)>,
    ended: VecDeque<u64>,
    /// An ended start that was heard, and when first.
    heard_ended: Option<(u64, tokio::time::Instant)>,
    /// Raft index up to which it has all that was committed.
    has: u64,
    /// The same at a moment, and long enough ago that nothing it said before is on its way any more.
    noted: Option<(u64, tokio::time::Instant)>,
    settled: u64,
    fault: Option<String>,
}

impl Member {
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
                Some((current, _)) if current == start => return Ok(()),
                Some((_, since)) if known.ended.contains(&start) => {
                    if planted(Bug::TwinsAreServed) {
                        return Ok(());
                    }
                    // What waited at a node that stood still comes at once; a machine that runs goes on speaking.
                    let again = known.heard_ended.is_some_and(|(before, at)| {
                        before == start && (LATE_MAX..12 * LATE_MAX).contains(&at.elapsed())
                    });
                    if !known.heard_ended.is_some_and(|(before, at)| before == start && at.elapsed() < 12 * LATE_MAX) {
                        known.heard_ended = Some((start, rt::instant()));
                    }
                    if since.elapsed() < LATE_MAX || !again {
                        let late = format!("a message of node {member} from before its last start");
                        return Err(Refused::Unavailable(late));
                    }
                    let fault = format!(
                        "two machines run as node {member}: one of them is a copy. Stop both, remove the node, and let one \
                         join again as a new node"
                    );
                    tracing::error!("{fault}");
                    known.fault = Some(fault.clone());
                    return Err(Refused::Member(fault));
                }
                Some((current, _)) => {
                    known.ended.push_back(current);
                    if known.ended.len() > STARTS_MAX {
                        known.ended.pop_front();
                    }
                }
                None => {}
            }
            known.start = Some((start, rt::instant()));
            Ok(())
        })
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

    /// A peer has something against this node.
    pub(super) fn accused(&self, why: &str) {
        self.with(|known| {
            if known.own.is_none() {
                tracing::error!("a peer refuses this node: {why}");
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
