//! The servers themselves.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use pointsman_testkit::{ZooKeeper, unique_prefix};
use zookeeper_client::{Acls, Client, CreateMode, SessionState};

fn gone(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.is_empty() || stat.contains(") Z ")
}

#[tokio::test]
async fn starts_and_restarts_with_its_data() {
    let start = Instant::now();
    let mut server = ZooKeeper::start().await;
    println!("started in {:?}", start.elapsed());
    let address = server.address();
    let client = server.client().await;
    let persistent = CreateMode::Persistent.with_acls(Acls::anyone_all());
    client.create("/kept", b"data", &persistent).await.unwrap();
    server.kill();
    assert!(!server.is_serving().await);
    server.restart().await;
    assert_eq!(server.address(), address);
    assert_eq!(server.mode().await.as_deref(), Some("standalone"));
    assert_eq!(server.client().await.get_data("/kept").await.unwrap().0, b"data");
    server.kill();
    server.wipe();
    server.restart().await;
    assert!(server.client().await.get_data("/kept").await.is_err(), "nothing is left");
    let pid = server.pid().unwrap();
    drop(server);
    assert!(gone(pid));
}

#[tokio::test]
async fn a_paused_server_is_silent() {
    let server = ZooKeeper::start().await;
    server.pause();
    assert!(!server.is_serving().await);
    server.resume();
    assert!(server.is_serving().await);
}

#[tokio::test]
async fn small_session_timeouts_are_negotiated_and_sessions_can_be_ended() {
    let server = ZooKeeper::shared().await;
    let connector = Client::connector().with_session_timeout(Duration::from_secs(1));
    let client = connector.connect(&server.address()).await.unwrap();
    assert_eq!(client.session_timeout(), Duration::from_secs(1));
    let path = unique_prefix();
    client.create(&path, b"", &CreateMode::Ephemeral.with_acls(Acls::anyone_all())).await.unwrap();
    let mut states = client.state_watcher();
    server.expire(client.session_id().0).await;
    assert_eq!(server.client().await.check_stat(&path).await.unwrap(), None);
    while !matches!(states.state(), SessionState::Expired) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The test process is killed here by standing in for it: a child that runs this test binary and shares a server.
#[tokio::test]
async fn a_server_dies_with_its_test_process() {
    let this = std::env::current_exe().unwrap();
    let mut child = std::process::Command::new(this)
        .args(["--ignored", "--exact", "stands_in_for_a_test_process", "--nocapture"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let stdout = child.stdout.take().unwrap();
    let lines = std::io::BufRead::lines(std::io::BufReader::new(stdout));
    let pid = lines.map_while(Result::ok).find_map(|line| line.split_once("server=").map(|(_, pid)| pid.to_owned()));
    let pid: u32 = pid.unwrap().parse().unwrap();
    assert!(!gone(pid));
    child.kill().unwrap();
    child.wait().unwrap();
    let start = Instant::now();
    while !gone(pid) {
        assert!(start.elapsed() < Duration::from_secs(5), "the server outlives its test process");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
#[ignore = "run by a_server_dies_with_its_test_process only"]
async fn stands_in_for_a_test_process() {
    let server = ZooKeeper::shared().await;
    println!("server={}", server.pid().unwrap());
    tokio::time::sleep(Duration::from_secs(20)).await;
}
