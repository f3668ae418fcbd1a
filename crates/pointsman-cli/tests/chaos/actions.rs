//! What can happen.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::SESSION;
use crate::director::{Director, Later};
use crate::instance::{Mode, Part};
use crate::judge::RETRIES;
use crate::operator::Operator;
use crate::serves::{AGENT, HANDED_OVER};
use crate::support::served::free_port;
use crate::truth::{LifeId, Override, SETTLE};

/// What can happen to the fleet, to an operator's settings, to the registry, and to the processes `serve`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Kill(Part),
    /// The program of an instance ends, with its registration around it.
    Crash,
    Leave,
    Stop(Part),
    KillMaster,
    LeaveMaster,
    Drain,
    DrainMaster,
    WeightZero,
    Weight,
    KillRegistry,
    WipeRegistry,
    PauseRegistry,
    Reload,
    HandOver,
    KillServe,
    ScaleDown(usize),
    BlueGreen,
}

/// All actions, with how often each is chosen relative to the others.
pub(crate) const ACTIONS: &[(Action, u32)] = &[
    (Action::Kill(Part::Both), 8),
    (Action::Kill(Part::Registration), 4),
    (Action::Crash, 4),
    (Action::Leave, 8),
    (Action::Stop(Part::Both), 4),
    (Action::Stop(Part::Origin), 2),
    (Action::Stop(Part::Registration), 3),
    (Action::KillMaster, 3),
    (Action::LeaveMaster, 4),
    (Action::Drain, 6),
    (Action::DrainMaster, 3),
    (Action::WeightZero, 3),
    (Action::Weight, 3),
    (Action::KillRegistry, 2),
    (Action::WipeRegistry, 1),
    (Action::PauseRegistry, 2),
    (Action::Reload, 4),
    (Action::HandOver, 3),
    (Action::KillServe, 1),
    (Action::ScaleDown(3), 2),
    (Action::ScaleDown(1), 1),
    (Action::BlueGreen, 1),
];

/// Time that dead instances take to start again.
const RESTART: Range<u64> = 200..3000;

/// Time for which the registry serves at least, before something happens to it again.
const CALM: Duration = Duration::from_secs(5);

impl Action {
    pub(crate) fn name(self) -> String {
        format!("{self:?}")
    }
}

impl Director {
    /// Carries out an action. `false`: it is not possible now.
    pub(crate) async fn perform(&mut self, action: Action) -> bool {
        match action {
            Action::Kill(part) => {
                let Some(life) = self.victim(|_, _| true) else { return false };
                self.kill(life, part).await
            }
            Action::Crash => {
                let Some(life) = self.victim(|director, life| director.mode(life) == Mode::Around) else {
                    return false;
                };
                self.kill(life, Part::Origin).await
            }
            Action::KillMaster => {
                let Some(life) = self.victim(Self::is_master) else { return false };
                self.kill(life, Part::Both).await
            }
            Action::Stop(part) => self.stop(part),
            Action::Leave => self.leave_one(|_, _| true),
            Action::LeaveMaster => self.leave_one(Self::is_master),
            Action::Drain => self.operate(|_, _| true, &["drain"], &["undrain"]),
            Action::DrainMaster => self.operate(Self::is_master, &["drain"], &["undrain"]),
            Action::WeightZero => self.operate(|_, _| true, &["weight", "0"], &["weight", "--reset"]),
            Action::Weight => self.operate(|_, _| true, &["weight", "5"], &["weight", "--reset"]),
            Action::KillRegistry => self.kill_registry(false),
            Action::WipeRegistry => self.kill_registry(true),
            Action::PauseRegistry => self.pause_registry().await,
            Action::Reload => self.reload(),
            Action::HandOver => self.hand_over(),
            Action::KillServe => self.kill_serve().await,
            Action::ScaleDown(to) => self.scale_down(to),
            Action::BlueGreen => self.blue_green(),
        }
    }

    fn mode(&self, life: LifeId) -> Mode {
        self.fleet.iter().find(|instance| instance.life == life).map_or(Mode::Beside, |instance| instance.mode)
    }

    pub(crate) fn is_master(&self, life: LifeId) -> bool {
        self.recorder.truth().masters.last().is_some_and(|(_, master, _)| *master == life)
    }

    /// Those that can serve at this moment.
    fn available(&self) -> Vec<LifeId> {
        let now = self.recorder.now();
        let truth = self.recorder.truth();
        let lives = self.fleet.iter().map(|instance| instance.life);
        lives.filter(|life| truth.is_available(&truth.lives[*life], now, now)).collect()
    }

