//! What happens, as it happens: streams, where they go on after a cut, and answers that wait.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Client, Server, registry_with, soon, until};

const WATCH: &str = "/v1/services/s/watch";
const CHANGES: &str = "/v1/services/s/changes";

async fn weight(server: &Server, code: &str, weight: usize) {
    let body = json!({ "weight": weight, "ttl": "1h" }).to_string();
    let answer = server.ask("PUT", &format!("/v1/services/s/instances/{code}"), &body).await;
    assert!(matches!(answer.status, 200 | 201), "{answer:?}");
}

async fn again(server: &Server, path: &str, id: &str) -> Client {
    let mut client = server.client().await;
    client.open("GET", path, &[("last-event-id", id)], "").await;
    client
}

#[tokio::test]
async fn a_service_is_told_from_its_beginning_to_its_end() {
    let server = Server::start().await;
    let mut watcher = server.watch(WATCH).await;
    let snapshot = watcher.event_named("snapshot").await;
    let wanted = json!({"service":"s","revision":0,"guarded":false,"master":null,"instances":[],"problems":[]});
    assert_eq!((&snapshot.data, snapshot.id.as_deref()), (&wanted, Some("0")));
    assert_eq!(watcher.event_named("freshness").await.data, json!({"state":"fresh","age_ms":0}));
    server.put("s", "a").await;
    // What has changed together has one id, at its end.
    let put = watcher.event_named("put").await;
    assert_eq!((&put.data["instance"]["code"], &put.data["before"], &put.id), (&json!("a"), &Value::Null, &None));
    let master = watcher.event_named("master").await;
    assert_eq!(master.data["revision"], put.data["revision"]);
    assert_eq!(master.id, Some(master.data["revision"].to_string()));
    assert_eq!((&master.data["master"]["code"], &master.data["before"]), (&json!("a"), &Value::Null));
    weight(&server, "a", 4).await;
    let put = watcher.event_named("put").await.data;
    assert_eq!((&put["instance"]["weight"], &put["before"]["weight"]), (&json!(4), &json!(1)));
    assert_eq!(server.ask("DELETE", "/v1/services/s/instances/a", "").await.status, 204);
    let gone = watcher.event_named("delete").await.data;
    assert_eq!((&gone["instance"]["weight"], &gone["reason"]), (&json!(4), &json!("left")));
    assert_eq!(watcher.event_named("master").await.data["master"], Value::Null);
}

#[tokio::test]
async fn nine_of_ten_that_are_deregistered_are_gone_at_once() {
    let server = Server::start_over(registry_with("guard=on").await, |_| {}).await;
    for code in 0..10 {
        server.put("s", &format!("{code}")).await;
    }
    let mut watcher = server.watch(WATCH).await;
    watcher.until_event("freshness").await;
    for code in 1..10 {
        let answer = server.ask("DELETE", &format!("/v1/services/s/instances/{code}"), "").await;
        assert_eq!(answer.status, 204);
        let gone = watcher.event_named("delete").await.data;
        assert_eq!((&gone["instance"]["code"], &gone["reason"]), (&json!(format!("{code}")), &json!("left")));
    }
    assert_eq!(server.codes("s").await, ["0"]);
}

