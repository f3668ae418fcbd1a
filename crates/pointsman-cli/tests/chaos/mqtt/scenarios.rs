//! Named changes under load, one after another in one world of ten services.

use std::time::Duration;

use zookeeper_client::Client;

use super::broker::Setup;
use super::judge::WINDOW;
use super::report::Span;
use super::service::SERVICE;
use super::world::World;
use super::{conclude, start_load};
use crate::history::History;
use crate::report::Report;
use crate::truth::{LifeId, Override};

const SERVICES: usize = 10;

/// Time for which the load goes on after a change.
const AFTERWARDS: Duration = Duration::from_secs(1);

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scenario {
    /// All but this many leave at once, by SIGTERM, the master among them.
    ScaleDownTo(usize),
    /// Five new ones start beside five old ones, which then leave.
    BlueGreen,
    /// Nine are killed at once, the master among them.
    KillNineOfTen,
    /// The registry is killed and starts again, with its data.
    RegistryRestarts,
    /// The registry is killed and starts again, without its data.
    RegistryIsWiped,
    /// The next in line is drained, and then the master leaves.
    HeirIsDrained,
    /// The master resigns, time and again.
    ResignEverySecond,
    /// The master is drained, and the drain taken back as soon as another is master; time and again.
    DrainEveryMaster,
}

impl Scenario {
    /// Whether nothing may fail.
    fn is_planned(self) -> bool {
        self != Self::KillNineOfTen
    }
}

/// Runs one scenario after another.
pub(crate) async fn run_all(scenarios: &[Scenario], seed: u64, setup: Setup) -> Report {
    let mut world = World::start(fastrand::Rng::with_seed(seed), setup, SERVICES).await;
    let load = start_load(&world).await;
    world.pass(AFTERWARDS).await;
    let mut spans = Vec::new();
    for scenario in scenarios {
        let (name, start) = (format!("{scenario:?}"), world.recorder.now());
        world.recorder.note(format!("scenario: {name}"));
        world.play(*scenario).await;
        world.pass(AFTERWARDS).await;
        let end = world.recorder.now();
        spans.push(Span { name, is_planned: scenario.is_planned(), start, end });
        world.fill().await;
    }
    conclude(world, load, spans).await
}

impl World {
    async fn play(&mut self, scenario: Scenario) {
        match scenario {
            Scenario::ScaleDownTo(count) => self.scale_down_to(count).await,
            Scenario::BlueGreen => self.blue_green().await,
            Scenario::KillNineOfTen => self.kill_nine_of_ten().await,
            Scenario::RegistryRestarts => self.restart_registry(false).await,
            Scenario::RegistryIsWiped => self.restart_registry(true).await,
            Scenario::HeirIsDrained => self.drain_the_heir().await,
            Scenario::ResignEverySecond => self.resign_every_second().await,
            Scenario::DrainEveryMaster => self.drain_every_master().await,
        }
    }

    /// Looks after everything for this time, while the load goes on.
    async fn pass(&mut self, time: Duration) {
        self.while_serving(tokio::time::sleep(time)).await;
    }

    /// Starts services with codes of their own until there are ten again.
    async fn fill(&mut self) {
        let killed: Vec<String> =
            self.fleet.iter().filter(|member| member.child.is_none()).map(|member| member.code.clone()).collect();
        // What was dealt to a service that was killed waits for it.
        for code in killed {
            self.start_service(code);
        }
        self.target = SERVICES;
        for _ in self.fleet.len()..SERVICES {
            self.start_another();
        }
        self.until("ten services are well", World::is_well).await;
    }

    fn start_another(&mut self) {
        let number = self.recorder.truth().lives.len();
        self.start_service(format!("s{number}"));
    }

    async fn known_master(&mut self) -> LifeId {
        self.until("a master", |world| world.master().is_some()).await;
        self.master().expect("a master")
    }

