//! What runs goes on while routes and certificates change, and when the proxy ends.
#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pointsman_http::{Options, Proxy, Route, Settings, Tls};
use pointsman_testkit::TlsFiles;
use pointsman_testkit::http::{FrameClient, HyperOrigin, RawClient, curl, get, kind, run};
use support::{Fleet, SOON, settings, until, with_routes};
use tokio::task::JoinSet;

const GET: &str = "GET /x/1 HTTP/1.1\r\nHost: x\r\n\r\n";

/// So many routes that nothing matches, and then one to `service`.
fn routes(count: usize, service: &str) -> Settings {
    let mut routes: Vec<Route> = (0..count).map(|number| Route::new(format!("^/no/{number}$"), "one")).collect();
    routes.push(Route::new("^/x", service));
    with_routes(routes)
}

/// The long form is a task of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_while_routes_reload() {
    let (one, two) = (HyperOrigin::start("one").await, HyperOrigin::start("two").await);
    let fleet = Fleet::new(&["one", "two"]);
    fleet.join("one", "1", one.address());
    fleet.join("two", "1", two.address());
    let mut first = routes(0, "one");
    first.workers = 2;
    let proxy = fleet.proxy(first);
    let done = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for client in 0..8 {
        clients.spawn(ask_on(proxy.address(), client, done.clone()));
    }
    for reload in 0..30 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        proxy.reload(routes(reload % 7, ["two", "one"][reload % 2]), &fleet.views()).unwrap();
    }
    done.store(true, Ordering::SeqCst);
    let asked: usize = clients.join_all().await.into_iter().sum();
    assert!(asked > 100, "only {asked}");
    assert!(one.requests() > 10 && two.requests() > 10, "{} {}", one.requests(), two.requests());
}

