//! A client's connection over HTTP/2: many requests at a time.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{HeaderMap, Request, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::http1::{DRAINING, MOST_DRAINED};
use super::{Answer, Client, From};
use crate::alarm::Alarm;
use crate::exchange;
use crate::flow::{Broken, Sink, Source};
use crate::forward::{self, Peer};
use crate::head::{Fields, Framing, Name, RequestHead, ResponseHead, Verb, Version};
use crate::http1::parse;
use crate::http2::{CONNECTION_WINDOW, Incoming, Outgoing, SEND_BUFFER, STREAM_WINDOW, add};
use crate::io::{Buffer, Io};
use crate::problem::{Kind, Problem};
use crate::spare;
use crate::worker::Worker;

/// A client that opens requests only to give them up again is sent away after so many (CVE-2023-44487), if they are most of all.
const GIVEN_UP: u32 = 200;

/// One request.
struct Http2 {
    incoming: Incoming,
    respond: SendResponse<Bytes>,
    outgoing: Option<Outgoing>,
    failed: bool,
    /// It is the client who has given up.
    gone: bool,
}

/// What all requests of a connection share.
#[derive(Debug, Default)]
struct Conduct {
    open: AtomicU32,
    given_up: AtomicU32,
}

/// Serves a connection until it ends. `buffer` is what has been read of it already.
pub(crate) async fn serve(worker: &Arc<Worker>, io: Io, buffer: Buffer, peer: Peer) {
    let limits = worker.table().limits;
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(limits.streams)
        .max_header_list_size(u32::try_from(limits.head).unwrap_or(u32::MAX))
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER);
    let left = Arc::default();
    let handshake = builder.handshake::<_, Bytes>(Rewound { io: Some(io), buffer, left: Arc::clone(&left) });
    let Ok(Ok(mut connection)) = tokio::time::timeout(limits.head_time, handshake).await else { return };
    let (peer, conduct) = (Arc::new(peer), Arc::new(Conduct::default()));
    let mut leaving = pin!(worker.leaving());
    let (mut alarm, mut total, mut is_leaving, mut was_idle) = (Alarm::default(), 0_u32, false, false);
    loop {
        let accepted = poll_fn(|cx| {
            if let Poll::Ready(accepted) = connection.poll_accept(cx) {
                return Poll::Ready(accepted);
            }
            if !is_leaving && leaving.as_mut().poll(cx).is_ready() {
                is_leaving = true;
                connection.graceful_shutdown();
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let is_idle = conduct.open.load(Ordering::Relaxed) == 0;
            if is_idle != was_idle || !is_idle {
                was_idle = is_idle;
                alarm.set(is_idle.then(|| Instant::now() + limits.keep_alive));
            }
            if alarm.poll(cx).is_ready() {
                if is_leaving {
                    return Poll::Ready(None);
                }
                // Who does not even take leave is left.
                is_leaving = true;
                alarm.set(Some(Instant::now() + limits.head_time));
                was_idle = true;
                connection.graceful_shutdown();
                cx.waker().wake_by_ref();
            }
            Poll::Pending
        });
        let Some(Ok((request, respond))) = accepted.await else { break };
        total = total.saturating_add(1);
        let given_up = conduct.given_up.load(Ordering::Relaxed);
        if given_up > GIVEN_UP && given_up > total / 2 {
            tracing::debug!(peer = %peer.text, "requests are opened only to be given up");
            connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
            continue;
        }
        was_idle = false;
        tokio::spawn(stream(worker.clone(), peer.clone(), conduct.clone(), request, respond));
    }
    drop(connection);
    let io = left.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(io) = io {
        linger(io, &mut alarm).await;
    }
}

async fn stream(
    worker: Arc<Worker>,
    peer: Arc<Peer>,
    conduct: Arc<Conduct>,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
) {
    conduct.open.fetch_add(1, Ordering::Relaxed);
    let mut heads = spare::heads();
    let (parts, body) = request.into_parts();
    let read = if parts.headers.len() > worker.table().limits.fields {
        Err(Problem::new(Kind::TooLarge, "the head has more fields than are allowed"))
    } else {
        read(&parts, body.is_end_stream(), &mut heads.request)
    };
    let mut client = Http2 { incoming: Incoming::new(body), respond, outgoing: None, failed: false, gone: false };
    let mut alarm = Alarm::default();
    match read {
        Ok(()) => exchange::serve(&worker, &mut client, &mut heads, &peer, &mut alarm).await,
        Err(problem) => exchange::refuse(&worker, &mut client, &mut heads, &peer, &mut alarm, &problem).await,
    }
    spare::return_heads(heads);
    if client.gone {
        conduct.given_up.fetch_add(1, Ordering::Relaxed);
    } else if !client.failed {
        client.drain(&mut alarm).await;
    }
    // If there is more of the request, which nobody wants any more, dropping it tells the client so once the answer is written (RFC 9113,
    // 8.1). A reset at this place would throw away what is not written yet.
    drop(client);
    conduct.open.fetch_sub(1, Ordering::Relaxed);
}

