//! Defects of go-micro-service that no other test here covers; `docs/defects.md` says which test covers which.

#![cfg(all(feature = "agent-client", feature = "tls", feature = "zookeeper"))]
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::time::{Duration, Instant};

use pointsman_core::{Instance, Role, Snapshot};
use pointsman_registry::{Error, Freshness, Registry};
use pointsman_testkit::{ZooKeeper, read_as_foreign, unique_prefix};
use support::{EPHEMERAL, Fleet, OPEN, SEQUENTIAL, soon, until_role, url};
use tokio::time::sleep;

/// The packets that the server has received so far.
async fn packets(server: &ZooKeeper) -> u64 {
    let answer = server.ask("mntr").await.unwrap();
    let line = answer.lines().find_map(|line| line.strip_prefix("zk_packets_received")).unwrap();
    line.trim().parse().unwrap()
}

/// What is sent within a second in which nothing happens.
async fn packets_in_a_second(server: &ZooKeeper) -> u64 {
    let before = packets(server).await;
    sleep(Duration::from_secs(1)).await;
    packets(server).await - before
}

/// Defects 1 and 2: a request storm, and a failover that is dead from then on.
#[tokio::test(flavor = "multi_thread")]
async fn a_changed_node_and_a_deleted_folder_cause_no_storm() {
    // A server that nobody else talks to.
    let server = ZooKeeper::start().await;
    let mut fleet = Fleet::start(&server.address(), &server, 6).await;
    fleet.settled("start").await;
    let quiet = packets_in_a_second(&server).await;
    for fault in ["master changed", "folder deleted"] {
        let before = packets(&server).await;
        if fault == "master changed" {
            fleet.raw.set_data(&fleet.path("master"), b"{}", None).await.unwrap();
            soon(fault, async { while fleet.nodes().await["master"].0 == "?" {} }).await;
        } else {
            for node in fleet.nodes().await.keys() {
                let _ = fleet.raw.delete(&fleet.path(node), None).await;
            }
            // It fails where somebody was quicker to come back.
            let _ = fleet.raw.delete(&format!("{}/s", fleet.prefix), None).await;
        }
        fleet.settled(fault).await;
        let mending = packets(&server).await - before;
        let after = packets_in_a_second(&server).await;
        println!("{fault}: {mending} packets until mended, then {after} a second; {quiet} before");
        // Six instances look at everything anew a few times each, and this test looks on.
        assert!(mending < 600, "{fault}: {mending} packets");
        assert!(after < quiet * 2 + 100, "{fault}: {after} packets a second, {quiet} before");
    }
    let index = fleet.members.iter().position(|member| member.registration.role().is_master()).unwrap();
    fleet.members.remove(index).registration.close().await.unwrap();
    fleet.settled("failover").await;
}

/// Defect 5: promoted in one transaction, so that no reader can see an instance twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_takeover_is_one_transaction() {
    let server = ZooKeeper::shared().await;
    let mut fleet = Fleet::start(&server.address(), server, 4).await;
    fleet.settled("start").await;
    let (raw, prefix) = (server.client().await, fleet.prefix.clone());
    let looking_on = tokio::spawn(async move {
        loop {
            let seen = read_as_foreign(&raw, &prefix).await;
            let Some(seen) = seen.get("s") else { continue };
            let mut codes = seen.normal_codes();
            codes.extend(seen.master_code());
            codes.sort_unstable();
            let count = codes.len();
            codes.dedup();
            assert_eq!(codes.len(), count, "{seen:?}");
        }
    });
    while fleet.members.len() > 1 {
        let master = fleet.members.remove(0);
        master.registration.close().await.unwrap();
        fleet.settled("takeover").await;
        // The deletion of the normal node and the creation of the master's carry the same number.
        let folder = fleet.raw.check_stat(&format!("{}/s", fleet.prefix)).await.unwrap().unwrap();
        let master = fleet.raw.check_stat(&fleet.path("master")).await.unwrap().unwrap();
        assert_eq!(folder.pzxid, master.czxid);
        assert!(!looking_on.is_finished());
    }
    looking_on.abort();
    assert!(looking_on.await.unwrap_err().is_cancelled(), "nobody was seen twice");
}

/// Defect 6: of the other services than the first go-micro-service learns after up to 30 s.
#[tokio::test(flavor = "multi_thread")]
async fn every_service_is_as_fresh_as_the_first() {
    let server = ZooKeeper::shared().await;
    let prefix = unique_prefix();
    let registry = Registry::connect(&url(&server.address(), &prefix, "")).await.unwrap();
    let reader = Registry::connect(&url(&server.address(), &prefix, "")).await.unwrap();
    let names: Vec<String> = (0..12).map(|n| format!("s{n:02}")).collect();
    let some = reader.discover_several(names.clone()).await.unwrap();
    let all = reader.discover_all().await.unwrap();
    for name in &names {
        let (one, other) = (some.service(name).unwrap(), all.service(name).unwrap());
        let registration = registry.register(Instance::new(&**name).code("x")).await.unwrap();
        let started = Instant::now();
        for service in [&one, &other] {
            soon(name, service.wait_for(|s| s.master().is_some())).await.unwrap();
        }
        registration.update(|instance| instance.weight = 7).await.unwrap();
        for service in [&one, &other] {
            soon(name, service.wait_for(|s| s.find("x").is_some_and(|i| i.weight == 7))).await.unwrap();
        }
        registration.close().await.unwrap();
        for service in [&one, &other] {
            soon(name, service.wait_for(Snapshot::is_empty)).await.unwrap();
        }
        assert!(started.elapsed() < Duration::from_secs(2), "{name}: {:?}", started.elapsed());
    }
}

