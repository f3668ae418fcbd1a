//! Processes: those that are measured, and what they take.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use pointsman_core::{Instance, ObservedInstance, Snapshot, ViewWriter};
use pointsman_mqtt::broker::{Broker, Options};
use pointsman_mqtt::relay::{Relay, Route, Settings, Views};
use tokio::sync::watch;

use super::Result;

/// The code of the relay, by which senders address it. It is another one in each run: ports come round, and a relay that some
/// test has left behind, with the code that tests use, must not take this one's place at its broker.
fn code() -> String {
    format!("efda4376-529c-4752-a264-{:012x}", std::process::id())
}

/// A relay, or an embedded broker with a relay inside, in a process of its own. Killed on drop.
#[derive(Debug)]
pub struct Child {
    process: std::process::Child,
    /// Where an embedded broker listens.
    pub address: Option<SocketAddr>,
}

impl Child {
    /// The topic on which senders address the relay; instances get it as `CODE/login/user`.
    #[must_use]
    pub fn topic() -> String {
        format!("/login/user/{}", code())
    }

    /// A relay between two brokers, or on one, to the instances with these codes.
    ///
    /// # Errors
    ///
    /// It does not start, or is not ready in time.
    pub fn relay(from: SocketAddr, to: SocketAddr, codes: &[&str], max_in_flight: usize) -> Result<Self> {
        Self::start(&["relay", &from.to_string(), &to.to_string(), &codes.join(","), &max_in_flight.to_string()])
    }

    /// An embedded broker with a relay inside.
    ///
    /// # Errors
    ///
    /// It does not start.
    pub fn embedded(codes: &[&str]) -> Result<Self> {
        Self::start(&["embedded", &codes.join(",")])
    }

    /// This very program again, with hidden arguments. It says `ready`, and ends when its standard input does.
    fn start(arguments: &[&str]) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--child", &code()]).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn()?;
        let mut said = String::new();
        if let Some(output) = process.stdout.take() {
            BufReader::new(output).read_line(&mut said)?;
        }
        let child = Self { process, address: said.trim().strip_prefix("ready ").and_then(|at| at.parse().ok()) };
        if said.starts_with("ready") { Ok(child) } else { Err(format!("{} did not get ready", arguments[0]).into()) }
    }

    /// Its process.
    #[must_use]
    pub fn observed(&self) -> Observed {
        Observed::new(if self.address.is_some() { "broker with relay" } else { "relay" }, Some(self.process.id()))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A process that is looked at.
#[derive(Debug, Clone)]
pub struct Observed {
    /// What it is called in the table.
    pub name: String,
    /// Its id.
    pub pid: u32,
}

impl Observed {
    /// A process under a name.
    pub fn new(name: &str, pid: Option<u32>) -> Self {
        Self { name: name.into(), pid: pid.unwrap_or_default() }
    }

    /// How much processor time it has taken so far, in seconds; in steps of 10 ms.
    ///
    /// # Errors
    ///
    /// The process is gone.
    pub fn processor_seconds(&self) -> Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid))?;
        // The name, in parentheses, may have spaces; after it the 12th and 13th field are user and system time.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |index: usize| -> Result<f64> { Ok(fields.get(index).ok_or("a short stat")?.parse()?) };
        Ok((ticks(11)? + ticks(12)?) / rustix::param::clock_ticks_per_second() as f64)
    }

    /// Its resident memory, in bytes.
    ///
    /// # Errors
    ///
    /// The process is gone.
    pub fn resident_bytes(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).ok_or("no VmRSS")?;
        let kilobytes: u64 = line.split_whitespace().nth(1).ok_or("no figure")?.parse()?;
        Ok(kilobytes * 1024)
    }
}

/// What a child does; `arguments` are those after `--child`. It says so when it is ready, by what it is given to say it with.
///
/// # Errors
///
/// It cannot start.
pub async fn child(arguments: &[String], say: fn(&str)) -> Result<()> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        [code, "relay", from, to, codes, max_in_flight] => {
            let mut settings = settings(code);
            settings.ingress = Some(format!("mqtt://{from}").parse()?);
            settings.egress = vec![format!("mqtt://{to}").parse()?];
            settings.max_in_flight = max_in_flight.parse()?;
            let (_fleet, views) = fleet(codes);
            let (_changed, changed) = watch::channel(());
            let relay = Relay::start(settings, views, changed, None)?;
            tokio::time::timeout(Duration::from_secs(10), relay.ready()).await??;
            say("ready");
            until_standard_input_ends().await;
            Ok(())
        }
        [code, "embedded", codes] => {
            let broker = Broker::start(Options::new(SocketAddr::from(([127, 0, 0, 1], 0)))).await?;
            let (_fleet, views) = fleet(codes);
            let (_changed, changed) = watch::channel(());
            let relay = Relay::start(settings(code), views, changed, Some(broker.handle()))?;
            tokio::time::timeout(Duration::from_secs(10), relay.ready()).await??;
            say(&format!("ready {}", broker.address()));
            until_standard_input_ends().await;
            Ok(())
        }
        _ => Err("a child that does not exist".into()),
    }
}

/// One route, to the service `cfgs`; nobody's answer is missed while a benchmark runs.
fn settings(code: &str) -> Settings {
    let mut settings = Settings::new();
    settings.code = Some(code.into());
    settings.routes = vec![Route::new("^/login(/|$)", "cfgs")];
    settings.response_timeout = Duration::from_secs(3600);
    settings
}

/// The service with one instance for each code, as a registry would show it.
fn fleet(codes: &str) -> (ViewWriter, Views) {
    let mut writer = ViewWriter::new(Snapshot::empty("cfgs"));
    let instances =
        codes.split(',').map(|code| Arc::new(ObservedInstance::from(Instance::new("cfgs").code(code)))).collect();
    writer.store(Arc::new(Snapshot::new("cfgs", 1, instances)));
    let views = HashMap::from([("cfgs".into(), writer.view())]);
    (writer, views)
}

async fn until_standard_input_ends() {
    // On a thread of its own: nothing else runs there, and the relay's is not disturbed.
    let (sender, ended) = tokio::sync::oneshot::channel::<()>();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read(&mut [0]);
        drop(sender);
    });
    let _ = ended.await;
}
