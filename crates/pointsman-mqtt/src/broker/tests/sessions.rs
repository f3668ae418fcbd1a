//! Who is let in, and what is kept for whom.

use super::*;

#[test]
fn a_session_is_kept_as_long_as_was_agreed() {
    let mut bench = Bench::new();
    for (connect, kept_for) in [
        (staying("a", 0), None),
        (staying("b", 10), Some(10)),
        (staying("c", u32::MAX), Some(3600)),
        (old("d", true), None),
        (old("e", false), Some(3600)),
    ] {
        let again = Connect { clean_start: false, ..connect.clone() };
        let (link, connack) = bench.connect_as(connect.clone());
        let capped = (connect.properties.session_expiry == Some(u32::MAX)).then_some(3600);
        assert_eq!((connack.session_present, connack.properties.session_expiry), (false, capped));
        bench.lose(link);
        let Some(seconds) = kept_for else {
            assert_eq!(bench.core.figures().sessions, 0, "{:?}", connect.client_id);
            continue;
        };
        bench.pass(seconds - 1);
        let (link, connack) = bench.connect_as(again.clone());
        assert!(connack.session_present, "{:?}", connect.client_id);
        bench.pass(2 * seconds);
        bench.lose(link);
        bench.pass(seconds);
        let (link, connack) = bench.connect_as(again);
        assert!(!connack.session_present, "{:?}", connect.client_id);
        bench.lose(link);
        bench.pass(seconds);
    }
    assert_eq!(bench.core.timers.next(), None);
}

#[test]
fn a_client_may_change_its_mind_when_it_leaves_but_not_from_nothing() {
    let mut bench = Bench::new();
    let properties = |seconds| Properties { session_expiry: Some(seconds), ..Properties::default() };
    let leave =
        |seconds| Packet::Disconnect(Box::new(Disconnect { properties: properties(seconds), ..Disconnect::default() }));
    let (a, _) = bench.connect_as(staying("a", 100));
    bench.give(a, leave(0));
    assert_eq!(bench.core.figures().sessions, 0);
    let (a, _) = bench.connect_as(staying("a", 0));
    bench.give(a, leave(100));
    let packets = bench.read(a);
    let [Packet::Disconnect(end)] = &packets[..] else { panic!("{packets:?}") };
    assert_eq!(end.reason, Reason::PROTOCOL_ERROR);
}

#[test]
fn the_second_connection_takes_the_session_over() {
    let mut bench = Bench::new();
    let (first, _) = bench.connect_as(staying("a", 100));
    bench.subscribe(first, "t", QOS1);
    bench.publish(first, "t", "1", QOS1, 3);
    let (second, connack) = bench.connect_as(staying("a", 100));
    assert!(connack.session_present);
    let packets = bench.read(first);
    let Some(Packet::Disconnect(end)) = packets.last() else { panic!("{packets:?}") };
    assert_eq!((end.reason, bench.is_closing(first)), (Reason::SESSION_TAKEN_OVER, true));
    // The end of the first connection does not concern the session any more.
    bench.lose(first);
    bench.publish(second, "t", "2", QOS1, 4);
    let client = bench.core.connections.get(second).unwrap().client.unwrap();
    assert!(bench.core.clients.get(client).unwrap().session.is_up());
    assert_eq!(bench.payloads(second), ["2"]);
    let (third, connack) = bench.connect_as(hello("a"));
    assert!(!connack.session_present && bench.is_closing(second));
    bench.publish(third, "t", "3", QOS1, 4);
    assert_eq!(bench.payloads(third), Vec::<String>::new());
}

#[test]
fn ids_are_assigned_where_that_is_allowed() {
    let mut bench = Bench::new();
    let (_, connack) = bench.connect_as(hello(""));
    let assigned = connack.properties.assigned_client_id.clone().unwrap();
    assert_eq!(assigned.len(), 36);
    let properties = connack.properties;
    assert_eq!((properties.topic_alias_maximum, properties.shared_available), (Some(32), Some(true)));
    assert_eq!((properties.receive_maximum, properties.maximum_packet), (Some(1024), Some(1 << 20)));
    assert_eq!(bench.connect_as(old("", true)).1.reason, Reason::SUCCESS);
    let (link, connack) = bench.connect_as(old("", false));
    assert_eq!((connack.reason, bench.is_closing(link)), (Reason::CLIENT_ID_NOT_VALID, true));
    assert_eq!(bench.core.figures().refused, 1);
}

