//! Who answers: active checks of the instances of a service, and a view without those who fail them.
//!
//! Checks run on a thread of their own, so that no request waits for one. What they find out becomes a view like any other, which the
//! balancers read instead of the registry's: they know nothing of checks. An instance is taken for well until it has failed so often in
//! a row; and if too few were left, all are kept, because then it is more likely the checks that are wrong.

mod probe;

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pointsman_core::{Instance, Snapshot, View, ViewWriter};
use tokio::runtime::{Builder, Handle};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, sleep_until};

use crate::instance::dial::Secret;
use crate::metrics::{ServiceMetrics, count};
use crate::settings::{self, Check, Network, Protocol, ServiceTls};

use self::probe::Means;

/// Who has come and gone is looked at this often, if nobody tells.
const LOOK: Duration = Duration::from_secs(1);
/// Checks do not come in step: each is so much earlier or later.
const JITTER: f64 = 0.1;

/// Runs the checks of all services.
#[derive(Debug)]
pub(crate) struct Checker {
    /// Tells when a view has changed.
    changed: Option<watch::Receiver<()>>,
    thread: Mutex<Option<Thread>>,
}

#[derive(Debug)]
struct Thread {
    handle: Handle,
    /// Dropped: the thread ends.
    _stop: oneshot::Sender<()>,
}

/// The checks of one service. They end with this.
#[derive(Debug)]
pub(crate) struct Health {
    rule: Rule,
    view: View,
    standings: Arc<Standings>,
    _task: Ends,
}

/// What the checks of a service go by.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Rule {
    check: Check,
    protocol: Protocol,
    tls: Option<ServiceTls>,
    allowed: Vec<Network>,
    panic_percent: u32,
}

/// What is known of instances, by their codes.
type Standings = Mutex<HashMap<Arc<str>, Standing>>;

/// What is known of one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Standing {
    /// Another address is another instance.
    address: Option<Arc<str>>,
    fails: bool,
    /// So many checks in a row have said otherwise.
    otherwise: u32,
}

/// A task that ends with this.
#[derive(Debug)]
struct Ends(AbortHandle);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Checker {
    pub(crate) fn new(changed: Option<watch::Receiver<()>>) -> Self {
        Self { changed, thread: Mutex::default() }
    }

    /// The thread begins with the first service that is checked.
    fn handle(&self) -> io::Result<Handle> {
        let mut thread = lock(&self.thread);
        if let Some(thread) = &*thread {
            return Ok(thread.handle.clone());
        }
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (handle, (stop, stopped)) = (runtime.handle().clone(), oneshot::channel::<()>());
        std::thread::Builder::new().name("proxy-checks".to_owned()).spawn(move || {
            let _ = runtime.block_on(stopped);
            // A name that is being looked up is not waited for.
            runtime.shutdown_background();
        })?;
        *thread = Some(Thread { handle: handle.clone(), _stop: stop });
        Ok(handle)
    }
}

impl Rule {
    /// `None`: the service is not checked.
    pub(crate) fn of(settings: &settings::Service, allowed: &[Network]) -> Option<Self> {
        Some(Self {
            check: settings.check.clone()?,
            protocol: settings.protocol,
            tls: settings.tls.clone(),
            allowed: allowed.to_vec(),
            panic_percent: settings.ejection.unwrap_or_default().panic_percent,
        })
    }
}

impl Health {
    /// Begins to check the instances in `source`. What the checks `before` have found out still holds, if they ask the same.
    pub(crate) fn start(
        checker: &Checker,
        rule: Rule,
        secret: Secret,
        source: &View,
        metrics: Arc<ServiceMetrics>,
        before: Option<&Health>,
    ) -> io::Result<Self> {
        let handle = checker.handle()?;
        let known = before.filter(|before| before.rule.check == rule.check).map(Health::known);
        let standings = Arc::new(Mutex::new(known.unwrap_or_default()));
        let writer = ViewWriter::new(Snapshot::empty(source.load().service().clone()));
        let view = writer.view();
        let (found, finds) = mpsc::unbounded_channel();
        let means = Means { check: rule.check.clone(), protocol: rule.protocol, allowed: rule.allowed.clone(), secret };
        let mut rounds = Rounds {
            panic_percent: rule.panic_percent,
            means: Arc::new(means),
            source: source.clone(),
            seen: None,
            snapshot: source.load(),
            writer,
            standings: standings.clone(),
            tasks: HashMap::new(),
            found,
            metrics,
            panics: false,
        };
        // So that nobody sees a view that is empty, or has instances in it that are known to fail.
        rounds.take_in();
        let task = handle.spawn(rounds.run(finds, checker.changed.clone()));
        Ok(Self { rule, view, standings, _task: Ends(task.abort_handle()) })
    }

    /// Whether these checks can go on as they are. Certificates may be others under the same names.
    pub(crate) fn holds(&self, rule: &Rule) -> bool {
        self.rule == *rule && rule.tls.is_none()
    }

