//! HTTP/1.1 by hand over TLS: for what a client library would not send, and for connections that misbehave.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use hyper::HeaderMap;
use hyper::header::{HeaderName, HeaderValue};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use samovar_tests::{Answer, Daemon};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// How long an answer may take to come.
const DEADLINE: Duration = Duration::from_secs(60);
/// Longest header of an answer; ours are far below.
const HEADER_BYTES_MAX: usize = 64 << 10;

/// The admin's token of a daemon.
pub(crate) fn token(daemon: &Daemon) -> String {
    fs::read_to_string(daemon.data().join("admin.token")).expect("admin.token is readable").trim().to_owned()
}

/// Makes connections to one daemon that trust its CA and offer these protocols.
#[derive(Clone)]
pub(crate) struct Dialer {
    tls: TlsConnector,
    port: u16,
    send_buffer_bytes: Option<u32>,
}

impl Dialer {
    /// Trusts the daemon's CA and offers `alpn`.
    pub(crate) fn new(daemon: &Daemon, alpn: &[&[u8]]) -> Result<Self> {
        Self::with(daemon, alpn, rustls::DEFAULT_VERSIONS)
    }

    /// Speaks one version of TLS only, and HTTP/1.1.
    pub(crate) fn of_version(daemon: &Daemon, version: &'static rustls::SupportedProtocolVersion) -> Result<Self> {
        Self::with(daemon, &[b"http/1.1"], &[version])
    }

    fn with(daemon: &Daemon, alpn: &[&[u8]], versions: &[&'static rustls::SupportedProtocolVersion]) -> Result<Self> {
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(daemon.data().join("ca.pem"))? {
            roots.add(certificate?)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
        Ok(Self { tls: TlsConnector::from(Arc::new(config)), port: daemon.port(), send_buffer_bytes: None })
    }

    /// Lets the kernel take so much of what is sent before the daemon takes it.
    pub(crate) fn with_send_buffer(self, bytes: u32) -> Self {
        Self { send_buffer_bytes: Some(bytes), ..self }
    }

    /// A connection after its handshake.
    pub(crate) async fn connect(&self) -> Result<TlsStream<TcpStream>> {
        let socket = TcpSocket::new_v4()?;
        if let Some(bytes) = self.send_buffer_bytes {
            socket.set_send_buffer_size(bytes)?;
        }
        let tcp = socket.connect(([127, 0, 0, 1], self.port).into()).await?;
        tcp.set_nodelay(true)?;
        let connecting = self.tls.connect(ServerName::try_from("localhost")?, tcp);
        Ok(tokio::time::timeout(DEADLINE, connecting).await.context("no TLS handshake")??)
    }

    /// Sends bytes on a connection of their own and reads one answer. `head`: the answer has no body.
    pub(crate) async fn exchange(&self, bytes: &[u8], head: bool) -> Result<Answer> {
        let mut stream = self.connect().await?;
        // A refusal may come, and the connection be closed, before all of a large body is sent.
        let sent = async {
            stream.write_all(bytes).await?;
            stream.flush().await
        };
        let sent = sent.await;
        match tokio::time::timeout(DEADLINE, read_answer(&mut stream, head)).await {
            Ok(answer) => answer.with_context(|| format!("after sending ({sent:?})")),
            Err(_) => bail!("no answer in {DEADLINE:?}"),
        }
    }
}

/// Reads one answer with a `Content-Length`, or none.
pub(crate) async fn read_answer(stream: &mut TlsStream<TcpStream>, head: bool) -> Result<Answer> {
    let mut buffer = Vec::new();
    let header_end = loop {
        if let Some(at) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
            break at + 4;
        }
        if buffer.len() > HEADER_BYTES_MAX {
            bail!("the answer's header does not end");
        }
        if stream.read_buf(&mut buffer).await? == 0 {
            bail!("the connection ended before an answer; it said {:?}", String::from_utf8_lossy(&buffer));
        }
    };
    let (status, headers) = parse_header(&buffer[..header_end])?;
    let length = match headers.get("content-length") {
        Some(length) if !head => length.to_str()?.parse()?,
        _ => 0,
    };
    let mut body = buffer.split_off(header_end);
    while body.len() < length {
        if stream.read_buf(&mut body).await? == 0 {
            bail!("the connection ended within the answer's body");
        }
    }
    body.truncate(length);
    Ok(Answer { status, headers, body: Bytes::from(body) })
}

fn parse_header(bytes: &[u8]) -> Result<(u16, HeaderMap)> {
    let text = std::str::from_utf8(bytes).context("the answer's header is not UTF-8")?;
    let mut lines = text.split("\r\n");
    let status = lines.next().and_then(|l| l.strip_prefix("HTTP/1.1 ")).and_then(|l| l.get(..3));
    let status = status.and_then(|s| s.parse().ok()).with_context(|| format!("no HTTP/1.1 answer: {text}"))?;
    let mut headers = HeaderMap::new();
    for line in lines.filter(|l| !l.is_empty()) {
        let (name, value) = line.split_once(':').with_context(|| format!("not a header: {line}"))?;
        headers.append(HeaderName::try_from(name)?, HeaderValue::try_from(value.trim())?);
    }
    Ok((status, headers))
}
