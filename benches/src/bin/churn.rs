//! Measures what a long life leaves behind, and what a change of a large service costs: an agent over memory, by its processor time and
//! its resident memory.
//!
//! The agent is a process of its own (this program again, with a hidden argument). What is measured, row by row, is said at each
//! function.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark prints what it has measured")]

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use pointsman_agent::{Agent, Settings};
use pointsman_bench::Client;
use pointsman_bench::mqtt::{Observed, Result, Table};
use pointsman_core::Instance;
use pointsman_registry::Registry;
use pointsman_testkit::{CuttingProxy, ZooKeeper};
use zookeeper_client::{Acls, CreateMode};

/// As the command has it: the agent is measured as it runs.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const USAGE: &str = "\
Usage: cargo xtask bench churn [--only NAME] [--quick]

NAME is what the name of a row begins with: names, codes, change, fill, idle, memory.
";

/// How much is measured.
struct Plan {
    only: String,
    /// Services that come and go.
    names: usize,
    /// Codes that come and go in one service.
    codes: usize,
    /// Operations of which the processor time is taken.
    measured: usize,
    /// Changes of a large service.
    changes: usize,
    /// For how long nothing happens.
    idle: Duration,
}

/// Some twenty audits.
const IDLE: Duration = Duration::from_secs(120);

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--agent"] => runtime.block_on(agent()),
        ["--memory", services, instances] => runtime.block_on(registrations(services.parse()?, instances.parse()?)),
        _ => {
            let Some(plan) = plan(&arguments) else {
                eprint!("{USAGE}");
                return Err("wrong usage".into());
            };
            runtime.block_on(measure(&plan))
        }
    }
}

fn plan(arguments: &[String]) -> Option<Plan> {
    let mut plan =
        Plan { only: String::new(), names: 100_000, codes: 20_000, measured: 5000, changes: 300, idle: IDLE };
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--quick" => {
                (plan.names, plan.codes, plan.measured, plan.changes) = (10_000, 5000, 2000, 50);
                plan.idle = IDLE / 8;
            }
            "--only" => plan.only.clone_from(arguments.next()?),
            _ => return None,
        }
    }
    Some(plan)
}

async fn measure(plan: &Plan) -> Result<()> {
    let mut table = Table::default();
    let wants = |name: &str| name.starts_with(&plan.only);
    if wants("names") {
        names(plan, &mut table).await?;
    }
    if wants("codes") {
        codes(plan, &mut table).await?;
    }
    if wants("change") {
        changes(plan, &mut table).await?;
    }
    if wants("idle") {
        idle(plan, &mut table).await?;
    }
    if wants("fill") {
        fill(&mut table).await?;
    }
    if wants("memory") {
        memory(&mut table)?;
    }
    table.print();
    Ok(())
}

