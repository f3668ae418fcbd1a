//! Subscribers that are slow, stopped, or gone.

use std::time::Duration;

use bytes::Bytes;
use pointsman_mqtt::broker::Broker;
use pointsman_mqtt::packet::{AckKind, Packet, Publish};
use pointsman_mqtt::reason::Reason;
use tokio::time::timeout;

use super::client::{Client, message, until};
use super::{QOS0, QOS1, options, start};

fn large(topic: &str) -> Packet {
    Packet::Publish(Publish { payload: Bytes::from(vec![0; 64 << 10]), ..message(topic, "", QOS0, 0) })
}

#[tokio::test]
async fn a_subscriber_that_has_stopped_reading_loses_and_nobody_else_does() {
    let broker = start().await;
    let mut stopped = Client::new(broker.address(), "stopped").await;
    stopped.subscribe("t", QOS0).await;
    let mut healthy = Client::new(broker.address(), "healthy").await;
    healthy.subscribe("t", QOS0).await;
    let mut from = Client::new(broker.address(), "from").await;
    // More than the sockets' buffers and the broker's outbox hold.
    for _ in 0..400 {
        from.send(&large("t")).await;
        healthy.message().await;
    }
    let figures = broker.handle().figures();
    assert!(figures.dropped_slow > 0, "{figures:?}");
    // What it still gets is whole messages, and afterwards it is as good as any.
    from.publish("t", "last", QOS0, 0).await;
    healthy.message().await;
    let mut count: u64 = 0;
    while count + figures.dropped_slow < 400 {
        assert_eq!(stopped.message().await.payload.len(), 64 << 10);
        count += 1;
    }
    stopped.settle_after_messages().await;
    from.publish("t", "again", QOS0, 0).await;
    assert_eq!(&stopped.message().await.payload[..], b"again");
}

#[tokio::test]
async fn a_slow_local_client_makes_publishers_wait_and_loses_nothing() {
    let broker = start().await;
    let mut relay = Client::local(broker.handle().connect(), "relay").await;
    relay.subscribe("t", QOS0).await;
    let mut from = Client::new(broker.address(), "from").await;
    let sender = tokio::spawn(async move {
        for _ in 0..1000 {
            from.send(&large("t")).await;
        }
        from.settle().await;
    });
    // It is stopped: 62 MiB do not fit between here and there.
    until(|| broker.handle().figures().paused > 0).await;
    assert!(!sender.is_finished());
    // Others are not concerned.
    let mut other = Client::new(broker.address(), "other").await;
    other.subscribe("u", QOS1).await;
    other.publish("u", "1", QOS1, 1).await;
    let got = other.message().await;
    assert_eq!(other.ack().await, (AckKind::Puback, 1, Reason::SUCCESS));
    other.acknowledge(AckKind::Puback, got.id).await;
    for _ in 0..1000 {
        assert_eq!(relay.message().await.payload.len(), 64 << 10);
    }
    timeout(super::client::PATIENCE, sender).await.unwrap().unwrap();
    let figures = broker.handle().figures();
    assert_eq!((figures.dropped_slow, figures.dropped_queue_full), (0, 0));
}

/// A service that floods the relay owes it acknowledgements: they get through.
#[tokio::test]
async fn acknowledgements_pass_a_paused_connection() {
    let mut options = options();
    options.high_watermark = 1 << 20;
    let broker = Broker::start(options).await.unwrap();
    let mut relay = Client::local(broker.handle().connect(), "relay").await;
    relay.subscribe("up/#", QOS0).await;
    let mut service = Client::new(broker.address(), "service").await;
    service.subscribe("down", QOS1).await;
    relay.publish("down", "work", QOS1, 1).await;
    let work = service.message().await;
    let flood = tokio::spawn(async move {
        for _ in 0..40 {
            service.send(&large("up/x")).await;
        }
        service.acknowledge(AckKind::Puback, work.id).await;
        service
    });
    until(|| broker.handle().figures().paused > 0).await;
    // Everything has gone through the broker, a little at a time, while nobody read what it had for the relay.
    timeout(Duration::from_secs(20), flood).await.unwrap().unwrap();
    for _ in 0..40 {
        relay.message().await;
    }
    assert_eq!(relay.ack().await, (AckKind::Puback, 1, Reason::SUCCESS));
}

#[tokio::test]
async fn connections_are_bounded() {
    let mut options = options();
    options.max_connections = 1;
    let broker = Broker::start(options).await.unwrap();
    let mut first = Client::new(broker.address(), "first").await;
    let mut second = Client::tcp(broker.address(), first.version).await;
    assert_eq!(second.next().await, None);
    first.settle().await;
    drop(first);
    // Its end is noticed in a moment.
    until(|| broker.handle().figures().connections == 0).await;
    loop {
        let mut third = Client::tcp(broker.address(), second.version).await;
        third.send(&Packet::Connect(Box::new(super::hello("third")))).await;
        if third.next().await.is_some() {
            break;
        }
    }
}
