//! At the limits: whoever comes too many waits or is told so, and everybody else is served.

use std::time::Duration;

use serde_json::json;
use tokio::net::TcpStream;

use crate::support::{Server, registry_with, until};

#[tokio::test]
async fn who_never_finishes_asking_is_closed() {
    let server = Server::start_with(|settings| {
        settings.limits.head_time = Duration::from_millis(300);
        settings.limits.body_time = Duration::from_millis(300);
    })
    .await;
    let mut silent = server.client().await;
    let mut slow = server.client().await;
    slow.send(b"GET /livez HT").await;
    let mut drips = server.client().await;
    let mut bodiless = server.client().await;
    let head = "PUT /v1/services/s/instances/a HTTP/1.1\r\nhost: localhost\r\ncontent-length: 50\r\n\r\n";
    bodiless.send(head.as_bytes()).await;
    let mut idle = server.client().await;
    assert_eq!(idle.ask("GET", "/livez", "").await.status, 200);
    let dripping = async {
        // A byte now and then does not help.
        while drips.rest_within(Duration::from_millis(50)).await.is_none() {
            drips.send(b"G").await;
        }
    };
    dripping.await;
    for client in [&mut silent, &mut slow, &mut idle] {
        assert_eq!(client.rest().await, b"");
    }
    let detail = bodiless.answer("PUT").await.is_problem(408, "request-timeout");
    assert!(detail.contains("300ms"), "{detail}");
    bodiless.rest().await;
    server.until_metric("pointsman_agent_connections", 0).await;
    // A stream is not idle, however long it has nothing to say.
    let mut held = server.stream("POST", "/v1/services/s/instances/a/hold", "").await;
    held.event_named("role").await;
    assert!(held.is_silent(Duration::from_millis(900)).await);
    server.until_codes("s", &["a"]).await;
}

#[tokio::test]
async fn who_comes_when_all_places_are_taken_waits() {
    let server = Server::start_with(|settings| settings.limits.connections = 3).await;
    let mut first = server.client().await;
    let mut there = Vec::new();
    assert_eq!(first.ask("GET", "/livez", "").await.status, 200);
    for _ in 0..2 {
        let mut client = server.client().await;
        assert_eq!(client.ask("GET", "/livez", "").await.status, 200);
        there.push(client);
    }
    let mut waiting = server.client().await;
    waiting.send(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    assert!(waiting.rest_within(Duration::from_millis(200)).await.is_none());
    // Those who are in are served meanwhile.
    assert_eq!(first.ask("GET", "/livez", "").await.status, 200);
    assert_eq!(server.metric("pointsman_agent_connections"), 3);
    drop(first);
    assert_eq!(waiting.answer("GET").await.status, 200);
}

#[tokio::test]
async fn more_streams_than_the_limit_are_refused() {
    let server = Server::start_with(|settings| settings.limits.watchers = 3).await;
    let watch = "/v1/services/s/watch";
    let mut streams = vec![server.watch(watch).await, server.watch("/v1/watch").await];
    streams.push(server.stream("POST", "/v1/services/s/instances/a/hold", "").await);
    let mut client = server.client().await;
    for (method, path) in [
        ("GET", watch),
        ("GET", "/v1/watch"),
        ("GET", "/v1/services/s/instances/a/role"),
        ("GET", "/v1/services/s/watch?after=0"),
        ("GET", "/v1/services/s/changes?after=0"),
        ("POST", "/v1/services/s/instances/b/hold"),
    ] {
        let detail = client.ask(method, path, "").await.is_problem(503, "too-many");
        assert!(detail.contains("3 streams"), "{detail}");
    }
    assert_eq!(server.codes("s").await, ["a"], "who could not be told its role is not registered");
    drop(streams.pop());
    server.until_metric("pointsman_agent_watchers", 2).await;
    assert_eq!(client.ask("GET", "/v1/services/s/watch?wait=0s", "").await.status, 200);
    server.until_metric("pointsman_agent_watchers", 2).await;
    server.watch(watch).await;
}

#[tokio::test]
async fn more_registrations_than_the_limit_are_refused() {
    let server = Server::start_with(|settings| settings.limits.registrations = 2).await;
    server.put("s", "a").await;
    server.put("s", "b").await;
    let c = "/v1/services/s/instances/c";
    for (method, path) in [("PUT", c.to_owned()), ("POST", format!("{c}/hold"))] {
        let detail = server.ask(method, &path, "{}").await.is_problem(503, "too-many");
        assert!(detail.contains("2 registrations"), "{detail}");
    }
    // Those that are there are renewed and updated.
    assert_eq!(server.put("s", "a").await["role"], "master");
    assert_eq!(server.ask("DELETE", "/v1/services/s/instances/a", "").await.status, 204);
    assert_eq!(server.ask("PUT", c, "{}").await.status, 201);
}

#[tokio::test]
async fn connections_that_vanish_leave_nothing() {
    let server = Server::start().await;
    for round in 0..20 {
        let mut gone: Vec<TcpStream> = Vec::new();
        for _ in 0..20 {
            gone.push(TcpStream::connect(server.address).await.unwrap());
        }
        for (number, stream) in gone.iter().enumerate() {
            let text = match (number + round) % 4 {
                0 => "",
                1 => "GET /v1/wat",
                2 => "GET /v1/watch HTTP/1.1\r\nhost: localhost\r\n\r\n",
                _ => "POST /v1/services/s/instances/a/hold HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n{",
            };
            stream.writable().await.unwrap();
            let _ = stream.try_write(text.as_bytes());
            let linger = (number % 2 == 0).then_some(Duration::ZERO);
            socket2::SockRef::from(stream).set_linger(linger).unwrap();
        }
    }
    assert_eq!(server.get("/livez").await.status, 200);
    for line in ["pointsman_agent_connections", "pointsman_agent_watchers", "pointsman_registrations"] {
        server.until_metric(line, 0).await;
    }
}

#[tokio::test]
async fn snapshots_that_cannot_be_written_stop_nothing() {
    // A file where the folder should be: nothing can be made in it, not even by root.
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("snapshots");
    std::fs::create_dir(&place).unwrap();
    let registry = registry_with(&format!("guard=off&snapshots={}", place.display())).await;
    let server = Server::start_over(registry, |_| {}).await;
    server.put("s", "a").await;
    server.until_codes("s", &["a"]).await;
    until("a snapshot is on disk", async || std::fs::read_dir(&place).unwrap().next()).await.unwrap();
    std::fs::remove_dir_all(&place).unwrap();
    std::fs::write(&place, "in the way").unwrap();
    let mut watcher = server.watch("/v1/services/s/watch").await;
    watcher.event_named("snapshot").await;
    for code in ["b", "c", "d"] {
        server.put("s", code).await;
        assert_eq!(watcher.until_event("put").await.data["instance"]["code"], code);
    }
    server.until_codes("s", &["a", "b", "c", "d"]).await;
    assert_eq!(server.json("/readyz").await["registry"], json!("fresh"));
    assert_eq!(server.ask("DELETE", "/v1/services/s/instances/a", "").await.status, 204);
    until("b is master", async || (server.get("/v1/services/s/master").await.status == 200).then_some(())).await;
}
