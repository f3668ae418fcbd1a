//! Registries behind agents, in bad weather: agents that end, freeze, and start again.

#![cfg(all(feature = "agent-client", feature = "tls", feature = "zookeeper"))]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use pointsman_agent::{Agent, Settings, Token};
use pointsman_core::{Instance, Role, Term};
use pointsman_registry::{Error, Registration, Registry};
use pointsman_testkit::{CuttingProxy, TlsFiles, ZooKeeper, unique_prefix};

/// Far longer than anything here takes: a deadline, not a wait.
const SOON: Duration = Duration::from_secs(30);

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future).await.unwrap_or_else(|_| panic!("not in time: {what}"))
}

async fn until_role(what: &str, registration: &mut Registration, wanted: impl Fn(Role) -> bool) -> Role {
    let waiting = async {
        loop {
            let role = registration.role_changed().await.expect("the registration lives");
            if wanted(role) {
                return role;
            }
        }
    };
    soon(what, waiting).await
}

fn loopback() -> Settings {
    Settings::new(SocketAddr::from(([127, 0, 0, 1], 0)))
}

async fn agent(url: &str) -> (Agent, Registry) {
    let registry = Registry::connect(url).await.unwrap();
    (Agent::start(&registry, loopback()).await.unwrap(), registry)
}

