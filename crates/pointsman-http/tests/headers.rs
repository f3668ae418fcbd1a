//! What instances and clients are told in fields: of the hops before, of each other, and nothing that is for one hop only.
#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::net::SocketAddr;

use pointsman_http::{Forwarded, Proxy, Settings};
use pointsman_testkit::http::{HyperOrigin, RawClient, RawOrigin, Response, get, request};
use serde_json::Value;
use support::{Fleet, proxy_to, route, settings, with_routes};

/// What an instance was told.
struct Told(Vec<(String, String)>);

impl Told {
    fn by(answer: &Response) -> Self {
        assert_eq!(answer.status, 200, "{answer:?}");
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let fields = answer.json()["headers"].as_array().unwrap().clone();
        Self(fields.iter().map(|field| (text(&field[0]), text(&field[1]))).collect())
    }

    fn all(&self, name: &str) -> Vec<&str> {
        self.0.iter().filter(|(other, _)| other == name).map(|(_, value)| value.as_str()).collect()
    }

    /// The value of a field that is there once.
    fn one(&self, name: &str) -> &str {
        let all = self.all(name);
        assert_eq!(all.len(), 1, "{name} once: {:?}", self.0);
        all[0]
    }

    fn none(&self, name: &str) {
        assert!(self.all(name).is_empty(), "no {name}: {:?}", self.0);
    }
}

/// What an instance is told of a GET with these fields.
async fn told(proxy: &Proxy, fields: &[(&str, &str)]) -> Told {
    Told::by(&request(proxy.address(), "GET", "/x", fields, "").await)
}

/// A proxy with these settings, and what is behind it.
async fn with(settings: Settings) -> (HyperOrigin, Fleet, Proxy) {
    let origin = HyperOrigin::start("a").await;
    let fleet = Fleet::of(&[origin.address()]);
    let proxy = fleet.proxy(settings);
    (origin, fleet, proxy)
}

fn trusting(forwarded: Forwarded) -> Settings {
    let mut settings = settings();
    settings.trusted = vec!["127.0.0.0/8".parse().unwrap()];
    settings.forwarded = forwarded;
    settings
}

#[tokio::test]
async fn fields_are_passed_on_as_they_are() {
    let (_origin, _fleet, proxy) = with(settings()).await;
    let fields = [
        ("Host", "Foo.example:81"),
        ("X-One", "1"),
        ("x-one", "2"),
        ("X-Empty", ""),
        ("Cookie", "a=b; c=\"d\""),
        ("Authorization", "Basic eDp5"),
        ("X-Bytes", "\u{e9}\u{fc}"),
        ("Accept-Encoding", "gzip, br"),
        ("Range", "bytes=0-1"),
    ];
    let told = told(&proxy, &fields).await;
    assert_eq!(told.one("host"), "Foo.example:81");
    assert_eq!(told.all("x-one"), ["1", "2"]);
    for (name, value) in &fields[3..] {
        assert_eq!(told.one(&name.to_lowercase()), *value);
    }
}

#[tokio::test]
async fn fields_for_one_hop_end_here() {
    let (_origin, _fleet, proxy) = with(settings()).await;
    let told = told(
        &proxy,
        &[
            ("Connection", "keep-alive, X-Foo,, \t x-bar"),
            ("X-Foo", "1"),
            ("X-Bar", "2"),
            ("X-Baz", "3"),
            ("Keep-Alive", "timeout=5"),
            ("Proxy-Connection", "keep-alive"),
            ("TE", "gzip"),
        ],
    )
    .await;
    for gone in ["x-foo", "x-bar", "keep-alive", "proxy-connection", "te"] {
        told.none(gone);
    }
    assert_eq!(told.one("x-baz"), "3");
    assert!(told.all("connection").iter().all(|value| !value.to_lowercase().contains("x-")));
}

#[tokio::test]
async fn what_connection_names_takes_nothing_of_the_proxys_away() {
    let (_origin, _fleet, proxy) = with(settings()).await;
    let names = "close, Host, Content-Length, X-Forwarded-For, X-Forwarded-Proto, Via, traceparent, X-Request-Id";
    let answer = request(proxy.address(), "POST", "/x", &[("Connection", names)], "body").await;
    let told = Told::by(&answer);
    assert_eq!((told.one("host"), told.one("x-forwarded-for")), ("test.example", "127.0.0.1"));
    assert_eq!(answer.json()["body"], "body");
    for name in ["x-forwarded-proto", "via", "traceparent", "x-request-id"] {
        told.one(name);
    }
}

#[tokio::test]
async fn fields_of_an_answer_for_one_hop_end_here() {
    let origin = RawOrigin::answering(
        "HTTP/1.1 200 OK\r\nConnection: X-Foo\r\nX-Foo: 1\r\nX-Bar: 2\r\nKeep-Alive: timeout=5\r\n\
         Proxy-Connection: keep-alive\r\nServer: mine\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\nContent-Length: 2\r\n\r\nok",
    )
    .await;
    let (_fleet, proxy) = proxy_to(origin.address());
    let answer = get(proxy.address(), "/").await;
    for gone in ["x-foo", "keep-alive", "proxy-connection"] {
        assert_eq!(answer.header(gone), None);
    }
    assert_eq!((answer.header("x-bar"), answer.header("server")), (Some("2"), Some("mine")));
    assert_eq!(answer.values("date"), ["Thu, 01 Jan 1970 00:00:00 GMT"]);
}

