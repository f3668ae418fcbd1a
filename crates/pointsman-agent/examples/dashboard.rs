//! The dashboard with something to look at: an agent over `memory://` with a fleet that comes and goes.
//!
//! ```sh
//! cargo run -p pointsman-agent --example dashboard            # a small fleet
//! cargo run -p pointsman-agent --example dashboard -- large   # 1,000 services of 10 instances
//! cargo run -p pointsman-agent --example dashboard -- empty   # nothing
//! ```
//!
//! It listens on 127.0.0.1, at `$PORT` or 7480.

#![allow(clippy::print_stdout)]

use std::collections::VecDeque;
use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

use pointsman_agent::{Agent, Settings};
use pointsman_core::Instance;
use pointsman_registry::{Registration, Registry};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::sleep;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Services, and how many instances each has.
const SMALL: &[(&str, usize)] = &[
    ("billing", 6),
    ("catalogue", 12),
    ("checkout", 8),
    ("email-relay", 3),
    ("gateway", 16),
    ("geo", 4),
    ("identity", 5),
    ("image-resizer", 28),
    ("inventory", 7),
    ("ledger", 3),
    ("notifications", 9),
    ("orders", 10),
    ("payments", 6),
    ("pricing", 5),
    ("recommendations-and-everything-else-that-nobody-has-found-a-shorter-name-for", 4),
    ("search", 14),
    ("sessions", 6),
    ("shipping", 5),
];

#[tokio::main]
async fn main() -> Result<()> {
    let mode = std::env::args().nth(1).unwrap_or_default();
    let port = std::env::var("PORT").ok().map_or(Ok(7480), |port| port.parse())?;
    let registry = Registry::connect("memory://dashboard").await?;
    let mut fleet = VecDeque::new();
    let agent = Agent::start(&registry, Settings::new(SocketAddr::from(([127, 0, 0, 1], port)))).await?;
    match &*mode {
        "empty" => {}
        "large" => {
            for service in 0..1000 {
                fill(&registry, &mut fleet, &format!("service-{service:04}"), 10).await?;
            }
        }
        _ => {
            for (service, count) in SMALL {
                fill(&registry, &mut fleet, service, *count).await?;
            }
            registry.drain("checkout", "checkout-3").await?;
            registry.drain("gateway", "gateway-11").await?;
        }
    }
    println!("http://{}", agent.address());
    if fleet.is_empty() {
        std::future::pending::<()>().await;
    }
    tokio::spawn(call(agent.address(), fleet.iter().map(|one| one.instance().service.to_string()).collect()));
    churn(&registry, &mut fleet, if mode == "large" { 20 } else { 900 }).await
}

async fn fill(registry: &Registry, fleet: &mut VecDeque<Registration>, service: &str, count: usize) -> Result<()> {
    for number in 1..=count {
        fleet.push_back(registry.register(instance(service, &format!("{service}-{number}"), number)).await?);
    }
    Ok(())
}

fn instance(service: &str, code: &str, number: usize) -> Instance {
    let zone = ["eu-1", "eu-2", "us-1"][number % 3];
    let version = if number.is_multiple_of(4) { "2.8.0" } else { "2.7.3" };
    let address = format!("10.0.{}.{}:8080", service.len(), 10 + number % 200);
    let weight = if number.is_multiple_of(3) { 2 } else { 1 };
    Instance::new(service).code(code).address(address).weight(weight).tag("zone", zone).tag("version", version)
}

/// Every now and then an instance ends and comes back; as often as not it was the master.
async fn churn(registry: &Registry, fleet: &mut VecDeque<Registration>, every_ms: u64) -> Result<()> {
    loop {
        sleep(Duration::from_millis(every_ms / 2 + fastrand::u64(..every_ms))).await;
        let masters = fleet.iter().enumerate().filter(|(_, one)| one.role().is_master()).map(|(index, _)| index);
        let masters: Vec<usize> = masters.collect();
        let index = if fastrand::bool() { fastrand::choice(masters) } else { None };
        let index = index.unwrap_or_else(|| fastrand::usize(..fleet.len()));
        let Some(old) = fleet.remove(index) else { continue };
        let instance = std::sync::Arc::unwrap_or_clone(old.instance());
        old.close().await?;
        sleep(Duration::from_millis(every_ms / 3)).await;
        fleet.push_back(registry.register(instance).await?);
    }
}

/// Picks, and lets some of the claims be in flight for a while.
async fn call(agent: SocketAddr, services: Vec<String>) {
    loop {
        sleep(Duration::from_millis(15)).await;
        let Some(service) = fastrand::choice(&services) else { return };
        let ttl = 1 + fastrand::u64(..6);
        let path = format!("/v1/services/{service}/pick?algorithm=least-connections&ttl={ttl}s");
        // Only for the looks: who is not answered tries again with the next.
        let _ = ask(agent, &path).await;
    }
}

async fn ask(agent: SocketAddr, path: &str) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(agent).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {agent}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    stream.read_to_end(&mut Vec::new()).await?;
    Ok(())
}
