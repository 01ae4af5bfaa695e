//! How a node reaches its peers. The node makes and reads the messages ([`crate::Node::answer`] at the other end); a
//! [`Transport`] carries bytes to a peer whose identity it has checked, and brings the answer back.

use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;

pub mod sim;

/// Largest message or answer, in bytes: a chunk of a snapshot, whose one frame may hold a block of the largest size.
pub const MESSAGE_BYTES_MAX: usize = 72 << 20;

/// Whom a message is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Id in the cluster.
    pub node: u64,
    /// Where it listens, as it was told to the cluster: `host:port`.
    pub address: String,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// The peer surely did not get the message.
    #[error("the peer cannot be reached: {0}")]
    NotSent(String),
    /// The peer may have got it, and acted on it.
    #[error("the peer did not answer: {0}")]
    NoAnswer(String),
}

/// A message on its way. Dropped, it may still arrive.
pub type Call = Pin<Box<dyn Future<Output = Result<Bytes, Lost>> + Send>>;

/// Carries messages to peers. The network may lose, delay and repeat them, but what was answered arrives no second time (over
/// TCP nothing does that was not sent again): a refusal says for good that nothing was done. Who sends bounds how long it waits.
pub trait Transport: Send + Sync + 'static {
    /// Sends a message, at most [`MESSAGE_BYTES_MAX`] long, and waits for the answer.
    fn call(&self, to: &Peer, message: Bytes) -> Call;
}

/// The transport of a node that has no peers.
#[derive(Debug, Clone, Copy, Default)]
pub struct Alone;

impl Transport for Alone {
    fn call(&self, _to: &Peer, _message: Bytes) -> Call {
        Box::pin(std::future::ready(Err(Lost::NotSent("this node was started without peers".into()))))
    }
}
