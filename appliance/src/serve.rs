//! The composition root: what starts in which order, and stops in which.
//!
//! The node runs on a thread and runtime of its own, so that a flood of requests cannot delay its heartbeats; the
//! listener has the calling thread.

use std::future::Future;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, bail};
use samovar_node::Node;
use samovar_node::disk::{Disk, OsDisk};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::api::App;
use crate::config::{Config, Level};
use crate::durable::{Mode, write_new};
use crate::http::Server;
use crate::metrics::{CountLines, Metrics};
use crate::tls;

mod directory;
mod init;
mod local;
mod node_thread;
mod notify;

pub(crate) use directory::ADMIN_TOKEN_FILE;
pub(crate) use init::{dev, init};
pub(crate) use local::SOCKET_FILE;

use directory::DataDirectory;
use node_thread::NodeThread;

/// File of the data directory that says where the node listens.
const URL_FILE: &str = "url";
/// Threads for what would hold up the listener: reads that may wait for the disk, hashes of passwords.
const BLOCKING_THREADS: usize = 6;
/// Descriptors beyond those of connections: storage, peers, journal.
const DESCRIPTORS_RESERVED: u64 = 512;

/// Runs the daemon until SIGTERM or SIGINT; returns once everything in flight is answered and durable.
pub(crate) fn serve(config: Config) -> Result<()> {
    journal(&config);
    run(&config, |_| {}, signalled())
}

/// Start order, then stop order. `ready` is told the address; `stop` resolves when the daemon is to stop.
fn run(config: &Config, ready: impl FnOnce(SocketAddr), stop: impl Future<Output = ()>) -> Result<()> {
    let directory = DataDirectory::open(&config.data)?;
    raise_descriptor_limit(config.limits.connections_max)?;
    let tls = tls::load_or_renew(directory.path(), || subject(config, directory.path()))?;
    let listener = bind(config.listen)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build()
        .context("starting the runtime")?;
    notify::send("STATUS=Replaying the write-ahead log");
    let mut node = NodeThread::start(node_config(config, directory.path()))?;

    let served = runtime.block_on(async {
        let ended = node.ended();
        listen(config, node.node().clone(), tls, listener, ready, stop, ended).await
    });

    notify::send("STOPPING=1\nSTATUS=Making everything durable");
    local::remove(directory.path());
    let stopped = node.stop();
    drop(directory);
    served.and(stopped)
}

/// Serves until `stop`, or until the node fails.
async fn listen(
    config: &Config,
    node: Node,
    tls: tls::Loaded,
    listener: TcpListener,
    ready: impl FnOnce(SocketAddr),
    stop: impl Future<Output = ()>,
    node_ended: impl Future<Output = ()>,
) -> Result<()> {
    let (stopping, stop_seen) = watch::channel(false);
    let metrics = Arc::new(Metrics::new(config.access, &config.data));
    for (certificate, not_after_s) in tls::expiries(&config.data) {
        metrics.certificate(certificate, not_after_s);
    }
    let app = App::new(node, config, tls.clients, metrics.clone(), stop_seen.clone());
    let local = local::bind(&config.data);
    let listener = tokio::net::TcpListener::from_std(listener).context("watching the listening socket")?;
    let address = listener.local_addr().context("asking for the listening address")?;
    let limits = Arc::new(config.limits.clone());
    let server =
        Server { listener, local, tls: TlsAcceptor::from(tls.config), limits, handler: app.handler(), metrics };
    let serving = tokio::spawn(server.run(stop_seen));
    write_url(&config.data, address)?;
    notify::send("READY=1\nSTATUS=Serving");
    tracing::info!(%address, "serving");
    ready(address);

    let failed = tokio::select! {
        () = stop => None,
        () = node_ended => Some(anyhow!("the node stopped by itself; the journal says why")),
    };
    tracing::info!("stopping: requests in flight are answered first");
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

fn node_config(config: &Config, data: &Path) -> samovar_node::node::Config {
    samovar_node::node::Config {
        data: data.to_owned(),
        reserve_bytes: config.reserve_bytes,
        queue_max: config.queue_max,
        cache_bytes: config.cache_bytes,
    }
}

/// What this machine's certificate is for.
fn subject(config: &Config, data: &Path) -> Result<tls::Subject> {
    let disk: Arc<dyn Disk> = Arc::new(OsDisk);
    Ok(tls::Subject::of(&Node::name_of(&disk, data)?, config.listen.ip()))
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

/// Resolves at SIGTERM or SIGINT.
async fn signalled() {
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::error!("signals cannot be watched; stop the daemon with SIGKILL, nothing acknowledged is lost");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// Sends events to stderr, where systemd's journal takes them. A second call changes nothing.
fn journal(config: &Config) {
    // openraft tells every step of an election at `info`.
    let quiet = if config.level < Level::Debug { ",openraft=error,sled=warn" } else { "" };
    let filter = tracing_subscriber::EnvFilter::new(format!("{}{quiet}", config.level.as_str()));
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    let _ = tracing_subscriber::registry().with(filter).with(lines).with(CountLines).try_init();
}

#[cfg(test)]
mod tests;
