//! The nodes of the cluster as processes on machines: how one reaches another over HTTPS (port 8444), what they know of each
//! other, and how the members of the cluster become what the ledger says (`~nodes/`).
//!
//! All of it runs on the runtime of the node, so that a flood of requests at the API delays no heartbeat. A node without
//! peers listens on no port: it does from when it makes a join token or admits a node, and at a start that finds peers.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use hyper::Method;
use samovar_node::transport::Peer;
use samovar_node::{Error, Node};
use tokio::sync::mpsc;

use crate::config::Config;
use crate::live::Live;
use crate::secrets::Secrets;
use crate::tls::{Certificates, ClientKeys, PeerTls};
use crate::update;

mod attend;
mod book;
mod rebuild;
mod server;
mod taken;
mod transport;

pub(crate) use attend::{disk_bytes, read_peers};
pub(crate) use book::{Calls, Known, Report};

use book::Book;
pub(crate) use rebuild::{Ask, Readmitted};
use transport::Pool;
pub(crate) use transport::REPORT;

/// Whether a node is to be in service.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Service {
    /// It prepares for its stop: see [`Node::drain`].
    Drain,
    /// It is in service again.
    Resume,
}

impl Service {
    /// Does it to this node.
    ///
    /// # Errors
    /// As [`Node::drain`].
    pub(crate) async fn apply(self, node: &Node) -> Result<(), Error> {
        match self {
            Self::Drain => node.drain().await,
            Self::Resume => {
                node.resume();
                Ok(())
            }
        }
    }
}

/// This node among its peers. Clones are cheap and name the same one.
#[derive(Clone)]
pub(crate) struct Peers(Arc<Inner>);

struct Inner {
    secrets: Secrets,
    /// Where peers are answered.
    listen: SocketAddr,
    /// Where they are told to reach this node, `HOST:PORT`.
    address: String,
    /// What TLS is done with; read when it is first needed, and again when the files changed.
    tls: Mutex<Option<Arc<PeerTls>>>,
    /// The node's sure time, milliseconds since 1970; 0 before it runs.
    sure_ms: Arc<AtomicU64>,
    /// Connections to peers, by their id. Locked for a look, never over an await.
    pools: Mutex<HashMap<u64, Arc<Pool>>>,
    book: Book,
    /// Keys that never are principals.
    clients: Mutex<Option<Arc<ClientKeys>>>,
    /// What certifies a peer that comes back as a new node.
    authority: Mutex<Weak<Certificates>>,
    /// Verifier key of this node's cosignatures, read when it is first told.
    cosigner: OnceLock<String>,
    /// Whether peers are answered, or will be.
    open: Mutex<bool>,
    opened: mpsc::UnboundedSender<TcpListener>,
    /// Taken by the one that attends.
    to_open: Mutex<Option<mpsc::UnboundedReceiver<TcpListener>>>,
    /// Where the machine's updater keeps its files.
    updates: PathBuf,
    /// Held while the file of permits that were taken without a quorum changes.
    taking: Mutex<()>,
    /// What is wrong with this node, as its peers are told.
    pub(crate) errors: Live<Vec<String>>,
}

impl Peers {
    /// As configured. Opens nothing.
    pub(crate) fn new(config: &Config, secrets: &Secrets) -> Self {
        let (opened, to_open) = mpsc::unbounded_channel();
        Self(Arc::new(Inner {
            secrets: secrets.clone(),
            listen: config.peers_listen,
            address: config.peers_address.clone(),
            tls: Mutex::default(),
            sure_ms: Arc::default(),
            pools: Mutex::default(),
            book: Book::default(),
            clients: Mutex::default(),
            authority: Mutex::default(),
            cosigner: OnceLock::new(),
            open: Mutex::default(),
            opened,
            to_open: Mutex::new(Some(to_open)),
            updates: config.updates.clone(),
            taking: Mutex::default(),
            errors: Live::new(Vec::new()),
        }))
    }

