//! Which instance a message goes to.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::HashMap;

use pointsman_balance::Algorithm;
use pointsman_core::{Instance, Status};
use pointsman_mqtt::relay::{Relay, Route, RouteRole};
use pointsman_testkit::{Mosquitto, Paho, PahoMessage};
use support::{
    Fleet, RELAY, SOON, between, client, dead_letters, everyone, master, normal, observed, property, publish_all,
    settings, until,
};

const ABC: [&str; 3] = ["svc-a", "svc-b", "svc-c"];

/// How many of `count` messages have come to each code.
async fn shares(service: &Paho, count: usize) -> [usize; 3] {
    let mut shares = [0; 3];
    for _ in 0..count {
        let message = service.next_message(SOON).await;
        let code = message.topic.split('/').next().unwrap();
        shares[ABC.iter().position(|&other| other == code).unwrap()] += 1;
    }
    shares
}

/// A relay with one route for each algorithm, `^/<its name>(/|$)`, over instances with the weights 1, 2 and 3.
async fn all_algorithms(broker: &Mosquitto) -> (Fleet, Relay) {
    let fleet = Fleet::new(&[("cfgs", &[])]);
    for (code, weight) in ABC.iter().zip(1..) {
        fleet.join("cfgs", observed(Instance::with_code("cfgs", *code).weight(weight)));
    }
    let routes = Algorithm::ALL.map(|algorithm| {
        let mut route = Route::new(format!("^/{}(/|$)", algorithm.name()), "cfgs");
        route.algorithm = algorithm;
        route
    });
    let relay = fleet.relay(between(&broker.url(), &broker.url(), routes.to_vec())).await;
    (fleet, relay)
}

#[tokio::test]
async fn the_first_route_that_matches_wins() {
    let broker = Mosquitto::options().nodelay().start().await;
    let fleet = Fleet::new(&[("x", &["svc-a"]), ("y", &["svc-b"]), ("z", &["svc-c"])]);
    let routes = vec![Route::new("^/a/b(/|$)", "x"), Route::new("^/a/", "y"), Route::new("^/a/b/c", "z")];
    let relay = fleet.relay(between(&broker.url(), &broker.url(), routes)).await;
    let (service, sender) = (everyone(&broker, &ABC).await, client(&broker).await);
    // Always, not by chance (defect 14).
    for _ in 0..20 {
        for (topic, expected) in
            [("/a/b", "svc-a/a/b"), ("/a/b/c", "svc-a/a/b/c"), ("/a/bc", "svc-b/a/bc"), ("/a/x", "svc-b/a/x")]
        {
            sender.publish(PahoMessage::new(&format!("{topic}/{RELAY}"), "").qos(0)).await;
            assert_eq!(service.next_message(SOON).await.topic, expected);
        }
    }
    relay.close().await;
}

#[tokio::test]
async fn algorithms_without_a_key_share_out() {
    let broker = Mosquitto::options().nodelay().start().await;
    let (_fleet, relay) = all_algorithms(&broker).await;
    let (service, sender) = (everyone(&broker, &ABC).await, client(&broker).await);
    let send = async |algorithm: Algorithm, count: usize| {
        let topic = format!("/{}/x", algorithm.name());
        publish_all(&sender, (0..count).map(|_| PahoMessage::new(&topic, ""))).await;
        shares(&service, count).await
    };
    assert_eq!(send(Algorithm::RoundRobin, 60).await, [20, 20, 20]);
    assert_eq!(send(Algorithm::WeightedRoundRobin, 60).await, [10, 20, 30]);
    // Six standard deviations around 100, 100, 100 and 50, 100, 150.
    for share in send(Algorithm::Random, 300).await {
        assert!((51..=149).contains(&share), "{share} of 300");
    }
    let weighted = send(Algorithm::WeightedRandom, 300).await;
    for (share, (low, high)) in weighted.into_iter().zip([(11, 89), (51, 149), (98, 202)]) {
        assert!((low..=high).contains(&share), "{weighted:?}");
    }
    // Nothing is in flight for long: in turn, more or less by weight; and nobody is left out.
    for algorithm in [Algorithm::LeastConnections, Algorithm::PeakEwma] {
        let shares = send(algorithm, 120).await;
        assert!(shares.iter().sum::<usize>() == 120 && shares[2] > 0, "{algorithm}: {shares:?}");
    }
    relay.close().await;
}

