//! Instances fail; clients notice as little as can be, and nothing is done twice.
#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::collections::HashMap;
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pointsman_balance::Ejection;
use pointsman_core::{Instance, Role};
use pointsman_http::{Check, Pass, Proxy, Service, ServiceTls, Settings};
use pointsman_testkit::TlsFiles;
use pointsman_testkit::http::{HyperOrigin, Play, RawClient, RawOrigin, get, request};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use support::{Fleet, SOON, nobody, passing, settings, until};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Mutex;
use tokio::task::JoinSet;

/// The settings where nobody is ejected, so that the same instances fail again and again.
fn never_ejecting(change: impl FnOnce(&mut Pass)) -> Settings {
    with_service(passing(change), |service| service.ejection = None)
}

fn with_service(mut settings: Settings, change: impl FnOnce(&mut Service)) -> Settings {
    let mut service = Service::default();
    change(&mut service);
    settings.services.insert("ress".into(), service);
    settings
}

/// An origin that reads requests and resets the connection.
async fn resetting() -> RawOrigin {
    RawOrigin::start(|_| vec![Play::Body, Play::Reset]).await
}

/// Defect 17 of the seed: clients were sent to the dead.
#[tokio::test]
async fn a_dead_instance_is_not_noticed() {
    let (one, two) = (HyperOrigin::start("one").await, HyperOrigin::start("two").await);
    let fleet = Fleet::of(&[nobody(), one.address(), nobody(), two.address()]);
    let proxy = fleet.proxy(never_ejecting(|pass| {
        pass.retries = 3;
        pass.retry_budget = 100;
    }));
    for number in 0..40 {
        // Nothing was sent: whatever the method, it may be tried again.
        let answer = request(proxy.address(), "POST", &format!("/{number}"), &[], "body").await;
        assert_eq!((answer.status, &answer.json()["body"]), (200, &"body".into()));
    }
    assert_eq!(one.requests() + two.requests(), 40);
}

/// An address that does not accept, as long as the sockets are there: the kernel answers nobody when the queue of those who wait to be
/// accepted is full.
fn full() -> (SocketAddr, Vec<socket2::Socket>) {
    let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    full.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    full.listen(0).unwrap();
    let address = full.local_addr().unwrap().as_socket().unwrap();
    let waiting = (0..3).map(|_| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        let _ = socket.connect(&address.into());
        socket
    });
    let waiting = waiting.collect::<Vec<_>>().into_iter().chain([full]).collect();
    (address, waiting)
}

/// Who has not even been asked is not to blame for it.
#[tokio::test]
async fn once_the_time_is_over_nobody_else_is_blamed() {
    let (address, _sockets) = full();
    let fleet = Fleet::of(&[address, address, address]);
    let proxy = fleet.proxy(passing(|pass| pass.timeouts.whole = Some(Duration::from_millis(100))));
    let answer = request(proxy.address(), "POST", "/x", &[], "body").await;
    assert_eq!((answer.status, &*answer.problem()), (504, "gateway-timeout"));
    let unreachable = "pointsman_http_attempts_total{service=\"ress\",outcome=\"unreachable\"} 1\n";
    assert!(proxy.metrics().contains(unreachable), "{}", proxy.metrics());
}

#[tokio::test]
async fn an_instance_that_cannot_be_connected_to_is_not_noticed() {
    let (address, _sockets) = full();
    let origin = HyperOrigin::start("a").await;
    let fleet = Fleet::of(&[address, origin.address()]);
    let proxy = fleet.proxy(never_ejecting(|pass| pass.timeouts.connect = Duration::from_millis(50)));
    for _ in 0..6 {
        assert_eq!(request(proxy.address(), "POST", "/x", &[], "body").await.status, 200);
    }
    let alone = Fleet::of(&[address]);
    let proxy = alone.proxy(never_ejecting(|pass| pass.timeouts.connect = Duration::from_millis(50)));
    let answer = get(proxy.address(), "/x").await;
    assert!(matches!((answer.status, &*answer.problem()), (502, "unreachable") | (504, "gateway-timeout")));
}

