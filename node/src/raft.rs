//! openraft, configured: the types it works with. Only this file and those below it import openraft (and [`crate::rt`],
//! which implements its runtime).

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::command::Outcome;

pub mod log;

openraft::declare_raft_types!(
    /// The ledger's Raft.
    pub TypeConfig:
        D = Proposal,
        R = Applied,
        NodeId = u64,
        Node = openraft::BasicNode,
        Entry = openraft::Entry<TypeConfig>,
        SnapshotData = SnapshotStream,
        AsyncRuntime = crate::rt::Runtime,
);

/// What is proposed: the encoded [`Command`](crate::command), carried as it lies in the raft log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal(pub Bytes);

/// What apply answers: one outcome per write of the proposal, in order.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Applied(pub Arc<[Outcome]>);

/// A snapshot in transit.
#[derive(Debug)]
pub struct SnapshotStream;
