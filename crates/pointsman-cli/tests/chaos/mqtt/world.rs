//! The processes, and what happens to them.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use pointsman_testkit::{Mosquitto, ZooKeeper, unique_prefix};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::process::Child;
use tokio::time::{sleep, timeout};

use super::service;
use crate::history::Time;
use crate::instance::read_roles;
use crate::recorder::Recorder;
use crate::support::{DEADLINE, command};
use crate::truth::{LifeId, Origin, Registration};

const SERVICES: usize = 4;
const RELAYS: usize = 2;
const TICK: Duration = Duration::from_millis(50);

/// Time within which everything is to be well again after the last action.
const RECOVERY: Duration = Duration::from_secs(20);

/// Time for which the registry serves at least, before something happens to it again.
const CALM: Duration = Duration::from_secs(6);

const ACTIONS: &[(&str, u32)] = &[
    ("kill a service", 5),
    ("a service leaves", 5),
    ("stop a service", 3),
    ("kill a relay", 3),
    ("a relay leaves", 3),
    ("kill the registry", 1),
    ("stop the registry", 1),
];

#[derive(Debug, Clone, Copy)]
enum Later {
    StartService(usize),
    ResumeService(usize),
    StartRelay(usize),
    StartRegistry,
    ResumeRegistry,
}

struct Member {
    life: LifeId,
    child: Option<Child>,
}

pub(super) struct World {
    pub(super) recorder: Recorder,
    pub(super) registry: String,
    pub(super) counts: BTreeMap<String, usize>,
    rng: fastrand::Rng,
    folder: TempDir,
    zookeeper: ZooKeeper,
    broker: Mosquitto,
    services: Vec<Member>,
    relays: Vec<Option<Child>>,
    later: Vec<(Time, Later)>,
}

