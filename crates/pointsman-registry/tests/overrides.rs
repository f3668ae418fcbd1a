//! What operators have set is not forgotten because a registry was emptied.

#![cfg(all(feature = "agent-client", feature = "tls", feature = "zookeeper"))]
#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::path::Path;
use std::sync::Arc;

use pointsman_agent::{Agent, Settings};
use pointsman_core::{Instance, Snapshot, Status};
use pointsman_registry::{Registry, Service};
use pointsman_testkit::{ZooKeeper, unique_prefix};
use support::soon;

fn is_drained(snapshot: &Snapshot, code: &str) -> bool {
    snapshot.find(code).is_some_and(|instance| instance.status == Status::Drained)
}

async fn until_drained(service: &Service, code: &str, wanted: bool) -> Arc<Snapshot> {
    let there = |s: &Snapshot| s.find(code).is_some_and(|i| !i.is_guarded()) && is_drained(s, code) == wanted;
    soon("drained, or not any more", service.wait_for(there)).await.unwrap()
}

#[test]
fn a_registry_in_memory_takes_them_up_from_its_snapshots() {
    // Outlives the runtime, in which files are still written after the last word of the test.
    let folder = tempfile::tempdir().unwrap();
    tokio::runtime::Runtime::new().unwrap().block_on(takes_them_up(folder.path()));
}

