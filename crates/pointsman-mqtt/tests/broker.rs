//! The embedded broker over real sockets.

#![allow(clippy::unwrap_used)] // The helpers of tests are tests too.

#[path = "broker/access.rs"]
mod access;
#[path = "broker/bytes.rs"]
mod bytes;
#[path = "broker/client.rs"]
mod client;
#[path = "broker/crowd.rs"]
mod crowd;
#[path = "broker/memory.rs"]
mod memory;
#[path = "broker/pressure.rs"]
mod pressure;
#[path = "broker/sessions.rs"]
mod sessions;
#[path = "broker/stall.rs"]
mod stall;
#[path = "broker/takeover.rs"]
mod takeover;
#[path = "broker/throughput.rs"]
mod throughput;

use std::net::{Ipv4Addr, SocketAddr};

use client::{Client, hello};
use pointsman_mqtt::broker::{Broker, CLIENT_ID_PROPERTY, Options};
use pointsman_mqtt::packet::{AckKind, Connect, Qos, Version};
use pointsman_mqtt::reason::Reason;

const QOS0: Qos = Qos::AtMostOnce;
const QOS1: Qos = Qos::AtLeastOnce;
const QOS2: Qos = Qos::ExactlyOnce;

fn options() -> Options {
    Options::new(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
}

async fn start() -> Broker {
    Broker::start(options()).await.unwrap()
}

#[tokio::test]
async fn messages_of_every_quality_pass_between_both_versions() {
    let broker = start().await;
    for from in [Version::V311, Version::V5] {
        for to in [Version::V311, Version::V5] {
            let (mut a, _) = Client::connect(broker.address(), Connect { version: from, ..hello("a") }).await;
            let (mut b, _) = Client::connect(broker.address(), Connect { version: to, ..hello("b") }).await;
            b.subscribe("x/+", QOS2).await;
            for (id, qos) in (1..).zip([QOS0, QOS1, QOS2]) {
                let id = if qos == QOS0 { 0 } else { id };
                a.publish("x/y", "hello", qos, id).await;
                let got = b.message().await;
                assert_eq!((got.qos, &got.payload[..], &*got.topic), (qos, &b"hello"[..], "x/y"));
                match qos {
                    Qos::AtMostOnce => {}
                    Qos::AtLeastOnce => {
                        assert_eq!(a.ack().await, (AckKind::Puback, id, Reason::SUCCESS));
                        b.acknowledge(AckKind::Puback, got.id).await;
                    }
                    Qos::ExactlyOnce => {
                        assert_eq!(a.ack().await, (AckKind::Pubrec, id, Reason::SUCCESS));
                        a.acknowledge(AckKind::Pubrel, id).await;
                        assert_eq!(a.ack().await, (AckKind::Pubcomp, id, Reason::SUCCESS));
                        b.acknowledge(AckKind::Pubrec, got.id).await;
                        assert_eq!(b.ack().await, (AckKind::Pubrel, got.id, Reason::SUCCESS));
                        b.acknowledge(AckKind::Pubcomp, got.id).await;
                    }
                }
            }
            a.settle().await;
            b.settle().await;
        }
    }
    broker.close().await;
}

#[tokio::test]
async fn the_relay_acknowledges_from_end_to_end() {
    let broker = start().await;
    let mut relay = Client::local(broker.handle().connect(), "relay").await;
    let mut sender = Client::new(broker.address(), "sender").await;
    let mut service = Client::new(broker.address(), "service").await;
    relay.subscribe("/login/#", QOS1).await;
    service.subscribe("code/#", QOS1).await;
    sender.publish("/login/user", "1", QOS1, 9).await;
    let request = relay.message().await;
    assert_eq!(request.properties.user, [(CLIENT_ID_PROPERTY.into(), "sender".into())]);
    relay.publish("code/login/user", "1", QOS1, 5).await;
    let work = service.message().await;
    sender.settle().await;
    relay.settle().await;
    service.acknowledge(AckKind::Puback, work.id).await;
    assert_eq!(relay.ack().await, (AckKind::Puback, 5, Reason::SUCCESS));
    relay.acknowledge(AckKind::Puback, request.id).await;
    assert_eq!(sender.ack().await, (AckKind::Puback, 9, Reason::SUCCESS));
    broker.close().await;
    for mut client in [relay, sender, service] {
        assert_eq!(client.farewell().await, Some(Reason::SERVER_SHUTTING_DOWN));
    }
}