/// The head of a request, as HTTP/1 has it too.
pub(crate) fn read(parts: &http::request::Parts, ended: bool, head: &mut RequestHead) -> Result<(), Problem> {
    head.clear();
    head.version = Version::Http2;
    let method = parts.method.as_str().as_bytes();
    head.verb = Verb::of(method);
    let target = parts.uri.path_and_query().map_or("", |target| target.as_str());
    let fields = &mut head.fields;
    let at = fields.add_text(method);
    head.method = crate::head::Span::new(at, method.len());
    let at = fields.add_text(target.as_bytes());
    head.target = crate::head::Span::new(at, target.len());
    let authority = parts.uri.authority().map(|authority| authority.as_str().as_bytes());
    if let Some(authority) = authority {
        fields.push(b"host", authority);
    }
    // Pieces of one field (RFC 9113, 8.2.3).
    let mut cookies = Vec::new();
    for (name, value) in &parts.headers {
        let (name, value) = (name.as_str().as_bytes(), value.as_bytes());
        match Name::of(name) {
            Name::Host if authority.is_some_and(|authority| authority.eq_ignore_ascii_case(value)) => {}
            Name::Host if authority.is_some() => return Err(Problem::bad(":authority and Host name different hosts")),
            Name::Cookie => {
                if !cookies.is_empty() {
                    cookies.extend_from_slice(b"; ");
                }
                cookies.extend_from_slice(value);
            }
            Name::TransferEncoding => return Err(Problem::bad("HTTP/2 has no Transfer-Encoding")),
            _ => {
                fields.push(name, value);
            }
        }
    }
    if !cookies.is_empty() {
        fields.push(b"cookie", &cookies);
    }
    parse::understand(head)?;
    if ended {
        head.framing = Framing::Empty;
    }
    Ok(())
}

impl Http2 {
    /// Reads what is left of the request, if that is little and comes soon: there are clients who take a stream that is reset for an
    /// answer that has failed.
    async fn drain(&mut self, alarm: &mut Alarm) {
        alarm.set(Some(Instant::now() + DRAINING));
        let mut drained = 0;
        poll_fn(|cx| {
            loop {
                match self.incoming.poll(cx) {
                    Poll::Ready(Ok(true)) if drained < MOST_DRAINED => {
                        let count = self.incoming.bytes().len();
                        drained += count as u64;
                        self.incoming.consume(count);
                    }
                    Poll::Ready(_) => return Poll::Ready(()),
                    Poll::Pending => return alarm.poll(cx),
                }
            }
        })
        .await;
    }

    fn reset(&mut self, reason: Reason) {
        match &mut self.outgoing {
            Some(outgoing) => outgoing.reset(reason),
            None => self.respond.send_reset(reason),
        }
    }
}

impl Client for Http2 {
    fn answer(&mut self, answer: &Answer<'_>) {
        let mut map = HeaderMap::with_capacity(16);
        let length = match answer.from {
            From::Instance(head) => {
                forward::response(head, Some(answer.id), &mut |name, value| add(&mut map, name, value));
                // It is of HTTP/1.1 only.
                map.remove(http::header::UPGRADE);
                match head.framing {
                    Framing::Length(length) => Some(length),
                    Framing::Empty => head.told_length,
                    _ => None,
                }
            }
            From::Proxy { fields, len, .. } => {
                for (name, value) in fields {
                    add(&mut map, name.as_bytes(), value.as_bytes());
                }
                add(&mut map, b"x-request-id", answer.id);
                answer.own_length(len)
            }
        };
        if let Some(cookie) = answer.cookie {
            add(&mut map, b"set-cookie", cookie.as_bytes());
        }
        if let Some(length) = length {
            map.insert(http::header::CONTENT_LENGTH, length.into());
        }
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::from_u16(answer.status()).unwrap_or(StatusCode::BAD_GATEWAY);
        *response.headers_mut() = map;
        let framing = answer.framing();
        let ended = framing == Framing::Empty;
        // After what comes by HTTP/2 trailers may follow, whatever its length.
        let may_have_trailers = matches!(answer.from, From::Instance(head) if head.version == Version::Http2);
        let left = match framing {
            Framing::Length(length) if !may_have_trailers => Some(length),
            _ => None,
        };
        match self.respond.send_response(response, ended) {
            Ok(stream) => self.outgoing = Some(Outgoing::new(stream, left, ended)),
            Err(_) => (self.failed, self.gone) = (true, true),
        }
    }

