//! What is left in ZooKeeper of services that have vanished.

#![cfg(all(feature = "agent-client", feature = "tls", feature = "zookeeper"))]
#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use pointsman_core::Instance;
use pointsman_registry::Registry;
use pointsman_testkit::{ZooKeeper, unique_prefix};
use support::{soon, url};
use zookeeper_client::{Client, EventType};

/// A server that looks for empty containers all the time. (No client is told whether a node is one.)
async fn server() -> ZooKeeper {
    ZooKeeper::options().property("znode.container.checkIntervalMs", "100").start().await
}

async fn exists(raw: &Client, path: &str) -> bool {
    raw.check_stat(path).await.unwrap().is_some()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_folder_of_a_service_goes_with_its_last_instance_where_that_is_asked_for() {
    let server = server().await;
    let (prefix, raw) = (unique_prefix(), server.client().await);
    let registry = Registry::connect(&url(&server.address(), &prefix, "&folders=container")).await.unwrap();
    let folder = format!("{prefix}/s");
    // Again and again: whoever registers makes it anew.
    for round in 0..3 {
        let a = registry.register(Instance::new("s").code("a")).await.unwrap();
        let b = registry.register(Instance::new("s").code("b")).await.unwrap();
        let (_, gone) = raw.check_and_watch_stat(&folder).await.unwrap();
        let service = registry.discover("s").await.unwrap();
        a.close().await.unwrap();
        soon("b is left", service.wait_for(|s| s.instances().len() == 1)).await.unwrap();
        b.close().await.unwrap();
        assert_eq!(soon("the folder goes", gone.changed()).await.event_type, EventType::NodeDeleted, "round {round}");
        soon("nobody is left", service.wait_for(pointsman_core::Snapshot::is_empty)).await.unwrap();
    }
    assert!(exists(&raw, &prefix).await, "the prefix stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_folder_of_a_service_stays_unless_told_otherwise_and_what_is_ours_goes() {
    let server = server().await;
    let (prefix, raw) = (unique_prefix(), server.client().await);
    let registry = Registry::connect(&url(&server.address(), &prefix, "")).await.unwrap();
    let a = registry.register(Instance::new("s").code("a")).await.unwrap();
    registry.drain("s", "a").await.unwrap();
    a.close().await.unwrap();
    for folder in ["overrides", "left"].map(|folder| format!("/pointsman{prefix}/{folder}/s")) {
        let (_, gone) = raw.check_and_watch_stat(&folder).await.unwrap();
        for name in raw.list_children(&folder).await.unwrap() {
            raw.delete(&format!("{folder}/{name}"), None).await.unwrap();
        }
        assert_eq!(soon("it goes", gone.changed()).await.event_type, EventType::NodeDeleted, "{folder}");
    }
    assert!(exists(&raw, &format!("{prefix}/s")).await, "it was empty all the time");
    assert!(exists(&raw, &format!("/pointsman{prefix}/terms/s")).await, "the highest term is kept");
    // What is there already stays what it is.
    let other = Registry::connect(&url(&server.address(), &prefix, "&folders=container")).await.unwrap();
    other.register(Instance::new("s").code("a")).await.unwrap().close().await.unwrap();
    let left = format!("/pointsman{prefix}/left/s");
    let (_, gone) = raw.check_and_watch_stat(&left).await.unwrap();
    for name in raw.list_children(&left).await.unwrap() {
        raw.delete(&format!("{left}/{name}"), None).await.unwrap();
    }
    soon("that of the markers goes", gone.changed()).await;
    assert!(exists(&raw, &format!("{prefix}/s")).await);
}
