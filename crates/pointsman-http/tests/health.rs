//! Who fails the checks gets no requests, and gets them again when it passes.
#![allow(clippy::unwrap_used, reason = "a test")]

mod tiny;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pointsman_balance::Ejection;
use pointsman_http::{Action, Check, Options, Protocol, Proxy, RouteRole, Service, Settings};
use pointsman_testkit::http::{HyperOrigin, answer};

use self::tiny::{Fleet, Origin, Play, Seen, get, metric, ok, settings, status, until};

/// Checked often; what fails twice is out, what passes twice is in.
fn checked(path: Option<&str>, change: impl FnOnce(&mut Service)) -> Settings {
    let mut check = Check::new(path.map(str::to_owned));
    (check.interval, check.rise, check.fall) = (Duration::from_millis(20), 2, 2);
    let mut service = Service::default();
    // Only the checks decide here.
    (service.check, service.ejection) = (Some(check), None);
    change(&mut service);
    let mut settings = settings(|_| {});
    settings.services.insert("ress".into(), service);
    settings
}

/// An origin that says who it is, and whether it is well when it is asked for `/health`.
async fn origin(name: &'static str, well: &Arc<AtomicBool>) -> Origin {
    let well = well.clone();
    Origin::start(move |seen: &Seen| match seen.line() {
        "GET /health HTTP/1.1" if well.load(Ordering::SeqCst) => status(302, ""),
        "GET /health HTTP/1.1" => status(404, ""),
        _ => ok(name),
    })
    .await
}

fn failing(proxy: &Proxy) -> u64 {
    metric(proxy, "pointsman_http_instances{service=\"ress\",state=\"failing\"}")
}

fn passing(proxy: &Proxy) -> u64 {
    metric(proxy, "pointsman_http_instances{service=\"ress\",state=\"passing\"}")
}

/// Who answers ten requests.
async fn who(proxy: &Proxy) -> String {
    let mut names = Vec::new();
    for _ in 0..10 {
        names.push(get(proxy.address(), "/").await.1);
    }
    names.sort();
    names.dedup();
    names.concat()
}

fn switch(on: bool) -> Arc<AtomicBool> {
    Arc::new(AtomicBool::new(on))
}

#[tokio::test]
async fn who_fails_its_checks_is_out_and_comes_back() {
    let (well_a, well_b) = (switch(true), switch(true));
    let (mut a, b) = (origin("a", &well_a).await, origin("b", &well_b).await);
    let fleet = Fleet::new(&["ress"]);
    fleet.set("ress", &[("a", a.address), ("b", b.address)]);
    let proxy = fleet.proxy(checked(Some("/health"), |_| {}), Options::default());
    assert_eq!(who(&proxy).await, "ab");
    well_b.store(false, Ordering::SeqCst);
    until("b failing", || failing(&proxy) == 1).await;
    assert_eq!((who(&proxy).await, passing(&proxy)), ("a".to_owned(), 1));
    well_b.store(true, Ordering::SeqCst);
    until("b passing", || failing(&proxy) == 0).await;
    assert_eq!((who(&proxy).await, passing(&proxy)), ("ab".to_owned(), 2));
    let checks =
        |result| metric(&proxy, &format!("pointsman_http_health_checks_total{{service=\"ress\",result=\"{result}\"}}"));
    assert!(checks("passed") >= 3 && checks("failed") >= 2, "{}", proxy.metrics());
    let check = a.next_like("/health").await;
    assert_eq!(check.field("host"), Some(&*a.address.to_string()));
    assert!(check.field("user-agent").unwrap().contains("check"), "{}", check.head);
}

#[tokio::test]
async fn a_connection_is_enough_where_nothing_is_asked_for_and_an_answer_in_time_where_something_is() {
    let (a, hangs) = (origin("a", &switch(true)).await, Origin::start(|_| Play::Held(String::new())).await);
    let fleet = Fleet::new(&["ress"]);
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    // What must not be called is not called for a check either.
    let metadata: SocketAddr = "169.254.169.254:80".parse().unwrap();
    for (bad, path) in [(nobody, None), (metadata, None), (hangs.address, Some("/health"))] {
        fleet.set("ress", &[("a", a.address), ("b", bad)]);
        let settings = checked(path, |service| {
            service.check.as_mut().unwrap().timeout = Duration::from_millis(200);
        });
        let proxy = fleet.proxy(settings, Options::default());
        until("b failing", || failing(&proxy) == 1).await;
        assert_eq!(who(&proxy).await, "a", "{bad}");
    }
    fleet.set("ress", &[("a", a.address), ("b", hangs.address)]);
    let proxy = fleet.proxy(checked(None, |_| {}), Options::default());
    let passed = "pointsman_http_health_checks_total{service=\"ress\",result=\"passed\"}";
    until("both checked", || metric(&proxy, passed) > 10).await;
    assert_eq!(failing(&proxy), 0);
}

