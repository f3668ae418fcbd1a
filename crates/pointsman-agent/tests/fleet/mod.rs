//! A fleet in the test's own process, with the agent and the browser that look at it.

#![allow(clippy::unwrap_used)]

pub(crate) mod traffic;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pointsman_agent::{Agent, Settings};
use pointsman_core::Instance;
use pointsman_registry::{Registration, Registry};
use pointsman_testkit::Browser;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, SemaphorePermit};

/// A browser is many processes: so many run at a time.
static BROWSERS: Semaphore = Semaphore::const_new(2);
/// Each fleet is a registry of its own.
static NAMES: AtomicUsize = AtomicUsize::new(1);

pub(crate) fn instance(service: &str, code: &str) -> Instance {
    Instance::new(service).code(code).address("10.0.0.1:8080")
}

pub(crate) struct Fleet {
    pub(crate) registry: Registry,
    pub(crate) browser: Browser,
    settings: Settings,
    agent: Option<Agent>,
    registrations: Mutex<Vec<Registration>>,
    _turn: SemaphorePermit<'static>,
}

impl Fleet {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub(crate) async fn start_with(change: impl FnOnce(&mut Settings)) -> Self {
        let turn = BROWSERS.acquire().await.unwrap();
        let registry =
            Registry::connect(&format!("memory://fleet-{}", NAMES.fetch_add(1, Ordering::Relaxed))).await.unwrap();
        let mut settings = Settings::new(([127, 0, 0, 1], 0).into());
        change(&mut settings);
        let agent = Agent::start(&registry, settings.clone()).await.unwrap();
        settings.listen = agent.address();
        let browser = Browser::start().await;
        Self { registry, browser, settings, agent: Some(agent), registrations: Mutex::default(), _turn: turn }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.settings.listen
    }

    /// Shows a page, from scratch, and waits until it shows the present.
    pub(crate) async fn show(&self, hash: &str) {
        self.load(hash).await;
        self.browser.wait_for("document.body.dataset.trust === 'fresh'").await;
    }

    /// Shows a page, from scratch.
    pub(crate) async fn load(&self, hash: &str) {
        // Another hash alone would not load it anew.
        self.browser.open("about:blank").await;
        self.browser.open(&format!("http://{}/{hash}", self.address())).await;
    }

    pub(crate) async fn register(&self, instance: Instance) -> Registration {
        self.registry.register(instance).await.unwrap()
    }

    pub(crate) async fn keep(&self, instance: Instance) {
        let registration = self.register(instance).await;
        self.registrations.lock().unwrap().push(registration);
    }

    /// Abruptly: without a word to those who are connected.
    pub(crate) async fn stop_agent(&mut self) {
        drop(self.agent.take());
        while TcpStream::connect(self.address()).await.is_ok() {
            tokio::task::yield_now().await;
        }
    }

    /// Where it was.
    pub(crate) async fn start_agent(&mut self) {
        self.agent = Some(Agent::start(&self.registry, self.settings.clone()).await.unwrap());
    }

    /// What else stands under `/metrics`, from now on.
    pub(crate) fn set_metrics(&self, text: impl Fn() -> String + Send + Sync + 'static) {
        self.agent.as_ref().unwrap().add_metrics(move || std::future::ready(text()));
    }

    /// Waits until what a selector finds first says something.
    pub(crate) async fn says(&self, selector: &str, words: &str) {
        let (selector, words) = (json!(selector), json!(words));
        self.browser.wait_for(&format!("document.querySelector({selector})?.innerText.includes({words})")).await;
    }

    pub(crate) async fn is_there(&self, selector: &str) {
        self.browser.wait_for(&format!("document.querySelector({})", json!(selector))).await;
    }

    pub(crate) async fn is_gone(&self, selector: &str) {
        self.browser.wait_for(&format!("document.querySelector({}) === null", json!(selector))).await;
    }

    /// So many picks by the agent's API: the codes.
    pub(crate) async fn picks(&self, service: &str, count: usize, ttl: usize) -> Vec<String> {
        let mut codes = Vec::new();
        for _ in 0..count {
            let answer = get(self.address(), &format!("/v1/services/{service}/pick?ttl={ttl}s"), "").await;
            let picked: Value = serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap();
            codes.push(picked["instance"]["code"].as_str().unwrap().to_owned());
        }
        codes
    }

