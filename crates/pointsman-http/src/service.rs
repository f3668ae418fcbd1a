//! The proxy as a `tower::Service`: requests that come from within the program.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf as _, Bytes};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::{Body as HttpBody, Frame};
use tokio::task::AbortHandle;

use crate::alarm::Alarm;
use crate::client::http2::read;
use crate::client::{Answer, Client, From};
use crate::error::Error;
use crate::exchange;
use crate::flow::{Broken, Sink, Source};
use crate::forward::{self, Peer};
use crate::head::{Fields, Framing, Name, ResponseHead};
use crate::http2::{add, map};
use crate::io::{Buffer, Io};
use crate::proxy::{self, Views};
use crate::settings::Settings;
use crate::spare;
use crate::worker::{self, Worker};

/// Passes requests on as the routes say, without a listener: a `tower::Service`. Cheap to clone; the clones are one.
///
/// Where a request comes from is told by a [`SocketAddr`] among its extensions; without one it comes from this host. One that names no
/// host is for `localhost`. An answer always
/// comes, if need be one of the proxy's own with a problem in it. Upgrades are not passed on. Dropping the future, or the body of the
/// answer, gives the request up.
#[derive(Debug, Clone)]
pub struct Requests {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    worker: Arc<Worker>,
    sweeper: AbortHandle,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.sweeper.abort();
    }
}

impl Requests {
    /// Prepares routes and services. Must be called within a tokio runtime, and used within the same.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] with all problems of the settings, [`Error::Tls`].
    pub fn new(settings: &Settings, views: &Views) -> Result<Self, Error> {
        let shared = proxy::shared(settings, views, 1, None)?;
        Ok(Self::of(Worker::new(0, shared)))
    }

    pub(crate) fn of(worker: Arc<Worker>) -> Self {
        let sweeper = tokio::spawn(worker::sweep(worker.clone())).abort_handle();
        Self { inner: Arc::new(Inner { worker, sweeper }) }
    }

    /// Goes on with other routes and services.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`], [`Error::Tls`]: everything stays as it was.
    pub fn reload(&self, settings: &Settings, views: &Views) -> Result<(), Error> {
        let worker = &self.inner.worker;
        worker.shared.reload(settings, views, worker.number + 1)
    }
}

impl<B> tower_service::Service<Request<B>> for Requests
where
    B: HttpBody + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let worker = self.inner.worker.clone();
        let pipe = Arc::new(Pipe::default());
        // So that the answer's body needs nobody to drive it.
        tokio::spawn(exchange(worker, request, Writing(pipe.clone())));
        Box::pin(Head(Some(Body { pipe, ended: false })))
    }
}

async fn exchange<B>(worker: Arc<Worker>, request: Request<B>, writing: Writing)
where
    B: HttpBody + Send + 'static,
    B::Data: Send,
{
    let mut heads = spare::heads();
    let (mut parts, body) = request.into_parts();
    if parts.uri.authority().is_none() && !parts.headers.contains_key(http::header::HOST) {
        parts.headers.insert(http::header::HOST, http::HeaderValue::from_static("localhost"));
    }
    if let Some(length) = body.size_hint().exact().filter(|length| *length > 0) {
        // As a client would tell it.
        parts.headers.entry(http::header::CONTENT_LENGTH).or_insert_with(|| length.into());
    }
    let address = parts.extensions.get::<SocketAddr>().map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), SocketAddr::ip);
    let peer = Peer::new(address, parts.uri.scheme() == Some(&http::uri::Scheme::HTTPS));
    let understood = read(&parts, body.is_end_stream(), &mut heads.request);
    let left = if let Framing::Length(length) = heads.request.framing { Some(length) } else { None };
    let mut caller =
        Caller { body: Box::pin(body), chunk: Bytes::new(), left, ended: false, trailers: Fields::default(), writing };
    let mut alarm = Alarm::default();
    match understood {
        Ok(()) => exchange::serve(&worker, &mut caller, &mut heads, &peer, &mut alarm).await,
        Err(problem) => exchange::refuse(&worker, &mut caller, &mut heads, &peer, &mut alarm, &problem).await,
    }
    spare::return_heads(heads);
}

/// The side of whoever calls.
struct Caller<B> {
    body: Pin<Box<B>>,
    chunk: Bytes,
    /// So many bytes are still to come, where a length has been told.
    left: Option<u64>,
    ended: bool,
    trailers: Fields,
    writing: Writing,
}

/// What lies between the task that has the request, and whoever reads the answer.
#[derive(Debug, Default)]
struct Pipe(Mutex<Between>);

