//! A registry with a fleet, an agent and two proxies, from the first process to the evidence.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use pointsman_testkit::{ZooKeeper, unique_prefix};
use tempfile::TempDir;

use crate::SESSION;
use crate::director::Director;
use crate::load::{Load, Targets};
use crate::origin::{Arrival, Order};
use crate::recorder::Recorder;
use crate::report::{Evidence, read_access_log};
use crate::serves::{AGENT, HANDED_OVER, Serve};

/// All processes but the clients, with what is known of them.
pub(crate) struct Run {
    pub(crate) director: Director,
    recorder: Recorder,
    targets: Targets,
    access_logs: Vec<PathBuf>,
    /// Removed when the run is dropped.
    _folder: TempDir,
}

impl Run {
    /// Starts the registry and the processes `serve`. The fleet is empty.
    pub(crate) async fn start(rng: &mut fastrand::Rng) -> Self {
        let (folder, zookeeper) = (tempfile::tempdir().unwrap(), ZooKeeper::start().await);
        let registry =
            format!("zookeeper://{}{}?session_timeout={}s", zookeeper.address(), unique_prefix(), SESSION.as_secs());
        let recorder = Recorder::new(SESSION, 2);
        recorder.registry(true, "serves");
        let mut serves = Vec::new();
        for number in [AGENT, HANDED_OVER] {
            serves.push(Serve::start(number, folder.path(), &registry, &recorder).await);
        }
        let targets =
            Targets { proxies: serves.iter().map(|serve| serve.port).collect(), agent: serves[AGENT].agent.unwrap() };
        let access_logs = serves.iter().map(Serve::access_log).collect();
        let director = Director::new(rng.fork(), &recorder, &registry, zookeeper, serves, folder.path());
        Self { director, recorder, targets, access_logs, _folder: folder }
    }

    /// Starts the clients.
    pub(crate) fn load(&self, rng: &mut fastrand::Rng) -> Load {
        Load::start(self.targets.clone(), self.recorder.clone(), rng)
    }

    /// Ends the clients and all processes, and collects what they have left.
    pub(crate) async fn end(mut self, load: Load) -> Evidence {
        let requests = load.end().await;
        let (orders, counts) = (std::mem::take(&mut self.director.orders), std::mem::take(&mut self.director.counts));
        self.director.end().await;
        let mut logged = HashMap::new();
        self.access_logs.iter().for_each(|path| read_access_log(path, &mut logged));
        let (truth, arrivals) = (self.recorder.truth().clone(), arrivals(&orders, &self.recorder));
        Evidence { truth, requests, logged, arrivals, counts, unbroken: Vec::new() }
    }
}

/// Everything that has arrived, by the id of the request.
fn arrivals(orders: &[Order], recorder: &Recorder) -> HashMap<String, Vec<(Duration, String, Arrival)>> {
    let mut arrivals = HashMap::<_, Vec<_>>::new();
    for order in orders {
        for arrival in order.arrivals() {
            let arrived = (recorder.time_of(arrival.at), order.code.clone(), arrival.clone());
            arrivals.entry(arrival.id).or_default().push(arrived);
        }
    }
    arrivals
}
