//! Whom to call: claims that are given back, expire, or are too many.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use crate::support::{Client, Server, registry_with, until};

const PICK: &str = "/v1/services/s/pick";

async fn three() -> Server {
    let server = Server::start().await;
    for code in ["m", "a", "b"] {
        server.put("s", code).await;
    }
    server.until_codes("s", &["a", "b", "m"]).await;
    server
}

#[tokio::test]
async fn every_algorithm_picks_among_the_normal_instances() {
    let server = three().await;
    let mut client = server.client().await;
    for algorithm in [
        "round-robin",
        "weighted-round-robin",
        "random",
        "weighted-random",
        "ip-hash",
        "url-hash",
        "least-connections",
        "peak-ewma",
        "roundrobin",
        "leastconnect",
    ] {
        for key in ["", "&key=10.0.0.1", "&key=%2Fa%20b%2B%E7%94%A8", "&key="] {
            let answer = client.ask("GET", &format!("{PICK}?algorithm={algorithm}{key}"), "").await;
            assert_eq!(answer.status, 200, "{algorithm}{key}: {}", answer.text());
            let picked = answer.json();
            assert!(["a", "b"].contains(&picked["instance"]["code"].as_str().unwrap()), "{picked}");
            assert_eq!(picked["expires_in_ms"], 30_000);
            let claim = picked["claim"].as_str().unwrap();
            assert_eq!(claim.len(), 32);
            let outcome = if key.is_empty() { "" } else { "?outcome=failure" };
            assert_eq!(client.ask("DELETE", &format!("/v1/claims/{claim}{outcome}"), "").await.status, 204);
            client.ask("DELETE", &format!("/v1/claims/{claim}"), "").await.is_problem(404, "no-claim");
        }
    }
    assert_eq!(server.metric("pointsman_claims"), 0);
}

#[tokio::test]
async fn turns_are_taken_and_keys_are_kept_together() {
    let server = three().await;
    let mut client = server.client().await;
    let mut counts = BTreeMap::new();
    for _ in 0..100 {
        let picked = client.ask("GET", PICK, "").await.json();
        *counts.entry(picked["instance"]["code"].as_str().unwrap().to_owned()).or_insert(0) += 1;
    }
    assert_eq!(counts, BTreeMap::from([("a".to_owned(), 50), ("b".to_owned(), 50)]));
    let by_key = async |client: &mut Client, key: usize| {
        let path = format!("{PICK}?algorithm=url-hash&key=%2Fvideo%2F{key}");
        client.ask("GET", &path, "").await.json()["instance"]["code"].clone()
    };
    for key in 0..20 {
        let first = by_key(&mut client, key).await;
        assert_eq!(by_key(&mut client, key).await, first);
    }
}

#[tokio::test]
async fn claims_that_are_out_count_until_they_are_released() {
    let server = three().await;
    let mut load = server.watch("/v1/watch?service=s&load=100ms").await;
    load.event_named("reset").await;
    let mut client = server.client().await;
    let path = format!("{PICK}?algorithm=least-connections");
    let mut claims = BTreeMap::new();
    for _ in 0..4 {
        let picked = client.ask("GET", &path, "").await.json();
        let code = picked["instance"]["code"].as_str().unwrap().to_owned();
        claims.entry(code).or_insert_with(Vec::new).push(picked["claim"].as_str().unwrap().to_owned());
    }
    assert_eq!((claims["a"].len(), claims["b"].len()), (2, 2));
    let told = json!({"in_flight":{"s":{"a":2,"b":2}}});
    until("the load is told", async || (load.until_event("load").await.data == told).then_some(())).await;
    for claim in &claims["a"] {
        assert_eq!(client.ask("DELETE", &format!("/v1/claims/{claim}?outcome=success"), "").await.status, 204);
    }
    for _ in 0..2 {
        assert_eq!(client.ask("GET", &path, "").await.json()["instance"]["code"], "a");
    }
    // Of other algorithms too: it is the instance that is busy.
    assert_eq!(server.metric("pointsman_claims"), 4);
}

