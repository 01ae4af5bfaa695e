//! `samovar recover`: a ledger whose quorum is gone for good goes on from one of the nodes that are left. What such a node has,
//! and what may be lost, is shown first; the work itself is the node's ([`Node::recover`]).

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hyper::Method;
use samovar_node::disk::{Disk, OsDisk};
use samovar_node::node::{Recover, Recovered};
use samovar_node::transport::Peer;
use samovar_node::view::{RaftPlace, Survey};
use samovar_node::{Node, rt};
use serde::{Deserialize, Serialize};

use super::directory::DataDirectory;
use super::node_thread::NodeThread;
use super::{node_config, sealing, write_vkey};
use crate::auth::without_others;
use crate::config::Config;
use crate::peers::Peers;
use crate::secrets::Secrets;
use crate::tls;

/// How long another voter may take to show that it lives.
const ANSWER_WAIT: Duration = Duration::from_secs(3);

/// What is asked for.
pub(crate) struct Wanted {
    /// Previews of other nodes.
    pub(crate) compared: Vec<Preview>,
    /// A checkpoint that somebody has, as a signed note.
    pub(crate) known: Option<String>,
    /// The majority is there, and the policy of the log can never be met.
    pub(crate) unmet_policy: bool,
}

/// What a node has of the log, and what may be lost if it is gone on with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Preview {
    pub(crate) node: u64,
    pub(crate) name: String,
    pub(crate) origin: String,
    pub(crate) epoch: u64,
    pub(crate) log_key: String,
    pub(crate) raft: RaftMarks,
    /// Transactions in the raft log that are not applied: they are kept.
    pub(crate) waiting_writes: u64,
    pub(crate) height: u64,
    /// Entries of the chain log that are applied, and most that there can be with what waits.
    pub(crate) size: u64,
    pub(crate) size_max: u64,
    /// Time of the newest block.
    pub(crate) time_ms: u64,
    /// Merkle root over `size` entries, base64.
    pub(crate) root: String,
    /// State root, base64.
    pub(crate) state_root: String,
    /// Entries of the largest head that this node signed or cosigned.
    pub(crate) promised: Option<u64>,
    pub(crate) members: Vec<Member>,
    pub(crate) voters: usize,
    pub(crate) quorum: usize,
    /// Whether its state was found to differ from its peers'.
    pub(crate) diverged: bool,
    pub(crate) unfinished: bool,
    /// Other voters that answer now.
    #[serde(default)]
    pub(crate) live: Vec<u64>,
    /// Whose previews this one was compared with.
    #[serde(default)]
    pub(crate) compared: Vec<u64>,
    /// The one of them, with this one, whose raft log is the most advanced.
    pub(crate) most_advanced: u64,
    pub(crate) loss: Loss,
    /// Why it cannot be recovered from here.
    #[serde(default)]
    pub(crate) refused: Option<String>,
}

