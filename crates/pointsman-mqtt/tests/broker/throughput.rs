//! How much goes through: `cargo test --release -p pointsman-mqtt --test broker -- --ignored --nocapture throughput`.

use std::sync::Arc;
use std::time::Instant;

use bytes::BytesMut;
use pointsman_mqtt::packet::{Options, Qos, Version, encode_publish};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::client::{Client, PATIENCE, message};
use super::{QOS0, QOS1, start};

const MESSAGES: usize = 2_000_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn throughput_of_qos_0() {
    let broker = start().await;
    let mut to = Client::new(broker.address(), "to").await;
    to.subscribe_with("bench/#", Options::up_to(QOS0)).await;
    let mut from = Client::new(broker.address(), "from").await;
    let mut one = BytesMut::new();
    encode_publish(&message("bench/topic", "0123456789abcdef", QOS0, 0), Version::V5, &mut one).unwrap();
    let batch = one.repeat(1000);
    let size = one.len();
    let began = Instant::now();
    // The sender is never more than 32,000 messages ahead, so that none is dropped.
    let (credit, mut credits) = (Arc::new(Semaphore::new(32)), 32);
    let gate = Arc::clone(&credit);
    let writer = tokio::spawn(async move {
        for _ in 0..MESSAGES / 1000 {
            gate.acquire().await.unwrap().forget();
            from.stream.write_all(&batch).await.unwrap();
        }
        from.settle().await;
    });
    let mut buffer = vec![0; 256 << 10];
    let mut read = 0;
    while read / size < MESSAGES {
        read += timeout(PATIENCE, to.stream.read(&mut buffer)).await.unwrap().unwrap();
        let earned = read / size / 1000 + 32;
        credit.add_permits(earned - std::mem::replace(&mut credits, earned));
    }
    writer.await.unwrap();
    println!("QoS 0: {:.0} messages/s", MESSAGES as f64 / began.elapsed().as_secs_f64());
    assert_eq!(broker.handle().figures().dropped_slow, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn throughput_of_qos_1_by_a_local_client() {
    let broker = start().await;
    let mut relay = Client::local(broker.handle().connect(), "relay").await;
    relay.subscribe("bench/#", QOS1).await;
    let mut from = Client::new(broker.address(), "from").await;
    let count = MESSAGES / 20;
    let began = Instant::now();
    let worker = tokio::spawn(async move {
        for _ in 0..count {
            let id = relay.message().await.id;
            relay.acknowledge(pointsman_mqtt::packet::AckKind::Puback, id).await;
        }
    });
    let window = 500;
    let mut out = BytesMut::new();
    for id in 1..=window {
        encode_publish(&message("bench/topic", "0123456789abcdef", Qos::AtLeastOnce, id), Version::V5, &mut out)
            .unwrap();
    }
    for _ in 0..count / usize::from(window) {
        from.write(&out).await;
        for _ in 0..window {
            from.ack().await;
        }
    }
    worker.await.unwrap();
    println!("QoS 1, end to end: {:.0} messages/s", count as f64 / began.elapsed().as_secs_f64());
}