    /// Chooses one that is well and may be broken: not so many at a time that retries could not help.
    fn victim(&mut self, fits: impl Fn(&Self, LifeId) -> bool) -> Option<LifeId> {
        let now = self.recorder.now();
        if self.available().len() < 4 || self.recorder.truth().bad_and_listed(now) >= RETRIES {
            return None;
        }
        self.choose(fits)
    }

    fn choose(&mut self, fits: impl Fn(&Self, LifeId) -> bool) -> Option<LifeId> {
        let lives = self.fleet.iter().map(|instance| instance.life);
        let lives: Vec<LifeId> = lives.filter(|life| self.is_well(*life) && fits(self, *life)).collect();
        self.rng.choice(lives)
    }

    async fn kill(&mut self, life: LifeId, part: Part) -> bool {
        let Some(mut instance) = self.take(life) else { return false };
        self.recorder.note(format!("kill -9 {part:?} of {}", instance.order.code));
        match part {
            Part::Both => {
                instance.kill(part).await;
                self.restart_later(&instance.order.code, instance.order.port);
            }
            Part::Registration => {
                instance.kill(part).await;
                self.after(RESTART, Later::RegisterAgain(life));
                self.fleet.push(instance);
            }
            // The registration around it ends by itself, which is noticed.
            Part::Origin => {
                instance.kill(part).await;
                self.fleet.push(instance);
            }
        }
        true
    }

    /// With the same code and address, the same code and another address, or another code.
    fn restart_later(&mut self, code: &str, port: u16) {
        let (code, port) = match self.rng.u8(..3) {
            0 => (code.to_owned(), port),
            1 => (code.to_owned(), free_port()),
            _ => (format!("i{}r{}", self.orders.len(), self.rng.u8(..)), port),
        };
        self.after(RESTART, Later::Restart(code, port));
    }

    fn stop(&mut self, part: Part) -> bool {
        let Some(life) = self.victim(|_, _| true) else { return false };
        let Some(instance) = self.fleet.iter().find(|instance| instance.life == life) else { return false };
        self.recorder.note(format!("SIGSTOP {part:?} of {}", instance.order.code));
        instance.stop(part);
        self.after(300..7000, Later::Resume(life, part));
        true
    }

    fn leave_one(&mut self, fits: impl Fn(&Self, LifeId) -> bool) -> bool {
        if self.available().len() < 2 {
            return false;
        }
        let Some(life) = self.choose(fits) else { return false };
        let Some((code, port)) = self.leave(life) else { return false };
        // Not where the one that leaves still listens.
        let port = if self.rng.bool() { free_port() } else { port };
        self.after(1500..5000, Later::Restart(code, port));
        true
    }

    pub(crate) fn leave(&mut self, life: LifeId) -> Option<(String, u16)> {
        let instance = self.take(life)?;
        let order = instance.order.clone();
        self.recorder.note(format!("SIGTERM to {}", order.code));
        self.tasks.spawn(instance.leave());
        Some((order.code, order.port))
    }

    fn scale_down(&mut self, to: usize) -> bool {
        let stay = self.available();
        if stay.len() < to || self.fleet.len() < to + 2 || self.fleet.len() < self.target {
            return false;
        }
        let stay = self.rng.choose_multiple(stay, to);
        self.recorder.note(format!("scale-down from {} to {to} by SIGTERM at once", self.fleet.len()));
        let before = std::mem::replace(&mut self.target, to);
        let lives: Vec<LifeId> = self.fleet.iter().map(|instance| instance.life).collect();
        for life in lives.into_iter().filter(|life| !stay.contains(life)) {
            self.leave(life);
        }
        self.after(3000..6000, Later::ScaleTo(before));
        true
    }

    fn blue_green(&mut self) -> bool {
        if self.fleet.len() < self.target || self.fleet.iter().any(|instance| !self.is_well(instance.life)) {
            return false;
        }
        self.recorder.note(format!("blue/green: {} new instances start", self.target));
        let old = self.fleet.iter().map(|instance| instance.life).collect();
        for _ in 0..self.target {
            self.start_new();
        }
        self.after(1000..2000, Later::Switch(old, 30));
        true
    }

    pub(crate) fn switch(&mut self, old: Vec<LifeId>, tries: usize) {
        let new = self.available().into_iter().filter(|life| !old.contains(life)).count();
        if new < self.target && tries > 0 {
            return self.after(500..501, Later::Switch(old, tries - 1));
        }
        self.recorder.note(format!("blue/green: SIGTERM to the {} old instances, {new} new ones are there", old.len()));
        for life in old {
            self.leave(life);
        }
    }

