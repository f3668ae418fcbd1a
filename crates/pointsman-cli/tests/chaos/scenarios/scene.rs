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
use crate::{ALONE, SESSION, asked_for};

/// Number of requests that must be answered in each step on each way: a fraction of those that are asked in two seconds.
const MEANINGFUL: usize = 5;

/// Number of ways to ask: normal route, master route and the agent's pick, each by GET and by POST.
const WAYS: usize = 6;

/// Number of faults of one kind that are shown with a timeline.
const TIMELINES: usize = 3;

/// How long before a fault its timeline begins.
const BEFORE: Duration = Duration::from_secs(5);

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
        let mut rng = fastrand::Rng::with_seed(asked_for().0);
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

    /// One of these that is master now is a fault: all are drained, and others are not.
    pub(super) fn none_is_master(&mut self, drained: &[LifeId]) {
        let director = &self.run.director;
        if drained.contains(&director.master()) {
            director.recorder.note(format!("{} is master, although it is drained", director.code(director.master())));
            director.recorder.unrecovered();
        }
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
        for faults in [arrived(&evidence, &silent), picked(&evidence, &unlisted), tried_again(&evidence, &settled)] {
            show(&evidence, &faults, &mut report);
        }
        let few = check_steps(&evidence, &steps, &mut report);
        println!("{}", report.text);
        assert_eq!(report.faults, 0, "avoidable failures, see above");
        assert!(few.is_empty(), "answered too few requests: {few:?}");
    }
}

/// A request that has gone another way than it may, and what it has done.
type Fault<'a> = (&'a Request, String);

/// Finds requests that have arrived at drained instances, although everybody must have known.
fn arrived<'a>(evidence: &'a Evidence, silent: &[(Time, String)]) -> Vec<Fault<'a>> {
    let arrivals = |request: &'a Request| {
        let arrivals = evidence.arrivals.get(&request.id).into_iter().flatten();
        arrivals.map(move |(_, code, _)| (request, code))
    };
    let is_wrong =
        |request: &Request, at: &String| silent.iter().any(|(since, code)| code == at && *since <= request.start);
    let arrivals = evidence.requests.iter().flat_map(arrivals).filter(|(request, code)| is_wrong(request, code));
    arrivals.map(|(request, code)| (request, format!("a request has arrived at {code}, which is drained"))).collect()
}

/// Finds picks of instances that the agent had ceased to list.
fn picked<'a>(evidence: &'a Evidence, unlisted: &[(Time, String)]) -> Vec<Fault<'a>> {
    let wrong = |request: &'a Request| {
        let Way::Agent { picked: Some((picked, _)), .. } = &request.way else { return None };
        let is_wrong = unlisted.iter().any(|(since, code)| code == picked && *since <= request.start);
        is_wrong.then(|| (request, format!("the agent has picked {picked}, which it did not list any more")))
    };
    evidence.requests.iter().filter_map(wrong).collect()
}

/// Finds requests for which a proxy has tried a second instance, when nothing was listed that could not answer.
fn tried_again<'a>(evidence: &'a Evidence, settled: &[(Time, Time)]) -> Vec<Fault<'a>> {
    let is_settled = |request: &&Request| settled.iter().any(|(from, to)| (*from..*to).contains(&request.start));
    let retries = |request: &Request| evidence.logged.get(&request.id).map_or(0, |logged| logged.retries);
    let requests = evidence.requests.iter().filter(is_settled).filter(|request| retries(request) > 0);
    requests.map(|request| (request, "a proxy has tried a second instance".to_owned())).collect()
}

/// Shows the first few with their timelines.
fn show(evidence: &Evidence, faults: &[Fault<'_>], report: &mut Report) {
    report.faults += faults.len();
    for (request, what) in faults.iter().take(TIMELINES) {
        let _ = writeln!(report.text, "━━ {what}: {request:?}");
        timeline(&evidence.truth, &mut report.text, request.start, request.end, BEFORE);
    }
    if faults.len() > TIMELINES {
        let _ = writeln!(report.text, "━━ and {} more of that kind", faults.len() - TIMELINES);
    }
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
