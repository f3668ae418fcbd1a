//! Bad weather: who is silent, who is in the way, who comes and goes.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use pointsman_mqtt::relay::{Route, Settings};
use pointsman_testkit::{CuttingProxy, Echo, Mosquitto, Paho, PahoMessage, PahoOptions, RawBroker};
use support::{
    Fleet, RELAY, SOON, between, client, collect, connected, everyone, figures, numbered, publish_all, rest, service,
    settings, until,
};

/// From `ingress` to the service behind `egress`, both `host:port` and options.
fn over(ingress: &str, egress: &str) -> Settings {
    between(&format!("mqtt://{ingress}"), &format!("mqtt://{egress}"), vec![Route::new("^/login(/|$)", "cfgs")])
}

async fn broker() -> Mosquitto {
    Mosquitto::options().nodelay().start().await
}

/// Whether a broker still has a session of the relay.
async fn has_session(broker: &Mosquitto, end: &str) -> bool {
    let paho = Paho::start().await;
    let options = PahoOptions::new(&broker.address()).client_id(&format!("pointsman-{RELAY}-{end}"));
    paho.connect(options.clean(false)).await.session_present
}

#[tokio::test]
async fn a_broker_that_accepts_and_never_answers_is_waited_for() {
    let (ingress, egress) = (broker().await, RawBroker::start().await);
    let fleet = Fleet::new(&[("cfgs", &["svc-a"])]);
    let settings = over(&ingress.address(), &egress.address());
    let relay = pointsman_mqtt::relay::Relay::start(settings, fleet.views(), fleet.changed(), None).unwrap();
    connected(&relay, &ingress.address(), true).await;
    let sender = client(&ingress).await;
    while sender.publish(PahoMessage::new("/login", "m")).await != 0 {}
    until(&relay, "held", |figures| figures.in_flight == 1).await;
    assert!(tokio::time::timeout(Duration::ZERO, relay.ready()).await.is_err());
    let mut connection = egress.accept().await;
    assert_eq!(connection.read_packet().await[0], 0x10);
    connection.write(&RawBroker::CONNACK_5).await;
    // The answers' subscription comes before what has waited: an answer may be quick.
    let subscribe = connection.read_packet().await;
    assert_eq!(subscribe[0], 0x82);
    let publish = connection.read_packet().await;
    assert_eq!(publish[0], 0x32);
    connection.write(&[0x90, 4, subscribe[2], subscribe[3], 0, 2]).await;
    let id = publish[4 + usize::from(publish[3])..].to_vec();
    connection.write(&[0x40, 2, id[0], id[1]]).await;
    until(&relay, "through", |figures| figures.in_flight == 0 && figures.delivered == 1).await;
    relay.ready().await.unwrap();
    relay.close().await;
}

#[tokio::test]
async fn a_connection_that_is_half_open_is_noticed_and_given_up() {
    let (ingress, egress) = (broker().await, broker().await);
    let proxies = [&ingress, &egress].map(|broker| CuttingProxy::start(broker.socket_address()));
    let with = |proxy: &CuttingProxy| format!("{}?keep_alive=1s", proxy.address());
    let fleet = Fleet::new(&[("cfgs", &["svc-a"])]);
    let relay = fleet.relay(over(&with(&proxies[0]), &with(&proxies[1]))).await;
    let (service, sender) = (everyone(&egress, &["svc-a"]).await, client(&ingress).await);
    for proxy in &proxies {
        proxy.blackhole();
        let start = Instant::now();
        connected(&relay, &proxy.address(), false).await;
        let noticed = start.elapsed();
        assert!(noticed < Duration::from_millis(2500), "noticed after {noticed:?}");
        publish_all(&sender, numbered("/login", 0..20, 2)).await;
        proxy.cut();
        proxy.mend();
        assert_eq!(collect(&service, 20).await, ((0..20).collect(), 0));
    }
    relay.close().await;
}

