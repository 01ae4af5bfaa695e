//! A member whose data is damaged, or proved to be wrong, is built anew from its peers without a hand: it is taken in as a new
//! node (`peers/rebuild.rs`), and what it had is set aside as evidence.
//!
//! What it gets from a peer is staged in `rebuild.partial`, which becomes `rebuild.ready` once it is whole. From then on every
//! start goes on: what was there moves to `quarantine`, `rebuild.ready` becomes `rebuild.moving`, what is in it moves to its
//! place. There is one quarantine: an older one goes. It holds no private key and no salt, so nothing that is erased later can be
//! read from it; its raft log, which has values in the clear, goes with the first erase that the node applies.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use samovar_node::disk::{Disk, OsDisk};
use samovar_node::transport::Peer;
use samovar_node::{Error, Node, QUARANTINE, rt};
use serde_json::json;

use super::{node_config, notify, write_vkey};
use crate::config::Config;
use crate::durable::{Mode, remove, replace, sync_directory};
use crate::peers::{Ask, Peers, Readmitted, read_peers};
use crate::secrets::Secrets;
use crate::tls::{self, CA_FILE, Subject};

const PARTIAL: &str = "rebuild.partial";
const READY: &str = "rebuild.ready";
const MOVING: &str = "rebuild.moving";
/// When this machine's data was built anew, milliseconds since 1970.
const HISTORY: &str = "rebuilt.json";
/// That a running node found its data damaged, and what.
const WANTED: &str = "rebuild.wanted";
/// What belongs to the node that was.
const OLD: [&str; 12] = [
    "raft",
    "archive",
    "state-map",
    "promise",
    "node.json",
    "divergence.json",
    "store",
    "store.suspect",
    "snapshot.part",
    "snapshot.install",
    "refused",
    super::generation::FILE,
];
/// A disk that breaks again and again is to be replaced, not filled again.
const TIMES_MAX: usize = 3;
const TIMES_WITHIN_MS: u64 = 24 * 3600 * 1000;
/// How long peers are asked at a start.
const ASK_FOR: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_secs(2);
const ANSWER_WAIT: Duration = Duration::from_secs(20);
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// What is wrong with the data, if that is why a start failed.
pub(super) fn damage(error: &anyhow::Error) -> Option<String> {
    match error.downcast_ref() {
        Some(what @ (Error::Corrupt(_) | Error::DamagedStore(_))) => Some(what.to_string()),
        _ => None,
    }
}

/// Notes durably that the next start is to ask for it, unless that was done and answered.
pub(super) fn want(data: &Path, what: &str) {
    if read_peers(data).is_empty() || data.join(READY).exists() {
        return;
    }
    if let Err(error) = replace(&data.join(WANTED), what.as_bytes(), Mode::Public) {
        tracing::error!("that this node's data is damaged was not noted: {error:#}");
    }
}

/// What a running node noted, once.
pub(super) fn wanted(data: &Path) -> Result<Option<String>> {
    let path = data.join(WANTED);
    let Ok(what) = fs::read_to_string(&path) else { return Ok(None) };
    remove(&path)?;
    Ok(Some(what))
}

/// Asks the peers of a node that cannot start to take it in anew, and puts in place what they give.
///
/// # Errors
/// When none of them does; with what the peers said.
pub(super) fn run(config: &Config, secrets: &Secrets, what: &str, runtime: &tokio::runtime::Runtime) -> Result<()> {
    let peers = Peers::new(config, secrets);
    tracing::error!("{what}: the peers of this node are asked to build it anew");
    let begun = Instant::now();
    loop {
        notify::still("Asking peers to build this node anew: its data is damaged");
        match runtime.block_on(ask(config, secrets, &peers, what)) {
            Ok(()) => break,
            Err(error) if begun.elapsed() > ASK_FOR => return Err(error),
            Err(error) => tracing::warn!("this node is not built anew yet: {error:#}"),
        }
        std::thread::sleep(PAUSE);
    }
    complete(secrets.data())
}

