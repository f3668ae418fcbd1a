//! File descriptors used up: an agent of its own process, which may have few.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{Client, Server, until};

/// So many files the agent may have open.
const FEW: usize = 64;

struct Agent {
    process: Child,
    address: SocketAddr,
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Agent {
    fn start() -> Self {
        let limited = format!("ulimit -n {FEW}; exec \"$0\" \"$@\"");
        let mut process = Command::new("sh")
            .args(["-c", &limited])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "descriptors::an_agent_with_few", "--ignored", "--nocapture"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let address = lines.map_while(Result::ok).find_map(|line| line.split_once("agent at ")?.1.parse().ok());
        Self { process, address: address.expect("an address") }
    }

    /// How long it has computed so far.
    fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id())).unwrap();
        // The name, in brackets, may have spaces in it. In hundredths of a second, as Linux counts for everybody.
        let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(ticks * 10)
    }
}

#[tokio::test]
#[ignore = "is started by the test below, with few descriptors"]
async fn an_agent_with_few() {
    let server = Server::start().await;
    println!("agent at {}", server.address);
    std::io::stdout().flush().unwrap();
    // Until whoever has started it goes.
    let ended = tokio::task::spawn_blocking(|| std::io::stdin().lines().count());
    ended.await.unwrap();
}

async fn failures(client: &mut Client) -> u64 {
    let metrics = client.ask("GET", "/metrics", "").await;
    let value = metrics.text().lines().find_map(|line| line.strip_prefix("pointsman_agent_accept_failures_total "));
    value.unwrap().parse().unwrap()
}

#[tokio::test]
async fn who_cannot_be_accepted_waits_and_nobody_spins() {
    let agent = Agent::start();
    let mut first = Client::connect(agent.address).await;
    assert_eq!(first.ask("GET", "/livez", "").await.status, 200);
    let mut held = Client::connect(agent.address).await;
    held.open("POST", "/v1/services/s/instances/a/hold", &[], "").await;
    let mut more = Vec::new();
    for _ in 0..2 * FEW {
        more.push(Client::connect(agent.address).await);
    }
    let before = until("descriptors are used up", async || Some(failures(&mut first).await).filter(|n| *n > 0)).await;
    // It tries again now and then: ten times a second.
    let (cpu, started) = (agent.cpu(), Instant::now());
    until("it has tried again", async || {
        tokio::time::sleep(Duration::from_millis(100)).await;
        (failures(&mut first).await >= before + 10).then_some(())
    })
    .await;
    let (cpu, took) = (agent.cpu() - cpu, started.elapsed());
    assert!(took > Duration::from_millis(500), "{took:?}");
    assert!(cpu < took / 3, "{cpu:?} in {took:?}");
    // Who is in is served meanwhile, and keeps what it holds.
    assert_eq!(first.ask("PUT", "/v1/services/s/instances/b", "{}").await.status, 201);
    held.event_named("role").await;
    let mut last = more.pop().unwrap();
    last.send(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    drop(more);
    assert_eq!(last.answer("GET").await.status, 200);
    assert_eq!(Client::connect(agent.address).await.ask("GET", "/v1/services", "").await.json()[0]["instances"], 2);
}
