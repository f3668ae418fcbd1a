//! Three servers in network namespaces, which can be parted from one another.

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::ensemble::{connect_string, leader, prepare, wait_until_all_serve};
use crate::process::run;
use crate::zookeeper::{ZooKeeper, ZooKeeperOptions, in_path};

/// A place of the network, besides the servers' places 0 to 2: the client's.
const CLIENT: usize = 3;
const PLACES: usize = 4;
/// All of our networks are 10.231.x.0/24; what belongs to network x is called `ptm<x>…`.
const NETWORKS: std::ops::Range<u8> = 1..250;

/// Three ZooKeeper servers, each in a network namespace of its own, and one more namespace for a client. A bridge joins them.
///
/// The test process reaches all servers over the bridge, from outside of the namespaces; in a partition it is on the side of
/// the majority. Needs root. Taken down on drop; what a dead test process has left is removed by the next.
#[derive(Debug)]
pub struct PartitionableEnsemble {
    // In the order in which they are to go: processes, then namespaces and the bridge.
    servers: Vec<ZooKeeper>,
    network: Network,
}

impl PartitionableEnsemble {
    /// Starts it, and returns once all servers serve. `None`, with the reason printed, where there are no namespaces to be had:
    /// not root, or no `ip` or `nft`.
    pub async fn start() -> Option<PartitionableEnsemble> {
        if let Some(reason) = unavailable() {
            println!("SKIPPED: no network namespaces: {reason}");
            return None;
        }
        let network = Network::create();
        let ips = [0, 1, 2].map(|place| IpAddr::V4(network.address(place)));
        let ports = std::sync::atomic::AtomicU16::new(2181);
        let port = || ports.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let servers = prepare(&ZooKeeperOptions::default(), ips, port);
        let mut ensemble = PartitionableEnsemble { servers, network };
        for index in 0..3 {
            ensemble.launch(index);
        }
        wait_until_all_serve(&mut ensemble.servers).await;
        Some(ensemble)
    }

    /// The addresses of all three.
    #[must_use]
    pub fn connect_string(&self) -> String {
        connect_string(&self.servers)
    }

    /// Where connections from the client's namespace come from.
    #[must_use]
    pub fn client_address(&self) -> Ipv4Addr {
        self.network.address(CLIENT)
    }

    /// The servers. While a server is on the far side of a partition it cannot be asked anything from the test process.
    #[must_use]
    pub fn servers(&self) -> &[ZooKeeper] {
        &self.servers
    }

    /// The number of the leader; waits for one to be elected that the test process can reach.
    pub async fn leader(&self) -> usize {
        leader(&self.servers).await
    }

    /// SIGKILL for one server.
    pub fn kill(&mut self, index: usize) {
        self.servers[index].kill();
    }

    /// Starts a server again, with its data, and does not wait for it.
    pub fn relaunch(&mut self, index: usize) {
        self.servers[index].kill();
        self.launch(index);
    }

    /// Parts these servers, and the client's namespace with them, from all others: packets between the two sides vanish, and
    /// no connection is reset. An earlier partition ends.
    pub fn partition(&self, minority: &[usize]) {
        self.heal();
        let mut places = minority.to_vec();
        places.push(CLIENT);
        let inside: Vec<String> = places.iter().map(|&place| self.network.address(place).to_string()).collect();
        let inside = format!("127.0.0.1, {}", inside.join(", "));
        for place in places {
            let rules = format!(
                "table inet ptm {{\n\
                 chain in {{ type filter hook input priority 0; ip saddr != {{ {inside} }} drop; }}\n\
                 chain out {{ type filter hook output priority 0; ip daddr != {{ {inside} }} drop; }}\n}}\n"
            );
            let namespace = self.network.namespace(place);
            let file = std::env::temp_dir().join(format!("{namespace}.nft"));
            fs::write(&file, rules).unwrap();
            run(&["ip", "netns", "exec", &namespace, "nft", "-f", &file.display().to_string()]);
            fs::remove_file(&file).unwrap();
        }
    }

    /// Joins both sides again.
    pub fn heal(&self) {
        for place in 0..PLACES {
            run(&["ip", "netns", "exec", &self.network.namespace(place), "nft", "flush", "ruleset"]);
        }
    }

