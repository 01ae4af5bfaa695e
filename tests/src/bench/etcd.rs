//! The peer that the ledger is measured against: one etcd, durable, over TLS.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::load::Endpoint;
use super::wire;
use crate::Client;

const READY_DEADLINE: Duration = Duration::from_secs(30);

/// A running etcd. Killed when dropped.
pub(super) struct Etcd {
    child: Child,
    port: u16,
    certificate: PathBuf,
}

impl Etcd {
    /// Starts the binary that `ETCD_BIN` names in a new directory.
    pub(super) async fn start(directory: &Path) -> Result<Self> {
        let binary =
            std::env::var_os("ETCD_BIN").context("ETCD_BIN is not set: run tests/bench, which fetches etcd")?;
        fs::create_dir_all(directory)?;
        let (certificate, key) = certificate(directory)?;
        let (port, peer_port) = (free_port()?, free_port()?);
        let (url, peer_url) = (format!("https://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer_port}"));
        let log = File::create(directory.join("log"))?;
        let child = Command::new(binary)
            .args(["--name", "bench", "--log-level", "warn", "--quota-backend-bytes", "8000000000"])
            .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
            .args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url])
            .args(["--initial-cluster", &format!("bench={peer_url}")])
            .arg("--cert-file")
            .arg(&certificate)
            .arg("--key-file")
            .arg(&key)
            .arg("--data-dir")
            .arg(directory.join("data"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting etcd")?;
        let etcd = Self { child, port, certificate };
        etcd.ready(directory).await?;
        Ok(etcd)
    }

    async fn ready(&self, directory: &Path) -> Result<()> {
        let begun = Instant::now();
        while begun.elapsed() < READY_DEADLINE {
            if let Ok(mut client) = self.client().await
                && client.get("/health").await.is_ok_and(|a| a.text().contains("true"))
            {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let log = fs::read_to_string(directory.join("log")).unwrap_or_default();
        bail!("etcd was not ready in {READY_DEADLINE:?}: {log}");
    }

    pub(super) async fn client(&self) -> Result<Client> {
        Client::connect(self.port, &self.certificate, None).await
    }

    pub(super) fn endpoint(&self) -> Result<Endpoint> {
        Ok(Endpoint { port: self.port, tls: wire::connector(&self.certificate)?, token: None })
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

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
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