/// Asks until it is done; each second client on a connection for each request, the others on one.
async fn ask_on(address: SocketAddr, client: usize, done: Arc<AtomicBool>) -> usize {
    let mut connection = RawClient::connect(address).await;
    let mut asked = 0;
    while !done.load(Ordering::SeqCst) {
        if client.is_multiple_of(2) {
            connection = RawClient::connect(address).await;
        }
        let answer = connection.request(GET).await;
        assert!(answer.status == 200 && answer.complete, "{answer:?}");
        asked += 1;
    }
    asked
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_of_wrk_fails_while_routes_reload() {
    let origin = HyperOrigin::start("one").await;
    let fleet = Fleet::new(&["one"]);
    fleet.join("one", "1", origin.address());
    let proxy = fleet.proxy(routes(0, "one"));
    let url = format!("http://{}/x/1", proxy.address());
    let mut load = tokio::spawn(async move { run("wrk", ["-t", "1", "-c", "32", "-d", "2s", &*url]).await });
    let mut count = 0;
    let output = loop {
        tokio::select! {
            output = &mut load => break output.unwrap(),
            () = tokio::time::sleep(Duration::from_millis(100)) => {}
        }
        count += 1;
        proxy.reload(routes(count % 5, "one"), &fleet.views()).unwrap();
    };
    assert!(output.code == Some(0) && output.out.contains("requests in"), "{output:?}");
    assert!(!output.out.contains("Socket errors") && !output.out.contains("Non-2xx"), "{}", output.out);
}

#[tokio::test]
async fn what_is_under_way_ends_by_the_rules_it_began_with() {
    let (one, two) = (HyperOrigin::start("one").await, HyperOrigin::start("two").await);
    let fleet = Fleet::new(&["one", "two"]);
    fleet.join("one", "1", one.address());
    fleet.join("two", "1", two.address());
    let all_to = |service: &str| with_routes(vec![Route::new("^", service)]);
    let proxy = fleet.proxy(all_to("one"));
    let mut held = RawClient::connect(proxy.address()).await;
    held.send("GET /hold HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let mut events = RawClient::connect(proxy.address()).await;
    events.send("GET /sse/2 HTTP/1.1\r\nHost: x\r\n\r\n").await;
    events.read_until("data: 0\n\n").await;
    until("held", || one.under_way() == 1).await;
    proxy.reload(all_to("two"), &fleet.views()).unwrap();
    // New requests go by the new rules, on old connections as well.
    assert_eq!(get(proxy.address(), "/x").await.header("x-origin"), Some("two"));
    one.release(2);
    assert_eq!(held.response().await.header("x-origin"), Some("one"));
    events.read_until("data: 1\n\n").await;
    assert_eq!(held.request(GET).await.header("x-origin"), Some("two"));
}

#[tokio::test]
async fn wrong_settings_change_nothing() {
    let origin = HyperOrigin::start("one").await;
    let fleet = Fleet::of(&[origin.address()]);
    let proxy = fleet.proxy(settings());
    assert!(proxy.reload(with_routes(vec![Route::new("(", "ress")]), &fleet.views()).is_err());
    let mut missing = settings();
    let nowhere = Path::new("no/such/file.pem").to_owned();
    missing.tls = Some(Tls { cert: nowhere.clone(), key: nowhere, client_ca: None });
    assert!(proxy.reload(missing, &fleet.views()).is_err());
    assert_eq!(get(proxy.address(), "/x").await.status, 200);
}

#[tokio::test]
async fn certificates_reload() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [old, new] = folders.each_ref().map(|folder| TlsFiles::create(folder.path()));
    let origin = HyperOrigin::start("one").await;
    let fleet = Fleet::of(&[origin.address()]);
    let with = |files: &TlsFiles| {
        let mut settings = settings();
        settings.tls = Some(Tls { cert: files.server.clone(), key: files.server.clone(), client_ca: None });
        settings
    };
    let proxy = fleet.proxy(with(&old));
    let url = format!("https://localhost:{}/x", proxy.address().port());
    let trusting =
        async |files: &TlsFiles| curl(&["--cacert", &files.ca.display().to_string(), &url]).await.code == Some(0);
    assert!(trusting(&old).await && !trusting(&new).await);
    proxy.reload(with(&new), &fleet.views()).unwrap();
    assert!(!trusting(&old).await && trusting(&new).await);
}

#[tokio::test]
async fn an_end_waits_for_what_is_under_way() {
    let origin = HyperOrigin::start("one").await;
    let fleet = Fleet::of(&[origin.address()]);
    let proxy = fleet.proxy(settings());
    let address = proxy.address();
    let mut held = RawClient::connect(address).await;
    held.send("GET /hold HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let mut idle = RawClient::connect(address).await;
    assert_eq!(idle.request(GET).await.status, 200);
    let mut streams = FrameClient::connect(address).await;
    streams.send_get(1, "/hold").await;
    until("held", || origin.under_way() == 2).await;
    let closing = tokio::spawn(proxy.close());
    // Who waits for nothing is let go, nobody new comes in.
    assert!(idle.rest().await.is_empty());
    let start = Instant::now();
    while tokio::net::TcpStream::connect(address).await.is_ok() {
        assert!(start.elapsed() < SOON, "it still listens");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let told = streams.until(kind::GO_AWAY).await;
    assert_eq!(told.last().unwrap().kind, kind::GO_AWAY);
    assert!(!closing.is_finished());
    origin.release(2);
    let answer = held.response().await;
    assert_eq!((&*answer.text(), answer.header("connection")), ("held", Some("close")));
    assert!(held.rest().await.is_empty());
    assert_eq!(streams.outcome(1).await, (None, b"held".to_vec()));
    tokio::time::timeout(SOON, closing).await.unwrap().unwrap();
}

#[tokio::test]
async fn an_end_does_not_wait_for_ever() {
    let origin = HyperOrigin::start("one").await;
    let fleet = Fleet::of(&[origin.address()]);
    let mut settings = settings();
    settings.drain_timeout = Duration::from_millis(100);
    let proxy = fleet.proxy(settings);
    let mut held = RawClient::connect(proxy.address()).await;
    held.send("GET /hold HTTP/1.1\r\nHost: x\r\n\r\n").await;
    until("held", || origin.under_way() == 1).await;
    tokio::time::timeout(Duration::from_secs(5), proxy.close()).await.unwrap();
    held.rest().await;
    until("given up", || origin.under_way() == 0).await;
}

#[tokio::test]
async fn listeners_are_handed_over_without_a_gap() {
    let origin = HyperOrigin::start("one").await;
    let fleet = Fleet::of(&[origin.address()]);
    let old = fleet.proxy(settings());
    let address = old.address();
    let done = Arc::new(AtomicBool::new(false));
    // Each request on a connection of its own.
    let asking = tokio::spawn(ask_on(address, 0, done.clone()));
    let mut options = Options::default();
    options.listeners = old.listeners().unwrap();
    let mut same = settings();
    same.listen = address;
    let new = Proxy::start(same, &fleet.views(), options).unwrap();
    assert_eq!(new.address(), address);
    old.close().await;
    let before = origin.requests();
    until("served by the new one", || origin.requests() > before + 50).await;
    done.store(true, Ordering::SeqCst);
    assert!(asking.await.unwrap() > 50);
}

#[tokio::test]
async fn figures_are_told() {
    let origin = HyperOrigin::start("one").await;
    let fleet = Fleet::of(&[origin.address()]);
    let proxy = fleet.proxy(settings());
    for _ in 0..5 {
        get(proxy.address(), "/bytes/100").await;
    }
    get(proxy.address(), "/status/500").await;
    let metrics = proxy.metrics();
    assert!(metrics.lines().any(|line| !line.starts_with('#') && line.contains("ress")), "{metrics}");
    assert!(!metrics.contains("/bytes"), "no path is a label");
}
