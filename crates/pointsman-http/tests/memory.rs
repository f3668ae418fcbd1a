//! What clients and origins can make the proxy keep in memory is bounded. The tests are run one after the other: they look at
//! the memory of the whole process.
#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use pointsman_http::{Action, Answer};
use pointsman_testkit::http::{FrameClient, HyperOrigin, RawClient, get, kind, resident_memory};
use support::{Fleet, proxy_to, route, settled, with_routes};
use tokio::sync::Mutex;

const MIB: usize = 1 << 20;

static ALONE: Mutex<()> = Mutex::const_new(());

#[tokio::test]
async fn a_slow_reader_holds_up_the_origin_not_the_memory() {
    let _alone = ALONE.lock().await;
    let origin = HyperOrigin::start("a").await;
    let (_fleet, proxy) = proxy_to(origin.address());
    let mut client = RawClient::connect(proxy.address()).await;
    let before = resident_memory();
    let length = 64 * MIB;
    client.send(format!("GET /bytes/{length} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
    assert_eq!(client.head().await.status, 200);
    let given = settled(|| origin.given()).await;
    // What the kernel's buffers of two connections take, at most.
    assert!(given < 32 * MIB as u64, "{given}");
    let grown = resident_memory().saturating_sub(before);
    assert!(grown < 8 * MIB as u64, "{grown}");
    let mut count = 0;
    while count < length {
        let some = client.read_some().await;
        assert!(!some.is_empty(), "the end after {count}");
        count += some.len();
    }
    assert_eq!(count, length);
}

#[tokio::test]
async fn a_slow_origin_holds_up_the_client_not_the_memory() {
    let _alone = ALONE.lock().await;
    let origin = HyperOrigin::start("a").await;
    let (_fleet, proxy) = proxy_to(origin.address());
    let mut client = RawClient::connect(proxy.address()).await;
    let length = 64 * MIB;
    let head = format!("POST /gated-sink HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n");
    let mut bytes = head.into_bytes();
    bytes.resize(bytes.len() + length, b'x');
    let before = resident_memory();
    client.send_on(bytes);
    support::until("under way", || origin.under_way() == 1).await;
    settled(resident_memory).await;
    let grown = resident_memory().saturating_sub(before);
    assert!(grown < 8 * MIB as u64, "{grown}");
    assert_eq!(origin.taken(), 0);
    origin.release(length);
    assert_eq!(client.response().await.text(), length.to_string());
}

/// The figure: 10 KiB for each.
#[tokio::test]
async fn idle_connections_are_small() {
    let _alone = ALONE.lock().await;
    let origin = HyperOrigin::start("a").await;
    let fleet = Fleet::of(&[origin.address()]);
    let mut own = route("ress", |when| when.path_prefix = Some("/own".into()), |_| {});
    own.action = Action::Answer(Answer { status: 200, headers: Vec::new(), body: "xxxxx".into() });
    let proxy = fleet.proxy(with_routes(vec![own, route("ress", |_| {}, |_| {})]));
    assert_eq!(get(proxy.address(), "/x").await.status, 200);
    let before = resident_memory();
    let (address, count) = (proxy.address(), connections().min(10_000));
    let clients =
        tokio::task::spawn_blocking(move || (0..count).map(|number| served(address, number)).collect::<Vec<_>>());
    let clients = clients.await.unwrap();
    let each = resident_memory().saturating_sub(before) / count as u64;
    assert!(each <= 10 << 10, "{each} bytes each of {count}");
    // They still work.
    let mut last = clients.into_iter().next_back().unwrap();
    tokio::task::spawn_blocking(move || ask(&mut last, 0)).await.unwrap();
}

/// How many this process may have, each with both its ends.
fn connections() -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let files = getrlimit(Resource::Nofile).current.unwrap_or(1 << 20);
    usize::try_from(files).unwrap().saturating_sub(500) / 2
}

/// A connection on which a request has been answered.
fn served(address: SocketAddr, number: usize) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    ask(&mut stream, number);
    stream
}

/// Each fourth request goes to the instance: the others take less time.
fn ask(stream: &mut TcpStream, number: usize) {
    let target = if number.is_multiple_of(4) { "/bytes/5" } else { "/own" };
    stream.write_all(format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\nxxxxx") {
        let mut some = [0; 1000];
        let count = stream.read(&mut some).unwrap();
        assert!(count > 0, "{}", String::from_utf8_lossy(&answer));
        answer.extend(&some[..count]);
    }
}

