//! `serve` with a registry for each section and each route: services live under one prefix, balancers under another, as in every sample
//! configuration of go-micro-service.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fmt::Debug;
use std::time::Duration;

use pointsman_testkit::http::HyperOrigin;
use pointsman_testkit::{
    Foreign, ForeignRole, Paho, PahoMessage, PahoOptions, ZooKeeper, read_as_foreign, unique_prefix,
};
use rustix::process::Signal;
use support::served::{File, check_metrics, free_port, logged, serve, try_get};
use support::{DEADLINE, Running, command, run, stderr};
use tokio::time::timeout;

/// How long something may take that does not wait for a registry which is away.
const PROMPTLY: Duration = Duration::from_secs(5);
/// Nothing listens there.
const NOWHERE: &str = "zookeeper://127.0.0.1:1/nowhere";

/// Asks again until the answer is as wanted.
async fn until<T: Debug>(within: Duration, mut ask: impl AsyncFnMut() -> T, wanted: impl Fn(&T) -> bool) -> T {
    let mut last = None;
    let asking = async {
        loop {
            let answer = ask().await;
            if wanted(&answer) {
                return answer;
            }
            last = Some(answer);
            tokio::task::yield_now().await;
        }
    };
    timeout(within, asking).await.unwrap_or_else(|_| panic!("never as wanted, but {last:?}"))
}

/// Waits until requests for `path` are answered by the origin with this name.
async fn answered_by(within: Duration, port: u16, path: &str, origin: &str) {
    let field = format!("x-origin: {origin}");
    until(within, async || try_get(port, path).await.unwrap_or_default(), |response| response.contains(&field)).await;
}

async fn status(port: u16, path: &str) -> String {
    let response = try_get(port, path).await.unwrap_or_default();
    response.split(' ').nth(1).unwrap_or_default().to_owned()
}

/// An instance of `ress`, registered as master by one of our own processes.
async fn ress(registry: &str, code: &str, origin: &HyperOrigin) -> Running {
    let address = origin.address().to_string();
    let args = ["register", "ress", "--code", code, "--address", &address, "-o", "json", "--registry", registry];
    let mut running = Running::start(command(args));
    running.json_where(|line| line["role"] == "master").await;
    running
}

/// A proxy on one worker.
fn proxy(port: u16, lines: &str, routes: &[&str]) -> String {
    let mut text = format!("[http]\nlisten = '127.0.0.1:{port}'\nworkers = 1\n{lines}\n");
    routes.iter().for_each(|route| text += &format!("[[http.route]]\n{route}\n"));
    text
}

