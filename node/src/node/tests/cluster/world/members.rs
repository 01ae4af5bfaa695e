//! Who belongs to the cluster of a world: founding it, taking machines in and out.

use std::collections::BTreeSet;
use std::time::Duration;

use super::*;

impl World {
    /// The whole cluster: the first node begins it, the others join it and become voters.
    pub(crate) async fn found_cluster(&self) {
        self.try_to_found().await.unwrap_or_else(|why| panic!("{why}"));
    }

    /// The same; what does not come about is an error.
    pub(crate) async fn try_to_found(&self) -> Result<(), String> {
        self.found();
        assert!(self.start(1).await, "the first node starts");
        self.on(1, |node| async move { node.set_address(1, "node1:8444").await }).await.unwrap().unwrap();
        for id in self.ids().into_iter().skip(1) {
            self.join(id).await;
            self.grow(id).await;
        }
        self.wait_for_cosigners().await
    }

    /// Waits until the policy names all nodes.
    async fn wait_for_cosigners(&self) -> Result<(), String> {
        let ids = self.ids();
        for _ in 0..2000 {
            let named = |id: &u64| self.node(*id).map_or(0, |(_, node)| node.log_info().cosigners.len());
            if ids.iter().all(|id| named(id) == ids.len()) {
                return Ok(());
            }
            sleep_true(Duration::from_millis(5)).await;
        }
        Err(format!("the policy does not come to name all of {ids:?} within 10 s"))
    }

    /// Makes the files of a node that joins, and starts it.
    pub(crate) async fn join(&self, id: u64) {
        let admission = self.on(1, move |node| async move { node.admission(id) }).await.unwrap().unwrap();
        let disk: Arc<dyn Disk> = Arc::new(self.disk(id));
        Node::join(&disk, &config(), &format!("node{id}"), &admission).unwrap();
        assert!(self.start(id).await, "node {id} starts");
    }

    /// Verifier key of the cosignatures of a node whose files are made.
    fn cosigner(&self, id: u64) -> String {
        let disk: Arc<dyn Disk> = Arc::new(self.disk(id));
        Node::cosigner_of(&disk, &config().data).unwrap()
    }

    /// Brings a spare machine in, as far as the faults let it; says whether it votes.
    pub(crate) async fn try_to_grow(&self) -> bool {
        let used = |id: &u64| !self.disk(*id).files().is_empty();
        let Some(id) = self.0.hosts.keys().copied().find(|id| !used(id)) else { return false };
        let Some(Ok(admission)) = self.on(self.any(), move |node| async move { node.admission(id) }).await else {
            return false;
        };
        let disk: Arc<dyn Disk> = Arc::new(self.disk(id));
        Node::join(&disk, &config(), &format!("node{id}"), &admission).unwrap();
        lock(&self.0.state).active.insert(id);
        self.start(id).await;
        let (address, cosigner) = (format!("node{id}:8444"), self.cosigner(id));
        let taken_in = self.try_to_lead(|node| {
            let (address, cosigner) = (address.clone(), cosigner.clone());
            async move { node.add_learner(id, &address, &cosigner).await }
        });
        let added = taken_in.await && self.try_to_lead(|node| async move { node.promote(id).await }).await;
        if added {
            self.count("member added");
        }
        added
    }

    /// Takes a member out, as far as the faults let it.
    pub(crate) async fn try_to_shrink(&self) {
        let gone = self.any();
        let removed = self.try_to_lead(|node| async move {
            match node.remove(gone).await {
                Err(Error::NotFound(_)) => Ok(()),
                done => done,
            }
        });
        if removed.await {
            self.count("member removed");
            sleep_true(Duration::from_millis(self.draw(0..1000))).await;
            self.retire(gone);
        }
    }

