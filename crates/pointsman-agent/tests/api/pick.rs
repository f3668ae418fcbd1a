//! Whom to call: claims that are given back, expire, or are too many.

use std::collections::BTreeMap;

use serde_json::json;

use crate::support::{Server, until};

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
    let by_key = async |client: &mut crate::support::Client, key: usize| {
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
