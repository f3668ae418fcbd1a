//! Measures the registry against the bare client crate, on a real ZooKeeper, in one run, in turn.
//!
//! What is compared, row by row, is said at each function. Times are medians over rounds unless the row says otherwise.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark prints what it has measured")]

use std::process::Command;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use pointsman_core::{Instance, Role};
use pointsman_registry::{Registration, Registry};
use pointsman_testkit::{ZooKeeper, unique_prefix};
use zookeeper_client::{Acls, AddWatchMode, Client, CreateMode, CreateOptions};

const PERSISTENT: CreateOptions<'static> = CreateMode::Persistent.with_acls(Acls::anyone_all());
const SEQUENTIAL: CreateOptions<'static> = CreateMode::EphemeralSequential.with_acls(Acls::anyone_all());
const DEPTH: usize = 64;

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, flag, url] = arguments.as_slice()
        && flag == "--resident"
    {
        return resident_of_this_process(url).await;
    }
    let server = ZooKeeper::options().full_speed().start().await;
    let mut table = Table::default();
    let fleet = Fleet::plant(&server).await?;
    cold_load(&server, &fleet, &mut table).await?;
    resident(&server, &fleet, &mut table)?;
    creation_seen(&server, &mut table).await?;
    creation_seen_by_the_bare_client(&server, &mut table).await?;
    registrations(&server, &mut table).await?;
    failover(&server, &mut table).await?;
    hand_over(&server, &mut table).await?;
    check_term(&server, &mut table).await?;
    table.print();
    Ok(())
}

fn data(code: &str) -> Vec<u8> {
    format!(
        r#"{{"serverip":"127.0.0.1","serverport":50001,"username":"","userpwd":"","serveruniquecode":"{code}","weight":1}}"#
    )
    .into_bytes()
}

async fn client(server: &ZooKeeper) -> Result<Client> {
    Ok(Client::connector().with_session_timeout(Duration::from_secs(10)).connect(&server.address()).await?)
}

fn url(server: &ZooKeeper, prefix: &str) -> String {
    format!("zookeeper://{}{prefix}?guard=off", server.address())
}

/// 1,000 services with 10 instances each.
struct Fleet {
    prefix: String,
    _owner: Client,
}

impl Fleet {
    const SERVICES: usize = 1000;
    const INSTANCES: usize = 10;

    async fn plant(server: &ZooKeeper) -> Result<Self> {
        let (prefix, owner) = (unique_prefix(), client(server).await?);
        let services: Vec<String> = (0..Self::SERVICES).map(|n| format!("{prefix}/service-{n:04}")).collect();
        owner.mkdir(&prefix, &PERSISTENT).await?;
        let folders = services.iter().map(|path| owner.create(path, b"", &PERSISTENT));
        stream::iter(folders)
            .buffer_unordered(DEPTH)
            .for_each(|result| async {
                result.expect("create");
            })
            .await;
        let nodes = (0..Self::SERVICES * Self::INSTANCES).map(|n| {
            let path = format!("{}/normal", services[n % Self::SERVICES]);
            let owner = &owner;
            async move {
                let code = format!("cacd3aa4-4eb8-4bf6-b967-{n:012}");
                owner.create(&path, &data(&code), &SEQUENTIAL).await.map(drop)
            }
        });
        stream::iter(nodes).buffer_unordered(DEPTH).for_each(|result| async { result.expect("create") }).await;
        Ok(Self { prefix, _owner: owner })
    }
}

/// The peer lists the prefix and every service and gets every node, 64 requests under way at a time, and parses nothing.
/// We build a whole directory: watches, reads, parsed snapshots. Both on a connection that is already there.
async fn cold_load(server: &ZooKeeper, fleet: &Fleet, table: &mut Table) -> Result<()> {
    let peer = client(server).await?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..9 {
        let registry = Registry::connect(&url(server, &fleet.prefix)).await?;
        let start = Instant::now();
        let directory = registry.discover_all().await?;
        let our_time = start.elapsed();
        let found: usize = directory.snapshots().iter().map(|snapshot| snapshot.instances().len()).sum();
        assert_eq!(found, Fleet::SERVICES * Fleet::INSTANCES);
        registry.close().await;
        let start = Instant::now();
        assert_eq!(list_and_get(&peer, &fleet.prefix).await?, found);
        let their_time = start.elapsed();
        // The first round warms the server's compiler up.
        if round > 0 {
            ours.push(our_time);
            theirs.push(their_time);
        }
    }
    table.ratio("cold load of 1,000 services × 10 instances, against list + get, 64 deep", &ours, &theirs, 0.10);
    Ok(())
}

