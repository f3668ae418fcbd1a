//! `serve` while its registry is away: it starts from snapshots, and reloads, without waiting for it.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fmt::Debug;
use std::path::Path;
use std::time::{Duration, Instant};

use pointsman_testkit::http::HyperOrigin;
use pointsman_testkit::{Paho, PahoMessage, PahoOptions, ZooKeeper, unique_prefix};
use rustix::process::Signal;
use serde_json::Value;
use support::served::{File, free_port, logged, serve, try_get};
use support::{DEADLINE, Running, command, run, stdout};
use tokio::time::timeout;

/// How long a reload may take while the registry is away.
const PROMPTLY: Duration = Duration::from_secs(5);

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
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(within, asking).await.unwrap_or_else(|_| panic!("never as wanted, but {last:?}"))
}

/// Status and body of `GET path`; status 0 where nobody answers.
async fn ask(port: u16, path: &str) -> (u16, String) {
    let response = try_get(port, path).await.unwrap_or_default();
    let status = response.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default();
    (status, response)
}

/// Waits until requests for `path` are answered by the origin with this name.
async fn answered_by(within: Duration, port: u16, path: &str, origin: &str) {
    let field = format!("x-origin: {origin}");
    until(within, async || ask(port, path).await.1, |response| response.contains(&field)).await;
}

/// An instance `code` of `service`, registered as master.
async fn instance(registry: &str, service: &str, code: &str, address: Option<String>) -> Running {
    let mut args = vec!["register", service, "--code", code, "-o", "json", "--registry", registry];
    args.extend(address.iter().flat_map(|address| ["--address", address.as_str()]));
    let mut running = Running::start(command(args));
    running.json_where(|line| line["role"] == "master").await;
    running
}

