use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::fuzzing::sessions::{endure, play};
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

fn kept() -> Peer {
    Peer { session_present: true, ..Peer::default() }
}

fn ack(kind: AckKind, id: u16) -> Packet {
    Packet::Ack(Ack { kind, id, reason: Reason::SUCCESS, reason_string: None })
}

fn publishes(packets: Vec<Packet>) -> Vec<Publish> {
    packets
        .into_iter()
        .map(|packet| if let Packet::Publish(publish) = packet { publish } else { panic!("{packet:?}") })
        .collect()
}

#[test]
fn an_identifier_of_0_is_refused() {
    let now = Instant::now();
    let mut a = Session::<u32>::new(10);
    a.connected(Peer::default(), now);
    for kind in [AckKind::Puback, AckKind::Pubrec, AckKind::Pubrel, AckKind::Pubcomp] {
        assert!(a.receive(ack(kind, 0), now).is_err());
    }
    assert!(a.receive(Packet::Publish(message("t", Qos::AtLeastOnce)), now).is_err());
    assert!(a.output().is_empty());
    a.acknowledge(0, Reason::SUCCESS);
    a.restore_sent(0, false);
    a.restore_sent(1, false);
    a.release_restored(0);
    assert!(a.output().is_empty());
    a.publish_restored(0, &message("t", Qos::ExactlyOnce), 1, now).unwrap();
    assert_eq!(publishes(sent(&mut a))[0].id, 2);
}

#[test]
fn what_waits_is_sent_in_the_version_that_is_spoken_in_the_end() {
    let now = Instant::now();
    let mut publish = message("a/b", Qos::AtLeastOnce);
    publish.properties.user.push(("name".into(), "x".repeat(200).into()));
    for (qos, id) in [(Qos::AtLeastOnce, 0), (Qos::AtMostOnce, 0), (Qos::ExactlyOnce, 7)] {
        let mut a = Session::new(10);
        a.hold_at_most_once(true);
        a.publish(&Publish { qos, id, ..publish.clone() }, 1, now).unwrap();
        a.connected(Peer { version: Version::V311, ..Peer::default() }, now);
        let there = publishes(sent(&mut a));
        let id = if qos == Qos::AtMostOnce { 0 } else { 1 };
        assert_eq!(there, [Publish { qos, id, ..message("a/b", qos) }]);
        a.disconnected();
        a.connected(kept(), now);
        let back = publishes(sent(&mut a));
        let expected = (qos > Qos::AtMostOnce).then_some(Publish { qos, id, dup: true, ..message("a/b", qos) });
        assert_eq!(back, Vec::from_iter(expected));
    }
}

#[test]
fn the_expiry_outlives_a_lost_session_and_another_version() {
    let start = Instant::now();
    let after = |seconds| start + Duration::from_secs(seconds);
    let mut a = Session::new(10);
    a.connected(Peer { receive_maximum: 2, ..Peer::default() }, start);
    for (token, seconds) in [(0, 10), (1, 3), (2, 20), (3, 4)] {
        let mut publish = message("t", Qos::AtLeastOnce);
        publish.properties.expiry = Some(seconds);
        a.publish(&publish, token, start).unwrap();
    }
    let expiries = |a: &mut Session<u32>| -> Vec<_> {
        publishes(sent(a)).into_iter().map(|publish| publish.properties.expiry.unwrap()).collect()
    };
    assert_eq!(expiries(&mut a), [10, 3]);
    a.disconnected();
    // Its delivery has begun: it is sent again, though its time is over.
    a.connected(Peer { receive_maximum: 2, ..kept() }, after(3));
    assert_eq!(expiries(&mut a), [7, 1]);
    a.disconnected();
    // The order: first what had been sent, then what waits; what is worth nothing any more takes no place.
    a.connected(Peer { receive_maximum: 2, ..Peer::default() }, after(5));
    assert_eq!(expiries(&mut a), [5, 15]);
    assert_eq!((a.take_expired(), a.take_expired(), a.queued()), (Some(1), None, 1));
    a.disconnected();
    a.connected(Peer { version: Version::V311, ..Peer::default() }, after(11));
    assert_eq!(publishes(sent(&mut a)).len(), 1);
    assert_eq!((a.take_expired(), a.take_expired(), a.outstanding()), (Some(0), Some(3), 1));
}

