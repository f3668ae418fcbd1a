//! Connections that change their protocol.
#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::time::Duration;

use pointsman_testkit::http::{HyperOrigin, Nginx, Play, RawClient, RawOrigin, WebSocket, get};
use support::{Fleet, SOON, passing, proxy_to, python, until};

const UPGRADE: &str = "GET /upgrade HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: echo\r\n\r\n";

#[tokio::test]
async fn websockets_go_through() {
    let Some(websocket) = WebSocket::installed(python()) else { return };
    let origin = websocket.serve("one").await;
    let (_fleet, proxy) = proxy_to(origin.address());
    let messages = ["hello", "ping", "size:70000", "size:3000000", "bye"];
    let answer = websocket.talk(proxy.address(), "/chat?room=1", &messages).await;
    assert_eq!((answer.status, answer.greeting.as_deref()), (101, Some("one /chat?room=1")));
    assert_eq!(answer.answers, ["hello", "pong", "size:70000", "size:3000000", "bye"]);
    assert_eq!(answer.code, Some(1000));
    let answer = websocket.talk(proxy.address(), "/", &["close"]).await;
    assert_eq!(answer.code, Some(4001), "the server's own code");
}

#[tokio::test]
async fn a_refused_websocket_is_refused() {
    let Some(websocket) = WebSocket::installed(python()) else { return };
    let nginx = Nginx::start("return 403;").await;
    let (_fleet, proxy) = proxy_to(nginx.address());
    assert_eq!(websocket.talk(proxy.address(), "/", &[]).await.status, 403);
    let nobody = Fleet::new(&["ress"]);
    let proxy = nobody.proxy(support::settings());
    assert_eq!(websocket.talk(proxy.address(), "/", &[]).await.status, 503);
}

#[tokio::test]
async fn any_protocol_goes_through_and_ends_with_either_side() {
    let origin = HyperOrigin::start("a").await;
    let (_fleet, proxy) = proxy_to(origin.address());
    let mut client = RawClient::connect(proxy.address()).await;
    // What follows at once is of the new protocol, and not lost.
    client.send([UPGRADE, "first"].concat()).await;
    let head = client.head().await;
    assert_eq!((head.status, head.header("upgrade")), (101, Some("echo")));
    assert!(head.header("connection").unwrap().to_lowercase().contains("upgrade"));
    assert_eq!(client.read_until("first").await, "first");
    client.send("GET /smuggled HTTP/1.1\r\n\r\n").await;
    assert_eq!(client.read_until("\r\n\r\n").await, "GET /smuggled HTTP/1.1\r\n\r\n");
    assert_eq!(origin.requests(), 1);
    drop(client);
    until("ended at the origin", || origin.open() == 0).await;

    let origin = RawOrigin::start(|_| {
        let switch = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nhello";
        vec![Play::Send(switch.into()), Play::Gate, Play::Close]
    })
    .await;
    let (_fleet, proxy) = proxy_to(origin.address());
    let mut client = RawClient::connect(proxy.address()).await;
    client.send(UPGRADE).await;
    assert_eq!(client.head().await.status, 101);
    client.read_until("hello").await;
    origin.release(1);
    assert!(client.rest().await.is_empty());
}

#[tokio::test]
async fn one_side_may_say_no_more_and_the_other_go_on() {
    let origin = RawOrigin::start(|_| {
        let switch = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";
        vec![Play::Send(switch.into()), Play::Gate, Play::Send(b"late".to_vec()), Play::Close]
    })
    .await;
    let (_fleet, proxy) = proxy_to(origin.address());
    let mut client = RawClient::connect(proxy.address()).await;
    client.send(UPGRADE).await;
    assert_eq!(client.head().await.status, 101);
    client.send("all there is").await;
    client.half_close().await;
    until("arrived", || origin.text().ends_with("all there is")).await;
    origin.release(1);
    assert_eq!(client.rest().await, b"late");
}

#[tokio::test]
async fn upgraded_connections_have_no_timeouts() {
    let origin = HyperOrigin::start("a").await;
    let fleet = Fleet::of(&[origin.address()]);
    let proxy = fleet.proxy(passing(|pass| {
        pass.timeouts.whole = Some(Duration::from_millis(250));
        pass.timeouts.idle = Duration::from_millis(250);
        pass.timeouts.first_byte = Duration::from_millis(250);
    }));
    let mut client = RawClient::connect(proxy.address()).await;
    client.send(UPGRADE).await;
    assert_eq!(client.head().await.status, 101);
    assert!(!client.ends_within(Duration::from_millis(600)).await);
    client.send("still here").await;
    client.read_until("still here").await;
}

/// While one is open it counts as in flight; when it has ended no longer.
#[tokio::test]
async fn upgraded_connections_are_in_flight() {
    let origin = HyperOrigin::start("a").await;
    let fleet = Fleet::of(&[origin.address()]);
    let proxy = fleet.proxy(passing(|pass| {
        pass.max_in_flight = Some(1);
        pass.queue = 0;
    }));
    let mut client = RawClient::connect(proxy.address()).await;
    client.send(UPGRADE).await;
    assert_eq!(client.head().await.status, 101);
    assert_eq!(get(proxy.address(), "/x").await.status, 503);
    drop(client);
    let start = std::time::Instant::now();
    while get(proxy.address(), "/x").await.status != 200 {
        assert!(start.elapsed() < SOON, "still in flight");
    }
}