async fn instances(registry: &str, service: &str) -> Value {
    let output = run(&["instances", service, "-o", "json", "--all", "--registry", registry]).await;
    serde_json::from_str(&stdout(&output)).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// Waits until snapshots of these services lie in the folder.
async fn saved(folder: &Path, services: &[&str]) {
    let saved = |service: &str| {
        let registries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        registries.map(|one| one.path().join(format!("{service}.json"))).any(|path| path.exists())
    };
    let missing = async || services.iter().filter(|service| !saved(service)).copied().collect::<Vec<_>>();
    until(DEADLINE, missing, Vec::is_empty).await;
}

/// What a file of all sections says.
struct Served {
    registry: String,
    agent: u16,
    proxy: u16,
    broker: u16,
}

impl Served {
    fn new(registry: String) -> Self {
        Self { registry, agent: free_port(), proxy: free_port(), broker: free_port() }
    }

    /// The file, with routes from path to service, and from topic to service.
    fn text(&self, paths: &[(&str, &str)], topics: &[(&str, &str)]) -> String {
        let Self { registry, agent, proxy, broker } = self;
        let mut text = format!(
            "registry = '{registry}'\n[agent]\nlisten = '127.0.0.1:{agent}'\n\
             [http]\nlisten = '127.0.0.1:{proxy}'\nworkers = 1\nregister_as = 'http-balancer'\n\
             [mqtt]\nlisten = '127.0.0.1:{broker}'\nregister_as = 'mqtt-balancer'\n"
        );
        for (path, service) in paths {
            text += &format!("[[http.route]]\npath_prefix = '{path}'\nservice = '{service}'\n");
        }
        for (topic, service) in topics {
            text += &format!("[[mqtt.route]]\nmatch = '^{topic}(/|$)'\nservice = '{service}'\n");
        }
        text
    }

    async fn readiness(&self) -> String {
        ask(self.agent, "/readyz").await.1
    }

    /// Waits until the agent lists `code` under `service`, and says of it how far that can be trusted.
    async fn listed(&self, service: &str, code: &str, freshness: &str) {
        let (code, freshness) = (format!("\"code\":\"{code}\""), format!("x-pointsman-freshness: {freshness}"));
        let listed = async || ask(self.agent, &format!("/v1/services/{service}/instances")).await.1;
        until(DEADLINE, listed, |response| response.contains(&code) && response.contains(&freshness)).await;
    }
}

/// A sender and the instance `code`, at the embedded broker.
struct Topics {
    sender: Paho,
    service: Paho,
    code: &'static str,
}

impl Topics {
    async fn connect(port: u16, code: &'static str) -> Self {
        let (sender, service) = (Paho::start().await, Paho::start().await);
        for paho in [&sender, &service] {
            paho.connect(PahoOptions::new(&format!("127.0.0.1:{port}"))).await;
        }
        service.subscribe(&format!("{code}/#"), 1).await;
        Self { sender, service, code }
    }

    /// Waits until messages to `topic` reach the instance. Those that come before it is known are dead letters.
    async fn pass_soon(&self, topic: &str) {
        let passed = async || {
            self.sender.publish(PahoMessage::new(topic, "x").qos(1)).await;
            self.service.try_next_message(Duration::from_millis(100)).await.map(|message| message.topic)
        };
        let wanted = format!("{}{topic}", self.code);
        until(DEADLINE, passed, |topic| topic.as_ref() == Some(&wanted)).await;
    }

    /// Waits until the topic is subscribed to. The first message to it reaches the instance.
    async fn pass(&self, within: Duration, topic: &str) {
        // 0x10: nobody has subscribed yet.
        let publish = async || self.sender.publish(PahoMessage::new(topic, "x").qos(1)).await;
        until(within, publish, |code| *code != 0x10).await;
        assert_eq!(self.service.next_message(DEADLINE).await.topic, format!("{}{topic}", self.code));
    }
}

/// Requests, one after the other, none of which may fail.
struct Asking {
    asking: tokio::task::JoinHandle<Result<usize, String>>,
    enough: tokio::sync::watch::Sender<bool>,
}

fn keep_asking(port: u16, path: &'static str) -> Asking {
    let (enough, is_enough) = tokio::sync::watch::channel(false);
    let asking = tokio::spawn(async move {
        let mut answered = 0;
        while !*is_enough.borrow() {
            match ask(port, path).await {
                (200, _) => answered += 1,
                (_, other) => return Err(other),
            }
        }
        Ok(answered)
    });
    Asking { asking, enough }
}

impl Asking {
    async fn answered(self) {
        self.enough.send_replace(true);
        let answered = self.asking.await.unwrap().unwrap_or_else(|other| panic!("not answered: {other}"));
        assert!(answered > 10, "{answered}");
    }
}

/// Waits until the port can be connected to.
async fn listens(port: u16) {
    let connect = async || tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok();
    until(DEADLINE, connect, |is_connected| *is_connected).await;
}

#[tokio::test]
async fn every_section_starts_from_the_snapshots_on_disk_and_is_registered_when_the_registry_is_back() {
    let (mut server, folder) = (ZooKeeper::start().await, tempfile::tempdir().unwrap());
    let plain = format!("zookeeper://{}{}?session_timeout=4s", server.address(), unique_prefix());
    let (first, second) = (HyperOrigin::start("first").await, HyperOrigin::start("second").await);
    let ress = instance(&plain, "ress", "r", Some(first.address().to_string())).await;
    let late = instance(&plain, "late", "l", Some(second.address().to_string())).await;
    let cfgs = instance(&plain, "cfgs", "svc", None).await;
    let served = Served::new(format!("{plain}&snapshots={}", folder.path().display()));
    let file = File::new(&served.text(&[("/ress", "ress")], &[("/login", "cfgs")]));
    let mut running = serve(&file.path);
    logged(&mut running, " ready").await;
    saved(folder.path(), &["ress", "late", "cfgs"]).await;
    served.listed("ress", "r", "fresh").await;

    server.kill();
    running.signal(Signal::KILL);
    running.ended().await;
    // A command waits for the connect timeout, and not twice.
    let (asked, registry) = (Instant::now(), format!("{}&connect_timeout=3s", served.registry));
    let picked = run(&["pick", "ress", "-o", "json", "--registry", &registry]).await;
    assert!(stdout(&picked).contains("\"code\":\"r\""), "{picked:?}");
    assert!(asked.elapsed() < Duration::from_secs(6), "{:?}", asked.elapsed());
    let mut running = serve(&file.path);
    let line = logged(&mut running, "starting from the snapshots on disk").await;
    assert!(line.contains("services=") && line.contains("oldest="), "{line}");
    answered_by(DEADLINE, served.proxy, "/ress", "first").await;
    served.listed("ress", "r", "stale;age_ms=").await;
    assert!(served.readiness().await.contains("\"registry\":\"stale\""), "{}", served.readiness().await);
    listens(served.broker).await;
    let topics = Topics::connect(served.broker, "svc").await;
    topics.pass(DEADLINE, "/login").await;
    let metrics = ask(served.agent, "/metrics").await.1;
    assert!(
        metrics.contains("\npointsman_ready 0\n") && metrics.contains("\npointsman_registry_fresh 0\n"),
        "{metrics}"
    );

    // A service that no route has named before is on disk too; one that nobody knows is empty.
    file.replace(&served.text(&[("/never", "never"), ("/late", "late"), ("/", "ress")], &[("/late", "cfgs")]));
    answered_by(PROMPTLY, served.proxy, "/late", "second").await;
    answered_by(PROMPTLY, served.proxy, "/any", "first").await;
    assert_eq!(ask(served.proxy, "/never").await.0, 503);
    topics.pass(PROMPTLY, "/late").await;

    server.restart().await;
    logged(&mut running, " ready").await;
    until(DEADLINE, async || served.readiness().await, |response| response.contains("\"registry\":\"fresh\"")).await;
    served.listed("ress", "r", "fresh").await;
    for (service, port) in [("http-balancer", served.proxy), ("mqtt-balancer", served.broker)] {
        let address = format!("127.0.0.1:{port}");
        // The session of the one that was killed may last.
        let once = |listed: &Value| listed.as_array().unwrap().len() == 1 && listed[0]["address"] == *address;
        until(DEADLINE, async || instances(&plain, service).await, once).await;
    }
    answered_by(DEADLINE, served.proxy, "/ress", "first").await;
    running.signal(Signal::TERM);
    assert_eq!(running.ended().await.code(), Some(0));
    drop((ress, late, cfgs));
}

/// The registry is an agent, which does not end but hangs.
#[tokio::test]
async fn a_proxy_starts_from_the_snapshots_on_disk_while_its_agents_hang() {
    let (port, proxy, folder) = (free_port(), free_port(), tempfile::tempdir().unwrap());
    let agent = File::new(&format!("agent.listen = '127.0.0.1:{port}'\n"));
    let mut agent = serve(&agent.path);
    logged(&mut agent, " ready").await;
    agent.ignore_notes();
    let (registry, origin) = (format!("http://127.0.0.1:{port}?ttl=1m"), HyperOrigin::start("first").await);
    let ress = instance(&registry, "ress", "r", Some(origin.address().to_string())).await;
    let file = File::new(&format!(
        "registry = '{registry}&snapshots={}'\n[http]\nlisten = '127.0.0.1:{proxy}'\nregister_as = 'http-balancer'\n\
         [[http.route]]\npath_prefix = '/'\nservice = 'ress'\n",
        folder.path().display()
    ));
    let mut running = serve(&file.path);
    logged(&mut running, " ready").await;
    saved(folder.path(), &["ress"]).await;
    agent.signal(Signal::STOP);
    running.signal(Signal::KILL);
    running.ended().await;
    let mut running = serve(&file.path);
    answered_by(DEADLINE, proxy, "/", "first").await;
    agent.signal(Signal::CONT);
    logged(&mut running, " ready").await;
    let address = format!("127.0.0.1:{proxy}");
    let once = |listed: &Value| listed.as_array().unwrap().len() == 1 && listed[0]["address"] == *address;
    until(DEADLINE, async || instances(&registry, "http-balancer").await, once).await;
    running.signal(Signal::TERM);
    assert_eq!(running.ended().await.code(), Some(0));
    drop(ress);
}

#[tokio::test]
async fn a_folder_without_a_snapshot_does_not_change_that_the_registry_is_waited_for() {
    let (mut server, folder) = (ZooKeeper::start().await, tempfile::tempdir().unwrap());
    server.kill();
    let registry = format!("zookeeper://{}{}?snapshots={}", server.address(), unique_prefix(), folder.path().display());
    let served = Served::new(registry);
    let file = File::new(&served.text(&[("/", "ress")], &[("/login", "cfgs")]));
    let mut running = serve(&file.path);
    logged(&mut running, "waiting for the registry").await;
    server.restart().await;
    logged(&mut running, "registry connected").await;
    logged(&mut running, " ready").await;
    assert!(served.readiness().await.contains("\"registry\":\"fresh\""));
}

/// Stopped, and not ended: connections stand, and nothing is answered.
#[tokio::test]
async fn a_reload_does_not_wait_for_a_registry_that_hangs_and_the_last_file_wins() {
    let server = ZooKeeper::start().await;
    let registry = format!("zookeeper://{}{}?session_timeout=30s", server.address(), unique_prefix());
    let origin = HyperOrigin::start("first").await;
    let ress = instance(&registry, "ress", "r", Some(origin.address().to_string())).await;
    let cfgs = instance(&registry, "cfgs", "svc", None).await;
    let other = HyperOrigin::start("other").await;
    let seen = instance(&registry, "seen", "s", Some(other.address().to_string())).await;
    let served = Served::new(registry);
    let always = ("/always", "ress");
    let file = File::new(&served.text(&[always], &[("/login", "cfgs")]));
    let mut running = serve(&file.path);
    logged(&mut running, " ready").await;
    answered_by(DEADLINE, served.proxy, "/always", "first").await;
    let topics = Topics::connect(served.broker, "svc").await;
    topics.pass(DEADLINE, "/login").await;
    served.listed("seen", "s", "fresh").await;
    let asking = keep_asking(served.proxy, "/always");

    server.pause();
    let reloaded = async |running: &mut Running| {
        let reloaded = timeout(PROMPTLY, logged(running, "configuration reloaded")).await;
        reloaded.expect("the reload does not wait for the registry");
    };
    file.replace(&served.text(&[("/a", "new"), ("/b", "ress"), always], &[("/a", "new"), ("/b", "cfgs")]));
    reloaded(&mut running).await;
    file.replace(&served.text(&[("/c", "newer"), ("/d", "ress"), always], &[("/c", "newer"), ("/d", "cfgs")]));
    answered_by(PROMPTLY, served.proxy, "/d", "first").await;
    reloaded(&mut running).await;
    assert_eq!((ask(served.proxy, "/b").await.0, ask(served.proxy, "/c").await.0), (404, 503));
    topics.pass(PROMPTLY, "/d").await;
    asking.answered().await;
    // No route has named it before, but the agent in the same process knows it.
    file.replace(&served.text(&[("/c", "newer"), ("/seen", "seen"), ("/d", "ress")], &[("/d", "cfgs")]));
    reloaded(&mut running).await;
    answered_by(PROMPTLY, served.proxy, "/seen", "other").await;
    // Taken back: what the file before named is known still.
    file.replace(&served.text(&[("/e", "newer")], &[("/e", "newer")]));
    reloaded(&mut running).await;
    file.replace(&served.text(&[("/f", "ress")], &[("/f", "cfgs")]));
    reloaded(&mut running).await;
    answered_by(Duration::from_secs(1), served.proxy, "/f", "first").await;
    topics.pass(PROMPTLY, "/f").await;
    file.replace(&served.text(&[("/c", "newer"), ("/f", "ress")], &[("/c", "newer-too"), ("/f", "cfgs")]));
    reloaded(&mut running).await;

    server.resume();
    let registry = served.registry.clone();
    let second = HyperOrigin::start("second").await;
    let newer = instance(&registry, "newer", "n", Some(second.address().to_string())).await;
    answered_by(DEADLINE, served.proxy, "/c", "second").await;
    let newer_too = instance(&registry, "newer-too", "svc", None).await;
    topics.pass_soon("/c").await;
    running.signal(Signal::TERM);
    assert_eq!(running.ended().await.code(), Some(0));
    drop((ress, cfgs, seen, newer, newer_too));
}

/// The registry is an agent, and stops in the same way.
#[tokio::test]
async fn a_reload_does_not_wait_for_an_agent_that_hangs() {
    let port = free_port();
    let agent = File::new(&format!("agent.listen = '127.0.0.1:{port}'\n"));
    let mut agent = serve(&agent.path);
    logged(&mut agent, " ready").await;
    agent.ignore_notes();
    let registry = format!("http://127.0.0.1:{port}?ttl=1m");
    let origin = HyperOrigin::start("first").await;
    let ress = instance(&registry, "ress", "r", Some(origin.address().to_string())).await;
    let served = Served::new(registry.clone());
    let file = File::new(&served.text(&[("/ress", "ress")], &[("/login", "cfgs")]));
    let mut running = serve(&file.path);
    logged(&mut running, " ready").await;
    answered_by(DEADLINE, served.proxy, "/ress", "first").await;
    agent.signal(Signal::STOP);
    for (path, service) in [("/a", "new"), ("/b", "newer")] {
        file.replace(&served.text(&[(path, service), ("/ress", "ress")], &[("/login", service)]));
        until(PROMPTLY, async || ask(served.proxy, path).await.0, |status| *status == 503).await;
        answered_by(PROMPTLY, served.proxy, "/ress", "first").await;
    }
    agent.signal(Signal::CONT);
    let second = HyperOrigin::start("second").await;
    let newer = instance(&registry, "newer", "n", Some(second.address().to_string())).await;
    answered_by(DEADLINE, served.proxy, "/b", "second").await;
    running.signal(Signal::TERM);
    assert_eq!(running.ended().await.code(), Some(0));
    drop((ress, newer));
}

#[tokio::test]
async fn a_file_that_changes_while_the_registry_is_waited_for_is_the_one_that_is_served() {
    let port = free_port();
    let served = Served::new(format!("http://127.0.0.1:{port}"));
    let elsewhere = Served { registry: format!("http://127.0.0.1:{}", free_port()), ..Served::new(String::new()) };
    let file = File::new(&elsewhere.text(&[("/", "ress")], &[("/login", "cfgs")]));
    let mut running = serve(&file.path);
    logged(&mut running, "waiting for the registry").await;
    file.replace("[http\n");
    logged(&mut running, "the configuration is wrong").await;
    file.replace(&served.text(&[("/", "ress")], &[("/login", "cfgs")]));
    let agent = File::new(&format!("agent.listen = '127.0.0.1:{port}'\n"));
    let mut agent = serve(&agent.path);
    logged(&mut agent, " ready").await;
    logged(&mut running, " ready").await;
    assert!(served.readiness().await.contains("\"registry\":\"fresh\""));
    assert_eq!(ask(served.proxy, "/any").await.0, 503);
    running.signal(Signal::TERM);
    assert_eq!(running.ended().await.code(), Some(0));
}