#[tokio::test]
async fn nobody_who_can_be_reached_is_told() {
    let fleet = Fleet::of(&[nobody(), nobody()]);
    let proxy = fleet.proxy(settings());
    let mut client = RawClient::connect(proxy.address()).await;
    for _ in 0..3 {
        let answer = client.request("GET /x HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert_eq!((answer.status, &*answer.problem()), (502, "unreachable"));
    }
}

#[tokio::test]
async fn what_may_be_done_twice_is_tried_again() {
    let (bad, good) = (resetting().await, HyperOrigin::start("good").await);
    let fleet = Fleet::of(&[bad.address(), good.address()]);
    let proxy = fleet.proxy(never_ejecting(|pass| pass.retry_budget = 100));
    for method in ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"] {
        for _ in 0..4 {
            let answer = request(proxy.address(), method, "/x", &[], "").await;
            assert_eq!(answer.status, 200, "{method}");
        }
    }
    assert_eq!((bad.heads().len(), good.requests()), (10, 20));
}

#[tokio::test]
async fn what_may_not_be_done_twice_is_not_tried_again() {
    let (bad, good) = (resetting().await, HyperOrigin::start("good").await);
    let fleet = Fleet::of(&[bad.address(), good.address()]);
    let proxy = fleet.proxy(never_ejecting(|pass| pass.retry_budget = 100));
    let mut statuses: HashMap<u16, usize> = HashMap::new();
    for method in ["POST", "PATCH", "PROPFIND"] {
        for _ in 0..4 {
            let answer = request(proxy.address(), method, "/x", &[], "body").await;
            if answer.status != 200 {
                assert!(matches!(&*answer.problem(), "bad-answer" | "unreachable"), "{answer:?}");
            }
            *statuses.entry(answer.status).or_default() += 1;
        }
    }
    assert_eq!(statuses, HashMap::from([(200, 6), (502, 6)]));
    assert_eq!((bad.heads().len(), good.requests()), (6, 6));
}

/// An instance may close a connection that it keeps at the moment at which it is used again. What was sent on it then has
/// perhaps been read.
#[tokio::test]
async fn connections_that_were_kept_may_have_ended() {
    let origin = RawOrigin::start(|_| {
        vec![Play::Body, Play::Send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec()), Play::Close]
    })
    .await;
    let fleet = Fleet::of(&[origin.address()]);
    let proxy = fleet.proxy(never_ejecting(|pass| pass.retry_budget = 100));
    for _ in 0..100 {
        assert_eq!(get(proxy.address(), "/x").await.status, 200);
    }
    assert!(origin.heads().len() <= 100, "each arrives once: what was closed is noticed before");
}

#[tokio::test]
async fn an_answer_that_has_begun_is_not_begun_again() {
    for (answer, then) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", Play::Reset),
        ("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", Play::Close),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", Play::Reset),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", Play::Close),
        ("HTTP/1.1 200 OK\r\nX: y\r\n\r\nhalf", Play::Reset),
    ] {
        let plays = vec![Play::Body, Play::Send(answer.into()), Play::Gate, then.clone()];
        let origin = RawOrigin::start(move |_| plays.clone()).await;
        let fleet = Fleet::of(&[origin.address()]);
        let proxy = fleet.proxy(settings());
        let mut client = RawClient::connect(proxy.address()).await;
        client.send("GET /x HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert_eq!(client.head().await.status, 200);
        client.read_until("half").await;
        origin.release(1);
        // Nothing that could be taken for the end of a whole answer.
        let rest = client.rest().await;
        let rest = String::from_utf8_lossy(&rest).into_owned();
        assert!(!rest.contains("0\r\n\r\n") && !rest.contains("HTTP/1.1"), "{then:?}: {rest:?}");
        assert_eq!(origin.heads().len(), 1);
    }
}

/// For a client of HTTP/1.0 the end of the connection is the end of the body: only a reset can tell that it was not.
#[tokio::test]
async fn a_broken_answer_is_broken_for_http_1_0_as_well() {
    let origin = RawOrigin::start(|_| {
        let half = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n".to_vec();
        vec![Play::Body, Play::Send(half), Play::Gate, Play::Close]
    })
    .await;
    let fleet = Fleet::of(&[origin.address()]);
    let proxy = fleet.proxy(settings());
    let mut client = RawClient::connect(proxy.address()).await;
    client.send("GET /x HTTP/1.0\r\n\r\n").await;
    client.head().await;
    client.read_until("half").await;
    origin.release(1);
    assert!(client.is_reset().await, "a reset, not an end");
}

