//! Measures the agent: its answers against nginx's with the same bytes, and how fast, how large, how busy it is by itself.
//!
//! The agent, nginx and the load are processes of their own (this program again, with hidden arguments; `wrk` from Debian).
//! What is measured, row by row, is said at each function.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark prints what it has measured")]

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use pointsman_agent::{Agent, Settings};
use pointsman_bench::Client;
use pointsman_bench::mqtt::{Observed, Plan, Result, Table, median, percentile};
use pointsman_registry::Registry;
use pointsman_testkit::Browser;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// As the command has it: the agent is measured as it runs.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const USAGE: &str = "\
Usage: cargo xtask bench agent [--only NAME] [--rounds N] [--milliseconds N] [--quick]

NAME is what the name of a row begins with: lookups, events, hold, watchers, renewals, dashboard.
";

/// Registrations whose leases are renewed, and their lease.
const INSTANCES: usize = 10_000;
const TTL: Duration = Duration::from_secs(10);
/// Who watches at once.
const WATCHERS: usize = 10_000;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = |threads: usize| {
        if threads == 1 {
            tokio::runtime::Builder::new_current_thread().enable_all().build()
        } else {
            tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()
        }
    };
    raise_open_files()?;
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--agent", threads] => runtime(threads.parse()?)?.block_on(agent()),
        ["--hold", address, code] => runtime(1)?.block_on(hold(address.parse()?, code)),
        _ => {
            let Some(plan) = plan(&arguments) else {
                eprint!("{USAGE}");
                return Err("wrong usage".into());
            };
            runtime(1)?.block_on(measure(&plan))
        }
    }
}

fn plan(arguments: &[String]) -> Option<Plan> {
    let mut plan = Plan { rounds: 7, time: Duration::from_secs(2), only: String::new() };
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--quick" => (plan.rounds, plan.time) = (2, Duration::from_millis(500)),
            "--only" => plan.only.clone_from(arguments.next()?),
            "--rounds" => plan.rounds = arguments.next()?.parse().ok().filter(|&rounds| rounds > 0)?,
            "--milliseconds" => plan.time = Duration::from_millis(arguments.next()?.parse().ok()?),
            _ => return None,
        }
    }
    Some(plan)
}

async fn measure(plan: &Plan) -> Result<()> {
    let mut table = Table::default();
    if plan.wants("lookups") {
        lookups(plan, &mut table).await?;
    }
    if plan.wants("events") {
        events(plan, &mut table).await?;
    }
    if plan.wants("hold") {
        holds(plan, &mut table).await?;
    }
    if plan.wants("watchers") {
        watchers(plan, &mut table).await?;
    }
    if plan.wants("renewals") {
        renewals(plan, &mut table).await?;
    }
    if plan.wants("dashboard") {
        dashboard(plan, &mut table).await?;
    }
    table.print();
    Ok(())
}

