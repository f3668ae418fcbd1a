//! A long run of the relay: numbered messages of QoS 1, while relays, both brokers and services are killed or upgraded, with the defaults.
//!
//! Each message that a broker has acknowledged to its sender is to arrive at a service, or to become a dead letter. `cargo xtask soak mqtt`
//! runs it with as many messages and faults as `SOAK_MESSAGES` and `SOAK_FAULTS` say.

use std::collections::HashSet;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Instant;

use futures_util::future::join_all;
use pointsman::mqtt::{Reply, Request, Service};
use pointsman::{Instance, Registry, Snapshot};
use pointsman_testkit::{CuttingProxy, Mosquitto, Paho, PahoMessage, PahoOptions, ZooKeeper, unique_prefix};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::sync::{RwLock, watch};
use tokio::time::{Duration, timeout};

use crate::support::served::logged;
use crate::support::{DEADLINE, Running, command};

/// Where the process of a service finds what it is to be.
const VARIABLE: &str = "SOAK_SERVICE";
/// Messages that are published at a time.
const PORTION: usize = 100;

fn number_of(variable: &str, short: usize) -> usize {
    std::env::var(variable).ok().and_then(|count| count.parse().ok()).unwrap_or(short)
}

/// What there is, each part of it killed now and then.
struct World {
    registry: String,
    ingress: Mosquitto,
    egress: Mosquitto,
    /// Between the relays and the brokers of services.
    way: CuttingProxy,
    relays: Vec<Option<Running>>,
    services: Vec<Option<Child>>,
    folder: tempfile::TempDir,
}

#[derive(Debug, Clone, Copy)]
enum Fault {
    KillRelay(usize),
    UpgradeRelay(usize),
    KillIngress,
    KillEgress,
    KillService(usize),
}

impl World {
    async fn start(relays: usize) -> Self {
        let zookeeper = ZooKeeper::shared().await.address();
        let registry = format!("zookeeper://{zookeeper}/{}?session_timeout=2s", unique_prefix());
        let options = || Mosquitto::options().nodelay().persistence();
        let (ingress, egress) = (options().start().await, options().start().await);
        let way = CuttingProxy::start(egress.socket_address());
        let folder = tempfile::tempdir().unwrap();
        let mut world = Self { registry, ingress, egress, way, relays: Vec::new(), services: Vec::new(), folder };
        for number in 0..2 {
            world.services.push(Some(world.service(number)));
        }
        for _ in 0..relays {
            let relay = world.relay().await;
            world.relays.push(Some(relay));
        }
        world
    }

    /// A relay with the defaults: it is told where the registry and the brokers are, and what goes where.
    async fn relay(&self) -> Running {
        let settings = [
            format!("registry={}", self.registry),
            format!("mqtt.ingress={}", self.ingress.url()),
            format!("mqtt.egress=mqtt://{}", self.way.address()),
            "mqtt.register_as=mqtt-balancer".to_owned(),
            "mqtt.route.0.match=^/jobs(/|$)".to_owned(),
            "mqtt.route.0.service=jobs".to_owned(),
        ];
        let arguments = settings.iter().flat_map(|setting| ["--set", setting]);
        let mut relay = Running::start_with_stderr(command(["serve"].into_iter().chain(arguments)));
        logged(&mut relay, " ready").await;
        relay.ignore_notes();
        relay
    }

    fn journal(&self, number: usize) -> PathBuf {
        self.folder.path().join(format!("service-{number}"))
    }

    /// This very program again, as a service that writes each message into its journal before it is acknowledged.
    fn service(&self, number: usize) -> Child {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["mqtt::service_in_a_process_of_its_own", "--exact", "--ignored", "--nocapture"]);
        let journal = self.journal(number);
        command.env(VARIABLE, format!("svc-{number} {} {} {}", self.registry, self.egress.url(), journal.display()));
        command.stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true).spawn().unwrap()
    }

    async fn happen(&mut self, fault: Fault) {
        match fault {
            Fault::KillRelay(number) => {
                let relay = self.relays[number].take().unwrap();
                relay.signal(Signal::KILL);
                relay.ended().await;
                self.relays[number] = Some(self.relay().await);
            }
            Fault::UpgradeRelay(number) => {
                let relay = self.relays[number].take().unwrap();
                relay.signal(Signal::TERM);
                relay.ended().await;
                self.relays[number] = Some(self.relay().await);
            }
            // Mosquitto forgets shared subscriptions, so that relays are alone when it is killed. What it has acknowledged is on the disk, as a broker has to see to that keeps its promises.
            Fault::KillIngress => {
                self.alone().await;
                self.ingress.save().await;
                self.ingress.restart().await;
            }
            Fault::KillEgress => {
                // What it acknowledges from here on reaches nobody.
                self.way.cut();
                self.egress.save().await;
                self.egress.restart().await;
                self.way.mend();
            }
            Fault::KillService(number) => {
                let mut service = self.services[number].take().unwrap();
                let pid = i32::try_from(service.id().unwrap()).unwrap();
                kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
                service.wait().await.unwrap();
                self.services[number] = Some(self.service(number));
            }
        }
    }

    /// Waits until the relay is alone, and knows it.
    async fn alone(&self) {
        let registry = Registry::connect(&self.registry).await.unwrap();
        let group = registry.discover("mqtt-balancer").await.unwrap();
        let is_alone = |group: &Snapshot| {
            let mut there = group.instances().iter().filter(|relay| !relay.is_guarded());
            let relay = there.next();
            there.next().is_none()
                && relay.is_some_and(|relay| relay.tags.get("subscribed").is_some_and(|how| how == "alone"))
        };
        timeout(DEADLINE, group.wait_for(is_alone)).await.expect("a relay that is alone").unwrap();
    }

    /// The numbers that have arrived.
    fn arrived(&self) -> HashSet<usize> {
        let journals = (0..self.services.len()).filter_map(|number| std::fs::read_to_string(self.journal(number)).ok());
        let whole = journals.map(|text| text.rsplit_once('\n').map(|(whole, _)| whole.to_owned()).unwrap_or_default());
        whole.flat_map(|text| text.lines().map(|line| line.parse().unwrap()).collect::<Vec<_>>()).collect()
    }
}

