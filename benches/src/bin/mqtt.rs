//! Measures the relay against Mosquitto's own means, in one run, in turn.
//!
//! Brokers, relays and load are processes of their own (the load's threads are this one's). What is compared, row by row, is said
//! at each function. Both contenders have the same Mosquitto: `set_tcp_nodelay`, no limit of the queues, and
//! `max_inflight_messages 10000`, which is as many as the relay takes: the default of 20 would throttle the relay and the
//! bridge alike, to 20 messages a round trip. (With 0 or 65535, which ought to mean no limit, a bridge of 2.0.11 is turned away
//! for the receive maximum that it announces.)

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark prints what it has measured")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use pointsman_bench::mqtt::{
    Child, Client, Flow, Observed, Plan, Requests, Result, Round, Table, child, median, percentile,
};
use pointsman_mqtt::packet::Qos;
use pointsman_testkit::{Mosquitto, MosquittoOptions};

/// As the command has it: relays are measured as they run.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const USAGE: &str = "\
Usage: cargo xtask bench mqtt [--only NAME] [--rounds N] [--milliseconds N] [--quick]

NAME is what the name of a row begins with: bridge-0, bridge-1, share-0, share-1, latency-0, latency-1, requests, stall,
embedded-0, embedded-1, memory.
";

const CODES: [&str; 2] = ["svc-a", "svc-b"];
/// Under way at once while throughput is measured: the default.
const IN_FLIGHT: usize = 10_000;
const QUALITIES: [Qos; 2] = [Qos::AtMostOnce, Qos::AtLeastOnce];

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, rest @ ..] = arguments.as_slice()
        && flag == "--child"
    {
        return child(rest, |word| println!("{word}")).await;
    }
    let Some(plan) = plan(&arguments) else {
        eprint!("{USAGE}");
        return Err("wrong usage".into());
    };
    let mut table = Table::default();
    for qos in QUALITIES {
        against_the_bridge(qos, &plan, &mut table).await?;
    }
    for qos in QUALITIES {
        against_a_shared_subscription(qos, &plan, &mut table).await?;
    }
    for qos in QUALITIES {
        latency(qos, &plan, &mut table).await?;
    }
    requests(&plan, &mut table).await?;
    stall(&plan, &mut table).await?;
    for qos in QUALITIES {
        embedded(qos, &plan, &mut table).await?;
    }
    memory(&plan, &mut table).await?;
    table.print();
    Ok(())
}

fn plan(arguments: &[String]) -> Option<Plan> {
    let mut plan = Plan { rounds: 11, time: Duration::from_millis(700), only: String::new() };
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--quick" => (plan.rounds, plan.time) = (3, Duration::from_millis(200)),
            "--only" => plan.only.clone_from(arguments.next()?),
            "--rounds" => plan.rounds = arguments.next()?.parse().ok().filter(|&rounds| rounds > 0)?,
            "--milliseconds" => plan.time = Duration::from_millis(arguments.next()?.parse().ok()?),
            _ => return None,
        }
    }
    Some(plan)
}

fn broker() -> MosquittoOptions {
    Mosquitto::options().nodelay().set("max_inflight_messages", "10000")
}

/// Two brokers with what is between them, and messages through all of it.
struct Contender {
    name: String,
    flow: Flow,
    processes: Vec<Observed>,
    _brokers: Vec<Mosquitto>,
    _child: Option<Child>,
}

impl Contender {
    fn observed(a: &Mosquitto, b: &Mosquitto) -> Vec<Observed> {
        vec![Observed::new("mosquitto A", a.pid()), Observed::new("mosquitto B", b.pid())]
    }

    /// The publisher at A, one subscriber at B, and A's bridge to B, which passes the topic on as it is.
    async fn bridge(qos: Qos) -> Result<Self> {
        let b = broker().start().await;
        let a = broker().bridge_to(&b, "/login/#", qos.number()).start().await;
        until_bridged(a.socket_address(), b.socket_address())?;
        let flow = Flow::new((a.socket_address(), &Child::topic()), (b.socket_address(), &["/login/#"]), qos)?;
        let processes = Self::observed(&a, &b);
        Ok(Self { name: format!("bridge, QoS {}", qos.number()), flow, processes, _brokers: vec![a, b], _child: None })
    }

