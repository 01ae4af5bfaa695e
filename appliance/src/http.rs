//! The HTTPS listener: accept loop, limits, deadlines, request ids. What an answer says is the handler's business.
//!
//! hyper and rustls hold most abuse for ever unless told otherwise, so every wait here has a bound:
//!
//! | wait | bound | then |
//! |---|---|---|
//! | connections, in total and of one address | `connections_max`, `connections_per_address_max` | idle one evicted, or closed |
//! | TLS handshake | `handshake_timeout` | closed |
//! | header after its first byte | `header_timeout` | closed |
//! | no request | `idle_timeout` | asked to go, then closed |
//! | body | `body_deadline` (of a blob: for each piece), `body_rate_min`, bytes by route | 408, 413 |
//! | work | `request_deadline` | 503 |
//! | client sends on after the last answer | [`linger`] | closed |
//! | a request, before it is worked on | what can still be answered in time ([`shed`]) | 503 |
//! | client takes no byte, or not the whole answer | `write_timeout`, `response_deadline` | connection cut |
//!
//! ALPN alone decides between HTTP/1.1 and HTTP/2. One `current_thread` runtime runs all of it. The node's Unix socket has
//! the same bounds, less the handshake.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::http::request::Parts;
use hyper::{Request, Response};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;

use crate::api::problem::Problem;
use crate::live::Live;
use crate::metrics::Metrics;

mod access;
mod answer;
mod body;
mod coding;
mod connection;
mod cors;
mod io;
mod linger;
mod registry;
mod shape;
mod shed;

pub(crate) use answer::{Answer, RequestId};
pub(crate) use body::{Payload, RequestBody};
pub(crate) use coding::Compressible;
pub(crate) use cors::is_origin;
pub(crate) use registry::network_of;

use registry::{InFlight, Registry};
use shed::{Seat, Shed, Verdict};

/// Bounds of the listener. Times are wall time, sizes bytes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Limits {
    /// Open connections.
    pub(crate) connections_max: usize,
    /// Open connections of one address (IPv6: one /64).
    pub(crate) connections_per_address_max: usize,
    /// TLS handshake.
    pub(crate) handshake_timeout: Duration,
    /// First byte of a header to its end.
    pub(crate) header_timeout: Duration,
    /// Connection without a request.
    pub(crate) idle_timeout: Duration,
    /// Age at which an HTTP/2 connection is asked to go.
    pub(crate) connection_lifetime: Duration,
    /// Whole body.
    pub(crate) body_deadline: Duration,
    /// Bytes per second that a body must keep up.
    pub(crate) body_rate_min: u64,
    /// Work of one request.
    pub(crate) request_deadline: Duration,
    /// No byte taken by the client.
    pub(crate) write_timeout: Duration,
    /// Whole answer taken by the client.
    pub(crate) response_deadline: Duration,
    /// Concurrent streams of an HTTP/2 connection.
    pub(crate) streams_max: u32,
    /// Bytes of a header.
    pub(crate) header_bytes_max: usize,
    /// Fields of a header.
    pub(crate) headers_max: usize,
    /// Bytes of a request target.
    pub(crate) uri_bytes_max: usize,
    /// Open watches.
    pub(crate) watches_max: usize,
    /// Requests in flight at a stop.
    pub(crate) stop_deadline: Duration,
    /// Access records written per second; more are counted. 0: none.
    pub(crate) access_records_max: u32,
    /// Origins whose pages may call the API from a browser.
    pub(crate) cors_origins: Vec<String>,
}

/// A request whose shape was checked.
pub(crate) struct Asked {
    /// Method, target and header.
    pub(crate) head: Parts,
    /// The body, not read yet.
    pub(crate) body: RequestBody,
    /// Who sent it, as far as the connection says; forwarded-for headers never count.
    pub(crate) peer: Peer,
    /// Id of the request.
    pub(crate) id: RequestId,
}