#[tokio::test]
async fn a_claim_that_nobody_gives_back_expires() {
    let server = three().await;
    let mut load = server.watch("/v1/watch?load=100ms").await;
    let long = server.json(&format!("{PICK}?ttl=1h")).await;
    assert_eq!(long["expires_in_ms"], 3_600_000);
    let short = server.json(&format!("{PICK}?ttl=200ms")).await;
    until("it is told", async || {
        let in_flight = load.until_event("load").await.data["in_flight"]["s"].clone();
        in_flight.as_object().is_some_and(|busy| busy.len() == 2).then_some(())
    })
    .await;
    until("it has expired", async || {
        let in_flight = load.until_event("load").await.data["in_flight"]["s"].clone();
        in_flight.as_object().is_some_and(|busy| busy.len() == 1).then_some(())
    })
    .await;
    let path = format!("/v1/claims/{}", short["claim"].as_str().unwrap());
    server.ask("DELETE", &path, "").await.is_problem(404, "no-claim");
    assert_eq!((server.metric("pointsman_claims"), server.metric("pointsman_claims_expired_total")), (1, 1));
}

#[tokio::test]
async fn more_claims_than_the_limit_are_refused_until_some_are_back() {
    let server = Server::start_with(|settings| settings.limits.claims = 10).await;
    server.put("s", "a").await;
    server.until_codes("s", &["a"]).await;
    let first = server.json(&format!("{PICK}?ttl=1h")).await["claim"].as_str().unwrap().to_owned();
    for _ in 1..10 {
        server.json(&format!("{PICK}?ttl=1h")).await;
    }
    let detail = server.get(PICK).await.is_problem(503, "too-many");
    assert!(detail.contains("10 claims"), "{detail}");
    // What was refused does not count as in flight.
    let load = server.watch("/v1/watch?load=100ms").await.until_event("load").await;
    assert_eq!(load.data["in_flight"]["s"]["a"], 10);
    assert_eq!(server.ask("DELETE", &format!("/v1/claims/{first}"), "").await.status, 204);
    server.json(&format!("{PICK}?ttl=100ms")).await;
    until("one has expired", async || (server.get(PICK).await.status == 200).then_some(())).await;
}

#[tokio::test]
async fn where_nobody_can_take_work_nobody_is_picked() {
    let server = Server::start().await;
    let detail = server.get("/v1/services/nobody/pick").await.is_problem(503, "no-instance");
    assert!(detail.contains("nobody"), "{detail}");
    server.put("s", "a").await;
    server.until_codes("s", &["a"]).await;
    // Without a normal instance it is the master.
    assert_eq!(server.json(PICK).await["instance"]["role"], "master");
    assert_eq!(server.ask("POST", "/v1/services/s/instances/a/drain", "").await.status, 204);
    until("nobody is left", async || Some(server.get(PICK).await).filter(|answer| answer.status == 503))
        .await
        .is_problem(503, "no-instance");
    assert_eq!(server.ask("POST", "/v1/services/s/instances/a/undrain", "").await.status, 204);
    until("it takes work again", async || (server.get(PICK).await.status == 200).then_some(())).await;
}

/// A pick with its explanation.
async fn explained(client: &mut Client, role: &str) -> Picked {
    let answer = client.ask("GET", &format!("{PICK}?role={role}&explain"), "").await;
    assert_eq!(answer.status, 200, "{role}: {}", answer.text());
    let json = answer.json();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    Picked {
        code: text(&json["instance"]["code"]),
        claim: text(&json["claim"]),
        tier: json["explanation"]["tier"].as_u64().unwrap(),
        explanation: json["explanation"].clone(),
    }
}

struct Picked {
    code: String,
    claim: String,
    tier: u64,
    explanation: serde_json::Value,
}

/// Says of so many picks that the call has failed; returns whom they were of.
async fn fail(client: &mut Client, role: &str, times: usize) -> BTreeSet<String> {
    let mut failed = BTreeSet::new();
    for _ in 0..times {
        let picked = explained(client, role).await;
        assert_eq!(client.ask("DELETE", &format!("/v1/claims/{}?outcome=failure", picked.claim), "").await.status, 204);
        failed.insert(picked.code);
    }
    failed
}

async fn drain(server: &Server, verb: &str, code: &str) {
    assert_eq!(server.ask("POST", &format!("/v1/services/s/instances/{code}/{verb}"), "").await.status, 204);
    let drained = if verb == "drain" { "drained" } else { "passing" };
    until(verb, async || {
        let all = server.json("/v1/services/s/instances?all").await;
        all.as_array().unwrap().iter().any(|one| one["code"] == code && one["status"] == drained).then_some(())
    })
    .await;
}

/// A process that registers instances and dies without a word.
pub(crate) struct Doomed {
    runtime: tokio::runtime::Runtime,
    registrations: Vec<pointsman_registry::Registration>,
}

impl Default for Doomed {
    fn default() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        Self { runtime, registrations: Vec::new() }
    }
}

