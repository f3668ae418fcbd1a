//! The listener and its connections.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use hyper::body::Incoming;
use hyper::header::{CACHE_CONTROL, CONNECTION, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Version};
use hyper_util::rt::{TokioIo, TokioTimer};
use pointsman_net::accept::AcceptPause;
use pointsman_net::tls;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tower::Service as _;

use crate::State;
use crate::body::{self, Unread};
use crate::go_micro_service;
use crate::http2;
use crate::problem::Problem;

/// A TLS handshake takes at most this long.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// What a client neither acknowledges nor takes in for so long, it never will.
pub(crate) const UNTAKEN: Duration = Duration::from_secs(30);
/// Whether a silent client's host is still there is asked after so long, and then so often.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(15), Duration::from_secs(5));
/// The longest request line with headers: a key to pick by has 8 KiB, three times that when it is escaped.
pub(crate) const HEAD: usize = 32 << 10;
/// The most headers.
pub(crate) const HEADERS: usize = 64;

/// Who is at the other end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub(crate) SocketAddr);

/// Accepts until `closing`; then its connections have to end by themselves.
pub(crate) async fn accept(
    listener: TcpListener,
    router: Router,
    state: Arc<State>,
    mut closing: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(state.limits.connections));
    let mut closed = pin!(async move { closing.wait_for(|closing| *closing).await.is_ok() });
    let mut pause = AcceptPause::new("agent");
    loop {
        let accepting = async {
            // Who is not accepted waits in the system's queue.
            let place = places.clone().acquire_owned().await.ok()?;
            Some((place, listener.accept().await))
        };
        let accepted = tokio::select! {
            biased;
            _ = &mut closed => return,
            accepted = accepting => accepted,
        };
        let Some((place, accepted)) = accepted else { return };
        let count = || {
            state.metrics.accept_failures.inc();
        };
        if let Some((stream, peer)) = pause.take(accepted, count).await {
            tokio::spawn(talk(stream, peer, router.clone(), state.clone(), place));
        }
    }
}

async fn talk(stream: TcpStream, peer: SocketAddr, router: Router, state: Arc<State>, place: OwnedSemaphorePermit) {
    let (_counted, _open) = (state.metrics.connected(), state.open.subscribe());
    if let Err(error) = prepare(&stream) {
        tracing::debug!(%error, "a connection that is gone already");
        return;
    }
    let tls = state.access.load().tls.clone();
    match tls {
        None => serve(stream, peer, router, &state).await,
        // Apart, because it is large, and there may be ten thousand who need none of it.
        Some(acceptor) => Box::pin(talk_in_secret(acceptor, stream, peer, router, &state)).await,
    }
    drop(place);
}

async fn talk_in_secret(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    state: &Arc<State>,
) {
    match tokio::time::timeout(HANDSHAKE.min(state.limits.head_time), acceptor.accept(stream)).await {
        Ok(Ok(stream)) if stream.get_ref().1.alpn_protocol() == Some(tls::HTTP_2) => {
            let answer = |request| respond(request, peer, router.clone(), state.clone());
            // Apart again: HTTP/1.1 has no use for its room.
            Box::pin(http2::serve(stream, peer, state, answer)).await;
        }
        Ok(Ok(stream)) => serve(stream, peer, router, state).await,
        Ok(Err(error)) => {
            state.metrics.handshake_failures.inc();
            tracing::debug!(%peer, error = tls::describe_io(&error), "tls handshake");
        }
        Err(_) => {
            state.metrics.handshake_failures.inc();
        }
    }
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    // A client whose host has vanished is noticed, and with it what is registered by its connection.
    let (after, every) = KEEP_ALIVE;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(after).with_interval(every).with_retries(3))?;
    socket.set_tcp_user_timeout(Some(UNTAKEN))
}

/// Answers a request, however it has come.
pub(crate) async fn respond(
    request: Request<Incoming>,
    peer: SocketAddr,
    mut router: Router,
    state: Arc<State>,
) -> Result<Response, Infallible> {
    let (mut parts, body) = request.into_parts();
    let version = parts.version;
    let admitted =
        if *state.closing.borrow() { Err(Problem::closing()) } else { state.access.load().gate.admit(&parts) };
    let mut response = match admitted {
        // Read before anything is answered: a client that sends it after the head must not find the connection closed.
        Ok(actor) => match body::read(body, &state.limits).await {
            Ok(body) => {
                parts.extensions.insert(actor);
                parts.extensions.insert(Peer(peer));
                router.call(Request::from_parts(parts, Body::from(body))).await?
            }
            Err(problem) => {
                state.metrics.refused(problem.kind);
                if parts.uri.path() == go_micro_service::INIT {
                    parts.extensions.insert(Unread(problem));
                    closing(version, router.call(Request::from_parts(parts, Body::empty())).await?)
                } else {
                    closing(version, problem)
                }
            }
        },
        Err(problem) => {
            state.metrics.refused(problem.kind);
            if body::discard(body, &state.limits).await { problem.into_response() } else { closing(version, problem) }
        }
    };
    response.headers_mut().entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    Ok(response)
}

/// The answer to a request whose body has not come whole: what is still on its way is not read as another request. In HTTP/2 that concerns
/// only its stream, which is reset.
fn closing(version: Version, answer: impl IntoResponse) -> Response {
    let mut response = answer.into_response();
    if version < Version::HTTP_2 {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, peer: SocketAddr, router: Router, state: &Arc<State>) {
    // In a box, which goes with the answer's head: what answers is large, and a stream may last for days.
    let service = service_fn(|request| Box::pin(respond(request, peer, router.clone(), state.clone())));
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(state.limits.head_time)
        .max_buf_size(HEAD)
        .max_headers(HEADERS);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let mut closing = state.closing.subscribe();
    let result = tokio::select! {
        result = &mut connection => result,
        () = async { drop(closing.wait_for(|closing| *closing).await) } => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        // A connection that breaks concerns only its other end.
        tracing::debug!(%peer, %error, "connection");
    }
}
