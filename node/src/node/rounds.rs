//! Rounds of cosignatures from node to node: who leads the cluster leads them, the others answer, and all get what comes
//! of it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::Inner;
use crate::command::{Key, Operation, Outcome, Requirement};
use crate::cosign::{Examined, Published, Round, Shown};
use crate::cosigners::{self, InForce};
use crate::error::Error;
use crate::log_key::{self, NewKeys};
use crate::merkle::Hash;
use crate::note::VerifierKey;
use crate::raft::{Question, Reply};
use crate::rt;
use crate::view::LogInfo;

/// How long a round waits for the cosignatures that it needs.
const COSIGN_WAIT: Duration = Duration::from_secs(1);
/// How long it waits for those that it does not need: more than a majority makes a better receipt.
const MORE_WAIT: Duration = Duration::from_millis(10);
/// How long a node may take to apply what it is to cosign.
const APPLY_WAIT: Duration = Duration::from_millis(800);
/// How long a peer may take to say which checkpoint is the newest, or to make a proof.
const ANSWER_WAIT: Duration = Duration::from_secs(2);
/// A node that lacks a checkpoint of its newest block asks for it when none came for so long.
const QUIET_MAX: Duration = Duration::from_millis(250);
/// How long a member that is to go stays for the checkpoint that lets its cosigning key go.
const HAND_OVER_WAIT: Duration = Duration::from_secs(10);
/// How long a change of the policy that names a member that is to go may wait for its hand-over before one without the member
/// takes its place: longer than a round of those that are up.
const REPLACE_WAIT: Duration = Duration::from_secs(2);
/// How often that is looked for.
const HAND_OVER_LOOK: Duration = Duration::from_millis(20);

/// What peers said in a round.
#[derive(Default)]
struct Answers {
    /// Why there is no cosignature, by node.
    refused: Vec<(u64, String)>,
    /// Nodes that have another head of that size, with its root.
    differ: Vec<(u64, Hash)>,
}

impl Inner {
    /// One round, if there is a new block and this node leads: signed, cosigned, the log key exchanged if it is being
    /// rotated, published. A node that does not lead gets the newest checkpoint, if it did not come by itself.
    pub(super) async fn checkpoint_round(self: &Arc<Self>) -> Result<(), Error> {
        let keeps = self.with_notary(crate::cosign::Notary::keeps_promise).await;
        if !keeps.inspect_err(|error| self.fail(error.clone()))? || self.notary.soundness().is_proved() {
            return Ok(());
        }
        self.hold_log_key().await?;
        if !self.consensus.leads() {
            return self.follow().await;
        }
        if let Some(mut round) = self.with_notary(crate::cosign::Notary::sign_newest).await? {
            let answers = self.collect(&mut round).await;
            if let Err(error) = self.conclude(&round, answers).await {
                self.notary.discard(&round)?;
                return Err(error);
            }
            let published = self.with_notary(move |notary| notary.publish(round)).await?;
            self.tell(&published);
        }
        self.align_cosigners().await
    }

    /// Asks the voters for their cosignatures.
    async fn collect(self: &Arc<Self>, round: &mut Round) -> Answers {
        let mut answers = Answers::default();
        let voters = self.consensus.members().into_iter().filter(|m| m.voter && m.node != self.identity.node);
        let (sender, mut receiver) = mpsc::unbounded_channel();
        for peer in voters.map(|member| member.node) {
            let (node, sender) = (Arc::clone(self), sender.clone());
            let (note, raft_index, state) = (round.note(), round.raft_index, round.state);
            rt::spawn(async move {
                let reply = node.consensus.ask(peer, Question::Cosign { note, raft_index, state }, COSIGN_WAIT).await;
                // Who asked may have enough.
                let _ = sender.send((peer, reply));
            });
        }
        drop(sender);
        let mut deadline = rt::instant() + COSIGN_WAIT;
        let mut met = round.is_met();
        loop {
            let left = deadline.saturating_duration_since(rt::instant());
            // None: all have answered.
            let Ok(Some((peer, reply))) = rt::timeout(left, receiver.recv()).await else { return answers };
            match reply {
                Ok(Reply::Cosigned(line)) => {
                    if !round.add(line) {
                        answers.refused.push((peer, "it sent no cosignature that holds".into()));
                    }
                    if !met && round.is_met() {
                        met = true;
                        deadline = rt::instant() + MORE_WAIT;
                    }
                }
                Ok(Reply::Differs(root)) => answers.differ.push((peer, root)),
                Ok(Reply::Promised(size)) => {
                    answers.refused.push((peer, format!("it promised {size} entries already")));
                }
                Ok(_) => answers.refused.push((peer, "it answered another question".into())),
                Err(error) => answers.refused.push((peer, error.to_string())),
            }
        }
    }

