//! What every backend must do: a backend is done when this suite passes.

#![cfg(all(feature = "agent-client", feature = "tls", feature = "zookeeper"))]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use pointsman_core::{Change, Instance, ObservedInstance, Role, Snapshot, Status, Term, TermGuard};
use pointsman_registry::check::{Check, Probe};
use pointsman_registry::{Departure, Error, Freshness, Log, Registration, Registry, Roles, Service, Trouble};
use pointsman_testkit::CuttingProxy;
use tokio::net::TcpListener;

/// Far longer than anything here takes: a deadline, not a wait.
const SOON: Duration = Duration::from_secs(20);

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future).await.unwrap_or_else(|_| panic!("not in time: {what}"))
}

async fn until(what: &str, service: &Service, condition: impl FnMut(&Snapshot) -> bool) -> Arc<Snapshot> {
    soon(what, service.wait_for(condition)).await.unwrap()
}

async fn until_role(what: &str, registration: &mut Registration, wanted: impl Fn(Role) -> bool) -> Role {
    let waiting = async {
        loop {
            let role = registration.role_changed().await.expect("the registration lives");
            if wanted(role) {
                return role;
            }
        }
    };
    soon(what, waiting).await
}

fn term(role: Role) -> Term {
    role.term().expect("a master")
}

fn codes(snapshot: &Snapshot) -> Vec<&str> {
    snapshot.instances().iter().map(|instance| &*instance.code).collect()
}

async fn the_first_is_master_and_the_others_are_normal(url: String) {
    let registry = Registry::connect(&url).await.unwrap();
    let service = registry.discover("testserver").await.unwrap();
    assert!(service.snapshot().is_empty());
    assert!(matches!(service.master(), Err(Error::NoMaster { .. })));
    let instance = Instance::new("testserver").address("127.0.0.1:50000").weight(3).tag("zone", "eu-1");
    let mut a = registry.register(instance).await.unwrap();
    let mut b = registry.register(Instance::new("testserver").code("b")).await.unwrap();
    assert!(soon("role of a", a.role_changed()).await.unwrap().is_master());
    assert_eq!(soon("role of b", b.role_changed()).await, Some(Role::Normal));
    let snapshot = until("both", &service, |s| s.instances().len() == 2 && s.master().is_some()).await;
    let master = snapshot.master().unwrap();
    assert_eq!(master.code, a.instance().code);
    assert_eq!((master.address.as_deref(), master.weight), (Some("127.0.0.1:50000"), 3));
    assert_eq!(master.tags["zone"], "eu-1");
    assert_eq!(master.role, a.role());
    let normal = snapshot.find("b").unwrap();
    assert_eq!((normal.address.as_deref(), normal.weight, normal.role), (None, 1, Role::Normal));
    assert_eq!(service.freshness(), Freshness::Fresh);
}

async fn whoever_has_registered_finds_itself(url: String) {
    let registry = Registry::connect(&url).await.unwrap();
    // Followed before, so that there is a snapshot already.
    let followed = soon("the first snapshot", registry.discover_several(["a", "b"])).await.unwrap();
    let service = soon("the first snapshot", registry.discover("a")).await.unwrap();
    for round in 0..30 {
        let first = soon("the first", registry.register(Instance::new("a").address("127.0.0.1:1"))).await.unwrap();
        let found = soon("what is found", registry.discover("a")).await.unwrap();
        assert_eq!(
            found.master().map(|master| master.code.clone()).ok(),
            Some(first.instance().code.clone()),
            "{round}"
        );
        let second = soon("the second", registry.register(Instance::new("b").address("127.0.0.1:2"))).await.unwrap();
        let all = soon("what is found", registry.discover_several(["a", "b"])).await.unwrap();
        assert!(all.snapshot("b").find(&second.instance().code).is_some(), "{round}");
        soon("the end", first.close()).await.unwrap();
        soon("the end", second.close()).await.unwrap();
        until("nobody", &service, Snapshot::is_empty).await;
    }
    drop(followed);
    registry.close().await;
}

async fn when_the_master_leaves_the_next_takes_over_with_a_higher_term(url: String) {
    let registry = Registry::connect(&url).await.unwrap();
    let guard = TermGuard::new();
    let a = registry.register(Instance::new("s")).await.unwrap();
    let mut b = registry.register(Instance::new("s").code("b")).await.unwrap();
    let mut c = registry.register(Instance::new("s").code("c")).await.unwrap();
    let zombie = term(a.role());
    guard.check(zombie).unwrap();
    a.close().await.unwrap();
    let role = until_role("b is master", &mut b, Role::is_master).await;
    guard.check(term(role)).unwrap();
    assert!(guard.check(zombie).is_err(), "the zombie's write is refused");
    assert_eq!(c.role(), Role::Normal);
    let service = registry.discover("s").await.unwrap();
    let snapshot = until("two left", &service, |s| s.instances().len() == 2).await;
    assert_eq!(snapshot.master().unwrap().role, role);
    drop(b);
    let last = until_role("c is master", &mut c, Role::is_master).await;
    guard.check(term(last)).unwrap();
}

async fn resigning_hands_over_at_once(url: String) {
    let registry = Registry::connect(&url).await.unwrap();
    let mut a = registry.register(Instance::new("s").code("a")).await.unwrap();
    let first = term(a.role());
    a.resign().await.unwrap();
    let again = until_role("alone, it is master again", &mut a, |r| r.term().is_some_and(|t| t > first)).await;
    let mut b = registry.register(Instance::new("s").code("b")).await.unwrap();
    assert!(matches!(b.resign().await, Err(Error::NotMaster { .. })));
    a.resign().await.unwrap();
    let role = until_role("b is master", &mut b, Role::is_master).await;
    assert!(term(role) > term(again));
    until_role("a is normal", &mut a, |role| role == Role::Normal).await;
    let service = registry.discover("s").await.unwrap();
    let snapshot = until("both", &service, |s| s.master().is_some_and(|m| &*m.code == "b")).await;
    assert_eq!(codes(&snapshot), ["a", "b"]);
}

async fn a_living_registration_is_updated(url: String) {
    let registry = Registry::connect(&url).await.unwrap();
    let service = registry.discover("s").await.unwrap();
    let a = registry.register(Instance::new("s").code("a")).await.unwrap();
    let role = a.role();
    a.update(|instance| instance.weight = 7).await.unwrap();
    a.update(|instance| {
        instance.tags.insert("zone".to_owned(), "eu-2".to_owned());
        instance.address = Some("h:1".into());
    })
    .await
    .unwrap();
    let snapshot = until("updated", &service, |s| s.find("a").is_some_and(|i| i.tags.contains_key("zone"))).await;
    let instance = snapshot.find("a").unwrap();
    assert_eq!((instance.weight, instance.address.as_deref(), instance.role), (7, Some("h:1"), role));
    assert!(matches!(a.update(|i| i.code = "b".into()).await, Err(Error::Fixed { .. })));
    assert!(matches!(a.update(|i| i.weight = u32::MAX).await, Err(Error::Invalid(_))));
    assert_eq!(a.instance().weight, 7);
}

async fn an_update_that_nobody_waits_for_any_more_is_not_taken_back_by_the_next(url: String) {
    let registry = Registry::connect(&url).await.unwrap();
    let service = registry.discover("s").await.unwrap();
    let a = registry.register(Instance::new("s").code("a").weight(5)).await.unwrap();
    // Cancelled when they have been asked for.
    let _ = a.update(|instance| instance.weight = 0).now_or_never();
    let _ = a.update(|instance| drop(instance.tags.insert("x".to_owned(), "1".to_owned()))).now_or_never();
    soon("written", a.update(|instance| instance.address = Some("h:1".into()))).await.unwrap();
    let snapshot = until("updated", &service, |s| s.find("a").is_some_and(|i| i.address.is_some())).await;
    let listed = snapshot.find("a").unwrap();
    assert_eq!((listed.weight, listed.tags.contains_key("x")), (0, true), "{listed:?}");
    assert_eq!(*a.instance(), listed.registered);
    // Each is applied to what the one before has left, and nothing that changes nothing is waited for.
    for count in 1..=3 {
        soon("written", a.update(|instance| instance.weight += 1)).await.unwrap();
        soon("nothing to write", a.update(|_| {})).await.unwrap();
        assert_eq!(a.instance().weight, count);
    }
    until("updated", &service, |s| s.find("a").is_some_and(|i| i.weight == 3)).await;
}

