//! Measures the HTTP proxy beside nginx, HAProxy and pingora.
//!
//! Each proxy is a process of its own (ours and pingora this program again, with hidden arguments) with one thread that does
//! the work, all of them on one core; the load (`wrk`, `h2load`) and the backend have the other. The figure is what the kernel
//! says the proxy's process has taken of the processor. What is measured, row by row, is said at each function.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark prints what it has measured")]

mod backend;
mod load;
mod peers;
mod process;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use pointsman_bench::mqtt::{Observed, Result, Table, median, quartiles};

use crate::backend::{LARGE, SMALL};
use crate::load::{Outcome, h2load, wrk};
use crate::process::Process;

/// As the command has it: the proxy is measured as it runs. Pingora has it, too.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const USAGE: &str = "\
Usage: cargo xtask bench http [--only NAME] [--proxies NAMES] [--rounds N] [--seconds N] [--quick]

--only takes what the name of a part begins with: http1, routes, http2, idle.
--proxies leaves some out: pointsman,nginx,haproxy,pingora are all.
";

const POINTSMAN: &str = "pointsman";
const PROXIES: [&str; 4] = [POINTSMAN, "nginx", "haproxy", "pingora"];
const ROUTES: usize = 1000;
/// Connections that do nothing, and how long they have done nothing when memory is looked at.
const IDLE: usize = 10_000;
const SETTLING: Duration = Duration::from_secs(2);

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    raise_open_files()?;
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["backend", address] => backend::serve(address.parse()?),
        ["peer", "pointsman", address, backend, routes] => {
            peers::pointsman(address.parse()?, backend.parse()?, routes.parse()?)
        }
        ["peer", "pingora", address, backend] => peers::pingora(address.parse()?, backend.parse()?),
        _ => match Plan::from(&arguments) {
            Some(plan) => Bench::new(plan)?.measure(),
            None => {
                eprint!("{USAGE}");
                Err("wrong usage".into())
            }
        },
    }
}

/// How much is measured.
struct Plan {
    rounds: usize,
    time: Duration,
    only: String,
    proxies: Vec<String>,
}

impl Plan {
    fn from(arguments: &[String]) -> Option<Self> {
        let (time, proxies) = (Duration::from_secs(3), PROXIES.map(str::to_owned).to_vec());
        let mut plan = Self { rounds: 5, time, only: String::new(), proxies };
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--quick" => (plan.rounds, plan.time) = (1, Duration::from_secs(1)),
                "--only" => plan.only.clone_from(arguments.next()?),
                "--proxies" => plan.proxies = arguments.next()?.split(',').map(str::to_owned).collect(),
                "--rounds" => plan.rounds = arguments.next()?.parse().ok().filter(|&rounds| rounds > 0)?,
                "--seconds" => plan.time = Duration::from_secs(arguments.next()?.parse().ok()?),
                _ => return None,
            }
        }
        plan.proxies.iter().all(|name| PROXIES.contains(&name.as_str())).then_some(plan)
    }

    fn wants(&self, part: &str) -> bool {
        part.starts_with(&self.only)
    }

    fn has(&self, proxy: &str) -> bool {
        self.proxies.iter().any(|name| name == proxy)
    }
}

/// What must be reached.
#[derive(Clone, Copy)]
enum Goal {
    None,
    AtMost(f64),
    AtLeast(f64),
}

impl Goal {
    fn judge(self, figure: f64, unit: &str) -> Option<(String, bool)> {
        match self {
            Self::None => None,
            Self::AtMost(most) => Some((format!("≤ {most} {unit}"), figure <= most)),
            Self::AtLeast(least) => Some((format!("≥ {least} {unit}"), figure >= least)),
        }
    }
}

/// The rounds of one proxy.
type Rounds = Vec<Outcome>;

struct Bench {
    plan: Plan,
    backend: Process,
    table: Table,
    /// What each of them did, as the second table.
    details: Vec<String>,
    /// The largest share of the proxies' core that others had.
    disturbance: f64,
    failures: Vec<String>,
}