/// Which instance each key has led to, asserting that it is always the same.
async fn stay(service: &Paho, sender: &Paho, messages: Vec<(String, PahoMessage)>) -> HashMap<String, String> {
    let mut homes = HashMap::new();
    for (key, message) in messages {
        sender.publish(message).await;
        let received = service.next_message(SOON).await;
        let code = received.topic.split('/').next().unwrap().to_owned();
        assert_eq!(homes.entry(key.clone()).or_insert_with(|| code.clone()), &code, "{key}");
    }
    homes
}

#[tokio::test]
async fn url_hash_goes_by_the_topic() {
    let broker = Mosquitto::options().nodelay().start().await;
    let (fleet, relay) = all_algorithms(&broker).await;
    let (service, sender) = (everyone(&broker, &ABC).await, client(&broker).await);
    let messages = || {
        let message = |number: usize| {
            let topic = format!("/url-hash/{}", number % 40);
            // The code at the end is none of the topic, and who sends it does not matter.
            let whole = if number < 40 { topic.clone() } else { format!("{topic}/{RELAY}") };
            let message = PahoMessage::new(&whole, "").user_property("pointsman-client-id", &number.to_string());
            (topic, message)
        };
        (0..80).map(message).collect()
    };
    let homes = stay(&service, &sender, messages()).await;
    let at = |homes: &HashMap<String, String>, code: &str| homes.values().filter(|home| *home == code).count();
    // By weight, roughly.
    assert!(at(&homes, "svc-c") > at(&homes, "svc-a") && ABC.iter().all(|code| at(&homes, code) > 0), "{homes:?}");
    // Who goes takes only its own keys with it (defect 12).
    fleet.leave("cfgs", "svc-a");
    let after = stay(&service, &sender, messages()).await;
    let moved = homes.iter().filter(|(key, home)| *home != "svc-a" && after[*key] != **home).count();
    assert!(at(&after, "svc-a") == 0 && moved <= 3, "{moved} moved");
    relay.close().await;
}

#[tokio::test]
async fn ip_hash_goes_by_the_client() {
    let broker = Mosquitto::options().nodelay().start().await;
    let fleet = Fleet::new(&[("cfgs", &ABC)]);
    let route = |pattern: &str, key_level| {
        let mut route = Route::new(pattern, "cfgs");
        (route.algorithm, route.key_level) = (Algorithm::IpHash, key_level);
        route
    };
    let routes = vec![route("^/level/", Some(2)), route("^/topic/", None)];
    let relay = fleet.relay(between(&broker.url(), &broker.url(), routes)).await;
    let (service, sender) = (everyone(&broker, &ABC).await, client(&broker).await);
    let message = |key: usize, topic: String| (key.to_string(), PahoMessage::new(&topic, ""));
    // The user property; whatever the topic.
    let by_client = (0..60).map(|number| {
        let (key, message) = message(number % 20, format!("/level/{number}/x"));
        let message = message.user_property("pointsman-client-id", &key);
        (key, message)
    });
    let homes = stay(&service, &sender, by_client.collect()).await;
    assert!(ABC.iter().all(|code| homes.values().any(|home| home == code)), "{homes:?}");
    // Without it, the level that the route names.
    let by_level = (0..60).map(|number| message(number % 20, format!("/level/{}/{number}", number % 20)));
    assert_eq!(stay(&service, &sender, by_level.collect()).await, homes);
    // Without either, the topic.
    let by_topic = (0..40).map(|number| message(number % 20, format!("/topic/{}", number % 20)));
    assert!(stay(&service, &sender, by_topic.collect()).await.len() == 20);
    relay.close().await;
}

