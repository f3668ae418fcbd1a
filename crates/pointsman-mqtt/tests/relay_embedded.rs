//! Behind the embedded broker, which acknowledges a message only when the instance has: what an instance leaves behind that is gone.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, SystemTime};

use pointsman_mqtt::broker::{Broker, Options};
use pointsman_mqtt::relay::{Relay, Route, RouteRole, Settings};
use pointsman_testkit::{Echo, Paho, PahoMessage, PahoOptions};
use support::{Fleet, RELAY, SOON, collect, figures, master, normal, numbered, property, publish_all, until};

/// The dead instance `svc-a`, whose session is kept, and a relay in an embedded broker; `/again` is sent again, `/jobs` is for the master.
struct World {
    broker: Broker,
    fleet: Fleet,
    relay: Relay,
    sender: Paho,
}

impl World {
    async fn new() -> Self {
        let broker = Broker::start(Options::new("127.0.0.1:0".parse().unwrap())).await.unwrap();
        let fleet = Fleet::new(&[("cfgs", &["svc-a"])]);
        let mut settings = Settings::new();
        settings.code = Some(RELAY.into());
        settings.routes = ["^/login(/|$)", "^/again(/|$)", "^/jobs(/|$)"].map(|path| Route::new(path, "cfgs")).to_vec();
        settings.routes[1].redispatch = true;
        settings.routes[2].role = RouteRole::Master;
        settings.queue_timeout = Duration::from_secs(600);
        let relay = Relay::start(settings, fleet.views(), fleet.changed(), Some(broker.handle())).unwrap();
        tokio::time::timeout(SOON, relay.ready()).await.unwrap().unwrap();
        let sender = Paho::start().await;
        sender.connect(PahoOptions::new(&broker.address().to_string()).max_inflight(100)).await;
        sender.subscribe("inbox", 1).await;
        let world = Self { broker, fleet, relay, sender };
        world.service("svc-a").await.kill();
        world
    }

    /// A service with a session that is kept.
    async fn service(&self, code: &str) -> Paho {
        let service = Paho::start().await;
        let options = PahoOptions::new(&self.broker.address().to_string()).client_id(code);
        service.connect(options.clean(false).session_expiry(Duration::from_secs(600))).await;
        service.subscribe(&format!("{code}/#"), 2).await;
        service
    }

    /// Sends these messages, lets something happen when they are under way, and returns when all are acknowledged.
    async fn while_under_way(&self, messages: Vec<PahoMessage>, happens: impl FnOnce()) {
        let count = messages.len() as u64;
        tokio::join!(publish_all(&self.sender, messages), async {
            until(&self.relay, "under way", |figures| figures.in_flight == count).await;
            happens();
        });
    }

    async fn end(self) {
        let figures = until(&self.relay, "idle", |figures| figures.in_flight == 0 && figures.requests == 0).await;
        assert_eq!((figures.dead_letters, figures.dropped), (0, 0));
        self.relay.close().await;
        self.broker.close().await;
    }
}

#[tokio::test]
async fn messages_of_a_gone_instance_go_to_another() {
    for is_guarded in [false, true] {
        let world = World::new().await;
        let other = world.service("svc-b").await;
        world
            .while_under_way(numbered("/login", 0..30, 1), || {
                world.fleet.leave("cfgs", "svc-a");
                if is_guarded {
                    let mut guarded = normal("cfgs", "svc-a");
                    guarded.guarded_since = Some(SystemTime::UNIX_EPOCH);
                    world.fleet.join("cfgs", guarded);
                }
                world.fleet.join("cfgs", normal("cfgs", "svc-b"));
            })
            .await;
        assert_eq!(collect(&other, 30).await, ((0..30).collect(), 0));
        assert_eq!(figures(&world.relay).await.redispatched, 30);
        // Its session has them still: they come once more, which QoS 1 allows, and the relay takes no notice.
        let back = world.service("svc-a").await;
        assert_eq!(collect(&back, 30).await.0.len(), 30);
        world.sender.publish(PahoMessage::new("/login", "after")).await;
        assert_eq!(figures(&world.relay).await.delivered, 31);
        world.end().await;
    }
}

