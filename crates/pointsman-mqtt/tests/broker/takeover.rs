//! A client that connects anew while its old connection is still there: what it has sent on that one counts.

use std::net::SocketAddr;

use pointsman_mqtt::packet::{Connect, Packet, Publish, Qos, Version, Will};
use pointsman_mqtt::reason::Reason;

use super::client::{Client, hello, message, staying, until};
use super::{QOS0, QOS1, start};

const ROUNDS: u16 = 300;

fn mortal(connect: Connect) -> Connect {
    let will = Will { topic: "will".into(), payload: "gone".into(), ..Will::default() };
    Connect { will: Some(will), ..connect }
}

/// Hears everything.
async fn watcher(address: SocketAddr) -> Client {
    let mut watcher = Client::new(address, "watcher").await;
    watcher.subscribe("#", QOS0).await;
    watcher
}

async fn payloads(watcher: &mut Client, count: usize) -> Vec<String> {
    let mut payloads = Vec::new();
    while payloads.len() < count {
        payloads.push(String::from_utf8(watcher.message().await.payload.to_vec()).unwrap());
    }
    payloads
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quick_reconnect_loses_nothing_and_publishes_no_will() {
    let broker = start().await;
    for version in [Version::V311, Version::V5] {
        let mut watcher = watcher(broker.address()).await;
        for round in 0..ROUNDS {
            let (mut client, _) =
                Client::connect(broker.address(), mortal(Connect { version, ..hello("quick") })).await;
            client.publish("t", &round.to_string(), QOS0, 0).await;
            client.send(&Packet::Disconnect(Box::default())).await;
        }
        let (mut last, _) = Client::connect(broker.address(), hello("quick")).await;
        last.publish("t", "last", QOS0, 0).await;
        last.settle().await;
        let mut expected: Vec<String> = (0..ROUNDS).map(|round| round.to_string()).collect();
        expected.push("last".to_owned());
        assert_eq!(payloads(&mut watcher, expected.len()).await, expected, "{version:?}");
        watcher.settle().await;
    }
}

/// Everything in one go, without waiting for an answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_wait_for_no_answer_have_their_turn_in_order() {
    let broker = start().await;
    let mut watcher = watcher(broker.address()).await;
    let mut clients = Vec::new();
    for round in 0..ROUNDS {
        let mut client = Client::tcp(broker.address(), Version::V5).await;
        client.send(&Packet::Connect(Box::new(mortal(hello("quick"))))).await;
        client.publish("t", &round.to_string(), QOS0, 0).await;
        client.send(&Packet::Disconnect(Box::default())).await;
        clients.push(client);
    }
    let mut heard = payloads(&mut watcher, usize::from(ROUNDS)).await;
    heard.sort_by_key(|payload| payload.parse::<u16>().unwrap());
    assert_eq!(heard, (0..ROUNDS).map(|round| round.to_string()).collect::<Vec<_>>());
    for mut client in clients {
        assert!(matches!(client.next().await, Some(Packet::Connack(_))));
        assert_eq!(client.next().await, None);
    }
    watcher.settle().await;
}

/// More than is read at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_on_a_connection_is_read_before_its_session_is_taken_over() {
    const EACH: u16 = 20;
    let broker = start().await;
    let mut watcher = watcher(broker.address()).await;
    let (mut before, mut expected): (Option<Client>, Vec<String>) = (None, Vec::new());
    let padding = "x".repeat(8_000);
    for round in 0..ROUNDS {
        let (mut client, _) = Client::connect(broker.address(), staying("a", Version::V5)).await;
        let payloads = (0..EACH).map(|number| format!("{round}.{number} {padding}"));
        for (number, payload) in (0..).zip(payloads.clone()) {
            let (qos, id) = if number % 2 == 0 { (QOS0, 0) } else { (QOS1, round % 2 * EACH + number) };
            client.publish("t", &payload, qos, id).await;
        }
        if let Some(mut before) = before.replace(client) {
            assert_eq!(before.farewell().await, Some(Reason::SESSION_TAKEN_OVER));
            for payload in expected {
                assert_eq!(watcher.message().await.payload, payload);
            }
        }
        expected = payloads.collect();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_never_stops_sending_is_taken_over() {
    let broker = start().await;
    let mut old = Client::new(broker.address(), "a").await;
    let flood = tokio::spawn(async move {
        let large = message("t", &"x".repeat(60_000), QOS0, 0);
        let mut bytes = bytes::BytesMut::new();
        pointsman_mqtt::packet::encode(&Packet::Publish(large), Version::V5, &mut bytes).unwrap();
        while tokio::io::AsyncWriteExt::write_all(&mut old.stream, &bytes).await.is_ok() {}
    });
    for _ in 0..3 {
        Client::new(broker.address(), "a").await.settle().await;
    }
    flood.await.unwrap();
}

#[tokio::test]
async fn a_connection_that_is_not_read_is_taken_over() {
    let broker = start().await;
    // It never reads, so that its publishers wait.
    let mut relay = Client::local(broker.handle().connect(), "relay").await;
    relay.subscribe("t", QOS0).await;
    let mut old = Client::new(broker.address(), "a").await;
    let flood = tokio::spawn(async move {
        let large = Publish { payload: vec![0; 60_000].into(), ..message("t", "", Qos::AtMostOnce, 0) };
        let mut bytes = bytes::BytesMut::new();
        pointsman_mqtt::packet::encode(&Packet::Publish(large), Version::V5, &mut bytes).unwrap();
        while tokio::io::AsyncWriteExt::write_all(&mut old.stream, &bytes).await.is_ok() {}
    });
    until(|| broker.handle().figures().paused > 0).await;
    Client::new(broker.address(), "a").await.settle().await;
    flood.await.unwrap();
}

#[tokio::test]
async fn a_connection_that_does_not_read_is_taken_over() {
    let broker = start().await;
    let mut old = Client::new(broker.address(), "a").await;
    old.subscribe("t", QOS0).await;
    let mut from = Client::new(broker.address(), "from").await;
    let large = Publish { payload: vec![0; 60_000].into(), ..message("t", "", QOS0, 0) };
    // More than the buffers on the way hold.
    while broker.handle().figures().dropped_slow == 0 {
        from.send(&Packet::Publish(large.clone())).await;
    }
    Client::new(broker.address(), "a").await.settle().await;
    from.settle().await;
    // And its end comes, although it does not read its farewell.
    until(|| broker.handle().figures().connections == 1).await;
}

/// A third one may come while the second waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_connections_at_once_leave_one() {
    let broker = start().await;
    let address = broker.address();
    let many = (0..50).map(|_| {
        tokio::spawn(async move {
            let (client, connack) = Client::connect(address, staying("a", Version::V5)).await;
            (client, connack.session_present)
        })
    });
    let mut present = 0;
    let mut clients = Vec::new();
    for client in many.collect::<Vec<_>>() {
        let (client, session_present) = client.await.unwrap();
        present += usize::from(session_present);
        clients.push(client);
    }
    assert_eq!(present, 49);
    until(|| broker.handle().figures().connections == 1).await;
}