    async fn scale_down_to(&mut self, count: usize) {
        let master = self.known_master().await;
        let others: Vec<LifeId> = self.well().into_iter().filter(|life| *life != master).collect();
        let stay = self.rng.choose_multiple(others, count);
        let leaving: Vec<LifeId> = self.well().into_iter().filter(|life| !stay.contains(life)).collect();
        self.target = count;
        for life in leaving {
            self.leave(life, false);
        }
        self.until("the others have left", World::is_well).await;
    }

    async fn blue_green(&mut self) {
        self.scale_down_to(SERVICES / 2).await;
        let blue = self.well();
        self.target = SERVICES;
        for _ in blue.len()..SERVICES {
            self.start_another();
        }
        self.until("blue and green are well", World::is_well).await;
        self.target = SERVICES - blue.len();
        for life in blue {
            self.leave(life, false);
        }
        self.until("blue has left", World::is_well).await;
    }

    async fn kill_nine_of_ten(&mut self) {
        let master = self.known_master().await;
        let others: Vec<LifeId> = self.well().into_iter().filter(|life| *life != master).collect();
        let stays = self.rng.choice(others);
        let start = self.recorder.now();
        for life in self.well().into_iter().filter(|life| Some(*life) != stays) {
            self.kill(life).await;
        }
        self.until("the one that is left is master", |world| world.master() == stays).await;
        // Nobody comes back before a request has been without an answer for too long.
        self.pass((start + WINDOW).saturating_sub(self.recorder.now())).await;
    }

    async fn restart_registry(&mut self, wipe: bool) {
        self.kill_registry(wipe, 1000..1001);
        self.until("the registry serves again", |world| world.recorder.registry_serves_for(AFTERWARDS)).await;
        self.until("all are registered again", World::is_well).await;
    }

    async fn drain_the_heir(&mut self) {
        let master = self.known_master().await;
        let heir = self.next_in_line().await;
        self.drain(&heir, &["drain"]);
        self.until("the next in line is drained", |world| world.tasks.is_empty()).await;
        let set = self.recorder.truth().overrides.get(&heir).and_then(History::last);
        assert_eq!(set, Some(Override::Drained), "{heir} is drained");
        self.target -= 1;
        self.leave(master, false);
        self.until("another master", |world| world.master().is_some_and(|next| next != master)).await;
        self.pass(AFTERWARDS).await;
        let master = self.known_master().await;
        assert_ne!(self.recorder.truth().lives[master].code, heir, "the drained instance was passed over");
        self.take_back(heir, &["undrain"]);
        self.until("all is well", World::is_well).await;
    }

    /// Reads from the registry who becomes master after the one that is.
    async fn next_in_line(&self) -> String {
        let client = Client::connect(&self.zookeeper.address()).await.unwrap();
        let folder = format!("{}/{SERVICE}", self.prefix);
        let mut names = client.list_children(&folder).await.unwrap();
        names.retain(|name| name.starts_with("normal"));
        let first = names.iter().min().expect("a normal instance");
        let (data, _) = client.get_data(&format!("{folder}/{first}")).await.unwrap();
        let data = String::from_utf8_lossy(&data).into_owned();
        let is_it = |code: &&String| data.contains(&format!("\"{code}\""));
        self.fleet.iter().map(|member| &member.code).find(is_it).expect("the code of a service").clone()
    }

    async fn resign_every_second(&mut self) {
        for _ in 0..5 {
            let start = self.recorder.now();
            let master = self.known_master().await;
            self.resign(master);
            self.until("another master", |world| world.master().is_some_and(|next| next != master)).await;
            self.pass((start + Duration::from_secs(1)).saturating_sub(self.recorder.now())).await;
        }
    }

    async fn drain_every_master(&mut self) {
        for _ in 0..4 {
            let master = self.known_master().await;
            let code = self.recorder.truth().lives[master].code.clone();
            self.drain(&code, &["drain"]);
            self.until("another master", |world| world.master().is_some_and(|next| next != master)).await;
            self.until("the command has ended", |world| world.tasks.is_empty()).await;
            self.take_back(code, &["undrain"]);
            self.until("the drain is taken back", World::is_well).await;
        }
    }
}
