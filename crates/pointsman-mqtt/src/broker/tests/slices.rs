//! How much is done before others have their turn: whatever a client asks for, it is bounded, and nothing is lost or overtaken by it.

use super::super::core::SLICE;
use super::*;

/// What one packet may take beyond a slice: it is not divided.
const PACKET: usize = 1_100;

impl Bench {
    /// Keeps so many messages, `T/x` with the payload `T`, for each `T` from 0.
    fn keep(&mut self, count: usize) {
        let from = self.client("keeper");
        for number in 0..count {
            let topic = format!("{number:05}/x").into();
            let payload = number.to_string().into();
            let publish = Publish { topic, payload, retain: true, ..Publish::default() };
            self.give(from, Packet::Publish(publish));
        }
        self.lose(from);
    }

    /// Lets a connection's task do the next slice of what it has to; whether there was any.
    fn replay(&mut self, link: Link) -> bool {
        if !self.core.status(link).replays {
            return false;
        }
        self.core.spent = 0;
        self.core.replay_on(link, self.now);
        assert!(self.core.spent <= SLICE + PACKET, "{}", self.core.spent);
        true
    }

    /// Everything that is sent to a client which reads, and how many slices that took.
    fn all(&mut self, link: Link) -> (Vec<String>, usize) {
        let (mut payloads, mut slices) = (self.payloads(link), 0);
        while self.replay(link) {
            slices += 1;
            payloads.extend(self.payloads(link));
        }
        (payloads, slices)
    }

    fn subscribe_to(&mut self, link: Link, filters: Vec<(ByteString, Subscription)>) {
        self.give(link, Packet::Subscribe(Box::new(Subscribe { id: 1, filters, ..Subscribe::default() })));
        assert!(self.core.spent <= SLICE + PACKET, "{}", self.core.spent);
    }
}

fn numbers(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|number| number.to_string()).collect()
}

#[test]
fn a_subscription_to_many_retained_messages_is_served_in_slices() {
    let mut bench = Bench::new();
    bench.keep(10_000);
    let a = bench.client("a");
    bench.subscribe_to(a, vec![("#".into(), Subscription::up_to(QOS0))]);
    let (payloads, slices) = bench.all(a);
    assert_eq!(payloads, numbers(0..10_000));
    // Each is visited, and given out.
    assert!((20..=25).contains(&slices), "{slices}");
}

/// 48 KB that match nothing.
#[test]
fn one_subscribe_with_thousands_of_filters_is_served_in_slices() {
    let mut bench = Bench::new();
    bench.keep(10_000);
    let a = bench.client("a");
    bench.subscribe_to(a, vec![("+/zzz".into(), Subscription::up_to(QOS0)); 6_000]);
    // The same filter twice is the same subscription.
    let (payloads, slices) = bench.all(a);
    assert!(payloads.is_empty() && (10..=11).contains(&slices), "{slices}");
    let filters = (0..6_000).map(|number| (format!("+/{number}").into(), Subscription::up_to(QOS0)));
    bench.subscribe_to(a, filters.collect());
    let packets = bench.read(a);
    let [Packet::Suback(suback)] = &packets[..] else { panic!("{packets:?}") };
    let refused = suback.reasons.iter().filter(|reason| **reason == Reason::QUOTA_EXCEEDED);
    assert_eq!((suback.reasons.len(), refused.count()), (6_000, 5_001));
    for _ in 0..100 {
        assert!(bench.replay(a));
    }
    // It has enough of it.
    let filters = (0..6_000).map(|number| format!("+/{number}").into()).collect();
    bench.give(a, Packet::Unsubscribe(Box::new(Unsubscribe { id: 2, filters, ..Unsubscribe::default() })));
    assert!(bench.all(a).1 <= 1);
}

