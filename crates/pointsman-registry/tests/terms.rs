//! One truth about terms for all who ask a registry on ZooKeeper: whoever has granted them, whoever has been restarted since.

#![cfg(all(feature = "agent-client", feature = "tls", feature = "zookeeper"))]
#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use pointsman_agent::{Agent, Settings};
use pointsman_core::{Instance, Role, Term};
use pointsman_registry::{Error, Registry};
use pointsman_testkit::{ZooKeeper, unique_prefix};
use support::{EPHEMERAL, OPEN, soon, until_role, url};
use zookeeper_client::{Acls, CreateMode};

#[track_caller]
fn stale(result: Result<Term, Error>) -> Term {
    match result {
        Err(Error::StaleTerm { stale, .. }) => stale.seen,
        other => panic!("{other:?}"),
    }
}

/// A master of go-micro-service, which records nothing.
#[tokio::test]
async fn the_term_of_a_foreign_master_counts() {
    let (server, prefix) = (ZooKeeper::shared().await, unique_prefix());
    let (raw, registry) =
        (server.client().await, Registry::connect(&url(&server.address(), &prefix, "")).await.unwrap());
    let (folder, master) = (format!("{prefix}/s"), format!("{prefix}/s/master"));
    raw.mkdir(&folder, &OPEN).await.unwrap();
    let (stat, _) = raw.create(&master, b"{}", &EPHEMERAL).await.unwrap();
    let term = Term(stat.czxid.unsigned_abs());
    assert_eq!(stale(registry.check_term("s", Term(term.0 - 1)).await), term);
    assert_eq!(registry.check_term("s", term).await.unwrap(), term);
    // It has passed, so it is known also when that master has gone.
    raw.delete(&master, None).await.unwrap();
    assert_eq!(stale(registry.check_term("s", Term(term.0 - 1)).await), term);
    let ours = registry.register(Instance::new("s")).await.unwrap();
    let higher = ours.role().term().unwrap();
    assert_eq!(stale(registry.check_term("s", term).await), higher);
    assert_eq!(registry.check_term("s", higher).await.unwrap(), higher);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_agent_says_the_same_also_after_a_restart() {
    let (server, prefix) = (ZooKeeper::shared().await, unique_prefix());
    let over_zookeeper = url(&server.address(), &prefix, "");
    let start = async || {
        let registry = Registry::connect(&over_zookeeper).await.unwrap();
        Agent::start(&registry, Settings::new(([127, 0, 0, 1], 0).into())).await.unwrap()
    };
    let mut agents = [start().await, start().await, start().await];
    let registry = Registry::connect(&over_zookeeper).await.unwrap();
    let mut members = Vec::new();
    for _ in 0..2 {
        members.push(registry.register(Instance::new("s")).await.unwrap());
    }
    let mut highest = Term(0);
    for round in 0..9 {
        let (master, other) = (round % 2, (round + 1) % 2);
        let role = until_role("the turn", &mut members[master], Role::is_master).await;
        let term = role.term().unwrap();
        assert!(term > highest);
        let before = std::mem::replace(&mut highest, term);
        for (number, agent) in agents.iter().enumerate() {
            // Every client by another agent, and the first has accepted nothing yet that the others know of.
            let client = Registry::connect(&format!("http://{}", agent.address())).await.unwrap();
            if round > 0 {
                assert_eq!(stale(client.check_term("s", before).await), term, "round {round}, agent {number}");
            }
            assert_eq!(client.check_term("s", term).await.unwrap(), term, "round {round}, agent {number}");
        }
        let replaced = std::mem::replace(&mut agents[round % 3], start().await);
        soon("one agent ends", replaced.close()).await;
        members[master].resign().await.unwrap();
        until_role("the next", &mut members[other], Role::is_master).await;
    }
    for member in members {
        member.close().await.unwrap();
    }
    let client = Registry::connect(&format!("http://{}", agents[0].address())).await.unwrap();
    stale(client.check_term("s", highest).await);
}

/// Whoever may not write where terms are recorded is elected all the same.
#[tokio::test]
async fn a_mastership_does_not_need_the_record() {
    let (server, prefix) = (ZooKeeper::shared().await, unique_prefix());
    let owner = server.client().await;
    owner.auth("digest", b"owner:secret").await.unwrap();
    let folder = format!("/pointsman{prefix}");
    owner.mkdir(&folder, &OPEN).await.unwrap();
    let protected = CreateMode::Persistent.with_acls(Acls::creator_all());
    owner.create(&format!("{folder}/terms"), b"", &protected).await.unwrap();
    let registry = Registry::connect(&url(&server.address(), &prefix, "")).await.unwrap();
    let first = registry.register(Instance::new("s")).await.unwrap();
    let mut second = registry.register(Instance::new("s")).await.unwrap();
    assert!(first.role().is_master());
    first.resign().await.unwrap();
    let term = until_role("the second", &mut second, Role::is_master).await.term().unwrap();
    assert_eq!(stale(registry.check_term("s", Term(term.0 - 1)).await), term, "the master's own node");
    assert!(matches!(registry.check_term("s", term).await, Err(Error::Refused { .. })), "it could not be remembered");
}

/// Absent and unreadable are two things: where a term may be recorded that cannot be read, none passes.
#[tokio::test]
async fn no_term_passes_by_a_record_that_may_not_be_read() {
    let (server, prefix) = (ZooKeeper::shared().await, unique_prefix());
    let owner = server.client().await;
    owner.auth("digest", b"owner:secret").await.unwrap();
    let folder = format!("/pointsman{prefix}/terms");
    owner.mkdir(&folder, &OPEN).await.unwrap();
    let protected = CreateMode::Persistent.with_acls(Acls::creator_all());
    owner.create(&format!("{folder}/s"), b"", &protected).await.unwrap();
    let registry = Registry::connect(&url(&server.address(), &prefix, "")).await.unwrap();
    let refused = soon("an answer", registry.check_term("s", Term(i64::MAX.unsigned_abs()))).await.unwrap_err();
    assert!(matches!(&refused, Error::Refused { step, .. } if step.contains("/terms/s")), "{refused}");
    // A master's node, likewise.
    owner.mkdir(&format!("{prefix}/t"), &OPEN).await.unwrap();
    let ephemeral = CreateMode::Ephemeral.with_acls(Acls::creator_all());
    owner.create(&format!("{prefix}/t/master"), b"{}", &ephemeral).await.unwrap();
    let refused = soon("an answer", registry.check_term("t", Term(1))).await.unwrap_err();
    assert!(matches!(&refused, Error::Refused { step, .. } if step.contains("/t/master")), "{refused}");
}
