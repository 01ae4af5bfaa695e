//! What is looked at while a world runs, and what must hold of its nodes at the end.

use std::collections::BTreeSet;
use std::time::Duration;

use super::*;

/// So long nothing may happen once all is well.
const REST: Duration = Duration::from_secs(2);
/// So long those that are no majority try to commit something.
const WITHOUT_MAJORITY: Duration = Duration::from_secs(3);

impl World {
    /// Whether nodes are all up, at one end of the chain log, and have signed it.
    pub(crate) fn is_level(&self, ids: &[u64]) -> bool {
        let ends = ids.iter().flat_map(|id| match self.node(*id) {
            Some((_, node)) => {
                let status = node.status();
                [status.head.size, status.checkpoint_size]
            }
            None => [0, u64::MAX],
        });
        ends.collect::<BTreeSet<_>>().len() == 1
    }

    /// Who leads, as the nodes say that are up.
    pub(crate) fn leader(&self) -> Option<u64> {
        let leads = |id: &u64| self.node(*id).is_some_and(|(_, node)| node.status().role == "leader");
        self.ids().into_iter().filter(leads).max_by_key(|id| self.node(*id).map_or(0, |(_, n)| n.status().term))
    }

    /// Waits until somebody leads.
    pub(crate) async fn wait_for_leader(&self) -> u64 {
        self.leads_at_last().await.unwrap_or_else(|why| panic!("{why}"))
    }

    /// The same; that nobody does is an error.
    pub(crate) async fn leads_at_last(&self) -> Result<u64, String> {
        for _ in 0..10_000 {
            if let Some(id) = self.leader() {
                return Ok(id);
            }
            sleep_true(Duration::from_millis(1)).await;
        }
        Err("nobody leads after 10 s".into())
    }

    /// Looks at the terms: what a node has voted for it never forgets.
    pub(crate) fn look_at_terms(&self) {
        for id in self.ids() {
            let Some(status) = self.node(id).map(|(_, node)| node.status()).filter(|s| s.role != "stopped") else {
                continue;
            };
            let before = {
                let mut state = lock(&self.0.state);
                let newest = state.terms.entry(id).or_default();
                std::mem::replace(newest, status.term.max(*newest))
            };
            let damaged = self.damaged();
            if let Some((member, fault)) = status.refused_members.iter().find(|(member, _)| Some(*member) != damaged) {
                self.violated(format!("node {id} refuses node {member}, which is whole: {fault}"));
            }
            if status.term < before {
                self.violated(format!("node {id} is in term {} and was in {before}: it forgot a vote", status.term));
            }
        }
    }

    /// With all well, nobody is elected anew: no node that was removed, or that hears its leader, stands for election.
    pub(crate) async fn check_rest(&self) -> Result<(), String> {
        let terms = || {
            let term = |id: u64| self.node(id).map_or(0, |(_, node)| node.status().term);
            self.ids().into_iter().map(term).max().unwrap_or(0)
        };
        let before = terms();
        sleep_true(REST).await;
        let after = terms();
        if after != before {
            return Err(format!("nothing is wrong any more, and term {before} gives way to {after} within {REST:?}"));
        }
        Ok(())
    }

    /// One member less than a majority runs, and every node that was removed: nothing may be committed.
    pub(crate) async fn check_majority(&self) -> Result<(), String> {
        let (leader, removed) = (self.leads_at_last().await?, self.removed());
        if removed.is_empty() {
            return Ok(());
        }
        let voters = self.node(leader).map(|(_, node)| node.members()).unwrap_or_default();
        let voters: Vec<u64> = voters.into_iter().filter(|member| member.voter).map(|member| member.node).collect();
        let stays: Vec<u64> = voters.iter().copied().take(voters.len().div_ceil(2) - 1).collect();
        for id in self.ids().into_iter().filter(|id| !stays.contains(id)) {
            self.crash(id);
        }
        let tries = stays.iter().chain(&removed).map(|id| {
            let (world, write) = (self.clone(), put(&format!("by {id} alone")));
            let id = *id;
            spawn_outside(async move {
                let written = world.on(id, |node| async move { node.write(write).await });
                let written = tokio::time::timeout(WITHOUT_MAJORITY, written).await;
                matches!(written, Ok(Some(Ok(Outcome::Committed(_))))).then_some(id)
            })
        });
        for tried in tries.collect::<Vec<_>>() {
            if let Ok(Some(id)) = tried.await {
                return Err(format!(
                    "node {id} commits a write with {stays:?} of the voters {voters:?} and the removed {removed:?}"
                ));
            }
        }
        self.count("majority checked");
        Ok(())
    }