/// Asks each peer once, and stages what the first one gives that does.
pub(super) async fn ask(config: &Config, secrets: &Secrets, peers: &Peers, what: &str) -> Result<()> {
    let data = secrets.data();
    let known = read_peers(data);
    if known.is_empty() {
        bail!("no peers are known here");
    }
    if recent(data).len() >= TIMES_MAX {
        bail!(
            "it was built anew {TIMES_MAX} times within a day: its disk may be failing. Replace the machine (samovar node token \
             --replaces)"
        );
    }
    let partial = data.join(PARTIAL);
    clear(&partial)?;
    fs::create_dir(&partial).with_context(|| format!("making {}", partial.display()))?;
    let staged = Secrets::new(&partial, secrets.seal().clone());
    let disk: Arc<dyn Disk> = Arc::new(OsDisk);
    let name = Node::name_of(&disk, data).unwrap_or_else(|_| "node".into());
    let host = peer_host(config).into_iter().chain(config.tls_names.iter().cloned()).collect::<Vec<_>>();
    let subject = Subject::of(&name, config.listen.ip(), &host);
    fs::copy(data.join(CA_FILE), partial.join(CA_FILE)).context("copying ca.pem")?;
    let request = tls::make_request(&staged)?;
    let ask = Ask { reason: what.to_owned(), request, names: subject.texts().collect() };
    let mut why = Vec::new();
    for peer in known {
        let peer = Peer { node: peer.node, address: peer.address };
        let asked = rt::timeout(ANSWER_WAIT, peers.ask_to_rebuild(&peer, &ask)).await;
        match asked.unwrap_or_else(|_| Err("no answer in time".into())) {
            Ok(new) => return stage(config, &staged, data, &new, what),
            Err(error) => why.push(format!("node {}: {error}", peer.node)),
        }
    }
    Err(anyhow!("no peer builds this node anew ({})", why.join("; ")))
}

fn stage(config: &Config, staged: &Secrets, data: &Path, new: &Readmitted, what: &str) -> Result<()> {
    let disk: Arc<dyn Disk> = Arc::new(OsDisk);
    let made = Node::join(&disk, &node_config(config, staged), &new.name, &new.admission);
    made.map_err(|e| anyhow!("making the node: {e}"))?;
    tls::accept(staged, &new.certificate, &new.ca)?;
    write_vkey(staged.data(), &new.vkey)?;
    let why = json!({ "time_ms": rt::now_ms(), "reason": what, "node": new.node, "name": new.name });
    replace(&staged.data().join("why.json"), why.to_string().as_bytes(), Mode::Public)?;
    sync_directory(staged.data())?;
    let (partial, ready) = (data.join(PARTIAL), data.join(READY));
    fs::rename(&partial, &ready).with_context(|| format!("renaming {}", partial.display()))?;
    sync_directory(data)?;
    tracing::error!(node = new.node, "this node comes back as node {}, built anew from its peers", new.node);
    Ok(())
}

/// Goes on with what was staged, if anything was.
///
/// # Errors
/// As the system says; the next start goes on.
pub(super) fn complete(data: &Path) -> Result<()> {
    let (ready, moving) = (data.join(READY), data.join(MOVING));
    if ready.exists() {
        set_aside(data, &ready)?;
        fs::rename(&ready, &moving).with_context(|| format!("renaming {}", ready.display()))?;
        sync_directory(data)?;
    }
    if !moving.exists() {
        return Ok(());
    }
    for name in ["keys", "tls", "."] {
        let (from, to) = (moving.join(name), data.join(name));
        if !from.exists() {
            continue;
        }
        fs::create_dir_all(&to).with_context(|| format!("making {}", to.display()))?;
        for entry in fs::read_dir(&from).with_context(|| format!("listing {}", from.display()))? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                fs::rename(entry.path(), to.join(entry.file_name()))
                    .with_context(|| format!("moving {}", entry.path().display()))?;
            }
        }
        sync_directory(&to)?;
    }
    clear(&moving)?;
    sync_directory(data)
}

