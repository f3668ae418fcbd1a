//! The embedded broker with users: what goes without saying works, and no user harms another.

#![allow(clippy::unwrap_used)] // The helpers of tests are tests too.

#[path = "broker/client.rs"]
#[allow(dead_code)] // Other tests use the rest.
mod client;
mod support;

use client::{Client, PATIENCE, hello, message, staying, until};
use pointsman_mqtt::broker::{AccessRule, Broker, Options, Users};
use pointsman_mqtt::packet::{
    AckKind, Connect, Options as SubscribeOptions, Packet, Properties, Publish, Qos, Subscribe, Version, Will,
};
use pointsman_mqtt::reason::Reason;
use pointsman_mqtt::relay::{Relay, Route, Settings};
use support::{Fleet, RELAY, SOON};
use tokio::net::TcpSocket;

const QOS0: Qos = Qos::AtMostOnce;
const QOS1: Qos = Qos::AtLeastOnce;
const QOS2: Qos = Qos::ExactlyOnce;

/// A broker with users, and a relay in it: `/login` goes to the instance `svc-a`.
struct World {
    broker: Broker,
    relay: Relay,
    options: Options,
    _fleet: Fleet,
}

impl World {
    async fn new(change: impl FnOnce(&mut Options)) -> Self {
        let mut options = Options::new("127.0.0.1:0".parse().unwrap());
        options.users = Some(Users::default().with("bulb", "b").with("cfgs", "c"));
        change(&mut options);
        let broker = Broker::start(options.clone()).await.unwrap();
        let fleet = Fleet::new(&[("cfgs", &["svc-a"])]);
        let mut settings = Settings::new();
        settings.code = Some(RELAY.into());
        settings.drain_timeout = std::time::Duration::ZERO;
        settings.routes = vec![Route::new("^/login(/|$)", "cfgs")];
        let relay = Relay::start(settings, fleet.views(), fleet.changed(), Some(broker.handle())).unwrap();
        tokio::time::timeout(SOON, relay.ready()).await.unwrap().unwrap();
        Self { broker, relay, options, _fleet: fleet }
    }

    async fn try_connect(&self, connect: Connect, user: &str) -> (Client, Reason) {
        let mut client = Client::tcp(self.broker.address(), connect.version).await;
        let reason = client.greet(as_user(connect, user)).await.reason;
        (client, reason)
    }

    async fn connect(&self, connect: Connect, user: &str) -> Client {
        let (client, reason) = self.try_connect(connect, user).await;
        assert_eq!(reason, Reason::SUCCESS);
        client
    }

    /// The instance, as `pointsman::mqtt::Service` connects.
    async fn instance(&self) -> Client {
        let mut instance = self.connect(staying("pointsman-service-svc-a", Version::V5), "cfgs").await;
        instance.subscribe("svc-a/login/#", QOS2).await;
        instance
    }

    async fn bulb(&self) -> Client {
        self.connect(hello("pointsman-client-bulb-1"), "bulb").await
    }

    async fn end(self) {
        self.relay.close().await;
        self.broker.close().await;
    }
}

/// Users' passwords are their first letters.
fn as_user(connect: Connect, user: &str) -> Connect {
    let password = user[..1].to_owned().into();
    Connect { user: Some(user.to_owned().into()), password: Some(password), ..connect }
}

fn request(response_topic: &str, id: u16) -> Publish {
    let mut request = message("/login/user", "q", QOS1, id);
    request.properties.response_topic = Some(response_topic.to_owned().into());
    request
}

async fn subscribed(client: &mut Client, filter: &str) -> Reason {
    let filters = vec![(filter.to_owned().into(), SubscribeOptions::up_to(QOS1))];
    let subscribe = Subscribe { id: 7, filters, properties: Properties::default() };
    client.send(&Packet::Subscribe(Box::new(subscribe))).await;
    let Packet::Suback(suback) = client.packet().await else { panic!("no SUBACK") };
    suback.reasons[0]
}