    /// The publisher at A, one instance at B, and the relay between them.
    async fn relay(qos: Qos) -> Result<Self> {
        let (a, b) = (broker().start().await, broker().start().await);
        let child = Child::relay(a.socket_address(), b.socket_address(), &CODES[..1], IN_FLIGHT)?;
        let flow = Flow::new((a.socket_address(), &Child::topic()), (b.socket_address(), &["svc-a/#"]), qos)?;
        let mut processes = Self::observed(&a, &b);
        processes.push(child.observed());
        let name = format!("relay between two brokers, QoS {}", qos.number());
        Ok(Self { name, flow, processes, _brokers: vec![a, b], _child: Some(child) })
    }

    /// One broker, the relay, and two instances.
    async fn relay_on_one(qos: Qos) -> Result<Self> {
        let a = broker().start().await;
        let address = a.socket_address();
        let child = Child::relay(address, address, &CODES, IN_FLIGHT)?;
        let flow = Flow::new((address, &Child::topic()), (address, &["svc-a/#", "svc-b/#"]), qos)?;
        let processes = vec![Observed::new("mosquitto", a.pid()), child.observed()];
        let name = format!("relay on one broker, QoS {}", qos.number());
        Ok(Self { name, flow, processes, _brokers: vec![a], _child: Some(child) })
    }

    /// One broker and two consumers that share a subscription.
    async fn share(qos: Qos) -> Result<Self> {
        let a = broker().start().await;
        let (address, filter) = (a.socket_address(), "$share/bench/login/#");
        let flow =
            Flow::new((address, "login/user/bench-bench-bench-bench-bench-bench-x"), (address, &[filter; 2]), qos)?;
        let processes = vec![Observed::new("mosquitto", a.pid())];
        Ok(Self { name: format!("$share, QoS {}", qos.number()), flow, processes, _brokers: vec![a], _child: None })
    }

    /// One broker and one subscriber.
    async fn direct(qos: Qos) -> Result<Self> {
        let a = broker().start().await;
        let address = a.socket_address();
        let flow = Flow::new((address, &Child::topic()), (address, &["/login/#"]), qos)?;
        let processes = vec![Observed::new("mosquitto", a.pid())];
        Ok(Self { name: format!("one broker, QoS {}", qos.number()), flow, processes, _brokers: vec![a], _child: None })
    }

    /// The embedded broker with the relay inside, and two instances.
    fn embedded(qos: Qos) -> Result<Self> {
        let child = Child::embedded(&CODES)?;
        let address = child.address.ok_or("the embedded broker has no address")?;
        let flow = Flow::new((address, &Child::topic()), (address, &["svc-a/#", "svc-b/#"]), qos)?;
        let name = format!("embedded broker with the relay inside, QoS {}", qos.number());
        Ok(Self { name, flow, processes: vec![child.observed()], _brokers: Vec::new(), _child: Some(child) })
    }

    fn full_speed(&mut self, plan: &Plan, table: &mut Table) -> Result<Round> {
        let Self { name, flow, processes, .. } = self;
        table.observe(name, processes, || flow.full_speed(plan.time)).map_err(|error| format!("{name}: {error}").into())
    }

    /// The median and the 99th percentile of a segment, in microseconds.
    fn paced(&mut self, rate: u32, plan: &Plan) -> Result<(f64, f64)> {
        let paced = self.flow.paced(rate, plan.time);
        let mut latencies = paced.map_err(|error| format!("{}: {error}", self.name))?;
        Ok((percentile(&mut latencies, 50), percentile(&mut latencies, 99)))
    }
}