impl Bench {
    fn new(plan: Plan) -> Result<Self> {
        if std::thread::available_parallelism()?.get() < 2 {
            return Err("this wants two cores: one for the proxies, one for the load".into());
        }
        let (backend, table) = (Process::backend()?, Table::default());
        Ok(Self { plan, backend, table, details: Vec::new(), disturbance: 0.0, failures: Vec::new() })
    }

    fn measure(mut self) -> Result<()> {
        if self.plan.wants("http1") {
            self.http1()?;
        }
        if self.plan.wants("routes") && self.plan.has(POINTSMAN) {
            self.routes()?;
        }
        if self.plan.wants("http2") {
            self.http2()?;
        }
        if self.plan.wants("idle") {
            self.idle()?;
        }
        self.table.print();
        println!(
            "\n| | requests/s | processor seconds per 100,000 | the proxy's core: by it, by others | p50 | p99 | \
             the load's core | the backend's seconds per 100,000 |\n|---|---:|---:|---:|---:|---:|---:|---:|"
        );
        self.details.iter().for_each(|line| println!("{line}"));
        if self.disturbance > 0.1 {
            let share = self.disturbance * 100.0;
            println!(
                "\nThe machine was busy: others had up to {share:.0} % of the proxies' core; trust these figures little."
            );
        }
        if self.failures.is_empty() {
            return Ok(());
        }
        println!("\n**REQUESTS HAVE FAILED; THE FIGURES ABOVE DO NOT COUNT:**\n");
        self.failures.iter().for_each(|failure| println!("- {failure}"));
        Err("requests have failed".into())
    }

    /// What a request costs the proxies, and how long the slowest of a hundred take, with 128 bytes and with 16 KiB, from 64 and
    /// 512 connections. All of them add `X-Forwarded-For`, `-Proto`, `-Host` and `X-Request-ID`, write no access log, and keep as
    /// many connections to the one backend as they need.
    fn http1(&mut self) -> Result<()> {
        let proxies = self.proxies(&PROXIES)?;
        for (what, size) in [(SMALL, "128 B"), (LARGE, "16 KiB")] {
            for connections in [64, 512] {
                let name = format!("{size}, {connections} connections");
                let rounds =
                    self.in_turn(&name, &proxies, |proxy, backend, time| wrk(proxy, backend, what, connections, time))?;
                let against_nginx = match (what, connections) {
                    (SMALL, _) => Goal::AtMost(1.15),
                    (_, 64) => Goal::AtMost(1.0),
                    _ => Goal::None,
                };
                for (peer, goal) in [("nginx", against_nginx), ("haproxy", Goal::None), ("pingora", Goal::AtMost(0.7))]
                {
                    self.costs(
                        &format!("processor time per 100,000 requests, {name}"),
                        &rounds,
                        (POINTSMAN, peer),
                        goal,
                    );
                }
                if connections == 512 {
                    let what = format!("p99, {name}");
                    self.compare(
                        &what,
                        &rounds,
                        (POINTSMAN, "nginx"),
                        |outcome| outcome.p99,
                        show_time,
                        Goal::AtMost(1.5),
                    );
                }
            }
        }
        Ok(())
    }

    /// What a request costs our proxy when the last of 1,000 routes is for it, and when the only one is.
    fn routes(&mut self) -> Result<()> {
        let (one, many) = ("pointsman, 1 route", "pointsman, 1,000 routes");
        let backend = self.backend.address;
        let proxies = [Process::pointsman(one, backend, 1)?, Process::pointsman(many, backend, ROUTES)?];
        let rounds = self
            .in_turn("128 B, 64 connections", &proxies, |proxy, backend, time| wrk(proxy, backend, SMALL, 64, time))?;
        self.costs("processor time per 100,000 requests, 1,000 routes", &rounds, (many, one), Goal::AtMost(1.1));
        Ok(())
    }