#[test]
fn there_is_an_end_to_sessions() {
    let mut options = options();
    options.max_sessions = 1;
    let mut bench = Bench::with(&options);
    bench.client("a");
    assert_eq!(bench.connect_as(hello("b")).1.reason, Reason::QUOTA_EXCEEDED);
    assert_eq!(bench.connect_as(hello("a")).1.reason, Reason::SUCCESS);
}

/// The quota begins anew with each connection, and grows again with each message that is through.
#[test]
fn whoever_keeps_to_the_receive_maximum_may_go_on() {
    let mut bench = Bench::new();
    let (first, _) = bench.connect_as(staying("a", 100));
    (1..=1024).for_each(|id| bench.publish(first, "t", "1", QOS2, id));
    bench.lose(first);
    let (a, connack) = bench.connect_as(staying("a", 100));
    assert!(connack.session_present);
    // One that comes again counts, as does each new one.
    bench.give(a, Packet::Publish(Publish { dup: true, ..message("t", "1", QOS2, 1) }));
    (2001..=3023).for_each(|id| bench.publish(a, "t", "1", QOS2, id));
    for id in [1, 2, 2001] {
        bench.ack(a, AckKind::Pubrel, id);
    }
    for id in 4001..=4002 {
        bench.publish(a, "t", "1", QOS2, id);
    }
    (5001..=5100).for_each(|id| bench.publish(a, "t", "1", QOS0, id));
    assert!(!bench.is_closing(a));
    bench.publish(a, "t", "1", QOS1, 6000);
    let Some(Packet::Disconnect(end)) = bench.read(a).pop() else { panic!("not disconnected") };
    assert_eq!(end.reason, Reason::RECEIVE_MAXIMUM_EXCEEDED);
}

type Misdeed = fn(&mut Bench, Link);

#[test]
fn what_breaks_the_protocol_ends_the_connection_with_a_reason() {
    let bad: Vec<(Misdeed, Reason)> = vec![
        (|bench, a| bench.give(a, Packet::Connect(Box::new(hello("a")))), Reason::PROTOCOL_ERROR),
        (|bench, a| bench.give(a, Packet::Auth(Box::default())), Reason::PROTOCOL_ERROR),
        (|bench, a| bench.give(a, Packet::Pingresp), Reason::PROTOCOL_ERROR),
        (
            |bench, a| {
                let mut publish = message("t", "1", QOS0, 0);
                publish.properties.topic_alias = Some(33);
                bench.give(a, Packet::Publish(publish));
            },
            Reason::TOPIC_ALIAS_INVALID,
        ),
        (
            |bench, a| {
                let mut publish = message("t", "1", QOS0, 0);
                publish.properties.subscription_ids = vec![1];
                bench.give(a, Packet::Publish(publish));
            },
            Reason::PROTOCOL_ERROR,
        ),
        (
            |bench, a| {
                let options = Subscription { no_local: true, ..Subscription::up_to(QOS0) };
                let filters = vec![("$share/g/t".into(), options)];
                bench.give(a, Packet::Subscribe(Box::new(Subscribe { id: 1, filters, ..Subscribe::default() })));
            },
            Reason::PROTOCOL_ERROR,
        ),
        (
            |bench, a| {
                let relay = bench.local("relay");
                bench.subscribe(relay, "t", QOS1);
                (1..=1025).for_each(|id| bench.publish(a, "t", "1", QOS1, id));
            },
            Reason::RECEIVE_MAXIMUM_EXCEEDED,
        ),
        // Of QoS 2 a message counts until it is through.
        (|bench, a| (1..=1025).for_each(|id| bench.publish(a, "t", "1", QOS2, id)), Reason::RECEIVE_MAXIMUM_EXCEEDED),
    ];
    for (break_it, reason) in bad {
        let mut bench = Bench::new();
        let a = bench.client("a");
        break_it(&mut bench, a);
        let packets = bench.read(a);
        let Some(Packet::Disconnect(end)) = packets.last() else { panic!("{packets:?}") };
        assert_eq!((end.reason, bench.is_closing(a)), (reason, true));
        assert_eq!(bench.core.figures().sessions - bench.core.clients.len(), 0);
    }
    let mut bench = Bench::new();
    let link = bench.open(false);
    bench.give(link, Packet::Pingreq);
    assert!(bench.is_closing(link));
}