    /// Has a node with damaged files, if it is down or found wrong, replaced by a machine that joins as new.
    pub(crate) async fn replace_damaged(&self) -> Result<(), String> {
        let Some(id) = self.damaged() else { return Ok(()) };
        let serves = self.node(id).is_some_and(|(_, node)| {
            let status = node.status();
            // One value that cannot be read is refused when it is asked for; the node goes on with the others.
            let readable = || node.inner.ledger.records(0, usize::try_from(status.head.size).unwrap()).is_ok();
            status.divergence.is_none() && status.refused_by_peers.is_none() && readable()
        });
        if serves || !self.ids().contains(&id) {
            return Ok(());
        }
        self.crash(id);
        let removed = self.try_to_lead(move |node| async move {
            match node.remove(id).await {
                Err(Error::NotFound(_)) => Ok(()),
                done => done,
            }
        });
        if !removed.await {
            return Err(format!("node {id}, which has damaged files and is down, cannot be removed"));
        }
        lock(&self.0.state).active.remove(&id);
        self.count("damaged node removed");
        // Until another has taken its place, in the policy too, no further node can be spared.
        if self.try_to_grow().await && self.policy_settles().await {
            self.note_damage(None);
        }
        Ok(())
    }

    /// Whether the policy comes to name all voters, and is handed over, before faults get in the way.
    async fn policy_settles(&self) -> bool {
        for _ in 0..20 {
            let settled = self.leader().and_then(|leader| self.node(leader)).is_some_and(|(_, node)| {
                let ledger = &node.inner.ledger;
                let in_force = ledger.in_force(ledger.newest().size).ok().flatten();
                let voters = node.members().iter().filter(|member| member.voter).count();
                in_force.is_some_and(|keys| keys.hands_over().is_none() && keys.cosigners.len() == voters)
            });
            if settled {
                return true;
            }
            sleep_true(Duration::from_millis(100)).await;
        }
        false
    }

    /// A node that is no member any more is switched off, or runs on and must disturb nobody.
    pub(crate) fn retire(&self, gone: u64) {
        lock(&self.0.state).active.remove(&gone);
        if self.chance(0.5) && self.node(gone).is_some() {
            self.count("removed and running");
            lock(&self.0.state).removed.insert(gone);
        } else {
            self.crash(gone);
        }
    }

    async fn try_to_lead<F>(&self, act: impl Fn(Node) -> F) -> bool
    where
        F: Future<Output = Result<(), Error>> + Send + 'static,
    {
        for _ in 0..20 {
            if let Some(leader) = self.leader()
                && let Ok(Some(Ok(()))) = tokio::time::timeout(Duration::from_secs(2), self.on(leader, &act)).await
            {
                return true;
            }
            sleep_true(Duration::from_millis(100)).await;
        }
        false
    }

    /// Brings the machines that run in line with what the leader says of the members.
    pub(crate) async fn reconcile(&self) -> Result<(), String> {
        self.heal().await;
        let leader = self.leads_at_last().await?;
        let Some(members) = self.node(leader).map(|(_, node)| node.members()) else { return Ok(()) };
        let members: BTreeSet<u64> = members.into_iter().map(|member| member.node).collect();
        for id in self.ids().into_iter().filter(|id| !members.contains(id)) {
            self.retire(id);
        }
        lock(&self.0.state).active = members;
        self.heal().await;
        Ok(())
    }

    /// Has the leader take a node in and make it a voter.
    pub(crate) async fn grow(&self, id: u64) {
        self.take_in(id).await;
        self.lead(&format!("promoting node {id}"), |node| async move { node.promote(id).await }).await;
    }

    /// Has the leader take a node in as a learner.
    pub(crate) async fn take_in(&self, id: u64) {
        let (address, cosigner) = (format!("node{id}:8444"), self.cosigner(id));
        let adding = |node: Node| {
            let (address, cosigner) = (address.clone(), cosigner.clone());
            async move { node.add_learner(id, &address, &cosigner).await }
        };
        self.lead(&format!("taking in node {id}"), adding).await;
    }

    /// Does something on whoever leads, until it is done; panics after a minute.
    pub(crate) async fn lead<F>(&self, what: &str, act: impl Fn(Node) -> F)
    where
        F: Future<Output = Result<(), Error>> + Send + 'static,
    {
        let mut last = "no node was up".to_owned();
        for round in 0..600u64 {
            let ids = self.ids();
            let id = ids[usize::try_from(round).unwrap() % ids.len()];
            match tokio::time::timeout(Duration::from_secs(5), self.on(id, &act)).await {
                Ok(Some(Ok(()))) => return,
                Ok(Some(Err(error))) => last = error.to_string(),
                Ok(None) => {}
                Err(_) => last = "no answer".into(),
            }
            sleep_true(Duration::from_millis(100)).await;
        }
        panic!("{what}: {last}");
    }
}