async fn what_cannot_be_updated_is_the_same_error_everywhere_and_changes_nothing(url: String) {
    let registry = Registry::connect(&url).await.unwrap();
    let a = registry.register(Instance::new("s").code("a")).await.unwrap();
    let changes: [fn(&mut Instance); 3] = [
        |instance| instance.code = "b".into(),
        |instance| instance.service = "t".into(),
        // However wrong the name is.
        |instance| instance.code = "a/b".into(),
    ];
    for change in changes {
        let error = soon("told", a.update(change)).await.unwrap_err();
        assert!(matches!(&error, Error::Fixed { service, code } if (&**service, &**code) == ("s", "a")), "{error}");
    }
    let error = soon("told", a.update(|instance| instance.weight = u32::MAX)).await.unwrap_err();
    assert!(matches!(error, Error::Invalid(_)), "{error}");
    let panics = std::panic::AssertUnwindSafe(a.update(|_| panic!("by the caller"))).catch_unwind();
    let panic = soon("the panic is the caller's", panics).await.unwrap_err();
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"by the caller"));
    assert_eq!(*a.instance(), Instance::with_code("s", "a"));
    assert!(a.role().is_master(), "it lives on");
    a.close().await.unwrap();
    let ended = soon("told", a.update(|instance| instance.weight = 2)).await;
    assert!(matches!(ended, Err(Error::Closed { .. })), "{ended:?}");
}

async fn what_an_operator_sets_survives_the_instance(url: String) {
    let registry = Registry::connect(&url).await.unwrap();
    let service = registry.discover("s").await.unwrap();
    let a = registry.register(Instance::new("s").code("a").weight(2)).await.unwrap();
    registry.drain("s", "a").await.unwrap();
    registry.set_weight("s", "a", Some(9)).await.unwrap();
    let set = |i: &Arc<ObservedInstance>| (i.weight, i.status) == (9, Status::Drained);
    until("set", &service, |s| s.find("a").is_some_and(set)).await;
    a.close().await.unwrap();
    until("gone", &service, |s| s.instances().is_empty()).await;
    let _a = registry.register(Instance::new("s").code("a").weight(2)).await.unwrap();
    until("set still", &service, |s| s.find("a").is_some_and(set)).await;
    registry.undrain("s", "a").await.unwrap();
    registry.set_weight("s", "a", None).await.unwrap();
    registry.undrain("s", "nobody").await.unwrap();
    let unset = |i: &Arc<ObservedInstance>| (i.weight, i.status) == (2, Status::Passing);
    until("unset", &service, |s| s.find("a").is_some_and(unset)).await;
}

async fn what_is_set_for_codes_that_are_gone_is_listed_and_cleared(url: String) {
    let registry = Registry::connect(&url).await.unwrap();
    let _a = registry.register(Instance::new("s").code("a")).await.unwrap();
    let service = registry.discover("s").await.unwrap();
    registry.drain("s", "a").await.unwrap();
    until("a is drained", &service, |s| s.find("a").is_some_and(|a| a.status == Status::Drained)).await;
    let gone = registry.register(Instance::new("s").code("gone")).await.unwrap();
    until("gone is there", &service, |s| s.find("gone").is_some()).await;
    registry.set_weight("s", "gone", Some(7)).await.unwrap();
    until("its weight is set", &service, |s| s.find("gone").is_some_and(|gone| gone.weight == 7)).await;
    gone.close().await.unwrap();
    until("gone is gone", &service, |s| s.find("gone").is_none()).await;
    let listed = async |of: Option<&'static str>| {
        let all = registry.overrides(of).await.unwrap();
        Vec::from_iter(all.into_iter().map(|set| (set.code.to_string(), set.drained, set.weight, set.registered)))
    };
    let (a, gone) = (("a".to_owned(), true, None, true), ("gone".to_owned(), false, Some(7), false));
    assert_eq!(listed(None).await, [a.clone(), gone.clone()]);
    assert_eq!(listed(Some("s")).await, [a.clone(), gone]);
    assert_eq!(listed(Some("other")).await, []);
    assert!(registry.clear_gone_overrides(Some("other")).await.unwrap().cleared.is_empty());
    let cleared = registry.clear_gone_overrides(None).await.unwrap();
    assert_eq!((cleared.cleared.len(), cleared.remaining, &*cleared.cleared[0].code), (1, 0, "gone"));
    // An agent lists what its directory knows.
    let is_cleared = async {
        while listed(None).await != [a.clone()] {
            tokio::task::yield_now().await;
        }
    };
    soon("it is not listed any more", is_cleared).await;
    let _gone = registry.register(Instance::new("s").code("gone")).await.unwrap();
    let snapshot = until("gone is back", &service, |s| s.find("gone").is_some()).await;
    assert_eq!((snapshot.find("gone").unwrap().weight, snapshot.find("a").unwrap().status), (1, Status::Drained));
    assert!(matches!(registry.overrides(Some("a/b")).await, Err(Error::Invalid(_))));
}

async fn clean_hand_overs_in_a_row_list_one(url: String) {
    // With the guard: who has left sixty times in a row has not been lost once.
    let registry = Registry::connect(&guarding(&url)).await.unwrap();
    let service = registry.discover("balancer").await.unwrap();
    let mut before = registry.register(Instance::new("balancer").code("0")).await.unwrap();
    for number in 1..=60 {
        let code = number.to_string();
        let next = registry.register(Instance::new("balancer").code(code.clone())).await.unwrap();
        until("the next one is there", &service, |s| s.find(&code).is_some()).await;
        before.close().await.unwrap();
        before = next;
    }
    let snapshot = until("one is listed", &service, |s| codes(s) == ["60"]).await;
    assert!(!snapshot.is_guarded());
}

async fn bad_names_are_refused_before_anything_is_written(url: String) {
    let registry = Registry::connect(&url).await.unwrap();
    for name in ["", ".", "..", "a/b", "a+", "a#", "$SYS", "a\0", "a\u{200b}", "\u{202e}a", "a\u{ad}", &"x".repeat(256)]
    {
        let error = registry.register(Instance::new(name)).await.map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("1 to 255 bytes"), "{error}");
        assert!(registry.register(Instance::new("s").code(name)).await.is_err());
        assert!(registry.discover(name).await.is_err());
        assert!(registry.drain("s", name).await.is_err());
    }
    assert!(registry.register(Instance::new("s").address("h:70000")).await.is_err());
    assert!(registry.discover_all().await.unwrap().snapshots().is_empty());
}

async fn too_much_is_refused_before_it_is_written(url: String) {
    let registry = Registry::connect(&url).await.unwrap();
    let large = |bytes: usize| Instance::new("s").code("a").tag("x", "y".repeat(bytes));
    let refused = |result: Result<(), Error>| match result {
        Err(Error::TooLarge { bytes, limit, .. }) => (bytes > limit).then_some(limit).unwrap(),
        other => panic!("{other:?}"),
    };
    let limit = refused(registry.register(large(200_000)).await.map(drop));
    let service = registry.discover("s").await.unwrap();
    let a = registry.register(large(limit - 100)).await.unwrap();
    let listed = until("a", &service, |s| s.find("a").is_some()).await;
    assert_eq!(listed.find("a").unwrap().tags["x"].len(), limit - 100);
    let update = a.update(move |instance| drop(instance.tags.insert("x".into(), "y".repeat(limit)))).await;
    assert_eq!(refused(update), limit);
    assert_eq!(a.instance().tags["x"].len(), limit - 100);
    assert_eq!(service.snapshot().find("a").unwrap().tags["x"].len(), limit - 100);
}