#[test]
fn what_waits_is_sent_as_the_new_peer_takes_it() {
    let now = Instant::now();
    for (max_qos, max_packet) in [(Qos::AtLeastOnce, usize::MAX), (Qos::AtMostOnce, usize::MAX), (Qos::ExactlyOnce, 9)]
    {
        let mut a = Session::new(10);
        for token in 0..2 {
            a.publish(&message("t", Qos::ExactlyOnce), token, now).unwrap();
        }
        a.publish(&message("a/longer/topic", Qos::AtLeastOnce), 2, now).unwrap();
        a.connected(Peer { max_qos, max_packet, receive_maximum: 3, ..Peer::default() }, now);
        let there = publishes(sent(&mut a));
        let fits = if max_packet == 9 { 2 } else { 3 };
        assert_eq!(there.len(), fits);
        assert!(there.iter().all(|publish| publish.qos <= max_qos && publish.payload == "x"));
        let dropped = if fits == 2 { Some(2) } else { None };
        assert_eq!(a.take_expired(), dropped);
        let at_once = if max_qos == Qos::AtMostOnce { Some(0) } else { None };
        assert_eq!(a.take_sent(), at_once);
    }
}

#[test]
fn what_had_been_sent_and_has_become_too_large_is_let_go() {
    let now = Instant::now();
    let mut a = Session::new(10);
    a.connected(Peer::default(), now);
    for (token, qos) in [(1, Qos::AtLeastOnce), (2, Qos::ExactlyOnce)] {
        a.publish(&message("a/longer/topic", qos), token, now).unwrap();
    }
    a.disconnected();
    a.connected(Peer { max_packet: 10, ..kept() }, now);
    assert_eq!(sent(&mut a), [ack(AckKind::Pubrel, 2)]);
    assert_eq!((a.take_expired(), a.take_expired(), a.outstanding()), (Some(1), Some(2), 1));
    assert_eq!(a.receive(ack(AckKind::Pubcomp, 2), now), Ok(Event::Completed(2)));
    assert_eq!(a.outstanding(), 0);
}

#[test]
fn held_messages_of_qos_0_are_not_overtaken() {
    let now = Instant::now();
    let mut a = Session::new(10);
    a.hold_at_most_once(true);
    for (token, qos) in [(0, Qos::AtLeastOnce), (1, Qos::AtLeastOnce), (2, Qos::AtMostOnce)] {
        a.publish(&message("t", qos), token, now).unwrap();
    }
    a.connected(Peer { receive_maximum: 1, ..Peer::default() }, now);
    assert_eq!((a.take_sent(), a.queued()), (Some(2), 1));
    let qualities: Vec<_> = publishes(sent(&mut a)).iter().map(|publish| publish.qos).collect();
    assert_eq!(qualities, [Qos::AtLeastOnce, Qos::AtMostOnce]);
}

/// Else the peer gets two acknowledgements, and takes the second for that of another message.
#[test]
fn a_message_is_acknowledged_once_on_a_connection_and_after_it_has_come_there() {
    let now = Instant::now();
    let mut b = Session::<u32>::new(10);
    b.connected(Peer::default(), now);
    let publish = |qos, id, dup| Packet::Publish(Publish { id, dup, ..message("t", qos) });
    b.receive(publish(Qos::AtLeastOnce, 1, false), now).unwrap();
    b.receive(publish(Qos::ExactlyOnce, 2, false), now).unwrap();
    b.disconnected();
    b.connected(kept(), now);
    b.acknowledge(1, Reason::SUCCESS);
    b.acknowledge(2, Reason::SUCCESS);
    assert!(b.output().is_empty());
    assert_eq!(b.receive(publish(Qos::AtLeastOnce, 1, true), now), Ok(Event::Nothing));
    assert_eq!(b.receive(publish(Qos::ExactlyOnce, 2, true), now), Ok(Event::Nothing));
    assert_eq!(sent(&mut b), [ack(AckKind::Puback, 1), ack(AckKind::Pubrec, 2)]);
}

