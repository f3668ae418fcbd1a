//! Which subscriber gets what.

use super::*;

#[test]
fn a_client_gets_one_copy_for_all_its_subscriptions() {
    let mut bench = Bench::new();
    let (a, b) = (bench.client("a"), bench.client("b"));
    bench.subscribe_with(b, "x/#", Subscription::up_to(QOS0), Some(1));
    bench.subscribe_with(b, "x/+", Subscription::up_to(QOS2), Some(2));
    bench.subscribe_with(b, "x/y", Subscription::up_to(QOS1), None);
    bench.publish(a, "x/y", "1", QOS2, 1);
    let got = bench.messages(b);
    assert_eq!((got.len(), got[0].qos), (1, QOS2));
    let mut ids = got[0].properties.subscription_ids.clone();
    ids.sort_unstable();
    assert_eq!(ids, [1, 2]);
}

#[test]
fn the_quality_is_the_lower_of_both() {
    let mut bench = Bench::new();
    let a = bench.client("a");
    for (granted, id) in [(QOS0, "q0"), (QOS1, "q1"), (QOS2, "q2")] {
        let b = bench.client(id);
        bench.subscribe(b, "t", granted);
        for published in [QOS0, QOS1, QOS2] {
            bench.publish(a, "t", "x", published, if published == QOS0 { 0 } else { 9 });
            bench.ack(a, AckKind::Pubrel, 9);
            assert_eq!(bench.messages(b)[0].qos, granted.min(published));
        }
    }
}

#[test]
fn no_local_and_retain_as_published() {
    let mut bench = Bench::new();
    let (a, b) = (bench.client("a"), bench.client("b"));
    bench.subscribe_with(a, "t", Subscription { no_local: true, ..Subscription::up_to(QOS0) }, None);
    bench.subscribe_with(b, "t", Subscription { retain_as_published: true, ..Subscription::up_to(QOS0) }, None);
    bench.give(a, Packet::Publish(Publish { retain: true, ..message("t", "1", QOS0, 0) }));
    bench.publish(b, "t", "2", QOS0, 0);
    let to_a: Vec<_> = bench.messages(a).into_iter().map(|m| (m.payload, m.retain)).collect();
    let to_b: Vec<_> = bench.messages(b).into_iter().map(|m| (m.payload, m.retain)).collect();
    assert_eq!(to_a, [("2".into(), false)]);
    assert_eq!(to_b, [("1".into(), true), ("2".into(), false)]);
}

#[test]
fn retained_messages_are_replaced_deleted_and_sent_as_wanted() {
    let mut bench = Bench::new();
    let (a, b) = (bench.client("a"), bench.client("b"));
    let keep = |payload| Packet::Publish(Publish { retain: true, ..message("t/x", payload, QOS1, 1) });
    bench.give(a, keep("1"));
    bench.give(a, keep("2"));
    bench.subscribe_with(b, "t/#", Subscription::up_to(QOS1), Some(3));
    let got = bench.messages(b);
    assert_eq!((got.len(), &got[0].payload[..], got[0].retain, got[0].qos), (1, &b"2"[..], true, QOS1));
    assert_eq!(got[0].properties.subscription_ids, [3]);
    let handling = |retain_handling| Subscription { retain_handling, ..Subscription::up_to(QOS0) };
    for (filter, options, expected) in [
        ("t/#", handling(1), 0),
        ("t/#", handling(0), 1),
        ("t/+", handling(1), 1),
        ("t/x", handling(2), 0),
        ("$share/g/t/#", handling(0), 0),
        ("+/+", handling(0), 1),
    ] {
        bench.subscribe_with(b, filter, options, None);
        assert_eq!(bench.messages(b).len(), expected, "{filter} {options:?}");
    }
    bench.give(a, keep(""));
    bench.read(b);
    bench.subscribe_with(b, "t/#", handling(0), None);
    assert_eq!((bench.messages(b).len(), bench.core.figures().retained), (0, 0));
}

