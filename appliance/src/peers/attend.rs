//! What a node does about its peers beside answering them: it asks how they are, makes the members what the ledger says when
//! it leads, and gets what voters share once it votes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use hyper::Method;
use samovar_node::disk::{Disk, OsDisk};
use samovar_node::transport::Peer;
use samovar_node::view::Member;
use samovar_node::{Error, Node, format, rt};

use super::server::{Shared, serve};
use super::transport::{REPORT, SECRETS};
use super::{Peers, Report};
use crate::api::problem::Problem;
use crate::auth::{NODES, NodeRow, Stored, commit};
use crate::durable::Mode;
use crate::tls;

/// How often peers are asked how they are.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// How long a report may take.
const REPORT_WAIT: Duration = Duration::from_secs(1);
/// How often whoever leads compares members and ledger.
const SETTLE_INTERVAL: Duration = Duration::from_millis(250);
/// Pause after a change of the members that did not succeed.
const SETTLE_PAUSE: Duration = Duration::from_secs(1);
/// How often a voter without the cluster's secrets asks for them.
const SECRETS_INTERVAL: Duration = Duration::from_secs(1);
/// How often a node sees whether the ledger has its address.
const ADDRESS_INTERVAL: Duration = Duration::from_secs(5);
/// Where the other members are.
const PEERS_FILE: &str = "peers.json";
/// Author of what a node writes about itself.
const AUTHOR: &str = "cluster";

impl Peers {
    /// Runs until the task is dropped.
    pub(crate) async fn attend(self, node: Node) {
        let to_open = self.0.to_open.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        let port = async {
            let Some(mut to_open) = to_open else { return };
            if let Some(listener) = to_open.recv().await {
                serve(self.clone(), node.clone(), listener).await;
            }
        };
        tokio::join!(
            port,
            self.follow(&node),
            self.ask_around(&node),
            self.settle(&node),
            self.get_secrets(&node),
            self.tell_address(&node),
            self.write_up_permits(&node)
        );
    }

    /// Knows who was removed.
    async fn follow(&self, node: &Node) {
        let mut head = node.head();
        let mut seen = None;
        loop {
            let revision = head.borrow_and_update().system_revision;
            if seen != Some(revision)
                && let Ok(rows) = NODES.all(node).await
            {
                let removed = rows.iter().filter(|stored| !stored.row.is_current()).map(Stored::node).collect();
                self.0.book.set_removed(removed);
                seen = Some(revision);
            }
            if head.changed().await.is_err() {
                return;
            }
        }
    }

    /// Asks every peer how it is, once a second.
    async fn ask_around(&self, node: &Node) {
        let mut kept = Vec::new();
        loop {
            self.note_time(node);
            let asked_of = self.everybody(node).await;
            self.keep_addresses(node, &mut kept);
            self.0.book.keep(&asked_of.iter().map(|peer| peer.node).collect());
            let asked = asked_of.into_iter().map(|peer| async move {
                let answer = self.ask(&peer, Method::GET, REPORT, Bytes::new());
                if let Ok(Ok(report)) = rt::timeout(REPORT_WAIT, answer).await
                    && let Ok(report) = serde_json::from_slice(&report)
                {
                    self.0.book.reported(peer.node, report);
                }
            });
            join_all(asked).await;
            rt::sleep(REPORT_INTERVAL).await;
        }
    }

    /// Keeps where the other members are, for a start at which the ledger cannot be read.
    fn keep_addresses(&self, node: &Node, kept: &mut Vec<KnownPeer>) {
        let members = node.members();
        let now: Vec<_> = others(&members, node.id()).map(|p| KnownPeer { node: p.node, address: p.address }).collect();
        if now == *kept {
            return;
        }
        let text = serde_json::to_vec(&now).unwrap_or_default();
        match crate::durable::replace(&self.0.secrets.data().join(PEERS_FILE), &text, Mode::Public) {
            Ok(()) => *kept = now,
            Err(error) => tracing::warn!("where the peers are was not kept: {error:#}"),
        }
    }

    /// All other members, and those that are admitted and no members yet.
    async fn everybody(&self, node: &Node) -> Vec<Peer> {
        let members = node.members();
        let mut all: Vec<_> = others(&members, node.id()).collect();
        if !self.is_open() {
            return all;
        }
        for stored in NODES.all(node).await.unwrap_or_default() {
            let id = stored.node();
            if stored.row.is_current() && id != node.id() && !members.iter().any(|member| member.node == id) {
                all.push(Peer { node: id, address: stored.row.address.clone() });
            }
        }
        all
    }