/// Defect 7: of two equal entries the dead one stays listed.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_equal_entries_the_dead_one_goes() {
    let server = ZooKeeper::shared().await;
    let prefix = unique_prefix();
    let registry = Registry::connect(&url(&server.address(), &prefix, "")).await.unwrap();
    let service = registry.discover("s").await.unwrap();
    let data = br#"{"serverip":"127.0.0.1","serverport":50001,"username":"","userpwd":"","serveruniquecode":"same","weight":1}"#;
    for first_dies in [true, false] {
        let raw = server.client().await;
        raw.mkdir(&format!("{prefix}/s"), &OPEN).await.unwrap();
        let mut nodes = Vec::new();
        for _ in 0..2 {
            let path = format!("{prefix}/s/normal");
            let (_, sequence) = raw.create(&path, data, &SEQUENTIAL).await.unwrap();
            nodes.push(format!("{path}{sequence}"));
        }
        soon("listed", service.wait_for(|s| s.instances().len() == 1)).await.unwrap();
        let (dead, living) = if first_dies { (&nodes[0], &nodes[1]) } else { (&nodes[1], &nodes[0]) };
        raw.delete(dead, None).await.unwrap();
        // Told after it: so the deletion has been seen as well.
        raw.create(&format!("{prefix}/s/later"), &replaced(data, "later"), &EPHEMERAL).await.unwrap();
        let snapshot = soon("seen", service.wait_for(|s| s.find("later").is_some())).await;
        assert_eq!(snapshot.unwrap().instances().iter().filter(|i| &*i.code == "same").count(), 1);
        raw.delete(living, None).await.unwrap();
        soon("gone", service.wait_for(|s| s.find("same").is_none())).await.unwrap();
        raw.delete(&format!("{prefix}/s/later"), None).await.unwrap();
        soon("empty", service.wait_for(Snapshot::is_empty)).await.unwrap();
    }
}

fn replaced(data: &[u8], code: &str) -> Vec<u8> {
    String::from_utf8_lossy(data).replace("same", code).into_bytes()
}

/// Defects 8 and 13: a prefix that does not exist is empty, and followed; nothing hangs, and there is no empty record.
#[tokio::test(flavor = "multi_thread")]
async fn a_missing_prefix_is_empty_and_followed() {
    let server = ZooKeeper::shared().await;
    let prefix = format!("{}/deep/down", unique_prefix());
    let url = url(&server.address(), &prefix, "");
    let started = Instant::now();
    let registry = Registry::connect(&url).await.unwrap();
    let service = registry.discover("s").await.unwrap();
    let all = registry.discover_all().await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    assert!(service.snapshot().is_empty() && all.snapshots().is_empty());
    assert_eq!(service.freshness(), Freshness::Fresh);
    let error = service.master().unwrap_err();
    assert!(matches!(error, Error::NoMaster { .. }) && error.to_string().contains("service s"), "{error}");
    // Reading creates nothing.
    let raw = server.client().await;
    assert_eq!(raw.check_stat(prefix.trim_end_matches("/deep/down")).await.unwrap(), None);
    let other = Registry::connect(&url).await.unwrap();
    let registration = other.register(Instance::new("s").code("a")).await.unwrap();
    soon("followed", service.wait_for(|s| s.master().is_some())).await.unwrap();
    assert_eq!(all.snapshots().len(), 1);
    // And once more, with the prefix deleted under its readers.
    registration.close().await.unwrap();
    for path in [format!("{prefix}/s"), prefix.clone(), prefix.trim_end_matches("/down").to_owned()] {
        raw.delete(&path, None).await.unwrap();
    }
    soon("gone", service.wait_for(Snapshot::is_empty)).await.unwrap();
    let mut again = other.register(Instance::new("s").code("b")).await.unwrap();
    until_role("master", &mut again, Role::is_master).await;
    soon("followed again", service.wait_for(|s| s.find("b").is_some())).await.unwrap();
}

/// Defect 26: user name and password stand in a world-readable node.
#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_written_into_the_registry() {
    let server = ZooKeeper::shared().await;
    let prefix = unique_prefix();
    let secret = url(&server.address(), &prefix, "&auth=digest:opsuser:geheim");
    for acl in ["", "&acl=protected"] {
        let registry = Registry::connect(&format!("{secret}{acl}")).await.unwrap();
        let service = format!("s{}", acl.len());
        let registration = registry.register(Instance::new(&*service).code("a").address("h:1")).await.unwrap();
        registry.drain(&service, "a").await.unwrap();
        let raw = server.client().await;
        let (data, _) = raw.get_data(&format!("{prefix}/{service}/master")).await.unwrap();
        let text = String::from_utf8(data).unwrap();
        assert!(text.contains(r#""username":"","userpwd":"""#), "{text}");
        let mut waiting = vec!["/pointsman".to_owned(), prefix.clone()];
        while let Some(path) = waiting.pop() {
            let (data, _) = raw.get_data(&path).await.unwrap();
            let text = format!("{path} {}", String::from_utf8_lossy(&data));
            assert!(!text.contains("geheim") && !text.contains("opsuser"), "{text}");
            let children = raw.list_children(&path).await.unwrap();
            waiting.extend(children.iter().map(|name| format!("{path}/{name}")));
        }
        registration.close().await.unwrap();
    }
}