/// The other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Peer {
    /// Its address; unspecified (`0.0.0.0`) on the Unix socket.
    pub(crate) address: IpAddr,
    /// What it has proved by connecting.
    pub(crate) proved: Proved,
}

/// What a connection proves of its other end, before any request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Proved {
    /// Nothing.
    Nothing,
    /// In the TLS handshake: that it has the private half of the public key with this hash ([`crate::tls::key_hash`]).
    Key([u8; 32]),
    /// To the kernel: that it is a process of this user, on the Unix socket. It is root or the daemon's own user.
    User(u32),
}

/// What a handler returns.
pub(crate) struct Reply {
    /// Pattern of the route, or `-`: known before the answer, and should it never come.
    pub(crate) route: &'static str,
    /// The answer.
    pub(crate) answer: Pin<Box<dyn Future<Output = Answer> + Send>>,
}
/// Answers requests.
pub(crate) type Handler = Arc<dyn Fn(Asked) -> Reply + Send + Sync>;

/// Told to who is refused because there is too much to do.
const OVERLOADED: &str =
    "more is asked of this node than it can answer in time; try again after the time in Retry-After";
/// What is read of the body of a request that is refused for that, and for how long.
const REFUSED_BODY_BYTES_MAX: usize = 64 << 10;
const REFUSED_BODY_TIME: Duration = Duration::from_millis(250);
/// How long the accept loop rests when the system refuses a socket (no descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How often deadlines of connections are looked at, and so how exact they are.
pub(crate) const SWEEP_INTERVAL: Duration = Duration::from_millis(250);

/// The listener with all it needs.
pub(crate) struct Server {
    /// Bound and listening.
    pub(crate) listener: TcpListener,
    /// The node's Unix socket: HTTP/1.1 for root and the daemon's own user, without TLS.
    pub(crate) local: Option<UnixListener>,
    /// What TLS handshakes are done with.
    pub(crate) tls: Live<rustls::ServerConfig>,
    /// Bounds.
    pub(crate) limits: Live<Limits>,
    /// Answers requests.
    pub(crate) handler: Handler,
    /// Counts what happens.
    pub(crate) metrics: Arc<Metrics>,
}

/// What a connection shares with its listener.
struct Shared {
    tls: Live<rustls::ServerConfig>,
    limits: Live<Limits>,
    handler: Handler,
    metrics: Arc<Metrics>,
    registry: Registry,
    shed: Arc<Shed>,
    started: tokio::time::Instant,
    access: access::Budget,
}

