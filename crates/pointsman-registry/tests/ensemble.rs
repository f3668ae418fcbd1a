//! Three ZooKeeper servers: killed one by one, and parted by the network.

#![cfg(all(feature = "agent-client", feature = "tls", feature = "zookeeper"))]
#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::sync::Arc;

use pointsman_core::{Instance, Role};
use pointsman_registry::{Registry, Roles};
use pointsman_testkit::{Ensemble, PartitionableEnsemble, ZooKeeper};
use support::{Fleet, soon, until_role, url};

#[tokio::test(flavor = "multi_thread")]
async fn servers_and_leaders_die_and_come_back() {
    let mut ensemble = Ensemble::start().await;
    let mut fleet = Fleet::start(&ensemble.connect_string(), &ensemble.servers()[0], 3).await;
    fleet.watch_through(&ensemble.connect_string()).await;
    fleet.settled("start").await;
    let master = fleet.master().registration.role();
    for round in 0..3 {
        let leader = ensemble.leader().await;
        let victim = if round == 1 { (leader + 1) % 3 } else { leader };
        ensemble.kill(victim);
        // Whoever was connected there moves on; who was not notices nothing.
        ensemble.leader().await;
        fleet.settled(&format!("server {victim} killed, leader was {leader}")).await;
        ensemble.restart(victim).await;
        fleet.settled(&format!("server {victim} back")).await;
    }
    assert!(fleet.master().registration.role().term() >= master.term());
    // Without a quorum there is no mastership; with it, there is one again, the same.
    let before = fleet.master().registration.role();
    let (one, two) = (ensemble.leader().await, (ensemble.leader().await + 1) % 3);
    ensemble.kill(one);
    ensemble.kill(two);
    for member in &mut fleet.members {
        until_role("no quorum", &mut member.registration, |role| role == Role::Detached).await;
    }
    assert_eq!(fleet.service.snapshot().instances().len(), 3, "no lookup fails meanwhile");
    ensemble.restart(one).await;
    ensemble.restart(two).await;
    fleet.settled("a quorum again").await;
    assert_eq!(fleet.master().registration.role(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_on_the_minoritys_side_stops_before_the_next_one_begins() {
    support::log();
    let Some(ensemble) = PartitionableEnsemble::start().await else { return };
    let prefix = pointsman_testkit::unique_prefix();
    let everywhere = Arc::new(url(&ensemble.connect_string(), &prefix, ""));
    // The master's process, in a namespace that goes with the minority.
    let (tell, told) = tokio::sync::oneshot::channel::<Roles>();
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let there = everywhere.clone();
    let master = ensemble.in_client_namespace(move || async move {
        let registry = Registry::connect(&there).await.unwrap();
        let registration = registry.register(Instance::new("s").code("a")).await.unwrap();
        tell.send(registration.roles()).unwrap();
        ended.await.unwrap();
        let role = registration.role();
        registration.close().await.unwrap();
        registry.close().await;
        role
    });
    let mut a = soon("a", told).await.unwrap();
    let old = a.changed().await.unwrap();
    assert!(old.is_master());
    let registry = Registry::connect(&everywhere).await.unwrap();
    let mut b = registry.register(Instance::new("s").code("b")).await.unwrap();
    let service = registry.discover("s").await.unwrap();
    for minority in 0..3 {
        let before = soon("master", service.wait_for(|s| s.master().is_some_and(|m| &*m.code == "a"))).await;
        ensemble.partition(&[minority]);
        let role = until_role("b takes over", &mut b, Role::is_master).await;
        // Asked at the moment at which the next one is master.
        assert_eq!(a.role(), Role::Detached, "minority {minority}");
        assert!(role.term() > before.unwrap().master().unwrap().role.term());
        ensemble.heal();
        soon("a is back", async { while a.changed().await != Some(Role::Normal) {} }).await;
        let snapshot = soon("both", service.wait_for(|s| s.instances().len() == 2)).await;
        assert_eq!(&*snapshot.unwrap().master().unwrap().code, "b");
        b.resign().await.unwrap();
        let again = soon("a is master again", async {
            loop {
                match a.changed().await.unwrap() {
                    role if role.is_master() => return role,
                    _ => {}
                }
            }
        })
        .await;
        assert!(again.term() > role.term());
    }
    end.send(()).unwrap();
    assert!(soon("the other process", master).await.unwrap().is_master());
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_spoken_where_it_is_asked_for() {
    let server = ZooKeeper::options().tls().start().await;
    let (files, address) = (server.tls(), server.secure_address());
    let paths = format!(
        "&tls=on&ca={}&cert={}&key={}",
        files.ca.display(),
        files.client_certificate.display(),
        files.client_key.display()
    );
    let registry = Registry::connect(&url(&address, "/p", &paths)).await.unwrap();
    let registration = registry.register(Instance::new("s")).await.unwrap();
    assert!(registration.role().is_master());
    registration.close().await.unwrap();
    // Without TLS the port gives no session, and the error says what was tried.
    let error = Registry::connect(&url(&address, "/p", "&connect_timeout=1s")).await.map(|_| ()).unwrap_err();
    assert!(error.to_string().contains(&address), "{error}");
    let missing = url(&address, "/p", "&tls=on&ca=/does/not/exist");
    let error = Registry::connect(&missing).await.map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("/does/not/exist"), "{error}");
}
