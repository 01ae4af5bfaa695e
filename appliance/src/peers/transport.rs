//! Calls to peers: HTTP/1.1 over TLS 1.3, one call at a time on a connection, connections kept. A call whose caller went
//! away goes on for a moment, so that a slow answer costs no new handshake.

use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Body as _;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use samovar_node::rt;
use samovar_node::transport::{Call, Lost, MESSAGE_BYTES_MAX, Peer, Transport};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, oneshot};
use tokio_rustls::TlsConnector;

use super::{Inner, Peers};
use crate::tls::{key_hash, server_name};

/// Where messages of the consensus go.
pub(super) const MESSAGE: &str = "/v1/message";
/// Where a node says how it is.
pub(crate) const REPORT: &str = "/v1/report";
/// Where a voter gets what all voters have.
pub(super) const SECRETS: &str = "/v1/secrets";
/// Where a node is taken out of service for a while, and put back.
pub(super) const DRAIN: &str = "/v1/drain";
pub(super) const RESUME: &str = "/v1/resume";
/// Header of a refusal, and what it says of a node that was removed.
pub(super) const REFUSED: &str = "samovar-refused";
pub(super) const REMOVED: &str = "removed";

/// Longest wait for a connection with its handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest wait for an answer; whoever calls has a shorter one of its own.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// How much longer an answer is waited for when nobody wants it any more.
const GRACE: Duration = Duration::from_millis(500);
/// Most calls to one peer at once; more fail at once.
const CALLS_MAX: usize = 64;
/// Most connections to one peer that are kept without a call.
const IDLE_MAX: usize = 8;

type Connection = SendRequest<Full<Bytes>>;

/// The way to one peer.
pub(super) struct Pool {
    /// Where it is. A peer that moved gets a new pool.
    address: String,
    /// Connections without a call, the one used last at the end.
    idle: Mutex<Vec<Connection>>,
    calls: Semaphore,
}

impl Transport for Peers {
    fn call(&self, to: &Peer, message: Bytes) -> Call {
        let asked = self.ask(to, Method::POST, MESSAGE, message);
        Box::pin(asked)
    }
}

impl Peers {
    /// Sends a request to a peer and waits for its whole answer, which must be a success.
    pub(crate) fn ask(
        &self,
        to: &Peer,
        method: Method,
        path: &'static str,
        body: Bytes,
    ) -> Pin<Box<dyn Future<Output = Result<Bytes, Lost>> + Send>> {
        let (mut reply, answer) = oneshot::channel();
        let (peers, to) = (self.clone(), to.clone());
        rt::spawn(async move {
            let mut exchange = pin!(peers.0.clone().counted(&peers, to, (method, path), body));
            let answered = tokio::select! {
                biased;
                answered = exchange.as_mut() => answered,
                () = reply.closed() => return drop(rt::timeout(GRACE, exchange).await),
            };
            // Who asked may just have gone.
            let _ = reply.send(answered);
        });
        Box::pin(async move { answer.await.unwrap_or_else(|_| Err(Lost::NoAnswer("the call was given up".into()))) })
    }

    fn pool(&self, to: &Peer) -> Arc<Pool> {
        let mut pools = self.0.pools.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = pools.get(&to.node).filter(|pool| pool.address == to.address) {
            return pool.clone();
        }
        let pool =
            Arc::new(Pool { address: to.address.clone(), idle: Mutex::default(), calls: Semaphore::new(CALLS_MAX) });
        pools.insert(to.node, pool.clone());
        pool
    }

    /// A new connection to a peer whose certificate was checked.
    async fn connect(&self, to: &Peer) -> Result<Connection, Lost> {
        let connecting = rt::timeout(CONNECT_TIMEOUT, self.connect_unbounded(to)).await;
        let failed = |why: String| Lost::NotSent(format!("{}: {why}", to.address));
        connecting
            .unwrap_or_else(|_| Err(format!("no connection within {} s", CONNECT_TIMEOUT.as_secs())))
            .map_err(failed)
    }

