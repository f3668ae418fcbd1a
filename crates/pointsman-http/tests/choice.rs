//! The proxy goes by the one ordered choice of `docs/choosing.md`: whoever lives is used, whoever is known to be dead is not.
#![allow(clippy::unwrap_used, reason = "a test")]

mod tiny;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use pointsman_core::{ObservedInstance, Status};
use pointsman_http::{Action, Check, Options, Pass, Proxy, Route, RouteRole, Service, Settings, Sticky};
use pointsman_testkit::choosing::{Asked, ChoosingTable, Known, combinations};
use pointsman_testkit::http::unused_address as nobody;
use tokio::time::Instant;

use self::tiny::{Fleet, Origin, Play, SOON, Seen, exchange, get, instance, metric, ok, settings, status, until};

async fn origin(name: &'static str) -> Origin {
    Origin::start(move |_| ok(name)).await
}

fn guarded(mut instance: ObservedInstance) -> ObservedInstance {
    instance.guarded_since = Some(SystemTime::now());
    instance
}

fn weightless(mut instance: ObservedInstance) -> ObservedInstance {
    instance.weight = 0;
    instance
}

fn drained(mut instance: ObservedInstance) -> ObservedInstance {
    instance.status = Status::Drained;
    instance
}

/// The bodies of so many answers, each once, in order; every status must be 200.
async fn answers(proxy: &Proxy, count: usize) -> String {
    let mut names = Vec::new();
    for number in 0..count {
        let (status, body) = get(proxy.address(), "/").await;
        assert_eq!(status, 200, "request {number}: {body}");
        names.push(body);
    }
    names.sort();
    names.dedup();
    names.concat()
}

async fn post(address: SocketAddr) -> String {
    exchange(address, "POST / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx").await
}

fn in_flight(proxy: &Proxy, code: &str) -> u64 {
    metric(proxy, &format!("pointsman_http_instance_in_flight{{service=\"ress\",code=\"{code}\"}}"))
}

fn queued(proxy: &Proxy) -> u64 {
    metric(proxy, "pointsman_http_queued_total{route=\"^/\",service=\"ress\"}")
}

fn to_master(settings: &mut Settings) {
    pass(settings).role = RouteRole::Master;
}

fn pass(settings: &mut Settings) -> &mut Pass {
    let Action::Pass(pass) = &mut settings.routes[0].action else { unreachable!() };
    pass
}

fn limited(most: usize) -> Settings {
    let mut settings = settings(|pass| pass.queue_timeout = SOON);
    settings.services.insert("ress".into(), with_limit(Some(most)));
    settings
}

fn with_limit(most: Option<usize>) -> Service {
    let mut service = Service::default();
    service.max_in_flight = most;
    service
}

#[tokio::test]
async fn one_dead_normal_beside_a_healthy_master_costs_no_request() {
    let master = origin("m").await;
    let fleet = Fleet::new(&["ress"]);
    fleet.set("ress", &[("a", nobody()), ("m", master.address)]);
    let proxy = fleet.proxy(settings(|_| {}), Options::default());
    assert_eq!(answers(&proxy, 50).await, "m");
    for _ in 0..20 {
        assert!(post(proxy.address()).await.starts_with("HTTP/1.1 200"));
    }
    let unreachable = metric(&proxy, "pointsman_http_attempts_total{service=\"ress\",outcome=\"unreachable\"}");
    assert_eq!(unreachable, 5, "then it is ejected, and the master stands in");
}

#[tokio::test]
async fn nine_of_ten_that_are_dead_cost_no_request_registered_or_guarded() {
    let living = origin("x").await;
    let fleet = Fleet::new(&["ress"]);
    let dead: Vec<SocketAddr> = (0..9).map(|_| nobody()).collect();
    let fleet_of = |is_guarded: bool| {
        let dead = dead.iter().zip('a'..).map(move |(address, code)| {
            let instance = instance("ress", &code.to_string(), *address);
            if is_guarded { guarded(instance) } else { instance }
        });
        dead.chain([instance("ress", "x", living.address)]).collect::<Vec<_>>()
    };
    fleet.put("ress", fleet_of(false));
    let proxy = fleet.proxy(settings(|_| {}), Options::default());
    assert_eq!(answers(&proxy, 100).await, "x");
    let attempts = || metric(&proxy, "pointsman_http_attempts_total{service=\"ress\",outcome=\"unreachable\"}");
    let before = attempts();
    fleet.put("ress", fleet_of(true));
    assert_eq!(answers(&proxy, 100).await, "x");
    assert_eq!(attempts(), before, "none that is guarded is asked while one lives");
}

