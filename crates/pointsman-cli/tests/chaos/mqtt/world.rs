//! The processes behind a broker, and what follows what happens to them.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use pointsman_testkit::{ZooKeeper, unique_prefix};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::process::Child;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::broker::{Broker, Setup};
use super::letters::Letters;
use super::load::{MASTER, NORMAL};
use super::service::{self, SERVICE};
use crate::SESSION;
use crate::history::Time;
use crate::instance::read_roles;
use crate::operator::Operator;
use crate::recorder::Recorder;
use crate::support::{DEADLINE, command};
use crate::truth::{LifeId, Origin, Override, Registration};

const TICK: Duration = Duration::from_millis(50);

/// Time within which everything is to be well again after the last action.
const RECOVERY: Duration = Duration::from_secs(20);

/// What follows an action after a while.
#[derive(Debug, Clone)]
pub(super) enum Later {
    StartService(String),
    ResumeService(LifeId),
    /// From a time on it has been running again: by now it is registered, whether or not it has reported so.
    Settle(LifeId, Time),
    /// What an operator has set for a code is taken back by these words.
    TakeBack(String, &'static [&'static str]),
    StartRelay(usize),
    StartRegistry {
        was_wiped: bool,
    },
    /// It is there again after it was wiped, and by now takes back those who have seen more than it.
    RegistryTakesAll,
    ResumeRegistry,
}

/// A service that runs or is to run.
pub(super) struct Member {
    pub(super) code: String,
    pub(super) life: LifeId,
    pub(super) child: Option<Child>,
    /// Whether it is started again once it has ended.
    pub(super) returns: bool,
}

/// When an instance has got a message.
#[derive(Debug, Clone)]
pub(super) struct Arrival {
    pub(super) at: Time,
    pub(super) code: String,
}

pub(super) struct World {
    pub(super) recorder: Recorder,
    pub(super) registry: String,
    pub(super) prefix: String,
    pub(super) counts: BTreeMap<String, usize>,
    pub(super) rng: fastrand::Rng,
    pub(super) zookeeper: ZooKeeper,
    pub(super) broker: Broker,
    pub(super) letters: Letters,
    pub(super) fleet: Vec<Member>,
    pub(super) relays: Vec<Option<Child>>,
    /// The codes for which something is set that is still to be taken back.
    pub(super) operated: HashSet<String>,
    /// Commands that run.
    pub(super) tasks: JoinSet<()>,
    /// Number of services that there are to be when all is well.
    pub(super) target: usize,
    codes: BTreeSet<String>,
    folder: TempDir,
    later: Vec<(Time, Later)>,
}

impl World {
    /// Starts everything, with so many services, and waits until all are registered.
    pub(super) async fn start(rng: fastrand::Rng, setup: Setup, services: usize) -> Self {
        let (folder, zookeeper) = (tempfile::tempdir().unwrap(), ZooKeeper::start().await);
        let (address, prefix) = (zookeeper.address(), unique_prefix());
        let registry = format!("zookeeper://{address}{prefix}?session_timeout={}s", SESSION.as_secs());
        let recorder = Recorder::new(SESSION, setup.relays);
        recorder.registry(true, "serves");
        let broker = Broker::start(setup.has_embedded_broker).await;
        let mut relays = Vec::new();
        for number in 0..setup.relays {
            relays.push(Some(start_relay(number, &registry, &broker, &folder, &recorder).await));
        }
        let letters = Letters::collect(&broker.address(), &recorder).await;
        let mut world = Self {
            recorder,
            registry,
            prefix,
            counts: BTreeMap::new(),
            rng,
            zookeeper,
            broker,
            letters,
            fleet: Vec::new(),
            relays,
            operated: HashSet::new(),
            tasks: JoinSet::new(),
            target: services,
            codes: BTreeSet::new(),
            folder,
            later: Vec::new(),
        };
        for number in 0..services {
            world.start_service(format!("s{number}"));
        }
        world.until_recovered().await;
        world
    }

    /// Lets things happen for this time, and then waits until all is well again.
    pub(super) async fn run(&mut self, length: Duration) {
        let end = self.recorder.now() + length;
        let mut next = self.recorder.now() + Duration::from_secs(1);
        while self.recorder.now() < end {
            self.look_after().await;
            if self.recorder.now() >= next {
                self.act().await;
                let pause = if self.rng.u8(..6) == 0 { 3000..5000 } else { 300..1500 };
                next = self.recorder.now() + Duration::from_millis(self.rng.u64(pause));
            }
            sleep(TICK).await;
        }
        self.recorder.note("the last action is over");
        self.until_recovered().await;
    }

