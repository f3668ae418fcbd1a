//! Bad weather on a real ZooKeeper: what goes wrong in production, from outside, one at a time.

#![cfg(all(feature = "agent-client", feature = "tls", feature = "zookeeper"))]
#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::time::Duration;

use futures_util::FutureExt as _;
use pointsman_core::{Change, Instance, Role, TermGuard};
use pointsman_registry::{Error, Freshness, Registry};
use pointsman_testkit::{CuttingProxy, ZooKeeper, unique_prefix};
use support::{EPHEMERAL, Fleet, OPEN, SEQUENTIAL, soon, until_role, url};
use zookeeper_client::{Acls, Client, CreateMode};

#[tokio::test(flavor = "multi_thread")]
async fn a_session_ends_and_its_instance_comes_back() {
    let server = ZooKeeper::shared().await;
    let mut fleet = Fleet::start(&server.address(), server, 3).await;
    fleet.settled("start").await;
    for code in ["a", "b", "c", "a"] {
        let (_, session) = fleet.node_of(code).await;
        server.expire(session).await;
        let index = fleet.members.iter().position(|m| &*m.registration.instance().code == code).unwrap();
        let mut roles = fleet.members[index].registration.roles();
        // It learns of it, whether it was asked in between or not.
        soon("detached", async { while roles.changed().await != Some(Role::Detached) {} }).await;
        fleet.settled(&format!("session of {code} ended")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_deleted_by_hand_are_restored() {
    let server = ZooKeeper::shared().await;
    let mut fleet = Fleet::start(&server.address(), server, 3).await;
    fleet.settled("start").await;
    let (normal, _) = fleet.node_of("c").await;
    fleet.raw.delete(&fleet.path(&normal), None).await.unwrap();
    let moved = |s: &pointsman_core::Snapshot| s.instances().len() == 3 && s.find("c").is_some();
    soon("c is back", fleet.service.wait_for(|s| !moved(s))).await.unwrap();
    fleet.settled("normal deleted").await;
    let before = fleet.master().registration.role();
    fleet.raw.delete(&fleet.path("master"), None).await.unwrap();
    soon("another master", fleet.service.wait_for(|s| s.master().is_some_and(|m| m.role != before))).await.unwrap();
    fleet.settled("master deleted").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_folder_is_made_again() {
    let server = ZooKeeper::shared().await;
    let mut fleet = Fleet::start(&server.address(), server, 3).await;
    fleet.settled("start").await;
    let before = fleet.master().registration.role();
    // They come back faster than the folder can be emptied: so often, until it is gone, or everybody has moved.
    for _ in 0..5 {
        for node in fleet.nodes().await.keys() {
            let _ = fleet.raw.delete(&fleet.path(node), None).await;
        }
        if fleet.raw.delete(&format!("{}/s", fleet.prefix), None).await.is_ok() {
            break;
        }
    }
    soon("another master", fleet.service.wait_for(|s| s.master().is_some_and(|m| m.role != before))).await.unwrap();
    fleet.settled("folder deleted").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_data_is_restored_and_failover_lives() {
    let server = ZooKeeper::shared().await;
    let mut fleet = Fleet::start(&server.address(), server, 3).await;
    fleet.settled("start").await;
    // Defect 1 of go-micro-service: after this every normal spins, and failover is dead.
    fleet.raw.set_data(&fleet.path("master"), b"nonsense", None).await.unwrap();
    let (normal, _) = fleet.node_of("b").await;
    fleet.raw.set_data(&fleet.path(&normal), b"{}", None).await.unwrap();
    let mut whole = None;
    soon("the directory has seen both", async {
        while whole.is_none() {
            let restored = fleet.service.wait_for(|s| s.instances().len() == 3 && s.problems().is_empty()).await;
            whole = fleet.nodes().await.values().all(|(code, _)| code.len() == 1).then_some(restored);
        }
    })
    .await;
    fleet.settled("data changed").await;
    let master = fleet.members.remove(0);
    master.registration.close().await.unwrap();
    fleet.settled("failover").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_comes_back_and_nothing_is_listed_twice() {
    let mut server = ZooKeeper::start().await;
    let mut fleet = Fleet::start(&server.address(), &server, 3).await;
    fleet.settled("start").await;
    let master = fleet.master().registration.role();
    server.kill();
    for index in 0..3 {
        until_role("detached", &mut fleet.members[index].registration, |role| role == Role::Detached).await;
    }
    // No lookup fails meanwhile.
    assert_eq!(fleet.service.master().unwrap().role, master);
    soon("stale", fleet.service.directory().stale()).await;
    assert_ne!(fleet.service.freshness(), Freshness::Fresh);
    assert_eq!(fleet.service.snapshot().instances().len(), 3);
    server.restart().await;
    soon("fresh", fleet.service.directory().fresh()).await.unwrap();
    fleet.settled("server killed").await;
    assert_eq!(fleet.master().registration.role(), master, "the same sessions, the same master, the same term");
    // The watches of before are at work again.
    fleet.join(&server.address(), "d").await;
    fleet.settled("joined after the restart").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_longer_than_every_session_is_survived_by_the_sessions() {
    let mut server = ZooKeeper::start().await;
    let mut fleet = Fleet::start(&server.address(), &server, 3).await;
    fleet.settled("start").await;
    let master = fleet.master().registration.role();
    server.kill();
    // Longer than 7/5 of the session timeout, after which the client itself gives the session up. There is no event to
    // wait for: what is tested is that much time.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(fleet.service.master().unwrap().role, master);
    let mut late = fleet.members[0].registration.roles();
    assert_eq!(late.changed().await, Some(Role::Detached));
    server.restart().await;
    fleet.raw = server.client().await;
    fleet.settled("a long outage").await;
    assert_eq!(fleet.master().registration.role(), master, "the server still had the sessions");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hung_server_ends_roles_by_the_local_deadline() {
    let server = ZooKeeper::start().await;
    let mut fleet = Fleet::start(&server.address(), &server, 2).await;
    fleet.settled("start").await;
    server.pause();
    until_role("detached", &mut fleet.members[0].registration, |role| role == Role::Detached).await;
    server.resume();
    fleet.settled("a hung server").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_and_foreign_nodes_harm_nobody() {
    let server = ZooKeeper::shared().await;
    let mut fleet = Fleet::start(&server.address(), server, 2).await;
    let big = vec![b' '; 1024 * 1024 - 200];
    let nodes: [(&str, &[u8]); 8] = [
        ("normal-broken", b"{\"serverip\":"),
        ("not-utf8", b"{\"serveruniquecode\":\"\xff\xfe\"}"),
        ("big", &big),
        ("port", br#"{"serverip":"h","serverport":70000,"serveruniquecode":"p","weight":1}"#),
        ("negative", br#"{"serverip":"h","serverport":1,"serveruniquecode":"n","weight":-5}"#),
        ("slash", br#"{"serverip":"h","serverport":1,"serveruniquecode":"x/+#$","weight":1}"#),
        ("unknown", br#"{"serverip":"h","serverport":2,"serveruniquecode":"u","weight":1,"more":[1]}"#),
        ("other", b"[1,2,3]"),
    ];
    for (name, data) in nodes {
        fleet.raw.create(&fleet.path(name), data, &OPEN).await.unwrap();
    }
    fleet.raw.mkdir(&format!("{}/bad#name+", fleet.prefix), &OPEN).await.unwrap();
    fleet.raw.create(&format!("{}/bad#name+/master", fleet.prefix), b"{}", &OPEN).await.unwrap();
    let snapshot = soon("all seen", fleet.service.wait_for(|s| s.problems().len() == 7)).await.unwrap();
    let codes: Vec<_> = snapshot.instances().iter().map(|i| (&*i.code, i.weight)).collect();
    assert_eq!(codes, [("a", 1), ("b", 1), ("n", 0), ("u", 1)]);
    assert_eq!(snapshot.problems().iter().filter(|problem| problem.skipped).count(), 6);
    // The whole prefix, with the folder that nobody can name.
    let registry = Registry::connect(&url(&server.address(), &fleet.prefix, "")).await.unwrap();
    let all = registry.discover_all().await.unwrap();
    let bad = all.snapshots().into_iter().find(|s| &**s.service() == "bad#name+").unwrap();
    assert!(bad.instances().is_empty() && bad.problems()[0].reason.contains('#'));
    // And election goes on among them.
    let master = fleet.members.remove(0);
    master.registration.close().await.unwrap();
    until_role("b is master", &mut fleet.members[0].registration, Role::is_master).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_of_a_living_process_is_refused_and_that_of_a_dead_one_taken_over() {
    let server = ZooKeeper::shared().await;
    let mut fleet = Fleet::start(&server.address(), server, 2).await;
    let other = Registry::connect(&url(&server.address(), &fleet.prefix, "")).await.unwrap();
    let error = other.register(Instance::new("s").code("a").address("h:9")).await.map(|_| ()).unwrap_err();
    let Error::DuplicateCode { holder, .. } = &error else { panic!("{error}") };
    assert!(holder.contains("127.0.0.1:50000") && holder.contains("/master"), "{holder}");
    fleet.settled("a duplicate").await;
    // A process that died a moment ago: its session stands, nobody serves it.
    let dead = server.client().await;
    dead.create(&fleet.path("normal"), br#"{"serveruniquecode":"z","weight":1}"#, &SEQUENTIAL).await.unwrap();
    let session = dead.session_id().0;
    let registering =
        tokio::spawn(async move { other.register(Instance::new("s").code("z")).await.map(|r| (r, other)) });
    let z = fleet.service.wait_for(|s| s.find("z").is_some());
    soon("the ghost is listed", z).await.unwrap();
    server.expire(session).await;
    let (registration, registry) = soon("taken over", registering).await.unwrap().unwrap();
    fleet.members.push(support::Member { registry, registration });
    fleet.settled("a restart after kill -9").await;
    drop(dead);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_newcomers_with_one_code_leave_one() {
    let server = ZooKeeper::shared().await;
    let prefix = unique_prefix();
    let connect = || async { Registry::connect(&url(&server.address(), &prefix, "")).await.unwrap() };
    let (one, two) = tokio::join!(connect(), connect());
    let instance = || Instance::new("s").code("same");
    let (first, second) = tokio::join!(one.register(instance()), two.register(instance()));
    assert!(first.is_ok() != second.is_ok(), "{first:?} {second:?}");
    let service = one.discover("s").await.unwrap();
    soon("it is listed", service.wait_for(|s| s.instances().len() == 1)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_predecessor_that_does_not_act_is_passed_over() {
    let server = ZooKeeper::shared().await;
    let mut fleet = Fleet::start(&server.address(), server, 1).await;
    // Nodes in the queue that nobody serves: from a foreign session, and one that will never go.
    let idle: Client = server.client().await;
    idle.create(&fleet.path("normal"), br#"{"serveruniquecode":"idle","weight":1}"#, &SEQUENTIAL).await.unwrap();
    idle.create(&fleet.path("normal0000000000"), b"{}", &OPEN).await.unwrap();
    fleet.join(&server.address(), "b").await;
    fleet.join(&server.address(), "c").await;
    let master = fleet.members.remove(0);
    let old = master.registration.role();
    master.registration.close().await.unwrap();
    let snapshot =
        soon("a master", fleet.service.wait_for(|s| s.master().is_some_and(|m| m.role != old))).await.unwrap();
    assert!(["b", "c"].contains(&&*snapshot.master().unwrap().code));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_in_line_does_not_wait_for_the_session_of_a_dead_first() {
    let server = ZooKeeper::shared().await;
    let prefix = unique_prefix();
    let url = format!("zookeeper://{}{prefix}?session_timeout=30s", server.address());
    let registry = Registry::connect(&url).await.unwrap();
    let master = registry.register(Instance::new("s").code("a")).await.unwrap();
    // It died a moment ago: its session stands.
    let dead: Client = server.client().await;
    let data = br#"{"serveruniquecode":"dead","weight":1}"#;
    dead.create(&format!("{prefix}/s/normal"), data, &SEQUENTIAL).await.unwrap();
    let mut second = registry.register(Instance::new("s").code("b")).await.unwrap();
    master.close().await.unwrap();
    let promoted = until_role("b is master", &mut second, Role::is_master);
    let in_time = Duration::from_secs(5);
    tokio::time::timeout(in_time, promoted).await.expect("long before a session ends, or half of one is over");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_stands_behind_a_dead_one_is_told_that_all_before_it_have_left() {
    let server = ZooKeeper::shared().await;
    let prefix = unique_prefix();
    let url = format!("zookeeper://{}{prefix}?session_timeout=30s", server.address());
    let registry = Registry::connect(&url).await.unwrap();
    let mut before = Vec::new();
    for number in 0..9 {
        before.push(registry.register(Instance::new("s").code(format!("old-{number}"))).await.unwrap());
    }
    // It died a moment ago: its session stands.
    let dead: Client = server.client().await;
    let data = br#"{"serveruniquecode":"dead","weight":1}"#;
    dead.create(&format!("{prefix}/s/normal"), data, &SEQUENTIAL).await.unwrap();
    let mut last = registry.register(Instance::new("s").code("last")).await.unwrap();
    futures_util::future::join_all(before.into_iter().map(async |registration| registration.close().await)).await;
    let promoted = until_role("the last is master", &mut last, Role::is_master);
    let in_time = Duration::from_secs(5);
    tokio::time::timeout(in_time, promoted).await.expect("long before a session ends, or half of one is over");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_drained_do_not_take_what_many_dead_have_left_vacant_before_others_have_had_their_time() {
    // Each has its time by parts of a session: these have to be longer than a turn on a machine with other work.
    let session = Duration::from_secs(2).mul_f64(pointsman_testkit::slowdown());
    let server = ZooKeeper::options().longest_session(session).start().await;
    let prefix = unique_prefix();
    let proxy = CuttingProxy::start(server.socket_address());
    let url = format!("zookeeper://{}{prefix}?session_timeout={}ms&guard=off", proxy.address(), session.as_millis());
    // A master, and more in line than there are stand-bys, all of whom die while the registry is away.
    let dead: Client = server.client().await;
    let registry = Registry::connect(&url).await.unwrap();
    dead.mkdir(&format!("{prefix}/s"), &OPEN).await.unwrap();
    dead.create(&format!("{prefix}/s/master"), br#"{"serveruniquecode":"dead","weight":1}"#, &EPHEMERAL).await.unwrap();
    for number in 0..8 {
        let data = format!(r#"{{"serveruniquecode":"dead-{number}","weight":1}}"#);
        dead.create(&format!("{prefix}/s/normal"), data.as_bytes(), &SEQUENTIAL).await.unwrap();
    }
    let mut drained = Vec::new();
    for code in ["b", "c", "d", "e"] {
        registry.drain("s", code).await.unwrap();
        drained.push(registry.register(Instance::new("s").code(code)).await.unwrap());
    }
    let mut last = registry.register(Instance::new("s").code("f")).await.unwrap();
    proxy.cut();
    dead.delete(&format!("{prefix}/s/master"), None).await.unwrap();
    proxy.mend();
    // All who live see at once that there is no master.
    let drained_masters =
        drained.iter_mut().map(|drained| until_role("a drained master", drained, Role::is_master).boxed());
    tokio::select! {
        _ = until_role("the one that is not drained", &mut last, Role::is_master) => {}
        _ = futures_util::future::select_all(drained_masters) => panic!("a drained instance came first"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zombies_write_is_refused() {
    let server = ZooKeeper::shared().await;
    let mut fleet = Fleet::start(&server.address(), server, 2).await;
    let (storage, zombie) = (TermGuard::new(), fleet.role(0).term().unwrap());
    storage.check(zombie).unwrap();
    let (_, session) = fleet.node_of("a").await;
    server.expire(session).await;
    let role = until_role("b takes over", &mut fleet.members[1].registration, Role::is_master).await;
    storage.check(role.term().unwrap()).unwrap();
    assert!(storage.check(zombie).is_err());
    fleet.settled("takeover").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_hundred_instances_register_again_after_a_restart() {
    // Sessions that a machine with other work can keep. What ends them here is `expire`.
    let session = Duration::from_secs(2).mul_f64(pointsman_testkit::slowdown());
    let mut server = ZooKeeper::options().longest_session(session).start().await;
    let prefix = unique_prefix();
    let url = format!("zookeeper://{}{prefix}?session_timeout={}ms&guard=off", server.address(), session.as_millis());
    let connect = async || soon("connected", Registry::builder(&url).wait(true).connect()).await.unwrap();
    let watcher = connect().await;
    let service = watcher.discover("s").await.unwrap();
    // Thirty processes of ten instances each.
    let mut registries = Vec::new();
    for _ in 0..30 {
        registries.push(connect().await);
    }
    let registering = (0..300).map(|n| registries[n % 30].register(Instance::new("s").code(format!("{n:03}"))));
    let all = soon("registered", futures_util::future::try_join_all(registering)).await.unwrap();
    soon("all listed", service.wait_for(|s| s.instances().len() == 300)).await.unwrap();
    let raw = server.client().await;
    let folder = format!("{prefix}/s");
    let mut sessions: Vec<i64> = Vec::new();
    for name in raw.list_children(&folder).await.unwrap() {
        sessions.push(raw.check_stat(&format!("{folder}/{name}")).await.unwrap().unwrap().ephemeral_owner);
    }
    sessions.sort_unstable();
    sessions.dedup();
    assert_eq!(sessions.len(), 30);
    server.restart().await;
    for session in sessions {
        server.expire(session).await;
    }
    for registration in &all {
        let mut roles = registration.roles();
        soon("attached", async { while roles.changed().await.unwrap() == Role::Detached {} }).await;
    }
    soon("all listed again", service.wait_for(|s| s.instances().len() == 300 && s.master().is_some())).await.unwrap();
    let raw = server.client().await;
    assert_eq!(raw.list_children(&folder).await.unwrap().len(), 300, "each exactly once");
    assert_eq!(all.iter().filter(|r| r.role().is_master()).count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_gets_the_registry_when_it_is_there() {
    let mut server = ZooKeeper::start().await;
    server.kill();
    let url = url(&server.address(), "/p", "&connect_timeout=200ms");
    let waiting = tokio::spawn(Registry::builder(&url).wait(true).connect());
    assert!(Registry::connect(&url).await.is_err());
    server.restart().await;
    let registry = soon("connected", waiting).await.unwrap().unwrap();
    registry.register(Instance::new("s")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_during_a_full_outage_finds_its_instances_on_disk() {
    let mut server = ZooKeeper::start().await;
    let folder = tempfile::tempdir().unwrap();
    let prefix = unique_prefix();
    let url = url(&server.address(), &prefix, "&connect_timeout=500ms");
    let registry = Registry::builder(&url).snapshots(folder.path()).connect().await.unwrap();
    let instance = registry.register(Instance::new("s").code("a").address("h:1")).await.unwrap();
    let service = registry.discover("s").await.unwrap();
    soon("listed", service.wait_for(|s| s.master().is_some())).await.unwrap();
    drop(service);
    server.kill();
    // Another process, later.
    let later = Registry::builder(&url).snapshots(folder.path()).connect().await.unwrap();
    let found = soon("from disk", later.discover("s")).await.unwrap();
    assert_eq!(found.master().unwrap().address.as_deref(), Some("h:1"));
    assert!(matches!(found.freshness(), Freshness::Stale { .. }), "{:?}", found.freshness());
    assert!(matches!(later.discover("never-seen").await, Err(Error::Unreachable { .. })));
    server.restart().await;
    soon("fresh", found.directory().fresh()).await.unwrap();
    drop(instance);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mass_loss_is_guarded() {
    let server = ZooKeeper::shared().await;
    let prefix = unique_prefix();
    let url = format!("zookeeper://{}{prefix}?session_timeout=2s", server.address());
    let watcher = Registry::connect(&url).await.unwrap();
    let service = watcher.discover("s").await.unwrap();
    // Sessions expire although the processes live.
    let proxy = CuttingProxy::start(server.socket_address());
    let fleet = Registry::connect(&url.replace(&server.address(), &proxy.address())).await.unwrap();
    let registering = (0..9).map(|n| fleet.register(Instance::new("s").code(format!("{n}"))));
    let all = futures_util::future::try_join_all(registering).await.unwrap();
    let _other = watcher.register(Instance::new("s").code("9")).await.unwrap();
    soon("all", service.wait_for(|s| s.instances().len() == 10)).await.unwrap();
    // Read as they come: whoever asks late is told only what differs.
    let mut changes = service.changes();
    let watched = service.directory().clone();
    let watching = tokio::spawn(async move {
        let (mut guarded, mut returned) = (0, 0);
        while returned < 9 {
            match changes.next().await.unwrap() {
                Change::Guarded(_) => guarded += 1,
                Change::Returned(_) => returned += 1,
                Change::Left(instance) if !watched.has_left("s", &instance.code) => {
                    panic!("{} was lost, and not guarded", instance.code)
                }
                _ => {}
            }
        }
        guarded
    });
    proxy.blackhole();
    let guarded = soon("guarded", service.wait_for(|s| guarded(s) == 9)).await.unwrap();
    assert!(guarded.instances().len() == 10 && !guarded.find("9").unwrap().is_guarded(), "{guarded:?}");
    assert!(matches!(service.freshness(), Freshness::Guarded { .. }));
    proxy.mend();
    soon("all are back", service.wait_for(|s| s.instances().len() == 10 && !s.is_guarded())).await.unwrap();
    assert_eq!(soon("told", watching).await.unwrap(), 9);
    drop(all);
}

fn guarded(snapshot: &pointsman_core::Snapshot) -> usize {
    snapshot.instances().iter().filter(|instance| instance.is_guarded()).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_while_nobody_watches_has_left_all_the_same() {
    let server = ZooKeeper::shared().await;
    let prefix = unique_prefix();
    let url = format!("zookeeper://{}{prefix}?session_timeout=10s", server.address());
    let proxy = CuttingProxy::start(server.socket_address());
    let watcher = Registry::connect(&url.replace(&server.address(), &proxy.address())).await.unwrap();
    let (one, all) = (watcher.discover("s").await.unwrap(), watcher.discover_all().await.unwrap());
    let fleet = Registry::connect(&url).await.unwrap();
    let registering = (0..10).map(|n| fleet.register(Instance::new("s").code(format!("{n}"))));
    let mut living = futures_util::future::try_join_all(registering).await.unwrap();
    let all = all.service("s").unwrap();
    for service in [&one, &all] {
        soon("all", service.wait_for(|s| s.instances().len() == 10)).await.unwrap();
    }
    let mut changes = [one.changes(), all.changes()];
    proxy.cut();
    soon("cut off", one.directory().stale()).await;
    let last = living.pop();
    let closed =
        futures_util::future::join_all(living.into_iter().map(async |registration| registration.close().await)).await;
    assert!(closed.iter().all(Result::is_ok), "{closed:?}");
    proxy.mend();
    for (service, changes) in [&one, &all].into_iter().zip(&mut changes) {
        soon("nine have left", service.wait_for(|s| s.instances().len() == 1)).await.unwrap();
        for _ in 0..9 {
            let change = soon("told", changes.next()).await.unwrap();
            assert!(matches!(change, Change::Left(_)), "{change:?}");
        }
    }
    // What go-micro-service takes for services and instances is as it was.
    let raw = server.client().await;
    assert_eq!(raw.list_children(&prefix).await.unwrap(), ["s"]);
    assert_eq!(raw.list_children(&format!("{prefix}/s")).await.unwrap().len(), 1);
    drop(last);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_becomes_master_and_leaves_while_nobody_watches_has_left() {
    let server = ZooKeeper::shared().await;
    let prefix = unique_prefix();
    let url = format!("zookeeper://{}{prefix}?session_timeout=10s", server.address());
    let proxy = CuttingProxy::start(server.socket_address());
    let watcher = Registry::connect(&url.replace(&server.address(), &proxy.address())).await.unwrap();
    let service = watcher.discover("s").await.unwrap();
    let fleet = Registry::connect(&url).await.unwrap();
    let mut living = Vec::new();
    for number in 0..10 {
        living.push(fleet.register(Instance::new("s").code(format!("{number}"))).await.unwrap());
    }
    soon("all", service.wait_for(|s| s.instances().len() == 10)).await.unwrap();
    let mut changes = service.changes();
    proxy.cut();
    soon("cut off", service.directory().stale()).await;
    let last = living.pop();
    for mut registration in living {
        if !registration.role().is_master() {
            until_role("its turn", &mut registration, Role::is_master).await;
        }
        registration.close().await.unwrap();
    }
    proxy.mend();
    let nine_left = service.wait_for(|s| s.instances().len() == 1);
    tokio::time::timeout(Duration::from_secs(15), nine_left)
        .await
        .expect("nine have left: far sooner than a guard gives them up")
        .unwrap();
    for _ in 0..9 {
        loop {
            match soon("told", changes.next()).await.unwrap() {
                Change::Left(_) => break,
                change => {
                    assert!(matches!(change, Change::Updated { .. } | Change::MasterChanged { .. }), "{change:?}");
                }
            }
        }
    }
    drop(last);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_comes_back_empty_has_lost_everybody() {
    let mut server = ZooKeeper::start().await;
    let prefix = unique_prefix();
    let url = format!("zookeeper://{}{prefix}?session_timeout=10s", server.address());
    let watcher = Registry::connect(&url).await.unwrap();
    let all = watcher.discover_all().await.unwrap();
    let proxy = CuttingProxy::start(server.socket_address());
    let through = format!("zookeeper://{}{prefix}?session_timeout=10s", proxy.address());
    let fleet = Registry::connect(&through).await.unwrap();
    // Each service is far too small to be guarded by itself.
    let registering = (0..3).map(|n| fleet.register(Instance::new(format!("s{n}")).code("a")));
    let living = futures_util::future::try_join_all(registering).await.unwrap();
    let services = ["s0", "s1", "s2"].map(|service| all.service(service).unwrap());
    for service in &services {
        soon("all", service.wait_for(|s| s.master().is_some())).await.unwrap();
    }
    let mut changes = all.changes();
    // Those who live come back later than it is seen that there is nobody.
    proxy.cut();
    server.wipe();
    server.restart().await;
    for service in &services {
        soon("guarded", service.wait_for(pointsman_core::Snapshot::is_guarded)).await.unwrap();
    }
    proxy.mend();
    let mut back = 0;
    while back < 3 {
        match soon("guarded, and back", changes.next()).await.unwrap() {
            Change::Left(instance) => panic!("{} has left", instance.service),
            Change::Returned(_) => back += 1,
            _ => {}
        }
    }
    drop((living, services));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_nobody_serves_gets_one_chance_from_whoever_is_drained() {
    let server = ZooKeeper::shared().await;
    let prefix = unique_prefix();
    // The next chance comes after four session timeouts: long after the end of the test.
    let url = format!("zookeeper://{}{prefix}?session_timeout=10s&guard=off", server.address());
    let registry = Registry::connect(&url).await.unwrap();
    let mut all = Vec::new();
    for code in ["a", "b"] {
        all.push(registry.register(Instance::new("s").code(code)).await.unwrap());
    }
    let stranger = server.client().await;
    let data = br#"{"serverip":"h","serverport":1,"serveruniquecode":"go","weight":1}"#;
    stranger.create(&format!("{prefix}/s/normal"), data, &SEQUENTIAL).await.unwrap();
    let before = all[0].role().term().unwrap();
    registry.drain("s", "b").await.unwrap();
    registry.drain("s", "a").await.unwrap();
    // Each of the two has let it go first at most once when one of them is master again.
    let [first, second] = &mut *all else { unreachable!() };
    let is_next = |role: Role| role.term().is_some_and(|term| term > before);
    tokio::select! {
        _ = until_role("one of them", first, is_next) => {}
        _ = until_role("one of them", second, is_next) => {}
    }
    // From now on it stays as it is, through several audits.
    let service = registry.discover("s").await.unwrap();
    let settled = |s: &pointsman_core::Snapshot| s.master().is_some();
    soon("a master", service.wait_for(settled)).await.unwrap();
    let mut last = service.snapshot().master().unwrap().role;
    for _ in 0..2 {
        let other = service.wait_for(|s| s.master().is_none_or(|master| master.role != last));
        match tokio::time::timeout(Duration::from_secs(10), other).await {
            Err(_) => return,
            Ok(_) => last = soon("a master", service.wait_for(settled)).await.unwrap().master().unwrap().role,
        }
    }
    let other = service.wait_for(|s| s.master().is_none_or(|master| master.role != last));
    assert!(tokio::time::timeout(Duration::from_secs(10), other).await.is_err(), "it goes round and round");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_missed_its_chance_gets_another_one_from_a_drained_master() {
    let server = ZooKeeper::shared().await;
    let prefix = unique_prefix();
    let registry = Registry::connect(&url(&server.address(), &prefix, "")).await.unwrap();
    let mut a = registry.register(Instance::new("s").code("a")).await.unwrap();
    let before = a.role().term().unwrap();
    // Cut off for longer than it is waited for, while its session stands.
    let cut_off = server.client().await;
    let data = br#"{"serverip":"h","serverport":1,"serveruniquecode":"c","weight":1}"#;
    cut_off.create(&format!("{prefix}/s/normal"), data, &SEQUENTIAL).await.unwrap();
    registry.drain("s", "a").await.unwrap();
    until_role("a is master again", &mut a, |role| role.term().is_some_and(|term| term > before)).await;
    until_role("a lets the other go first again", &mut a, |role| role == Role::Normal).await;
    cut_off.create(&format!("{prefix}/s/master"), data, &EPHEMERAL).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_master_sees_that_another_is_drained_no_longer_however_that_is_said() {
    let server = ZooKeeper::shared().await;
    let prefix = unique_prefix();
    // No audit of any kind but the one of a drained master comes in time.
    let url = format!("zookeeper://{}{prefix}?session_timeout=30s&guard=off", server.address());
    let registry = Registry::connect(&url).await.unwrap();
    let mut a = registry.register(Instance::new("s").code("a")).await.unwrap();
    let b = registry.register(Instance::new("s").code("b").weight(0)).await.unwrap();
    let service = registry.discover("s").await.unwrap();
    let in_time = Duration::from_secs(10);
    registry.drain("s", "a").await.unwrap();
    let drained = |s: &pointsman_core::Snapshot| s.find("a").is_some_and(|a| !a.takes_work());
    soon("a is drained", service.wait_for(drained)).await.unwrap();
    // It is right at any length: the master has most probably looked at the other before that changes.
    let looked = Duration::from_millis(500);
    tokio::time::sleep(looked).await;
    assert!(a.role().is_master(), "the other takes no work either");
    // It says so itself.
    b.update(|instance| instance.weight = 1).await.unwrap();
    let handed_on = until_role("b is master", &mut a, |role| role == Role::Normal);
    tokio::time::timeout(in_time, handed_on).await.expect("before an audit");
    // An operator changes what is set.
    registry.undrain("s", "a").await.unwrap();
    b.close().await.unwrap();
    until_role("a is master", &mut a, Role::is_master).await;
    let _b = registry.register(Instance::new("s").code("b")).await.unwrap();
    registry.set_weight("s", "b", Some(3)).await.unwrap();
    registry.drain("s", "b").await.unwrap();
    registry.drain("s", "a").await.unwrap();
    soon("a is drained", service.wait_for(drained)).await.unwrap();
    tokio::time::sleep(looked).await;
    registry.undrain("s", "b").await.unwrap();
    let handed_on = until_role("b is master", &mut a, |role| role == Role::Normal);
    tokio::time::timeout(in_time, handed_on).await.expect("before an audit");
}

#[tokio::test(flavor = "multi_thread")]
async fn old_markers_of_leaves_are_removed_and_where_there_can_be_none_the_instance_leaves_all_the_same() {
    let server = ZooKeeper::shared().await;
    let prefix = unique_prefix();
    let registry = Registry::connect(&url(&server.address(), &prefix, "")).await.unwrap();
    let raw = server.client().await;
    let left = format!("/pointsman{prefix}/left/s");
    for _ in 0..3 {
        registry.register(Instance::new("s").code("a")).await.unwrap().close().await.unwrap();
    }
    assert_eq!(raw.list_children(&left).await.unwrap().len(), 3, "none of them is old yet");
    let read_only = CreateMode::Persistent.with_acls(Acls::anyone_read());
    raw.create(&format!("/pointsman{prefix}/left/t"), b"", &read_only).await.unwrap();
    registry.register(Instance::new("t").code("a")).await.unwrap().close().await.unwrap();
    assert!(raw.list_children(&format!("{prefix}/t")).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn access_is_protected_where_it_is_asked_for() {
    let server = ZooKeeper::shared().await;
    let prefix = unique_prefix();
    let secret = url(&server.address(), &prefix, "&auth=digest:ops:geheim&acl=protected");
    let registry = Registry::connect(&secret).await.unwrap();
    let a = registry.register(Instance::new("s").code("a")).await.unwrap();
    registry.drain("s", "a").await.unwrap();
    let stranger = Registry::connect(&url(&server.address(), &prefix, "")).await.unwrap();
    let refused = stranger.register(Instance::new("s").code("x")).await.map(|_| ()).unwrap_err();
    assert!(matches!(refused, Error::Refused { .. }), "{refused}");
    assert!(matches!(stranger.undrain("s", "a").await, Err(Error::Refused { .. })));
    let service = stranger.discover("s").await.unwrap();
    assert!(service.snapshot().find("a").is_some(), "reading is free");
    let friend = Registry::connect(&secret).await.unwrap();
    let mut b = friend.register(Instance::new("s").code("b")).await.unwrap();
    a.close().await.unwrap();
    until_role("b takes over", &mut b, Role::is_master).await;
    assert!(!format!("{registry:?}").contains("geheim"));
    assert!(Registry::connect(&url(&server.address(), &prefix, "&acl=protected")).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_takes_everything_with_it_at_once() {
    let server = ZooKeeper::shared().await;
    let mut fleet = Fleet::start(&server.address(), server, 2).await;
    fleet.settled("start").await;
    let Some(first) = (!fleet.members.is_empty()).then(|| fleet.members.remove(0)) else { return };
    first.registry.close().await;
    let others = fleet.nodes().await;
    assert!(others.values().all(|(code, _)| code == "b"), "{others:?}");
    fleet.settled("a registry closed").await;
    let mut roles = first.registration.roles();
    soon("detached", async { while roles.changed().await == Some(Role::Master(pointsman_core::Term(0))) {} }).await;
    assert!(matches!(first.registration.close().await, Ok(()) | Err(Error::Closed { .. } | Error::Unavailable { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ephemeral_of_a_stranger_at_master_is_respected() {
    let server = ZooKeeper::shared().await;
    let prefix = unique_prefix();
    let stranger = server.client().await;
    stranger.mkdir(&format!("{prefix}/s"), &OPEN).await.unwrap();
    let data = br#"{"serverip":"h","serverport":1,"serveruniquecode":"go","weight":1}"#;
    stranger.create(&format!("{prefix}/s/master"), data, &EPHEMERAL).await.unwrap();
    let registry = Registry::connect(&url(&server.address(), &prefix, "")).await.unwrap();
    let mut a = registry.register(Instance::new("s").code("a")).await.unwrap();
    assert_eq!(a.role(), Role::Normal);
    drop(stranger);
    until_role("a takes over", &mut a, Role::is_master).await;
}

/// Nodes of others are ahead that never act, and the master goes, comes back, and goes again: each time they have as long as the first time.
#[tokio::test(flavor = "multi_thread")]
async fn a_vacancy_is_counted_from_its_own_beginning() {
    let server = ZooKeeper::shared().await;
    let (prefix, raw) = (unique_prefix(), server.client().await);
    let (folder, master) = (format!("{prefix}/s"), format!("{prefix}/s/master"));
    raw.mkdir(&folder, &OPEN).await.unwrap();
    raw.create(&master, b"{}", &EPHEMERAL).await.unwrap();
    // More than there are stand-bys.
    for _ in 0..8 {
        raw.create(&format!("{folder}/normal"), b"{}", &SEQUENTIAL).await.unwrap();
    }
    let registry = Registry::connect(&url(&server.address(), &prefix, "")).await.unwrap();
    let last = registry.register(Instance::new("s").code("last")).await.unwrap();
    let mut roles = last.roles();
    // It looks while there is no master.
    raw.delete(&master, None).await.unwrap();
    last.update(|instance| instance.weight = 2).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    raw.create(&master, b"{}", &EPHEMERAL).await.unwrap();
    tokio::time::sleep(Duration::from_millis(700)).await;
    raw.delete(&master, None).await.unwrap();
    let gone = std::time::Instant::now();
    let is_master = async { while !roles.changed().await.expect("it lives").is_master() {} };
    soon("it takes over in the end", is_master).await;
    // Half a session timeout of 2 s.
    assert!(gone.elapsed() >= Duration::from_millis(900), "after {:?}", gone.elapsed());
}