/// Moves what the node had to the quarantine, and destroys what nobody may have any more.
fn set_aside(data: &Path, ready: &Path) -> Result<()> {
    let quarantine = data.join(QUARANTINE);
    let why = ready.join("why.json");
    // Before the first move only: a start that was cut goes on with the same one.
    if why.exists() {
        clear(&quarantine)?;
        fs::create_dir(&quarantine).with_context(|| format!("making {}", quarantine.display()))?;
        let mut times = recent(data);
        times.push(rt::now_ms());
        replace(&data.join(HISTORY), json!(times).to_string().as_bytes(), Mode::Public)?;
        fs::rename(&why, quarantine.join("why.json")).context("moving why.json")?;
        sync_directory(&quarantine)?;
        sync_directory(ready)?;
    }
    for name in ["keys/log", "keys/log.next", "keys/cosigner", "salts"] {
        destroy(&data.join(name))?;
    }
    let mut names: Vec<String> = OLD.iter().map(|name| (*name).to_owned()).collect();
    for entry in fs::read_dir(data).context("listing the data directory")? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        names.extend(Some(name).filter(|name| name.starts_with("store.damaged-")));
    }
    for name in names {
        let from = data.join(&name);
        if from.exists() {
            fs::rename(&from, quarantine.join(&name)).with_context(|| format!("setting {} aside", from.display()))?;
        }
    }
    sync_directory(&quarantine)?;
    sync_directory(data)?;
    // The copy that comes needs as much room again.
    let (held, free) = (bytes_of(&quarantine), OsDisk.free_bytes(data).unwrap_or(0));
    if free < held.saturating_mul(2) {
        tracing::warn!(
            held,
            free,
            "there is no room for both: of the data that was set aside only the small files are kept"
        );
        for name in ["store", "archive", "raft", "state-map"] {
            clear(&quarantine.join(name))?;
        }
    }
    Ok(())
}

fn recent(data: &Path) -> Vec<u64> {
    let times = fs::read(data.join(HISTORY)).ok().and_then(|bytes| serde_json::from_slice::<Vec<u64>>(&bytes).ok());
    let since = rt::now_ms().saturating_sub(TIMES_WITHIN_MS);
    times.unwrap_or_default().into_iter().filter(|time| *time > since).collect()
}

/// Removes a file or a directory, if it is there.
fn clear(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Err(_) => return Ok(()),
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    };
    removed.with_context(|| format!("removing {}", path.display()))
}

/// Overwrites a file with zeros, then removes it.
fn destroy(path: &Path) -> Result<()> {
    use std::io::Write as _;
    let zero = || -> std::io::Result<()> {
        let mut file = fs::OpenOptions::new().write(true).open(path)?;
        let mut left = file.metadata()?.len();
        while left > 0 {
            let length = left.min(ZEROS.len() as u64);
            file.write_all(&ZEROS[..usize::try_from(length).unwrap_or(0)])?;
            left -= length;
        }
        file.sync_data()?;
        fs::remove_file(path)
    };
    match zero() {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("destroying {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn bytes_of(path: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(path) else { return 0 };
    let each = entries.flatten().map(|entry| match entry.metadata() {
        Ok(found) if found.is_dir() => bytes_of(&entry.path()),
        Ok(found) => found.len(),
        Err(_) => 0,
    });
    each.sum()
}

/// The host under which peers reach this node, for its certificate.
fn peer_host(config: &Config) -> Option<String> {
    let (host, _) = config.peers_address.rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    Some(host).filter(|host| tls::is_dns_name(host) || host.parse::<IpAddr>().is_ok())
}

/// Waits until it is proved that the state of a running node is wrong; then has its peers take it in anew and ends it, so that
/// the next start goes on.
pub(super) async fn heal(node: Node, peers: Peers, config: Config, secrets: Secrets) {
    let divergence = node.proved_wrong().await;
    let what = format!("this node's state of {} entries is proved to be wrong (divergence.json)", divergence.size);
    loop {
        match ask(&config, &secrets, &peers, &what).await {
            Ok(()) => {
                node.end(Error::Corrupt(format!("{what}: it is built anew at its next start")));
                return;
            }
            Err(error) => tracing::warn!("{what}, and it is not built anew yet: {error:#}"),
        }
        rt::sleep(PAUSE).await;
    }
}
