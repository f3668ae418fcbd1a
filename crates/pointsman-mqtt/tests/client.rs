//! A client at a broker that the test plays.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use pointsman_mqtt::client::{Client, Inbox, Settings};
use pointsman_testkit::{RawBroker, RawConnection};
use tokio::time::{sleep, timeout};

/// Before the first ping, which would wake it anyway.
const SOON: Duration = Duration::from_secs(10);

async fn connected() -> (Client, Inbox, RawConnection) {
    let broker = RawBroker::start().await;
    let url = format!("mqtt://{}", broker.address()).parse().unwrap();
    let (client, inbox) = Client::start(Settings::new(url, "c"));
    let mut connection = broker.accept().await;
    connection.read_packet().await;
    connection.write(&RawBroker::CONNACK_5).await;
    timeout(SOON, client.ready()).await.unwrap().unwrap();
    (client, inbox, connection)
}

/// What comes after something that is no message, or only a part of one, is noticed.
#[tokio::test]
async fn packets_come_in_pieces() {
    let (_client, mut inbox, mut connection) = connected().await;
    // PINGRESP, and PUBLISH of QoS 0 to `t`.
    for pieces in [&[&[0xd0, 0][..], &[0x30, 5, 0, 1, b't', 0, b'x']], &[&[0x30, 5, 0, 1], &[b't', 0, b'x']]] {
        for piece in pieces {
            connection.write(piece).await;
            // So that each is read by itself; otherwise there is nothing to be seen here.
            sleep(Duration::from_millis(50)).await;
        }
        let message = timeout(SOON, inbox.next()).await.expect("the message").unwrap();
        assert_eq!((&*message.publish.topic, &*message.publish.payload), ("t", &b"x"[..]));
    }
}

/// A broker that sends more than it may is not thrown out: it would do the same again.
#[tokio::test]
async fn more_messages_than_the_receive_maximum() {
    let broker = RawBroker::start().await;
    let mut settings = Settings::new(format!("mqtt://{}", broker.address()).parse().unwrap(), "c");
    settings.receive_maximum = 2;
    let (_client, mut inbox) = Client::start(settings);
    let mut connection = broker.accept().await;
    connection.read_packet().await;
    connection.write(&RawBroker::CONNACK_5).await;
    for id in 1..=10 {
        connection.write(&[0x32, 7, 0, 1, b't', 0, id, 0, b'x']).await;
    }
    for id in 1..=10 {
        let message = timeout(SOON, inbox.next()).await.expect("the message").unwrap();
        assert_eq!(message.publish.id, u16::from(id));
        message.acknowledge();
        assert_eq!(connection.read_packet().await[..4], [0x40, 2, 0, id]);
    }
}
