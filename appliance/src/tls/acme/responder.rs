//! Answers the authority: on sockets that systemd passes (80, 443), and at configured addresses. What a connection begins
//! with says what it is: a TLS record (RFC 8446, 5.1) or HTTP. Neither leads to the API.
//!
//! | asked | answer |
//! |---|---|
//! | `GET /.well-known/acme-challenge/TOKEN` of a pending order | its key authorization (RFC 8555, 8.3) |
//! | a handshake with the protocol `acme-tls/1` alone, for a name of a pending order | its certificate, then the end (RFC 8737, 3) |
//! | `GET` or `HEAD` under a name that is served | to the API over https (308) |
//! | anything else | 404, or an alert |

use samovar_node::rt;
use std::convert::Infallible;
use std::net::{IpAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue, LOCATION};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::LazyConfigAcceptor;

use super::super::site::{Served, Site};
use super::challenge::{ACME_TLS, Pending};
use crate::http::network_of;
use crate::live::Live;

/// Open connections, of all and of one address (IPv6: one /64). An authority asks from a handful of places, once or twice.
const CONNECTIONS_MAX: usize = 128;
const CONNECTIONS_PER_ADDRESS_MAX: usize = 8;
/// Time for a whole connection.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a request's header; hyper takes no smaller bound.
const HEADER_BYTES_MAX: usize = 8 << 10;
/// How long the accept loop rests when the system refuses a socket.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// First byte of a TLS record that is a handshake.
const HANDSHAKE: u8 = 0x16;
const WELL_KNOWN: &str = "/.well-known/acme-challenge/";

/// Listeners with what they answer from.
pub(crate) struct Responder {
    listeners: Vec<tokio::net::TcpListener>,
    shared: Arc<Shared>,
}

/// Nothing of the node: a connection here must not hold up its stop.
struct Shared {
    pending: Arc<Pending>,
    /// The certificate in use.
    served: Live<Option<Served>>,
    /// Port of the API, for the redirect.
    port: u16,
    /// Addresses of open connections, each as often as it has one.
    open: Mutex<Vec<IpAddr>>,
    /// What a handshake is refused with.
    refusing: Arc<ServerConfig>,
}

impl Responder {
    /// Over sockets that are bound. Called on a runtime.
    pub(crate) fn new(listeners: Vec<TcpListener>, site: &Site, port: u16) -> Result<Self> {
        let watched = listeners.into_iter().map(|listener| {
            listener.set_nonblocking(true)?;
            tokio::net::TcpListener::from_std(listener)
        });
        let listeners = watched.collect::<Result<_, _>>().context("watching the sockets of samovar-acme")?;
        let (pending, served) = (site.pending.clone(), site.served());
        let shared = Shared { pending, served, port, open: Mutex::default(), refusing: refusing()? };
        Ok(Self { listeners, shared: Arc::new(shared) })
    }

    /// Answers until the task is dropped.
    pub(crate) async fn run(self) {
        let mut accepting = JoinSet::new();
        for listener in self.listeners {
            accepting.spawn(rt::boxed(accept(listener, self.shared.clone())));
        }
        while accepting.join_next().await.is_some() {}
    }
}

async fn accept(listener: tokio::net::TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((socket, peer)) => {
                    if let Some(place) = Place::take(&shared, peer.ip()) {
                        connections.spawn(rt::boxed(async move {
                            // One that is late is closed, and nothing else is to be done about it.
                            let _ = tokio::time::timeout(CONNECTION_TIMEOUT, connection(socket, &place.0)).await;
                        }));
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection of samovar-acme failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// A connection's place among the open ones.
struct Place(Arc<Shared>, IpAddr);

impl Place {
    fn take(shared: &Arc<Shared>, peer: IpAddr) -> Option<Self> {
        let address = network_of(peer.to_canonical());
        let mut open = shared.open.lock().unwrap_or_else(PoisonError::into_inner);
        let own = open.iter().filter(|other| **other == address).count();
        if open.len() >= CONNECTIONS_MAX || own >= CONNECTIONS_PER_ADDRESS_MAX {
            return None;
        }
        open.push(address);
        Some(Self(shared.clone(), address))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = open.iter().position(|address| *address == self.1) {
            open.swap_remove(at);
        }
    }
}

async fn connection(socket: TcpStream, shared: &Shared) {
    let mut first = [0];
    if !matches!(socket.peek(&mut first).await, Ok(1)) {
        return;
    }
    let done = if first[0] == HANDSHAKE { tls(socket, shared).await } else { http(socket, shared).await };
    if let Err(error) = done {
        tracing::debug!("a connection of samovar-acme ended: {error:#}");
    }
}

/// A handshake, and no more (RFC 8737, 3).
async fn tls(socket: TcpStream, shared: &Shared) -> Result<()> {
    use tokio::io::AsyncWriteExt as _;
    let start = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), socket).await?;
    let hello = start.client_hello();
    let alone = hello.alpn().is_some_and(|mut all| all.next() == Some(ACME_TLS) && all.next().is_none());
    let config = hello.server_name().filter(|_| alone).and_then(|name| shared.pending.tls(name));
    let mut stream = start.into_stream(config.unwrap_or_else(|| shared.refusing.clone())).await?;
    stream.shutdown().await?;
    Ok(())
}

async fn http(socket: TcpStream, shared: &Shared) -> Result<()> {
    let service = service_fn(|request| async move { Ok::<_, Infallible>(answer(&request, shared)) });
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(CONNECTION_TIMEOUT)
        .max_buf_size(HEADER_BYTES_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(socket), service)
        .await?;
    Ok(())
}

fn answer(request: &Request<Incoming>, shared: &Shared) -> Response<Full<Bytes>> {
    let reads = [Method::GET, Method::HEAD].contains(request.method());
    let key_authorization = request.uri().path().strip_prefix(WELL_KNOWN).and_then(|t| shared.pending.http(t));
    let mut response = Response::new(Full::default());
    if let Some(text) = key_authorization.filter(|_| reads) {
        *response.body_mut() = Full::from(text);
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    } else if let Some(location) = Some(request).filter(|_| reads).and_then(|r| elsewhere(r, shared)) {
        *response.status_mut() = StatusCode::PERMANENT_REDIRECT;
        response.headers_mut().insert(LOCATION, location);
    } else {
        *response.status_mut() = StatusCode::NOT_FOUND;
    }
    response
}

/// The same at the API, if it was asked for under a name of this node; any other host in the answer would be the client's word.
fn elsewhere(request: &Request<Incoming>, shared: &Shared) -> Option<HeaderValue> {
    if request.uri().path().starts_with(WELL_KNOWN) {
        return None;
    }
    let host = request.headers().get(HOST)?.to_str().ok()?;
    let host = host.split_once(':').map_or(host, |(name, _)| name).to_ascii_lowercase();
    if !shared.served.get().as_ref().as_ref().is_some_and(|served| served.is_for(&host)) {
        return None;
    }
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    HeaderValue::from_str(&format!("https://{host}:{}{path}", shared.port)).ok()
}

/// TLS that has no certificate for anybody.
fn refusing() -> Result<Arc<ServerConfig>> {
    #[derive(Debug)]
    struct Nothing;
    impl ResolvesServerCert for Nothing {
        fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
            None
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .context("choosing TLS versions")?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Nothing));
    Ok(Arc::new(config))
}
