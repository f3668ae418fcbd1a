//! Our sender, by our relay, to our service and to Paho's.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pointsman::mqtt::{
    Action, BrokerUrl, Client, Credentials, Error, Message, Qos, Reply, Request, Service, Settings, Topics, Version,
};
use pointsman::{Instance, Registry};
use pointsman_testkit::{Echo, Mosquitto, Paho, PahoMessage, PahoOptions};
use tokio::sync::Semaphore;

use crate::support::{RELAY, SOON, echo, eventually, paho, registry, relay, route, start, started, within};

const OTHER_RELAY: &str = "1b671a64-40d5-491e-99b0-da01ff1f3341";

fn cfgs(registry: &Registry, broker: &str, code: &str) -> pointsman::mqtt::ServiceBuilder {
    Service::builder(registry, Instance::new("cfgs").code(code)).broker(broker.parse().unwrap())
}

async fn client(registry: &Registry) -> Client {
    Client::builder(registry, "mqtt-balancer").name("cgws").start().await.unwrap()
}

async fn ask(client: &Client, payload: &str) -> Result<Reply, Error> {
    client.request("/login/user", payload.to_owned(), SOON).await
}

#[tokio::test]
async fn there_and_back() {
    let (broker, registry) = (Mosquitto::start().await, registry().await);
    let relay = relay(&registry, &broker.url(), Topics::CodeLast, RELAY).await;
    let of_sender = Arc::<std::sync::Mutex<Option<String>>>::default();
    let seen = of_sender.clone();
    let service = cfgs(&registry, &broker.url(), "svc-a").on("/login/#", move |request: Request| {
        *seen.lock().unwrap() = request.sender().map(str::to_owned);
        async move { Ok(Reply::new(request.payload().clone()).content_type("text/plain").user_property("a", "b")) }
    });
    let service = start(service).await;
    let client = Arc::new(client(&registry).await);
    let reply = ask(&client, "hello").await.unwrap();
    assert_eq!((&*reply.payload, reply.content_type.as_deref()), (&b"hello"[..], Some("text/plain")));
    assert!(reply.user_properties.contains(&("a".to_owned(), "b".to_owned())));
    assert_eq!(of_sender.lock().unwrap().as_deref(), Some(client.client_id()));
    assert_eq!(client.relay().as_deref(), Some(RELAY));
    for qos in [Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce] {
        within(client.publish("/login/seen", "x", qos)).await.unwrap();
        within(client.call(Message::new("/login/user", "x").qos(qos), SOON)).await.unwrap();
    }
    // Many at a time, each its own answer.
    let tasks: Vec<_> = (0..200)
        .map(|number: u32| {
            let client = client.clone();
            tokio::spawn(async move {
                let reply = ask(&client, &number.to_string()).await.unwrap();
                assert_eq!(reply.payload, number.to_string().as_bytes());
            })
        })
        .collect();
    for task in tasks {
        within(task).await.unwrap();
    }
    eventually("all have come", || service.figures().handled == 207).await;
    within(Arc::into_inner(client).unwrap().close()).await;
    within(service.close()).await.unwrap();
    relay.close().await;
}

#[tokio::test]
async fn envelopes_over_3_1_1_and_5() {
    let (broker, registry) = (Mosquitto::start().await, registry().await);
    let relay = relay(&registry, &broker.url(), Topics::GoEnvelope, RELAY).await;
    let url = format!("{}?version=3.1.1", broker.url());
    let service =
        cfgs(&registry, &url, "svc-c").topics(Topics::GoEnvelope).on("/login/user", |request: Request| async move {
            if request.payload() == "fail" {
                return Err("no such user".into());
            }
            Ok(format!("{} {}", request.action().unwrap(), request.topic()))
        });
    let service = start(service).await;
    for version in [Version::V311, Version::V5] {
        let client =
            Client::builder(&registry, "mqtt-balancer").topics(Topics::GoEnvelope).name("cgws").protocol(version);
        let client = client.version("2.0").start().await.unwrap();
        assert_eq!(ask(&client, "x").await.unwrap().payload, "POST login/user");
        let get = Message::new("login/user/", "x").action(Action::Get);
        assert_eq!(client.call(get, SOON).await.unwrap().payload, "GET login/user");
        within(client.publish("/login/user", "x", Qos::AtLeastOnce)).await.unwrap();
        // No route: an error of the relay's.
        let lost = client.request("/nowhere", "x", SOON).await;
        if version == Version::V5 {
            assert!(matches!(lost, Err(Error::NotDelivered { reason, .. }) if reason == "no-route"));
        } else {
            let told = lost.unwrap().payload;
            assert!(told.starts_with(b"{\"type\":\"about:blank\",\"title\":\"no-route\""), "{told:?}");
        }
        let updated = Message::new("/login/user", "x").action(Action::Updated);
        assert!(matches!(client.call(updated, SOON).await, Err(Error::Unsupported(_))));
        within(client.close()).await;
    }
    eventually("all have come", || service.figures().handled == 6).await;
    within(service.close()).await.unwrap();
    relay.close().await;
}

