//! `serve`, with a registry, a sender and a service that are none of ours.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use pointsman_testkit::{Mosquitto, Paho, PahoMessage, PahoOptions, ZooKeeper, unique_prefix};
use rustix::process::Signal;
use serde_json::Value;
use support::served::{File, check_metrics, free_port, get, logged, serve};
use support::{DEADLINE, Running, command, run, stderr, stdout};

async fn paho(address: &str) -> Paho {
    let paho = Paho::start().await;
    paho.connect(PahoOptions::new(address)).await;
    paho
}

/// An instance `svc` of the service `cfgs`.
async fn instance(registry: &str) -> Running {
    let args = ["register", "cfgs", "--code", "svc", "-o", "json", "--registry", registry];
    let mut running = Running::start(command(args));
    running.json_where(|line| line["role"] == "master").await;
    running
}

#[tokio::test]
async fn a_wrong_configuration_ends_it_at_once() {
    let file = File::new("registry = 'zookeeper://127.0.0.1:1/p'\n[http]\n[mqtt]\nlisen = 1\n");
    let output = run(&["serve", "--config", file.path.to_str().unwrap()]).await;
    assert_eq!((output.status.code(), stdout(&output)), (Some(1), String::new()));
    for words in [
        ":2:1: error: ",
        "without a [[http.route]] there is nothing to do",
        ":4:1: error: ",
        "did you mean listen?",
        "^^^^^",
    ] {
        assert!(stderr(&output).contains(words), "{}", stderr(&output));
    }
    let file = File::new("[mqtt]\nroute = [{ match = '^/a/', service = 's' }]\n");
    let output = command(["serve"]).env("POINTSMAN_CONFIG", &file.path).output().await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("error: no registry is named"), "{}", stderr(&output));
    let output = command(["serve", "-c"])
        .arg(&file.path)
        .env("POINTSMAN_REGISTRY", "memory://x")
        .env("POINTSMAN_MQTT_PASSWORD", "geheim")
        .output()
        .await
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let told = stderr(&output);
    assert!(told.contains("POINTSMAN_MQTT_USER") && !told.contains("geheim"), "{told}");
    assert!(!told.contains("registry is not named"), "{told}");
}

#[tokio::test]
async fn it_waits_for_the_registry_and_can_be_ended_meanwhile() {
    let metrics = free_port();
    let file = File::new(&format!(
        "registry = 'zookeeper://127.0.0.1:1/p'\nmetrics.listen = '127.0.0.1:{metrics}'\n[mqtt]\n\
         route = [{{ match = '^/a/', service = 's' }}]\n"
    ));
    let mut running = serve(&file.path);
    logged(&mut running, "waiting for the registry").await;
    assert!(get(metrics, "/livez").await.starts_with("HTTP/1.1 200 "));
    assert!(get(metrics, "/metrics").await.starts_with("HTTP/1.1 503 "));
    running.signal(Signal::TERM);
    assert_eq!(running.ended().await.code(), Some(0));
}

#[tokio::test]
async fn the_embedded_broker_the_relay_and_what_changes_while_they_run() {
    let registry = format!("zookeeper://{}{}", ZooKeeper::shared().await.address(), unique_prefix());
    let (broker, metrics) = (free_port(), free_port());
    let text = |pattern: &str, port: u16| {
        format!(
            "registry = 'zookeeper://127.0.0.1:1/the-flag-beats-it'\nmetrics.listen = '127.0.0.1:{metrics}'\n\
             [mqtt]\nlisten = '127.0.0.1:{port}'\nregister_as = 'mqtt-balancer'\n\
             [[mqtt.route]]\nmatch = '{pattern}'\nservice = 'cfgs'\n"
        )
    };
    let _instance = instance(&registry).await;
    let file = File::new(&text("^/login(/|$)", broker));
    let mut start = command([Path::new("serve"), Path::new("-c"), &file.path]);
    start.env("POINTSMAN_REGISTRY", &registry);
    let mut running = Running::start_with_stderr(start);
    logged(&mut running, " ready register_as=\"mqtt-balancer\"").await;
    let address = format!("127.0.0.1:{broker}");
    let (service, sender) = (paho(&address).await, paho(&address).await);
    service.subscribe("svc/#", 1).await;
    let passes = async |topic: &str| {
        let start = Instant::now();
        // "Reloaded" is said when the relay has asked the broker for other topics. 0x10: nobody has subscribed yet.
        while sender.publish(PahoMessage::new(topic, "x").qos(1)).await == 0x10 {
            assert!(start.elapsed() < DEADLINE, "nobody takes {topic}");
        }
        assert_eq!(service.next_message(DEADLINE).await.topic, format!("svc{topic}"));
    };
    passes("/login/user").await;

    file.replace(&text("^/logout(/|$)", broker));
    logged(&mut running, "configuration reloaded").await;
    passes("/logout/user").await;
    file.replace("[mqtt]\nlisen = 1\n");
    let line = logged(&mut running, "did you mean listen?").await;
    assert!(line.contains("line=2") && line.contains("column=1"), "{line}");
    logged(&mut running, "the configuration is wrong: everything stays as it is").await;
    passes("/logout/again").await;
    let told = get(metrics, "/metrics").await;
    check_metrics(&told);
    for words in [
        "pointsman_config_stale 1",
        "pointsman_config_reloads_total{result=\"applied\"} 1",
        "pointsman_mqtt_messages_delivered_total{route=\"^/logout(/|$)\"",
        "pointsman_broker_messages_received_total ",
        "pointsman_ready 1",
    ] {
        assert!(told.contains(words), "{words}: {told}");
    }
    file.replace(&text("^/third(/|$)", broker + 1));
    let line = logged(&mut running, "takes effect after a restart").await;
    assert!(line.contains("mqtt.listen"), "{line}");
    passes("/third").await;
    running.signal(Signal::HUP);
    logged(&mut running, "configuration reloaded").await;

    let args = ["instances", "mqtt-balancer", "-o", "json", "--all", "--registry", &registry];
    let listed: Value = serde_json::from_str(&stdout(&run(&args).await)).unwrap();
    assert_eq!(listed[0]["address"], address, "{listed}");
    running.signal(Signal::TERM);
    assert_eq!(running.ended().await.code(), Some(0));
    assert_eq!(stdout(&run(&args).await).trim(), "[]");
}

