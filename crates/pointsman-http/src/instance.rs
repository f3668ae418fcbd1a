//! The side of the instances: a connection, and one request on it.

pub(crate) mod dial;
pub(crate) mod http1;
pub(crate) mod http2;
pub(crate) mod pool;

use std::io;
use std::task::{Context, Poll};

use crate::flow::{Broken, Sink, Source};
use crate::head::{Fields, Framing, RequestHead, ResponseHead};
use crate::http1::parse::Bounds;

pub(crate) use self::http1::Http1;
pub(crate) use self::http2::Http2;

/// A connection to an instance with one request on it.
#[derive(Debug)]
pub(crate) enum Connection {
    Http1(Box<Http1>),
    Http2(Box<Http2>),
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The connection ended before a byte of an answer.
    Unanswered(io::Error),
    /// It ended within the answer's head.
    CutOff(io::Error),
    /// What came is not what HTTP says.
    Nonsense(&'static str),
    /// What was to be sent has no form in what the instance speaks, which is not its fault.
    Unsendable(&'static str),
}

/// What is sent, beside the head's own fields.
pub(crate) struct Sending<'a> {
    pub(crate) head: &'a RequestHead,
    /// As the instance is to see it.
    pub(crate) target: &'a [u8],
    pub(crate) framing: Framing,
    /// Whether the instance is called over TLS.
    pub(crate) secure: bool,
    pub(crate) hop: crate::forward::Hop<'a>,
}

impl Connection {
    /// Puts the head of a request in place.
    pub(crate) fn send(&mut self, sending: &Sending<'_>) {
        match self {
            Connection::Http1(connection) => connection.send(sending),
            Connection::Http2(connection) => connection.send(sending, if sending.secure { "https" } else { "http" }),
        }
    }

    /// Waits for the head of the answer.
    pub(crate) fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        head: &mut ResponseHead,
        bounds: Bounds,
    ) -> Poll<Result<(), Failure>> {
        match self {
            Connection::Http1(connection) => connection.poll_head(cx, head, bounds),
            Connection::Http2(connection) => connection.poll_head(cx, head, bounds),
        }
    }

    /// There has been no answer in time: what comes next shall not wait on the same connection.
    pub(crate) fn distrust(&self) {
        match self {
            // It is not used again anyway.
            Connection::Http1(_) => {}
            Connection::Http2(connection) => connection.distrust(),
        }
    }

    /// Whether it has served others before: then it may have ended just now for that reason.
    pub(crate) fn is_reused(&self) -> bool {
        match self {
            Connection::Http1(connection) => connection.is_reused(),
            Connection::Http2(connection) => connection.is_reused(),
        }
    }

    /// Whether anything of the request has been handed to the system.
    pub(crate) fn has_sent(&self) -> bool {
        match self {
            Connection::Http1(connection) => connection.has_sent(),
            Connection::Http2(connection) => connection.has_sent(),
        }
    }
}

impl Source for Connection {
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Broken>> {
        match self {
            Connection::Http1(connection) => connection.poll_body(cx),
            Connection::Http2(connection) => connection.poll_body(cx),
        }
    }

    fn body(&self) -> &[u8] {
        match self {
            Connection::Http1(connection) => connection.body(),
            Connection::Http2(connection) => connection.body(),
        }
    }

    fn consume(&mut self, count: usize) {
        match self {
            Connection::Http1(connection) => connection.consume(count),
            Connection::Http2(connection) => connection.consume(count),
        }
    }

    fn trailers(&self) -> Option<&Fields> {
        match self {
            Connection::Http1(connection) => connection.trailers(),
            Connection::Http2(connection) => connection.trailers(),
        }
    }
}

impl Sink for Connection {
    fn poll_push(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Connection::Http1(connection) => connection.poll_push(cx, data),
            Connection::Http2(connection) => connection.poll_push(cx, data),
        }
    }

    fn finish(&mut self, trailers: Option<&Fields>) {
        match self {
            Connection::Http1(connection) => connection.finish(trailers),
            Connection::Http2(connection) => connection.finish(trailers),
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Connection::Http1(connection) => connection.poll_flush(cx),
            Connection::Http2(connection) => connection.poll_flush(cx),
        }
    }
}
