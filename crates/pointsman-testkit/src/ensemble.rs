//! Three servers that replicate one another.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::zookeeper::{ServerConfig, ZooKeeper, ZooKeeperOptions, free_port};

/// How long an ensemble may take to elect a leader.
const ELECTION_DEADLINE: Duration = Duration::from_secs(60);

/// Three ZooKeeper servers on loopback, numbered 0 to 2. Killed on drop.
#[derive(Debug)]
pub struct Ensemble {
    servers: Vec<ZooKeeper>,
}

impl Ensemble {
    /// Starts three servers and returns once all of them serve.
    pub async fn start() -> Ensemble {
        Ensemble::start_with(&ZooKeeperOptions::default()).await
    }

    /// The same with settings of one's own.
    pub async fn start_with(options: &ZooKeeperOptions) -> Ensemble {
        let loopback = IpAddr::from([127, 0, 0, 1]);
        let mut ensemble = Ensemble { servers: prepare(options, [loopback; 3], free_port) };
        for server in &mut ensemble.servers {
            server.launch(&[]);
        }
        wait_until_all_serve(&mut ensemble.servers).await;
        ensemble
    }

    /// `127.0.0.1:port,127.0.0.1:port,127.0.0.1:port`
    #[must_use]
    pub fn connect_string(&self) -> String {
        connect_string(&self.servers)
    }

    /// The servers.
    #[must_use]
    pub fn servers(&self) -> &[ZooKeeper] {
        &self.servers
    }

    /// One server, to be paused or changed.
    pub fn server(&mut self, index: usize) -> &mut ZooKeeper {
        &mut self.servers[index]
    }

    /// The number of the leader; waits for one to be elected.
    ///
    /// # Panics
    /// When there is none within a minute.
    pub async fn leader(&self) -> usize {
        leader(&self.servers).await
    }

    /// SIGKILL for one server.
    pub fn kill(&mut self, index: usize) {
        self.servers[index].kill();
    }

    /// Starts a server again, with its data; returns once it serves, which needs a second server.
    pub async fn restart(&mut self, index: usize) {
        self.servers[index].restart().await;
    }
}

/// Three servers that know each other's addresses and are yet to be launched.
pub(crate) fn prepare(options: &ZooKeeperOptions, ips: [IpAddr; 3], port: impl Fn() -> u16) -> Vec<ZooKeeper> {
    let mut options = options.clone().set("electionPortBindRetry", "10");
    let mut clients = Vec::new();
    for (index, ip) in ips.into_iter().enumerate() {
        options = options.set(&format!("server.{}", index + 1), &format!("{ip}:{}:{}", port(), port()));
        clients.push(SocketAddr::new(ip, port()));
    }
    let server = |(index, &address): (usize, &SocketAddr)| {
        let config = ServerConfig::new(address, &options);
        std::fs::write(config.folder().join("data/myid"), format!("{}\n", index + 1)).unwrap();
        ZooKeeper::prepared(config)
    };
    clients.iter().enumerate().map(server).collect()
}

pub(crate) fn connect_string(servers: &[ZooKeeper]) -> String {
    let addresses: Vec<String> = servers.iter().map(ZooKeeper::address).collect();
    addresses.join(",")
}

pub(crate) async fn wait_until_all_serve(servers: &mut [ZooKeeper]) {
    for (index, server) in servers.iter_mut().enumerate() {
        if let Err(log) = server.wait_until_serving().await {
            panic!("server {index} of the ensemble did not start:\n{log}");
        }
    }
}

pub(crate) async fn leader(servers: &[ZooKeeper]) -> usize {
    let start = Instant::now();
    while start.elapsed() < ELECTION_DEADLINE {
        for (index, server) in servers.iter().enumerate() {
            if server.mode().await.as_deref() == Some("leader") {
                return index;
            }
        }
        sleep(Duration::from_millis(20)).await;
    }
    panic!("the ensemble has elected no leader within {ELECTION_DEADLINE:?}");
}
