//! What can happen behind a broker.

use std::time::Duration;

use rustix::process::Signal;
use tokio::time::timeout;

use super::world::{Later, World, signal};
use crate::director::draw;
use crate::support::DEADLINE;
use crate::truth::{LifeId, Origin, Registration};

/// Time for which the registry serves at least, before something happens to it again.
const CALM: Duration = Duration::from_secs(6);

const UNDRAIN: &[&str] = &["undrain", "--force"];
const RESET_WEIGHT: &[&str] = &["weight", "--reset", "--force"];

/// What can happen to the services, by an operator, to the relays, and to the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    KillService,
    Leave,
    StopService,
    KillMaster,
    LeaveMaster,
    Resign,
    Drain,
    DrainMaster,
    WeightZero,
    KillRelay,
    LeaveRelay,
    KillRegistry,
    WipeRegistry,
    PauseRegistry,
}

/// All actions, with how often each is chosen relative to the others.
const ACTIONS: &[(Action, u32)] = &[
    (Action::KillService, 5),
    (Action::Leave, 5),
    (Action::StopService, 3),
    (Action::KillMaster, 2),
    (Action::LeaveMaster, 3),
    (Action::Resign, 4),
    (Action::Drain, 4),
    (Action::DrainMaster, 3),
    (Action::WeightZero, 3),
    (Action::KillRelay, 3),
    (Action::LeaveRelay, 3),
    (Action::KillRegistry, 1),
    (Action::WipeRegistry, 1),
    (Action::PauseRegistry, 1),
];

impl World {
    /// Carries out one action that is possible now.
    pub(super) async fn act(&mut self) {
        for _ in 0..20 {
            let action = draw(&mut self.rng, ACTIONS);
            if self.perform(action).await {
                *self.counts.entry(format!("{action:?}")).or_default() += 1;
                return;
            }
        }
    }

    /// Carries out an action. `false`: it is not possible now.
    async fn perform(&mut self, action: Action) -> bool {
        match action {
            Action::KillRelay | Action::LeaveRelay => return self.end_relay(action == Action::KillRelay).await,
            Action::KillRegistry | Action::WipeRegistry | Action::PauseRegistry => return self.break_registry(action),
            _ => {}
        }
        let master = self.master();
        let lives = match action {
            Action::KillMaster | Action::LeaveMaster | Action::DrainMaster | Action::Resign => {
                master.into_iter().collect()
            }
            _ => self.well(),
        };
        let enough = self.well().len() >= 3 && self.available().len() >= 3;
        let Some(life) = self.rng.choice(lives).filter(|_| enough) else { return false };
        let code = self.recorder.truth().lives[life].code.clone();
        match action {
            Action::Resign => self.resign(life),
            Action::Drain | Action::DrainMaster => return self.operate(&code, &["drain"], UNDRAIN),
            Action::WeightZero => return self.operate(&code, &["weight", "0"], RESET_WEIGHT),
            _ => {
                self.recorder.note(format!("{action:?}: {code}"));
                self.end_service(action, life, code).await;
            }
        }
        true
    }

    async fn end_service(&mut self, action: Action, life: LifeId, code: String) {
        match action {
            Action::KillService | Action::KillMaster => {
                self.kill(life).await;
                self.after(200..2500, Later::StartService(code));
            }
            Action::Leave | Action::LeaveMaster => self.leave(life, true),
            _ => {
                self.recorder.registration(life, Registration::Stopped);
                self.recorder.origin(life, Origin::Stopped);
                self.member(life).and_then(|member| member.child.as_ref()).into_iter().for_each(|child| {
                    signal(child, Signal::STOP);
                });
                self.after(300..6000, Later::ResumeService(life));
            }
        }
    }

    /// Has an operator drain a code, and take that back later.
    fn operate(&mut self, code: &str, words: &'static [&'static str], back: &'static [&'static str]) -> bool {
        // What is set has been taken back: a weight that is taken back ends no drain.
        if self.operated.contains(code) {
            return false;
        }
        self.drain(code, words);
        self.after(3500..8000, Later::TakeBack(code.to_owned(), back));
        true
    }

    fn break_registry(&mut self, action: Action) -> bool {
        if !self.recorder.registry_serves_for(CALM) {
            return false;
        }
        if action == Action::PauseRegistry {
            self.recorder.registry(false, "SIGSTOP");
            self.zookeeper.pause();
            self.after(500..5000, Later::ResumeRegistry);
        } else {
            self.kill_registry(action == Action::WipeRegistry, 10..3000);
        }
        true
    }

    async fn end_relay(&mut self, kill: bool) -> bool {
        let all_up = self.recorder.truth().serves.iter().all(|up| up.last() == Some(true));
        // The one that stays must have been found by the clients, and one that is started again find the registry.
        if !all_up || !self.recorder.registry_serves_for(CALM) {
            return false;
        }
        let number = self.rng.usize(..self.relays.len());
        let Some(mut child) = self.relays[number].take() else { return false };
        self.recorder.serve(number, false, if kill { "the relay is killed" } else { "the relay is told to leave" });
        if kill {
            let _ = child.kill().await;
        } else {
            signal(&child, Signal::TERM);
            let _ = timeout(DEADLINE, child.wait()).await;
        }
        self.after(100..1500, Later::StartRelay(number));
        true
    }
}