#[tokio::test]
async fn services_live_under_one_prefix_and_balancers_under_another() {
    let (server, parent) = (ZooKeeper::shared().await, unique_prefix());
    let at = |prefix: &str| format!("zookeeper://{}{parent}/{prefix}", server.address());
    let (services, balancers, archive) = (at("taobao-service"), at("micro-service"), at("archive"));
    // What the original's processes register, as they do it.
    let (first, second) = (HyperOrigin::start("first").await, HyperOrigin::start("second").await);
    let prefix = format!("{parent}/taobao-service");
    let foreign = async |service: &str, code: &str, port: u16| {
        Foreign::options(&server.address(), &prefix, service, code).port(port).start().await
    };
    let master = foreign("ress", "ress-m", 1).await;
    let normal = foreign("ress", "ress-n", first.address().port()).await;
    assert_eq!((master.role(), normal.role()), (ForeignRole::Master, ForeignRole::Normal));
    let _configs = foreign("configs", "configs-a", 1).await;
    let _of_archive = ress(&archive, "ress-a", &second).await;
    let (http, broker, metrics) = (free_port(), free_port(), free_port());
    let of_archive = format!("path_prefix = '/archive'\nservice = 'ress'\nregistry = '{archive}'");
    let text = format!(
        "registry = '{balancers}'\nmetrics.listen = '127.0.0.1:{metrics}'\n{}[mqtt]\nlisten = '127.0.0.1:{broker}'\n\
         topics = 'go-envelope'\nregistry = '{services}'\nregister_in = '{balancers}'\nregister_as = 'mqtt-nginx'\n\
         code = 'relay-1'\n[[mqtt.route]]\nmatch = '^configs/'\nservice = 'configs'\n",
        proxy(
            http,
            &format!(
                "registry = '{services}'\nregister_in = '{balancers}'\nregister_as = 'http-nginx'\ncode = 'proxy-1'"
            ),
            &[&of_archive, "path_prefix = '/'\nservice = 'ress'"]
        )
    );
    let file = File::new(&text);
    let mut running = serve(&file.path);
    logged(&mut running, " ready").await;

    // One name, two registries.
    answered_by(PROMPTLY, http, "/picture", "first").await;
    answered_by(PROMPTLY, http, "/archive", "second").await;
    let (sender, service) = (Paho::start().await, Paho::start().await);
    for paho in [&sender, &service] {
        paho.connect(PahoOptions::new(&format!("127.0.0.1:{broker}"))).await;
    }
    service.subscribe("/+/+/POST/+/configs/serverinfo/configs-a/", 1).await;
    let request =
        "/1.0/cgws/POST/1795418027019215241_26upaoh6tgcinx3o8gjrkz2x4xtmpjin_sessionid/relay-1/configs/serverinfo/";
    sender.publish(PahoMessage::new(request, "hello").qos(1)).await;
    let message = service.next_message(DEADLINE).await;
    assert!(message.topic.ends_with("/configs/serverinfo/configs-a/"), "{}", message.topic);

    // As the original's agents and senders look for balancers; and nothing of ours is among the services.
    let client = server.client().await;
    let seen = read_as_foreign(&client, &format!("{parent}/micro-service")).await;
    let codes = |service: &str| seen[service].master_code().map(str::to_owned);
    assert_eq!(seen.keys().collect::<Vec<_>>(), ["http-nginx", "mqtt-nginx"]);
    assert_eq!((codes("http-nginx").as_deref(), codes("mqtt-nginx").as_deref()), (Some("proxy-1"), Some("relay-1")));
    let seen = read_as_foreign(&client, &prefix).await;
    assert_eq!(seen.keys().collect::<Vec<_>>(), ["configs", "ress"]);

    let told = try_get(metrics, "/metrics").await.unwrap();
    check_metrics(&told);
    for line in [
        "pointsman_http_attempts_total{service=\"ress\",outcome=\"answered\"} ".to_owned(),
        format!("pointsman_http_attempts_total{{service=\"ress\",registry=\"{archive}\",outcome=\"answered\"}} 1"),
        format!("pointsman_registry_answered{{registry=\"{archive}\"}} 1"),
    ] {
        assert!(told.contains(&format!("\n{line}")), "{line} is not in {told}");
    }
    running.signal(Signal::TERM);
    assert_eq!(running.ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_reload_moves_a_route_to_another_registry_and_closes_the_one_that_nobody_uses() {
    let (server, parent) = (ZooKeeper::shared().await, unique_prefix());
    let at = |prefix: &str| format!("zookeeper://{}{parent}/{prefix}", server.address());
    let (own, one, two) = (at("own"), at("one"), at("two"));
    let origins = [HyperOrigin::start("own").await, HyperOrigin::start("one").await, HyperOrigin::start("two").await];
    let _own = ress(&own, "a", &origins[0]).await;
    let _one = ress(&one, "a", &origins[1]).await;
    let _two = ress(&two, "a", &origins[2]).await;
    let (http, metrics) = (free_port(), free_port());
    let text = |section: &str, of_route: &str| {
        let route = format!("path_prefix = '/moved'\nservice = 'ress'\n{of_route}");
        let proxy = proxy(http, section, &[&route, "path_prefix = '/'\nservice = 'ress'"]);
        format!("registry = '{own}'\nmetrics.listen = '127.0.0.1:{metrics}'\n{proxy}")
    };
    let of_route = |registry: &str| format!("registry = '{registry}'");
    let file = File::new(&text("register_as = 'proxies'", &of_route(&one)));
    let mut running = serve(&file.path);
    logged(&mut running, " ready").await;
    answered_by(PROMPTLY, http, "/moved", "one").await;
    answered_by(PROMPTLY, http, "/", "own").await;

    file.replace(&text("register_as = 'proxies'", &of_route(&two)));
    let line = logged(&mut running, "no longer used").await;
    assert!(line.contains(&one), "{line}");
    logged(&mut running, "configuration reloaded").await;
    answered_by(PROMPTLY, http, "/moved", "two").await;
    let told = try_get(metrics, "/metrics").await.unwrap();
    assert!(told.contains(&two) && !told.contains(&one), "{told}");
    // And back, by a section of which the proxy stays registered where it is.
    let section = format!("register_as = 'proxies'\nregistry = '{one}'");
    file.replace(&text(&section, ""));
    logged(&mut running, "configuration reloaded").await;
    let line = logged(&mut running, "takes effect after a restart").await;
    assert!(line.contains("http.register_in"), "{line}");
    for path in ["/moved", "/"] {
        answered_by(PROMPTLY, http, path, "one").await;
    }
    let registered = run(&["instances", "proxies", "--all", "--registry", &own, "-o", "json"]).await;
    assert!(support::stdout(&registered).contains(&format!("127.0.0.1:{http}")), "{registered:?}");
    running.signal(Signal::TERM);
    assert_eq!(running.ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_registry_that_is_away_does_not_keep_the_others_waiting() {
    let (mut server, parent) = (ZooKeeper::start().await, unique_prefix());
    let here = format!("zookeeper://{}{parent}", ZooKeeper::shared().await.address());
    let late = format!("zookeeper://{}{parent}", server.address());
    let (first, second) = (HyperOrigin::start("first").await, HyperOrigin::start("second").await);
    let _first = ress(&here, "a", &first).await;
    server.kill();
    let (http, broker, agent) = (free_port(), free_port(), free_port());
    let text = |routes: &[&str]| {
        format!(
            "[agent]\nlisten = '127.0.0.1:{agent}'\nregistry = '{late}'\n[mqtt]\nlisten = '127.0.0.1:{broker}'\n\
             registry = '{NOWHERE}'\nregister_as = 'relays'\n[[mqtt.route]]\nmatch = '^/login'\nservice = 'cfgs'\n{}",
            proxy(http, &format!("registry = '{here}'\nregister_as = 'proxies'"), routes)
        )
    };
    let away = format!("path_prefix = '/late'\nservice = 'ress'\nregistry = '{late}'");
    let rest = "path_prefix = '/'\nservice = 'ress'";
    let file = File::new(&text(&[&away, rest]));
    let mut running = serve(&file.path);
    let line = logged(&mut running, "does not answer yet").await;
    assert!(line.contains(&late) || line.contains(NOWHERE), "{line}");
    answered_by(PROMPTLY, http, "/", "first").await;
    assert_eq!(status(http, "/late").await, "503");

    // One more of that kind, which is dropped again.
    let more = format!("path_prefix = '/more'\nservice = 'ress'\nregistry = '{NOWHERE}2'");
    file.replace(&text(&[&more, &away, rest]));
    let reloaded = timeout(PROMPTLY, logged(&mut running, "configuration reloaded")).await;
    reloaded.expect("the reload does not wait for the registry");
    assert_eq!((status(http, "/more").await, status(http, "/other").await), ("503".to_owned(), "200".to_owned()));
    file.replace(&text(&[&away, rest]));
    let line = logged(&mut running, "no longer used").await;
    assert!(line.contains("/nowhere2"), "{line}");

    server.restart().await;
    let _second = ress(&late, "b", &second).await;
    answered_by(DEADLINE, http, "/late", "second").await;
    until(DEADLINE, async || status(agent, "/v1/services/ress/instances").await, |status| status == "200").await;
    running.signal(Signal::TERM);
    assert_eq!(running.ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_registry_that_refuses_this_process_does_not_end_it_where_another_answers() {
    let here = format!("zookeeper://{}{}", ZooKeeper::shared().await.address(), unique_prefix());
    let (first, second) = (HyperOrigin::start("first").await, HyperOrigin::start("second").await);
    let _first = ress(&here, "a", &first).await;
    let (folder, agent, http) = (tempfile::tempdir().unwrap(), free_port(), free_port());
    let token = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (right, wrong) = (token("right", "0123456789abcdef"), token("wrong", "fedcba9876543210"));
    let below = File::new(&format!("[agent]\nlisten = '127.0.0.1:{agent}'\nwrite_token_file = '{right}'\n"));
    let mut agent_process = serve(&below.path);
    logged(&mut agent_process, " ready").await;
    let _second = ress(&format!("http://127.0.0.1:{agent}?token_file={right}"), "b", &second).await;
    let refused = format!("http://127.0.0.1:{agent}?token_file={wrong}");
    let route = format!("path_prefix = '/refused'\nservice = 'ress'\nregistry = '{refused}'");
    let text = proxy(http, &format!("registry = '{here}'"), &[&route, "path_prefix = '/'\nservice = 'ress'"]);
    let file = File::new(&text);
    let mut running = serve(&file.path);
    let line = logged(&mut running, "the registry cannot be used").await;
    assert!(line.contains("not one of this agent's"), "{line}");
    answered_by(PROMPTLY, http, "/", "first").await;
    assert_eq!(status(http, "/refused").await, "503");

    // The token becomes one of the agent's.
    token("right", "fedcba9876543210");
    answered_by(DEADLINE, http, "/refused", "second").await;
    running.signal(Signal::TERM);
    assert_eq!(running.ended().await.code(), Some(0));
}

#[tokio::test]
async fn what_is_wrong_with_a_registry_is_told_with_its_place() {
    let text = "registry = 'zookeeper://h/p'\n[agent]\nregistry = 'http://localhost:7480'\n[http]\nregistry = 'zookeeper://h'\n\
                [[http.route]]\nmatch = '^/'\nservice = 'ress'\nregistry = 'zookeeper://h/q?auth=digest:u:geheim'\n\
                [[http.route]]\nmatch = '^/x'\nservice = 'ress'\nregistry = 'zookeeper://h/q?auth=digest:u:anders'\n";
    let file = File::new(text);
    let output = run(&["check", file.path.to_str().unwrap()]).await;
    assert_eq!(output.status.code(), Some(1));
    let told = stderr(&output);
    for expected in [
        ":3:12: error: agent.registry is this agent itself",
        ":5:12: error: http.registry: registry url \"zookeeper://h\": has no prefix",
        ":13:12: error: http.route.1.registry names the registry of http.route.0.registry, but has another password",
    ] {
        assert!(told.contains(expected), "{expected} is not in {told}");
    }
    assert!(!told.contains("geheim") && !told.contains("anders"), "{told}");
}