#[test]
fn an_acknowledged_identifier_may_come_with_another_message() {
    let now = Instant::now();
    let mut b = Session::<u32>::new(10);
    b.connected(Peer::default(), now);
    let publish = |dup| Packet::Publish(Publish { id: 1, dup, ..message("t", Qos::AtLeastOnce) });
    b.receive(publish(false), now).unwrap();
    b.disconnected();
    b.acknowledge(1, Reason::SUCCESS);
    b.connected(kept(), now);
    // The peer does not send it again: it has expired there.
    assert!(matches!(b.receive(publish(false), now), Ok(Event::Message(_))));
    assert_eq!(b.unacknowledged(), 1);
}

/// Of a peer that has been started again, and knows nothing any more of its messages of QoS 1.
#[test]
fn what_was_acknowledged_long_ago_does_not_swallow_another_message() {
    let now = Instant::now();
    let mut b = Session::<u32>::new(10);
    b.connected(Peer::default(), now);
    let publish = |dup| Packet::Publish(Publish { id: 1, dup, ..message("t", Qos::AtLeastOnce) });
    b.receive(publish(false), now).unwrap();
    b.disconnected();
    b.acknowledge(1, Reason::SUCCESS);
    // Another message is sent on this connection, and lost.
    b.connected(kept(), now);
    b.disconnected();
    b.connected(kept(), now);
    assert!(matches!(b.receive(publish(true), now), Ok(Event::Message(_))));
}

#[test]
fn what_comes_without_a_connection_is_not_answered() {
    let now = Instant::now();
    let mut a = Session::new(10);
    a.connected(Peer { receive_maximum: 1, ..Peer::default() }, now);
    a.publish(&message("t", Qos::AtLeastOnce), 1, now).unwrap();
    a.publish(&message("t", Qos::AtLeastOnce), 2, now).unwrap();
    a.disconnected();
    assert!(matches!(a.receive(ack(AckKind::Puback, 1), now), Ok(Event::Acknowledged { token: 1, .. })));
    a.receive(ack(AckKind::Pubrel, 9), now).unwrap();
    assert!(a.output().is_empty());
    a.connected(kept(), now);
    assert!(matches!(&publishes(sent(&mut a))[..], [Publish { dup: false, .. }]));
}

#[test]
fn a_restored_message_is_not_let_go_before_it_has_been_given() {
    let now = Instant::now();
    let mut a = Session::new(10);
    a.restore_sent(3, false);
    a.connected(kept(), now);
    assert_eq!(a.receive(ack(AckKind::Pubrec, 3), now), Ok(Event::Nothing));
    assert!(a.receive(ack(AckKind::Pubcomp, 3), now).is_err());
    a.publish_restored(3, &message("t", Qos::ExactlyOnce), 9, now).unwrap();
    assert!(matches!(&publishes(sent(&mut a))[..], [Publish { id: 3, dup: true, .. }]));
    assert!(matches!(a.receive(ack(AckKind::Pubrec, 3), now), Ok(Event::Acknowledged { token: 9, .. })));
}

#[test]
fn a_restored_message_goes_to_a_peer_of_qos_0_with_its_token() {
    let now = Instant::now();
    let mut a = Session::new(10);
    a.connected(Peer { max_qos: Qos::AtMostOnce, ..Peer::default() }, now);
    a.publish_restored(3, &message("t", Qos::ExactlyOnce), 9, now).unwrap();
    assert_eq!(a.take_sent(), Some(9));
}

