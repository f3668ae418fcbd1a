//! The one ordered choice, `docs/choosing.md`, as messages see it.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pointsman_core::{ObservedInstance, Status};
use pointsman_mqtt::relay::{Relay, Route, RouteRole};
use pointsman_testkit::choosing::{Asked, ChoosingTable, Known, WITHOUT_CHECKS, combinations};
use pointsman_testkit::{Mosquitto, Paho, PahoMessage};
use support::{Fleet, SOON, between, client, dead_letters, everyone, master, normal, property};

/// A route to the master, `^/master/`, one to the normal instances, `^/normal/`, and one that is sticky, `^/sticky/`.
fn routes() -> Vec<Route> {
    let mut routes = ["^/master/", "^/normal/", "^/sticky/"].map(|pattern| Route::new(pattern, "cfgs"));
    routes[0].role = RouteRole::Master;
    routes[2].sticky = true;
    routes.to_vec()
}

#[tokio::test]
async fn failures_of_the_master_count_whoever_asks_for_it() {
    let broker = Mosquitto::options().nodelay().start().await;
    let fleet = Fleet::new(&[("cfgs", &["svc-a"])]);
    fleet.join("cfgs", master("cfgs", "svc-m"));
    let relay = fleet.relay(between(&broker.url(), &broker.url(), routes())).await;
    let (service, sender, dead) =
        (everyone(&broker, &["svc-a"]).await, client(&broker).await, dead_letters(&broker).await);
    for _ in 0..5 {
        sender.publish(PahoMessage::new("/master/x", "")).await;
        assert_eq!(property(&dead.next_message(SOON).await, "pointsman-reason"), Some("no-subscriber"));
    }
    // It is ejected: a sender that would stay with it is served by another.
    service.subscribe("svc-m/#", 1).await;
    sender.publish(PahoMessage::new("/sticky/x/svc-m", "")).await;
    assert_eq!(service.next_message(SOON).await.topic, "svc-a/sticky/x");
    // Who wants the master has no other.
    sender.publish(PahoMessage::new("/master/x", "")).await;
    assert_eq!(service.next_message(SOON).await.topic, "svc-m/master/x");
    relay.close().await;
}

#[tokio::test]
async fn a_message_that_no_normal_instance_takes_goes_to_the_master() {
    let broker = Mosquitto::options().nodelay().start().await;
    let fleet = Fleet::new(&[("cfgs", &["svc-a", "svc-b"])]);
    fleet.join("cfgs", master("cfgs", "svc-m"));
    let relay = fleet.relay(between(&broker.url(), &broker.url(), routes())).await;
    let (service, sender) = (everyone(&broker, &["svc-m"]).await, client(&broker).await);
    sender.publish(PahoMessage::new("/normal/x", "")).await;
    assert_eq!(service.next_message(SOON).await.topic, "svc-m/normal/x");
    assert_eq!(support::figures(&relay).await.redispatched, 2);
    relay.close().await;
}

#[tokio::test]
async fn what_is_the_senders_fault_is_no_failure_of_the_instance() {
    let ingress = Mosquitto::options().nodelay().start().await;
    let egress = Mosquitto::options().nodelay().set("max_packet_size", "20000").start().await;
    let fleet = Fleet::new(&[("cfgs", &["svc-a", "svc-b"])]);
    let relay = fleet.relay(between(&ingress.url(), &egress.url(), routes())).await;
    let (service, sender) = (everyone(&egress, &["svc-a", "svc-b"]).await, client(&ingress).await);
    sender.subscribe("inbox", 1).await;
    for _ in 0..5 {
        let request = PahoMessage::new("/sticky/x/svc-a", "x".repeat(30_000)).response_topic("inbox");
        sender.publish(request).await;
        assert_eq!(property(&sender.next_message(SOON).await, "pointsman-reason"), Some("too-large"));
    }
    sender.publish(PahoMessage::new("/sticky/x/svc-a", "")).await;
    assert_eq!(service.next_message(SOON).await.topic, "svc-a/sticky/x", "it was not ejected");
    relay.close().await;
}

const CODES: [&str; 3] = ["svc-m", "svc-1", "svc-2"];

