//! Absent, unreadable, wrong: three different things, and each is told.

#![cfg(all(feature = "agent-client", feature = "tls", feature = "zookeeper"))]
#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::path::Path;

use pointsman_agent::{Agent, Settings};
use pointsman_core::{Instance, Problem, Role, Snapshot, Status};
use pointsman_registry::{Error, Freshness, Registry};
use pointsman_testkit::{CuttingProxy, Ensemble, TlsFiles, ZooKeeper, unique_prefix};
use support::{EPHEMERAL, OPEN, SEQUENTIAL, soon, until_role, url};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use zookeeper_client::{Acl, Client, Permission};

async fn allow(raw: &Client, path: &str, permission: Permission) {
    raw.set_acl(path, &[Acl::new_const(permission, "world", "anyone")], None).await.unwrap();
}

/// All but reading.
fn unreadable() -> Permission {
    Permission::WRITE | Permission::CREATE | Permission::DELETE | Permission::ADMIN
}

fn told<'s>(snapshot: &'s Snapshot, node: &str) -> Option<&'s Problem> {
    snapshot.problems().iter().find(|problem| problem.node == node)
}

fn codes(snapshot: &Snapshot) -> Vec<&str> {
    snapshot.instances().iter().map(|instance| &*instance.code).collect()
}

