//! A client's connection over HTTP/1: one request after the other.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::SockRef;
use tokio::time::Instant;

use super::{Answer, Client, From};
use crate::alarm::Alarm;
use crate::exchange;
use crate::flow::{Broken, Sink, Source};
use crate::forward::{self, Peer};
use crate::head::{Fields, Framing, RequestHead, ResponseHead, Version};
use crate::http1::parse;
use crate::http1::reader::Reader;
use crate::http1::writer::{Writer, field, number};
use crate::io::{Buffer, Io};
use crate::problem::{Kind, Problem};
use crate::spare;
use crate::worker::{Leaving, Shared, Worker};

/// So much of a body that nobody has wanted is read, so that the connection can go on.
pub(super) const MOST_DRAINED: u64 = 256 << 10;
/// How long a client may take to send it, or to notice that the connection ends.
pub(super) const DRAINING: Duration = Duration::from_secs(2);

/// The connection, with the request that is on it now.
#[derive(Debug)]
pub(crate) struct Http1 {
    io: Io,
    reader: Reader,
    writer: Writer,
    version: Version,
    /// Whether another request can follow this one.
    lasts: bool,
    /// Whether the client has said its last word.
    ended: bool,
    takes_trailers: bool,
    /// The answer is broken off.
    failed: bool,
    shared: Arc<Shared>,
}

/// Why there is no request.
enum NoRequest {
    /// The connection is at its end.
    End,
    Refused(Problem),
}

/// Serves a connection until it ends. `buffer` is what has been read of it already.
pub(crate) async fn serve(worker: &Arc<Worker>, io: Io, buffer: Buffer, peer: &Peer) {
    let mut alarm = Alarm::default();
    let mut client = Http1::new(io, buffer, worker.shared.clone());
    let mut leaving = pin!(worker.leaving());
    let mut is_first = true;
    loop {
        let mut heads = None;
        let request = client.request(worker, &mut heads, &mut alarm, &mut leaving, is_first).await;
        is_first = false;
        let mut heads = heads.unwrap_or_else(spare::heads);
        match request {
            Ok(()) => {
                exchange::serve(worker, &mut client, &mut heads, peer, &mut alarm).await;
            }
            Err(NoRequest::End) => break,
            Err(NoRequest::Refused(problem)) => {
                client.lasts = false;
                exchange::refuse(worker, &mut client, &mut heads, peer, &mut alarm, &problem).await;
            }
        }
        spare::return_heads(heads);
        if !client.settle(&mut alarm).await {
            break;
        }
    }
    client.end(&mut alarm).await;
}

impl Http1 {
    fn new(io: Io, buffer: Buffer, shared: Arc<Shared>) -> Self {
        Self {
            io,
            reader: Reader::new(buffer),
            writer: Writer::default(),
            version: Version::Http11,
            lasts: true,
            ended: false,
            takes_trailers: false,
            failed: false,
            shared,
        }
    }