    /// HTTP/2 from the clients (64 connections with ten requests at a time each), HTTP/1.1 to the backend.
    fn http2(&mut self) -> Result<()> {
        let proxies = self.proxies(&[POINTSMAN, "haproxy"])?;
        for (what, size) in [(SMALL, "128 B"), (LARGE, "16 KiB")] {
            let name = format!("HTTP/2, {size}, 64 × 10");
            let rounds = self.in_turn(&name, &proxies, |proxy, backend, time| h2load(proxy, backend, what, time))?;
            let what = format!("requests for each processor second, {name}");
            let rate = |outcome: &Outcome| outcome.requests / outcome.processor;
            let show = |rate: f64| format!("{rate:.0}");
            self.compare(&what, &rounds, (POINTSMAN, "haproxy"), rate, show, Goal::AtLeast(0.9));
        }
        Ok(())
    }

    /// The growth of the resident memory of proxies that have just started, over 10,000 connections that have made one request
    /// each, one after the other, and then none for two seconds.
    fn idle(&mut self) -> Result<()> {
        let mut figures: Vec<(&str, f64)> = Vec::new();
        for proxy in self.proxies(&PROXIES)? {
            let (observed, path) = (proxy.observed()?, format!("{}{SMALL}", proxy.path));
            ask(&mut TcpStream::connect(proxy.address)?, &path)?;
            std::thread::sleep(SETTLING);
            let before = observed.resident_bytes()?;
            let mut connections = Vec::with_capacity(IDLE);
            for _ in 0..IDLE {
                let mut stream = TcpStream::connect(proxy.address)?;
                ask(&mut stream, &path).map_err(|error| format!("{}: {error}", proxy.name))?;
                connections.push(stream);
            }
            std::thread::sleep(SETTLING);
            let growth = observed.resident_bytes()?.saturating_sub(before) as f64 / IDLE as f64 / 1024.0;
            for stream in connections.iter_mut().step_by(100) {
                if let Err(error) = ask(stream, &path) {
                    self.failures.push(format!("{}: a connection that was idle: {error}", proxy.name));
                }
            }
            figures.push((proxy.name, growth));
        }
        let show = |growth: f64| format!("{growth:.1} KiB");
        let ours = figures.iter().find(|(name, _)| *name == POINTSMAN).map(|&(_, growth)| growth);
        let peers = figures.iter().filter(|(name, _)| *name != POINTSMAN);
        let peers: Vec<String> = peers.map(|&(name, growth)| format!("{name} {}", show(growth))).collect();
        let goal = ours.and_then(|ours| Goal::AtMost(10.0).judge(ours, "KiB"));
        let ours = ours.map(show).unwrap_or_default();
        self.table.row("memory of each of 10,000 idle connections", &ours, &peers.join(", "), "", goal);
        Ok(())
    }

    /// Those of them that are wanted, started anew, with one route each.
    fn proxies(&self, names: &[&str]) -> Result<Vec<Process>> {
        let backend = self.backend.address;
        let wanted = names.iter().filter(|name| self.plan.has(name));
        let start = |name: &&str| match *name {
            "nginx" => Process::nginx(backend),
            "haproxy" => Process::haproxy(backend),
            "pingora" => Process::pingora(backend),
            _ => Process::pointsman(POINTSMAN, backend, 1),
        };
        wanted.map(start).collect()
    }

