//! Bodies: a request's, read within its bounds, and an answer's, watched while the client takes it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
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

/// The body of a request, not read yet. Dropped unread, HTTP/1.1 closes the connection after the answer.
pub(crate) struct RequestBody {
    incoming: Incoming,
    deadline: Duration,
    rate_min: u64,
}

impl RequestBody {
    pub(super) fn new(incoming: Incoming, limits: &Limits) -> Self {
        Self { incoming, deadline: limits.body_deadline, rate_min: limits.body_rate_min }
    }

    /// Time that the body may take, on top of that of the work.
    pub(super) fn deadline(&self) -> Duration {
        if self.incoming.is_end_stream() { Duration::ZERO } else { self.deadline }
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
                Ok(None) => break,
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
}

impl Payload {
    /// Length in bytes, when it is known.
    pub(super) fn length(&self) -> Option<u64> {
        match self {
            Self::Empty => Some(0),
            Self::Full(bytes) => Some(bytes.len() as u64),
            Self::Stream(_) => None,
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
        request.answering(matches!(payload, Payload::Stream(_)));
        Self { payload, in_pieces, request }
    }

    fn next(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        match &mut self.payload {
            Payload::Empty => Poll::Ready(None),
            Payload::Stream(receiver) => receiver.poll_recv(context),
            Payload::Full(rest) => {
                let take = match rest.len() {
                    0 => return Poll::Ready(None),
                    n if !self.in_pieces || n <= LAST_PIECE_BYTES_MAX => n,
                    n => (n - LAST_PIECE_BYTES_MAX).min(PIECE_BYTES_MAX),
                };
                Poll::Ready(Some(rest.split_to(take)))
            }
        }
    }
}

impl Body for Watched {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        let next = this.next(context);
        if next.is_ready() {
            this.request.progress();
        }
        next.map(|piece| piece.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        match &self.payload {
            Payload::Empty => true,
            Payload::Full(rest) => rest.is_empty(),
            Payload::Stream(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.payload.length().map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
