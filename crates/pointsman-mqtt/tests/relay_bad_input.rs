//! What should not come, and comes.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use futures_util::future::join_all;
use pointsman_mqtt::relay::{Relay, Route, Settings};
use pointsman_testkit::{CuttingProxy, Mosquitto, PahoMessage, RawBroker, RawClient, RawConnection};
use support::{
    Fleet, RELAY, SOON, between, client, connected, dead_letters, everyone, figures, property, publish_all, service,
    settings, until,
};

async fn broker() -> Mosquitto {
    Mosquitto::options().nodelay().start().await
}

fn over(ingress: &str, egress: &str, pattern: &str) -> Settings {
    between(&format!("mqtt://{ingress}"), &format!("mqtt://{egress}"), vec![Route::new(pattern, "cfgs")])
}

#[tokio::test]
async fn odd_topics_and_codes() {
    let (ingress, egress) = (broker().await, broker().await);
    let codes = ["ü", "a:b", "%41", "a.b", "-", "\u{4e00}"];
    for code in codes {
        let fleet = Fleet::new(&[("cfgs", &[code])]);
        let relay = fleet.relay(over(&ingress.address(), &egress.address(), "")).await;
        let (service, sender) = (everyone(&egress, &[code]).await, client(&ingress).await);
        for topic in
            ["/", "//", "a//b", "a/", "/a", " ", "a b/c", "用户/登录", "$", "a/$SYS/b", "a/$share/g/x", "\u{1f600}"]
        {
            if topic.starts_with('$') {
                continue;
            }
            sender.publish(PahoMessage::new(topic, "x").qos(2)).await;
            let slash = if topic.starts_with('/') { "" } else { "/" };
            assert_eq!(service.next_message(SOON).await.topic, format!("{code}{slash}{topic}"));
        }
        // The code alone.
        for topic in [RELAY.to_owned(), code.to_owned(), format!("/{RELAY}")] {
            sender.publish(PahoMessage::new(&topic, "x")).await;
            if topic == code {
                continue;
            }
            assert_eq!(service.next_message(SOON).await.topic, format!("{code}/"), "{topic}");
        }
        // System topics are none of a relay's business.
        sender.publish(PahoMessage::new("$x/y", "x")).await;
        let figures = until(&relay, "idle", |figures| figures.in_flight == 0).await;
        assert_eq!(figures.delivered, 13);
        relay.close().await;
    }
}

#[tokio::test]
async fn topics_of_the_greatest_length() {
    let broker = broker().await;
    let fleet = Fleet::new(&[("cfgs", &["svc-a"])]);
    let relay = fleet.relay(settings(&broker)).await;
    let (service, sender, dead) = (service(&broker, "svc-a").await, client(&broker).await, dead_letters(&broker).await);
    sender.subscribe("inbox", 1).await;
    for qos in 0..3 {
        let fits = format!("/login/{}", "x".repeat(65_535 - 12));
        sender.publish(PahoMessage::new(&fits, "fits").qos(qos)).await;
        assert_eq!(service.next_message(SOON).await.topic, format!("svc-a{fits}"));
        for length in [65_531, 65_535] {
            let long = format!("/login/{}", "x".repeat(length - 7));
            sender.publish(PahoMessage::new(&long, "long").qos(qos).response_topic("inbox")).await;
            let letter = dead.next_message(SOON).await;
            // There is no room for the topic in the topic.
            assert_eq!((letter.topic.as_str(), letter.text()), ("pointsman/dead-letter", "long"));
            assert_eq!(property(&letter, "pointsman-topic"), Some(&*long));
            assert_eq!(property(&letter, "pointsman-reason"), Some("too-large"));
            assert_eq!(property(&sender.next_message(SOON).await, "pointsman-reason"), Some("too-large"));
        }
    }
    assert_eq!(until(&relay, "idle", |figures| figures.in_flight == 0).await.requests, 0);
    relay.close().await;
}