async fn what_no_caller_can_use_or_see_is_refused(url: String) {
    let registry = Registry::connect(&url).await.unwrap();
    let good = registry.register(Instance::new("s").code("good").address("h:1")).await.unwrap();
    for address in ["0.0.0.0:80", "[::]:80", "a..b:80", "0:80", "224.0.0.1:80", "[::ffff:0.0.0.0]:80"] {
        let error = registry.register(Instance::new("s").address(address)).await.map(|_| ()).unwrap_err();
        assert!(matches!(error, Error::Invalid(_)) && error.to_string().contains(address), "{error}");
        let error = good.update(|instance| instance.address = Some(address.into())).await.unwrap_err();
        assert!(matches!(error, Error::Invalid(_)), "{error}");
    }
    for (name, value) in [("a\u{202e}", "x"), ("a", "x\u{2066}y"), ("a", "\u{feff}")] {
        let error = registry.register(Instance::new("s").tag(name, value)).await.map(|_| ()).unwrap_err();
        assert!(matches!(error, Error::Invalid(_)) && error.to_string().is_ascii(), "{error}");
    }
    let service = registry.discover("s").await.unwrap();
    let snapshot = until("the good one", &service, |s| s.find("good").is_some()).await;
    assert_eq!((codes(&snapshot), snapshot.problems().len()), (vec!["good"], 0));
    assert_eq!(snapshot.find("good").unwrap().address.as_deref(), Some("h:1"), "as it was");
}

async fn the_same_code_twice_is_refused_and_free_again_afterwards(url: String) {
    let registry = Registry::connect(&url).await.unwrap();
    let a = registry.register(Instance::new("s").code("a")).await.unwrap();
    let error = registry.register(Instance::new("s").code("a")).await.map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::DuplicateCode { .. }), "{error}");
    let _other = registry.register(Instance::new("other").code("a")).await.unwrap();
    a.close().await.unwrap();
    let again = registry.register(Instance::new("s").code("a")).await.unwrap();
    assert!(again.role().is_master());
}

async fn a_code_is_free_for_the_next_as_soon_as_its_registration_is_dropped(url: String) {
    let registry = Registry::connect(&url).await.unwrap();
    let mut a = registry.register(Instance::new("s").code("a")).await.unwrap();
    for _ in 0..10 {
        let before = term(a.role());
        drop(a);
        a = registry.register(Instance::new("s").code("a")).await.unwrap();
        assert!(term(a.role()) > before);
    }
}

async fn a_closed_registry_holds_nothing_and_takes_nothing(url: String) {
    let (registry, other) = (Registry::connect(&url).await.unwrap(), Registry::connect(&url).await.unwrap());
    let watching = registry.discover("s").await.unwrap();
    let service = other.discover("s").await.unwrap();
    let a = registry.register(Instance::new("s").code("a")).await.unwrap();
    let mut b = other.register(Instance::new("s").code("b")).await.unwrap();
    let clone = registry.clone();
    let (mut changes, mut updates) = (watching.changes(), watching.directory().updates());
    soon("closed", registry.close()).await;
    soon("the changes end", async { while changes.next().await.is_some() {} }).await;
    soon("the updates end", async { while updates.next().await.is_some() {} }).await;
    assert_eq!(a.role(), Role::Detached);
    assert!(matches!(a.update(|i| i.weight = 2).await, Err(Error::Closed { .. })));
    until_role("b is master", &mut b, Role::is_master).await;
    until("only b", &service, |s| codes(s) == ["b"]).await;
    soon("stale", watching.directory().stale()).await;
    assert!(matches!(watching.freshness(), Freshness::Stale { .. }));
    assert!(matches!(soon("no wait", watching.wait_for(|_| false)).await, Err(Error::Closed { .. })));
    assert!(matches!(soon("no wait", watching.directory().fresh()).await, Err(Error::Closed { .. })));
    let refused = [
        clone.register(Instance::new("s")).await.map(|_| ()),
        clone.discover("s").await.map(|_| ()),
        clone.discover_all().await.map(|_| ()),
        clone.drain("s", "b").await,
    ];
    for result in refused {
        assert!(matches!(result, Err(Error::Closed { .. })), "{result:?}");
    }
    clone.close().await;
}

async fn changes_are_told_as_they_happen(url: String) {
    let registry = Registry::connect(&url).await.unwrap();
    let all = registry.discover_all().await.unwrap();
    let mut changes = all.changes();
    let a = registry.register(Instance::new("s").code("a")).await.unwrap();
    let mut told = Vec::new();
    while told.len() < 3 {
        told.push(soon("three changes", changes.next()).await.unwrap());
    }
    assert!(matches!(&told[0], Change::ServiceAppeared(service) if &**service == "s"), "{told:?}");
    assert!(matches!(&told[1], Change::Joined(instance) if &*instance.code == "a"), "{told:?}");
    assert!(matches!(&told[2], Change::MasterChanged { old: None, new: Some(_), .. }), "{told:?}");
    a.update(|instance| instance.weight = 5).await.unwrap();
    let told = soon("updated", changes.next()).await.unwrap();
    assert!(matches!(&told, Change::Updated { old, new } if (old.weight, new.weight) == (1, 5)), "{told:?}");
    a.close().await.unwrap();
    let told = soon("left", changes.next()).await.unwrap();
    assert!(matches!(&told, Change::Left(_)), "{told:?}");
    soon("no master", changes.next()).await.unwrap();
    let told = soon("disappeared", changes.next()).await.unwrap();
    assert!(matches!(&told, Change::ServiceDisappeared(_)), "{told:?}");
}

async fn several_services_are_followed_and_no_others(url: String) {
    let registry = Registry::connect(&url).await.unwrap();
    let some = registry.discover_several(["a", "b"]).await.unwrap();
    let (a, b) = (some.service("a").unwrap(), some.service("b").unwrap());
    assert!(some.service("c").is_none());
    let revision = a.snapshot().revision();
    let _b = registry.register(Instance::new("b")).await.unwrap();
    let _c = registry.register(Instance::new("c")).await.unwrap();
    until("b", &b, |s| s.master().is_some()).await;
    let all = registry.discover_all().await.unwrap();
    let names: Vec<_> = all.snapshots().iter().map(|s| s.service().to_string()).collect();
    assert_eq!(names, ["b", "c"]);
    assert_eq!(a.snapshot().revision(), revision, "others' churn does not touch it");
}

async fn many_instances_come_and_go(url: String) {
    let registry = Registry::connect(&url).await.unwrap();
    let service = registry.discover("s").await.unwrap();
    let registering = (0..40).map(|n| registry.register(Instance::new("s").code(format!("{n:02}"))));
    let mut all: Vec<_> = futures_util::future::try_join_all(registering).await.unwrap();
    let snapshot = until("all", &service, |s| s.instances().len() == 40 && s.master().is_some()).await;
    assert_eq!(snapshot.instances().iter().filter(|i| i.role.is_master()).count(), 1);
    let mut guard = Term(0);
    while !all.is_empty() {
        let master = all.iter().position(|r| r.role().is_master());
        let Some(master) = master else {
            // The next one is about to learn of it.
            soon("a master", futures_util::future::select_all(all.iter_mut().map(|r| Box::pin(r.role_changed()))))
                .await;
            continue;
        };
        let leaving = all.swap_remove(master);
        assert!(term(leaving.role()) > guard, "terms only rise");
        guard = term(leaving.role());
        leaving.close().await.unwrap();
        if all.len() < 35 {
            break;
        }
    }
    drop(all);
    until("nobody", &service, |s| s.instances().is_empty()).await;
}

async fn roles_end_with_their_registration(url: String) {
    let registry = Registry::connect(&url).await.unwrap();
    let closed = registry.register(Instance::new("s")).await.unwrap();
    let dropped = registry.register(Instance::new("s")).await.unwrap();
    let (mut of_closed, mut of_dropped) = (closed.roles(), dropped.roles());
    closed.close().await.unwrap();
    assert_eq!(of_closed.role(), Role::Detached);
    drop(dropped);
    for roles in [&mut of_closed, &mut of_dropped] {
        soon("the end", async { while roles.changed().await.is_some() {} }).await;
        assert_eq!(roles.role(), Role::Detached);
    }
}

