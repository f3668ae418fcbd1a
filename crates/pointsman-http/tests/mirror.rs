//! Copies of requests come to the mirror, and whatever becomes of them there, the requests themselves are none the wiser.
#![allow(clippy::unwrap_used, reason = "a test")]

mod tiny;

use std::sync::atomic::{AtomicUsize, Ordering};

use pointsman_http::{Options, Protocol, Proxy, Service, Settings};
use pointsman_testkit::http::HyperOrigin;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use self::tiny::{Fleet, Origin, Play, SOON, exchange, get, metric, ok, settings, status, until};

const MIRRORED: &str = "pointsman_http_mirrored_total{route=\"^/\",service=\"ress\"}";
const DROPPED: &str = "pointsman_http_mirror_dropped_total{route=\"^/\",service=\"ress\"}";

fn mirrored(percent: u8) -> Settings {
    settings(|pass| pass.mirror = Some(("copies".into(), percent)))
}

/// A proxy whose requests go to one, and copies to the other.
fn between(origin: &Origin, mirror: &Origin, settings: Settings) -> (Proxy, Fleet) {
    let fleet = Fleet::new(&["ress", "copies"]);
    fleet.set("ress", &[("a", origin.address)]);
    fleet.set("copies", &[("c", mirror.address)]);
    (fleet.proxy(settings, Options::default()), fleet)
}

async fn post(proxy: &Proxy, head: &str, body: &str) -> String {
    let request = format!("POST /p?q HTTP/1.1\r\nHost: h:1\r\nConnection: close\r\n{head}\r\n{body}");
    exchange(proxy.address(), &request).await
}

#[tokio::test]
async fn a_copy_is_what_the_instance_gets() {
    let mut origin = Origin::start(|_| ok("original")).await;
    let mut mirror = Origin::start(|_| status(500, "mirror")).await;
    let (proxy, _fleet) = between(&origin, &mirror, mirrored(100));
    let answer = post(&proxy, "X-Request-Id: r-1\r\nCookie: a=1\r\nContent-Length: 4\r\n", "body").await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("original"), "{answer}");
    let (seen, copy) = (origin.next().await, mirror.next().await);
    assert_eq!((&seen.head, &seen.body), (&copy.head, &copy.body));
    assert_eq!((copy.line(), &*copy.body), ("POST /p?q HTTP/1.1", "body"));
    assert_eq!([copy.field("x-request-id"), copy.field("host")], [Some("r-1"), Some("h:1")]);
    // Nothing of the body is made up for one that has none; what makes up the trace is the same for both.
    assert_eq!(get(proxy.address(), "/").await, (200, "original".to_owned()));
    assert_eq!(origin.next().await.head, mirror.next().await.head);
    assert_eq!([metric(&proxy, MIRRORED), metric(&proxy, DROPPED)], [2, 0]);
    let attempts = |service, outcome| {
        metric(&proxy, &format!("pointsman_http_attempts_total{{service=\"{service}\",outcome=\"{outcome}\"}}"))
    };
    until("both copies answered", || attempts("copies", "answered") == 2).await;
    // The second went over the same connection.
    assert_eq!(metric(&proxy, "pointsman_http_connects_total{service=\"copies\"}"), 1);
}

#[tokio::test]
async fn none_of_them_is_none() {
    let origin = Origin::start(|_| ok("")).await;
    let mut mirror = Origin::start(|_| ok("")).await;
    let (proxy, _fleet) = between(&origin, &mirror, mirrored(0));
    for _ in 0..20 {
        get(proxy.address(), "/").await;
    }
    assert_eq!([metric(&proxy, MIRRORED), metric(&proxy, DROPPED)], [0, 0]);
    assert!(mirror.others().is_empty());
}

#[tokio::test]
async fn a_body_whose_length_is_found_out_is_copied_and_what_is_too_large_or_an_upgrade_is_not() {
    let origin = Origin::start(|seen| match seen.field("upgrade") {
        Some(_) => status(400, ""),
        // The body is in chunks, and the rest of the connection is not wanted.
        None if seen.field("transfer-encoding").is_some() => {
            Play::Cut("HTTP/1.1 200 X\r\ncontent-length: 0\r\n\r\n".into())
        }
        None => ok(""),
    });
    let (origin, mut mirror) = (origin.await, Origin::start(|_| ok("")).await);
    let mut settings = mirrored(100);
    // Nothing is kept for a retry.
    let pointsman_http::Action::Pass(pass) = &mut settings.routes[0].action else { unreachable!() };
    pass.retries = 0;
    let (proxy, _fleet) = between(&origin, &mirror, settings);
    let large = "x".repeat((64 << 10) + 1);
    for (body, mirrored) in [(&large[1..], 1), (&large[..], 0)] {
        let before = [metric(&proxy, MIRRORED), metric(&proxy, DROPPED)];
        post(&proxy, &format!("Content-Length: {}\r\n", body.len()), body).await;
        let after = [metric(&proxy, MIRRORED), metric(&proxy, DROPPED)];
        assert_eq!(after, [before[0] + mirrored, before[1] + 1 - mirrored]);
    }
    assert_eq!(mirror.next().await.body.len(), 64 << 10);
    post(&proxy, "Transfer-Encoding: chunked\r\n", "3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n").await;
    let copy = mirror.next().await;
    assert_eq!([copy.field("content-length"), copy.field("transfer-encoding")], [Some("4"), None]);
    assert_eq!(copy.body, "abcd");
    let upgrade = "GET / HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n";
    let mut client = TcpStream::connect(proxy.address()).await.unwrap();
    client.write_all(upgrade.as_bytes()).await.unwrap();
    until("the upgrade dropped", || metric(&proxy, DROPPED) == 2).await;
    assert!(mirror.others().is_empty());
}