#[tokio::test]
async fn what_is_too_large_for_the_services_broker_is_a_dead_letter() {
    let ingress = broker().await;
    let egress = Mosquitto::options().nodelay().set("max_packet_size", "20000").start().await;
    let proxy = CuttingProxy::start(egress.socket_address());
    let fleet = Fleet::new(&[("cfgs", &["svc-a"])]);
    // Before the relay has met the broker, when it knows its limit, and when it is away again.
    proxy.cut();
    let settings = over(&ingress.address(), &proxy.address(), "^/login(/|$)");
    let relay = Relay::start(settings, fleet.views(), fleet.changed(), None).unwrap();
    connected(&relay, &ingress.address(), true).await;
    let (service, sender, dead) =
        (everyone(&egress, &["svc-a"]).await, client(&ingress).await, dead_letters(&ingress).await);
    sender.subscribe("inbox", 1).await;
    while sender.publish(PahoMessage::new("/login", "up")).await != 0 {}
    for round in 0..3 {
        for qos in 0..3 {
            let large = PahoMessage::new("/login/x", vec![b'x'; 30_000]).qos(qos).response_topic("inbox");
            publish_all(&sender, [large, PahoMessage::new("/login/x", "small").qos(qos)]).await;
        }
        proxy.mend();
        if round == 0 {
            assert_eq!(service.next_message(SOON).await.text(), "up");
        }
        for _ in 0..3 {
            assert_eq!(service.next_message(SOON).await.text(), "small");
            let letter = dead.next_message(SOON).await;
            assert_eq!((letter.topic.as_str(), letter.payload.len()), ("pointsman/dead-letter//login/x", 30_000));
            assert_eq!(property(&letter, "pointsman-reason"), Some("too-large"));
            assert_eq!(property(&sender.next_message(SOON).await, "pointsman-reason"), Some("too-large"));
        }
        until(&relay, "idle", |figures| figures.in_flight == 0 && figures.requests == 0).await;
        if round == 1 {
            proxy.cut();
            connected(&relay, &proxy.address(), false).await;
        }
    }
    assert_eq!(proxy.accepted(), 2, "nobody was turned away for a packet that is too large");
    relay.close().await;
}

#[tokio::test]
async fn a_dead_letter_that_is_too_large_goes_without_its_payload() {
    let broker = Mosquitto::options().nodelay().set("max_packet_size", "20000").start().await;
    let fleet = Fleet::new(&[("cfgs", &[])]);
    let relay = fleet.relay(settings(&broker)).await;
    let sender = client(&broker).await;
    sender.subscribe("pointsman/dead-letter/#", 2).await;
    for qos in 0..3 {
        // The reason does not fit in.
        sender.publish(PahoMessage::new("/login", vec![b'x'; 19_980]).qos(qos)).await;
        let letter = sender.next_message(SOON).await;
        assert_eq!((letter.topic.as_str(), letter.text(), letter.qos), ("pointsman/dead-letter//login", "", qos));
        let left_out = ("pointsman-left-out".to_owned(), "payload".to_owned());
        assert!(letter.user_properties.contains(&left_out), "{letter:?}");
    }
    assert_eq!(until(&relay, "done", |figures| figures.in_flight == 0).await.dropped, 0);
    relay.close().await;
}

#[tokio::test]
async fn thousands_of_topics_and_of_routes() {
    let broker = broker().await;
    let fleet = Fleet::new(&[("cfgs", &["svc-a"])]);
    let mut settings = settings(&broker);
    settings.routes = (0..1000).map(|number| Route::new(format!("^/route/{number}(/|$)"), "cfgs")).collect();
    let relay = fleet.relay(settings).await;
    let (service, sender) = (everyone(&broker, &["svc-a"]).await, client(&broker).await);
    let before = relay.metrics().await.unwrap().len();
    let topics = || (0..3000).map(|number| format!("/route/{}/{number}", number % 1000));
    publish_all(&sender, topics().map(|topic| PahoMessage::new(&topic, ""))).await;
    for topic in topics() {
        assert_eq!(service.next_message(SOON).await.topic, format!("svc-a{topic}"));
    }
    // No topic is a label.
    let after = relay.metrics().await.unwrap();
    assert!(after.len() < before + before / 2 && !after.contains("/route/7/"), "{} bytes", after.len());
    assert_eq!(figures(&relay).await.delivered, 3000);
    relay.close().await;
}

