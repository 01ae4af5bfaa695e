//! `samovar init`: a ledger from nothing.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, bail};
use samovar_node::disk::{Disk, OsDisk};
use samovar_node::{Node, rt};
use serde_json::json;

use super::directory::{ADMIN_TOKEN_FILE, DataDirectory, VKEY_FILE, write_vkey};
use super::node_config;
use super::node_thread::NodeThread;
use crate::auth::{API_KEYS, Access, ApiKey, Holder, Issued, Role, commit};
use crate::config::{Config, DATA_FILE};
use crate::durable::{Mode, write_new};
use crate::peers::Peers;
use crate::secrets::{KekFiles, Secrets};
use crate::tls::{self, CA_FILE, Subject};

/// Author of the first entry.
const AUTHOR: &str = "init";
/// Id of the node that begins a cluster.
const FIRST_NODE: u64 = 1;
/// Longest name of a node, in bytes.
const NAME_BYTES_MAX: usize = 63;

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
    pub(super) fn of(data: &Path) -> Self {
        Self { ca: data.join(CA_FILE), token: data.join(ADMIN_TOKEN_FILE), vkey: data.join(VKEY_FILE) }
    }
}

/// How a new node is shown to its clients: where it listens, and what its certificate names besides the machine.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shown {
    /// Address of the API; by default all of the machine's.
    pub(crate) listen: Option<SocketAddr>,
    /// More names and addresses of its certificate: `tls.names`.
    pub(crate) names: Vec<String>,
}

impl From<SocketAddr> for Shown {
    fn from(listen: SocketAddr) -> Self {
        Self { listen: Some(listen), names: Vec::new() }
    }
}

impl Shown {
    /// The address for the certificate.
    pub(super) fn address(&self) -> IpAddr {
        self.listen.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |listen| listen.ip())
    }

    /// What `samovar.toml` in the data directory says of it.
    pub(super) fn settings(&self) -> String {
        let listen = self.listen.map_or(String::new(), |listen| format!("[listen]\napi = \"{listen}\"\n"));
        // A list of JSON strings is one of TOML.
        let names =
            if self.names.is_empty() { String::new() } else { format!("[tls]\nnames = {}\n", json!(self.names)) };
        listen + &names
    }
}

/// Makes a ledger: keys, certificates, the chain's files and a first admin key. All or nothing: a crash in the middle
/// leaves a directory that another `init` clears and `serve` refuses. The node is named after the host unless `name`
/// says otherwise; `shown` is kept in `samovar.toml` in the data directory. Private keys are sealed from the first byte on
/// if there is a key-encryption key.
pub(crate) fn init(data: &Path, name: Option<&str>, shown: &Shown, kek: &KekFiles) -> Result<Made> {
    let name = node_name(name)?;
    let seal = kek.read(data)?;
    let settings = shown.settings();
    let names = Config::parse("the configuration of the new ledger", &settings)?.tls_names;
    let (directory, partial) = DataDirectory::begin(data)?;
    let secrets = Secrets::new(&partial, seal);
    let defaults = Config::parse("(defaults)", "")?;
    let config = node_config(&defaults, &secrets);
    let made = Made::of(&partial);
    let disk: Arc<dyn Disk> = Arc::new(OsDisk);
    let log = Node::init(&disk, &config, &name, &origin(&name)).map_err(|e| anyhow!("making the ledger: {e}"))?;
    tls::make(&secrets, &Subject::of(&name, shown.address(), &names).of_node(FIRST_NODE))?;
    write_vkey(&partial, &log.vkey)?;
    if !settings.is_empty() {
        write_new(&partial.join(DATA_FILE), settings.as_bytes(), Mode::Public)?;
    }
    let token = first_admin_key(config, Peers::new(&defaults, &secrets))?;
    write_new(&made.token, format!("{token}\n").as_bytes(), Mode::Secret)?;
    directory.complete()?;
    Ok(Made::of(data))
}

/// Starts the node for one write and stops it again.
fn first_admin_key(config: samovar_node::node::Config, peers: Peers) -> Result<String> {
    let access = Access { role: Role::Admin, prefixes: Vec::new(), grants: Vec::new() };
    let node = NodeThread::start(config, peers)?;
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
pub(super) fn node_name(wanted: Option<&str>) -> Result<String> {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let name = wanted.map_or_else(|| host.split('.').next().unwrap_or("").to_lowercase(), str::to_owned);
    match (is_node_name(&name), wanted) {
        (true, _) => Ok(name),
        (false, Some(_)) => bail!("`{name}` cannot name a node: use 1 to {NAME_BYTES_MAX} of a-z, 0-9 and -"),
        (false, None) => Ok("node".to_owned()),
    }
}

/// Whether a text can name a node.
pub(crate) fn is_node_name(text: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// Origin of the log: unique, so that a client can never take one ledger for another.
fn origin(name: &str) -> String {
    let mut random = [0; 8];
    rt::fill_random(&mut random);
    format!("samovar/{name}/{:016x}", u64::from_be_bytes(random))
}
