//! What happens to requests under way when a process is told to end.

use std::time::Duration;

use pointsman_testkit::http::{HyperOrigin, RawClient, Response};
use rustix::process::Signal;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::setup::{Proxy, Registry, at, text, until};
use crate::support::served::{File, free_port, logged, serve};
use crate::support::{DEADLINE, run, stderr};

/// A proxy with a request under way that is answered when the origin is told to.
async fn slow(registry: &Registry, origin: &HyperOrigin, lines: &str) -> (Proxy, JoinHandle<Option<Response>>) {
    registry.put("ress", "a", origin.address()).await;
    let proxy = Proxy::over(registry, lines).await;
    registry.until_balancers(1).await;
    let port = proxy.port;
    let slow = tokio::spawn(async move {
        let mut client = RawClient::connect(at(port)).await;
        client.send("GET /hold HTTP/1.1\r\nHost: a\r\n\r\n").await;
        client.try_response("GET").await
    });
    until(async || origin.under_way(), |under_way| *under_way == 1).await;
    (proxy, slow)
}

#[tokio::test]
async fn it_deregisters_first_and_answers_what_is_under_way() {
    let (registry, origin) = (Registry::start().await, HyperOrigin::start("a").await);
    let (mut proxy, slow) = slow(&registry, &origin, "").await;
    let mut idle = RawClient::connect(at(proxy.port)).await;
    assert_eq!(idle.request("GET /bytes/3 HTTP/1.1\r\nHost: a\r\n\r\n").await.status, 200);
    proxy.running.signal(Signal::TERM);
    registry.until_balancers(0).await;
    assert!(idle.ends_within(DEADLINE).await, "who waits for nothing is let go");
    // It listens no longer, and has not ended.
    until(async || TcpStream::connect(at(proxy.port)).await.is_err(), |refused| *refused).await;
    assert!(proxy.running.runs() && !slow.is_finished());
    origin.release(1);
    let answer = timeout(DEADLINE, slow).await.unwrap().unwrap().unwrap();
    assert_eq!((answer.status, &*answer.text(), answer.header("connection")), (200, "held", Some("close")));
    assert_eq!(proxy.running.ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_second_signal_does_not_wait() {
    let (registry, origin) = (Registry::start().await, HyperOrigin::start("a").await);
    let (mut proxy, slow) = slow(&registry, &origin, "drain_timeout = '1h'").await;
    proxy.running.signal(Signal::TERM);
    registry.until_balancers(0).await;
    assert!(proxy.running.runs());
    proxy.running.signal(Signal::TERM);
    assert_eq!(proxy.running.ended().await.code(), Some(130));
    assert_eq!(timeout(DEADLINE, slow).await.unwrap().unwrap(), None);
}

#[tokio::test]
async fn what_takes_longer_than_the_drain_timeout_is_cut_off() {
    let (registry, origin) = (Registry::start().await, HyperOrigin::start("a").await);
    let (mut proxy, slow) = slow(&registry, &origin, "drain_timeout = '300ms'").await;
    proxy.running.signal(Signal::TERM);
    let line = logged(&mut proxy.running, "the drain timeout is over").await;
    assert!(line.contains("connections=1"), "{line}");
    assert_eq!(proxy.running.ended().await.code(), Some(0));
    assert_eq!(timeout(DEADLINE, slow).await.unwrap().unwrap(), None);
}

#[tokio::test]
async fn who_has_connected_and_not_spoken_yet_is_still_answered() {
    let (registry, origin) = (Registry::start().await, HyperOrigin::start("a").await);
    let (proxy, slow) = slow(&registry, &origin, "").await;
    let mut clients = Vec::new();
    for _ in 0..8 {
        clients.push(RawClient::connect(at(proxy.port)).await);
    }
    proxy.running.signal(Signal::TERM);
    registry.until_balancers(0).await;
    for client in &mut clients {
        let answer = client.request("GET /bytes/3 HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    }
    origin.release(1);
    assert_eq!(timeout(DEADLINE, slow).await.unwrap().unwrap().unwrap().status, 200);
    assert_eq!(proxy.running.ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_killed_one_may_start_again_at_once() {
    let (registry, origin) = (Registry::start().await, HyperOrigin::start("a").await);
    registry.put("ress", "a", origin.address()).await;
    let Proxy { file, port, running } = Proxy::over(&registry, "hand_over = 'p.sock'\ncode = 'p'").await;
    registry.until_balancers(1).await;
    // With connections that would keep its address.
    let mut client = RawClient::connect(at(port)).await;
    assert_eq!(client.request("GET /bytes/3 HTTP/1.1\r\nHost: a\r\n\r\n").await.status, 200);
    running.signal(Signal::KILL);
    running.ended().await;
    let mut running = serve(&file.path);
    logged(&mut running, " ready").await;
    let proxy = Proxy { file, port, running };
    assert_eq!(proxy.get("/").await.status, 200);
    let listed = registry.until_balancers(1).await;
    assert_eq!(listed[0]["code"], json!("p"));
    proxy.ends().await;
}

#[tokio::test]
async fn an_address_that_somebody_has_is_said_to_be_taken() {
    let registry = Registry::start().await;
    let taken = TcpListener::bind(at(0)).await.unwrap();
    let port = taken.local_addr().unwrap().port();
    let file = File::new(&text(&registry.url(), port, ""));
    let fails = async || {
        let output = run(&["serve", "-c", file.path.to_str().unwrap()]).await;
        let told = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(told.contains(&format!("listen on 127.0.0.1:{port}: Address already in use")), "{told}");
    };
    fails().await;
    drop(taken);
    // Another of these, too, although both would share it.
    let port = free_port();
    let proxy = Proxy::start(port, &text(&registry.url(), port, "")).await;
    file.replace(&text(&registry.url(), port, ""));
    let fails = async || {
        let output = run(&["serve", "-c", file.path.to_str().unwrap()]).await;
        let told = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(told.contains(&format!("listen on 127.0.0.1:{port}: Address already in use")), "{told}");
    };
    fails().await;
    // Not even for a moment is the first one disturbed.
    assert_eq!(proxy.get("/").await.status, 503);
    proxy.ends().await;
    assert!(timeout(Duration::from_secs(1), TcpStream::connect(at(port))).await.unwrap().is_err());
}