#[test]
fn a_drained_session_lets_go_of_its_identifiers_in_their_time() {
    let now = Instant::now();
    for up in [true, false] {
        let (mut a, mut b) = (Session::new(10), Session::<u32>::new(10));
        a.connected(Peer { receive_maximum: 2, ..Peer::default() }, now);
        b.connected(Peer::default(), now);
        for (token, qos) in [(1, Qos::ExactlyOnce), (2, Qos::AtLeastOnce), (3, Qos::ExactlyOnce)] {
            a.publish(&message("t", qos), token, now).unwrap();
        }
        deliver(&mut a, &mut b, now);
        assert_eq!(a.drain(), [1, 2, 3]);
        if !up {
            for session in [&mut a, &mut b] {
                session.disconnected();
                session.connected(kept(), now);
            }
            // It takes the message of QoS 2 back, which has not been acknowledged yet.
            deliver(&mut a, &mut b, now);
            deliver(&mut b, &mut a, now);
        }
        b.acknowledge(1, Reason::SUCCESS);
        b.acknowledge(2, Reason::SUCCESS);
        for _ in 0..2 {
            deliver(&mut b, &mut a, now);
            deliver(&mut a, &mut b, now);
        }
        assert_eq!((a.outstanding(), b.unacknowledged()), (0, 0));
        a.publish(&message("u", Qos::ExactlyOnce), 4, now).unwrap();
        assert!(matches!(&deliver(&mut a, &mut b, now)[..], [Event::Message(_)]));
    }
}

#[test]
fn as_many_messages_as_there_are_identifiers() {
    let now = Instant::now();
    let mut a = Session::new(10);
    a.connected(Peer::default(), now);
    for token in 0..65_540 {
        a.publish(&message("t", Qos::AtLeastOnce), token, now).unwrap();
    }
    let mut ids: Vec<_> = publishes(sent(&mut a)).iter().map(|publish| publish.id).collect();
    let under_way = ids.len();
    assert!((65_500..=65_535).contains(&under_way) && a.queued() == 65_540 - under_way, "{under_way}");
    ids.sort_unstable();
    ids.dedup();
    assert!(ids.len() == under_way && ids[0] == 1);
    a.disconnected();
    a.connected(kept(), now);
    assert_eq!(publishes(sent(&mut a)).len(), under_way);
    a.disconnected();
    a.connected(Peer::default(), now);
    assert_eq!(publishes(sent(&mut a)).len(), under_way);
    assert_eq!(a.drain(), Vec::from_iter(0..65_540));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn two_sessions_over_a_connection_that_breaks(script in proptest::collection::vec(any::<u8>(), 0..600)) {
        play(&script);
    }

    #[test]
    fn a_session_with_a_peer_that_sends_anything(script in proptest::collection::vec(any::<u8>(), 0..600)) {
        endure(&script);
    }
}

#[test]
fn what_could_not_be_told_at_once_is_told_in_the_same_words() {
    let now = Instant::now();
    let mut b = Session::<u32>::new(10);
    b.connected(Peer::default(), now);
    for (id, qos) in [(1, Qos::AtLeastOnce), (2, Qos::ExactlyOnce)] {
        b.receive(Packet::Publish(Publish { id, ..message("t", qos) }), now).unwrap();
    }
    b.disconnected();
    b.acknowledge(1, Reason::NO_MATCHING_SUBSCRIBERS);
    b.acknowledge(2, Reason::NO_MATCHING_SUBSCRIBERS);
    b.connected(Peer { session_present: true, ..Peer::default() }, now);
    for (id, qos) in [(1, Qos::AtLeastOnce), (2, Qos::ExactlyOnce)] {
        let again = Packet::Publish(Publish { id, dup: true, ..message("t", qos) });
        assert_eq!(b.receive(again, now).unwrap(), Event::Nothing);
    }
    let reasons: Vec<_> = sent(&mut b)
        .into_iter()
        .map(|packet| if let Packet::Ack(ack) = packet { Some(ack.reason) } else { None })
        .collect();
    assert_eq!(reasons, [Some(Reason::NO_MATCHING_SUBSCRIBERS); 2]);
}

