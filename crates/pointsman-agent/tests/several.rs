//! Several agents of one registry are one to whoever reaches them by turns, as through a balancer.
#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use pointsman_core::{Instance, Role};
use pointsman_registry::{Registration, Registry};
use pointsman_testkit::{CuttingProxy, ZooKeeper, unique_prefix};
use serde_json::Value;
use support::{Server, until};

const A: &str = "/v1/services/s/instances/a";

/// Three agents over ZooKeeper, each with a way to it of its own.
struct Agents {
    zookeeper: &'static ZooKeeper,
    prefix: String,
    /// Registers beside them, and waits for its turn as master.
    rival: Registration,
    all: Vec<(Server, CuttingProxy)>,
    next: usize,
}

impl Agents {
    async fn start() -> Self {
        // For whoever looks into a failure: RUST_LOG=debug.
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        let (zookeeper, prefix) = (ZooKeeper::shared().await, unique_prefix());
        let mut all = Vec::new();
        for _ in 0..3 {
            all.push(agent(zookeeper, &prefix).await);
        }
        // Each knows of each.
        for (asking, _) in &all {
            for (other, _) in &all {
                let claimed = until("a claim", async || {
                    other.put("known", "x").await;
                    let answer = other.get("/v1/services/known/pick").await;
                    (answer.status == 200).then(|| answer.json()["claim"].as_str().unwrap().to_owned())
                });
                let path = format!("/v1/claims/{}", claimed.await);
                until("known", async || (asking.ask("DELETE", &path, "").await.status == 204).then_some(())).await;
            }
        }
        let first = all[0].0.ask("PUT", A, "{}").await;
        assert_eq!((first.status, &first.json()["role"]), (201, &"master".into()));
        for (agent, _) in &all {
            agent.until_codes("s", &["a"]).await;
        }
        let url = format!("zookeeper://{}{prefix}?session_timeout=4s&guard=off", zookeeper.address());
        let registry = Registry::connect(&url).await.unwrap();
        let rival = registry.register(Instance::new("s").code("rival")).await.unwrap();
        for (agent, _) in &all {
            agent.until_codes("s", &["a", "rival"]).await;
        }
        Self { zookeeper, prefix, rival, all, next: 0 }
    }

    /// The next one whose turn it is.
    fn turn(&mut self) -> &Server {
        self.next += 1;
        &self.all[self.next % self.all.len()].0
    }

    /// The role and the term, by the next one.
    async fn heartbeat(&mut self, query: &str, body: &str) -> Value {
        let answer = self.turn().ask("PUT", &format!("{A}{query}"), body).await;
        // New to the one that takes it over.
        assert!(matches!(answer.status, 200 | 201), "{answer:?}");
        let told = answer.json();
        assert!(told["expires_in_ms"].as_u64().unwrap() > 0, "{told}");
        Value::Array(vec![told["role"].clone(), told["term"].clone()])
    }
}

