//! Which requests go where.
#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::time::Duration;

use pointsman_balance::Algorithm;
use pointsman_core::{Instance, Role};
use pointsman_http::{Action, Answer, Error, Key, Pass, Route, RouteRole, Service, Settings, Sticky, When};
use pointsman_testkit::http::{HyperOrigin, RawClient, Response, get, request};
use support::{Fleet, SOON, passing, route, until, with_routes};

/// Three origins, `a`, `b` and `c`, as instances of `ress`.
async fn three() -> (Vec<HyperOrigin>, Fleet) {
    let origins = vec![HyperOrigin::start("a").await, HyperOrigin::start("b").await, HyperOrigin::start("c").await];
    let fleet = Fleet::of(&origins.iter().map(HyperOrigin::address).collect::<Vec<_>>());
    (origins, fleet)
}

/// A fleet with one origin a service, which has its name.
async fn named(services: &[&str]) -> (BTreeMap<String, HyperOrigin>, Fleet) {
    let fleet = Fleet::new(services);
    let mut origins = BTreeMap::new();
    for service in services {
        let origin = HyperOrigin::start(service).await;
        fleet.join(service, "1", origin.address());
        origins.insert((*service).to_owned(), origin);
    }
    (origins, fleet)
}

/// Who has answered.
fn origin_of(answer: &Response) -> String {
    answer.header("x-origin").unwrap_or_else(|| panic!("nobody: {answer:?}")).to_owned()
}

async fn who(address: SocketAddr, target: &str) -> String {
    origin_of(&get(address, target).await)
}

async fn who_for(address: SocketAddr, fields: &[(&str, &str)]) -> String {
    origin_of(&request(address, "GET", "/x", fields, "").await)
}

/// Defect 14 of the seed: any match, in no order.
#[tokio::test]
async fn the_first_match_wins() {
    let (_origins, fleet) = named(&["one", "two", "three"]).await;
    let routes = vec![Route::new("^/a/b", "one"), Route::new("^/a", "two"), Route::new("^/", "three")];
    let proxy = fleet.proxy(with_routes(routes));
    for (target, service) in
        [("/a/b/c", "one"), ("/a/c", "two"), ("/ab", "two"), ("/b", "three"), ("/?/a/b", "three"), ("/a?x", "two")]
    {
        assert_eq!(who(proxy.address(), target).await, service, "{target}");
    }
    let routes = vec![Route::new("^/", "three"), Route::new("^/a/b", "one"), Route::new("^/a", "two")];
    assert_eq!(who(fleet.proxy(with_routes(routes)).address(), "/a/b").await, "three");
}

/// Defect 15 of the seed: what matches nothing went somewhere.
#[tokio::test]
async fn what_matches_nothing_is_not_found() {
    let (origins, fleet) = named(&["one"]).await;
    let proxy = fleet.proxy(with_routes(vec![Route::new("^/one(/|$)", "one")]));
    assert_eq!(who(proxy.address(), "/one").await, "one");
    for target in ["/", "/ones", "/two/one", "/?/one"] {
        let answer = get(proxy.address(), target).await;
        assert_eq!((answer.status, &*answer.problem()), (404, "no-route"), "{target}");
    }
    // The connection goes on, body or not.
    let mut client = RawClient::connect(proxy.address()).await;
    let answer = client.request("POST /no HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody").await;
    assert_eq!(answer.status, 404);
    assert_eq!(client.request("GET /one HTTP/1.1\r\nHost: x\r\n\r\n").await.status, 200);
    assert_eq!(origins["one"].requests(), 2);
}

#[tokio::test]
async fn prefixes_end_where_a_part_of_the_path_does() {
    let (_origins, fleet) = named(&["one", "two"]).await;
    let prefix = |prefix: &str, service: &str| route(service, |when| when.path_prefix = Some(prefix.into()), |_| {});
    let proxy = fleet.proxy(with_routes(vec![prefix("/a", "one"), prefix("/", "two")]));
    for (target, service) in
        [("/a", "one"), ("/a/", "one"), ("/a/b", "one"), ("/a?b", "one"), ("/ab", "two"), ("/", "two"), ("/A", "two")]
    {
        assert_eq!(who(proxy.address(), target).await, service, "{target}");
    }
}

