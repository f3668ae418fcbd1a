//! HTTP/2: connections that carry many requests at a time. Each limit of an HTTP/1.1 connection has its equal here, so that nobody gets more
//! by it at the cost of others.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use slab::Slab;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, interval};

use crate::State;
use crate::api::EVENT_STREAM;
use crate::server::{HEAD, HEADERS, UNTAKEN};

/// Maximum number of requests at a time on one connection (RFC 9113, 5.1.2, recommends no fewer than 100), and its maximum share of those that are
/// worked on at a time.
const STREAMS: (usize, usize) = (100, 4);
/// Maximum number of bytes of a request's body that are on their way unread.
const STREAM_WINDOW: u32 = 64 << 10;
/// The same for all requests of a connection together.
const CONNECTION_WINDOW: u32 = 1 << 20;
/// Maximum number of bytes of an answer that are kept for a client that does not take them in.
const SEND_BUFFER: usize = 64 << 10;
/// An answer is handed on in pieces of this size, so that it is known when a client takes none of them.
const PIECE: usize = 16 << 10;
/// Interval of pings, and the timeout of each: a client whose process hangs is noticed, where TCP only knows that its host is there.
const PING: (Duration, Duration) = (Duration::from_secs(15), Duration::from_secs(15));
/// Timeout for a client to close a connection after it was told to.
const GOODBYE: Duration = Duration::from_secs(5);

/// Serves a connection until it ends, or is idle or stalled for too long.
pub(crate) async fn serve<F>(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: SocketAddr,
    state: &Arc<State>,
    answer: impl Fn(Request<Incoming>) -> F,
) where
    F: Future<Output = Result<Response, Infallible>> + Send + 'static,
{
    let streams = Arc::new(Streams::default());
    let service = service_fn(|request: Request<Incoming>| {
        let (stream, state) = (Stream::open(&streams), state.clone());
        let has_too_many = request.headers().len() > HEADERS;
        let answering = (!has_too_many).then(|| Box::pin(answer(request)));
        async move {
            let Some(answering) = answering else {
                // As HTTP/1.1 answers it.
                let mut response = Response::new(Answer::new(Body::empty(), stream, None));
                *response.status_mut() = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
                return Ok::<_, Infallible>(response);
            };
            // It is never closed.
            let permit = state.requests.clone().acquire_owned().await.ok();
            let response = answering.await?;
            // Streams of events have a limit of their own.
            let is_endless = response.headers().get(CONTENT_TYPE) == Some(&EVENT_STREAM);
            Ok(response.map(|body| Answer::new(body, stream, permit.filter(|_| !is_endless))))
        }
    });
    let mut connection = pin!(builder(state.limits.connections).serve_connection(TokioIo::new(stream), service));
    let mut closing = state.closing.subscribe();
    let mut is_leaving = false;
    let result = loop {
        let idle = state.limits.head_time;
        let patience = if is_leaving { GOODBYE.min(idle) } else { idle };
        tokio::select! {
            result = &mut connection => break result,
            () = async { drop(closing.wait_for(|closing| *closing).await) }, if !is_leaving => {}
            overdue = streams.overdue(patience) => match overdue {
                Overdue::Idle if !is_leaving => {}
                overdue => {
                    tracing::debug!(%peer, ?overdue, "connection closed");
                    return;
                }
            },
        }
        is_leaving = true;
        streams.touch();
        connection.as_mut().graceful_shutdown();
    };
    if let Err(error) = result {
        // A connection that breaks concerns only its other end.
        tracing::debug!(%peer, %error, "connection");
    }
}

fn builder(requests: usize) -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    let (every, within) = PING;
    let (most, share) = STREAMS;
    let streams = most.min(requests / share).max(1);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(u32::try_from(streams).unwrap_or(u32::MAX))
        .max_header_list_size(u32::try_from(HEAD).unwrap_or(u32::MAX))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(every)
        .keep_alive_timeout(within);
    builder
}

/// What becomes of the streams of one connection. A std mutex: it is held for a moment, and never across an await.
#[derive(Debug)]
struct Streams {
    open: Mutex<Open>,
}

#[derive(Debug)]
struct Open {
    /// Of each stream, since when its client takes nothing; `None` while it is the agent that is awaited.
    untaken: Slab<Option<Instant>>,
    /// When a stream was last opened or closed.
    changed: Instant,
}

/// Why a connection is to be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Overdue {
    /// Nothing is asked.
    Idle,
    /// A client does not take what it has asked for.
    Stalled,
}

impl Default for Streams {
    fn default() -> Self {
        Self { open: Mutex::new(Open { untaken: Slab::new(), changed: Instant::now() }) }
    }
}

impl Streams {
    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn touch(&self) {
        self.lock().changed = Instant::now();
    }

    /// Returns when nothing has been asked for `idle`, or half as much longer; or when an answer stalls.
    async fn overdue(&self, idle: Duration) -> Overdue {
        let mut tick = interval(idle.min(UNTAKEN) / 2);
        loop {
            tick.tick().await;
            let open = self.lock();
            if open.untaken.is_empty() && open.changed.elapsed() >= idle {
                return Overdue::Idle;
            }
            if open.untaken.iter().any(|(_, since)| since.is_some_and(|since| since.elapsed() >= UNTAKEN)) {
                return Overdue::Stalled;
            }
        }
    }
}

/// A stream, counted as open until it is dropped: it goes with the answer's body.
#[derive(Debug)]
struct Stream {
    streams: Arc<Streams>,
    key: usize,
}

impl Stream {
    fn open(streams: &Arc<Streams>) -> Self {
        let mut open = streams.lock();
        open.changed = Instant::now();
        let key = open.untaken.insert(None);
        drop(open);
        Self { streams: streams.clone(), key }
    }

