//! One fleet under load, and what is to be said of each step that it goes through.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use tokio::sync::MutexGuard;

use super::AFTERWARDS;
use crate::director::Director;
use crate::history::Time;
use crate::load::Load;
use crate::report::{Evidence, Report, timeline};
use crate::request::{Request, Way};
use crate::run::Run;
use crate::truth::{DRAIN, LifeId, SETTLE};
use crate::{ALONE, SESSION};

/// Number of requests that must be answered in each step on each way: a fraction of those that are asked in two seconds.
const MEANINGFUL: usize = 5;

/// Number of ways to ask: normal route, master route and the agent's pick, each by GET and by POST.
const WAYS: usize = 6;

/// What is to be expected of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing is killed that answers requests: none may fail.
    Unbroken,
    /// Instances are killed: the judge knows which failures are unavoidable.
    Broken,
}

/// A fleet, its clients, and what is expected of both.
pub(super) struct Scene {
    run: Run,
    load: Load,
    rng: fastrand::Rng,
    steps: Vec<(Time, String, Step)>,
    /// From when on nothing more may arrive at the instances with these codes.
    silent: Vec<(Time, String)>,
    /// From when until when no proxy may have had to try a second instance.
    settled: Vec<(Time, Time)>,
    /// From when on the agent may not pick the instances with these codes.
    unlisted: Vec<(Time, String)>,
    _alone: MutexGuard<'static, ()>,
}

impl Scene {
    /// Starts a fleet that registers with the registry itself, and the load. The fleet grows to each of these sizes in turn: instances that
    /// start together register in any order.
    pub(super) async fn begin(sizes: &[usize]) -> Self {
        Self::begin_as(sizes, |_| {}).await
    }

    /// Starts a fleet that registers through the agent, and the load.
    pub(super) async fn begin_at_the_agent(size: usize) -> Self {
        let at_the_agent = |director: &mut Director| {
            director.register_at = format!("http://127.0.0.1:{}?ttl={}s", director.agent, SESSION.as_secs());
        };
        Self::begin_as(&[size], at_the_agent).await
    }

    async fn begin_as(sizes: &[usize], prepare: impl FnOnce(&mut Director)) -> Self {
        let alone = ALONE.lock().await;
        let mut rng = fastrand::Rng::with_seed(1);
        let mut run = Run::start(&mut rng).await;
        prepare(&mut run.director);
        for size in sizes {
            run.director.fill(*size).await;
        }
        run.director.until_there_is_a_master().await;
        run.director.go_on(SETTLE).await;
        Self {
            load: run.load(&mut rng),
            run,
            rng,
            steps: Vec::new(),
            silent: Vec::new(),
            settled: Vec::new(),
            unlisted: Vec::new(),
            _alone: alone,
        }
    }

    pub(super) fn now(&self) -> Time {
        self.run.director.recorder.now()
    }

    pub(super) fn director(&mut self) -> &mut Director {
        &mut self.run.director
    }

    /// Starts instances until there are this many, and waits until all are registered.
    pub(super) async fn fill(&mut self, fleet: usize) {
        self.run.director.fill(fleet).await;
        self.run.director.until_there_is_a_master().await;
    }

    /// Begins a step, and ends the one before.
    pub(super) fn step(&mut self, name: impl Into<String>, what: Step) {
        let name = name.into();
        self.run.director.recorder.note(format!("── {name}"));
        self.steps.push((self.now(), name, what));
    }

    /// Chooses this many of those that are registered.
    pub(super) fn choose(&mut self, count: usize) -> Vec<LifeId> {
        let well = self.run.director.well();
        self.rng.choose_multiple(well, count)
    }

    /// All that are registered but these.
    pub(super) fn all_but(&self, lives: &[LifeId]) -> Vec<LifeId> {
        self.run.director.well().into_iter().filter(|life| !lives.contains(life)).collect()
    }

    /// Drains an instance. When everybody must know, nothing more may arrive there, until the end.
    pub(super) async fn drain(&mut self, life: LifeId) {
        self.run.director.drain(life).await;
        let now = self.now();
        self.silent.push((now + DRAIN, self.run.director.code(life)));
        self.run.director.go_on(DRAIN).await;
    }

    /// Waits until instances that leave are not listed any more. From then on the agent may not pick them, and when everybody must
    /// know, no proxy may have to try a second instance.
    pub(super) async fn are_gone(&mut self, lives: &[LifeId]) {
        let all: Vec<LifeId> = self.run.director.fleet.iter().map(|instance| instance.life).collect();
        let stay: Vec<LifeId> = all.into_iter().filter(|life| !lives.contains(life)).collect();
        let codes = self.run.director.codes(&stay);
        self.run.director.until_listed(codes).await;
        let now = self.now();
        self.unlisted.extend(self.run.director.codes(lives).into_iter().map(|code| (now, code)));
        self.run.director.go_on(SETTLE + AFTERWARDS).await;
        self.settled.push((now + SETTLE, self.now()));
    }

