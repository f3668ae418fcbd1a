//! The proxy and the foreign participant.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use pointsman_testkit::{CuttingProxy, Foreign, ForeignRole, Op, ZooKeeper, read_as_foreign, unique_prefix};
use zookeeper_client::{Acls, Client, CreateMode, CreateOptions, Error, SessionState};

const PERSISTENT: CreateOptions<'static> = CreateMode::Persistent.with_acls(Acls::anyone_all());

async fn through(proxy: &CuttingProxy) -> Client {
    Client::connector().with_session_timeout(Duration::from_secs(5)).connect(&proxy.address()).await.unwrap()
}

async fn within<T>(limit: Duration, what: impl Future<Output = T>) -> T {
    tokio::time::timeout(limit, what).await.expect("in time")
}

#[tokio::test]
async fn cut_after_commit_commits_and_swallows_the_answer() {
    let server = ZooKeeper::shared().await;
    let proxy = CuttingProxy::start(server.socket_address());
    let client = through(&proxy).await;
    let (other, path, normal) = (unique_prefix(), unique_prefix(), unique_prefix());
    let cut = proxy.cut_after_commit_of(Op::Create, &path);
    client.create(&other, b"", &PERSISTENT).await.unwrap();
    assert_eq!(client.create(&path, b"", &PERSISTENT).await.unwrap_err(), Error::ConnectionLoss);
    cut.happened().await;
    assert!(server.client().await.check_stat(&path).await.unwrap().is_some());
    assert_eq!(proxy.accepted(), 1 + usize::from(client.check_stat(&path).await.unwrap().is_some()));

    // One that the server refuses does not count.
    let cut = proxy.cut_after_commit(Op::CreateOrMulti);
    assert_eq!(client.create(&path, b"", &PERSISTENT).await.unwrap_err(), Error::NodeExists);
    let mut multi = client.new_multi_writer();
    multi.add_create(&normal, b"", &PERSISTENT).unwrap();
    multi.add_delete(&other, None).unwrap();
    multi.commit().await.unwrap_err();
    cut.happened().await;
    assert!(client.check_stat(&normal).await.unwrap().is_some());
    assert!(client.check_stat(&other).await.unwrap().is_none());

    let cut = proxy.cut_before(Op::Delete, &path);
    client.delete(&path, None).await.unwrap_err();
    cut.happened().await;
    assert!(client.check_stat(&path).await.unwrap().is_some());
}

#[tokio::test]
async fn cuts_refuse_and_blackholes_are_silent() {
    let server = ZooKeeper::shared().await;
    let proxy = CuttingProxy::start(server.socket_address());
    let client = through(&proxy).await;
    let mut states = client.state_watcher();
    proxy.cut();
    within(Duration::from_secs(1), async { while states.changed().await != SessionState::Disconnected {} }).await;
    let address: std::net::SocketAddr = proxy.address().parse().unwrap();
    let refused = tokio::net::TcpStream::connect(address).await.unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    proxy.mend();
    within(Duration::from_secs(3), async { while states.changed().await != SessionState::SyncConnected {} }).await;

    proxy.blackhole();
    let start = Instant::now();
    let path = unique_prefix();
    let pending = client.create(&path, b"", &PERSISTENT);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(server.client().await.check_stat(&path).await.unwrap().is_none());
    proxy.mend();
    within(Duration::from_secs(3), pending).await.unwrap();
    assert!(start.elapsed() >= Duration::from_millis(300));

    proxy.delay(Duration::from_millis(50));
    let start = Instant::now();
    client.check_stat(&path).await.unwrap();
    assert!(start.elapsed() >= Duration::from_millis(100));
    proxy.delay(Duration::ZERO);
    proxy.cut_once();
    within(Duration::from_secs(3), async { while states.changed().await != SessionState::SyncConnected {} }).await;
}

#[tokio::test]
async fn foreign_participants_elect_as_the_original_does() {
    let server = ZooKeeper::shared().await;
    let raw = server.client().await;
    let prefix = unique_prefix();
    let folder = format!("{prefix}/files");
    let a = Foreign::start(&server.address(), &prefix, "files", "code-a").await;
    assert_eq!(a.role(), ForeignRole::Master);
    let (data, _) = raw.get_data(&format!("{folder}/master")).await.unwrap();
    let expected = r#"{"serverip":"127.0.0.1","serverport":50001,"username":"","userpwd":"","serveruniquecode":"code-a","weight":1}"#;
    assert_eq!(String::from_utf8(data).unwrap(), expected);

    let b = Foreign::options(&server.address(), &prefix, "files", "code-b");
    let b = b.session_timeout(Duration::from_secs(5)).port(50002).promotion_pause(Duration::from_secs(2)).start().await;
    assert_eq!(b.role(), ForeignRole::Normal);
    raw.create(&format!("{folder}/stray"), b"not json", &PERSISTENT).await.unwrap();
    let view = read_as_foreign(&raw, &prefix).await["files"].clone();
    assert_eq!((view.master_code(), view.normal_codes()), (Some("code-a"), vec!["code-b"]));
    assert_eq!(view.skipped, ["stray"]);
    assert!(raw.check_stat(&format!("{folder}/normal0000000001")).await.unwrap().is_some());

    server.expire(a.session()).await;
    b.becomes(ForeignRole::Master, Duration::from_secs(5)).await;
    // In two steps: registered twice in between.
    let view = read_as_foreign(&raw, &prefix).await["files"].clone();
    assert_eq!((view.master_code(), view.normal_codes()), (Some("code-b"), vec!["code-b"]));
    a.becomes(ForeignRole::None, Duration::from_secs(5)).await;
    let once = async {
        while !read_as_foreign(&raw, &prefix).await["files"].normals.is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within(Duration::from_secs(10), once).await;
    b.stop().await;
    assert_eq!(read_as_foreign(&raw, &prefix).await["files"].master_code(), None);
}