async fn list_and_get(client: &Client, prefix: &str) -> Result<usize> {
    let services = client.list_children(prefix).await?;
    let listings = services.iter().map(|service| {
        let path = format!("{prefix}/{service}");
        async move {
            let names = client.list_children(&path).await.expect("list");
            names.into_iter().map(|name| format!("{path}/{name}")).collect::<Vec<_>>()
        }
    });
    let paths: Vec<Vec<String>> = stream::iter(listings).buffer_unordered(DEPTH).collect().await;
    let reads = paths.iter().flatten().map(|path| async move { client.get_data(path).await.expect("get").0.len() });
    Ok(stream::iter(reads).buffer_unordered(DEPTH).filter(|bytes| std::future::ready(*bytes > 0)).count().await)
}

/// The resident memory that a directory of 10,000 instances adds to a process of its own.
fn resident(server: &ZooKeeper, fleet: &Fleet, table: &mut Table) -> Result<()> {
    let output = Command::new(std::env::current_exe()?).args(["--resident", &url(server, &fleet.prefix)]).output()?;
    let bytes: f64 = String::from_utf8(output.stdout)?.trim().parse()?;
    table.figure("a directory of 10,000 instances, resident", bytes / 1e6, "MB", 15.0);
    Ok(())
}

async fn resident_of_this_process(url: &str) -> Result<()> {
    let registry = Registry::connect(url).await?;
    let before = resident_bytes()?;
    let directory = registry.discover_all().await?;
    let after = resident_bytes()?;
    assert_eq!(directory.snapshots().len(), Fleet::SERVICES);
    println!("{}", after.saturating_sub(before));
    Ok(())
}

fn resident_bytes() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).ok_or("no VmRSS")?;
    let kilobytes: u64 = line.split_whitespace().nth(1).ok_or("no figure")?.parse()?;
    Ok(kilobytes * 1024)
}

/// From the creator's call to the directory's new snapshot, against from the creator's call to its own acknowledgement.
async fn creation_seen(server: &ZooKeeper, table: &mut Table) -> Result<()> {
    let prefix = unique_prefix();
    let creator = client(server).await?;
    creator.mkdir(&format!("{prefix}/s"), &PERSISTENT).await?;
    let registry = Registry::connect(&url(server, &prefix)).await?;
    let service = registry.discover("s").await?;
    let (mut seen, mut acknowledged) = (Vec::new(), Vec::new());
    for round in 0..500 {
        let code = format!("code-{round}");
        let waiting = service.clone();
        let wanted = code.clone();
        let (ready, is_ready) = tokio::sync::oneshot::channel();
        let watching = tokio::spawn(async move {
            let _ = ready.send(());
            waiting.wait_for(|snapshot| snapshot.find(&wanted).is_some()).await.map(|_| Instant::now())
        });
        is_ready.await?;
        let start = Instant::now();
        creator.create(&format!("{prefix}/s/normal"), &data(&code), &SEQUENTIAL).await?;
        let acknowledgement = start.elapsed();
        let sight = watching.await?? - start;
        if round >= 50 {
            acknowledged.push(acknowledgement);
            seen.push(sight);
        }
    }
    table.ratio(
        "creation seen by the directory, against the creator's acknowledgement, p50",
        &seen,
        &acknowledged,
        1.2,
    );
    Ok(())
}

/// What a creation's being seen costs at the least: the bare client has a persistent watch, and on its event gets the
/// node, which it must, because the event does not say what is in it. Not a target: it tells how far the target is from
/// what the protocol allows.
async fn creation_seen_by_the_bare_client(server: &ZooKeeper, table: &mut Table) -> Result<()> {
    let folder = format!("{}/s", unique_prefix());
    let (creator, reader) = (client(server).await?, client(server).await?);
    creator.mkdir(&folder, &PERSISTENT).await?;
    let mut watcher = reader.watch(&folder, AddWatchMode::PersistentRecursive).await?;
    let (sender, mut sights) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            let event = watcher.changed().await;
            let read = reader.get_data(&event.path).await;
            if read.is_err() || sender.send(Instant::now()).await.is_err() {
                return;
            }
        }
    });
    let (mut seen, mut acknowledged) = (Vec::new(), Vec::new());
    for round in 0..500 {
        let start = Instant::now();
        creator.create(&format!("{folder}/normal"), &data("code"), &SEQUENTIAL).await?;
        let acknowledgement = start.elapsed();
        let sight = sights.recv().await.ok_or("the watch ended")? - start;
        if round >= 50 {
            acknowledged.push(acknowledgement);
            seen.push(sight);
        }
    }
    table.floor("(the least: a bare client's watch and get, against the acknowledgement, p50)", &seen, &acknowledged);
    Ok(())
}

