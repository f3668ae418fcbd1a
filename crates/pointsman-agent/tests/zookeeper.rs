//! The agent over ZooKeeper, while that is away.
#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::time::{Duration, Instant};

use pointsman_registry::Registry;
use pointsman_testkit::{CuttingProxy, ZooKeeper, read_as_foreign, unique_prefix};
use support::client::request;
use support::{Server, until};

/// An agent whose way to ZooKeeper can be cut.
struct Fixture {
    server: Server,
    zookeeper: &'static ZooKeeper,
    proxy: CuttingProxy,
    prefix: String,
}

impl Fixture {
    async fn start() -> Self {
        // For whoever looks into a failure: RUST_LOG=debug.
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        let (zookeeper, prefix) = (ZooKeeper::shared().await, unique_prefix());
        let proxy = CuttingProxy::start(zookeeper.socket_address());
        let url = format!("zookeeper://{}{prefix}?session_timeout=4s&connect_timeout=1s&guard=off", proxy.address());
        let server = Server::start_over(Registry::connect(&url).await.unwrap(), |_| {}).await;
        Self { server, zookeeper, proxy, prefix }
    }

    /// The codes that stand in ZooKeeper.
    async fn written(&self) -> Vec<String> {
        let client = self.zookeeper.client().await;
        let view = read_as_foreign(&client, &self.prefix).await.remove("s").unwrap_or_default();
        view.master_code().into_iter().chain(view.normal_codes()).map(str::to_owned).collect()
    }
}

#[tokio::test]
async fn while_the_registry_is_away_what_is_known_is_served_and_says_how_old_it_is() {
    let fixture = Fixture::start().await;
    let server = &fixture.server;
    let mut held = server.stream("POST", "/v1/services/s/instances/a/hold", "").await;
    let term = held.event_named("role").await.data["term"].clone();
    server.until_codes("s", &["a"]).await;
    let mut watcher = server.watch("/v1/services/s/watch").await;
    watcher.event_named("snapshot").await;
    assert_eq!(watcher.event_named("freshness").await.data["state"], "fresh");
    fixture.proxy.blackhole();
    assert_eq!(watcher.event_named("freshness").await.data["state"], "stale");
    let answer = server.get("/v1/services/s/instances").await;
    assert!(answer.header("x-pointsman-freshness").unwrap().starts_with("stale;age_ms="), "{answer:?}");
    assert_eq!(answer.json()[0]["code"], "a");
    assert_eq!(server.json("/v1/services/s/pick").await["instance"]["code"], "a");
    let ready = server.json("/readyz").await;
    assert_eq!((&ready["ready"], &ready["registry"]), (&true.into(), &"stale".into()));
    assert_eq!(server.metric("pointsman_registry_fresh"), 0);
    // Whoever is master is told in time that it may not be any more.
    let detached = held.event_named("role").await.data;
    assert_eq!(detached["role"], "detached", "{detached}");
    assert!(detached["reason"].is_string());
    // What must be written is refused, soon.
    for (method, path, body) in [
        ("PUT", "/v1/services/s/instances/b", "{}"),
        ("POST", "/v1/services/s/instances/b/hold", "{}"),
        ("POST", "/v1/services/s/instances/a/drain", ""),
    ] {
        let asked = Instant::now();
        server.ask(method, path, body).await.is_problem(503, "unavailable");
        assert!(asked.elapsed() < Duration::from_secs(8), "{path}: {:?}", asked.elapsed());
    }
    assert_eq!(server.metric("pointsman_registrations"), 1);
    fixture.proxy.mend();
    assert_eq!(watcher.until_event("freshness").await.data["state"], "fresh");
    let role = until("it is master again", async || {
        Some(held.event_named("role").await.data).filter(|role| role["role"] == "master")
    })
    .await;
    assert!(role["term"].as_u64() >= term.as_u64());
    assert_eq!(fixture.written().await, ["a"]);
}

#[tokio::test]
async fn who_gives_up_while_the_registry_is_away_leaves_nothing() {
    let fixture = Fixture::start().await;
    let server = &fixture.server;
    fixture.proxy.blackhole();
    for round in 0..3 {
        let mut clients = Vec::new();
        for number in 0..5 {
            let mut client = server.client().await;
            let path = format!("/v1/services/s/instances/{number}/hold");
            client.send(&request("POST", &path, &[], b"{}")).await;
            clients.push(client);
        }
        if round == 0 {
            server.until_metric("pointsman_registrations", 5).await;
        }
        drop(clients);
    }
    server.until_metric("pointsman_agent_connections", 0).await;
    server.until_metric("pointsman_registrations", 0).await;
    fixture.proxy.mend();
    assert_eq!(server.ask("PUT", "/v1/services/s/instances/last", "{}").await.status, 201);
    server.until_codes("s", &["last"]).await;
    assert_eq!(fixture.written().await, ["last"]);
}

