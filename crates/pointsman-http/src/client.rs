//! The side of the clients.

pub(crate) mod http1;
pub(crate) mod http2;

use std::task::{Context, Poll};

use crate::flow::{Sink, Source};
use crate::head::{Framing, ResponseHead};
use crate::io::{Buffer, Io};

/// A request's client: its body comes from here, and the answer goes back.
pub(crate) trait Client: Source + Sink + Send {
    /// Puts the head of the answer in place.
    fn answer(&mut self, answer: &Answer<'_>);
    /// Puts an interim answer in place; `None`: 100, go on.
    fn interim(&mut self, head: Option<&ResponseHead>);
    /// Whether nobody waits for the answer any more.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()>;
    /// The answer will not be whole, and the client must not take it for whole.
    fn fail(&mut self);
    /// The connection itself, for a protocol that is gone over to.
    fn raw(&mut self) -> Option<(&mut Io, &mut Buffer)>;
}

/// The head of an answer.
pub(crate) struct Answer<'a> {
    pub(crate) from: From<'a>,
    /// What the request is called.
    pub(crate) id: &'a [u8],
    /// A cookie to be set.
    pub(crate) cookie: Option<&'a str>,
}

/// Who answers.
pub(crate) enum From<'a> {
    Instance(&'a ResponseHead),
    Proxy {
        status: u16,
        fields: &'a [(&'a str, &'a str)],
        /// Of the body.
        len: usize,
        /// Whether the body follows: not for HEAD.
        follows: bool,
    },
}

impl Answer<'_> {
    pub(crate) fn status(&self) -> u16 {
        match self.from {
            From::Instance(head) => head.status,
            From::Proxy { status, .. } => status,
        }
    }

    /// The length that is told of a body of the proxy's own: where there is none by definition, none (RFC 9110, 8.6).
    pub(crate) fn own_length(&self, len: usize) -> Option<u64> {
        (!matches!(self.status(), 204 | 304)).then_some(len as u64)
    }

    /// How the body that follows ends.
    pub(crate) fn framing(&self) -> Framing {
        match self.from {
            From::Instance(head) => head.framing,
            From::Proxy { len: 0, .. } | From::Proxy { follows: false, .. } => Framing::Empty,
            From::Proxy { len, .. } => Framing::Length(len as u64),
        }
    }
}
