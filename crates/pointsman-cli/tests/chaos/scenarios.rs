//! Scenarios with a name: what a fleet goes through on a usual or a very bad day, under load, step by step.
//!
//! The judge's rules hold as everywhere. In a step in which nothing is killed that answers requests ([`Step::Unbroken`]) no failure at all
//! is excused.

mod scene;

use std::time::Duration;

use self::scene::{Scene, Step};
use crate::SESSION;
use crate::instance::Mode;
use crate::truth::{LifeId, SETTLE};

/// The size of a fleet before something happens to it.
const FLEET: usize = 10;

/// Time for which the load goes on after the events of a step.
const AFTERWARDS: Duration = Duration::from_secs(1);

/// Time between two instances that leave in turn.
const IN_TURN: Duration = Duration::from_millis(200);

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn clients_do_not_notice_instances_that_leave() {
    let mut scene = Scene::begin(&[FLEET]).await;
    for (to, pause) in [(3, Duration::ZERO), (1, Duration::ZERO), (3, IN_TURN), (1, IN_TURN)] {
        let how = if pause.is_zero() { "all at once" } else { "one after the other" };
        scene.step(format!("scale-down from {FLEET} to {to} by SIGTERM, {how}"), Step::Unbroken);
        let leaving = scene.choose(FLEET - to);
        scene.director().leave_in_turn(&leaving, pause).await;
        scene.are_gone(&leaving).await;
        scene.fill(FLEET).await;
    }
    scene.step("blue/green: ten join, then the ten before leave", Step::Unbroken);
    blue_green(&mut scene).await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_of_ten_that_is_left_serves_all_requests() {
    let mut scene = Scene::begin(&[FLEET]).await;
    scene.step("kill -9 of nine of ten, the master among them", Step::Broken);
    let master = scene.director().master();
    let survivor = scene.all_but(&[master])[0];
    kill_all_but(&mut scene, survivor).await;

    scene.fill(FLEET).await;
    scene.step("kill -9 of nine of ten, the master is left", Step::Broken);
    let survivor = scene.director().master();
    kill_all_but(&mut scene, survivor).await;

    scene.fill(FLEET).await;
    scene.step("the sessions of nine of ten expire while their origins go on, the master's among them", Step::Unbroken);
    let master = scene.director().master();
    let survivor = scene.all_but(&[master])[0];
    let stopped = scene.all_but(&[survivor]);
    scene.director().stop_registrations(&stopped);
    scene.director().until_registered(1).await;
    scene.director().until_master_is_not(master).await;
    scene.director().go_on(AFTERWARDS).await;
    scene.director().resume_registrations(&stopped).await;
    scene.director().until_registered(FLEET).await;
    scene.director().go_on(AFTERWARDS).await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn drained_instances_get_nothing_whoever_leaves_and_whatever_is_lost() {
    // One after the other, so that the next in line is known.
    let mut scene = Scene::begin(&[1, 2, FLEET]).await;
    let master = scene.director().master();
    let heir = scene.all_but(&[master])[0];
    scene.step("the next in line is drained, then the master leaves", Step::Unbroken);
    scene.drain(heir).await;
    scene.director().leave_in_turn(&[master], Duration::ZERO).await;
    scene.director().until_master_is_not(master).await;
    scene.none_is_master(&[heir]);
    scene.director().go_on(AFTERWARDS).await;

    scene.step("the master is drained", Step::Unbroken);
    let master = scene.director().master();
    scene.drain(master).await;
    scene.director().until_master_is_not(master).await;
    scene.none_is_master(&[heir]);
    scene.director().go_on(AFTERWARDS).await;

    scene.step("the registry loses all its data", Step::Unbroken);
    scene.director().wipe_registry().await;
    scene.director().until_found_anew(FLEET - 1).await;
    scene.director().go_on(SETTLE + AFTERWARDS).await;
    scene.none_is_master(&[heir, master]);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn instances_of_an_agent_resign_and_are_deleted() {
    let mut scene = Scene::begin_at_the_agent(FLEET).await;
    scene.step("the master resigns every second for ten seconds", Step::Unbroken);
    for _ in 0..10 {
        let next = scene.now() + Duration::from_secs(1);
        scene.director().resign().await;
        let pause = next.saturating_sub(scene.now());
        scene.director().go_on(pause).await;
    }

    scene.step("blue/green: ten leases join, then the ten that hold a connection leave", Step::Unbroken);
    scene.director().mode = Some(Mode::Leased);
    blue_green(&mut scene).await;

    scene.step("nine of ten are deleted, the master among them", Step::Unbroken);
    let master = scene.director().master();
    let survivor = scene.all_but(&[master])[0];
    let deleted = scene.all_but(&[survivor]);
    scene.director().leave_in_turn(&deleted, Duration::ZERO).await;
    scene.are_gone(&deleted).await;
    scene.end().await;
}

/// As many new instances join, and when all are registered the old ones leave at once.
async fn blue_green(scene: &mut Scene) {
    let old = scene.director().well();
    scene.fill(2 * old.len()).await;
    scene.director().leave_in_turn(&old, Duration::ZERO).await;
    scene.are_gone(&old).await;
}

/// Kills all but one, and goes on until everybody must know.
async fn kill_all_but(scene: &mut Scene, survivor: LifeId) {
    let killed = scene.all_but(&[survivor]);
    // As long as the judge excuses what is sent to the dead, and some time more.
    let end = scene.now() + SESSION + 2 * SETTLE + AFTERWARDS;
    scene.director().kill_at_once(&killed).await;
    scene.director().until_registered(1).await;
    scene.director().until("the one that is left is master", async |director| director.master() == survivor).await;
    let rest = end.saturating_sub(scene.now());
    scene.director().go_on(rest).await;
}