    /// Looks at what was signed, and at the checkpoints that are served now.
    pub(crate) fn look_at_checkpoints(&self) {
        let served = self.ids().into_iter().filter_map(|id| self.node(id)?.1.checkpoint());
        let served: Vec<_> = served.collect();
        // The lock is let go before what was seen is noted.
        let looked = lock(&self.0.state).checkpoints.look(served);
        if let Err(what) = looked {
            self.violated(what);
        }
    }

    /// What must hold of checkpoints, against the chain log that the nodes came to.
    pub(crate) fn check_checkpoints(&self, lines: &[Vec<u8>]) -> Result<(), String> {
        lock(&self.0.state).checkpoints.check(lines)
    }

    /// Every voter comes to hold the log key in force, which they agree on, and to have ended every hand-over.
    pub(crate) async fn check_log_keys(&self) -> Result<(), String> {
        let mut last = String::new();
        for _ in 0..100 {
            let all = self.ids().into_iter().filter_map(|id| Some((id, self.node(id)?.1)));
            // A learner gets it when it is promoted.
            let votes = |id: u64, node: &Node| node.members().iter().any(|member| member.voter && member.node == id);
            let voters = all.filter(|(id, node)| votes(*id, node));
            let all: Vec<_> =
                voters.map(|(id, node)| (id, node.log_info().vkey, node.inner.notary.keys().held())).collect();
            let first = all.first().map(|(_, named, _)| named.clone()).unwrap_or_default();
            if all.iter().all(|(_, named, held)| *named == first && held.0 == first) {
                return Ok(());
            }
            last = format!("{all:?}");
            sleep_true(Duration::from_millis(100)).await;
        }
        Err(format!("voters do not come to hold the log key that the log names: {last}"))
    }

    /// Has the leader rotate the log key, as far as the faults let it.
    pub(crate) async fn try_to_rotate(&self) {
        let Some(leader) = self.leader() else { return };
        let rotated = self.on(leader, |node| async move { node.rotate_log_key("admin").await.map(drop) });
        match tokio::time::timeout(Duration::from_secs(5), rotated).await {
            Ok(Some(Ok(()))) => self.count("rotation"),
            _ => self.count("rotation in doubt"),
        }
    }

    /// Shows a node a head that is not the log's, signed by the log key, as from another member.
    pub(crate) fn show_forged(&self, victim: u64) {
        let (from, beyond) = (self.any(), self.draw(0..4).saturating_sub(1));
        let (Some((power, node)), Some((_, sender))) = (self.node(victim), self.node(from)) else { return };
        if from == victim {
            return;
        }
        let mut root = [0; 32];
        root[..8].copy_from_slice(&self.draw(0..u64::MAX).to_le_bytes());
        let size = node.head().borrow().size + beyond;
        let text = Checkpoint { origin: "sim.example".into(), size, root }.to_text();
        let note = node.inner.notary.keys().sign_blindly(&text);
        let raft_index = node.status().applied_index;
        let question = match self.chance(0.7) {
            true => Question::Cosign { note, raft_index, state: root },
            false => Question::Publish { note, raft_index },
        };
        let message = sender.inner.consensus.message(question);
        power.spawn(async move { node.answer(from, message).await });
    }
}