#[tokio::test]
async fn everything_that_a_route_asks_for_has_to_match() {
    let (_origins, fleet) = named(&["exact", "below", "post", "beta", "rest"]).await;
    let proxy = fleet.proxy(with_routes(vec![
        route("exact", |when| when.hosts = vec!["foo.example".into(), "bar.example".into()], |_| {}),
        route("below", |when| when.hosts = vec!["*.foo.example".into()], |_| {}),
        route("post", |when| when.methods = vec!["POST".into(), "PUT".into()], |_| {}),
        route(
            "beta",
            |when| {
                when.headers = vec![("x-beta".into(), "^(yes|1)$".into()), ("x-two".into(), ".".into())];
                when.path_prefix = Some("/x".into());
            },
            |_| {},
        ),
        route("rest", |_| {}, |_| {}),
    ]));
    for (host, service) in [
        ("foo.example", "exact"),
        ("FOO.Example", "exact"),
        ("foo.example:8080", "exact"),
        ("bar.example", "exact"),
        ("a.foo.example", "below"),
        ("a.b.foo.example", "below"),
        ("afoo.example", "rest"),
        ("foo.example.org", "rest"),
    ] {
        assert_eq!(who_for(proxy.address(), &[("Host", host)]).await, service, "{host}");
    }
    for method in ["POST", "PUT"] {
        assert_eq!(origin_of(&request(proxy.address(), method, "/x", &[], "").await), "post");
    }
    assert_eq!(who_for(proxy.address(), &[("X-Beta", "yes"), ("X-Two", "a")]).await, "beta");
    assert_eq!(who_for(proxy.address(), &[("X-Beta", "no"), ("X-Beta", "1"), ("X-Two", "a")]).await, "beta");
    assert_eq!(who_for(proxy.address(), &[("X-Beta", "yess"), ("X-Two", "a")]).await, "rest");
    assert_eq!(who_for(proxy.address(), &[("X-Beta", "yes")]).await, "rest");
    let answer = request(proxy.address(), "GET", "/y", &[("X-Beta", "yes"), ("X-Two", "a")], "").await;
    assert_eq!(origin_of(&answer), "rest");
}

#[tokio::test]
async fn settings_that_cannot_be_are_told() {
    let fleet = Fleet::new(&["ress"]);
    let Err(Error::Invalid(problems)) = fleet.try_proxy(with_routes(vec![Route::new("(", "ress")])) else {
        panic!("a pattern that is none is told");
    };
    assert!(problems.iter().any(|problem| problem.key.contains("match")), "{problems:?}");
    let off = passing(|pass| pass.split = vec![("ress".into(), 101)]);
    assert!(matches!(fleet.try_proxy(off), Err(Error::Invalid(_))));
}

#[tokio::test]
async fn masters_and_normals_are_told_apart() {
    let (origins, fleet) = three().await;
    fleet.join_master("ress", "b", origins[1].address());
    let routes = vec![
        route("ress", |when| when.path_prefix = Some("/write".into()), |pass| pass.role = RouteRole::Master),
        route("ress", |_| {}, |_| {}),
    ];
    let proxy = fleet.proxy(with_routes(routes));
    for _ in 0..6 {
        assert_eq!(who(proxy.address(), "/write").await, "b");
        assert_ne!(who(proxy.address(), "/x").await, "b");
    }
    // The master answers where there is nobody else.
    fleet.leave("ress", "a");
    fleet.leave("ress", "c");
    assert_eq!(who(proxy.address(), "/x").await, "b");
    // Nobody answers for a master.
    fleet.leave("ress", "b");
    fleet.join("ress", "a", origins[0].address());
    assert_eq!(who(proxy.address(), "/x").await, "a");
    let answer = get(proxy.address(), "/write").await;
    assert_eq!((answer.status, &*answer.problem()), (503, "no-instance"));
}

#[tokio::test]
async fn without_an_instance_the_client_may_come_again() {
    let fleet = Fleet::new(&["ress"]);
    let proxy = fleet.proxy(support::settings());
    let answer = get(proxy.address(), "/x").await;
    assert_eq!((answer.status, &*answer.problem()), (503, "no-instance"));
    assert!(answer.header("retry-after").unwrap().parse::<u32>().unwrap() > 0);
    let origin = HyperOrigin::start("a").await;
    fleet.join("ress", "a", origin.address());
    assert_eq!(get(proxy.address(), "/x").await.status, 200);
    // Drained instances get nothing new.
    fleet.join_as(Role::Normal, Instance::new("ress").code("a").address(origin.address().to_string()).weight(0));
    assert_eq!(get(proxy.address(), "/x").await.status, 503);
}

