//! One connection: handshake, protocol by ALPN, requests, leaving.

use samovar_node::rt;
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::header::{CONNECTION, HeaderValue};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::body::Watched;
use super::io::{Observed, Socket};
use super::registry::{Place, Registry};
use super::{Peer, Proved, Shared};
use crate::tls;

/// HTTP/2 pings: how often, and how long the answer may take. It is what ends a header without its CONTINUATION.
const PING_INTERVAL: Duration = Duration::from_secs(15);
/// Bytes that one HTTP/2 stream may have buffered towards the client.
const SEND_BUFFER_BYTES: usize = 64 << 10;
/// Flow-control window of one HTTP/2 stream: what a request body may hold before it is read.
const STREAM_WINDOW_BYTES: u32 = 256 << 10;
/// Flow-control window of an HTTP/2 connection.
const CONNECTION_WINDOW_BYTES: u32 = 1 << 20;

/// Takes a connection in, or closes it when there is no place.
pub(super) fn admit(shared: &Arc<Shared>, socket: TcpStream, peer: IpAddr) {
    let Some(place) = Registry::place(shared, peer) else { return };
    let id = place.id();
    let task = rt::spawn(run(shared.clone(), place, socket, peer));
    shared.registry.runs(id, task.abort_handle());
}

/// Takes a connection of the Unix socket in, if it is from root or from this process's own user.
pub(super) fn admit_local(shared: &Arc<Shared>, socket: UnixStream) {
    let user = match socket.peer_cred() {
        Ok(credentials) => credentials.uid(),
        Err(error) => return tracing::warn!(%error, "who connects to the Unix socket is not known"),
    };
    if user != 0 && user != rustix::process::geteuid().as_raw() {
        return tracing::warn!(user, "a user who is neither root nor this daemon's connected to the Unix socket");
    }
    let address = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let Some(place) = Registry::place(shared, address) else { return };
    let (id, peer) = (place.id(), Peer { address, proved: Proved::User(user) });
    let task = {
        let shared = shared.clone();
        rt::spawn(async move {
            if let Err(error) = http1_connection(&shared, &place, socket, peer).await {
                tracing::debug!(%error, "connection on the Unix socket ended");
            }
        })
    };
    shared.registry.runs(id, task.abort_handle());
}

async fn run(shared: Arc<Shared>, place: Place, socket: TcpStream, address: IpAddr) {
    if socket.set_nodelay(true).is_err() {
        return;
    }
    let accepting = TlsAcceptor::from(shared.tls.get()).accept(Socket::new(socket, place.seat.clone()));
    let handshake = tokio::time::timeout(shared.limits.get().handshake_timeout, accepting).await;
    let tls = match handshake {
        Ok(Ok(tls)) => tls,
        Ok(Err(error)) => {
            shared.metrics.handshake("failed");
            tracing::debug!(peer = %address, %error, "TLS handshake failed");
            return;
        }
        Err(_) => return shared.metrics.handshake("timeout"),
    };
    shared.metrics.handshake("done");
    // A protocol outside our list never gets here: rustls refuses the handshake. No ALPN at all means HTTP/1.1.
    let http2 = tls.get_ref().1.alpn_protocol() == Some(b"h2");
    let peer = Peer { address, proved: proved(&tls) };
    let result = if http2 {
        place.activity.is_http2();
        http2_connection(&shared, &place, tls, peer).await
    } else {
        http1_connection(&shared, &place, tls, peer).await
    };
    if let Err(error) = result {
        tracing::debug!(peer = %address, %error, "connection ended");
    }
}

/// The key of the client's certificate, if it sent one.
fn proved(tls: &TlsStream<Socket>) -> Proved {
    let certificate = tls.get_ref().1.peer_certificates().and_then(<[_]>::first);
    certificate.and_then(tls::key_hash).map_or(Proved::Nothing, Proved::Key)
}

/// Drives a connection; once it is asked to leave it finishes what is in flight.
macro_rules! drive {
    ($place:expr, $connection:expr) => {{
        let mut connection = pin!($connection);
        loop {
            tokio::select! {
                biased;
                result = connection.as_mut() => break result,
                () = $place.activity.leave.notified() => connection.as_mut().graceful_shutdown(),
            }
        }
    }};
}

async fn http1_connection(
    shared: &Arc<Shared>,
    place: &Place,
    stream: impl AsyncRead + AsyncWrite + Unpin,
    peer: Peer,
) -> hyper::Result<()> {
    let limits = shared.limits.get();
    place.seat.is_exclusive();
    let service = service_fn(|request| {
        let in_flight = place.activity.begin();
        async move {
            place.seat.turn().await;
            let mut response = super::answer(shared, request, peer, in_flight.clone(), &place.seat).await;
            if shared.registry.is_draining() {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response.map(|payload| Watched::new(payload, false, in_flight)))
        }
    });
    let io = TokioIo::new(Observed::new(stream, place.activity.clone(), place.seat.clone()));
    // hyper's own header timeout also runs while the connection is idle, so it is only the backstop of the sweep.
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.idle_timeout + limits.header_timeout)
        .max_headers(limits.headers_max)
        .max_buf_size(limits.header_bytes_max)
        .max_header_size(limits.header_bytes_max)
        .serve_connection(io, service);
    drive!(place, connection)
}

async fn http2_connection(
    shared: &Arc<Shared>,
    place: &Place,
    tls: TlsStream<Socket>,
    peer: Peer,
) -> hyper::Result<()> {
    let limits = shared.limits.get();
    let (owned, activity, seat) = (shared.clone(), place.activity.clone(), place.seat.clone());
    let service = service_fn(move |request| {
        let (shared, in_flight, seat) = (owned.clone(), activity.begin(), seat.clone());
        async move {
            seat.turn().await;
            let response = super::answer(&shared, request, peer, in_flight.clone(), &seat).await;
            Ok::<_, Infallible>(response.map(|payload| Watched::new(payload, true, in_flight)))
        }
    });
    let io = TokioIo::new(Observed::new(tls, place.activity.clone(), place.seat.clone()));
    let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL.min(limits.header_timeout))
        .keep_alive_timeout(limits.header_timeout)
        .max_concurrent_streams(limits.streams_max)
        .max_header_list_size(u32::try_from(limits.header_bytes_max).unwrap_or(u32::MAX))
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .serve_connection(io, service);
    drive!(place, connection)
}
