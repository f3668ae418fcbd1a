//! Side by side with go-micro-service: a foreign participant that writes exactly its znodes, in its order.

#![cfg(all(feature = "agent-client", feature = "tls", feature = "zookeeper"))]
#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::time::Duration;

use pointsman_core::{Instance, Role};
use pointsman_registry::Registry;
use pointsman_testkit::{Foreign, ForeignRole, ZooKeeper, read_as_foreign};
use support::{SOON, soon, until_role, url};

#[tokio::test(flavor = "multi_thread")]
async fn each_sees_the_other_in_both_roles() {
    let server = ZooKeeper::shared().await;
    let prefix = pointsman_testkit::unique_prefix();
    let registry = Registry::connect(&url(&server.address(), &prefix, "")).await.unwrap();
    let service = registry.discover("s").await.unwrap();
    let ours = Instance::new("s").code("ours").address("10.0.0.1:80").weight(3).tag("zone", "eu-1");
    let ours = registry.register(ours).await.unwrap();
    registry.drain("s", "nobody").await.unwrap();
    let foreign = Foreign::start(&server.address(), &prefix, "s", "theirs").await;
    foreign.becomes(ForeignRole::Normal, SOON).await;
    // What it sees of us, with nothing in between that it would take for an instance or a service.
    let seen = read_as_foreign(foreign.raw(), &prefix).await;
    assert_eq!(seen.keys().collect::<Vec<_>>(), ["s"]);
    let master = seen["s"].master.clone().unwrap();
    assert_eq!((&*master.ip, master.port, &*master.code, master.weight), ("10.0.0.1", 80, "ours", 3));
    assert_eq!(seen["s"].normal_codes(), ["theirs"]);
    assert!(seen["s"].skipped.is_empty());
    // What we see of it.
    let snapshot = soon("theirs", service.wait_for(|s| s.find("theirs").is_some())).await.unwrap();
    let theirs = snapshot.find("theirs").unwrap();
    assert_eq!((theirs.address.as_deref(), theirs.weight, theirs.role), (Some("127.0.0.1:50001"), 1, Role::Normal));
    // It takes the mastership over from us ...
    ours.close().await.unwrap();
    foreign.becomes(ForeignRole::Master, SOON).await;
    let is_theirs = |s: &pointsman_core::Snapshot| s.master().is_some_and(|m| &*m.code == "theirs");
    soon("theirs is master", service.wait_for(is_theirs)).await.unwrap();
    // ... and we from it.
    let ours = Instance::new("s").code("ours").address("10.0.0.1:80");
    let mut ours = registry.register(ours).await.unwrap();
    assert_eq!(ours.role(), Role::Normal);
    assert_eq!(read_as_foreign(&server.client().await, &prefix).await["s"].normal_codes(), ["ours"]);
    foreign.stop().await;
    let role = until_role("ours is master", &mut ours, Role::is_master).await;
    let snapshot = soon("seen", service.wait_for(|s| s.master().is_some_and(|m| m.role == role))).await.unwrap();
    assert_eq!(snapshot.instances().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_between_its_two_steps_is_listed_once() {
    let server = ZooKeeper::shared().await;
    let prefix = pointsman_testkit::unique_prefix();
    let registry = Registry::connect(&url(&server.address(), &prefix, "")).await.unwrap();
    let service = registry.discover("s").await.unwrap();
    let mut changes = service.changes();
    let counting = tokio::spawn(async move {
        let mut joined = 0;
        loop {
            match changes.next().await.unwrap() {
                pointsman_core::Change::Joined(i) if &*i.code == "theirs" => joined += 1,
                pointsman_core::Change::ServiceDisappeared(_) => return joined,
                _ => {}
            }
        }
    });
    let ours = registry.register(Instance::new("s").code("ours")).await.unwrap();
    // It stays registered twice for a while: defect 5.
    let slow = Foreign::options(&server.address(), &prefix, "s", "theirs").promotion_pause(Duration::from_millis(300));
    let foreign = slow.start().await;
    soon("both", service.wait_for(|s| s.instances().len() == 2)).await.unwrap();
    ours.close().await.unwrap();
    let is_master = |s: &pointsman_core::Snapshot| s.master().is_some_and(|m| &*m.code == "theirs");
    let snapshot = soon("theirs is master", service.wait_for(is_master)).await.unwrap();
    assert_eq!(snapshot.instances().len(), 1, "{snapshot:?}");
    foreign.becomes(ForeignRole::Master, SOON).await;
    assert_eq!(service.snapshot().instances().len(), 1);
    drop(foreign);
    soon("gone", service.wait_for(|s| s.instances().is_empty())).await.unwrap();
    assert_eq!(soon("all changes", counting).await.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_observer_stands_in_nobodys_way() {
    let server = ZooKeeper::shared().await;
    let prefix = pointsman_testkit::unique_prefix();
    let registry = Registry::connect(&url(&server.address(), &prefix, "")).await.unwrap();
    let mut observers = Vec::new();
    // More than there are stand-bys: whoever counted them as ahead in the queue would not even be told.
    for number in 0..8 {
        let instance = Instance::new("s").code(format!("observer-{number}")).address("10.0.0.1:80");
        observers.push(registry.registration(instance).observer().register().await.unwrap());
    }
    let foreign = Foreign::start(&server.address(), &prefix, "s", "theirs").await;
    foreign.becomes(ForeignRole::Master, SOON).await;
    let seen = read_as_foreign(foreign.raw(), &prefix).await;
    assert_eq!(seen["s"].normal_codes().len(), 8, "it takes them for normal instances, which get work");
    let mut ours = registry.register(Instance::new("s").code("ours").address("10.0.0.2:80")).await.unwrap();
    assert_eq!(ours.role(), Role::Normal);
    let begun = tokio::time::Instant::now();
    foreign.stop().await;
    until_role("ours is master", &mut ours, Role::is_master).await;
    assert!(begun.elapsed() < Duration::from_secs(2), "without any grace: {:?}", begun.elapsed());
    let foreign = Foreign::start(&server.address(), &prefix, "s", "theirs").await;
    foreign.becomes(ForeignRole::Normal, SOON).await;
    ours.close().await.unwrap();
    foreign.becomes(ForeignRole::Master, SOON).await;
    foreign.stop().await;
    let service = registry.discover("s").await.unwrap();
    soon("only observers", service.wait_for(|s| s.instances().len() == 8 && s.master().is_none())).await.unwrap();
    assert!(observers.iter().all(|observer| observer.role() == Role::Normal));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mixed_fleet_has_one_master_after_another() {
    let server = ZooKeeper::shared().await;
    let prefix = pointsman_testkit::unique_prefix();
    let registry = Registry::connect(&url(&server.address(), &prefix, "")).await.unwrap();
    let service = registry.discover("s").await.unwrap();
    let mut ours = Vec::new();
    let mut theirs = Vec::new();
    for number in 0..3 {
        ours.push(registry.register(Instance::new("s").code(format!("ours-{number}"))).await.unwrap());
        theirs.push(Foreign::start(&server.address(), &prefix, "s", &format!("theirs-{number}")).await);
    }
    let mut last = None;
    for left in (1..=6).rev() {
        let complete = |s: &pointsman_core::Snapshot| {
            s.instances().len() == left && s.master().is_some_and(|m| Some(m.role) != last)
        };
        let snapshot = soon(&format!("{left} left"), service.wait_for(complete)).await.unwrap();
        let master = snapshot.master().unwrap();
        assert!(master.role.term() > last.and_then(Role::term), "terms only rise");
        last = Some(master.role);
        if let Some(index) = ours.iter().position(|r| r.instance().code == master.code) {
            ours.swap_remove(index).close().await.unwrap();
        } else {
            let number: usize = master.code.trim_start_matches("theirs-").parse().unwrap();
            let port_of = |f: &Foreign| f.role() == ForeignRole::Master;
            let index = theirs.iter().position(port_of).unwrap_or(number.min(theirs.len() - 1));
            theirs.swap_remove(index).stop().await;
        }
    }
}