#[derive(Debug, Default)]
struct Between {
    head: Option<Response<()>>,
    frames: VecDeque<Frame<Bytes>>,
    /// The last frame has been put in,
    ended: bool,
    /// or there will be none: the answer has broken off.
    broken: bool,
    /// Nobody reads any more.
    gone: bool,
    length: Option<u64>,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// So many frames wait to be read.
const FRAMES: usize = 4;

/// The end of the pipe that is written to.
#[derive(Debug)]
struct Writing(Arc<Pipe>);

impl Writing {
    fn put(&self, put: impl FnOnce(&mut Between)) {
        let mut between = lock(&self.0.0);
        put(&mut between);
        if let Some(reader) = between.reader.take() {
            reader.wake();
        }
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.put(|between| between.broken |= !between.ended);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics half-way.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<B> Client for Caller<B>
where
    B: HttpBody + Send,
    B::Data: Send,
{
    fn answer(&mut self, answer: &Answer<'_>) {
        let mut fields = HeaderMap::with_capacity(16);
        let length = match answer.from {
            From::Instance(head) => {
                forward::response(head, Some(answer.id), &mut |name, value| add(&mut fields, name, value));
                if let Framing::Length(length) = head.framing { Some(length) } else { head.told_length }
            }
            From::Proxy { fields: own, len, .. } => {
                for (name, value) in own {
                    add(&mut fields, name.as_bytes(), value.as_bytes());
                }
                add(&mut fields, b"x-request-id", answer.id);
                answer.own_length(len)
            }
        };
        if let Some(cookie) = answer.cookie {
            add(&mut fields, b"set-cookie", cookie.as_bytes());
        }
        if let Some(length) = length {
            fields.insert(http::header::CONTENT_LENGTH, length.into());
        }
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::from_u16(answer.status()).unwrap_or(StatusCode::BAD_GATEWAY);
        *response.headers_mut() = fields;
        let framing = answer.framing();
        self.writing.put(|between| {
            between.head = Some(response);
            between.length = match framing {
                Framing::Empty => Some(0),
                Framing::Length(length) => Some(length),
                _ => None,
            };
        });
    }

    fn interim(&mut self, _: Option<&ResponseHead>) {}

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut between = lock(&self.writing.0.0);
        if between.gone {
            return Poll::Ready(());
        }
        between.writer = Some(cx.waker().clone());
        Poll::Pending
    }

    fn fail(&mut self) {
        self.writing.put(|between| between.broken = true);
    }

    fn raw(&mut self) -> Option<(&mut Io, &mut Buffer)> {
        None
    }
}

impl<B: HttpBody> Source for Caller<B> {
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Broken>> {
        loop {
            if !self.chunk.is_empty() {
                return Poll::Ready(Ok(true));
            }
            if self.ended {
                return Poll::Ready(Ok(false));
            }
            match ready!(self.body.as_mut().poll_frame(cx)) {
                // Somebody may have changed the body, and not what is told of it; what the instance is told has to be true, or it
                // would take the rest, or what comes next on its connection, for something else.
                None if self.left.is_some_and(|left| left > 0) => {
                    return Poll::Ready(Err(Broken::Nonsense("the body is shorter than its Content-Length")));
                }
                None => self.ended = true,
                Some(Err(_)) => return Poll::Ready(Err(Broken::Cut)),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(mut data) => {
                        let chunk = data.copy_to_bytes(data.remaining());
                        if let Some(left) = &mut self.left {
                            let Some(rest) = left.checked_sub(chunk.len() as u64) else {
                                return Poll::Ready(Err(Broken::Nonsense(
                                    "the body is longer than its Content-Length",
                                )));
                            };
                            *left = rest;
                        }
                        self.chunk = chunk;
                    }
                    Err(frame) => {
                        for (name, value) in frame.trailers_ref().into_iter().flatten() {
                            if Name::of(name.as_str().as_bytes()) == Name::Other {
                                self.trailers.push(name.as_str().as_bytes(), value.as_bytes());
                            }
                        }
                    }
                },
            }
        }
    }

    fn body(&self) -> &[u8] {
        &self.chunk
    }

    fn consume(&mut self, count: usize) {
        self.chunk.advance(count);
    }

    fn trailers(&self) -> Option<&Fields> {
        Some(&self.trailers).filter(|trailers| !trailers.is_empty())
    }
}

impl<B> Sink for Caller<B> {
    fn poll_push(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let mut between = lock(&self.writing.0.0);
        if between.gone {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if between.frames.len() >= FRAMES {
            between.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        drop(between);
        self.writing.put(|between| between.frames.push_back(Frame::data(Bytes::copy_from_slice(data))));
        Poll::Ready(Ok(data.len()))
    }

    fn finish(&mut self, trailers: Option<&Fields>) {
        self.writing.put(|between| {
            between.frames.extend(trailers.map(|trailers| Frame::trailers(map(trailers))));
            between.ended = true;
        });
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Waits for the head of the answer.
struct Head(Option<Body>);

impl Future for Head {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(body) = &self.0 else { return Poll::Pending };
        let mut between = lock(&body.pipe.0);
        let head = match between.head.take() {
            Some(head) => head,
            None if between.broken => {
                let mut head = Response::new(());
                *head.status_mut() = StatusCode::BAD_GATEWAY;
                head
            }
            None => {
                between.reader = Some(cx.waker().clone());
                return Poll::Pending;
            }
        };
        drop(between);
        match self.0.take() {
            Some(body) => Poll::Ready(Ok(head.map(|()| body))),
            None => Poll::Pending,
        }
    }
}

/// The body of an answer. Dropped, the answer is given up.
#[derive(Debug)]
pub struct Body {
    pipe: Arc<Pipe>,
    ended: bool,
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let mut between = lock(&self.pipe.0);
        if let Some(frame) = between.frames.pop_front() {
            if let Some(writer) = between.writer.take() {
                writer.wake();
            }
            return Poll::Ready(Some(Ok(frame)));
        }
        let end = match &*between {
            Between { ended: true, .. } => None,
            Between { broken: true, .. } => {
                Some(Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the answer broke off")))
            }
            _ => {
                between.reader = Some(cx.waker().clone());
                return Poll::Pending;
            }
        };
        drop(between);
        self.ended = true;
        Poll::Ready(end)
    }

    fn is_end_stream(&self) -> bool {
        let between = lock(&self.pipe.0);
        self.ended || (between.frames.is_empty() && (between.ended || between.length == Some(0)))
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        let mut between = lock(&self.pipe.0);
        between.gone = true;
        if let Some(writer) = between.writer.take() {
            writer.wake();
        }
    }
}