    /// Waits for the next request.
    async fn request(
        &mut self,
        worker: &Worker,
        heads: &mut Option<Box<spare::Heads>>,
        alarm: &mut Alarm,
        leaving: &mut Pin<&mut Leaving<'_>>,
        is_first: bool,
    ) -> Result<(), NoRequest> {
        let limits = worker.table().limits;
        let bounds = limits.bounds();
        // Whether the alarm is set for a head, or for the first byte of one.
        let (mut waits_for_head, mut waits) = (false, false);
        let mut tried = 0;
        poll_fn(|cx| {
            loop {
                let there = self.reader.buffer.bytes();
                // A head is parsed when it comes, and again only when its end may have come.
                if !there.is_empty() && (tried == 0 || has_end(there, tried)) {
                    let heads = heads.get_or_insert_with(spare::heads);
                    match parse::request(there, &mut heads.request, bounds) {
                        Ok(Some(len)) => {
                            self.begin(len, &heads.request);
                            return Poll::Ready(Ok(()));
                        }
                        Ok(None) => {}
                        Err(problem) => return Poll::Ready(Err(NoRequest::Refused(problem))),
                    }
                }
                tried = there.len();
                if tried >= bounds.bytes.min(spare::BUFFER) {
                    return Poll::Ready(Err(NoRequest::Refused(parse::too_large(there, bounds))));
                }
                match self.io.poll_fill(cx, &mut self.reader.buffer) {
                    Poll::Ready(Ok(count)) if count > 0 => {}
                    // Half a head is a request that has been given up.
                    Poll::Ready(_) => {
                        self.ended = true;
                        return Poll::Ready(Err(NoRequest::End));
                    }
                    Poll::Pending => break,
                }
            }
            let is_idle = self.reader.buffer.is_empty();
            if is_idle && leaving.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(NoRequest::End));
            }
            if !waits || (!is_idle && !waits_for_head) {
                // A client that connects has something to say.
                waits_for_head = !is_idle || is_first;
                waits = true;
                let time = if waits_for_head { limits.head_time } else { limits.keep_alive };
                alarm.set(Some(Instant::now() + time));
            }
            ready!(alarm.poll(cx));
            Poll::Ready(Err(if is_idle {
                NoRequest::End
            } else {
                NoRequest::Refused(Problem::new(Kind::RequestTimeout, "the head did not come in time"))
            }))
        })
        .await
    }

    fn begin(&mut self, len: usize, head: &RequestHead) {
        self.reader.begin_body(len, head.framing);
        (self.version, self.takes_trailers) = (head.version, head.takes_trailers);
        self.lasts = !head.close && (head.version == Version::Http11 || head.keep_alive);
    }

    /// After an answer: reads what is left of the request's body. Whether another request can follow.
    async fn settle(&mut self, alarm: &mut Alarm) -> bool {
        if !self.lasts || self.ended || self.failed {
            return false;
        }
        if self.reader.is_at_end() {
            return true;
        }
        alarm.set(Some(Instant::now() + DRAINING));
        let mut drained = 0;
        poll_fn(|cx| {
            loop {
                match self.poll_body(cx) {
                    Poll::Ready(Ok(true)) if drained < MOST_DRAINED => {
                        let count = self.body().len();
                        drained += count as u64;
                        self.consume(count);
                    }
                    Poll::Ready(Ok(false)) => return Poll::Ready(true),
                    Poll::Ready(_) => return Poll::Ready(false),
                    Poll::Pending => return alarm.poll(cx).map(|()| false),
                }
            }
        })
        .await
    }

    /// Ends the connection so that the client gets the answer: bytes that it has sent and nobody has read would make the system throw
    /// away what is on its way to it.
    async fn end(&mut self, alarm: &mut Alarm) {
        if self.failed {
            // An end that cannot be taken for the end of the answer.
            let _ = SockRef::from(self.io.tcp()).set_linger(Some(Duration::ZERO));
            return;
        }
        alarm.set(Some(Instant::now() + DRAINING));
        let mut is_shut = false;
        let mut drained = 0;
        poll_fn(|cx| {
            if !is_shut {
                match self.io.poll_shutdown(cx) {
                    Poll::Ready(Ok(())) if !self.ended => is_shut = true,
                    Poll::Ready(_) => return Poll::Ready(()),
                    Poll::Pending => return alarm.poll(cx),
                }
            }
            loop {
                drained += self.reader.buffer.bytes().len() as u64;
                self.reader.buffer.consume(self.reader.buffer.bytes().len());
                match self.io.poll_fill(cx, &mut self.reader.buffer) {
                    Poll::Ready(Ok(count)) if count > 0 && drained < MOST_DRAINED => {}
                    Poll::Ready(_) => return Poll::Ready(()),
                    Poll::Pending => return alarm.poll(cx),
                }
            }
        })
        .await;
    }
}

/// Whether what has come since then may have ended the head.
fn has_end(bytes: &[u8], before: usize) -> bool {
    let new = &bytes[before.saturating_sub(3)..];
    memchr::memmem::find(new, b"\n\r\n").is_some() || memchr::memmem::find(new, b"\n\n").is_some()
}

