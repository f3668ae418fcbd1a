//! Everything in one process: the relay inside the embedded broker.

use std::time::Duration;

use pointsman::mqtt::broker::{Broker, Options, Users};
use pointsman::mqtt::{Client, Credentials, Qos, Relay, Reply, Request, Route, Service, Settings, Topics};
use pointsman::{Instance, Registry};

/// A broker with a relay that takes so many at a time, a service behind it, and a sender.
async fn all(name: &str, max_in_flight: usize) -> (Broker, Relay, Service, Client) {
    let registry = Registry::connect(&format!("memory://{name}")).await.unwrap();
    let broker = Broker::start(Options::new(([127, 0, 0, 1], 0).into())).await.unwrap();
    let mut settings = Settings::new();
    settings.routes = vec![Route::new("^/login(/|$)", "cfgs")];
    settings.max_in_flight = max_in_flight;
    settings.response_timeout = Duration::from_secs(1);
    settings.drain_timeout = Duration::from_millis(100);
    let mut relay = Relay::start(&registry, settings, Some("mqtt-balancer"), Some(&broker)).await.unwrap();
    relay.ready().await.unwrap();
    let service = Service::builder(&registry, Instance::new("cfgs"))
        .broker(format!("mqtt://{}", broker.address()).parse().unwrap())
        .on("/login/user", |request: Request| async move { Ok(Reply::new(request.payload().clone())) })
        // Never answers.
        .on("/login/silence", |_: Request| std::future::pending::<Result<Reply, _>>())
        .drain_timeout(Duration::from_millis(100))
        .start()
        .await
        .unwrap();
    let client = Client::builder(&registry, "mqtt-balancer").start().await.unwrap();
    (broker, relay, service, client)
}

/// With the rules that go without saying, and no other.
#[tokio::test]
async fn services_and_clients_of_users_need_no_rules() {
    for topics in [Topics::CodeLast, Topics::GoEnvelope] {
        let registry = Registry::connect(&format!("memory://embedded-users-{topics}")).await.unwrap();
        let mut options = Options::new(([127, 0, 0, 1], 0).into());
        options.users = Some(Users::default().with("cfgs", "c").with("anna", "a"));
        let broker = Broker::start(options).await.unwrap();
        let mut settings = Settings::new();
        settings.topics = topics;
        settings.routes = vec![Route::new("^/?login(/|$)", "cfgs")];
        settings.filters = if topics == Topics::CodeLast { vec!["/login/#".to_owned()] } else { Vec::new() };
        let mut relay = Relay::start(&registry, settings, Some("mqtt-balancer"), Some(&broker)).await.unwrap();
        relay.ready().await.unwrap();
        let service = Service::builder(&registry, Instance::new("cfgs"))
            .broker(format!("mqtt://cfgs:c@{}", broker.address()).parse().unwrap())
            .topics(topics)
            .on("/login/user", |request: Request| async move { Ok(Reply::new(request.payload().clone())) })
            .start()
            .await
            .unwrap();
        let client = Client::builder(&registry, "mqtt-balancer")
            .credentials(Credentials::new("anna", "a"))
            // What answers to envelopes come to: the user's name.
            .name("anna")
            .topics(topics)
            .start()
            .await
            .unwrap();
        client.publish("/login/user", "x", Qos::AtLeastOnce).await.unwrap();
        let reply = client.request("/login/user", "y", Duration::from_secs(20)).await.unwrap();
        assert_eq!(*reply.payload, *b"y");
        let figures = broker.handle().figures();
        assert_eq!((figures.denied_publishes, figures.denied_subscriptions), (0, 0));
        client.close().await;
        service.close().await.unwrap();
        relay.close().await;
        broker.close().await;
    }
}

/// The acknowledgements that a request waits for come behind the requests that wait for room.
#[tokio::test]
async fn more_requests_than_there_is_room_for_are_all_answered() {
    let (broker, relay, service, client) = all("embedded-room", 10).await;
    let requests = (0..200).map(|number| {
        let client = &client;
        async move {
            let reply = client.request("/login/user", number.to_string(), Duration::from_secs(20)).await.unwrap();
            assert_eq!(*reply.payload, *number.to_string().as_bytes());
        }
    });
    futures_util::future::join_all(requests).await;
    client.close().await;
    service.close().await.unwrap();
    relay.close().await;
    broker.close().await;
}

/// What is given up makes room too, although nothing comes that would wake the relay.
#[tokio::test]
async fn who_gives_a_request_up_goes_on_with_the_next() {
    let (broker, relay, service, client) = all("embedded-tick", 1).await;
    let silence = client.request("/login/silence", "", Duration::from_secs(20));
    let answer = async {
        // When the one that will not be answered has all the room.
        while relay.figures().await.unwrap().requests == 0 {
            tokio::task::yield_now().await;
        }
        client.request("/login/user", "x", Duration::from_secs(20)).await
    };
    let (silence, answer) = tokio::join!(silence, answer);
    assert!(matches!(silence, Err(pointsman::mqtt::Error::NotDelivered { reason, .. }) if reason == "no-answer"));
    assert_eq!(*answer.unwrap().payload, *b"x");
    // The message is not acknowledged, and stays so: nobody is to wait for it.
    drop(client);
    service.close().await.unwrap();
    relay.close().await;
    broker.close().await;
}