/// Paho as go-micro-service's service; our sender speaks through our relay as go-micro-service's senders do.
#[tokio::test]
async fn a_service_that_is_none_of_ours() {
    let (broker, registry) = (Mosquitto::start().await, registry().await);
    let url = format!("{}?version=3.1.1", broker.url());
    let relay = relay(&registry, &url, Topics::GoEnvelope, RELAY).await;
    let service = Paho::start().await;
    service.connect(PahoOptions::new(&broker.address()).v3()).await;
    service.envelope_echo("svc-c", 1).await;
    let _registration = registry.register(Instance::new("cfgs").code("svc-c")).await.unwrap();
    let client = Client::builder(&registry, "mqtt-balancer").topics(Topics::GoEnvelope).protocol(Version::V311);
    let client = client.name("cgws").start().await.unwrap();
    let reply = client.request("configs/serverinfo", "hello0", SOON).await.unwrap();
    assert_eq!(reply.payload, "echo[svc-c]:hello0");
    let request = service.next_message(SOON).await;
    assert!(request.topic.ends_with("_sessionid/configs/serverinfo/svc-c/"), "{}", request.topic);
    within(client.close()).await;
    relay.close().await;
}

/// Paho in the place of go-micro-service's balancer.
#[tokio::test]
async fn a_balancer_that_is_none_of_ours() {
    let (broker, registry) = (Mosquitto::start().await, registry().await);
    let balancer = Paho::start().await;
    balancer.connect(PahoOptions::new(&broker.address()).v3()).await;
    balancer.subscribe(&format!("/+/+/+/+/{RELAY}/#"), 0).await;
    let instance = Instance::new("mqtt-balancer").code(RELAY).address(broker.address());
    let _registration = registry.register(instance).await.unwrap();
    let client = Client::builder(&registry, "mqtt-balancer").topics(Topics::GoEnvelope).protocol(Version::V311);
    let client = client.name("cgws").start().await.unwrap();
    let (reply, ()) = tokio::join!(client.request("/configs/serverinfo", "hello0", SOON), async {
        let request = balancer.next_message(SOON).await;
        let levels: Vec<&str> = request.topic.split('/').collect();
        assert_eq!(levels[1..4], ["1.0", "cgws", "POST"]);
        assert_eq!(levels[5..], [RELAY, "configs", "serverinfo", ""]);
        balancer.publish(PahoMessage::new(&levels[..5].join("/"), "echo[svc-c]:hello0")).await;
    });
    assert_eq!(reply.unwrap().payload, "echo[svc-c]:hello0");
    within(client.close()).await;
}

#[tokio::test]
async fn errors_are_told_apart() {
    let (broker, registry) = (Mosquitto::start().await, registry().await);
    let client = client(&registry).await;
    let brief = Duration::from_millis(300);
    // Nobody there.
    let error = client.request("/login/user", "x", brief).await.unwrap_err();
    assert!(matches!(error, Error::NoRelay { .. }), "{error}");
    let relay = relay(&registry, &broker.url(), Topics::CodeLast, RELAY).await;
    let error = ask(&client, "x").await.unwrap_err();
    assert!(matches!(&error, Error::NotDelivered { reason, .. } if reason == "no-instance"), "{error}");
    let silent = paho(&broker).await;
    silent.subscribe("svc-a/#", 1).await;
    let registration = registry.register(Instance::new("cfgs").code("svc-a")).await.unwrap();
    // One that does not answer, and one that fails; the relay learns of each a little later than we do.
    loop {
        match client.request("/login/user", "x", brief).await.unwrap_err() {
            Error::Timeout { .. } => break,
            error => assert!(matches!(error, Error::NotDelivered { .. }), "{error}"),
        }
    }
    registration.close().await.unwrap();
    let service = cfgs(&registry, &broker.url(), "svc-b").on("/login/user", |_| async { Err::<Reply, _>("no".into()) });
    let service = start(service).await;
    loop {
        match ask(&client, "x").await.unwrap_err() {
            Error::NotDelivered { reason, detail } if reason == "handler" => break assert_eq!(detail, "no"),
            error => assert!(matches!(error, Error::NotDelivered { .. }), "{error}"),
        }
    }
    for bad in ["", "/", "/a/+", "#", "$SYS/x", "pointsman/x"] {
        let error = client.publish(bad, "x", Qos::AtLeastOnce).await.unwrap_err();
        assert!(matches!(error, Error::Topic { .. }), "{bad}: {error}");
    }
    let old = Client::builder(&registry, "mqtt-balancer").protocol(Version::V311).start().await.unwrap();
    let error = old.request("/login/user", "x", SOON).await.unwrap_err();
    assert!(matches!(error, Error::Unsupported(_)), "{error}");
    within(old.publish("/login/user", "x", Qos::ExactlyOnce)).await.unwrap();
    within(service.close()).await.unwrap();
    relay.close().await;
}

