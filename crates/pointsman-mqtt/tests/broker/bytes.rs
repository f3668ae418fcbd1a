//! What comes over the wire: in pieces, too much of it, and nonsense.

use std::time::Duration;

use bytes::BytesMut;
use pointsman_mqtt::broker::Broker;
use pointsman_mqtt::packet::{
    AckKind, Connect, Options as Subscription, Packet, Properties, Qos, Subscribe, Version, encode,
};
use pointsman_mqtt::reason::Reason;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::client::{Client, hello, message};
use super::{QOS0, QOS1, QOS2, options, start};

/// A whole conversation of a client with itself.
fn conversation(version: Version) -> BytesMut {
    let filters = vec![("t/#".into(), Subscription::up_to(QOS2))];
    let packets = [
        Packet::Connect(Box::new(Connect { version, ..hello("") })),
        Packet::Subscribe(Box::new(Subscribe { id: 1, filters, properties: Properties::default() })),
        Packet::Publish(message("t/x", "0", QOS0, 0)),
        Packet::Publish(message("t/x", "1", QOS1, 2)),
        Packet::Publish(message("t/x", "2", QOS2, 3)),
        Packet::Pingreq,
    ];
    let mut bytes = BytesMut::new();
    for packet in &packets {
        encode(packet, version, &mut bytes).unwrap();
    }
    bytes
}

#[tokio::test]
async fn a_conversation_may_be_cut_anywhere() {
    let broker = start().await;
    for version in [Version::V311, Version::V5] {
        let bytes = conversation(version);
        for cut in 1..bytes.len() {
            let mut client = Client::tcp(broker.address(), version).await;
            client.write(&bytes[..cut]).await;
            // The halves are to arrive apart; if they do not, it is the easier case.
            tokio::task::yield_now().await;
            client.write(&bytes[cut..]).await;
            let mut messages = 0;
            let mut acks = Vec::new();
            loop {
                match client.packet().await {
                    Packet::Connack(connack) => assert_eq!(connack.reason, Reason::SUCCESS),
                    Packet::Suback(suback) => assert_eq!(suback.reasons, [Reason::GRANTED_QOS_2]),
                    Packet::Publish(_) => messages += 1,
                    Packet::Ack(ack) => acks.push((ack.kind, ack.id)),
                    Packet::Pingresp => break,
                    other => panic!("{other:?}"),
                }
            }
            assert_eq!((messages, acks), (3, vec![(AckKind::Puback, 2), (AckKind::Pubrec, 3)]), "cut at {cut}");
        }
    }
}

#[tokio::test]
async fn a_conversation_may_come_byte_by_byte() {
    let broker = start().await;
    let mut client = Client::tcp(broker.address(), Version::V5).await;
    for byte in conversation(Version::V5) {
        client.write(&[byte]).await;
        tokio::task::yield_now().await;
    }
    let mut packets = Vec::new();
    while packets.last() != Some(&Packet::Pingresp) {
        packets.push(client.packet().await);
    }
    assert_eq!(packets.len(), 8);
}

#[tokio::test]
async fn what_is_too_large_is_refused_before_it_is_there() {
    let mut options = options();
    options.max_packet = 1024;
    let broker = Broker::start(options).await.unwrap();
    let mut client = Client::new(broker.address(), "a").await;
    // Only the header of a packet of 200 MiB.
    client.write(&[0x30, 0x80, 0x80, 0x80, 0x64]).await;
    assert_eq!(client.farewell().await, Some(Reason::PACKET_TOO_LARGE));
    let (mut client, _) = Client::connect(broker.address(), Connect { version: Version::V311, ..hello("a") }).await;
    client.write(&[0x30, 0x80, 0x80, 0x80, 0x64]).await;
    assert_eq!(client.farewell().await, None);
}

#[tokio::test]
async fn what_is_malformed_ends_its_connection_and_no_other() {
    let broker = start().await;
    let mut bystander = Client::new(broker.address(), "bystander").await;
    let bad: [(&[u8], Reason); 9] = [
        (&[0x00, 0], Reason::MALFORMED_PACKET),
        (&[0xc1, 0], Reason::MALFORMED_PACKET),
        (&[0x30, 0xff, 0xff, 0xff, 0xff], Reason::MALFORMED_PACKET),
        (&[0x36, 6, 0, 1, b't', 0, 1, 0], Reason::MALFORMED_PACKET),
        (&[0x30, 4, 0, 1, b'#', 0], Reason::TOPIC_NAME_INVALID),
        (&[0x32, 6, 0, 1, b't', 0, 0, 0], Reason::PROTOCOL_ERROR),
        (&[0x82, 3, 0, 1, 0], Reason::PROTOCOL_ERROR),
        (&[0x30, 5, 0, 2, 0xff, 0xfe, 0], Reason::MALFORMED_PACKET),
        (&[0x10, 2, 0, 9], Reason::MALFORMED_PACKET),
    ];
    for (bytes, reason) in bad {
        let mut client = Client::new(broker.address(), "a").await;
        client.write(bytes).await;
        assert_eq!(client.farewell().await, Some(reason), "{bytes:x?}");
    }
    bystander.settle().await;
}

