//! `samovar join`: the data directory of a node that joins a cluster. It makes its own keys, proves by a join token that it may
//! come, and checks by the same token that it talks to the right ledger: the token pins the key of the ledger's CA.

use std::fs::File;
use std::io::Read as _;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use hyper::Method;
use samovar_node::disk::{Disk, OsDisk};
use samovar_node::node::Admission;
use samovar_node::{Node, format};
use serde::Deserialize;
use serde_json::json;

use super::directory::{DataDirectory, write_vkey};
use super::init::{Shown, node_name};
use super::node_config;
use crate::auth::JoinTokenText;
use crate::client::{Client, Request, Target};
use crate::config::{Config, DATA_FILE, is_host_and_port};
use crate::durable::{Mode, write_new};
use crate::secrets::{KekFiles, Secrets};
use crate::tls::{self, CA_FILE, Subject, pin_of};

/// Longest join token, in bytes.
const TOKEN_BYTES_MAX: u64 = 512;
/// How long the answer to the join may take: it waits for a quorum.
const JOIN_TIMEOUT: Duration = Duration::from_secs(60);
const ANSWER_BYTES_MAX: usize = 256 << 10;

/// What a node is to join, and as what.
#[derive(Debug, Clone)]
pub(crate) struct Join<'a> {
    /// A node of the cluster.
    pub(crate) url: &'a str,
    /// File with the join token; `-` is standard input.
    pub(crate) token_file: &'a Path,
    /// Data directory to be made.
    pub(crate) data: &'a Path,
    /// Name; the host's by default.
    pub(crate) name: Option<&'a str>,
    /// How it is shown to its clients.
    pub(crate) shown: &'a Shown,
    /// Address for peers.
    pub(crate) peers: Option<SocketAddr>,
    /// Where peers reach it, `HOST:PORT`.
    pub(crate) address: Option<&'a str>,
    /// Key-encryption key of its private keys.
    pub(crate) kek: &'a KekFiles,
}

/// What became of it.
#[derive(Debug, Clone)]
pub(crate) struct Joined {
    /// Id in the cluster.
    pub(crate) node: u64,
    /// Its name.
    pub(crate) name: String,
    /// Whether it will vote.
    pub(crate) voter: bool,
}

#[derive(Deserialize)]
struct Answer {
    node: u64,
    voter: bool,
    vkey: String,
    ca: String,
    certificate: String,
    admission: Admission,
}

/// Joins. All or nothing: a failure leaves a directory that another `join` clears and `serve` refuses. Once the cluster has
/// admitted the node the token is used up.
pub(crate) async fn join(wanted: &Join<'_>) -> Result<Joined> {
    let name = node_name(wanted.name)?;
    let token = read_token(wanted.token_file)?;
    if let Some(address) = wanted.address.filter(|address| !is_host_and_port(address)) {
        bail!("--peers-address {address} is no HOST:PORT, such as box-02:8444");
    }
    let seal = wanted.kek.read(wanted.data)?;
    let settings = settings(wanted);
    let config = Config::parse("the configuration of the new node", &settings)?;
    let (directory, partial) = DataDirectory::begin(wanted.data)?;
    let secrets = Secrets::new(&partial, seal);

    let roots = pinned_authority(wanted.url, &token).await?;
    write_new(&partial.join(CA_FILE), roots.as_bytes(), Mode::Public)?;
    let subject = Subject::of(&name, wanted.shown.address(), &names(&config));
    let body = json!({
        "token": token.text(),
        "name": name,
        "address": config.peers_address.clone(),
        "request": tls::make_request(&secrets)?,
        "names": subject.texts().collect::<Vec<_>>(),
        "format": format::NEWEST,
    });
    let target = Target { url: Some(wanted.url.to_owned()), ca: Some(partial.join(CA_FILE)), ..Target::default() };
    let request = Request::write(Method::POST, "/v1/cluster/join", body.to_string())
        .header("content-type", "application/json")?
        .bounds(JOIN_TIMEOUT, ANSWER_BYTES_MAX);
    let answer = Client::open(&target)?.send(request).await?;
    let answer: Answer = serde_json::from_slice(&answer.body).context("the cluster's answer is of another version")?;
    let joined = Joined { node: answer.node, name: name.clone(), voter: answer.voter };
    keep(&secrets, &config, &name, &answer, &settings).with_context(|| {
        format!("the cluster admitted this node, and its files were not made; undo that: samovar node remove {name}")
    })?;
    directory.complete()?;
    Ok(joined)
}

/// Makes the files of what the cluster gave.
fn keep(secrets: &Secrets, config: &Config, name: &str, answer: &Answer, settings: &str) -> Result<()> {
    let disk: Arc<dyn Disk> = Arc::new(OsDisk);
    let made = Node::join(&disk, &node_config(config, secrets), name, &answer.admission);
    made.map_err(|e| anyhow!("making the node: {e}"))?;
    tls::accept(secrets, &answer.certificate, &answer.ca)?;
    write_vkey(secrets.data(), &answer.vkey)?;
    if settings.is_empty() {
        return Ok(());
    }
    write_new(&secrets.data().join(DATA_FILE), settings.as_bytes(), Mode::Public)
}

/// What `samovar.toml` in the data directory will say.
fn settings(wanted: &Join<'_>) -> String {
    let mut text = wanted.shown.settings();
    if wanted.peers.is_some() || wanted.address.is_some() {
        text += "[peers]\n";
    }
    if let Some(peers) = wanted.peers {
        text += &format!("listen = \"{peers}\"\n");
    }
    if let Some(address) = wanted.address {
        text += &format!("address = \"{address}\"\n");
    }
    text
}

/// What its certificate names besides the machine: what is configured, and the host under which peers reach it.
fn names(config: &Config) -> Vec<String> {
    let address = config.peers_address.clone();
    let host = address.rsplit_once(':').map_or("", |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let host = Some(host).filter(|host| tls::is_dns_name(host) || host.parse::<IpAddr>().is_ok());
    host.into_iter().chain(config.tls_names.iter().cloned()).collect()
}

/// The CAs of the ledger at a URL, whose first has the key that the token pins. They come over a connection to whoever
/// answers there: the hash decides, and nothing secret is sent before.
async fn pinned_authority(url: &str, token: &JoinTokenText) -> Result<String> {
    let answer = Client::to_anybody(url)?.send(Request::get("/v1/cluster/ca")).await?;
    let roots = answer.text()?.to_owned();
    if pin_of(&roots) != Some(token.pin) {
        bail!("{url} is not the ledger that the join token is for: its CA has another key; nothing was sent to it");
    }
    Ok(roots)
}

/// Whoever becomes another user for the join can hand the token over without making a file that this user may read.
fn read_token(path: &Path) -> Result<JoinTokenText> {
    let stdin = path.as_os_str() == "-";
    let shown = if stdin { "standard input".into() } else { path.display().to_string() };
    let input: Box<dyn std::io::Read> = match stdin {
        true => Box::new(std::io::stdin()),
        false => Box::new(File::open(path).with_context(|| format!("reading the join token {shown}"))?),
    };
    let mut text = String::new();
    // Longer than one may be, it is none.
    let read = input.take(TOKEN_BYTES_MAX + 1).read_to_string(&mut text);
    let read = read.with_context(|| format!("reading the join token {shown}"))?;
    let text = if read as u64 > TOKEN_BYTES_MAX { "" } else { text.trim() };
    JoinTokenText::parse(text)
        .with_context(|| format!("{shown} holds no join token: `samovar node token --save FILE` makes one"))
}