#[tokio::test]
async fn instances_are_told_where_a_request_comes_from() {
    let (_origin, _fleet, proxy) = with(settings()).await;
    let told = told(&proxy, &[("Host", "foo.example")]).await;
    assert_eq!(told.one("x-forwarded-for"), "127.0.0.1");
    assert_eq!(told.one("x-forwarded-proto"), "http");
    assert_eq!(told.one("x-forwarded-host"), "foo.example");
    told.none("forwarded");
}

#[tokio::test]
async fn nobody_who_is_not_trusted_tells_where_a_request_comes_from() {
    let (_origin, _fleet, proxy) = with(settings()).await;
    let told = told(
        &proxy,
        &[
            ("X-Forwarded-For", "1.2.3.4"),
            ("x-forwarded-for", "5.6.7.8"),
            ("X-Forwarded-Proto", "https"),
            ("X-Forwarded-Host", "evil.example"),
            ("Forwarded", "for=1.2.3.4;proto=https"),
        ],
    )
    .await;
    assert_eq!(told.one("x-forwarded-for"), "127.0.0.1");
    assert_eq!(told.one("x-forwarded-proto"), "http");
    assert_eq!(told.one("x-forwarded-host"), "test.example");
    told.none("forwarded");
}

#[tokio::test]
async fn who_is_trusted_tells_where_a_request_comes_from() {
    let (_origin, _fleet, proxy) = with(trusting(Forwarded::XForwarded)).await;
    let fields = [
        ("X-Forwarded-For", "1.2.3.4, 127.0.0.9"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "public.example"),
    ];
    let told = told(&proxy, &fields).await;
    assert_eq!(told.all("x-forwarded-for").join(", "), "1.2.3.4, 127.0.0.9, 127.0.0.1");
    assert_eq!(told.one("x-forwarded-proto"), "https");
    assert_eq!(told.one("x-forwarded-host"), "public.example");
}

#[tokio::test]
async fn rfc_7239_is_spoken_where_it_is_asked_for() {
    let mut untrusting = settings();
    untrusting.forwarded = Forwarded::Rfc7239;
    let (_origin, _fleet, proxy) = with(untrusting).await;
    let fields = [("Host", "foo.example:80"), ("Forwarded", "for=1.2.3.4"), ("X-Forwarded-For", "1.2.3.4")];
    let heard = told(&proxy, &fields).await;
    let forwarded = heard.one("forwarded").to_lowercase();
    for part in ["for=127.0.0.1", "proto=http", "host=\"foo.example:80\""] {
        assert!(forwarded.split(';').any(|other| other.trim() == part), "{part} in {forwarded}");
    }
    heard.none("x-forwarded-for");

    let (_origin, _fleet, proxy) = with(trusting(Forwarded::Both)).await;
    let heard =
        told(&proxy, &[("Forwarded", "for=\"[2001:db8::1]:4711\";proto=https"), ("X-Forwarded-For", "1.2.3.4")]).await;
    let forwarded = heard.all("forwarded").join(", ");
    assert!(forwarded.starts_with("for=\"[2001:db8::1]:4711\";proto=https, for=127.0.0.1"), "{forwarded}");
    assert_eq!(heard.all("x-forwarded-for").join(", "), "1.2.3.4, 127.0.0.1");
}

#[tokio::test]
async fn nothing_is_told_where_that_is_off() {
    let mut settings = settings();
    settings.forwarded = Forwarded::Off;
    let (_origin, _fleet, proxy) = with(settings).await;
    let told = told(&proxy, &[("X-Forwarded-For", "1.2.3.4"), ("Forwarded", "for=1.2.3.4")]).await;
    told.none("x-forwarded-proto");
    for name in ["x-forwarded-for", "forwarded"] {
        assert!(told.all(name).iter().all(|value| !value.contains("127.0.0.1")), "{name}");
    }
}

/// Servers that make variables of fields (CGI, WSGI) do not tell `-` from `_`.
#[tokio::test]
async fn names_with_underscores_are_no_way_around() {
    let (_origin, _fleet, proxy) = with(settings()).await;
    let told = told(
        &proxy,
        &[
            ("X_Forwarded_For", "1.2.3.4"),
            ("X-Forwarded_For", "1.2.3.4"),
            ("x_forwarded_proto", "https"),
            ("x_forwarded-host", "evil.example"),
            ("x_request_id", "1"),
            ("X_Own", "kept"),
        ],
    )
    .await;
    for (name, _) in told.0.iter().filter(|(name, _)| name.contains('_')) {
        assert_eq!(name, "x_own");
    }
    assert_eq!(told.one("x_own"), "kept");
}

