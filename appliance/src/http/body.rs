//! Bodies: a request's, read within its bounds, and an answer's, watched while the client takes it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Limits;
use super::registry::InFlight;
use crate::api::problem::Problem;

/// Time before the least rate of a body counts.
const RATE_GRACE: Duration = Duration::from_secs(5);
/// Largest piece of an answer that is handed to HTTP/2 at once.
const PIECE_BYTES_MAX: usize = 16 << 10;
/// Largest last piece: what a client that opens its window byte by byte can make us hold after we are done with it.
const LAST_PIECE_BYTES_MAX: usize = 1 << 10;

/// The body of a request, not read yet. Dropped unread, HTTP/1.1 closes the connection after the answer, lingering.
pub(crate) struct RequestBody {
    incoming: Incoming,
    deadline: Duration,
    rate_min: u64,
    received: u64,
    begun: Option<Instant>,
    patience: Arc<Patience>,
    /// Nothing more will come.
    ended: bool,
    request: Arc<InFlight>,
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if !self.ended && !self.incoming.is_end_stream() {
            self.request.left_unread();
        }
    }
}

/// So often it is looked until when an answer is waited for: it may be sooner than it was.
const PATIENCE_LOOK: Duration = Duration::from_secs(1);

/// Until when the answer to a request is waited for. A body that is streamed moves it on, piece by piece; one that was read as a whole
/// leaves the time for the work.
pub(super) struct Patience {
    begun: Instant,
    until_ms: AtomicU64,
    work: Duration,
    /// What each piece gives.
    time: Duration,
}

impl Patience {
    /// `work`: time for the work on the request; `body`: time for its body.
    pub(super) fn new(work: Duration, body: Duration) -> Arc<Self> {
        let time = work + body;
        let until_ms = AtomicU64::new(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        Arc::new(Self { begun: Instant::now(), until_ms, work, time })
    }

    fn reckoned(&self, time: Duration) -> u64 {
        u64::try_from((self.begun.elapsed() + time).as_millis()).unwrap_or(u64::MAX)
    }

    /// Waits as long again, from now on.
    fn more(&self) {
        self.until_ms.fetch_max(self.reckoned(self.time), Relaxed);
    }

    /// The body is there: what is left is the work.
    fn whole(&self) {
        self.until_ms.store(self.reckoned(self.work), Relaxed);
    }

    /// How long it has waited.
    pub(super) fn waited(&self) -> Duration {
        self.begun.elapsed()
    }

    fn until(&self) -> Instant {
        self.begun + Duration::from_millis(self.until_ms.load(Relaxed))
    }

    /// What the future gives, or nothing if it takes too long.
    pub(super) async fn wait<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        let mut future = std::pin::pin!(future);
        loop {
            let look = self.until().min(Instant::now() + PATIENCE_LOOK);
            match tokio::time::timeout_at(look, future.as_mut()).await {
                Ok(output) => return Some(output),
                Err(_) if self.until() > Instant::now() => {}
                Err(_) => return None,
            }
        }
    }
}

impl RequestBody {
    pub(super) fn new(incoming: Incoming, limits: &Limits, request: Arc<InFlight>) -> Self {
        let deadline = if incoming.is_end_stream() { Duration::ZERO } else { limits.body_deadline };
        let patience = Patience::new(limits.request_deadline, deadline);
        let (deadline, rate_min) = (limits.body_deadline, limits.body_rate_min);
        Self { incoming, deadline, rate_min, received: 0, begun: None, patience, ended: false, request }
    }

    /// How long its request is waited for.
    pub(super) fn patience(&self) -> Arc<Patience> {
        self.patience.clone()
    }

    /// The length that was announced, in bytes.
    pub(crate) fn announced(&self) -> Option<u64> {
        self.incoming.size_hint().exact()
    }