impl World {
    pub(super) async fn start(rng: fastrand::Rng) -> Self {
        let (folder, zookeeper) = (tempfile::tempdir().unwrap(), ZooKeeper::start().await);
        let session = crate::SESSION;
        let address = zookeeper.address();
        let registry = format!("zookeeper://{address}{}?session_timeout={}s", unique_prefix(), session.as_secs());
        let recorder = Recorder::new(session, RELAYS);
        recorder.registry(true, "serves");
        let (broker, services, relays) = (Mosquitto::start().await, Vec::new(), Vec::new());
        let (counts, later) = (BTreeMap::new(), Vec::new());
        let mut world = Self { recorder, registry, counts, rng, folder, zookeeper, broker, services, relays, later };
        for number in 0..SERVICES {
            let member = world.start_service(number);
            world.services.push(member);
        }
        for number in 0..RELAYS {
            world.relays.push(None);
            world.start_relay(number).await;
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

    /// Waits until all of these have arrived at a service, or the time is over; returns what has.
    pub(super) async fn until_arrived(&self, wanted: &HashSet<&str>, limit: Duration) -> HashSet<String> {
        let start = self.recorder.now();
        loop {
            let journals =
                (0..SERVICES).map(|number| std::fs::read_to_string(self.journal(number)).unwrap_or_default());
            let arrived: HashSet<String> =
                journals.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>()).collect();
            if wanted.iter().all(|id| arrived.contains(*id)) || self.recorder.now() > start + limit {
                return arrived;
            }
            sleep(TICK).await;
        }
    }

    pub(super) async fn end(mut self) {
        for child in self.services.iter_mut().map(|member| &mut member.child).chain(&mut self.relays).flatten() {
            signal(child, Signal::TERM);
            let _ = timeout(DEADLINE, child.wait()).await;
        }
    }

    fn journal(&self, number: usize) -> PathBuf {
        self.folder.path().join(format!("service-{number}"))
    }

    fn errors(&self, number: usize) -> PathBuf {
        self.journal(number).with_extension("errors")
    }

    fn start_service(&self, number: usize) -> Member {
        let code = format!("s{number}");
        let life = self.recorder.begin(&code, 0);
        let mut command = service::command(&code, &self.registry, &self.broker.url(), &self.journal(number));
        let errors = File::create(self.errors(number)).unwrap();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        tokio::spawn(read_roles(child.stdout.take().unwrap(), life, self.recorder.clone()));
        Member { life, child: Some(child) }
    }

    async fn start_relay(&mut self, number: usize) {
        let folder = self.folder.path();
        let (config, log) = (folder.join(format!("relay-{number}.toml")), folder.join(format!("relay-{number}.log")));
        let text = format!(
            "registry = '{}'\n[mqtt]\ningress = '{}'\nregister_as = 'mqtt-balancer'\ncode = 'relay-{number}'\n\
             state = 'relay-{number}'\n[[mqtt.route]]\nmatch = '^/ask(/|$)'\nservice = 'cfgs'\n\
             algorithm = 'least-connections'\nredispatch = true\n",
            self.registry,
            self.broker.url()
        );
        std::fs::write(&config, text).unwrap();
        let mut command = command(["serve".as_ref(), "--config".as_ref(), config.as_os_str()]);
        command.stdout(Stdio::null()).stderr(File::create(&log).unwrap());
        self.relays[number] = Some(command.spawn().unwrap());
        let ready = async {
            while !std::fs::read_to_string(&log).unwrap_or_default().contains(" ready") {
                sleep(Duration::from_millis(5)).await;
            }
        };
        match timeout(DEADLINE, ready).await {
            Ok(()) => self.recorder.serve(number, true, "the relay is ready"),
            Err(_) => panic!("relay {number}: {}", std::fs::read_to_string(log).unwrap_or_default()),
        }
    }

    fn after(&mut self, milliseconds: std::ops::Range<u64>, what: Later) {
        let at = self.recorder.now() + Duration::from_millis(self.rng.u64(milliseconds));
        self.later.push((at, what));
    }

    fn well(&self) -> Vec<usize> {
        let is_well = |number: &usize| {
            let state = self.recorder.state(self.services[*number].life);
            state.origin == Origin::Up && state.registration == Registration::Held
        };
        (0..self.services.len()).filter(is_well).collect()
    }

    fn registry_serves_for(&self, time: Duration) -> bool {
        let now = self.recorder.now();
        self.recorder.truth().registry.at(now).is_some_and(|(since, serves)| serves && since + time <= now)
    }

    async fn act(&mut self) {
        let total: u32 = ACTIONS.iter().map(|(_, weight)| weight).sum();
        for _ in 0..20 {
            let mut ticket = self.rng.u32(..total);
            let chosen = ACTIONS.iter().find(|(_, weight)| {
                let found = ticket < *weight;
                ticket = ticket.saturating_sub(*weight);
                found
            });
            let action = chosen.expect("a ticket below the total").0;
            if self.perform(action).await {
                *self.counts.entry(action.to_owned()).or_default() += 1;
                return;
            }
        }
    }

    async fn perform(&mut self, action: &str) -> bool {
        if action.contains("service") {
            return self.service_action(action).await;
        }
        if action.contains("relay") {
            return self.relay_action(action).await;
        }
        if !self.registry_serves_for(CALM) {
            return false;
        }
        self.recorder.registry(false, action);
        if action == "kill the registry" {
            self.zookeeper.kill();
            self.after(10..3000, Later::StartRegistry);
        } else {
            self.zookeeper.pause();
            self.after(500..5000, Later::ResumeRegistry);
        }
        true
    }

    async fn service_action(&mut self, action: &str) -> bool {
        let well = self.well();
        let Some(number) = self.rng.choice(well.iter().copied()).filter(|_| well.len() >= 3) else { return false };
        let Member { life, child } = &mut self.services[number];
        let (life, Some(process)) = (*life, child.as_mut()) else { return false };
        self.recorder.note(format!("{action}: s{number}"));
        match action {
            "kill a service" => {
                self.recorder.registration(life, Registration::Lost);
                self.recorder.origin(life, Origin::Down);
                let _ = process.kill().await;
                *child = None;
                self.after(200..2500, Later::StartService(number));
            }
            "a service leaves" => {
                self.recorder.registration(life, Registration::Leaving);
                self.recorder.origin(life, Origin::Ending);
                signal(process, Signal::TERM);
            }
            _ => {
                self.recorder.registration(life, Registration::Stopped);
                self.recorder.origin(life, Origin::Stopped);
                signal(process, Signal::STOP);
                self.after(300..6000, Later::ResumeService(number));
            }
        }
        true
    }

    async fn relay_action(&mut self, action: &str) -> bool {
        let up = self.recorder.truth().serves.iter().filter(|up| up.last() == Some(true)).count();
        // The one that stays must have been found by the clients, and one that is started again find the registry.
        if up < RELAYS || !self.registry_serves_for(CALM) {
            return false;
        }
        let number = self.rng.usize(..RELAYS);
        let Some(mut child) = self.relays[number].take() else { return false };
        self.recorder.serve(number, false, action);
        if action == "kill a relay" {
            let _ = child.kill().await;
        } else {
            signal(&child, Signal::TERM);
            let _ = timeout(DEADLINE, child.wait()).await;
        }
        self.after(100..1500, Later::StartRelay(number));
        true
    }

    async fn look_after(&mut self) {
        let now = self.recorder.now();
        while let Some(due) = self.later.iter().position(|(at, _)| *at <= now) {
            let (_, what) = self.later.swap_remove(due);
            self.follow_up(what).await;
        }
        for number in 0..self.services.len() {
            let Member { life, child } = &mut self.services[number];
            let Some(Ok(Some(status))) = child.as_mut().map(Child::try_wait) else { continue };
            *child = None;
            let life = *life;
            let errors = std::fs::read_to_string(self.errors(number)).unwrap_or_default();
            let last = errors.lines().find(|line| line.contains("Err")).unwrap_or_default();
            self.recorder.note(format!("s{number} has ended: {status} {last}"));
            self.recorder.registration(life, Registration::Left);
            self.recorder.origin(life, Origin::Down);
            self.after(200..2000, Later::StartService(number));
        }
    }

    async fn follow_up(&mut self, what: Later) {
        match what {
            Later::StartService(number) => self.services[number] = self.start_service(number),
            Later::ResumeService(number) => {
                let Member { life, child: Some(child) } = &self.services[number] else { return };
                signal(child, Signal::CONT);
                self.recorder.origin(*life, Origin::Up);
                // It reports each change of its role; without one it is still registered.
                self.recorder.registration(*life, Registration::Held);
            }
            Later::StartRelay(number) if self.registry_serves_for(Duration::ZERO) => self.start_relay(number).await,
            Later::StartRelay(_) => self.after(500..501, what),
            Later::StartRegistry => {
                self.zookeeper.restart().await;
                self.recorder.registry(true, "serves again");
            }
            Later::ResumeRegistry => {
                self.zookeeper.resume();
                self.recorder.registry(true, "SIGCONT");
            }
        }
    }

    async fn until_recovered(&mut self) {
        let start = self.recorder.now();
        while self.recorder.now() < start + RECOVERY {
            self.look_after().await;
            if self.later.is_empty() && self.well().len() == SERVICES {
                return;
            }
            sleep(TICK).await;
        }
        self.recorder.unrecovered();
    }
}

fn signal(child: &Child, signal: Signal) {
    if let Some(pid) = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}