    /// The instances without those that fail.
    pub(crate) fn view(&self) -> &View {
        &self.view
    }

    /// How many fail, whether they are left out or not.
    pub(crate) fn failing(&self) -> usize {
        lock(&self.standings).values().filter(|standing| standing.fails).count()
    }

    fn known(&self) -> HashMap<Arc<str>, Standing> {
        lock(&self.standings).clone()
    }
}

/// What a check has found.
#[derive(Debug)]
struct Found {
    code: Arc<str>,
    address: Option<Arc<str>>,
    result: Result<(), String>,
}

/// The checks of a service, at work.
struct Rounds {
    panic_percent: u32,
    means: Arc<Means>,
    source: View,
    /// The generation of the source that the snapshot is of.
    seen: Option<u64>,
    snapshot: Arc<Snapshot>,
    writer: ViewWriter,
    standings: Arc<Standings>,
    tasks: HashMap<Arc<str>, Ends>,
    found: mpsc::UnboundedSender<Found>,
    metrics: Arc<ServiceMetrics>,
    panics: bool,
}

impl Rounds {
    async fn run(mut self, mut finds: mpsc::UnboundedReceiver<Found>, mut changed: Option<watch::Receiver<()>>) {
        self.ask_each();
        loop {
            tokio::select! {
                Some(found) = finds.recv() => self.note(&found),
                () = told(&mut changed) => {}
                () = sleep(LOOK) => {}
            }
            if self.take_in() {
                self.ask_each();
            }
        }
    }

    /// Takes in who has come and gone. Whether anything has changed.
    fn take_in(&mut self) -> bool {
        let generation = self.source.generation();
        if self.seen == Some(generation) {
            return false;
        }
        (self.seen, self.snapshot) = (Some(generation), self.source.load());
        let shared = self.standings.clone();
        let mut standings = lock(&shared);
        let mut before = std::mem::take(&mut *standings);
        for instance in self.snapshot.instances() {
            let old = before.remove(&instance.code).filter(|old| old.address == instance.address);
            let new = || Standing { address: instance.address.clone(), ..Standing::default() };
            if old.is_none() {
                self.tasks.remove(&instance.code);
            }
            standings.insert(instance.code.clone(), old.unwrap_or_else(new));
        }
        self.tasks.retain(|code, _| standings.contains_key(code));
        self.publish(&standings);
        true
    }

    /// Sees to it that each instance is checked.
    fn ask_each(&mut self) {
        for instance in self.snapshot.instances() {
            if !self.tasks.contains_key(&instance.code) {
                let task = tokio::spawn(ask(instance.clone(), self.means.clone(), self.found.clone()));
                self.tasks.insert(instance.code.clone(), Ends(task.abort_handle()));
            }
        }
    }

    fn note(&mut self, found: &Found) {
        count(if found.result.is_ok() { &self.metrics.checks_passed } else { &self.metrics.checks_failed });
        let shared = self.standings.clone();
        let mut standings = lock(&shared);
        let Some(standing) = standings.get_mut(&found.code).filter(|standing| standing.address == found.address) else {
            return;
        };
        if !standing.note(found.result.is_ok(), &self.means.check) {
            return;
        }
        self.publish(&standings);
        drop(standings);
        let (service, code) = (self.snapshot.service(), &found.code);
        match &found.result {
            Ok(()) => tracing::info!(%service, %code, "instance passes its checks again"),
            Err(reason) => tracing::warn!(%service, %code, reason, "instance fails its checks"),
        }
    }

    /// Lets the balancers see what is known now; before anybody else can know it.
    fn publish(&mut self, standings: &HashMap<Arc<str>, Standing>) {
        let fails = |instance: &Instance| standings.get(&instance.code).is_some_and(|standing| standing.fails);
        let (snapshot, panics) = without(&self.snapshot, fails, self.panic_percent);
        if std::mem::replace(&mut self.panics, panics) != panics {
            let service = self.snapshot.service();
            if panics {
                tracing::warn!(%service, "too many instances fail their checks: all are used, whatever the checks say");
            } else {
                tracing::info!(%service, "enough instances pass their checks again");
            }
        }
        self.writer.store(snapshot);
    }
}

/// Returns when there is news; never if nobody tells.
async fn told(changed: &mut Option<watch::Receiver<()>>) {
    if let Some(receiver) = changed {
        if receiver.changed().await.is_ok() {
            return;
        }
        *changed = None;
    }
    std::future::pending::<()>().await;
}

/// Checks one instance for as long as it is there.
async fn ask(instance: Arc<Instance>, means: Arc<Means>, found: mpsc::UnboundedSender<Found>) {
    // Not all at once when the proxy starts.
    sleep(means.check.interval.mul_f64(fastrand::f64())).await;
    loop {
        let next = Instant::now() + jittered(means.check.interval, fastrand::f64());
        let result = means.probe(instance.address.as_deref()).await;
        let found_now = Found { code: instance.code.clone(), address: instance.address.clone(), result };
        if found.send(found_now).is_err() {
            return;
        }
        sleep_until(next).await;
    }
}