#[tokio::test]
async fn guarded_instances_serve_where_there_is_no_other_and_are_out_at_the_first_failure() {
    let (a, b) = (origin("a").await, origin("b").await);
    let fleet = Fleet::new(&["ress"]);
    let all = [("a", a.address), ("b", b.address), ("c", nobody())];
    fleet.put("ress", all.map(|(code, address)| guarded(instance("ress", code, address))));
    let proxy = fleet.proxy(settings(|_| {}), Options::default());
    assert_eq!(answers(&proxy, 30).await, "ab");
    assert_eq!(metric(&proxy, "pointsman_http_attempts_total{service=\"ress\",outcome=\"unreachable\"}"), 1);
    // A master that lives comes before all of them.
    let master = origin("m").await;
    let with_master = all.map(|(code, address)| guarded(instance("ress", code, address)));
    fleet.put("ress", with_master.into_iter().chain([instance("ress", "m", master.address)]));
    assert_eq!(answers(&proxy, 10).await, "m");
}

/// A settings file with checks of `/health`, often.
fn checked(fall: u32, interval: u64) -> Settings {
    let mut check = Check::new(Some("/health".to_owned()));
    (check.interval, check.rise, check.fall) = (Duration::from_millis(interval), 1, fall);
    let mut service = Service::default();
    (service.check, service.ejection) = (Some(check), None);
    let mut settings = settings(|pass| pass.retries = 0);
    settings.services.insert("ress".into(), service);
    settings
}

fn failing(proxy: &Proxy) -> u64 {
    metric(proxy, "pointsman_http_instances{service=\"ress\",state=\"failing\"}")
}

#[tokio::test]
async fn those_that_are_known_to_be_dead_are_not_asked_whatever_is_reloaded() {
    let living = origin("e").await;
    let fleet = Fleet::new(&["ress"]);
    fleet.set("ress", &[("a", nobody()), ("b", nobody()), ("c", nobody()), ("d", nobody()), ("e", living.address)]);
    let proxy = fleet.proxy(checked(1, 20), Options::default());
    until("four failing", || failing(&proxy) == 4).await;
    assert_eq!(answers(&proxy, 60).await, "e");
    // Other settings of the check, the next of which is far away.
    for settings in [checked(3, 60_000), checked(2, 30_000)] {
        proxy.reload(settings, &fleet.views()).unwrap();
        assert_eq!((&*answers(&proxy, 40).await, failing(&proxy)), ("e", 4));
    }
    let mut with_ejection = checked(2, 30_000);
    with_ejection.services.get_mut("ress").unwrap().ejection = Some(pointsman_balance::Ejection::default());
    proxy.reload(with_ejection, &fleet.views()).unwrap();
    assert_eq!(answers(&proxy, 40).await, "e");
}

#[tokio::test]
async fn a_newcomer_waits_for_its_first_check_where_another_can_serve() {
    let (a, is_well) = (origin("a").await, Arc::new(AtomicBool::new(false)));
    let well = is_well.clone();
    let newcomer = Origin::start(move |seen: &Seen| match seen.line() {
        "GET /health HTTP/1.1" if !well.load(Ordering::SeqCst) => status(503, ""),
        _ => ok("b"),
    })
    .await;
    let fleet = Fleet::new(&["ress"]);
    fleet.set("ress", &[("a", a.address)]);
    let proxy = fleet.proxy(checked(1000, 20), Options::default());
    until("a checked", || metric(&proxy, "pointsman_http_health_checks_total{service=\"ress\",result=\"passed\"}") > 0)
        .await;
    fleet.set("ress", &[("a", a.address), ("b", newcomer.address)]);
    for _ in 0..20 {
        assert!(post(proxy.address()).await.ends_with("\r\n\r\na"));
    }
    is_well.store(true, Ordering::SeqCst);
    let both = async { while answers(&proxy, 4).await != "ab" {} };
    tokio::time::timeout(SOON, both).await.expect("it is used once it has passed");
    // Where there is no other, it is not waited for.
    is_well.store(false, Ordering::SeqCst);
    let fleet = Fleet::new(&["ress"]);
    fleet.set("ress", &[("b", newcomer.address)]);
    let proxy = fleet.proxy(checked(1000, 20), Options::default());
    assert_eq!(answers(&proxy, 5).await, "b");
}