/// `[type and flags, length, …]` with properties where they are none.
const CONNACK: &[u8] = &RawBroker::CONNACK_5;

/// Accepts a connection of the relay, and reads CONNECT.
async fn greeted(broker: &RawBroker) -> RawConnection {
    let mut connection = broker.accept().await;
    assert_eq!(connection.read_packet().await[0], 0x10);
    connection
}

/// Plays a good broker until the relay has subscribed.
async fn subscribed(broker: &RawBroker, session_present: bool) -> RawConnection {
    let mut connection = greeted(broker).await;
    connection.write(&[0x20, 3, u8::from(session_present), 0, 0]).await;
    let subscribe = connection.read_packet().await;
    assert_eq!(subscribe[0], 0x82);
    connection.write(&[0x90, 4, subscribe[2], subscribe[3], 0, 2]).await;
    connection
}

/// A relay one of whose brokers is played by the test, with what else belongs to it.
struct Played {
    raw: RawBroker,
    other: Mosquitto,
    relay: Relay,
    _fleet: Fleet,
}

impl Played {
    fn start(raw: RawBroker, other: Mosquitto, is_ingress: bool, max_in_flight: usize) -> Self {
        let fleet = Fleet::new(&[("cfgs", &["svc-a", "svc-b"])]);
        let ends = if is_ingress { [raw.address(), other.address()] } else { [other.address(), raw.address()] };
        let mut settings = over(&ends[0], &ends[1], "^/login(/|$)");
        settings.max_in_flight = max_in_flight;
        settings.max_packet = 1 << 20;
        let relay = Relay::start(settings, fleet.views(), fleet.changed(), None).unwrap();
        Self { raw, other, relay, _fleet: fleet }
    }

    async fn new(is_ingress: bool) -> Self {
        Self::start(RawBroker::start().await, broker().await, is_ingress, 2)
    }

    /// After whatever has been played, the relay comes back and gets ready.
    async fn recovers(&self) -> RawConnection {
        let connection = subscribed(&self.raw, false).await;
        tokio::time::timeout(SOON, self.relay.ready()).await.expect("the relay to be ready").unwrap();
        connection
    }
}

/// A PUBLISH of one byte to `/login` without properties.
fn publish(qos: u8, dup: bool, id: u8, payload: u8) -> Vec<u8> {
    publish_to("/login", qos, dup, id, payload)
}

fn publish_to(topic: &str, qos: u8, dup: bool, id: u8, payload: u8) -> Vec<u8> {
    assert_eq!(topic.len(), 6);
    let mut packet = vec![0x30 | qos << 1 | u8::from(dup) << 3, 12, 0, 6];
    packet.extend(topic.as_bytes());
    packet.extend([0, id, 0, payload]);
    packet
}

#[tokio::test]
async fn whatever_a_broker_says_first_the_relay_comes_back() {
    let cases: [&[u8]; 12] = [
        // Not authorized; server busy; and of version 3.1.1.
        &[0x20, 3, 0, 0x87, 0],
        &[0x20, 3, 0, 0x89, 0],
        &[0x20, 2, 0, 5],
        // Nothing but the end.
        &[],
        // Not MQTT, not CONNACK, not all of it, too long, and 256 MiB announced.
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        &[0x30, 2, 0, 0],
        &[0x20, 3, 0],
        &[0x20, 4, 0, 0, 0, 0],
        &[0x20, 0xff, 0xff, 0xff, 0x7f],
        &[0x20, 0xff, 0xff, 0xff, 0xff, 1],
        // A property twice; an unknown one.
        &[0x20, 9, 0, 0, 6, 0x21, 0, 9, 0x21, 0, 9],
        &[0x20, 5, 0, 0, 2, 0x7f, 0],
    ];
    join_all(cases.into_iter().flat_map(|case| [(case, true), (case, false)]).map(|(case, is_ingress)| async move {
        let played = Played::new(is_ingress).await;
        let mut connection = greeted(&played.raw).await;
        connection.write(case).await;
        connection.close().await;
        played.recovers().await;
    }))
    .await;
}

