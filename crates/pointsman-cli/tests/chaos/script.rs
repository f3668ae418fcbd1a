//! Actions that a scenario chooses itself, and the events that it waits for.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::Value;
use tokio::time::{sleep, timeout};

use crate::agent;
use crate::director::{Director, TICK};
use crate::instance::{Instance, Part};
use crate::truth::{LifeId, Override, Registration};

/// Time within which an event must come that a scenario waits for.
const EVENT: Duration = Duration::from_secs(15);

impl Director {
    /// Returns those that are up and registered.
    pub(crate) fn well(&self) -> Vec<LifeId> {
        self.fleet.iter().map(|instance| instance.life).filter(|life| self.is_well(*life)).collect()
    }

    /// Returns the instance that has reported last that it is master.
    ///
    /// # Panics
    /// If none ever has.
    pub(crate) fn master(&self) -> LifeId {
        let last = self.recorder.truth().masters.last().map(|(_, master, _)| *master);
        last.expect("a master that has reported its role")
    }

    pub(crate) fn code(&self, life: LifeId) -> String {
        self.recorder.truth().lives[life].code.clone()
    }

    pub(crate) fn codes(&self, lives: &[LifeId]) -> Vec<String> {
        lives.iter().map(|life| self.code(*life)).collect()
    }

    /// Goes on looking after the fleet for this long, under load.
    pub(crate) async fn go_on(&mut self, time: Duration) {
        let end = self.recorder.now() + time;
        while self.recorder.now() < end {
            self.look_after().await;
            sleep(TICK).await;
        }
    }

    /// Waits for an event. One that does not come in time is a fault.
    pub(crate) async fn until(&mut self, event: &str, mut has_come: impl AsyncFnMut(&Self) -> bool) {
        let end = self.recorder.now() + EVENT;
        while !has_come(self).await {
            if self.recorder.now() >= end {
                self.recorder.note(format!("waited in vain: {event}"));
                return self.recorder.unrecovered();
            }
            self.look_after().await;
            sleep(TICK).await;
        }
        self.recorder.note(format!("{event}: that is so"));
    }

    /// Waits until the agent lists exactly these, whatever their status.
    pub(crate) async fn until_listed(&mut self, mut codes: Vec<String>) {
        let agent = self.agent;
        codes.sort();
        let event = format!("the agent lists {} instances", codes.len());
        self.until(&event, async |_| {
            let list = listed(agent).await;
            let mut listed: Vec<&str> = list.iter().filter_map(|instance| instance["code"].as_str()).collect();
            listed.sort_unstable();
            listed == codes
        })
        .await;
    }

    /// Waits until the agent lists this many that are registered, not only guarded.
    pub(crate) async fn until_registered(&mut self, count: usize) {
        let event = format!("{count} of those that the agent lists are registered");
        let agent = self.agent;
        let is_guarded = |instance: &Value| instance["status"].as_str().is_none_or(|status| status.contains("guarded"));
        self.until(&event, async |_| {
            listed(agent).await.iter().filter(|instance| !is_guarded(instance)).count() == count
        })
        .await;
    }

    /// Waits until a master that is up has reported its role.
    pub(crate) async fn until_there_is_a_master(&mut self) {
        self.until("there is a master", async |director| {
            director.well().into_iter().any(|life| director.is_master(life))
        })
        .await;
    }

    /// Waits until another instance than this has reported that it is master.
    pub(crate) async fn until_master_is_not(&mut self, life: LifeId) {
        let event = format!("another than {} is master", self.code(life));
        self.until(&event, async |director| director.master() != life).await;
    }

    /// Sends SIGTERM to one after the other, with this time between.
    pub(crate) async fn leave_in_turn(&mut self, lives: &[LifeId], pause: Duration) {
        self.target = self.target.saturating_sub(lives.len());
        for (number, life) in lives.iter().enumerate() {
            if number > 0 && !pause.is_zero() {
                self.go_on(pause).await;
            }
            self.leave(*life);
        }
    }

    /// Kills the processes of all these. None of them starts again.
    pub(crate) async fn kill_at_once(&mut self, lives: &[LifeId]) {
        self.recorder.note(format!("kill -9 of {}", self.codes(lives).join(", ")));
        self.target = self.target.saturating_sub(lives.len());
        let mut killed: Vec<Instance> =
            lives.iter().map(|life| self.take(*life).expect("it is in the fleet")).collect();
        join_all(killed.iter_mut().map(|instance| instance.kill(Part::Both))).await;
    }

    /// SIGSTOP to the registrations of all these; their origins go on.
    pub(crate) fn stop_registrations(&mut self, lives: &[LifeId]) {
        self.recorder.note(format!("SIGSTOP to the registrations of {}", self.codes(lives).join(", ")));
        for instance in self.fleet.iter().filter(|instance| lives.contains(&instance.life)) {
            instance.stop(Part::Registration);
        }
    }

    /// SIGCONT to the registrations of all these, and waits until they have reported their role again.
    pub(crate) async fn resume_registrations(&mut self, lives: &[LifeId]) {
        self.recorder.note("SIGCONT to the registrations");
        lives.iter().for_each(|life| self.resume(*life, Part::Registration));
        self.until("all registrations hold again", async |director| {
            lives.iter().all(|life| director.recorder.state(*life).registration == Registration::Held)
        })
        .await;
    }

    /// Drains an instance, and waits until the command has succeeded.
    pub(crate) async fn drain(&mut self, life: LifeId) {
        let code = self.code(life);
        self.tasks.spawn(self.operator().command(&code, &["drain"], Override::Drained, 1));
        self.until(&format!("{code} is drained"), async |director| {
            director.recorder.truth().overrides[&code].last() == Some(Override::Drained)
        })
        .await;
    }

    /// Stops the registry, deletes its data, starts it, and waits until it serves.
    pub(crate) async fn wipe_registry(&mut self) {
        self.recorder.registry(false, "killed and wiped");
        let mut zookeeper = self.zookeeper.clone().lock_owned().await;
        zookeeper.kill();
        zookeeper.wipe();
        drop(zookeeper);
        self.start_registry(true);
        self.until("the registry serves again", async |director| {
            director.recorder.truth().registry.last() == Some(true)
        })
        .await;
    }

    /// Waits until a client that has known nothing finds this many in the registry.
    pub(crate) async fn until_found_anew(&mut self, count: usize) {
        let registry = timeout(EVENT, pointsman::Registry::connect(&self.registry)).await.expect("connected").unwrap();
        let service = registry.discover("ress").await.unwrap();
        self.until(&format!("the registry has {count} instances"), async |_| {
            service.snapshot().instances().len() == count
        })
        .await;
        drop(service);
        registry.close().await;
    }

    /// Has the master resign through the agent, and waits until another has reported that it is master.
    pub(crate) async fn resign(&mut self) {
        let master = self.master();
        let code = self.code(master);
        let answer = agent::call(self.agent, "POST", &format!("{}/{code}/resign", agent::INSTANCES), "").await;
        match answer {
            Ok((204, _)) => self.recorder.note(format!("{code} has resigned")),
            other => {
                self.recorder.note(format!("{code} cannot resign: {other:?}"));
                self.recorder.unrecovered();
            }
        }
        self.until_master_is_not(master).await;
    }
}

/// All that the agent lists.
async fn listed(agent: u16) -> Vec<Value> {
    match agent::call(agent, "GET", &format!("{}?all", agent::INSTANCES), "").await {
        Ok((200, Value::Array(list))) => list,
        _ => Vec::new(),
    }
}
