//! What a proxy has done under load, by `wrk` and by `h2load`.

use std::time::{Duration, Instant};

use pointsman_bench::mqtt::{Observed, Result};

use crate::process::{LOAD, PROXIES, Process, on};

/// One round of one proxy.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    pub(crate) requests: f64,
    /// From the first request to the last.
    pub(crate) elapsed: f64,
    /// What the proxy took of its core, in seconds.
    pub(crate) processor: f64,
    /// What the backend took of the other one, in seconds.
    pub(crate) backend: f64,
    /// In microseconds; of HTTP/2 not known.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    /// The share of the load's core that was busy, and what others than the proxy had of the proxies' one.
    pub(crate) load_core: f64,
    pub(crate) others: f64,
    /// What has gone wrong.
    pub(crate) failures: Option<String>,
}

impl Outcome {
    /// Processor seconds of the proxy for 100,000 requests.
    pub(crate) fn cost(&self) -> f64 {
        self.processor / self.requests * 100_000.0
    }
}

/// `wrk` with one thread, in a closed loop: each connection asks again as soon as it is answered.
pub(crate) fn wrk(
    proxy: &Process,
    backend: &Observed,
    what: &str,
    connections: usize,
    time: Duration,
) -> Result<Outcome> {
    let (connections, time) = (format!("-c{connections}"), format!("-d{}s", time.as_secs().max(1)));
    let url = format!("http://{}{}{what}", proxy.address, proxy.path);
    measure(proxy, backend, "wrk", &["-t1", &connections, &time, "--latency", &url], |text| {
        let line = find(text, "requests in")?;
        let failures = text.lines().filter(|line| line.contains("Non-2xx") || line.contains("Socket errors"));
        let failures: Vec<&str> = failures.map(str::trim).collect();
        Ok(Said {
            requests: word(line, 0)?.parse()?,
            elapsed: microseconds(word(line, 3)?.trim_end_matches(','))? / 1e6,
            p50: microseconds(word(find(text, " 50%")?, 1)?)?,
            p99: microseconds(word(find(text, " 99%")?, 1)?)?,
            failures: (!failures.is_empty()).then(|| failures.join("; ")),
        })
    })
}

/// `h2load` in cleartext, with ten requests at a time on each connection.
pub(crate) fn h2load(proxy: &Process, backend: &Observed, what: &str, time: Duration) -> Result<Outcome> {
    let time = format!("-D{}", time.as_secs().max(1));
    let url = format!("http://{}{}{what}", proxy.http2, proxy.path);
    measure(proxy, backend, "h2load", &["-t1", "-c64", "-m10", &time, &url], |text| {
        let elapsed = microseconds(word(find(text, "finished in")?, 2)?.trim_end_matches(','))? / 1e6;
        // requests: 1 total, 1 started, 1 done, 1 succeeded, 0 failed, 0 errored, 0 timeout
        let line = find(text, "requests: ")?;
        let (done, succeeded): (f64, f64) = (word(line, 5)?.parse()?, word(line, 7)?.parse()?);
        let bad = done < 1.0 || (done - succeeded).abs() > 0.5 || !line.contains(" 0 failed, 0 errored, 0 timeout");
        let failures = bad.then(|| line.to_owned());
        Ok(Said { requests: done, elapsed, p50: f64::NAN, p99: f64::NAN, failures })
    })
}

/// What the load says of itself.
struct Said {
    requests: f64,
    elapsed: f64,
    p50: f64,
    p99: f64,
    failures: Option<String>,
}

fn measure(
    proxy: &Process,
    backend: &Observed,
    program: &str,
    arguments: &[&str],
    read: impl FnOnce(&str) -> Result<Said>,
) -> Result<Outcome> {
    let observed = proxy.observed()?;
    let cores = (Core::now(PROXIES)?, Core::now(LOAD)?);
    let before = (observed.processor_seconds()?, backend.processor_seconds()?);
    let started = Instant::now();
    let output = on(LOAD, program.into()).args(arguments).output()?;
    let wall = started.elapsed().as_secs_f64();
    let (processor, backend) = (observed.processor_seconds()? - before.0, backend.processor_seconds()? - before.1);
    let (proxies, load_core) = (cores.0.busy_since(PROXIES)?, cores.1.busy_since(LOAD)?);
    let text = String::from_utf8_lossy(&output.stdout);
    let Said { requests, elapsed, p50, p99, failures } = read(&text).map_err(|error| {
        format!("{program} at {}: {error}\n{text}{}", proxy.name, String::from_utf8_lossy(&output.stderr))
    })?;
    let others = (proxies - processor / wall).max(0.0);
    Ok(Outcome { requests, elapsed, processor, backend, p50, p99, load_core, others, failures })
}

fn find<'a>(text: &'a str, wanted: &str) -> Result<&'a str> {
    Ok(text.lines().find(|line| line.contains(wanted)).ok_or_else(|| format!("no line with {wanted:?}"))?)
}

fn word(line: &str, number: usize) -> Result<&str> {
    Ok(line.split_whitespace().nth(number).ok_or("a short line")?)
}

/// `1.50ms`
fn microseconds(text: &str) -> Result<f64> {
    let units = [("us", 1.0), ("ms", 1e3), ("s", 1e6), ("m", 60e6)];
    let (unit, factor) =
        units.iter().find(|(unit, _)| text.ends_with(unit)).ok_or_else(|| format!("{text:?}: no time"))?;
    Ok(text[..text.len() - unit.len()].parse::<f64>()? * factor)
}

/// How busy a core has been so far, in ticks.
struct Core {
    all: f64,
    idle: f64,
}

impl Core {
    fn now(core: usize) -> Result<Self> {
        let stat = std::fs::read_to_string("/proc/stat")?;
        let name = format!("cpu{core} ");
        let line = stat.lines().find_map(|line| line.strip_prefix(&name)).ok_or("there is no second core")?;
        // user, nice, system, idle, waiting, …; guests are in user already.
        let ticks = line.split_whitespace().take(8).map(str::parse).collect::<std::result::Result<Vec<f64>, _>>()?;
        Ok(Self { all: ticks.iter().sum(), idle: ticks.iter().skip(3).take(2).sum() })
    }

    fn busy_since(&self, core: usize) -> Result<f64> {
        let now = Self::now(core)?;
        Ok(1.0 - (now.idle - self.idle) / (now.all - self.all).max(1.0))
    }
}