#[tokio::test]
async fn a_broker_of_ones_own_with_a_password_from_the_environment_and_a_second_signal() {
    let registry = format!("zookeeper://{}{}", ZooKeeper::shared().await.address(), unique_prefix());
    let _instance = instance(&registry).await;
    let broker = Mosquitto::options().password("relay", "geheim").start().await;
    let file = File::new(&format!(
        "registry = '{registry}'\n[mqtt]\ningress = 'mqtt://{}'\ndrain_timeout = '1h'\n\
         [[mqtt.route]]\nmatch = '^/login(/|$)'\nservice = 'cfgs'\n",
        broker.address()
    ));
    let mut start = command([Path::new("serve"), Path::new("-c"), &file.path]);
    start.env("POINTSMAN_MQTT_USER", "relay").env("POINTSMAN_MQTT_PASSWORD", "geheim");
    let mut running = Running::start_with_stderr(start);
    logged(&mut running, " ready").await;
    let sender = Paho::start().await;
    sender.connect(PahoOptions::new(&broker.address()).password("relay", "geheim")).await;
    let service = Paho::start().await;
    service.connect(PahoOptions::new(&broker.address()).password("relay", "geheim")).await;
    service.subscribe("svc/#", 1).await;
    sender.publish(PahoMessage::new("/login", "x").qos(1).response_topic("answers")).await;
    service.next_message(DEADLINE).await;
    // Nobody answers the request, so that there is something to wait for.
    running.signal(Signal::TERM);
    logged(&mut running, "leaving").await;
    assert!(running.runs());
    running.signal(Signal::TERM);
    assert_eq!(running.ended().await.code(), Some(130));
}

#[tokio::test]
async fn kill_9_loses_no_acknowledged_message_and_doubles_none_of_qos_2() {
    const MESSAGES: usize = 60;
    let registry = format!("zookeeper://{}{}?session_timeout=2s", ZooKeeper::shared().await.address(), unique_prefix());
    let _instance = instance(&registry).await;
    let broker = Mosquitto::options().nodelay().start().await;
    let file = File::new(&format!(
        "registry = '{registry}'\n[mqtt]\ningress = 'mqtt://{}'\ncode = 'relay-1'\nstate = 'state'\n\
         register_as = 'mqtt-balancer'\n[[mqtt.route]]\nmatch = '^/login(/|$)'\nservice = 'cfgs'\n",
        broker.address()
    ));
    let mut running = serve(&file.path);
    logged(&mut running, " ready").await;
    let (sender, service) = (paho(&broker.address()).await, paho(&broker.address()).await);
    service.subscribe("svc/#", 2).await;
    let mut counts = BTreeMap::new();
    for round in 0..3 {
        let publish = async {
            for number in 0..MESSAGES {
                let qos = 1 + u8::try_from(number % 2).unwrap();
                let text = format!("{qos} {round} {number}");
                assert_eq!(sender.publish(PahoMessage::new("/login", text).qos(qos)).await, 0);
            }
        };
        let kill = async {
            // In the middle of it.
            for _ in 0..MESSAGES / 3 {
                *counts.entry(service.next_message(DEADLINE).await.text().to_owned()).or_insert(0) += 1;
            }
            running.signal(Signal::KILL);
        };
        tokio::join!(publish, kill);
        running = serve(&file.path);
        while counts.len() < MESSAGES * (round + 1) {
            *counts.entry(service.next_message(DEADLINE).await.text().to_owned()).or_insert(0) += 1;
        }
    }
    while let Some(message) = service.try_next_message(Duration::from_millis(100)).await {
        *counts.entry(message.text().to_owned()).or_insert(0) += 1;
    }
    let doubled: Vec<_> = counts.iter().filter(|(text, count)| text.starts_with('2') && **count > 1).collect();
    assert!(doubled.is_empty(), "{doubled:?}");
    running.signal(Signal::TERM);
    assert_eq!(running.ended().await.code(), Some(0));
}