#[test]
fn retained_messages_grow_old_and_are_bounded() {
    let mut options = options();
    options.max_retained = 1;
    let mut bench = Bench::with(&options);
    let (a, b) = (bench.client("a"), bench.client("b"));
    let mut keep = Publish { retain: true, ..message("t", "1", QOS0, 0) };
    keep.properties.expiry = Some(10);
    bench.give(a, Packet::Publish(keep.clone()));
    bench.give(a, Packet::Publish(Publish { retain: true, ..message("u", "1", QOS1, 1) }));
    assert_eq!(bench.acks(a), [(AckKind::Puback, 1, Reason::QUOTA_EXCEEDED)]);
    bench.pass(4);
    bench.subscribe(b, "#", QOS0);
    assert_eq!(bench.messages(b)[0].properties.expiry, Some(6));
    bench.pass(6);
    bench.subscribe(b, "#", QOS0);
    assert_eq!(bench.messages(b), []);
    // What has expired makes room.
    bench.give(a, Packet::Publish(Publish { retain: true, ..message("u", "1", QOS1, 1) }));
    assert_eq!(bench.core.figures().retained, 1);
}

#[test]
fn topics_of_the_broker_itself_are_for_those_who_name_them() {
    let mut bench = Bench::new();
    let (a, b) = (bench.client("a"), bench.client("b"));
    bench.subscribe(b, "#", QOS0);
    bench.subscribe(b, "+/x", QOS0);
    bench.publish(a, "$mine/x", "1", QOS1, 1);
    assert_eq!(bench.acks(a), [(AckKind::Puback, 1, Reason::NO_MATCHING_SUBSCRIBERS)]);
    bench.subscribe(b, "$mine/#", QOS0);
    bench.publish(a, "$mine/x", "2", QOS0, 0);
    assert_eq!(bench.payloads(b), ["2"]);
}

#[test]
fn an_unsubscribed_client_gets_nothing_more() {
    let mut bench = Bench::new();
    let (a, b) = (bench.client("a"), bench.client("b"));
    bench.subscribe(b, "t", QOS0);
    bench.subscribe(b, "$share/g/t", QOS0);
    let filters = vec!["t".into(), "$share/g/t".into(), "u".into()];
    bench.give(b, Packet::Unsubscribe(Box::new(Unsubscribe { id: 4, filters, ..Unsubscribe::default() })));
    let packets = bench.read(b);
    let [Packet::Unsuback(unsuback)] = &packets[..] else { panic!("{packets:?}") };
    assert_eq!(unsuback.reasons, [Reason::SUCCESS, Reason::SUCCESS, Reason::NO_SUBSCRIPTION_EXISTED]);
    bench.publish(a, "t", "1", QOS0, 0);
    assert_eq!(bench.messages(b), []);
    assert_eq!(bench.core.figures().subscriptions, 0);
}

#[test]
fn filters_are_checked_and_counted() {
    let mut options = options();
    options.max_subscriptions = 1;
    let mut bench = Bench::with(&options);
    let b = bench.client("b");
    let up_to = Subscription::up_to(QOS1);
    assert_eq!(bench.subscribe_with(b, "a/#/b", up_to, None), Reason::TOPIC_FILTER_INVALID);
    assert_eq!(bench.subscribe_with(b, "$share/g", up_to, None), Reason::TOPIC_FILTER_INVALID);
    let deep: &'static str = "x/".repeat(300).leak();
    assert_eq!(bench.subscribe_with(b, deep, up_to, None), Reason::TOPIC_FILTER_INVALID);
    assert_eq!(bench.subscribe_with(b, "a", up_to, None), Reason::GRANTED_QOS_1);
    assert_eq!(bench.subscribe_with(b, "a", up_to, None), Reason::GRANTED_QOS_1);
    assert_eq!(bench.subscribe_with(b, "b", up_to, None), Reason::QUOTA_EXCEEDED);
}