/// The bridge connects when it likes; messages before that would be lost.
fn until_bridged(from: SocketAddr, to: SocketAddr) -> Result<()> {
    let (mut publisher, mut subscriber) = (Client::connect(from, "probe")?, Client::connect(to, "probe")?);
    subscriber.subscribe("/login/probe", Qos::AtMostOnce)?;
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline {
        publisher.out.extend_from_slice(b"\x30\x0f\x00\x0c/login/probe\x00");
        publisher.flush()?;
        if subscriber.read(|_, _| {})? > 0 {
            return Ok(());
        }
    }
    Err("the bridge does not connect".into())
}

async fn against_the_bridge(qos: Qos, plan: &Plan, table: &mut Table) -> Result<()> {
    if !plan.wants(&format!("bridge-{}", qos.number())) {
        return Ok(());
    }
    let (ours, theirs) = (Contender::relay(qos).await?, Contender::bridge(qos).await?);
    let least = if qos == Qos::AtMostOnce { 0.85 } else { 0.82 };
    let what = "messages a second between two brokers, against mosquitto's bridge";
    throughput(what, qos, (ours, theirs), Some(least), plan, table)
}

/// With the relay each message passes the broker twice, with a shared subscription once.
async fn against_a_shared_subscription(qos: Qos, plan: &Plan, table: &mut Table) -> Result<()> {
    if !plan.wants(&format!("share-{}", qos.number())) {
        return Ok(());
    }
    let (ours, theirs) = (Contender::relay_on_one(qos).await?, Contender::share(qos).await?);
    let what = "messages a second on one broker to two instances, against `$share` with two consumers";
    throughput(what, qos, (ours, theirs), Some(0.5), plan, table)
}

/// The peer is the same relay with a mosquitto, on one broker, as it has to run where none is embedded.
async fn embedded(qos: Qos, plan: &Plan, table: &mut Table) -> Result<()> {
    if !plan.wants(&format!("embedded-{}", qos.number())) {
        return Ok(());
    }
    let what = "messages a second, embedded broker with the relay inside, against relay + mosquitto";
    let (ours, theirs) = (Contender::embedded(qos)?, Contender::relay_on_one(qos).await?);
    throughput(what, qos, (ours, theirs), Some(2.0), plan, table)
}

fn throughput(
    what: &str,
    qos: Qos,
    (mut ours, mut theirs): (Contender, Contender),
    least: Option<f64>,
    plan: &Plan,
    table: &mut Table,
) -> Result<()> {
    let shared = std::cell::RefCell::new(&mut *table);
    let pairs = plan.in_turn(
        || ours.full_speed(plan, &mut shared.borrow_mut()),
        || theirs.full_speed(plan, &mut shared.borrow_mut()),
    )?;
    table.rates(&format!("{what}, QoS {}", qos.number()), &pairs, least);
    Ok(())
}

/// From just before a message's being written to its being read, over both brokers; and over one broker alone, as the least.
/// Percentiles of each segment, and of those the medians.
async fn latency(qos: Qos, plan: &Plan, table: &mut Table) -> Result<()> {
    const RATE: u32 = 2000;
    if !plan.wants(&format!("latency-{}", qos.number())) {
        return Ok(());
    }
    let (mut ours, mut theirs) = (Contender::relay(qos).await?, Contender::bridge(qos).await?);
    let mut direct = Contender::direct(qos).await?;
    let mut least = Vec::new();
    let pairs = plan.in_turn(
        || {
            least.push(direct.paced(RATE, plan)?);
            ours.paced(RATE, plan)
        },
        || theirs.paced(RATE, plan),
    )?;
    let what =
        format!("from publisher to subscriber at {RATE} messages/s, against mosquitto's bridge, QoS {}", qos.number());
    let of = |pick: fn(&(f64, f64)) -> f64| pairs.iter().map(|(a, b)| (pick(a), pick(b))).collect::<Vec<_>>();
    table.times(&format!("{what}, p50"), &of(|percentiles| percentiles.0), Some(1.15));
    table.times(&format!("{what}, p99"), &of(|percentiles| percentiles.1), Some(1.1));
    let (p50, p99) = (least.iter().map(|times| times.0).collect(), least.iter().map(|times| times.1).collect());
    let least = format!("p50 {:.0} µs, p99 {:.0} µs", median(p50), median(p99));
    table.row(&format!("(the same over one broker alone, QoS {})", qos.number()), "", &least, "", None);
    Ok(())
}

