//! What is served to those who watch where no agent is: `/metrics` and `/livez`, over HTTP, on loopback.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use pointsman_net::accept::AcceptPause;
use pointsman_net::metrics;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::questions::{Asking, Which};
use crate::failure::Failure;

/// Whoever asks must have asked within this time.
const PATIENCE: Duration = Duration::from_secs(10);
/// So many connections at a time; others wait.
const CONNECTIONS: usize = 32;
/// Interval at which an address that another process still has is tried.
const PAUSE: Duration = Duration::from_millis(100);

/// A listener. Ends with this value.
#[derive(Debug)]
pub(super) struct Endpoint {
    _listening: JoinSet<()>,
    #[cfg(test)]
    address: SocketAddr,
}

impl Endpoint {
    /// Listens from now on; if a process before this one still has the address, as soon as it has gone.
    pub(super) async fn listen(address: SocketAddr, asking: Asking, has_predecessor: bool) -> Result<Self, Failure> {
        let fail = |error| Failure::new(format!("metrics: listen on {address}: {error}"));
        let mut listening = JoinSet::new();
        let listener = match TcpListener::bind(address).await {
            Err(error) if has_predecessor && error.kind() == std::io::ErrorKind::AddrInUse => {
                tracing::warn!(%address, "metrics are served by another process: waiting for it to go");
                listening.spawn(async move { accept(bind_later(address).await, asking).await });
                return Ok(Self {
                    _listening: listening,
                    #[cfg(test)]
                    address,
                });
            }
            bound => bound.map_err(fail)?,
        };
        let address = listener.local_addr().map_err(fail)?;
        tracing::info!(%address, "metrics served");
        listening.spawn(accept(listener, asking));
        Ok(Self {
            _listening: listening,
            #[cfg(test)]
            address,
        })
    }
}

async fn bind_later(address: SocketAddr) -> TcpListener {
    loop {
        tokio::time::sleep(PAUSE).await;
        if let Ok(listener) = TcpListener::bind(address).await {
            tracing::info!(%address, "metrics served");
            return listener;
        }
    }
}

async fn accept(listener: TcpListener, asking: Asking) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    // Ends the connections with the listener.
    let mut connections = JoinSet::new();
    let mut pause = AcceptPause::new("metrics");
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        while connections.try_join_next().is_some() {}
        if let Some((stream, _)) = pause.take(listener.accept().await, || ()).await {
            let asking = asking.clone();
            connections.spawn(async move {
                talk(stream, asking).await;
                drop(place);
            });
        }
    }
}

async fn talk(stream: TcpStream, asking: Asking) {
    let service = service_fn(|request| {
        let asking = asking.clone();
        async move { Ok::<_, Infallible>(answer(&request, &asking).await) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
    // A connection that breaks concerns only its other end.
    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
}

async fn answer<B>(request: &Request<B>, asking: &Asking) -> Response<Full<Bytes>> {
    if !matches!(request.uri().path(), "/metrics" | "/livez") {
        return say(StatusCode::NOT_FOUND, "not found: there are /metrics and /livez\n");
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = say(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    if request.uri().path() == "/livez" {
        return say(StatusCode::OK, "ok\n");
    }
    match asking.metrics(Which::All).await {
        Ok(mut text) => {
            let kind = metrics::finish(&mut text, request.headers().get(ACCEPT).map(HeaderValue::as_bytes));
            let mut response = say(StatusCode::OK, text);
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
            response
        }
        Err(reason) => say(StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

fn say(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::super::questions::Questions;
    use super::*;

    /// Status line, headers and body.
    async fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(format!("{request}\r\nHost: h\r\nConnection: close\r\n\r\n").as_bytes()).await.unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).await.unwrap();
        response
    }

    #[tokio::test]
    async fn metrics_and_livez_and_nothing_else() {
        let mut questions = Questions::new();
        let endpoint = Endpoint::listen("127.0.0.1:0".parse().unwrap(), questions.asking(), false).await.unwrap();
        let address = endpoint.address;
        assert!(ask(address, "GET /livez HTTP/1.1").await.starts_with("HTTP/1.1 200 "));
        assert!(ask(address, "GET / HTTP/1.1").await.starts_with("HTTP/1.1 404 "));
        let response = ask(address, "POST /metrics HTTP/1.1").await;
        assert!(response.starts_with("HTTP/1.1 405 ") && response.contains("allow: GET, HEAD"), "{response}");
        // Nobody answers yet.
        assert!(ask(address, "GET /metrics HTTP/1.1").await.starts_with("HTTP/1.1 503 "));
        tokio::spawn(async move {
            loop {
                questions.next().await.answer(Ok("x 1\n".to_owned()));
            }
        });
        let response = ask(address, "GET /metrics?x=y HTTP/1.1").await;
        assert!(response.starts_with("HTTP/1.1 200 ") && response.ends_with("\r\n\r\nx 1\n# EOF\n"), "{response}");
        assert!(response.contains("content-type: text/plain; version=0.0.4"), "{response}");
        let response =
            ask(address, "GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text;version=1.0.0").await;
        assert!(response.contains("content-type: application/openmetrics-text"), "{response}");
    }

    /// The next process of a hand-over starts before the first one ends.
    #[tokio::test]
    async fn an_address_that_a_predecessor_has_is_waited_for() {
        let questions = Questions::new();
        let first = Endpoint::listen("127.0.0.1:0".parse().unwrap(), questions.asking(), false).await.unwrap();
        let address = first.address;
        assert!(Endpoint::listen(address, questions.asking(), false).await.is_err());
        let _next = Endpoint::listen(address, questions.asking(), true).await.unwrap();
        drop(first);
        let served = async {
            while TcpStream::connect(address).await.is_err() {
                tokio::time::sleep(PAUSE).await;
            }
            ask(address, "GET /livez HTTP/1.1").await
        };
        let answer = tokio::time::timeout(PATIENCE, served).await.expect("it listens soon");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
}
