//! The two processes of an instance: an origin, and `pointsman register` beside it or around it.

use std::fs::File;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::{sleep, timeout};

use crate::agent;
use crate::origin::{GRACE, Order};
use crate::recorder::Recorder;
use crate::support::command;
use crate::truth::{LifeId, Origin, Registration};

/// Time that a registration or an origin may take to end after SIGTERM.
const PATIENCE: Duration = Duration::from_secs(15);

/// Which processes a signal goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Both,
    Origin,
    Registration,
}

/// How the processes are started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Two processes side by side.
    Beside,
    /// `register … -- ORIGIN`: the registration starts the origin and ends it.
    Around,
    /// An origin alone, registered through an agent by a lease that is longer than a run.
    Leased,
}

/// A running instance. Its processes are killed on drop.
#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) life: LifeId,
    pub(crate) order: Order,
    pub(crate) mode: Mode,
    registry: String,
    recorder: Recorder,
    /// Not there where the registration has started it.
    origin: Option<Child>,
    registration: Option<Child>,
}

/// The loopback address of the origins of one run, which is a process: what listens at a port where an origin was killed is of the same run.
pub(crate) fn host(run: i32) -> Ipv4Addr {
    let [_, a, b, c] = run.to_be_bytes();
    Ipv4Addr::new(127, a | 128, b, c)
}

