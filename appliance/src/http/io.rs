//! The two ends of TLS: the socket below it, which can be left unread, and the stream above it, which tells the registry when it
//! moves bytes: hyper alone cannot tell an idle client from a stalled one.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::linger::Linger;
use super::registry::Activity;
use super::shed::Seat;

/// A TCP socket that is not read, nor looked at by the runtime, while its connection is put off: each packet that comes would wake
/// somebody else.
pub(super) struct Socket {
    tcp: Tcp,
    seat: Arc<Seat>,
}

enum Tcp {
    Polled(TcpStream),
    /// Not registered with the runtime.
    Aside(std::net::TcpStream),
    /// Could not be registered again.
    Broken,
}

impl Socket {
    pub(super) fn new(tcp: TcpStream, seat: Arc<Seat>) -> Self {
        Self { tcp: Tcp::Polled(tcp), seat }
    }

    fn tcp(&mut self) -> io::Result<Pin<&mut TcpStream>> {
        if let Tcp::Aside(_) = &self.tcp {
            let Tcp::Aside(aside) = std::mem::replace(&mut self.tcp, Tcp::Broken) else { unreachable!("just looked") };
            self.seat.reads_again(rustix::io::ioctl_fionread(&aside).unwrap_or(0));
            self.tcp = Tcp::Polled(TcpStream::from_std(aside)?);
        }
        match &mut self.tcp {
            Tcp::Polled(tcp) => Ok(Pin::new(tcp)),
            Tcp::Aside(_) | Tcp::Broken => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Takes it away from the runtime until it is used again.
    fn put_aside(&mut self) -> io::Result<()> {
        match std::mem::replace(&mut self.tcp, Tcp::Broken) {
            Tcp::Polled(tcp) => self.tcp = Tcp::Aside(tcp.into_std()?),
            other => self.tcp = other,
        }
        Ok(())
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.seat.is_unread(cx) {
            return Poll::Pending;
        }
        let seat = this.seat.clone();
        let tcp = this.tcp()?;
        let (room, before) = (buffer.remaining(), buffer.filled().len());
        match tcp.poll_read(&mut Context::from_waker(seat.waker(cx)), buffer) {
            Poll::Pending => {
                seat.watched();
                Poll::Pending
            }
            Poll::Ready(done) => {
                let read = buffer.filled().len() - before;
                if read > 0 {
                    let unread = match &this.tcp {
                        Tcp::Polled(tcp) if read == room => rustix::io::ioctl_fionread(tcp).unwrap_or(0),
                        _ => 0,
                    };
                    seat.received(read as u64, unread);
                    if let Tcp::Polled(tcp) = &this.tcp
                        && tcp.poll_read_ready(&mut Context::from_waker(seat.noting())).is_pending()
                    {
                        seat.watched();
                    }
                }
                Poll::Ready(done)
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().tcp()?.poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().tcp()?.poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // What was written is with the kernel.
        let this = self.get_mut();
        if this.seat.is_put_off() {
            this.put_aside()?;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().tcp()?.poll_shutdown(cx)
    }
}

/// Passes everything through and notes it.
pub(super) struct Observed<S> {
    inner: S,
    activity: Arc<Activity>,
    seat: Arc<Seat>,
    /// Nothing is sent any more.
    half_closed: bool,
    linger: Option<Linger>,
}

impl<S> Observed<S> {
    pub(super) fn new(inner: S, activity: Arc<Activity>, seat: Arc<Seat>) -> Self {
        Self { inner, activity, seat, half_closed: false, linger: None }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Observed<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let polled = Pin::new(&mut this.inner).poll_read(cx, buffer);
        if polled.is_ready() && buffer.filled().len() > before {
            this.activity.received();
        }
        polled
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Observed<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.inner).poll_write(cx, bytes);
        this.activity.wrote(polled.is_ready());
        polled
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.inner).poll_write_vectored(cx, slices);
        this.activity.wrote(polled.is_ready());
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.inner).poll_flush(cx);
        if polled.is_ready() {
            this.activity.flushed();
        }
        polled
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.half_closed {
            ready!(Pin::new(&mut this.inner).poll_shutdown(cx))?;
            this.half_closed = true;
            this.linger = this.activity.linger(this.seat.is_closing());
        }
        match &mut this.linger {
            Some(linger) => linger.poll(&mut this.inner, cx),
            None => Poll::Ready(Ok(())),
        }
    }
}