#[tokio::test]
async fn via_names_the_proxy() {
    let (_origin, _fleet, proxy) = with(settings()).await;
    assert!(told(&proxy, &[]).await.one("via").starts_with("1.1 "));
    let via = told(&proxy, &[("Via", "1.0 fred, 1.1 p.example")]).await.all("via").join(", ");
    assert!(via.starts_with("1.0 fred, 1.1 p.example, 1.1 "), "{via}");
    let answer = RawClient::connect(proxy.address()).await.request("GET /x HTTP/1.0\r\nHost: x\r\n\r\n").await;
    assert!(Told::by(&answer).one("via").starts_with("1.0 "));
}

#[tokio::test]
async fn who_is_its_own_instance_notices() {
    let fleet = Fleet::new(&["ress"]);
    let proxy = fleet.proxy(settings());
    fleet.join("ress", "self", proxy.address());
    let answer = get(proxy.address(), "/x").await;
    assert_eq!((answer.status, &*answer.problem()), (508, "loop"));
}

#[tokio::test]
async fn requests_have_an_id() {
    let (_origin, _fleet, proxy) = with(settings()).await;
    let (first, second) = (told(&proxy, &[]).await, told(&proxy, &[]).await);
    let (first, second) = (first.one("x-request-id"), second.one("x-request-id"));
    assert!(first.len() >= 16 && first != second, "{first} {second}");
    assert_eq!(told(&proxy, &[("X-Request-ID", "mine-1")]).await.one("x-request-id"), "mine-1");
}

#[tokio::test]
async fn requests_have_a_trace() {
    let (_origin, _fleet, proxy) = with(settings()).await;
    let well_formed = regex::Regex::new("^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$").unwrap();
    let (first, second) = (told(&proxy, &[]).await, told(&proxy, &[]).await);
    let (first, second) = (first.one("traceparent"), second.one("traceparent"));
    assert!(well_formed.is_match(first) && first[3..35] != second[3..35], "{first} {second}");

    let (given, state) = ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "congo=t61rcWkgMzE");
    let kept = told(&proxy, &[("traceparent", given), ("tracestate", state)]).await;
    assert_eq!(kept.one("traceparent")[..35], given[..35]);
    assert_eq!(&kept.one("traceparent")[52..], "-01");
    assert_eq!(kept.one("tracestate"), state);

    for broken in [
        "",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
        "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
    ] {
        let mended = told(&proxy, &[("traceparent", broken)]).await;
        let mended = mended.one("traceparent");
        assert!(well_formed.is_match(mended), "{broken} became {mended}");
        assert!(!mended[3..].starts_with("0000000000000000") && !mended.contains("-0000000000000000-"), "{mended}");
    }
    let twice = told(&proxy, &[("traceparent", given), ("Traceparent", given)]).await;
    assert!(well_formed.is_match(twice.one("traceparent")));
}

#[tokio::test]
async fn cookies_stay_apart() {
    let (_origin, _fleet, proxy) = with(settings()).await;
    let answer = get(proxy.address(), "/cookies").await;
    assert_eq!(answer.values("set-cookie"), ["a=1; Path=/", "b=2, 3; Path=/"]);
}

#[tokio::test]
async fn problems_say_what_is_wrong_and_why_only_where_that_is_wanted() {
    let fleet = Fleet::new(&["ress"]);
    let proxy = fleet.proxy(settings());
    let answer = get(proxy.address(), "/x").await;
    assert_eq!((answer.status, &*answer.problem()), (503, "no-instance"));
    assert_eq!(answer.header("pointsman-reason"), None);
    assert!(answer.json()["title"].is_string(), "{answer:?}");
    let mut telling = with_routes(vec![route("ress", |when| when.path_prefix = Some("/a".into()), |_| {})]);
    telling.reasons = true;
    let answer = get(fleet.proxy(telling).address(), "/x").await;
    assert_eq!((answer.status, &*answer.problem()), (404, "no-route"));
    assert!(answer.header("pointsman-reason").is_some_and(|reason| !reason.is_empty()));
}

#[tokio::test]
async fn what_an_instance_says_is_no_reason_of_the_proxys() {
    let origin = RawOrigin::answering("HTTP/1.1 500 X\r\nContent-Length: 2\r\n\r\nno").await;
    let (_fleet, proxy) = proxy_to(origin.address());
    let answer = get(proxy.address(), "/").await;
    assert_eq!((answer.status, &*answer.text(), answer.header("pointsman-reason")), (500, "no", None));
}

#[tokio::test]
async fn too_large_heads_are_refused() {
    let (origin, _fleet, proxy) = with(settings()).await;
    let address: SocketAddr = proxy.address();
    let large = "v".repeat(40_000);
    let answer = request(address, "GET", "/x", &[("x-large", &large)], "").await;
    assert_eq!((answer.status, &*answer.problem()), (431, "too-large"));
    let many: Vec<(String, &str)> = (0..200).map(|number| (format!("x-{number}"), "v")).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(name, value)| (&**name, *value)).collect();
    assert_eq!(request(address, "GET", "/x", &many, "").await.status, 431);
    let answer = get(address, &format!("/{large}")).await;
    assert_eq!((answer.status, &*answer.problem()), (414, "too-large"));
    assert_eq!(origin.requests(), 0);
}
