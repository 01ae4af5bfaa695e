//! The port for peers: who is no member is refused before a byte of the message is read.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Body as _, Incoming};
use hyper::header::HeaderValue;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use samovar_node::transport::MESSAGE_BYTES_MAX;
use samovar_node::{Node, rt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::rebuild::{self, REBUILD};
use super::transport::{DRAIN, MESSAGE, REFUSED, REMOVED, REPORT, RESUME, SECRETS};
use super::{Peers, Service, attend};
use crate::tls::{authority_key, key_hash, node_of};

/// Most connections at once; more wait to be accepted.
const CONNECTIONS_MAX: usize = 256;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may stay without a request.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a message may take to come, whole.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// How long accepting rests when the system refuses a socket.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Answers peers until the task is dropped, and its connections with it.
pub(super) async fn serve(peers: Peers, node: Node, listener: std::net::TcpListener) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "the socket for peers cannot be watched"),
    };
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((socket, _)) => {
                let (peers, node) = (peers.clone(), node.clone());
                connections.spawn(rt::boxed(async move {
                    let _place = place;
                    connection(peers, node, socket).await;
                }));
            }
            Err(error) => {
                tracing::warn!(%error, "accepting a connection of a peer failed");
                rt::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(peers: Peers, node: Node, socket: TcpStream) {
    let address = socket.peer_addr().map(|a| a.ip().to_string()).unwrap_or_default();
    let Ok(tls) = peers.tls().map_err(|e| tracing::error!("{e:#}")) else { return };
    if socket.set_nodelay(true).is_err() {
        return;
    }
    let accepted = rt::timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(tls.server.clone()).accept(socket)).await;
    let stream = match accepted {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(address, %error, "who connected is no peer"),
        Err(_) => return tracing::debug!(address, "a handshake of a peer took too long"),
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let Some((from, key)) = certificate.and_then(|c| Some((node_of(c)?, key_hash(c)?))) else { return };
    if from == node.id() {
        return tracing::warn!(
            address,
            "who connected has this node's own identity: is the data directory in use twice?"
        );
    }
    peers.note_key(from, key);
    let service = service_fn(|request| {
        let (peers, node) = (&peers, &node);
        async move { Ok::<_, Infallible>(answer(peers, node, from, request).await) }
    });
    // hyper's header timeout runs while the connection is idle too.
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = served.await {
        tracing::debug!(address, peer = from, %error, "a connection of a peer ended");
    }
}

async fn answer(peers: &Peers, node: &Node, from: u64, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let members = || node.members();
    // One that is still a member while its removal is under way is heard: it may lead.
    if peers.0.book.is_removed(from) && !members().iter().any(|member| member.node == from) {
        // One that a recovery left behind must hear of that, since its cluster may go on without this node.
        if (request.method(), request.uri().path()) == (&Method::POST, MESSAGE)
            && let Ok(message) = message(request.into_body()).await
            && let Some(answer) = node.refuse_other_cluster(from, &message)
        {
            return Response::new(Full::new(answer));
        }
        let mut refused = text(StatusCode::FORBIDDEN, "this node was removed from the cluster");
        refused.headers_mut().insert(REFUSED, HeaderValue::from_static(REMOVED));
        return refused;
    }
    peers.0.book.heard(from);
    match (request.method(), request.uri().path()) {
        (&Method::POST, MESSAGE) => match message(request.into_body()).await {
            Ok(message) => Response::new(Full::new(node.answer(from, message).await)),
            Err(refused) => refused,
        },
        (&Method::GET, REPORT) => json(&attend::report(peers, node)),
        (&Method::GET, SECRETS) => {
            if !members().iter().any(|member| member.node == from && member.voter) {
                return text(StatusCode::FORBIDDEN, "only voters have the secrets of the cluster");
            }
            secrets(peers)
        }
        (&Method::POST, REBUILD) => match message(request.into_body()).await {
            Ok(asked) => rebuilt(peers, node, from, &asked).await,
            Err(refused) => refused,
        },
        (&Method::POST, DRAIN) => service(node, Service::Drain).await,
        (&Method::POST, RESUME) => service(node, Service::Resume).await,
        _ => text(StatusCode::NOT_FOUND, "peers ask no such thing"),
    }
}

async fn rebuilt(peers: &Peers, node: &Node, from: u64, asked: &Bytes) -> Response<Full<Bytes>> {
    let Ok(ask) = serde_json::from_slice(asked) else {
        return text(StatusCode::BAD_REQUEST, "the question is of another version");
    };
    match peers.readmit(node, from, ask).await {
        Ok(new) => json(&new),
        Err(why) => {
            let mut refused = Response::new(Full::new(why.into()));
            *refused.status_mut() = rebuild::REFUSED;
            refused
        }
    }
}

async fn service(node: &Node, service: Service) -> Response<Full<Bytes>> {
    match service.apply(node).await {
        Ok(()) => Response::default(),
        Err(error) => {
            let mut response = Response::new(Full::new(error.to_string().into()));
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            response
        }
    }
}

async fn message(body: Incoming) -> Result<Bytes, Response<Full<Bytes>>> {
    let too_long = || text(StatusCode::PAYLOAD_TOO_LARGE, "the message is too long");
    if body.size_hint().lower() > MESSAGE_BYTES_MAX as u64 {
        return Err(too_long());
    }
    match rt::timeout(BODY_TIMEOUT, Limited::new(body, MESSAGE_BYTES_MAX).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(_)) => Err(too_long()),
        Err(_) => Err(text(StatusCode::REQUEST_TIMEOUT, "the message came too slowly")),
    }
}

/// What every voter has.
#[derive(serde::Serialize, serde::Deserialize)]
pub(super) struct Shared {
    /// The CA's private key, PEM.
    pub(super) ca_key: String,
}

fn secrets(peers: &Peers) -> Response<Full<Bytes>> {
    match authority_key(&peers.0.secrets) {
        Ok(Some(ca_key)) => json(&Shared { ca_key }),
        Ok(None) => text(StatusCode::NOT_FOUND, "this node has no key of the CA"),
        Err(error) => {
            tracing::error!("the CA's key cannot be read for a peer: {error:#}");
            text(StatusCode::INTERNAL_SERVER_ERROR, "the CA's key cannot be read")
        }
    }
}

fn json(body: &impl serde::Serialize) -> Response<Full<Bytes>> {
    match serde_json::to_vec(body) {
        Ok(bytes) => Response::new(Full::new(bytes.into())),
        Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "the answer cannot be written"),
    }
}

fn text(status: StatusCode, why: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(why.as_bytes())));
    *response.status_mut() = status;
    response
}