#[tokio::test]
async fn put_again_at_another_address_an_instance_is_another() {
    let (b, dead) = (origin("b").await, nobody());
    let fleet = Fleet::new(&["ress"]);
    fleet.set("ress", &[("a", dead), ("b", b.address)]);
    let proxy = fleet.proxy(settings(|_| {}), Options::default());
    answers(&proxy, 20).await;
    assert_eq!(metric(&proxy, "pointsman_http_instances_ejected{service=\"ress\"}"), 1);
    let a = origin("a").await;
    fleet.set("ress", &[("a", a.address), ("b", b.address)]);
    assert_eq!(answers(&proxy, 4).await, "ab", "at once");
    assert_eq!(metric(&proxy, "pointsman_http_instances_ejected{service=\"ress\"}"), 0);
}

#[tokio::test]
async fn a_route_to_the_master_counts_what_is_under_way_and_waits_for_the_next_master() {
    let (mut held, next) = (Origin::start(|_| Play::Held(String::new())).await, origin("next").await);
    let fleet = Fleet::new(&["ress"]);
    fleet.set("ress", &[("m", held.address), ("n", next.address)]);
    let mut settings = settings(|pass| pass.queue_timeout = SOON);
    to_master(&mut settings);
    let proxy = fleet.proxy(settings, Options::default());
    let address = proxy.address();
    let first = tokio::spawn(async move { get(address, "/").await });
    held.next().await;
    assert_eq!((in_flight(&proxy, "m"), in_flight(&proxy, "n")), (1, 0));
    // It resigns: for a moment there is none.
    let as_normal = |code: &str, address| {
        let mut instance = instance("ress", code, address);
        instance.role = pointsman_core::Role::Normal;
        instance
    };
    fleet.put("ress", [as_normal("m", held.address), as_normal("n", next.address)]);
    let waiting: Vec<_> = (0..4).map(|_| tokio::spawn(async move { get(address, "/").await })).collect();
    until("four waiting", || queued(&proxy) == 4).await;
    let mut promoted = instance("ress", "n", next.address);
    promoted.role = pointsman_core::Role::Master(pointsman_core::Term(2));
    fleet.put("ress", [as_normal("m", held.address), promoted]);
    for request in waiting {
        assert_eq!(request.await.unwrap(), (200, "next".to_owned()));
    }
    first.abort();
}

#[tokio::test]
async fn a_master_that_is_gone_before_it_was_registered_away_is_waited_past() {
    let (dead, next) = (nobody(), origin("next").await);
    let fleet = Fleet::new(&["ress"]);
    fleet.set("ress", &[("m", dead)]);
    let mut settings = settings(|pass| pass.queue_timeout = SOON);
    to_master(&mut settings);
    let proxy = fleet.proxy(settings, Options::default());
    let address = proxy.address();
    let request = tokio::spawn(async move { post(address).await });
    until("it waits", || queued(&proxy) == 1).await;
    let mut promoted = instance("ress", "n", next.address);
    promoted.role = pointsman_core::Role::Master(pointsman_core::Term(2));
    fleet.put("ress", [promoted]);
    assert!(request.await.unwrap().ends_with("next"));
}