#[tokio::test]
async fn those_that_pass_are_used_however_few_they_are_and_then_all() {
    let well = [switch(true), switch(true), switch(true)];
    let (a, b, c) = (origin("a", &well[0]).await, origin("b", &well[1]).await, origin("c", &well[2]).await);
    let fleet = Fleet::new(&["ress"]);
    fleet.set("ress", &[("a", a.address), ("b", b.address), ("c", c.address)]);
    let proxy = fleet.proxy(checked(Some("/health"), |_| {}), Options::default());
    well[0].store(false, Ordering::SeqCst);
    until("a failing", || failing(&proxy) == 1).await;
    assert_eq!(who(&proxy).await, "bc");
    well[1].store(false, Ordering::SeqCst);
    until("two failing", || failing(&proxy) == 2).await;
    assert_eq!(who(&proxy).await, "c", "those that are known to fail are not asked while one passes");
    well[2].store(false, Ordering::SeqCst);
    until("all failing", || failing(&proxy) == 3).await;
    assert_eq!(who(&proxy).await, "abc", "when all fail, it is rather the check that is wrong");
    well[2].store(true, Ordering::SeqCst);
    well[1].store(true, Ordering::SeqCst);
    until("b and c passing", || failing(&proxy) == 1).await;
    assert_eq!(who(&proxy).await, "bc");
    // Another threshold, the same checks: what they know still holds.
    let lenient = checked(Some("/health"), |service| {
        let mut ejection = Ejection::default();
        ejection.panic_percent = 90;
        service.ejection = Some(ejection);
    });
    proxy.reload(lenient, &fleet.views()).unwrap();
    assert_eq!((failing(&proxy), &*who(&proxy).await), (1, "bc"));
}

#[tokio::test]
async fn a_reload_forgets_nothing_and_whoever_joins_counts_as_well() {
    let (a, b) = (origin("a", &switch(true)).await, origin("b", &switch(false)).await);
    let fleet = Fleet::new(&["ress"]);
    fleet.set("ress", &[("a", a.address), ("b", b.address)]);
    let proxy = fleet.proxy(checked(Some("/health"), |_| {}), Options::default());
    until("b failing", || failing(&proxy) == 1).await;
    let mut settings = checked(Some("/health"), |service| service.max_in_flight = Some(9));
    proxy.reload(settings.clone(), &fleet.views()).unwrap();
    assert_eq!((failing(&proxy), &*who(&proxy).await), (1, "a"));
    settings.allow_addresses = vec!["169.254.0.0/16".parse().unwrap()];
    proxy.reload(settings.clone(), &fleet.views()).unwrap();
    assert_eq!((failing(&proxy), &*who(&proxy).await), (1, "a"));
    // Out goes who was known to fail; the same code at another address is another.
    let c = origin("c", &switch(true)).await;
    fleet.set("ress", &[("a", a.address), ("b", c.address)]);
    until("both passing", || (failing(&proxy), passing(&proxy)) == (0, 2)).await;
    assert_eq!(who(&proxy).await, "ac");
    fleet.set("ress", &[("b", c.address)]);
    until("a gone", || {
        proxy.metrics().contains("instance_in_flight{service=\"ress\",code=\"b\"}")
            && !proxy.metrics().contains("instance_in_flight{service=\"ress\",code=\"a\"}")
    })
    .await;
    assert_eq!(who(&proxy).await, "c");
    // No checks, no view without anybody.
    settings.services.clear();
    fleet.set("ress", &[("b", b.address)]);
    proxy.reload(settings, &fleet.views()).unwrap();
    assert_eq!((failing(&proxy), &*who(&proxy).await), (0, "b"));
}

