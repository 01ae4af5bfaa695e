//! The composition root: what starts in which order, and stops in which.
//!
//! The node runs on a thread and runtime of its own, so that a flood of requests cannot delay its heartbeats; the
//! listener has the calling thread.

use std::future::Future;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, bail};
use samovar_node::disk::{Disk, OsDisk};
use samovar_node::{Node, rt};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::api::{self, App};
use crate::config::Config;
use crate::durable::{Mode, write_new};
use crate::http::Server;
use crate::journal;
use crate::metrics::Metrics;
use crate::peers::Peers;
use crate::secrets::Secrets;
use crate::tls::{self, Certificates, Responder};

mod dev;
mod directory;
mod generation;
mod heartbeat;
mod init;
mod join;
mod local;
mod machine_clock;
mod node_thread;
mod notify;
mod rebuild;
mod recover;
mod reload;
mod sealing;
mod sockets;

pub(crate) use dev::dev;
pub(crate) use directory::{ADMIN_TOKEN_FILE, LOCK_FILE, VKEY_FILE, write_vkey};
pub(crate) use init::{Made, Shown, init, is_node_name};
pub(crate) use join::{Join, Joined, join};
pub(crate) use local::SOCKET_FILE;
pub(crate) use machine_clock::{is_synchronised, somebody_knows};
pub(crate) use recover::{Preview, Survivor, Wanted, read_known};
pub(crate) use reload::Source;
pub(crate) use sealing::settle;

use directory::DataDirectory;
use node_thread::NodeThread;
use reload::Settings;

/// File of the data directory that says where the node listens.
pub(crate) const URL_FILE: &str = "url";
/// Threads for what would hold up the listener: reads that may wait for the disk, hashes of passwords.
const BLOCKING_THREADS: usize = 6;
/// Descriptors beyond those of connections: storage, peers, journal.
pub(crate) const DESCRIPTORS_RESERVED: u64 = 512;

/// Runs the daemon until SIGTERM or SIGINT; returns once everything in flight is answered and durable. SIGHUP reloads.
pub(crate) fn serve(source: Source) -> Result<()> {
    let config = source.load()?;
    journal::start(config.level);
    let (reload, reloads) = mpsc::channel(1);
    run(source, &config, |_| {}, signalled(reload), reloads)
}

/// Start order, then stop order. `ready` is told the address; `stop` resolves when the daemon is to stop; each of
/// `reloads` asks for a reload.
fn run(
    source: Source,
    config: &Config,
    ready: impl FnOnce(SocketAddr),
    stop: impl Future<Output = ()>,
    reloads: mpsc::Receiver<()>,
) -> Result<()> {
    let directory = DataDirectory::open(&config.data)?;
    raise_descriptor_limit(config.limits.connections_max)?;
    let secrets = sealing::open(config)?;
    let listeners = (bind(config.listen)?, sockets::acme(&config.acme_listen)?);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build()
        .context("starting the runtime")?;
    notify::status("Replaying the raft log");
    rt::report_synchronised(runtime.block_on(machine_clock::is_synchronised()));
    let (peers, mut node) = start(config, &secrets, &runtime)?;

    let served = runtime.block_on(async {
        let ended = node.ended();
        let open = Open { node: node.node().clone(), peers, secrets };
        listen(config, source, open, listeners, Events { ready, stop, reloads, ended }).await
    });

    notify::stopping("Making everything durable");
    local::remove(directory.path());
    let stopped = node.stop();
    if let Some(what) = stopped.as_ref().err().and_then(rebuild::damage) {
        rebuild::want(&config.data, &what);
    }
    drop(directory);
    served.and(stopped)
}

