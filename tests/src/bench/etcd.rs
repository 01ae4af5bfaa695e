//! The peer that the ledger is measured against: etcd, durable; alone over TLS, or as a cluster.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::load::Endpoint;
use super::wire::{self, Connection};
use crate::{Client, free_port};

const READY_DEADLINE: Duration = Duration::from_secs(30);

/// A running etcd. Killed when dropped.
pub(super) struct Etcd {
    child: Child,
    port: u16,
    /// `None`: its clients speak plain HTTP.
    certificate: Option<PathBuf>,
}

/// What a member is started with.
struct Member {
    name: String,
    port: u16,
    peer_url: String,
}

impl Member {
    fn new(name: String) -> Result<Self> {
        Ok(Self { name, port: free_port()?, peer_url: format!("http://127.0.0.1:{}", free_port()?) })
    }
}

impl Etcd {
    /// Starts the binary that `ETCD_BIN` names in a new directory, alone, over TLS.
    pub(super) async fn start(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory)?;
        let (certificate, key) = certificate(directory)?;
        let member = Member::new("bench".into())?;
        let etcd = Self::spawn(directory, &member, std::slice::from_ref(&member), Some((certificate, key)))?;
        etcd.ready(directory).await?;
        Ok(etcd)
    }

    /// Starts a cluster of so many, without TLS.
    pub(super) async fn start_cluster(directory: &Path, count: usize) -> Result<Vec<Self>> {
        let members: Vec<_> = (0..count).map(|n| Member::new(format!("bench-{n}"))).collect::<Result<_>>()?;
        let mut started = Vec::new();
        for member in &members {
            let own = directory.join(&member.name);
            fs::create_dir_all(&own)?;
            started.push((Self::spawn(&own, member, &members, None)?, own));
        }
        for (etcd, own) in &started {
            etcd.ready(own).await?;
        }
        Ok(started.into_iter().map(|(etcd, _)| etcd).collect())
    }

    fn spawn(
        directory: &Path,
        member: &Member,
        members: &[Member],
        certificate: Option<(PathBuf, PathBuf)>,
    ) -> Result<Self> {
        let binary =
            std::env::var_os("ETCD_BIN").context("ETCD_BIN is not set: run tests/bench, which fetches etcd")?;
        let scheme = if certificate.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://127.0.0.1:{}", member.port);
        let log = File::create(directory.join("log"))?;
        let all: Vec<_> = members.iter().map(|m| format!("{}={}", m.name, m.peer_url)).collect();
        let mut command = Command::new(binary);
        command
            .args(["--name", &member.name, "--log-level", "warn", "--quota-backend-bytes", "8000000000"])
            .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
            .args(["--listen-peer-urls", &member.peer_url, "--initial-advertise-peer-urls", &member.peer_url])
            .args(["--initial-cluster", &all.join(",")]);
        if let Some((certificate, key)) = &certificate {
            command.arg("--cert-file").arg(certificate).arg("--key-file").arg(key);
        }
        let child = command
            .arg("--data-dir")
            .arg(directory.join("data"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting etcd")?;
        Ok(Self { child, port: member.port, certificate: certificate.map(|(certificate, _)| certificate) })
    }

    async fn ready(&self, directory: &Path) -> Result<()> {
        let begun = Instant::now();
        while begun.elapsed() < READY_DEADLINE {
            if let Ok(healthy) = self.healthy().await
                && healthy
            {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let log = fs::read_to_string(directory.join("log")).unwrap_or_default();
        bail!("etcd was not ready in {READY_DEADLINE:?}: {log}");
    }

    async fn healthy(&self) -> Result<bool> {
        let mut connection = Connection::open(self.port, self.endpoint()?.tls.as_ref()).await?;
        let answer = connection.exchange(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").await?;
        Ok(answer.body.windows(4).any(|word| word == b"true"))
    }

    /// For its metrics, over TLS.
    pub(super) async fn client(&self) -> Result<Client> {
        Client::connect(self.port, self.certificate.as_ref().context("this etcd has no TLS")?, None).await
    }

    pub(super) fn endpoint(&self) -> Result<Endpoint> {
        let tls = self.certificate.as_deref().map(wire::connector).transpose()?;
        Ok(Endpoint { port: self.port, tls, token: None })
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        // Nothing is left to do about a process that cannot be killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A self-signed P-256 certificate, as the ledger's own is P-256 too.
fn certificate(directory: &Path) -> Result<(PathBuf, PathBuf)> {
    let (certificate, key) = (directory.join("cert.pem"), directory.join("key.pem"));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output()
        .context("openssl, which makes etcd's certificate")?;
    if !made.status.success() {
        bail!("openssl req: {}", String::from_utf8_lossy(&made.stderr));
    }
    Ok((certificate, key))
}