async fn agent(zookeeper: &ZooKeeper, prefix: &str) -> (Server, CuttingProxy) {
    let proxy = CuttingProxy::start(zookeeper.socket_address());
    let url = format!("zookeeper://{}{prefix}?session_timeout=4s&guard=off", proxy.address());
    (Server::start_over(Registry::connect(&url).await.unwrap(), |_| {}).await, proxy)
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_sends_heartbeats_by_turns_sees_one_role_and_one_term() {
    let mut agents = Agents::start().await;
    let role = agents.heartbeat("", "{}").await;
    assert_eq!(role[0], "master");
    for _ in 0..4 {
        for body in ["{}", ""] {
            for _ in 0..3 {
                assert_eq!(agents.heartbeat("", body).await, role, "{body}");
            }
        }
    }
    // What is changed by one is changed.
    assert_eq!(agents.heartbeat("", r#"{"weight":7,"tags":{"zone":"eu"}}"#).await, role);
    let shown = until("the weight", async || Some(agents.all[0].0.json(A).await).filter(|shown| shown["weight"] == 7));
    assert_eq!(shown.await["tags"]["zone"], "eu");
    // Whoever is another is told so, by all of them.
    for (agent, _) in &agents.all {
        agent.ask("PUT", &format!("{A}?holder=another"), "").await.is_problem(404, "not-registered");
        agent.ask("PUT", A, r#"{"holder":"another"}"#).await.is_problem(409, "duplicate-code");
        agent.ask("PUT", "/v1/services/s/instances/nobody", "").await.is_problem(404, "not-registered");
    }
    assert_eq!(agents.heartbeat("", "{}").await, role);
    assert_eq!(agents.rival.role(), Role::Normal);
    let registrations = agents.all.iter().map(|(agent, _)| agent.metric("pointsman_registrations")).sum::<u64>();
    // It, and what each has put to be known.
    assert!(registrations <= 4, "{registrations}");
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_are_killed_and_restarted_in_turn_and_nobody_else_becomes_master() {
    for holder in ["", "me"] {
        let mut agents = Agents::start().await;
        let (query, body) = match holder {
            "" => (String::new(), "{}".to_owned()),
            holder => {
                assert_eq!(agents.turn().ask("DELETE", A, "").await.status, 204);
                let body = format!(r#"{{"holder":"{holder}"}}"#);
                until("it is registered anew", async || {
                    (agents.turn().ask("PUT", A, &body).await.status == 201).then_some(())
                })
                .await;
                agents.rival.resign().await.unwrap();
                until("it is master", async || (agents.heartbeat("", &body).await[0] == "master").then_some(())).await;
                (format!("?holder={holder}"), body)
            }
        };
        let role = agents.heartbeat("", &body).await;
        for round in 0..6 {
            // Without a word: its sessions stand for a while.
            let (server, proxy) = agents.all.remove(round % 3);
            proxy.blackhole();
            drop(server);
            for _ in 0..4 {
                assert_eq!(agents.heartbeat("", &body).await, role, "round {round}");
                assert_eq!(agents.heartbeat(&query, "").await, role, "round {round}");
            }
            agents.all.insert(round % 3, agent(agents.zookeeper, &agents.prefix).await);
            for _ in 0..6 {
                assert_eq!(agents.heartbeat("", &body).await, role, "round {round}");
            }
        }
        assert_eq!(agents.rival.role(), Role::Normal);
        // In order.
        for round in 0..3 {
            let (server, _proxy) = agents.all.remove(round);
            server.agent.close().await;
            server.registry.abandon();
            for _ in 0..4 {
                assert_eq!(agents.heartbeat("", &body).await, role, "in order, round {round}");
            }
            agents.all.insert(round, agent(agents.zookeeper, &agents.prefix).await);
        }
        assert_eq!(agents.rival.role(), Role::Normal);
        assert_eq!(agents.turn().ask("DELETE", &format!("{A}{query}"), "").await.status, 204);
        agents.turn().until_codes("s", &["rival"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_by_one_is_ended_resigned_and_followed_by_any() {
    let agents = Agents::start().await;
    let mut roles = Vec::new();
    for (agent, _) in &agents.all {
        let mut stream = agent.watch(&format!("{A}/role")).await;
        assert_eq!(stream.event_named("role").await.data["role"], "master");
        roles.push(stream);
    }
    assert_eq!(agents.all[1].0.ask("POST", &format!("{A}/resign"), "").await.status, 204);
    for stream in &mut roles {
        let told = until("it is normal", async || {
            Some(stream.event_named("role").await.data).filter(|told| told["role"] == "normal")
        });
        told.await;
    }
    agents.all[2].0.ask("POST", &format!("{A}/resign"), "").await.is_problem(409, "not-master");
    agents.all[1].0.ask("POST", "/v1/services/s/instances/x/resign", "").await.is_problem(404, "not-registered");
    agents.rival.resign().await.unwrap();
    for stream in &mut roles {
        let told = until("it is master again", async || {
            Some(stream.event_named("role").await.data).filter(|told| told["role"] == "master")
        });
        told.await;
    }
    assert_eq!(agents.all[2].0.ask("DELETE", A, "").await.status, 204);
    for (number, stream) in roles.iter_mut().enumerate() {
        let reason = stream.until_event("end").await.data["reason"].clone();
        assert_eq!(reason, if number == 0 { "deregistered" } else { "closing" });
    }
    for (agent, _) in &agents.all {
        agent.until_codes("s", &["rival"]).await;
        agent.ask("DELETE", A, "").await.is_problem(404, "not-registered");
        agent.ask("GET", &format!("{A}/role"), "").await.is_problem(404, "not-registered");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_are_released_by_any_and_only_once() {
    let agents = Agents::start().await;
    let [one, two, three] = [0, 1, 2].map(|index| &agents.all[index].0);
    let pick = async || one.json("/v1/services/s/pick?role=all").await["claim"].as_str().unwrap().to_owned();
    let claim = pick().await;
    assert_eq!(one.metric("pointsman_claims"), 1);
    assert_eq!(two.ask("DELETE", &format!("/v1/claims/{claim}?outcome=failure"), "").await.status, 204);
    assert_eq!(one.metric("pointsman_claims"), 0);
    for agent in [one, two, three] {
        agent.ask("DELETE", &format!("/v1/claims/{claim}"), "").await.is_problem(404, "no-claim");
        for wrong in ["x", "00000000000000000000000000000000"] {
            agent.ask("DELETE", &format!("/v1/claims/{wrong}"), "").await.is_problem(404, "no-claim");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn audit_and_history_are_the_same_everywhere_and_outlive_each_agent() {
    let mut agents = Agents::start().await;
    for (number, action) in ["drain", "undrain", "drain"].into_iter().enumerate() {
        let answer = agents.all[number].0.ask("POST", &format!("/v1/services/s/instances/rival/{action}"), "").await;
        assert_eq!(answer.status, 204);
    }
    agents.all[0].0.ask("POST", "/v1/services/s/instances/rival/undrain", "").await;
    let first = agents.heartbeat("", "{}").await[1].clone();
    let before = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
    let resigned = until("an agent that is slow to answer answers when it is asked again", async || {
        let status = agents.all[1].0.ask("POST", &format!("{A}/resign"), "").await.status;
        (status != 503).then_some(status)
    });
    assert_eq!(resigned.await, 204);
    let second = until("the rival is master", async || agents.rival.role().term()).await.0;
    agents.all.remove(0);
    agents.all.push(agent(agents.zookeeper, &agents.prefix).await);
    for (agent, _) in &agents.all {
        let audit = agent.json("/v1/audit").await;
        let actions: Vec<&str> =
            audit.as_array().unwrap().iter().map(|line| line["action"].as_str().unwrap()).collect();
        assert_eq!(actions, ["undrain", "drain", "undrain", "drain"]);
        let history = until("it is written", async || {
            let history = agent.json("/v1/services/s/history").await;
            (history.as_array().unwrap().len() == 2).then_some(history)
        })
        .await;
        assert_eq!((&history[0]["code"], &history[0]["term"]), (&"rival".into(), &second.into()), "{history}");
        assert_eq!((&history[1]["code"], &history[1]["term"]), (&"a".into(), &first), "{history}");
        assert!(history[0]["until_ms"].is_null(), "{history}");
        for changed in [&history[0]["since_ms"], &history[1]["until_ms"]] {
            assert!(u128::from(changed.as_u64().unwrap()) >= before, "{changed} is before {before}: {history}");
        }
    }
}
