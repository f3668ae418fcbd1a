//! Many at once: requests go through a client in the process to services and come back, with so little room that everybody has
//! to wait for everybody. Nothing is lost, and nobody waits for ever.

use std::collections::HashMap;

use pointsman_mqtt::broker::Broker;
use pointsman_mqtt::packet::{AckKind, Connect, Packet, Version};
use pointsman_mqtt::reason::Reason;
use tokio::task::JoinSet;

use super::client::{Client, hello, message};
use super::{QOS1, options};

const SENDERS: usize = 20;
const SERVICES: usize = 4;
const REQUESTS: u16 = 300;

/// Sends all requests at once, and reads until each is acknowledged and answered.
async fn sender(mut client: Client, number: usize) {
    client.subscribe(&format!("answer/{number}"), QOS1).await;
    let padding = "x".repeat(1000);
    let mut sent = 0;
    let (mut acknowledged, mut answered) = (0, 0);
    while acknowledged < REQUESTS || answered < REQUESTS {
        // Twenty under way, as usual clients do.
        while sent < REQUESTS && sent < acknowledged + 20 {
            sent += 1;
            client.publish(&format!("request/{number}"), &padding, QOS1, sent).await;
        }
        match client.packet().await {
            Packet::Ack(ack) => {
                assert_eq!((ack.kind, ack.reason), (AckKind::Puback, Reason::SUCCESS));
                acknowledged += 1;
            }
            Packet::Publish(publish) => {
                answered += 1;
                client.acknowledge(AckKind::Puback, publish.id).await;
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Answers each request; acknowledges it only after its answer.
async fn service(mut client: Client) {
    let mut id = 0;
    while let Some(packet) = client.next().await {
        let Packet::Publish(request) = packet else { continue };
        id = id % 60_000 + 1;
        let topic = format!("reply/{}", &request.topic[request.topic.rfind('/').unwrap() + 1..]);
        let payload = std::str::from_utf8(&request.payload).unwrap();
        client.publish(&topic, payload, QOS1, id).await;
        client.acknowledge(AckKind::Puback, request.id).await;
    }
}

/// Passes requests to services in turn, and answers to senders; acknowledges what has been acknowledged.
async fn relay(mut client: Client) {
    let mut under_way: HashMap<u16, u16> = HashMap::new();
    let mut free: Vec<u16> = (1..=60_000).collect();
    let mut turn = 0;
    while let Some(packet) = client.next().await {
        match packet {
            Packet::Publish(publish) => {
                let (kind, number) = publish.topic.split_once('/').unwrap();
                turn += 1;
                let topic = match kind {
                    "request" => format!("service{}/{number}", turn % SERVICES),
                    _ => format!("answer/{number}"),
                };
                let id = free.pop().unwrap();
                under_way.insert(id, publish.id);
                let payload = std::str::from_utf8(&publish.payload).unwrap();
                client.send(&Packet::Publish(message(&topic, payload, QOS1, id))).await;
            }
            Packet::Ack(ack) => {
                assert_eq!(ack.reason, Reason::SUCCESS);
                free.push(ack.id);
                client.acknowledge(AckKind::Puback, under_way.remove(&ack.id).unwrap()).await;
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_arrives_where_there_is_little_room() {
    let mut options = options();
    options.high_watermark = 32 << 10;
    let broker = Broker::start(options).await.unwrap();
    let mut middle = Client::local(broker.handle().connect(), "relay").await;
    for filter in ["request/#", "reply/#"] {
        middle.subscribe(filter, QOS1).await;
    }
    tokio::spawn(relay(middle));
    for number in 0..SERVICES {
        let mut client = Client::new(broker.address(), &format!("service{number}")).await;
        client.subscribe(&format!("service{number}/#"), QOS1).await;
        tokio::spawn(service(client));
    }
    let mut senders = JoinSet::new();
    for number in 0..SENDERS {
        let version = if number % 2 == 0 { Version::V5 } else { Version::V311 };
        let (client, _) =
            Client::connect(broker.address(), Connect { version, ..hello(&format!("sender{number}")) }).await;
        senders.spawn(sender(client, number));
    }
    while let Some(done) = senders.join_next().await {
        done.unwrap();
    }
    let figures = broker.handle().figures();
    assert!(figures.paused > 0, "{figures:?}");
    assert_eq!((figures.dropped_slow, figures.dropped_queue_full), (0, 0));
}