    /// The next piece of a body that may be of any length: no deadline holds for the whole of it, but the least rate does,
    /// and each piece must come within the time that others have for all.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Problem> {
        let begun = *self.begun.get_or_insert_with(Instant::now);
        loop {
            let earned = Duration::from_millis(self.received.saturating_mul(1000) / self.rate_min);
            let until = (begun + RATE_GRACE + earned).min(Instant::now() + self.deadline);
            let frame = match tokio::time::timeout_at(until, self.incoming.frame()).await {
                Err(_) => return Err(Problem::body_too_slow().closing(true)),
                Ok(None) => {
                    self.ended = true;
                    return Ok(None);
                }
                Ok(Some(Err(error))) => return Err(Problem::body_broken(&error).closing(true)),
                Ok(Some(Ok(frame))) => frame,
            };
            let Ok(data) = frame.into_data() else { continue };
            self.received += data.len() as u64;
            self.patience.more();
            return Ok(Some(data));
        }
    }

    /// Reads the whole body, at most `bytes_max`. An announced length above it is refused before the client is invited
    /// to send (`Expect: 100-continue`).
    pub(crate) async fn read(mut self, bytes_max: usize) -> Result<Bytes, Problem> {
        let hint = self.incoming.size_hint();
        let most = bytes_max as u64;
        if hint.lower() > most {
            return Err(Problem::body_too_large(bytes_max).closing(true));
        }
        let begun = Instant::now();
        let mut first = Bytes::new();
        let mut all = BytesMut::new();
        let mut received = 0u64;
        loop {
            let earned = Duration::from_millis(received.saturating_mul(1000) / self.rate_min);
            let until = begun + self.deadline.min(RATE_GRACE + earned);
            let frame = match tokio::time::timeout_at(until, self.incoming.frame()).await {
                Err(_) => return Err(Problem::body_too_slow().closing(true)),
                Ok(None) => {
                    self.ended = true;
                    break;
                }
                Ok(Some(Err(error))) => return Err(Problem::body_broken(&error).closing(true)),
                Ok(Some(Ok(frame))) => frame,
            };
            let Ok(data) = frame.into_data() else { continue };
            received += data.len() as u64;
            if received > most {
                return Err(Problem::body_too_large(bytes_max).closing(true));
            }
            if first.is_empty() && all.is_empty() {
                first = data;
            } else {
                if all.is_empty() {
                    let expected = hint.exact().and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
                    all.reserve(expected.max(first.len() + data.len()));
                    all.extend_from_slice(&first);
                    first = Bytes::new();
                }
                all.extend_from_slice(&data);
            }
        }
        self.patience.whole();
        Ok(if all.is_empty() { first } else { all.freeze() })
    }

    /// Refuses a body where the route takes none.
    pub(crate) fn refuse(&self) -> Result<(), Problem> {
        if self.incoming.is_end_stream() || self.incoming.size_hint().exact() == Some(0) {
            return Ok(());
        }
        Err(Problem::invalid("this route takes no body").closing(true))
    }
}

/// The body of an answer.
pub(crate) enum Payload {
    /// None.
    Empty,
    /// All of it.
    Full(Bytes),
    /// Piece by piece until the sender is dropped; the response deadline does not count.
    Stream(mpsc::Receiver<Bytes>),
    /// The same, of a length that is known. An error, or an end before it, breaks the answer off.
    Pieces {
        /// Bytes of all pieces.
        length: u64,
        /// What comes.
        pieces: mpsc::Receiver<io::Result<Bytes>>,
    },
}

impl Payload {
    /// Length in bytes, when it is known.
    pub(super) fn length(&self) -> Option<u64> {
        match self {
            Self::Empty => Some(0),
            Self::Full(bytes) => Some(bytes.len() as u64),
            Self::Stream(_) => None,
            Self::Pieces { length, .. } => Some(*length),
        }
    }
}

/// A [`Payload`] on its way: tells the registry how the client gets on with it, until it is dropped.
pub(super) struct Watched {
    payload: Payload,
    in_pieces: bool,
    request: Arc<InFlight>,
}

impl Watched {
    /// `in_pieces`: for HTTP/2, whose flow control is out of our sight once a piece is handed over.
    pub(super) fn new(payload: Payload, in_pieces: bool, request: Arc<InFlight>) -> Self {
        request.answering(matches!(payload, Payload::Stream(_) | Payload::Pieces { .. }));
        Self { payload, in_pieces, request }
    }

    fn next(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        match &mut self.payload {
            Payload::Empty => Poll::Ready(None),
            Payload::Stream(receiver) => receiver.poll_recv(context).map(|piece| piece.map(Ok)),
            Payload::Pieces { length, pieces } => {
                let next = ready!(pieces.poll_recv(context));
                *length =
                    length.saturating_sub(next.as_ref().and_then(|p| p.as_ref().ok()).map_or(0, |p| p.len() as u64));
                let short = next.is_none() && *length > 0;
                Poll::Ready(if short { Some(Err(io::ErrorKind::UnexpectedEof.into())) } else { next })
            }
            Payload::Full(rest) => {
                let take = match rest.len() {
                    0 => return Poll::Ready(None),
                    n if !self.in_pieces || n <= LAST_PIECE_BYTES_MAX => n,
                    n => (n - LAST_PIECE_BYTES_MAX).min(PIECE_BYTES_MAX),
                };
                Poll::Ready(Some(Ok(rest.split_to(take))))
            }
        }
    }
}

impl Body for Watched {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        let next = this.next(context);
        if next.is_ready() {
            this.request.progress();
        }
        next.map(|piece| piece.map(|bytes| bytes.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        match &self.payload {
            Payload::Empty => true,
            Payload::Full(rest) => rest.is_empty(),
            Payload::Stream(_) => false,
            Payload::Pieces { length, .. } => *length == 0,
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.payload.length().map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
