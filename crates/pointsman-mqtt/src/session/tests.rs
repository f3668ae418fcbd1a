use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::packet::Decoder;

fn message(topic: &'static str, qos: Qos) -> Publish {
    Publish { topic: topic.into(), qos, payload: Bytes::from_static(b"x"), ..Publish::default() }
}

fn sent<T: Clone>(session: &mut Session<T>) -> Vec<Packet> {
    let mut decoder = Decoder::new(session.peer().version, usize::MAX);
    let mut packets = Vec::new();
    while let Some(packet) = decoder.decode(session.output()).unwrap() {
        packets.push(packet);
    }
    packets
}

/// Hands everything that one side has to say to the other.
fn deliver(from: &mut Session<u32>, to: &mut Session<u32>, now: Instant) -> Vec<Event<u32>> {
    sent(from).into_iter().map(|packet| to.receive(packet, now).unwrap()).collect()
}

#[test]
fn a_token_comes_back_with_the_acknowledgement() {
    let now = Instant::now();
    let (mut a, mut b) = (Session::new(10), Session::<u32>::new(10));
    a.connected(Peer::default(), now);
    b.connected(Peer::default(), now);
    for (token, qos) in [(1, Qos::AtLeastOnce), (2, Qos::ExactlyOnce)] {
        assert_eq!(a.publish(&message("t", qos), token, now), Ok(None));
        let Some(Event::Message(publish)) = deliver(&mut a, &mut b, now).pop() else { panic!("no message") };
        b.acknowledge(publish.id, Reason::SUCCESS);
        let answer = deliver(&mut b, &mut a, now);
        assert_eq!(answer, [Event::Acknowledged { token, reason: Reason::SUCCESS, message: None }]);
        if qos == Qos::ExactlyOnce {
            assert_eq!(deliver(&mut a, &mut b, now), [Event::Released(publish.id)]);
            assert_eq!(deliver(&mut b, &mut a, now), [Event::Completed(publish.id)]);
        }
        assert_eq!((a.outstanding(), b.unacknowledged()), (0, 0));
    }
    assert_eq!(a.publish(&message("t", Qos::AtMostOnce), 3, now), Ok(Some(3)));
}

#[test]
fn the_receive_maximum_is_kept_and_the_order_too() {
    let now = Instant::now();
    let (mut a, mut b) = (Session::new(10), Session::<u32>::new(2));
    a.connected(Peer { receive_maximum: 2, ..Peer::default() }, now);
    b.connected(Peer::default(), now);
    for token in 0..5 {
        a.publish(&message("t", Qos::AtLeastOnce), token, now).unwrap();
    }
    assert_eq!((a.outstanding(), a.queued()), (5, 3));
    let mut tokens = Vec::new();
    while a.outstanding() > 0 {
        for event in deliver(&mut a, &mut b, now) {
            let Event::Message(publish) = event else { panic!("{event:?}") };
            b.acknowledge(publish.id, Reason::SUCCESS);
        }
        for event in deliver(&mut b, &mut a, now) {
            let Event::Acknowledged { token, .. } = event else { panic!("{event:?}") };
            tokens.push(token);
        }
    }
    assert_eq!(tokens, [0, 1, 2, 3, 4]);
}

#[test]
fn with_the_session_present_it_is_sent_again_in_order_as_a_duplicate() {
    let now = Instant::now();
    let mut a = Session::new(10);
    a.connected(Peer::default(), now);
    for token in 0..3 {
        a.publish(&message("t", Qos::AtLeastOnce), token, now).unwrap();
    }
    let first: Vec<_> = sent(&mut a);
    a.disconnected();
    a.publish(&message("t", Qos::AtLeastOnce), 3, now).unwrap();
    a.connected(Peer { session_present: true, ..Peer::default() }, now);
    let again = sent(&mut a);
    assert_eq!(again.len(), 4);
    for (before, after) in first.into_iter().zip(&again) {
        let (Packet::Publish(before), Packet::Publish(after)) = (before, after) else { panic!() };
        assert_eq!(Publish { dup: true, ..before }, *after);
    }
    assert!(matches!(&again[3], Packet::Publish(Publish { dup: false, .. })));
}

