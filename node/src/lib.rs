//! The chain node of a Samovar ledger: Merkle log, state, storage and replication.
//!
//! Nothing in this crate knows HTTP, TLS, a configuration file or the wall clock of the machine except through
//! [`rt`] and [`disk`]; that is what lets a simulation run this very code. [`Node`] is the only door.

pub mod blobs;
pub mod checkpoint;
pub mod command;
pub mod disk;
pub mod entry;
pub mod error;
pub mod format;
pub mod merkle;
pub mod node;
pub mod note;
pub mod policy;
pub mod proof;
pub mod rt;
pub mod seal;
pub mod state_root;
pub mod tiles;
pub mod trace;
pub mod transport;
pub mod view;

mod archive;
mod canonical;
mod clock;
mod cosign;
mod cosigners;
mod durable;
mod identity;
mod ledger;
mod log_key;
mod machine;
mod planted;
mod raft;
mod read;
mod salts;
mod segment;
mod snapshot;
mod store;
mod wal;

pub use blobs::{Blob, BlobUpload, Cid};
pub use command::{Key, Operation, Outcome, Refusal, Requirement, Write};
pub use error::Error;
pub use node::{Node, QUARANTINE, TARGETS_LEFT_OUT};