#[tokio::test]
async fn least_connections_counts_requests_until_they_are_answered() {
    let broker = Mosquitto::options().nodelay().start().await;
    let fleet = Fleet::new(&[("cfgs", &["slow", "fast"])]);
    let mut settings = settings(&broker);
    settings.routes[0].algorithm = Algorithm::LeastConnections;
    let relay = fleet.relay(settings).await;
    let (slow, fast) = (everyone(&broker, &["slow"]).await, everyone(&broker, &["fast"]).await);
    let sender = client(&broker).await;
    sender.subscribe("inbox", 1).await;
    let ask = async || {
        sender.publish(PahoMessage::new(&format!("/login/{RELAY}"), "q").response_topic("inbox")).await;
    };
    let answer = async |service: &Paho, question: PahoMessage, text: &str| {
        service.publish(PahoMessage::new(&question.response_topic.unwrap(), text)).await;
        assert_eq!(sender.next_message(SOON).await.text(), text);
    };
    // One of the first two goes to the slow one; as long as it has not answered, all others go to the fast one.
    ask().await;
    ask().await;
    let held = slow.next_message(SOON).await;
    answer(&fast, fast.next_message(SOON).await, "fast").await;
    for _ in 0..10 {
        ask().await;
        answer(&fast, fast.next_message(SOON).await, "fast").await;
    }
    answer(&slow, held, "slow").await;
    // Its answer has released it (defect 11).
    ask().await;
    ask().await;
    for (service, name) in [(&fast, "fast"), (&slow, "slow")] {
        answer(service, service.next_message(SOON).await, name).await;
    }
    until(&relay, "idle", |figures| figures.requests == 0 && figures.responses == 14).await;
    relay.close().await;
}

#[tokio::test]
async fn roles_and_the_fall_back_to_the_master() {
    let broker = Mosquitto::options().nodelay().start().await;
    let fleet = Fleet::new(&[("cfgs", &["svc-a"])]);
    fleet.join("cfgs", master("cfgs", "svc-b"));
    let mut to_master = Route::new("^/master/", "cfgs");
    to_master.role = RouteRole::Master;
    let routes = vec![to_master, Route::new("^/normal/", "cfgs")];
    let relay = fleet.relay(between(&broker.url(), &broker.url(), routes)).await;
    let (service, sender, dead) = (everyone(&broker, &ABC).await, client(&broker).await, dead_letters(&broker).await);
    let goes = async |topic: &str, expected: &str| {
        for _ in 0..4 {
            sender.publish(PahoMessage::new(topic, "")).await;
            assert_eq!(service.next_message(SOON).await.topic, format!("{expected}{topic}"));
        }
    };
    goes("/master/x", "svc-b").await;
    goes("/normal/x", "svc-a").await;
    fleet.leave("cfgs", "svc-a");
    goes("/normal/x", "svc-b").await;
    fleet.join("cfgs", normal("cfgs", "svc-c"));
    goes("/normal/x", "svc-c").await;
    // A normal one never stands in for the master.
    fleet.leave("cfgs", "svc-b");
    sender.publish(PahoMessage::new("/master/x", "m")).await;
    let letter = dead.next_message(SOON).await;
    assert_eq!((letter.topic.as_str(), letter.text()), ("pointsman/dead-letter//master/x", "m"));
    assert_eq!(property(&letter, "pointsman-reason"), Some("no-instance"));
    fleet.join("cfgs", master("cfgs", "svc-a"));
    goes("/master/x", "svc-a").await;
    relay.close().await;
}

#[tokio::test]
async fn a_sticky_route_stays_with_the_code_in_the_topic() {
    let broker = Mosquitto::options().nodelay().start().await;
    let fleet = Fleet::new(&[("cfgs", &["svc-a", "svc-b"]), ("other", &["svc-c"])]);
    fleet.join("cfgs", master("cfgs", "svc-m"));
    let mut sticky = Route::new("^/sticky(/|$)", "cfgs");
    sticky.sticky = true;
    let routes = vec![sticky, Route::new("^/turn(/|$)", "cfgs"), Route::new("^/other(/|$)", "other")];
    let relay = fleet.relay(between(&broker.url(), &broker.url(), routes)).await;
    let all = ["svc-a", "svc-b", "svc-c", "svc-m"];
    let (service, sender) = (everyone(&broker, &all).await, client(&broker).await);
    let to = async |topic: &str| {
        sender.publish(PahoMessage::new(topic, "")).await;
        service.next_message(SOON).await.topic
    };
    for code in ["svc-a", "svc-b", "svc-m"] {
        for _ in 0..5 {
            assert_eq!(to(&format!("/sticky/x/{code}")).await, format!("{code}/sticky/x"));
        }
    }
    // Another service's instance is a code, but does not choose; nor does an instance where the route is not sticky.
    for topic in ["/sticky/x/svc-c", "/turn/x/svc-a"] {
        let mut seen = [to(topic).await, to(topic).await];
        seen.sort();
        let topic = topic.rsplit_once('/').unwrap().0;
        assert_eq!(seen, [format!("svc-a{topic}"), format!("svc-b{topic}")]);
    }
    // Who is drained, or gone, is not stayed with.
    let mut drained = normal("cfgs", "svc-a");
    drained.status = Status::Drained;
    fleet.join("cfgs", drained);
    assert_eq!(to("/sticky/x/svc-a").await, "svc-b/sticky/x");
    fleet.leave("cfgs", "svc-a");
    fleet.join("cfgs", observed(Instance::with_code("cfgs", "svc-b").weight(0)));
    // Not known any more: a level like any other.
    assert_eq!(to("/sticky/x/svc-a").await, "svc-m/sticky/x/svc-a");
    relay.close().await;
}

