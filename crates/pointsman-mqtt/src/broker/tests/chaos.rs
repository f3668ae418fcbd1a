//! Clients that do anything in any order; what has been promised holds, and nothing is left behind.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const CLIENTS: usize = 4;
const FILTERS: [&str; 5] = ["a", "+", "#", "$share/g/a", "$share/g/#"];

#[derive(Debug, Clone)]
enum Step {
    Connect { clean: bool, stays: bool },
    Subscribe(usize, Qos),
    Unsubscribe(usize),
    Publish { topic: &'static str, qos: Qos, expiry: Option<u32> },
    Acknowledge { all: bool, refuse: bool },
    Lose,
    Leave,
    Pass(u64),
}

fn step() -> impl Strategy<Value = (usize, Step)> {
    let qos = prop_oneof![Just(QOS1), Just(QOS2)];
    let filter = 0..FILTERS.len();
    let step = prop_oneof![
        3 => any::<(bool, bool)>().prop_map(|(clean, stays)| Step::Connect { clean, stays }),
        4 => (filter.clone(), qos.clone()).prop_map(|(filter, qos)| Step::Subscribe(filter, qos)),
        1 => filter.prop_map(Step::Unsubscribe),
        8 => (prop_oneof![Just("a"), Just("b")], qos, proptest::option::of(0..5_u32))
            .prop_map(|(topic, qos, expiry)| Step::Publish { topic, qos, expiry }),
        8 => (any::<bool>(), prop::bool::weighted(0.1)).prop_map(|(all, refuse)| Step::Acknowledge { all, refuse }),
        1 => Just(Step::Lose),
        1 => Just(Step::Leave),
        1 => (0..4_u64).prop_map(Step::Pass),
    ];
    (0..CLIENTS, step)
}

/// A client that keeps to the protocol. 0 and 1 are local; 3 speaks version 3.1.1.
#[derive(Default)]
struct Player {
    link: Option<Link>,
    /// What it has published and what is not acknowledged, by packet identifier.
    sent: BTreeMap<u16, Publish>,
    /// Of QoS 2, acknowledged but not through.
    released: BTreeSet<u16>,
    next: u16,
    /// What it has read and not acknowledged.
    held: Vec<Held>,
}

struct Held {
    id: u16,
    qos: Qos,
    number: u64,
    /// Whether it came to a local client when it was published: its publisher waits for that. What comes later, because the
    /// session of somebody else in the group has ended, was that one's, and the publisher may know that it has arrived.
    awaited: bool,
}

struct Game {
    bench: Bench,
    players: [Player; CLIENTS],
    count: u64,
    /// The message that is being published.
    fresh: Option<u64>,
    /// What came to local clients by groups when it was published: number of the message, identifier of the subscription.
    shared: BTreeSet<(u64, u32)>,
    /// Messages that some client has acknowledged.
    taken: BTreeSet<u64>,
    refused: BTreeSet<u64>,
}

fn number(publish: &Publish) -> u64 {
    std::str::from_utf8(&publish.payload).unwrap().parse().unwrap()
}

impl Game {
    fn new() -> Self {
        let (bench, players) = (Bench::new(), Default::default());
        let (taken, refused) = (BTreeSet::new(), BTreeSet::new());
        Self { bench, players, count: 0, fresh: None, shared: BTreeSet::new(), taken, refused }
    }

    fn play(&mut self, who: usize, step: &Step) {
        let link = self.players[who].link;
        match (step, link) {
            (Step::Connect { clean, stays }, _) => self.connect(who, *clean, *stays),
            (Step::Pass(seconds), _) => self.bench.pass(*seconds),
            (_, None) => {}
            (Step::Subscribe(filter, qos), Some(link)) => {
                let filters = vec![(FILTERS[*filter].into(), Subscription::up_to(*qos))];
                let subscription_id = (who != 3).then(|| 1 + u32::try_from(*filter).unwrap());
                let properties = Properties { subscription_id, ..Properties::default() };
                let subscribe = Subscribe { id: 60_000, filters, properties };
                self.bench.give(link, Packet::Subscribe(Box::new(subscribe)));
            }
            (Step::Unsubscribe(filter), Some(link)) => {
                let filters = vec![FILTERS[*filter].into()];
                let unsubscribe = Unsubscribe { id: 60_000, filters, ..Unsubscribe::default() };
                self.bench.give(link, Packet::Unsubscribe(Box::new(unsubscribe)));
            }
            (Step::Publish { topic, qos, expiry }, Some(link)) => {
                self.count += 1;
                self.fresh = Some(self.count);
                let player = &mut self.players[who];
                player.next += 1;
                let payload = self.count.to_string().into();
                let mut publish = Publish { payload, ..message(topic, "", *qos, player.next) };
                if who != 3 {
                    publish.properties.expiry = *expiry;
                }
                player.sent.insert(player.next, publish.clone());
                self.bench.give(link, Packet::Publish(publish));
            }
            (Step::Acknowledge { all, refuse }, Some(link)) => self.acknowledge(who, link, *all, *refuse),
            (Step::Lose, Some(link)) => self.lose(who, link),
            (Step::Leave, Some(link)) => {
                self.bench.give(link, Packet::Disconnect(Box::default()));
                self.lose(who, link);
            }
        }
        self.listen();
        self.fresh = None;
    }