    /// Looks after everything until something is done.
    pub(super) async fn while_serving<T>(&mut self, something: impl Future<Output = T>) -> T {
        let mut something = std::pin::pin!(something);
        loop {
            tokio::select! {
                done = &mut something => return done,
                () = sleep(TICK) => self.look_after().await,
            }
        }
    }

    /// Looks after everything until it is so.
    ///
    /// # Panics
    ///
    /// When that takes too long.
    pub(super) async fn until(&mut self, what: &str, mut is_so: impl FnMut(&Self) -> bool) {
        let start = self.recorder.now();
        while !is_so(self) {
            let late = self.recorder.now() > start + RECOVERY;
            assert!(!late, "not in time: {what}\n{:#?}", self.recorder.truth().log);
            self.look_after().await;
            sleep(TICK).await;
        }
    }

    /// Waits until all of these have arrived at a service or have become dead letters, or the time is over; returns what has arrived.
    pub(super) async fn until_arrived(
        &mut self,
        wanted: &HashSet<&str>,
        limit: Duration,
    ) -> HashMap<String, Vec<Arrival>> {
        let start = self.recorder.now();
        loop {
            let arrivals = self.arrivals();
            let all = wanted.iter().all(|id| arrivals.contains_key(*id) || self.letters.has(id));
            if all || self.recorder.now() > start + limit {
                return arrivals;
            }
            self.look_after().await;
            sleep(TICK).await;
        }
    }

    fn arrivals(&self) -> HashMap<String, Vec<Arrival>> {
        let mut arrivals = HashMap::<_, Vec<_>>::new();
        for code in &self.codes {
            let text = std::fs::read_to_string(self.journal(code)).unwrap_or_default();
            for (id, time) in text.lines().filter_map(|line| line.split_once(' ')) {
                let Ok(time) = time.parse() else { continue };
                let at = self.recorder.time_of(Duration::from_millis(time));
                arrivals.entry(id.to_owned()).or_default().push(Arrival { at, code: code.clone() });
            }
        }
        arrivals
    }

    pub(super) async fn end(mut self) {
        let services = self.fleet.iter_mut().map(|member| &mut member.child);
        let processes: Vec<&mut Child> = services.chain(&mut self.relays).flatten().collect();
        processes.iter().for_each(|child| signal(child, Signal::TERM));
        for child in processes {
            let _ = timeout(DEADLINE, child.wait()).await;
        }
    }

    /// Reads in the logs of the relays which messages they have made dead letters; one that is killed may have told nobody else.
    pub(super) fn logged_letters(&self) -> HashSet<String> {
        let logs =
            (0..self.relays.len()).map(|number| std::fs::read_to_string(log(number, &self.folder)).unwrap_or_default());
        let words = |line: &str| {
            let words = line.split(|character: char| !character.is_ascii_alphanumeric() && character != '-');
            words.map(str::to_owned).collect::<Vec<_>>()
        };
        let of_log =
            |text: String| text.lines().filter(|line| line.contains("dead letter")).flat_map(words).collect::<Vec<_>>();
        logs.flat_map(of_log).collect()
    }

    fn journal(&self, code: &str) -> PathBuf {
        self.folder.path().join(format!("service-{code}"))
    }

    fn errors(&self, code: &str) -> PathBuf {
        self.journal(code).with_extension("errors")
    }

    /// Starts a service, which is started again whenever it has ended.
    pub(super) fn start_service(&mut self, code: String) {
        let life = self.recorder.begin(&code, 0);
        let mut command = service::command(&code, &self.registry, &self.broker.url(), &self.journal(&code));
        let errors = File::create(self.errors(&code)).unwrap();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        tokio::spawn(read_roles(child.stdout.take().unwrap(), life, self.recorder.clone()));
        self.codes.insert(code.clone());
        self.fleet.retain(|member| member.code != code);
        self.fleet.push(Member { code, life, child: Some(child), returns: true });
    }

    pub(super) fn after(&mut self, milliseconds: std::ops::Range<u64>, what: Later) {
        let at = self.recorder.now() + Duration::from_millis(self.rng.u64(milliseconds));
        self.later.push((at, what));
    }