#[tokio::test]
async fn who_is_lost_is_told_to_be_guarded_once_and_keeps_its_age() {
    let server = Server::start_over(registry_with("guard=on").await, |_| {}).await;
    let mut held = Vec::new();
    for code in 0..6 {
        held.push(server.stream("POST", &format!("/v1/services/s/instances/{code}/hold"), r#"{"weight":2}"#).await);
    }
    server.until_codes("s", &["0", "1", "2", "3", "4", "5"]).await;
    let since = |list: &Value, code: &str| {
        let instance = list.as_array().unwrap().iter().find(|instance| instance["code"] == code).unwrap().clone();
        (instance["since_ms"].clone(), instance["status"].clone())
    };
    let all = "/v1/services/s/instances?all";
    let before = server.json(all).await;
    let mut watcher = server.watch(WATCH).await;
    watcher.until_event("freshness").await;
    drop(held.drain(2..));
    for code in 2..6 {
        let event = watcher.event_named("guarded").await.data["instance"].clone();
        assert_eq!((&event["code"], &event["status"]), (&json!(format!("{code}")), &json!("guarded")));
    }
    let guarded = server.json(all).await;
    assert_eq!(since(&guarded, "0"), (since(&before, "0").0, json!("passing")));
    for code in 2..6 {
        let code = format!("{code}");
        held.push(server.stream("POST", &format!("/v1/services/s/instances/{code}/hold"), r#"{"weight":2}"#).await);
        until("it is back", async || (since(&server.json(all).await, &code).1 == "passing").then_some(())).await;
    }
    let back = server.json(all).await;
    for code in ["2", "3", "4", "5"] {
        assert_eq!(since(&back, code), since(&before, code), "it has never been away");
    }
    watcher.until_event("put").await;
}

#[tokio::test]
async fn who_comes_back_gets_exactly_what_it_has_missed() {
    let server = Server::start().await;
    server.put("s", "a").await;
    server.until_codes("s", &["a"]).await;
    let mut watcher = server.watch(WATCH).await;
    let mut all = server.watch("/v1/watch").await;
    let id = watcher.event_named("snapshot").await.id.unwrap();
    let id_of_all = all.event_named("reset").await.id.unwrap();
    all.event_named("freshness").await;
    watcher.event_named("freshness").await;
    let mut missed = Vec::new();
    for number in 2..8 {
        weight(&server, "a", number).await;
        server.put("other", &format!("{number}")).await;
        missed.push(watcher.event_named("put").await);
    }
    for (at, event) in missed.iter().enumerate() {
        let mut back = again(&server, WATCH, event.id.as_deref().unwrap()).await;
        back.event_named("freshness").await;
        for later in &missed[at + 1..] {
            assert_eq!(back.event().await, *later);
        }
        assert!(back.is_silent(Duration::from_millis(20)).await);
    }
    let mut back = again(&server, WATCH, &id).await;
    back.event_named("freshness").await;
    assert_eq!(back.event().await, missed[0]);
    // The same over all services.
    let mut back = again(&server, "/v1/watch", &id_of_all).await;
    back.event_named("freshness").await;
    for _ in 0..12 {
        assert_eq!(back.event().await, all.event().await);
    }
}

#[tokio::test]
async fn an_unknown_place_is_said_to_be_unknown() {
    let server = Server::start().await;
    server.put("s", "a").await;
    server.until_codes("s", &["a"]).await;
    let known = server.watch("/v1/watch").await.event_named("reset").await.id.unwrap();
    let (run, number) = known.split_once('-').unwrap();
    let number: u64 = number.parse().unwrap();
    let foreign = format!("{:08x}-{number}", u32::from_str_radix(run, 16).unwrap() ^ 1);
    for id in ["x", "-1", "99999999999999999999999", "18446744073709551615", "5", ""] {
        let mut watcher = again(&server, WATCH, id).await;
        let reason = watcher.event_named("resync").await.data;
        assert!(reason["reason"].as_str().unwrap().contains("not known"), "{id}: {reason}");
        assert_eq!(watcher.event_named("snapshot").await.data["master"], "a");
    }
    for id in ["x", &foreign, &format!("{run}-{}", number + 1), &format!("{run}-"), ""] {
        let mut watcher = again(&server, "/v1/watch", id).await;
        watcher.event_named("resync").await;
        assert_eq!(watcher.event_named("reset").await.data["services"][0]["master"], "a", "{id}");
    }
    assert_eq!(server.metric("pointsman_agent_resyncs_total"), 11);
}

#[tokio::test]
async fn who_names_services_hears_of_no_others() {
    let server = Server::start().await;
    let mut watcher = server.watch("/v1/watch?service=b&service=a&service=b").await;
    let reset = watcher.event_named("reset").await.data;
    assert_eq!(reset["services"].as_array().unwrap().len(), 2, "whoever is named twice is there once");
    assert_eq!((&reset["services"][0]["service"], &reset["services"][1]["service"]), (&json!("a"), &json!("b")));
    watcher.event_named("freshness").await;
    for service in ["c", "b", "c", "a"] {
        server.put(service, service).await;
    }
    for service in ["b", "a"] {
        assert_eq!(watcher.event_named("put").await.data["service"], service);
        assert_eq!(watcher.event_named("master").await.data["service"], service);
    }
    let reset = server.watch("/v1/watch").await.event_named("reset").await.data;
    assert_eq!(reset["services"].as_array().unwrap().len(), 3);
    assert!(reset["registry"].as_str().unwrap().starts_with("memory://"));
    assert_eq!(reset["agent"]["version"], env!("CARGO_PKG_VERSION"));
}

#[tokio::test]
async fn one_answer_comes_when_there_is_something_to_say() {
    let server = Server::start().await;
    // Nothing has ever happened: there is nothing to say.
    let start = server.json(&format!("{CHANGES}?after=0&wait=0s")).await;
    assert_eq!(start, json!({"service":"s","revision":0,"events":[]}));
    let path = format!("{CHANGES}?after=0&wait=5m");
    let (first, _) = tokio::join!(server.json(&path), server.put("s", "a"));
    assert_eq!(first["events"][0]["event"], "snapshot");
    weight(&server, "a", 2).await;
    // From then on at once, and with everything, although it is known what has happened since.
    let first = until("the weight is seen", async || {
        let first = server.json(&path).await;
        (first["events"][0]["data"]["instances"][0]["weight"] == 2).then_some(first)
    })
    .await;
    let revision = first["revision"].as_u64().unwrap();
    let mut waiting = server.client().await;
    let waited = async { waiting.ask("GET", &format!("{CHANGES}?after={revision}&wait=5m"), "").await };
    let (answer, ()) = tokio::join!(waited, weight(&server, "a", 9));
    assert_eq!(answer.header("x-pointsman-revision"), Some(&*answer.json()["revision"].to_string()));
    let put = answer.json()["events"][0].clone();
    assert_eq!((&put["event"], &put["data"]["instance"]["weight"]), (&json!("put"), &json!(9)));
    // Nothing happens: the same revision, and nothing to say.
    let revision = answer.json()["revision"].clone();
    let asked = Instant::now();
    let nothing = server.json(&format!("{CHANGES}?after={revision}&wait=300ms")).await;
    assert!(asked.elapsed() >= Duration::from_millis(300));
    assert_eq!(nothing, json!({"service":"s","revision":revision,"events":[]}));
    // A place that is not known is answered at once, with everything.
    let whole = server.json(&format!("{CHANGES}?after=77777777&wait=5m")).await;
    assert_eq!((&whole["events"][0]["event"], &whole["revision"]), (&json!("snapshot"), &revision));
    let whole = server.json(&format!("{CHANGES}?wait=0s")).await;
    assert_eq!(whole["events"][0]["data"]["master"], "a");
    let (whole, same) = (server.json(CHANGES).await, server.json(&format!("{WATCH}?after=77777777")).await);
    for answer in [whole, same] {
        assert_eq!((&answer["events"][0]["event"], &answer["revision"]), (&json!("snapshot"), &revision));
    }
}

#[tokio::test]
async fn one_who_gives_up_waiting_costs_nothing() {
    let server = Server::start().await;
    let mut client = server.client().await;
    client.send(b"GET /v1/services/s/changes?after=0&wait=5m HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    server.until_metric("pointsman_agent_connections", 1).await;
    drop(client);
    server.until_metric("pointsman_agent_connections", 0).await;
    server.until_metric("pointsman_agent_watchers", 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_watchers_hear_of_one_change() {
    let server = Server::start().await;
    let mut watchers = Vec::new();
    for _ in 0..1000 {
        let mut watcher = server.watch(WATCH).await;
        watcher.event_named("snapshot").await;
        watcher.event_named("freshness").await;
        watchers.push(watcher);
    }
    assert_eq!(server.metric("pointsman_agent_watchers"), 1000);
    server.put("s", "a").await;
    let mut revisions = Vec::new();
    for watcher in &mut watchers {
        watcher.event_named("put").await;
        revisions.push(watcher.event_named("master").await.id);
    }
    revisions.dedup();
    assert_eq!(revisions.len(), 1);
    drop(watchers);
    server.until_metric("pointsman_agent_watchers", 0).await;
}

/// What this process has in memory, in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<usize>().unwrap() * 1024
}

/// A connection that takes in little: what is sent to it and not read stays with who sends.
async fn narrow(server: &Server) -> Client {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    Client::over(socket.connect(server.address).await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_all_are_shown_first_is_in_memory_once() {
    let server = Server::start().await;
    let body = json!({"ttl":"1h","tags":{"much":"x".repeat(120_000)}}).to_string();
    for code in 'a'..='y' {
        assert_eq!(server.ask("PUT", &format!("/v1/services/s/instances/{code}"), &body).await.status, 201);
    }
    until("all are there", async || {
        let services = server.json("/v1/services").await;
        (services[0]["instances"] == 25 && services[0]["master"] == "a").then_some(())
    })
    .await;
    let before = resident();
    let mut watchers = Vec::new();
    for number in 0..200 {
        let mut watcher = narrow(&server).await;
        watcher.open("GET", if number % 2 == 0 { WATCH } else { "/v1/watch" }, &[], "").await;
        watchers.push(watcher);
    }
    // A copy for each of them would be 600 MB.
    let grown = resident().saturating_sub(before);
    assert!(grown < 150 << 20, "{grown}");
    for watcher in watchers.iter_mut().take(4) {
        let event = watcher.event().await;
        let instances = if event.name == "snapshot" { &event.data } else { &event.data["services"][0] };
        assert_eq!(instances["instances"].as_array().unwrap().len(), 25);
        watcher.event_named("freshness").await;
    }
}

/// How long the agent waits for a client that takes nothing.
const UNTAKEN: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_who_do_not_read_hold_up_nobody_and_cost_no_memory() {
    let server = Server::start().await;
    let mut slow = Vec::new();
    for _ in 0..200 {
        let mut watcher = narrow(&server).await;
        watcher.open("GET", WATCH, &[], "").await;
        slow.push(watcher);
    }
    let mut fast = server.watch(WATCH).await;
    fast.event_named("snapshot").await;
    fast.event_named("freshness").await;
    let before = resident();
    let started = Instant::now();
    let mut client = server.client().await;
    let tag = "x".repeat(100_000);
    for weight in 1..=150 {
        let body = json!({"ttl":"1h","weight":weight,"tags":{"much":tag}}).to_string();
        assert!(client.ask("PUT", "/v1/services/s/instances/a", &body).await.status < 300);
        let put = fast.until_event("put").await;
        assert_eq!(put.data["instance"]["weight"], weight);
    }
    // What each of them has missed is 30 MB, all together 6 GB.
    let grown = resident().saturating_sub(before);
    assert!(grown < 400 << 20, "{grown}");
    // On a machine with other work it has taken longer than the agent waits for those who take nothing: it has closed their connections.
    let is_kept = started.elapsed() < UNTAKEN / 2;
    for watcher in slow.iter_mut().take(if is_kept { 5 } else { 0 }) {
        let resync = soon("a resync", watcher.until_event("resync")).await;
        assert!(resync.data["reason"].as_str().unwrap().contains("slow"), "{resync:?}");
        let snapshot = watcher.event_named("snapshot").await;
        assert_eq!(snapshot.data["instances"][0]["weight"], 150);
    }
    drop(slow);
    until("they are gone", async || (server.metric("pointsman_agent_watchers") == 1).then_some(())).await;
}