#[tokio::test]
async fn whatever_a_broker_says_later_the_relay_comes_back() {
    let cases: [&[u8]; 13] = [
        // Garbage, an unknown type, wrong flags, and a length of five bytes.
        &[0xff; 100],
        &[0x00, 0],
        &[0x41, 2, 0, 1],
        &[0x30, 0xff, 0xff, 0xff, 0xff, 1],
        // Larger than allowed; an identifier of 0; QoS 3; no topic; a topic with a wildcard; one that is not UTF-8.
        &[0x90, 0xff, 0xff, 0xff, 0x7f],
        &[0x40, 2, 0, 0],
        &[0x36, 6, 0, 1, b'a', 0, 1, 0],
        &[0x30, 3, 0, 0, 0],
        &[0x30, 4, 0, 1, b'#', 0],
        &[0x30, 4, 0, 1, 0xff, 0],
        // What only clients send; a second CONNACK; and goodbye.
        &[0x82, 7, 0, 1, 0, 0, 1, b'a', 0],
        &[0x20, 3, 0, 0, 0],
        &[0xe0, 1, 0x8b],
    ];
    join_all(cases.into_iter().flat_map(|case| [(case, true), (case, false)]).map(|(case, is_ingress)| async move {
        let played = Played::new(is_ingress).await;
        let mut connection = subscribed(&played.raw, false).await;
        connection.write(case).await;
        connection.read_until_closed(SOON).await;
        played.recovers().await;
    }))
    .await;
}

#[tokio::test]
async fn far_more_than_the_receive_maximum_breaks_the_protocol() {
    let played = Played::new(true).await;
    let mut connection = greeted(&played.raw).await;
    // Its dead letters are not acknowledged, so neither are the messages, for which no route is.
    connection.write(CONNACK).await;
    let many = (1..=1100_u16).flat_map(|id| {
        let mut packet = publish_to("/other", 1, false, 0, b'x');
        packet[10..12].copy_from_slice(&id.to_be_bytes());
        packet
    });
    connection.write(&many.collect::<Vec<_>>()).await;
    connection.read_until_closed(SOON).await;
    played.recovers().await;
    // Twice what was announced, and a thousand.
    assert_eq!(figures(&played.relay).await.dead_letters, 1004);
}

#[tokio::test]
async fn more_than_there_is_room_for_is_left_unread() {
    let played = Played::new(true).await;
    let service = everyone(&played.other, &["svc-a", "svc-b"]).await;
    let mut connection = played.recovers().await;
    played.other.pause();
    connection.write(&(1..=3).flat_map(|id| publish(1, false, id, id)).collect::<Vec<_>>()).await;
    until(&played.relay, "full", |figures| figures.in_flight == 2).await;
    played.other.resume();
    for id in 1..=3 {
        assert_eq!(service.next_message(SOON).await.payload, [id]);
        assert_eq!(connection.read_packet().await, [0x40, 2, 0, id]);
    }
}

#[tokio::test]
async fn packets_larger_than_what_is_read_at_once_are_not_held_up() {
    let broker = broker().await;
    let fleet = Fleet::new(&[("cfgs", &["svc-a"])]);
    let relay = fleet.relay(settings(&broker)).await;
    let (service, sender) = (everyone(&broker, &["svc-a"]).await, client(&broker).await);
    let start = std::time::Instant::now();
    for length in [65_535, 65_536, 100_000, 200_000, 500_000, 1_000_000] {
        sender.publish(PahoMessage::new("/login", vec![b'x'; length])).await;
        assert_eq!(service.next_message(SOON).await.payload.len(), length);
    }
    // A ping, every 15 s, would wake it.
    assert!(start.elapsed() < Duration::from_secs(14), "{:?}", start.elapsed());
    relay.close().await;
}

