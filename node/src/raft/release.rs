//! When the raft log goes: once the state that it leads to is durable, and no member that is there lacks it.

use std::time::Duration;

use super::{Consensus, POLL};
use crate::error::Error;
use crate::ledger::HeadRow;
use crate::rt;

/// How long a purge may take to reach the raft log.
const PURGE_WAIT: Duration = Duration::from_secs(10);
/// The same when there are peers: what is on its way to one of them is not purged, and the next round tries again.
const PURGE_WAIT_PEERS: Duration = Duration::from_millis(500);

/// The raft log is kept for a member that lacks it and has answered within this time …
const KEPT_WHILE_ANSWERED: Duration = Duration::from_secs(2);
/// … as long as it takes no more bytes on the disk. Who lacks more gets a snapshot; in the short worlds of the simulation
/// whoever was away does, or it would hardly see one.
const KEPT_BYTES_MAX: u64 = if cfg!(test) { 1 } else { 128 << 20 };

impl Consensus {
    /// Lets the raft log go up to a head that is durable; says whether it went. With `seal` the segment in use is closed,
    /// so that every byte up to there is deleted.
    pub(crate) async fn release(&self, head: &HeadRow, seal: bool) -> Result<bool, Error> {
        let Some(applied) = self.durable.advance(head)? else { return Ok(true) };
        let Ok(raft) = self.core.raft() else { return Ok(false) };
        let log = self.core.log();
        if !seal && self.is_lacked(applied.index) {
            return Ok(true);
        }
        let wait = if self.is_alone().await.unwrap_or(false) { PURGE_WAIT } else { PURGE_WAIT_PEERS };
        let deadline = rt::instant() + wait;
        let mut asked = raft.trigger().snapshot().await;
        while log.purged() < Some(applied) {
            if asked.is_err() {
                // The core has ended, which whoever watches it hears of.
                return Ok(false);
            }
            if rt::instant() > deadline {
                // The next round tries again; nothing is lost by keeping more.
                tracing::warn!(raft_index = applied.index, "the raft log was not purged in time");
                return Ok(false);
            }
            asked = raft.trigger().purge_log(applied.index).await;
            rt::sleep(POLL).await;
        }
        log.release(applied, seal).await?;
        Ok(true)
    }

    /// Whether this node leads a member that is there and lacks what is to go of the raft log, and may have it kept.
    fn is_lacked(&self, upto: u64) -> bool {
        let Ok(raft) = self.core.raft() else { return false };
        let metrics = raft.metrics();
        let lacking: Vec<u64> = {
            let m = metrics.borrow();
            let peers = m.replication.iter().flatten().filter(|(node, _)| **node != self.core.node());
            peers.filter(|(_, has)| has.is_none_or(|id| id.index < upto)).map(|(node, _)| *node).collect()
        };
        let standing = &self.core.link().standing;
        lacking.iter().any(|node| standing.answers(*node, KEPT_WHILE_ANSWERED))
            && self.log_status().segment_bytes < KEPT_BYTES_MAX
    }
}