/// Two agents over one ZooKeeper, with sessions of ten seconds.
async fn two_agents() -> [(Agent, Registry); 2] {
    let server = ZooKeeper::shared().await;
    let url = format!("zookeeper://{}{}?session_timeout=10s&guard=off", server.address(), unique_prefix());
    [agent(&url).await, agent(&url).await]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_ends_leaves_no_gap() {
    let [(first, below_first), (second, _below)] = two_agents().await;
    // Seen from the other agent, all the time.
    let service =
        Registry::connect(&format!("http://{}", second.address())).await.unwrap().discover("s").await.unwrap();
    let mut changes = service.changes();
    let url = format!("http://{},{}?ttl=3s", first.address(), second.address());
    // Both of them by the first.
    let mut pair = Vec::new();
    while pair.len() < 2 {
        let registry = Registry::connect(&format!("http://{}", first.address())).await.unwrap();
        drop(registry);
        let registry = Registry::connect(&url).await.unwrap();
        let code = ["a", "b"][pair.len()];
        pair.push(registry.register(Instance::new("s").code(code)).await.unwrap());
    }
    let term = pair[0].role().term().unwrap();
    soon("both", service.wait_for(|s| s.instances().len() == 2 && s.master().is_some())).await.unwrap();
    first.close().await;
    below_first.abandon();
    for registration in &mut pair {
        until_role("registered by the other", registration, |role| role != Role::Detached).await;
    }
    soon("both still", service.wait_for(|s| s.instances().len() == 2 && s.master().is_some())).await.unwrap();
    let snapshot = service.snapshot();
    assert_eq!(&*snapshot.master().unwrap().code, "a", "whoever was master is master");
    assert!(snapshot.master().unwrap().role.term().unwrap() >= term);
    // Nobody has ever been missing.
    let told = async {
        loop {
            let change = changes.next().await.unwrap();
            assert!(!matches!(change, pointsman_core::Change::Left(_)), "{change:?}");
        }
    };
    assert!(tokio::time::timeout(Duration::from_millis(1), told).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_freezes_is_left_by_the_own_deadline() {
    let [(first, _one), (second, _two)] = two_agents().await;
    let proxy = CuttingProxy::start(first.address());
    let url = format!("http://{}?ttl=2s", proxy.address());
    let alone = Registry::connect(&url).await.unwrap();
    let mut registration = alone.register(Instance::new("s").code("a")).await.unwrap();
    until_role("master", &mut registration, Role::is_master).await;
    let seen = Registry::connect(&format!("http://{}", second.address())).await.unwrap().discover("s").await.unwrap();
    soon("seen", seen.wait_for(|s| s.master().is_some())).await.unwrap();
    proxy.blackhole();
    until_role("detached", &mut registration, |role| role == Role::Detached).await;
    assert_eq!(registration.role(), Role::Detached);
    // The agent gives it away only after that: counted from when it was asked, not from when it was answered.
    soon("expired", seen.wait_for(|s| s.instances().is_empty())).await.unwrap();
    assert!(registration.trouble().is_some());
    proxy.mend();
    until_role("master again", &mut registration, Role::is_master).await;
}

/// An agent in a process of its own, as far as anybody can tell: it can be killed.
struct Process {
    runtime: Option<tokio::runtime::Runtime>,
    address: SocketAddr,
}

impl Process {
    async fn start(url: &str) -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (url, (tell, told)) = (url.to_owned(), tokio::sync::oneshot::channel());
        runtime.spawn(async move {
            let (agent, _registry) = agent(&url).await;
            tell.send(agent.address()).unwrap();
            std::future::pending::<()>().await;
        });
        Self { runtime: Some(runtime), address: soon("an agent", told).await.unwrap() }
    }

    /// No last word, and no session is closed.
    fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Two agents over one ZooKeeper, each behind a proxy; `a` and `b` are registered through the first, `c` without any, and a
/// directory goes by both.
struct Pair {
    agents: [Process; 2],
    proxies: [CuttingProxy; 2],
    a: Registration,
    b: Registration,
    c: Registration,
    /// Of `a`, which is master.
    term: Option<Term>,
    seen: pointsman_registry::Service,
}

impl Pair {
    /// With sessions that outlast each of these tests.
    async fn start(ttl: &str) -> Self {
        let server = ZooKeeper::shared().await;
        let below = format!("zookeeper://{}{}?session_timeout=40s&guard=off", server.address(), unique_prefix());
        let agents = [Process::start(&below).await, Process::start(&below).await];
        let proxies = agents.each_ref().map(|agent| CuttingProxy::start(agent.address));
        proxies[1].cut();
        let url = format!("http://{},{}?ttl={ttl}", proxies[0].address(), proxies[1].address());
        let through = Registry::connect(&url).await.unwrap();
        let register = async |registry: &Registry, code: &str| {
            soon(code, registry.register(Instance::new("s").code(code))).await.unwrap()
        };
        let (a, b) = (register(&through, "a").await, register(&through, "b").await);
        let directly = Registry::connect(&below).await.unwrap();
        let c = register(&directly, "c").await;
        let seen = through.discover("s").await.unwrap();
        soon("all", seen.wait_for(|s| s.instances().len() == 3)).await.unwrap();
        proxies[1].mend();
        let term = a.role().term();
        Self { agents, proxies, a, b, c, term, seen }
    }

    /// Both are registered by the other agent, and nobody has become master in their place.
    async fn moved(&mut self) {
        for registration in [&mut self.a, &mut self.b] {
            until_role("detached", registration, |role| role == Role::Detached).await;
        }
        let started = std::time::Instant::now();
        let role = until_role("a by the other", &mut self.a, |role| role != Role::Detached).await;
        assert_eq!(role.term(), self.term, "the mastership goes on");
        assert_eq!(until_role("b by the other", &mut self.b, |role| role != Role::Detached).await, Role::Normal);
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
        assert_eq!(self.c.role(), Role::Normal);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_is_killed_is_replaced_at_once_by_another() {
    let mut pair = Pair::start("10s").await;
    assert!(pair.a.role().is_master());
    pair.agents[0].kill();
    pair.moved().await;
    let a = pair.a.role();
    soon("seen", pair.seen.wait_for(|s| s.instances().len() == 3 && s.master().is_some_and(|m| m.role == a)))
        .await
        .unwrap();
    pair.b.update(|instance| instance.weight = 7).await.unwrap();
    soon("seen", pair.seen.wait_for(|s| s.find("b").is_some_and(|b| b.weight == 7))).await.unwrap();
    pair.a.close().await.unwrap();
    until_role("c or b is master", &mut pair.c, |role| role == Role::Normal || role.is_master()).await;
    soon("a is gone", pair.seen.wait_for(|s| s.find("a").is_none() && s.master().is_some())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_falls_silent_is_left_for_another_while_it_still_keeps_the_registration() {
    let mut pair = Pair::start("3s").await;
    let directly = Registry::connect(&format!("http://{}", pair.agents[1].address)).await.unwrap();
    let service = directly.discover("s").await.unwrap();
    let mut changes = service.changes();
    pair.proxies[0].blackhole();
    pair.moved().await;
    let a = pair.a.role();
    soon("seen", service.wait_for(|s| s.master().is_some_and(|m| m.role == a))).await.unwrap();
    // Nobody was missing in between.
    let told = async {
        loop {
            let change = changes.next().await.unwrap();
            assert!(!matches!(change, pointsman_core::Change::Left(_)), "{change:?}");
        }
    };
    assert!(tokio::time::timeout(Duration::from_millis(1), told).await.is_err());
    // The first agent, which has lost them, and its clients' connections, takes nothing back.
    pair.proxies[0].mend();
    pair.a.update(|instance| instance.weight = 9).await.unwrap();
    soon("updated", service.wait_for(|s| s.find("a").is_some_and(|a| a.weight == 9))).await.unwrap();
    assert_eq!((pair.a.role(), pair.b.role()), (a, Role::Normal));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_waits_for_the_agents_registry_and_the_lease_goes_on_meanwhile() {
    let server = ZooKeeper::shared().await;
    let to_server = CuttingProxy::start(server.socket_address());
    let below = format!("zookeeper://{}{}?session_timeout=40s&guard=off", to_server.address(), unique_prefix());
    let (agent, _registry) = agent(&below).await;
    let registry = Registry::connect(&format!("http://{}?ttl=1s", agent.address())).await.unwrap();
    let service = registry.discover("s").await.unwrap();
    let mut registration = registry.register(Instance::new("s").code("a")).await.unwrap();
    let before = until_role("master", &mut registration, Role::is_master).await;
    to_server.cut();
    until_role("detached", &mut registration, |role| role == Role::Detached).await;
    let mut update = Box::pin(registration.update(|instance| instance.weight = 5));
    // Several leases long: that is the test.
    assert!(tokio::time::timeout(Duration::from_secs(3), &mut update).await.is_err());
    to_server.mend();
    soon("updated", update).await.unwrap();
    let role = until_role("master again", &mut registration, Role::is_master).await;
    assert_eq!(role, before, "the agent has kept it all the time");
    soon("seen", service.wait_for(|s| s.find("a").is_some_and(|a| a.weight == 5))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_closed_comes_and_goes_once() {
    let (agent, below) = agent("memory://once").await;
    let registry = Registry::connect(&format!("http://{}", agent.address())).await.unwrap();
    let service = below.discover("s").await.unwrap();
    let mut changes = service.changes();
    // As it happens: whoever looks later sees only what has become of it.
    let watching = tokio::spawn(async move {
        let mut joined = Vec::new();
        while joined.last().is_none_or(|code| code != "last") {
            if let pointsman_core::Change::Joined(instance) = changes.next().await.unwrap() {
                joined.push(instance.code.to_string());
            }
        }
        joined
    });
    for number in 0..200 {
        let instance = Instance::new("s").code(number.to_string());
        let registration = soon("registered", registry.register(instance)).await.unwrap();
        soon("closed", registration.close()).await.unwrap();
    }
    let _last = below.register(Instance::new("s").code("last")).await.unwrap();
    let joined = soon("the last", watching).await.unwrap();
    let mut once = joined.clone();
    once.dedup();
    assert_eq!(joined, once, "registered again after it was closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_accepts_and_says_nothing_is_told_within_the_connect_timeout() {
    let (agent, _below) = agent("memory://mute").await;
    let proxy = CuttingProxy::start(agent.address());
    proxy.blackhole();
    let started = std::time::Instant::now();
    let url = format!("http://{}?connect_timeout=700ms", proxy.address());
    let error = Registry::connect(&url).await.map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }) && error.to_string().contains(&proxy.address()), "{error}");
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    let waiting = tokio::spawn(Registry::builder(&url).wait(true).connect());
    proxy.mend();
    soon("connected", waiting).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_watches_goes_on_at_another_agent() {
    let [(first, _one), (second, _two)] = two_agents().await;
    let proxies = [CuttingProxy::start(first.address()), CuttingProxy::start(second.address())];
    let url = format!("http://{},{}", proxies[0].address(), proxies[1].address());
    let service = Registry::connect(&url).await.unwrap().discover("s").await.unwrap();
    let directly = Registry::connect(&format!("http://{}", second.address())).await.unwrap();
    for (number, proxy) in proxies.iter().cycle().take(4).enumerate() {
        proxy.cut_once();
        let _one = directly.register(Instance::new("s").code(number.to_string())).await.unwrap();
        soon("seen", service.wait_for(|s| s.find(&number.to_string()).is_some())).await.unwrap();
    }
    soon("all gone", service.wait_for(|s| s.instances().is_empty())).await.unwrap();
    soon("fresh", service.directory().fresh()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restart_over_memory_terms_are_higher() {
    let (first, below) = agent("memory://restart-1").await;
    let address = first.address();
    let registry = Registry::connect(&format!("http://{address}")).await.unwrap();
    let mut registration = registry.register(Instance::new("s").code("a")).await.unwrap();
    let before = until_role("master", &mut registration, Role::is_master).await;
    let service = registry.discover("s").await.unwrap();
    first.close().await;
    drop(below);
    until_role("detached", &mut registration, |role| role == Role::Detached).await;
    soon("stale", service.directory().stale()).await;
    // Another process, as far as anybody can tell.
    let other = Registry::connect("memory://restart-2").await.unwrap();
    let mut settings = loopback();
    settings.listen = address;
    let again = Agent::start(&other, settings).await.unwrap();
    let after = until_role("master again", &mut registration, Role::is_master).await;
    assert!(after.term() > before.term(), "{after} after {before}");
    soon("fresh", service.directory().fresh()).await.unwrap();
    soon("there", service.wait_for(|s| s.master().is_some_and(|m| m.role == after))).await.unwrap();
    again.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_and_certificates() {
    let folder = tempfile::tempdir().unwrap();
    let files = TlsFiles::create(folder.path());
    let below = Registry::connect("memory://secret-agent").await.unwrap();
    let mut settings = loopback();
    settings.hosts = vec!["localhost".to_owned()];
    settings.write_token = Some(Token::new("geheim-geheim-geheim").unwrap());
    let (cert, key) = (files.server.clone(), files.server.clone());
    settings.tls = Some(pointsman_agent::Tls { cert, key, client_ca: Some(files.ca.clone()) });
    let agent = Agent::start(&below, settings).await.unwrap();
    let (port, ca) = (agent.address().port(), files.ca.display());
    let certified = format!(
        "https://localhost:{port}?ca={ca}&cert={}&key={}",
        files.client_certificate.display(),
        files.client_key.display()
    );
    let refused = |error: Error| {
        assert!(!error.to_string().contains("geheim"), "{error}");
        error
    };
    let error = Registry::connect(&certified).await.map(|_| ()).unwrap_err();
    assert!(matches!(refused(error), Error::Refused { .. }), "no token");
    let error = Registry::connect(&format!("{certified}&token=geheim-falsch-geheim")).await.map(|_| ()).unwrap_err();
    assert!(matches!(refused(error), Error::Refused { .. }), "a wrong token");
    let without = format!("https://localhost:{port}?ca={ca}&token=geheim-geheim-geheim&connect_timeout=1s");
    let error = Registry::connect(&without).await.map(|_| ()).unwrap_err();
    assert!(matches!(refused(error), Error::Refused { .. }), "no certificate");
    let registry = Registry::connect(&format!("{certified}&token=geheim-geheim-geheim")).await.unwrap();
    assert!(!registry.url().contains("geheim"));
    let mut registration = registry.register(Instance::new("s")).await.unwrap();
    until_role("master", &mut registration, Role::is_master).await;
    registration.close().await.unwrap();
}

/// The clock has jumped back since the process before this one, which its clients remember.
#[test]
fn terms_rise_above_those_on_disk_whatever_the_clock_says() {
    // Outlives the runtime, in which files are still written after the last word of the test.
    let folder = tempfile::tempdir().unwrap();
    tokio::runtime::Runtime::new().unwrap().block_on(terms_rise(folder.path()));
}

async fn terms_rise(folder: &Path) {
    let kept = folder.join("memory-clock");
    std::fs::create_dir(&kept).unwrap();
    let before = 1_u64 << 52;
    let saved = format!(
        r#"{{"service":"s","revision":7,"saved_at_unix_ms":1,"instances":[{{"code":"a","weight":1,"term":{before}}}]}}"#
    );
    std::fs::write(kept.join("s.json"), saved).unwrap();
    let (agent, _below) = agent(&format!("memory://clock?snapshots={}", folder.display())).await;
    let registry = Registry::connect(&format!("http://{}", agent.address())).await.unwrap();
    let mut registration = registry.register(Instance::new("s").code("b")).await.unwrap();
    let role = until_role("master", &mut registration, Role::is_master).await;
    assert_eq!(role.term().unwrap().0, before + 1);
}

/// Or whoever comes back to another agent with the revision of one would be told that nothing has changed.
#[tokio::test]
async fn no_two_directories_give_one_revision() {
    let registry = Registry::connect("memory://revisions").await.unwrap();
    let _one = registry.register(Instance::new("s")).await.unwrap();
    let (all, one) = (registry.discover_all().await.unwrap(), registry.discover("s").await.unwrap());
    assert_ne!(all.snapshot("s").revision(), one.snapshot().revision());
}