async fn a_role_says_how_long_it_is_certain(url: String) {
    let registry = Registry::connect(&url).await.unwrap();
    let mut a = registry.register(Instance::new("s")).await.unwrap();
    until_role("master", &mut a, Role::is_master).await;
    if let Some(until) = a.held_until() {
        assert!(until > tokio::time::Instant::now(), "{until:?}");
    }
    let roles = a.roles();
    a.close().await.unwrap();
    assert_eq!(roles.held_until(), None);
}

async fn the_same_holder_takes_its_registration_over_and_nobody_else_does(url: String) {
    let (one, two) = (Registry::connect(&url).await.unwrap(), Registry::connect(&url).await.unwrap());
    let service = one.discover("s").await.unwrap();
    let instance = |code: &str, weight| Instance::new("s").code(code).weight(weight);
    let mut a = one.take_over(instance("a", 1), "holder a").await.unwrap();
    let mut b = one.take_over(instance("b", 1), "holder b").await.unwrap();
    let mut c = one.register(instance("c", 1)).await.unwrap();
    assert_eq!(soon("role of c", c.role_changed()).await, Some(Role::Normal));
    for refused in [one.take_over(instance("a", 2), "other").await, one.register(instance("a", 2)).await] {
        assert!(matches!(refused, Err(Error::DuplicateCode { .. })), "{refused:?}");
    }
    for holder in ["", "a\nb", &"x".repeat(129)] {
        let refused = one.take_over(instance("d", 1), holder).await;
        assert!(matches!(refused, Err(Error::Refused { .. })), "{refused:?}");
    }
    // By another process, and twice by the same registry.
    for (weight, registry) in [(2, &two), (3, &two), (4, &one)] {
        let before = term(a.role());
        let next = registry.take_over(instance("a", weight), "holder a").await.unwrap();
        assert_eq!(term(next.role()), before, "the mastership goes on");
        soon("the end of a", async { while a.role_changed().await.is_some() {} }).await;
        assert!(a.trouble().unwrap().to_string().contains("taken over"), "{:?}", a.trouble());
        assert_eq!(a.role(), Role::Detached);
        next.update(|instance| instance.weight += 10).await.unwrap();
        a = next;
        let next = registry.take_over(instance("b", weight), "holder b").await.unwrap();
        assert_eq!(next.role(), Role::Normal);
        soon("the end of b", async { while b.role_changed().await.is_some() {} }).await;
        b = next;
        let taken = |s: &Snapshot| {
            s.find("a").is_some_and(|a| a.weight == weight + 10) && s.find("b").is_some_and(|b| b.weight == weight)
        };
        let snapshot = until("taken over", &service, taken).await;
        assert_eq!(codes(&snapshot), ["a", "b", "c"]);
        assert_eq!(snapshot.master().unwrap().role, a.role());
    }
    assert_eq!(c.role(), Role::Normal);
    a.close().await.unwrap();
    drop(b);
    until_role("c is master", &mut c, Role::is_master).await;
    until("c is left", &service, |s| codes(s) == ["c"]).await;
}

async fn closing_what_is_over_is_no_error(url: String) {
    let (registry, other) = (Registry::connect(&url).await.unwrap(), Registry::connect(&url).await.unwrap());
    let closed = registry.register(Instance::new("s").code("closed")).await.unwrap();
    for _ in 0..3 {
        soon("closed", closed.close()).await.unwrap();
    }
    let again = soon("the code is free", registry.register(Instance::new("s").code("closed"))).await.unwrap();
    // Two at the same time, of which one is not waited for.
    let _ = again.close().now_or_never();
    let (one, two) = soon("closed", async { tokio::join!(again.close(), again.close_as(Departure::Lost)) }).await;
    assert!(one.is_ok() && two.is_ok(), "{one:?} {two:?}");
    let mut ended = registry.register(Instance::new("s").code("ended")).await.unwrap();
    let replaced = other.take_over(Instance::new("s").code("replaced"), "holder").await.unwrap();
    let next = registry.take_over(Instance::new("s").code("replaced"), "holder").await.unwrap();
    soon("it ends by itself", async { while replaced.roles().changed().await != Some(Role::Detached) {} }).await;
    soon("closed", replaced.close()).await.unwrap();
    assert_ne!(next.role(), Role::Detached, "that of its holder lives");
    let never = registry.registration(Instance::new("s").code("ended")).start().unwrap();
    assert!(matches!(soon("refused", never.registered()).await, Err(Error::DuplicateCode { .. })));
    soon("closed", never.close()).await.unwrap();
    registry.close().await;
    soon("over", async { while ended.role_changed().await.is_some() {} }).await;
    soon("closed", ended.close()).await.unwrap();
    soon("closed", ended.close()).await.unwrap();
}

/// Begins and ends of runs, by their terms.
#[derive(Clone, Default)]
struct Runs(Arc<tokio::sync::watch::Sender<Vec<(bool, Term)>>>);

struct Run(Runs, Term);

impl Runs {
    /// Leads until it is dropped.
    async fn lead(&self, term: Term) {
        self.0.send_modify(|told| told.push((true, term)));
        let _run = Run(self.clone(), term);
        std::future::pending::<()>().await;
    }

    /// The begins and ends, once there are as many.
    async fn told(&self, count: usize) -> Vec<(bool, Term)> {
        let mut told = self.0.subscribe();
        soon("a leader begins, or ends", told.wait_for(|told| told.len() >= count)).await.unwrap().clone()
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.0.0.send_modify(|told| told.push((false, self.1)));
    }
}

async fn a_leader_has_one_run_for_each_term_until_its_registration_ends(url: String) {
    let (one, two) = (Registry::connect(&url).await.unwrap(), Registry::connect(&url).await.unwrap());
    let a = Arc::new(one.register(Instance::new("s").code("a")).await.unwrap());
    let b = two.register(Instance::new("s").code("b")).await.unwrap();
    let (runs, of_a, roles) = (Runs::default(), a.clone(), a.roles());
    let own = runs.clone();
    let leading = tokio::spawn(async move {
        of_a.lead(|term| {
            let own = own.clone();
            async move { own.lead(term).await }
        })
        .await
    });
    let first = term(soon("a is master", roles.wait_for(Role::is_master)).await.unwrap());
    assert_eq!(runs.told(1).await, [(true, first)]);
    a.resign().await.unwrap();
    soon("the first term is over", roles.ended(first)).await;
    let of_b = term(soon("b is master", b.roles().wait_for(Role::is_master)).await.unwrap());
    assert!(of_b > first);
    assert_eq!(runs.told(2).await, [(true, first), (false, first)]);
    b.resign().await.unwrap();
    let second = term(soon("a is master again", roles.wait_for(Role::is_master)).await.unwrap());
    assert!(second > of_b);
    soon("b's term is over", b.roles().ended(of_b)).await;
    assert_eq!(runs.told(3).await[2..], [(true, second)]);
    // Without another instance the next term is this one's own.
    two.close().await;
    a.resign().await.unwrap();
    let third = runs.told(5).await[4].1;
    assert!(third > second);
    assert_eq!(runs.told(5).await[3..], [(false, second), (true, third)]);
    soon("closed", one.close()).await;
    soon("it leads no more", leading).await.unwrap().unwrap();
    assert_eq!(runs.told(6).await[5..], [(false, third)]);
    assert_eq!(soon("over", roles.wait_for(Role::is_master)).await, None);
}

