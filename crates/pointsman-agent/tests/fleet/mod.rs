//! A fleet in the test's own process, with the agent and the browser that look at it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use pointsman_agent::{Agent, Settings};
use pointsman_core::Instance;
use pointsman_registry::{Registration, Registry};
use pointsman_testkit::Browser;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, SemaphorePermit};

/// A browser is many processes: so many run at a time.
static BROWSERS: Semaphore = Semaphore::const_new(2);

pub fn settings() -> Settings {
    Settings::new(([127, 0, 0, 1], 0).into())
}

pub fn instance(service: &str, code: &str) -> Instance {
    Instance::new(service).code(code).address("10.0.0.1:8080")
}

pub struct Fleet {
    pub registry: Registry,
    settings: Settings,
    address: SocketAddr,
    agent: Option<Agent>,
    registrations: Mutex<Vec<Registration>>,
    browser: OnceLock<Browser>,
    _turn: SemaphorePermit<'static>,
}

impl Fleet {
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub async fn start_with(change: impl FnOnce(&mut Settings)) -> Self {
        let turn = BROWSERS.acquire().await.unwrap();
        let registry = Registry::connect("memory://").await.unwrap();
        let mut settings = settings();
        change(&mut settings);
        let agent = Agent::start(registry.clone(), settings.clone()).await.unwrap();
        let address = agent.address();
        Self {
            registry,
            settings,
            address,
            agent: Some(agent),
            registrations: Mutex::default(),
            browser: OnceLock::new(),
            _turn: turn,
        }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// The browser, at the first page.
    pub async fn browser(&self) -> &Browser {
        self.browser_at("").await
    }

    /// The browser, at a page.
    pub async fn browser_at(&self, hash: &str) -> &Browser {
        let browser = Browser::start().await;
        browser.go(&self.url(&format!("/{hash}"))).await;
        self.browser.set(browser).unwrap();
        self.seen()
    }

    fn seen(&self) -> &Browser {
        self.browser.get().expect("the browser is started")
    }

    pub async fn register(&self, instance: Instance) -> Registration {
        self.registry.register(instance).await.unwrap()
    }

    pub async fn register_for_good(&self, instance: Instance) {
        let registration = self.register(instance).await;
        self.registrations.lock().unwrap().push(registration);
    }

    /// Abruptly: without a word to those who are connected.
    pub async fn stop_agent(&mut self) {
        drop(self.agent.take());
        while TcpStream::connect(self.address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    }

    /// Where it was.
    pub async fn start_agent(&mut self) {
        self.settings.listen = self.address;
        self.agent = Some(Agent::start(self.registry.clone(), self.settings.clone()).await.unwrap());
    }

    /// What can be read at what a selector finds first.
    pub async fn text(&self, selector: &str) -> String {
        let text = self
            .seen()
            .run_with("return document.querySelector(arguments[0])?.innerText;", selector_of(selector))
            .await;
        text.as_str().unwrap_or_else(|| panic!("{selector} is not on the page")).to_owned()
    }

    /// Focuses the first instance's row, presses a key, and confirms.
    pub async fn confirm(&self, key: &str, code: &str) {
        let browser = self.seen();
        browser.run("document.querySelector('.rows .inst button').focus();").await;
        browser.press(key).await;
        browser.wait_for("document.querySelector('dialog')").await;
        assert!(self.text("dialog").await.contains(code));
        browser.click("dialog button[type=submit]").await;
        browser.wait_for("!document.querySelector('dialog')").await;
    }

    /// Six picks by the agent's API: the codes.
    pub async fn picks(&self, service: &str) -> Vec<String> {
        let script = "return [1, 2, 3, 4, 5, 6].map(() => { const request = new XMLHttpRequest(); \
                      request.open('GET', `/v1/services/${arguments[0]}/pick`, false); request.send(); \
                      return JSON.parse(request.responseText).instance.code; });";
        let codes = self.seen().run_with(script, selector_of(service)).await;
        serde_json::from_value(codes).unwrap()
    }

    /// No error of a script, and nothing that the policy had to stop.
    pub async fn complains_of_nothing(&self) {
        assert_eq!(self.seen().complaints().await, [""; 0]);
    }

    /// Instances as a small company might have them.
    pub async fn populate(&self) {
        for (number, (service, count)) in SERVICES.into_iter().enumerate() {
            for i in 0..count {
                let code = format!("{service}-{:04x}", (number * 7919 + i * 104_729 + 4242) % 0xffff);
                let address = format!("10.0.{number}.{}:8080", 11 + i);
                let weight = 1 + u32::try_from(i % 3).unwrap();
                let instance = Instance::new(service).code(code).address(address).weight(weight);
                let instance = instance
                    .tag("zone", ["eu-1", "eu-2"][i % 2])
                    .tag("version", ["2.4.1", "2.5.0"][usize::from(i > 3)]);
                self.register_for_good(instance).await;
            }
        }
    }

    /// What happens in such a fleet: picks, masters that go, drains. As long as it takes to look like it.
    pub async fn live(&self) {
        let rounds = if is_wanted() { 14 } else { 3 };
        let drained: Vec<Instance> = {
            let registrations = self.registrations.lock().unwrap();
            registrations.iter().map(|r| r.instance().clone()).filter(|i| i.code.ends_with('1')).take(3).collect()
        };
        for instance in drained {
            self.registry.drain(&instance.service, &instance.code).await.unwrap();
        }
        for round in 0..rounds {
            let service = if round % 3 == 0 { "orders" } else { SERVICES[(round * 5) % SERVICES.len()].0 };
            self.change_master(service).await;
            for (service, count) in SERVICES {
                for _ in 0..=(count + round) % 4 / 2 {
                    self.picks(service).await;
                }
            }
            if is_wanted() {
                tokio::time::sleep(Duration::from_millis(2500)).await;
            }
        }
        self.seen().wait_for("document.querySelectorAll('.feed .event').length > 5").await;
        self.seen().wait_for("document.querySelector('.tile:last-child b').textContent !== '0'").await;
    }

    async fn change_master(&self, service: &str) {
        let master = {
            let mut registrations = self.registrations.lock().unwrap();
            let is_master = |r: &Registration| &*r.instance().service == service && r.role().term().is_some();
            let found = registrations.iter().position(is_master);
            found.map(|at| registrations.swap_remove(at))
        };
        if let Some(master) = master {
            let instance = master.instance().clone();
            master.close().await.unwrap();
            self.register_for_good(instance).await;
        }
    }

    /// Takes a picture; it goes to `docs` if that is wanted, and is looked at in any case.
    pub async fn picture(&self, name: &str) {
        let browser = self.seen();
        browser.wait_for("document.getAnimations().every((a) => a.playState !== 'running' || a.effect.getTiming().iterations === Infinity)").await;
        let picture = browser.screenshot().await;
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
    ("media-transcoder", 28),
    ("notifications", 6),
    ("orders", 8),
    ("payments", 5),
    ("recommendations", 16),
    ("search", 22),
    ("sessions", 9),
    ("thumbnails", 14),
];

fn is_wanted() -> bool {
    std::env::var_os("UPDATE_SCREENSHOTS").is_some_and(|value| value == "1")
}

fn selector_of(selector: &str) -> serde_json::Value {
    serde_json::json!([selector])
}

/// The status and the head of an answer.
pub async fn head(address: SocketAddr, path: &str, headers: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let head = answer.split("\r\n\r\n").next().unwrap_or_default().to_owned();
    (head.split(' ').nth(1).unwrap_or_default().parse().unwrap(), head)
}