#[tokio::test]
async fn what_waits_for_a_broker_of_version_3_is_written_in_its_version() {
    let (ingress, egress) = (broker().await, broker().await);
    let proxy = CuttingProxy::start(egress.socket_address());
    proxy.cut();
    let fleet = Fleet::new(&[("cfgs", &["svc-a"])]);
    let at = format!("{}?version=3.1.1", proxy.address());
    let settings = over(&ingress.address(), &at, "^/login(/|$)");
    let relay = Relay::start(settings, fleet.views(), fleet.changed(), None).unwrap();
    connected(&relay, &ingress.address(), true).await;
    let (service, sender) = (everyone(&egress, &["svc-a"]).await, client(&ingress).await);
    sender.subscribe("inbox", 1).await;
    while sender.publish(PahoMessage::new("/login", "up")).await != 0 {}
    for qos in 0..3 {
        sender.publish(PahoMessage::new("/login", format!("{qos}")).qos(qos).content_type("c")).await;
    }
    sender.publish(PahoMessage::new("/login", "q").response_topic("inbox")).await;
    assert_eq!(property(&sender.next_message(SOON).await, "pointsman-reason"), Some("refused"));
    proxy.mend();
    for expected in ["up", "0", "1", "2"] {
        let message = service.next_message(SOON).await;
        assert_eq!((message.text(), &message.content_type), (expected, &None));
    }
    relay.close().await;
}

#[tokio::test]
async fn a_subscription_that_is_refused_is_tried_again() {
    for is_ingress in [true, false] {
        let played = Played::new(is_ingress).await;
        let mut connection = greeted(&played.raw).await;
        connection.write(CONNACK).await;
        let subscribe = connection.read_packet().await;
        connection.write(&[0x90, 4, subscribe[2], subscribe[3], 0, 0x87]).await;
        connection.read_until_closed(SOON).await;
        assert!(tokio::time::timeout(Duration::ZERO, played.relay.ready()).await.is_err());
        played.recovers().await;
    }
}

#[tokio::test]
async fn acknowledgements_of_what_was_never_sent_do_no_harm() {
    let played = Played::new(false).await;
    let mut connection = played.recovers().await;
    // PUBACK, PUBREC, PUBREL and PUBCOMP of an identifier that is not in use; UNSUBACK; PINGRESP.
    for packet in [[0x40, 2, 3, 9], [0x50, 2, 3, 9], [0x62, 2, 3, 9], [0x70, 2, 3, 9]] {
        connection.write(&packet).await;
    }
    connection.write(&[0xb0, 4, 3, 9, 0, 0, 0xd0, 0]).await;
    // Packet identifier not found.
    assert_eq!(connection.read_packet().await, [0x62, 3, 3, 9, 0x92]);
    assert_eq!(connection.read_packet().await, [0x70, 3, 3, 9, 0x92]);
    let sender = client(&played.other).await;
    sender.publish(PahoMessage::new("/login", "x")).await;
    let publish = connection.read_packet().await;
    assert_eq!(publish[0], 0x32);
    connection.write(&[0x40, 2, 0, 1]).await;
    until(&played.relay, "through", |figures| figures.delivered == 1 && figures.in_flight == 0).await;
    // The wrong acknowledgement of the right message: it is sent again.
    sender.publish(PahoMessage::new("/login", "y")).await;
    connection.read_packet().await;
    connection.write(&[0x50, 2, 0, 1]).await;
    connection.read_until_closed(SOON).await;
    let mut connection = played.recovers().await;
    assert_eq!(connection.read_packet().await[0], 0x32);
}

#[tokio::test]
async fn a_refusal_of_quality_2_leads_to_another_instance() {
    let played = Played::new(false).await;
    let mut connection = played.recovers().await;
    let (sender, dead) = (client(&played.other).await, dead_letters(&played.other).await);
    sender.publish(PahoMessage::new("/login", "x").qos(2)).await;
    let first = connection.read_packet().await;
    assert_eq!(&first[4..9], b"svc-a");
    // Nobody listens: PUBREL follows nevertheless. Then quota exceeded: none follows.
    connection.write(&[0x50, 3, 0, 1, 0x10]).await;
    let mut packets = [connection.read_packet().await, connection.read_packet().await];
    packets.sort();
    assert_eq!((&packets[0][4..9], &packets[1][..]), (&b"svc-b"[..], &[0x62, 2, 0, 1][..]));
    connection.write(&[0x70, 2, 0, 1, 0x50, 3, 0, 2, 0x97]).await;
    let letter = dead.next_message(SOON).await;
    assert_eq!((letter.topic.as_str(), letter.qos), ("pointsman/dead-letter//login", 2));
    let detail = property(&letter, "pointsman-detail").unwrap();
    assert!(detail.starts_with("quota exceeded"), "{detail}");
    until(&played.relay, "idle", |figures| figures.in_flight == 0 && figures.redispatched == 1).await;
}

