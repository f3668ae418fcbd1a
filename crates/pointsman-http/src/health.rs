//! Active checks of the instances of a service. Their results go to the balancers' [`Endpoints`], which decide what they mean.
//!
//! Checks run on a thread of their own, so that no request waits for one. An instance is unknown until its first check has passed, or as
//! many have failed as it takes; after that it takes several in a row to change what is known.

mod probe;

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pointsman_balance::Endpoints;
use pointsman_core::{ObservedInstance, Snapshot, Streak, View};
use tokio::runtime::{Builder, Handle};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

use crate::instance::dial::Secret;
use crate::metrics::{ServiceMetrics, count};
use crate::settings::{self, Check, Network, Protocol, ServiceTls};

use self::probe::Means;

/// Checks do not come in step: each is up to this fraction of the interval earlier or later.
const JITTER: f64 = 0.1;
/// The first checks of the instances that are there from the beginning are spread over this time, or over the interval if that is shorter.
const FIRST_WITHIN: Duration = Duration::from_millis(250);

/// Runs the checks of all services.
#[derive(Debug, Default)]
pub(crate) struct Checker {
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
    states: Arc<States>,
    begin: Arc<Notify>,
    task: Ends,
}

/// What the checks of a service go by.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Rule {
    check: Check,
    protocol: Protocol,
    tls: Option<ServiceTls>,
    allowed: Vec<Network>,
}

/// What is known of instances, by their codes.
type States = Mutex<HashMap<Arc<str>, State>>;

/// What is known of one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct State {
    /// Another address is another instance.
    address: Option<Arc<str>>,
    streak: Streak,
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
        })
    }
}

impl Health {
    /// Prepares to check the instances in `source`; what is found out goes to `endpoints`. Nothing is checked before [`Health::begin`].
    /// What the checks `before` have found out still holds, whatever they have asked: an instance that is known to be dead is not taken for
    /// well because an interval is another now.
    pub(crate) fn prepare(
        checker: &Checker,
        rule: Rule,
        secret: Secret,
        source: &View,
        (endpoints, metrics): (&Endpoints, Arc<ServiceMetrics>),
        before: Option<&Health>,
    ) -> io::Result<Self> {
        let handle = checker.handle()?;
        let states = Arc::new(Mutex::new(before.map(Health::known).unwrap_or_default()));
        let (found, finds) = mpsc::unbounded_channel();
        let means = Means { check: rule.check.clone(), protocol: rule.protocol, allowed: rule.allowed.clone(), secret };
        let rounds = Rounds {
            means: Arc::new(means),
            source: source.clone(),
            snapshot: source.load(),
            endpoints: endpoints.clone(),
            states: states.clone(),
            tasks: HashMap::new(),
            found,
            metrics,
        };
        let begin = Arc::new(Notify::new());
        let begun = begin.clone();
        let task = handle.spawn(async move {
            begun.notified().await;
            rounds.run(finds).await;
        });
        Ok(Self { rule, states, begin, task: Ends(task.abort_handle()) })
    }

    /// From now on it is checked; a second time, nothing happens.
    pub(crate) fn begin(&self) {
        self.begin.notify_one();
    }

    /// Ends the checks, even while a table that holds them is in use.
    pub(crate) fn end(&self) {
        self.task.0.abort();
    }

    /// Whether these checks can go on as they are. Certificates may be others under the same names.
    pub(crate) fn holds(&self, rule: &Rule) -> bool {
        self.rule == *rule && rule.tls.is_none()
    }

    /// Number of instances that pass, and that fail; of the others it is not known.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let states = lock(&self.states);
        let count = |passes| states.values().filter(|state| state.streak.passes() == Some(passes)).count();
        (count(true), count(false))
    }

    fn known(&self) -> HashMap<Arc<str>, State> {
        lock(&self.states).clone()
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
    means: Arc<Means>,
    source: View,
    snapshot: Arc<Snapshot>,
    endpoints: Endpoints,
    states: Arc<States>,
    tasks: HashMap<Arc<str>, Ends>,
    found: mpsc::UnboundedSender<Found>,
    metrics: Arc<ServiceMetrics>,
}

impl Rounds {
    async fn run(mut self, mut finds: mpsc::UnboundedReceiver<Found>) {
        let mut seen = self.source.generation();
        let first_within = FIRST_WITHIN.min(self.means.check.interval);
        self.take_in();
        self.tell_known();
        self.ask_each(first_within);
        loop {
            tokio::select! {
                Some(found) = finds.recv() => self.note(&found),
                generation = self.source.changed(seen) => {
                    seen = generation;
                    self.take_in();
                    // Until it has been checked, a newcomer is not used.
                    self.ask_each(Duration::ZERO);
                }
            }
        }
    }