/// Starts the node. One that has peers and damaged data is built anew from them, once.
fn start(config: &Config, secrets: &Secrets, runtime: &tokio::runtime::Runtime) -> Result<(Peers, NodeThread)> {
    rebuild::complete(&config.data)?;
    generation::check(config)?;
    if let Some(what) = rebuild::wanted(&config.data)?
        && let Err(error) = rebuild::run(config, secrets, &what, runtime)
    {
        tracing::error!("{error:#}: it is started with the data that it has");
    }
    let peers = Peers::new(config, secrets);
    let refused = match NodeThread::start(node_config(config, secrets), peers.clone()) {
        Ok(node) => return Ok((peers, node)),
        Err(refused) => refused,
    };
    match rebuild::damage(&refused) {
        Some(what) if !crate::peers::read_peers(&config.data).is_empty() => {
            rebuild::run(config, secrets, &what, runtime).map_err(|why| refused.context(format!("{why:#}")))?;
        }
        _ => return Err(refused),
    }
    let peers = Peers::new(config, secrets);
    let node = NodeThread::start(node_config(config, secrets), peers.clone())?;
    Ok((peers, node))
}

/// What is told to the world outside, and what it tells.
struct Events<Ready, Stop, Ended> {
    ready: Ready,
    stop: Stop,
    reloads: mpsc::Receiver<()>,
    ended: Ended,
}

/// What was opened before anything is served.
struct Open {
    node: Node,
    peers: Peers,
    secrets: Secrets,
}

/// Serves until `stop`, or until the node fails.
async fn listen(
    config: &Config,
    source: Source,
    Open { node, peers, secrets }: Open,
    (listener, acme): (TcpListener, Vec<TcpListener>),
    events: Events<impl FnOnce(SocketAddr), impl Future<Output = ()>, impl Future<Output = ()>>,
) -> Result<()> {
    let Events { ready, stop, reloads, ended } = events;
    let (stopping, stop_seen) = watch::channel(false);
    let metrics = Arc::new(Metrics::new(&config.data));
    let subject = tls::Subject::of(&node.status().name, config.listen.ip(), &config.tls_names).of_node(node.id());
    let known = (node.clone(), peers.clone());
    let certificates = Certificates::open(&secrets, (subject, config.site.clone()), known, metrics.clone())?;
    peers.entrust(&certificates);
    let healing = rebuild::heal(node.clone(), peers.clone(), config.clone(), secrets.clone());
    let settings = Settings::new(source, config.clone(), certificates.clone());
    let (tls, limits) = (certificates.server(), settings.limits.clone());
    let live = (limits.clone(), settings.openness.clone(), settings.quotas.clone());
    let app = App::new(
        (node.clone(), peers),
        (config, &secrets),
        live,
        certificates.clone(),
        metrics.clone(),
        stop_seen.clone(),
    );
    let local = local::bind(&config.data);
    let listener = tokio::net::TcpListener::from_std(listener).context("watching the listening socket")?;
    let address = listener.local_addr().context("asking for the listening address")?;
    let handler = app.handler();
    let server = Server { listener, local, tls, limits, handler, metrics: metrics.clone() };
    let serving = rt::spawn(server.run(stop_seen));
    write_url(&config.data, address)?;
    renew_vkey(&config.data, &node.log_info().vkey)?;
    // Once systemd knows that we are ready it may send signals, so they are watched before.
    let mut stop = pin!(stop);
    let stopped_already = futures_util::future::poll_immediate(stop.as_mut()).await.is_some();
    notify::ready(&heartbeat::describe(&node.status()));
    tracing::info!(%address, "serving");
    ready(address);
    let mut attendants = JoinSet::new();
    attendants.spawn(rt::boxed(settings.follow(reloads, node.clone())));
    attendants.spawn(rt::boxed(Responder::new(acme, &certificates.site, address.port())?.run()));
    attendants.spawn(rt::boxed(certificates.follow()));
    attendants.spawn(rt::boxed(api::tell_peers(app)));
    attendants.spawn(rt::boxed(sealing::record(node.clone(), secrets)));
    attendants.spawn(rt::boxed(crate::update::follow(node.clone(), config.updates.clone())));
    attendants.spawn(rt::boxed(healing));
    attendants.spawn(rt::boxed(heartbeat::run(node)));

    let failed = tokio::select! {
        () = async { if !stopped_already { stop.await } } => None,
        () = ended => Some(anyhow!("the node stopped by itself; the journal says why")),
    };
    tracing::info!("stopping: requests in flight are answered first");
    notify::stopping("Answering requests in flight");
    attendants.shutdown().await;
    let _ = stopping.send(true);
    serving.await.context("the listener failed")?;
    failed.map_or(Ok(()), Err)
}