/// Answers to `instances` (ten instances, keep-alive, wrk with 64 connections on one thread) for each second of processor time
/// that the server takes, against nginx (one worker, sendfile, open_file_cache, no access log) with the same bytes as a file.
async fn lookups(plan: &Plan, table: &mut Table) -> Result<()> {
    let agent = Process::agent(2)?;
    let mut client = Client::connect(agent.address).await?;
    for number in 0..10 {
        let body = format!(r#"{{"address":"10.0.0.{number}:8080","weight":3,"tags":{{"zone":"eu-1"}},"ttl":"1h"}}"#);
        client.ask("PUT", &format!("/v1/services/ress/instances/ress-{number}"), &body).await?;
    }
    let path = "/v1/services/ress/instances";
    let body = client.ask("GET", path, "").await?;
    let folder = tempfile()?;
    std::fs::create_dir_all(folder.join("v1/services/ress"))?;
    std::fs::write(folder.join("v1/services/ress/instances"), &body)?;
    let nginx = Process::nginx(&folder)?;
    let per_second = |process: &Process, name: &str| -> Result<(f64, f64)> {
        let observed = process.observed(name)?;
        let before = observed.processor_seconds()?;
        let answers = wrk(process.address, path, plan.time)?;
        let seconds = observed.processor_seconds()? - before;
        Ok((answers.0 / seconds, answers.1))
    };
    let pairs = plan.in_turn(|| per_second(&agent, "agent"), || per_second(&nginx, "nginx"))?;
    let of = |pick: fn(&Pair) -> f64| median(pairs.iter().map(pick).collect());
    let ratio = of(|(ours, theirs)| ours.0 / theirs.0);
    let target = Some(("≥ 0.5 ×".to_owned(), ratio >= 0.5));
    let (ours, theirs) = (of(|(ours, _)| ours.0), of(|(_, theirs)| theirs.0));
    let what = format!("lookups for each processor second ({} bytes)", body.len());
    table.row(&what, &format!("{ours:.0}/s"), &format!("nginx {theirs:.0}/s"), &format!("{ratio:.2} ×"), target);
    let (ours, theirs) = (of(|(ours, _)| ours.1), of(|(_, theirs)| theirs.1));
    table.row(
        "lookups for each second",
        &format!("{ours:.0}/s"),
        &format!("nginx {theirs:.0}/s"),
        &format!("{:.2} ×", of(|(ours, theirs)| ours.1 / theirs.1)),
        None,
    );
    std::fs::remove_dir_all(folder)?;
    Ok(())
}

/// Answers for each second of processor time, and for each second: ours, and the peer's.
type Pair = ((f64, f64), (f64, f64));

/// From when a change is sent (a PUT with another weight, over a connection that is open) to when its event has arrived at
/// a subscriber, both over loopback.
async fn events(plan: &Plan, table: &mut Table) -> Result<()> {
    let agent = Process::agent(2)?;
    let mut client = Client::connect(agent.address).await?;
    let path = "/v1/services/ress/instances/a";
    client.ask("PUT", path, r#"{"weight":1,"ttl":"1h"}"#).await?;
    let mut events = Events::open(agent.address, "/v1/services/ress/watch").await?;
    events.until("freshness").await?;
    let mut times = Vec::new();
    for number in 0..plan.rounds * 300 {
        let started = Instant::now();
        let body = format!(r#"{{"weight":{},"ttl":"1h"}}"#, 2 + number % 1000);
        let (answer, event) = tokio::join!(client.ask("PUT", path, &body), async {
            events.until("put").await?;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(started.elapsed())
        });
        answer?;
        times.push(event?);
    }
    for (percent, most) in [(50, 1000.0), (99, 5000.0)] {
        let time = percentile(&mut times, percent);
        let target = Some((format!("≤ {} ms", most / 1000.0), time <= most));
        table.row(&format!("events: change → event, p{percent}"), &format!("{time:.0} µs"), "", "", target);
    }
    Ok(())
}

/// From `kill -9` of a process that holds a registration by its connection, to when the last of ten watchers knows.
async fn holds(plan: &Plan, table: &mut Table) -> Result<()> {
    let agent = Process::agent(2)?;
    let mut watching = Vec::new();
    for _ in 0..10 {
        let mut events = Events::open(agent.address, "/v1/services/ress/watch").await?;
        events.until("freshness").await?;
        watching.push(events);
    }
    let mut times = Vec::new();
    for number in 0..plan.rounds * 30 {
        let code = format!("held-{number}");
        let mut command = Command::new(std::env::current_exe()?);
        let mut child = command.args(["--hold", &agent.address.to_string(), &code]).stdout(Stdio::piped()).spawn()?;
        let mut said = String::new();
        if let Some(output) = child.stdout.take() {
            BufReader::new(output).read_line(&mut said)?;
        }
        for events in &mut watching {
            events.until("put").await?;
        }
        let started = Instant::now();
        child.kill()?;
        for events in &mut watching {
            events.until("delete").await?;
        }
        times.push(started.elapsed());
        child.wait()?;
    }
    for (percent, most) in [(50, None), (99, Some(50_000.0))] {
        let time = percentile(&mut times, percent);
        let target = most.map(|most: f64| (format!("≤ {} ms", most / 1000.0), time <= most));
        table.row(
            &format!("hold: killed → gone for all watchers, p{percent}"),
            &format!("{time:.0} µs"),
            "",
            "",
            target,
        );
    }
    Ok(())
}

/// Ten thousand watchers of one service: what each takes of the agent's memory, and when the last one has a change.
async fn watchers(plan: &Plan, table: &mut Table) -> Result<()> {
    let agent = Process::agent(2)?;
    let mut client = Client::connect(agent.address).await?;
    let path = "/v1/services/ress/instances/a";
    client.ask("PUT", path, r#"{"weight":1,"ttl":"1h"}"#).await?;
    let observed = agent.observed("agent")?;
    let before = observed.resident_bytes()?;
    let mut watching = Vec::new();
    for _ in 0..WATCHERS {
        let mut events = Events::open(agent.address, "/v1/services/ress/watch").await?;
        events.until("freshness").await?;
        watching.push(events);
    }
    let memory = (observed.resident_bytes()? - before) as f64 / WATCHERS as f64 / 1024.0;
    let target = Some(("≤ 12 KiB".to_owned(), memory <= 12.0));
    table.row("watchers: memory of each of 10,000", &format!("{memory:.1} KiB"), "", "", target);
    let mut times = Vec::new();
    for number in 0..plan.rounds.max(3) {
        let started = Instant::now();
        let body = format!(r#"{{"weight":{},"ttl":"1h"}}"#, 2 + number);
        let mut reading = JoinSet::new();
        for mut events in watching.drain(..) {
            reading.spawn(async move { events.until("put").await.map(|()| (events, started.elapsed())) });
        }
        client.ask("PUT", path, &body).await?;
        let mut last = Duration::ZERO;
        while let Some(read) = reading.join_next().await {
            let (events, time) = read??;
            last = last.max(time);
            watching.push(events);
        }
        times.push(last.as_secs_f64() * 1000.0);
    }
    let time = median(times);
    table.row("watchers: one change → the last of 10,000 has it", &format!("{time:.0} ms"), "", "", None);
    Ok(())
}

/// What of one core an agent on one thread takes, while ten thousand registrations with a lease of 10 s are renewed every third
/// of it, over 16 connections; and how much each registration adds to its resident memory.
async fn renewals(plan: &Plan, table: &mut Table) -> Result<()> {
    let agent = Process::agent(1)?;
    let mut clients = VecDeque::new();
    for _ in 0..16 {
        clients.push_back(Client::connect(agent.address).await?);
    }
    let path = |number: usize| format!("/v1/services/service-{}/instances/code-{number}", number % 100);
    let observed = agent.observed("agent")?;
    clients[0].ask("PUT", "/v1/services/first/instances/first", r#"{"address":"10.0.0.1:80","ttl":"1h"}"#).await?;
    let before = observed.resident_bytes()?;
    for number in 0..INSTANCES {
        clients[0].ask("PUT", &path(number), r#"{"address":"10.0.0.1:80","ttl":"60s"}"#).await?;
    }
    let each = observed.resident_bytes()?.saturating_sub(before) as f64 / INSTANCES as f64 / 1024.0;
    let target = Some(("≤ 8 KiB".to_owned(), each <= 8.0));
    table.row("renewals: memory of each of 10,000 registrations", &format!("{each:.1} KiB"), "", "", target);
    for number in 0..INSTANCES {
        clients[0].ask("PUT", &path(number), r#"{"address":"10.0.0.1:80","ttl":"10s"}"#).await?;
    }
    let resident = observed.resident_bytes()? as f64 / 1024.0 / 1024.0;
    let every = TTL / 3 / u32::try_from(INSTANCES / clients.len())?;
    let rounds = u32::try_from(plan.rounds)?;
    let (before, started) = (observed.processor_seconds()?, Instant::now());
    let until = started + TTL / 3 * rounds;
    let mut renewing = JoinSet::new();
    let all = clients.len();
    for (place, mut client) in clients.into_iter().enumerate() {
        renewing.spawn(async move {
            let mut ticks = tokio::time::interval(every);
            let mut renewed = 0_usize;
            'over: loop {
                for number in (place..INSTANCES).step_by(all) {
                    ticks.tick().await;
                    if Instant::now() > until {
                        break 'over;
                    }
                    let path = format!("/v1/services/service-{}/instances/code-{number}", number % 100);
                    client.ask("PUT", &path, "").await?;
                    renewed += 1;
                }
            }
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(renewed)
        });
    }
    let mut renewed = 0;
    while let Some(result) = renewing.join_next().await {
        renewed += result??;
    }
    let (seconds, wall) = (observed.processor_seconds()? - before, started.elapsed().as_secs_f64());
    let share = seconds / wall * 100.0;
    let target = Some(("≤ 5 %".to_owned(), share <= 5.0));
    let what = format!("renewals: share of a core, 10,000 instances ({:.0} renewals/s)", renewed as f64 / wall);
    table.row(&what, &format!("{share:.1} %"), "", "", target);
    let each = seconds / renewed as f64 * 1e6;
    table.row("renewals: processor time of each", &format!("{each:.1} µs"), "", "", None);
    table.row("renewals: memory of the agent with 10,000 registrations", &format!("{resident:.0} MiB"), "", "", None);
    Ok(())
}

/// What the dashboard's first load takes over the wire (without the fleet's data), and when Chromium has painted it first, and has
/// painted the fleet: 1,000 services of ten instances. A new browser each time.
async fn dashboard(plan: &Plan, table: &mut Table) -> Result<()> {
    let agent = Process::agent(2)?;
    let mut client = Client::connect(agent.address).await?;
    for number in 0..INSTANCES {
        let path = format!("/v1/services/service-{:03}/instances/code-{number}", number / 10);
        client.ask("PUT", &path, r#"{"address":"10.0.0.1:80","tags":{"zone":"eu-1"},"ttl":"1h"}"#).await?;
    }
    let (mut bytes, mut first, mut fleet) = (0.0_f64, Vec::new(), Vec::new());
    for _ in 0..plan.rounds {
        let browser = Browser::start().await;
        browser.open(&format!("http://{}/", agent.address)).await;
        browser.wait_for("performance.getEntriesByName('fleet-shown').length > 0").await;
        let measured = "const at = (name) => performance.getEntriesByName(name)[0].startTime; \
             const files = performance.getEntriesByType('resource').filter(({name}) => name.includes('/assets/')); \
             return [files.reduce((sum, one) => sum + one.transferSize, 0) + \
                     performance.getEntriesByType('navigation')[0].transferSize, \
                     at('first-contentful-paint'), at('fleet-shown')]";
        let measured = browser.run(measured).await;
        let figure = |index: usize| measured[index].as_f64().unwrap_or(f64::NAN);
        bytes = bytes.max(figure(0));
        first.push(figure(1));
        fleet.push(figure(2));
    }
    let kilobytes = bytes / 1024.0;
    let target = Some(("≤ 150 KiB".to_owned(), kilobytes <= 150.0));
    table.row("dashboard: first load over the wire", &format!("{kilobytes:.0} KiB"), "", "", target);
    let first = median(first);
    let target = Some(("≤ 1 s".to_owned(), first <= 1000.0));
    table.row("dashboard: first paint, 10,000 instances", &format!("{first:.0} ms"), "", "", target);
    let fleet = median(fleet);
    table.row("dashboard: the fleet is painted, 10,000 instances", &format!("{fleet:.0} ms"), "", "", None);
    Ok(())
}

/// Somebody who watches.
struct Events {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Events {
    async fn open(address: SocketAddr, path: &str) -> Result<Self> {
        Self::request(address, "GET", path).await
    }

    async fn request(address: SocketAddr, method: &str, path: &str) -> Result<Self> {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 0\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        Ok(Self { stream, buffer: Vec::with_capacity(1024) })
    }

    /// Reads on until an event of this name has arrived whole.
    async fn until(&mut self, name: &str) -> Result<()> {
        let wanted = format!("event: {name}\n");
        loop {
            if let Some(at) = find(&self.buffer, wanted.as_bytes())
                && let Some(end) = find(&self.buffer[at..], b"\n\n")
            {
                self.buffer.drain(..at + end + 2);
                return Ok(());
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err("the stream has ended".into());
            }
        }
    }
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len()).position(|window| window == wanted)
}

/// A server in a process of its own. Killed on drop.
struct Process {
    child: std::process::Child,
    address: SocketAddr,
    is_nginx: bool,
}

impl Process {
    /// This very program again, as an agent over memory with so many threads.
    fn agent(threads: usize) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--agent", &threads.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let mut said = String::new();
        if let Some(output) = child.stdout.take() {
            BufReader::new(output).read_line(&mut said)?;
        }
        let address = said.trim().parse().map_err(|_| "the agent did not start")?;
        Ok(Self { child, address, is_nginx: false })
    }

    fn nginx(folder: &Path) -> Result<Self> {
        let address = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let root = folder.display();
        let config = format!(
            "daemon off; worker_processes 1; pid {root}/pid; error_log {root}/error.log;\n\
             events {{ worker_connections 1024; }}\n\
             http {{ access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000000; default_type application/json;\n\
             open_file_cache max=100; open_file_cache_valid 1h; client_body_temp_path {root}/b; proxy_temp_path {root}/p;\n\
             fastcgi_temp_path {root}/f; uwsgi_temp_path {root}/u; scgi_temp_path {root}/s;\n\
             server {{ listen {address}; root {root}; }} }}"
        );
        std::fs::write(folder.join("nginx.conf"), config)?;
        let mut command = Command::new("/usr/sbin/nginx");
        let child = command.arg("-c").arg(folder.join("nginx.conf")).arg("-e").arg(folder.join("error.log")).spawn()?;
        let deadline = Instant::now() + Duration::from_secs(10);
        while std::net::TcpStream::connect(address).is_err() {
            if Instant::now() > deadline {
                return Err("nginx did not start".into());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(Self { child, address, is_nginx: true })
    }

    /// The process that does the work: of nginx the worker.
    fn observed(&self, name: &str) -> Result<Observed> {
        let pid = self.child.id();
        if !self.is_nginx {
            return Ok(Observed::new(name, Some(pid)));
        }
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        let worker = children.split_whitespace().next().ok_or("nginx has no worker")?;
        Ok(Observed::new(name, Some(worker.parse()?)))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.is_nginx
            && let Ok(worker) = self.observed("nginx")
            && let Some(pid) = i32::try_from(worker.pid).ok().and_then(rustix::process::Pid::from_raw)
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An agent, until its standard input ends.
async fn agent() -> Result<()> {
    let registry = Registry::connect("memory://bench?guard=off").await?;
    let agent = Agent::start(&registry, Settings::new(SocketAddr::from(([127, 0, 0, 1], 0)))).await?;
    println!("{}", agent.address());
    tokio::task::spawn_blocking(|| std::io::stdin().read(&mut [0])).await??;
    Ok(())
}

/// Holds a registration until it is killed.
async fn hold(address: SocketAddr, code: &str) -> Result<()> {
    let mut events = Events::request(address, "POST", &format!("/v1/services/ress/instances/{code}/hold")).await?;
    events.until("role").await?;
    println!("registered");
    events.until("end").await
}

/// Answers, and answers for each second.
fn wrk(address: SocketAddr, path: &str, time: Duration) -> Result<(f64, f64)> {
    let seconds = time.as_secs().max(1);
    let url = format!("http://{address}{path}");
    let output = Command::new("wrk").args(["-t1", "-c64", &format!("-d{seconds}s"), &url]).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if text.contains("Non-2xx") || text.contains("Socket errors") {
        return Err(text.into());
    }
    let figure = |after: &str, word: usize| -> Result<f64> {
        let line = text.lines().find(|line| line.contains(after)).ok_or_else(|| text.clone())?;
        Ok(line.split_whitespace().nth(word).ok_or("a short line")?.parse()?)
    };
    Ok((figure("requests in", 0)?, figure("Requests/sec:", 1)?))
}

fn tempfile() -> Result<std::path::PathBuf> {
    let folder = std::env::temp_dir().join(format!("pointsman-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// Ten thousand watchers need as many files.
fn raise_open_files() -> Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?)
}
