//! One keep-alive HTTP/1.1 connection, as thin as can be: the generator shares the machine with what it measures.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Longest answer that is taken.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// Trusts one CA and nothing else; TLS sessions are not resumed, so that every connection is a whole handshake.
pub(super) fn connector(ca: &Path) -> Result<TlsConnector> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca)? {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = rustls::client::Resumption::disabled();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

pub(super) struct Connection {
    stream: Box<dyn Stream>,
    answer: Vec<u8>,
}

pub(super) struct Answer<'a> {
    pub(super) status: u16,
    pub(super) body: &'a [u8],
}

impl Connection {
    /// Without a connector in plain HTTP.
    pub(super) async fn open(port: u16, connector: Option<&TlsConnector>) -> Result<Self> {
        let tcp = TcpStream::connect(("127.0.0.1", port)).await?;
        tcp.set_nodelay(true)?;
        let stream: Box<dyn Stream> = match connector {
            Some(connector) => Box::new(connector.connect(ServerName::try_from("localhost")?, tcp).await?),
            None => Box::new(tcp),
        };
        Ok(Self { stream, answer: Vec::with_capacity(2048) })
    }

    /// Sends a whole request and reads the whole answer.
    pub(super) async fn exchange(&mut self, request: &[u8]) -> Result<Answer<'_>> {
        self.stream.write_all(request).await?;
        self.stream.flush().await?;
        self.answer.clear();
        let head_bytes = loop {
            self.more().await?;
            if let Some(at) = self.answer.windows(4).position(|w| w == b"\r\n\r\n") {
                break at + 4;
            }
        };
        let (status, body_bytes) = parse(&self.answer[..head_bytes])?;
        let end = head_bytes + body_bytes;
        if end > ANSWER_BYTES_MAX {
            bail!("an answer of {body_bytes} bytes, more than the benchmark takes");
        }
        while self.answer.len() < end {
            self.more().await?;
        }
        if self.answer.len() > end {
            bail!("{} bytes beyond the answer", self.answer.len() - end);
        }
        Ok(Answer { status, body: &self.answer[head_bytes..] })
    }

    async fn more(&mut self) -> Result<()> {
        let room = ANSWER_BYTES_MAX.saturating_sub(self.answer.len());
        if room == 0 || self.stream.read_buf(&mut self.answer).await? == 0 {
            bail!("the server closed the connection in the middle of an answer");
        }
        Ok(())
    }
}

/// Status and length of the body.
fn parse(head: &[u8]) -> Result<(u16, usize)> {
    let head = std::str::from_utf8(head).context("the header of an answer is not text")?;
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).context("an answer without status")?;
    let length = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .with_context(|| format!("an answer without Content-Length: {head}"))?;
    Ok((status.parse()?, length.1.trim().parse()?))
}

#[cfg(test)]
mod tests {
    #[test]
    fn status_and_length_are_found_in_any_case() {
        let head = b"HTTP/1.1 201 Created\r\ndate: x\r\nContent-Length: 42\r\n\r\n";
        assert_eq!(super::parse(head).unwrap(), (201, 42));
        assert!(super::parse(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").is_err());
    }
}