#[test]
fn with_the_session_lost_it_is_sent_as_new_and_what_was_taken_over_is_not() {
    let now = Instant::now();
    let (mut a, mut b) = (Session::new(10), Session::<u32>::new(10));
    a.connected(Peer::default(), now);
    b.connected(Peer::default(), now);
    a.publish(&message("t", Qos::ExactlyOnce), 1, now).unwrap();
    a.publish(&message("u", Qos::ExactlyOnce), 2, now).unwrap();
    let events = deliver(&mut a, &mut b, now);
    let Event::Message(publish) = &events[0] else { panic!() };
    b.acknowledge(publish.id, Reason::SUCCESS);
    assert_eq!(
        deliver(&mut b, &mut a, now),
        [Event::Acknowledged { token: 1, reason: Reason::SUCCESS, message: None }]
    );
    a.disconnected();
    a.connected(Peer::default(), now);
    let again = sent(&mut a);
    assert!(matches!(&again[..], [Packet::Publish(Publish { dup: false, topic, .. })] if *topic == "u"), "{again:?}");
}

#[test]
fn what_was_acknowledged_without_a_connection_is_not_given_out_again() {
    let now = Instant::now();
    let mut b = Session::<u32>::new(10);
    b.connected(Peer::default(), now);
    for (qos, id) in [(Qos::AtLeastOnce, 1), (Qos::ExactlyOnce, 2)] {
        let publish = Publish { id, ..message("t", qos) };
        assert!(matches!(b.receive(Packet::Publish(publish), now).unwrap(), Event::Message(_)));
    }
    b.disconnected();
    b.acknowledge(1, Reason::SUCCESS);
    b.acknowledge(2, Reason::SUCCESS);
    b.connected(Peer { session_present: true, ..Peer::default() }, now);
    for (qos, id) in [(Qos::AtLeastOnce, 1), (Qos::ExactlyOnce, 2)] {
        let publish = Publish { id, dup: true, ..message("t", qos) };
        assert_eq!(b.receive(Packet::Publish(publish), now).unwrap(), Event::Nothing);
    }
    let kinds: Vec<_> =
        sent(&mut b).into_iter().map(|p| if let Packet::Ack(ack) = p { Some(ack.kind) } else { None }).collect();
    assert_eq!(kinds, [Some(AckKind::Puback), Some(AckKind::Pubrec)]);
}

#[test]
fn waiting_counts_against_the_expiry() {
    let now = Instant::now();
    let mut a = Session::new(10);
    let mut publish = message("t", Qos::AtLeastOnce);
    publish.properties.expiry = Some(10);
    publish.properties.utf8 = Some(true);
    a.publish(&publish, 1, now).unwrap();
    publish.properties.expiry = Some(3);
    a.publish(&publish, 2, now).unwrap();
    a.connected(Peer::default(), now + Duration::from_secs(4));
    let packets = sent(&mut a);
    let [Packet::Publish(sent)] = &packets[..] else { panic!("{packets:?}") };
    assert_eq!((sent.properties.expiry, sent.properties.utf8), (Some(6), Some(true)));
    assert_eq!((a.take_expired(), a.take_expired()), (Some(2), None));
}

#[test]
fn a_restored_message_of_qos_2_keeps_its_identifier() {
    let now = Instant::now();
    let mut a = Session::new(10);
    a.restore_sent(3, false);
    a.restore_sent(1, true);
    a.restore_received(7);
    a.connected(Peer { session_present: true, ..Peer::default() }, now);
    assert!(matches!(&sent(&mut a)[..], [Packet::Ack(Ack { kind: AckKind::Pubrel, id: 1, .. })]));
    a.publish_restored(3, &message("t", Qos::ExactlyOnce), 9, now).unwrap();
    assert!(matches!(&sent(&mut a)[..], [Packet::Publish(Publish { id: 3, dup: true, .. })]));
    let publish = Publish { id: 7, dup: true, ..message("t", Qos::ExactlyOnce) };
    assert_eq!(a.receive(Packet::Publish(publish), now).unwrap(), Event::Nothing);
}
