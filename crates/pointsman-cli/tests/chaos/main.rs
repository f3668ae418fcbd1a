//! Chaos: real processes, random actions, and a checker that judges every failed request.
//!
//! A run starts ZooKeeper, a fleet of instances (an origin with `pointsman register` each), a process `serve` with an agent and a
//! proxy, and one with a proxy that is handed over. Clients ask all the time, while a director kills, stops, drains and restarts
//! whatever there is. What runs here with the other tests is the short form, always with the same seed;
//! `cargo xtask soak chaos --seed N --for T` runs the same for as long as wanted. The same seed makes the same decisions, as far
//! as the machine keeps the same pace. Beside these runs there are scenarios with a name ([`scenarios`]), in which the steps are given and the
//! load is the same.
//!
//! # Rules
//!
//! An instance is *available* for a request if, from the time that everybody must know until the end of the request, its
//! origin is up, its registration runs and has reported a role, and no operator has drained it or given it weight 0. *The time that
//! everybody must know* is the last at which the registry went on serving for [`SETTLE`](truth::SETTLE) before the request
//! began. An instance must be *unlisted* [`SETTLE`](truth::SETTLE) after it was told to leave, if the registry served until it had;
//! after any other end of its registration, or a stop, when the registry has served for the session timeout without a break, and two
//! of these later.
//!
//! A failed request is a 4xx or a 5xx, a refused or broken connection, or no answer in time.
//!
//! | request | is unavoidable if |
//! |---|---|
//! | any | the process `serve` that it asked was killed, or not ready yet, meanwhile |
//! | any | no instance was available throughout; this holds for the whole request, whatever it may wait for |
//! | any | the registry was away for longer than a session lasts, until less than [`SETTLE`](truth::SETTLE) before its end, and fewer instances were registered than are guarded (5) |
//! | for the master | one who was master, for all that could be known, was down or stopped meanwhile, and may still have been listed, or was unlisted less than [`ELECTION`](truth::ELECTION) ago; but not if it had left well: then the next in line is master at once |
//! | for the master | the registry went away after the last known master was drained, or its registration was killed or stopped: it may have gone before the next one was elected |
//! | for the master | the registry came back less than [`ELECTION`](truth::ELECTION) before, or meanwhile: sessions may have expired, and ghosts and drained instances be first in line |
//! | POST by a proxy | the instance it was sent to last was killed while it had it, or was stopped and may still have been listed |
//! | by a proxy, not for the master | it was tried as often as it may be, and more instances than that were dead or stopped when it began or ended, and may still have been listed: all its attempts may have met these |
//! | the agent's pick | the picked instance was down or stopped meanwhile, and may still have been listed when it was picked |
//!
//! Every other failure is avoidable, in particular:
//!
//! - a GET that has met dead or hanging instances only: while the registry serves, the director kills and stops no more at a time than
//!   a request has retries;
//! - any request while instances leave by SIGTERM: the registration ends first, and an origin goes on serving for a second;
//! - any request while the registry is away, is wiped or comes back.
//!
//! In a step of a scenario ([`scenarios`]) in which nothing is killed that answers requests, every failure is avoidable.
//!
//! Answered requests are faults as well if
//!
//! | request | is a fault if |
//! |---|---|
//! | any | its answer is that of another request |
//! | any | it was answered by an instance drained [`DRAIN`](truth::DRAIN) ago or longer, while the registry served, although another was available |
//! | for the master | it was answered by another instance, although the master had been master for long enough to be known; but not if that one was told to leave or killed so lately, also while it was only about to be registered, that it may have become master without the time to report it, because the last known master was told so too or the registry was away; and not within [`ELECTION`](truth::ELECTION) of its return |
//! | any, in a scenario | it has arrived at an instance that was drained long enough before it began; or the agent has picked one that it did not list any more; or a proxy has tried a second instance when all that left must have been unlisted |
//! | POST | it has arrived twice, and the process `serve` was not killed meanwhile |

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

#[path = "../support/mod.rs"]
mod support;

mod actions;
mod agent;
mod director;
mod history;
mod instance;
mod judge;
mod load;
mod mqtt;
mod operator;
mod origin;
mod recorder;
mod report;
mod request;
mod run;
mod scenarios;
mod script;
mod serves;
mod truth;

use std::time::Duration;

use crate::mqtt::{Scenario, Setup};
use crate::report::Report;
use crate::run::Run;

/// Timeout of every session with the registry.
const SESSION: Duration = Duration::from_secs(3);

/// The seed and the length of the short form.
const SHORT: (u64, Duration) = (1, Duration::from_secs(15));

/// One run at a time: each has a fleet of its own, and judges by the second.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_request_fails_that_could_have_been_answered() {
    let (seed, length) = asked_for();
    let _alone = ALONE.lock().await;
    check(&run(seed, length).await, seed, length);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_message_is_lost_that_could_have_been_taken() {
    let (seed, length) = asked_for();
    let _alone = ALONE.lock().await;
    check(&mqtt::run(seed, length).await, seed, length);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn messages_survive_scale_downs_and_blue_green() {
    check_scenarios(&[Scenario::ScaleDownTo(3), Scenario::ScaleDownTo(1), Scenario::BlueGreen], Setup::MOSQUITTO).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn messages_survive_every_planned_change_of_the_master() {
    check_scenarios(
        &[Scenario::HeirIsDrained, Scenario::ResignEverySecond, Scenario::DrainEveryMaster],
        Setup::EMBEDDED,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn messages_survive_lost_registries_and_nine_of_ten_services() {
    let scenarios = [Scenario::RegistryRestarts, Scenario::RegistryIsWiped, Scenario::KillNineOfTen];
    check_scenarios(&scenarios, Setup::MOSQUITTO).await;
}

/// Behind this broker; by an even seed behind the other one.
async fn check_scenarios(scenarios: &[Scenario], setup: Setup) {
    let (seed, _) = asked_for();
    let _alone = ALONE.lock().await;
    let setup = if seed.is_multiple_of(2) { setup.other() } else { setup };
    let report = mqtt::run_all(scenarios, seed, setup).await;
    println!("{}", report.text);
    assert!(report.answered > 0, "nothing was answered");
    assert_eq!(report.faults, 0, "avoidable failures, see above");
}

/// The seed and the length of a run.
fn asked_for() -> (u64, Duration) {
    let variable = |name: &str| std::env::var(name).ok();
    let seed = variable("CHAOS_SEED").map_or(SHORT.0, |seed| seed.parse().expect("CHAOS_SEED: a number"));
    let length = variable("CHAOS_FOR").map(|length| pointsman::parse_duration(&length).expect("CHAOS_FOR: a time"));
    (seed, length.unwrap_or(SHORT.1))
}

fn check(report: &Report, seed: u64, length: Duration) {
    println!("{}  again: cargo xtask soak chaos --seed {seed} --for {}s", report.text, length.as_secs());
    assert!(report.answered > 0, "nothing was answered");
    assert_eq!(report.faults, 0, "avoidable failures, see above");
}

/// A run from beginning to end.
async fn run(seed: u64, length: Duration) -> Report {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut run = Run::start(&mut rng).await;
    run.director.fill(rng.usize(5..=10)).await;
    let load = run.load(&mut rng);
    run.director.run(length).await;
    run.end(load).await.report()
}

/// No test: what an instance runs.
#[tokio::test]
#[ignore = "an origin in a process of its own"]
async fn origin() {
    origin::run().await;
}

/// No test: a service behind the broker.
#[tokio::test]
#[ignore = "a service in a process of its own"]
async fn service_behind_a_broker() {
    mqtt::run_service().await;
}