impl Doomed {
    /// Registers instances of `s`, with their weights, in this order.
    fn with(registry: &pointsman_registry::Registry, instances: &[(&str, u32)]) -> Self {
        let mut doomed = Self::default();
        instances.iter().for_each(|(code, weight)| doomed.register(registry, "s", code, *weight));
        doomed
    }

    /// Registers one more.
    pub(crate) fn register(&mut self, registry: &pointsman_registry::Registry, service: &str, code: &str, weight: u32) {
        let instance = pointsman_core::Instance::new(service).code(code).weight(weight);
        let registry = registry.clone();
        let registering = self.runtime.spawn(async move { registry.register(instance).await });
        let registered = std::thread::scope(|scope| {
            scope.spawn(|| self.runtime.block_on(registering)).join().expect("the registering thread")
        });
        self.registrations.push(registered.unwrap().unwrap());
    }

    /// The tasks end first: nothing is deregistered.
    pub(crate) async fn die(self) {
        self.runtime.shutdown_background();
        tokio::task::yield_now().await;
        drop(self.registrations);
    }
}

/// Waits until so many are shown as guarded.
async fn until_lost(server: &Server, count: usize) {
    until("they are guarded", async || {
        let all = server.json("/v1/services/s/instances?all").await;
        let since = all.as_array().unwrap().iter().filter(|one| one["guarded_since_ms"].is_u64());
        (since.count() == count).then_some(())
    })
    .await;
}

/// Ten are registered, with the guard against a mass loss on, and are deleted at once: they have left, and are not lost.
#[tokio::test]
async fn instances_that_are_deleted_are_neither_listed_nor_picked() {
    let server = Server::start_over(registry_with("guard=on").await, |_| {}).await;
    let codes: Vec<String> = (0..10).map(|number| format!("i{number}")).collect();
    for code in &codes {
        server.put("s", code).await;
    }
    server.until_codes("s", &codes.iter().map(String::as_str).collect::<Vec<_>>()).await;
    for code in &codes[1..] {
        assert_eq!(server.ask("DELETE", &format!("/v1/services/s/instances/{code}"), "").await.status, 204);
    }
    let mut watch = server.watch("/v1/services/s/watch").await;
    server.until_codes("s", &["i0"]).await;
    let mut client = server.client().await;
    for _ in 0..30 {
        assert_eq!(client.ask("GET", PICK, "").await.json()["instance"]["code"], "i0");
    }
    assert_eq!(server.json("/v1/services/s/master").await["code"], "i0");
    assert_eq!(server.ask("DELETE", "/v1/services/s/instances/i0", "").await.status, 204);
    until("it is gone", async || (server.get("/v1/services/s/master").await.status == 404).then_some(())).await;
    client.ask("GET", PICK, "").await.is_problem(503, "no-instance");
    // No instance was said to be guarded meanwhile.
    loop {
        let event = watch.event().await;
        assert_ne!(event.name, "guarded");
        if event.name == "delete" && event.data["instance"]["code"] == "i0" {
            assert_eq!(event.data["reason"], "left");
            break;
        }
    }
}

#[tokio::test]
async fn every_role_picks_among_its_own() {
    let server = three().await;
    let mut client = server.client().await;
    let mut seen = BTreeSet::new();
    for _ in 0..3 {
        seen.insert(explained(&mut client, "all").await.code);
        assert_eq!(explained(&mut client, "master").await.code, "m");
    }
    assert_eq!(seen, BTreeSet::from(["a", "b", "m"].map(str::to_owned)));
    // The claims of all roles count together.
    let explanation = explained(&mut client, "master").await.explanation;
    assert_eq!((&explanation["role"], &explanation["algorithm"]), (&json!("master"), &json!("round-robin")));
    let of_m = explanation["instances"].as_array().unwrap().iter().find(|one| one["code"] == "m").unwrap();
    let expected =
        json!({"code":"m","role":"master","standing":"passing","tier":1,"excluded":false,"in_flight":4,"weight":1.0});
    assert_eq!(of_m, &expected);
    for role in ["Master", "", "normals"] {
        let detail = client.ask("GET", &format!("{PICK}?role={role}"), "").await.is_problem(400, "bad-request");
        assert!(detail.ends_with("it may be normal, master, all"), "{detail}");
    }
    client.ask("GET", &format!("{PICK}?explain=yes"), "").await.is_problem(400, "bad-request");
}