    /// Where peers are told to reach this node.
    pub(crate) fn address(&self) -> &str {
        &self.0.address
    }

    /// The newest format of commands that the version in this machine's spare slot reads, if it has one.
    pub(crate) fn spare_format(&self) -> Option<u8> {
        update::spare_format(&self.0.updates)
    }

    /// What is known of a peer.
    pub(crate) fn known(&self, node: u64) -> Known {
        self.0.book.known(node)
    }

    /// Whether peers said that this node was removed.
    pub(crate) fn is_refused(&self) -> bool {
        self.0.book.is_refused()
    }

    /// Says what is wrong with this node.
    pub(crate) fn set_errors(&self, errors: Vec<String>) {
        self.0.errors.set(Arc::new(errors));
    }

    /// Says who is to know the keys of peers.
    pub(crate) fn introduce(&self, clients: Arc<ClientKeys>) {
        *self.0.clients.lock().unwrap_or_else(PoisonError::into_inner) = Some(clients);
    }

    /// Says what certifies a peer that comes back as a new node. It is not held: it holds the node, and the node these peers.
    pub(crate) fn entrust(&self, authority: &Arc<Certificates>) {
        *self.0.authority.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(authority);
    }

    /// Takes a peer out of service, or puts it back.
    ///
    /// # Errors
    /// Why not, as the peer says or the way to it.
    pub(crate) async fn order(&self, node: &Node, peer: u64, service: Service) -> Result<(), String> {
        let member = node.members().into_iter().find(|member| member.node == peer);
        let member = member.ok_or("the node is no member yet")?;
        let path = match service {
            Service::Drain => transport::DRAIN,
            Service::Resume => transport::RESUME,
        };
        let to = Peer { node: peer, address: member.address };
        self.ask(&to, Method::POST, path, Bytes::new()).await.map(drop).map_err(|lost| lost.to_string())
    }

    /// Begins to answer peers, unless that was begun.
    ///
    /// # Errors
    /// When the port cannot be had; with what to do.
    pub(crate) fn open(&self) -> anyhow::Result<()> {
        let mut open = self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        if *open {
            return Ok(());
        }
        let listen = self.0.listen;
        let bound = TcpListener::bind(listen).and_then(|l| l.set_nonblocking(true).map(|()| l));
        let listener = bound.map_err(|e| anyhow!("cannot listen on {listen} for peers: {e}; see [peers] listen"))?;
        self.0.opened.send(listener).map_err(|_| anyhow!("the node is stopping"))?;
        *open = true;
        tracing::info!(address = %listen, told = self.0.address, "peers are answered");
        Ok(())
    }

    /// Whether peers are answered.
    pub(crate) fn is_open(&self) -> bool {
        *self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads key, certificate and CAs again: each connection to come uses them.
    pub(crate) fn renew(&self) {
        *self.0.tls.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// What TLS is done with.
    fn tls(&self) -> anyhow::Result<Arc<PeerTls>> {
        let mut tls = self.0.tls.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tls) = &*tls {
            return Ok(tls.clone());
        }
        let read = PeerTls::load(&self.0.secrets, self.0.sure_ms.clone()).context("TLS for peers")?;
        Ok(tls.insert(Arc::new(read)).clone())
    }

    /// Whether a node has peers, or must hear from some: after a recovery also those that it has no more, to tell them.
    pub(crate) fn are_wanted(node: &Node) -> bool {
        let members = node.members();
        members.len() != 1 || members[0].node != node.id() || node.epoch() > 1
    }

    /// Notes the time to go by.
    fn note_time(&self, node: &Node) {
        self.0.sure_ms.store(node.now_ms(), Relaxed);
    }

    /// Notes whose key a peer proved to have.
    fn note_key(&self, node: u64, key: [u8; 32]) {
        if let Some(clients) = &*self.0.clients.lock().unwrap_or_else(PoisonError::into_inner) {
            clients.note_peer(node, key);
        }
    }
}