/// 64 registrations under way at a time, 512 a round, over ten services that exist (ours have a master each, the peer's have
/// their folder). The first peer creates one ephemeral sequential node for each and does nothing else: no election, no
/// watch. The second registers as go-micro-service does: tries to create `master`, creates a normal node, watches `master`.
async fn registrations(server: &ZooKeeper, table: &mut Table) -> Result<()> {
    const COUNT: usize = 512;
    let prefix = unique_prefix();
    let peer = client(server).await?;
    let registry = Registry::connect(&url(server, &prefix)).await?;
    let (mut ours, mut theirs, mut as_go) = (Vec::new(), Vec::new(), Vec::new());
    let mut masters = Vec::new();
    for service in 0..10 {
        peer.mkdir(&format!("{prefix}/peer-{service}"), &PERSISTENT).await?;
        masters.push(registry.register(Instance::new(format!("ours-{service}"))).await?);
    }
    for round in 0..24 {
        let start = Instant::now();
        let registering =
            (0..COUNT).map(|n| registry.register(Instance::new(format!("ours-{}", n % 10)).address("h:1")));
        let all: Vec<_> = stream::iter(registering).buffer_unordered(DEPTH).collect().await;
        let our_time = start.elapsed();
        let all = all.into_iter().collect::<std::result::Result<Vec<Registration>, _>>()?;
        stream::iter(all.into_iter().map(async |registration| registration.close().await))
            .buffer_unordered(DEPTH)
            .for_each(|closed| async { closed.expect("close") })
            .await;
        let start = Instant::now();
        let creating = (0..COUNT).map(|n| {
            let (path, peer) = (format!("{prefix}/peer-{}/normal", n % 10), &peer);
            async move {
                let (_, sequence) = peer
                    .create(&path, &data("cacd3aa4-4eb8-4bf6-b967-fbcee5377992"), &SEQUENTIAL)
                    .await
                    .expect("create");
                format!("{path}{sequence}")
            }
        });
        let paths: Vec<String> = stream::iter(creating).buffer_unordered(DEPTH).collect().await;
        let their_time = start.elapsed();
        let deleting = paths.iter().map(|path| peer.delete(path, None));
        stream::iter(deleting).buffer_unordered(DEPTH).for_each(|deleted| async { deleted.expect("delete") }).await;
        let go_time = register_as_go(&peer, &prefix, COUNT).await?;
        // The first rounds warm the server's compiler up, for all.
        if round >= 8 {
            ours.push(our_time);
            theirs.push(their_time);
            as_go.push(go_time);
        }
    }
    drop(masters);
    table.rate("registrations a second, 64 at a time, against the bare client crate", COUNT, &ours, &theirs, 0.9);
    table.rate(
        "(the same, against registering as go-micro-service does, by the bare client)",
        COUNT,
        &ours,
        &as_go,
        0.9,
    );
    Ok(())
}