    /// Those that are up and registered.
    pub(super) fn well(&self) -> Vec<LifeId> {
        self.fleet.iter().map(|member| member.life).filter(|life| self.recorder.is_well(*life)).collect()
    }

    /// Those that can serve at this moment.
    pub(super) fn available(&self) -> Vec<LifeId> {
        let (now, truth) = (self.recorder.now(), self.recorder.truth());
        let lives = self.fleet.iter().map(|member| member.life);
        lives.filter(|life| truth.is_available(&truth.lives[*life], now, now)).collect()
    }

    /// The one that has reported a mastership last, if it is well.
    pub(super) fn master(&self) -> Option<LifeId> {
        let last = self.recorder.truth().masters.last().map(|(_, life, _)| *life);
        last.filter(|life| self.well().contains(life))
    }

    pub(super) fn member(&mut self, life: LifeId) -> Option<&mut Member> {
        self.fleet.iter_mut().find(|member| member.life == life)
    }

    /// SIGKILL. It is not started again by itself.
    pub(super) async fn kill(&mut self, life: LifeId) {
        self.recorder.registration(life, Registration::Lost);
        self.recorder.origin(life, Origin::Down);
        if let Some(mut child) = self.member(life).and_then(|member| member.child.take()) {
            let _ = child.kill().await;
        }
    }

    /// SIGTERM.
    pub(super) fn leave(&mut self, life: LifeId, returns: bool) {
        self.recorder.registration(life, Registration::Leaving);
        self.recorder.origin(life, Origin::Ending);
        if let Some(member) = self.member(life) {
            member.returns = returns;
            member.child.iter().for_each(|child| signal(child, Signal::TERM));
        }
    }

    /// SIGUSR1, by which a service resigns.
    pub(super) fn resign(&mut self, life: LifeId) {
        if let Some(Member { child: Some(child), code, .. }) = self.member(life) {
            signal(child, Signal::USR1);
            let words = format!("{code} is told to resign");
            self.recorder.note(words);
        }
    }

