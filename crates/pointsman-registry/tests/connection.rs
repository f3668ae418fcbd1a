//! Connections that are cut, at the worst moments, between instances and a real ZooKeeper.

#![cfg(all(feature = "agent-client", feature = "tls", feature = "zookeeper"))]
#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use pointsman_core::{Instance, Role};
use pointsman_registry::{Error, Registry};
use pointsman_testkit::{CuttingProxy, Op, ZooKeeper, unique_prefix};
use support::{Fleet, Member, soon, until_role, url};

async fn detached(fleet: &mut Fleet, why: &str) {
    for member in &mut fleet.members {
        until_role(why, &mut member.registration, |role| role == Role::Detached).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_connection_costs_neither_session_nor_term() {
    let server = ZooKeeper::shared().await;
    let proxy = CuttingProxy::start(server.socket_address());
    let mut fleet = Fleet::start(&proxy.address(), server, 3).await;
    fleet.settled("start").await;
    let (master, before) = (fleet.master().registration.role(), fleet.nodes().await);
    proxy.cut();
    detached(&mut fleet, "cut").await;
    proxy.mend();
    fleet.settled("cut").await;
    assert_eq!(fleet.master().registration.role(), master, "master with the same term again");
    assert_eq!(fleet.nodes().await, before, "the same nodes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_longer_than_the_session_hands_the_mastership_over() {
    let server = ZooKeeper::shared().await;
    let proxy = CuttingProxy::start(server.socket_address());
    let mut fleet = Fleet::start(&proxy.address(), server, 1).await;
    fleet.join(&server.address(), "b").await;
    fleet.settled("start").await;
    let old = fleet.role(0);
    proxy.cut();
    let role = until_role("b takes over", &mut fleet.members[1].registration, Role::is_master).await;
    assert!(role.term() > old.term());
    assert_eq!(fleet.role(0), Role::Detached, "the old one has stopped by itself before that");
    proxy.mend();
    fleet.settled("a long cut").await;
    assert_eq!(fleet.role(0), Role::Normal);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_network_ends_the_mastership_before_the_next_one_begins() {
    let server = ZooKeeper::shared().await;
    let proxy = CuttingProxy::start(server.socket_address());
    let mut fleet = Fleet::start(&proxy.address(), server, 1).await;
    fleet.join(&server.address(), "b").await;
    fleet.settled("start").await;
    let old = fleet.members[0].registration.roles();
    proxy.blackhole();
    // Asked at the moment at which the next one has become master.
    until_role("b takes over", &mut fleet.members[1].registration, Role::is_master).await;
    assert_eq!(old.role(), Role::Detached);
    proxy.mend();
    fleet.settled("a silent network").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_whose_reply_is_lost_is_found_again() {
    let server = ZooKeeper::shared().await;
    for (others, op, text) in [(0, Op::Multi, "/s/master"), (1, Op::Multi, "/s/normal")] {
        let mut fleet = Fleet::start(&server.address(), server, others).await;
        // Where the term is recorded: without it the first transaction is refused.
        fleet.raw.mkdir(&format!("/pointsman{}/terms/s", fleet.prefix), &support::OPEN).await.unwrap();
        let proxy = CuttingProxy::start(server.socket_address());
        let registry = Registry::connect(&url(&proxy.address(), &fleet.prefix, "")).await.unwrap();
        let cut = proxy.cut_after_commit_of(op, text);
        // Once with a code of the user's, once with a generated one.
        let instance = if others == 0 { Instance::new("s") } else { Instance::new("s").code("mine") };
        let registration = soon("registered", registry.register(instance)).await.unwrap();
        cut.happened().await;
        fleet.members.push(Member { registry, registration });
        fleet.settled(text).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_takeover_whose_reply_is_lost_is_found_again() {
    let server = ZooKeeper::shared().await;
    let mut fleet = Fleet::start(&server.address(), server, 1).await;
    let proxy = CuttingProxy::start(server.socket_address());
    fleet.join(&proxy.address(), "b").await;
    fleet.join(&server.address(), "c").await;
    fleet.settled("start").await;
    let cut = proxy.cut_after_commit(Op::Multi);
    let master = fleet.members.remove(0);
    master.registration.close().await.unwrap();
    cut.happened().await;
    fleet.settled("a takeover without a reply").await;
    assert!(fleet.role(0).is_master(), "it was carried out, so it counts");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resignation_whose_reply_is_lost_is_found_again() {
    let server = ZooKeeper::shared().await;
    let proxy = CuttingProxy::start(server.socket_address());
    let mut fleet = Fleet::start(&proxy.address(), server, 1).await;
    fleet.join(&server.address(), "b").await;
    fleet.settled("start").await;
    let cut = proxy.cut_after_commit(Op::Multi);
    assert!(fleet.members[0].registration.resign().await.is_err(), "nobody knows whether it was carried out");
    cut.happened().await;
    until_role("b is master", &mut fleet.members[1].registration, Role::is_master).await;
    fleet.settled("a resignation without a reply").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_during_a_cut_is_written_afterwards() {
    let server = ZooKeeper::shared().await;
    let proxy = CuttingProxy::start(server.socket_address());
    let mut fleet = Fleet::start(&proxy.address(), server, 2).await;
    fleet.settled("start").await;
    proxy.cut();
    detached(&mut fleet, "cut").await;
    let member = fleet.members.remove(0);
    let updating = tokio::spawn(async move {
        member.registration.update(|instance| instance.weight = 9).await.unwrap();
        member
    });
    proxy.mend();
    fleet.members.insert(0, soon("updated", updating).await.unwrap());
    fleet.settled("updated").await;
    let weight = |s: &pointsman_core::Snapshot| s.find("a").is_some_and(|i| i.weight == 9);
    soon("seen", fleet.service.wait_for(weight)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_during_a_cut_it_is_removed_afterwards() {
    let server = ZooKeeper::shared().await;
    let proxy = CuttingProxy::start(server.socket_address());
    let mut fleet = Fleet::start(&proxy.address(), server, 2).await;
    // A second registration in the same session keeps that alive.
    let mut other = fleet.members[1].registry.register(Instance::new("other")).await.unwrap();
    fleet.settled("start").await;
    proxy.cut();
    detached(&mut fleet, "cut").await;
    let member = fleet.members.remove(1);
    let error = member.registration.close().await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    proxy.mend();
    soon("removed", fleet.service.wait_for(|s| s.find("b").is_none())).await.unwrap();
    fleet.settled("closed while cut").await;
    until_role("the other lives on", &mut other, |role| role != Role::Detached).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_closes_while_the_network_is_silent_is_answered() {
    let server = ZooKeeper::shared().await;
    let prefix = unique_prefix();
    let watcher = Registry::connect(&url(&server.address(), &prefix, "")).await.unwrap();
    let service = watcher.discover("s").await.unwrap();
    let mut closing = tokio::task::JoinSet::new();
    for number in 0..12 {
        let proxy = CuttingProxy::start(server.socket_address());
        let registry = Registry::connect(&url(&proxy.address(), &prefix, "")).await.unwrap();
        let mut registration = registry.register(Instance::new("s").code(format!("{number}"))).await.unwrap();
        // In the middle of its first look around.
        proxy.blackhole();
        closing.spawn(async move {
            if number % 2 == 1 {
                // Before the next attempt.
                until_role("cut", &mut registration, |role| role == Role::Detached).await;
            }
            (registration.close().await, registry, proxy)
        });
    }
    let mut kept = Vec::new();
    while let Some(closed) = soon("an answer", closing.join_next()).await {
        let (closed, registry, proxy) = closed.unwrap();
        assert!(closed.unwrap_err().is_retryable());
        kept.push((registry, proxy));
    }
    kept.iter().for_each(|(_, proxy)| proxy.mend());
    soon("all are gone", service.wait_for(|s| s.instances().is_empty())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_directory_sees_what_happened_while_it_was_cut() {
    let server = ZooKeeper::shared().await;
    let mut fleet = Fleet::start(&server.address(), server, 3).await;
    fleet.settled("start").await;
    let proxy = CuttingProxy::start(server.socket_address());
    let reader = Registry::connect(&url(&proxy.address(), &fleet.prefix, "")).await.unwrap();
    let service = reader.discover("s").await.unwrap();
    soon("all", service.wait_for(|s| s.instances().len() == 3)).await.unwrap();
    for round in 0..3 {
        proxy.cut();
        let gone = fleet.members.remove(0);
        gone.registration.close().await.unwrap();
        fleet.join(&server.address(), &format!("new-{round}")).await;
        proxy.mend();
        let code = format!("new-{round}");
        let seen = service.wait_for(|s| s.instances().len() == 3 && s.find(&code).is_some());
        soon("what happened meanwhile", seen).await.unwrap();
        fleet.settled("directory cut").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_cuts_in_a_row_leave_everything_in_order() {
    let server = ZooKeeper::shared().await;
    let proxy = CuttingProxy::start(server.socket_address());
    let mut fleet = Fleet::start(&proxy.address(), server, 4).await;
    fleet.settled("start").await;
    for _ in 0..20 {
        proxy.cut_once();
        // As long as it takes to look into the registry: some of them are connected again by then, some are not.
        fleet.nodes().await;
    }
    fleet.settled("many cuts").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registration_that_fails_leaves_no_node_behind() {
    let server = ZooKeeper::shared().await;
    let mut failed = false;
    for _ in 0..5 {
        let proxy = CuttingProxy::start(server.socket_address());
        let prefix = unique_prefix();
        // A session that outlives the patience of whoever registers.
        let url = format!("zookeeper://{}{prefix}?session_timeout=8s&connect_timeout=1s&guard=off", proxy.address());
        let registry = Registry::connect(&url).await.unwrap();
        let terms = format!("/pointsman{prefix}/terms/s");
        server.client().await.mkdir(&terms, &support::OPEN).await.unwrap();
        let cut = proxy.cut_after_commit_of(Op::Multi, "/s/master");
        let registering = registry.clone();
        let registering = tokio::spawn(async move { registering.register(Instance::new("s")).await });
        cut.happened().await;
        proxy.cut();
        let result = soon("an answer", registering).await.unwrap();
        proxy.mend();
        // Faster than the cut: it was found again, and is registered.
        let Err(error) = result else { continue };
        assert!(error.is_retryable(), "{error}");
        failed = true;
        // The process and its session live on; the node must not.
        let direct = Registry::connect(&support::url(&server.address(), &prefix, "")).await.unwrap();
        let mut other = direct.register(Instance::new("s").code("other")).await.unwrap();
        until_role("the way is free", &mut other, Role::is_master).await;
        let service = direct.discover("s").await.unwrap();
        soon("nobody else", service.wait_for(|s| s.instances().len() == 1)).await.unwrap();
        drop(registry);
        break;
    }
    assert!(failed, "the cut never came in time");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_resigns_is_not_master_while_the_answer_is_on_its_way() {
    let server = ZooKeeper::shared().await;
    let proxy = CuttingProxy::start(server.socket_address());
    let mut fleet = Fleet::start(&proxy.address(), server, 1).await;
    fleet.join(&server.address(), "b").await;
    fleet.settled("start").await;
    proxy.delay(std::time::Duration::from_millis(150));
    let resigning = fleet.members.remove(0);
    let roles = resigning.registration.roles();
    let resigned = tokio::spawn(async move {
        resigning.registration.resign().await.unwrap();
        resigning
    });
    until_role("b is master", &mut fleet.members[0].registration, Role::is_master).await;
    assert!(!roles.role().is_master());
    proxy.delay(std::time::Duration::ZERO);
    fleet.members.push(soon("resigned", resigned).await.unwrap());
    fleet.settled("resigned slowly").await;
}

/// The connect timeout is for those who do not wait.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_finds_services_however_long_that_takes() {
    let server = ZooKeeper::shared().await;
    let proxy = CuttingProxy::start(server.socket_address());
    proxy.delay(std::time::Duration::from_millis(20));
    let url = url(&proxy.address(), &unique_prefix(), "&connect_timeout=1ms");
    let registry = Registry::builder(&url).wait(true).connect().await.unwrap();
    let service = soon("found", registry.discover("s")).await.unwrap();
    assert!(service.snapshot().is_empty());
    proxy.blackhole();
    let asking = registry.clone();
    let waiting = tokio::spawn(async move { asking.discover("t").await });
    soon("closed", registry.close()).await;
    assert!(matches!(soon("told", waiting).await.unwrap(), Err(Error::Closed { .. })));
}

/// `getData`, which reads the own node, and all the requests that list a folder (`getChildren`, `getChildren2`).
const GET_DATA: i32 = 4;
const LISTS: [i32; 2] = [8, 12];

#[tokio::test(flavor = "multi_thread")]
async fn an_audit_lists_no_siblings_however_many_there_are() {
    let server = ZooKeeper::shared().await;
    let (prefix, way) = (unique_prefix(), CuttingProxy::start(server.socket_address()));
    let directly = Registry::connect(&url(&server.address(), &prefix, "")).await.unwrap();
    let registering = (0..100).map(|_| directly.register(Instance::new("s")));
    let mut others = futures_util::future::try_join_all(registering).await.unwrap();
    let registry = Registry::connect(&url(&way.address(), &prefix, "")).await.unwrap();
    let mut own = registry.register(Instance::new("s")).await.unwrap();
    assert_eq!(soon("role", own.role_changed()).await, Some(Role::Normal));
    // Each round reads the own node, and what operators have set for it.
    let audits = async |count: usize| {
        let reads = way.requests(GET_DATA);
        soon("audits", way.until_requests(GET_DATA, reads + count)).await;
    };
    audits(2 * 2).await;
    let lists = || LISTS.map(|list| way.requests(list));
    let before = lists();
    audits(2 * 3).await;
    assert_eq!(lists(), before);
    // And it is found all the same when its turn has come.
    for other in others.drain(..) {
        other.close().await.unwrap();
    }
    until_role("master", &mut own, Role::is_master).await;
}

/// ZooKeeper's number for `sync`.
const SYNC: i32 = 9;

#[tokio::test(flavor = "multi_thread")]
async fn only_who_may_hold_a_role_asks_the_leader_again_and_again() {
    let (server, prefix) = (ZooKeeper::shared().await, unique_prefix());
    let [follower, holder] = [(); 2].map(|()| CuttingProxy::start(server.socket_address()));
    let follows = Registry::connect(&url(&follower.address(), &prefix, "")).await.unwrap();
    let _service = follows.discover("s").await.unwrap();
    let registers = Registry::connect(&url(&holder.address(), &prefix, "")).await.unwrap();
    let _registration = registers.register(Instance::new("s").code("a")).await.unwrap();
    // One that was under way.
    soon("a heartbeat", holder.until_requests(SYNC, 4)).await;
    let before = follower.requests(SYNC);
    soon("more heartbeats", holder.until_requests(SYNC, 10)).await;
    assert_eq!(follower.requests(SYNC), before);
}