/// CVE-2023-44487.
#[tokio::test]
async fn streams_that_are_reset_at_once_are_bounded() {
    let _alone = ALONE.lock().await;
    let origin = HyperOrigin::start("a").await;
    let (_fleet, proxy) = proxy_to(origin.address());
    assert_eq!(get(proxy.address(), "/x").await.status, 200);
    let before = resident_memory();
    let mut flood = FrameClient::connect(proxy.address()).await;
    let block = FrameClient::block(&FrameClient::get("/hold"));
    let mut stays = true;
    for round in 0..200 {
        let mut frames = Vec::new();
        for number in 0..100 {
            let stream = (round * 100 + number) * 2 + 1;
            let flags = FrameClient::END_STREAM | FrameClient::END_HEADERS;
            frames.extend(FrameClient::frame(kind::HEADERS, flags, stream, &block));
            frames.extend(FrameClient::frame(kind::RESET, 0, stream, &8_u32.to_be_bytes()));
        }
        stays &= flood.send(&frames).await;
    }
    // Others are served meanwhile.
    assert_eq!(get(proxy.address(), "/x").await.status, 200);
    let told = !stays || flood.until(kind::GO_AWAY).await.iter().any(|frame| frame.kind == kind::GO_AWAY);
    assert!(told, "20,000 streams that are reset at once end a connection");
    assert!(origin.requests() < 5_000, "{} of 20,000 went on to the origin", origin.requests());
    assert_eq!(settled(|| origin.under_way()).await, 0);
    let grown = resident_memory().saturating_sub(before);
    assert!(grown < 16 * MIB as u64, "{grown}");
}

/// CVE-2024-27316 and its like.
#[tokio::test]
async fn heads_without_an_end_are_bounded() {
    let _alone = ALONE.lock().await;
    let origin = HyperOrigin::start("a").await;
    let (_fleet, proxy) = proxy_to(origin.address());
    assert_eq!(get(proxy.address(), "/x").await.status, 200);
    let before = resident_memory();
    let mut flood = FrameClient::connect(proxy.address()).await;
    let value = "v".repeat(120);
    let fields: Vec<(String, &str)> = (0..100).map(|number| (format!("x-{number}"), &*value)).collect();
    let fields: Vec<(&str, &str)> = fields.iter().map(|(name, value)| (&**name, *value)).collect();
    let block = FrameClient::block(&fields);
    flood.send(&FrameClient::frame(kind::HEADERS, 1, 1, &FrameClient::block(&FrameClient::get("/")))).await;
    let mut stays = true;
    for _ in 0..2_000 {
        // 26 MB in all, if they are all taken.
        stays &= flood.send(&FrameClient::frame(kind::CONTINUATION, 0, 1, &block)).await;
        if !stays {
            break;
        }
    }
    assert_eq!(get(proxy.address(), "/x").await.status, 200);
    if stays {
        let (code, _) = flood.outcome(1).await;
        assert!(code.is_some(), "a head of 26 MB is refused");
    }
    let grown = resident_memory().saturating_sub(before);
    assert!(grown < 8 * MIB as u64, "{grown}");
    assert_eq!(origin.requests(), 2);
}

/// CVE-2019-9512, -9515, -9518: what has to be answered, or kept, and costs the client nothing.
#[tokio::test]
async fn pings_settings_and_empty_frames_are_bounded() {
    let _alone = ALONE.lock().await;
    let origin = HyperOrigin::start("a").await;
    let (_fleet, proxy) = proxy_to(origin.address());
    for frame in [
        FrameClient::frame(kind::PING, 0, 0, &[7; 8]),
        FrameClient::frame(kind::SETTINGS, 0, 0, &[]),
        FrameClient::frame(kind::DATA, 0, 1, &[]),
    ] {
        assert_eq!(get(proxy.address(), "/x").await.status, 200);
        let before = resident_memory();
        let mut flood = FrameClient::connect(proxy.address()).await;
        let block = FrameClient::block(&[&FrameClient::get("/gated-sink")[1..], &[(":method", "POST")]].concat());
        flood.send(&FrameClient::frame(kind::HEADERS, FrameClient::END_HEADERS, 1, &block)).await;
        // Nobody reads the answers. Who does not take more is as good as who ends the connection.
        for _ in 0..200 {
            let frames = frame.repeat(1000);
            let sent = tokio::time::timeout(std::time::Duration::from_millis(500), flood.send(&frames)).await;
            if sent != Ok(true) {
                break;
            }
        }
        assert_eq!(get(proxy.address(), "/x").await.status, 200);
        let grown = resident_memory().saturating_sub(before);
        assert!(grown < 16 * MIB as u64, "{grown}");
    }
}