#[tokio::test]
async fn a_broker_that_has_forgotten_what_it_has_sent_loses_nothing() {
    let raw = RawBroker::start().await;
    let egress = broker().await;
    let service = everyone(&egress, &["svc-a", "svc-b"]).await;
    egress.pause();
    let played = Played::start(raw, egress, true, 100);
    let mut connection = subscribed(&played.raw, false).await;
    connection.write(&publish(1, false, 1, b'a')).await;
    until(&played.relay, "under way", |figures| figures.in_flight == 1).await;
    connection.reset();
    // The same identifier for something else, and as something new: this breaks the protocol.
    let mut connection = subscribed(&played.raw, true).await;
    connection.write(&publish(1, false, 1, b'b')).await;
    connection.read_until_closed(SOON).await;
    let mut connection = subscribed(&played.raw, true).await;
    connection.write(&publish(1, true, 1, b'b')).await;
    until(&played.relay, "both under way", |figures| figures.in_flight == 2).await;
    played.other.resume();
    let mut texts = [service.next_message(SOON).await, service.next_message(SOON).await].map(|message| message.payload);
    texts.sort();
    assert_eq!(texts, [b"a", b"b"]);
    // Once, not for the first as well.
    assert_eq!(connection.read_packet().await, [0x40, 2, 0, 1]);
    connection.write(&publish(1, false, 1, b'c')).await;
    assert_eq!(service.next_message(SOON).await.payload, b"c");
    assert_eq!(connection.read_packet().await, [0x40, 2, 0, 1]);
}

#[tokio::test]
async fn an_identifier_acknowledged_without_a_connection_may_be_used_again() {
    let raw = RawBroker::start().await;
    let egress = broker().await;
    let service = everyone(&egress, &["svc-a", "svc-b"]).await;
    let proxy = CuttingProxy::start(egress.socket_address());
    let fleet = Fleet::new(&[("cfgs", &["svc-a"])]);
    let settings = over(&raw.address(), &proxy.address(), "^/login(/|$)");
    let relay = Relay::start(settings, fleet.views(), fleet.changed(), None).unwrap();
    let mut connection = subscribed(&raw, false).await;
    connected(&relay, &proxy.address(), true).await;
    proxy.blackhole();
    connection.write(&publish(1, false, 1, b'a')).await;
    until(&relay, "under way", |figures| figures.in_flight == 1).await;
    connection.reset();
    connected(&relay, &raw.address(), false).await;
    proxy.mend();
    until(&relay, "through", |figures| figures.in_flight == 0).await;
    // The first has expired at the broker; this is another.
    let mut connection = subscribed(&raw, true).await;
    connection.write(&publish(1, false, 1, b'b')).await;
    assert_eq!(connection.read_packet().await, [0x40, 2, 0, 1]);
    assert_eq!([service.next_message(SOON).await, service.next_message(SOON).await].map(|m| m.payload), [b"a", b"b"]);
}