#[tokio::test]
async fn who_answers_too_late_is_given_up() {
    let origin = HyperOrigin::start("a").await;
    let fleet = Fleet::of(&[origin.address()]);
    let first_byte = fleet.proxy(never_ejecting(|pass| pass.timeouts.first_byte = Duration::from_millis(300)));
    let whole = fleet.proxy(never_ejecting(|pass| pass.timeouts.whole = Some(Duration::from_millis(300))));
    for proxy in [&first_byte, &whole] {
        for method in ["GET", "POST"] {
            let answer = request(proxy.address(), method, "/hold", &[], "").await;
            assert_eq!((answer.status, &*answer.problem()), (504, "gateway-timeout"), "{method}");
        }
    }
    until("given up", || origin.under_way() == 0).await;
    assert_eq!(get(first_byte.address(), "/x").await.status, 200);
    // An answer that comes in time may take its time.
    let mut client = RawClient::connect(first_byte.address()).await;
    client.send("GET /sse/2 HTTP/1.1\r\nHost: x\r\n\r\n").await;
    client.read_until("data: 0").await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    origin.release(1);
    client.read_until("data: 1").await;
}

#[tokio::test]
async fn answers_that_stop_are_given_up() {
    let origin = HyperOrigin::start("a").await;
    let fleet = Fleet::of(&[origin.address()]);
    let idle = fleet.proxy(never_ejecting(|pass| pass.timeouts.idle = Duration::from_millis(300)));
    let whole = fleet.proxy(never_ejecting(|pass| pass.timeouts.whole = Some(Duration::from_millis(300))));
    for (count, proxy) in [(1, &idle), (2, &whole)] {
        let mut client = RawClient::connect(proxy.address()).await;
        let answer = client.request("GET /sse/2 HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert_eq!((answer.text(), answer.complete), ("data: 0\n\n".into(), false));
        // Its sender finds out with its next event.
        origin.release(1);
        until("given up", || origin.open() == 0 || origin.given_up() == count).await;
    }
}

#[tokio::test]
async fn bodies_that_stop_are_given_up() {
    let origin = HyperOrigin::start("a").await;
    let fleet = Fleet::of(&[origin.address()]);
    let proxy = fleet.proxy(never_ejecting(|pass| pass.timeouts.idle = Duration::from_millis(50)));
    let mut client = RawClient::connect(proxy.address()).await;
    client.send("POST /sink HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf").await;
    let answer = client.response().await;
    assert!(matches!(answer.status, 408 | 504), "{answer:?}");
    until("given up", || origin.under_way() == 0).await;
}

#[tokio::test]
async fn a_dead_instance_gets_few_requests() {
    let bad = resetting().await;
    let good = [HyperOrigin::start("b").await, HyperOrigin::start("c").await];
    let fleet = Fleet::of(&[bad.address(), good[0].address(), good[1].address()]);
    let proxy = fleet.proxy(with_service(settings(), |service| service.ejection = Some(Ejection::default())));
    for _ in 0..200 {
        assert_eq!(get(proxy.address(), "/x").await.status, 200);
    }
    let requests = bad.heads().len();
    assert!(requests <= 5, "{requests} of 200");
    assert_eq!(good[0].requests() + good[1].requests(), 200);
}

#[tokio::test]
async fn who_answers_with_errors_is_passed_on_as_it_is() {
    let origin = HyperOrigin::start("a").await;
    let fleet = Fleet::of(&[origin.address()]);
    let proxy = fleet.proxy(settings());
    for status in [400, 404, 429, 500, 502, 503, 599] {
        let answer = get(proxy.address(), &format!("/status/{status}")).await;
        assert_eq!((answer.status, answer.text()), (status, format!("status {status}")));
    }
    assert_eq!(origin.requests(), 7);
}

#[tokio::test]
async fn checks_find_out_who_is_dead_and_who_is_back() {
    let (mut one, two) = (HyperOrigin::start("one").await, HyperOrigin::start("two").await);
    let fleet = Fleet::of(&[one.address(), two.address()]);
    let mut check = Check::new(Some("/status/200".into()));
    check.interval = Duration::from_millis(20);
    let proxy = fleet.proxy(with_service(passing(|pass| pass.retries = 0), |service| {
        service.check = Some(check);
        service.ejection = None;
    }));
    let asked = |origin: &HyperOrigin| origin.seen().iter().filter(|seen| seen.target == "/x").count();
    until("checked", || one.requests() > 0 && two.requests() > 0).await;
    one.kill().await;
    // Out after three checks: then nobody is sent there any more.
    let start = Instant::now();
    let mut in_a_row = 0;
    while in_a_row < 20 {
        in_a_row = if get(proxy.address(), "/x").await.status == 200 { in_a_row + 1 } else { 0 };
        assert!(start.elapsed() < SOON, "still asked");
    }
    one.restart().await;
    let before = asked(&one);
    while asked(&one) == before {
        assert_eq!(get(proxy.address(), "/x").await.status, 200);
        assert!(start.elapsed() < SOON, "not asked again");
    }
}

#[tokio::test]
async fn retries_are_within_a_budget() {
    let bad = [resetting().await, resetting().await];
    let fleet = Fleet::of(&[bad[0].address(), bad[1].address()]);
    let proxy = fleet.proxy(never_ejecting(|pass| {
        pass.retries = 2;
        pass.retry_budget = 20;
    }));
    for _ in 0..500 {
        assert_eq!(get(proxy.address(), "/x").await.status, 502);
    }
    let attempts = bad[0].heads().len() + bad[1].heads().len();
    assert!((500..=700).contains(&attempts), "{attempts} attempts of 500 requests");
}

#[tokio::test]
async fn addresses_that_lead_elsewhere_are_refused() {
    let origin = HyperOrigin::start("a").await;
    let port = origin.address().port();
    for address in [
        format!("0.0.0.0:{port}"),
        format!("[::]:{port}"),
        format!("[::ffff:0.0.0.0]:{port}"),
        "169.254.169.254:80".to_owned(),
        "[::ffff:169.254.169.254]:80".to_owned(),
        "[fe80::1]:80".to_owned(),
        "[fd00:ec2::254]:80".to_owned(),
        "224.0.0.1:80".to_owned(),
        "[ff02::1]:80".to_owned(),
        "255.255.255.255:80".to_owned(),
    ] {
        let fleet = Fleet::new(&["ress"]);
        fleet.join_as(Role::Normal, Instance::new("ress").code("bad").address(address.as_str()));
        let proxy = fleet.proxy(passing(|pass| pass.timeouts.connect = SOON));
        let start = Instant::now();
        let answer = get(proxy.address(), "/x").await;
        assert!(matches!(answer.status, 502 | 503), "{address}: {answer:?}");
        assert!(start.elapsed() < SOON / 2, "{address} was tried");
        // Others take over.
        fleet.join("ress", "good", origin.address());
        for _ in 0..4 {
            assert_eq!(get(proxy.address(), "/x").await.status, 200, "{address}");
        }
    }
    let before = origin.requests();
    let fleet = Fleet::new(&["ress"]);
    fleet.join_as(Role::Normal, Instance::new("ress").code("odd").address(format!("0.0.0.0:{port}")));
    let mut allowing = settings();
    allowing.allow_addresses = vec!["0.0.0.0".parse().unwrap()];
    assert_eq!(get(fleet.proxy(allowing).address(), "/x").await.status, 200);
    assert_eq!(origin.requests(), before + 1);
}

/// What several clients have found who ask on while origins are killed and started again.
struct Found {
    asked: usize,
    failed: usize,
    /// How often each request has arrived, those not at all that have not.
    arrivals: HashMap<String, usize>,
}

/// Asks `count` times with `method`, from eight clients, while of the first `victims` of three origins one after the other is dead
/// for some 20 ms.
async fn under_fire(method: &'static str, count: usize, victims: usize, settings: Settings) -> Found {
    let origins = [HyperOrigin::start("a").await, HyperOrigin::start("b").await, HyperOrigin::start("c").await];
    let fleet = Fleet::of(&origins.each_ref().map(HyperOrigin::address));
    let proxy = fleet.proxy(settings);
    let origins = Arc::new(Mutex::new(origins));
    let done = Arc::new(AtomicBool::new(false));
    let fire = tokio::spawn({
        let (origins, done) = (origins.clone(), done.clone());
        async move {
            while !done.load(Ordering::SeqCst) {
                let which = fastrand::usize(..victims);
                let mut origins = origins.lock().await;
                origins[which].kill().await;
                tokio::time::sleep(Duration::from_millis(fastrand::u64(5..30))).await;
                origins[which].restart().await;
                drop(origins);
                tokio::time::sleep(Duration::from_millis(fastrand::u64(5..30))).await;
            }
        }
    });
    let mut clients = JoinSet::new();
    for client in 0..8 {
        clients.spawn(ask_on(proxy.address(), method, client, count / 8));
    }
    let failed = clients.join_all().await.iter().sum();
    done.store(true, Ordering::SeqCst);
    fire.await.unwrap();
    let mut arrivals = HashMap::new();
    for origin in origins.lock().await.iter() {
        for seen in origin.seen() {
            *arrivals.entry(seen.target).or_default() += 1;
        }
    }
    Found { asked: count / 8 * 8, failed, arrivals }
}

/// How many of a client's requests have failed.
async fn ask_on(address: SocketAddr, method: &'static str, client: usize, count: usize) -> usize {
    let mut failed = 0;
    let mut connection = RawClient::connect(address).await;
    for number in 0..count {
        let target = format!("/slow/1?{client}-{number}");
        let body = if method == "GET" { "" } else { "Content-Length: 4\r\n\r\nbody" };
        connection
            .send(format!(
                "{method} {target} HTTP/1.1\r\nHost: x\r\n{body}{}",
                if body.is_empty() { "\r\n" } else { "" }
            ))
            .await;
        match connection.try_response(method).await {
            Some(answer) if answer.status == 200 && answer.complete => {}
            broken => {
                failed += 1;
                if !broken.is_some_and(|answer| answer.complete && answer.header("connection") != Some("close")) {
                    connection = RawClient::connect(address).await;
                }
            }
        }
    }
    failed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_done_twice_while_instances_are_killed() {
    let found = under_fire("POST", 4000, 3, never_ejecting(|pass| pass.retry_budget = 100)).await;
    let twice: Vec<_> = found.arrivals.iter().filter(|(_, count)| **count > 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
    assert!(found.failed < found.asked / 2, "{} of {} failed", found.failed, found.asked);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_be_done_twice_does_not_fail_while_instances_are_killed() {
    let found = under_fire("GET", 4000, 3, never_ejecting(|pass| pass.retry_budget = 100)).await;
    assert_eq!(found.arrivals.len(), found.asked);
    // Killed in the middle of an answer, which cannot be taken back.
    assert!(found.failed <= found.asked / 1000, "{} of {} failed", found.failed, found.asked);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flapping_instance_adds_few_errors() {
    let found = under_fire("GET", 4000, 1, with_service(settings(), |_| {})).await;
    assert!(found.failed <= found.asked / 100, "{} of {} failed", found.failed, found.asked);
}

/// A client hangs up: its request is given up at the instance as well.
#[tokio::test]
async fn clients_that_have_gone_cost_their_instance_nothing() {
    let origin = HyperOrigin::start("a").await;
    let fleet = Fleet::of(&[origin.address()]);
    let proxy: Proxy = fleet.proxy(settings());
    let mut client = RawClient::connect(proxy.address()).await;
    client.send("GET /hold HTTP/1.1\r\nHost: x\r\n\r\n").await;
    until("under way", || origin.under_way() == 1).await;
    drop(client);
    until("given up", || origin.under_way() == 0).await;
}

/// An instance says within TLS that it closes the connection, before the connection itself tells.
#[tokio::test]
async fn connections_that_tls_has_ended_are_not_used_again() {
    let folder = tempfile::tempdir().unwrap();
    let files = TlsFiles::create(folder.path());
    let certificates = CertificateDer::pem_file_iter(&files.server).unwrap().map(Result::unwrap).collect();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let key = PrivateKeyDer::from_pem_file(&files.server).unwrap();
    let config = config.with_no_client_auth().with_single_cert(certificates, key).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let origin = tokio::spawn(async move {
        let mut open = Vec::new();
        loop {
            let mut stream = acceptor.accept(listener.accept().await.unwrap().0).await.unwrap();
            let mut head = [0; 4096];
            assert!(stream.read(&mut head).await.unwrap() > 0);
            let session = stream.get_mut().1;
            session.writer().write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap();
            session.send_close_notify();
            stream.flush().await.unwrap();
            open.push(stream);
        }
    });
    let fleet = Fleet::of(&[address]);
    let tls = ServiceTls { ca: files.ca.clone(), name: None };
    let proxy = fleet.proxy(with_service(settings(), |service| service.tls = Some(tls)));
    for _ in 0..3 {
        assert_eq!(request(proxy.address(), "POST", "/x", &[], "body").await.text(), "ok");
    }
    origin.abort();
}

/// A status of 200 is not yet an answer.
#[tokio::test]
async fn who_breaks_answers_off_is_ejected() {
    let half =
        || vec![Play::Body, Play::Send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf".to_vec()), Play::Close];
    let (bad, good) = (RawOrigin::start(move |_| half()).await, HyperOrigin::start("good").await);
    let fleet = Fleet::of(&[bad.address(), good.address()]);
    let proxy = fleet.proxy(passing(|_| {}));
    let mut broken = 0;
    for _ in 0..40 {
        let mut client = RawClient::connect(proxy.address()).await;
        client.send("GET /x HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await;
        broken += usize::from(client.is_reset().await);
    }
    assert_eq!((broken, bad.heads().len()), (5, 5));
    assert_eq!(good.requests(), 35);
}
