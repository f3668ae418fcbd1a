//! A connection's bytes, and what has been read of them and not been used.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

use crate::spare;

/// Whether a silent host is still there is asked after so long, and then so often.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(10));

/// What is written goes at once, and a host that has vanished is noticed.
pub(crate) fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (after, every) = KEEP_ALIVE;
    SockRef::from(stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(after).with_interval(every).with_retries(3))
}

/// A connection.
#[derive(Debug)]
pub(crate) enum Io {
    Plain(TcpStream),
    /// Apart, because it is large.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Io {
    /// Reads what is there; 0: the other end has said its last word.
    pub(crate) fn poll_fill(&mut self, cx: &mut Context<'_>, buffer: &mut Buffer) -> Poll<io::Result<usize>> {
        if let Io::Plain(stream) = self {
            // So that whoever waits has no memory to read into.
            let Poll::Ready(ready) = stream.poll_read_ready(cx) else {
                buffer.park();
                return Poll::Pending;
            };
            ready?;
        }
        let mut space = ReadBuf::new(buffer.space());
        let result = match self {
            Io::Plain(stream) => Pin::new(stream).poll_read(cx, &mut space),
            Io::Tls(stream) => Pin::new(stream).poll_read(cx, &mut space),
        };
        let read = space.filled().len();
        buffer.filled(read);
        if read == 0 {
            buffer.park();
        }
        result.map_ok(|()| read)
    }

    /// Whether the other end has something to say, or has gone.
    pub(crate) fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Io::Plain(stream) => stream.poll_read_ready(cx).map(|_| ()),
            Io::Tls(stream) => stream.get_ref().0.poll_read_ready(cx).map(|_| ()),
        }
    }

    /// Whether the other end has said nothing that has been taken from the connection and not been read yet: TLS keeps whole records.
    pub(crate) fn has_been_read(&self) -> bool {
        match self {
            Io::Plain(_) => true,
            // Not if there is something to be read, or the other end has said that it closes.
            Io::Tls(stream) => stream.get_ref().1.wants_read(),
        }
    }

    pub(crate) fn poll_write(&mut self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let written = match (self, slices) {
            (Io::Plain(stream), [one]) => ready!(Pin::new(stream).poll_write(cx, one)),
            (Io::Plain(stream), _) => ready!(Pin::new(stream).poll_write_vectored(cx, slices)),
            (Io::Tls(stream), [one]) => ready!(Pin::new(stream).poll_write(cx, one)),
            (Io::Tls(stream), _) => ready!(Pin::new(stream).poll_write_vectored(cx, slices)),
        };
        Poll::Ready(match written {
            Ok(0) => Err(io::ErrorKind::WriteZero.into()),
            written => written,
        })
    }

    /// TLS keeps what has been written for a while.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Io::Plain(_) => Poll::Ready(Ok(())),
            Io::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    pub(crate) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Io::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Io::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    pub(crate) fn is_secret(&self) -> bool {
        matches!(self, Io::Tls(_))
    }

    pub(crate) fn tcp(&self) -> &TcpStream {
        match self {
            Io::Plain(stream) => stream,
            Io::Tls(stream) => stream.get_ref().0,
        }
    }
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Io::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Io::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().poll_write(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_write(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_shutdown(cx)
    }
}

/// What has been read and not been used. Has no memory while there is nothing, and hardly more than there is while it waits for more.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    data: Vec<u8>,
    start: usize,
    end: usize,
}

impl Buffer {
    /// What there is.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.data[self.start..self.end]
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    pub(crate) fn is_full(&self) -> bool {
        self.end - self.start >= spare::BUFFER
    }

    /// So many bytes have been used.
    pub(crate) fn consume(&mut self, count: usize) {
        self.start += count;
        if self.is_empty() {
            self.release();
        }
    }

    /// With these bytes in it.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let mut buffer = Self::default();
        if !bytes.is_empty() {
            buffer.space()[..bytes.len()].copy_from_slice(bytes);
            buffer.filled(bytes.len());
        }
        buffer
    }

    /// What there is waits for more, which may take long: it takes no more memory than it needs.
    pub(crate) fn park(&mut self) {
        if self.is_empty() {
            self.release();
        } else if self.data.len() == spare::BUFFER && self.end - self.start <= spare::BUFFER / 4 {
            let kept = self.bytes().to_vec();
            self.release();
            self.end = kept.len();
            self.data = kept;
        }
    }

    /// Where more can be read to; empty if it is full.
    fn space(&mut self) -> &mut [u8] {
        if self.data.len() < spare::BUFFER {
            let mut large = spare::buffer();
            let kept = self.end - self.start;
            large[..kept].copy_from_slice(&self.data[self.start..self.end]);
            (self.data, self.start, self.end) = (large, 0, kept);
        } else if self.end == self.data.len() && self.start > 0 {
            self.data.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        &mut self.data[self.end..]
    }

    fn filled(&mut self, count: usize) {
        self.end += count;
    }

    fn release(&mut self) {
        (self.start, self.end) = (0, 0);
        let data = std::mem::take(&mut self.data);
        if data.len() == spare::BUFFER {
            spare::return_buffer(data);
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_used_stays_in_order_whatever_memory_it_has() {
        let mut buffer = Buffer::of(b"hello world");
        buffer.consume(6);
        buffer.park();
        assert_eq!((buffer.bytes(), buffer.data.len()), (&b"world"[..], 5));
        buffer.space()[..1].copy_from_slice(b"!");
        buffer.filled(1);
        assert_eq!(buffer.bytes(), b"world!");
        buffer.consume(6);
        assert!(buffer.is_empty() && buffer.data.is_empty());
    }

    #[test]
    fn a_full_buffer_has_space_again_once_some_of_it_is_used() {
        let mut buffer = Buffer::of(&vec![7; spare::BUFFER]);
        assert!(buffer.is_full() && buffer.space().is_empty());
        buffer.consume(10);
        assert_eq!(buffer.space().len(), 10);
        assert_eq!(buffer.bytes().len(), spare::BUFFER - 10);
    }
}
