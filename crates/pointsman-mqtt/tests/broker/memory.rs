//! How much memory subscribers take that do not read, or are away. Measurements, to be run by hand, one at a time:
//! `cargo test -p pointsman-mqtt --test broker -- --ignored --nocapture memory::NAME`.

use std::net::SocketAddr;

use bytes::Bytes;
use pointsman_mqtt::packet::{Packet, Publish, Version};

use pointsman_testkit::Mosquitto;

use super::client::{Client, message, staying};
use super::{QOS1, start};

/// 36 MB.
const MESSAGES: u16 = 9_000;
const PAYLOAD: usize = 4_000;

/// What a process has resident, in MiB.
fn resident(process: &str) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() / 1024
}

/// The processor time that a broker has had, in ms: a process, or in this one a thread.
fn processor(process: &str) -> u64 {
    let folder = format!("/proc/{process}/task");
    let threads = std::fs::read_dir(folder).unwrap().map(|thread| thread.unwrap().path().join("stat"));
    let times = threads.filter_map(|stat| {
        let stat = std::fs::read_to_string(stat).ok()?;
        let (name, rest) = stat.split_once(") ")?;
        let fields: Vec<u64> = rest.split(' ').skip(11).take(2).map(|field| field.parse().unwrap()).collect();
        (process != "self" || name.ends_with("(mqtt-broker")).then(|| 10 * (fields[0] + fields[1]))
    });
    times.sum()
}

async fn subscribed(address: SocketAddr, count: usize) -> Vec<Client> {
    let mut clients = Vec::new();
    for number in 0..count {
        let (mut client, _) = Client::connect(address, staying(&format!("a{number}"), Version::V5)).await;
        client.subscribe("t/#", QOS1).await;
        clients.push(client);
    }
    clients
}

async fn publish_all(address: SocketAddr) {
    let mut from = Client::new(address, "from").await;
    for id in 1..=MESSAGES {
        let payload = Bytes::from(vec![b'x'; PAYLOAD]);
        from.send(&Packet::Publish(Publish { payload, ..message("t/some/topic", "", QOS1, id) })).await;
        if id % 100 == 0 {
            for _ in 0..100 {
                from.ack().await;
            }
        }
    }
}

#[allow(clippy::print_stdout)] // It is what is wanted of it.
async fn measure(what: &str, address: SocketAddr, process: &str, count: usize, away: bool) {
    let mut clients = subscribed(address, count).await;
    let (before, time) = (resident(process), processor(process));
    if away {
        clients.clear();
    }
    publish_all(address).await;
    println!(
        "{what}: {before} MiB before, {} MiB with 36 MB for {count} sessions, {} ms of processor time",
        resident(process),
        processor(process) - time
    );
    for number in 0..count {
        let mut client = Client::new(address, &format!("a{number}")).await;
        client.settle_after_messages().await;
    }
    println!("{what}: {} MiB when they have gone", resident(process));
}

async fn mosquitto() -> Mosquitto {
    let options = Mosquitto::options().set("max_queued_messages", "10000").set("max_inflight_messages", "1024");
    options.start().await
}

#[tokio::test]
#[ignore = "a measurement"]
async fn who_does_not_read_beside_mosquitto() {
    let broker = mosquitto().await;
    let process = broker.pid().unwrap().to_string();
    measure("mosquitto, 20 that do not read", broker.socket_address(), &process, 20, false).await;
}

#[tokio::test]
#[ignore = "a measurement"]
async fn who_is_away_beside_mosquitto() {
    let broker = mosquitto().await;
    let process = broker.pid().unwrap().to_string();
    measure("mosquitto, 60 that are away", broker.socket_address(), &process, 60, true).await;
}

#[tokio::test]
#[ignore = "a measurement"]
async fn who_does_not_read() {
    let broker = start().await;
    measure("20 that do not read", broker.address(), "self", 20, false).await;
}

#[tokio::test]
#[ignore = "a measurement"]
async fn who_is_away() {
    let broker = start().await;
    measure("60 that are away", broker.address(), "self", 60, true).await;
}