#[tokio::test]
async fn messages_wait_for_a_gone_instance_while_there_is_no_other() {
    let world = World::new().await;
    let mut back = None;
    tokio::join!(publish_all(&world.sender, numbered("/login", 0..5, 1)), async {
        until(&world.relay, "under way", |figures| figures.in_flight == 5).await;
        world.fleet.leave("cfgs", "svc-a");
        until(&world.relay, "still under way", |figures| figures.in_flight == 5).await;
        back = Some(world.service("svc-a").await);
    });
    assert_eq!(collect(&back.unwrap(), 5).await, ((0..5).collect(), 0));
    world.end().await;
}

/// It is to come once, and the session of the dead instance has it.
#[tokio::test]
async fn a_message_of_quality_2_waits_for_its_instance() {
    let world = World::new().await;
    let other = world.service("svc-b").await;
    let mut back = None;
    tokio::join!(publish_all(&world.sender, numbered("/login", 0..1, 2)), async {
        until(&world.relay, "under way", |figures| figures.in_flight == 1).await;
        world.fleet.leave("cfgs", "svc-a");
        world.fleet.join("cfgs", normal("cfgs", "svc-b"));
        world.sender.publish(PahoMessage::new("/login", "1")).await;
        assert_eq!(other.next_message(SOON).await.text(), "1");
        assert_eq!(figures(&world.relay).await.in_flight, 1);
        back = Some(world.service("svc-a").await);
    });
    assert_eq!(collect(&back.unwrap(), 1).await, (vec![0], 0));
    assert!(other.try_next_message(Duration::from_millis(100)).await.is_none());
    world.end().await;
}

#[tokio::test]
async fn a_request_that_a_gone_instance_has_not_acknowledged_is_told_or_sent_again() {
    for qos in 1..3 {
        let world = World::new().await;
        let other = world.service("svc-b").await;
        other.echo(Echo::default().prefix("svc-b:")).await;
        let request =
            |topic: &str| PahoMessage::new(topic, "q").qos(qos).response_topic("inbox").correlation_data(topic);
        world
            .while_under_way(vec![request("/login"), request("/again")], || {
                world.fleet.leave("cfgs", "svc-a");
                world.fleet.join("cfgs", normal("cfgs", "svc-b"));
            })
            .await;
        for _ in 0..2 {
            let answer = world.sender.next_message(SOON).await;
            match answer.correlation_data.as_deref() {
                Some(b"/login") => assert_eq!(property(&answer, "pointsman-reason"), Some("instance-gone")),
                _ => assert_eq!(answer.text(), "svc-b:q"),
            }
        }
        assert_eq!(figures(&world.relay).await.redispatched, 1);
        world.end().await;
    }
}

#[tokio::test]
async fn what_a_gone_master_has_not_acknowledged_goes_to_the_next_in_its_order() {
    let world = World::new().await;
    world.fleet.leave("cfgs", "svc-a");
    world.fleet.join("cfgs", master("cfgs", "svc-a"));
    world.fleet.join("cfgs", normal("cfgs", "svc-c"));
    let other = world.service("svc-b").await;
    tokio::join!(publish_all(&world.sender, numbered("/jobs/x", 0..60, 1)), async {
        until(&world.relay, "under way", |figures| figures.in_flight == 60).await;
        world.fleet.leave("cfgs", "svc-a");
        let held = async {
            until(&world.relay, "held", |figures| figures.in_flight == 90).await;
            world.fleet.join("cfgs", master("cfgs", "svc-b"));
        };
        tokio::join!(publish_all(&world.sender, numbered("/jobs/x", 60..90, 1)), held);
    });
    assert_eq!(collect(&other, 90).await, ((0..90).collect(), 0));
    world.end().await;
}
