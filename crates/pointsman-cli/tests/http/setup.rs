//! A proxy in a process of its own, and the registry that it finds instances in.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use pointsman_testkit::http::{self, Response};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use crate::support::served::{File, free_port, get, logged, serve};
use crate::support::{DEADLINE, Running, run, stdout};

pub(crate) fn at(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// Asks again until the answer is as wanted.
pub(crate) async fn until<T: Debug>(mut ask: impl AsyncFnMut() -> T, wanted: impl Fn(&T) -> bool) -> T {
    let mut last = None;
    let asking = async {
        loop {
            let answer = ask().await;
            if wanted(&answer) {
                return answer;
            }
            last = Some(answer);
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(DEADLINE, asking).await.unwrap_or_else(|_| panic!("never as wanted, but {last:?}"))
}

/// An agent that keeps a registry in its memory.
pub(crate) struct Registry {
    port: u16,
    file: File,
    running: Running,
}

impl Registry {
    pub(crate) async fn start() -> Registry {
        Registry::start_at(free_port()).await
    }

    pub(crate) async fn start_at(port: u16) -> Registry {
        let file = File::new(&format!("agent.listen = '127.0.0.1:{port}'\n"));
        let mut running = serve(&file.path);
        logged(&mut running, " ready").await;
        running.ignore_notes();
        Registry { port, file, running }
    }

    /// From one moment to the next, with all that it knows.
    pub(crate) async fn kill(self) -> u16 {
        self.running.signal(Signal::KILL);
        self.running.ended().await;
        drop(self.file);
        self.port
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Registers an instance for as long as the registry lives. The first of a service is its master.
    pub(crate) async fn put(&self, service: &str, code: &str, address: SocketAddr) {
        let target = format!("/v1/services/{service}/instances/{code}");
        let fields = [("Host", "localhost"), ("Content-Type", "application/json")];
        let body = json!({ "address": address.to_string(), "ttl": "10m" }).to_string();
        let answer = http::request(at(self.port), "PUT", &target, &fields, body).await;
        assert!(answer.status < 300, "{answer:?}");
    }

    /// What `pointsman instances` lists.
    pub(crate) async fn instances(&self, service: &str) -> Value {
        instances(service, &self.url()).await
    }

    /// Waits until so many proxies are registered.
    pub(crate) async fn until_balancers(&self, count: usize) -> Value {
        let ask = async || self.instances("http-balancer").await;
        until(ask, |listed| listed.as_array().unwrap().len() == count).await
    }
}

pub(crate) async fn instances(service: &str, registry: &str) -> Value {
    let output = run(&["instances", service, "-o", "json", "--all", "--registry", registry]).await;
    serde_json::from_str(&stdout(&output)).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// A process `pointsman serve`.
pub(crate) struct Proxy {
    pub(crate) file: File,
    pub(crate) port: u16,
    pub(crate) running: Running,
}

/// A file with a proxy that passes everything on to `ress`, and these lines under `[http]`.
pub(crate) fn text(registry: &str, port: u16, lines: &str) -> String {
    format!(
        "registry = '{registry}'\n[http]\nlisten = '127.0.0.1:{port}'\nworkers = 2\nregister_as = 'http-balancer'\n{lines}\n\
         [[http.route]]\npath_prefix = '/'\nservice = 'ress'\n"
    )
}

impl Proxy {
    /// One that is ready, with this file.
    pub(crate) async fn start(port: u16, text: &str) -> Proxy {
        let file = File::new(text);
        let mut running = serve(&file.path);
        logged(&mut running, " ready").await;
        Proxy { file, port, running }
    }

    /// One that passes everything on to `ress`.
    pub(crate) async fn over(registry: &Registry, lines: &str) -> Proxy {
        let port = free_port();
        Proxy::start(port, &text(&registry.url(), port, lines)).await
    }

    pub(crate) async fn get(&self, target: &str) -> Response {
        http::get(at(self.port), target).await
    }

    /// Waits until requests are answered by just these.
    pub(crate) async fn until_served_by(&self, origins: &[&str]) {
        let wanted: BTreeSet<String> = origins.iter().map(|&origin| origin.to_owned()).collect();
        let ask = async || {
            let mut seen = BTreeSet::new();
            for _ in 0..3 * origins.len() {
                let answer = self.get("/").await;
                seen.insert(answer.header("x-origin").map_or_else(|| answer.status.to_string(), str::to_owned));
            }
            seen
        };
        until(ask, |seen| *seen == wanted).await;
    }

    pub(crate) async fn reloaded(&mut self, text: &str) {
        self.file.replace(text);
        logged(&mut self.running, "configuration reloaded").await;
    }

    /// By SIGTERM, as it should be.
    pub(crate) async fn ends(self) {
        self.running.signal(Signal::TERM);
        assert_eq!(self.running.ended().await.code(), Some(0));
    }
}

/// What is counted, at an agent or at `[metrics]`.
pub(crate) async fn metrics(port: u16) -> String {
    let told = get(port, "/metrics").await;
    crate::support::served::check_metrics(&told);
    told
}