async fn takes_them_up(folder: &Path) {
    let url = format!("memory://overrides-on-disk?guard=off&snapshots={}", folder.display());
    for round in 0..3 {
        let registry = Registry::connect(&url).await.unwrap();
        let a = registry.register(Instance::new("s").code("a")).await.unwrap();
        let service = registry.discover("s").await.unwrap();
        if round == 0 {
            registry.drain("s", "a").await.unwrap();
            registry.set_weight("s", "elsewhere", Some(9)).await.unwrap();
        }
        until_drained(&service, "a", round < 2).await;
        let elsewhere = registry.register(Instance::new("s").code("elsewhere")).await.unwrap();
        let shown = soon("elsewhere", service.wait_for(|s| s.find("elsewhere").is_some())).await;
        assert_eq!(shown.unwrap().find("elsewhere").unwrap().weight, 9, "round {round}");
        if round == 1 {
            registry.undrain("s", "a").await.unwrap();
            until_drained(&service, "a", false).await;
        }
        a.close().await.unwrap();
        elsewhere.close().await.unwrap();
        soon("all are gone", service.wait_for(|s| s.instances().is_empty())).await.unwrap();
        drop(service);
        registry.close().await;
        // The directory's last word is written when nobody follows it any more.
        let file = folder.join("memory-overrides-on-disk").join("s.json");
        let saved = async {
            loop {
                let text = std::fs::read_to_string(&file).unwrap_or_default();
                let is_saved = text.contains("\"instances\":[]") && text.contains("\"drained\":true") == (round == 0);
                if is_saved {
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        soon("saved", saved).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zookeeper_that_has_lost_its_data_is_given_them_back() {
    support::log();
    let mut server = ZooKeeper::start().await;
    let prefix = unique_prefix();
    let url = format!("zookeeper://{}{prefix}?session_timeout=10s", server.address());
    let registry = Registry::connect(&url).await.unwrap();
    let service = registry.discover("s").await.unwrap();
    let _a = registry.register(Instance::new("s").code("a")).await.unwrap();
    let _b = registry.register(Instance::new("s").code("b").weight(2)).await.unwrap();
    // First of all: nobody sees whether the directory knows of it yet, but it does when it knows of the others.
    registry.drain("s", "absent").await.unwrap();
    registry.drain("s", "a").await.unwrap();
    registry.set_weight("s", "b", Some(7)).await.unwrap();
    let ready = |s: &Snapshot| is_drained(s, "a") && s.find("b").is_some_and(|b| b.weight == 7);
    soon("set", service.wait_for(ready)).await.unwrap();
    let mut changes = service.changes();
    let watching = tokio::spawn(async move {
        loop {
            match changes.next().await.unwrap() {
                pointsman_core::Change::Updated { new, .. } => {
                    panic!("{} is {:?}, {}", new.code, new.status, new.weight)
                }
                pointsman_core::Change::Left(instance) => panic!("{} has left", instance.code),
                pointsman_core::Change::Joined(instance) if &*instance.code == "absent" => return instance,
                _ => {}
            }
        }
    });
    server.wipe();
    server.restart().await;
    let raw = server.client().await;
    let path = format!("/pointsman{prefix}/overrides/s");
    let restored = async {
        while raw.list_children(&path).await.map_or(0, |codes| codes.len()) < 3 {
            tokio::task::yield_now().await;
        }
    };
    soon("restored", restored).await;
    let _absent = registry.register(Instance::new("s").code("absent")).await.unwrap();
    assert_eq!(soon("watched", watching).await.unwrap().status, Status::Drained);
    // Now it is the new registry's.
    registry.undrain("s", "a").await.unwrap();
    until_drained(&service, "a", false).await;
    // That is written down, so that nobody who remembers the drain sets it again.
    let (said, _) = raw.get_data(&format!("{path}/a")).await.unwrap();
    assert_eq!(said, br#"{"drained":false}"#);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_begins_anew_is_told_who_was_drained() {
    let below = Registry::connect("memory://overrides-first?guard=off").await.unwrap();
    let agent = Agent::start(&below, Settings::new(([127, 0, 0, 1], 0).into())).await.unwrap();
    let address = agent.address();
    let registry = Registry::connect(&format!("http://{address}")).await.unwrap();
    let service = registry.discover("s").await.unwrap();
    let _a = registry.register(Instance::new("s").code("a")).await.unwrap();
    let _b = registry.register(Instance::new("s").code("b")).await.unwrap();
    registry.drain("s", "a").await.unwrap();
    until_drained(&service, "a", true).await;
    let mut changes = service.changes();
    let watching = tokio::spawn(async move {
        loop {
            match changes.next().await.unwrap() {
                pointsman_core::Change::Updated { new, .. } => return new,
                pointsman_core::Change::Left(instance) => panic!("{} has left", instance.code),
                _ => {}
            }
        }
    });
    agent.close().await;
    drop(below);
    let below = Registry::connect("memory://overrides-second?guard=off").await.unwrap();
    // Its port may be taken for a moment yet, by a connection of the one before.
    let starting = async {
        loop {
            match Agent::start(&below, Settings::new(address)).await {
                Ok(agent) => return agent,
                Err(pointsman_agent::Error::Listen { .. }) => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        }
    };
    let _agent = soon("it listens again", starting).await;
    let own = below.discover("s").await.unwrap();
    until_drained(&own, "a", true).await;
    until_drained(&service, "a", true).await;
    soon("both are back", service.wait_for(|s| s.instances().len() == 2 && !s.is_guarded())).await.unwrap();
    assert!(!watching.is_finished(), "it was drained all the time");
    registry.undrain("s", "a").await.unwrap();
    assert_eq!(soon("undrained", watching).await.unwrap().status, Status::Passing);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_registers_is_written_down_as_seen() {
    let server = ZooKeeper::shared().await;
    let prefix = unique_prefix();
    let registry = Registry::connect(&format!("zookeeper://{}{prefix}", server.address())).await.unwrap();
    registry.drain("s", "a").await.unwrap();
    let (raw, path) = (server.client().await, format!("/pointsman{prefix}/overrides/s/a"));
    let (before, watcher) = raw.check_and_watch_stat(&path).await.unwrap();
    let _a = registry.register(Instance::new("s").code("a")).await.unwrap();
    soon("it is written anew", watcher.changed()).await;
    let (data, after) = raw.get_data(&path).await.unwrap();
    assert_eq!((&*data, after.version), (&br#"{"drained":true}"#[..], before.unwrap().version + 1));
    // Once: what is newer than the own node says enough.
    let service = registry.discover("s").await.unwrap();
    registry.set_weight("s", "a", Some(3)).await.unwrap();
    soon("set", service.wait_for(|s| s.find("a").is_some_and(|a| a.weight == 3))).await.unwrap();
    let (_, after) = raw.get_data(&path).await.unwrap();
    assert_eq!(after.version, 2);
}

#[tokio::test]
async fn those_of_codes_that_have_been_gone_for_days_are_not_taken_up_from_disk() {
    let folder = tempfile::tempdir().unwrap();
    let snapshots = folder.path().join("memory-overrides-expired");
    std::fs::create_dir(&snapshots).unwrap();
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let (kept, now) = (pointsman_registry::OVERRIDES_KEPT.as_millis(), since.as_millis());
    let file = serde_json::json!({
        "service": "s", "revision": 1, "saved_at_unix_ms": u64::try_from(now).unwrap(), "instances": [],
        "overrides": { "earlier": { "drained": true }, "long-gone": { "drained": true }, "gone": { "drained": true } },
        "absent_since_unix_ms": { "long-gone": u64::try_from(now - kept).unwrap(), "gone": u64::try_from(now).unwrap() },
    });
    std::fs::write(snapshots.join("s.json"), file.to_string()).unwrap();
    let url = format!("memory://overrides-expired?snapshots={}", folder.path().display());
    let registry = Registry::connect(&url).await.unwrap();
    let codes = registry.overrides(None).await.unwrap().into_iter().map(|set| set.code.to_string());
    // An earlier version has not written down since when.
    assert_eq!(Vec::from_iter(codes), ["earlier", "gone"]);
}