#[tokio::test]
async fn checks_of_a_table_that_a_request_holds_on_to_end_with_a_reload() {
    let mut a = Origin::start(|seen: &Seen| match seen.line() {
        "GET /held HTTP/1.1" => Play::Held(String::new()),
        "GET /old HTTP/1.1" => status(503, ""),
        _ => ok("a"),
    })
    .await;
    let fleet = Fleet::new(&["ress"]);
    fleet.set("ress", &[("a", a.address)]);
    let proxy = fleet.proxy(checked(Some("/old"), |_| {}), Options::default());
    until("a failing", || failing(&proxy) == 1).await;
    let address = proxy.address();
    let held = tokio::spawn(async move { get(address, "/held").await });
    a.next_like("/held").await;
    proxy.reload(checked(Some("/new"), |_| {}), &fleet.views()).unwrap();
    until("a passing", || failing(&proxy) == 0).await;
    let passed = || metric(&proxy, "pointsman_http_health_checks_total{service=\"ress\",result=\"passed\"}");
    a.others();
    let before = passed();
    until("some more checks", || passed() > before + 5).await;
    assert!(a.others().iter().all(|seen| seen.line().contains("/new")));
    held.abort();
}

#[tokio::test]
async fn the_master_is_checked_like_the_others() {
    let well = switch(true);
    let (a, m) = (origin("a", &switch(true)).await, origin("m", &well).await);
    let fleet = Fleet::new(&["ress"]);
    fleet.set("ress", &[("a", a.address), ("m", m.address)]);
    let mut settings = checked(Some("/health"), |_| {});
    let Action::Pass(pass) = &mut settings.routes[0].action else { unreachable!() };
    pass.role = RouteRole::Master;
    let proxy = fleet.proxy(settings, Options::default());
    assert_eq!(who(&proxy).await, "m");
    well.store(false, Ordering::SeqCst);
    until("the master failing", || failing(&proxy) == 1).await;
    assert_eq!(who(&proxy).await, "m", "there is no other, and the check may be wrong");
}

#[tokio::test]
async fn who_is_ejected_and_who_has_what_under_way_is_told() {
    let (bad, mut held) = (Origin::start(|_| Play::Drop).await, Origin::start(|_| Play::Held(String::new())).await);
    let fleet = Fleet::new(&["ress"]);
    fleet.set("ress", &[("a", bad.address), ("b", bad.address), ("c", bad.address)]);
    let mut settings = settings(|_| {});
    let mut service = Service::default();
    let mut ejection = Ejection::default();
    ejection.consecutive_failures = 1;
    service.ejection = Some(ejection);
    settings.services.insert("ress".into(), service);
    let proxy = fleet.proxy(settings, Options::default());
    let ejected = || metric(&proxy, "pointsman_http_instances_ejected{service=\"ress\"}");
    assert_eq!(ejected(), 0);
    get(proxy.address(), "/").await;
    assert_eq!(ejected(), 1, "never more than a tenth, but one");
    assert_eq!((passing(&proxy), failing(&proxy)), (3, 0));
    assert!(!proxy.metrics().contains("health_checks_total{"), "there are none");

    fleet.set("ress", &[("h", held.address)]);
    let address = proxy.address();
    let waiting = tokio::spawn(async move { get(address, "/").await });
    held.next().await;
    assert_eq!(metric(&proxy, "pointsman_http_instance_in_flight{service=\"ress\",code=\"h\"}"), 1);
    waiting.abort();
    until("the client gone", || metric(&proxy, "pointsman_http_in_flight{route=\"^/\",service=\"ress\"}") == 0).await;
    assert_eq!(metric(&proxy, "pointsman_http_instance_in_flight{service=\"ress\",code=\"h\"}"), 0);
}

#[tokio::test]
async fn who_speaks_http2_is_checked_in_it() {
    let (a, b) = (HyperOrigin::start("a").await, HyperOrigin::scripted("b", |_| Some(answer(503, ""))).await);
    let fleet = Fleet::new(&["ress"]);
    fleet.set("ress", &[("a", a.address()), ("b", b.address())]);
    let settings = checked(Some("/status/204"), |service| service.protocol = Protocol::Http2);
    let proxy = fleet.proxy(settings, Options::default());
    until("b failing", || failing(&proxy) == 1).await;
    until("a checked again", || a.requests() > 4).await;
    assert_eq!((failing(&proxy), passing(&proxy)), (1, 1));
    assert!(a.seen().iter().all(|seen| (&*seen.version, &*seen.target) == ("HTTP/2.0", "/status/204")));
    // Each check is a connection of its own, and leaves none behind.
    until("connections ended", || a.open() <= 1).await;
    assert_eq!(get(proxy.address(), "/status/201").await.0, 201);
}
