//! `samovar init` and `samovar dev`: a ledger from nothing.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, bail};
use samovar_node::disk::{Disk, OsDisk};
use samovar_node::{Node, rt};
use tokio::sync::mpsc;

use super::directory::{ADMIN_TOKEN_FILE, DataDirectory, VKEY_FILE, write_vkey};
use super::node_thread::NodeThread;
use super::{Source, node_config, run, signalled};
use crate::auth::{API_KEYS, Access, ApiKey, Holder, Issued, Role, commit};
use crate::config::{Config, DATA_FILE};
use crate::durable::{Mode, write_new};
use crate::journal;
use crate::secrets::{KekFiles, Secrets};
use crate::tls::{self, CA_FILE, Subject};

/// Author of the first entry.
const AUTHOR: &str = "init";
/// Longest name of a node, in bytes.
const NAME_BYTES_MAX: usize = 63;
/// Where `dev` keeps its ledger when no directory is named.
const DEV_DIRECTORY: &str = "samovar-dev";
const DEV_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8443);

/// What `init` made.
#[derive(Debug, Clone)]
pub(crate) struct Made {
    /// CA certificate for clients.
    pub(crate) ca: PathBuf,
    /// Token of the first admin key, mode 0600.
    pub(crate) token: PathBuf,
    /// Verifier key of the log.
    pub(crate) vkey: PathBuf,
}

impl Made {
    /// The files that clients need, of a data directory.
    fn of(data: &Path) -> Self {
        Self { ca: data.join(CA_FILE), token: data.join(ADMIN_TOKEN_FILE), vkey: data.join(VKEY_FILE) }
    }
}

/// Makes a ledger: keys, certificates, the chain's files and a first admin key. All or nothing: a crash in the middle
/// leaves a directory that another `init` clears and `serve` refuses. The node is named after the host unless `name`
/// says otherwise; `listen` is kept in `samovar.toml` in the data directory. Private keys are sealed from the first byte on
/// if there is a key-encryption key.
pub(crate) fn init(data: &Path, name: Option<&str>, listen: Option<SocketAddr>, kek: &KekFiles) -> Result<Made> {
    let name = node_name(name)?;
    let seal = kek.read(data)?;
    let (directory, partial) = DataDirectory::begin(data)?;
    let secrets = Secrets::new(&partial, seal);
    let config = node_config(&Config::parse("(defaults)", "")?, &secrets);
    let made = Made::of(&partial);
    let disk: Arc<dyn Disk> = Arc::new(OsDisk);
    let log = Node::init(&disk, &config, &name, &origin(&name)).map_err(|e| anyhow!("making the ledger: {e}"))?;
    let address = listen.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |a| a.ip());
    tls::make(&secrets, &Subject::of(&name, address, &[]))?;
    write_vkey(&partial, &log.vkey)?;
    if let Some(listen) = listen {
        write_new(&partial.join(DATA_FILE), format!("[listen]\napi = \"{listen}\"\n").as_bytes(), Mode::Public)?;
    }
    let token = first_admin_key(config)?;
    write_new(&made.token, format!("{token}\n").as_bytes(), Mode::Secret)?;
    directory.complete()?;
    Ok(Made::of(data))
}

/// Starts the node for one write and stops it again.
fn first_admin_key(config: samovar_node::node::Config) -> Result<String> {
    let access = Access { role: Role::Admin, prefixes: Vec::new(), grants: Vec::new() };
    let node = NodeThread::start(config)?;
    let Issued { id, row, token } =
        ApiKey::issue("first admin key, made by init".into(), Holder::Nobody(access), None, node.node().now_ms());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    let stored = API_KEYS.put(&id, &row).map(|operation| vec![operation]);
    let stored = stored.and_then(|operations| runtime.block_on(commit(node.node(), AUTHOR, Vec::new(), operations)));
    node.stop()?;
    stored.map_err(|problem| anyhow!("storing the admin key: {problem:?}"))?;
    Ok(token)
}

/// The name asked for, or the host's; it is a host name in certificates and a word in the origin.
fn node_name(wanted: Option<&str>) -> Result<String> {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let name = wanted.map_or_else(|| host.split('.').next().unwrap_or("").to_lowercase(), str::to_owned);
    let good = (1..=NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-');
    match (good, wanted) {
        (true, _) => Ok(name),
        (false, Some(_)) => bail!("`{name}` cannot name a node: use 1 to {NAME_BYTES_MAX} of a-z, 0-9 and -"),
        (false, None) => Ok("node".to_owned()),
    }
}

/// Origin of the log: unique, so that a client can never take one ledger for another.
fn origin(name: &str) -> String {
    let mut random = [0; 8];
    rt::fill_random(&mut random);
    format!("samovar/{name}/{:016x}", u64::from_be_bytes(random))
}

/// Makes a ledger on this machine's loopback unless there is one, serves it, and prints where. `data` is by default
/// `samovar-dev` in the working directory.
pub(crate) fn dev(nodes: u8, data: Option<PathBuf>) -> Result<()> {
    if nodes != 1 {
        bail!("this version runs one node: samovar dev --nodes 1");
    }
    let data = data.unwrap_or_else(|| PathBuf::from(DEV_DIRECTORY));
    if !data.join(VKEY_FILE).exists() {
        init(&data, None, Some(DEV_LISTEN), &KekFiles::default())?;
    }
    let source = Source { file: Some(data.join(DATA_FILE)).filter(|f| f.exists()), data: Some(data.clone()) };
    let config = source.load()?;
    journal::start(config.level);
    let made = Made::of(&data);
    let (reload, reloads) = mpsc::channel(1);
    run(source, &config, |address| announce(address, &made), signalled(reload), reloads)
}

#[allow(clippy::print_stdout, reason = "what `dev` is for")]
fn announce(address: SocketAddr, made: &Made) {
    println!("url    https://{address}");
    println!("ca     {}", made.ca.display());
    println!("token  {}", made.token.display());
    println!("vkey   {}", made.vkey.display());
}