async fn a_leader_is_told_that_its_holder_leads_elsewhere(url: String) {
    let (one, two) = (Registry::connect(&url).await.unwrap(), Registry::connect(&url).await.unwrap());
    let a = one.take_over(Instance::new("s").code("a"), "holder").await.unwrap();
    let leading = async { a.lead(async |_| std::future::pending().await).await };
    let next = async { two.take_over(Instance::new("s").code("a"), "holder").await };
    let (led, next) = soon("taken over", async { tokio::join!(leading, next) }).await;
    assert!(matches!(led, Err(Error::TakenOver { .. })), "{led:?}");
    soon("it leads", next.unwrap().roles().wait_for(Role::is_master)).await.unwrap();
}

/// Through a proxy that can be cut.
async fn a_leader_that_is_cut_off_stops_and_leads_again(url: String, way: CuttingProxy) {
    let registry = Registry::connect(&url).await.unwrap();
    let a = registry.register(Instance::new("s").code("a")).await.unwrap();
    let (runs, roles) = (Runs::default(), a.roles());
    let steps = async {
        let first = runs.told(1).await[0].1;
        way.cut();
        soon("the term is in doubt", roles.ended(first)).await;
        assert_eq!(runs.told(2).await[1], (false, first));
        way.mend();
        let again = runs.told(3).await[2];
        assert!(again.0 && again.1 >= first, "{again:?}");
    };
    tokio::select! {
        led = a.lead(|term| runs.lead(term)) => panic!("{led:?}"),
        () = steps => {}
    }
}

/// Returns as soon as the registration is in such a trouble.
async fn until_trouble(what: &str, roles: &mut Roles, wanted: impl Fn(&Trouble) -> bool) {
    let waiting = async {
        while !roles.trouble().as_ref().is_some_and(&wanted) {
            roles.status_changed().await.expect("the registration lives");
        }
    };
    soon(what, waiting).await;
}

async fn an_instance_is_registered_only_while_it_passes_its_check(url: String) {
    let registry = Registry::connect(&url).await.unwrap();
    let service = registry.discover("s").await.unwrap();
    let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let probe = Probe::Tcp(address.to_string());
    let check = Check { interval: Duration::from_millis(20), fall: 2, ..Check::new(probe) };
    let mut a = registry.registration(Instance::new("s").code("a")).check(check).start().unwrap();
    let mut roles = a.roles();
    for round in 1..4 {
        let refused = |trouble: &Trouble| matches!(trouble, Trouble::CheckFails(why) if why.contains("refused"));
        until_trouble("it is told why", &mut roles, refused).await;
        assert_eq!((a.role(), a.held_until()), (Role::Detached, None));
        until("not listed", &service, |s| s.find("a").is_none()).await;
        assert!(matches!(a.resign().await, Err(Error::NotMaster { .. })));
        // It counts from when the instance is registered again.
        a.update(move |instance| instance.weight = round).await.unwrap();
        let _listener = TcpListener::bind(address).await.unwrap();
        soon("registered", a.registered()).await.unwrap();
        until_role("master", &mut a, Role::is_master).await;
        until("listed", &service, |s| s.find("a").is_some_and(|a| a.weight == round)).await;
    }
    until_trouble("it fails again", &mut roles, |trouble| matches!(trouble, Trouble::CheckFails(_))).await;
    assert_eq!(soon("told", a.role_changed()).await, Some(Role::Detached));
    a.set_check(None).unwrap();
    until_role("without a check it is registered", &mut a, Role::is_master).await;
    a.close().await.unwrap();
    until("gone", &service, Snapshot::is_empty).await;
}

async fn who_comes_back_gives_way_to_the_newer_registration_of_its_holder(url: String) {
    let (one, two) = (Registry::connect(&url).await.unwrap(), Registry::connect(&url).await.unwrap());
    let service = two.discover("s").await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let check = Check { interval: Duration::from_millis(20), fall: 1, ..Check::new(Probe::Tcp(address.to_string())) };
    let older = one.registration(Instance::new("s").code("a")).holder("holder").check(check);
    let older = soon("registered", older.register()).await.unwrap();
    drop(listener);
    let mut roles = older.roles();
    until_trouble("its check fails", &mut roles, |trouble| matches!(trouble, Trouble::CheckFails(_))).await;
    until("removed", &service, Snapshot::is_empty).await;
    let newer = soon("registered", two.take_over(Instance::new("s").code("a").weight(2), "holder")).await.unwrap();
    let role = newer.role();
    assert!(role.is_master());
    let _listener = TcpListener::bind(address).await.unwrap();
    if url.starts_with("http:") {
        // An agent cannot tell the two apart: the newest connection has it.
        let mut ended = newer.roles();
        soon("one of them ends", async { while ended.changed().await.is_some() {} }).await;
        until("the older one is listed", &service, |s| s.find("a").is_some_and(|a| a.weight == 1)).await;
        return;
    }
    soon("the older one ends", async { while roles.changed().await.is_some() {} }).await;
    assert!(roles.trouble().unwrap().to_string().contains("taken over"), "{:?}", roles.trouble());
    assert_eq!(newer.role(), role);
    let snapshot = until("only the newer is listed", &service, |s| codes(s) == ["a"]).await;
    assert_eq!((snapshot.instances()[0].weight, snapshot.instances()[0].role), (2, role));
}

async fn a_registration_that_is_given_up_leaves_nothing(url: String) {
    let (registry, other) = (Registry::connect(&url).await.unwrap(), Registry::connect(&url).await.unwrap());
    let service = other.discover("s").await.unwrap();
    for _ in 0..10 {
        drop(registry.registration(Instance::new("s").code("a")).start().unwrap());
        let started = registry.registration(Instance::new("s").code("b")).start().unwrap();
        soon("closed", started.close()).await.unwrap();
    }
    let last = soon("the code is free", registry.register(Instance::new("s").code("a"))).await.unwrap();
    until("only the last is listed", &service, |s| codes(s) == ["a"]).await;
    last.close().await.unwrap();
    until("gone", &service, Snapshot::is_empty).await;
}

async fn what_is_abandoned_stays_where_there_are_sessions_and_is_taken_over(url: String) {
    let (one, two) = (Registry::connect(&url).await.unwrap(), Registry::connect(&url).await.unwrap());
    let service = two.discover("s").await.unwrap();
    let a = one.take_over(Instance::new("s").code("a"), "holder").await.unwrap();
    let before = term(a.role());
    until("listed", &service, |s| s.find("a").is_some()).await;
    let roles = a.roles();
    a.abandon();
    let mut ending = roles.clone();
    soon("its end", async { while ending.changed().await.is_some() {} }).await;
    assert_eq!(roles.role(), Role::Detached);
    if !url.starts_with("zookeeper:") {
        until("gone", &service, Snapshot::is_empty).await;
    }
    let next = soon("taken over", two.take_over(Instance::new("s").code("a"), "holder")).await.unwrap();
    assert_eq!(term(next.role()) == before, url.starts_with("zookeeper:"), "the mastership goes on");
}

/// Through a proxy that can be cut.
async fn who_waits_is_registered_when_the_registry_is_back_and_who_does_not_is_told_soon(
    url: String,
    way: CuttingProxy,
) {
    let registry = Registry::connect(&url).await.unwrap();
    let waiting = Registry::builder(&url).wait(true).connect().await.unwrap();
    way.cut();
    let patient = registry.registration(Instance::new("s").code("patient")).patience(None).start().unwrap();
    let also = waiting.registration(Instance::new("s").code("also")).start().unwrap();
    let soon_told = registry.registration(Instance::new("s").code("soon")).patience(Some(Duration::from_millis(300)));
    let error = soon("told", soon_told.register()).await.unwrap_err();
    assert!(error.is_retryable() && error.to_string().contains("register s/soon"), "{error}");
    for waits in [&patient, &also] {
        let is_lost = |trouble: &Trouble| matches!(trouble, Trouble::Lost(_));
        until_trouble("it says what it waits for", &mut waits.roles(), is_lost).await;
        assert!(waits.registered().now_or_never().is_none());
    }
    way.mend();
    soon("registered", patient.registered()).await.unwrap();
    soon("registered", also.registered()).await.unwrap();
    let service = registry.discover("s").await.unwrap();
    until("listed", &service, |s| codes(s) == ["also", "patient"]).await;
}