    /// Ends all processes, prints what came of each step, and checks it.
    pub(super) async fn end(self) {
        let Self { run, load, steps, silent, settled, unlisted, .. } = self;
        let end = run.director.recorder.now();
        let ends = steps.iter().skip(1).map(|(start, ..)| *start).chain([end]);
        let steps: Vec<(Time, Time, &str, Step)> =
            steps.iter().zip(ends).map(|((start, name, what), end)| (*start, end, &**name, *what)).collect();
        let mut evidence = run.end(load).await;
        let unbroken = steps.iter().filter(|(.., what)| *what == Step::Unbroken);
        evidence.unbroken = unbroken.map(|(start, end, ..)| (*start, *end)).collect();
        let mut report = evidence.report();
        check_silence(&evidence, &silent, &mut report);
        check_picks(&evidence, &unlisted, &mut report);
        check_retries(&evidence, &settled, &mut report);
        let few = check_steps(&evidence, &steps, &mut report);
        println!("{}", report.text);
        assert_eq!(report.faults, 0, "avoidable failures, see above");
        assert!(few.is_empty(), "answered too few requests: {few:?}");
    }
}

/// Nothing arrives at a drained instance that has been asked after everybody must know.
fn check_silence(evidence: &Evidence, silent: &[(Time, String)], report: &mut Report) {
    for request in &evidence.requests {
        for (time, code, _) in evidence.arrivals.get(&request.id).into_iter().flatten() {
            if silent.iter().any(|(since, silent)| silent == code && *since <= request.start) {
                fault(evidence, report, request, &format!("has arrived at {code}, which is drained, at {time:?}"));
            }
        }
    }
}

fn check_picks(evidence: &Evidence, unlisted: &[(Time, String)], report: &mut Report) {
    for request in &evidence.requests {
        let Way::Agent { picked: Some((picked, _)), .. } = &request.way else { continue };
        if unlisted.iter().any(|(since, code)| code == picked && *since <= request.start) {
            fault(evidence, report, request, &format!("the agent has picked {picked}, which was not listed any more"));
        }
    }
}

fn check_retries(evidence: &Evidence, settled: &[(Time, Time)], report: &mut Report) {
    for request in &evidence.requests {
        let is_settled = settled.iter().any(|(from, to)| (*from..*to).contains(&request.start));
        let retries = evidence.logged.get(&request.id).map_or(0, |logged| logged.retries);
        if is_settled && retries > 0 {
            fault(evidence, report, request, "an instance was tried that could not answer, long after all have left");
        }
    }
}

fn fault(evidence: &Evidence, report: &mut Report, request: &Request, what: &str) {
    report.faults += 1;
    let _ = writeln!(report.text, "━━ {what}: {request:?}");
    timeline(&evidence.truth, &mut report.text, request.start, request.end, Duration::from_secs(5));
}

/// Counts what was answered in each step on each way, and returns those where it was too little.
fn check_steps(evidence: &Evidence, steps: &[(Time, Time, &str, Step)], report: &mut Report) -> Vec<String> {
    let mut few = Vec::new();
    for (from, to, name, _) in steps {
        let requests: Vec<&Request> =
            evidence.requests.iter().filter(|request| (*from..*to).contains(&request.start)).collect();
        let failed = requests.iter().filter(|request| !request.is_answered()).count();
        let mut ways = BTreeMap::<String, usize>::new();
        for request in requests.iter().filter(|request| request.is_answered()) {
            *ways.entry(way(request)).or_default() += 1;
        }
        let time = (*to - *from).as_secs_f64();
        let _ = writeln!(report.text, "── {name}: {} requests in {time:.1} s, {failed} failed", requests.len());
        for (way, count) in &ways {
            let _ = writeln!(report.text, "  {count:6} answered: {way}");
        }
        if ways.len() < WAYS || ways.values().any(|count| *count < MEANINGFUL) {
            few.push((*name).to_owned());
        }
    }
    few
}

fn way(request: &Request) -> String {
    let method = if request.is_post { "POST" } else { "GET" };
    match request.way {
        Way::Proxy { is_master: true, .. } => format!("master route, {method}"),
        Way::Proxy { .. } => format!("normal route, {method}"),
        Way::Agent { .. } => format!("agent's pick, {method}"),
    }
}