impl Server {
    /// Serves until `stop` turns true, then lets requests in flight finish within `stop_deadline`, then closes the
    /// listener.
    pub(crate) async fn run(self, mut stop: watch::Receiver<bool>) {
        let Self { listener, local, tls, limits, handler, metrics } = self;
        let registry = Registry::new(limits.clone(), metrics.clone());
        let (started, access) = (tokio::time::Instant::now(), access::Budget::default());
        let shed = Shed::new(metrics.clone(), shed::wanted);
        let shared = Arc::new(Shared { tls, limits, handler, metrics, registry, shed, started, access });
        let mut accepted_at = started;
        let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stopped(&mut stop) => break,
                _ = sweep.tick() => {
                    shared.registry.sweep();
                    shared.shed.sweep();
                }
                // Before the network: a flood there must not keep root away.
                accepted = accept_local(local.as_ref()) => match accepted {
                    Ok(socket) => connection::admit_local(&shared, socket),
                    Err(error) => {
                        tracing::warn!(%error, "accepting a connection on the Unix socket failed");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                accepted = accept(&listener, shared.shed.accept_at(accepted_at)) => match accepted {
                    Ok((socket, peer)) => {
                        accepted_at = tokio::time::Instant::now();
                        connection::admit(&shared, socket, peer.ip().to_canonical());
                    }
                    Err(error) => {
                        tracing::warn!(%error, "accepting a connection failed");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        shared.shed.end();
        shared.registry.drain(&mut sweep).await;
    }
}

/// The next connection, not before then.
async fn accept(listener: &TcpListener, at: tokio::time::Instant) -> std::io::Result<(TcpStream, SocketAddr)> {
    if at > tokio::time::Instant::now() {
        tokio::time::sleep_until(at).await;
    }
    listener.accept().await
}

/// The next connection on the Unix socket; never one without a socket.
async fn accept_local(listener: Option<&UnixListener>) -> std::io::Result<UnixStream> {
    match listener {
        Some(listener) => listener.accept().await.map(|(socket, _)| socket),
        None => std::future::pending().await,
    }
}

/// Resolves when the value turns true, or nobody can turn it any more.
pub(crate) async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stopping| *stopping).await;
}

/// Whether a request is answered whatever the load: root and the daemon's user on the machine itself, and who asks how the node is.
fn is_exempt(peer: &Peer, path: &str) -> bool {
    matches!(peer.proved, Proved::User(_)) || matches!(path, "/health" | "/ready" | "/metrics")
}

/// Runs the handler within the deadline and dresses its answer.
async fn answer(
    shared: &Shared,
    request: Request<Incoming>,
    peer: Peer,
    in_flight: Arc<InFlight>,
    seat: &Seat,
) -> Response<Payload> {
    let begun = tokio::time::Instant::now();
    let _counted = shared.metrics.begin();
    let mut span = samovar_node::trace::task("-");
    let (head, incoming) = request.into_parts();
    let id = RequestId::of(&head.headers);
    let method = answer::method_label(&head.method);
    let record = access::AccessRecord::of(&head, &incoming);
    let limits = shared.limits.get();
    let headless = head.method == hyper::Method::HEAD;
    let http1 = head.version < hyper::Version::HTTP_2;
    let (coding, preflight) = (coding::Coding::of(&head.headers), cors::preflight(&head, &limits.cors_origins));
    let origin = head.headers.get(hyper::header::ORIGIN).cloned();
    let body = RequestBody::new(incoming, &limits, in_flight);
    let verdict = if is_exempt(&peer, head.uri.path()) { Verdict::Serve } else { seat.judge() };
    let mut outcome = match (verdict, shape::check(&head, &limits), preflight) {
        (Verdict::Refuse { retry_after_s, close }, ..) => {
            // Most of them are there, and a connection whose body was not read ends.
            if !close && !head.headers.contains_key(hyper::header::EXPECT) {
                let _ = tokio::time::timeout(REFUSED_BODY_TIME, body.read(REFUSED_BODY_BYTES_MAX)).await;
            }
            Answer::refused(Problem::too_busy(OVERLOADED, retry_after_s).closing(close && http1), &id)
        }
        (_, Err(problem), _) => Answer::refused(problem.closing(http1), &id),
        (_, Ok(()), Some(response)) => Answer { response, route: "-", actor: None },
        (_, Ok(()), None) => {
            let patience = body.patience();
            let _working = seat.works();
            let reply = (shared.handler)(Asked { head, body, peer, id: id.clone() });
            match patience.wait(reply.answer).await {
                Some(answer) => answer,
                None => Answer { route: reply.route, ..Answer::refused(Problem::deadline(patience.waited()), &id) },
            }
        }
    };
    coding::apply(&mut outcome.response, coding);
    cors::dress(&mut outcome.response, origin.as_ref(), &limits.cors_origins);
    span.rename(outcome.route);
    shared.metrics.request(method, outcome.route, outcome.response.status(), begun.elapsed());
    let (budget, elapsed, metrics) = (&shared.access, shared.started.elapsed(), &shared.metrics);
    let records = access::Records { budget, elapsed, per_second_max: limits.access_records_max, metrics };
    record.write(&outcome, &id, peer.address, begun.elapsed(), &records);
    outcome.dress(&id, headless)
}

#[cfg(test)]
mod tests;