/// The clients of one broker.
struct Clients {
    service: Paho,
    sender: Paho,
    dead: Paho,
}

impl Clients {
    async fn connect(broker: &Mosquitto) -> Self {
        Self { service: everyone(broker, &CODES).await, sender: client(broker).await, dead: dead_letters(broker).await }
    }
}

/// The master and two normal instances, each as it is told.
struct World<'a> {
    fleet: Fleet,
    relay: Relay,
    clients: &'a Clients,
}

impl<'a> World<'a> {
    async fn new(broker: &Mosquitto, clients: &'a Clients, states: [Known; 3]) -> Self {
        let fleet = Fleet::new(&[("cfgs", &CODES)]);
        let mut settings = between(&broker.url(), &broker.url(), routes());
        settings.queue_timeout = Duration::ZERO;
        let relay = fleet.relay(settings).await;
        let world = Self { fleet, relay, clients };
        CODES.iter().for_each(|code| world.show(code, Known::Passing));
        let states = || CODES.into_iter().zip(states);
        for (code, _) in states().filter(|(_, is)| *is == Known::Ejected) {
            clients.service.unsubscribe(&format!("{code}/#")).await;
            for _ in 0..5 {
                clients.sender.publish(PahoMessage::new(&format!("/sticky/x/{code}"), "")).await;
                assert_ne!(clients.service.next_message(SOON).await.topic, format!("{code}/sticky/x"));
            }
            clients.service.subscribe(&format!("{code}/#"), 1).await;
        }
        for (code, _) in states().filter(|(_, is)| *is == Known::GuardedFailed) {
            // Alone, so that it is tried; those that have failed stay guarded.
            states().for_each(|(other, is)| {
                world.edit(other, |instance| {
                    instance.guarded_since = (is == Known::GuardedFailed).then_some(SystemTime::UNIX_EPOCH);
                    instance.status = if other == code { Status::Passing } else { Status::Drained };
                });
            });
            clients.service.unsubscribe(&format!("{code}/#")).await;
            clients.sender.publish(PahoMessage::new("/normal/x", "")).await;
            assert_eq!(property(&clients.dead.next_message(SOON).await, "pointsman-reason"), Some("no-subscriber"));
            clients.service.subscribe(&format!("{code}/#"), 1).await;
        }
        states().for_each(|(code, is)| world.show(code, is));
        world
    }

    /// Lets the registry show an instance so.
    fn show(&self, code: &str, is: Known) {
        match is {
            Known::Absent => self.fleet.leave("cfgs", code),
            _ => self.edit(code, |instance| match is {
                Known::Guarded | Known::GuardedFailed => instance.guarded_since = Some(SystemTime::UNIX_EPOCH),
                Known::Drained => instance.status = Status::Drained,
                Known::Weightless => instance.weight = 0,
                _ => {}
            }),
        }
    }

    fn edit(&self, code: &str, edit: impl FnOnce(&mut ObservedInstance)) {
        let mut instance = if code == CODES[0] { master("cfgs", code) } else { normal("cfgs", code) };
        edit(&mut instance);
        self.fleet.join("cfgs", instance);
    }