#[test]
fn what_the_peer_has_taken_back_is_not_received() {
    let now = Instant::now();
    let mut b = Session::<u32>::new(10);
    b.connected(Peer::default(), now);
    for id in [1, 2] {
        b.receive(Packet::Publish(Publish { id, ..message("t", Qos::ExactlyOnce) }), now).unwrap();
    }
    let release = |id| Packet::Ack(Ack { kind: AckKind::Pubrel, id, reason: Reason::SUCCESS, reason_string: None });
    b.receive(release(2), now).unwrap();
    b.acknowledge(1, Reason::SUCCESS);
    b.acknowledge(2, Reason::SUCCESS);
    assert_eq!((b.has_received(1), b.has_received(2)), (true, false));
    b.receive(release(1), now).unwrap();
    assert!(!b.has_received(1));
}

#[derive(Debug, Clone)]
enum Sharing {
    Publish { qos: Qos, length: usize, expiry: Option<u32> },
    Connect { version: Version, session_present: bool, max_qos: Qos, max_packet: usize },
    Lose,
    Acknowledge,
    Pass(u64),
}

fn sharing() -> impl Strategy<Value = Sharing> {
    let qos = prop_oneof![Just(Qos::AtMostOnce), Just(Qos::AtLeastOnce), Just(Qos::ExactlyOnce)];
    let version = prop_oneof![Just(Version::V311), Just(Version::V5)];
    prop_oneof![
        4 => (qos.clone(), 0..200_usize, proptest::option::of(0..5_u32))
            .prop_map(|(qos, length, expiry)| Sharing::Publish { qos, length, expiry }),
        2 => (version, any::<bool>(), qos, prop_oneof![Just(usize::MAX), Just(100)]).prop_map(
            |(version, session_present, max_qos, max_packet)| Sharing::Connect {
                version,
                session_present,
                max_qos,
                max_packet
            }
        ),
        1 => Just(Sharing::Lose),
        2 => Just(Sharing::Acknowledge),
        1 => (0..3_u64).prop_map(Sharing::Pass),
    ]
}

/// One step of a session; what it has written.
fn step(session: &mut Session<u32>, step: &Sharing, encodings: &mut Encodings, now: Instant) -> Vec<Packet> {
    match *step {
        Sharing::Publish { qos, length, expiry } => {
            let mut publish = Publish { payload: vec![b'x'; length].into(), ..message("a/topic", qos) };
            publish.properties.expiry = expiry;
            let _ = session.publish_shared(&publish, 1, encodings, now);
        }
        Sharing::Connect { version, session_present, max_qos, max_packet } => {
            session.disconnected();
            let peer = Peer { version, session_present, max_qos, max_packet, receive_maximum: 3, ..Peer::default() };
            session.connected(peer, now);
        }
        Sharing::Lose => drop(session.disconnected()),
        Sharing::Acknowledge => {
            for (id, kind) in (1..=3).flat_map(|id| [(id, AckKind::Pubrec), (id, AckKind::Puback)]) {
                let _ =
                    session.receive(Packet::Ack(Ack { kind, id, reason: Reason::SUCCESS, reason_string: None }), now);
            }
        }
        Sharing::Pass(_) => {}
    }
    sent(session)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    /// Whether payloads, and what is encoded, are shared with another session cannot be seen.
    #[test]
    fn what_is_sent_is_the_same_with_shared_payloads(steps in proptest::collection::vec(sharing(), 0..40)) {
        let mut now = Instant::now();
        let (mut plain, mut shares, mut other) = (Session::new(10), Session::new(10), Session::new(10));
        shares.share_payloads(true);
        other.share_payloads(true);
        other.connected(Peer { receive_maximum: 5, ..Peer::default() }, now);
        for one in &steps {
            if let Sharing::Pass(seconds) = one {
                now += Duration::from_secs(*seconds);
            }
            let mut encodings = Encodings::default();
            if matches!(one, Sharing::Publish { .. } | Sharing::Acknowledge) {
                step(&mut other, one, &mut encodings, now);
            }
            let expected = step(&mut plain, one, &mut Encodings::default(), now);
            prop_assert_eq!(expected, step(&mut shares, one, &mut encodings, now));
            prop_assert_eq!(plain.take_refused(), shares.take_refused());
        }
        prop_assert_eq!(plain.take_back(now, |_, _| true), shares.take_back(now, |_, _| true));
    }
}