#[tokio::test]
async fn what_is_too_large_for_the_relay_is_a_dead_letter_and_does_not_come_for_ever() {
    let broker = broker().await;
    let fleet = Fleet::new(&[("cfgs", &["svc-a"])]);
    let (service, sender, dead) =
        (everyone(&broker, &["svc-a"]).await, client(&broker).await, dead_letters(&broker).await);
    for version in ["3.1.1", "5"] {
        let proxy = CuttingProxy::start(broker.socket_address());
        let url = format!("{}?version={version}", proxy.address());
        let mut settings = over(&url, &format!("{}?version=5", broker.address()), "^/login(/|$)");
        settings.max_packet = 2000;
        let relay = fleet.relay(settings).await;
        for qos in 0..3 {
            for length in [2000, 5000, 200_000, 2_000_000] {
                let large = PahoMessage::new("/login/x", vec![b'x'; length]).qos(qos);
                // Of one of them the properties alone are too large.
                let large = if length == 5000 { large.user_property("a", &"x".repeat(3000)) } else { large };
                publish_all(&sender, [large, PahoMessage::new("/login/x", "small").qos(qos)]).await;
                assert_eq!(service.next_message(SOON).await.text(), "small");
                let letter = dead.next_message(SOON).await;
                assert_eq!((letter.topic.as_str(), letter.text()), ("pointsman/dead-letter//login/x", ""));
                // Version 3.1.1 has no properties for the reason.
                let reason = (version == "5").then_some("too-large");
                assert_eq!(property(&letter, "pointsman-reason"), reason);
            }
        }
        until(&relay, "idle", |figures| figures.in_flight == 0).await;
        assert_eq!(proxy.accepted(), 1);
        relay.close().await;
    }
}

/// Mosquitto takes up to 256 MiB unless told otherwise, and acknowledges before it looks what its subscribers can take.
#[tokio::test]
async fn large_messages_pass_with_the_defaults() {
    let broker = broker().await;
    let fleet = Fleet::new(&[("cfgs", &["svc-a"])]);
    let relay = fleet.relay(settings(&broker)).await;
    let (service, sender) = (everyone(&broker, &["svc-a"]).await, client(&broker).await);
    for (number, length) in [(1 << 20) + 1, 20 << 20].into_iter().enumerate() {
        let large = PahoMessage::new("/login/x", vec![b'0' + u8::try_from(number).unwrap(); length]).qos(1);
        publish_all(&sender, [large]).await;
        let message = service.next_message(SOON).await;
        assert_eq!((message.payload.len(), usize::from(message.payload[0] - b'0')), (length, number));
    }
    relay.close().await;
}

#[tokio::test]
async fn what_the_broker_lets_pass_does_not_come_for_ever() {
    let broker = broker().await;
    let fleet = Fleet::new(&[("cfgs", &["svc-a"])]);
    let proxy = CuttingProxy::start(broker.socket_address());
    let relay = fleet.relay(over(&proxy.address(), &broker.address(), "^/login(/|$)")).await;
    let (service, sender) = (everyone(&broker, &["svc-a"]).await, client(&broker).await);
    let properties: [&[u8]; 14] = [
        // Response topics that are none: with wildcards, empty, of the system, and such as come back to the relay.
        b"\x08\0\x03a/#",
        b"\x08\0\x01+",
        b"\x08\0\0",
        b"\x08\0\x0a$share/x/y",
        b"\x08\0\x0bpointsman/x",
        b"\x08\0\x07svc-a/x",
        // A format that there is not; two content types; a subscription identifier; an alias.
        b"\x01\x02",
        b"\x03\0\x01a\x03\0\x01b",
        b"\x0b\x01",
        b"\x23\0\x01",
        // User properties with NUL, a control character, no UTF-8, and a character that is none.
        b"\x26\0\x01a\0\x01\0",
        b"\x26\0\x01a\0\x01\x01",
        b"\x26\0\x01a\0\x01\xff",
        b"\x26\0\x01a\0\x03\xef\xbf\xbf",
    ];
    for properties in properties {
        let mut bad = RawClient::connect(&broker.address()).await;
        bad.write(&RawClient::connect_packet(5, "bad")).await;
        assert_eq!(bad.read_packet().await[0], 0x20);
        let body =
            [&b"\0\x06/login\0\x01"[..], &[u8::try_from(properties.len()).unwrap()], properties, b"bad"].concat();
        bad.write(&[&[0x32, u8::try_from(body.len()).unwrap()], &body[..]].concat()).await;
        // PUBACK, DISCONNECT, or the end.
        bad.read_some(SOON).await;
        sender.publish(PahoMessage::new("/login/x", "good")).await;
        service.messages_until(|message| message.text() == "good", SOON).await;
    }
    assert_eq!(proxy.accepted(), 1, "the relay has closed a connection");
    until(&relay, "idle", |figures| figures.in_flight == 0).await;
}
