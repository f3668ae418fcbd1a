//! HTTP/1.1 towards an instance.

use std::io;
use std::task::{Context, Poll, ready};

use crate::flow::{Broken, Sink, Source};
use crate::forward;
use crate::head::{Fields, Framing, Name, ResponseHead, Verb};
use crate::http1::parse::{self, Bounds};
use crate::http1::reader::Reader;
use crate::http1::writer::{Writer, field, number};
use crate::io::Io;

use super::{Failure, Sending};

/// A connection. It serves one request after the other.
#[derive(Debug)]
pub(crate) struct Http1 {
    pub(crate) io: Io,
    pub(crate) reader: Reader,
    writer: Writer,
    to_head: bool,
    /// So many bytes had been written before this request.
    written_before: u64,
    served: u64,
    /// Whether it can serve another after this.
    lasts: bool,
    /// For how many seconds the instance has said that it keeps it.
    pub(crate) kept_for: Option<u32>,
}

impl Http1 {
    pub(crate) fn new(io: Io) -> Self {
        Self {
            io,
            reader: Reader::default(),
            writer: Writer::default(),
            to_head: false,
            written_before: 0,
            served: 0,
            lasts: true,
            kept_for: None,
        }
    }

    pub(super) fn send(&mut self, sending: &Sending<'_>) {
        self.to_head = sending.head.verb == Verb::Head;
        self.written_before = self.writer.total;
        write(self.writer.head(sending.framing == Framing::Chunked), sending);
    }

    pub(super) fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        head: &mut ResponseHead,
        bounds: Bounds,
    ) -> Poll<Result<(), Failure>> {
        loop {
            if !self.reader.buffer.is_empty() {
                match parse::response(self.reader.buffer.bytes(), head, bounds, self.to_head) {
                    Ok(Some(len)) => {
                        self.reader.begin_body(len, head.framing);
                        self.lasts &= !head.close && head.framing != Framing::UntilClose;
                        self.kept_for = head.kept_for;
                        return Poll::Ready(Ok(()));
                    }
                    Ok(None) if self.reader.buffer.is_full() => {
                        return Poll::Ready(Err(Failure::Nonsense("its head is too large")));
                    }
                    Ok(None) => {}
                    Err(reason) => return Poll::Ready(Err(Failure::Nonsense(reason))),
                }
            }
            match ready!(self.io.poll_fill(cx, &mut self.reader.buffer)) {
                Ok(0) => return Poll::Ready(Err(self.failure(io::ErrorKind::UnexpectedEof.into()))),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Err(self.failure(error))),
            }
        }
    }

    fn failure(&self, error: io::Error) -> Failure {
        if self.reader.buffer.is_empty() { Failure::Unanswered(error) } else { Failure::CutOff(error) }
    }

    pub(super) fn is_reused(&self) -> bool {
        self.served > 0
    }

    pub(super) fn has_sent(&self) -> bool {
        self.writer.total > self.written_before
    }

    /// Whether the answer has come to its end, and another request can follow. What comes after the answer without having been asked for
    /// must never reach anybody.
    pub(super) fn can_serve_again(&mut self) -> bool {
        self.served += 1;
        self.lasts
            && self.reader.is_at_end()
            && self.reader.buffer.is_empty()
            && self.io.has_been_read()
            && self.writer.is_idle()
    }
}

/// Writes the head of a request.
pub(crate) fn write(out: &mut Vec<u8>, sending: &Sending<'_>) {
    let Sending { head, target, framing, hop, .. } = sending;
    out.extend_from_slice(head.method());
    out.push(b' ');
    out.extend_from_slice(target);
    out.extend_from_slice(b" HTTP/1.1\r\nhost: ");
    out.extend_from_slice(head.host());
    out.extend_from_slice(b"\r\n");
    forward::request(head, *hop, &mut |name, value| field(out, name, value));
    match framing {
        Framing::Length(length) => {
            out.extend_from_slice(b"content-length: ");
            number(out, *length);
            out.extend_from_slice(b"\r\n");
        }
        Framing::Chunked => field(out, b"transfer-encoding", b"chunked"),
        _ if head.fields.get(Name::ContentLength).is_some() => field(out, b"content-length", b"0"),
        _ => {}
    }
    if head.expects_continue && *framing != Framing::Empty {
        field(out, b"expect", b"100-continue");
    }
    if let Some(protocol) = head.upgrade {
        field(out, b"connection", b"upgrade");
        field(out, b"upgrade", head.fields.text(protocol));
    } else if head.takes_trailers {
        field(out, b"connection", b"te");
        field(out, b"te", b"trailers");
    }
    out.extend_from_slice(b"\r\n");
}

impl Source for Http1 {
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Broken>> {
        self.reader.poll_body(&mut self.io, cx)
    }

    fn body(&self) -> &[u8] {
        self.reader.body()
    }

    fn consume(&mut self, count: usize) {
        self.reader.consume(count);
    }

    fn trailers(&self) -> Option<&Fields> {
        self.reader.trailers()
    }
}

impl Sink for Http1 {
    fn poll_push(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.writer.poll_push(&mut self.io, cx, data)
    }

    fn finish(&mut self, trailers: Option<&Fields>) {
        self.writer.finish(trailers);
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.writer.poll_flush(&mut self.io, cx)
    }
}
