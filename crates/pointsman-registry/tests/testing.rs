//! The registry for tests: what its users would write with it, in virtual time.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Mutex;
use std::time::Duration;

use pointsman_core::{Instance, Role};
use pointsman_registry::testing::TestRegistry;
use pointsman_registry::{Error, Freshness, Registration, Registry};

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    // In virtual time: an hour passes at once where nothing happens.
    tokio::time::timeout(Duration::from_secs(3600), future).await.unwrap_or_else(|_| panic!("{what}"))
}

async fn register(registry: &Registry, code: &str) -> Registration {
    registry.register(Instance::with_code("s", code).address("127.0.0.1:80")).await.unwrap()
}

async fn until(registration: &Registration, wanted: impl Fn(Role) -> bool) -> Role {
    soon("the role", registration.roles().wait_for(wanted)).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_cut_connection_takes_the_role_at_once_and_gives_it_back() {
    let test = TestRegistry::new();
    let us = register(&test.registry(), "us").await;
    let role = us.role();
    assert!(role.is_master());
    test.cut();
    assert_eq!(us.role(), Role::Detached);
    let theirs = soon("followed", test.elsewhere().discover("s")).await.unwrap();
    assert_eq!(theirs.master().unwrap().code, us.instance().code, "others see nothing of it");
    test.mend();
    assert_eq!(until(&us, Role::is_master).await, role, "with the same term");
}

#[tokio::test(start_paused = true)]
async fn whoever_leads_stops_when_it_is_cut_off_and_another_leads_once_its_session_has_expired() {
    let test = TestRegistry::new();
    let (us, them) = (register(&test.registry(), "us").await, register(&test.elsewhere(), "them").await);
    let led = Mutex::new(Vec::new());
    struct Stops<'a>(&'a Mutex<Vec<String>>, &'static str);
    impl Drop for Stops<'_> {
        fn drop(&mut self) {
            self.0.lock().unwrap().push(format!("{} stops", self.1));
        }
    }
    let lead = async |registration: &Registration, who: &'static str| {
        let run = async |_| {
            led.lock().unwrap().push(format!("{who} leads"));
            let _stops = Stops(&led, who);
            std::future::pending::<()>().await;
        };
        registration.lead(run).await.unwrap();
    };
    let script = async {
        tokio::task::yield_now().await;
        test.cut();
        until(&us, |role| role == Role::Detached).await;
        test.expire();
        until(&them, Role::is_master).await;
        test.mend();
        until(&us, |role| role == Role::Normal).await;
        them.close().await.unwrap();
        until(&us, Role::is_master).await;
        us.close().await.unwrap();
    };
    soon("the play", async { tokio::join!(lead(&us, "us"), lead(&them, "them"), script) }).await;
    assert_eq!(
        *led.lock().unwrap(),
        ["us leads", "us stops", "them leads", "them stops", "us leads", "us stops"].map(str::to_owned)
    );
}

#[tokio::test(start_paused = true)]
async fn a_session_that_expires_while_connected_is_followed_by_another() {
    let test = TestRegistry::new();
    let (us, them) = (register(&test.registry(), "us").await, register(&test.elsewhere(), "them").await);
    test.expire();
    until(&them, Role::is_master).await;
    until(&us, |role| role == Role::Normal).await;
    let service = soon("found", test.registry().discover("s")).await.unwrap();
    assert_eq!(service.snapshot().instances().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_is_known_is_stale_while_the_connection_is_cut_and_requests_wait_for_it() {
    let test = TestRegistry::new();
    let registry = test.registry();
    let service = soon("followed", registry.discover("s")).await.unwrap();
    let them = register(&test.elsewhere(), "them").await;
    soon("seen", service.wait_for(|snapshot| snapshot.find("them").is_some())).await.unwrap();
    test.cut();
    soon("stale", service.directory().stale()).await;
    assert!(matches!(service.freshness(), Freshness::Stale { .. }));
    assert!(matches!(registry.drain("s", "them").await, Err(Error::Unavailable { .. })));
    let waiting = registry.drain("s", "them");
    let mending = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        test.mend();
    };
    tokio::join!(waiting, mending).0.unwrap();
    soon("fresh", service.directory().fresh()).await.unwrap();
    soon("drained", service.wait_for(|s| s.find("them").is_some_and(|them| !them.takes_work()))).await.unwrap();
    them.close().await.unwrap();
    soon("gone", service.wait_for(pointsman_core::Snapshot::is_empty)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_loses_its_data_is_registered_in_again_and_nobody_is_forgotten_meanwhile() {
    let test = TestRegistry::new();
    let service = soon("followed", test.registry().discover("s")).await.unwrap();
    let mut living = Vec::new();
    for number in 0..4 {
        let registry = if number % 2 == 0 { test.registry() } else { test.elsewhere() };
        living.push(register(&registry, &format!("i{number}")).await);
    }
    test.registry().drain("s", "i3").await.unwrap();
    soon("all", service.wait_for(|s| s.instances().len() == 4 && s.find("i3").is_some_and(|i| !i.takes_work())))
        .await
        .unwrap();
    test.cut();
    test.empty();
    test.mend();
    let full = |snapshot: &pointsman_core::Snapshot| snapshot.instances().len() == 4;
    let (mut changes, all) =
        (service.changes(), service.wait_for(|s| full(s) && !s.is_guarded() && s.master().is_some()));
    soon("all are back", all).await.unwrap();
    assert!(!service.snapshot().find("i3").unwrap().takes_work(), "a drain is kept by those who know of it");
    while let Some(Some(change)) = futures_util::FutureExt::now_or_never(changes.next()) {
        assert!(!matches!(change, pointsman_core::Change::Left(_)), "{change:?}");
    }
    for registration in &living {
        until(registration, |role| role != Role::Detached).await;
    }
}

#[tokio::test(start_paused = true)]
async fn who_closes_while_the_connection_is_cut_is_gone_when_it_is_back_and_tests_do_not_see_each_other() {
    let (test, other) = (TestRegistry::new(), TestRegistry::new());
    let us = register(&test.registry(), "us").await;
    assert!(other.registry().discover("s").await.unwrap().snapshot().is_empty());
    let theirs = soon("followed", test.elsewhere().discover("s")).await.unwrap();
    assert!(theirs.snapshot().find("us").is_some());
    test.cut();
    assert!(matches!(us.close().await, Err(Error::Unavailable { .. })));
    assert!(theirs.snapshot().find("us").is_some());
    test.mend();
    soon("gone", theirs.wait_for(pointsman_core::Snapshot::is_empty)).await.unwrap();
}
