//! Clients that take their time.
#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::time::{Duration, Instant};

use pointsman_http::Settings;
use pointsman_testkit::TlsFiles;
use pointsman_testkit::http::{FrameClient, HyperOrigin, RawClient, get, kind};
use support::{Fleet, SOON, settings, until};

/// A head has to be there within 200 ms, and a connection without a request ends after 300 ms.
fn impatient() -> Settings {
    let mut settings = settings();
    settings.limits.head_time = Duration::from_millis(200);
    settings.limits.keep_alive = Duration::from_millis(300);
    settings
}

#[tokio::test]
async fn heads_that_dribble_are_cut_off() {
    let origin = HyperOrigin::start("a").await;
    let fleet = Fleet::of(&[origin.address()]);
    let proxy = fleet.proxy(impatient());
    let start = Instant::now();
    let mut client = RawClient::connect(proxy.address()).await;
    client.send("GET / HTTP/1.1\r\nHost: x\r\nX-Dribble: ").await;
    // Each byte in time, and yet never the end.
    let answer = loop {
        tokio::select! {
            answer = client.response() => break answer,
            () = tokio::time::sleep(Duration::from_millis(20)) => {}
        }
        client.send("x").await;
        assert!(start.elapsed() < SOON, "it is let in");
    };
    assert_eq!((answer.status, &*answer.problem()), (408, "request-timeout"));
    assert!(client.rest().await.is_empty());
    let taken = start.elapsed();
    assert!(taken >= Duration::from_millis(150) && taken < Duration::from_secs(10), "{taken:?}");
    assert_eq!(origin.requests(), 0);
}

#[tokio::test]
async fn a_second_head_is_timed_as_well() {
    let origin = HyperOrigin::start("a").await;
    let fleet = Fleet::of(&[origin.address()]);
    let proxy = fleet.proxy(impatient());
    let mut client = RawClient::connect(proxy.address()).await;
    assert_eq!(client.request("GET /bytes/1 HTTP/1.1\r\nHost: x\r\n\r\n").await.status, 200);
    client.send("GET / HTTP/1.1\r\nHo").await;
    let answer = client.response().await;
    assert_eq!((answer.status, &*answer.problem()), (408, "request-timeout"));
}

#[tokio::test]
async fn who_says_nothing_is_told_nothing() {
    let origin = HyperOrigin::start("a").await;
    let fleet = Fleet::of(&[origin.address()]);
    let proxy = fleet.proxy(impatient());
    // Before the first request, and after one: the connection just ends.
    let mut fresh = RawClient::connect(proxy.address()).await;
    let mut used = RawClient::connect(proxy.address()).await;
    assert_eq!(used.request("GET /bytes/1 HTTP/1.1\r\nHost: x\r\n\r\n").await.status, 200);
    let rest = fresh.rest().await;
    assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 408 "), "{:?}", String::from_utf8_lossy(&rest));
    assert!(used.rest().await.is_empty());
}

#[tokio::test]
async fn slow_answers_are_no_reason() {
    let origin = HyperOrigin::start("a").await;
    let fleet = Fleet::of(&[origin.address()]);
    let proxy = fleet.proxy(impatient());
    let mut client = RawClient::connect(proxy.address()).await;
    assert_eq!(client.request("GET /slow/600 HTTP/1.1\r\nHost: x\r\n\r\n").await.text(), "slow");
}

#[tokio::test]
async fn handshakes_of_tls_have_their_time() {
    let folder = tempfile::tempdir().unwrap();
    let files = TlsFiles::create(folder.path());
    let origin = HyperOrigin::start("a").await;
    let fleet = Fleet::of(&[origin.address()]);
    let mut settings = impatient();
    settings.tls = Some(pointsman_http::Tls { cert: files.server.clone(), key: files.server, client_ca: None });
    let proxy = fleet.proxy(settings);
    let mut silent = RawClient::connect(proxy.address()).await;
    let mut slow = RawClient::connect(proxy.address()).await;
    slow.send([0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]).await;
    let start = Instant::now();
    silent.rest().await;
    slow.rest().await;
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn heads_of_http2_have_their_time() {
    let origin = HyperOrigin::start("a").await;
    let fleet = Fleet::of(&[origin.address()]);
    let proxy = fleet.proxy(impatient());
    let mut client = FrameClient::connect(proxy.address()).await;
    let block = FrameClient::block(&FrameClient::get("/"));
    client.send(&FrameClient::frame(kind::HEADERS, FrameClient::END_STREAM, 1, &block)).await;
    // CONTINUATION never comes.
    let start = Instant::now();
    client.until(u8::MAX).await;
    assert!(start.elapsed() < Duration::from_secs(10));
    // A preface that does not go on.
    let mut half = RawClient::connect(proxy.address()).await;
    half.send("PRI * HTTP/2.0\r\n\r\nSM\r\n").await;
    half.rest().await;
    assert!(start.elapsed() < Duration::from_secs(15));
}

/// They take up a connection each, and nothing else.
#[tokio::test]
async fn slow_clients_hold_up_nobody() {
    let origin = HyperOrigin::start("a").await;
    let fleet = Fleet::of(&[origin.address()]);
    let mut patient = settings();
    patient.limits.head_time = Duration::from_secs(120);
    let proxy = fleet.proxy(patient);
    let mut slow = Vec::new();
    for _ in 0..300 {
        let mut client = RawClient::connect(proxy.address()).await;
        client.send("POST /x HTTP/1.1\r\nHost: x\r\nContent-Le").await;
        slow.push(client);
    }
    for _ in 0..100 {
        assert_eq!(get(proxy.address(), "/bytes/10").await.status, 200);
    }
    for client in &mut slow {
        client.send("ngth: 1\r\n\r\nx").await;
        assert_eq!(client.response().await.status, 200);
    }
}

#[tokio::test]
async fn no_more_connections_than_there_may_be() {
    let origin = HyperOrigin::start("a").await;
    let fleet = Fleet::of(&[origin.address()]);
    let mut settings = settings();
    settings.limits.connections = 5;
    let proxy = fleet.proxy(settings);
    let mut clients = Vec::new();
    for _ in 0..5 {
        let mut client = RawClient::connect(proxy.address()).await;
        assert_eq!(client.request("GET /bytes/1 HTTP/1.1\r\nHost: x\r\n\r\n").await.status, 200);
        clients.push(client);
    }
    // The sixth waits until somebody goes.
    let mut sixth = RawClient::connect(proxy.address()).await;
    sixth.send("GET /bytes/1 HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert_eq!(clients[0].request("GET /bytes/1 HTTP/1.1\r\nHost: x\r\n\r\n").await.status, 200);
    assert_eq!(origin.requests(), 6);
    drop(clients.pop());
    assert_eq!(sixth.response().await.status, 200);
    drop(clients);
    until("served", || origin.requests() == 7).await;
}
