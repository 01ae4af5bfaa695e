//! What the checks look at, gathered once.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::process::{self, Holder, Process};
use super::unit::Unit;
use super::{Doctor, Fact, Unseen, unseen};
use crate::client::{Answer, Client, Request, Target};
use crate::config::{Config, ConfigError};
use crate::secrets::{KekFiles, Secrets};
use crate::serve::{LOCK_FILE, SOCKET_FILE};
use crate::tls::CA_FILE;
use crate::{serve, tls};

/// How long the daemon may take for one answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// Largest answer of the daemon, in bytes: its metrics have some ten KiB.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// Most files of a data directory that are looked at; segments have 64 MiB, so that this is a terabyte.
const FILES_MAX: usize = 20_000;
/// Deepest directory that is looked into: a data directory has two levels.
const DEPTH_MAX: usize = 3;

/// What is known when the checks begin.
pub(crate) struct Facts {
    pub(crate) data: PathBuf,
    pub(super) root: PathBuf,
    pub(crate) config_file: Option<PathBuf>,
    /// The configuration as it is written; the error says where it is wrong, never what stands there.
    pub(super) config: Result<Config, String>,
    /// Files below the data directory, it first.
    pub(crate) files: Fact<Vec<File>>,
    /// The daemon, if one listens at the directory's socket.
    pub(crate) daemon: Fact<Option<Daemon>>,
    /// Who holds the directory's lock.
    pub(super) holder: Fact<Option<Holder>>,
    /// Whether the machine's clock is synchronised, asked as the daemon does.
    pub(super) synchronised: Fact<bool>,
    /// The unit, if one is installed.
    pub(crate) unit: Fact<Option<Unit>>,
}

/// A file or directory of the data directory.
pub(crate) struct File {
    /// Below the data directory; empty for itself.
    pub(crate) path: PathBuf,
    pub(crate) directory: bool,
    /// Permission bits.
    pub(crate) mode: u32,
    pub(crate) user: u32,
    pub(crate) group: u32,
    pub(crate) bytes: u64,
    /// Seconds since 1970.
    pub(crate) changed_s: i64,
}

/// What the running daemon says, and what the system says of it.
pub(crate) struct Daemon {
    pub(crate) status: Fact<Value>,
    /// How the cluster is, as it knows it.
    pub(crate) cluster: Fact<Value>,
    pub(crate) metrics: Fact<String>,
    /// Whether it takes writes; the error says why not.
    pub(super) ready: Result<(), String>,
    /// Whether a client that trusts the CA is served at the configured address.
    pub(super) https: Result<String, String>,
    pub(crate) process: Fact<Process>,
}

impl Daemon {
    /// A figure of its metrics that has no labels.
    pub(super) fn figure(&self, name: &str) -> Fact<f64> {
        let text = super::need(&self.metrics)?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        value.map_or_else(|| unseen(format!("its metrics have no {name}"), VERSION_MAY_DIFFER), Ok)
    }

    /// A number of its status.
    pub(super) fn number(&self, name: &str) -> Fact<u64> {
        let value = super::need(&self.status)?.get(name).and_then(Value::as_u64);
        value.map_or_else(|| unseen(format!("its status has no {name}"), VERSION_MAY_DIFFER), Ok)
    }
}

const VERSION_MAY_DIFFER: &str = "Another version may run than this one: systemctl restart samovar";

impl Facts {
    /// Looks around.
    pub(crate) async fn gather(doctor: &Doctor) -> Self {
        let mut config_file = Config::file(doctor.config.as_deref(), doctor.data.as_deref());
        let mut config = load(config_file.as_deref(), doctor.data.as_deref());
        let configured = config.as_ref().map_or_else(|_| PathBuf::from("/var/lib/samovar"), |c| c.data.clone());
        let data = doctor.data.clone().unwrap_or(configured);
        let socket = socket_process(&data).await;
        let process = socket.as_ref().ok().copied().flatten().map(Process::look);
        if doctor.config.is_none()
            && let Some(Ok(named)) = process.as_ref().map(|p| p.as_ref().map(Process::config_file))
            && named.is_some()
        {
            config = load(named.as_deref(), Some(&data));
            config_file = named;
        }
        let daemon = match socket {
            Ok(Some(_)) => Ok(Some(ask(&data, config.as_ref().ok(), process).await)),
            Ok(None) => Ok(None),
            Err(why) => Err(why),
        };
        let synchronised = if serve::somebody_knows() {
            Ok(serve::is_synchronised().await)
        } else {
            unseen("systemd does not run here, so nobody says", "Ask the host whose clock this is")
        };
        Self {
            root: doctor.root.clone(),
            config_file,
            config,
            files: list(&data),
            holder: process::lock_holder(&data.join(LOCK_FILE)),
            unit: Unit::read(&doctor.root),
            daemon,
            synchronised,
            data,
        }
    }

    /// The configuration, for checks that need it.
    pub(super) fn configured(&self) -> Fact<&Config> {
        self.config.as_ref().map_err(|place| Unseen {
            why: format!("the configuration is not good: {place}"),
            next: "See the check `configuration`".into(),
        })
    }

    /// Where the key-encryption keys lie, as far as this user may see.
    pub(super) fn keks(&self) -> Fact<KekFiles> {
        Ok(self.configured()?.kek.or_credentials().or_credentials_of_unit())
    }

    /// The secret files, for checks that read one.
    pub(super) fn secrets(&self) -> Fact<Secrets> {
        let seal = self.keks()?.read(&self.data);
        let seal = seal.map_err(|error| Unseen { why: format!("{error:#}"), next: "See the check `sealed`".into() })?;
        Ok(Secrets::new(&self.data, seal))
    }