#[tokio::test]
async fn a_master_that_is_drained_is_waited_past() {
    let (m, next) = (origin("m").await, origin("next").await);
    let fleet = Fleet::new(&["ress"]);
    fleet.set("ress", &[("m", m.address), ("n", next.address)]);
    let mut settings = settings(|pass| pass.queue_timeout = SOON);
    to_master(&mut settings);
    let proxy = fleet.proxy(settings, Options::default());
    let address = proxy.address();
    assert_eq!(answers(&proxy, 1).await, "m");
    fleet.put("ress", [drained(instance("ress", "m", m.address)), instance("ress", "n", next.address)]);
    let waiting = tokio::spawn(async move { get(address, "/").await });
    until("it waits", || queued(&proxy) == 1).await;
    let mut promoted = instance("ress", "n", next.address);
    promoted.role = pointsman_core::Role::Master(pointsman_core::Term(2));
    fleet.put("ress", [drained(instance("ress", "a", m.address)), promoted]);
    assert_eq!(waiting.await.unwrap(), (200, "next".to_owned()));
}

#[tokio::test]
async fn where_there_was_no_master_for_long_nothing_is_waited_for() {
    let n = origin("n").await;
    let fleet = Fleet::new(&["ress"]);
    fleet.set("ress", &[("n", n.address)]);
    let mut settings = settings(|pass| pass.queue_timeout = SOON);
    to_master(&mut settings);
    let proxy = fleet.proxy(settings.clone(), Options::default());
    assert_eq!(get(proxy.address(), "/").await.0, 503);
    assert_eq!(queued(&proxy), 0);
    // And no longer than it may be.
    pass(&mut settings).queue_timeout = Duration::from_millis(50);
    proxy.reload(settings, &fleet.views()).unwrap();
    fleet.set("ress", &[("m", n.address)]);
    assert_eq!(get(proxy.address(), "/").await.0, 200);
    fleet.set("ress", &[("n", n.address)]);
    let (status, problem) = get(proxy.address(), "/").await;
    assert!(status == 503 && problem.contains("master"), "{problem}");
    assert_eq!(queued(&proxy), 1);
}

/// A service of one instance whose only place is taken, and a request that waits for it.
async fn one_that_waits(fleet: &Fleet, proxy: &Proxy, held: &mut Origin) -> tokio::task::JoinHandle<(u16, String)> {
    fleet.set("ress", &[("a", held.address)]);
    let address = proxy.address();
    tokio::spawn(async move { get(address, "/").await });
    held.next().await;
    let before = queued(proxy);
    let waiting = tokio::spawn(async move { get(address, "/").await });
    until("it waits", || queued(proxy) == before + 1).await;
    waiting
}

#[tokio::test]
async fn whatever_makes_room_wakes_the_queue() {
    let mut held = Origin::start(|_| Play::Held("HTTP/1.1 200 X\r\ncontent-length: 1\r\n\r\na".to_owned())).await;
    let b = origin("b").await;
    let fleet = Fleet::new(&["ress"]);
    let proxy = fleet.proxy(limited(1), Options::default());
    // An instance that joins,
    let waiting = one_that_waits(&fleet, &proxy, &mut held).await;
    fleet.set("ress", &[("a", held.address), ("b", b.address)]);
    assert_eq!(waiting.await.unwrap(), (200, "b".to_owned()));
    // one that is undrained,
    held.release(1);
    until("a free", || in_flight(&proxy, "a") == 0).await;
    let waiting = one_that_waits(&fleet, &proxy, &mut held).await;
    fleet.put("ress", [instance("ress", "a", held.address), drained(instance("ress", "b", b.address))]);
    fleet.set("ress", &[("a", held.address), ("b", b.address)]);
    assert_eq!(waiting.await.unwrap(), (200, "b".to_owned()));
    // a limit that is raised,
    held.release(1);
    until("a free", || in_flight(&proxy, "a") == 0).await;
    let waiting = one_that_waits(&fleet, &proxy, &mut held).await;
    proxy.reload(limited(2), &fleet.views()).unwrap();
    held.next().await;
    held.release(2);
    assert_eq!(waiting.await.unwrap(), (200, "a".to_owned()));
    proxy.reload(limited(1), &fleet.views()).unwrap();
    // or that there is nothing to wait for any more.
    until("a free", || in_flight(&proxy, "a") == 0).await;
    let waiting = one_that_waits(&fleet, &proxy, &mut held).await;
    fleet.set("ress", &[]);
    assert_eq!(waiting.await.unwrap().0, 503);
}