    /// Has an operator set something for an instance, and take it back later.
    fn operate(&mut self, fits: impl Fn(&Self, LifeId) -> bool, set: &[&str], back: &[&str]) -> bool {
        if self.available().len() < 3 {
            return false;
        }
        let chosen = self.choose(|director, life| {
            let truth = director.recorder.truth();
            let is_open =
                truth.overrides.get(&truth.lives[life].code).is_none_or(|set| set.last() == Some(Override::Open));
            drop(truth);
            let code = director.recorder.truth().lives[life].code.clone();
            // What is set has been taken back: a weight that is taken back ends no drain.
            is_open && !director.operated.contains(&code) && fits(director, life)
        });
        let Some(life) = chosen else { return false };
        let code = self.recorder.truth().lives[life].code.clone();
        let drains = set != ["weight", "5"];
        let then = if drains { Override::Drained } else { Override::Open };
        self.tasks.spawn(self.operator().command(&code, set, then, 1));
        let back = back.iter().copied().chain(["--force"]).map(str::to_owned).collect();
        self.operated.insert(code.clone());
        self.after(3500..8000, Later::TakeBack(code, back));
        true
    }

    pub(crate) fn take_back(&mut self, code: String, arguments: Vec<String>) {
        let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
        if self.operator().take_back(&code, &words, &mut self.tasks) {
            self.operated.remove(&code);
        } else {
            self.after(1000..1500, Later::TakeBack(code, arguments));
        }
    }

    pub(crate) fn operator(&self) -> Operator {
        Operator { recorder: self.recorder.clone(), registry: self.registry.clone(), service: "ress" }
    }

    fn kill_registry(&mut self, wipe: bool) -> bool {
        let Ok(mut zookeeper) = self.zookeeper.clone().try_lock_owned() else { return false };
        if !self.recorder.registry_serves_for(CALM) {
            return false;
        }
        self.recorder.registry(false, if wipe { "killed and wiped" } else { "killed" });
        zookeeper.kill();
        if wipe {
            zookeeper.wipe();
        }
        drop(zookeeper);
        self.after(10..5000, Later::StartRegistry { was_wiped: wipe });
        true
    }

    pub(crate) fn start_registry(&mut self, was_wiped: bool) {
        let (zookeeper, recorder) = (Arc::clone(&self.zookeeper), self.recorder.clone());
        self.tasks.spawn(async move {
            zookeeper.lock().await.restart().await;
            if was_wiped {
                recorder.note("registry: there again, but takes nobody back who has seen more".to_owned());
                // A server refuses clients that have seen higher numbers than its own; they begin anew when their client gives the
                // session up, after 7/5 of its timeout.
                tokio::time::sleep(SESSION * 7 / 5).await;
            }
            recorder.registry(true, "serves again");
        });
    }

    async fn pause_registry(&mut self) -> bool {
        if !self.recorder.registry_serves_for(CALM) {
            return false;
        }
        self.recorder.registry(false, "SIGSTOP");
        self.zookeeper.lock().await.pause();
        self.after(500..6000, Later::ResumeRegistry);
        true
    }

    pub(crate) async fn resume_registry(&mut self) {
        self.zookeeper.lock().await.resume();
        self.recorder.registry(true, "SIGCONT");
    }

    fn reload(&mut self) -> bool {
        let number = self.rng.usize(..self.serves.len());
        let Ok(mut serve) = self.serves[number].try_lock() else { return false };
        serve.reload();
        true
    }

    /// Only while the registry serves: the next process would not become ready otherwise.
    fn hand_over(&mut self) -> bool {
        let serves = self.recorder.registry_serves_for(SETTLE);
        let Ok(mut serve) = self.serves[HANDED_OVER].clone().try_lock_owned() else { return false };
        if !serves || self.recorder.truth().serves[HANDED_OVER].last() != Some(true) {
            return false;
        }
        self.tasks.spawn(async move { serve.hand_over().await });
        true
    }

    async fn kill_serve(&mut self) -> bool {
        let number = if self.rng.bool() { AGENT } else { HANDED_OVER };
        let up = {
            let truth = self.recorder.truth();
            truth.serves[number].last() == Some(true)
        };
        let up = up && self.recorder.registry_serves_for(SETTLE);
        let Ok(mut serve) = self.serves[number].try_lock() else { return false };
        if !up {
            return false;
        }
        serve.kill().await;
        drop(serve);
        self.after(100..1500, Later::RestartServe(number));
        true
    }
}