#[test]
fn the_receive_maximum_of_a_client_is_kept() {
    let mut bench = Bench::new();
    let a = bench.client("a");
    let properties = Properties { receive_maximum: Some(2), maximum_packet: Some(40), ..Properties::default() };
    let (b, _) = bench.connect_as(Connect { properties, ..hello("b") });
    bench.subscribe(b, "t", QOS1);
    for number in ["1", "2", "3"] {
        bench.publish(a, "t", number, QOS1, 1);
    }
    let got = bench.messages(b);
    assert_eq!(got.len(), 2);
    bench.ack(b, AckKind::Puback, got[0].id);
    assert_eq!(bench.payloads(b), ["3"]);
    bench.read(a);
    bench.publish(a, "t", "a payload that is longer than forty bytes", QOS1, 1);
    assert_eq!(bench.acks(a), [(AckKind::Puback, 1, Reason::QUOTA_EXCEEDED)]);
    assert_eq!(bench.core.figures().dropped_too_large, 1);
}

#[test]
fn what_waits_for_a_client_is_bounded() {
    let mut options = options();
    (options.max_queued, options.outbox) = (2, 100);
    let mut bench = Bench::with(&options);
    let a = bench.client("a");
    let (b, _) = bench.connect_as(staying("b", 100));
    bench.subscribe(b, "t", QOS1);
    bench.read(b);
    (0..100).for_each(|_| bench.publish(a, "t", "0", QOS0, 0));
    let got = bench.messages(b).len();
    assert!(got < 100 && bench.core.figures().dropped_slow == 100 - got as u64, "{got}");
    bench.lose(b);
    for (id, reason) in [(1, Reason::SUCCESS), (2, Reason::SUCCESS), (3, Reason::QUOTA_EXCEEDED)] {
        bench.publish(a, "t", "1", QOS1, id);
        assert_eq!(bench.acks(a), [(AckKind::Puback, id, reason)]);
    }
    assert_eq!(bench.core.figures().dropped_queue_full, 1);
}

#[test]
fn time_passes_for_what_waits() {
    let mut bench = Bench::new();
    let relay = bench.local("relay");
    let (b, _) = bench.connect_as(staying("b", 100));
    bench.subscribe(b, "t", QOS1);
    bench.lose(b);
    for (id, expiry) in [(1, 5), (2, 50)] {
        let mut publish = message("t", "1", QOS1, id);
        publish.properties.expiry = Some(expiry);
        bench.give(relay, Packet::Publish(publish));
    }
    bench.pass(10);
    let (b, _) = bench.connect_as(staying("b", 100));
    assert_eq!(bench.acks(relay), [(AckKind::Puback, 1, Reason::NO_MATCHING_SUBSCRIBERS)]);
    let _ = b;
    assert_eq!(bench.core.figures().dropped_expired, 1);
}