#[tokio::test]
async fn a_lease_that_runs_out_while_the_registry_is_away_does_not_come_back_with_it() {
    let fixture = Fixture::start().await;
    let server = &fixture.server;
    assert_eq!(server.ask("PUT", "/v1/services/s/instances/a", r#"{"ttl":"1s"}"#).await.status, 201);
    let mut roles = server.watch("/v1/services/s/instances/a/role").await;
    assert_eq!(roles.event_named("role").await.data["role"], "master");
    fixture.proxy.blackhole();
    server.ask("PUT", "/v1/services/s/instances/a", "").await;
    let answer = until("it has run out", async || {
        Some(server.ask("PUT", "/v1/services/s/instances/nobody", "").await)
            .filter(|_| server.metric("pointsman_registrations") == 0)
    })
    .await;
    answer.is_problem(404, "not-registered");
    fixture.proxy.mend();
    until("it is gone from the registry", async || fixture.written().await.is_empty().then_some(())).await;
    assert_eq!(server.ask("PUT", "/v1/services/s/instances/a", "{}").await.status, 201);
    server.until_codes("s", &["a"]).await;
}

#[tokio::test]
async fn an_answer_never_holds_for_longer_than_the_session() {
    let fixture = Fixture::start().await;
    let mut client = fixture.server.client().await;
    let a = "/v1/services/s/instances/a";
    assert_eq!(client.ask("PUT", a, r#"{"ttl":"1h"}"#).await.status, 201);
    fixture.proxy.blackhole();
    let cut = Instant::now();
    let mut longest = Duration::ZERO;
    until("it is detached", async || {
        let asked = cut.elapsed();
        let answer = client.ask("PUT", a, "").await.json();
        if answer["role"] == "detached" {
            return Some(());
        }
        longest = longest.max(asked + Duration::from_millis(answer["expires_in_ms"].as_u64().unwrap()));
        None
    })
    .await;
    // From then on ZooKeeper may make somebody else master.
    assert!(longest <= Duration::from_secs(4), "{longest:?}");
    assert!(longest > Duration::ZERO);
}

#[tokio::test]
async fn what_the_url_keeps_secret_is_shown_to_nobody() {
    let (zookeeper, prefix) = (ZooKeeper::shared().await, unique_prefix());
    let url = format!("zookeeper://{}{prefix}?auth=digest:me:geheim-0123456789", zookeeper.address());
    let server = Server::start_over(Registry::connect(&url).await.unwrap(), |_| {}).await;
    let reset = server.watch("/v1/watch").await.event_named("reset").await.data;
    let shown = reset["registry"].as_str().unwrap();
    assert!(shown.contains(&zookeeper.address()) && !shown.contains("geheim"), "{shown}");
    let metrics = server.get("/metrics").await;
    assert!(!metrics.text().contains("geheim"));
    assert!(!format!("{:?}", server.agent).contains("geheim"));
}

/// The registry stops in the middle of everything (SIGSTOP), and goes on later.
#[tokio::test]
async fn what_was_not_answered_in_time_is_not_carried_out_later() {
    let zookeeper = ZooKeeper::start().await;
    let url = format!("zookeeper://{}{}?session_timeout=20s&guard=off", zookeeper.address(), unique_prefix());
    let server = Server::start_over(Registry::connect(&url).await.unwrap(), |settings| {
        settings.limits.write_time = Duration::from_millis(500);
    })
    .await;
    for code in ["a", "b"] {
        server.put("s", code).await;
    }
    server.until_codes("s", &["a", "b"]).await;
    zookeeper.pause();
    let (a, c) = ("/v1/services/s/instances/a", "/v1/services/s/instances/c");
    let asked = [
        ("POST", format!("{a}/drain"), ""),
        ("PUT", format!("{a}/weight"), r#"{"weight":7}"#),
        ("POST", format!("{a}/undrain"), ""),
        ("POST", "/v1/services/s/check-term".to_owned(), r#"{"term":9223372036854775807}"#),
        ("PUT", c.to_owned(), r#"{"ttl":"1h"}"#),
        ("POST", format!("{a}/resign"), ""),
    ];
    let answers =
        futures_util::future::join_all(asked.iter().map(|(method, path, body)| server.ask(method, path, body)));
    for (answer, asked) in answers.await.into_iter().zip(&asked) {
        let detail = answer.is_problem(503, "unavailable");
        assert!(detail.contains("500ms"), "{asked:?}: {detail}");
    }
    zookeeper.resume();
    // What is asked for now is carried out after all that was asked before.
    until("the registry is back", async || {
        (server.ask("POST", "/v1/services/s/instances/b/drain", "").await.status == 204).then_some(())
    })
    .await;
    let all = until("it is shown", async || {
        let all = server.json("/v1/services/s/instances?all").await;
        all.as_array().unwrap().iter().any(|one| one["code"] == "b" && one["status"] == "drained").then_some(all)
    })
    .await;
    let of = |code: &str| all.as_array().unwrap().iter().find(|one| one["code"] == code);
    let first = of("a").unwrap();
    assert_eq!((&first["status"], &first["weight"]), (&"passing".into(), &1.into()), "{all}");
    assert!(of("c").is_none(), "{all}");
    assert_eq!(server.ask("POST", "/v1/services/s/check-term", r#"{"term":9223372036854775806}"#).await.status, 200);
}
