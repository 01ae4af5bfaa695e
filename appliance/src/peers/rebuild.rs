//! A node whose data is wrong or damaged comes back as a new one, by itself: it asks a peer to take it out and in again. Its vote
//! and its raft log are gone with its data, so it must not come back under its id, which has promised what it forgot.
//!
//! The peer does both in one transaction, if the others have a majority without it and no other node is just coming in. Who
//! asks proves by its certificate which node it is. `serve/rebuild.rs` has what it does with the answer.

use hyper::{Method, StatusCode};
use samovar_node::node::Admission;
use samovar_node::transport::Peer;
use samovar_node::{Node, rt};
use serde::{Deserialize, Serialize};

use super::Peers;
use crate::api::problem::Problem;
use crate::auth::{NODES, NodeRow, PERMIT, PERMITS, Stored, commit};
use crate::tls::{REQUEST_BYTES_MAX, Subject, is_dns_name};

/// Where a node asks for it.
pub(super) const REBUILD: &str = "/v1/rebuild";
/// Longest reason that is kept, in bytes.
const REASON_BYTES_MAX: usize = 1024;
/// Most names and addresses that a node may ask for.
const NAMES_MAX: usize = 64;

/// What a node asks with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Ask {
    /// What is wrong with its data.
    pub(crate) reason: String,
    /// Certificate request, PEM.
    pub(crate) request: String,
    /// Names and addresses for its certificate.
    pub(crate) names: Vec<String>,
}

/// What it gets.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Readmitted {
    pub(crate) node: u64,
    pub(crate) name: String,
    pub(crate) vkey: String,
    pub(crate) ca: String,
    pub(crate) certificate: String,
    pub(crate) admission: Admission,
}

impl Peers {
    /// Asks a peer to be taken in as a new node.
    ///
    /// # Errors
    /// Why not, as the peer says or the way to it.
    pub(crate) async fn ask_to_rebuild(&self, peer: &Peer, ask: &Ask) -> Result<Readmitted, String> {
        let body = serde_json::to_vec(ask).map_err(|e| e.to_string())?;
        let answer = self.ask(peer, Method::POST, REBUILD, body.into()).await.map_err(|lost| lost.to_string())?;
        serde_json::from_slice(&answer).map_err(|e| format!("its answer is of another version: {e}"))
    }

    /// Refuses to take a node out without which nothing could be written.
    ///
    /// # Errors
    /// 409.
    pub(crate) fn may_go(&self, node: &Node, id: u64) -> Result<(), Problem> {
        let members = node.members();
        let left: Vec<u64> = members.iter().filter(|m| m.voter && m.node != id).map(|m| m.node).collect();
        if left.is_empty() {
            return Err(Problem::conflict("last-voter", "the node is the only voter, and a cluster has at least one"));
        }
        if !members.iter().any(|member| member.node == id && member.voter) {
            return Ok(());
        }
        let live = left.iter().filter(|peer| **peer == node.id() || self.known(**peer).is_live()).count();
        if live > left.len() / 2 {
            return Ok(());
        }
        let detail = format!(
            "{live} of the {} voters that would be left are live, which is no majority: bring one of them back, or take a \
             dead one out first",
            left.len()
        );
        Err(Problem::conflict("quorum-at-risk", detail))
    }

    /// Takes the node `from` out and in again as a new one.
    pub(super) async fn readmit(&self, node: &Node, from: u64, ask: Ask) -> Result<Readmitted, String> {
        let readmitted = self.try_readmit(node, from, &ask).await;
        let reason: String = ask.reason.chars().take(REASON_BYTES_MAX).collect();
        match readmitted {
            Ok(new) => {
                tracing::error!(
                    node = from,
                    name = new.name,
                    new = new.node,
                    reason,
                    "a node is built anew from its peers"
                );
                Ok(new)
            }
            Err(problem) => {
                let why = problem.detail();
                tracing::warn!(node = from, reason, why, "a node asks to be built anew, which cannot be now");
                Err(why)
            }
        }
    }

    async fn try_readmit(&self, node: &Node, from: u64, ask: &Ask) -> Result<Readmitted, Problem> {
        node.barrier().await?;
        let is_name = |name: &String| is_dns_name(name) || name.parse::<std::net::IpAddr>().is_ok();
        let named = !ask.names.is_empty() && ask.names.len() <= NAMES_MAX && ask.names.iter().all(is_name);
        if ask.request.len() > REQUEST_BYTES_MAX || !named {
            return Err(Problem::unprocessable("a certificate request and up to 64 names are expected"));
        }
        let (rows, members) = (NODES.all(node).await?, node.members());
        let before = rows.iter().find(|stored| stored.node() == from && stored.row.is_current());
        let before = before.ok_or_else(|| NODES.missing())?;
        self.may_go(node, from)?;
        let votes = |id: u64| members.iter().any(|member| member.node == id && member.voter);
        let coming = |s: &&Stored<NodeRow>| s.row.is_current() && s.row.voter && s.node() != from && !votes(s.node());
        if let Some(other) = rows.iter().find(coming) {
            let detail = format!("{} is just coming in: one node at a time is built anew", other.row.name);
            return Err(Problem::conflict("node-coming", detail));
        }
        let held = PERMITS.find(node, PERMIT).await?.filter(|held| held.row.node != from);
        if let Some(held) = held {
            let detail = format!("{} has the permit to go down: wait until it is back", held.row.name);
            return Err(Problem::conflict("permit-held", detail));
        }
        let known = rows.iter().map(Stored::node).chain(members.iter().map(|member| member.node));
        let id = known.max().unwrap_or(from) + 1;
        let (certificate, ca) = self.certify(&ask.request, &Subject::of_texts(&ask.names).of_node(id)).await?;
        let (now_ms, admission) = (node.now_ms(), node.admission(id)?);
        let row = NodeRow { admitted_ms: now_ms, ..before.row.clone() };
        let gone = NodeRow { removed_ms: Some(now_ms), ..before.row.clone() };
        let new = id.to_string();
        let requirements = vec![NODES.unchanged(&before.id, Some(before.revision))?, NODES.unchanged(&new, None)?];
        let operations = vec![NODES.put(&before.id, &gone)?, NODES.put(&new, &row)?];
        commit(node, &format!("rebuild/{from}"), requirements, operations).await?;
        let (name, vkey) = (row.name, node.log_info().vkey);
        Ok(Readmitted { node: id, name, vkey, ca, certificate, admission })
    }

    async fn certify(&self, request: &str, subject: &Subject) -> Result<(String, String), Problem> {
        let authority = self.0.authority.lock().unwrap_or_else(std::sync::PoisonError::into_inner).upgrade();
        let authority = authority.ok_or_else(|| Problem::unavailable("this node is just starting"))?;
        let (request, subject) = (request.to_owned(), subject.clone());
        let certified = rt::blocking(move || authority.certify_request(&request, &subject)).await;
        certified
            .map_err(|e| Problem::internal(&e))?
            .map_err(|error| Problem::conflict("no-authority", format!("no certificate can be made here: {error:#}")))
    }
}

/// Status of a refusal.
pub(super) const REFUSED: StatusCode = StatusCode::CONFLICT;
