//! Measures what it costs to follow many services that are asked for at the same time, on a real ZooKeeper, in one run, in turn.
//!
//! What is compared, row by row, is said at each function. Times are medians over rounds.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark prints what it has measured")]

use std::time::{Duration, Instant};

use futures_util::future::{join_all, try_join_all};
use pointsman_bench::mqtt::{Result, Table};
use pointsman_registry::{Registry, Service};
use pointsman_testkit::{ZooKeeper, unique_prefix};
use zookeeper_client::{Acls, AddWatchMode, Client, CreateMode, CreateOptions};

/// As the command has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const PERSISTENT: CreateOptions<'static> = CreateMode::Persistent.with_acls(Acls::anyone_all());
const SEQUENTIAL: CreateOptions<'static> = CreateMode::EphemeralSequential.with_acls(Acls::anyone_all());

/// Services that are asked for at the same time.
const SERVICES: usize = 1000;

/// Nodes read in one request, as the registry does.
const BATCH: usize = 128;

/// Rounds, without the first few, which warm the server's compiler up.
const ROUNDS: usize = 21;
const WARM_UP: usize = 5;

#[tokio::main]
async fn main() -> Result<()> {
    let server = ZooKeeper::options().full_speed().start().await;
    let mut table = Table::default();
    for instances in [1, 10] {
        at_once(&server, instances, &mut table).await?;
    }
    table.print();
    Ok(())
}

/// The times of one round.
#[derive(Default)]
struct Times {
    one: Vec<Duration>,
    many: Vec<Duration>,
    bare: Vec<Duration>,
    bare_reads: Vec<Duration>,
    bare_watches: Vec<Duration>,
}

/// All services are discovered at once through one registry, which is connected and follows another service already, against one of them
/// through such a registry. The bare client sets the three watches that each service needs, and lists and gets its nodes in batches, all of it
/// pipelined on a connection of its own that is there already; it parses nothing. Its reads, and its watches, are also measured alone.
async fn at_once(server: &ZooKeeper, instances: usize, table: &mut Table) -> Result<()> {
    let prefix = unique_prefix();
    let owner = server.client().await;
    let services = plant(&owner, &prefix, instances).await?;
    let url = format!("zookeeper://{}{prefix}?guard=off&session_timeout=10s", server.address());
    let mut times = Times::default();
    for round in 0..ROUNDS + WARM_UP {
        let one = discover(&url, std::slice::from_ref(&services[round % SERVICES]), instances).await?;
        let many = discover(&url, &services, instances).await?;
        let bare = {
            let client = server.client().await;
            let start = Instant::now();
            let watched = watch(&client, &prefix, &services).await?;
            let read = list_and_get(&client, &prefix, &services).await?;
            let took = start.elapsed();
            assert_eq!(read, SERVICES * instances);
            drop(watched);
            took
        };
        let (bare_watches, bare_reads) = {
            let client = server.client().await;
            let start = Instant::now();
            let watched = watch(&client, &prefix, &services).await?;
            let watches = start.elapsed();
            drop(watched);
            let client = server.client().await;
            let start = Instant::now();
            list_and_get(&client, &prefix, &services).await?;
            (watches, start.elapsed())
        };
        if round >= WARM_UP {
            times.one.push(one);
            times.many.push(many);
            times.bare.push(bare);
            times.bare_reads.push(bare_reads);
            times.bare_watches.push(bare_watches);
        }
    }
    let name = format!("1,000 discoveries at once, {instances} instances each");
    let of = |what: &str, ours: &[Duration], theirs: &[Duration], limit: Option<f64>, table: &mut Table| {
        let (ours, theirs) = (median(ours), median(theirs));
        let ratio = ours / theirs;
        let target = limit.map(|limit| (format!("≤ {limit} ×"), ratio <= limit));
        table.row(
            &format!("{name}, against {what}"),
            &format!("{ours:.2} ms"),
            &format!("{theirs:.2} ms"),
            &format!("{ratio:.2} ×"),
            target,
        );
    };
    of("one", &times.many, &times.one, Some(10.0), table);
    of("the bare client's 3,000 watches and batches of reads", &times.many, &times.bare, None, table);
    of("its watches alone", &times.many, &times.bare_watches, None, table);
    of("its reads alone", &times.many, &times.bare_reads, None, table);
    Ok(())
}