    /// To whom messages of a route go.
    async fn goes(&self, topic: &str, expected: &BTreeSet<&str>) -> BTreeSet<String> {
        let mut seen = BTreeSet::new();
        for _ in 0..4 {
            self.clients.sender.publish(PahoMessage::new(topic, "")).await;
            if expected.is_empty() {
                let letter = self.clients.dead.next_message(SOON).await;
                assert_eq!(property(&letter, "pointsman-reason"), Some("no-instance"), "{topic}");
            } else {
                let message = self.clients.service.next_message(SOON).await;
                seen.insert(message.topic.split('/').next().unwrap().to_owned());
            }
        }
        seen
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_combination_is_decided_by_the_table() {
    const LANES: usize = 6;
    let table = Arc::new(ChoosingTable::read());
    // Of two normal instances no more than one may be ejected.
    let mut all = combinations(&WITHOUT_CHECKS, &WITHOUT_CHECKS);
    all.retain(|[_, a, b]| (*a, *b) != (Known::Ejected, Known::Ejected));
    let mut lanes = tokio::task::JoinSet::new();
    for lane in all.chunks(all.len().div_ceil(LANES)) {
        let (lane, table) = (lane.to_vec(), table.clone());
        lanes.spawn(async move {
            let broker = Mosquitto::options().nodelay().start().await;
            let clients = Clients::connect(&broker).await;
            for states in lane {
                let world = World::new(&broker, &clients, states).await;
                let of_states: Vec<_> = CODES.into_iter().zip(states).collect();
                for (asked, topic) in [(Asked::Normal, "/normal/x"), (Asked::Master, "/master/x")] {
                    let (expected, _) = table.expected(asked, &of_states);
                    let seen = world.goes(topic, &expected).await;
                    assert_eq!(seen, expected.into_iter().map(str::to_owned).collect(), "{topic} of {states:?}");
                }
                world.relay.close().await;
            }
        });
    }
    while let Some(lane) = lanes.join_next().await {
        lane.unwrap();
    }
}

/// Whatever goes, one that stays gets the messages.
struct Ten {
    broker: Mosquitto,
    fleet: Fleet,
    relay: Relay,
    service: Paho,
    sender: Paho,
}

const TEN: [&str; 10] = ["i-0", "i-1", "i-2", "i-3", "i-4", "i-5", "i-6", "i-7", "i-8", "i-9"];

impl Ten {
    /// The first is master.
    async fn new() -> Self {
        let broker = Mosquitto::options().nodelay().start().await;
        let fleet = Fleet::new(&[("cfgs", &TEN)]);
        fleet.join("cfgs", master("cfgs", TEN[0]));
        let relay = fleet.relay(between(&broker.url(), &broker.url(), routes())).await;
        let (service, sender) = (everyone(&broker, &TEN).await, client(&broker).await);
        Self { broker, fleet, relay, service, sender }
    }

    /// Publishes messages while `change` happens, and asserts that all arrive; at which codes.
    async fn publish_while(&self, change: impl Future<Output = ()>) -> BTreeSet<String> {
        let messages = support::numbered("/normal/x", 0..500, 1);
        tokio::join!(support::publish_all(&self.sender, messages), change);
        let (mut seen, mut at) = (BTreeSet::new(), BTreeSet::new());
        while seen.len() < 500 {
            let Some(message) = self.service.try_next_message(SOON).await else {
                panic!("{} of 500 have come: {:?}", seen.len(), support::figures(&self.relay).await);
            };
            at.insert(message.topic.split('/').next().unwrap().to_owned());
            seen.insert(message.text().to_owned());
        }
        let figures = support::until(&self.relay, "idle", |figures| figures.in_flight == 0).await;
        assert_eq!((figures.dead_letters, figures.dropped), (0, 0), "{figures:?}");
        at
    }

    /// Its process ends: the broker knows before the registry does.
    async fn end(&self, code: &str) {
        self.service.unsubscribe(&format!("{code}/#")).await;
    }

    fn show(&self, codes: &[&str], change: impl Fn(&mut ObservedInstance)) {
        for code in codes {
            let mut instance = if *code == TEN[0] { master("cfgs", code) } else { normal("cfgs", code) };
            change(&mut instance);
            self.fleet.join("cfgs", instance);
        }
    }
}

fn set(codes: &[&str]) -> BTreeSet<String> {
    codes.iter().map(|code| (*code).to_owned()).collect()
}

#[tokio::test]
async fn a_service_that_shrinks_loses_no_message() {
    let ten = Ten::new().await;
    for (gone, left) in [(&TEN[3..], &TEN[1..3]), (&TEN[1..3], &TEN[..1])] {
        ten.publish_while(async {
            for code in gone {
                ten.end(code).await;
                ten.fleet.leave("cfgs", code);
            }
        })
        .await;
        assert_eq!(ten.publish_while(async {}).await, set(left));
    }
    ten.relay.close().await;
}

#[tokio::test]
async fn when_nine_of_ten_are_killed_the_tenth_gets_all() {
    for lives in [TEN[0], TEN[9]] {
        let ten = Ten::new().await;
        let killed: Vec<&str> = TEN.into_iter().filter(|code| *code != lives).collect();
        ten.publish_while(async {
            for code in &killed {
                ten.end(code).await;
            }
            ten.show(&killed, |instance| instance.guarded_since = Some(SystemTime::UNIX_EPOCH));
        })
        .await;
        let before = support::figures(&ten.relay).await.redispatched;
        assert_eq!(ten.publish_while(async {}).await, set(&[lives]));
        assert_eq!(support::figures(&ten.relay).await.redispatched, before, "no guarded one was tried");
        // They come back; one may still be ejected, for what it did not take.
        for code in &killed {
            ten.service.subscribe(&format!("{code}/#"), 1).await;
        }
        ten.show(&killed, |_| {});
        let at = ten.publish_while(async {}).await;
        assert!(at.len() >= 8 && !at.contains(TEN[0]), "{at:?}");
        ten.relay.close().await;
    }
}

#[tokio::test]
async fn drained_instances_get_nothing() {
    let ten = Ten::new().await;
    ten.publish_while(async { ten.show(&TEN[1..6], |instance| instance.status = Status::Drained) }).await;
    assert_eq!(ten.publish_while(async {}).await, set(&TEN[6..]));
    ten.publish_while(async { ten.show(&TEN[6..], |instance| instance.weight = 0) }).await;
    assert_eq!(ten.publish_while(async {}).await, set(&TEN[..1]));
    // Also where nobody else takes a message.
    ten.end(TEN[0]).await;
    let dead = dead_letters(&ten.broker).await;
    ten.sender.publish(PahoMessage::new("/normal/x", "")).await;
    assert_eq!(property(&dead.next_message(SOON).await, "pointsman-reason"), Some("no-subscriber"));
    ten.relay.close().await;
}

#[tokio::test]
async fn a_request_that_is_not_answered_takes_a_guarded_instance_out() {
    let broker = Mosquitto::options().nodelay().start().await;
    let fleet = Fleet::new(&[("cfgs", &[])]);
    for code in &CODES[1..] {
        let mut guarded = normal("cfgs", code);
        guarded.guarded_since = Some(SystemTime::UNIX_EPOCH);
        fleet.join("cfgs", guarded);
    }
    let mut settings = between(&broker.url(), &broker.url(), routes());
    settings.response_timeout = Duration::from_millis(300);
    let relay = fleet.relay(settings).await;
    let (service, sender) = (everyone(&broker, &CODES).await, client(&broker).await);
    sender.subscribe("inbox", 1).await;
    sender.publish(PahoMessage::new("/normal/x", "").response_topic("inbox")).await;
    let silent = service.next_message(SOON).await.topic;
    assert_eq!(property(&sender.next_message(SOON).await, "pointsman-reason"), Some("no-answer"));
    for _ in 0..4 {
        sender.publish(PahoMessage::new("/normal/x", "")).await;
        assert_ne!(service.next_message(SOON).await.topic, silent);
    }
    relay.close().await;
}

#[tokio::test]
async fn what_is_delivered_or_answered_is_a_success() {
    let broker = Mosquitto::options().nodelay().start().await;
    let fleet = Fleet::new(&[("cfgs", &["svc-1", "svc-2"])]);
    let relay = fleet.relay(between(&broker.url(), &broker.url(), routes())).await;
    let (others, sender) = (everyone(&broker, &["svc-2"]).await, client(&broker).await);
    let service = support::service(&broker, "svc-1").await;
    sender.subscribe("inbox", 1).await;
    // Failures, but never five in a row.
    for asks in [false, true, false, true] {
        service.unsubscribe("svc-1/#").await;
        for _ in 0..4 {
            sender.publish(PahoMessage::new("/sticky/x/svc-1", "")).await;
            assert_eq!(others.next_message(SOON).await.topic, "svc-2/sticky/x");
        }
        service.subscribe("svc-1/#", 1).await;
        let message = PahoMessage::new("/sticky/x/svc-1", "m");
        sender.publish(if asks { message.response_topic("inbox") } else { message }).await;
        assert_eq!(service.next_message(SOON).await.topic, "svc-1/sticky/x");
        if asks {
            assert_eq!(sender.next_message(SOON).await.text(), "svc-1:m");
        }
        support::until(&relay, "idle", |figures| (figures.in_flight, figures.requests) == (0, 0)).await;
    }
    relay.close().await;
}