    /// Whether a round is to be published. A hand-over is ended first.
    async fn conclude(&self, round: &Round, answers: Answers) -> Result<(), Error> {
        let size = round.checkpoint.size;
        if !round.is_met() {
            if let Some((by, root)) = answers.differ.first().copied() {
                let proved = self.is_contradicted(round, &answers.differ)?;
                let note = round.note();
                self.with_notary(move |notary| notary.contradicted(size, &note, by, root, proved)).await?;
                if proved {
                    self.consensus.fall_silent();
                }
            }
            let why = answers.refused.iter().map(|(node, why)| format!("node {node}: {why}"));
            let differ = answers.differ.iter().map(|(node, _)| format!("node {node}: it has another head"));
            let why: Vec<_> = why.chain(differ).collect();
            return Err(Error::Unavailable(format!(
                "{size} entries have not the cosignatures that the policy asks for ({})",
                why.join("; ")
            )));
        }
        match round.in_force.hands_over() {
            Some(index) => self.hand_over(index, &round.in_force.log.to_string(), &round.note()).await,
            None => Ok(()),
        }
    }

    /// Whether those that have another head, and the same one, would meet the policy without this node.
    fn is_contradicted(&self, round: &Round, differ: &[(u64, Hash)]) -> Result<bool, Error> {
        for (_, root) in differ {
            let mut keys = Vec::new();
            for (node, _) in differ.iter().filter(|(_, other)| other == root) {
                keys.extend(self.ledger.cosigner(*node)?);
            }
            if round.in_force.is_met_by(&keys) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Sends a checkpoint to all members. One that does not get it asks for it.
    fn tell(self: &Arc<Self>, published: &Arc<Published>) {
        for member in self.consensus.members().into_iter().filter(|member| member.node != self.identity.node) {
            let (node, published) = (Arc::clone(self), Arc::clone(published));
            rt::spawn(async move {
                let (note, raft_index) = (published.text.to_string(), published.raft_index);
                let told = node.consensus.ask(member.node, Question::Publish { note, raft_index }, ANSWER_WAIT).await;
                if let Err(error) = told {
                    tracing::debug!(peer = member.node, %error, "a checkpoint was not taken");
                }
            });
        }
    }

    /// Asks the leader for the newest checkpoint, when there is none of the newest block for some time.
    async fn follow(&self) -> Result<(), Error> {
        let newest = self.notary.published().map_or(0, |p| p.size);
        let lacks = self.ledger.newest().size > newest && self.notary.quiet_for() >= QUIET_MAX;
        let Some(leader) = self.consensus.other_leader() else { return Ok(()) };
        if !lacks && self.notary.soundness().check().is_ok() {
            return Ok(());
        }
        if let Ok(Reply::Newest(Some((note, raft_index)))) =
            self.consensus.ask(leader, Question::Newest, ANSWER_WAIT).await
            && let Err(error) = self.publish_shown(leader, note, raft_index).await
        {
            tracing::debug!(leader, %error, "the leader's checkpoint was not taken");
        }
        Ok(())
    }

    async fn publish_shown(&self, from: u64, note: String, raft_index: u64) -> Result<(), Error> {
        self.has_applied(raft_index).await;
        let shown =
            move |notary: &crate::cosign::Notary| notary.accept(&Shown { note: &note, state: None, from }, raft_index);
        self.with_notary(shown).await
    }

    /// Waits some time until the raft log is applied up to an index.
    async fn has_applied(&self, raft_index: u64) {
        if let Some(applied) = self.ledger.applied(raft_index) {
            let _ = rt::timeout(APPLY_WAIT, applied).await;
        }
    }

    /// Answers a member's question about checkpoints or blobs.
    pub(super) async fn answer_round(self: &Arc<Self>, from: u64, question: Question) -> Reply {
        let refused = |error: Error| Reply::Refused(error.to_string());
        match question {
            Question::Cosign { note, raft_index, state } => {
                if !crate::planted::planted(crate::planted::Bug::CosignWithoutCheck) {
                    self.has_applied(raft_index).await;
                }
                let examined =
                    self.with_notary(move |notary| notary.examine(&Shown { note: &note, state: Some(state), from }));
                match examined.await {
                    Ok(Examined::Cosigned(line)) => Reply::Cosigned(line),
                    Ok(Examined::Promised(size)) => Reply::Promised(size),
                    Ok(Examined::Differs { root }) => Reply::Differs(root),
                    Ok(Examined::Behind) => Reply::Refused("it has not applied so much yet".into()),
                    Ok(Examined::Refused(why)) => Reply::Refused(why),
                    Err(error) => refused(error),
                }
            }
            Question::Publish { note, raft_index } => {
                self.publish_shown(from, note, raft_index).await.map_or_else(refused, |()| Reply::Published)
            }
            Question::Lacking { blobs } => self.lacking(from, &blobs),
            Question::Piece { blob, offset } => self.piece_of(blob, offset).await.unwrap_or_else(refused),
            Question::Newest => Reply::Newest(self.notary.published().map(|p| (p.text.to_string(), p.raft_index))),
            Question::KeepLogKey { secret } => self.keep_log_key(from, secret.0).await.unwrap_or_else(refused),
            Question::LogKey { vkey } => self.give_log_key(from, vkey).await.unwrap_or_else(refused),
            Question::Proof { key } => {
                let made = self.with_notary(move |notary| notary.latest_or_absent(&key)).await;
                match made {
                    Ok(Some(proof)) => Reply::Proof(proof),
                    Ok(None) => Reply::Refused("this node has not the state map as of the newest checkpoint".into()),
                    Err(error) => refused(error),
                }
            }
        }
    }

    /// Latest-or-absent proof of a key: made here, or by the leader when this node has gone on from the newest checkpoint.
    pub(super) async fn proof(&self, key: Key) -> Result<String, Error> {
        let asked = key.clone();
        let made = self.with_notary(move |notary| notary.latest_or_absent(&asked)).await;
        if let Some(proof) = self.checked(made)? {
            return Ok(proof);
        }
        let unavailable =
            || Error::Unavailable("there is no leader to prove against the newest checkpoint; ask again".into());
        let leader = self.consensus.other_leader().ok_or_else(unavailable)?;
        match self.consensus.ask(leader, Question::Proof { key }, ANSWER_WAIT).await? {
            Reply::Proof(proof) => Ok(proof),
            _ => Err(unavailable()),
        }
    }

    /// Has the policy name the voters: those that it is to name, whose cosigning key the ledger knows. One step at a time, each
    /// handed over before the next.
    async fn align_cosigners(&self) -> Result<(), Error> {
        let Ok(_turn) = self.naming.try_write() else { return Ok(()) };
        let Some(voters) = self.consensus.settled_voters() else { return Ok(()) };
        let Some(in_force) = self.ledger.in_force(self.ledger.newest().size)? else { return Ok(()) };
        if in_force.hands_over().is_some() || !self.consensus.leads() {
            return Ok(());
        }
        let mut wanted = Vec::new();
        for voter in &voters {
            wanted.extend(self.cosigner_of_member(*voter)?);
        }
        if wanted.is_empty() || same(&wanted, &in_force.cosigners) {
            return Ok(());
        }
        let requirements = self.ledger.requirements_of_change()?;
        self.change_cosigners(&in_force.log, &wanted, requirements, Vec::new()).await
    }

    /// Proposes that these nodes cosign from now on.
    async fn change_cosigners(
        &self,
        log: &VerifierKey,
        cosigners: &[VerifierKey],
        requirements: Vec<Requirement>,
        mut operations: Vec<Operation>,
    ) -> Result<(), Error> {
        let (own, key) = (self.identity.node, self.notary.keys().cosigner());
        if self.ledger.cosigner(own)?.is_none() && cosigners.contains(key) {
            operations.push(cosigners::put_row(own, key));
        }
        let info = LogInfo {
            origin: log.name().to_owned(),
            vkey: log.to_string(),
            cosigners: cosigners.iter().map(ToString::to_string).collect(),
            policy: cosigners::policy(log, cosigners)?,
        };
        let to = NewKeys { info, requirements, operations };
        match self.proposer.change_keys(&self.identity.name, to).await? {
            Outcome::Committed(_) => Ok(()),
            Outcome::Refused(_) => Err(Error::Unavailable("the keys of the log were just changed; try again".into())),
        }
    }

    /// Before a member goes: its cosignature counts no more, and a checkpoint says so that met the policy with it.
    pub(super) async fn let_cosigner_go(&self, gone: u64) -> Result<(), Error> {
        self.consensus.must_lead()?;
        let deadline = rt::instant() + HAND_OVER_WAIT;
        let (mut last, mut waiting, mut since) = (None, None, rt::instant());
        while rt::instant() < deadline {
            let Some(in_force) = self.ledger.in_force(self.ledger.newest().size)? else { return Ok(()) };
            // Its key may be forgotten by a change that an earlier leader began, and that is not handed over without the node.
            let key = self.cosigner_of_member(gone)?.filter(|key| in_force.cosigners.contains(key));
            let waits = in_force.hands_over();
            if waits != waiting {
                (waiting, since) = (waits, rt::instant());
            }
            let replaced = waits.filter(|_| in_force.before.is_some() && since.elapsed() >= REPLACE_WAIT);
            match key {
                None if waits.is_none() => return Ok(()),
                Some(key) if waits.is_none() || replaced.is_some() => {
                    match self.name_without(gone, &key, &in_force, replaced).await {
                        Err(error @ Error::NotLeader { .. }) => return Err(error),
                        changed => last = changed.err(),
                    }
                }
                _ => {}
            }
            rt::sleep(HAND_OVER_LOOK).await;
        }
        let last = last.map(|error| format!(" ({error})")).unwrap_or_default();
        Err(Error::Unavailable(format!(
            "the policy still asks for node {gone}: no checkpoint that meets it without that node was made in time{last}; the \
             member stays, try again when a majority of the cosigners is up, or take out one first that is dead"
        )))
    }

    /// Proposes that a member's key counts no more. `replaced`: the change that waits for its hand-over, and that this is to
    /// take the place of.
    async fn name_without(
        &self,
        gone: u64,
        key: &VerifierKey,
        in_force: &InForce,
        replaced: Option<u64>,
    ) -> Result<(), Error> {
        let requirements = match replaced {
            Some(change) => log_key::waits(change),
            None => self.ledger.requirements_of_change()?,
        };
        let stay: Vec<_> = in_force.cosigners.iter().filter(|other| *other != key).cloned().collect();
        let forget = match self.ledger.cosigner(gone)? {
            Some(_) => vec![Operation::Delete { key: cosigners::row_key(gone) }],
            None => Vec::new(),
        };
        self.change_cosigners(&in_force.log, &stay, requirements, forget).await
    }
}

/// Whether two lists name the same keys.
fn same(a: &[VerifierKey], b: &[VerifierKey]) -> bool {
    a.len() == b.len() && a.iter().all(|key| b.contains(key))
}
