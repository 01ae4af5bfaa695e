//! Which cluster a message belongs to. A recovery after a lost quorum begins a new one with the same CA, whose nodes know the
//! old ones by their certificates: so every question carries the id of its cluster, and one of another is refused. A node of
//! the cluster before that is told so by a member that went on without it has no part in the ledger any more.

use std::sync::Arc;

use tokio::sync::watch;

use super::message::Refused;
use crate::identity::ClusterId;

/// This node's cluster. Clones name the same.
#[derive(Clone)]
pub(crate) struct Epoch(Arc<Own>);

struct Own {
    id: ClusterId,
    /// Why this node belongs to no cluster any more.
    superseded: watch::Sender<Option<String>>,
}

impl Epoch {
    pub(super) fn new(id: ClusterId) -> Self {
        Self(Arc::new(Own { id, superseded: watch::Sender::new(None) }))
    }

    pub(super) fn id(&self) -> ClusterId {
        self.0.id
    }

    /// Refuses a question of a node of another cluster.
    pub(super) fn hear(&self, from: u64, theirs: u64) -> Result<(), Refused> {
        let (own, other) = (self.0.id, ClusterId(theirs));
        if own == other {
            return Ok(());
        }
        let why = match other.epoch().cmp(&own.epoch()) {
            std::cmp::Ordering::Less => format!(
                "node {from} belongs to the cluster before the recovery that began epoch {}: it has no part in the ledger \
                 any more",
                own.epoch()
            ),
            std::cmp::Ordering::Greater => format!(
                "node {from} belongs to epoch {} of the ledger, which was recovered without this node of epoch {}",
                other.epoch(),
                own.epoch()
            ),
            std::cmp::Ordering::Equal => format!(
                "node {from} belongs to another recovery of this ledger to epoch {}: stop the nodes of one of the two, and \
                 let them join the other as new ones",
                own.epoch()
            ),
        };
        tracing::warn!("{why}");
        Err(Refused::Cluster { cluster: own.0, why })
    }

    /// A member of this node's own cluster refuses it, being of another.
    pub(super) fn refused(&self, by: u64, theirs: u64) {
        let other = ClusterId(theirs);
        if other.epoch() <= self.0.id.epoch() {
            tracing::error!("node {by} is of another recovery of this ledger to epoch {}", other.epoch());
            return;
        }
        self.0.superseded.send_if_modified(|why| {
            let first = why.is_none();
            if first {
                *why = Some(format!(
                    "the ledger was recovered without this node: node {by} is of epoch {}, this one of epoch {}. It must not \
                     serve again. Keep its data directory as evidence of what may have been lost, and let the machine join as \
                     a new node with an empty one",
                    other.epoch(),
                    self.0.id.epoch()
                ));
            }
            first
        });
    }

    /// Resolves when this node belongs to no cluster any more, with the reason.
    pub(crate) fn superseded(&self) -> impl Future<Output = String> + Send + 'static {
        let mut superseded = self.0.superseded.subscribe();
        async move {
            if let Ok(why) = superseded.wait_for(Option::is_some).await.map(|why| why.clone()) {
                return why.unwrap_or_default();
            }
            std::future::pending().await
        }
    }
}