/// Services with ever-new names: one instance registers (`PUT`) and leaves (`DELETE`), over one connection. Processor time of that after
/// so many other names against the beginning, and how much more memory is resident for each name. The beginning is when as many names have
/// passed as the agent remembers for a while (`measured`, and no less than 5,000): what is bounded is full by then.
async fn names(plan: &Plan, table: &mut Table) -> Result<()> {
    let agent = Process::start()?;
    let mut client = Client::connect(agent.address).await?;
    let mut next = 0;
    let mut pass = async |count: usize| {
        for number in next..next + count {
            let path = format!("/v1/services/service-{number}/instances/code-{number}");
            client.ask("PUT", &path, r#"{"address":"10.0.0.1:80","ttl":"1h"}"#).await?;
            client.ask("DELETE", &path, "").await?;
        }
        next += count;
        Ok(())
    };
    pass(plan.measured.max(5000)).await?;
    let resident = agent.observed().resident_bytes()?;
    let before = agent.processor_seconds(pass(plan.measured)).await? / plan.measured as f64;
    pass(plan.names).await?;
    let after = agent.processor_seconds(pass(plan.measured)).await? / plan.measured as f64;
    let growth = agent.observed().resident_bytes()?.saturating_sub(resident) as f64;
    let ratio = after / before;
    table.row(
        &format!("names: processor time of join + leave after {} others, against the beginning", plan.names),
        &format!("{:.0} µs", after * 1e6),
        &format!("{:.0} µs", before * 1e6),
        &format!("{ratio:.2} ×"),
        Some(("≤ 1.1 ×".to_owned(), ratio <= 1.1)),
    );
    let each = growth / (plan.names + 2 * plan.measured) as f64;
    let target = Some(("≤ 16 bytes".to_owned(), each <= 16.0));
    table.row("names: memory growth for each", &format!("{each:.1} bytes"), "", "", target);
    Ok(())
}

/// The same with ever-new codes in one service of ten instances.
async fn codes(plan: &Plan, table: &mut Table) -> Result<()> {
    let agent = Process::start()?;
    let mut client = Client::connect(agent.address).await?;
    agent.fill(&mut client, 10).await?;
    let mut next = 0;
    let mut pass = async |count: usize| {
        for number in next..next + count {
            let path = format!("/v1/services/ress/instances/new-{number}");
            client.ask("PUT", &path, r#"{"address":"10.0.0.1:80","ttl":"1h"}"#).await?;
            client.ask("DELETE", &path, "").await?;
        }
        next += count;
        Ok(())
    };
    pass(plan.measured.max(5000)).await?;
    let resident = agent.observed().resident_bytes()?;
    let before = agent.processor_seconds(pass(plan.measured)).await? / plan.measured as f64;
    pass(plan.codes).await?;
    let after = agent.processor_seconds(pass(plan.measured)).await? / plan.measured as f64;
    let growth = agent.observed().resident_bytes()?.saturating_sub(resident) as f64;
    let (ratio, each) = (after / before, growth / (plan.codes + 2 * plan.measured) as f64);
    table.row(
        &format!("codes: processor time of join + leave after {} others, against the beginning", plan.codes),
        &format!("{:.0} µs", after * 1e6),
        &format!("{:.0} µs", before * 1e6),
        &format!("{ratio:.2} ×"),
        None,
    );
    table.row("codes: memory growth for each", &format!("{each:.1} bytes"), "", "", None);
    Ok(())
}

/// A change of one instance's weight (`PUT`), then a pick by url-hash, for which the table is prepared anew, and its release: processor
/// time of the agent, of a service of 5,000 instances against one of ten.
async fn changes(plan: &Plan, table: &mut Table) -> Result<()> {
    let of = async |instances: usize, changes: usize| -> Result<f64> {
        let agent = Process::start()?;
        let mut client = Client::connect(agent.address).await?;
        agent.fill(&mut client, instances).await?;
        let change = async {
            for number in 0..changes {
                let path = format!("/v1/services/ress/instances/code-{}", number * 7 % instances);
                // Another one than at the last visit.
                let weight = 2 + number / instances % 5;
                let body = format!(r#"{{"address":"10.0.0.1:80","weight":{weight},"ttl":"1h"}}"#);
                client.ask("PUT", &path, &body).await?;
                let picked = client.ask("GET", "/v1/services/ress/pick?algorithm=url-hash&key=/a/b", "").await?;
                let picked = String::from_utf8_lossy(&picked).into_owned();
                let claim = picked.split('"').nth(3).ok_or("no claim")?;
                client.ask("DELETE", &format!("/v1/claims/{claim}"), "").await?;
            }
            Ok(())
        };
        Ok(agent.processor_seconds(change).await? / changes as f64)
    };
    let (few, many) = (of(10, plan.changes * 5).await?, of(5000, plan.changes).await?);
    let ratio = many / few;
    table.row(
        "change: processor time of a change and a pick, 5,000 instances against 10",
        &format!("{:.2} ms", many * 1e3),
        &format!("{:.2} ms", few * 1e3),
        &format!("{ratio:.1} ×"),
        Some(("≤ 10 ×".to_owned(), ratio <= 10.0)),
    );
    Ok(())
}

/// One instance waits in the queue for the mastership on ZooKeeper, and nothing happens: bytes that go over its connection, with 8,000 siblings
/// against 80. The siblings are nodes of one other session.
async fn idle(plan: &Plan, table: &mut Table) -> Result<()> {
    let server = ZooKeeper::start().await;
    let of = async |siblings: usize| -> Result<f64> {
        let (prefix, way) = (pointsman_testkit::unique_prefix(), CuttingProxy::start(server.socket_address()));
        let client = server.client().await;
        let open = |mode: CreateMode| mode.with_acls(Acls::anyone_all());
        client.mkdir(&format!("{prefix}/ress"), &open(CreateMode::Persistent)).await?;
        client.create(&format!("{prefix}/ress/master"), b"{}", &open(CreateMode::Ephemeral)).await?;
        for _ in 0..siblings {
            client.create(&format!("{prefix}/ress/normal"), b"{}", &open(CreateMode::EphemeralSequential)).await?;
        }
        let url = format!("zookeeper://{}{prefix}?session_timeout=4s", way.address());
        let registry = Registry::connect(&url).await?;
        let _registration = registry.register(Instance::new("ress").address("10.0.0.1:80")).await?;
        // Skips the requests of the registration itself.
        tokio::time::sleep(plan.idle / 4).await;
        let before = way.bytes();
        tokio::time::sleep(plan.idle).await;
        Ok((way.bytes() - before) as f64 / plan.idle.as_secs_f64())
    };
    let (few, many) = (of(80).await?, of(8000).await?);
    let ratio = many / few;
    table.row(
        "idle: bytes a second of a waiting instance, 8,000 siblings against 80",
        &format!("{many:.0}"),
        &format!("{few:.0}"),
        &format!("{ratio:.2} ×"),
        Some(("≤ 1.5 ×".to_owned(), ratio <= 1.5)),
    );
    Ok(())
}

/// Ten thousand instances register in one service, one after the other over one connection: processor time of the agent.
async fn fill(table: &mut Table) -> Result<()> {
    let agent = Process::start()?;
    let mut client = Client::connect(agent.address).await?;
    let seconds = agent.processor_seconds(agent.fill(&mut client, 10_000)).await?;
    let target = Some(("≤ 5 s".to_owned(), seconds <= 5.0));
    table.row(
        "fill: processor time of 10,000 registrations in one service",
        &format!("{seconds:.1} s"),
        "",
        "",
        target,
    );
    Ok(())
}

/// Ten thousand instances register in `memory://`, within one process that follows their services: processor time of each, and by how much
/// the resident memory has grown for each; in one service against ten.
fn memory(table: &mut Table) -> Result<()> {
    const INSTANCES: usize = 10_000;
    let of = |services: usize| -> Result<(f64, f64)> {
        let of_each = (INSTANCES / services).to_string();
        let output =
            Command::new(std::env::current_exe()?).args(["--memory", &services.to_string(), &of_each]).output()?;
        let said = String::from_utf8(output.stdout)?;
        let (seconds, bytes) = said.trim().split_once(' ').ok_or("the registrations failed")?;
        Ok((seconds.parse::<f64>()? / INSTANCES as f64, bytes.parse::<f64>()? / INSTANCES as f64))
    };
    let ((few, _), (many, bytes)) = (of(10)?, of(1)?);
    let ratio = many / few;
    table.row(
        "memory: processor time of a registration within the process, of 10,000 in one service against 1,000 in each of ten",
        &format!("{:.0} µs", many * 1e6),
        &format!("{:.0} µs", few * 1e6),
        &format!("{ratio:.2} ×"),
        Some(("≤ 1.5 ×".to_owned(), ratio <= 1.5)),
    );
    let target = Some(("≤ 4 KiB".to_owned(), bytes <= 4096.0));
    table.row("memory: resident memory of each", &format!("{bytes:.0} bytes"), "", "", target);
    Ok(())
}

/// Registers `instances` instances in each of `services` services, one service after the other, and prints the processor time in seconds and the
/// growth of the resident memory in bytes.
async fn registrations(services: usize, instances: usize) -> Result<()> {
    let registry = Registry::connect("memory://many").await?;
    let observed = Observed::new("this process", Some(std::process::id()));
    let (seconds, bytes) = (observed.processor_seconds()?, observed.resident_bytes()?);
    let (mut followed, mut registrations) = (Vec::new(), Vec::new());
    for number in 0..services {
        let service = registry.discover(&format!("service-{number}")).await?;
        for _ in 0..instances {
            let instance = Instance::new(service.name().clone()).address("10.0.0.1:80");
            registrations.push(registry.register(instance).await?);
        }
        service.wait_for(|snapshot| snapshot.instances().len() == instances).await?;
        followed.push(service);
    }
    let (seconds, bytes) = (observed.processor_seconds()? - seconds, observed.resident_bytes()?.saturating_sub(bytes));
    println!("{seconds} {bytes}");
    Ok(())
}

/// An agent in a process of its own. Killed on drop.
struct Process {
    child: std::process::Child,
    address: SocketAddr,
}

impl Process {
    fn start() -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        let mut child = command.arg("--agent").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut said = String::new();
        if let Some(output) = child.stdout.take() {
            BufReader::new(output).read_line(&mut said)?;
        }
        let address = said.trim().parse().map_err(|_| "the agent did not start")?;
        Ok(Self { child, address })
    }

    /// Registers so many instances in one service.
    async fn fill(&self, client: &mut Client, count: usize) -> Result<()> {
        for number in 0..count {
            let path = format!("/v1/services/ress/instances/code-{number}");
            client.ask("PUT", &path, r#"{"address":"10.0.0.1:80","ttl":"1h"}"#).await?;
        }
        Ok(())
    }

    fn observed(&self) -> Observed {
        Observed::new("agent", Some(self.child.id()))
    }

    /// What it takes of the processor meanwhile.
    async fn processor_seconds(&self, work: impl Future<Output = Result<()>>) -> Result<f64> {
        let before = self.observed().processor_seconds()?;
        work.await?;
        Ok(self.observed().processor_seconds()? - before)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An agent over memory, until its standard input ends.
async fn agent() -> Result<()> {
    let registry = Registry::connect("memory://churn").await?;
    let agent = Agent::start(&registry, Settings::new(SocketAddr::from(([127, 0, 0, 1], 0)))).await?;
    println!("{}", agent.address());
    tokio::task::spawn_blocking(|| std::io::stdin().read(&mut [0])).await??;
    Ok(())
}