#[tokio::test]
async fn passwords_and_certificates() {
    let registry = registry().await;
    let broker = Mosquitto::options().password("u", "secret").tls().start().await;
    let ca = broker.tls().ca.clone();
    let url = format!("mqtts://u:secret@{}?ca={}", broker.secure_address(), ca.display());
    let relay = relay(&registry, &url, Topics::CodeLast, RELAY).await;
    let service = start(echo(cfgs(&registry, &url, "svc-a"), "/login/user", "a")).await;
    let builder = || Client::builder(&registry, "mqtt-balancer").tls(&ca);
    let wrong = builder().credentials(Credentials::new("u", "wrong")).start().await.unwrap();
    let error = wrong.request("/login/user", "x", Duration::from_millis(500)).await.unwrap_err().to_string();
    assert!(error.contains("not authorized") && !error.contains("wrong"), "{error}");
    let right = builder().credentials(Credentials::new("u", "secret")).start().await.unwrap();
    assert_eq!(ask(&right, "x").await.unwrap().payload, "a:/login/user:x");
    within(right.close()).await;
    within(service.close()).await.unwrap();
    relay.close().await;
}

/// Two relays on one broker: the connection stays, the code changes.
#[tokio::test]
async fn a_relay_leaves_and_another_one_is_there() {
    let (broker, registry) = (Mosquitto::options().verbose().start().await, registry().await);
    let first = relay(&registry, &broker.url(), Topics::CodeLast, RELAY).await;
    let service = start(echo(cfgs(&registry, &broker.url(), "svc-a"), "/login/user", "a")).await;
    let client = client(&registry).await;
    ask(&client, "x").await.unwrap();
    let second = relay(&registry, &broker.url(), Topics::CodeLast, OTHER_RELAY).await;
    first.close().await;
    eventually("it goes over", || client.relay().as_deref() == Some(OTHER_RELAY)).await;
    ask(&client, "x").await.unwrap();
    assert_eq!(broker.log().matches(&format!("as {}", client.client_id())).count(), 1);
    within(client.close()).await;
    within(service.close()).await.unwrap();
    second.close().await;
}

struct TwoBrokers {
    registry: Registry,
    ingress: [Mosquitto; 2],
    relays: [pointsman::mqtt::Relay; 2],
    egress: Mosquitto,
}

/// Two relays, each with a broker of its own for senders, and one broker for services.
async fn two_brokers() -> TwoBrokers {
    let registry = registry().await;
    let egress = Mosquitto::start().await;
    let ingress = [Mosquitto::start().await, Mosquitto::start().await];
    let relay = |broker: &Mosquitto, code: &str| {
        let mut settings = Settings::new();
        settings.ingress = Some(broker.url().parse().unwrap());
        settings.egress = vec![egress.url().parse::<BrokerUrl>().unwrap()];
        settings.code = Some(code.into());
        settings.routes = vec![route()];
        started(&registry, settings)
    };
    let relays = [relay(&ingress[0], RELAY).await, relay(&ingress[1], OTHER_RELAY).await];
    TwoBrokers { registry, ingress, relays, egress }
}

#[tokio::test]
async fn a_broker_is_lost_and_its_relay_with_it() {
    let mut fleet = two_brokers().await;
    let (begun, finish) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let of_handler = (begun.clone(), finish.clone());
    let service = cfgs(&fleet.registry, &fleet.egress.url(), "svc-a").on("/login/user", move |request: Request| {
        let (begun, finish) = of_handler.clone();
        async move {
            begun.add_permits(1);
            if request.payload() == "slow" {
                finish.acquire().await.unwrap().forget();
            }
            Ok("done")
        }
    });
    let service = start(service).await;
    let client = Arc::new(client(&fleet.registry).await);
    ask(&client, "x").await.unwrap();
    let lost = usize::from(client.relay().as_deref() != Some(RELAY));
    within(begun.acquire()).await.unwrap().forget();
    // One request that may be sent again, and one that may not, both with the service when the broker dies.
    let call = |retry: bool| {
        let client = client.clone();
        tokio::spawn(async move { client.call(Message::new("/login/user", "slow").retry(retry), SOON).await })
    };
    let (again, once) = (call(true), call(false));
    within(begun.acquire_many(2)).await.unwrap().forget();
    fleet.ingress[lost].kill();
    assert!(matches!(within(once).await.unwrap(), Err(Error::RelayLost { .. })));
    within(begun.acquire()).await.unwrap().forget();
    finish.add_permits(3);
    assert_eq!(within(again).await.unwrap().unwrap().payload, "done");
    within(client.publish("/login/user", "x", Qos::AtLeastOnce)).await.unwrap();
    within(begun.acquire()).await.unwrap().forget();
    assert_ne!(client.relay().as_deref(), Some([RELAY, OTHER_RELAY][lost]));
    drop(client);
    within(service.close()).await.unwrap();
    // Not closed: the one has no broker to say goodbye to.
    drop(fleet.relays);
}

