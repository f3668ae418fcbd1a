//! What the proxy's tests are made of does what it says.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::path::Path;
use std::time::Duration;

use pointsman_testkit::http::{
    FrameClient, Grpc, HyperOrigin, Nginx, Play, PythonOrigin, RawClient, RawOrigin, WebSocket, answer, curl, get,
    kind, request, whole,
};

const REQUEST: &str = "GET /a%20b?c HTTP/1.1\r\nHost: x\r\n\r\n";

fn folder() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}

#[tokio::test]
async fn hyper_answers_by_path() {
    let origin = HyperOrigin::start("a").await;
    let mut client = RawClient::connect(origin.address()).await;
    let echo = client.request(REQUEST).await;
    assert_eq!((echo.status, echo.header("x-origin")), (200, Some("a")));
    assert_eq!((&echo.json()["target"], &echo.json()["headers"][0][1]), (&"/a%20b?c".into(), &"x".into()));
    let chunked = client.request("GET /chunked/100000 HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert_eq!((chunked.body.len(), chunked.complete), (100_000, true));
    let trailers = client.request("GET /trailers HTTP/1.1\r\nHost: x\r\nTE: trailers\r\n\r\n").await;
    assert_eq!(trailers.trailers, [("x-check".to_owned(), "done".to_owned())]);
    let sink = request(origin.address(), "POST", "/sink", &[], "12345").await;
    assert_eq!((sink.text(), origin.taken()), ("5".to_owned(), 5));
    let half = client.request("GET /half HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert_eq!((half.complete, half.text()), (false, "half of it".to_owned()));
    assert_eq!((origin.requests(), origin.connections()), (5, 2));
    let head = request(origin.address(), "HEAD", "/bytes/10", &[], "").await;
    assert_eq!((head.header("content-length"), head.body.len()), (Some("10"), 0));
}

#[tokio::test]
async fn hyper_dies_and_rises_again() {
    let mut origin = HyperOrigin::scripted("a", |seen| (seen.target == "/x").then(|| answer(201, "scripted"))).await;
    assert_eq!(get(origin.address(), "/x").await.text(), "scripted");
    let mut client = RawClient::connect(origin.address()).await;
    client.send("GET /hold HTTP/1.1\r\nHost: x\r\n\r\n").await;
    while origin.under_way() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    origin.kill().await;
    assert!(client.try_response("GET").await.is_none());
    origin.restart().await;
    origin.release(1);
    assert_eq!(get(origin.address(), "/hold").await.text(), "held");
}

#[tokio::test]
async fn raw_origins_play_and_remember() {
    let origin = RawOrigin::start(|request| match request.number {
        0 => whole("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
        1 => vec![Play::Body, Play::Send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\npart".to_vec()), Play::Reset],
        _ => vec![Play::Close],
    })
    .await;
    let mut client = RawClient::connect(origin.address()).await;
    let post = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    assert_eq!(client.request(post).await.text(), "ok");
    let cut = client.request(REQUEST).await;
    assert!(!cut.complete);
    assert_eq!(origin.heads(), [&post[..post.find("3\r\n").unwrap()], REQUEST]);
    let mut client = RawClient::connect(origin.address()).await;
    client.send(REQUEST).await;
    assert!(client.rest().await.is_empty());
    assert_eq!(origin.received(), [[post, REQUEST].concat().into_bytes(), REQUEST.into()]);
}

#[tokio::test]
async fn nginx_and_python_serve_files() {
    let nginx = Nginx::start("location / { return 200 \"$request_uri\"; }").await;
    assert_eq!(get(nginx.address(), "/a%2Fb").await.text(), "/a%2Fb");
    let python = PythonOrigin::start(&[("a.txt", "text")]).await;
    let file = get(python.address(), "/a.txt").await;
    assert_eq!((&*file.version, &*file.text(), file.complete), ("HTTP/1.0", "text", true));
    let output = curl(&[&format!("http://{}/a.txt", python.address())]).await;
    assert_eq!((output.code, &*output.out), (Some(0), "text"));
}

#[tokio::test]
async fn frames_are_http_2() {
    let origin = HyperOrigin::start("a").await;
    let mut client = FrameClient::connect(origin.address()).await;
    assert!(client.send_get(1, "/bytes/5").await);
    assert_eq!(client.outcome(1).await, (None, b"xxxxx".to_vec()));
    client.send(&FrameClient::frame(kind::DATA, 0, 3, b"x")).await;
    assert!(matches!(client.outcome(3).await, (Some(1 | 5), _)));
}

#[tokio::test]
async fn websockets_talk() {
    let Some(websocket) = WebSocket::installed(folder()) else { return };
    let origin = websocket.serve("a").await;
    let answer = websocket.talk(origin.address(), "/p?q", &["hello", "ping", "size:100000", "close"]).await;
    assert_eq!((answer.status, answer.greeting.as_deref(), answer.code), (101, Some("a /p?q"), Some(4001)));
    assert_eq!(answer.answers, ["hello", "pong", "size:100000"]);
    let nginx = Nginx::start("return 403;").await;
    assert_eq!(websocket.talk(nginx.address(), "/", &[]).await.status, 403);
}

#[tokio::test]
async fn grpc_calls() {
    let Some(grpc) = Grpc::installed(folder()) else { return };
    let origin = grpc.serve("a").await;
    let unary = grpc.call(origin.address(), "Unary", &["x"]).await;
    assert_eq!((&*unary.answers, &*unary.trailers["x-origin"]), (&["unary x".to_owned()][..], "a"));
    assert_eq!(grpc.call(origin.address(), "Down", &["3"]).await.answers, ["0", "1", "2"]);
    assert_eq!(grpc.call(origin.address(), "Up", &["abc", "de"]).await.answers, ["5"]);
    assert_eq!(grpc.call(origin.address(), "Both", &["a", "b"]).await.answers, ["both a", "both b"]);
    let failed = grpc.call(origin.address(), "Fail", &["x"]).await;
    assert_eq!((&*failed.code, &*failed.details, &*failed.trailers["x-why"]), ("NOT_FOUND", "no x", "asked for"));
    let late = grpc.call(origin.address(), "Late", &[""]).await;
    assert_eq!((&*late.code, &*late.answers), ("ABORTED", &["first".to_owned()][..]));
}