/// The peer's requester asks the service directly, on the same broker, which a request and its answer pass once each instead of
/// twice.
async fn requests(plan: &Plan, table: &mut Table) -> Result<()> {
    if !plan.wants("requests") {
        return Ok(());
    }
    for qos in QUALITIES {
        for in_flight in [1, 64] {
            let what =
                format!("round trips a second, {in_flight} in flight, against asking directly, QoS {}", qos.number());
            let pairs = round_trips(broker(), (qos, in_flight), plan).await?;
            table.rates(&what, &pairs, None);
        }
    }
    Ok(())
}

/// One request at a time with QoS 1, at a broker that does not set `TCP_NODELAY`, which is mosquitto's default: whoever waits 40
/// ms with his acknowledgement of TCP is seen here. The load generator does not.
async fn stall(plan: &Plan, table: &mut Table) -> Result<()> {
    if !plan.wants("stall") {
        return Ok(());
    }
    let delaying = Mosquitto::options().set("max_inflight_messages", "10000");
    let pairs = round_trips(delaying, (Qos::AtLeastOnce, 1), plan).await?;
    let time = |round: &Round| 1e6 / round.rate();
    let times: Vec<(f64, f64)> = pairs.iter().map(|(a, b)| (time(a), time(b))).collect();
    table.times("a round trip, mosquitto without nodelay, 1 in flight, against asking directly, QoS 1", &times, None);
    let ours = median(times.iter().map(|(a, _)| *a).collect());
    let verdict = Some(("< 40 ms".to_owned(), ours < 40_000.0));
    table.row("(the same: no delayed acknowledgement in it)", &format!("{:.2} ms", ours / 1e3), "", "", verdict);
    Ok(())
}

async fn round_trips(
    options: MosquittoOptions,
    (qos, in_flight): (Qos, usize),
    plan: &Plan,
) -> Result<Vec<(Round, Round)>> {
    let (ours, theirs) = (options.clone().start().await, options.start().await);
    let address = ours.socket_address();
    let _relay = Child::relay(address, address, &CODES[..1], IN_FLIGHT)?;
    let mut through = Requests::new(address, &Child::topic(), "svc-a/#", qos)?;
    let mut direct = Requests::new(theirs.socket_address(), "svc-a/login/user", "svc-a/#", qos)?;
    plan.in_turn(|| Ok(through.round(in_flight, plan.time)?), || Ok(direct.round(in_flight, plan.time)?))
}

/// 100,000 requests of QoS 1 to a service that never answers, by a relay that may have all of them in flight, and by one that
/// may have 10,000, which has to leave the others in the broker.
async fn memory(plan: &Plan, table: &mut Table) -> Result<()> {
    const REQUESTS: u64 = 100_000;
    if !plan.wants("memory") {
        return Ok(());
    }
    for setting in [100_000, 10_000] {
        let a = broker().start().await;
        let address = a.socket_address();
        let child = Child::relay(address, address, &CODES[..1], setting)?;
        let mut requests = Requests::new(address, &Child::topic(), "svc-a/#", Qos::AtLeastOnce)?;
        let before = child.observed().resident_bytes()?;
        let delivered = requests.leave_unanswered(REQUESTS)?;
        let grown = child.observed().resident_bytes()?.saturating_sub(before) as f64;
        let what = format!("memory of a relay with {REQUESTS} requests before it, at most {setting} in flight");
        let figure = format!(
            "{:.1} MB, {:.0} bytes each of {delivered}, {:.1} MB before",
            grown / 1e6,
            grown / delivered as f64,
            before as f64 / 1e6
        );
        let bound = Some((format!("{setting} in flight, no more"), delivered == setting as u64));
        table.row(&what, &figure, "", "", bound);
    }
    Ok(())
}
