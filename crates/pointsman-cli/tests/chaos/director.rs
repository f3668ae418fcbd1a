//! Decides by a seeded random source what happens when, and looks after the instances as a supervisor does.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pointsman_testkit::ZooKeeper;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::actions::{ACTIONS, Action};
use crate::history::Time;
use crate::instance::{Instance, Mode, Part};
use crate::origin::Order;
use crate::recorder::Recorder;
use crate::serves::{AGENT, Serve};
use crate::support::served::free_port;
use crate::truth::{LifeId, Origin};

/// Interval at which processes are looked after.
pub(crate) const TICK: Duration = Duration::from_millis(50);

/// Time within which everything is to be well again after the last action.
const RECOVERY: Duration = Duration::from_secs(20);

/// What follows an action after a while.
#[derive(Debug)]
pub(crate) enum Later {
    /// An instance starts again, with this code and port.
    Restart(String, u16),
    /// A registration starts beside an origin that has lost its own.
    RegisterAgain(LifeId),
    Resume(LifeId, Part),
    /// From a time on it has been running again: by now it is registered, whether or not it has reported so.
    Settle(LifeId, Time),
    /// What an operator has set for a code is taken back by these arguments.
    TakeBack(String, Vec<String>),
    StartRegistry {
        was_wiped: bool,
    },
    ResumeRegistry,
    RestartServe(usize),
    /// The fleet has this many instances again.
    ScaleTo(usize),
    /// These leave as soon as the others are registered.
    Switch(Vec<LifeId>, usize),
}

/// Chooses one by chance, by its weight relative to the others'.
pub(crate) fn draw<T: Copy>(rng: &mut fastrand::Rng, weighted: &[(T, u32)]) -> T {
    let total: u32 = weighted.iter().map(|(_, weight)| weight).sum();
    let mut ticket = rng.u32(..total);
    let drawn = weighted.iter().find(|(_, weight)| {
        let found = ticket < *weight;
        ticket = ticket.saturating_sub(*weight);
        found
    });
    drawn.expect("a ticket below the total").0
}

/// All processes, and what is to happen to them.
pub(crate) struct Director {
    pub(crate) rng: fastrand::Rng,
    pub(crate) recorder: Recorder,
    pub(crate) registry: String,
    /// Where new instances register: the registry itself, or an agent.
    pub(crate) register_at: String,
    /// The port of the agent.
    pub(crate) agent: u16,
    /// How new instances are started; by chance if `None`.
    pub(crate) mode: Option<Mode>,
    pub(crate) zookeeper: Arc<Mutex<ZooKeeper>>,
    pub(crate) serves: Vec<Arc<Mutex<Serve>>>,
    pub(crate) fleet: Vec<Instance>,
    /// How many instances there are to be.
    pub(crate) target: usize,
    /// What runs beside: an instance that leaves, a command, a registry that starts.
    pub(crate) tasks: JoinSet<()>,
    pub(crate) counts: BTreeMap<String, usize>,
    /// The codes of instances for which something is set that is still to be taken back.
    pub(crate) operated: HashSet<String>,
    /// Every origin that has been started, for its journal.
    pub(crate) orders: Vec<Order>,
    later: Vec<(Time, Later)>,
    folder: PathBuf,
}

impl Director {
    pub(crate) fn new(
        rng: fastrand::Rng,
        recorder: &Recorder,
        registry: &str,
        zookeeper: ZooKeeper,
        serves: Vec<Serve>,
        folder: &Path,
    ) -> Self {
        let agent = serves[AGENT].agent.expect("an agent");
        let serves = serves.into_iter().map(|serve| Arc::new(Mutex::new(serve))).collect();
        Self {
            rng,
            recorder: recorder.clone(),
            registry: registry.to_owned(),
            register_at: registry.to_owned(),
            agent,
            mode: None,
            zookeeper: Arc::new(Mutex::new(zookeeper)),
            serves,
            fleet: Vec::new(),
            target: 0,
            tasks: JoinSet::new(),
            counts: BTreeMap::new(),
            operated: HashSet::new(),
            orders: Vec::new(),
            later: Vec::new(),
            folder: folder.to_owned(),
        }
    }

    /// Starts as many instances, and waits until all are registered.
    pub(crate) async fn fill(&mut self, target: usize) {
        self.target = target;
        while self.fleet.len() < target {
            self.start_new();
        }
        self.until_recovered().await;
    }

    /// Lets things happen for this time, and then waits until all is well again.
    pub(crate) async fn run(&mut self, length: Duration) {
        let end = self.recorder.now() + length;
        let mut next = self.recorder.now() + Duration::from_secs(1);
        while self.recorder.now() < end {
            self.look_after().await;
            if self.recorder.now() >= next {
                self.act().await;
                next = self.recorder.now() + self.pause();
            }
            sleep(TICK).await;
        }
        self.recorder.note("the last action is over");
        self.until_recovered().await;
    }

    /// Ends every process.
    pub(crate) async fn end(mut self) {
        while let Some(task) = self.tasks.join_next().await {
            task.expect("a task that does not panic");
        }
        self.fleet.clear();
        for serve in self.serves {
            Arc::into_inner(serve).expect("a process that nothing uses").into_inner().end().await;
        }
    }

