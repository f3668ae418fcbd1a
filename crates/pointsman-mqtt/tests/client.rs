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
