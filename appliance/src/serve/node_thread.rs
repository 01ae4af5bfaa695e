//! The node on a thread and runtime of its own.

use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use samovar_node::disk::OsDisk;
use samovar_node::node::Config;
use samovar_node::{Node, rt};
use tokio::sync::oneshot;

use super::notify;
use crate::peers::Peers;

/// How often systemd is told that a start goes on.
const STILL_INTERVAL: Duration = Duration::from_secs(5);
/// How long a start may ask for more time: what takes longer will not end.
const START_MAX: Duration = Duration::from_secs(15 * 60);

/// How long a node that failed may take to stop: all that it acknowledged is durable.
const FAILED_STOP_MAX: Duration = Duration::from_secs(10);

/// A running node. [`NodeThread::stop`] it; dropped, it is only abandoned.
pub(super) struct NodeThread {
    node: Node,
    stop: oneshot::Sender<()>,
    ended: Option<oneshot::Receiver<()>>,
    thread: JoinHandle<Result<()>>,
}

impl NodeThread {
    /// Starts the node and returns when it is open.
    pub(super) fn start(config: Config, peers: Peers) -> Result<Self> {
        let (opened, open) = std::sync::mpsc::sync_channel(1);
        let (stop, stopped) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("node".into())
            .spawn(move || {
                // Dropped at the end, also of a panic.
                let _end: oneshot::Sender<()> = end;
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                let runtime = runtime.context("starting the node's runtime")?;
                let ended = runtime.block_on(async {
                    let transport = Arc::new(peers.clone());
                    let started = Node::start_with(Arc::new(OsDisk), config, transport).await;
                    let node = started.map_err(anyhow::Error::from)?;
                    if Peers::are_wanted(&node)
                        && let Err(error) = peers.open()
                    {
                        node.stop().await;
                        return Err(error);
                    }
                    let attended = rt::spawn(peers.attend(node.clone()));
                    let _ = opened.send(node.clone());
                    let failure = tokio::select! {
                        _ = stopped => None,
                        failure = node.failure() => Some(failure),
                    };
                    // Peers are answered until the end: some of them wait for it.
                    if failure.is_none() {
                        node.stop().await;
                    } else if rt::timeout(FAILED_STOP_MAX, node.stop()).await.is_err() {
                        tracing::error!("the node that failed does not come to its end: it is cut off");
                    }
                    attended.abort();
                    failure.map_or(Ok(()), |e| Err(anyhow::Error::from(e).context("the node failed")))
                });
                match ended {
                    Ok(()) => drop(runtime),
                    // What still waits for a disk is not waited for.
                    Err(_) => runtime.shutdown_timeout(Duration::from_secs(1)),
                }
                ended
            })
            .context("starting the node's thread")?;
        let begun = Instant::now();
        loop {
            match open.recv_timeout(STILL_INTERVAL) {
                Ok(node) => return Ok(Self { node, stop, ended: Some(ended), thread }),
                Err(RecvTimeoutError::Timeout) if begun.elapsed() < START_MAX => {
                    notify::still(&format!("Replaying the raft log, for {} s now", begun.elapsed().as_secs()));
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(join(thread).err().unwrap_or_else(|| anyhow!("the node ended before it was open")));
                }
            }
        }
    }

    /// The node.
    pub(super) fn node(&self) -> &Node {
        &self.node
    }

    /// Resolves when the node's thread ends, whatever the reason. Once.
    pub(super) fn ended(&mut self) -> impl Future<Output = ()> + use<> {
        let ended = self.ended.take();
        async move {
            match ended {
                Some(ended) => drop(ended.await),
                None => std::future::pending().await,
            }
        }
    }

    /// Makes everything durable and ends the thread.
    pub(super) fn stop(self) -> Result<()> {
        let Self { node, stop, thread, .. } = self;
        drop(node);
        let _ = stop.send(());
        join(thread)
    }
}

fn join(thread: JoinHandle<Result<()>>) -> Result<()> {
    thread.join().unwrap_or_else(|_| Err(anyhow!("the node's thread panicked; the journal says where")))
}