#[test]
fn new_messages_do_not_overtake_retained_ones() {
    let mut bench = Bench::new();
    bench.keep(5_000);
    let (from, a) = (bench.client("from"), bench.client("a"));
    bench.subscribe_to(a, vec![("#".into(), Subscription::up_to(QOS0)), ("+/x".into(), Subscription::up_to(QOS0))]);
    assert!(bench.replay(a));
    let retain = |topic: &'static str, payload: &'static str| {
        Packet::Publish(Publish { retain: true, ..message(topic, payload, QOS0, 0) })
    };
    // Behind: its retained message has been sent by the first filter, and has yet to be by the second.
    bench.publish(from, "00001/x", "new 1", QOS0, 0);
    // Ahead, twice; one that is replaced, one that is deleted, and one that is new.
    bench.publish(from, "04000/x", "new 4000", QOS0, 0);
    bench.publish(from, "04000/x", "newer 4000", QOS0, 0);
    bench.give(from, retain("04001/x", "new 4001"));
    bench.give(from, retain("04002/x", ""));
    bench.give(from, retain("05000/x", "new 5000"));
    let (payloads, _) = bench.all(a);
    let of = |text: &str| -> Vec<&str> {
        payloads.iter().map(String::as_str).filter(|payload| payload.ends_with(text)).collect()
    };
    assert_eq!(of(" 4000"), ["new 4000", "newer 4000"]);
    let places = ["4000", "new 4000", "newer 4000"].map(|text| payloads.iter().position(|payload| payload == text));
    assert!(places.is_sorted() && places[0].is_some(), "{places:?}");
    for (old, new) in [("1", "new 1"), ("4001", "new 4001"), ("4002", "")] {
        let place = |text: &str| payloads.iter().rposition(|payload| payload == text);
        assert!(place(old).is_some() && place(old) < place(new), "{old}");
    }
    assert_eq!(payloads.iter().filter(|payload| *payload == "new 5000").count(), 1);
    // What was brought forward came once for both filters.
    for (text, count) in [("0", 2), ("1", 2), ("4000", 1), ("4001", 1), ("4002", 1), ("4999", 2)] {
        assert_eq!(payloads.iter().filter(|payload| *payload == text).count(), count, "{text}");
    }
    assert_eq!(payloads.len(), 10_000 - 3 + 6);
}

/// And a session that is taken up again goes on where it was.
#[test]
fn retained_messages_wait_for_a_client_that_does_not_read() {
    let mut options = options();
    options.outbox = 16 << 10;
    let mut bench = Bench::with(&options);
    bench.keep(2_000);
    let (a, _) = bench.connect_as(staying("a", 100));
    bench.subscribe_to(a, vec![("#".into(), Subscription::up_to(QOS0))]);
    while bench.replay(a) {}
    let before = bench.payloads(a);
    assert!(before.len() < 1_000);
    // Nothing more was read: what it was sent is gone with the connection, and nothing else.
    bench.lose(a);
    let (a, connack) = bench.connect_as(staying("a", 100));
    assert!(connack.session_present);
    let (after, _) = bench.all(a);
    assert_eq!(after, numbers(before.len()..2_000));
    assert_eq!(bench.core.figures().dropped_slow, 0);
}

#[test]
fn many_messages_for_many_are_served_in_slices() {
    let mut bench = Bench::new();
    let from = bench.client("from");
    for number in 0..1_000 {
        let id = &*format!("to{number}").leak();
        let to = bench.client(id);
        bench.subscribe(to, "t", QOS0);
    }
    let mut packets: VecDeque<Packet> = (0..50).map(|_| Packet::Publish(message("t", "x", QOS0, 0))).collect();
    let mut slices = 0;
    while !packets.is_empty() {
        slices += 1;
        bench.core.receive(from, &mut packets, bench.now);
        assert!(bench.core.spent <= SLICE + PACKET, "{}", bench.core.spent);
    }
    assert_eq!((slices, bench.core.figures().messages_out), (50, 50_000));
}

#[test]
fn sessions_that_end_together_do_so_in_slices() {
    const MANY: usize = 1_000;
    let mut bench = Bench::new();
    let watcher = bench.client("watcher");
    bench.subscribe(watcher, "will", QOS0);
    for number in 0..MANY {
        let id = &*format!("a{number}").leak();
        let will = Will { topic: "will".into(), payload: "x".into(), delay: 100, ..Will::default() };
        let (a, _) = bench.connect_as(Connect { will: Some(will), ..staying(id, 50) });
        for group in 0..5 {
            bench.subscribe(a, format!("$share/{id}{group}/t").leak(), QOS1);
        }
        bench.lose(a);
    }
    bench.now += Duration::from_secs(50);
    let mut slices = 0;
    while bench.core.next_due(bench.now).is_some_and(|due| due <= bench.now) {
        slices += 1;
        bench.core.tick(bench.now);
        assert!(bench.core.spent <= SLICE + PACKET, "{}", bench.core.spent);
    }
    assert!((5..=10).contains(&slices), "{slices}");
    assert_eq!(bench.payloads(watcher).len(), MANY);
    assert_eq!((bench.core.figures().sessions, bench.core.figures().subscriptions), (1, 1));
}