#[tokio::test]
async fn what_is_under_way_at_an_address_that_is_gone_takes_no_place_of_the_next() {
    let mut held = Origin::start(|_| Play::Held(String::new())).await;
    let fleet = Fleet::new(&["ress"]);
    let proxy = fleet.proxy(limited(1), Options::default());
    let waiting = one_that_waits(&fleet, &proxy, &mut held).await;
    let again = origin("again").await;
    fleet.set("ress", &[("a", again.address)]);
    assert_eq!(waiting.await.unwrap(), (200, "again".to_owned()));
}

#[tokio::test]
async fn a_limit_of_a_route_that_is_raised_lets_those_in_who_wait() {
    let mut held = Origin::start(|_| Play::Held("HTTP/1.1 200 X\r\ncontent-length: 1\r\n\r\na".to_owned())).await;
    let fleet = Fleet::new(&["ress"]);
    let with = |most| {
        settings(|pass: &mut Pass| {
            pass.queue_timeout = SOON;
            pass.max_in_flight = most;
        })
    };
    for raised in [Some(2), None] {
        let proxy = fleet.proxy(with(Some(1)), Options::default());
        let waiting = one_that_waits(&fleet, &proxy, &mut held).await;
        proxy.reload(with(raised), &fleet.views()).unwrap();
        held.next().await;
        held.release(2);
        assert_eq!(waiting.await.unwrap(), (200, "a".to_owned()));
    }
}

/// What a client with this cookie is answered, and which cookie it is given.
async fn with_cookie(proxy: &Proxy, code: &str) -> (String, Option<String>) {
    let request = format!("GET / HTTP/1.1\r\nHost: h\r\nCookie: at={code}\r\nConnection: close\r\n\r\n");
    let answer = exchange(proxy.address(), &request).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let cookie = head.lines().find_map(|line| line.strip_prefix("set-cookie: ")).map(str::to_owned);
    (body.to_owned(), cookie)
}

#[tokio::test]
async fn a_client_stays_with_its_instance_when_that_is_promoted_busy_or_lost_for_a_moment() {
    let (mut a, b) = (
        Origin::start(|seen: &Seen| match seen.line() {
            "GET /held HTTP/1.1" => Play::Held("HTTP/1.1 204 X\r\n\r\n".to_owned()),
            _ => ok("a"),
        })
        .await,
        origin("b").await,
    );
    let fleet = Fleet::new(&["ress"]);
    fleet.set("ress", &[("m", a.address), ("b", b.address)]);
    let mut settings = limited(1);
    pass(&mut settings).sticky = Some(Sticky { cookie: "at".to_owned(), max_age: None });
    let proxy = fleet.proxy(settings, Options::default());
    assert_eq!(with_cookie(&proxy, "m").await, ("a".to_owned(), None), "promoted, it keeps its clients");
    // At its limit another serves, and the client comes back after that.
    let address = proxy.address();
    tokio::spawn(async move {
        exchange(address, "GET /held HTTP/1.1\r\nHost: h\r\nCookie: at=m\r\nConnection: close\r\n\r\n").await
    });
    a.next_like("/held").await;
    assert_eq!(with_cookie(&proxy, "m").await, ("b".to_owned(), None));
    a.release(1);
    until("a free", || in_flight(&proxy, "m") == 0).await;
    // So it does when the registry has lost it for a moment,
    fleet.put("ress", [guarded(instance("ress", "m", a.address)), instance("ress", "b", b.address)]);
    assert_eq!(with_cookie(&proxy, "m").await, ("b".to_owned(), None));
    fleet.set("ress", &[("m", a.address), ("b", b.address)]);
    assert_eq!(with_cookie(&proxy, "m").await, ("a".to_owned(), None));
    // but not when it has left, or is drained.
    fleet.put("ress", [drained(instance("ress", "m", a.address)), instance("ress", "b", b.address)]);
    assert!(with_cookie(&proxy, "m").await.1.unwrap().starts_with("at=b;"));
    fleet.set("ress", &[("b", b.address)]);
    assert!(with_cookie(&proxy, "m").await.1.unwrap().starts_with("at=b;"));
}