#[tokio::test]
async fn round_robin_goes_round() {
    let (origins, fleet) = three().await;
    let proxy = fleet.proxy(support::settings());
    for _ in 0..30 {
        get(proxy.address(), "/x").await;
    }
    assert!(origins.iter().all(|origin| origin.requests() == 10), "{origins:?}");
}

#[tokio::test]
async fn weights_are_honoured() {
    let (origins, fleet) = three().await;
    for (code, origin, weight) in [("a", &origins[0], 1), ("b", &origins[1], 2), ("c", &origins[2], 5)] {
        let instance = Instance::new("ress").code(code).address(origin.address().to_string()).weight(weight);
        fleet.join_as(Role::Normal, instance);
    }
    let proxy = fleet.proxy(passing(|pass| pass.algorithm = Algorithm::WeightedRoundRobin));
    for _ in 0..80 {
        get(proxy.address(), "/x").await;
    }
    assert_eq!(origins.iter().map(HyperOrigin::requests).collect::<Vec<_>>(), [10, 20, 50]);
}

#[tokio::test]
async fn least_connections_goes_where_the_fewest_are() {
    let (origins, fleet) = three().await;
    let proxy = fleet.proxy(passing(|pass| pass.algorithm = Algorithm::LeastConnections));
    let mut held = Vec::new();
    for count in 1..=3 {
        let mut client = RawClient::connect(proxy.address()).await;
        client.send("GET /hold HTTP/1.1\r\nHost: x\r\n\r\n").await;
        held.push(client);
        until("held", || origins.iter().map(HyperOrigin::under_way).sum::<u64>() == count).await;
    }
    assert!(origins.iter().all(|origin| origin.under_way() == 1), "{origins:?}");
    origins.iter().for_each(|origin| origin.release(1));
    for mut client in held {
        assert_eq!(client.response().await.text(), "held");
    }
}

#[tokio::test]
async fn hashes_go_by_their_keys() {
    let (_origins, fleet) = three().await;
    let by = |algorithm, key| {
        fleet.proxy(passing(|pass| {
            pass.algorithm = algorithm;
            pass.key = key;
        }))
    };
    let path = by(Algorithm::UrlHash, None);
    let header = by(Algorithm::UrlHash, Some(Key::Header("x-user".into())));
    let cookie = by(Algorithm::UrlHash, Some(Key::Cookie("user".into())));
    let client = by(Algorithm::IpHash, None);
    let (mut by_path, mut by_header, mut by_cookie, mut by_client) = Default::default();
    let all: [&mut HashSet<String>; 4] = [&mut by_path, &mut by_header, &mut by_cookie, &mut by_client];
    for number in 0..24 {
        let (target, user) = (format!("/{number}?x"), number.to_string());
        let first = who(path.address(), &target).await;
        assert_eq!(who(path.address(), &target).await, first);
        all[0].insert(first);
        let first = who_for(header.address(), &[("X-User", &user)]).await;
        let again = request(header.address(), "GET", &target, &[("X-User", &user)], "").await;
        assert_eq!(origin_of(&again), first);
        all[1].insert(first);
        let one = format!("a=b; user={user}");
        let first = who_for(cookie.address(), &[("Cookie", &one)]).await;
        let other = format!("user={user}; c=d");
        assert_eq!(who_for(cookie.address(), &[("Cookie", &other)]).await, first);
        all[2].insert(first);
        all[3].insert(who(client.address(), &target).await);
    }
    assert_eq!(all.map(|who| who.len()), [3, 3, 3, 1]);
}

#[tokio::test]
async fn clients_of_trusted_hops_are_told_apart() {
    let (_origins, fleet) = three().await;
    let mut settings = passing(|pass| pass.algorithm = Algorithm::IpHash);
    settings.trusted = vec!["127.0.0.1".parse().unwrap()];
    let proxy = fleet.proxy(settings);
    let mut all = HashSet::new();
    for number in 0..24 {
        let client = format!("10.0.0.{number}");
        let first = who_for(proxy.address(), &[("X-Forwarded-For", &client)]).await;
        let spoofed = format!("1.2.3.4, {client}");
        assert_eq!(who_for(proxy.address(), &[("X-Forwarded-For", &spoofed)]).await, first);
        all.insert(first);
    }
    assert_eq!(all.len(), 3);
}