/// `draw` is 0 to 1.
fn jittered(interval: Duration, draw: f64) -> Duration {
    interval.mul_f64(1.0 - JITTER + 2.0 * JITTER * draw)
}

impl Standing {
    /// Takes the result of a check in. Whether that turns it from passing to failing, or back.
    fn note(&mut self, passed: bool, check: &Check) -> bool {
        if passed != self.fails {
            self.otherwise = 0;
            return false;
        }
        self.otherwise += 1;
        let needed = if self.fails { check.rise } else { check.fall };
        if self.otherwise < needed {
            return false;
        }
        (self.fails, self.otherwise) = (!self.fails, 0);
        true
    }
}

/// The snapshot without those that fail; or all of it, if too few of those that take work would be left, which is told as well.
fn without(snapshot: &Arc<Snapshot>, fails: impl Fn(&Instance) -> bool, panic_percent: u32) -> (Arc<Snapshot>, bool) {
    let all = snapshot.instances();
    let (mut able, mut well, mut kept) = (0, 0, Vec::with_capacity(all.len()));
    for instance in all {
        let fails = fails(instance);
        able += usize::from(instance.takes_work());
        well += usize::from(instance.takes_work() && !fails);
        if !fails {
            kept.push(instance.clone());
        }
    }
    if well < able && (well == 0 || well * 100 < able * panic_percent as usize) {
        return (snapshot.clone(), true);
    }
    if kept.len() == all.len() {
        return (snapshot.clone(), false);
    }
    let derived = Snapshot::new(snapshot.service().clone(), snapshot.revision(), kept)
        .with_problems(snapshot.problems().to_vec());
    (Arc::new(derived), false)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing in here can panic half-way.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use pointsman_core::{Role, Status, Term};

    use super::*;

    #[test]
    fn it_takes_so_many_in_a_row_either_way() {
        let (mut check, mut standing) = (Check::new(None), Standing::default());
        (check.rise, check.fall) = (2, 3);
        let mut turns =
            |passed: &[bool]| -> Vec<bool> { passed.iter().map(|passed| standing.note(*passed, &check)).collect() };
        let (good, bad) = (true, false);
        assert_eq!(turns(&[bad, bad, good, bad, bad, bad]), [false, false, false, false, false, true]);
        assert_eq!(turns(&[bad, good, bad, good, good]), [false, false, false, false, true]);
        assert_eq!(turns(&[good, bad, bad]), [false; 3]);
    }

    fn snapshot(codes: &[&str]) -> Arc<Snapshot> {
        let instances = codes.iter().map(|code| {
            let mut instance = Instance::new("s").code(*code);
            instance.role = if *code == "m" { Role::Master(Term(1)) } else { Role::Normal };
            if code.starts_with('d') {
                instance.status = Status::Drained;
            }
            Arc::new(instance)
        });
        Arc::new(Snapshot::new("s", 7, instances.collect()))
    }

    fn left(codes: &[&str], failing: &[&str]) -> (String, bool) {
        let (left, panics) = without(&snapshot(codes), |instance| failing.contains(&&*instance.code), 50);
        assert_eq!(left.revision(), 7);
        (left.instances().iter().map(|instance| &*instance.code).collect(), panics)
    }

    #[test]
    fn who_fails_is_left_out_unless_too_few_would_be_left() {
        let is = |codes: &str, panics| (codes.to_owned(), panics);
        assert_eq!(left(&["a", "b", "c"], &[]), is("abc", false));
        assert_eq!(left(&["a", "b", "c"], &["b"]), is("ac", false));
        assert_eq!(left(&["a", "b", "c", "e"], &["b", "a"]), is("ce", false));
        assert_eq!(left(&["a", "b", "c"], &["b", "a"]), is("abc", true));
        assert_eq!(left(&["a"], &["a"]), is("a", true));
        assert_eq!(left(&[], &[]), is("", false));
        // The master steps in for the only normal one; who takes no work anyway does not count.
        assert_eq!(left(&["a", "m"], &["a"]), is("m", false));
        assert_eq!(left(&["a", "m"], &["m"]), is("a", false));
        assert_eq!(left(&["a", "d1", "d2", "d3"], &["d1", "d2"]), is("ad3", false));
        assert_eq!(left(&["a", "d1", "d2", "d3"], &["a"]), is("ad1d2d3", true));
        // With 0, only the last one is kept.
        let (left, panics) = without(&snapshot(&["a", "b", "c"]), |instance| &*instance.code != "c", 0);
        assert_eq!((left.instances().len(), panics), (1, false));
        let (left, panics) = without(&snapshot(&["a", "b", "c"]), |_| true, 0);
        assert_eq!((left.instances().len(), panics), (3, true));
    }

    #[test]
    fn checks_are_a_tenth_apart_at_most() {
        let second = Duration::from_secs(1);
        assert_eq!([0.0, 0.5, 1.0].map(|draw| jittered(second, draw).as_millis()), [900, 1000, 1100]);
    }
}