#[tokio::test]
async fn who_does_not_say_connect_is_shown_out() {
    let broker = start().await;
    for bytes in [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], &[0xc0, 0], &[0x10, 0], &[0xff; 100]] {
        let mut client = Client::tcp(broker.address(), Version::V311).await;
        client.write(bytes).await;
        assert_eq!(client.next().await, None, "{bytes:x?}");
    }
    // Version 3.1, and one that does not exist: there is a word for that.
    for level in [3, 9] {
        let mut client = Client::tcp(broker.address(), Version::V311).await;
        client.write(&[0x10, 13, 0, 4, b'M', b'Q', b'T', b'T', level, 2, 0, 0, 0, 1, b'a']).await;
        let Packet::Connack(connack) = client.packet().await else { panic!() };
        assert_eq!(connack.reason, Reason::UNSUPPORTED_VERSION);
        assert_eq!(client.next().await, None);
    }
    // As clients of 3.1 say it: return code 1.
    let mut client = Client::tcp(broker.address(), Version::V311).await;
    client.write(b"\x10\x0f\0\x06MQIsdp\x03\x02\0\0\0\x01a").await;
    let mut answer = [0; 4];
    client.stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, [0x20, 2, 0, 1]);
}

/// A broker whose clock is the test's.
async fn on_this_clock() -> Broker {
    let mut options = options();
    options.runtime = Some(tokio::runtime::Handle::current());
    Broker::start(options).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn who_says_nothing_is_shown_out_in_time() {
    let broker = on_this_clock().await;
    let began = tokio::time::Instant::now();
    let mut stream = broker.handle().connect();
    stream.write_all(&[0x10]).await.unwrap();
    assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(10) && took < Duration::from_secs(11), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn who_falls_silent_is_taken_for_lost() {
    let broker = on_this_clock().await;
    let mut client = Client::over(broker.handle().connect(), Version::V5);
    client.greet(Connect { keep_alive: 10, ..hello("a") }).await;
    let began = tokio::time::Instant::now();
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_secs(14)).await;
        client.settle().await;
    }
    assert_eq!(client.farewell().await, Some(Reason::KEEP_ALIVE_TIMEOUT));
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(85) && took < Duration::from_secs(86), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn the_clock_ends_sessions_and_sends_wills() {
    let broker = on_this_clock().await;
    let handle = broker.handle();
    let mut b = Client::local(handle.connect(), "b").await;
    b.subscribe("will", QOS0).await;
    let mut a = Client::over(handle.connect(), Version::V5);
    let will = pointsman_mqtt::packet::Will { topic: "will".into(), delay: 5, ..Default::default() };
    let properties = Properties { session_expiry: Some(15), ..Properties::default() };
    a.greet(Connect { will: Some(will), properties, ..hello("a") }).await;
    let began = tokio::time::Instant::now();
    drop(a);
    b.message().await;
    assert_eq!(began.elapsed().as_secs(), 5);
    tokio::time::sleep(Duration::from_secs(9)).await;
    assert_eq!(handle.figures().sessions, 2);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(handle.figures().sessions, 1);
}

#[tokio::test]
async fn random_bytes_do_no_harm() {
    let broker = start().await;
    let mut random = fastrand::Rng::with_seed(7);
    for round in 0..200 {
        let mut client = Client::new(broker.address(), "a").await;
        let mut bytes = conversation(Version::V5);
        // Behind CONNECT, which is the first two dozen bytes.
        for _ in 0..=round % 8 {
            let place = random.usize(24..bytes.len());
            bytes[place] = random.u8(..);
        }
        client.stream.write_all(&bytes[24..]).await.unwrap();
        client.stream.shutdown().await.unwrap();
        let mut rest = Vec::new();
        let _ = tokio::time::timeout(super::client::PATIENCE, client.stream.read_to_end(&mut rest)).await.unwrap();
    }
    let mut client = Client::new(broker.address(), "b").await;
    client.subscribe("t", Qos::AtMostOnce).await;
    client.publish("t", "well", QOS0, 0).await;
    assert_eq!(&client.message().await.payload[..], b"well");
}
