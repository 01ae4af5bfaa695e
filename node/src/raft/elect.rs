//! When this node stands for election. openraft's own timer is off: it knows no pre-vote, so a node that comes back from
//! isolation would depose the leader.
//!
//! A node that has heard no leader for [`ELECTION_MAX`] and a moment drawn anew each time asks its peers first. Whoever
//! heard a leader lately, or has more in its raft log, says no; a majority must say yes before a term is touched. To have
//! granted a vote, and to have begun an election, count as having heard a leader: else the one just elected is deposed.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use openraft::{Raft, ServerState};

use super::clocks::Clocks;
use super::core::Core;
use super::log::EntryId;
use super::message::{Answer, PreVoteAnswer, Request};
use super::peers::peer;
use super::{ELECTION_MAX_MS, TypeConfig, log};
use crate::error::Error;
use crate::planted::{Bug, planted};
use crate::rt;
use crate::transport::Peer;

/// How often a node looks whether it still hears a leader.
const LOOK: Duration = Duration::from_millis(10);
/// The same for the only voter, which needs to hear nobody.
const LOOK_ALONE: Duration = Duration::from_millis(100);
/// A node waits so long, and up to 40 ms longer.
pub(super) const ELECTION_MAX: Duration = Duration::from_millis(ELECTION_MAX_MS);
const JITTER_MS: std::ops::Range<u64> = 0..40;
/// How long peers have to answer.
const ASK_WAIT: Duration = Duration::from_millis(200);
/// After an election was begun, this long nothing is looked at.
const ELECTION_MS: std::ops::Range<u64> = 50..150;
/// Pause after peers said no.
const PAUSE_MS: std::ops::Range<u64> = 20..100;
/// A node that is about to stop, or whose clock is wrong, leaves it to the others, but for so long only.
const YIELDING_WAIT: Duration = Duration::from_millis(3 * ELECTION_MAX_MS);
/// Margin on what a peer says that it will wait, in milliseconds.
const MARGIN_MS: u64 = 2;

/// Whether this node is about to stop, and should not lead. Clones name the same.
#[derive(Clone, Default)]
pub(crate) struct Draining(Arc<AtomicBool>);

impl Draining {
    pub(crate) fn set(&self, draining: bool) {
        self.0.store(draining, Relaxed);
    }

    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Relaxed)
    }
}

/// When a leader was heard last. Clones name the same moment.
#[derive(Clone)]
pub(crate) struct Heard(Arc<Mutex<tokio::time::Instant>>);

impl Heard {
    /// A node that starts counts as having heard one.
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(rt::instant())))
    }

    pub(super) fn now(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = rt::instant();
    }

    pub(super) fn since(&self) -> Duration {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }
}

/// What is to be known of the cluster before an election.
pub(super) struct View {
    leads: bool,
    alone: bool,
    votes: bool,
    /// The configurations in force, two of them during a change: the voters of each.
    voters: Vec<Vec<u64>>,
    /// The other voters.
    pub peers: Vec<Peer>,
}

impl View {
    /// Whether what holds of some voters holds of a majority of each configuration.
    pub(super) fn is_majority(&self, holds: impl Fn(u64) -> bool) -> bool {
        self.voters.iter().all(|voters| voters.iter().filter(|id| holds(**id)).count() > voters.len() / 2)
    }
}

pub(super) fn view(raft: &Raft<TypeConfig>, node: u64) -> Result<View, Error> {
    let metrics = raft.metrics();
    let m = metrics.borrow();
    m.running_state.as_ref().map_err(|e| Error::Unavailable(format!("the Raft core has stopped: {e}")))?;
    let membership = m.membership_config.membership();
    let voters: Vec<Vec<u64>> = membership.get_joint_config().iter().map(|c| c.iter().copied().collect()).collect();
    let ids = membership.voter_ids().filter(|id| *id != node);
    let peers: Vec<_> = ids.filter_map(|id| membership.get_node(&id).map(|known| peer(id, known))).collect();
    let votes = membership.voter_ids().any(|id| id == node);
    Ok(View { leads: m.state == ServerState::Leader, alone: votes && peers.is_empty(), votes, voters, peers })
}