    /// Makes the members what the ledger says, one change after the other, while this node leads.
    async fn settle(&self, node: &Node) {
        // A removal that did not come to its end: perhaps that of another has to come first.
        let mut stuck = None;
        loop {
            rt::sleep(SETTLE_INTERVAL).await;
            if !self.is_open() || node.status().role != "leader" {
                continue;
            }
            let Ok(rows) = NODES.all(node).await else { continue };
            let Some(change) = self.next_change(&rows, &node.members(), stuck) else { continue };
            let made = change.make(node).await;
            stuck = match change {
                Change::Remove(id) if made.is_err() => Some(id),
                _ => None,
            };
            match made {
                Ok(()) => tracing::info!(change = ?change, "the members of the cluster changed"),
                // It is not there yet, or another change is under way.
                Err(error @ (Error::Unavailable(_) | Error::NotLeader { .. })) => {
                    tracing::debug!(change = ?change, %error, "the members of the cluster do not change yet");
                    rt::sleep(SETTLE_PAUSE).await;
                }
                Err(error) => {
                    tracing::warn!(change = ?change, %error, "the members of the cluster could not be changed");
                    rt::sleep(SETTLE_PAUSE).await;
                }
            }
        }
    }

    /// What is to be done first to make the members what the rows say. Nobody is taken in, or promoted, who is not there.
    fn next_change(&self, rows: &[Stored<NodeRow>], members: &[Member], stuck: Option<u64>) -> Option<Change> {
        next_change(rows, members, stuck, |node| {
            let known = self.0.book.known(node);
            known.report.as_ref().filter(|_| known.is_live()).map(|(report, _)| report.cosigner.clone())
        })
    }

    /// As a voter, gets what all voters have.
    async fn get_secrets(&self, node: &Node) {
        loop {
            rt::sleep(SECRETS_INTERVAL).await;
            let members = node.members();
            let votes = members.iter().any(|member| member.node == node.id() && member.voter);
            if !votes || members.len() == 1 || !matches!(tls::authority_key(&self.0.secrets), Ok(None)) {
                continue;
            }
            for peer in others(&members, node.id()) {
                let Ok(answer) = self.ask(&peer, Method::GET, SECRETS, Bytes::new()).await else { continue };
                let Ok(Shared { ca_key }) = serde_json::from_slice(&answer) else { continue };
                let secrets = self.0.secrets.clone();
                let kept = rt::blocking(move || tls::take_authority_key(&secrets, &ca_key)).await;
                match kept {
                    Ok(Ok(())) => {
                        tracing::info!(peer = peer.node, "this voter has the key of the CA now");
                        break;
                    }
                    Ok(Err(error)) => tracing::warn!(peer = peer.node, "the key of the CA was not taken: {error:#}"),
                    Err(error) => tracing::warn!(peer = peer.node, %error, "the key of the CA was not taken"),
                }
            }
        }
    }

    /// Sees to it that the ledger has the address under which this node is reached.
    async fn tell_address(&self, node: &Node) {
        loop {
            if self.is_open()
                && let Err(problem) = self.announce(node).await
            {
                tracing::debug!(?problem, "the ledger does not have this node's address yet");
            }
            rt::sleep(ADDRESS_INTERVAL).await;
        }
    }

    /// Writes this node's row, unless it is there and has the address: the node that began the cluster has none at first.
    pub(crate) async fn announce(&self, node: &Node) -> Result<(), Problem> {
        let (id, address) = (node.id().to_string(), self.address().to_owned());
        let before = NODES.find(node, &id).await?;
        let row = match &before {
            Some(stored) if stored.row.address == address || !stored.row.is_current() => return Ok(()),
            Some(stored) => NodeRow { address, ..stored.row.clone() },
            // A node that joined has one, which it may not have heard of yet.
            None if !node.members().iter().any(|member| member.node == node.id() && member.voter) => return Ok(()),
            None => {
                NodeRow { name: node.status().name, address, voter: true, admitted_ms: node.now_ms(), removed_ms: None }
            }
        };
        let unchanged = NODES.unchanged(&id, before.map(|stored| stored.revision))?;
        commit(node, AUTHOR, vec![unchanged], vec![NODES.put(&id, &row)?]).await.map(drop)
    }
}

fn others(members: &[Member], own: u64) -> impl Iterator<Item = Peer> {
    let others = members.iter().filter(move |member| member.node != own && !member.address.is_empty());
    others.map(|member| Peer { node: member.node, address: member.address.clone() })
}

/// Where a peer is, as kept beside the ledger.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct KnownPeer {
    pub(crate) node: u64,
    pub(crate) address: String,
}

/// The peers that the node of a data directory had when it ran last.
pub(crate) fn read_peers(data: &std::path::Path) -> Vec<KnownPeer> {
    let text = std::fs::read(data.join(PEERS_FILE)).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

/// How this node is, for its peers.
pub(super) fn report(peers: &Peers, node: &Node) -> Report {
    let status = node.status();
    Report {
        cosigner: peers.0.cosigner.get_or_init(|| cosigner(peers)).clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        role: status.role.to_owned(),
        leader: status.leader,
        term: status.term,
        height: status.head.height,
        raft_index: status.raft_index,
        free_bytes: status.free_bytes,
        disk_bytes: disk_bytes(peers.0.secrets.data()),
        format: format::NEWEST,
        spare_format: peers.spare_format(),
        errors: peers.0.errors.get().to_vec(),
    }
}

/// Verifier key of this node's cosignatures; empty if it cannot be read, which its start would not survive.
fn cosigner(peers: &Peers) -> String {
    let disk: Arc<dyn Disk> = Arc::new(OsDisk);
    Node::cosigner_of(&disk, peers.0.secrets.data()).unwrap_or_default()
}

/// Size of the file system of a data directory, in bytes.
pub(crate) fn disk_bytes(data: &std::path::Path) -> Option<u64> {
    let found = rustix::fs::statvfs(data).ok()?;
    Some(found.f_blocks.saturating_mul(found.f_frsize))
}

/// A change of the members.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Change {
    Address(u64, String),
    Remove(u64),
    /// Id, address, verifier key of its cosignatures.
    Admit(u64, String, String),
    Promote(u64),
}