fn foreign(code: &str, address: (&str, u16)) -> Vec<u8> {
    let (host, port) = address;
    format!(r#"{{"serverip":"{host}","serverport":{port},"username":"","userpwd":"","serveruniquecode":"{code}","weight":1}}"#)
        .into_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_may_not_be_read_is_not_one_without_instances() {
    support::log();
    let (server, prefix) = (ZooKeeper::shared().await, unique_prefix());
    let (url, raw) = (url(&server.address(), &prefix, ""), server.client().await);
    let registry = Registry::connect(&url).await.unwrap();
    let (_a, _b) = (
        registry.register(Instance::new("s").code("a")).await.unwrap(),
        registry.register(Instance::new("s").code("b")).await.unwrap(),
    );
    let _other = registry.register(Instance::new("t")).await.unwrap();
    let folder = format!("{prefix}/s");
    allow(&raw, &folder, unreadable()).await;
    let cold = Registry::connect(&url).await.unwrap();
    let (all, one) = (cold.discover_all().await.unwrap(), cold.discover("s").await.unwrap());
    for snapshot in [all.snapshot("s"), one.snapshot()] {
        assert_eq!(codes(&snapshot), [""; 0]);
        let problem = snapshot.unreadable().unwrap();
        assert_eq!((&*problem.node, problem.reason.clone()), (&*folder, format!("not authorized: {folder}")));
        assert!(!snapshot.is_empty());
    }
    assert_eq!(all.snapshot("t").instances().len(), 1, "others are not concerned");
    allow(&raw, &folder, Permission::ALL).await;
    let everybody = |s: &Snapshot| codes(s) == ["a", "b"] && s.problems().is_empty() && s.master().is_some();
    soon("seen again, by one", one.wait_for(everybody)).await.unwrap();
    soon("seen again, by all", all.service("s").unwrap().wait_for(everybody)).await.unwrap();
}

/// What an agent answers, with its head.
async fn ask(agent: &Agent, path: &str) -> String {
    let mut stream = TcpStream::connect(agent.address()).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", agent.address());
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_tells_what_it_may_not_read() {
    let (server, prefix) = (ZooKeeper::shared().await, unique_prefix());
    let (url, raw) = (url(&server.address(), &prefix, ""), server.client().await);
    let registry = Registry::connect(&url).await.unwrap();
    let _a = registry.register(Instance::new("s").code("a")).await.unwrap();
    let folder = format!("{prefix}/s");
    allow(&raw, &folder, unreadable()).await;
    let below = Registry::connect(&url).await.unwrap();
    let agent = Agent::start(&below, Settings::new(([127, 0, 0, 1], 0).into())).await.unwrap();
    let reader = Registry::connect(&format!("http://{}", agent.address())).await.unwrap();
    let service = reader.discover("s").await.unwrap();
    let told = soon("told", service.wait_for(|s| s.unreadable().is_some())).await.unwrap();
    assert_eq!(told.unreadable().unwrap().reason, format!("not authorized: {folder}"));
    for path in ["instances", "instances/a", "master", "pick"] {
        let answer = ask(&agent, &format!("/v1/services/s/{path}")).await;
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("urn:pointsman:problem:unreadable"), "{answer}");
        assert!(answer.contains(&format!("not authorized: {folder}")), "{answer}");
    }
    assert!(ask(&agent, "/v1/services/s/instances?all").await.contains(&folder));
    allow(&raw, &folder, Permission::ALL).await;
    soon("seen", service.wait_for(|s| codes(s) == ["a"] && s.problems().is_empty())).await.unwrap();
    soon("answered", async { while !ask(&agent, "/v1/services/s/instances").await.starts_with("HTTP/1.1 200 ") {} })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_known_of_a_service_is_kept_while_it_may_not_be_read() {
    let (server, prefix) = (ZooKeeper::shared().await, unique_prefix());
    let raw = server.client().await;
    let registry = Registry::connect(&url(&server.address(), &prefix, "")).await.unwrap();
    let mut kept = Vec::new();
    for code in ["a", "b", "c"] {
        kept.push(registry.register(Instance::new("s").code(code)).await.unwrap());
    }
    registry.drain("s", "b").await.unwrap();
    let proxy = CuttingProxy::start(server.socket_address());
    let reader = Registry::connect(&url(&proxy.address(), &prefix, "")).await.unwrap();
    let service = reader.discover("s").await.unwrap();
    let is_drained = |s: &Snapshot| s.find("b").is_some_and(|b| b.status == Status::Drained);
    soon("all", service.wait_for(|s| s.instances().len() == 3 && is_drained(s))).await.unwrap();
    proxy.cut();
    let (folder, set) = (format!("{prefix}/s"), format!("/pointsman{prefix}/overrides/s"));
    let hidden = [folder.clone(), set.clone(), format!("{set}/b")];
    for path in &hidden {
        allow(&raw, path, unreadable()).await;
    }
    kept.pop().unwrap().close().await.unwrap();
    proxy.mend();
    let seen = soon("told", service.wait_for(|s| s.unreadable().is_some() && s.instances().len() == 2)).await.unwrap();
    assert_eq!(codes(&seen), ["a", "b"], "what has gone is gone");
    assert!(is_drained(&seen), "what was set stays in force");
    for path in &hidden {
        assert_eq!(told(&seen, path).unwrap().reason, format!("not authorized: {path}"));
    }
    for path in &hidden {
        allow(&raw, path, Permission::ALL).await;
    }
    registry.undrain("s", "b").await.unwrap();
    let _d = registry.register(Instance::new("s").code("d")).await.unwrap();
    let right = |s: &Snapshot| codes(s) == ["a", "b", "d"] && s.problems().is_empty() && !is_drained(s);
    soon("everything is as it is", service.wait_for(right)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_may_not_be_read_is_told_and_seen_again() {
    let (server, prefix) = (ZooKeeper::shared().await, unique_prefix());
    let (url, raw) = (url(&server.address(), &prefix, ""), server.client().await);
    let registry = Registry::connect(&url).await.unwrap();
    let mut a = registry.register(Instance::new("s").code("a")).await.unwrap();
    let _b = registry.register(Instance::new("s").code("b")).await.unwrap();
    let node = raw.create(&format!("{prefix}/s/normal"), &foreign("x", ("h", 1)), &SEQUENTIAL).await.unwrap().1;
    let (node, path) = (format!("normal{node}"), format!("{prefix}/s/normal{node}"));
    allow(&raw, &path, unreadable()).await;
    let service = Registry::connect(&url).await.unwrap().discover("s").await.unwrap();
    let snapshot = service.snapshot();
    assert_eq!(codes(&snapshot), ["a", "b"]);
    assert_eq!(told(&snapshot, &node).unwrap().reason, format!("not authorized: {path}"));
    assert!(snapshot.unreadable().is_none(), "the service can be read");
    // Whoever looks for its own code passes it over.
    let _c = registry.register(Instance::new("s").code("c")).await.unwrap();
    registry.drain("s", "a").await.unwrap();
    until_role("the drained master lets another go first", &mut a, |role| role == Role::Normal).await;
    allow(&raw, &path, Permission::ALL).await;
    soon("seen", service.wait_for(|s| codes(s) == ["a", "b", "c", "x"] && s.problems().is_empty())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefix_that_may_not_be_read_is_refused_with_its_name() {
    let (server, prefix) = (ZooKeeper::shared().await, unique_prefix());
    let raw = server.client().await;
    raw.mkdir(&format!("{prefix}/s"), &OPEN).await.unwrap();
    allow(&raw, &prefix, unreadable()).await;
    let registry = Registry::connect(&url(&server.address(), &prefix, "&connect_timeout=1s")).await.unwrap();
    let error = registry.discover_all().await.map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error:?}");
    assert!(error.to_string().contains(&format!("list {prefix}: not authorized")), "{error}");
    assert!(registry.discover("s").await.unwrap().snapshot().is_empty(), "one service can be read all the same");
    allow(&raw, &prefix, Permission::ALL).await;
    soon("read", async { while registry.discover_all().await.is_err() {} }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_operators_have_set_is_seen_as_soon_as_it_may_be_read() {
    let (server, prefix) = (ZooKeeper::shared().await, unique_prefix());
    let (url, raw) = (url(&server.address(), &prefix, ""), server.client().await);
    let registry = Registry::connect(&url).await.unwrap();
    let _a = registry.register(Instance::new("s").code("a")).await.unwrap();
    registry.drain("s", "a").await.unwrap();
    registry.drain("elsewhere", "b").await.unwrap();
    let root = format!("/pointsman{prefix}/overrides");
    allow(&raw, &root, unreadable()).await;
    let all = Registry::connect(&url).await.unwrap().discover_all().await.unwrap();
    let is_drained = |s: &Snapshot, code: &str| s.find(code).is_some_and(|i| i.status == Status::Drained);
    assert!(is_drained(&all.snapshot("s"), "a"), "what can be read is read");
    assert!(!all.has_override("elsewhere", "b"));
    allow(&raw, &root, Permission::ALL).await;
    soon("known", async {
        while !all.has_override("elsewhere", "b") {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // Followed from then on.
    registry.undrain("s", "a").await.unwrap();
    soon("undrained", all.service("s").unwrap().wait_for(|s| !is_drained(s, "a"))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn persistent_nodes_are_no_instances_and_it_is_said_how_they_go() {
    let (server, prefix) = (ZooKeeper::shared().await, unique_prefix());
    let (url, raw) = (url(&server.address(), &prefix, ""), server.client().await);
    raw.mkdir(&format!("{prefix}/s"), &OPEN).await.unwrap();
    let [master, normal] = ["master", "normal0000000000"].map(|node| (node, format!("{prefix}/s/{node}")));
    for (node, path) in [&master, &normal] {
        raw.create(path, &foreign(node, ("h", 1)), &OPEN).await.unwrap();
    }
    let registry = Registry::connect(&url).await.unwrap();
    let mut mine = registry.register(Instance::new("s").code("mine")).await.unwrap();
    assert_eq!(mine.role(), Role::Normal);
    let service = registry.discover("s").await.unwrap();
    let snapshot = soon("there", service.wait_for(|s| s.find("mine").is_some())).await.unwrap();
    assert_eq!((codes(&snapshot), snapshot.master()), (vec!["mine"], None));
    for (node, path) in [&master, &normal] {
        let problem = told(&snapshot, node).unwrap();
        assert!(problem.skipped && problem.reason.contains(&format!("`delete {path}`")), "{problem:?}");
    }
    for (_, path) in [&master, &normal] {
        raw.delete(path, None).await.unwrap();
    }
    until_role("the way is free", &mut mine, Role::is_master).await;
    soon("no problem is left", service.wait_for(|s| s.problems().is_empty() && s.master().is_some())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_nodes_that_nobody_can_use_are_shown_as_problems() {
    let (server, prefix) = (ZooKeeper::shared().await, unique_prefix());
    let raw = server.client().await;
    raw.mkdir(&format!("{prefix}/s"), &OPEN).await.unwrap();
    let create = async |name: &str, data: Vec<u8>| {
        raw.create(&format!("{prefix}/s/{name}"), &data, &EPHEMERAL).await.unwrap();
    };
    create("normal0000000001", foreign("twice", ("h1", 1))).await;
    create("normal0000000002", foreign("twice", ("h2", 2))).await;
    create("normal0000000003", foreign("any", ("0.0.0.0", 80))).await;
    create("normal0000000004", foreign("any6", ("::", 80))).await;
    create("normal0000000005", foreign("gap", ("a..b", 80))).await;
    create("normal0000000006", foreign("back\u{202e}wards", ("h3", 3))).await;
    create("normal0000000007", foreign("good", ("h4", 4))).await;
    let registry = Registry::connect(&url(&server.address(), &prefix, "")).await.unwrap();
    let snapshot = registry.discover("s").await.unwrap().snapshot();
    assert_eq!(codes(&snapshot), ["good", "twice"]);
    assert_eq!(snapshot.find("twice").unwrap().address.as_deref(), Some("h2:2"), "the newest");
    for (number, word, skipped) in [
        (1, "normal0000000002", true),
        (2, "normal0000000001", false),
        (3, "0.0.0.0:80", true),
        (4, "[::]:80", true),
        (5, "a..b:80", true),
        (6, r"\u{202e}", true),
    ] {
        let problem = told(&snapshot, &format!("normal000000000{number}")).unwrap();
        assert!(problem.reason.contains(word) && problem.skipped == skipped, "{problem:?}");
        assert!(!problem.reason.contains('\u{202e}'), "{problem:?}");
    }
    assert_eq!(snapshot.problems().len(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_settings_lie_where_they_may_be_written() {
    let (server, prefix) = (ZooKeeper::start().await, unique_prefix());
    let raw = server.client().await;
    raw.mkdir(&prefix, &OPEN).await.unwrap();
    raw.mkdir("/apps/pointsman", &OPEN).await.unwrap();
    for path in ["/", "/apps"] {
        allow(&raw, path, Permission::READ).await;
    }
    let [default, moved] = ["", "&root=/apps/pointsman"].map(|options| url(&server.address(), &prefix, options));
    let registry = Registry::connect(&default).await.unwrap();
    let registration = registry.register(Instance::new("s").code("a")).await.unwrap();
    let error = registry.drain("s", "a").await.unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error:?}");
    for word in ["/pointsman", "not authorized", "root=PATH"] {
        assert!(error.to_string().contains(word), "{error}");
    }
    registration.close().await.unwrap();
    registry.close().await;
    let registry = Registry::connect(&moved).await.unwrap();
    let service = registry.discover("s").await.unwrap();
    let a = registry.register(Instance::new("s").code("a")).await.unwrap();
    registry.drain("s", "a").await.unwrap();
    let is_drained = |s: &Snapshot| s.find("a").is_some_and(|a| a.status == Status::Drained);
    soon("drained", service.wait_for(is_drained)).await.unwrap();
    assert!(registry.check_term("s", a.role().term().unwrap()).await.is_ok());
    a.close().await.unwrap();
    soon("gone", service.wait_for(|s| s.find("a").is_none())).await.unwrap();
    assert!(service.directory().has_left("s", "a"));
    let mut below = raw.list_children(&format!("/apps/pointsman{prefix}")).await.unwrap();
    below.sort();
    assert_eq!(below, ["left", "overrides", "terms"]);
    assert_eq!(raw.check_stat("/pointsman").await.unwrap(), None);
}

/// What is told at once, also to whoever would wait.
async fn refusal(url: &str) -> String {
    let [error, other] = [false, true].map(|wait| Registry::builder(url).wait(wait).connect());
    let error = soon("an end", error).await.map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error:?}");
    let other = soon("an end", other).await.map(|_| ()).unwrap_err();
    assert_eq!(other.to_string(), error.to_string());
    error.to_string()
}

/// The three mistakes, by the port of a server and its files; each in its own words.
async fn tells_mistakes_of_tls_apart(scheme: &str, tail: &str, port: u16, files: &TlsFiles, elsewhere: &Path) {
    let others = TlsFiles::create(elsewhere);
    let with = |host: &str, ca: &Path, is_certified: bool| {
        let (cert, key) = (files.client_certificate.display(), files.client_key.display());
        let certified = if is_certified { format!("&cert={cert}&key={key}") } else { String::new() };
        format!("{scheme}://{host}:{port}{tail}connect_timeout=1h&ca={}{certified}", ca.display())
    };
    Registry::connect(&with("localhost", &files.ca, true)).await.unwrap().close().await;
    let told = [
        refusal(&with("localhost", &others.ca, true)).await,
        refusal(&with("127.0.0.2", &files.ca, true)).await,
        refusal(&with("localhost", &files.ca, false)).await,
    ];
    let ca = format!("not signed by an authority in {}", others.ca.display());
    let words = [
        &*ca,
        "certificate is not for 127.0.0.2, but for",
        "wants a client certificate, and none is given: set cert and key",
    ];
    for (index, text) in told.iter().enumerate() {
        let right: Vec<_> = words.iter().filter(|word| text.contains(**word)).collect();
        assert_eq!(right, [&words[index]], "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_mistake_with_certificates_of_zookeeper_has_its_message() {
    let elsewhere = tempfile::tempdir().unwrap();
    let server = ZooKeeper::options().tls().set("ssl.clientAuth", "need").start().await;
    let port = server.secure_address().rsplit_once(':').unwrap().1.parse().unwrap();
    tells_mistakes_of_tls_apart("zookeeper", "/p?tls=on&", port, server.tls(), elsewhere.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_mistake_with_certificates_of_an_agent_has_its_message() {
    let (folder, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let files = TlsFiles::create(folder.path());
    let mut settings = Settings::new(([0, 0, 0, 0], 0).into());
    settings.hosts = vec!["localhost".to_owned(), "127.0.0.2".to_owned()];
    let (cert, key) = (files.server.clone(), files.server.clone());
    settings.tls = Some(pointsman_agent::Tls { cert, key, client_ca: Some(files.ca.clone()) });
    let below = Registry::connect("memory://certified").await.unwrap();
    let agent = Agent::start(&below, settings).await.unwrap();
    tells_mistakes_of_tls_apart("https", "?", agent.address().port(), &files, elsewhere.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_a_quorum_can_be_read_by_whoever_has_just_started() {
    support::log();
    let prefix = unique_prefix();
    // A server without a quorum has only local sessions; to have them at all, all have to, and to create ephemeral nodes, upgrade them.
    let options = ZooKeeper::options()
        .property("readonlymode.enabled", "true")
        .set("localSessionsEnabled", "true")
        .set("localSessionsUpgradingEnabled", "true");
    let mut ensemble = Ensemble::start_with(&options).await;
    let registry = Registry::connect(&url(&ensemble.connect_string(), &prefix, "")).await.unwrap();
    let _a = registry.register(Instance::new("s").code("a").address("h:1")).await.unwrap();
    registry.drain("s", "b").await.unwrap();
    let last = (ensemble.leader().await + 1) % 3;
    for index in (0..3).filter(|index| *index != last) {
        ensemble.kill(index);
    }
    let cold = url(&ensemble.servers()[last].address(), &prefix, "&connect_timeout=30s");
    let cold = soon("read from it", async {
        loop {
            if let Ok(registry) = Registry::connect(&cold).await {
                return registry;
            }
        }
    })
    .await;
    let (service, all) = (cold.discover("s").await.unwrap(), cold.discover_all().await.unwrap());
    let snapshot = service.snapshot();
    assert_eq!(snapshot.master().unwrap().address.as_deref(), Some("h:1"));
    assert_eq!(all.snapshots().len(), 1);
    soon("it may be out of date", service.directory().stale()).await;
    assert!(matches!(service.freshness(), Freshness::Stale { .. }));
    let brief = Registry::builder(&url(&ensemble.servers()[last].address(), &prefix, ""));
    let brief = soon("again", brief.connect_timeout(std::time::Duration::from_secs(5)).connect()).await.unwrap();
    let error = brief.drain("s", "a").await.unwrap_err();
    assert!(error.is_retryable() && error.to_string().contains("without a quorum"), "{error}");
    ensemble.restart((last + 1) % 3).await;
    soon("what the quorum says", service.directory().fresh()).await.unwrap();
    let b = cold.register(Instance::new("s").code("b")).await.unwrap();
    let seen = soon("followed", service.wait_for(|s| s.find("b").is_some())).await.unwrap();
    assert_eq!(seen.find("b").unwrap().status, Status::Drained);
    b.close().await.unwrap();
}