/// Through a proxy that can be cut.
async fn whoever_closes_is_answered_while_the_code_is_not_free_yet(url: String, way: CuttingProxy) {
    let registry = Registry::connect(&url).await.unwrap();
    let first = registry.register(Instance::new("s").code("a")).await.unwrap();
    way.cut();
    drop(first);
    let second = registry.registration(Instance::new("s").code("a")).patience(None).start().unwrap();
    assert!(matches!(soon("answered", second.resign()).await, Err(Error::NotMaster { .. })));
    let _ = second.update(|instance| instance.weight = 2).now_or_never();
    let _ = soon("closed", second.close()).await;
    let third = registry.registration(Instance::new("s").code("a").weight(3)).patience(None).start().unwrap();
    way.mend();
    soon("registered", third.registered()).await.unwrap();
    let service = registry.discover("s").await.unwrap();
    until("only the third is listed", &service, |s| s.find("a").is_some_and(|a| a.weight == 3)).await;
}

/// Through a proxy that can be cut.
async fn a_cut_connection_does_not_end_the_wait_for_a_code(url: String, way: CuttingProxy) {
    let (registry, holder) = (Registry::connect(&url).await.unwrap(), Registry::connect(&url).await.unwrap());
    let held = holder.take_over(Instance::new("s").code("a"), "one").await.unwrap();
    let waits = registry.registration(Instance::new("s").code("a")).holder("two");
    let waits = waits.patience(Some(Duration::from_secs(20))).start().unwrap();
    let mut roles = waits.roles();
    let is_told = async {
        // Where codes are not waited for, it is refused.
        while !matches!(roles.trouble(), Some(Trouble::Waiting(_))) && roles.status_changed().await.is_some() {}
    };
    soon("waits, or is refused", is_told).await;
    if let Some(refused) = waits.registered().now_or_never() {
        assert!(matches!(refused, Err(Error::DuplicateCode { .. })), "{refused:?}");
        return;
    }
    way.cut_once();
    // Leaves as soon as it is connected again.
    drop(held);
    soon("registered", waits.registered()).await.unwrap();
}

/// The same registry, with the guard on.
fn guarding(url: &str) -> String {
    if url.contains("guard=off") { url.replace("guard=off", "guard=on") } else { format!("{url}?guard=on") }
}

async fn ten(registry: &Registry, service: &Service) -> Vec<Registration> {
    let registering = (0..10).map(|n| registry.register(Instance::new("s").code(format!("{n}"))));
    let all = futures_util::future::try_join_all(registering).await.unwrap();
    until("all", service, |s| s.instances().len() == 10 && s.master().is_some()).await;
    all
}

async fn a_clean_leave_is_never_guarded(url: String) {
    let watcher = Registry::connect(&guarding(&url)).await.unwrap();
    let service = watcher.discover("s").await.unwrap();
    let (fleet, other) = (Registry::connect(&url).await.unwrap(), Registry::connect(&url).await.unwrap());
    let mut all = ten(&fleet, &service).await;
    let others = (10..13).map(|n| other.register(Instance::new("s").code(format!("{n}"))));
    let others = futures_util::future::try_join_all(others).await.unwrap();
    until("others", &service, |s| s.instances().len() == 13).await;
    let mut changes = service.changes();
    let closed = futures_util::future::join_all(
        all.drain(..5).map(async |registration: Registration| registration.close().await),
    )
    .await;
    assert!(closed.iter().all(Result::is_ok), "{closed:?}");
    drop(all.split_off(1));
    other.close().await;
    let mut left = 0;
    while left < 12 {
        match soon("each leaves", changes.next()).await.unwrap() {
            Change::Left(_) => left += 1,
            Change::Guarded(instance) => panic!("{} has left, and is guarded", instance.code),
            _ => {}
        }
    }
    assert_eq!(codes(&service.snapshot()), ["5"]);
    assert!(service.directory().has_left("s", "0") && !service.directory().has_left("s", "5"));
    drop(others);
}

async fn who_is_lost_is_guarded_and_returns(url: String) {
    let watcher = Registry::connect(&guarding(&url)).await.unwrap();
    let service = watcher.discover("s").await.unwrap();
    let fleet = Registry::connect(&url).await.unwrap();
    let mut all = ten(&fleet, &service).await;
    let closed = all.drain(1..).map(async |registration| registration.close_as(Departure::Lost).await);
    assert!(futures_util::future::join_all(closed).await.iter().all(Result::is_ok));
    // They may be lost one by one; from the sixth on all of them are listed.
    let guarded = |s: &Snapshot| s.instances().iter().filter(|instance| instance.is_guarded()).count();
    until("all nine", &service, |s| guarded(s) == 9 && s.instances().len() == 10).await;
    let again = (1..10).map(|n| fleet.register(Instance::new("s").code(format!("{n}"))));
    let again = futures_util::future::try_join_all(again).await.unwrap();
    until("all are back", &service, |s| s.instances().len() == 10 && !s.is_guarded()).await;
    assert_eq!(service.freshness(), Freshness::Fresh);
    drop(again);
}

/// Whoever is master as the directory has it, once its registration knows.
async fn master_of(service: &Service, all: &[Registration], wanted: impl Fn(&str) -> bool) -> String {
    let is_wanted = |s: &Snapshot| s.master().is_some_and(|master| wanted(&master.code));
    let snapshot = until("the wanted master", service, is_wanted).await;
    let code = snapshot.master().unwrap().code.clone();
    for registration in all {
        let is_master = registration.instance().code == code;
        let is_so = |role: Role| if is_master { role.is_master() } else { role == Role::Normal };
        let mut roles = registration.roles();
        let knows = async { while !is_so(roles.changed().await.expect("the registration lives")) {} };
        soon("one is master, the others are normal", knows).await;
    }
    code.to_string()
}

async fn three(registry: &Registry, service: &Service) -> Vec<Registration> {
    let mut all = Vec::new();
    for code in ["a", "b", "c"] {
        all.push(registry.register(Instance::new("s").code(code)).await.unwrap());
    }
    assert_eq!(master_of(service, &all, |_| true).await, "a");
    all
}

async fn a_drained_heir_is_passed_over(url: String) {
    let registry = Registry::connect(&url).await.unwrap();
    let service = registry.discover("s").await.unwrap();
    let mut all = three(&registry, &service).await;
    registry.drain("s", "b").await.unwrap();
    until("drained", &service, |s| s.find("b").is_some_and(|b| b.status == Status::Drained)).await;
    all.remove(0).close().await.unwrap();
    assert_eq!(master_of(&service, &all, |code| code != "a").await, "c");
    // Nobody else is left.
    all.remove(1).close().await.unwrap();
    assert_eq!(master_of(&service, &all, |code| code != "c").await, "b");
    // Until somebody is.
    all.push(registry.register(Instance::new("s").code("d")).await.unwrap());
    assert_eq!(master_of(&service, &all, |code| code == "d").await, "d");
}

async fn draining_a_master_hands_the_mastership_on(url: String) {
    let registry = Registry::connect(&url).await.unwrap();
    let service = registry.discover("s").await.unwrap();
    let all = three(&registry, &service).await;
    let mut terms = vec![term(all[0].role())];
    for (drained, next) in [("a", "b"), ("b", "c")] {
        registry.drain("s", drained).await.unwrap();
        assert_eq!(master_of(&service, &all, |code| code == next).await, next);
        terms.push(term(service.master().unwrap().role));
    }
    // The weight says the same; and with all of them drained somebody is master all the same.
    registry.set_weight("s", "c", Some(0)).await.unwrap();
    until("drained", &service, |s| s.find("c").is_some_and(|c| c.weight == 0)).await;
    master_of(&service, &all, |_| true).await;
    for code in ["b", "a"] {
        registry.undrain("s", code).await.unwrap();
        let master = master_of(&service, &all, |master| master == "b").await;
        assert_eq!(master, "b", "who is master stays it");
    }
    terms.push(term(service.master().unwrap().role));
    assert!(terms.is_sorted_by(|a, b| a < b), "{terms:?}");
}

