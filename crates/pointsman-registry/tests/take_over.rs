//! The same holder registers anew, by another session, while the old one still stands.

#![cfg(all(feature = "agent-client", feature = "tls", feature = "zookeeper"))]
#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::time::{Duration, Instant};

use pointsman_core::{Change, Instance, Role};
use pointsman_registry::{Error, Registration, Registry};
use pointsman_testkit::{CuttingProxy, Op, ZooKeeper};
use support::{Fleet, soon};

/// Sessions that outlast each of these tests.
async fn connect(address: &str, fleet: &Fleet) -> Registry {
    let url = format!("zookeeper://{address}{}?session_timeout=40s&guard=off", fleet.prefix);
    Registry::connect(&url).await.unwrap()
}

async fn take_over(registry: &Registry, code: &str) -> Registration {
    soon("taken over", registry.take_over(Instance::new("s").code(code), &format!("holder of {code}"))).await.unwrap()
}

async fn ended(registration: &mut Registration) {
    soon("the end", async { while registration.role_changed().await.is_some() {} }).await;
    assert_eq!(registration.role(), Role::Detached);
    assert!(registration.trouble().unwrap().to_string().contains("taken over"), "{:?}", registration.trouble());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_agent_had_is_taken_over_at_once_and_nobody_else_becomes_master() {
    let server = ZooKeeper::shared().await;
    let fleet = Fleet::start(&server.address(), server, 0).await;
    let (dead, next) = (connect(&server.address(), &fleet).await, connect(&server.address(), &fleet).await);
    let (a, b) = (take_over(&dead, "a").await, take_over(&dead, "b").await);
    let mut c = next.register(Instance::new("s").code("c")).await.unwrap();
    assert_eq!(soon("c", c.role_changed()).await, Some(Role::Normal));
    let term = a.role().term().unwrap();
    a.abandon();
    b.abandon();
    dead.abandon();
    let started = Instant::now();
    let (b, a) = (take_over(&next, "b").await, take_over(&next, "a").await);
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    assert_eq!((b.role(), c.role()), (Role::Normal, Role::Normal));
    assert_eq!(fleet.nodes().await.len(), 3);
    assert_eq!(a.role().term(), Some(term), "the mastership goes on");
    assert_eq!(next.check_term("s", term).await.unwrap(), term);
    a.resign().await.unwrap();
    // It was the first in line.
    assert!(soon("another master", c.role_changed()).await.unwrap().term() > Some(term));
    let stale = next.check_term("s", term).await.unwrap_err();
    assert!(matches!(stale, Error::StaleTerm { .. }), "{stale}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_cut_off_does_not_take_it_back() {
    let server = ZooKeeper::shared().await;
    let fleet = Fleet::start(&server.address(), server, 0).await;
    let proxy = CuttingProxy::start(server.socket_address());
    let (old, next) = (connect(&proxy.address(), &fleet).await, connect(&server.address(), &fleet).await);
    let (mut a, mut b) = (take_over(&old, "a").await, take_over(&old, "b").await);
    for cut in [CuttingProxy::cut, CuttingProxy::blackhole] {
        cut(&proxy);
        let (new_a, new_b) = (take_over(&next, "a").await, take_over(&next, "b").await);
        let nodes = fleet.nodes().await;
        assert_eq!((new_a.role().is_master(), new_b.role()), (true, Role::Normal));
        proxy.mend();
        ended(&mut a).await;
        ended(&mut b).await;
        assert_eq!(fleet.nodes().await, nodes);
        a.close().await.unwrap();
        drop(b);
        assert_eq!(fleet.nodes().await, nodes);
        // And back again: it is a new registration that asks for it now.
        let (mut replaced_a, mut replaced_b) = (new_a, new_b);
        (a, b) = (take_over(&old, "a").await, take_over(&old, "b").await);
        ended(&mut replaced_a).await;
        ended(&mut replaced_b).await;
        assert!(a.role().is_master());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_take_over_whose_reply_is_lost_is_found_again() {
    let server = ZooKeeper::shared().await;
    let fleet = Fleet::start(&server.address(), server, 0).await;
    let old = connect(&server.address(), &fleet).await;
    let (mut a, mut b) = (take_over(&old, "a").await, take_over(&old, "b").await);
    let term = a.role().term();
    let proxy = CuttingProxy::start(server.socket_address());
    let next = connect(&proxy.address(), &fleet).await;
    for (code, node) in [("b", "/s/normal"), ("a", "/s/master")] {
        let cut = proxy.cut_after_commit_of(Op::Multi, node);
        let registration = take_over(&next, code).await;
        cut.happened().await;
        assert_eq!(registration.role().term(), term.filter(|_| code == "a"));
        assert_eq!(fleet.nodes().await.len(), 2, "each exactly once");
        registration.abandon();
    }
    ended(&mut a).await;
    ended(&mut b).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_at_the_same_moment_one_stays() {
    let server = ZooKeeper::shared().await;
    let fleet = Fleet::start(&server.address(), server, 0).await;
    let (one, two) = (connect(&server.address(), &fleet).await, connect(&server.address(), &fleet).await);
    for round in 0..20 {
        let instance = || Instance::new("s").code("a");
        let both = async { tokio::join!(one.take_over(instance(), "me"), two.take_over(instance(), "me")) };
        let (first, second) = soon("both", both).await;
        for result in [&first, &second] {
            assert!(matches!(result, Ok(_) | Err(Error::DuplicateCode { .. })), "{result:?}");
        }
        let mut living: Vec<Registration> = [first, second].into_iter().flatten().collect();
        assert!(!living.is_empty(), "round {round}");
        if let [first, second] = &mut *living {
            let (of_first, of_second) = (&mut first.roles(), &mut second.roles());
            let one_ends = async {
                tokio::select! {
                    () = async { while of_first.changed().await.is_some() {} } => {}
                    () = async { while of_second.changed().await.is_some() {} } => {}
                }
            };
            soon("one of them ends", one_ends).await;
        }
        // It may be on its way from normal to master, and so be listed by one name and read by the other.
        soon("one node", async { while fleet.nodes().await.len() != 1 {} }).await;
        let closed =
            futures_util::future::join_all(living.into_iter().map(async |registration| registration.close().await))
                .await;
        assert!(closed.iter().any(Result::is_ok), "round {round}: {closed:?}");
        assert_eq!(fleet.nodes().await.len(), 0, "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_sees_one_who_moves_missing() {
    let server = ZooKeeper::shared().await;
    let fleet = Fleet::start(&server.address(), server, 0).await;
    let registries = [connect(&server.address(), &fleet).await, connect(&server.address(), &fleet).await];
    let (mut a, mut b) = (take_over(&registries[0], "a").await, take_over(&registries[0], "b").await);
    // Far away: when it reads what it has been told of, that is long past.
    let proxy = CuttingProxy::start(server.socket_address());
    let service = connect(&proxy.address(), &fleet).await.discover("s").await.unwrap();
    soon("both", service.wait_for(|s| s.instances().len() == 2)).await.unwrap();
    proxy.delay(Duration::from_millis(20));
    let mut changes = service.changes();
    let watching = tokio::spawn(async move {
        loop {
            match changes.next().await.unwrap() {
                Change::Joined(instance) if &*instance.code == "last" => return,
                Change::Left(instance) => panic!("{} has left", instance.code),
                _ => {}
            }
        }
    });
    for round in 0..10 {
        let registry = &registries[(round + 1) % 2];
        (a, b) = (take_over(registry, "a").await, take_over(registry, "b").await);
        let (of_a, of_b) = (&mut a.roles(), &mut b.roles());
        let master = soon("a master", async {
            loop {
                tokio::select! {
                    Some(role) = of_a.changed() => if role.is_master() { return &a },
                    Some(role) = of_b.changed() => if role.is_master() { return &b },
                }
            }
        });
        master.await.resign().await.unwrap();
    }
    let _last = take_over(&registries[0], "last").await;
    soon("the last", watching).await.unwrap();
    drop((a, b));
}