async fn register_as_go(peer: &Client, prefix: &str, count: usize) -> Result<Duration> {
    const EPHEMERAL: CreateOptions<'static> = CreateMode::Ephemeral.with_acls(Acls::anyone_all());
    let folders: Vec<String> = (0..10).map(|n| format!("{prefix}/peer-{n}")).collect();
    for folder in &folders {
        // Of the first round: the master that all the others find.
        let _ = peer.create(&format!("{folder}/master"), b"", &EPHEMERAL).await;
    }
    let start = Instant::now();
    let registering = (0..count).map(|n| {
        let folder = &folders[n % folders.len()];
        async move {
            let (master, said) = (format!("{folder}/master"), data("cacd3aa4-4eb8-4bf6-b967-fbcee5377992"));
            let refused = peer.create(&master, &said, &EPHEMERAL).await;
            assert!(refused.is_err(), "there is a master");
            let path = format!("{folder}/normal");
            let (_, sequence) = peer.create(&path, &said, &SEQUENTIAL).await.expect("create");
            let (_, watcher) = peer.check_and_watch_stat(&master).await.expect("watch");
            (format!("{path}{sequence}"), watcher)
        }
    });
    let registered: Vec<_> = stream::iter(registering).buffer_unordered(DEPTH).collect().await;
    let took = start.elapsed();
    let deleting = registered.iter().map(|(path, _)| peer.delete(path, None));
    stream::iter(deleting).buffer_unordered(DEPTH).for_each(|deleted| async { deleted.expect("delete") }).await;
    Ok(took)
}

/// Five processes' worth of instances of one service, each with a session of its own.
async fn five(server: &ZooKeeper, prefix: &str) -> Result<Vec<(Registry, Registration)>> {
    let mut five = Vec::new();
    for _ in 0..5 {
        let registry = Registry::connect(&url(server, prefix)).await?;
        let registration = registry.register(Instance::new("s").address("h:1")).await?;
        five.push((registry, registration));
    }
    Ok(five)
}

/// Returns the moment at which one of those other than `but` has become master.
async fn next_master(five: &mut [(Registry, Registration)], but: usize) -> Instant {
    let waiting = five.iter().enumerate().filter(|(index, _)| *index != but).map(|(_, (_, registration))| {
        let mut roles = registration.roles();
        Box::pin(async move {
            while !roles.changed().await.is_some_and(Role::is_master) {}
            Instant::now()
        })
    });
    futures_util::future::select_all(waiting).await.0
}

/// From the acknowledged deletion of the master's node by somebody else, to the next master's knowing that it is.
async fn failover(server: &ZooKeeper, table: &mut Table) -> Result<()> {
    let prefix = unique_prefix();
    let hand = client(server).await?;
    let mut five = five(server, &prefix).await?;
    let mut times = Vec::new();
    for round in 0..120 {
        let master = master_of(&mut five).await;
        hand.delete(&format!("{prefix}/s/master"), None).await?;
        let deleted = Instant::now();
        let elected = next_master(&mut five, master).await;
        // The deposed one is back in the queue before the next round.
        let mut roles = five[master].1.roles();
        while roles.changed().await != Some(Role::Normal) {}
        if round >= 20 {
            times.push(elected.saturating_duration_since(deleted));
        }
    }
    table.time("master's node deleted → next one elected, p50", &mut times, 50, 5.0);
    Ok(())
}

async fn master_of(five: &mut [(Registry, Registration)]) -> usize {
    let waiting = five.iter().enumerate().map(|(index, (_, registration))| {
        let mut roles = registration.roles();
        Box::pin(async move {
            while !roles.changed().await.is_some_and(Role::is_master) {}
            index
        })
    });
    futures_util::future::select_all(waiting).await.0
}

/// From the call of `resign`, and of `close`, in turn, to the next master's knowing that it is.
async fn hand_over(server: &ZooKeeper, table: &mut Table) -> Result<()> {
    let prefix = unique_prefix();
    let mut five = five(server, &prefix).await?;
    let mut times = Vec::new();
    for round in 0..220 {
        let master = master_of(&mut five).await;
        let start = Instant::now();
        if round % 2 == 0 {
            five[master].1.resign().await?;
            let elected = next_master(&mut five, master).await;
            times.push(elected.saturating_duration_since(start));
        } else {
            let (registry, registration) = five.swap_remove(master);
            registration.close().await?;
            let elected = next_master(&mut five, usize::MAX).await;
            times.push(elected.saturating_duration_since(start));
            let registration = registry.register(Instance::new("s").address("h:1")).await?;
            five.push((registry, registration));
        }
    }
    table.time("clean resign or close → next one elected, p99", &mut times, 99, 100.0);
    Ok(())
}

/// The results, as the markdown that stands in `benches/README.md`.
#[derive(Default)]
struct Table {
    rows: Vec<String>,
}