#[tokio::test]
async fn a_share_that_nobody_serves_goes_home() {
    let (home, next) = (origin("home").await, origin("next").await);
    let fleet = Fleet::new(&["ress", "next"]);
    fleet.set("ress", &[("a", home.address)]);
    let proxy = fleet.proxy(settings(|pass| pass.split = vec![("next".into(), 99)]), Options::default());
    let went_home = || metric(&proxy, "pointsman_http_split_home_total{route=\"^/\",service=\"ress\"}");
    assert_eq!(answers(&proxy, 10).await, "home", "empty");
    let before = went_home();
    assert!(before > 0);
    fleet.put("next", [drained(instance("next", "b", next.address))]);
    assert_eq!(answers(&proxy, 10).await, "home", "drained");
    fleet.set("next", &[("b", nobody()), ("c", nobody())]);
    assert_eq!(answers(&proxy, 10).await, "home", "dead");
    assert!(went_home() > before);
    let before = went_home();
    fleet.set("next", &[("b", next.address)]);
    let mut at_next = 0;
    for _ in 0..20 {
        at_next += u32::from(get(proxy.address(), "/").await == (200, "next".to_owned()));
    }
    assert!(at_next > 10 && went_home() == before, "{at_next}");
}

/// What a proxy can know of an instance that it has not tried. That one is at its limit is in `whatever_makes_room_wakes_the_queue`.
const KNOWN: [Known; 9] = [
    Known::Passing,
    Known::Unchecked,
    Known::Ejected,
    Known::Guarded,
    Known::Failing,
    Known::GuardedFailed,
    Known::Drained,
    Known::Weightless,
    Known::Absent,
];

const CODES: [&str; 3] = ["m", "a", "b"];

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_combination_is_decided_by_the_table() {
    let table = Arc::new(ChoosingTable::read());
    let origins = Arc::new(Origins::start().await);
    let mut left = combinations(&KNOWN, &KNOWN).into_iter();
    let mut walking = tokio::task::JoinSet::new();
    loop {
        while walking.len() < 16
            && let Some(states) = left.next()
        {
            walking.spawn(walk(states, table.clone(), origins.clone()));
        }
        let Some(walked) = walking.join_next().await else { break };
        walked.unwrap();
    }
}

/// Origins for each thing that can be known of each instance. All live.
struct Origins {
    of: Vec<(&'static str, Known, Origin)>,
}

impl Origins {
    async fn start() -> Self {
        let mut of = Vec::new();
        for code in CODES {
            for known in KNOWN {
                let origin =
                    Origin::start(move |seen: &Seen| match seen.line().split(' ').nth(1).unwrap_or_default() {
                        "/health" if known == Known::Failing => status(503, ""),
                        "/health" if known == Known::Unchecked => Play::Held(String::new()),
                        "/bad" | "/bad/master" => status(500, code),
                        _ => ok(code),
                    });
                of.push((code, known, origin.await));
            }
        }
        Self { of }
    }