    /// The running daemon, for checks that need it.
    pub(super) fn running(&self) -> Fact<&Daemon> {
        match super::need(&self.daemon)? {
            Some(daemon) => Ok(daemon),
            None => unseen("the daemon does not run", "systemctl start samovar, then: samovar doctor"),
        }
    }

    /// The names that the node's certificate must hold for, if this user may look at them.
    pub(super) fn subject(&self) -> Fact<tls::Subject> {
        super::need(&self.files)?;
        let config = self.configured()?;
        serve::subject(config, &self.data).or_else(|error| unseen(format!("{error:#}"), AS_ROOT))
    }
}

/// What lets a check look.
pub(super) const AS_ROOT: &str = "Look as root or as the node's own user: sudo samovar doctor";

/// Reads the configuration. Of an error only the place is kept: what stands there may be a secret that somebody put into
/// the wrong file, and this text goes into bundles.
fn load(file: Option<&Path>, data: Option<&Path>) -> Result<Config, String> {
    Config::load(file, data).map_err(|error| match error {
        ConfigError::Read { path, source } => format!("{path} cannot be read: {source}"),
        ConfigError::Syntax { path, line, column, .. } => format!("{path}:{line}:{column}"),
        ConfigError::Inconsistent { path, message } => format!("{path}: {message}"),
    })
}

/// The process that listens at the directory's socket. Connecting is all that is asked of it here.
async fn socket_process(data: &Path) -> Fact<Option<i32>> {
    match tokio::net::UnixStream::connect(data.join(SOCKET_FILE)).await {
        Ok(stream) => Ok(Some(stream.peer_cred().ok().and_then(|peer| peer.pid()).unwrap_or(0))),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => Ok(None),
        Err(e) => unseen(format!("its socket cannot be reached: {e}"), AS_ROOT),
    }
}

/// Asks the daemon itself and, at the same time, its API as clients do.
async fn ask(data: &Path, config: Option<&Config>, process: Option<Fact<Process>>) -> Daemon {
    let client = Client::local(&data.join(SOCKET_FILE));
    let local = async {
        let status = get(&client, "/v1/status").await.and_then(|a| a.json().map_err(|e| e.to_string()));
        if let Err(why) = &status {
            // One that hangs is not waited for three times.
            return (status.clone(), Err(why.clone()), Err(why.clone()), Err(why.clone()));
        }
        let cluster = get(&client, "/v1/cluster").await.and_then(|a| a.json().map_err(|e| e.to_string()));
        let metrics =
            get(&client, "/metrics").await.and_then(|a| a.text().map(str::to_owned).map_err(|e| e.to_string()));
        (status, cluster, metrics, get(&client, "/ready?for=write").await.map(|_| ()))
    };
    let api = tokio::time::timeout(ANSWER_TIMEOUT, https(data, config));
    let ((status, cluster, metrics, ready), api) = tokio::join!(local, api);
    let next = "journalctl -u samovar says what it is doing; if it hangs, systemctl restart samovar";
    let silent = |why: String| Unseen { why: format!("the daemon does not say: {why}"), next: next.into() };
    Daemon {
        status: status.map_err(silent),
        cluster: cluster.map_err(silent),
        metrics: metrics.map_err(silent),
        ready,
        https: api.unwrap_or_else(|_| Err(format!("no answer in {ANSWER_TIMEOUT:?} at the configured address"))),
        process: process.unwrap_or_else(|| unseen("the system does not say which process it is", AS_ROOT)),
    }
}

async fn get(client: &Client, path: &str) -> Result<Answer, String> {
    let request = Request::get(path).patience(Duration::ZERO).bounds(ANSWER_TIMEOUT, ANSWER_BYTES_MAX);
    client.send(request).await.map_err(|e| e.to_string())
}

/// Asks at the configured address, as a client does that trusts the CA and has no token.
async fn https(data: &Path, config: Option<&Config>) -> Result<String, String> {
    let config = config.ok_or("the configuration does not say where")?;
    let address = config.listen;
    let host = if address.ip().is_unspecified() { "localhost".to_owned() } else { address.ip().to_string() };
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    let url = format!("https://{host}:{}", address.port());
    let target = Target { url: Some(url.clone()), ca: Some(data.join(CA_FILE)), ..Target::default() };
    let client = Client::open(&target).map_err(|e| e.to_string())?;
    get(&client, "/health").await.map(|_| url)
}

/// The files of a data directory, in order of their paths.
fn list(data: &Path) -> Fact<Vec<File>> {
    let mut found = Vec::new();
    descend(data, PathBuf::new(), 0, &mut found)
        .map_err(|e| Unseen { why: format!("{} cannot be looked into: {e}", data.display()), next: AS_ROOT.into() })?;
    found.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

fn descend(data: &Path, path: PathBuf, depth: usize, found: &mut Vec<File>) -> io::Result<()> {
    let whole = if path.as_os_str().is_empty() { data.to_owned() } else { data.join(&path) };
    let metadata = match fs::symlink_metadata(&whole) {
        // A running daemon removes files of its own while we look.
        Err(e) if depth > 0 && e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let directory = metadata.is_dir();
    found.push(File {
        path: path.clone(),
        directory,
        mode: metadata.mode() & 0o7777,
        user: metadata.uid(),
        group: metadata.gid(),
        bytes: metadata.len(),
        changed_s: metadata.mtime(),
    });
    if directory && depth < DEPTH_MAX {
        for entry in fs::read_dir(&whole)? {
            if found.len() >= FILES_MAX {
                return Err(io::Error::other(format!("it holds more than {FILES_MAX} files")));
            }
            descend(data, path.join(entry?.file_name()), depth + 1, found)?;
        }
    }
    Ok(())
}