#[tokio::test]
async fn services_and_senders_need_no_rules() {
    let world = World::new(|_| {}).await;
    let (mut instance, mut sender) = (world.instance().await, world.bulb().await);
    let inbox = "pointsman/inbox/pointsman-client-bulb-1";
    sender.subscribe(inbox, QOS1).await;
    sender.send(&Packet::Publish(request(inbox, 1))).await;
    let work = instance.message().await;
    let mut answer = message(work.properties.response_topic.as_ref().unwrap(), "a", QOS1, 9);
    answer.properties.correlation.clone_from(&work.properties.correlation);
    instance.acknowledge(AckKind::Puback, work.id).await;
    instance.send(&Packet::Publish(answer)).await;
    let mut got = Vec::new();
    while got.len() < 2 {
        match sender.packet().await {
            Packet::Publish(answer) => {
                assert_eq!((&*answer.topic, &answer.payload[..]), (inbox, &b"a"[..]));
                sender.acknowledge(AckKind::Puback, answer.id).await;
                got.push("answer");
            }
            Packet::Ack(ack) => {
                assert_eq!((ack.id, ack.reason), (1, Reason::SUCCESS));
                got.push("ack");
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(instance.ack().await, (AckKind::Puback, 9, Reason::SUCCESS));
    world.end().await;
}

#[tokio::test]
async fn a_user_cannot_listen_to_others() {
    let world = World::new(|_| {}).await;
    for version in [Version::V311, Version::V5] {
        let refused = if version == Version::V5 { Reason::NOT_AUTHORIZED } else { Reason::UNSPECIFIED_ERROR };
        let mut bulb = world.connect(Connect { version, ..hello("bulb-1") }, "bulb").await;
        for filter in ["#", "+/#", "svc-a/#", "+/login/user", "/login/#", "pointsman/reply/#", "pointsman/#", "$SYS/#"]
        {
            assert_eq!(subscribed(&mut bulb, filter).await, refused, "{filter}");
            assert_eq!(subscribed(&mut bulb, &format!("$share/g/{filter}")).await, refused, "{filter}");
        }
        bulb.settle().await;
    }
    assert_eq!(world.broker.handle().figures().denied_subscriptions, 32);
    world.end().await;
}

#[tokio::test]
async fn a_user_publishes_neither_to_instances_nor_for_them() {
    let world = World::new(|_| {}).await;
    let mut instance = world.instance().await;
    let topics =
        ["svc-a/login/off", "pointsman/reply/x/1-1", "pointsman/dead-letter/x", "pointsman/inbox/x", "other", "$SYS/x"];
    for version in [Version::V311, Version::V5] {
        let refused = if version == Version::V5 { Reason::NOT_AUTHORIZED } else { Reason::SUCCESS };
        let mut bulb = world.connect(Connect { version, ..hello("bulb-1") }, "bulb").await;
        for (id, topic) in (1..).zip(topics) {
            bulb.publish(topic, "off", QOS0, 0).await;
            bulb.publish(topic, "off", QOS1, id).await;
            assert_eq!(bulb.ack().await, (AckKind::Puback, id, refused), "{topic}");
            bulb.publish(topic, "off", QOS2, 100 + id).await;
            assert_eq!(bulb.ack().await, (AckKind::Pubrec, 100 + id, refused), "{topic}");
            if version == Version::V311 {
                bulb.acknowledge(AckKind::Pubrel, 100 + id).await;
                assert_eq!(bulb.ack().await.0, AckKind::Pubcomp);
            }
        }
        // Whoever answers has more rights than it.
        if version == Version::V5 {
            for topic in ["svc-a/login/off", "pointsman/inbox/another", "reply/x"] {
                bulb.send(&Packet::Publish(request(topic, 50))).await;
                assert_eq!(bulb.ack().await, (AckKind::Puback, 50, Reason::NOT_AUTHORIZED), "{topic}");
            }
        }
    }
    assert_eq!(world.broker.handle().figures().denied_publishes, 6 * 3 * 2 + 3);
    instance.settle().await;
    world.end().await;
}

#[tokio::test]
async fn an_answer_cannot_be_forged() {
    let world = World::new(|_| {}).await;
    let (mut instance, mut sender) = (world.instance().await, world.bulb().await);
    sender.send(&Packet::Publish(request("pointsman/inbox/pointsman-client-bulb-1", 1))).await;
    let work = instance.message().await;
    let topic = work.properties.response_topic.unwrap();
    // Even with the number, for whoever serves nothing.
    let mut bulb = world.connect(hello("bulb-2"), "bulb").await;
    bulb.publish(&topic, "forged", QOS1, 1).await;
    assert_eq!(bulb.ack().await.2, Reason::NOT_AUTHORIZED);
    // Whoever serves has no number of another's request.
    bulb.subscribe("bulb-2/#", QOS1).await;
    let (path, _) = topic.rsplit_once('-').unwrap();
    bulb.publish(&format!("{path}-1234"), "forged", QOS1, 2).await;
    bulb.ack().await;
    support::until(&world.relay, "dropped", |figures| figures.dropped == 1 && figures.responses == 0).await;
    world.end().await;
}

#[tokio::test]
async fn a_client_id_belongs_to_its_user() {
    let world = World::new(|options| {
        options.users = Some(Users::default().with("bulb", "b").with("cfgs", "c").with("svc-b", "s"));
    })
    .await;
    let mut instance = world.instance().await;
    let stolen = "pointsman-service-svc-a";
    for version in [Version::V311, Version::V5] {
        assert_eq!(world.try_connect(Connect { version, ..hello(stolen) }, "bulb").await.1, Reason::NOT_AUTHORIZED);
    }
    instance.settle().await;
    // While it is away its session is still its own.
    drop(instance);
    let handle = world.broker.handle();
    until(|| handle.figures().connections == 2).await;
    assert_eq!(world.try_connect(hello(stolen), "bulb").await.1, Reason::NOT_AUTHORIZED);
    world.instance().await.settle().await;
    // A code that is a user's name is nobody else's.
    let mut bulb = world.connect(hello("pointsman-service-svc-b"), "bulb").await;
    assert_eq!(subscribed(&mut bulb, "svc-b/#").await, Reason::NOT_AUTHORIZED);
    world.end().await;
}

#[tokio::test]
async fn a_will_is_checked_too() {
    let world = World::new(|_| {}).await;
    let will = |topic: &'static str| Will { topic: topic.into(), qos: QOS1, ..Will::default() };
    for topic in ["svc-a/login/off", "pointsman/dead-letter/x", "$SYS/x"] {
        let connect = Connect { will: Some(will(topic)), ..hello("bulb-1") };
        assert_eq!(world.try_connect(connect, "bulb").await.1, Reason::NOT_AUTHORIZED, "{topic}");
    }
    let mut instance = world.instance().await;
    drop(world.connect(Connect { will: Some(will("/login/gone")), ..hello("bulb-1") }, "bulb").await);
    assert_eq!(&*instance.message().await.topic, "svc-a/login/gone");
    world.end().await;
}

#[tokio::test]
async fn rules_allow_more() {
    let rule = AccessRule {
        user: Some("bulb".to_owned()),
        publish: vec!["lamp/{user}/#".to_owned()],
        subscribe: vec!["reply/{client_id}".to_owned(), "pointsman/dead-letter/#".to_owned()],
    };
    let world = World::new(|options| options.rules = vec![rule]).await;
    let mut bulb = world.connect(hello("x"), "bulb").await;
    for filter in ["reply/x", "pointsman/dead-letter/#"] {
        bulb.subscribe(filter, QOS1).await;
    }
    assert_eq!(subscribed(&mut bulb, "reply/y").await, Reason::NOT_AUTHORIZED);
    bulb.publish("lamp/bulb/on", "", QOS1, 1).await;
    assert_eq!(bulb.ack().await.2, Reason::NO_MATCHING_SUBSCRIBERS);
    bulb.publish("lamp/other/on", "", QOS1, 2).await;
    assert_eq!(bulb.ack().await.2, Reason::NOT_AUTHORIZED);
    let mut cfgs = world.connect(hello("y"), "cfgs").await;
    assert_eq!(subscribed(&mut cfgs, "reply/y").await, Reason::NOT_AUTHORIZED);
    world.end().await;
}

#[tokio::test]
async fn users_and_rules_are_taken_up_by_a_reload() {
    let rule = AccessRule { subscribe: vec!["news/#".to_owned()], ..AccessRule::default() };
    let mut world = World::new(|options| {
        options.rules = vec![rule];
        options.users = Some(Users::default().with("bulb", "b").with("cfgs", "c").with("gone", "g").with("new", "n"));
    })
    .await;
    let mut kept = world.instance().await;
    let mut gone = world.connect(staying("gone-1", Version::V5), "gone").await;
    let mut reader = world.connect(staying("reader", Version::V5), "bulb").await;
    reader.subscribe("news/#", QOS1).await;
    let mut changed = world.connect(staying("new-1", Version::V5), "new").await;
    // The same hashes, but for one that is new and one that is gone.
    let before = world.options.users.take().unwrap();
    world.options.users = Some(before.without("gone").with("new", "another"));
    world.options.rules.clear();
    world.broker.reload(&world.options).unwrap();
    for client in [&mut gone, &mut reader, &mut changed] {
        assert_eq!(client.farewell().await, Some(Reason::NOT_AUTHORIZED));
    }
    kept.settle().await;
    assert_eq!(world.try_connect(hello("gone-1"), "gone").await.1, Reason::BAD_CREDENTIALS);
    assert_eq!(world.try_connect(hello("new-1"), "new").await.1, Reason::BAD_CREDENTIALS);
    let mut client = Client::tcp(world.broker.address(), Version::V5).await;
    let connect = Connect { password: Some("another".into()), ..as_user(staying("new-1", Version::V5), "new") };
    let connack = client.greet(connect).await;
    assert_eq!((connack.reason, connack.session_present), (Reason::SUCCESS, true), "its session has stayed");
    world.end().await;
}

/// Guesses that nobody throttles are checked as fast as the machine can.
#[tokio::test]
async fn guesses_are_slowed_and_lock_nobody_out() {
    let world = World::new(|options| options.connect_timeout = std::time::Duration::from_secs(1)).await;
    let guess = async |number: usize| {
        let mut client = Client::tcp(world.broker.address(), Version::V5).await;
        let password = Some(format!("guess {number}").into());
        client.greet(Connect { password, ..as_user(hello("guess"), "bulb") }).await.reason
    };
    let reasons = futures_util::future::join_all((0..200).map(guess)).await;
    let checked = reasons.iter().filter(|&&reason| reason == Reason::BAD_CREDENTIALS).count();
    assert!(reasons.iter().all(|reason| reason.is_error()) && (3..20).contains(&checked), "{checked}: {reasons:?}");
    assert_eq!(world.broker.handle().figures().wrong_passwords, checked as u64);
    // From elsewhere the user comes in while it is tried.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.9:0".parse().unwrap()).unwrap();
    let stream = tokio::time::timeout(PATIENCE, socket.connect(world.broker.address())).await.unwrap().unwrap();
    let mut client = Client::over(stream, Version::V5);
    assert_eq!(client.greet(as_user(hello("bulb-1"), "bulb")).await.reason, Reason::SUCCESS);
    world.end().await;
}