    fn instance(&self, code: &str, known: Known) -> ObservedInstance {
        let (.., origin) = self.of.iter().find(|(of, is, _)| *of == code && *is == known).unwrap();
        instance("ress", code, origin.address)
    }
}

/// Asserts whom a proxy asks, for both roles, when the master and two normal instances are such.
async fn walk(states: [Known; 3], table: Arc<ChoosingTable>, origins: Arc<Origins>) {
    let fleet = Fleet::new(&["ress"]);
    let mut settings = checked(1, 20);
    let service = settings.services.get_mut("ress").unwrap();
    service.check.as_mut().unwrap().timeout = SOON;
    let mut rule = pointsman_balance::Ejection::default();
    (rule.max_percent, rule.panic_percent, rule.consecutive_failures) = (100, 0, 2);
    service.ejection = Some(rule);
    let mut to_the_master = Route::new("/master$", "ress");
    let Action::Pass(pass) = &mut to_the_master.action else { unreachable!() };
    (pass.role, pass.queue_timeout) = (RouteRole::Master, Duration::ZERO);
    settings.routes.insert(0, to_the_master);
    let proxy = fleet.proxy(settings, Options::default());
    let of_states = || CODES.into_iter().zip(states);
    let registered = || of_states().filter(|(_, known)| *known != Known::Absent);
    let as_is = |(code, known): (&str, Known)| {
        let instance = origins.instance(code, known);
        match known {
            Known::Guarded | Known::GuardedFailed => guarded(instance),
            Known::Drained => drained(instance),
            Known::Weightless => weightless(instance),
            _ => instance,
        }
    };
    fleet.put("ress", registered().map(|(code, known)| origins.instance(code, known)));
    let count = |of: Known| registered().filter(|(_, known)| *known == of).count() as u64;
    let (fails, waits) = (count(Known::Failing), count(Known::Unchecked));
    until("all are checked", || {
        let state = |state| metric(&proxy, &format!("pointsman_http_instances{{service=\"ress\",state=\"{state}\"}}"));
        let all = registered().count() as u64;
        (state("passing"), state("failing"), state("unknown")) == (all - fails - waits, fails, waits)
    })
    .await;
    // What has to fail for it is asked alone.
    for (code, known) in registered().filter(|(_, known)| matches!(known, Known::Ejected | Known::GuardedFailed)) {
        let away = registered().filter(|(other, _)| *other != code).map(|other| drained(as_is(other)));
        fleet.put("ress", away.chain([as_is((code, known))]).collect::<Vec<_>>());
        for _ in 0..2 {
            get(proxy.address(), "/bad").await;
        }
    }
    fleet.put("ress", registered().map(as_is));
    for (asked, path) in [(Asked::Normal, "/"), (Asked::Master, "/master")] {
        let (expected, _) = table.expected(asked, &of_states().collect::<Vec<_>>());
        let mut seen = BTreeSet::new();
        for _ in 0..4 {
            let (status, body) = get(proxy.address(), path).await;
            if status == 200 {
                seen.insert(body);
            } else {
                assert_eq!(status, 503, "{states:?} {path}: {body}");
            }
        }
        assert_eq!(seen.iter().map(String::as_str).collect::<BTreeSet<_>>(), expected, "{states:?} {path}");
    }
}

#[tokio::test]
async fn a_scale_down_under_load_fails_nothing() {
    let origins: Vec<Origin> = {
        let mut origins = Vec::new();
        for _ in 0..10 {
            origins.push(origin("x").await);
        }
        origins
    };
    let fleet = Arc::new(Fleet::new(&["ress"]));
    let all: Vec<(String, SocketAddr)> =
        origins.iter().zip('a'..).map(|(origin, code)| (code.to_string(), origin.address)).collect();
    let named = |all: &[(String, SocketAddr)]| -> Vec<ObservedInstance> {
        all.iter().map(|(code, address)| instance("ress", code, *address)).collect()
    };
    fleet.put("ress", named(&all));
    let proxy = fleet.proxy(settings(|_| {}), Options::default());
    let (address, stop) = (proxy.address(), Arc::new(AtomicBool::new(false)));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let stop = stop.clone();
            tokio::spawn(async move {
                let mut statuses = Vec::new();
                while !stop.load(Ordering::SeqCst) {
                    statuses.push(get(address, "/").await.0);
                }
                statuses
            })
        })
        .collect();
    let requests = || metric(&proxy, "pointsman_http_attempts_total{service=\"ress\",outcome=\"answered\"}");
    let mut origins = origins;
    for left in [3, 1] {
        let before = requests();
        until("some are under way", || requests() > before + 50).await;
        // The registry is a moment late: the processes have ended when it says so.
        origins.truncate(left);
        let before = requests();
        until("some have met the dead", || requests() > before + 50).await;
        fleet.put("ress", named(&all[..left]));
    }
    let (start, before) = (Instant::now(), requests());
    until("some after that", || requests() > before + 50).await;
    stop.store(true, Ordering::SeqCst);
    for client in clients {
        let statuses = client.await.unwrap();
        assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
    }
    assert!(start.elapsed() < SOON);
}