impl Client for Http1 {
    fn answer(&mut self, answer: &Answer<'_>) {
        let status = answer.status();
        let framing = answer.framing();
        let until_close = forward::ends_with_connection(self.version, framing);
        // 408: what is left of the body will not come.
        let is_over = until_close || status == 408 || self.shared.is_leaving.load(Ordering::Acquire);
        self.lasts &= !is_over;
        let is_chunked = !until_close && matches!(framing, Framing::Chunked | Framing::UntilClose);
        let (version, lasts) = (self.version, self.lasts);
        let out = self.writer.head(is_chunked);
        out.extend_from_slice(b"HTTP/1.1 ");
        number(out, status.into());
        out.push(b' ');
        match answer.from {
            From::Instance(head) if !head.reason().is_empty() => out.extend_from_slice(head.reason()),
            _ => out.extend_from_slice(reason(status).as_bytes()),
        }
        out.extend_from_slice(b"\r\n");
        let told_length = match answer.from {
            From::Instance(head) => {
                forward::response(head, Some(answer.id), &mut |name, value| field(out, name, value));
                match head.framing {
                    Framing::Length(length) => Some(length),
                    Framing::Empty => head.told_length,
                    _ => None,
                }
            }
            From::Proxy { fields, len, .. } => {
                for (name, value) in fields {
                    field(out, name.as_bytes(), value.as_bytes());
                }
                field(out, b"x-request-id", answer.id);
                answer.own_length(len)
            }
        };
        if let Some(cookie) = answer.cookie {
            field(out, b"set-cookie", cookie.as_bytes());
        }
        if let Some(length) = told_length {
            out.extend_from_slice(b"content-length: ");
            number(out, length);
            out.extend_from_slice(b"\r\n");
        } else if is_chunked {
            out.extend_from_slice(b"transfer-encoding: chunked\r\n");
        }
        if status == 101 {
            field(out, b"connection", b"upgrade");
            if let From::Instance(head) = answer.from {
                let protocol = head.fields.get(crate::head::Name::Upgrade).unwrap_or_default();
                field(out, b"upgrade", protocol);
            }
        } else if !lasts {
            field(out, b"connection", b"close");
        } else if version == Version::Http10 {
            field(out, b"connection", b"keep-alive");
        }
        out.extend_from_slice(b"\r\n");
    }

    fn interim(&mut self, head: Option<&ResponseHead>) {
        if self.version == Version::Http10 {
            return;
        }
        let out = self.writer.head(false);
        let Some(head) = head else {
            out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
            return;
        };
        out.extend_from_slice(b"HTTP/1.1 ");
        number(out, head.status.into());
        out.push(b' ');
        out.extend_from_slice(head.reason());
        out.extend_from_slice(b"\r\n");
        forward::response(head, None, &mut |name, value| field(out, name, value));
        out.extend_from_slice(b"\r\n");
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.ended {
            return Poll::Ready(());
        }
        // What is there already is the next request; how many wait is not to be decided by the client.
        while self.reader.buffer.bytes().len() < spare::BUFFER / 4 {
            match ready!(self.io.poll_fill(cx, &mut self.reader.buffer)) {
                Ok(count) if count > 0 => {}
                _ => {
                    self.ended = true;
                    return Poll::Ready(());
                }
            }
        }
        Poll::Pending
    }

    fn fail(&mut self) {
        self.failed = true;
    }

    fn raw(&mut self) -> Option<(&mut Io, &mut Buffer)> {
        self.lasts = false;
        Some((&mut self.io, &mut self.reader.buffer))
    }
}

impl Source for Http1 {
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Broken>> {
        let polled = self.reader.poll_body(&mut self.io, cx);
        match &polled {
            Poll::Ready(Err(Broken::Nonsense(_))) => self.lasts = false,
            Poll::Ready(Err(Broken::Cut)) => self.ended = true,
            _ => {}
        }
        polled
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
        self.writer.finish(trailers.filter(|_| self.takes_trailers));
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.writer.poll_flush(&mut self.io, cx)
    }
}

/// What a status is called, where its instance does not say it.
fn reason(status: u16) -> &'static str {
    http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or_default()
}