#[tokio::test]
async fn clients_stay_with_their_instance_by_a_cookie() {
    let (_origins, fleet) = three().await;
    let max_age = Some(Duration::from_secs(3600));
    let proxy = fleet.proxy(passing(|pass| pass.sticky = Some(Sticky { cookie: "at".into(), max_age })));
    let first = get(proxy.address(), "/x").await;
    let set = first.header("set-cookie").unwrap().to_owned();
    let lower = set.to_lowercase();
    assert!(lower.starts_with("at=") && lower.contains("max-age=3600") && lower.contains("httponly"), "{set}");
    let cookie = format!("x=y; {}", set.split(';').next().unwrap());
    for _ in 0..6 {
        let again = request(proxy.address(), "GET", "/x", &[("Cookie", &cookie)], "").await;
        assert_eq!(origin_of(&again), origin_of(&first));
        assert_eq!(again.header("set-cookie"), None);
    }
    // The cookies of the instance's own go on to the client beside it.
    assert_eq!(get(proxy.address(), "/cookies").await.values("set-cookie").len(), 3);
    // Its instance is gone: another, and another cookie.
    fleet.leave("ress", &origin_of(&first));
    let moved = request(proxy.address(), "GET", "/x", &[("Cookie", &cookie)], "").await;
    assert_ne!(origin_of(&moved), origin_of(&first));
    assert!(moved.header("set-cookie").is_some_and(|cookie| cookie.starts_with("at=") && !set.starts_with(cookie)));
    // What is no cookie of ours does no harm.
    for odd in ["at=", "at=\"", "at=%00%ff", "at=../../a; at=b", ";;=;at"] {
        assert_eq!(request(proxy.address(), "GET", "/x", &[("Cookie", odd)], "").await.status, 200, "{odd}");
    }
}

/// A client that stays with its instance stays with that one's service, until the service has no share any more.
#[tokio::test]
async fn clients_stay_with_their_instance_where_traffic_is_split() {
    let (old, new) = (HyperOrigin::start("old").await, HyperOrigin::start("new").await);
    let fleet = Fleet::new(&["old", "new"]);
    fleet.join("old", "o", old.address());
    fleet.join("new", "n", new.address());
    let split = |percent| {
        with_routes(vec![route(
            "old",
            |_| {},
            |pass| {
                pass.split = vec![("new".into(), percent)];
                pass.sticky = Some(Sticky { cookie: "at".into(), max_age: None });
            },
        )])
    };
    let proxy = fleet.proxy(split(50));
    for (code, name) in [("o", old.id()), ("n", new.id())] {
        for _ in 0..20 {
            let answer = request(proxy.address(), "GET", "/x", &[("Cookie", &format!("at={code}"))], "").await;
            assert_eq!((&*origin_of(&answer), answer.header("set-cookie")), (name, None));
        }
    }
    proxy.reload(split(0), &fleet.views()).unwrap();
    let answer = request(proxy.address(), "GET", "/x", &[("Cookie", "at=n")], "").await;
    assert_eq!(origin_of(&answer), "old");
}

#[tokio::test]
async fn prefixes_are_rewritten() {
    let (_origins, fleet) = named(&["one", "two", "three"]).await;
    let rewriting = |service: &str, from: &str, to: &str| {
        let when = |when: &mut When| when.path_prefix = Some(from.into());
        route(service, when, |pass| pass.rewrite_prefix = Some(to.into()))
    };
    let routes = vec![rewriting("one", "/api", "/v1"), rewriting("two", "/cut", "/"), rewriting("three", "/", "/deep")];
    let proxy = fleet.proxy(with_routes(routes));
    for (target, became) in [
        ("/api", "/v1"),
        ("/api/", "/v1/"),
        ("/api/x%20y?z=/api", "/v1/x%20y?z=/api"),
        ("/api?q", "/v1?q"),
        ("/cut/x/y", "/x/y"),
        ("/cut", "/"),
        ("/cut/", "/"),
        ("/cut?q", "/?q"),
        ("/other/x", "/deep/other/x"),
        ("/apis", "/deep/apis"),
    ] {
        assert_eq!(get(proxy.address(), target).await.json()["target"], became, "{target}");
    }
}

#[tokio::test]
async fn traffic_is_split() {
    let (origins, fleet) = named(&["old", "new", "newest"]).await;
    let split = |pass: &mut Pass| pass.split = vec![("new".into(), 20), ("newest".into(), 5)];
    let proxy = fleet.proxy(with_routes(vec![route("old", |_| {}, split)]));
    let mut client = RawClient::connect(proxy.address()).await;
    for _ in 0..2000 {
        assert_eq!(client.request("GET /bytes/1 HTTP/1.1\r\nHost: x\r\n\r\n").await.status, 200);
    }
    let shares = ["old", "new", "newest"].map(|name| origins[name].requests());
    // Five standard deviations, if it is by chance.
    for (share, wanted, off) in [(shares[0], 1500, 97), (shares[1], 400, 90), (shares[2], 100, 49)] {
        assert!(share.abs_diff(wanted) <= off, "{shares:?}");
    }
}

