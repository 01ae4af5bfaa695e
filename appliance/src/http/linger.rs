//! A connection that is closed while its client may still send: the last answer must reach it (RFC 9112, 9.6).
//!
//! Bytes that arrive at a closed socket make the kernel reset the connection, and a reset takes what the client has not
//! read yet with it. So this end stops sending, and reads on for a while what nobody wants, within bounds that leave nothing to
//! be gained by sending for ever.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;

/// How long is read on at most.
pub(super) const LINGER_TIME: Duration = Duration::from_secs(10);
/// How long is waited without reading.
const DEAF_TIME: Duration = Duration::from_secs(1);
/// How much is read on at most, in bytes: beyond any value, and less than a blob that nobody will take.
pub(super) const LINGER_BYTES_MAX: usize = 64 << 20;
/// Connections that linger at once; more are closed at once.
pub(super) const LINGERING_MAX: usize = 64;
/// What is read at once, in bytes.
const PIECE_BYTES: usize = 16 << 10;

/// The places of connections that linger.
pub(super) fn places() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(LINGERING_MAX))
}

/// A connection that lingers.
pub(super) struct Linger {
    /// How much is read at most; none: nothing is.
    rest: Option<usize>,
    end: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

impl Linger {
    /// Begins, if there is a place.
    pub(super) fn begin(places: &Arc<Semaphore>) -> Option<Self> {
        let place = places.clone().try_acquire_owned().ok()?;
        Some(Self { rest: Some(LINGER_BYTES_MAX), end: Box::pin(tokio::time::sleep(LINGER_TIME)), _place: place })
    }

    /// The same without reading, and so only as long as an answer needs to get there: for who has sent more than is worth reading.
    pub(super) fn deaf(places: &Arc<Semaphore>) -> Option<Self> {
        let place = places.clone().try_acquire_owned().ok()?;
        Some(Self { rest: None, end: Box::pin(tokio::time::sleep(DEAF_TIME)), _place: place })
    }

    /// Reads and throws away; ready when the client has closed too, or a bound is reached.
    pub(super) fn poll(&mut self, from: &mut (impl AsyncRead + Unpin), cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(rest) = &mut self.rest else { return self.end.as_mut().poll(cx).map(Ok) };
        let mut piece = [0; PIECE_BYTES];
        loop {
            let mut buffer = ReadBuf::new(&mut piece);
            match Pin::new(&mut *from).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() && *rest > buffer.filled().len() => {
                    *rest -= buffer.filled().len();
                }
                // All is sent, the bound is reached, or the client is gone: whatever it is, there is no more to wait for.
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => return self.end.as_mut().poll(cx).map(Ok),
            }
        }
    }
}