/// A relay that leaves answers what it has; what is new goes to the other one, at another broker.
#[tokio::test]
async fn a_relay_leaves_with_a_request_under_way() {
    let fleet = two_brokers().await;
    let (begun, finish) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let of_handler = (begun.clone(), finish.clone());
    let service = cfgs(&fleet.registry, &fleet.egress.url(), "svc-a").on("/login/user", move |request: Request| {
        let (begun, finish) = of_handler.clone();
        async move {
            if request.payload() == "slow" {
                begun.add_permits(1);
                finish.acquire().await.unwrap().forget();
            }
            Ok(Reply::new(request.payload().clone()))
        }
    });
    let service = start(service).await;
    let client = Arc::new(client(&fleet.registry).await);
    let asking = client.clone();
    let slow = tokio::spawn(async move { ask(&asking, "slow").await });
    within(begun.acquire()).await.unwrap().forget();
    let [first, second] = fleet.relays;
    let (leaving, staying, code) =
        if client.relay().as_deref() == Some(RELAY) { (first, second, OTHER_RELAY) } else { (second, first, RELAY) };
    let leaving = tokio::spawn(leaving.close());
    eventually("it goes over", || client.relay().as_deref() == Some(code)).await;
    assert_eq!(ask(&client, "quick").await.unwrap().payload, "quick");
    finish.add_permits(1);
    assert_eq!(within(slow).await.unwrap().unwrap().payload, "slow");
    within(leaving).await.unwrap();
    within(service.close()).await.unwrap();
    staying.close().await;
}

/// The only broker is restarted while messages are on their way: none is lost.
#[tokio::test]
async fn the_only_broker_is_restarted() {
    let registry = registry().await;
    let mut broker = Mosquitto::options().persistence().start().await;
    let relay = relay(&registry, &broker.url(), Topics::CodeLast, RELAY).await;
    let got = Arc::<std::sync::Mutex<std::collections::BTreeSet<u32>>>::default();
    let handled = got.clone();
    let service = cfgs(&registry, &broker.url(), "svc-a").on("/login/user", move |request: Request| {
        let number = std::str::from_utf8(request.payload()).unwrap().parse().unwrap();
        handled.lock().unwrap().insert(number);
        async { Ok(()) }
    });
    let service = start(service).await;
    let client = Arc::new(client(&registry).await);
    let sent = Arc::<AtomicUsize>::default();
    let (sender, count) = (client.clone(), sent.clone());
    let sending = tokio::spawn(async move {
        for number in 0..400_u32 {
            sender.publish("/login/user", number.to_string(), Qos::AtLeastOnce).await.unwrap();
            count.fetch_add(1, Ordering::SeqCst);
        }
    });
    for part in [100, 200] {
        eventually("some are sent", || sent.load(Ordering::SeqCst) >= part).await;
        broker.stop().await;
        broker.restart().await;
    }
    within(sending).await.unwrap();
    eventually("all have come", || got.lock().unwrap().len() == 400).await;
    drop(client);
    within(service.close()).await.unwrap();
    relay.close().await;
}

/// What is given up needs no memory, and what is not is bounded.
#[tokio::test]
async fn who_asks_too_much_has_to_wait() {
    let (broker, registry) = (Mosquitto::start().await, registry().await);
    let relay = relay(&registry, &broker.url(), Topics::CodeLast, RELAY).await;
    let service = paho(&broker).await;
    service.subscribe("svc-a/#", 1).await;
    let _registration = registry.register(Instance::new("cfgs").code("svc-a")).await.unwrap();
    let client = Client::builder(&registry, "mqtt-balancer").max_outstanding(1).start().await.unwrap();
    // Whether the relay has learned of the service shows by an answer that does not come.
    while !matches!(client.request("/login/user", "x", Duration::from_millis(200)).await, Err(Error::Timeout { .. })) {}
    let silent = client.request("/login/user", "silent", SOON);
    tokio::select! {
        biased;
        outcome = silent => panic!("{outcome:?}"),
        () = async { while service.next_message(SOON).await.text() != "silent" {} } => {}
    }
    // That one was given up just now: there is room again.
    service.echo(Echo::default()).await;
    assert_eq!(ask(&client, "x").await.unwrap().payload, "x");
    within(client.close()).await;
    // It would wait for the answers that do not come.
    drop(relay);
}