fn draw(range: std::ops::Range<u64>) -> Duration {
    let mut bytes = [0; 8];
    rt::fill_random(&mut bytes);
    Duration::from_millis(range.start + u64::from_le_bytes(bytes) % (range.end - range.start))
}

/// Stands for election when no leader is heard, for as long as the node runs.
pub(crate) async fn driver(core: Core, heard: Heard, draining: Draining, clocks: Clocks) {
    heard.now();
    let mut jitter = draw(JITTER_MS);
    loop {
        rt::sleep(LOOK).await;
        let raft = core.raft();
        let Ok((raft, view)) = raft.and_then(|raft| view(&raft, core.node()).map(|view| (raft, view))) else {
            // It ends, or is started again.
            rt::sleep(LOOK_ALONE).await;
            continue;
        };
        if view.leads {
            heard.now();
        }
        // Not so who does not vote: it may, by a change that it has not heard of, and then those who have need its answer.
        if view.leads || !view.votes || core.link().standing.accusation().is_some() {
            if view.alone {
                rt::sleep(LOOK_ALONE).await;
            }
            continue;
        }
        let yields = draining.is_set() || clocks.off_ms().is_some();
        let patience = if yields { ELECTION_MAX + YIELDING_WAIT } else { ELECTION_MAX };
        if !view.alone && heard.since() < patience + jitter {
            continue;
        }
        let pause = match ask(&core, &view).await {
            None if heard.since() >= ELECTION_MAX || view.alone => {
                heard.now();
                if let Err(error) = raft.trigger().elect().await {
                    tracing::warn!(%error, "no election can be held");
                }
                draw(ELECTION_MS)
            }
            None => Duration::ZERO,
            Some(pause) => pause,
        };
        rt::sleep(pause).await;
        jitter = draw(JITTER_MS);
    }
}

/// Asks all other voters. `None`: a majority of each configuration would vote for this node; else how long to wait.
async fn ask(core: &Core, view: &View) -> Option<Duration> {
    if planted(Bug::NoPreVote) {
        return None;
    }
    let last = core.log().last_log_id().as_ref().map(log::entry_id);
    let mut yes = vec![core.node()];
    let mut soonest = None;
    let mut asked: FuturesUnordered<_> = view
        .peers
        .iter()
        .map(|peer| async move { (peer.node, core.link().ask(peer, &Request::PreVote { last }, ASK_WAIT).await) })
        .collect();
    while !view.is_majority(|id| yes.contains(&id)) {
        match asked.next().await {
            None => return Some(soonest.map_or_else(|| draw(PAUSE_MS), |wait| wait + draw(1..20))),
            Some((peer, Ok(Answer::PreVote(PreVoteAnswer::Yes)))) => yes.push(peer),
            Some((_, Ok(Answer::PreVote(PreVoteAnswer::Later(ms))))) => {
                let wait = Duration::from_millis(ms.min(ELECTION_MAX_MS));
                soonest = Some(soonest.map_or(wait, |s: Duration| s.min(wait)));
            }
            Some(_) => {}
        }
    }
    None
}

/// The answer to a peer's question whether it would be voted for.
pub(super) fn pre_vote(core: &Core, heard: &Heard, last: Option<EntryId>) -> Result<PreVoteAnswer, Error> {
    let raft = core.raft()?;
    let leads = {
        let metrics = raft.metrics();
        let m = metrics.borrow();
        m.state == ServerState::Leader && m.millis_since_quorum_ack.unwrap_or(0) < ELECTION_MAX_MS
    };
    if leads || last < core.log().last_log_id().as_ref().map(log::entry_id) {
        return Ok(PreVoteAnswer::No);
    }
    let (since, lease) = (heard.since(), ELECTION_MAX + Duration::from_millis(MARGIN_MS));
    Ok(match lease.checked_sub(since) {
        None | Some(Duration::ZERO) => PreVoteAnswer::Yes,
        Some(rest) => PreVoteAnswer::Later(u64::try_from(rest.as_millis()).unwrap_or(ELECTION_MAX_MS) + 1),
    })
}