    fn set_untaken(&self, since: Option<Instant>) {
        if let Some(untaken) = self.streams.lock().untaken.get_mut(self.key) {
            *untaken = since;
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut open = self.streams.lock();
        open.changed = Instant::now();
        open.untaken.try_remove(self.key);
    }
}

/// The body of an answer. It is polled when there is room for more: until then its client has not taken what was there before.
#[derive(Debug)]
struct Answer {
    body: Body,
    /// What is left of its last frame.
    rest: Bytes,
    stream: Stream,
    /// Of the request, which is worked on until its answer has been handed on whole.
    _permit: Option<OwnedSemaphorePermit>,
}

impl Answer {
    fn new(body: Body, stream: Stream, permit: Option<OwnedSemaphorePermit>) -> Self {
        stream.set_untaken(Some(Instant::now()));
        Self { body, rest: Bytes::new(), stream, _permit: permit }
    }
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        if this.rest.is_empty() {
            this.stream.set_untaken(None);
            match ready!(Pin::new(&mut this.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.rest = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                end => return Poll::Ready(end),
            }
        }
        this.stream.set_untaken(Some(Instant::now()));
        let piece = this.rest.split_to(PIECE.min(this.rest.len()));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (body, rest) = (self.body.size_hint(), self.rest.len() as u64);
        let mut hint = SizeHint::new();
        hint.set_lower(body.lower() + rest);
        if let Some(upper) = body.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use pointsman_registry::Registry;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use super::*;
    use crate::{Agent, Settings};

    const DATA: u8 = 0;
    const HEADERS_FRAME: u8 = 1;
    const SETTINGS: u8 = 4;
    const PING_FRAME: u8 = 6;
    const ACK: u8 = 1;
    const END_OF_ALL: u8 = 5;

    fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
        let length = u8::try_from(payload.len()).unwrap();
        [&[0, 0, length, kind, flags, 0, 0, 0, stream], payload].concat()
    }

    /// `GET` of a short path, by names of HPACK's static table.
    fn get(stream: u8, path: &str) -> Vec<u8> {
        let host = "localhost";
        let text = |index: u8, text: &str| [&[index, u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
        let block = [&[0x82, 0x87][..], &text(0x04, path), &text(0x01, host)].concat();
        frame(HEADERS_FRAME, END_OF_ALL, stream, &block)
    }

    /// The client's end of a connection on which its settings (pairs of name and value) have been sent.
    async fn connect(settings: &[u8]) -> (Agent, DuplexStream) {
        let registry = Registry::connect("memory://http2-unit-tests").await.unwrap();
        let agent = Agent::start(&registry, Settings::new(([127, 0, 0, 1], 0).into())).await.unwrap();
        let (mut ours, theirs) = duplex(1 << 20);
        let state = agent.state.clone();
        tokio::spawn(async move {
            let peer = ([127, 0, 0, 1], 1).into();
            let router = crate::api::router(&state, &agent_settings());
            let answer = |request| crate::server::respond(request, peer, router.clone(), state.clone());
            serve(theirs, peer, &state, answer).await;
        });
        ours.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        ours.write_all(&frame(SETTINGS, 0, 0, settings)).await.unwrap();
        (agent, ours)
    }

    fn agent_settings() -> Settings {
        Settings::new(([127, 0, 0, 1], 0).into())
    }

    /// The type, the flags and the content of the next frame; `None` at the end.
    async fn next(client: &mut DuplexStream) -> Option<(u8, u8, Vec<u8>)> {
        let mut head = [0; 9];
        client.read_exact(&mut head).await.ok()?;
        let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
        client.read_exact(&mut payload).await.ok()?;
        Some((head[3], head[4], payload))
    }

    /// Reads until the agent closes the connection, and answers pings if that is wanted. The kinds of frames that have come.
    async fn until_closed(client: &mut DuplexStream, answers_pings: bool) -> Vec<u8> {
        let mut kinds = Vec::new();
        while let Some((kind, flags, payload)) = next(client).await {
            kinds.push(kind);
            if kind == PING_FRAME && flags & ACK == 0 && answers_pings {
                // The connection may be closed just now.
                let _ = client.write_all(&frame(PING_FRAME, ACK, 0, &payload)).await;
            }
        }
        kinds
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_answers_no_ping_is_cut_although_it_watches() {
        let (agent, mut client) = connect(&[]).await;
        let start = Instant::now();
        client.write_all(&get(1, "/v1/watch")).await.unwrap();
        let kinds = until_closed(&mut client, false).await;
        assert!(kinds.contains(&DATA) && kinds.contains(&PING_FRAME), "{kinds:?}");
        assert!((30..60).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
        drop(agent);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_in_is_cut_although_it_answers_pings() {
        // INITIAL_WINDOW_SIZE is 0.
        let (agent, mut client) = connect(&[0, 4, 0, 0, 0, 0]).await;
        let start = Instant::now();
        client.write_all(&get(1, "/v1/watch")).await.unwrap();
        let kinds = until_closed(&mut client, true).await;
        assert!(kinds.contains(&HEADERS_FRAME) && !kinds.contains(&DATA), "{kinds:?}");
        assert!((30..90).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
        drop(agent);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_watches_is_not_idle() {
        let (agent, mut client) = connect(&[]).await;
        client.write_all(&get(1, "/v1/watch")).await.unwrap();
        let hour = tokio::time::timeout(Duration::from_secs(3600), until_closed(&mut client, true));
        hour.await.unwrap_err();
        drop(agent);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_asks_nothing_is_cut() {
        let (agent, mut client) = connect(&[]).await;
        let start = Instant::now();
        client.write_all(&get(1, "/livez")).await.unwrap();
        until_closed(&mut client, true).await;
        assert!((30..90).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
        drop(agent);
    }
}
