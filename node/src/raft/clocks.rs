//! Whether this node's clock agrees with its peers'. The leader stamps blocks, and apply never lets time go back: a leader
//! whose clock is ahead would take the chain's time with it.
//!
//! Every second each voter asks the others for their time. One that is more than [`OFFSET_MAX`] from the median does not
//! propose: it hands the lead over, and leaves elections to the others. A voter that does not answer counts as agreeing,
//! so that a clock never costs the cluster its last leader: of two, nobody can say which is right.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;

use super::core::Core;
use super::elect;
use super::message::{Answer, Request};
use crate::planted::{Bug, planted};
use crate::rt;

/// So far a clock may be from the median of the voters'.
const OFFSET_MAX: Duration = Duration::from_secs(10);
/// Pause between two comparisons.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long a peer may take to tell its time.
const ANSWER_WAIT: Duration = Duration::from_millis(200);

/// What the last comparison said. Clones name the same.
#[derive(Clone)]
pub(crate) struct Clocks {
    core: Core,
    compared: Arc<Mutex<Compared>>,
}

struct Compared {
    at: tokio::time::Instant,
    /// This node's clock then, milliseconds since 1970.
    wall_ms: u64,
    /// From this node's clock to the median of the voters', in milliseconds.
    offset_ms: i64,
    /// The same to each peer that answered.
    peers: Vec<(u64, i64)>,
}

fn beyond(offset_ms: i64) -> bool {
    u128::from(offset_ms.unsigned_abs()) > OFFSET_MAX.as_millis()
}

fn signed(to_ms: u64, from_ms: u64) -> i64 {
    let apart = i64::try_from(to_ms.abs_diff(from_ms)).unwrap_or(i64::MAX);
    if to_ms < from_ms { -apart } else { apart }
}

/// The median of what voters say; of an even number the one that is nearer to zero, which is this node's own.
fn median(mut offsets_ms: Vec<i64>) -> i64 {
    offsets_ms.sort_unstable();
    let middle = offsets_ms.len() / 2;
    let upper = offsets_ms.get(middle).copied().unwrap_or(0);
    if offsets_ms.len() % 2 == 1 {
        return upper;
    }
    let lower = middle.checked_sub(1).and_then(|at| offsets_ms.get(at)).copied().unwrap_or(upper);
    if lower.unsigned_abs() <= upper.unsigned_abs() { lower } else { upper }
}

impl Clocks {
    pub(super) fn new(core: Core) -> Self {
        let compared = Compared { at: rt::instant(), wall_ms: rt::now_ms(), offset_ms: 0, peers: Vec::new() };
        Self { core, compared: Arc::new(Mutex::new(compared)) }
    }

    fn with<T>(&self, act: impl FnOnce(&mut Compared) -> T) -> T {
        act(&mut self.compared.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How far the voters' median is from this node's clock, in milliseconds, if it is too far to lead.
    pub(crate) fn off_ms(&self) -> Option<i64> {
        self.with(|compared| Some(compared.offset_ms).filter(|ms| beyond(*ms)))
    }

    /// Whether a peer's clock is known to be too far from the voters' median to lead.
    pub(super) fn is_off(&self, peer: u64) -> bool {
        self.with(|compared| {
            let own_ms = compared.peers.iter().find(|(node, _)| *node == peer).map(|(_, ms)| *ms);
            own_ms.is_some_and(|ms| beyond(ms.saturating_sub(compared.offset_ms)))
        })
    }

    /// Whether blocks may be stamped with this node's time. A clock that jumped since it was compared is compared first.
    pub(super) async fn agrees(&self) -> bool {
        let jumped = self.with(|compared| {
            let passed_ms = u64::try_from(compared.at.elapsed().as_millis()).unwrap_or(u64::MAX);
            beyond(signed(rt::now_ms(), compared.wall_ms.saturating_add(passed_ms)))
        });
        if jumped {
            self.compare().await;
        }
        self.off_ms().is_none() || planted(Bug::LeadsWithWrongClock)
    }

    /// Asks all other voters for their time.
    async fn compare(&self) {
        let raft = self.core.raft();
        let Ok(view) = raft.and_then(|raft| elect::view(&raft, self.core.node())) else { return };
        let asked = view.peers.iter().map(|peer| async {
            let sent_ms = rt::now_ms();
            let answer = self.core.link().ask(peer, &Request::Clock, ANSWER_WAIT).await;
            let between_ms = sent_ms.midpoint(rt::now_ms());
            match answer {
                Ok(Answer::Clock { wall_ms }) => Some((peer.node, signed(wall_ms, between_ms))),
                _ => None,
            }
        });
        let peers: Vec<_> = join_all(asked).await.into_iter().flatten().collect();
        let mut offsets: Vec<i64> = peers.iter().map(|(_, ms)| *ms).collect();
        offsets.resize(view.peers.len() + 1, 0);
        let offset_ms = median(offsets);
        let compared = Compared { at: rt::instant(), wall_ms: rt::now_ms(), offset_ms, peers };
        let before = self.with(|last| std::mem::replace(last, compared));
        if beyond(offset_ms) != beyond(before.offset_ms) {
            if beyond(offset_ms) {
                tracing::error!(offset_ms, "this node's clock is not that of its peers: it leaves the lead to them");
            } else {
                tracing::info!(offset_ms, "this node's clock agrees with its peers' again");
            }
        }
    }

    /// Compares again after a while; whether this node should not lead.
    pub(super) async fn next(&self) -> bool {
        rt::sleep(INTERVAL).await;
        self.compare().await;
        self.off_ms().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_leans_to_the_nodes_own_time() {
        for (offsets, expected) in [
            (vec![0], 0),
            (vec![0, 5], 0),
            (vec![0, -5], 0),
            (vec![0, 0, 60_000], 0),
            (vec![0, 60_000, 61_000], 60_000),
            (vec![0, -60_000, 61_000], 0),
            (vec![0, 0, 60_000, 60_000], 0),
            (vec![0, 60_000, 60_000, 60_000], 60_000),
        ] {
            assert_eq!(median(offsets.clone()), expected, "median of {offsets:?}");
        }
    }
}
