//! `samovar dev`: a ledger for development on this machine's loopback, of one node or of several in one process.

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use hyper::Method;
use serde_json::Value;
use tokio::sync::mpsc;

use super::directory::VKEY_FILE;
use super::{Join, Made, Source, init, join, run, signalled};
use crate::client::{Client, Request, Target};
use crate::config::DATA_FILE;
use crate::durable::{Mode, write_new};
use crate::journal;
use crate::secrets::KekFiles;

/// Where the ledger is kept when no directory is named.
const DIRECTORY: &str = "samovar-dev";
/// Port of the first node's API; that for its peers is the next one, and each node is ten further on.
const PORT: u16 = 8443;
const PORT_STEP: u16 = 10;
/// How long all nodes may take to become voters.
const TOGETHER_WITHIN: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(100);

type Running = JoinHandle<Result<()>>;

/// Makes a ledger unless there is one, serves it, and prints where. `data` is by default `samovar-dev` in the working
/// directory; several nodes have a directory each below it.
pub(crate) fn dev(nodes: u8, data: Option<PathBuf>) -> Result<()> {
    let data = data.unwrap_or_else(|| PathBuf::from(DIRECTORY));
    let (alone, shown) = (data.join(VKEY_FILE).exists(), data.display());
    match (nodes, alone, node_directory(&data, 1).exists()) {
        (1, _, true) => bail!("{shown} holds a ledger of several nodes: say how many with --nodes, or name another"),
        (1, ..) => one(&data),
        (_, true, _) => bail!("{shown} holds a ledger of one node: name another directory with --data"),
        _ => several(nodes, &data),
    }
}

fn one(data: &Path) -> Result<()> {
    if !data.join(VKEY_FILE).exists() {
        init(data, None, &SocketAddr::from((Ipv4Addr::LOCALHOST, PORT)).into(), &KekFiles::default())?;
    }
    let source = source(data);
    let config = source.load()?;
    journal::start(config.level);
    let made = Made::of(data);
    let (reload, reloads) = mpsc::channel(1);
    run(source, &config, |address| announce(&[address], &made), signalled(reload), reloads)
}

fn several(nodes: u8, data: &Path) -> Result<()> {
    let first = node_directory(data, 1);
    if !first.join(VKEY_FILE).exists() {
        std::fs::create_dir_all(data).with_context(|| format!("making {}", data.display()))?;
        init(&first, Some("node-1"), &free(PORT)?.into(), &KekFiles::default())?;
        let peers = format!("[peers]\nlisten = \"{}\"\n", free(PORT + 1)?);
        let file = std::fs::OpenOptions::new().append(true).open(first.join(DATA_FILE));
        file.and_then(|mut file| file.write_all(peers.as_bytes())).context("writing samovar.toml of the first node")?;
    }
    journal::start(source(&first).load()?.level);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    let (mut addresses, mut running) = (Vec::new(), Vec::new());
    // Those that are there: one of them alone may be no quorum.
    let there = (1..=nodes).filter(|n| node_directory(data, *n).join(VKEY_FILE).exists()).max().unwrap_or(1);
    for n in 1..=there {
        let (address, thread) = start(&node_directory(data, n))?;
        addresses.push(address);
        running.push(thread);
    }
    for n in there + 1..=nodes {
        runtime.block_on(admit(data, n))?;
        let (address, thread) = start(&node_directory(data, n))?;
        addresses.push(address);
        running.push(thread);
    }
    runtime.block_on(together(&first, usize::from(nodes)))?;
    announce(&addresses, &Made::of(&first));
    let ended = running.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err(anyhow!("a node panicked"))));
    ended.collect::<Vec<_>>().into_iter().collect()
}

fn node_directory(data: &Path, n: u8) -> PathBuf {
    data.join(format!("node-{n}"))
}

fn source(data: &Path) -> Source {
    Source { file: Some(data.join(DATA_FILE)).filter(|f| f.exists()), data: Some(data.to_owned()) }
}

/// The port on loopback, or any other if somebody has it.
fn free(port: u16) -> Result<SocketAddr> {
    let at = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).and_then(|l| l.local_addr());
    at(port).or_else(|_| at(0)).context("looking for a free port")
}

/// Serves a node on a thread of its own; returns its address once it has one.
fn start(data: &Path) -> Result<(SocketAddr, Running)> {
    let source = source(data);
    let config = source.load()?;
    let (ready, address) = std::sync::mpsc::channel();
    let thread = std::thread::Builder::new().name("serve".into()).spawn(move || {
        let (reload, reloads) = mpsc::channel(1);
        let told = move |address| {
            // Who waits for the address may have given up.
            let _ = ready.send(address);
        };
        run(source, &config, told, signalled(reload), reloads)
    });
    let thread = thread.context("starting a thread")?;
    match address.recv() {
        Ok(address) => Ok((address, thread)),
        Err(_) => match thread.join() {
            Ok(Err(error)) => Err(error),
            _ => Err(anyhow!("a node ended before it served")),
        },
    }
}

/// Makes the data directory of another node: a join token of the first one, shown to it.
async fn admit(data: &Path, n: u8) -> Result<()> {
    let (first, own, step) = (node_directory(data, 1), node_directory(data, n), u16::from(n - 1) * PORT_STEP);
    let body = r#"{"expires_s":60}"#;
    let request =
        Request::write(Method::POST, "/v1/cluster/join-tokens", body).header("content-type", "application/json")?;
    let issued = client(&first)?.send(request).await?.json()?;
    let token = issued.get("token").and_then(Value::as_str).context("the answer holds no join token")?;
    let file = data.join(format!("node-{n}.token"));
    crate::durable::remove(&file)?;
    write_new(&file, token.as_bytes(), Mode::Secret)?;
    let url = std::fs::read_to_string(first.join(super::URL_FILE)).context("reading where the first node listens")?;
    let wanted = Join {
        url: url.trim(),
        token_file: &file,
        data: &own,
        name: Some(&format!("node-{n}")),
        shown: &free(PORT + step)?.into(),
        peers: Some(free(PORT + 1 + step)?),
        address: None,
        kek: &KekFiles::default(),
    };
    let joined = join(&wanted).await;
    crate::durable::remove(&file)?;
    joined.map(drop)
}

fn client(data: &Path) -> Result<Client> {
    Ok(Client::open(&Target { data: Some(data.to_owned()), ..Target::default() })?)
}

/// Waits until all nodes vote and one of them leads.
async fn together(first: &Path, nodes: usize) -> Result<()> {
    let (client, begun) = (client(first)?, Instant::now());
    loop {
        let cluster = client.send(Request::get("/v1/cluster")).await?.json()?;
        let live = cluster.get("live_voters").and_then(Value::as_u64).unwrap_or(0);
        let leads = cluster.get("leader").is_some_and(Value::is_string);
        if leads && usize::try_from(live).is_ok_and(|live| live >= nodes) {
            return Ok(());
        }
        if begun.elapsed() > TOGETHER_WITHIN {
            bail!("only {live} of {nodes} nodes vote after {} s", TOGETHER_WITHIN.as_secs());
        }
        samovar_node::rt::sleep(PAUSE).await;
    }
}

#[allow(clippy::print_stdout, reason = "what `dev` is for")]
fn announce(addresses: &[SocketAddr], made: &Made) {
    for address in addresses {
        println!("url    https://{address}");
    }
    println!("ca     {}", made.ca.display());
    println!("token  {}", made.token.display());
    println!("vkey   {}", made.vkey.display());
}
