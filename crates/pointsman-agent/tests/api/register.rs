//! Registering: by a lease, by a connection, with a check.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::support::client::request;
use crate::support::{Client, Server, registry, soon, until};

const A: &str = "/v1/services/s/instances/a";

#[tokio::test]
async fn a_lease_is_registered_renewed_updated_and_ended() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let body = r#"{"address":"10.0.1.7:8080","weight":3,"tags":{"zone":"eu-1"},"ttl":"20s"}"#;
    let new = client.ask("PUT", A, body).await;
    assert_eq!(new.status, 201);
    let (role, expires) = (new.json(), new.json()["expires_in_ms"].as_u64().unwrap());
    assert_eq!(role["role"], "master");
    assert!(role["term"].as_u64().unwrap() > 0);
    assert!((15_000..=20_000).contains(&expires), "{expires}");
    // A renewal changes nothing else.
    let renewed = client.ask("PUT", A, "").await;
    assert_eq!((renewed.status, &renewed.json()["term"]), (200, &role["term"]));
    server.until_codes("s", &["a"]).await;
    let listed = &server.json("/v1/services/s/instances").await[0];
    let wanted = json!({"service":"s","code":"a","address":"10.0.1.7:8080","weight":3,"role":"master","term":role["term"],
        "tags":{"zone":"eu-1"},"status":"passing"});
    assert_eq!(*listed, wanted);
    // An update is what the body says, whole; the default lease is 10s.
    let updated = client.ask("PUT", A, r#"{"address":"10.0.1.8:80"}"#).await;
    assert_eq!((updated.status, &updated.json()["term"]), (200, &role["term"]));
    until("the update is listed", async || {
        let listed = server.json("/v1/services/s/instances").await[0].clone();
        (listed["address"] == "10.0.1.8:80" && listed["weight"] == 1 && listed["tags"] == json!({})).then_some(())
    })
    .await;
    assert_eq!(client.ask("DELETE", A, "").await.status, 204);
    client.ask("DELETE", A, "").await.is_problem(404, "not-registered");
    let detail = client.ask("PUT", A, "").await.is_problem(404, "not-registered");
    assert!(detail.contains("register again"), "{detail}");
    server.until_codes("s", &[]).await;
}