/// How long it takes to discover services at once, through a registry of its own.
async fn discover(url: &str, services: &[String], instances: usize) -> Result<Duration> {
    let (registry, _other) = connected(url).await?;
    let start = Instant::now();
    let followed = try_join_all(services.iter().map(|name| registry.discover(name))).await?;
    let took = start.elapsed();
    assert!(followed.iter().all(|service| service.snapshot().instances().len() == instances));
    registry.close().await;
    Ok(took)
}

/// A registry that is connected and follows a service.
async fn connected(url: &str) -> Result<(Registry, Service)> {
    let registry = Registry::connect(url).await?;
    let other = registry.discover("other").await?;
    Ok((registry, other))
}

/// Creates the services, with the given number of instances each.
async fn plant(owner: &Client, prefix: &str, instances: usize) -> Result<Vec<String>> {
    let services: Vec<String> = (0..SERVICES).map(|n| format!("service-{n:04}")).collect();
    owner.mkdir(prefix, &PERSISTENT).await?;
    let paths: Vec<String> = services.iter().map(|name| format!("{prefix}/{name}")).collect();
    try_join_all(paths.iter().map(|path| owner.create(path, b"", &PERSISTENT))).await?;
    let node = async |n: usize| {
        let code = format!("cacd3aa4-4eb8-4bf6-b967-{n:012}");
        let data = format!(
            r#"{{"serverip":"127.0.0.1","serverport":50001,"username":"","userpwd":"","serveruniquecode":"{code}","weight":1}}"#
        );
        owner.create(&format!("{}/normal", paths[n % SERVICES]), data.as_bytes(), &SEQUENTIAL).await
    };
    for result in join_all((0..SERVICES * instances).map(node)).await {
        result?;
    }
    Ok(services)
}

async fn watch(client: &Client, prefix: &str, services: &[String]) -> Result<Vec<zookeeper_client::PersistentWatcher>> {
    let paths: Vec<String> = services
        .iter()
        .flat_map(|name| {
            let own = |folder| format!("/pointsman{prefix}/{folder}/{name}");
            [format!("{prefix}/{name}"), own("overrides"), own("left")]
        })
        .collect();
    Ok(try_join_all(paths.iter().map(|path| client.watch(path, AddWatchMode::PersistentRecursive))).await?)
}

/// The number of nodes read.
async fn list_and_get(client: &Client, prefix: &str, services: &[String]) -> Result<usize> {
    let mut listings = Vec::new();
    for names in services.chunks(BATCH) {
        let mut reader = client.new_multi_reader();
        names.iter().try_for_each(|name| reader.add_get_children(&format!("{prefix}/{name}")))?;
        listings.push(reader.commit());
    }
    let listed = try_join_all(listings).await?.into_iter().flatten();
    let nodes: Vec<String> = services
        .iter()
        .zip(listed)
        .flat_map(|(service, result)| {
            let names = match result {
                zookeeper_client::MultiReadResult::Children { children } => children,
                _ => Vec::new(),
            };
            names.into_iter().map(move |name| format!("{prefix}/{service}/{name}"))
        })
        .collect();
    let mut reads = Vec::new();
    for paths in nodes.chunks(BATCH) {
        let mut reader = client.new_multi_reader();
        paths.iter().try_for_each(|path| reader.add_get_data(path))?;
        reads.push(reader.commit());
    }
    Ok(try_join_all(reads).await?.iter().map(Vec::len).sum())
}

fn median(times: &[Duration]) -> f64 {
    let mut times = times.to_vec();
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1000.0
}