#[tokio::test]
async fn brokers_that_are_stopped_for_a_while_lose_nothing() {
    let (ingress, egress) = (broker().await, broker().await);
    let fleet = Fleet::new(&[("cfgs", &["svc-a"])]);
    let with = |broker: &Mosquitto| format!("{}?keep_alive=1s", broker.address());
    let relay = fleet.relay(over(&with(&ingress), &with(&egress))).await;
    let (service, sender) = (everyone(&egress, &["svc-a"]).await, client(&ingress).await);
    egress.pause();
    publish_all(&sender, numbered("/login", 0..100, 1)).await;
    connected(&relay, &egress.address(), false).await;
    ingress.pause();
    connected(&relay, &ingress.address(), false).await;
    ingress.resume();
    egress.resume();
    assert!(collect(&service, 100).await.0.is_sorted());
    until(&relay, "idle", |figures| figures.in_flight == 0).await;
    relay.close().await;
}

#[tokio::test]
async fn two_relays_with_one_code_fight_ever_more_slowly_and_lose_nothing() {
    let broker = broker().await;
    let proxies = [CuttingProxy::start(broker.socket_address()), CuttingProxy::start(broker.socket_address())];
    let fleet = Fleet::new(&[("cfgs", &["svc-a"])]);
    let (service, sender) = (everyone(&broker, &["svc-a"]).await, client(&broker).await);
    let one = fleet.relay(over(&proxies[0].address(), &broker.address())).await;
    let settings = over(&proxies[1].address(), &broker.address());
    let other = pointsman_mqtt::relay::Relay::start(settings, fleet.views(), fleet.changed(), None).unwrap();
    // This is the time in which they may not do it too often.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let fights: usize = proxies.iter().map(CuttingProxy::accepted).sum();
    assert!((3..=16).contains(&fights), "{fights} connections in three seconds");
    publish_all(&sender, numbered("/login", 0..100, 1)).await;
    other.close().await;
    collect(&service, 100).await;
    one.close().await;
}