#[tokio::test]
async fn traffic_is_mirrored_and_nobody_waits_for_the_mirror() {
    let (mut origins, fleet) = named(&["real", "shadow"]).await;
    let mirror = |pass: &mut Pass| pass.mirror = Some(("shadow".into(), 100));
    let proxy = fleet.proxy(with_routes(vec![route("real", |_| {}, mirror)]));
    for number in 0..10 {
        let answer = request(proxy.address(), "POST", &format!("/{number}?q"), &[("X-A", "b")], "body").await;
        assert_eq!((&*origin_of(&answer), answer.json()["body"].as_str()), ("real", Some("body")));
    }
    until("mirrored", || origins["shadow"].requests() == 10).await;
    let mut targets: Vec<String> = origins["shadow"].seen().iter().map(|seen| seen.target.clone()).collect();
    targets.sort();
    assert_eq!(targets, (0..10).map(|number| format!("/{number}?q")).collect::<Vec<_>>());
    assert!(origins["shadow"].seen().iter().all(|seen| seen.method == "POST" && seen.header("x-a") == Some("b")));
    // The mirror hangs.
    for _ in 0..5 {
        let mut client = RawClient::connect(proxy.address()).await;
        client.send("GET /hold HTTP/1.1\r\nHost: x\r\n\r\n").await;
        origins["real"].release(1);
        assert_eq!(client.response().await.text(), "held");
    }
    // The mirror is dead.
    origins.get_mut("shadow").unwrap().kill().await;
    for _ in 0..5 {
        assert_eq!(who(proxy.address(), "/x").await, "real");
    }
}