async fn who_drains_itself_gets_no_new_work_hands_the_mastership_on_and_leaves_after_the_grace(url: String) {
    let (registry, other) = (Registry::connect(&url).await.unwrap(), Registry::connect(&url).await.unwrap());
    let service = other.discover("s").await.unwrap();
    let a = registry.register(Instance::new("s").code("a").weight(3)).await.unwrap();
    let b = other.register(Instance::new("s").code("b")).await.unwrap();
    let first = term(a.role());
    let hour = Duration::from_secs(3600);
    let is_drained = |s: &Snapshot| s.find("a").is_some_and(|a| !a.takes_work());
    // Cancelled as soon as it can be seen.
    let handed_on = |s: &Snapshot| is_drained(s) && s.master().is_some_and(|master| &*master.code == "b");
    let snapshot = tokio::select! {
        left = a.drain(hour) => panic!("before the grace: {left:?}"),
        snapshot = until("drained, and b is master", &service, handed_on) => snapshot,
    };
    assert_eq!(codes(&snapshot), ["a", "b"]);
    assert!(term(soon("b knows", b.roles().wait_for(Role::is_master)).await.unwrap()) > first);
    assert_eq!(soon("a knows", a.roles().wait_for(|role| role == Role::Normal)).await, Some(Role::Normal));
    soon("written", a.update(|instance| drop(instance.tags.insert("x".to_owned(), "1".to_owned())))).await.unwrap();
    let snapshot = until("updated", &service, |s| s.find("a").is_some_and(|a| !a.tags.is_empty())).await;
    assert!(is_drained(&snapshot), "still");
    // Taken back into service, and drained again to the end.
    soon("written", a.update(|instance| instance.weight = 3)).await.unwrap();
    until("back", &service, |s| !is_drained(s)).await;
    let (begun, grace) = (tokio::time::Instant::now(), Duration::from_millis(500));
    let seen = until("drained again", &service, is_drained);
    let (left, _) = soon("left", async { tokio::join!(a.drain(grace), seen) }).await;
    left.unwrap();
    assert!(begun.elapsed() >= grace);
    assert_eq!(a.role(), Role::Detached);
    until("gone", &service, |s| codes(s) == ["b"]).await;
    assert!(service.directory().has_left("s", "a"));
    soon("over", a.drain(hour)).await.unwrap();
    // Alone it is master until it leaves; and what was never registered has nobody to wait for.
    let check = Check::new(Probe::Tcp("127.0.0.1:1".to_owned()));
    let never = registry.registration(Instance::new("s").code("never")).check(check).start().unwrap();
    soon("nothing to be done", never.drain(hour)).await.unwrap();
    let of_b = term(b.role());
    tokio::select! {
        left = b.drain(hour) => panic!("before the grace: {left:?}"),
        _ = until("drained", &service, |s| s.find("b").is_some_and(|b| b.weight == 0)) => {}
    }
    assert_eq!(b.role(), Role::Master(of_b));
    // Whatever ends it ends the wait.
    let (left, ()) = soon("over", async { tokio::join!(b.drain(hour), other.close()) }).await;
    left.unwrap();
}

/// Through a proxy that can be cut.
async fn who_drains_itself_while_the_registry_is_away_leaves_after_the_grace(url: String, way: CuttingProxy) {
    let registry = Registry::connect(&url).await.unwrap();
    let a = registry.register(Instance::new("s").code("a")).await.unwrap();
    way.cut();
    soon("detached", a.roles().wait_for(|role| role == Role::Detached)).await.unwrap();
    let begun = tokio::time::Instant::now();
    let left = soon("the grace has passed", a.drain(Duration::from_millis(200))).await;
    assert!(matches!(left, Err(Error::Unavailable { .. })), "{left:?}");
    assert!(begun.elapsed() >= Duration::from_millis(200));
    way.mend();
    let service = registry.discover("s").await.unwrap();
    until("gone", &service, Snapshot::is_empty).await;
    // The connection that has carried it out may be lost again before that is known.
    let over = async {
        while let Err(error) = a.close().await {
            assert!(error.is_retryable(), "{error}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon("over", over).await;
}

async fn an_observer_is_never_master(url: String) {
    let (registry, other) = (Registry::connect(&url).await.unwrap(), Registry::connect(&url).await.unwrap());
    let service = other.discover("s").await.unwrap();
    let observer = |registry: &Registry, code: &str| registry.registration(Instance::new("s").code(code)).observer();
    let o = soon("registered", observer(&registry, "o").register()).await.unwrap();
    let p = soon("registered", observer(&other, "p").register()).await.unwrap();
    assert_eq!((o.role(), p.role()), (Role::Normal, Role::Normal));
    let snapshot = until("both", &service, |s| codes(s) == ["o", "p"]).await;
    assert!(snapshot.instances().iter().all(|instance| instance.observer && instance.role == Role::Normal));
    assert!(matches!(service.master(), Err(Error::NoMaster { .. })), "only observers live");
    assert!(matches!(soon("refused", o.resign()).await, Err(Error::NotMaster { .. })));
    // Whoever comes later is master at once, and then the next of those.
    let a = registry.register(Instance::new("s").code("a")).await.unwrap();
    let first = term(soon("a is master", a.roles().wait_for(Role::is_master)).await.unwrap());
    let b = other.register(Instance::new("s").code("b")).await.unwrap();
    soon("updated", o.update(|instance| instance.weight = 5)).await.unwrap();
    let updated = |s: &Snapshot| s.find("o").is_some_and(|o| o.weight == 5 && o.observer) && s.find("b").is_some();
    let snapshot = until("updated", &service, updated).await;
    assert!(snapshot.master().is_some_and(|master| &*master.code == "a" && !master.observer));
    soon("left", a.close()).await.unwrap();
    let second = term(soon("b is master", b.roles().wait_for(Role::is_master)).await.unwrap());
    assert!(second > first);
    // To observers nothing is handed on.
    registry.drain("s", "b").await.unwrap();
    until("drained", &service, |s| s.find("b").is_some_and(|b| b.status == Status::Drained)).await;
    soon("updated", b.update(|instance| instance.weight = 0)).await.unwrap();
    until("drained by itself", &service, |s| s.find("b").is_some_and(|b| b.registered.weight == 0)).await;
    assert_eq!(b.role(), Role::Master(second));
    soon("left", b.close()).await.unwrap();
    let snapshot = until("the observers are left", &service, |s| codes(s) == ["o", "p"]).await;
    assert!(snapshot.master().is_none() && o.role() == Role::Normal && p.role() == Role::Normal);
}

async fn a_holder_may_become_an_observer_and_a_candidate_again(url: String) {
    let (one, two) = (Registry::connect(&url).await.unwrap(), Registry::connect(&url).await.unwrap());
    let service = one.discover("s").await.unwrap();
    let instance = || Instance::new("s").code("a");
    let a = one.take_over(instance(), "holder").await.unwrap();
    let b = two.register(Instance::new("s").code("b")).await.unwrap();
    let first = term(a.role());
    let observer = two.registration(instance()).holder("holder").observer();
    let observer = soon("registered", observer.register()).await.unwrap();
    let second = term(soon("it goes to b", b.roles().wait_for(Role::is_master)).await.unwrap());
    assert!(second > first);
    soon("the one before ends", async { while a.roles().wait_for(|_| false).await.is_some() {} }).await;
    let is_observer = |s: &Snapshot| s.find("a").is_some_and(|a| a.observer && a.role == Role::Normal);
    let snapshot = until("an observer", &service, is_observer).await;
    assert_eq!((codes(&snapshot), observer.role()), (vec!["a", "b"], Role::Normal));
    b.close().await.unwrap();
    until("no master", &service, |s| codes(s) == ["a"] && s.master().is_none()).await;
    let again = soon("registered", one.take_over(instance(), "holder")).await.unwrap();
    let third = term(soon("master", again.roles().wait_for(Role::is_master)).await.unwrap());
    assert!(third > second);
    until("master", &service, |s| s.find("a").is_some_and(|a| !a.observer && a.role.is_master())).await;
}

async fn a_term_below_the_highest_is_refused_for_everybody(url: String) {
    let (registry, other) = (Registry::connect(&url).await.unwrap(), Registry::connect(&url).await.unwrap());
    let stale = |result: Result<Term, Error>| match result {
        Err(Error::StaleTerm { stale, .. }) => stale.seen,
        other => panic!("{other:?}"),
    };
    let first = registry.register(Instance::new("s").code("a")).await.unwrap();
    let old = term(first.role());
    assert_eq!(registry.check_term("s", old).await.unwrap(), old);
    let second = registry.register(Instance::new("s").code("b")).await.unwrap();
    first.resign().await.unwrap();
    let mut roles = second.roles();
    let new = term(
        soon("the second is master", async {
            loop {
                if let Some(role @ Role::Master(_)) = roles.changed().await {
                    break role;
                }
            }
        })
        .await,
    );
    // It was granted, whether or not anybody has shown it.
    assert_eq!(stale(other.check_term("s", old).await), new);
    // Also when there is no master any more.
    first.close().await.unwrap();
    second.close().await.unwrap();
    assert_eq!(stale(other.check_term("s", old).await), new);
    assert_eq!(stale(registry.check_term("s", Term(new.0 - 1)).await), new);
    assert_eq!(other.check_term("s", new).await.unwrap(), new);
    // Of a service that nobody has registered, and terms that nobody has granted: the highest that has passed counts.
    let high = Term(new.0 + 10);
    assert_eq!(registry.check_term("t", high).await.unwrap(), high);
    assert_eq!(stale(other.check_term("t", new).await), high);
    assert_eq!(other.check_term("t", Term(high.0 + 1)).await.unwrap(), Term(high.0 + 1));
    assert!(matches!(registry.check_term("a/b", new).await, Err(Error::Invalid(_))));
    assert!(
        !registry.discover("t").await.unwrap().snapshot().instances().iter().any(|_| true),
        "it is no service for that"
    );
    registry.close().await;
    assert!(matches!(other.check_term("s", new).await, Ok(_) | Err(Error::Closed { .. })));
}

async fn logs_are_the_same_for_all_and_keep_the_newest(url: String) {
    let (one, other) = (Registry::connect(&url).await.unwrap(), Registry::connect(&url).await.unwrap());
    let masters = Log::Masters("s".into());
    if url.starts_with("http:") {
        assert!(matches!(one.append(&masters, "1", "x").await, Err(Error::Refused { .. })));
        assert!(matches!(one.read_log(&masters).await, Err(Error::Refused { .. })));
        return;
    }
    assert_eq!(other.read_log(&Log::Audit).await.unwrap(), [""; 0]);
    for number in 0..2 * masters.limit() {
        one.append(&masters, &format!("{number:04}"), &number.to_string()).await.unwrap();
        other.append(&masters, &format!("{number:04}"), "the second is not taken").await.unwrap();
    }
    let newest: Vec<String> = (masters.limit()..2 * masters.limit()).map(|number| number.to_string()).collect();
    assert_eq!(other.read_log(&masters).await.unwrap(), newest);
    assert_eq!(one.read_log(&Log::Masters("t".into())).await.unwrap(), [""; 0]);
    assert!(matches!(one.append(&masters, "a/b", "x").await, Err(Error::Invalid(_))));
    assert!(matches!(one.append(&masters, "a", &"x".repeat(20_000)).await, Err(Error::Refused { .. })));
    let service = one.discover("s").await.unwrap();
    assert!(service.snapshot().is_empty(), "it is no instance for that");
}

macro_rules! conformance {
    ($($name:ident)*) => {
        mod memory {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(format!("memory://{}?guard=off", stringify!($name))).await;
            })*
        }
        mod agent {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let registry = super::Registry::connect(&format!("memory://agent-{}?guard=off", stringify!($name))).await.unwrap();
                let settings = pointsman_agent::Settings::new(([127, 0, 0, 1], 0).into());
                let agent = pointsman_agent::Agent::start(&registry, settings).await.unwrap();
                super::$name(format!("http://{}", agent.address())).await;
            })*
        }
        mod zookeeper {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let server = pointsman_testkit::ZooKeeper::shared().await;
                let prefix = pointsman_testkit::unique_prefix();
                let url = format!("zookeeper://{}/{}?guard=off", server.address(), prefix.trim_matches('/'));
                super::$name(url).await;
            })*
        }
    };
}

