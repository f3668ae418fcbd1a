//! What comes on a connection: heads, and the body after each.

use std::task::{Context, Poll, ready};

use crate::flow::Broken;
use crate::head::{Fields, Framing};
use crate::http1::body::{Decoder, Next};
use crate::io::{Buffer, Io};

/// What has been read, and how far the body is that follows the last head.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    pub(crate) buffer: Buffer,
    decoder: Decoder,
    /// So many bytes at the beginning of the buffer are body.
    available: usize,
}

impl Reader {
    /// With what somebody else has read.
    pub(crate) fn new(buffer: Buffer) -> Self {
        Self { buffer, ..Self::default() }
    }

    /// A head of this length is at the beginning, and a body follows.
    pub(crate) fn begin_body(&mut self, head: usize, framing: Framing) {
        self.buffer.consume(head);
        self.decoder.start(framing);
        self.available = 0;
    }

    pub(crate) fn is_at_end(&self) -> bool {
        self.decoder.is_at_end()
    }

    /// As [`Source::poll_body`](crate::flow::Source::poll_body); so the others.
    pub(crate) fn poll_body(&mut self, io: &mut Io, cx: &mut Context<'_>) -> Poll<Result<bool, Broken>> {
        loop {
            match self.decoder.next(&mut self.buffer) {
                Ok(Next::Data(count)) => {
                    self.available = count;
                    return Poll::Ready(Ok(true));
                }
                Ok(Next::End) => return Poll::Ready(Ok(false)),
                Ok(Next::More) => {}
                Err(reason) => return Poll::Ready(Err(Broken::Nonsense(reason))),
            }
            match ready!(io.poll_fill(cx, &mut self.buffer)) {
                Ok(0) if self.decoder.end_of_stream() => return Poll::Ready(Ok(false)),
                Ok(0) | Err(_) => return Poll::Ready(Err(Broken::Cut)),
                Ok(_) => {}
            }
        }
    }

    pub(crate) fn body(&self) -> &[u8] {
        &self.buffer.bytes()[..self.available]
    }

    pub(crate) fn consume(&mut self, count: usize) {
        self.buffer.consume(count);
        self.decoder.took(count);
        self.available -= count;
    }

    pub(crate) fn trailers(&self) -> Option<&Fields> {
        Some(&self.decoder.trailers).filter(|trailers| !trailers.is_empty())
    }
}