#[tokio::test]
async fn answers_of_the_proxys_own() {
    let fleet = Fleet::new(&["ress"]);
    let answering = |prefix: &str, status, headers: &[(&str, &str)], body: &str| {
        let mut route = route("ress", |when| when.path_prefix = Some(prefix.into()), |_| {});
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        route.action = Action::Answer(Answer { status, headers, body: body.to_owned() });
        route
    };
    let proxy = fleet.proxy(with_routes(vec![
        answering("/moved", 301, &[("location", "https://new.example/")], ""),
        answering("/robots.txt", 200, &[("content-type", "text/plain"), ("x-a", "1")], "User-agent: *\n"),
        answering("/none", 204, &[], ""),
        answering("/", 410, &[], "gone"),
    ]));
    let mut client = RawClient::connect(proxy.address()).await;
    let moved = client.request("GET /moved HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert_eq!((moved.status, moved.header("location"), &*moved.text()), (301, Some("https://new.example/"), ""));
    let robots = client.request("HEAD /robots.txt HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert_eq!((robots.status, robots.header("content-length"), robots.header("x-a")), (200, Some("14"), Some("1")));
    let none = client.request("GET /none HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert_eq!((none.status, none.header("content-length")), (204, None));
    let gone = client.request("POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc").await;
    assert_eq!((gone.status, &*gone.text()), (410, "gone"));
    assert_eq!(client.request("GET /robots.txt HTTP/1.1\r\nHost: x\r\n\r\n").await.text(), "User-agent: *\n");
}

/// So many clients that have asked for `/hold`.
async fn hold(address: SocketAddr, count: usize) -> Vec<RawClient> {
    let mut clients = Vec::new();
    for _ in 0..count {
        let mut client = RawClient::connect(address).await;
        client.send("GET /hold HTTP/1.1\r\nHost: x\r\n\r\n").await;
        clients.push(client);
    }
    clients
}

#[tokio::test]
async fn requests_wait_in_a_queue_that_has_an_end() {
    let origin = HyperOrigin::start("a").await;
    let fleet = Fleet::of(&[origin.address()]);
    let proxy = fleet.proxy(passing(|pass| {
        pass.max_in_flight = Some(2);
        pass.queue = 3;
        pass.queue_timeout = SOON;
    }));
    let mut waiting = hold(proxy.address(), 2).await;
    until("under way", || origin.under_way() == 2).await;
    // Of six more three are too many; they are told at once.
    let mut told = tokio::task::JoinSet::new();
    for mut client in hold(proxy.address(), 6).await {
        told.spawn(async move { (client.response().await, client) });
    }
    let mut refused = 0;
    while refused < 3 {
        let (answer, _) = told.join_next().await.unwrap().unwrap();
        assert_eq!((answer.status, &*answer.problem()), (503, "overloaded"));
        assert!(answer.header("retry-after").is_some());
        refused += 1;
    }
    origin.release(5);
    for client in &mut waiting {
        assert_eq!(client.response().await.text(), "held");
    }
    while let Some(answer) = told.join_next().await {
        assert_eq!(answer.unwrap().0.text(), "held");
    }
    assert_eq!((origin.most_under_way(), origin.requests()), (2, 5));
}

#[tokio::test]
async fn nobody_waits_longer_than_the_queue_says() {
    let origin = HyperOrigin::start("a").await;
    let fleet = Fleet::of(&[origin.address()]);
    let proxy = fleet.proxy(passing(|pass| {
        pass.max_in_flight = Some(1);
        pass.queue_timeout = Duration::from_millis(300);
    }));
    let mut first = hold(proxy.address(), 1).await;
    until("under way", || origin.under_way() == 1).await;
    let answer = get(proxy.address(), "/hold").await;
    assert_eq!((answer.status, &*answer.problem()), (503, "overloaded"));
    // Who has given up while waiting takes nobody's place.
    drop(hold(proxy.address(), 5).await);
    origin.release(1);
    assert_eq!(first[0].response().await.text(), "held");
    assert_eq!(get(proxy.address(), "/x").await.status, 200);
}

#[tokio::test]
async fn an_instance_gets_no_more_at_a_time_than_it_may() {
    let (origins, fleet) = three().await;
    let mut settings: Settings = passing(|pass| {
        pass.queue = 100;
        pass.queue_timeout = SOON;
    });
    let mut service = Service::default();
    service.max_in_flight = Some(2);
    settings.services.insert("ress".into(), service);
    let proxy = fleet.proxy(settings);
    let clients = hold(proxy.address(), 20).await;
    until("full", || origins.iter().all(|origin| origin.under_way() == 2)).await;
    origins.iter().for_each(|origin| origin.release(20));
    for mut client in clients {
        assert_eq!(client.response().await.text(), "held");
    }
    assert!(origins.iter().all(|origin| origin.most_under_way() == 2), "{origins:?}");
}

/// A place that one cannot use is for the next: here the first in the queue waits for the master, and a normal instance becomes free.
#[tokio::test]
async fn who_waits_for_another_instance_takes_nobodys_turn() {
    let (normal, master) = (HyperOrigin::start("n").await, HyperOrigin::start("m").await);
    let fleet = Fleet::of(&[normal.address()]);
    fleet.join_master("ress", "m", master.address());
    let limits = |pass: &mut Pass| (pass.queue, pass.queue_timeout) = (100, SOON);
    let to_master = route(
        "ress",
        |when| when.headers = vec![("role".into(), "^m$".into())],
        |pass| {
            limits(pass);
            pass.role = RouteRole::Master;
        },
    );
    let mut settings = with_routes(vec![to_master, route("ress", |_| {}, limits)]);
    let mut service = Service::default();
    service.max_in_flight = Some(1);
    settings.services.insert("ress".into(), service);
    let proxy = fleet.proxy(settings);
    let mut clients = Vec::new();
    for (number, role) in ["m", "n", "m", "m", "n"].iter().enumerate() {
        let mut client = RawClient::connect(proxy.address()).await;
        client.send(&format!("GET /hold HTTP/1.1\r\nHost: x\r\nRole: {role}\r\n\r\n")).await;
        clients.push(client);
        let queued = |route: usize| {
            let name = format!("pointsman_http_queued_total{{route=\"route {route}\",service=\"ress\"}} ");
            proxy.metrics().lines().find_map(|line| line.strip_prefix(&*name)?.parse::<u64>().ok()).unwrap_or(0)
        };
        until("there", || master.under_way() + normal.under_way() + queued(0) + queued(1) == number as u64 + 1).await;
    }
    normal.release(1);
    assert_eq!(clients[1].response().await.text(), "held");
    until("the next one's turn", || normal.requests() == 2).await;
    normal.release(1);
    assert_eq!(clients[4].response().await.status, 200);
    assert_eq!((master.requests(), master.under_way()), (1, 1));
}