#[tokio::test]
async fn a_wrong_password_is_tried_ever_more_slowly_until_it_is_put_right() {
    let broker = Mosquitto::options().nodelay().password("user", "right").start().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("auth");
    std::fs::write(&file, "user:wrong").unwrap();
    let fleet = Fleet::new(&[("cfgs", &["svc-a"])]);
    let at = format!("{}?auth_file={}", broker.address(), file.display());
    let relay = pointsman_mqtt::relay::Relay::start(over(&at, &at), fleet.views(), fleet.changed(), None).unwrap();
    let attempts = || broker.log().matches("not authorised").count();
    let start = Instant::now();
    while attempts() < 8 {
        assert!(start.elapsed() < SOON);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Four on each side: after 0, 0.1, 0.3 and 0.7 s, with jitter half of that.
    assert!(start.elapsed() > Duration::from_millis(300), "{:?}", start.elapsed());
    assert!(tokio::time::timeout(Duration::ZERO, relay.ready()).await.is_err());
    std::fs::write(&file, "user:right\n").unwrap();
    tokio::time::timeout(SOON, relay.ready()).await.unwrap().unwrap();
    relay.close().await;
}

#[tokio::test]
async fn retained_messages_at_subscription_are_no_news() {
    let broker = broker().await;
    let sender = Paho::start().await;
    sender.connect(PahoOptions::new(&broker.address()).max_inflight(0)).await;
    let old = (0..2000).map(|number| PahoMessage::new(&format!("/login/{number}"), "old").retain());
    publish_all(&sender, old).await;
    let service = everyone(&broker, &["svc-a"]).await;
    for version in ["5", "3.1.1"] {
        let fleet = Fleet::new(&[("cfgs", &["svc-a"])]);
        let ingress = format!("{}?version={version}", broker.address());
        let relay = fleet.relay(over(&ingress, &broker.address())).await;
        sender.publish(PahoMessage::new("/login/new", "new")).await;
        assert_eq!(service.next_message(SOON).await.text(), "new");
        assert_eq!(figures(&relay).await.received, 1);
        relay.close().await;
    }
}

#[tokio::test]
async fn two_instances_with_one_code_are_two() {
    let broker = broker().await;
    let fleet = Fleet::new(&[("x", &["twin"]), ("y", &["twin"])]);
    let mut settings = settings(&broker);
    settings.routes = vec![Route::new("^/x(/|$)", "x"), Route::new("^/y(/|$)", "y")];
    let relay = fleet.relay(settings).await;
    let (service, sender) = (everyone(&broker, &["twin"]).await, client(&broker).await);
    for topic in ["/x/1", "/y/1"] {
        sender.publish(PahoMessage::new(&format!("{topic}/twin"), "")).await;
        assert_eq!(service.next_message(SOON).await.topic, format!("twin{topic}"));
    }
    // When one goes the other is still known.
    fleet.leave("x", "twin");
    sender.publish(PahoMessage::new("/y/1/twin", "")).await;
    assert_eq!(service.next_message(SOON).await.topic, "twin/y/1");
    relay.close().await;
}

#[tokio::test]
async fn a_reload_under_load_loses_nothing_and_duplicates_nothing() {
    let broker = broker().await;
    let fleet = Fleet::new(&[("cfgs", &["svc-a"]), ("other", &["svc-b"])]);
    let relay = fleet.relay(settings(&broker)).await;
    let (service, sender) = (everyone(&broker, &["svc-a"]).await, client(&broker).await);
    for qos in [1, 2] {
        let reloading = async {
            for round in 0..10 {
                let mut settings = settings(&broker);
                if round % 2 == 0 {
                    settings.routes.insert(0, Route::new(format!("^/other/{round}(/|$)"), "other"));
                }
                settings.max_in_flight = 50 + round;
                relay.reload(settings, fleet.views()).await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        tokio::join!(publish_all(&sender, numbered("/login", 0..600, qos)), reloading);
        assert_eq!(collect(&service, 600).await.1, 0);
        assert_eq!(rest(&service, &sender, "svc-a").await, 0);
    }
    // What is wrong changes nothing.
    let mut wrong = settings(&broker);
    wrong.routes.push(Route::new("^/x", "unknown"));
    relay.reload(wrong, fleet.views()).await.unwrap_err();
    sender.publish(PahoMessage::new("/login", "still")).await;
    assert_eq!(service.next_message(SOON).await.text(), "still");
    relay.close().await;
}

#[tokio::test]
async fn a_reload_without_a_connection_holds_when_it_is_back() {
    let broker = broker().await;
    let proxy = CuttingProxy::start(broker.socket_address());
    let fleet = Fleet::new(&[("cfgs", &["svc-a"])]);
    let with = |patterns: &[&str]| {
        let mut settings = over(&proxy.address(), &broker.address());
        settings.routes = patterns.iter().map(|pattern| Route::new(*pattern, "cfgs")).collect();
        settings
    };
    let relay = fleet.relay(with(&["^/old/", "^/kept/"])).await;
    proxy.cut();
    connected(&relay, &proxy.address(), false).await;
    relay.reload(with(&["^/new/", "^/kept/"]), fleet.views()).await.unwrap();
    proxy.mend();
    tokio::time::timeout(SOON, relay.ready()).await.unwrap().unwrap();
    let (service, sender) = (everyone(&broker, &["svc-a"]).await, client(&broker).await);
    for topic in ["/new/x", "/kept/x"] {
        assert_eq!(sender.publish(PahoMessage::new(topic, "")).await, 0);
        assert_eq!(service.next_message(SOON).await.topic, format!("svc-a{topic}"));
    }
    // UNSUBSCRIBE follows SUBSCRIBE, whose acknowledgement has been waited for; that of the next one says that it is done.
    relay.reload(with(&["^/newer/", "^/kept/"]), fleet.views()).await.unwrap();
    tokio::time::timeout(SOON, relay.ready()).await.unwrap().unwrap();
    assert_eq!(sender.publish(PahoMessage::new("/newer/x", "")).await, 0);
    let start = Instant::now();
    for topic in ["/old/x", "/new/x"] {
        // No matching subscribers.
        while sender.publish(PahoMessage::new(topic, "")).await != 0x10 {
            assert!(start.elapsed() < SOON, "{topic} is still subscribed to");
        }
    }
    relay.close().await;
}

#[tokio::test]
async fn a_relay_that_leaves_its_group_completes_requests_and_leaves_no_session() {
    let (ingress, egress) = (broker().await, broker().await);
    let fleet = Fleet::new(&[("cfgs", &["svc-a"])]);
    let relay = fleet.relay(over(&ingress.address(), &egress.address())).await;
    let (service, sender) = (service(&egress, "svc-a").await, client(&ingress).await);
    service.echo(Echo::default().delay(Duration::from_millis(300))).await;
    sender.subscribe("inbox", 2).await;
    let requests = numbered("/login", 0..50, 2).into_iter().map(|message| message.response_topic("inbox"));
    publish_all(&sender, requests).await;
    until(&relay, "asked", |figures| figures.received > 0).await;
    relay.leave_group().await;
    let (mut numbers, again) = collect(&sender, 50).await;
    numbers.sort_unstable();
    assert_eq!((numbers, again), ((0..50).collect(), 0));
    assert!(!has_session(&ingress, "in").await && !has_session(&egress, "out1").await);
    assert_eq!(sender.publish(PahoMessage::new("/login", "nobody")).await, 0x10);
}

#[tokio::test]
async fn who_cannot_see_through_what_is_under_way_leaves_it_to_its_next_life() {
    let (ingress, egress) = (broker().await, broker().await);
    let proxy = CuttingProxy::start(egress.socket_address());
    let fleet = Fleet::new(&[("cfgs", &["svc-a"])]);
    let mut settings = over(&ingress.address(), &proxy.address());
    settings.drain_timeout = Duration::from_millis(200);
    let relay = fleet.relay(settings.clone()).await;
    let (service, sender) = (everyone(&egress, &["svc-a"]).await, client(&ingress).await);
    proxy.cut();
    connected(&relay, &proxy.address(), false).await;
    for qos in [1, 2] {
        publish_all(&sender, numbered("/login", (usize::from(qos) - 1) * 10..usize::from(qos) * 10, qos)).await;
    }
    until(&relay, "waiting", |figures| figures.in_flight == 20).await;
    tokio::time::timeout(Duration::from_secs(5), relay.close()).await.unwrap();
    proxy.mend();
    let relay = fleet.relay(settings).await;
    assert_eq!(collect(&service, 20).await, ((0..20).collect(), 0));
    relay.close().await;
}

#[tokio::test]
async fn a_connection_lost_while_leaving_keeps_nobody() {
    let (ingress, egress) = (broker().await, broker().await);
    let proxy = CuttingProxy::start(ingress.socket_address());
    let fleet = Fleet::new(&[("cfgs", &["svc-a"])]);
    let relay = fleet.relay(over(&proxy.address(), &egress.address())).await;
    let (service, sender) = (service(&egress, "svc-a").await, client(&ingress).await);
    service.echo(Echo::default().delay(Duration::from_millis(1000))).await;
    sender.subscribe("inbox", 2).await;
    let requests = numbered("/login", 0..10, 1).into_iter().map(|message| message.response_topic("inbox"));
    publish_all(&sender, requests).await;
    until(&relay, "asked", |figures| figures.requests == 10).await;
    // It is back before the answers are there.
    let before = proxy.accepted();
    let (_, ()) = tokio::join!(collect(&sender, 10), async {
        let closing = relay.leave_group();
        tokio::pin!(closing);
        assert!(tokio::time::timeout(Duration::from_millis(50), &mut closing).await.is_err());
        proxy.cut_once();
        tokio::time::timeout(Duration::from_secs(8), closing).await.expect("closed before the drain timeout");
    });
    assert!(proxy.accepted() > before);
    assert_eq!(sender.publish(PahoMessage::new("/login", "nobody")).await, 0x10);
}

#[tokio::test]
async fn routes_that_are_gone_leave_the_metrics() {
    let broker = broker().await;
    let fleet = Fleet::new(&[("cfgs", &["svc-a"])]);
    let with = |reload: usize| {
        let of_reload = (0..20).map(|route| format!("^/reload{reload}/route{route}/"));
        let routes = of_reload.chain(["^/kept/".to_owned()]).map(|pattern| Route::new(pattern, "cfgs")).collect();
        between(&broker.url(), &broker.url(), routes)
    };
    let relay = fleet.relay(with(10)).await;
    let (service, sender) = (everyone(&broker, &["svc-a"]).await, client(&broker).await);
    sender.publish(PahoMessage::new("/kept/x", "").qos(1)).await;
    service.next_message(SOON).await;
    let size = relay.metrics().await.unwrap().len();
    for reload in 11..30 {
        relay.reload(with(reload), fleet.views()).await.unwrap();
    }
    let metrics = relay.metrics().await.unwrap();
    assert!(metrics.len() < size + size / 10, "{size} bytes have become {}", metrics.len());
    assert!(metrics.contains("reload29") && !metrics.contains("reload28"));
    // What stays goes on counting.
    let received = "messages_received_total{route=\"^/kept/\",service=\"cfgs\",qos=\"1\"} 1";
    assert!(metrics.contains(received), "{metrics}");
    relay.close().await;
}