    /// A few actions a second, and quiet times.
    fn pause(&mut self) -> Duration {
        let range = if self.rng.u8(..8) == 0 { 3000..5000 } else { 100..1200 };
        Duration::from_millis(self.rng.u64(range))
    }

    /// Carries out one action that is possible now.
    async fn act(&mut self) {
        for _ in 0..50 {
            let action = draw(&mut self.rng, ACTIONS);
            if self.perform(action).await {
                self.count(action);
                return;
            }
        }
    }

    fn count(&mut self, action: Action) {
        *self.counts.entry(action.name()).or_default() += 1;
    }

    pub(crate) fn after(&mut self, milliseconds: std::ops::Range<u64>, what: Later) {
        let at = self.recorder.now() + Duration::from_millis(self.rng.u64(milliseconds));
        self.later.push((at, what));
    }

    /// Carries out what is due, starts what has ended by itself, and what is missing.
    pub(crate) async fn look_after(&mut self) {
        let now = self.recorder.now();
        while let Some(due) = self.later.iter().position(|(at, _)| *at <= now) {
            let (_, what) = self.later.swap_remove(due);
            self.follow_up(what).await;
        }
        let ended: Vec<LifeId> = self
            .fleet
            .iter_mut()
            .filter_map(|instance| instance.registration_has_ended().then_some(instance.life))
            .collect();
        for life in ended {
            let instance = self.fleet.iter().find(|instance| instance.life == life).expect("it is in the fleet");
            if instance.mode == Mode::Beside {
                self.after(300..800, Later::RegisterAgain(life));
            } else {
                let gone = self.take(life).expect("it is in the fleet");
                self.after(300..800, Later::Restart(gone.order.code.clone(), gone.order.port));
            }
        }
        let starting = self.later.iter().filter(|(_, what)| matches!(what, Later::Restart(..))).count();
        if self.fleet.len() + starting < self.target {
            self.start_new();
        }
        while let Some(task) = self.tasks.try_join_next() {
            task.expect("a task that does not panic");
        }
    }

    async fn follow_up(&mut self, what: Later) {
        match what {
            Later::Restart(code, port) => self.start(code, port),
            Later::RegisterAgain(life) => {
                if let Some(instance) = self.fleet.iter_mut().find(|instance| instance.life == life) {
                    instance.register_again();
                }
            }
            Later::Resume(life, part) => self.resume(life, part),
            Later::Settle(life, since) => self.settle(life, since),
            Later::TakeBack(code, arguments) => self.take_back(code, arguments),
            Later::StartRegistry { was_wiped } => self.start_registry(was_wiped),
            Later::ResumeRegistry => self.resume_registry().await,
            Later::RestartServe(number) => {
                let serve = self.serves[number].clone();
                self.tasks.spawn(async move { serve.lock().await.start_again().await });
            }
            Later::ScaleTo(target) => {
                self.recorder.note(format!("the fleet grows to {target}"));
                self.target = target;
            }
            Later::Switch(old, tries) => self.switch(old, tries),
        }
    }

    pub(crate) fn resume(&mut self, life: LifeId, part: Part) {
        let Some(instance) = self.fleet.iter().find(|instance| instance.life == life) else { return };
        instance.resume(part);
        if part != Part::Origin {
            let now = self.recorder.now();
            self.after(3000..3001, Later::Settle(life, now));
        }
    }

    fn settle(&mut self, life: LifeId, since: Time) {
        if !self.recorder.settle(life, since) {
            self.after(500..501, Later::Settle(life, since));
        }
    }

    pub(crate) fn take(&mut self, life: LifeId) -> Option<Instance> {
        let index = self.fleet.iter().position(|instance| instance.life == life)?;
        Some(self.fleet.swap_remove(index))
    }

    /// An instance with a code of its own.
    pub(crate) fn start_new(&mut self) {
        let code = format!("i{}", self.orders.len());
        self.start(code, free_port());
    }

    /// Starts an instance, as soon as none of its code runs any more, nor any at its port.
    fn start(&mut self, code: String, port: u16) {
        let runs = {
            let truth = self.recorder.truth();
            let mut others = truth.lives.iter().filter(|life| life.code == code || life.port == port);
            others.any(|life| life.states.last().is_some_and(|state| state.origin != Origin::Down))
        };
        if runs {
            return self.after(300..301, Later::Restart(code, port));
        }
        let journal = self.folder.join(format!("origin-{}", self.orders.len()));
        let order = Order { code, port, journal };
        self.orders.push(order.clone());
        let by_chance = if self.rng.bool() { Mode::Beside } else { Mode::Around };
        let mode = self.mode.unwrap_or(by_chance);
        self.fleet.push(Instance::start(order, mode, &self.register_at, &self.recorder));
    }

    pub(crate) fn is_well(&self, life: LifeId) -> bool {
        self.recorder.is_well(life)
    }

    async fn until_recovered(&mut self) {
        let start = self.recorder.now();
        while self.recorder.now() < start + RECOVERY {
            self.look_after().await;
            let well = self.fleet.iter().filter(|instance| self.is_well(instance.life)).count();
            if self.later.is_empty() && self.tasks.is_empty() && well >= self.target && self.fleet.len() >= self.target
            {
                return;
            }
            sleep(TICK).await;
        }
        self.recorder.unrecovered();
    }
}