/// Publishes until there is nothing left; holds still while a broker is being killed, whose last word would be lost with it.
async fn publish(sender: &Paho, messages: usize, published: &watch::Sender<usize>, still: &RwLock<()>) {
    for first in (0..messages).step_by(PORTION) {
        let _going = still.read().await;
        let portion = (first..messages.min(first + PORTION)).map(|number| {
            sender.publish(PahoMessage::new(&format!("/jobs/{}", number % 7), number.to_string()).qos(1))
        });
        join_all(portion).await;
        published.send_replace(messages.min(first + PORTION));
    }
}

async fn run(relays: usize, messages: usize, faults: usize) {
    let mut world = World::start(relays).await;
    let letters = Paho::start().await;
    let lasting = |address: &str| PahoOptions::new(address).clean(false).session_expiry(DEADLINE * 30).reconnect();
    letters.connect(lasting(&world.ingress.address())).await;
    letters.subscribe("pointsman/dead-letter/#", 1).await;
    let sender = Paho::start().await;
    sender.connect(lasting(&world.ingress.address())).await;
    let (published, still) = (watch::Sender::new(0), RwLock::new(()));
    let start = Instant::now();
    let seed = fastrand::u64(..1_000_000);
    let mut dice = fastrand::Rng::with_seed(seed);
    println!("mqtt, {relays} relays, seed {seed}");
    tokio::join!(publish(&sender, messages, &published, &still), async {
        let mut progress = published.subscribe();
        for count in 0..faults {
            // Spread over the messages.
            let from = (count + 1) * messages / (faults + 2);
            progress.wait_for(|count| *count >= from).await.unwrap();
            let fault = match dice.u8(..6) {
                0 | 1 => Fault::KillRelay(dice.usize(..relays)),
                2 => Fault::UpgradeRelay(dice.usize(..relays)),
                3 => Fault::KillIngress,
                4 => Fault::KillEgress,
                _ => Fault::KillService(dice.usize(..2)),
            };
            let _still = match fault {
                Fault::KillIngress | Fault::KillEgress => Some(still.write().await),
                _ => None,
            };
            println!("{} published: {fault:?}", *progress.borrow());
            world.happen(fault).await;
        }
    });
    let mut found = world.arrived();
    let mut dead = 0;
    let all_found = async {
        while found.len() < messages {
            if let Some(letter) = letters.try_next_message(Duration::from_millis(100)).await {
                dead += usize::from(found.insert(letter.text().parse().unwrap()));
            }
            found.extend(world.arrived());
        }
    };
    let _ = timeout(DEADLINE * 3, all_found).await;
    let missing: Vec<usize> = (0..messages).filter(|number| !found.contains(number)).collect();
    println!(
        "mqtt, {relays} relays: {messages} messages acknowledged, {faults} faults, {dead} only as dead letters, {} lost, {:.0} s",
        missing.len(),
        start.elapsed().as_secs_f64()
    );
    assert_eq!(missing, Vec::<usize>::new(), "lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_acknowledged_message_is_lost_by_a_relay() {
    run(1, number_of("SOAK_MESSAGES", 4000), number_of("SOAK_FAULTS", 12)).await;
}

/// No test: a service behind the broker.
#[tokio::test]
#[ignore = "a service in a process of its own"]
async fn service_in_a_process_of_its_own() {
    let Ok(told) = std::env::var(VARIABLE) else { return };
    let words: Vec<&str> = told.splitn(4, ' ').collect();
    let registry = Registry::connect(words[1]).await.unwrap();
    let journal = Arc::new(File::options().create(true).append(true).open(Path::new(words[3])).unwrap());
    let service = Service::builder(&registry, Instance::new("jobs").code(words[0])).broker(words[2].parse().unwrap());
    let service = service.on("/jobs/#", move |request: Request| {
        let journal = journal.clone();
        async move {
            let line = format!("{}\n", String::from_utf8_lossy(request.payload()));
            (&*journal).write_all(line.as_bytes())?;
            Ok(Reply::new(""))
        }
    });
    let _service = service.start().await.unwrap();
    std::future::pending::<()>().await;
}
