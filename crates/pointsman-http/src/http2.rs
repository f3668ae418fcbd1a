//! HTTP/2: what both sides of the proxy have in common. The frames are the `h2` crate's.

use std::io;

use bytes::{Buf as _, Bytes};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, HeaderName, HeaderValue};
use std::task::{Context, Poll, ready};

use crate::flow::Broken;
use crate::head::{Fields, Name};

/// How much of one body may be under way without having been taken.
pub(crate) const STREAM_WINDOW: u32 = 256 << 10;
/// The same for all bodies of a connection.
pub(crate) const CONNECTION_WINDOW: u32 = 1 << 20;
/// How much of one body may wait to be written.
pub(crate) const SEND_BUFFER: usize = 128 << 10;

/// A body that comes.
#[derive(Debug)]
pub(crate) struct Incoming {
    stream: RecvStream,
    chunk: Bytes,
    trailers: Fields,
    ended: bool,
}

impl Incoming {
    pub(crate) fn new(stream: RecvStream) -> Self {
        let ended = stream.is_end_stream();
        Self { stream, chunk: Bytes::new(), trailers: Fields::default(), ended }
    }

    pub(crate) fn is_at_end(&self) -> bool {
        self.ended && self.chunk.is_empty()
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Broken>> {
        loop {
            if !self.chunk.is_empty() {
                return Poll::Ready(Ok(true));
            }
            if self.ended {
                return Poll::Ready(Ok(false));
            }
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(chunk)) => self.chunk = chunk,
                Some(Err(_)) => return Poll::Ready(Err(Broken::Cut)),
                None => {
                    let trailers = ready!(self.stream.poll_trailers(cx)).map_err(|_| Broken::Cut)?;
                    for (name, value) in trailers.iter().flatten() {
                        if Name::of(name.as_str().as_bytes()) == Name::Other {
                            self.trailers.push(name.as_str().as_bytes(), value.as_bytes());
                        }
                    }
                    self.ended = true;
                }
            }
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.chunk
    }

    pub(crate) fn consume(&mut self, count: usize) {
        self.chunk.advance(count);
        // Fails only if more is given back than was taken.
        let _ = self.stream.flow_control().release_capacity(count);
    }

    pub(crate) fn trailers(&self) -> Option<&Fields> {
        Some(&self.trailers).filter(|trailers| !trailers.is_empty())
    }
}

/// A body that goes.
#[derive(Debug)]
pub(crate) struct Outgoing {
    stream: SendStream<Bytes>,
    /// What is left, where it is known.
    left: Option<u64>,
    ended: bool,
}

impl Outgoing {
    /// `left`: the body's length, where it is known. `ended`: there is none.
    pub(crate) fn new(stream: SendStream<Bytes>, left: Option<u64>, ended: bool) -> Self {
        Self { stream, left, ended }
    }

    pub(crate) fn poll_push(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if data.is_empty() || self.ended {
            return Poll::Ready(Ok(data.len()));
        }
        if self.stream.capacity() == 0 {
            self.stream.reserve_capacity(data.len());
        }
        while self.stream.capacity() == 0 {
            match ready!(self.stream.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
        let count = self.stream.capacity().min(data.len());
        self.left = self.left.map(|left| left.saturating_sub(count as u64));
        self.ended = self.left == Some(0);
        let sent = self.stream.send_data(Bytes::copy_from_slice(&data[..count]), self.ended);
        Poll::Ready(sent.map(|()| count).map_err(broken))
    }

    pub(crate) fn finish(&mut self, trailers: Option<&Fields>) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        // A stream that has been reset is told of by the next who asks.
        let _ = match trailers {
            Some(trailers) => self.stream.send_trailers(map(trailers)),
            None => self.stream.send_data(Bytes::new(), true),
        };
    }

    pub(crate) fn reset(&mut self, reason: h2::Reason) {
        self.stream.send_reset(reason);
    }

    pub(crate) fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.stream.poll_reset(cx).map(drop)
    }
}

/// As the others have it.
pub(crate) fn map(fields: &Fields) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (_, name, value) in fields.iter() {
        add(&mut map, name, value);
    }
    map
}

/// Adds a field; what HTTP/2 could not carry has been refused before.
pub(crate) fn add(map: &mut HeaderMap, name: &[u8], value: &[u8]) {
    if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
        map.append(name, value);
    }
}

pub(crate) fn broken(error: h2::Error) -> io::Error {
    if error.is_io() {
        error.into_io().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into())
    } else {
        io::Error::other(error)
    }
}