#[test]
fn a_group_shares_in_turn_and_those_who_are_there_come_first() {
    let mut bench = Bench::new();
    let a = bench.client("a");
    let (away, _) = bench.connect_as(staying("away", 100));
    let members = [bench.client("m0"), bench.client("m1"), away];
    for member in members {
        bench.subscribe(member, "$share/g/t", QOS1);
    }
    for number in ["0", "1", "2", "3", "4", "5"] {
        bench.publish(a, "t", number, QOS1, 1);
    }
    // Whose turn is first is not said.
    let mut got: Vec<_> = members.iter().map(|&member| bench.payloads(member)).collect();
    got.sort();
    assert_eq!(got, [["0", "3"], ["1", "4"], ["2", "5"]]);
    bench.lose(away);
    for number in ["6", "7"] {
        bench.publish(a, "t", number, QOS1, 1);
    }
    let mut got = [bench.payloads(members[0]), bench.payloads(members[1])];
    got.sort();
    assert_eq!(got, [["6"], ["7"]]);
}

#[test]
fn what_a_member_leaves_behind_goes_to_another() {
    let mut bench = Bench::new();
    let (relay, x, y) = (bench.local("relay"), bench.client("x"), bench.client("y"));
    bench.subscribe(x, "$share/g/t", QOS2);
    bench.publish(relay, "t", "1", QOS1, 1);
    bench.publish(relay, "t", "2", QOS2, 2);
    bench.subscribe(y, "$share/g/t", QOS2);
    assert_eq!(bench.payloads(x), ["1", "2"]);
    bench.lose(x);
    // Of QoS 2 it is not known whether it has arrived.
    assert_eq!(bench.acks(relay), [(AckKind::Pubrec, 2, Reason::NO_MATCHING_SUBSCRIBERS)]);
    let got = bench.messages(y);
    assert_eq!((got.len(), &got[0].payload[..]), (1, &b"1"[..]));
    bench.ack(y, AckKind::Puback, got[0].id);
    assert_eq!(bench.acks(relay), [(AckKind::Puback, 1, Reason::SUCCESS)]);
}

#[test]
fn a_will_is_for_those_who_vanish() {
    let mut bench = Bench::new();
    let b = bench.client("b");
    bench.subscribe(b, "will", QOS1);
    let will = |delay| Will { topic: "will".into(), payload: "gone".into(), qos: QOS1, delay, ..Will::default() };
    let with_will = |delay, expiry| Connect { will: Some(will(delay)), ..staying("a", expiry) };

    let (a, _) = bench.connect_as(with_will(0, 0));
    bench.lose(a);
    assert_eq!(bench.payloads(b), ["gone"]);

    let (a, _) = bench.connect_as(with_will(0, 0));
    bench.give(a, Packet::Disconnect(Box::default()));
    bench.lose(a);
    assert_eq!(bench.messages(b), []);

    let (a, _) = bench.connect_as(with_will(0, 0));
    let reason = Reason::DISCONNECT_WITH_WILL;
    bench.give(a, Packet::Disconnect(Box::new(Disconnect { reason, ..Disconnect::default() })));
    assert_eq!(bench.payloads(b), ["gone"]);

    // Delayed; back in time; then not in time.
    let (a, _) = bench.connect_as(with_will(10, 100));
    bench.lose(a);
    bench.pass(9);
    let (a, connack) = bench.connect_as(with_will(10, 100));
    bench.pass(100);
    assert_eq!((connack.session_present, bench.messages(b)), (true, vec![]));
    bench.lose(a);
    bench.pass(10);
    assert_eq!(bench.payloads(b), ["gone"]);

    // The session ends before the delay does.
    let (a, _) = bench.connect_as(with_will(1000, 50));
    bench.lose(a);
    bench.pass(49);
    assert_eq!(bench.messages(b), []);
    bench.pass(1);
    assert_eq!(bench.payloads(b), ["gone"]);

    // A clean start ends the session.
    let (a, _) = bench.connect_as(with_will(1000, 50));
    bench.lose(a);
    bench.connect_as(hello("a"));
    assert_eq!(bench.payloads(b), ["gone"]);
}

