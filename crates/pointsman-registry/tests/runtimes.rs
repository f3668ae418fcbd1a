//! A registry outlives the runtime in which it was connected: several `#[tokio::test]`s share a static one.

#![cfg(all(feature = "agent-client", feature = "tls", feature = "zookeeper"))]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use pointsman_core::Instance;
use pointsman_registry::{Freshness, Registry, Service};
use pointsman_testkit::ZooKeeper;
use tokio::runtime::Runtime;

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future).await.unwrap_or_else(|_| panic!("{what} within 30 s"))
}

/// Registers, and finds itself.
async fn live(registry: &Registry, code: &str) -> Service {
    let instance = Instance::with_code("s", code).address("127.0.0.1:1");
    let registration = soon("registered", registry.register(instance)).await.unwrap();
    let service = soon("discovered", registry.discover("s")).await.unwrap();
    soon("found", service.wait_for(|snapshot| snapshot.find(code).is_some())).await.unwrap();
    assert_eq!(service.freshness(), Freshness::Fresh);
    soon("closed", registration.close()).await.unwrap();
    service
}

fn in_two_runtimes(url: &str) {
    let first = Runtime::new().unwrap();
    let (registry, service, mut changes) = first.block_on(async {
        let registry = Registry::connect(url).await.unwrap();
        let service = live(&registry, "a").await;
        let changes = service.changes();
        (registry, service, changes)
    });
    drop(first);
    Runtime::new().unwrap().block_on(async {
        // Whoever follows there is told that it has ended; nobody takes it for the truth.
        soon("the changes end", async { while changes.next().await.is_some() {} }).await;
        assert!(matches!(service.freshness(), Freshness::Stale { .. }));
        live(&registry, "b").await;
        soon("an override", registry.drain("s", "b")).await.unwrap();
        soon("closed", registry.close()).await;
    });
}

#[test]
fn a_registry_in_memory_goes_on_in_another_runtime() {
    in_two_runtimes("memory://runtimes");
}

#[test]
fn a_registry_on_zookeeper_goes_on_in_another_runtime() {
    let runtime = Runtime::new().unwrap();
    let server = runtime.block_on(ZooKeeper::start());
    in_two_runtimes(&format!("zookeeper://{}/runtimes?session_timeout=4s", server.address()));
}
