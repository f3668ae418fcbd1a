//! The term base: by it terms rise across a change of registry, for everybody who uses the registry, and only for masterships that begin
//! after it was raised.

#![cfg(all(feature = "agent-client", feature = "tls", feature = "zookeeper"))]
#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use pointsman_agent::{Agent, Settings};
use pointsman_core::{Instance, Role, Term, TermGuard};
use pointsman_registry::{Error, MAX_TERM_BASE, Registration, Registry, Service};
use pointsman_testkit::{Foreign, ForeignRole, ZooKeeper, unique_prefix};
use support::{EPHEMERAL, OPEN, SOON, log, soon, until_role, url};
use zookeeper_client::{Acls, CreateMode};

#[track_caller]
fn stale(result: Result<Term, Error>) -> Term {
    match result {
        Err(Error::StaleTerm { stale, .. }) => stale.seen,
        other => panic!("{other:?}"),
    }
}

fn term(registration: &Registration) -> Term {
    registration.role().term().expect("a master")
}

/// The term of the master with this code, as somebody who follows is told.
async fn told(service: &Service, code: &str) -> Term {
    let is_there = service.wait_for(|s| s.master().is_some_and(|master| *master.code == *code));
    soon("the master is shown", is_there).await.unwrap().master().unwrap().role.term().unwrap()
}