/// The rows of `docs/choosing.md`, but for 3 and 4 (unknown) and 9 and 10 (failing): an agent does not check whom it picks from.
#[tokio::test]
async fn the_rows_of_the_table() {
    let server = Server::start_over(registry_with("guard=on").await, |_| {}).await;
    for code in ["m", "a", "b"] {
        server.put("s", code).await;
    }
    let lost = ["g1", "g2", "g3", "g4", "g5"];
    let doomed = Doomed::with(&server.registry, &lost.map(|code| (code, 1)));
    server.until_codes("s", &["a", "b", "g1", "g2", "g3", "g4", "g5", "m"]).await;
    doomed.die().await;
    until_lost(&server, 5).await;
    let mut client = server.client().await;
    let row = async |client: &mut Client, role: &str, tier: u64, codes: &[&str]| {
        let mut seen = BTreeSet::new();
        for _ in codes {
            let picked = explained(client, role).await;
            assert_eq!(picked.tier, tier, "{}: {}", picked.code, picked.explanation);
            seen.insert(picked.code);
        }
        assert_eq!(seen, codes.iter().map(|code| (*code).to_owned()).collect());
    };
    row(&mut client, "normal", 1, &["a", "b"]).await;
    row(&mut client, "all", 1, &["a", "b", "m"]).await;
    row(&mut client, "master", 1, &["m"]).await;
    // `a` is ejected by the failures that its callers tell.
    drain(&server, "drain", "b").await;
    assert_eq!(fail(&mut client, "normal", 5).await.len(), 1);
    row(&mut client, "normal", 2, &["m"]).await;
    // A drained master hands the mastership on.
    drain(&server, "drain", "m").await;
    until("a is master", async || (server.json("/v1/services/s/master").await["code"] == "a").then_some(())).await;
    row(&mut client, "normal", 6, &["a"]).await;
    row(&mut client, "master", 5, &["a"]).await;
    drain(&server, "undrain", "m").await;
    row(&mut client, "normal", 1, &["m"]).await;
    assert_eq!(fail(&mut client, "normal", 5).await.len(), 1);
    row(&mut client, "normal", 5, &["m"]).await;
    drain(&server, "drain", "m").await;
    row(&mut client, "normal", 6, &["a"]).await;
    drain(&server, "drain", "a").await;
    client.ask("GET", &format!("{PICK}?role=master"), "").await.is_problem(503, "no-instance");
    row(&mut client, "normal", 7, &lost).await;
    // One failure is enough for a guarded one.
    assert_eq!(fail(&mut client, "normal", 5).await.len(), 5);
    row(&mut client, "normal", 11, &lost).await;
    // What has come back is used first, and comes from the weight too.
    drain(&server, "undrain", "b").await;
    until("b is master", async || (server.json("/v1/services/s/master").await["code"] == "b").then_some(())).await;
    row(&mut client, "normal", 2, &["b"]).await;
    let path = "/v1/services/s/instances/b/weight";
    assert_eq!(server.ask("PUT", path, r#"{"weight":0}"#).await.status, 204);
    until("b has no weight", async || (explained(&mut client, "normal").await.tier == 11).then_some(())).await;
}

/// The rows in which the master is guarded: nobody is left who could take its place.
#[tokio::test]
async fn a_guarded_master_is_used_until_a_call_to_it_fails() {
    let server = Server::start_over(registry_with("guard=on").await, |_| {}).await;
    let last = Doomed::with(&server.registry, &[("m", 1)]);
    let first = Doomed::with(&server.registry, &["w1", "w2", "w3", "w4", "w5"].map(|code| (code, 0)));
    server.until_codes("s", &["m", "w1", "w2", "w3", "w4", "w5"]).await;
    // The master dies last: otherwise another would be elected.
    first.die().await;
    until_lost(&server, 5).await;
    last.die().await;
    let master = until("the master is guarded", async || {
        let answer = server.get("/v1/services/s/master").await;
        (answer.status == 200 && answer.json()["status"] == "guarded").then(|| answer.json())
    })
    .await;
    assert_eq!((&master["code"], &master["role"]), (&json!("m"), &json!("master")));
    let mut client = server.client().await;
    for (role, tier) in [("normal", 8), ("master", 7), ("all", 7)] {
        let picked = explained(&mut client, role).await;
        assert_eq!((&*picked.code, picked.tier), ("m", tier), "{role}");
    }
    fail(&mut client, "master", 1).await;
    let detail = client.ask("GET", &format!("{PICK}?role=master"), "").await.is_problem(503, "no-instance");
    assert!(detail.contains("there is none now"), "{detail}");
    assert_eq!(explained(&mut client, "normal").await.tier, 12);
}
