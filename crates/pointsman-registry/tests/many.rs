//! Many services that one process follows on ZooKeeper, each by a directory of its own.

#![cfg(all(feature = "agent-client", feature = "tls", feature = "zookeeper"))]
#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use futures_util::future::try_join_all;
use pointsman_core::{Change, Instance, Status};
use pointsman_registry::{Registry, Service};
use pointsman_testkit::{CuttingProxy, ZooKeeper, unique_prefix};
use support::{soon, url};

/// ZooKeeper's number for setting a persistent watch.
const ADD_WATCH: i32 = 106;

/// So many services that one watch above all of them is set.
const MANY: usize = 100;

fn names() -> impl Iterator<Item = String> {
    (0..MANY).map(|number| format!("s-{number}"))
}

/// A registry behind a proxy that follows many services, by one watch.
async fn follows_many(server: &ZooKeeper, prefix: &str) -> (CuttingProxy, Registry, Vec<Service>) {
    let way = CuttingProxy::start(server.socket_address());
    let registry = Registry::connect(&url(&way.address(), prefix, "")).await.unwrap();
    let _all = registry.discover_several(names()).await.unwrap();
    let services = try_join_all(names().map(async |name| registry.discover(&name).await)).await.unwrap();
    (way, registry, services)
}

#[tokio::test(flavor = "multi_thread")]
async fn many_services_need_three_watches_also_after_a_reconnection() {
    let (server, prefix) = (ZooKeeper::shared().await, unique_prefix());
    let (way, registry, services) = follows_many(server, &prefix).await;
    assert_eq!(way.requests(ADD_WATCH), 3);
    way.cut_once();
    soon("stale", services[0].directory().stale()).await;
    for service in &services {
        soon("fresh", service.directory().fresh()).await.unwrap();
    }
    let another = registry.discover("another").await.unwrap();
    let other = Registry::connect(&url(&server.address(), &prefix, "")).await.unwrap();
    let _joined = other.register(Instance::new("another").code("a")).await.unwrap();
    soon("what joins is seen", another.wait_for(|s| s.find("a").is_some())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_many_services_has_its_changes_and_no_others() {
    let (server, prefix) = (ZooKeeper::shared().await, unique_prefix());
    let (_way, registry, services) = follows_many(server, &prefix).await;
    let again = registry.discover_several(["s-7", "s-8"]).await.unwrap();
    let mut eight = services[8].changes();
    let other = Registry::connect(&url(&server.address(), &prefix, "")).await.unwrap();
    let joined = other.register(Instance::new("s-7").code("a")).await.unwrap();
    soon("it joins", services[7].wait_for(|s| s.master().is_some())).await.unwrap();
    soon("it joins", again.service("s-7").unwrap().wait_for(|s| s.master().is_some())).await.unwrap();
    registry.drain("s-7", "a").await.unwrap();
    soon("it is drained", services[7].wait_for(|s| s.find("a").is_some_and(|a| a.status == Status::Drained)))
        .await
        .unwrap();
    joined.close().await.unwrap();
    soon("it leaves", services[7].wait_for(pointsman_core::Snapshot::is_empty)).await.unwrap();
    assert!(services[7].directory().has_left("s-7", "a"), "it was not lost");
    let _last = other.register(Instance::new("s-8").code("b")).await.unwrap();
    // Changes of another service are none of this one.
    assert!(matches!(soon("a change", eight.next()).await, Some(Change::ServiceAppeared(name)) if *name == *"s-8"));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_moves_within_one_of_many_services_is_never_seen_to_be_gone() {
    let (server, prefix) = (ZooKeeper::shared().await, unique_prefix());
    let (_way, _registry, services) = follows_many(server, &prefix).await;
    let other = Registry::connect(&url(&server.address(), &prefix, "")).await.unwrap();
    let a = other.register(Instance::new("s-7").code("a")).await.unwrap();
    let b = other.register(Instance::new("s-7").code("b")).await.unwrap();
    soon("both", services[7].wait_for(|s| s.instances().len() == 2 && s.master().is_some())).await.unwrap();
    let mut changes = services[7].changes();
    for (master, next) in [(&a, "b"), (&b, "a")].repeat(5) {
        master.resign().await.unwrap();
        soon("it resigns", services[7].wait_for(|s| s.master().is_some_and(|master| &*master.code == next)))
            .await
            .unwrap();
    }
    a.close().await.unwrap();
    while let Some(change) = soon("a change", changes.next()).await {
        if let Change::Left(gone) = change {
            assert_eq!(&*gone.code, "a", "nobody but who has left");
            return;
        }
    }
}