    fn connect(&mut self, who: usize, clean: bool, stays: bool) {
        let before = self.players[who].link;
        let id = ["l0", "l1", "v5", "v4"][who];
        let version = if who == 3 { Version::V311 } else { Version::V5 };
        let connect = Connect { version, clean_start: clean, ..staying(id, if stays { 3 } else { 0 }) };
        let link = self.bench.open(who < 2);
        self.bench.give(link, Packet::Connect(Box::new(connect)));
        // Those who are waiting may be told something by what has just ended.
        if let Some(before) = before {
            self.hear(who, before);
            self.bench.lose(before);
        }
        let player = &mut self.players[who];
        (player.link, player.held) = (Some(link), Vec::new());
        let packets = self.bench.read(link);
        let Some((Packet::Connack(connack), rest)) = packets.split_first() else { panic!("{packets:?}") };
        assert_eq!(connack.reason, Reason::SUCCESS);
        let player = &mut self.players[who];
        if connack.session_present {
            let sent: Vec<_> = player.sent.values().cloned().collect();
            let released: Vec<_> = player.released.iter().copied().collect();
            rest.iter().for_each(|packet| self.take(who, link, packet.clone()));
            released.into_iter().for_each(|id| self.bench.ack(link, AckKind::Pubrel, id));
            for publish in sent {
                self.bench.give(link, Packet::Publish(Publish { dup: true, ..publish }));
            }
        } else {
            player.sent.clear();
            player.released.clear();
            rest.iter().for_each(|packet| self.take(who, link, packet.clone()));
        }
    }

    fn acknowledge(&mut self, who: usize, link: Link, all: bool, refuse: bool) {
        let held = &mut self.players[who].held;
        let count = if all { held.len() } else { held.len().min(1) };
        for Held { id, qos, number, .. } in held.drain(..count).collect::<Vec<_>>() {
            let kind = if qos == QOS1 { AckKind::Puback } else { AckKind::Pubrec };
            // Version 3.1.1 cannot refuse.
            if refuse && who != 3 {
                self.refused.insert(number);
                self.bench.refuse(link, kind, id, Reason::QUOTA_EXCEEDED);
            } else {
                self.taken.insert(number);
                self.bench.ack(link, kind, id);
            }
        }
    }

    fn lose(&mut self, who: usize, link: Link) {
        self.hear(who, link);
        self.bench.lose(link);
        (self.players[who].link, self.players[who].held) = (None, Vec::new());
    }

    /// Everybody reads what there is; the local ones first, since what they have must not be acknowledged by others.
    fn listen(&mut self) {
        for who in 0..CLIENTS {
            let Some(link) = self.players[who].link else { continue };
            self.hear(who, link);
            if self.bench.is_closing(link) {
                self.lose(who, link);
            }
        }
    }

    fn hear(&mut self, who: usize, link: Link) {
        for packet in self.bench.read(link) {
            self.take(who, link, packet);
        }
    }

    fn take(&mut self, who: usize, link: Link, packet: Packet) {
        match packet {
            Packet::Publish(publish) => {
                assert!(publish.qos > QOS0);
                let (id, number) = (publish.id, number(&publish));
                // It is not sent twice on one connection.
                assert!(self.players[who].held.iter().all(|held| held.id != id));
                let awaited = who < 2 && self.is_awaited(number, &publish.properties.subscription_ids);
                self.players[who].held.push(Held { id, qos: publish.qos, number, awaited });
            }
            Packet::Ack(ack) => self.acknowledged(who, link, &ack),
            Packet::Disconnect(end) => {
                assert!(end.reason == Reason::SESSION_TAKEN_OVER, "{end:?}");
            }
            Packet::Suback(_) | Packet::Unsuback(_) => {}
            other => panic!("{other:?}"),
        }
    }

    fn is_awaited(&mut self, number: u64, subscriptions: &[u32]) -> bool {
        let group = subscriptions.iter().find(|&&id| FILTERS[id as usize - 1].starts_with("$share/"));
        let Some(&group) = group else { return true };
        if self.fresh == Some(number) {
            self.shared.insert((number, group));
        }
        self.shared.contains(&(number, group))
    }

    fn acknowledged(&mut self, who: usize, link: Link, ack: &Ack) {
        match ack.kind {
            AckKind::Puback | AckKind::Pubrec => {
                let Some(publish) = self.players[who].sent.remove(&ack.id) else { return };
                let number = number(&publish);
                if ack.reason == Reason::SUCCESS && who < 2 {
                    assert!(
                        self.taken.contains(&number),
                        "message {number} of a local client is acknowledged by nobody"
                    );
                }
                if !ack.reason.is_error() && who >= 2 {
                    let mut held = self.players[..2].iter().flat_map(|local| &local.held);
                    let waits = held.any(|held| held.awaited && held.number == number);
                    assert!(!waits, "a local client has not acknowledged message {number}");
                }
                if ack.kind == AckKind::Pubrec && !ack.reason.is_error() {
                    self.players[who].released.insert(ack.id);
                    self.bench.ack(link, AckKind::Pubrel, ack.id);
                }
            }
            AckKind::Pubrel => self.bench.ack(link, AckKind::Pubcomp, ack.id),
            AckKind::Pubcomp => {
                self.players[who].released.remove(&ack.id);
            }
        }
    }

    fn finish(mut self) {
        for who in 0..CLIENTS {
            if let Some(link) = self.players[who].link {
                self.lose(who, link);
            }
        }
        self.bench.pass(10_000);
        let core = &mut self.bench.core;
        let left = (core.clients.len(), core.connections.len(), core.duties.len(), core.by_id.len());
        assert_eq!(left, (0, 0, 0, 0), "clients, connections, duties, ids");
        assert_eq!((core.timers.next(), core.figures().subscriptions), (None, 0));
        assert!(core.tree.is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens(steps in vec(step(), 0..60)) {
        let mut game = Game::new();
        for (who, step) in &steps {
            game.play(*who, step);
        }
        game.finish();
    }
}
