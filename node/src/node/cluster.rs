//! A node among peers: what it answers them, and who belongs to the cluster.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;

use super::{Admission, Config, Inner, Node};
use crate::command::Outcome;
use crate::cosigners;
use crate::disk::Disk;
use crate::error::Error;
use crate::identity::Identity;
use crate::note::VerifierKey;
use crate::raft::{Desk, refuses_writes};
use crate::rt::{self, Doing};
use crate::view::Member;

impl Node {
    /// Id of this node in the cluster.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.inner.identity.node
    }

    /// Makes the files of a node that joins a cluster, in an empty data directory. `name` is the name of the node;
    /// `admission` comes from a member, by a way that nobody else reads. Gives the verifier key of the node's cosignatures,
    /// which [`Node::add_learner`] is to be told.
    ///
    /// # Errors
    /// As [`Node::init`].
    pub fn join(disk: &Arc<dyn Disk>, config: &Config, name: &str, admission: &Admission) -> Result<String, Error> {
        let data = &config.data;
        disk.create_directory(data).map_err(|e| Error::io(format!("making {}", data.display()), &e))?;
        Identity::join(config.place(disk.as_ref()), name, admission).map(|identity| identity.cosigner)
    }

    /// Verifier key of the cosignatures of the node whose data directory this is.
    ///
    /// # Errors
    /// As [`Node::name_of`].
    pub fn cosigner_of(disk: &Arc<dyn Disk>, data: &Path) -> Result<String, Error> {
        Identity::read(disk.as_ref(), data).map(|identity| identity.cosigner)
    }

    /// What a node must know to join under the id `node`. Holds the log key.
    ///
    /// # Errors
    /// [`Error::Corrupt`] or [`Error::Io`] when the log key cannot be read.
    pub fn admission(&self, node: u64) -> Result<Admission, Error> {
        let inner = &self.inner;
        inner.identity.admission(inner.config.place(inner.disk.as_ref()), node)
    }

    /// Answers a message that the transport brought from a peer. Whoever calls has checked that the sender is the member
    /// `from` of the cluster.
    pub fn answer<'a>(&'a self, from: u64, message: Bytes) -> Doing<'a, Bytes> {
        Box::pin(async move {
            let inner = &self.inner;
            let desk = Desk { from, writes: inner.writes.clone(), reads: inner.peer_reads.clone(), room: self.room() };
            inner.consensus.answer(&message, &desk, |question| inner.answer_round(from, question)).await
        })
    }

    /// Whether what [`Node::answer`] gave says that writes were refused.
    pub(crate) fn refuses_writes(answer: &Bytes) -> bool {
        refuses_writes(answer)
    }

    /// The answer to a message of a node that belongs to another cluster, being of before or after a recovery; `None`: it is
    /// of this one.
    #[must_use]
    pub fn refuse_other_cluster(&self, from: u64, message: &Bytes) -> Option<Bytes> {
        self.inner.consensus.refuse_other_cluster(from, message)
    }

    /// Number of the ledger's epoch: one more than the recoveries that it went through.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.inner.identity.epoch
    }

    /// The members of the cluster as this node knows them, by id.
    #[must_use]
    pub fn members(&self) -> Vec<Member> {
        self.inner.consensus.members()
    }

    /// Takes a node in as a learner: it gets everything and votes on nothing. `address` is where its peers reach it,
    /// `cosigner` the verifier key of its cosignatures ([`Node::join`]), which count once it votes. Done again with the
    /// same it changes nothing.
    ///
    /// # Errors
    /// [`Error::NotLeader`]; [`Error::Invalid`] when the id is a member's at another address or with another cosigning
    /// key, or when name or key of the cosigner are another member's; [`Error::Unavailable`] while another change is not
    /// committed; [`Error::Unknown`].
    pub fn add_learner<'a>(&'a self, node: u64, address: &'a str, cosigner: &'a str) -> Doing<'a, Result<(), Error>> {
        Box::pin(async move {
            self.enrol(node, cosigner).await?;
            self.inner.consensus.add_learner(node, address).await
        })
    }

    /// Has the ledger name the cosigning key of a member.
    async fn enrol(&self, node: u64, cosigner: &str) -> Result<(), Error> {
        let inner = &self.inner;
        inner.consensus.must_lead()?;
        self.barrier().await?;
        let key = cosigners::parse(&inner.identity.origin, cosigner)?;
        let known = inner.ledger.cosigner(node)?;
        if let Some(known) = known {
            let same = known == key;
            return if same {
                Ok(())
            } else {
                Err(Error::Invalid(format!("node {node} cosigns as {known}, not {key}")))
            };
        }
        let mut others = Vec::new();
        for member in inner.consensus.members() {
            others.extend(inner.cosigner_of_member(member.node)?.filter(|_| member.node != node));
        }
        let log = VerifierKey::parse(&self.log_info().vkey).map_err(|e| Error::Corrupt(format!("the log key: {e}")))?;
        cosigners::check_beside(&log, &others, &key)?;
        match self.write(cosigners::enrol(&inner.identity.name, node, &key)).await? {
            Outcome::Committed(_) => Ok(()),
            Outcome::Refused(_) => {
                Err(Error::Unavailable(format!("node {node} is just being taken in by somebody else: try again")))
            }
        }
    }

    /// Says where a member is reached from now on: needed once for the node that began the cluster, before it takes in
    /// another.
    ///
    /// # Errors
    /// [`Error::NotFound`] when it is no member; else as [`Node::add_learner`].
    pub fn set_address<'a>(&'a self, node: u64, address: &'a str) -> Doing<'a, Result<(), Error>> {
        Box::pin(async move { self.inner.consensus.set_address(node, address).await })
    }

    /// Makes a learner a voter, once it lags little.
    ///
    /// # Errors
    /// [`Error::NotFound`] when it is no member, [`Error::Unavailable`] while it lags; else as [`Node::add_learner`].
    pub fn promote<'a>(&'a self, node: u64) -> Doing<'a, Result<(), Error>> {
        Box::pin(async move { self.inner.consensus.promote(node).await })
    }

    /// Takes a member out of the cluster, voter or learner. The policy lets go of its cosigning key first, by a checkpoint that
    /// still meets the policy with it.
    ///
    /// # Errors
    /// [`Error::NotFound`] when it is no member, [`Error::Invalid`] when it is the only voter, [`Error::Unavailable`] when
    /// no majority of those that stay answers, or no such checkpoint is made in time; else as [`Node::add_learner`]. Goes on
    /// to its end if the caller does not wait.
    pub fn remove<'a>(&'a self, node: u64) -> Doing<'a, Result<(), Error>> {
        Box::pin(async move {
            let this = self.clone();
            rt::spawn(async move { this.take_out(node).await }).await.unwrap_or(Err(Error::Unknown))
        })
    }

    async fn take_out(&self, node: u64) -> Result<(), Error> {
        let _turn = self.inner.naming.read().await;
        let members = self.members();
        let cosigns = members.iter().any(|member| member.voter && member.node == node);
        if cosigns && members.iter().any(|member| member.voter && member.node != node) {
            // What an earlier leader began is known here only then.
            self.barrier().await?;
            self.inner.consensus.may_remove(node)?;
            self.inner.let_cosigner_go(node).await?;
        }
        self.inner.consensus.remove(node).await
    }

    /// Hands the lead to another voter: `to`, or whichever is best off; says to which. Writes wait meanwhile, reads go on.
    ///
    /// # Errors
    /// [`Error::NotLeader`]; [`Error::NotFound`] when `to` is no other voter; [`Error::Unavailable`] when nobody can take
    /// over now: this node then goes on, or an election is held as after a crash.
    pub fn hand_over<'a>(&'a self, to: Option<u64>) -> Doing<'a, Result<u64, Error>> {
        Box::pin(async move { self.inner.consensus.hand_over(&self.inner.proposer, to).await })
    }

    /// Prepares for a stop of this node: it hands the lead over if it has it, and does not lead again as long as another
    /// can, until [`Node::resume`] or its next start.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when this node leads and nobody can take over now. It is draining all the same.
    pub fn drain<'a>(&'a self) -> Doing<'a, Result<(), Error>> {
        Box::pin(async move {
            self.inner.consensus.draining().set(true);
            if !self.inner.consensus.leads_others() {
                return Ok(());
            }
            match self.hand_over(None).await {
                // Another leads meanwhile.
                Ok(_) | Err(Error::NotLeader { .. }) => Ok(()),
                Err(error) => Err(error),
            }
        })
    }

    /// Ends what [`Node::drain`] began.
    pub fn resume(&self) {
        self.inner.consensus.draining().set(false);
    }

    /// Whether this node prepares for its stop.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.inner.consensus.draining().is_set()
    }
}

impl Inner {
    /// The cosigning key of a member, if it is known.
    pub(super) fn cosigner_of_member(&self, node: u64) -> Result<Option<VerifierKey>, Error> {
        if node == self.identity.node {
            return cosigners::parse(&self.identity.origin, &self.identity.cosigner).map(Some);
        }
        self.ledger.cosigner(node)
    }

    /// For a node that joined: from the first entry on that it got, an empty raft log is a loss.
    pub(super) fn note_begun(&self) -> Result<(), Error> {
        if self.begun.load(Relaxed) || self.ledger.chain().head.raft.is_empty() {
            return Ok(());
        }
        let identity = Identity::read(self.disk.as_ref(), &self.config.data)?;
        Identity { begun: true, ..identity }.save(self.disk.as_ref(), &self.config.data)?;
        self.begun.store(true, Relaxed);
        Ok(())
    }
}