    fn interim(&mut self, head: Option<&ResponseHead>) {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::CONTINUE;
        if let Some(head) = head {
            let Ok(status) = StatusCode::from_u16(head.status) else { return };
            *response.status_mut() = status;
            forward::response(head, None, &mut |name, value| add(response.headers_mut(), name, value));
        }
        // A stream that has been reset is told of by the next who asks.
        let _ = self.respond.send_informational(response);
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let gone = match &mut self.outgoing {
            Some(outgoing) => outgoing.poll_reset(cx),
            None => self.respond.poll_reset(cx).map(drop),
        };
        self.gone |= gone.is_ready();
        gone
    }

    fn fail(&mut self) {
        self.failed = true;
        self.reset(Reason::INTERNAL_ERROR);
    }

    fn raw(&mut self) -> Option<(&mut Io, &mut Buffer)> {
        None
    }
}

impl Source for Http2 {
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Broken>> {
        let polled = self.incoming.poll(cx);
        self.gone |= matches!(polled, Poll::Ready(Err(_)));
        polled
    }

    fn body(&self) -> &[u8] {
        self.incoming.bytes()
    }

    fn consume(&mut self, count: usize) {
        self.incoming.consume(count);
    }

    fn trailers(&self) -> Option<&Fields> {
        self.incoming.trailers()
    }
}

impl Sink for Http2 {
    fn poll_push(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let pushed = match &mut self.outgoing {
            Some(outgoing) => outgoing.poll_push(cx, data),
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        };
        self.gone |= matches!(pushed, Poll::Ready(Err(_)));
        pushed
    }

    fn finish(&mut self, trailers: Option<&Fields>) {
        if let Some(outgoing) = &mut self.outgoing {
            outgoing.finish(trailers);
        }
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The connection's task writes.
        Poll::Ready(Ok(()))
    }
}

/// A connection of which something has been read already, and which is left where it can be found.
struct Rewound {
    /// Until it is dropped.
    io: Option<Io>,
    buffer: Buffer,
    left: Arc<Mutex<Option<Io>>>,
}

impl Rewound {
    fn poll_io<T>(self: Pin<&mut Self>, poll: impl FnOnce(Pin<&mut Io>) -> Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match &mut self.get_mut().io {
            Some(io) => poll(Pin::new(io)),
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }
}

impl Drop for Rewound {
    fn drop(&mut self) {
        *self.left.lock().unwrap_or_else(PoisonError::into_inner) = self.io.take();
    }
}

impl AsyncRead for Rewound {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.buffer.is_empty() {
            return self.poll_io(|io| io.poll_read(cx, into));
        }
        let count = self.buffer.bytes().len().min(into.remaining());
        into.put_slice(&self.buffer.bytes()[..count]);
        self.buffer.consume(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Rewound {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_io(|io| AsyncWrite::poll_write(io, cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_io(|io| AsyncWrite::poll_write_vectored(io, cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_io(|io| AsyncWrite::poll_flush(io, cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_io(|io| AsyncWrite::poll_shutdown(io, cx))
    }
}

/// Reads on until the client has noticed the end: what it has sent meanwhile, and nobody has read, would make the system throw away what
/// is on its way to it, and with that the word that its last requests were not looked at.
async fn linger(mut io: Io, alarm: &mut Alarm) {
    alarm.set(Some(Instant::now() + DRAINING));
    let (mut buffer, mut drained) = (Buffer::default(), 0);
    poll_fn(|cx| {
        loop {
            match io.poll_fill(cx, &mut buffer) {
                Poll::Ready(Ok(count)) if count > 0 && drained < MOST_DRAINED => {
                    drained += count as u64;
                    buffer.consume(buffer.bytes().len());
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return alarm.poll(cx),
            }
        }
    })
    .await;
}