/// Nothing comes into the broker by a will that would not come in by a message.
#[test]
fn a_will_is_checked_like_a_message() {
    let mut options = options();
    options.max_retained = 1;
    let mut bench = Bench::with(&options);
    let with = |id, will| Connect { will: Some(will), ..hello(id) };
    let mut bad = Will { topic: "t".into(), ..Will::default() };
    bad.properties.response_topic = Some("no/#".into());
    let (link, connack) = bench.connect_as(with("a", bad));
    assert_eq!((connack.reason, bench.is_closing(link)), (Reason::TOPIC_NAME_INVALID, true));
    let watcher = bench.client("watcher");
    bench.subscribe(watcher, "#", QOS0);
    for id in ["a", "b"] {
        let will = Will { topic: id.into(), payload: id.into(), retain: true, ..Will::default() };
        let (link, connack) = bench.connect_as(with(id, will));
        assert_eq!(connack.reason, Reason::SUCCESS);
        bench.lose(link);
    }
    assert_eq!(bench.payloads(watcher), ["a", "b"]);
    let figures = bench.core.figures();
    assert_eq!((figures.retained, figures.dropped_retained), (1, 1));
    let late = bench.client("late");
    bench.subscribe(late, "#", QOS0);
    assert_eq!(bench.payloads(late), ["a"]);
}

/// As deep as filters may be, with a wildcard at each level, and a topic that is deeper still.
#[test]
fn a_filter_may_have_two_hundred_levels() {
    let mut bench = Bench::new();
    let (from, to) = (bench.client("from"), bench.client("to"));
    let deep: &'static str = format!("{}#", "+/".repeat(200)).leak();
    assert_eq!(bench.subscribe_with(to, deep, Subscription::up_to(QOS0), None), Reason::SUCCESS);
    bench.publish(from, "x/".repeat(300).leak(), "1", QOS0, 0);
    bench.publish(from, "x/".repeat(30_000).leak(), "2", QOS0, 0);
    bench.publish(from, "x/".repeat(198).leak(), "3", QOS0, 0);
    assert_eq!(bench.payloads(to), ["1", "2"]);
}

#[test]
fn a_client_may_name_topics_by_aliases() {
    let mut bench = Bench::new();
    let (from, to) = (bench.client("from"), bench.client("to"));
    bench.subscribe(to, "#", QOS1);
    let send = |bench: &mut Bench, link, topic: &'static str, alias, qos, id| {
        let mut publish = message(topic, "x", qos, id);
        publish.properties.topic_alias = Some(alias);
        bench.give(link, Packet::Publish(publish));
    };
    send(&mut bench, from, "a/b", 32, QOS0, 0);
    send(&mut bench, from, "", 32, QOS1, 1);
    send(&mut bench, from, "c", 32, QOS0, 0);
    send(&mut bench, from, "", 32, QOS0, 0);
    // Another connection's are its own.
    send(&mut bench, to, "d", 1, QOS0, 0);
    let got = bench.messages(to);
    assert_eq!(got.iter().map(|publish| &*publish.topic).collect::<Vec<_>>(), ["a/b", "a/b", "c", "c", "d"]);
    assert!(got.iter().all(|publish| publish.properties.topic_alias.is_none()));
    for (topic, alias, reason) in [("", 1, Reason::PROTOCOL_ERROR), ("a", 33, Reason::TOPIC_ALIAS_INVALID)] {
        let link = bench.client("other");
        send(&mut bench, link, topic, alias, QOS0, 0);
        let Some(Packet::Disconnect(end)) = bench.read(link).pop() else { panic!("not disconnected") };
        assert_eq!(end.reason, reason);
    }
}