/// What is lost when this node is gone on with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Loss {
    /// Whether it is sure that nothing acknowledged is lost: a majority was compared, and none has more.
    pub(crate) none: bool,
    /// Writes with a lower revision are all here. One with this revision or a higher one is lost if this node's raft log has it
    /// not.
    pub(crate) from_revision: u64,
    /// No write of a block before this time is lost: the time of the newest block that is known to be the cluster's.
    pub(crate) after_ms: u64,
    /// Entries that the log had at least, when somebody's checkpoint shows that it had more than this node has.
    pub(crate) at_least_up_to: Option<u64>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct RaftMarks {
    pub(crate) term: u64,
    pub(crate) last_term: u64,
    pub(crate) last_leader: u64,
    pub(crate) last_index: u64,
    pub(crate) committed: Option<u64>,
    pub(crate) applied: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Member {
    pub(crate) node: u64,
    pub(crate) address: String,
    pub(crate) voter: bool,
}

impl Preview {
    /// What the node alone knows.
    fn of(survey: Survey) -> Self {
        let last = survey.last.unwrap_or(RaftPlace { term: 0, node: 0, index: 0 });
        let voters = survey.members.iter().filter(|member| member.voter).count();
        let members = survey.members.into_iter();
        Self {
            node: survey.node,
            name: survey.name,
            origin: survey.origin,
            epoch: survey.epoch,
            log_key: survey.log_key,
            raft: RaftMarks {
                term: survey.term,
                last_term: last.term,
                last_leader: last.node,
                last_index: last.index,
                committed: survey.committed,
                applied: survey.applied,
            },
            waiting_writes: survey.waiting_writes,
            height: survey.height,
            size: survey.size,
            size_max: survey.size_max,
            time_ms: survey.time_ms,
            root: STANDARD.encode(survey.root),
            state_root: STANDARD.encode(survey.state_root),
            promised: survey.promised.map(|head| head.size),
            members: members.map(|m| Member { node: m.node, address: m.address, voter: m.voter }).collect(),
            voters,
            quorum: voters / 2 + 1,
            diverged: survey.diverged,
            unfinished: survey.unfinished,
            live: Vec::new(),
            compared: Vec::new(),
            most_advanced: survey.node,
            loss: Loss { none: false, from_revision: survey.size, after_ms: survey.time_ms, at_least_up_to: None },
            refused: None,
        }
    }

    /// As Raft orders logs.
    fn advanced(&self) -> (u64, u64, u64) {
        let RaftMarks { last_term, last_leader, last_index, .. } = self.raft;
        (last_term, last_leader, last_index)
    }

    fn is_voter(&self, node: u64) -> bool {
        self.members.iter().any(|member| member.node == node && member.voter)
    }

    fn at(&self, node: u64) -> String {
        match self.members.iter().find(|member| member.node == node) {
            Some(member) if !member.address.is_empty() => format!("node {node} ({})", member.address),
            _ => format!("node {node}"),
        }
    }

    /// Judges it beside what is known of other nodes.
    fn judge(&mut self, wanted: &Wanted, live: &[(u64, u64)], known: Option<u64>, has_authority: bool) {
        let others: Vec<&Self> = wanted.compared.iter().filter(|other| other.node != self.node).collect();
        self.live = live.iter().map(|(node, _)| *node).collect();
        self.compared = others.iter().map(|other| other.node).collect();
        let ahead = others.iter().max_by_key(|other| other.advanced()).filter(|o| o.advanced() > self.advanced());
        self.most_advanced = ahead.map_or(self.node, |other| other.node);
        let seen = |node: &u64| self.is_voter(*node);
        let mut counted: Vec<u64> = self.compared.iter().copied().chain([self.node]).filter(seen).collect();
        counted.sort_unstable();
        counted.dedup();
        self.loss.none = counted.len() >= self.quorum && ahead.is_none();
        let heads = others.iter().flat_map(|other| [Some(other.size), other.promised]).flatten().chain(known);
        self.loss.at_least_up_to = heads.max().filter(|size| *size > self.size_max);
        let foreign = others.iter().find(|other| (other.epoch, &other.origin) != (self.epoch, &self.origin));
        let live_ahead = live.iter().find(|(_, index)| *index > self.raft.last_index).map(|(node, _)| *node);
        self.refused = if let Some(other) = foreign {
            Some(format!("the preview of {} is of another log, {}", other.name, other.origin))
        } else if self.voters == 1 && self.is_voter(self.node) {
            Some("this node is the only voter, so it has its quorum: start it".into())
        } else if wanted.unmet_policy && !self.live.is_empty() {
            Some(format!("{} answers: stop the daemons of all nodes first", self.at(self.live[0])))
        } else if self.live.len() + usize::from(self.is_voter(self.node)) >= self.quorum {
            let live: Vec<String> = self.live.iter().map(|node| self.at(*node)).collect();
            Some(format!("the quorum is there: {} answers. Start the daemon of this node", live.join(", ")))
        } else if let Some(other) = ahead {
            Some(format!("{} has more of the raft log: recover from there", other.name))
        } else if let Some(node) = live_ahead {
            Some(format!("{} has more of the raft log: recover from there", self.at(node)))
        } else if counted.len() >= self.quorum && !wanted.unmet_policy {
            Some(
                "the disks of a majority of the voters are there: start the daemons of those nodes, which loses nothing. If no \
                 checkpoint meets the policy since one that it needs is gone for good: --unmet-policy"
                    .into(),
            )
        } else if wanted.unmet_policy && !self.loss.none {
            Some(
                "--unmet-policy needs the previews of a majority of the voters (--compare), so that nothing is lost"
                    .into(),
            )
        } else if self.diverged {
            Some(
                "this node's state was found to differ from its peers' (divergence.json): recover from another one. Only if it \
                 is all that is left, and after looking at both heads, move that file away"
                    .into(),
            )
        } else if !has_authority {
            Some("this node has no key of the CA, so no other could join it: recover from a voter".into())
        } else {
            None
        };
    }
}

/// Opened for a recovery: nobody else has the directory meanwhile.
pub(crate) struct Survivor {
    _directory: DataDirectory,
    config: Config,
    secrets: Secrets,
    runtime: tokio::runtime::Runtime,
    /// What this node has, and what that means.
    pub(crate) preview: Preview,
    known: Option<String>,
}

impl Survivor {
    /// Opens a data directory and judges it.
    pub(crate) fn open(config: Config, wanted: Wanted) -> Result<Self> {
        let directory = DataDirectory::open(&config.data)?;
        let secrets = sealing::open(&config)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("a runtime")?;
        let disk: Arc<dyn Disk> = Arc::new(OsDisk);
        let survey = runtime.block_on(Node::survey(disk, node_config(&config, &secrets)));
        let mut preview = Preview::of(survey.map_err(|e| anyhow!("what is here cannot be read: {e}"))?);
        if !preview.unfinished {
            let known = wanted.known.as_deref().map(|note| head_of(note, &preview.log_key)).transpose()?;
            let peers = Peers::new(&config, &secrets);
            let live = runtime.block_on(live(&peers, &preview));
            let has_authority = tls::authority_key(&secrets)?.is_some();
            preview.judge(&wanted, &live, known, has_authority);
        }
        Ok(Self { _directory: directory, config, secrets, runtime, preview, known: wanted.known })
    }

    /// Goes on with this node's log alone.
    pub(crate) fn recover(self, reason: String) -> Result<Recovered> {
        if let Some(why) = &self.preview.refused {
            bail!("nothing was changed: {why}");
        }
        let Self { config, secrets, preview, known, .. } = &self;
        let disk: Arc<dyn Disk> = Arc::new(OsDisk);
        let (own, now_ms) = (preview.node, rt::now_ms());
        let with = Recover {
            reason,
            known: known.clone(),
            operations: Box::new(move |rows| without_others(rows, own, now_ms)),
        };
        let recovered = self.runtime.block_on(Node::recover(disk, node_config(config, secrets), with));
        let recovered = recovered.map_err(|e| anyhow!("the recovery is not through, run it again: {e}"))?;
        write_vkey(secrets.data(), &recovered.log)?;
        // Its first start signs the checkpoint on which the receipt of the entry stands.
        NodeThread::start(node_config(config, secrets), Peers::new(config, secrets))?.stop()?;
        Ok(recovered)
    }
}

/// The other voters that answer, with how far their raft logs go.
async fn live(peers: &Peers, preview: &Preview) -> Vec<(u64, u64)> {
    let others = preview.members.iter().filter(|m| m.voter && m.node != preview.node && !m.address.is_empty());
    let asked = others.map(|member| {
        let peer = Peer { node: member.node, address: member.address.clone() };
        async move { Some((peer.node, rt::timeout(ANSWER_WAIT, peers.report_of(&peer)).await.ok()??.raft_index)) }
    });
    futures_util::future::join_all(asked).await.into_iter().flatten().collect()
}

/// Entries of a checkpoint that the log key signed.
fn head_of(note: &str, log_key: &str) -> Result<u64> {
    use samovar_node::checkpoint::Checkpoint;
    use samovar_node::note::{Note, VerifierKey};
    let note = Note::parse(note).context("the known checkpoint")?;
    Ok(Checkpoint::open(&note, &VerifierKey::parse(log_key)?).context("the known checkpoint")?.size)
}

/// A file with a checkpoint, or with a receipt, which ends with one.
pub(crate) fn read_known(path: &Path) -> Result<String> {
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    match text.strip_prefix("c2sp.org/tlog-proof@v1\n") {
        Some(rest) => Ok(rest.split_once("\n\n").context("the receipt has no checkpoint")?.1.to_owned()),
        None => Ok(text),
    }
}

impl Peers {
    /// How a peer is, if it answers.
    async fn report_of(&self, peer: &Peer) -> Option<crate::peers::Report> {
        let answer = self.ask(peer, Method::GET, crate::peers::REPORT, Bytes::new()).await.ok()?;
        serde_json::from_slice(&answer).ok()
    }
}
