//! What an origin's paths do.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::channel::{Channel, Sender};
use hyper::body::Incoming;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::copy_bidirectional;
use tokio::time::sleep;

use super::{Answer, Seen, State, answer, empty};

/// How much of a long body is handed over at a time.
const PIECE: usize = 16 << 10;

pub(super) async fn by_path(request: Request<Incoming>, seen: Seen, state: &Arc<State>) -> io::Result<Answer> {
    let path = request.uri().path().to_owned();
    let mut parts = path.trim_start_matches('/').split('/');
    let (what, number) = (parts.next().unwrap_or_default(), parts.next().and_then(|part| part.parse().ok()));
    Ok(match (what, number) {
        ("bytes", Some(count)) => {
            let mut answer = spawn_body(state, move |sender, state| send_bytes(sender, count, state));
            answer.headers_mut().insert(CONTENT_LENGTH, count.into());
            answer
        }
        ("chunked", Some(count)) => spawn_body(state, move |sender, state| send_bytes(sender, count, state)),
        ("status", Some(status)) => answer(u16::try_from(status).unwrap(), format!("status {status}")),
        ("slow", Some(millis)) => {
            sleep(Duration::from_millis(millis)).await;
            answer(200, "slow")
        }
        ("hold", None) => {
            pass(state).await;
            answer(200, "held")
        }
        ("sse", Some(count)) => {
            let mut answer = spawn_body(state, move |sender, state| send_events(sender, count, state));
            answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
            answer
        }
        ("trailers", None) => {
            let mut answer = spawn_body(state, |mut sender, _| async move {
                let _ = sender.send_data("body".into()).await;
                let _ = sender
                    .send_trailers(HeaderMap::from_iter([("x-check".parse().unwrap(), "done".parse().unwrap())]))
                    .await;
            });
            answer.headers_mut().insert("trailer", HeaderValue::from_static("x-check"));
            answer
        }
        ("cookies", None) => {
            let mut answer = answer(200, "cookies");
            answer.headers_mut().append("set-cookie", HeaderValue::from_static("a=1; Path=/"));
            answer.headers_mut().append("set-cookie", HeaderValue::from_static("b=2, 3; Path=/"));
            answer
        }
        ("ignore", None) => answer(200, "ignored"),
        ("sink", None) => answer(200, read(request.into_body(), state, false).await?.to_string()),
        ("gated-sink", None) => answer(200, read(request.into_body(), state, true).await?.to_string()),
        ("drop", None) => return Err(io::Error::other("dropped")),
        ("half", None) => {
            let mut answer = spawn_body(state, |mut sender, _| async move {
                let _ = sender.send_data("half of it".into()).await;
                // The bytes are on their way before the connection ends: hyper writes what it has when there is no more.
                sleep(Duration::from_millis(20)).await;
                sender.abort(io::Error::other("half"));
            });
            answer.headers_mut().insert(CONTENT_LENGTH, 100.into());
            answer
        }
        ("upgrade", None) if seen.header("upgrade") == Some("echo") => upgrade(request),
        _ => return echo(request, seen, state).await,
    })
}

/// Waits to be let go.
async fn pass(state: &State) {
    state.gate.acquire().await.expect("a gate that nobody closes").forget();
}

fn spawn_body<F: Future<Output = ()> + Send + 'static>(
    state: &Arc<State>,
    send: impl FnOnce(Sender<Bytes, io::Error>, Arc<State>) -> F,
) -> Answer {
    let (sender, body) = Channel::new(1);
    tokio::spawn(send(sender, state.clone()));
    Response::new(body.boxed())
}

async fn send_bytes(mut sender: Sender<Bytes, io::Error>, count: u64, state: Arc<State>) {
    let piece = Bytes::from_static(&[b'x'; PIECE]);
    let mut left = count;
    while left > 0 {
        let length = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
        if sender.send_data(piece.slice(..length)).await.is_err() {
            state.given_up.fetch_add(1, Ordering::SeqCst);
            return;
        }
        state.given.fetch_add(length as u64, Ordering::SeqCst);
        left -= length as u64;
    }
}

async fn send_events(mut sender: Sender<Bytes, io::Error>, count: u64, state: Arc<State>) {
    for number in 0..count {
        if number > 0 {
            pass(&state).await;
        }
        if sender.send_data(format!("data: {number}\n\n").into()).await.is_err() {
            state.given_up.fetch_add(1, Ordering::SeqCst);
            return;
        }
    }
}

/// How many bytes the body has.
async fn read(mut body: Incoming, state: &State, gated: bool) -> io::Result<u64> {
    let mut count = 0;
    loop {
        if gated {
            pass(state).await;
        }
        let Some(frame) = body.frame().await else { return Ok(count) };
        let frame = frame.map_err(io::Error::other)?;
        let length = frame.data_ref().map_or(0, |data| data.len() as u64);
        state.taken.fetch_add(length, Ordering::SeqCst);
        count += length;
    }
}

fn upgrade(request: Request<Incoming>) -> Answer {
    tokio::spawn(async move {
        let Ok(upgraded) = hyper::upgrade::on(request).await else { return };
        let (mut own, mut other) = tokio::io::duplex(PIECE);
        let (mut read, mut write) = tokio::io::split(&mut other);
        let echo = tokio::io::copy(&mut read, &mut write);
        let mut upgraded = TokioIo::new(upgraded);
        tokio::select! {
            _ = copy_bidirectional(&mut upgraded, &mut own) => {}
            _ = echo => {}
        }
    });
    let mut answer = Response::new(empty());
    *answer.status_mut() = hyper::StatusCode::SWITCHING_PROTOCOLS;
    answer.headers_mut().insert("connection", HeaderValue::from_static("upgrade"));
    answer.headers_mut().insert("upgrade", HeaderValue::from_static("echo"));
    answer
}

async fn echo(request: Request<Incoming>, seen: Seen, state: &State) -> io::Result<Answer> {
    let collected = request.into_body().collect().await.map_err(io::Error::other)?;
    let field = |(name, value): (&hyper::header::HeaderName, &HeaderValue)| {
        json!([name.as_str(), String::from_utf8_lossy(value.as_bytes())])
    };
    let trailers: Vec<Value> = collected.trailers().map(|all| all.iter().map(field).collect()).unwrap_or_default();
    let body = collected.to_bytes();
    state.taken.fetch_add(body.len() as u64, Ordering::SeqCst);
    let said = json!({
        "origin": state.id, "method": seen.method, "target": seen.target, "version": seen.version,
        "headers": seen.headers, "body": String::from_utf8_lossy(&body), "trailers": trailers,
    });
    let mut answer = answer(200, said.to_string());
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(answer)
}