#[tokio::test]
async fn a_guard_that_remembers_terms_of_memory_takes_those_of_zookeeper_once_the_base_is_raised() {
    log();
    let (server, prefix) = (ZooKeeper::shared().await, unique_prefix());
    let guard = TermGuard::new();
    let memory = Registry::connect("memory://term-base").await.unwrap();
    let before = term(&memory.register(Instance::new("s")).await.unwrap());
    guard.check(before).unwrap();
    let registry = Registry::connect(&url(&server.address(), &prefix, "")).await.unwrap();
    let first = registry.register(Instance::new("s").code("a")).await.unwrap();
    let refused = guard.check(term(&first)).unwrap_err();
    assert_eq!((refused.offered, refused.seen), (term(&first), before));

    assert_eq!(registry.term_base().await.unwrap(), Term(0));
    assert_eq!(registry.raise_term_base(before).await.unwrap(), before);
    assert_eq!(registry.term_base().await.unwrap(), before);
    // A mastership has one term, from its beginning to its end.
    guard.check(term(&first)).unwrap_err();
    let mut second = registry.register(Instance::new("s").code("b")).await.unwrap();
    first.resign().await.unwrap();
    let granted = until_role("the second", &mut second, Role::is_master).await.term().unwrap();
    assert!(granted > before, "{granted}");
    guard.check(granted).unwrap();
    assert_eq!(registry.check_term("s", granted).await.unwrap(), granted);
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_agrees_on_each_term_and_terms_rise_across_a_raise() {
    let (server, prefix) = (ZooKeeper::shared().await, unique_prefix());
    let at = url(&server.address(), &prefix, "");
    let (one, other) = (Registry::connect(&at).await.unwrap(), Registry::connect(&at).await.unwrap());
    // It has been reading since before.
    let early = other.discover("s").await.unwrap();
    let mut terms = Vec::new();
    let mut master = one.register(Instance::new("s").code("0")).await.unwrap();
    for (number, base) in [0, 0, 1 << 50, 1 << 50, 1 << 51].into_iter().enumerate() {
        let living = term(&master);
        assert_eq!(other.raise_term_base(Term(base)).await.unwrap().0, base);
        assert_eq!(term(&master), living, "a raise changes nobody's term");
        // Nor is it another for who has not seen it before: by another connection, and by one that asks only now.
        let late = Registry::connect(&at).await.unwrap();
        let late = [
            told(&late.discover("s").await.unwrap(), &number.to_string()).await,
            told(&early, &number.to_string()).await,
        ];
        assert_eq!(late, [living; 2]);
        assert_eq!(other.check_term("s", living).await.unwrap(), living);
        terms.push(living);
        let mut next = one.register(Instance::new("s").code(format!("{}", number + 1))).await.unwrap();
        master.close().await.unwrap();
        let granted = until_role("the next", &mut next, Role::is_master).await.term().unwrap();
        assert!(granted.0 > base && granted.0 < base + (1 << 48), "{granted}");
        assert_eq!(stale(other.check_term("s", living).await), granted);
        master = next;
    }
    terms.push(term(&master));
    assert!(terms.is_sorted_by(|a, b| a < b), "{terms:?}");
    // With no master at all the highest is known as it was.
    let last = term(&master);
    master.close().await.unwrap();
    assert_eq!(stale(other.check_term("s", Term(last.0 - 1)).await), last);
    assert_eq!(one.check_term("s", last).await.unwrap(), last);
}

#[tokio::test]
async fn a_base_is_only_ever_raised() {
    let (server, prefix) = (ZooKeeper::shared().await, unique_prefix());
    let registry = Registry::connect(&url(&server.address(), &prefix, "")).await.unwrap();
    let bases = [7, 3, 9, 5, 9].map(Term);
    let raised = futures_util::future::join_all(bases.iter().map(|base| registry.raise_term_base(*base))).await;
    for (raised, base) in raised.into_iter().zip(bases) {
        assert!(raised.unwrap() >= base);
    }
    assert_eq!(registry.term_base().await.unwrap(), Term(9));
    assert_eq!(registry.raise_term_base(Term(8)).await.unwrap(), Term(9));
    let refused = registry.raise_term_base(Term(MAX_TERM_BASE.0 + 1)).await.unwrap_err();
    assert!(refused.to_string().contains("at most 4503599627370496"), "{refused}");
    assert_eq!(registry.raise_term_base(MAX_TERM_BASE).await.unwrap(), MAX_TERM_BASE);
    let master = registry.register(Instance::new("s")).await.unwrap();
    assert!(term(&master) > MAX_TERM_BASE);
}

/// A session that is lost and comes back, and a place that the same holder takes over, go on with their term.
#[tokio::test(flavor = "multi_thread")]
async fn a_mastership_that_goes_on_keeps_its_term_across_a_raise() {
    let (server, prefix) = (ZooKeeper::shared().await, unique_prefix());
    let at = url(&server.address(), &prefix, "");
    let (one, two) = (Registry::connect(&at).await.unwrap(), Registry::connect(&at).await.unwrap());
    one.raise_term_base(Term(1000)).await.unwrap();
    let first = soon("taken", one.take_over(Instance::new("s").code("a"), "holder")).await.unwrap();
    let granted = term(&first);
    assert!(granted > Term(1000));
    two.raise_term_base(Term(1 << 51)).await.unwrap();
    let second = soon("taken over", two.take_over(Instance::new("s").code("a"), "holder")).await.unwrap();
    assert_eq!(term(&second), granted, "the mastership goes on");
    let service = one.discover("s").await.unwrap();
    assert_eq!(told(&service, "a").await, granted);
    assert_eq!(one.check_term("s", granted).await.unwrap(), granted);
    two.raise_term_base(Term(1 << 52)).await.unwrap();
    let third = soon("taken over again", one.take_over(Instance::new("s").code("a"), "holder")).await.unwrap();
    assert_eq!(term(&third), granted);
    third.resign().await.unwrap();
    let next = soon("master anew", async {
        service.wait_for(|s| s.master().is_some_and(|m| m.role.term() > Some(granted))).await
    });
    assert!(next.await.unwrap().master().unwrap().role.term() > Some(Term(1 << 52)));
}

/// It knows nothing of bases, and writes nothing of terms.
#[tokio::test(flavor = "multi_thread")]
async fn masters_of_go_micro_service_have_terms_that_rise_among_ours() {
    let (server, prefix) = (ZooKeeper::shared().await, unique_prefix());
    let registry = Registry::connect(&url(&server.address(), &prefix, "")).await.unwrap();
    let service = registry.discover("s").await.unwrap();
    let foreign = Foreign::options(&server.address(), &prefix, "s", "go-1").start().await;
    foreign.becomes(ForeignRole::Master, SOON).await;
    let before = told(&service, "go-1").await;
    registry.raise_term_base(Term(1 << 51)).await.unwrap();
    assert_eq!(told(&registry.discover("s").await.unwrap(), "go-1").await, before, "it lives on with its term");
    assert_eq!(registry.check_term("s", before).await.unwrap(), before);
    let mut ours = registry.register(Instance::new("s").code("ours")).await.unwrap();
    foreign.stop().await;
    let granted = until_role("ours", &mut ours, Role::is_master).await.term().unwrap();
    assert!(granted > Term(1 << 51) && granted > before);
    let second = Foreign::options(&server.address(), &prefix, "s", "go-2").start().await;
    ours.close().await.unwrap();
    second.becomes(ForeignRole::Master, SOON).await;
    let after = told(&service, "go-2").await;
    assert!(after > granted, "{after} after {granted}");
    assert_eq!(stale(registry.check_term("s", granted).await), after);
    assert_eq!(registry.check_term("s", after).await.unwrap(), after);
}

#[tokio::test]
async fn what_may_not_be_read_or_written_is_said_and_elections_go_on() {
    let (server, prefix) = (ZooKeeper::shared().await, unique_prefix());
    let owner = server.client().await;
    owner.auth("digest", b"owner:secret").await.unwrap();
    owner.mkdir(&format!("/pointsman{prefix}"), &OPEN).await.unwrap();
    let terms = format!("/pointsman{prefix}/terms");
    owner.create(&terms, b"", &CreateMode::Persistent.with_acls(Acls::creator_all())).await.unwrap();
    let registry = Registry::connect(&url(&server.address(), &prefix, "")).await.unwrap();
    for refused in [registry.term_base().await, registry.raise_term_base(Term(1)).await] {
        assert!(matches!(&refused, Err(Error::Refused { step, .. }) if step.contains(&terms)), "{refused:?}");
    }
    assert!(registry.register(Instance::new("s")).await.unwrap().role().is_master());
    // Somebody else's data, where all may read.
    let prefix = unique_prefix();
    let terms = format!("/pointsman{prefix}/terms");
    owner.mkdir(&terms, &OPEN).await.unwrap();
    owner.set_data(&terms, b"mine", None).await.unwrap();
    let registry = Registry::connect(&url(&server.address(), &prefix, "")).await.unwrap();
    let refused = registry.raise_term_base(Term(1)).await.unwrap_err();
    assert!(refused.to_string().contains("is no term base") && refused.to_string().contains("zkCli.sh"), "{refused}");
    let master = registry.register(Instance::new("s")).await.unwrap();
    registry.check_term("s", term(&master)).await.unwrap_err();
    owner.mkdir(&format!("{prefix}/t"), &OPEN).await.unwrap();
    owner.create(&format!("{prefix}/t/master"), b"{}", &EPHEMERAL).await.unwrap();
    registry.check_term("t", Term(u64::MAX)).await.unwrap_err();
}

#[tokio::test]
async fn memory_rises_too_and_so_it_does_by_its_agent() {
    let memory = Registry::connect("memory://rises").await.unwrap();
    let base = memory.term_base().await.unwrap();
    let first = memory.register(Instance::new("s")).await.unwrap();
    assert!(term(&first) > base);
    assert_eq!(memory.raise_term_base(Term(1)).await.unwrap(), base);
    let high = Term(1 << 51);
    assert_eq!(memory.raise_term_base(high).await.unwrap(), high);
    assert_eq!(memory.term_base().await.unwrap(), high);
    let mut second = memory.register(Instance::new("s")).await.unwrap();
    first.resign().await.unwrap();
    assert!(until_role("the second", &mut second, Role::is_master).await.term() > Some(high));

    let agent = Agent::start(&memory, Settings::new(([127, 0, 0, 1], 0).into())).await.unwrap();
    let client = Registry::connect(&format!("http://{}", agent.address())).await.unwrap();
    assert_eq!((client.raise_term_base(base).await.unwrap(), client.term_base().await.unwrap()), (high, high));
    assert_eq!(client.raise_term_base(MAX_TERM_BASE).await.unwrap(), MAX_TERM_BASE);
    let refused = client.raise_term_base(Term(MAX_TERM_BASE.0 + 1)).await.unwrap_err();
    assert!(refused.to_string().contains("is too high"), "{refused}");
    let third = client.register(Instance::new("t")).await.unwrap();
    assert!(term(&third) > MAX_TERM_BASE);
}