    /// Lets all have their rounds in turn, another one first in each; before the first round each has a second to warm up.
    fn in_turn<'a>(
        &mut self,
        name: &str,
        proxies: &'a [Process],
        round: impl Fn(&Process, &Observed, Duration) -> Result<Outcome>,
    ) -> Result<Vec<(&'a str, Rounds)>> {
        let backend = self.backend.observed()?;
        for proxy in proxies {
            round(proxy, &backend, Duration::from_secs(1))?;
        }
        let mut rounds: Vec<(&str, Rounds)> = proxies.iter().map(|proxy| (proxy.name, Vec::new())).collect();
        for number in 0..self.plan.rounds {
            for place in 0..proxies.len() {
                let place = (place + number) % proxies.len();
                let outcome = round(&proxies[place], &backend, self.plan.time)?;
                if let Some(failures) = &outcome.failures {
                    let failure = format!("{}, {name}: {failures}", proxies[place].name);
                    eprintln!("FAILED: {failure}");
                    self.failures.push(failure);
                }
                rounds[place].1.push(outcome);
            }
        }
        for (proxy, outcomes) in &rounds {
            self.detail(&format!("{proxy}, {name}"), outcomes);
        }
        Ok(rounds)
    }

    fn detail(&mut self, what: &str, outcomes: &[Outcome]) {
        let of = |figure: fn(&Outcome) -> f64| median(outcomes.iter().map(figure).collect());
        self.disturbance = self.disturbance.max(of(|outcome| outcome.others));
        let line = format!(
            "| {what} | {:.0} | {:.2} s | {:.0} %, {:.0} % | {} | {} | {:.0} % | {:.2} s |",
            of(|outcome| outcome.requests / outcome.elapsed),
            of(Outcome::cost),
            of(|outcome| outcome.processor / outcome.elapsed) * 100.0,
            of(|outcome| outcome.others) * 100.0,
            show_time(of(|outcome| outcome.p50)),
            show_time(of(|outcome| outcome.p99)),
            of(|outcome| outcome.load_core) * 100.0,
            of(|outcome| outcome.backend / outcome.requests * 100_000.0),
        );
        eprintln!("{line}");
        self.details.push(line);
    }

    fn costs(&mut self, what: &str, rounds: &[(&str, Rounds)], who: (&str, &str), goal: Goal) {
        self.compare(what, rounds, who, Outcome::cost, |cost| format!("{cost:.2} s"), goal);
    }

    /// A figure of two of them in each round. The ratio is the median of the rounds' ratios.
    fn compare(
        &mut self,
        what: &str,
        rounds: &[(&str, Rounds)],
        (ours, theirs): (&str, &str),
        figure: impl Fn(&Outcome) -> f64,
        show: impl Fn(f64) -> String,
        goal: Goal,
    ) {
        let figures = |name: &str| {
            let rounds = rounds.iter().find(|(proxy, _)| *proxy == name)?;
            Some(rounds.1.iter().map(&figure).collect::<Vec<f64>>())
        };
        let (Some(our_figures), Some(their_figures)) = (figures(ours), figures(theirs)) else { return };
        let ratios: Vec<f64> = our_figures.iter().zip(&their_figures).map(|(ours, theirs)| ours / theirs).collect();
        let (ratio, spread) = (median(ratios.clone()), quartiles(ratios));
        let theirs = theirs.trim_start_matches("pointsman, ");
        self.table.row(
            &format!("{what}, against {theirs}"),
            &show(median(our_figures)),
            &format!("{theirs} {}", show(median(their_figures))),
            &format!("{ratio:.2} × {spread}"),
            goal.judge(ratio, "×"),
        );
    }
}

fn show_time(microseconds: f64) -> String {
    if microseconds.is_nan() { String::new() } else { format!("{:.2} ms", microseconds / 1000.0) }
}

/// One request, and the whole of its answer.
fn ask(stream: &mut TcpStream, path: &str) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n").as_bytes())?;
    let (mut answer, mut chunk) = (Vec::new(), [0; 4096]);
    loop {
        let read = stream.read(&mut chunk)?;
        if read == 0 {
            return Err("closed".into());
        }
        answer.extend_from_slice(&chunk[..read]);
        let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        if !answer.starts_with(b"HTTP/1.1 200 ") {
            return Err(String::from_utf8_lossy(&answer[..end]).into());
        }
        if answer.len() == end + 4 + 128 {
            return Ok(());
        }
    }
}

/// Ten thousand connections need as many files.
fn raise_open_files() -> Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?)
}
