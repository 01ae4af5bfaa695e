use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::SendRequest;
use hyper::{HeaderMap, Method, Request};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, UnixStream};
use tokio_rustls::TlsConnector;

/// How long an answer may take.
const DEADLINE: Duration = Duration::from_secs(60);

/// One HTTP/1.1 connection over TLS, verified against the ledger's CA.
pub struct Client {
    send: SendRequest<Full<Bytes>>,
    token: Option<String>,
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Header.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
}

impl Answer {
    /// The body as JSON.
    ///
    /// # Errors
    /// When it is not JSON.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_slice(&self.body).with_context(|| format!("no JSON: {}", self.text()))
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// What a connection has besides a token.
#[derive(Debug, Default)]
pub struct Ends {
    /// Certificate and key, DER and PKCS#8, that the client shows if it is asked.
    pub certificate: Option<(Vec<u8>, Vec<u8>)>,
    /// Address of this machine to come from.
    pub from: Option<IpAddr>,
}

impl Client {
    /// Connects to a port of this machine.
    ///
    /// # Errors
    /// When nobody listens, or the certificate does not hold.
    pub async fn connect(port: u16, ca: &Path, token: Option<&str>) -> Result<Self> {
        Self::connect_as(port, ca, token, Ends::default()).await
    }

    /// Connects to a port of this machine as somebody.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub async fn connect_as(port: u16, ca: &Path, token: Option<&str>, ends: Ends) -> Result<Self> {
        Self::connect_to((Ipv4Addr::LOCALHOST, port).into(), ca, token, ends).await
    }

    /// Connects to an IPv4 address and port as somebody.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub async fn connect_to(address: SocketAddr, ca: &Path, token: Option<&str>, ends: Ends) -> Result<Self> {
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(ca)? {
            roots.add(certificate?)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let config = match ends.certificate {
            Some((certificate, key)) => {
                config.with_client_auth_cert(vec![certificate.into()], PrivatePkcs8KeyDer::from(key).into())?
            }
            None => config.with_no_client_auth(),
        };
        let socket = TcpSocket::new_v4()?;
        if let Some(from) = ends.from {
            socket.bind((from, 0).into())?;
        }
        let tcp = socket.connect(address).await?;
        tcp.set_nodelay(true)?;
        let name = ServerName::try_from("localhost")?;
        Self::over(TlsConnector::from(Arc::new(config)).connect(name, tcp).await?, token).await
    }

    /// Connects to the Unix socket of a node.
    ///
    /// # Errors
    /// When nobody listens.
    pub async fn local(socket: &Path) -> Result<Self> {
        Self::over(UnixStream::connect(socket).await?, None).await
    }

    async fn over(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, token: Option<&str>) -> Result<Self> {
        let (send, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { send, token: token.map(str::to_owned) })
    }

    /// The same connection with another token from now on.
    pub fn set_token(&mut self, token: Option<&str>) {
        self.token = token.map(str::to_owned);
    }

    /// The status of a GET whose body may have no end; the connection is used up.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub async fn status(mut self, path: &str) -> Result<u16> {
        let request = self.message(Method::GET, path, &[], Bytes::new())?;
        let answer = tokio::time::timeout(DEADLINE, self.send.send_request(request)).await;
        Ok(answer.with_context(|| format!("no answer in {DEADLINE:?}"))??.status().as_u16())
    }

    /// One request.
    ///
    /// # Errors
    /// When the connection ends or no answer comes in time: whether a write was done is then unknown.
    pub async fn request(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Result<Answer> {
        let request = self.message(method, path, headers, body.into())?;
        let exchange = async {
            self.send.ready().await?;
            let response = self.send.send_request(request).await?;
            let (head, body) = response.into_parts();
            let body = body.collect().await?.to_bytes();
            Ok(Answer { status: head.status.as_u16(), headers: head.headers, body })
        };
        match tokio::time::timeout(DEADLINE, exchange).await {
            Ok(answer) => answer,
            Err(_) => bail!("no answer in {DEADLINE:?}"),
        }
    }

    fn message(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>> {
        let mut request = Request::builder().method(method).uri(path).header("host", "localhost");
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Ok(request.body(Full::new(body))?)
    }

    /// GET.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub async fn get(&mut self, path: &str) -> Result<Answer> {
        self.request(Method::GET, path, &[], Bytes::new()).await
    }

    /// PUT of a value.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub async fn put(&mut self, path: &str, value: impl Into<Bytes>) -> Result<Answer> {
        self.request(Method::PUT, path, &[("content-type", "application/octet-stream")], value).await
    }
}
