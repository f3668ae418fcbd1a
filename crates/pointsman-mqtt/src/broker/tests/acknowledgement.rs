//! Who is acknowledged when.

use super::*;

fn puback(id: u16, reason: Reason) -> Vec<(AckKind, u16, Reason)> {
    vec![(AckKind::Puback, id, reason)]
}

#[test]
fn between_ordinary_clients_it_is_acknowledged_at_once() {
    let mut bench = Bench::new();
    let (a, b) = (bench.client("a"), bench.client("b"));
    bench.publish(a, "t", "1", QOS1, 5);
    assert_eq!(bench.acks(a), puback(5, Reason::NO_MATCHING_SUBSCRIBERS));
    bench.subscribe(b, "t", QOS1);
    bench.publish(a, "t", "2", QOS1, 6);
    assert_eq!(bench.acks(a), puback(6, Reason::SUCCESS));
    bench.publish(a, "t", "3", QOS2, 7);
    assert_eq!(bench.acks(a), [(AckKind::Pubrec, 7, Reason::SUCCESS)]);
    bench.ack(a, AckKind::Pubrel, 7);
    assert_eq!(bench.acks(a), [(AckKind::Pubcomp, 7, Reason::SUCCESS)]);
    let got: Vec<_> = bench.messages(b).into_iter().map(|m| (m.qos, m.payload)).collect();
    assert_eq!(got, [(QOS1, "2".into()), (QOS1, "3".into())]);
}

#[test]
fn a_local_subscriber_acknowledges_for_the_publisher() {
    let mut bench = Bench::new();
    let (a, other, relay) = (bench.client("a"), bench.client("other"), bench.local("relay"));
    bench.subscribe(other, "#", QOS1);
    bench.subscribe(relay, "#", QOS2);
    bench.publish(a, "t", "1", QOS1, 1);
    bench.publish(a, "t", "2", QOS2, 2);
    assert_eq!(bench.acks(a), []);
    let got = bench.messages(relay);
    assert_eq!(got.iter().map(|m| m.qos).collect::<Vec<_>>(), [QOS1, QOS2]);
    assert_eq!(got[0].properties.user, [(CLIENT_ID_PROPERTY.into(), "a".into())]);
    assert_eq!(bench.messages(other)[0].properties.user, []);
    bench.ack(relay, AckKind::Puback, got[0].id);
    assert_eq!(bench.acks(a), puback(1, Reason::SUCCESS));
    bench.ack(relay, AckKind::Pubrec, got[1].id);
    assert_eq!(bench.acks(a), [(AckKind::Pubrec, 2, Reason::SUCCESS)]);
    assert_eq!(bench.core.duties.len(), 0);
}

#[test]
fn all_local_subscribers_are_waited_for_and_a_refusal_is_passed_on() {
    let mut bench = Bench::new();
    let (a, x, y) = (bench.client("a"), bench.local("x"), bench.local("y"));
    bench.subscribe(x, "t", QOS1);
    bench.subscribe(y, "t", QOS1);
    bench.publish(a, "t", "1", QOS1, 1);
    let (to_x, to_y) = (bench.messages(x)[0].id, bench.messages(y)[0].id);
    bench.ack(x, AckKind::Puback, to_x);
    assert_eq!(bench.acks(a), []);
    bench.refuse(y, AckKind::Puback, to_y, Reason::QUOTA_EXCEEDED);
    assert_eq!(bench.acks(a), puback(1, Reason::QUOTA_EXCEEDED));
}

#[test]
fn what_a_local_subscriber_leaves_behind_is_not_acknowledged_as_taken() {
    let mut bench = Bench::new();
    let (a, relay) = (bench.client("a"), bench.local("relay"));
    let (b, _) = bench.connect_as(old("b", false));
    bench.subscribe(relay, "t", QOS1);
    bench.publish(a, "t", "1", QOS1, 1);
    bench.publish(b, "t", "1", QOS1, 1);
    bench.lose(relay);
    assert_eq!(bench.acks(a), puback(1, Reason::IMPLEMENTATION_ERROR));
    // Version 3.1.1 has no word for it but to close; then it is new when it comes again.
    assert!(bench.is_closing(b));
    assert_eq!(bench.acks(b), []);
    let (b, connack) = bench.connect_as(old("b", false));
    assert!(connack.session_present);
    let relay = bench.local("relay");
    bench.subscribe(relay, "t", QOS1);
    bench.give(b, Packet::Publish(Publish { dup: true, ..message("t", "1", QOS1, 1) }));
    let id = bench.messages(relay)[0].id;
    bench.ack(relay, AckKind::Puback, id);
    assert_eq!(bench.acks(b), puback(1, Reason::SUCCESS));
}

#[test]
fn a_publisher_that_is_away_is_acknowledged_when_it_is_back() {
    let mut bench = Bench::new();
    let (a, _) = bench.connect_as(staying("a", 100));
    let relay = bench.local("relay");
    bench.subscribe(relay, "t", QOS1);
    bench.publish(a, "t", "1", QOS1, 1);
    bench.lose(a);
    let id = bench.messages(relay)[0].id;
    bench.ack(relay, AckKind::Puback, id);
    let (a, _) = bench.connect_as(staying("a", 100));
    bench.give(a, Packet::Publish(Publish { dup: true, ..message("t", "1", QOS1, 1) }));
    assert_eq!(bench.acks(a), puback(1, Reason::SUCCESS));
    assert_eq!(bench.messages(relay), []);
}