/// Leaves the URL for the command line on this machine, which finds CA and token beside it.
fn write_url(data: &Path, address: SocketAddr) -> Result<()> {
    let host = if address.ip().is_unspecified() { "localhost".to_owned() } else { address.ip().to_string() };
    let host = if address.is_ipv6() && host.contains(':') { format!("[{host}]") } else { host };
    let path = data.join(URL_FILE);
    if path.exists() {
        std::fs::remove_file(&path).with_context(|| format!("replacing {}", path.display()))?;
    }
    write_new(&path, format!("https://{host}:{}\n", address.port()).as_bytes(), Mode::Public)
}

/// A rotation of the log key may have been cut short before the file was replaced.
fn renew_vkey(data: &Path, vkey: &str) -> Result<()> {
    match std::fs::read_to_string(data.join(VKEY_FILE)) {
        Ok(text) if text.trim() == vkey => Ok(()),
        _ => write_vkey(data, vkey),
    }
}

fn node_config(config: &Config, secrets: &Secrets) -> samovar_node::node::Config {
    samovar_node::node::Config {
        data: secrets.data().to_owned(),
        seal: secrets.seal().clone(),
        reserve_bytes: config.reserve_bytes,
        queue_max: config.queue_max,
        cache_bytes: config.cache_bytes,
        blob_bytes_max: config.blob_bytes_max,
        unnamed_blob_age: config.unnamed_blob_age,
    }
}

/// What this machine's certificate is for.
pub(crate) fn subject(config: &Config, data: &Path) -> Result<tls::Subject> {
    let disk: Arc<dyn Disk> = Arc::new(OsDisk);
    Ok(tls::Subject::of(&Node::name_of(&disk, data)?, config.listen.ip(), &config.tls_names))
}

fn bind(address: SocketAddr) -> Result<TcpListener> {
    let next = |error: &std::io::Error| match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            "another program listens there: stop it, or choose another port in [listen] api"
        }
        std::io::ErrorKind::PermissionDenied => {
            "ports below 1024 need a privilege: choose a higher one in [listen] api"
        }
        std::io::ErrorKind::AddrNotAvailable => "this machine has no such address: see [listen] api",
        _ => "see [listen] api in the configuration",
    };
    let listener = TcpListener::bind(address).map_err(|e| anyhow!("cannot listen on {address}: {e}; {}", next(&e)))?;
    listener.set_nonblocking(true).context("preparing the listening socket")?;
    Ok(listener)
}

/// Connections must never use up the descriptors that storage needs.
fn raise_descriptor_limit(connections_max: usize) -> Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let wanted = connections_max as u64 + DESCRIPTORS_RESERVED;
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|n| n >= wanted) {
        return Ok(());
    }
    if limit.maximum.is_some_and(|n| n < wanted) {
        let most = limit.maximum.unwrap_or(0);
        bail!(
            "limits.connections = {connections_max} needs {wanted} file descriptors, this process may have {most}: raise \
             LimitNOFILE in the unit, or lower limits.connections"
        );
    }
    setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum })
        .context("raising the limit of open files")
}

/// Resolves at SIGTERM or SIGINT; each SIGHUP asks for a reload.
async fn signalled(reload: mpsc::Sender<()>) {
    let watched = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()].map(signal);
    let [Ok(mut terminate), Ok(mut interrupt), Ok(mut hangup)] = watched else {
        tracing::error!("signals cannot be watched; stop the daemon with SIGKILL, nothing acknowledged is lost");
        return std::future::pending().await;
    };
    loop {
        tokio::select! {
            _ = terminate.recv() => return,
            _ = interrupt.recv() => return,
            // One that waits already will read what is there now.
            _ = hangup.recv() => drop(reload.try_send(())),
        }
    }
}

#[cfg(test)]
mod tests;