    /// No error of a script, and nothing that the policy had to stop. That a request has failed is what some tests are about.
    pub(crate) async fn complains_of_nothing(&self) {
        let mut complaints = self.browser.console().await;
        complaints.retain(|line| line.source != "network");
        assert!(complaints.is_empty(), "{complaints:?}");
    }

    /// Instances as a small company might have them.
    pub(crate) async fn populate(&self) {
        for (number, (service, count)) in SERVICES.into_iter().enumerate() {
            for i in 0..count {
                let code = format!("{service}-{:04x}", (number * 7919 + i * 104_729 + 4242) % 0xffff);
                let address = format!("10.0.{number}.{}:8080", 11 + i);
                let weight = 1 + u32::try_from(i % 3).unwrap();
                let instance = Instance::new(service).code(code).address(address).weight(weight);
                let version = if i > 3 { "2.5.0" } else { "2.4.1" };
                self.keep(instance.tag("zone", ["eu-1", "eu-2"][i % 2]).tag("version", version)).await;
            }
        }
    }

    /// What happens in such a fleet: picks, masters that go, drains. As long as it takes to look like it.
    pub(crate) async fn live(&self) {
        let codes: Vec<Instance> =
            self.registrations.lock().unwrap().iter().map(|r| Instance::clone(&r.instance())).collect();
        for service in ["checkout", "search"] {
            let drained = codes.iter().filter(|instance| &*instance.service == service).nth(3).unwrap();
            self.registry.drain(service, &drained.code).await.unwrap();
        }
        for round in 0..if is_wanted() { 60 } else { 6 } {
            if round % 3 == 0 {
                let service = if round % 9 == 0 { "orders" } else { SERVICES[round % SERVICES.len()].0 };
                self.change_master(service).await;
            }
            for (number, (service, count)) in SERVICES.into_iter().enumerate() {
                self.picks(
                    service,
                    (count + round * round * (number + 3)) % (3 + number % 5),
                    2 + (number + round / 9) % 7,
                )
                .await;
            }
            if is_wanted() {
                tokio::time::sleep(Duration::from_millis(950)).await;
            }
        }
        self.browser.wait_for("document.querySelectorAll('#rail-list li').length > 5").await;
    }

    pub(crate) async fn change_master(&self, service: &str) {
        let found = {
            let mut kept = self.registrations.lock().unwrap();
            let master = kept.iter().position(|one| &*one.instance().service == service && one.role().is_master());
            master.map(|at| kept.swap_remove(at))
        };
        if let Some(master) = found {
            let instance = Instance::clone(&master.instance());
            master.close().await.unwrap();
            self.keep(instance).await;
        }
    }

    /// Takes a picture; it goes to `docs` if that is wanted, and is looked at in any case.
    pub(crate) async fn picture(&self, name: &str) {
        // What has just come lights up for a while.
        self.browser
            .wait_for("document.getAnimations().every((one) => one.effect.getTiming().iterations === Infinity)")
            .await;
        let picture = self.browser.screenshot().await;
        assert!(picture.starts_with(b"\x89PNG"), "{name} is no PNG");
        // A page on which there is nothing takes some 5 KB.
        assert!((20_000..250_000).contains(&picture.len()), "{name} has {} bytes", picture.len());
        if is_wanted() {
            let docs = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs");
            std::fs::write(docs.join(name), picture).unwrap();
        }
    }
}

const SERVICES: [(&str, usize); 11] = [
    ("billing", 4),
    ("catalog", 12),
    ("checkout", 8),
    ("media-transcoder", 18),
    ("notifications", 6),
    ("orders", 8),
    ("payments", 5),
    ("recommendations", 16),
    ("search", 14),
    ("sessions", 9),
    ("thumbnails", 7),
];

/// Whether pictures are wanted; then time is taken for them.
pub(crate) fn is_wanted() -> bool {
    std::env::var_os("UPDATE_SCREENSHOTS").is_some_and(|value| value == "1")
}

/// The whole answer to a `GET`: the head, an empty line, the body.
pub(crate) async fn get(address: SocketAddr, path: &str, headers: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8(answer).unwrap()
}