    async fn connect_unbounded(&self, to: &Peer) -> Result<Connection, String> {
        let tls = self.tls().map_err(|e| format!("{e:#}"))?;
        let name = server_name(to.node).map_err(|e| e.to_string())?;
        let tcp = TcpStream::connect(&to.address).await.map_err(|e| e.to_string())?;
        tcp.set_nodelay(true).map_err(|e| e.to_string())?;
        let stream = TlsConnector::from(tls.client.clone()).connect(name, tcp).await.map_err(|e| e.to_string())?;
        if let Some(key) = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).and_then(key_hash) {
            self.note_key(to.node, key);
        }
        let (connection, driver) = handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
        rt::spawn(async move { driver.await.ok() });
        Ok(connection)
    }
}

impl Inner {
    /// Notes how a call ended.
    async fn counted(
        self: Arc<Self>,
        peers: &Peers,
        to: Peer,
        what: (Method, &'static str),
        body: Bytes,
    ) -> Result<Bytes, Lost> {
        let answered = rt::timeout(ANSWER_TIMEOUT, exchange(peers, &to, what, body)).await;
        let answered = answered.unwrap_or_else(|_| Err(Lost::NoAnswer("no answer in time".into())));
        match &answered {
            Ok(_) => self.book.answered(to.node),
            Err(Lost::NotSent(why)) => self.book.not_sent(to.node, why),
            Err(Lost::NoAnswer(why)) => self.book.no_answer(to.node, why),
        }
        answered
    }
}

/// Sends on a kept connection, or on a new one when that turns out to be closed before anything was sent.
async fn exchange(
    peers: &Peers,
    to: &Peer,
    (method, path): (Method, &'static str),
    body: Bytes,
) -> Result<Bytes, Lost> {
    let pool = peers.pool(to);
    let Ok(_turn) = pool.calls.try_acquire() else {
        return Err(Lost::NotSent(format!("{CALLS_MAX} calls are under way already")));
    };
    loop {
        let (mut connection, kept) = match pool.take() {
            Some(connection) => (connection, true),
            None => (peers.connect(to).await?, false),
        };
        let mut request = Request::new(Full::new(body.clone()));
        *request.method_mut() = method.clone();
        *request.uri_mut() = path.parse().map_err(|e| Lost::NotSent(format!("{path}: {e}")))?;
        let host = hyper::header::HeaderValue::from_static("samovar");
        request.headers_mut().insert(hyper::header::HOST, host);
        let answer = match connection.try_send_request(request).await {
            Ok(answer) => answer,
            Err(mut failed) => {
                let unsent = failed.take_message().is_some();
                if kept && unsent {
                    continue;
                }
                let why = failed.into_error().to_string();
                return Err(if unsent { Lost::NotSent(why) } else { Lost::NoAnswer(why) });
            }
        };
        let (head, body) = answer.into_parts();
        let length = body.size_hint().exact();
        if length.is_some_and(|bytes| bytes > MESSAGE_BYTES_MAX as u64) {
            return Err(Lost::NoAnswer("its answer is too long".into()));
        }
        let collected = Limited::new(body, MESSAGE_BYTES_MAX).collect().await;
        let body = collected.map_err(|e| Lost::NoAnswer(e.to_string()))?.to_bytes();
        if connection.ready().await.is_ok() {
            pool.keep(connection);
        }
        return judge(peers, head.status, head.headers.get(REFUSED).is_some_and(|why| why == REMOVED), body);
    }
}

/// What an answer means. Anything but a success was answered before the message was looked at.
fn judge(peers: &Peers, status: StatusCode, removed: bool, body: Bytes) -> Result<Bytes, Lost> {
    if status == StatusCode::OK {
        peers.0.book.refuse(false);
        return Ok(body);
    }
    if removed {
        peers.0.book.refuse(true);
    }
    Err(Lost::NotSent(format!("{status}: {}", String::from_utf8_lossy(&body))))
}

impl Pool {
    fn take(&self) -> Option<Connection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|connection| !connection.is_closed());
        idle.pop()
    }

    fn keep(&self, connection: Connection) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_MAX {
            idle.push(connection);
        }
    }
}