#[tokio::test]
async fn an_observer_is_never_master_and_becomes_a_candidate_by_another_registration() {
    let server = Server::start().await;
    let role = async |body: &str| server.ask("PUT", A, body).await.json()["role"].clone();
    assert_eq!(role(r#"{"observer":true}"#).await, "normal");
    server.until_codes("s", &["a"]).await;
    let listed = &server.json("/v1/services/s/instances").await[0];
    assert_eq!((&listed["observer"], &listed["role"]), (&json!(true), &json!("normal")));
    server.ask("GET", "/v1/services/s/master", "").await.is_problem(404, "no-master");
    server.ask("POST", &format!("{A}/resign"), "").await.is_problem(409, "not-master");
    let mut roles = server.watch(&format!("{A}/role")).await;
    assert_eq!(roles.event_named("role").await.data["role"], "normal");
    // A renewal leaves it as it is, and so does an update that says it again.
    assert_eq!(role("").await, "normal");
    assert_eq!(role(r#"{"observer":true,"weight":2}"#).await, "normal");
    assert_eq!(role(r#"{"weight":2}"#).await, "master");
    assert_eq!(roles.until_event("end").await.data, json!({"reason":"replaced"}));
    assert_eq!(role(r#"{"observer":true}"#).await, "normal");
    let refused = server.ask("PUT", A, r#"{"observer":"yes"}"#).await.is_problem(400, "bad-request");
    assert!(refused.contains("bool"), "{refused}");
}

#[tokio::test]
async fn a_lease_that_is_not_renewed_ends_and_says_so() {
    let server = Server::start().await;
    let mut watcher = server.watch("/v1/services/s/watch").await;
    watcher.event_named("snapshot").await;
    let answer = server.ask("PUT", A, r#"{"ttl":"1s"}"#).await;
    assert!(answer.json()["expires_in_ms"].as_u64().unwrap() <= 1000);
    let mut roles = server.watch(&format!("{A}/role")).await;
    assert_eq!(roles.event_named("role").await.data["role"], "master");
    assert_eq!(roles.until_event("end").await.data, json!({"reason":"expired"}));
    assert_eq!(roles.next_event().await, None);
    watcher.until_event("put").await;
    let gone = watcher.until_event("delete").await.data;
    assert_eq!((&gone["instance"]["code"], &gone["reason"]), (&json!("a"), &json!("lost")));
    let detail = server.ask("PUT", A, "").await.is_problem(404, "not-registered");
    assert!(detail.contains("register again, with a body"), "{detail}");
    assert_eq!(server.ask("PUT", A, "{}").await.status, 201);
}

#[tokio::test]
async fn a_renewal_with_a_shorter_ttl_shortens_the_lease() {
    let server = Server::start().await;
    assert_eq!(server.ask("PUT", A, r#"{"ttl":"1h"}"#).await.status, 201);
    let mut roles = server.watch(&format!("{A}/role")).await;
    roles.event_named("role").await;
    let renewed = server.ask("PUT", A, r#"{"ttl":"1s"}"#).await;
    assert!(renewed.json()["expires_in_ms"].as_u64().unwrap() <= 1000, "{}", renewed.json());
    assert_eq!(roles.until_event("end").await.data, json!({"reason":"expired"}));
}

#[tokio::test]
async fn a_renewal_in_time_keeps_the_lease() {
    let server = Server::start().await;
    assert_eq!(server.ask("PUT", A, r#"{"ttl":"1s"}"#).await.status, 201);
    let mut roles = server.watch(&format!("{A}/role")).await;
    roles.event_named("role").await;
    let mut client = server.client().await;
    // Three leases long: without the renewals it would have ended.
    for _ in 0..15 {
        assert!(roles.is_silent(Duration::from_millis(200)).await);
        assert_eq!(client.ask("PUT", A, "").await.status, 200);
    }
    roles.until_event("end").await;
}

#[tokio::test]
async fn who_holds_is_told_its_role_and_hands_over_by_vanishing() {
    let server = Server::start().await;
    let mut first = server.stream("POST", &format!("{A}/hold"), "").await;
    let event = first.event_named("role").await;
    assert_eq!(event.data["role"], "master");
    assert_eq!(event.data.get("expires_in_ms"), None, "it lasts as long as the connection");
    let mut second = server.stream("POST", "/v1/services/s/instances/b/hold", r#"{"weight":2}"#).await;
    assert_eq!(second.event_named("role").await.data, json!({"role":"normal"}));
    server.until_codes("s", &["a", "b"]).await;
    let mut watcher = server.watch("/v1/services/s/watch").await;
    watcher.event_named("snapshot").await;
    let vanished = std::time::Instant::now();
    drop(first);
    let gone = watcher.until_event("delete").await.data;
    assert_eq!((&gone["instance"]["code"], &gone["reason"]), (&json!("a"), &json!("lost")));
    assert!(vanished.elapsed() < Duration::from_millis(500), "{:?}", vanished.elapsed());
    let master = second.event_named("role").await.data;
    assert_eq!(master["role"], "master");
    assert!(master["term"].as_u64() > event.data["term"].as_u64());
}

#[tokio::test]
async fn a_reset_connection_ends_what_it_holds() {
    let server = Server::start().await;
    let mut watcher = server.watch("/v1/services/s/watch").await;
    watcher.event_named("snapshot").await;
    let socket = tokio::net::TcpStream::connect(server.address).await.unwrap();
    let reset = socket2::SockRef::from(&socket).try_clone().unwrap();
    let mut holder = Client::over(socket);
    holder.open("POST", &format!("{A}/hold"), &[], "").await;
    watcher.until_event("put").await;
    // With this, closing is a reset.
    reset.set_linger(Some(Duration::ZERO)).unwrap();
    drop((holder, reset));
    watcher.until_event("delete").await;
    assert_eq!(server.metric("pointsman_registrations"), 0);
}

#[tokio::test]
async fn a_held_registration_with_a_lease_must_be_renewed() {
    let server = Server::start().await;
    let mut held = server.stream("POST", &format!("{A}/hold"), r#"{"ttl":"1s","holder":"me"}"#).await;
    assert!(held.event_named("role").await.data["expires_in_ms"].as_u64().unwrap() <= 1000);
    for _ in 0..6 {
        assert!(held.is_silent(Duration::from_millis(250)).await);
        assert_eq!(server.ask("PUT", A, "").await.status, 200);
    }
    assert_eq!(held.until_event("end").await.data["reason"], "expired");
    server.until_codes("s", &[]).await;
}

#[tokio::test]
async fn deregistering_ends_the_stream_of_who_holds() {
    let server = Server::start().await;
    let mut held = server.stream("POST", &format!("{A}/hold"), "").await;
    let mut roles = server.watch(&format!("{A}/role")).await;
    held.event_named("role").await;
    roles.event_named("role").await;
    assert_eq!(server.ask("DELETE", A, "").await.status, 204);
    for stream in [&mut held, &mut roles] {
        assert_eq!(stream.until_event("end").await.data["reason"], "deregistered");
        assert_eq!(stream.next_event().await, None);
    }
    server.get(&format!("{A}/role")).await.is_problem(404, "not-registered");
}

#[tokio::test]
async fn the_same_holder_takes_over_without_a_gap() {
    let server = Server::start().await;
    let hold = format!("{A}/hold");
    let mut old = server.stream("POST", &hold, r#"{"holder":"me"}"#).await;
    let term = old.event_named("role").await.data["term"].clone();
    server.until_codes("s", &["a"]).await;
    let mut watcher = server.watch("/v1/services/s/watch").await;
    watcher.event_named("snapshot").await;
    watcher.event_named("freshness").await;
    let mut new = server.stream("POST", &hold, r#"{"holder":"me","weight":7}"#).await;
    assert_eq!(old.until_event("end").await.data["reason"], "replaced");
    assert_eq!(old.next_event().await, None);
    drop(old);
    assert_eq!(new.event_named("role").await.data["term"], term, "it has stayed master");
    let put = watcher.event_named("put").await;
    assert_eq!((&put.data["instance"]["weight"], &put.data["before"]["weight"]), (&json!(7), &json!(1)));
    // Another holder may not; nor somebody who does not say who it is.
    for body in [r#"{"holder":"you"}"#, "", "{}"] {
        server.ask("POST", &hold, body).await.is_problem(409, "duplicate-code");
    }
    server.ask("PUT", A, r#"{"holder":"you"}"#).await.is_problem(409, "duplicate-code");
    assert!(watcher.is_silent(Duration::from_millis(100)).await, "those who were refused have changed nothing");
    drop(new);
    watcher.event_named("delete").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_back_at_once_is_never_refused_for_its_own_sake() {
    let server = Server::start().await;
    let hold = format!("{A}/hold");
    for _ in 0..200 {
        // By name it is taken over, whether it has been noticed that the connection before is lost or not.
        let lost = server.stream("POST", &hold, r#"{"holder":"me"}"#).await;
        drop(lost);
        let mut again = server.stream("POST", &hold, r#"{"holder":"me"}"#).await;
        assert_eq!(again.event_named("role").await.data["role"], "master");
        // Once that is noticed the code is free for everybody, although it is not out of the registry yet.
        drop(again);
        server.until_metric("pointsman_agent_connections", 0).await;
        drop(server.stream("POST", &hold, "").await);
        server.until_metric("pointsman_agent_connections", 0).await;
    }
    for number in 0..200 {
        let held = server.stream("POST", &format!("{A}/hold"), "").await;
        let (deleted, put) =
            tokio::join!(server.ask("DELETE", A, ""), async { server.ask("PUT", A, "{}").await.status });
        assert_eq!(deleted.status, 204);
        // Before it is ended it is another's; after that it is free.
        assert!(matches!(put, 201 | 409), "{number}: {put}");
        drop(held);
        server.ask("DELETE", A, "").await;
    }
}

#[tokio::test]
async fn a_code_that_lives_elsewhere_is_refused() {
    let registry = registry().await;
    let server = Server::start_over(registry.clone(), |_| {}).await;
    let _there = registry.register(pointsman_core::Instance::new("s").code("a")).await.unwrap();
    for (method, path) in [("PUT", A), ("POST", "/v1/services/s/instances/a/hold")] {
        server.ask(method, path, "{}").await.is_problem(409, "duplicate-code");
    }
    assert_eq!(server.metric("pointsman_registrations"), 0, "nothing is left of the attempts");
}

#[tokio::test]
async fn a_client_that_gives_up_in_the_middle_leaves_nothing() {
    let server = Server::start().await;
    for number in 0..50 {
        let mut client = server.client().await;
        client.send(&request("POST", &format!("/v1/services/s/instances/{number}/hold"), &[], b"{}")).await;
    }
    // They are accepted in their order: those before this one have come, and go.
    assert_eq!(server.get("/livez").await.status, 200);
    server.until_metric("pointsman_agent_connections", 0).await;
    server.until_metric("pointsman_registrations", 0).await;
    server.until_codes("s", &[]).await;
    server.until_metric("pointsman_agent_watchers", 0).await;
}

#[tokio::test]
async fn mastership_is_handed_over_on_request() {
    let server = Server::start().await;
    server.put("s", "a").await;
    let mut roles = server.watch(&format!("{A}/role")).await;
    assert_eq!(roles.event_named("role").await.data["role"], "master");
    server.put("s", "b").await;
    server.ask("POST", "/v1/services/s/instances/b/resign", "").await.is_problem(409, "not-master");
    assert_eq!(server.ask("POST", &format!("{A}/resign"), "").await.status, 204);
    until("a is normal", async || (roles.event_named("role").await.data["role"] == "normal").then_some(())).await;
    server.ask("POST", "/v1/services/s/instances/c/resign", "").await.is_problem(404, "not-registered");
}

/// Answers each connection with a status that can be changed.
async fn health(status: tokio::sync::watch::Receiver<u16>) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let answer = format!("HTTP/1.1 {} x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n", *status.borrow());
            tokio::spawn(async move {
                let mut head = [0; 1024];
                let _ = socket.read(&mut head).await;
                let _ = socket.write_all(answer.as_bytes()).await;
            });
        }
    });
    address
}

#[tokio::test]
async fn it_is_registered_only_while_its_check_passes() {
    let server = Server::start().await;
    let (set, status) = tokio::sync::watch::channel(500);
    let address = health(status).await;
    let probe = json!({"probe":format!("http://{address}/health"),"interval":"100ms","timeout":"5s","fall":1});
    let body = json!({"ttl":"1h","check":probe}).to_string();
    let answer = server.ask("PUT", A, &body).await;
    assert_eq!((answer.status, &answer.json()["role"]), (201, &json!("detached")));
    assert!(answer.json()["reason"].as_str().unwrap().starts_with("the check fails"), "{}", answer.text());
    assert_eq!(server.codes("s").await, [""; 0]);
    let mut roles = server.watch(&format!("{A}/role")).await;
    assert_eq!(roles.event_named("role").await.data["role"], "detached");
    for _ in 0..2 {
        set.send_replace(204);
        until("registered", async || (roles.event_named("role").await.data["role"] == "master").then_some(())).await;
        server.until_codes("s", &["a"]).await;
        set.send_replace(503);
        let detached = soon("detached", roles.until_event("role")).await.data;
        assert_eq!(detached["role"], "detached");
        assert!(detached["reason"].as_str().unwrap().contains("503"), "{detached}");
        server.until_codes("s", &[]).await;
        assert_eq!(server.metric("pointsman_registrations_detached"), 1);
    }
    // An update without a check ends the check.
    assert_eq!(server.ask("PUT", A, r#"{"ttl":"1h"}"#).await.status, 200);
    server.until_codes("s", &["a"]).await;
}

#[tokio::test]
async fn a_tcp_check_asks_whether_somebody_listens() {
    let server = Server::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let body = json!({"address":address.to_string(),"check":{"probe":"tcp","interval":"100ms","fall":2}}).to_string();
    let mut held = server.stream("POST", &format!("{A}/hold"), &body).await;
    let role = async |held: &mut Client, wanted: &str| -> Value {
        until(wanted, async || Some(held.event_named("role").await.data).filter(|data| data["role"] == wanted)).await
    };
    role(&mut held, "master").await;
    drop(listener);
    role(&mut held, "detached").await;
    server.until_codes("s", &[]).await;
    let _again = TcpListener::bind(address).await.unwrap();
    role(&mut held, "master").await;
}

#[tokio::test]
async fn an_agent_that_closes_says_so_to_who_holds() {
    let server = Server::start().await;
    let mut held = server.stream("POST", &format!("{A}/hold"), "").await;
    let mut roles = server.watch(&format!("{A}/role")).await;
    let mut watching = server.watch("/v1/services/s/watch").await;
    held.event_named("role").await;
    roles.event_named("role").await;
    watching.until_event("freshness").await;
    let mut idle = server.client().await;
    assert_eq!(idle.ask("GET", "/livez", "").await.status, 200);
    soon("closed", server.agent.close()).await;
    for stream in [&mut held, &mut roles] {
        assert_eq!(stream.until_event("end").await.data, json!({"reason":"closing"}));
        assert_eq!(stream.next_event().await, None);
    }
    while watching.next_event().await.is_some() {}
    assert_eq!(idle.rest().await, b"");
    assert!(tokio::net::TcpStream::connect(server.address).await.is_err());
}

/// Who was paused for too long, and whose code another has by now.
#[tokio::test]
async fn whoever_names_its_holder_touches_no_others_registration() {
    let server = Server::start().await;
    let mut client = server.client().await;
    assert_eq!(client.ask("PUT", A, r#"{"holder":"new one"}"#).await.status, 201);
    for (method, what) in [("PUT", ""), ("DELETE", ""), ("POST", "/resign")] {
        let path = format!("{A}{what}?holder=old%20one");
        client.ask(method, &path, "").await.is_problem(404, "not-registered");
    }
    assert_eq!(client.ask("PUT", &format!("{A}?holder=new%20one"), "").await.status, 200);
    assert_eq!(client.ask("DELETE", &format!("{A}?holder=new+one"), "").await.status, 204);
}

/// A probe that takes longer than from one renewal to the next.
#[tokio::test]
async fn a_check_that_hangs_fails_however_often_the_lease_is_renewed() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let probed = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut hanging = Vec::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            if hanging.is_empty() {
                let _ = stream.read(&mut [0; 1024]).await;
                let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await;
            }
            hanging.push(stream);
        }
    });
    let server = Server::start().await;
    let mut client = server.client().await;
    let check = json!({"probe": format!("http://{probed}/"), "interval": "100ms", "timeout": "300ms", "fall": 1});
    let body = json!({ "check": check }).to_string();
    for role in ["master", "detached"] {
        let renewing = async { while client.ask("PUT", A, &body).await.json()["role"] != role {} };
        soon(role, renewing).await;
    }
}

/// Registered by a process that needs no agent. Many times, because whoever waits for the outcome must not be told one before.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_code_that_somebody_has_without_an_agent_is_refused() {
    let server = Server::start().await;
    let _there = server.registry.register(pointsman_core::Instance::new("s").code("a")).await.unwrap();
    let mut client = server.client().await;
    for _ in 0..300 {
        let detail = client.ask("PUT", A, "{}").await.is_problem(409, "duplicate-code");
        assert!(detail.contains("already registered"), "{detail}");
        client.ask("POST", &format!("{A}/hold"), "").await.is_problem(409, "duplicate-code");
    }
}