#[test]
fn publishers_wait_for_a_local_client_and_lose_nothing() {
    let mut options = options();
    (options.high_watermark, options.outbox, options.max_queued) = (10_000, 100, 10);
    let mut bench = Bench::with(&options);
    let (relay, a, b, other) = (bench.local("relay"), bench.client("a"), bench.client("b"), bench.client("other"));
    bench.subscribe(relay, "t", QOS1);
    let mut sent = 0;
    while bench.gate(a) == Gate::Open {
        bench.publish(a, "t", "0123456789", QOS0, 0);
        sent += 1;
    }
    assert_eq!(bench.gate(a), Gate::Shut);
    assert_eq!((bench.gate(b), bench.gate(relay), bench.gate(other)), (Gate::Open, Gate::Open, Gate::Open));
    // What had been read already is taken in as well.
    bench.publish(a, "t", "last", QOS0, 0);
    assert_eq!(bench.messages(relay).len(), sent + 1);
    assert_eq!(bench.gate(a), Gate::Open);
    // A client that owes acknowledgements to the local one is read a little.
    bench.subscribe(b, "b", QOS1);
    bench.read(b);
    bench.publish(relay, "b", "1", QOS1, 1);
    while bench.gate(b) == Gate::Open {
        bench.publish(b, "t", "0123456789", QOS0, 0);
    }
    assert_eq!(bench.gate(b), Gate::Trickle);
    bench.ack(b, AckKind::Puback, 1);
    assert_eq!(bench.gate(b), Gate::Shut);
    bench.lose(relay);
    assert_eq!((bench.gate(b), bench.core.figures().dropped_slow), (Gate::Open, 0));
}

#[test]
fn farewell() {
    let mut bench = Bench::new();
    let (a, relay) = (bench.client("a"), bench.local("relay"));
    let (b, _) = bench.connect_as(old("b", true));
    bench.core.shut_down(bench.now);
    for link in [a, relay, b] {
        assert!(bench.is_closing(link));
    }
    let packets = bench.read(a);
    let [Packet::Disconnect(end)] = &packets[..] else { panic!("{packets:?}") };
    assert_eq!(end.reason, Reason::SERVER_SHUTTING_DOWN);
    assert_eq!(bench.read(b), []);
}

#[test]
fn publishers_do_not_wait_for_what_was_lost_with_a_connection() {
    let mut options = options();
    options.high_watermark = 1_000;
    let mut bench = Bench::with(&options);
    let relay = bench.open(true);
    bench.give(relay, Packet::Connect(Box::new(staying("relay", 100))));
    bench.connack(relay);
    let a = bench.client("a");
    bench.subscribe(relay, "t", QOS1);
    while bench.gate(a) == Gate::Open {
        bench.publish(a, "t", "0123456789", QOS0, 0);
    }
    bench.lose(relay);
    assert_eq!(bench.gate(a), Gate::Open);
    // What is kept for it is waited for, even while it is away: until it is back, or its session ends.
    let mut id = 0;
    while bench.gate(a) == Gate::Open {
        id += 1;
        bench.publish(a, "t", "0123456789", QOS1, id);
    }
    bench.pass(99);
    assert_eq!((bench.gate(a), bench.acks(a)), (Gate::Shut, vec![]));
    bench.pass(1);
    assert_eq!((bench.gate(a), bench.acks(a).len()), (Gate::Open, usize::from(id)));
}

#[test]
fn what_is_read_only_for_its_acknowledgements_has_an_end() {
    let mut options = options();
    options.high_watermark = 1_000;
    let mut bench = Bench::with(&options);
    let (relay, a) = (bench.local("relay"), bench.client("a"));
    let (b, _) = bench.connect_as(old("b", true));
    bench.subscribe(relay, "t", QOS1);
    for link in [a, b] {
        bench.subscribe(link, "work", QOS1);
        bench.read(link);
    }
    bench.publish(relay, "work", "1", QOS1, 1);
    for _ in 0..1_000 {
        bench.publish(a, "t", "0123456789", QOS0, 0);
    }
    assert_eq!(bench.gate(a), Gate::Trickle);
    let dropped = bench.core.figures().dropped_slow;
    assert!(dropped > 0);
    // QoS 1 is not dropped; version 3.1.1, which knows no maximum, has one all the same.
    for id in 1..=16_384 {
        bench.publish(b, "t", "", QOS1, id);
    }
    assert_eq!((bench.gate(b), bench.is_closing(b)), (Gate::Trickle, false));
    bench.publish(b, "t", "", QOS1, 16_385);
    assert!(bench.is_closing(b));
    let figures = bench.core.figures();
    assert_eq!((figures.dropped_slow, figures.dropped_queue_full), (dropped, 0));
    // The acknowledgement, when it comes.
    bench.ack(a, AckKind::Puback, 1);
    assert_eq!(bench.gate(a), Gate::Shut);
}