#[tokio::test]
async fn a_mirror_that_hangs_gets_so_many_and_holds_nobody_up() {
    let origin = Origin::start(|_| ok("original")).await;
    let mut mirror = Origin::start(|_| Play::Held("HTTP/1.1 204 X\r\n\r\n".into())).await;
    let (proxy, _fleet) = between(&origin, &mirror, mirrored(100));
    for _ in 0..70 {
        assert_eq!(get(proxy.address(), "/").await, (200, "original".to_owned()));
    }
    assert_eq!([metric(&proxy, MIRRORED), metric(&proxy, DROPPED)], [64, 6]);
    for _ in 0..64 {
        mirror.next().await;
    }
    mirror.release(64);
    // Who is done makes room for others.
    let answered = "pointsman_http_attempts_total{service=\"copies\",outcome=\"answered\"}";
    until("all answered", || metric(&proxy, answered) == 64).await;
    get(proxy.address(), "/").await;
    mirror.next().await;
    assert_eq!([metric(&proxy, MIRRORED), metric(&proxy, DROPPED)], [65, 6]);
}

#[tokio::test]
async fn a_mirror_that_is_down_or_talks_nonsense_breaks_nothing() {
    let origin = Origin::start(|_| ok("original")).await;
    let mirror = Origin::start(|_| Play::Answer("SMTP is spoken here\r\n\r\n".into())).await;
    let (proxy, fleet) = between(&origin, &mirror, mirrored(100));
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let attempts =
        |outcome| metric(&proxy, &format!("pointsman_http_attempts_total{{service=\"copies\",outcome=\"{outcome}\"}}"));
    assert_eq!(get(proxy.address(), "/").await, (200, "original".to_owned()));
    until("nonsense counted", || attempts("broken") == 1).await;
    fleet.set("copies", &[("d", nobody)]);
    assert_eq!(get(proxy.address(), "/").await, (200, "original".to_owned()));
    until("a dead one counted", || attempts("unreachable") == 1).await;
    fleet.set("copies", &[]);
    assert_eq!(get(proxy.address(), "/").await, (200, "original".to_owned()));
    assert_eq!([metric(&proxy, MIRRORED), metric(&proxy, DROPPED)], [2, 1]);
}

#[tokio::test]
async fn a_request_that_is_tried_again_is_copied_once_and_so_is_one_that_fails() {
    let times = AtomicUsize::new(0);
    let origin =
        Origin::start(move |_| if times.fetch_add(1, Ordering::SeqCst) == 0 { ok("") } else { Play::Drop }).await;
    let mut mirror = Origin::start(|_| ok("")).await;
    let (proxy, fleet) = between(&origin, &mirror, mirrored(100));
    let other = Origin::start(|_| Play::Drop).await;
    fleet.set("ress", &[("a", origin.address), ("b", other.address)]);
    // Idempotent, so each is tried at both; only the first finds one that answers.
    let put = "PUT / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc";
    assert!(exchange(proxy.address(), put).await.starts_with("HTTP/1.1 200"));
    assert_eq!(mirror.next().await.body, "abc");
    assert!(exchange(proxy.address(), put).await.starts_with("HTTP/1.1 502"));
    assert_eq!(mirror.next().await.body, "abc");
    assert_eq!([metric(&proxy, MIRRORED), metric(&proxy, DROPPED)], [2, 0]);
}

#[tokio::test]
async fn a_copy_does_not_wait_for_an_answer_without_end() {
    let origin = Origin::start(|_| Play::Answer("HTTP/1.1 200 X\r\ncontent-length: 9\r\n\r\nabc".into())).await;
    let mut mirror = Origin::start(|_| ok("")).await;
    let (proxy, _fleet) = between(&origin, &mirror, mirrored(100));
    let mut client = TcpStream::connect(proxy.address()).await.unwrap();
    client.write_all(b"POST /events HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
    assert_eq!(mirror.next().await.body, "ok");
    let mut some = [0; 12];
    timeout(SOON, client.read_exact(&mut some)).await.unwrap().unwrap();
    assert_eq!(&some, b"HTTP/1.1 200");
}

#[tokio::test]
async fn a_mirror_may_speak_another_protocol() {
    let origin = Origin::start(|_| ok("original")).await;
    let mirror = HyperOrigin::start("mirror").await;
    let fleet = Fleet::new(&["ress", "copies"]);
    fleet.set("ress", &[("a", origin.address)]);
    fleet.set("copies", &[("c", mirror.address())]);
    let mut settings = mirrored(100);
    let mut service = Service::default();
    service.protocol = Protocol::Http2;
    settings.services.insert("copies".into(), service);
    let proxy = fleet.proxy(settings, Options::default());
    for _ in 0..3 {
        assert!(post(&proxy, "Content-Length: 4\r\n", "body").await.ends_with("original"));
    }
    until("three copies", || mirror.taken() == 12).await;
    assert!(mirror.seen().iter().all(|seen| (&*seen.version, &*seen.target) == ("HTTP/2.0", "/p?q")));
    let answered = "pointsman_http_attempts_total{service=\"copies\",outcome=\"answered\"}";
    until("all answered", || metric(&proxy, answered) == 3).await;
}
