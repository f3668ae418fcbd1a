//! The steps that go through the agent, as a program in any language would.

use std::collections::BTreeMap;
use std::time::Instant;

use pointsman::{Service, Snapshot};
use serde_json::{Value, json};

use crate::dev::tour::stage::{SERVICE, Stage};
use crate::dev::tour::{DEADLINE, Mismatch};

/// The service that registers over HTTP.
const BILLING: &str = "billing";

/// By a lease.
pub(super) async fn register(stage: &mut Stage) -> Result<(), Mismatch> {
    let address = stage.api.address;
    stage.say(format!("An agent listens at http://{address}: the API for any language, and the dashboard."));
    let body = json!({"address": "127.0.0.1:50010", "ttl": "10s"});
    let put = format!("PUT /v1/services/{BILLING}/instances/bill-1");
    let role = stage.api.expect(201, &put, Some(&body)).await?;
    stage.say(format!("{put} {body}"));
    stage.say(format!("201 {role}"));
    expect("bill-1 to be master", role["role"] == "master", &role)?;
    let renewed = stage.api.expect(200, &put, None).await?;
    expect("the lease to be renewed", renewed["expires_in_ms"].as_u64() > Some(0), &renewed)?;
    // Answers when the agent has seen anything of the service.
    stage.api.expect(200, &format!("GET /v1/services/{BILLING}/changes?after=0&wait=10s"), None).await?;
    let list = stage.api.expect(200, &format!("GET /v1/services/{BILLING}/instances"), None).await?;
    expect("bill-1 in the list", list[0]["code"] == "bill-1" && list[0]["address"] == "127.0.0.1:50010", &list)?;
    let billing = billing(stage).await?;
    settled(&billing, "bill-1 in the registry", |snapshot| snapshot.find("bill-1").is_some()).await?;
    stage.say("It is registered for 10 s, and again with each PUT; whoever uses the crate sees it too.");
    Ok(())
}

/// By a connection.
pub(super) async fn hold(stage: &mut Stage) -> Result<(), Mismatch> {
    let post = format!("POST /v1/services/{BILLING}/instances/bill-2/hold");
    let mut held = stage.api.open(&post, None).await?;
    let role = held.next("role").await?;
    stage.say(format!("{post} is answered by a stream: event role, {role}"));
    let billing = billing(stage).await?;
    settled(&billing, "bill-1 and bill-2", |snapshot| snapshot.instances().len() == 2).await?;
    let cut = Instant::now();
    drop(held);
    settled(&billing, "bill-1 alone", |snapshot| snapshot.instances().len() == 1).await?;
    let milliseconds = cut.elapsed().as_secs_f64() * 1000.0;
    stage.say(format!("The connection is cut, as when a process dies: bill-2 is gone after {milliseconds:.1} ms."));
    Ok(())
}

/// Claims, by least-connections.
pub(super) async fn pick(stage: &mut Stage) -> Result<(), Mismatch> {
    let get = format!("GET /v1/services/{SERVICE}/pick?algorithm=least-connections");
    let (mut claims, mut counts) = (Vec::new(), BTreeMap::<String, u32>::new());
    for _ in 0..4 {
        let picked = stage.api.expect(200, &get, None).await?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        *counts.entry(text(&picked["instance"]["code"])).or_default() += 1;
        claims.push(text(&picked["claim"]));
    }
    let seen = counts.iter().map(|(code, count)| format!("{code} {count}")).collect::<Vec<_>>().join(", ");
    stage.say(format!("{get}, four times, nothing given back: {seen}"));
    expect(
        "a 1, c 3, as their weights 1 and 3 say",
        counts.get("a") == Some(&1) && counts.get("c") == Some(&3),
        &json!(seen),
    )?;
    for claim in &claims {
        stage.api.expect(204, &format!("DELETE /v1/claims/{claim}?outcome=success"), None).await?;
    }
    let Some(claim) = claims.first() else { return Ok(()) };
    let again = stage.api.expect(404, &format!("DELETE /v1/claims/{claim}"), None).await?;
    expect("no such claim the second time", again["type"] == "urn:pointsman:problem:no-claim", &again)?;
    stage.say("DELETE /v1/claims/… gives each back, with its outcome; who forgets to loses it after 30 s.");
    Ok(())
}

/// Server-sent events.
pub(super) async fn watch(stage: &mut Stage) -> Result<(), Mismatch> {
    let get = format!("GET /v1/services/{BILLING}/watch");
    let mut events = stage.api.open(&get, None).await?;
    let snapshot = events.next("snapshot").await?;
    expect("bill-1 in the first snapshot", snapshot["instances"][0]["code"] == "bill-1", &snapshot)?;
    stage.say(format!("{get} begins with everything, in revision {}.", snapshot["revision"]));
    let drain = format!("POST /v1/services/{BILLING}/instances/bill-1/drain");
    stage.api.expect(204, &drain, None).await?;
    let put = events.next("put").await?;
    stage.say(format!("{drain}: an event put, bill-1 is {} now.", put["instance"]["status"].as_str().unwrap_or("?")));
    expect(
        "bill-1 to be drained",
        put["instance"]["status"] == "drained" && put["before"]["status"] == "passing",
        &put,
    )?;
    stage.api.expect(204, &drain.replace("drain", "undrain"), None).await?;
    let put = events.next("put").await?;
    expect("bill-1 to take work", put["instance"]["status"] == "passing", &put)?;
    stage.api.expect(204, &format!("DELETE /v1/services/{BILLING}/instances/bill-1"), None).await?;
    let gone = events.next("delete").await?;
    expect("bill-1 to be gone", gone["instance"]["code"] == "bill-1", &gone)?;
    stage.say("DELETE deregisters it: an event delete. Who comes back with Last-Event-ID misses nothing.");
    Ok(())
}

/// The guard against a deposed master's writes.
pub(super) async fn fence(stage: &mut Stage) -> Result<(), Mismatch> {
    let (term, zombie) = (stage.master()?.role.term().map(|term| term.0), stage.zombie.map(|term| term.0));
    let post = format!("POST /v1/services/{SERVICE}/check-term");
    stage.api.expect(200, &post, Some(&json!({"term": term}))).await?;
    let refused = stage.api.expect(409, &post, Some(&json!({"term": zombie}))).await?;
    stage.say(format!("{post} {}: 409 {}.", json!({"term": zombie}), refused["detail"].as_str().unwrap_or("?")));
    expect("a stale term", refused["type"] == "urn:pointsman:problem:stale-term", &refused)
}

async fn billing(stage: &Stage) -> Result<Service, Mismatch> {
    let service = stage.registry.discover(BILLING).await;
    service.map_err(|error| Mismatch::new(format!("{BILLING} in the registry"), error.to_string()))
}

async fn settled(service: &Service, expected: &str, condition: impl FnMut(&Snapshot) -> bool) -> Result<(), Mismatch> {
    match tokio::time::timeout(DEADLINE, service.wait_for(condition)).await {
        Ok(_) => Ok(()),
        Err(_) => Err(Mismatch::new(expected, format!("{:?}", service.snapshot().instances()))),
    }
}

fn expect(expected: &str, holds: bool, seen: &Value) -> Result<(), Mismatch> {
    if holds { Ok(()) } else { Err(Mismatch::new(expected, seen.to_string())) }
}