    /// Takes in which instances have come and gone.
    fn take_in(&mut self) {
        self.snapshot = self.source.load();
        let shared = self.states.clone();
        let mut states = lock(&shared);
        let mut before = std::mem::take(&mut *states);
        for instance in self.snapshot.instances() {
            let old = before.remove(&instance.code).filter(|old| old.address == instance.address);
            let new = || State { address: instance.address.clone(), ..State::default() };
            if old.is_none() {
                self.tasks.remove(&instance.code);
            }
            states.insert(instance.code.clone(), old.unwrap_or_else(new));
        }
        self.tasks.retain(|code, _| states.contains_key(code));
        before.keys().for_each(|code| self.endpoints.forget_check(code));
    }

    /// Tells what is known from the checks before. These may have gone on until now, and have told something that is not known here.
    fn tell_known(&self) {
        for (code, state) in lock(&self.states).iter() {
            if let Some(passes) = state.streak.passes() {
                self.endpoints.set_check(code, state.address.as_ref(), passes);
            }
        }
    }

    /// Sees to it that each instance is checked.
    fn ask_each(&mut self, first_within: Duration) {
        for instance in self.snapshot.instances() {
            if !self.tasks.contains_key(&instance.code) {
                let first = Instant::now() + first_within.mul_f64(fastrand::f64());
                let task = tokio::spawn(ask(instance.clone(), self.means.clone(), first, self.found.clone()));
                self.tasks.insert(instance.code.clone(), Ends(task.abort_handle()));
            }
        }
    }

    fn note(&mut self, found: &Found) {
        count(if found.result.is_ok() { &self.metrics.checks_passed } else { &self.metrics.checks_failed });
        let mut states = lock(&self.states);
        let Some(state) = states.get_mut(&found.code).filter(|state| state.address == found.address) else { return };
        let was_known = state.streak.passes().is_some();
        if !state.note(found.result.is_ok(), &self.means.check) {
            return;
        }
        // Before anybody else can know it.
        self.endpoints.set_check(&found.code, found.address.as_ref(), found.result.is_ok());
        drop(states);
        let (service, code) = (self.snapshot.service(), &found.code);
        match &found.result {
            Ok(()) if !was_known => tracing::debug!(%service, %code, "instance passes its checks"),
            Ok(()) => tracing::info!(%service, %code, "instance passes its checks again"),
            Err(reason) => tracing::warn!(%service, %code, reason, "instance fails its checks"),
        }
    }
}

/// Checks one instance for as long as it is there.
async fn ask(instance: Arc<ObservedInstance>, means: Arc<Means>, first: Instant, found: mpsc::UnboundedSender<Found>) {
    sleep_until(first).await;
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

impl State {
    /// Takes the result of a check in. Whether something else is known by it.
    fn note(&mut self, passed: bool, check: &Check) -> bool {
        let needed = match self.streak.passes() {
            // The first that passes is enough for an instance of which nothing is known.
            None if passed => 1,
            Some(false) => check.rise,
            None | Some(true) => check.fall,
        };
        self.streak.note(passed, needed)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing in here can panic half-way.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_takes_so_many_in_a_row_either_way() {
        let (mut check, mut state) = (Check::new(None), State::default());
        (check.rise, check.fall) = (2, 3);
        let mut turns =
            |passed: &[bool]| -> Vec<bool> { passed.iter().map(|passed| state.note(*passed, &check)).collect() };
        let (good, bad) = (true, false);
        assert_eq!(turns(&[bad, bad, good]), [false, false, true], "one is enough at first");
        assert_eq!(turns(&[bad, bad, good, bad, bad, bad]), [false, false, false, false, false, true]);
        assert_eq!(turns(&[bad, good, bad, good, good]), [false, false, false, false, true]);
        assert_eq!(turns(&[good, bad, bad]), [false; 3]);
    }

    #[test]
    fn an_instance_of_which_nothing_is_known_fails_by_as_many_as_any_other() {
        let (check, mut state) = (Check::new(None), State::default());
        let turns: Vec<bool> = (0..4).map(|_| state.note(false, &check)).collect();
        assert_eq!((turns, state.streak.passes()), (vec![false, false, true, false], Some(false)));
    }

    #[test]
    fn checks_are_a_tenth_apart_at_most() {
        let second = Duration::from_secs(1);
        assert_eq!([0.0, 0.5, 1.0].map(|draw| jittered(second, draw).as_millis()), [900, 1000, 1100]);
    }
}