impl Instance {
    /// Starts both. It is registered as soon as its origin listens.
    pub(crate) fn start(order: Order, mode: Mode, registry: &str, recorder: &Recorder) -> Self {
        let life = recorder.begin(&order.code, order.port);
        let origin = (mode != Mode::Around).then(|| {
            let words = Order::command();
            let mut command = Command::new(&words[0]);
            command.args(&words[1..]).env(order.variable().0, order.variable().1);
            command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true).spawn().unwrap()
        });
        let (registry, recorder) = (registry.to_owned(), recorder.clone());
        let mut instance = Self { life, order, mode, registry, recorder, origin, registration: None };
        match mode {
            Mode::Beside | Mode::Around => instance.register(mode == Mode::Around),
            Mode::Leased => agent::lease(&instance.registry, &instance.order, life, &instance.recorder),
        }
        instance
    }

    /// Starts a registration beside an origin that has lost its own.
    pub(crate) fn register_again(&mut self) {
        self.mode = Mode::Beside;
        self.recorder.registration(self.life, Registration::Pending);
        self.register(false);
    }

    fn register(&mut self, around: bool) {
        let address = format!("{}:{}", host(std::process::id().cast_signed()), self.order.port);
        let mut arguments = ["register", "ress", "-o", "json", "--check", "tcp", "--check-interval", "200ms"]
            .map(str::to_owned)
            .to_vec();
        arguments.extend(
            ["--code", &self.order.code, "--address", &address, "--registry", &self.registry].map(str::to_owned),
        );
        if around {
            arguments.push("--".to_owned());
            arguments.extend(Order::command());
        }
        let mut command = command(arguments);
        let errors = File::create(self.errors_path()).unwrap();
        command.env(self.order.variable().0, self.order.variable().1).stdout(Stdio::piped()).stderr(errors);
        let mut child = command.spawn().unwrap();
        let lines = child.stdout.take().unwrap();
        tokio::spawn(read_roles(lines, self.life, self.recorder.clone()));
        self.registration = Some(child);
    }

    fn errors_path(&self) -> std::path::PathBuf {
        Path::new(&self.order.journal).with_extension("errors")
    }

    /// Whether the registration has ended without having been told to; then it is recorded.
    pub(crate) fn registration_has_ended(&mut self) -> bool {
        let Some(Ok(Some(status))) = self.registration.as_mut().map(Child::try_wait) else { return false };
        self.registration = None;
        let errors = std::fs::read_to_string(self.errors_path()).unwrap_or_default();
        let last = errors.lines().last().unwrap_or_default();
        self.recorder.note(format!("{} registration ends by itself, {status}: {last}", self.order.code));
        // Where it runs the origin it deregisters and ends with it.
        if self.mode == Mode::Around {
            self.recorder.origin(self.life, Origin::Down);
        }
        self.recorder.registration(self.life, Registration::Leaving);
        self.recorder.registration(self.life, Registration::Left);
        true
    }

    /// SIGKILL, recorded before it is sent: from then on nothing is expected of it.
    pub(crate) async fn kill(&mut self, part: Part) {
        if part != Part::Origin {
            self.recorder.registration(self.life, Registration::Lost);
        }
        if part != Part::Registration {
            self.recorder.origin(self.life, Origin::Down);
        }
        self.signal(part, Signal::KILL);
        if let Some(child) = self.registration.as_mut().filter(|_| part != Part::Origin) {
            let _ = child.wait().await;
            self.registration = None;
        }
        if let Some(child) = self.origin.as_mut().filter(|_| part != Part::Registration) {
            let _ = child.wait().await;
            self.origin = None;
        }
    }

    /// SIGSTOP.
    pub(crate) fn stop(&self, part: Part) {
        if part != Part::Origin {
            self.recorder.registration(self.life, Registration::Stopped);
        }
        if part != Part::Registration {
            self.recorder.origin(self.life, Origin::Stopped);
        }
        self.signal(part, Signal::STOP);
    }

    /// SIGCONT.
    pub(crate) fn resume(&self, part: Part) {
        self.signal(part, Signal::CONT);
        if part != Part::Registration && self.recorder.state(self.life).origin == Origin::Stopped {
            self.recorder.origin(self.life, Origin::Up);
        }
        if part != Part::Origin && self.recorder.state(self.life).registration == Registration::Stopped {
            self.recorder.registration(self.life, Registration::Resumed);
        }
    }

    /// SIGTERM, as a supervisor does: the registration first (a lease is deleted), and when that has ended the origin, which goes on for a while.
    pub(crate) async fn leave(mut self) {
        // One that is stopped would not hear of it.
        self.resume(Part::Both);
        self.recorder.registration(self.life, Registration::Leaving);
        if self.mode == Mode::Around {
            self.recorder.origin(self.life, Origin::Ending);
        }
        self.signal(Part::Registration, Signal::TERM);
        let code = self.order.code.clone();
        if let Some(mut child) = self.registration.take() {
            match timeout(PATIENCE, child.wait()).await {
                Ok(_) => self.recorder.registration(self.life, Registration::Left),
                Err(_) => {
                    self.recorder.note(format!("{code} registration does not end after SIGTERM; it is killed"));
                    self.registration = Some(child);
                    return self.kill(Part::Both).await;
                }
            }
        }
        if self.mode == Mode::Leased {
            agent::deregister(&self.registry, &code).await;
            self.recorder.registration(self.life, Registration::Left);
        }
        if self.mode != Mode::Around {
            self.recorder.origin(self.life, Origin::Ending);
            self.signal(Part::Origin, Signal::TERM);
            self.origin_ends().await;
        }
        self.recorder.origin(self.life, Origin::Down);
    }

    async fn origin_ends(&mut self) {
        let Some(mut child) = self.origin.take() else {
            // It was the child of a registration that was killed: nothing here can wait for it.
            sleep(3 * GRACE).await;
            return self.signal(Part::Origin, Signal::KILL);
        };
        if timeout(PATIENCE, child.wait()).await.is_err() {
            self.recorder.note(format!("{} origin does not end after SIGTERM; it is killed", self.order.code));
            let _ = child.kill().await;
        }
    }

    fn signal(&self, part: Part, signal: Signal) {
        let of = |child: &Option<Child>| {
            child.as_ref().and_then(Child::id).and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw)
        };
        // The registration first: it would take the end of an origin that it runs for a reason to deregister.
        let pids = match part {
            Part::Both => [of(&self.registration), self.order.pid()],
            Part::Origin => [None, self.order.pid()],
            Part::Registration => [of(&self.registration), None],
        };
        for pid in pids.into_iter().flatten() {
            let _ = kill_process(pid, signal);
        }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let is_there = self.recorder.state(self.life).origin != Origin::Down;
        if is_there && let Some(pid) = self.order.pid() {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// Records each role that a registration reports, and skips what its origin writes.
pub(crate) async fn read_roles(lines: ChildStdout, life: LifeId, recorder: Recorder) {
    let mut lines = BufReader::new(lines).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        note_role(&line, life, &recorder);
    }
}

/// Records the role that a line of JSON reports, if it reports one.
pub(crate) fn note_role(line: &str, life: LifeId, recorder: &Recorder) {
    let line: Value = serde_json::from_str(line).unwrap_or_default();
    if let Some(role) = line["role"].as_str() {
        recorder.role(life, role, line["term"].as_u64());
    }
}