#[tokio::test]
async fn topics_with_and_without_codes() {
    let broker = Mosquitto::options().nodelay().start().await;
    let fleet = Fleet::new(&[("cfgs", &["svc-a"]), ("other", &["knöwn~code"])]);
    let routes = vec![Route::new("^/login(/|$)", "cfgs"), Route::new("^m/nos(/|$)", "cfgs")];
    let relay = fleet.relay(between(&broker.url(), &broker.url(), routes)).await;
    let (service, sender) = (everyone(&broker, &["svc-a"]).await, client(&broker).await);
    for (topic, expected) in [
        ("/login", "svc-a/login"),
        ("/login/user", "svc-a/login/user"),
        ("/login/user/0B0E3C2C-7f0a-4a34-9f4c-1d2b3c4d5e6f", "svc-a/login/user"),
        ("/login/user/svc-a", "svc-a/login/user"),
        ("/login/user/knöwn~code", "svc-a/login/user"),
        ("/login/user/unknown", "svc-a/login/user/unknown"),
        ("/login/user/", "svc-a/login/user/"),
        ("/login//", "svc-a/login//"),
        ("/login/0b0e3c2c-7f0a-4a34-9f4c-1d2b3c4d5e6f/x", "svc-a/login/0b0e3c2c-7f0a-4a34-9f4c-1d2b3c4d5e6f/x"),
        // Defect 19.
        ("m/nos", "svc-a/m/nos"),
        ("m/nos/efda4376-529c-4752-a264-553aa0c7f989", "svc-a/m/nos"),
    ] {
        sender.publish(PahoMessage::new(topic, "")).await;
        assert_eq!(service.next_message(SOON).await.topic, expected, "{topic}");
    }
    relay.close().await;
}

#[tokio::test]
async fn who_is_drained_or_weighs_nothing_gets_nothing() {
    let broker = Mosquitto::options().nodelay().start().await;
    let (fleet, relay) = all_algorithms(&broker).await;
    let (service, sender, dead) = (everyone(&broker, &ABC).await, client(&broker).await, dead_letters(&broker).await);
    let drained = |code: &str| {
        let mut instance = normal("cfgs", code);
        instance.status = Status::Drained;
        instance
    };
    fleet.join("cfgs", drained("svc-a"));
    fleet.join("cfgs", observed(Instance::with_code("cfgs", "svc-b").weight(0)));
    let one_each =
        || Algorithm::ALL.map(|algorithm| PahoMessage::new(&format!("/{}/{RELAY}", algorithm.name()), "x")).to_vec();
    publish_all(&sender, one_each()).await;
    assert_eq!(shares(&service, 8).await, [0, 0, 8]);
    // Nobody left (defect 10).
    fleet.join("cfgs", drained("svc-c"));
    publish_all(&sender, one_each()).await;
    for _ in 0..8 {
        let letter = dead.next_message(SOON).await;
        assert_eq!(property(&letter, "pointsman-reason"), Some("no-instance"));
        assert!(property(&letter, "pointsman-detail").unwrap().contains("all 3 are drained"), "{letter:?}");
    }
    fleet.join("cfgs", normal("cfgs", "svc-b"));
    publish_all(&sender, one_each()).await;
    assert_eq!(shares(&service, 8).await, [0, 8, 0]);
    relay.close().await;
}