/// Those in which the registry is away for a while.
macro_rules! conformance_through_a_proxy {
    ($($name:ident)*) => {
        mod agent_through_a_proxy {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let registry = super::Registry::connect(&format!("memory://agent-{}?guard=off", stringify!($name))).await.unwrap();
                let settings = pointsman_agent::Settings::new(([127, 0, 0, 1], 0).into());
                let agent = pointsman_agent::Agent::start(&registry, settings).await.unwrap();
                let way = super::CuttingProxy::start(agent.address());
                super::$name(format!("http://{}?ttl=2s", way.address()), way).await;
            })*
        }
        mod zookeeper_through_a_proxy {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let server = pointsman_testkit::ZooKeeper::shared().await;
                let way = super::CuttingProxy::start(server.socket_address());
                let prefix = pointsman_testkit::unique_prefix();
                let url = format!("zookeeper://{}{prefix}?session_timeout=10s&guard=off", way.address());
                super::$name(url, way).await;
            })*
        }
    };
}

conformance_through_a_proxy! {
    who_waits_is_registered_when_the_registry_is_back_and_who_does_not_is_told_soon
    a_cut_connection_does_not_end_the_wait_for_a_code
    whoever_closes_is_answered_while_the_code_is_not_free_yet
    a_leader_that_is_cut_off_stops_and_leads_again
    who_drains_itself_while_the_registry_is_away_leaves_after_the_grace
}

conformance! {
    an_instance_is_registered_only_while_it_passes_its_check
    a_registration_that_is_given_up_leaves_nothing
    who_comes_back_gives_way_to_the_newer_registration_of_its_holder
    what_is_abandoned_stays_where_there_are_sessions_and_is_taken_over
    whoever_has_registered_finds_itself
    the_first_is_master_and_the_others_are_normal
    when_the_master_leaves_the_next_takes_over_with_a_higher_term
    resigning_hands_over_at_once
    a_living_registration_is_updated
    an_update_that_nobody_waits_for_any_more_is_not_taken_back_by_the_next
    what_cannot_be_updated_is_the_same_error_everywhere_and_changes_nothing
    closing_what_is_over_is_no_error
    what_an_operator_sets_survives_the_instance
    what_is_set_for_codes_that_are_gone_is_listed_and_cleared
    clean_hand_overs_in_a_row_list_one
    bad_names_are_refused_before_anything_is_written
    too_much_is_refused_before_it_is_written
    what_no_caller_can_use_or_see_is_refused
    the_same_code_twice_is_refused_and_free_again_afterwards
    a_code_is_free_for_the_next_as_soon_as_its_registration_is_dropped
    a_closed_registry_holds_nothing_and_takes_nothing
    changes_are_told_as_they_happen
    several_services_are_followed_and_no_others
    many_instances_come_and_go
    roles_end_with_their_registration
    a_role_says_how_long_it_is_certain
    a_leader_has_one_run_for_each_term_until_its_registration_ends
    a_leader_is_told_that_its_holder_leads_elsewhere
    the_same_holder_takes_its_registration_over_and_nobody_else_does
    a_drained_heir_is_passed_over
    draining_a_master_hands_the_mastership_on
    who_drains_itself_gets_no_new_work_hands_the_mastership_on_and_leaves_after_the_grace
    an_observer_is_never_master
    a_holder_may_become_an_observer_and_a_candidate_again
    a_clean_leave_is_never_guarded
    who_is_lost_is_guarded_and_returns
    a_term_below_the_highest_is_refused_for_everybody
    logs_are_the_same_for_all_and_keep_the_newest
}