impl Change {
    async fn make(&self, node: &Node) -> Result<(), Error> {
        match self {
            Self::Address(id, address) => node.set_address(*id, address).await,
            Self::Remove(id) => node.remove(*id).await,
            Self::Admit(id, address, cosigner) => node.add_learner(*id, address, cosigner).await,
            Self::Promote(id) => node.promote(*id).await,
        }
    }
}

/// `stuck`: the node whose removal was tried last, in vain; others that are to go get their turn before it. `cosigner`: the
/// verifier key of the cosignatures of a node that is there.
fn next_change(
    rows: &[Stored<NodeRow>],
    members: &[Member],
    stuck: Option<u64>,
    cosigner: impl Fn(u64) -> Option<String>,
) -> Option<Change> {
    let member = |id: u64| members.iter().find(|member| member.node == id);
    let current = || rows.iter().filter(|stored| stored.row.is_current());
    let moved = current().find(|s| member(s.node()).is_some_and(|m| m.address != s.row.address));
    if let Some(stored) = moved {
        return Some(Change::Address(stored.node(), stored.row.address.clone()));
    }
    let gone: BTreeSet<u64> = rows.iter().filter(|s| !s.row.is_current()).map(Stored::node).collect();
    let mut goes = members.iter().map(|member| member.node).filter(|node| gone.contains(node));
    if let Some(first) = goes.next() {
        let turn = stuck.and_then(|stuck| std::iter::once(first).chain(goes).find(|node| *node > stuck));
        return Some(Change::Remove(turn.unwrap_or(first)));
    }
    let mut comes = current().filter(|s| member(s.node()).is_none());
    let comes = comes.find_map(|s| Some(Change::Admit(s.node(), s.row.address.clone(), cosigner(s.node())?)));
    if comes.is_some() {
        return comes;
    }
    let waits = |s: &&Stored<NodeRow>| {
        s.row.voter && member(s.node()).is_some_and(|m| !m.voter) && cosigner(s.node()).is_some()
    };
    current().find(waits).map(|stored| Change::Promote(stored.node()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: u64, voter: bool, removed: bool) -> Stored<NodeRow> {
        let (name, address) = (format!("box-{id}"), format!("box-{id}:8444"));
        let row = NodeRow { name, address, voter, admitted_ms: 1, removed_ms: removed.then_some(2) };
        Stored { id: id.to_string(), revision: id, row }
    }

    fn member(node: u64, voter: bool) -> Member {
        Member { node, address: format!("box-{node}:8444"), voter }
    }

    #[test]
    fn members_become_what_the_ledger_says() {
        let rows = [row(1, true, false), row(2, true, false), row(3, false, false), row(4, true, true)];
        let there = |id: u64| Some(format!("key-{id}"));
        let next = |members: &[Member]| next_change(&rows, members, None, there);
        let first = Member { address: String::new(), ..member(1, true) };
        assert_eq!(next(&[first]), Some(Change::Address(1, "box-1:8444".into())), "others must reach the first");
        let admit = |id: u64| Some(Change::Admit(id, format!("box-{id}:8444"), format!("key-{id}")));
        assert_eq!(next(&[member(1, true)]), admit(2));
        assert_eq!(next(&[member(1, true), member(2, false)]), admit(3));
        let without_2 = |id: u64| there(id).filter(|_| id != 2);
        assert_eq!(
            next_change(&rows, &[member(1, true)], None, without_2),
            admit(3),
            "who is not there holds up nobody"
        );
        let all = [member(1, true), member(2, false), member(3, false), member(4, true)];
        assert_eq!(next(&all), Some(Change::Remove(4)), "what was removed goes");
        assert_eq!(next(&all[..3]), Some(Change::Promote(2)), "one that is to vote");
        assert_eq!(next_change(&rows, &all[..3], None, |_| None), None, "not before it is there");
        assert_eq!(next(&[member(1, true), member(2, true), member(3, false)]), None, "a learner stays one");
        let two = [row(1, true, true), row(2, true, false), row(3, true, true)];
        let all = [member(1, true), member(2, true), member(3, true)];
        for (stuck, turn) in [(None, 1), (Some(1), 3), (Some(3), 1)] {
            assert_eq!(next_change(&two, &all, stuck, there), Some(Change::Remove(turn)), "{stuck:?} could not go");
        }
    }
}