#[test]
fn a_local_publisher_is_acknowledged_by_a_subscriber() {
    let mut bench = Bench::new();
    let (relay, x, y) = (bench.local("relay"), bench.client("x"), bench.client("y"));
    bench.publish(relay, "t", "1", QOS1, 1);
    assert_eq!(bench.acks(relay), puback(1, Reason::NO_MATCHING_SUBSCRIBERS));
    bench.subscribe(x, "t", QOS1);
    bench.subscribe(y, "t", QOS2);
    bench.publish(relay, "t", "2", QOS1, 2);
    assert_eq!(bench.acks(relay), []);
    bench.lose(x);
    assert_eq!(bench.acks(relay), []);
    let id = bench.messages(y)[0].id;
    bench.ack(y, AckKind::Puback, id);
    assert_eq!(bench.acks(relay), puback(2, Reason::SUCCESS));
    bench.publish(relay, "t", "3", QOS2, 3);
    bench.lose(y);
    assert_eq!(bench.acks(relay), [(AckKind::Pubrec, 3, Reason::NO_MATCHING_SUBSCRIBERS)]);
}

#[test]
fn a_subscriber_that_is_away_keeps_a_local_publisher_waiting_until_its_session_ends() {
    let mut bench = Bench::new();
    let relay = bench.local("relay");
    let (x, _) = bench.connect_as(staying("x", 100));
    bench.subscribe(x, "t", QOS1);
    bench.lose(x);
    bench.publish(relay, "t", "1", QOS1, 1);
    bench.publish(relay, "t", "2", QOS1, 2);
    assert_eq!(bench.acks(relay), []);
    let (x, _) = bench.connect_as(staying("x", 100));
    let sent = Packet::Publish(message("t", "1", QOS1, 1));
    bench.lose(x);
    let (x, _) = bench.connect_as(staying("x", 100));
    drop(sent);
    bench.ack(x, AckKind::Puback, 1);
    assert_eq!(bench.acks(relay), puback(1, Reason::SUCCESS));
    bench.lose(x);
    bench.pass(99);
    assert_eq!(bench.acks(relay), []);
    bench.pass(2);
    assert_eq!(bench.acks(relay), puback(2, Reason::NO_MATCHING_SUBSCRIBERS));
}

#[test]
fn a_subscriber_of_qos_0_is_as_good_as_it_gets() {
    let mut bench = Bench::new();
    let (relay, x) = (bench.local("relay"), bench.client("x"));
    bench.subscribe(x, "t", QOS0);
    bench.publish(relay, "t", "1", QOS1, 1);
    assert_eq!(bench.acks(relay), puback(1, Reason::SUCCESS));
}

#[test]
fn what_the_relay_is_told_about_clients_cannot_be_forged() {
    let mut bench = Bench::new();
    let (a, x, relay) = (bench.client("a"), bench.client("x"), bench.local("relay"));
    bench.subscribe(relay, "t", QOS0);
    bench.subscribe(x, "t", QOS0);
    let mut forged = message("t", "1", QOS0, 0);
    forged.properties.user = vec![
        (CLIENT_ID_PROPERTY.into(), "boss".into()),
        ("k".into(), "v".into()),
        (CLIENT_ID_PROPERTY.into(), "b".into()),
    ];
    bench.give(a, Packet::Publish(forged));
    let kept = ("k".into(), "v".into());
    assert_eq!(bench.messages(relay)[0].properties.user, [kept.clone(), (CLIENT_ID_PROPERTY.into(), "a".into())]);
    assert_eq!(bench.messages(x)[0].properties.user, [kept]);
}

#[test]
fn no_ordinary_client_takes_a_local_session_over() {
    let mut bench = Bench::new();
    let relay = bench.local("relay");
    let (thief, connack) = bench.connect_as(hello("relay"));
    assert_eq!(connack.reason, Reason::NOT_AUTHORIZED);
    assert!(bench.is_closing(thief) && !bench.is_closing(relay));
}

#[test]
fn a_local_publisher_that_was_away_learns_that_nobody_has_it() {
    let mut bench = Bench::new();
    let hello = || Packet::Connect(Box::new(staying("relay", 100)));
    let relay = bench.open(true);
    bench.give(relay, hello());
    bench.read(relay);
    let x = bench.client("x");
    bench.subscribe(x, "t", QOS1);
    bench.publish(relay, "t", "1", QOS1, 1);
    bench.publish(relay, "t", "2", QOS2, 2);
    bench.lose(relay);
    bench.lose(x);
    let relay = bench.open(true);
    bench.give(relay, hello());
    for (id, qos) in [(1, QOS1), (2, QOS2)] {
        bench.give(relay, Packet::Publish(Publish { dup: true, ..message("t", "", qos, id) }));
    }
    let reason = Reason::NO_MATCHING_SUBSCRIBERS;
    assert_eq!(bench.acks(relay), [(AckKind::Puback, 1, reason), (AckKind::Pubrec, 2, reason)]);
}
