//! The one ordered choice, `docs/choosing.md`, as the agent's callers see it: every combination that an agent can meet.

use std::collections::{BTreeMap, BTreeSet};

use pointsman_testkit::choosing::{Asked, ChoosingTable, Known, WITHOUT_CHECKS, combinations};

use crate::pick::Doomed;
use crate::support::{Client, Server, registry_with, until};

/// A master that is drained hands the mastership on, and one that is lost is replaced, while another lives: these are in `pick.rs`.
const MASTERS: [Known; 2] = [Known::Passing, Known::Ejected];
const CODES: [&str; 3] = ["m", "a", "b"];
/// Instances that are lost together with others, so that these are guarded; their weight is 0.
const OTHERS: [&str; 5] = ["w1", "w2", "w3", "w4", "w5"];

#[tokio::test]
async fn every_combination_is_decided_by_the_table() {
    let table = ChoosingTable::read();
    // Of two normal instances no more than one may be ejected.
    let mut all = combinations(&MASTERS, &WITHOUT_CHECKS);
    all.retain(|[_, a, b]| (*a, *b) != (Known::Ejected, Known::Ejected));
    for some in all.chunks(24) {
        let server = Server::start_over(registry_with("guard=on").await, |_| {}).await;
        let named: Vec<(String, [Known; 3])> =
            some.iter().enumerate().map(|(i, one)| (format!("s{i}"), *one)).collect();
        let claims = bring_about(&server, &named).await;
        for (service, states) in &named {
            let mut client = server.client().await;
            let of_states: Vec<_> = CODES.into_iter().zip(*states).collect();
            settle(&mut client, service, &of_states, &claims[service]).await;
            for (asked, role) in [(Asked::Normal, "normal"), (Asked::Master, "master"), (Asked::All, "all")] {
                let ejected = states.iter().filter(|known| **known == Known::Ejected).count();
                if asked == Asked::All && ejected > 1 {
                    // Fewer than half are left: ejection is disregarded.
                    continue;
                }
                let (expected, tier) = table.expected(asked, &of_states);
                let mut seen = BTreeSet::new();
                for _ in 0..6 {
                    let picked = pick(&mut client, service, role).await;
                    assert_eq!(picked.tier, tier, "{role} of {states:?}: {}", picked.text);
                    seen.extend(picked.code);
                }
                let seen: BTreeSet<&str> = seen.iter().map(String::as_str).collect();
                assert_eq!(seen, expected, "{role} of {states:?}");
            }
        }
    }
}

/// By service and code: claims that are out.
type Claims = BTreeMap<String, Vec<(String, String)>>;

/// Registers all, claims those whose calls are to fail while they can be picked, and lets those die that are to be guarded.
async fn bring_about(server: &Server, services: &[(String, [Known; 3])]) -> Claims {
    let is_lost = |known: Known| matches!(known, Known::Guarded | Known::GuardedFailed);
    let mut doomed = Doomed::default();
    for (service, states) in services {
        for (code, known) in CODES.into_iter().zip(*states) {
            match known {
                Known::Absent => {}
                _ if is_lost(known) => doomed.register(&server.registry, service, code, 1),
                _ => drop(server.put(service, code).await),
            }
        }
        OTHERS.iter().for_each(|code| doomed.register(&server.registry, service, code, 0));
    }
    let mut claims = Claims::new();
    let mut client = server.client().await;
    for (service, states) in services {
        let registered = OTHERS.len() + states.iter().filter(|known| **known != Known::Absent).count();
        let path = format!("/v1/services/{service}/instances?all");
        until("all are registered", async || {
            (server.json(&path).await.as_array().unwrap().len() == registered).then_some(())
        })
        .await;
        let of_service = claims.entry(service.clone()).or_default();
        for role in ["master", "normal"] {
            // In turn: five of each.
            for _ in 0..10 {
                let picked = pick(&mut client, service, role).await;
                of_service.extend(picked.code.zip(picked.claim));
            }
        }
    }
    doomed.die().await;
    for (service, states) in services {
        let lost = OTHERS.len() + states.iter().filter(|known| is_lost(**known)).count();
        until("they are guarded", async || {
            let all = server.json(&format!("/v1/services/{service}/instances?all")).await;
            let guarded = all.as_array().unwrap().iter().filter(|one| one["guarded_since_ms"].is_u64());
            (guarded.count() == lost).then_some(())
        })
        .await;
    }
    claims
}

/// Lets calls fail, and sets what an operator would.
async fn settle(client: &mut Client, service: &str, states: &[(&str, Known)], claims: &[(String, String)]) {
    for (code, known) in states {
        let failures = match known {
            Known::Ejected => 5,
            Known::GuardedFailed => 1,
            _ => 0,
        };
        for (_, claim) in claims.iter().filter(|(of, _)| of == code).take(failures) {
            let path = format!("/v1/claims/{claim}?outcome=failure");
            assert_eq!(client.ask("DELETE", &path, "").await.status, 204);
        }
        let path = format!("/v1/services/{service}/instances/{code}");
        let (method, verb, body) = match known {
            Known::Drained => ("POST", "drain", ""),
            Known::Weightless => ("PUT", "weight", r#"{"weight":0}"#),
            _ => continue,
        };
        assert_eq!(client.ask(method, &format!("{path}/{verb}"), body).await.status, 204);
        let path = format!("/v1/services/{service}/instances?all");
        until("it is shown so", async || {
            let all = client.ask("GET", &path, "").await.json();
            let one = all.as_array().unwrap().iter().find(|one| one["code"] == **code).unwrap();
            (one["status"] == "drained" || one["weight"] == 0).then_some(())
        })
        .await;
    }
}

struct Picked {
    code: Option<String>,
    claim: Option<String>,
    tier: Option<u8>,
    text: String,
}

async fn pick(client: &mut Client, service: &str, role: &str) -> Picked {
    let answer = client.ask("GET", &format!("/v1/services/{service}/pick?role={role}&explain"), "").await;
    let json = answer.json();
    let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
    Picked {
        code: text(&json["instance"]["code"]),
        claim: text(&json["claim"]),
        tier: json["explanation"]["tier"].as_u64().and_then(|tier| u8::try_from(tier).ok()),
        text: answer.text().to_owned(),
    }
}
