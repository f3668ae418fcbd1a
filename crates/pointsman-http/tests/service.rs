//! Requests from within the program: the proxy as a tower service.

#![allow(clippy::unwrap_used)]

mod tiny;

use std::io;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty, Full};
use pointsman_http::{Body, Requests};
use tiny::{Fleet, Origin, Play, SOON, ok, settings};
use tower_service::Service as _;

fn over(origin: &Origin) -> (Fleet, Requests) {
    let fleet = Fleet::new(&["ress"]);
    fleet.set("ress", &[("a", origin.address)]);
    let requests = Requests::new(&settings(|_| {}), &fleet.views()).unwrap();
    (fleet, requests)
}

async fn call<B>(requests: &Requests, request: Request<B>) -> Response<Body>
where
    B: http_body::Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let answer = requests.clone().call(request);
    tokio::time::timeout(SOON, answer).await.expect("an answer comes soon").unwrap()
}

async fn text(answer: Response<Body>) -> Result<String, io::Error> {
    let body = tokio::time::timeout(SOON, answer.into_body().collect()).await.expect("the body comes soon")?;
    Ok(String::from_utf8(body.to_bytes().into()).unwrap())
}

#[tokio::test]
async fn a_request_goes_the_same_way_as_a_clients() {
    let mut origin = Origin::start(|_| ok("hello")).await;
    let (_fleet, requests) = over(&origin);
    let peer: std::net::SocketAddr = "10.1.2.3:4".parse().unwrap();
    let request = Request::post("/a%20b?c=1").header("host", "a.example").extension(peer);
    let answer = call(&requests, request.body(Full::new(Bytes::from("question"))).unwrap()).await;
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.headers()["via"], "1.1 pointsman");
    assert_eq!(answer.headers()["content-length"], "5");
    assert_eq!(text(answer).await.unwrap(), "hello");
    let seen = origin.next().await;
    assert_eq!((seen.line(), &*seen.body), ("POST /a%20b?c=1 HTTP/1.1", "question"));
    assert_eq!((seen.field("host"), seen.field("x-forwarded-for")), (Some("a.example"), Some("10.1.2.3")));
    // One that names no host.
    let answer = call(&requests, Request::get("/").body(Empty::<Bytes>::new()).unwrap()).await;
    assert_eq!((answer.status(), text(answer).await.unwrap()), (StatusCode::OK, "hello".to_owned()));
    assert_eq!(origin.next().await.field("host"), Some("localhost"));
}

#[tokio::test]
async fn an_answer_always_comes_and_half_of_one_is_an_error() {
    let origin = Origin::start(|seen| match seen.line() {
        "GET /cut HTTP/1.1" => Play::Cut("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf".to_owned()),
        _ => Play::Drop,
    })
    .await;
    let (fleet, requests) = over(&origin);
    let get = |path: &str| Request::get(path).body(Empty::<Bytes>::new()).unwrap();
    let answer = call(&requests, get("/drop")).await;
    assert_eq!(answer.status(), StatusCode::BAD_GATEWAY);
    assert!(text(answer).await.unwrap().contains("urn:pointsman:problem:bad-answer"));
    let answer = call(&requests, get("/cut")).await;
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(text(answer).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    fleet.set("ress", &[]);
    let answer = call(&requests, get("/")).await;
    assert_eq!(
        (answer.status(), &answer.headers()["retry-after"]),
        (StatusCode::SERVICE_UNAVAILABLE, &"1".parse().unwrap())
    );
}

#[tokio::test]
async fn who_drops_an_answer_gives_the_request_up() {
    let mut origin = Origin::start(|_| Play::Held("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_owned())).await;
    let (_fleet, requests) = over(&origin);
    let answer = requests.clone().call(Request::get("/").body(Empty::<Bytes>::new()).unwrap());
    origin.next().await;
    drop(answer);
    // Whoever comes next finds nothing in flight: its own request is told apart by its answer.
    origin.release(2);
    let answer = call(&requests, Request::get("/next").body(Empty::<Bytes>::new()).unwrap()).await;
    assert_eq!(answer.status(), StatusCode::OK);
    assert!(origin.next().await.line().starts_with("GET /next "));
}

/// Layers before the proxy may have changed a body, and not its length.
#[tokio::test]
async fn a_body_is_as_long_as_it_says() {
    let mut origin = Origin::start(|_| ok("hello")).await;
    let (_fleet, requests) = over(&origin);
    let post = |length: u64, body: &'static str| {
        let frames = [Ok::<_, io::Error>(http_body::Frame::data(Bytes::from_static(body.as_bytes())))];
        let body = http_body_util::StreamBody::new(futures_util::stream::iter(frames));
        Request::post("/").header("content-length", length).body(body).unwrap()
    };
    for (length, body) in [(3, "abcGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n"), (30, "abc")] {
        let answer = call(&requests, post(length, body)).await;
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
        // Whoever comes next is not read as the rest of it.
        assert_eq!(text(call(&requests, post(3, "abc")).await).await.unwrap(), "hello");
        assert_eq!(origin.next().await.body, "abc");
    }
    assert!(origin.others().is_empty());
}