    /// A command that runs in the client's namespace, which is on the side of the minority in a partition.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.network.namespace(CLIENT)]).arg(program);
        command
    }

    /// Runs a future in the client's namespace: in a thread of its own with a runtime of its own (of one thread), so that all
    /// connections that it makes begin there. What is returned can be awaited, or dropped: the future goes on.
    pub fn in_client_namespace<F, T>(&self, make: impl FnOnce() -> F + Send + 'static) -> tokio::task::JoinHandle<T>
    where
        F: Future<Output = T>,
        T: Send + 'static,
    {
        let namespace = File::open(Path::new("/run/netns").join(self.network.namespace(CLIENT))).unwrap();
        let (done, result) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("enter the namespace");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let _ = done.send(runtime.block_on(make()));
        });
        tokio::spawn(async { result.await.expect("the future in the client's namespace has not panicked") })
    }

    fn launch(&mut self, index: usize) {
        let namespace = self.network.namespace(index);
        self.servers[index].launch(&["ip", "netns", "exec", &namespace]);
    }
}

/// Why there can be no namespaces here.
fn unavailable() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("not root".to_owned());
    }
    if let Some(missing) = ["ip", "nft"].into_iter().find(|program| !in_path(program)) {
        return Some(format!("no {missing} (`cargo xtask test` installs it)"));
    }
    let probe = format!("ptmprobe{:08x}", fastrand::u32(..));
    let output = Command::new("ip").args(["netns", "add", &probe]).stdin(Stdio::null()).output().ok()?;
    if !output.status.success() {
        return Some(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    run(&["ip", "netns", "delete", &probe]);
    None
}

/// The namespaces and the bridge of one ensemble.
#[derive(Debug)]
struct Network {
    number: u8,
    /// Locked while this process lives: the kernel gives the lock up with it, and others can see that the network is stale.
    _lock: UnixListener,
}

impl Network {
    fn create() -> Network {
        let mut free = None;
        for number in NETWORKS {
            let in_use = Path::new("/sys/class/net").join(format!("ptm{number}")).exists();
            if free.is_some() && !in_use {
                continue;
            }
            let Some(lock) = lock(number) else { continue };
            take_down(number);
            free.get_or_insert((number, lock));
        }
        let (number, lock) = free.expect("a free network of 10.231.0.0/16");
        let network = Network { number, _lock: lock };
        let bridge = format!("ptm{number}");
        run(&["ip", "link", "add", &bridge, "type", "bridge"]);
        run(&["ip", "address", "add", &format!("10.231.{number}.254/24"), "dev", &bridge]);
        run(&["ip", "link", "set", &bridge, "up"]);
        for place in 0..PLACES {
            let namespace = network.namespace(place);
            let (outside, inside) = (format!("ptm{number}v{place}"), format!("ptm{number}w{place}"));
            let address = format!("{}/24", network.address(place));
            run(&["ip", "netns", "add", &namespace]);
            run(&["ip", "link", "add", &outside, "type", "veth", "peer", "name", &inside, "netns", &namespace]);
            run(&["ip", "link", "set", &outside, "master", &bridge, "up"]);
            run(&["ip", "-n", &namespace, "link", "set", "lo", "up"]);
            run(&["ip", "-n", &namespace, "address", "add", &address, "dev", &inside]);
            run(&["ip", "-n", &namespace, "link", "set", &inside, "up"]);
        }
        network
    }

    fn namespace(&self, place: usize) -> String {
        format!("ptm{}n{place}", self.number)
    }

    fn address(&self, place: usize) -> Ipv4Addr {
        Ipv4Addr::new(10, 231, self.number, u8::try_from(place).unwrap() + 1)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        take_down(self.number);
    }
}

/// `None` while another ensemble has this number, in this process or another.
fn lock(number: u8) -> Option<UnixListener> {
    // A name that is not in the file system, and is free again when its process has ended.
    let name = SocketAddr::from_abstract_name(format!("pointsman-network-{number}")).unwrap();
    UnixListener::bind_addr(&name).ok()
}

/// Removes what there is of a network. The links go by name: a namespace lives on, with its link, while a thread or a socket
/// is in it.
fn take_down(number: u8) {
    for place in 0..PLACES {
        remove_link(&format!("ptm{number}v{place}"));
        let namespace = format!("ptm{number}n{place}");
        if Path::new("/run/netns").join(&namespace).exists() {
            run(&["ip", "netns", "delete", &namespace]);
        }
    }
    remove_link(&format!("ptm{number}"));
}

fn remove_link(name: &str) {
    if Path::new("/sys/class/net").join(name).exists() {
        // It may go by itself meanwhile, with its namespace.
        let _ = Command::new("ip").args(["link", "delete", name]).stderr(Stdio::null()).status();
    }
}