impl Table {
    fn ratio(&mut self, what: &str, ours: &[Duration], theirs: &[Duration], limit: f64) {
        let (ours, theirs) = (median(ours), median(theirs));
        let ratio = ours / theirs;
        self.row(
            what,
            &format!("{ours:.2} ms"),
            &format!("{theirs:.2} ms"),
            &format!("{ratio:.3} ×"),
            &format!("≤ {limit} ×"),
            ratio <= limit,
        );
    }

    fn floor(&mut self, what: &str, ours: &[Duration], theirs: &[Duration]) {
        let (ours, theirs) = (median(ours), median(theirs));
        let row = format!("| {what} | {ours:.2} ms | {theirs:.2} ms | {:.3} × | | |", ours / theirs);
        eprintln!("{row}");
        self.rows.push(row);
    }

    fn rate(&mut self, what: &str, count: usize, ours: &[Duration], theirs: &[Duration], limit: f64) {
        #[expect(clippy::cast_precision_loss, reason = "a small count")]
        let rate = |milliseconds: f64| count as f64 / milliseconds * 1000.0;
        let (ours, theirs) = (rate(median(ours)), rate(median(theirs)));
        let ratio = ours / theirs;
        self.row(
            what,
            &format!("{ours:.0}/s"),
            &format!("{theirs:.0}/s"),
            &format!("{ratio:.2} ×"),
            &format!("≥ {limit} ×"),
            ratio >= limit,
        );
    }

    fn time(&mut self, what: &str, times: &mut [Duration], percentile: usize, limit: f64) {
        times.sort();
        let time = times[(times.len() * percentile / 100).min(times.len() - 1)].as_secs_f64() * 1000.0;
        self.row(what, &format!("{time:.2} ms"), "", "", &format!("≤ {limit} ms"), time <= limit);
    }

    fn figure(&mut self, what: &str, figure: f64, unit: &str, limit: f64) {
        self.row(what, &format!("{figure:.1} {unit}"), "", "", &format!("≤ {limit} {unit}"), figure <= limit);
    }

    fn row(&mut self, what: &str, ours: &str, theirs: &str, ratio: &str, target: &str, reached: bool) {
        let reached = if reached { "yes" } else { "**no**" };
        let row = format!("| {what} | {ours} | {theirs} | {ratio} | {target} | {reached} |");
        eprintln!("{row}");
        self.rows.push(row);
    }

    fn print(&self) {
        println!("| what | Pointsman | peer | ratio | must reach | reached |\n|---|---|---|---|---|---|");
        for row in &self.rows {
            println!("{row}");
        }
    }
}

/// A term that is the highest is checked by three agents in turn: by their registries alone, and over HTTP with all that an agent does besides. The
/// peer sends `sync` and `get` on one connection, one right after the other, and looks at nothing.
async fn check_term(server: &ZooKeeper, table: &mut Table) -> Result<()> {
    let (peer, prefix) = (client(server).await?, unique_prefix());
    let master = Registry::connect(&url(server, &prefix)).await?.register(Instance::new("s").code("a")).await?;
    let term = master.role().term().ok_or("no master")?;
    let (mut registries, mut agents, mut clients) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..3 {
        let registry = Registry::connect(&url(server, &prefix)).await?;
        let settings = pointsman_agent::Settings::new(([127, 0, 0, 1], 0).into());
        let agent = pointsman_agent::Agent::start(&registry, settings).await?;
        clients.push(Registry::connect(&format!("http://{}", agent.address())).await?);
        registries.push(registry);
        agents.push(agent);
    }
    let record = format!("/pointsman{prefix}/terms/s");
    let (mut by_registries, mut over_http, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..3000 {
        let start = Instant::now();
        registries[round % 3].check_term("s", term).await?;
        let by_registry = start.elapsed();
        let start = Instant::now();
        clients[round % 3].check_term("s", term).await?;
        let over = start.elapsed();
        let start = Instant::now();
        let (sync, get) = (peer.sync(&record), peer.get_data(&record));
        tokio::try_join!(biased; sync, get)?;
        let theirs_now = start.elapsed();
        if round >= 300 {
            by_registries.push(by_registry);
            over_http.push(over);
            theirs.push(theirs_now);
        }
    }
    table.ratio("check-term over three agents' registries, against sync + get", &by_registries, &theirs, 1.3);
    table.ratio("the same over HTTP", &over_http, &theirs, 1.3);
    drop(agents);
    Ok(())
}

fn median(times: &[Duration]) -> f64 {
    let mut times = times.to_vec();
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1000.0
}
