//! Connections that break at every stage of a message, and come back.

use pointsman_mqtt::packet::{AckKind, Packet, Publish, Version};
use pointsman_mqtt::reason::Reason;

use super::client::{Client, message, staying, until};
use super::{QOS1, QOS2, start};

const VERSIONS: [Version; 2] = [Version::V311, Version::V5];

/// A publisher whose connection breaks sends again; its message arrives once with QoS 2, and is acknowledged in any case.
#[tokio::test]
async fn a_publisher_comes_back_at_each_stage() {
    let broker = start().await;
    let mut to = Client::new(broker.address(), "to").await;
    to.subscribe("t", QOS2).await;
    for version in VERSIONS {
        let hello = || staying("a", version);
        // QoS 1, with and without the PUBACK having been read.
        for read in [false, true] {
            let (mut a, _) = Client::connect(broker.address(), hello()).await;
            a.publish("t", "1", QOS1, 1).await;
            if read {
                assert_eq!(a.ack().await, (AckKind::Puback, 1, Reason::SUCCESS));
            }
            let got = to.message().await;
            to.acknowledge(AckKind::Puback, got.id).await;
            drop(a);
            let (mut a, connack) = Client::connect(broker.address(), hello()).await;
            assert!(connack.session_present);
            if !read {
                a.send(&Packet::Publish(Publish { dup: true, ..message("t", "1", QOS1, 1) })).await;
                assert_eq!(a.ack().await, (AckKind::Puback, 1, Reason::SUCCESS));
                let got = to.message().await;
                to.acknowledge(AckKind::Puback, got.id).await;
            }
            a.send(&Packet::Disconnect(Box::default())).await;
            assert_eq!(a.farewell().await, None);
        }
        // QoS 2: broken after PUBLISH, after PUBREC, and after PUBREL.
        for stage in 0..3 {
            let (mut a, _) = Client::connect(broker.address(), hello()).await;
            a.publish("t", "2", QOS2, 2).await;
            let got = to.message().await;
            if stage > 0 {
                assert_eq!(a.ack().await, (AckKind::Pubrec, 2, Reason::SUCCESS));
            }
            if stage > 1 {
                a.acknowledge(AckKind::Pubrel, 2).await;
                assert_eq!(a.ack().await, (AckKind::Pubcomp, 2, Reason::SUCCESS));
            }
            drop(a);
            let (mut a, connack) = Client::connect(broker.address(), hello()).await;
            assert!(connack.session_present);
            if stage == 0 {
                a.send(&Packet::Publish(Publish { dup: true, ..message("t", "2", QOS2, 2) })).await;
                assert_eq!(a.ack().await, (AckKind::Pubrec, 2, Reason::SUCCESS));
            }
            a.acknowledge(AckKind::Pubrel, 2).await;
            let (kind, id, reason) = a.ack().await;
            let known = if stage < 2 || version == Version::V311 {
                Reason::SUCCESS
            } else {
                Reason::PACKET_IDENTIFIER_NOT_FOUND
            };
            assert_eq!((kind, id, reason), (AckKind::Pubcomp, 2, known));
            to.acknowledge(AckKind::Pubrec, got.id).await;
            assert_eq!(to.ack().await.0, AckKind::Pubrel);
            to.acknowledge(AckKind::Pubcomp, got.id).await;
            // It came once.
            to.settle().await;
            drop(a);
        }
    }
}

/// A subscriber whose connection breaks is sent again what it has not acknowledged, and what has come meanwhile.
#[tokio::test]
async fn a_subscriber_comes_back_at_each_stage() {
    let broker = start().await;
    let mut from = Client::new(broker.address(), "from").await;
    for version in VERSIONS {
        let id = if version == Version::V5 { "b5" } else { "b4" };
        let (mut b, _) = Client::connect(broker.address(), staying(id, version)).await;
        b.subscribe("t", QOS2).await;
        from.publish("t", "1", QOS1, 1).await;
        from.publish("t", "2", QOS2, 2).await;
        from.publish("t", "3", QOS2, 3).await;
        let first = [b.message().await, b.message().await, b.message().await];
        b.acknowledge(AckKind::Pubrec, first[2].id).await;
        assert_eq!(b.ack().await, (AckKind::Pubrel, first[2].id, Reason::SUCCESS));
        drop(b);
        assert_eq!(from.ack().await, (AckKind::Puback, 1, Reason::SUCCESS));
        for id in [2, 3] {
            assert_eq!(from.ack().await, (AckKind::Pubrec, id, Reason::SUCCESS));
        }
        for id in [2, 3] {
            from.acknowledge(AckKind::Pubrel, id).await;
            assert_eq!(from.ack().await, (AckKind::Pubcomp, id, Reason::SUCCESS));
        }
        until(|| broker.handle().figures().connections == 1).await;
        from.publish("t", "4", QOS1, 4).await;
        assert_eq!(from.ack().await, (AckKind::Puback, 4, Reason::SUCCESS));
        let (mut b, connack) = Client::connect(broker.address(), staying(id, version)).await;
        assert!(connack.session_present);
        for first in &first[..2] {
            assert_eq!(b.message().await, Publish { dup: true, ..first.clone() });
        }
        assert_eq!(b.ack().await, (AckKind::Pubrel, first[2].id, Reason::SUCCESS));
        let last = b.message().await;
        assert_eq!((last.dup, &last.payload[..]), (false, &b"4"[..]));
        // The rest of each conversation.
        b.acknowledge(AckKind::Puback, first[0].id).await;
        b.acknowledge(AckKind::Pubrec, first[1].id).await;
        assert_eq!(b.ack().await, (AckKind::Pubrel, first[1].id, Reason::SUCCESS));
        b.acknowledge(AckKind::Pubcomp, first[1].id).await;
        b.acknowledge(AckKind::Pubcomp, first[2].id).await;
        b.acknowledge(AckKind::Puback, last.id).await;
        drop(b);
        let (mut b, _) = Client::connect(broker.address(), staying(id, version)).await;
        b.settle().await;
        b.send(&Packet::Disconnect(Box::default())).await;
        b.farewell().await;
        // Away with it: its subscription is not to disturb the other version's.
        let (b, _) = Client::connect(broker.address(), super::hello(id)).await;
        drop(b);
    }
}

#[tokio::test]
async fn a_session_that_is_taken_over_is_told_so() {
    let broker = start().await;
    let (mut first, _) = Client::connect(broker.address(), staying("a", Version::V5)).await;
    first.subscribe("t", QOS1).await;
    let (mut second, connack) = Client::connect(broker.address(), staying("a", Version::V5)).await;
    assert!(connack.session_present);
    assert_eq!(first.farewell().await, Some(Reason::SESSION_TAKEN_OVER));
    second.publish("t", "1", QOS1, 1).await;
    assert_eq!(&second.message().await.payload[..], b"1");
}
