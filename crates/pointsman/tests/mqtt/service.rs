//! Our service, behind our relay, asked by Paho.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use pointsman::mqtt::{Error, Reply, Request, Service, Topics};
use pointsman::{Instance, Registry};
use pointsman_testkit::{Mosquitto, MosquittoOptions, Paho, PahoMessage, PahoOptions, RawBroker};
use tokio::sync::{Notify, Semaphore};

use crate::support::{RELAY, SOON, echo, eventually, paho, registry, relay, start, within};

fn question(payload: &str) -> PahoMessage {
    let topic = format!("/login/user/{RELAY}");
    PahoMessage::new(&topic, payload).response_topic("inbox/1").correlation_data([1, 2, 3])
}

async fn sender(broker: &Mosquitto) -> Paho {
    let sender = paho(broker).await;
    sender.subscribe("inbox/1", 2).await;
    sender
}

fn cfgs(registry: &Registry, broker: &Mosquitto, code: &str) -> pointsman::mqtt::ServiceBuilder {
    Service::builder(registry, Instance::new("cfgs").code(code)).broker(broker.url().parse().unwrap())
}

#[tokio::test]
async fn a_request_is_answered_with_its_properties() {
    let (broker, registry) = (Mosquitto::start().await, registry().await);
    let relay = relay(&registry, &broker.url(), Topics::CodeLast, RELAY).await;
    let service = cfgs(&registry, &broker, "svc-a").on("/login/+", |request: Request| async move {
        assert!(request.is_request() && request.action().is_none());
        let said = format!("{} {:?} {:?}", request.topic(), request.content_type(), request.user_property("a"));
        Ok(Reply::new(said).content_type("text/plain").user_property("c", "d"))
    });
    let service = start(service).await;
    let instance = registry.discover("cfgs").await.unwrap().snapshot().find("svc-a").unwrap().clone();
    assert_eq!((instance.address.as_deref(), instance.tags.get("broker")), (None, Some(&broker.address())));
    let sender = sender(&broker).await;
    for qos in 0..3 {
        sender.publish(question("q").qos(qos).content_type("x/y").user_property("a", "b")).await;
        let answer = sender.next_message(SOON).await;
        assert_eq!(answer.text(), r#"/login/user Some("x/y") Some("b")"#);
        assert_eq!((answer.qos, answer.correlation_data.as_deref()), (qos, Some(&[1, 2, 3][..])));
        assert_eq!(answer.content_type.as_deref(), Some("text/plain"));
        assert!(answer.user_properties.contains(&("c".to_owned(), "d".to_owned())));
    }
    let figures = service.figures();
    assert_eq!((figures.received, figures.handled, figures.failed), (3, 3, 0));
    within(service.close()).await.unwrap();
    assert!(registry.discover("cfgs").await.unwrap().snapshot().is_empty());
    relay.close().await;
}

/// As go-micro-service's senders write them, over MQTT 3.1.1.
#[tokio::test]
async fn envelopes_of_go_micro_service() {
    let (broker, registry) = (Mosquitto::start().await, registry().await);
    let url = format!("{}?version=3.1.1", broker.url());
    let relay = relay(&registry, &url, Topics::GoEnvelope, RELAY).await;
    let told = Arc::new(Semaphore::new(0));
    let updates = told.clone();
    let service = Service::builder(&registry, Instance::new("cfgs").code("svc-c"))
        .broker(url.parse().unwrap())
        .topics(Topics::GoEnvelope)
        .on("/configs/serverinfo", move |request: Request| {
            let updates = updates.clone();
            async move {
                if !request.is_request() {
                    updates.add_permits(1);
                }
                Ok(format!("{} {}", request.action().unwrap(), request.topic()))
            }
        })
        .on("login/user", |_| async { Err::<Reply, _>("no \"such\" user".into()) });
    let service = start(service).await;
    let sender = Paho::start().await;
    sender.connect(PahoOptions::new(&broker.address()).v3()).await;
    sender.subscribe("/1.0/cgws/+/+", 1).await;
    let id = "1795418027019215241_26upaoh6tgcinx3o8gjrkz2x4xtmpjin_sessionid";
    for action in ["POST", "PUT", "GET", "DELETE"] {
        let topic = format!("/1.0/cgws/{action}/{id}/{RELAY}/configs/serverinfo/");
        sender.publish(PahoMessage::new(&topic, "hello0")).await;
        let answer = sender.next_message(SOON).await;
        assert_eq!(answer.topic, format!("/1.0/cgws/{action}/{id}"));
        assert_eq!(answer.text(), format!("{action} configs/serverinfo"));
    }
    sender.publish(PahoMessage::new(&format!("/1.0/cgws/POST/{id}/{RELAY}/login/user/"), "x")).await;
    let problem = r#"{"type":"about:blank","title":"handler","detail":"no \"such\" user"}"#;
    assert_eq!(sender.next_message(SOON).await.text(), problem);
    sender.publish(PahoMessage::new(&format!("/1.0/cgws/UPDATED/{id}/{RELAY}/configs/serverinfo/"), "x")).await;
    within(told.acquire()).await.unwrap().forget();
    within(service.close()).await.unwrap();
    relay.close().await;
}

#[tokio::test]
async fn a_handler_that_fails_or_panics_and_one_that_is_not_there() {
    let (broker, registry) = (Mosquitto::start().await, registry().await);
    let relay = relay(&registry, &broker.url(), Topics::CodeLast, RELAY).await;
    // In an earlier life it had a handler more, and its session lives.
    let before = Paho::start().await;
    let options = PahoOptions::new(&broker.address()).client_id("pointsman-service-svc-a");
    before.connect(options.clean(false).session_expiry(Duration::from_secs(600))).await;
    before.subscribe("svc-a/login/gone", 1).await;
    before.disconnect().await;
    let service = cfgs(&registry, &broker, "svc-a").on("/login/user", |request: Request| {
        assert!(request.payload() != "panic at once", "with intent");
        async move {
            assert!(request.payload() != "panic", "with intent");
            Err::<Reply, _>("no such user".into())
        }
    });
    let service = start(service).await;
    let sender = sender(&broker).await;
    for (payload, reason, detail) in [
        ("fail", "handler", "no such user"),
        ("panic", "handler", "the handler has panicked"),
        ("panic at once", "handler", "the handler has panicked"),
        ("gone", "no-handler", "the service has no handler for \"/login/gone\""),
    ] {
        let mut question = question(payload);
        if payload == "gone" {
            question.topic = format!("/login/gone/{RELAY}");
        }
        sender.publish(question).await;
        let answer = sender.next_message(SOON).await;
        let property = |name: &str| answer.user_properties.iter().find(|(other, _)| other == name).unwrap().1.clone();
        assert_eq!((property("pointsman-reason").as_str(), property("pointsman-detail").as_str()), (reason, detail));
        assert_eq!(answer.content_type.as_deref(), Some("application/problem+json"));
        assert_eq!(answer.correlation_data.as_deref(), Some(&[1, 2, 3][..]));
    }
    let figures = service.figures();
    assert_eq!((figures.failed, figures.unmatched), (3, 1));
    within(service.close()).await.unwrap();
    relay.close().await;
}

/// Straight from the broker: what comes beyond the concurrency is left there.
#[tokio::test]
async fn no_more_is_taken_than_can_be_handled() {
    let registry = registry().await;
    for version in ["5", "3.1.1"] {
        let broker = Mosquitto::start().await;
        let (started, gate, running, most) = (
            Arc::new(Semaphore::new(0)),
            Arc::new(Semaphore::new(0)),
            Arc::<AtomicUsize>::default(),
            Arc::<AtomicUsize>::default(),
        );
        let url = format!("{}?version={version}", broker.url());
        let of_handler = (started.clone(), gate.clone(), running.clone(), most.clone());
        let service = Service::builder(&registry, Instance::new("cfgs").code("svc-a"))
            .broker(url.parse().unwrap())
            .concurrency(2)
            .on("/login/user", move |_| {
                let (started, gate, running, most) = of_handler.clone();
                async move {
                    most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    started.add_permits(1);
                    gate.acquire().await.unwrap().forget();
                    running.fetch_sub(1, Ordering::SeqCst);
                    Ok(())
                }
            });
        let service = start(service).await;
        let sender = paho(&broker).await;
        for qos in [0, 1, 2, 0, 1, 2, 0, 1, 2] {
            sender.publish(PahoMessage::new("svc-a/login/user", "x").qos(qos)).await;
        }
        within(started.acquire_many(2)).await.unwrap().forget();
        assert_eq!(service.figures().received, 2);
        gate.add_permits(9);
        within(started.acquire_many(7)).await.unwrap().forget();
        eventually("all are handled", || service.figures().handled == 9).await;
        assert_eq!(most.load(Ordering::SeqCst), 2);
        within(service.close()).await.unwrap();
    }
}

#[tokio::test]
async fn who_leaves_finishes_its_work_and_nobody_else_gets_it() {
    let (broker, registry) = (Mosquitto::start().await, registry().await);
    let relay = relay(&registry, &broker.url(), Topics::CodeLast, RELAY).await;
    // The first is master; as long as there is a normal instance, that gets everything.
    let master = start(echo(cfgs(&registry, &broker, "svc-a"), "/login/#", "a")).await;
    let (begun, finish) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let of_handler = (begun.clone(), finish.clone());
    let leaving = cfgs(&registry, &broker, "svc-b").on("/login/#", move |_| {
        let (begun, finish) = of_handler.clone();
        async move {
            begun.notify_one();
            finish.notified().await;
            Ok("b")
        }
    });
    let leaving = start(leaving).await;
    let cfgs = registry.discover("cfgs").await.unwrap();
    within(cfgs.wait_for(|snapshot| snapshot.instances().len() == 2)).await.unwrap();
    let sender = sender(&broker).await;
    sender.publish(question("1")).await;
    within(begun.notified()).await;
    let closing = tokio::spawn(leaving.close());
    within(cfgs.wait_for(|snapshot| snapshot.find("svc-b").is_some_and(|b| b.weight == 0))).await.unwrap();
    // What is new goes to the other one.
    sender.publish(question("2")).await;
    assert_eq!(sender.next_message(SOON).await.text(), "a:/login/user:2");
    assert!(!closing.is_finished());
    finish.notify_one();
    assert_eq!(sender.next_message(SOON).await.text(), "b");
    within(closing).await.unwrap().unwrap();
    assert!(cfgs.snapshot().find("svc-b").is_none());
    assert_eq!(master.figures().received, 1);
    within(master.close()).await.unwrap();
    relay.close().await;
}

#[tokio::test]
async fn a_handler_that_does_not_finish_is_given_up_and_its_message_is_not() {
    let (broker, registry) = (Mosquitto::start().await, registry().await);
    let begun = Arc::new(Notify::new());
    let in_handler = begun.clone();
    let service =
        cfgs(&registry, &broker, "svc-a").drain_timeout(Duration::from_millis(300)).on("/login/user", move |_| {
            in_handler.notify_one();
            std::future::pending::<Result<(), _>>()
        });
    let service = start(service).await;
    let sender = sender(&broker).await;
    let mut message = question("1");
    message.topic = "svc-a/login/user".to_owned();
    sender.publish(message).await;
    within(begun.notified()).await;
    within(service.close()).await.unwrap();
    // The next one of this code finds it in the session.
    let next = start(echo(cfgs(&registry, &broker, "svc-a"), "/login/user", "next")).await;
    assert_eq!(sender.next_message(SOON).await.text(), "next:/login/user:1");
    drop(next);
    // Dropped, it leaves too.
    let cfgs = registry.discover("cfgs").await.unwrap();
    within(cfgs.wait_for(pointsman::Snapshot::is_empty)).await.unwrap();
}

#[tokio::test]
async fn a_code_that_is_taken() {
    let (broker, registry) = (Mosquitto::options().verbose().start().await, registry().await);
    let first = start(echo(cfgs(&registry, &broker, "svc-a"), "/login/user", "a")).await;
    let other = Registry::connect(registry.url()).await.unwrap();
    let error = within(echo(cfgs(&other, &broker, "svc-a"), "/login/user", "b").start()).await.unwrap_err();
    assert!(matches!(error, Error::Registry(pointsman::Error::DuplicateCode { .. })), "{error}");
    // Without having been turned out of its session.
    let connects = broker.log().matches("as pointsman-service-svc-a").count();
    assert_eq!((first.trouble(), connects), (None, 1));
    within(first.close()).await.unwrap();
}

/// Another client under its client id: it comes back, but takes its time, the more the longer they fight.
#[tokio::test]
async fn a_session_that_is_taken_over() {
    let (broker, registry) = (RawBroker::start().await, registry().await);
    let builder = Service::builder(&registry, Instance::new("cfgs").code("svc-a"));
    let builder = builder.broker(format!("mqtt://{}", broker.address()).parse().unwrap());
    let starting = tokio::spawn(echo(builder, "/login/user", "a").start());
    let mut last = Instant::now();
    for (round, pause) in [0, 750, 1500].into_iter().enumerate() {
        let mut connection = broker.accept().await;
        assert!(last.elapsed() >= Duration::from_millis(pause), "round {round}: {:?}", last.elapsed());
        assert_eq!(connection.read_packet().await[0], 0x10);
        connection.write(&RawBroker::CONNACK_5).await;
        assert_eq!(connection.read_packet().await[0], 0x82);
        connection.write(&[0x90, 4, 0xff, 0xff, 0, 2]).await;
        if round == 0 {
            eventually("it has started", || starting.is_finished()).await;
        }
        last = Instant::now();
        // DISCONNECT: session taken over.
        connection.write(&[0xe0, 2, 0x8e, 0]).await;
        connection.read_until_closed(SOON).await;
    }
    let service = starting.await.unwrap().unwrap();
    assert_eq!(service.trouble().as_deref(), Some("disconnected by the broker: session taken over"));
    within(service.close()).await.unwrap();
}

#[tokio::test]
async fn passwords_and_certificates() {
    let registry = registry().await;
    let broker = MosquittoOptions::default().password("cfgs", "secret").tls().start().await;
    let service =
        |url: String| echo(Service::builder(&registry, Instance::new("cfgs")).broker(url.parse().unwrap()), "/x", "x");
    let wrong = format!("mqtt://cfgs:wrong@{}", broker.address());
    let error = within(service(wrong).start()).await.unwrap_err();
    assert!(matches!(&error, Error::Refused { .. }) && !error.to_string().contains("wrong"), "{error}");
    assert!(registry.discover("cfgs").await.unwrap().snapshot().is_empty());
    let ca = broker.tls().ca.display();
    let secure = start(service(format!("mqtts://cfgs:secret@{}?ca={ca}", broker.secure_address()))).await;
    within(secure.close()).await.unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let nobody = service(format!("mqtt://{free}")).connect_timeout(Duration::from_millis(300));
    let error = within(nobody.start()).await.unwrap_err();
    assert!(matches!(&error, Error::Unreachable { reason, .. } if reason.contains("refused")), "{error}");
}

/// What is under way when the broker ends is answered when it is back, once.
#[tokio::test]
async fn the_broker_is_restarted_in_the_middle() {
    let registry = registry().await;
    let mut broker = Mosquitto::options().persistence().start().await;
    let (begun, finish) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let of_handler = (begun.clone(), finish.clone());
    let service = cfgs(&registry, &broker, "svc-a").on("/login/user", move |request: Request| {
        let (begun, finish) = of_handler.clone();
        async move {
            if request.payload() == "slow" {
                begun.notify_one();
                finish.notified().await;
            }
            Ok(Reply::new(request.payload().clone()))
        }
    });
    let service = start(service).await;
    let sender = Paho::start().await;
    let options = PahoOptions::new(&broker.address()).client_id("sender").clean(false).reconnect();
    sender.connect(options.session_expiry(Duration::from_secs(600))).await;
    sender.subscribe("inbox/1", 2).await;
    let direct = |payload: &str| PahoMessage { topic: "svc-a/login/user".to_owned(), ..question(payload) };
    sender.publish(direct("slow")).await;
    within(begun.notified()).await;
    broker.stop().await;
    eventually("it notices", || service.trouble().is_some()).await;
    finish.notify_one();
    broker.restart().await;
    assert_eq!(sender.next_message(SOON).await.text(), "slow");
    sender.publish(direct("quick")).await;
    assert_eq!(sender.next_message(SOON).await.text(), "quick");
    assert_eq!(service.figures().handled, 2);
    within(service.close()).await.unwrap();
}

/// The broker's answer to SUBSCRIBE comes behind what has waited in the session.
#[tokio::test]
async fn a_service_with_a_backlog_starts_and_handles_it() {
    for (version, handlers_wait) in [("5", false), ("5", true), ("3.1.1", true)] {
        let (broker, registry) = (Mosquitto::start().await, registry().await);
        let options = PahoOptions::new(&broker.address()).client_id("pointsman-service-svc-a").clean(false);
        let before = Paho::start().await;
        before.connect(options.session_expiry(Duration::from_secs(600))).await;
        before.subscribe("svc-a/login/user", 1).await;
        before.disconnect().await;
        let sender = paho(&broker).await;
        for number in 0..300_u32 {
            sender.publish(PahoMessage::new("svc-a/login/user", number.to_string()).qos(1)).await;
        }
        // Either handlers work at once, or none ends before the service has started.
        let (gate, handled) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        if !handlers_wait {
            gate.close();
        }
        let (until, done) = (gate.clone(), handled.clone());
        let service = Service::builder(&registry, Instance::new("cfgs").code("svc-a"))
            .broker(format!("{}?version={version}", broker.url()).parse().unwrap())
            .on("/login/user", move |_| {
                let (until, done) = (until.clone(), done.clone());
                async move {
                    let _ = until.acquire().await;
                    done.add_permits(1);
                    Ok(Reply::new(""))
                }
            });
        let service = start(service).await;
        gate.close();
        drop(within(handled.acquire_many(300)).await.unwrap());
        within(service.close()).await.unwrap();
    }
}

#[tokio::test]
async fn a_second_service_with_the_code_does_not_touch_the_session() {
    let (broker, registry) = (Mosquitto::start().await, registry().await);
    let service = start(echo(cfgs(&registry, &broker, "svc-a"), "/login/user", "first")).await;
    for _ in 0..3 {
        let second = within(echo(cfgs(&registry, &broker, "svc-a"), "/login/user", "second").start()).await;
        assert!(matches!(second, Err(Error::Registry(pointsman::Error::DuplicateCode { .. }))), "{second:?}");
    }
    assert_eq!(service.trouble(), None);
    assert_eq!(broker.log().matches("already connected").count(), 0);
    within(service.close()).await.unwrap();
}