    /// Has an operator set something that drains a code.
    pub(super) fn drain(&mut self, code: &str, words: &'static [&'static str]) {
        self.operated.insert(code.to_owned());
        self.tasks.spawn(self.operator().command(code, words, Override::Drained, 1));
    }

    pub(super) fn take_back(&mut self, code: String, words: &'static [&'static str]) {
        if self.operator().take_back(&code, words, &mut self.tasks) {
            self.operated.remove(&code);
        } else {
            self.after(1000..1500, Later::TakeBack(code, words));
        }
    }

    fn operator(&self) -> Operator {
        Operator { recorder: self.recorder.clone(), registry: self.registry.clone(), service: SERVICE }
    }

    /// Carries out what is due, and notices what has ended.
    pub(super) async fn look_after(&mut self) {
        let now = self.recorder.now();
        while let Some(due) = self.later.iter().position(|(at, _)| *at <= now) {
            let (_, what) = self.later.swap_remove(due);
            self.follow_up(what).await;
        }
        let mut ended = Vec::new();
        for member in &mut self.fleet {
            if let Some(Ok(Some(status))) = member.child.as_mut().map(Child::try_wait) {
                member.child = None;
                ended.push((member.code.clone(), member.life, member.returns, status));
            }
        }
        for (code, life, returns, status) in ended {
            let errors = std::fs::read_to_string(self.errors(&code)).unwrap_or_default();
            let last = errors.lines().find(|line| line.contains("Err")).unwrap_or_default();
            self.recorder.note(format!("{code} has ended: {status} {last}"));
            self.recorder.registration(life, Registration::Left);
            self.recorder.origin(life, Origin::Down);
            if returns {
                self.after(200..2000, Later::StartService(code));
            } else {
                self.fleet.retain(|member| member.life != life);
            }
        }
        while let Some(task) = self.tasks.try_join_next() {
            task.expect("a task that does not panic");
        }
    }

    async fn follow_up(&mut self, what: Later) {
        match what {
            Later::StartService(code) => self.start_service(code),
            Later::ResumeService(life) => {
                let Some(Member { child: Some(child), .. }) = self.member(life) else { return };
                signal(child, Signal::CONT);
                self.recorder.origin(life, Origin::Up);
                self.recorder.registration(life, Registration::Resumed);
                let now = self.recorder.now();
                self.after(3000..3001, Later::Settle(life, now));
            }
            Later::Settle(life, since) => {
                if !self.recorder.settle(life, since) {
                    self.after(500..501, Later::Settle(life, since));
                }
            }
            Later::TakeBack(code, words) => self.take_back(code, words),
            Later::StartRelay(number) if self.recorder.registry_serves_for(Duration::ZERO) => {
                let Self { registry, broker, folder, recorder, .. } = self;
                self.relays[number] = Some(start_relay(number, registry, broker, folder, recorder).await);
            }
            Later::StartRelay(_) => self.after(500..501, what),
            Later::StartRegistry { was_wiped } => self.start_registry(was_wiped).await,
            Later::RegistryTakesAll => self.recorder.registry(true, "serves again"),
            Later::ResumeRegistry => {
                self.zookeeper.resume();
                self.recorder.registry(true, "SIGCONT");
            }
        }
    }

    /// SIGKILL, and as it may be the loss of all data; it starts again after a while.
    pub(super) fn kill_registry(&mut self, wipe: bool, milliseconds: std::ops::Range<u64>) {
        self.recorder.registry(false, if wipe { "killed and wiped" } else { "killed" });
        self.zookeeper.kill();
        if wipe {
            self.zookeeper.wipe();
        }
        self.after(milliseconds, Later::StartRegistry { was_wiped: wipe });
    }

    async fn start_registry(&mut self, was_wiped: bool) {
        self.zookeeper.restart().await;
        if was_wiped {
            self.recorder.note("registry: there again, but takes nobody back who has seen more");
            // A server refuses clients that have seen higher numbers than its own; they begin anew when their client gives the
            // session up, after 7/5 of its timeout.
            let pause = u64::try_from((SESSION * 7 / 5).as_millis()).unwrap();
            self.after(pause..pause + 1, Later::RegistryTakesAll);
        } else {
            self.recorder.registry(true, "serves again");
        }
    }

    /// Whether nothing is to follow, and as many services as there are to be are up and registered.
    pub(super) fn is_well(&self) -> bool {
        let children = self.fleet.iter().filter(|member| member.child.is_some()).count();
        self.later.is_empty() && self.tasks.is_empty() && self.well().len() == self.target && children == self.target
    }

    pub(super) async fn until_recovered(&mut self) {
        let start = self.recorder.now();
        while self.recorder.now() < start + RECOVERY {
            self.look_after().await;
            if self.is_well() {
                return;
            }
            sleep(TICK).await;
        }
        self.recorder.unrecovered();
    }
}

/// Starts a relay, and waits until it is ready.
async fn start_relay(number: usize, registry: &str, broker: &Broker, folder: &TempDir, recorder: &Recorder) -> Child {
    let (config, log) = (folder.path().join(format!("relay-{number}.toml")), log(number, folder));
    let text = format!(
        "registry = '{registry}'\n[mqtt]\n{}\nregister_as = 'mqtt-balancer'\ncode = 'relay-{number}'\nstate = 'relay-{number}'\n\
         [[mqtt.route]]\nmatch = '^{NORMAL}(/|$)'\nservice = '{SERVICE}'\nalgorithm = 'least-connections'\nredispatch = true\n\
         [[mqtt.route]]\nmatch = '^{MASTER}(/|$)'\nservice = '{SERVICE}'\nrole = 'master'\nredispatch = true\n",
        broker.setting(number)
    );
    std::fs::write(&config, text).unwrap();
    // With a line for each dead letter.
    let mut command = command(["serve".as_ref(), "--verbose".as_ref(), "--config".as_ref(), config.as_os_str()]);
    let before = std::fs::read_to_string(&log).unwrap_or_default().len();
    let appended = || std::fs::read_to_string(&log).unwrap_or_default().split_off(before);
    command.stdout(Stdio::null()).stderr(File::options().create(true).append(true).open(&log).unwrap());
    let child = command.spawn().unwrap();
    let ready = async {
        while !appended().contains(" ready") {
            sleep(Duration::from_millis(5)).await;
        }
    };
    match timeout(DEADLINE, ready).await {
        Ok(()) => recorder.serve(number, true, "the relay is ready"),
        Err(_) => panic!("relay {number}: {}", appended()),
    }
    child
}

fn log(number: usize, folder: &TempDir) -> PathBuf {
    folder.path().join(format!("relay-{number}.log"))
}

pub(super) fn signal(child: &Child, signal: Signal) {
    if let Some(pid) = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}
