//! Bodies of requests: whole, or piece by piece for what is too large for memory.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::Method;
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::mpsc;
use tokio::time::timeout_at;

use super::{Answer, Client, Error, Problem, Request, collect};

/// Longest time that the node may take no piece of a body; it cuts those that are slower by far.
const PIECE_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest wait for the answer once all was sent: the node makes it durable.
const DURABLE_TIMEOUT: Duration = Duration::from_secs(300);
/// Pieces that wait to be sent.
const PIECES_MAX: usize = 4;

/// The body of a request.
pub(super) enum Outgoing {
    /// All of it.
    Whole(Bytes),
    /// What comes; an error breaks the request off.
    Pieces {
        /// Bytes of all pieces, if that is known.
        length: Option<u64>,
        pieces: mpsc::Receiver<io::Result<Bytes>>,
    },
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match self.get_mut() {
            Self::Whole(rest) if rest.is_empty() => Poll::Ready(None),
            Self::Whole(rest) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(rest))))),
            Self::Pieces { pieces, .. } => pieces.poll_recv(context).map(|piece| piece.map(|p| p.map(Frame::data))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(rest) if rest.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(rest) => SizeHint::with_exact(rest.len() as u64),
            Self::Pieces { length, .. } => length.map_or_else(SizeHint::default, SizeHint::with_exact),
        }
    }
}

impl Client {
    /// Sends a body of any size by `POST`, on a connection of its own; `next` gives its pieces, and is asked no more once the
    /// node has answered.
    pub(crate) async fn upload(
        &self,
        path: &str,
        length: Option<u64>,
        mut next: impl FnMut() -> io::Result<Option<Bytes>>,
    ) -> Result<Answer, Error> {
        let request = Request::write(Method::POST, path, Bytes::new());
        let (feed, pieces) = mpsc::channel(PIECES_MAX);
        let mut connection = self.connect().await?;
        let message = self.message(&request, Outgoing::Pieces { length, pieces })?;
        let mut answer = std::pin::pin!(connection.send_request(message));
        let mut early = None;
        let mut unread = None;
        loop {
            let piece = match next() {
                Ok(Some(piece)) => piece,
                Ok(None) => break,
                Err(error) => {
                    unread = Some(error);
                    break;
                }
            };
            tokio::select! {
                biased;
                came = &mut answer => {
                    early = Some(came);
                    break;
                }
                sent = tokio::time::timeout(PIECE_TIMEOUT, feed.send(Ok(piece))) => match sent {
                    Ok(Ok(())) => {}
                    // The answer says why nobody takes it any more.
                    Ok(Err(_)) => break,
                    Err(_) => return Err(self.late(&request)),
                },
            }
        }
        if let Some(error) = unread {
            let _ = feed.send(Err(io::Error::from(error.kind()))).await;
            return Err(Error::Setup(format!("what was to be sent cannot be read: {error}")));
        }
        drop(feed);
        let deadline = tokio::time::Instant::now() + DURABLE_TIMEOUT;
        let came = match early {
            Some(came) => came,
            None => timeout_at(deadline, answer).await.map_err(|_| self.late(&request))?,
        };
        let (head, body) = came.map_err(|e| Error::lost(&self.target.url, &e, true))?.into_parts();
        let body = timeout_at(deadline, collect(body, request.answer_bytes_max)).await;
        let body = body.map_err(|_| self.late(&request))?.map_err(|e| e.at(&self.target.url))?;
        if head.status.is_success() {
            return Ok(Answer { headers: head.headers, body });
        }
        Err(Error::Refused(Box::new(Problem::parse(head.status, &head.headers, &body))))
    }
}
