//! Three servers, and partitions.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use pointsman_testkit::{Ensemble, PartitionableEnsemble, ZooKeeper};
use zookeeper_client::{Acls, Client, CreateMode, CreateOptions, SessionState, TlsOptions};

const PERSISTENT: CreateOptions<'static> = CreateMode::Persistent.with_acls(Acls::anyone_all());

async fn connect(servers: &str) -> Client {
    Client::connector().with_session_timeout(Duration::from_secs(4)).connect(servers).await.unwrap()
}

async fn within<T>(limit: Duration, what: impl Future<Output = T>) -> T {
    tokio::time::timeout(limit, what).await.expect("in time")
}

#[tokio::test]
async fn an_ensemble_survives_its_leader() {
    let start = Instant::now();
    let mut ensemble = Ensemble::start().await;
    println!("three servers after {:?}", start.elapsed());
    let client = connect(&ensemble.connect_string()).await;
    client.create("/kept", b"", &PERSISTENT).await.unwrap();
    let first = ensemble.leader().await;
    ensemble.kill(first);
    let start = Instant::now();
    let second = ensemble.leader().await;
    println!("another leader after {:?}", start.elapsed());
    assert_ne!(first, second);
    let client = connect(&ensemble.connect_string()).await;
    assert!(client.check_stat("/kept").await.unwrap().is_some());
    ensemble.restart(first).await;
    assert_eq!(ensemble.servers()[first].mode().await.as_deref(), Some("follower"));
}

#[tokio::test]
async fn the_minority_side_of_a_partition_refuses() {
    let start = Instant::now();
    let Some(ensemble) = PartitionableEnsemble::start().await else { return };
    println!("three servers in namespaces after {:?}", start.elapsed());
    let leader = ensemble.leader().await;
    let minority_address = ensemble.servers()[leader].address();
    let (to_test, mut from_client) = tokio::sync::mpsc::unbounded_channel();
    let client = ensemble.in_client_namespace(async move || {
        let client = connect(&minority_address).await;
        client.create("/before", b"", &PERSISTENT).await.unwrap();
        let mut states = client.state_watcher();
        while to_test.send(states.changed().await).is_ok() {}
    });
    let outside = connect(&ensemble.connect_string()).await;
    while outside.check_stat("/before").await.unwrap().is_none() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    ensemble.partition(&[leader]);
    let start = Instant::now();
    let state = within(Duration::from_secs(10), from_client.recv()).await.unwrap();
    println!("the client on the minority side is {state:?} after {:?}", start.elapsed());
    assert_eq!(state, SessionState::Disconnected);
    assert_ne!(ensemble.leader().await, leader);
    let outside = connect(&ensemble.connect_string()).await;
    outside.create("/meanwhile", b"", &PERSISTENT).await.unwrap();
    ensemble.heal();
    let again = within(Duration::from_secs(30), from_client.recv()).await.unwrap();
    println!("after the partition it is {again:?}");
    assert!(matches!(again, SessionState::SyncConnected | SessionState::Expired));
    drop(from_client);
    drop(client);
}

#[tokio::test]
async fn commands_run_in_the_clients_namespace() {
    let Some(ensemble) = PartitionableEnsemble::start().await else { return };
    let output = ensemble.command("ip").arg("address").output().unwrap();
    assert!(String::from_utf8(output.stdout).unwrap().contains(&ensemble.client_address().to_string()));
}

#[tokio::test]
async fn a_server_speaks_tls() {
    let server = ZooKeeper::options().tls().start().await;
    let files = server.tls();
    let read = |path| std::fs::read_to_string(path).unwrap();
    let options = TlsOptions::new().with_pem_ca(&read(&files.ca)).unwrap();
    for options in [
        options.clone(),
        options.with_pem_identity(&read(&files.client_certificate), &read(&files.client_key)).unwrap(),
    ] {
        let connector = Client::connector().with_tls(options).with_session_timeout(Duration::from_secs(4));
        let client = within(Duration::from_secs(5), connector.secure_connect(&server.secure_address())).await.unwrap();
        assert_eq!(client.list_children("/").await.unwrap(), ["zookeeper"]);
    }
    let stranger = Client::connector().with_tls(TlsOptions::new()).with_fail_eagerly();
    assert!(within(Duration::from_secs(10), stranger.secure_connect(&server.secure_address())).await.is_err());
}
