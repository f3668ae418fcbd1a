//! The next process takes over.

use std::os::unix::fs::PermissionsExt as _;

use pointsman_testkit::http::{EchoOrigin, Load, MIXED, Plan, RawClient};
use pointsman_testkit::{ZooKeeper, unique_prefix};

use crate::setup::{Proxy, Registry, at, instances, text, until};
use crate::support::served::{File, free_port, logged, serve};
use crate::support::{Running, command, run, stderr};

/// Requests between two hand-overs.
const PACE: u64 = 300;

#[tokio::test(flavor = "multi_thread")]
async fn the_next_process_takes_over_under_load() {
    // Only one can have this address at a time.
    under_load(&format!("[metrics]\nlisten = '127.0.0.1:{}'\n", free_port())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_process_takes_over_with_the_same_code() {
    under_load("code = 'p-1'\n").await;
}

async fn under_load(lines: &str) {
    let (origin, port) = (EchoOrigin::start("a").await, free_port());
    let registry = format!("zookeeper://{}{}", ZooKeeper::shared().await.address(), unique_prefix());
    let address = origin.address().to_string();
    let args = ["register", "ress", "--code", "a", "--address", &address, "-o", "json", "--registry", &registry];
    let mut instance = Running::start(command(args));
    instance.json_where(|line| line["role"] == "master").await;
    let mut proxy = Proxy::start(port, &text(&registry, port, &format!("hand_over = 'p.sock'\n{lines}"))).await;
    proxy.until_served_by(&["a"]).await;
    let load = Load::start(at(port), MIXED, Plan { posts: 50, requests: None, origins_fail: false });
    for _ in 0..3 {
        load.more(PACE).await;
        let mut next = serve(&proxy.file.path);
        logged(&mut next, " ready").await;
        let first = std::mem::replace(&mut proxy.running, next);
        // By itself, and well.
        assert_eq!(first.ended().await.code(), Some(0));
        load.more(PACE).await;
        let one = async || instances("http-balancer", &registry).await;
        let listed = until(one, |listed| listed.as_array().unwrap().len() == 1).await;
        if lines.contains("code") {
            assert_eq!(listed[0]["code"], "p-1");
        }
    }
    let tally = load.end().await;
    tally.assert_none_failed();
    proxy.ends().await;
    assert_eq!(instances("http-balancer", &registry).await.as_array().unwrap().len(), 0);
}

#[tokio::test]
async fn who_asks_and_does_not_serve_changes_nothing() {
    let (registry, origin) = (Registry::start().await, EchoOrigin::start("a").await);
    registry.put("ress", "a", origin.address()).await;
    let mut proxy = Proxy::over(&registry, "hand_over = 'p.sock'").await;
    proxy.until_served_by(&["a"]).await;
    let socket = proxy.file.path.with_file_name("p.sock");
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    // Another file that would listen elsewhere.
    let other = File::new(&text(&registry.url(), free_port(), &format!("hand_over = '{}'", socket.display())));
    let output = run(&["serve", "-c", other.path.to_str().unwrap()]).await;
    assert_eq!(output.status.code(), Some(1));
    let told = stderr(&output);
    assert!(told.contains(&format!("the process that serves listens on 127.0.0.1:{}", proxy.port)), "{told}");
    logged(&mut proxy.running, "gone again without serving").await;
    for _ in 0..20 {
        assert_eq!(proxy.get("/").await.status, 200);
    }
    let mut next = serve(&proxy.file.path);
    logged(&mut next, " ready").await;
    assert_eq!(std::mem::replace(&mut proxy.running, next).ended().await.code(), Some(0));
    assert!(socket.exists(), "the next one's");
    proxy.ends().await;
    assert!(!socket.exists());
}

#[tokio::test]
async fn a_long_answer_is_seen_through_by_the_one_that_has_handed_over() {
    let (registry, origin) = (Registry::start().await, pointsman_testkit::http::HyperOrigin::start("a").await);
    registry.put("ress", "a", origin.address()).await;
    let mut proxy = Proxy::over(&registry, "hand_over = 'p.sock'\ncode = 'p'").await;
    proxy.until_served_by(&["a"]).await;
    let mut client = RawClient::connect(at(proxy.port)).await;
    client.send("GET /sse/3 HTTP/1.1\r\nHost: a\r\n\r\n").await;
    client.read_until("\n\n").await;
    let mut next = serve(&proxy.file.path);
    // Registered with the code that the first one had.
    logged(&mut next, " ready").await;
    let mut first = std::mem::replace(&mut proxy.running, next);
    logged(&mut first, "another process serves now").await;
    proxy.until_served_by(&["a"]).await;
    assert!(first.runs());
    origin.release(2);
    let rest = String::from_utf8(client.rest().await).unwrap();
    assert!(rest.ends_with("0\r\n\r\n"), "{rest}");
    assert_eq!(first.ended().await.code(), Some(0));
    proxy.ends().await;
}

#[tokio::test]
async fn a_dead_socket_is_replaced_and_what_is_no_socket_is_left_alone() {
    let (registry, port) = (Registry::start().await, free_port());
    let file = File::new(&text(&registry.url(), port, "hand_over = 'p.sock'"));
    let socket = file.path.with_file_name("p.sock");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    assert!(socket.exists());
    let mut running = serve(&file.path);
    logged(&mut running, " ready").await;
    Proxy { file, port, running }.ends().await;

    let file = File::new(&text(&registry.url(), port, "hand_over = 'precious'"));
    let path = file.path.with_file_name("precious");
    let fails = async |words: &str| {
        let output = run(&["serve", "-c", file.path.to_str().unwrap()]).await;
        let told = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(told.contains("http.hand_over: ") && told.contains(words), "{words}: {told}");
    };
    std::fs::write(&path, "text").unwrap();
    fails("is not a socket").await;
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "text");
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    fails("precious is a folder").await;
    // Nor is it made where it cannot be.
    file.replace(&text(&registry.url(), port, "hand_over = 'nowhere/p.sock'"));
    fails("its folder is not there").await;
}
